"""What a weights file tells of the network that it was published for, and how it fits ours."""

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from wsol_jax.models.layouts import known_names
from wsol_jax.models.published import local_weights
from wsol_jax.models.weights import Problems, problems_of, read_tensors
from wsol_jax.models.zoo import RECIPES, build


def said_options(name: str, weights: str | Path) -> dict[str, Any]:
    """Options of a network that a weights file tells by its names and shapes.

    Args:
        name: one of NETWORKS.
        weights: as those of `load_network`.

    Returns:
        Those that are not as by default, such as {'image_size': 384}.

    Raises:
        WeightsError: the file cannot be read, or fetched.
    """
    path = local_weights(weights)
    return unusual_options(name, known_names(read_tensors(path), path)[1])


def unusual_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of options from `known_names` that a network has, and not by default."""
    recipe = RECIPES[name]
    kind: Any = getattr(recipe.constructor, 'func', recipe.constructor)  # behind a partial
    usual = {k: p.default for k, p in signature(kind.__init__).parameters.items()}
    return {k: v for k, v in options.items() if k in recipe.options and v != usual[k]}


class Fit(NamedTuple):
    """How a file fits a network.

    Attributes:
        classes: of its head; 0 where the head is another one, or none.
        problems: what does not fit of the rest.
    """

    classes: int
    problems: Problems


def fit_of(name: str, tensors: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> Fit:
    """How tensors fit a network; nothing is computed.

    Args:
        name: one of NETWORKS.
        tensors: under known names, see `known_names`.
        options: that they want, of any network, from there, too.
    """
    recipe = RECIPES[name]
    own = {k: v for k, v in options.items() if k in recipe.options}
    bias = tensors.get(recipe.class_key, np.zeros(1))
    classes = len(bias) if bias.ndim == 1 and len(bias) else 1
    module = nnx.eval_shape(lambda: build(name, classes, nnx.Rngs(0), **own))
    problems = problems_of(module, tensors, recipe.table)
    return Fit(0 if problems else classes, problems.outside(recipe.head))

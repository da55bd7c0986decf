"""What a weights file tells of the network that it was published for, and how it fits ours."""

from collections.abc import Mapping
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from wsol_jax.models.weights import Problems, problems_of
from wsol_jax.models.zoo import RECIPES, build


def unusual_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a `Read` that a network has, and not by default, such as {'image_size': 384}."""
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
        tensors: of a `Read`.
        options: of it, too: of any network.
    """
    recipe = RECIPES[name]
    own = {k: v for k, v in options.items() if k in recipe.options}
    bias = tensors.get(recipe.class_key, np.zeros(1))
    classes = len(bias) if bias.ndim == 1 and len(bias) else 1
    module = nnx.eval_shape(lambda: build(name, classes, nnx.Rngs(0), **own))
    problems = problems_of(module, tensors, recipe.table)
    return Fit(0 if problems else classes, problems.outside(recipe.head))

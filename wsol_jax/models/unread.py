"""Layers that no class score depends on."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from wsol_jax.models.network import main_endpoints


def layers_read(
    name: str, apply: Callable, state: Any, layers: Sequence[str], shape: tuple[int, int, int]
) -> tuple[str, ...] | None:
    """The main endpoints of a transformer whose patches the class scores depend on.

    A head that reads the class token alone leaves the patches behind the last attention without a
    gradient: they are passed over, with a warning. Where hardly a main endpoint would be left, the
    parts of those take their place. One image goes through the network once, and back.

    Args:
        name: of the network, for the warning.
        apply: see `Network`.
        state: its state.
        layers: all endpoints, from input to output.
        shape: (H,W,C) of the inputs.

    Returns:
        The main endpoints, or None: these are as always.
    """
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state)):
        return None
    read = jax.device_get(_reaching(apply, state, jnp.zeros((1, *shape))))
    usual = main_endpoints(layers)
    found = _main(layers, read)
    if not found or found == usual:
        return None
    unread = ', '.join(repr(n) for n in usual if not read[n])
    logging.warning(
        '%s: no class score depends on the patches at %s, as where the head reads the class token '
        'alone: passed over unless layers= names it',
        name,
        unread,
    )
    return found


def _main(names: Sequence[str], read: Mapping[str, Any]) -> tuple[str, ...]:
    main = main_endpoints(names)
    found = tuple(n for n in main if read[n])
    others = [n for n in names if read[n] or n not in main]
    if len(found) > 1 or others == list(names):
        return found
    return _main(others, read)


@partial(jax.jit, static_argnums=0)
def _reaching(apply: Callable, state: Any, images: jax.Array) -> dict[str, jax.Array]:
    """Whether the logits change with each endpoint."""
    drawn, other = jax.random.split(jax.random.key(0))
    inputs = jax.random.normal(drawn, images.shape)
    _, shapes = jax.eval_shape(apply, state, inputs)
    zeros = {name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.items()}
    logits, pull_back = jax.vjp(lambda perturb: apply(state, inputs, perturb)[0], zeros)
    # A mixture of the classes: their plain sum would be constant behind a softmax.
    (gradients,) = pull_back(jax.random.normal(other, logits.shape))
    return {name: jnp.any(g != 0) for name, g in gradients.items()}

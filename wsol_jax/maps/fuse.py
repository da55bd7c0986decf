"""Normalizing, resizing and fusing maps on the device, inside one compiled program.

The numbers that are compared with other people's tables go through `score_map` on the host.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from wsol_jax.names import unknown_name


def min_max(maps: jax.Array) -> jax.Array:
    """Scales each map [..., h, w] to [0, 1]; a constant map or one with NaN becomes zeros."""
    low = jnp.min(maps, axis=(-2, -1), keepdims=True)
    span = jnp.max(maps, axis=(-2, -1), keepdims=True) - low
    usable = (span > 0) & jnp.isfinite(span)
    return jnp.where(usable, (maps - low) / jnp.where(usable, span, 1), 0)


def resize(maps: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear resize of maps [..., h, w] to [..., *size], size = (height, width)."""
    if maps.shape[-2:] == size:
        return maps
    return jax.image.resize(maps, (*maps.shape[:-2], *size), 'linear', antialias=False)


FUSIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'mean': lambda stack: jnp.mean(stack, axis=0),
    'max': lambda stack: jnp.max(stack, axis=0),
    'product': lambda stack: jnp.prod(stack, axis=0),
    # LayerCAM (Jiang et al., IEEE TIP 2021, eq. 8 and 9)
    'layer_cam': lambda stack: jnp.max(jnp.tanh(2 * stack), axis=0),
}


def fuse(maps: Sequence[jax.Array], how: str = 'mean') -> jax.Array:
    """Fuses maps [..., h_i, w_i]: each min-max scaled, resized to the largest, then combined.

    Args:
        maps: the maps; their leading axes agree.
        how: one of `FUSIONS`; 'layer_cam' is the largest tanh(2 map).

    Returns:
        [..., h, w] with (h, w) the largest resolution among the maps.

    Raises:
        ValueError: `how` is none of these.
    """
    if how not in FUSIONS:
        raise ValueError(unknown_name('fusion', how, FUSIONS))
    return FUSIONS[how](_stacked(list(map(min_max, maps))))


def mean_of(maps: Sequence[jax.Array]) -> jax.Array:
    """The mean of maps [..., h_i, w_i] as they are, resized to the largest: [..., h, w]."""
    return jnp.mean(_stacked(maps), axis=0)


def of_maximum(maps: jax.Array) -> jax.Array:
    """Each map [..., h, w] divided by its maximum, where that is above zero."""
    highest = jnp.max(maps, axis=(-2, -1), keepdims=True)
    return maps / jnp.where(highest > 0, highest, 1)


def _stacked(maps: Sequence[jax.Array]) -> jax.Array:
    height, width = max((m.shape[-2:] for m in maps), key=math.prod)
    return jnp.stack([resize(m, (height, width)) for m in maps])

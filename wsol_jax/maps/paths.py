"""Pairs of positions of a map and what lies between them (Ahn, Cho and Kwak, CVPR 2019).

Two positions have the affinity 1 - max B(x) over the straight path from one to the other, both ends
among it, where B is the probability of a boundary (arXiv 1904.05044).
"""

from functools import cache, reduce

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

Whole = NDArray[np.int32]


@cache
def straight_paths(radius: int) -> tuple[Whole, Whole]:
    """The pairs of positions nearer than a radius, one of each two that lie opposite.

    Args:
        radius: in positions, at least 2.

    Returns:
        N offsets (down, right), int32 [N,2], down from 0; and the positions on the way, int32
        [N,L,2], relative to the first one, which fills up shorter ways: all between both ends that
        are less than 1 off the straight line, as in the authors' code.
    """
    reach = range(-radius + 1, radius)
    offsets = [
        (y, x) for y in reach for x in reach if (y, x) > (0, 0) and y * y + x * x < radius**2
    ]
    ways = [_way(*offset) for offset in offsets]
    longest = max(map(len, ways))
    filled = [way + [(0, 0)] * (longest - len(way)) for way in ways]
    return np.array(offsets, np.int32), np.array(filled, np.int32)


def _way(down: int, right: int) -> list[tuple[int, int]]:
    step = 1 if right >= 0 else -1
    return [
        (y, x)
        for y in range(down + 1)
        for x in range(0, right + step, step)
        if (down * x - right * y) ** 2 < down**2 + right**2
    ]


def framed(values: jax.Array, reach: int, outside: float) -> jax.Array:
    """Maps [...,H,W] in a frame of `reach` positions with the value `outside`."""
    pads = ((0, 0),) * (values.ndim - 2) + ((reach, reach),) * 2
    return jnp.pad(values, pads, constant_values=outside)


def moved(inside: jax.Array, offset: jax.Array | Whole, reach: int) -> jax.Array:
    """What lies at an offset from each position: maps [...,H,W] from `framed` ones.

    Args:
        inside: [...,H + 2 reach,W + 2 reach].
        offset: (down, right), int32 [2], each at most `reach` in size.
        reach: the width of the frame.
    """
    size = [side - 2 * reach for side in inside.shape[-2:]]
    start = [0] * (inside.ndim - 2) + [reach + offset[0], reach + offset[1]]
    return jax.lax.dynamic_slice(inside, start, (*inside.shape[:-2], *size))


def path_affinity(boundary: jax.Array, way: jax.Array, reach: int) -> jax.Array:
    """1 - the highest boundary on a way from each position: [...,H,W] from a map in a frame.

    Args:
        boundary: [...,H + 2 reach,W + 2 reach]; 1 in the frame, so that no way leads there.
        way: one of `straight_paths`, int32 [L,2].
        reach: the width of the frame.
    """
    return 1 - reduce(jnp.maximum, [moved(boundary, place, reach) for place in way])

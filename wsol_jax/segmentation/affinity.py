"""Random walks that carry class maps to boundaries (Ahn, Cho and Kwak, CVPR 2019)."""

from functools import partial

import jax
import jax.numpy as jnp

from wsol_jax.maps.fuse import resize
from wsol_jax.maps.paths import framed, moved, path_affinity, straight_paths


@partial(jax.jit, static_argnames=('radius', 'doublings'))
def random_walk(
    maps: jax.Array,
    boundary: jax.Array,
    radius: int = 5,
    beta: float = 10.0,
    doublings: int = 8,
) -> jax.Array:
    """T^(2^doublings) (M (1 - B)) with the transition matrix T = D^-1 A^beta (arXiv 1904.05044).

    A holds the affinities of positions nearer than `radius`, 1 - the highest boundary on the
    straight path between them, 1 of each with itself; beta is the power of each element and D the
    sums of the rows. The defaults are those of the authors' code for VOC, at a quarter of the
    image's resolution, where maps are divided by their maximum afterwards.

    A is never built: one step is a weighted mean over the n offsets within the radius (69 at 5), at
    2 n operations a position and class. A matrix of N positions, squared `doublings` times, takes
    2 N^3 each time.

    Args:
        maps: [...,C,H,W], from 0, of any scale.
        boundary: the probability of a boundary, [...,H,W].
        radius: in positions, at least 2.
        beta: the higher, the less the walk passes a weak boundary.
        doublings: the walk takes 2 to that power steps.

    Returns:
        [...,C,H,W]; each value is a weighted mean of those of M (1 - B).
    """
    reach = radius - 1
    offsets = straight_paths(radius)[0]
    *weights, stays = _transitions(boundary, radius, beta)[..., None, :, :]
    steps = list(zip(weights, (*offsets, *-offsets), strict=True))

    def step(_: int, walked: jax.Array) -> jax.Array:
        inside = framed(walked, reach, 0.0)
        return stays * walked + sum(weight * moved(inside, o, reach) for weight, o in steps)

    return jax.lax.fori_loop(0, 2**doublings, step, maps * (1 - boundary)[..., None, :, :])


def walked(maps: jax.Array, boundary: jax.Array, doublings: int) -> jax.Array:
    """Maps of classes after `random_walk` to boundaries of another resolution.

    Args:
        maps: [...,C,h,w]; what is negative counts as 0.
        boundary: the probability of a boundary, [...,H,W].
        doublings: see `random_walk`.

    Returns:
        [...,C,H,W].
    """
    height, width = boundary.shape[-2:]
    rectified = resize(jax.nn.relu(maps), (height, width))
    return random_walk(rectified, boundary, doublings=doublings)


def _transitions(boundary: jax.Array, radius: int, beta: float) -> jax.Array:
    """Rows of T: to each of `straight_paths`, to their opposites, to itself: [2N + 1,...,H,W]."""
    reach = radius - 1
    offsets, ways = map(jnp.asarray, straight_paths(radius))
    walls = framed(boundary, reach, 1.0)

    def both(pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        offset, way = pair
        there = path_affinity(walls, way, reach) ** beta
        return there, moved(framed(there, reach, 0.0), -offset, reach)

    there, back = jax.lax.map(both, (offsets, ways))
    weights = jnp.concatenate([there, back, jnp.ones_like(boundary)[None]])
    return weights / jnp.sum(weights, axis=0)

"""Point-guided self-supervision of Point-DETR3D (Gao et al., AAAI 2024, arXiv 2403.15317)."""

import jax
import jax.numpy as jnp

from wsol_jax.models.center_point import cells_of
from wsol_jax.models.deformable import bilinear
from wsol_jax.models.pillars import Grid
from wsol_jax.points.views import moved_places

_NONE = 1e-4  # objects, so that nothing is divided by zero
_SMALL = 1e-12


def warped_back(features: jax.Array, view: jax.Array, grid: Grid) -> tuple[jax.Array, jax.Array]:
    """Features of a view of the world where the world itself has them.

    Args:
        features: [B,rows,columns,K] of points that were moved.
        view: [B,4,4], how they were.
        grid: whose cells these are.

    Returns:
        [B,rows,columns,K], bilinear, and which cells the view has seen, bool [B,rows,columns].
    """
    rows, columns = grid.shape
    row, column = jnp.mgrid[:rows, :columns] + 0.5
    low = jnp.array(grid.low[:2])
    places = jnp.stack([column, row], axis=-1) * grid.pillar + low
    places = jnp.pad(places, ((0, 0), (0, 0), (0, 1)))
    cells = jax.vmap(lambda v: cells_of(moved_places(places, v), grid))(view) - 0.5
    seen = (cells >= 0) & (cells <= jnp.array([columns - 1, rows - 1]))
    return bilinear(features, cells[..., 1], cells[..., 0]), jnp.all(seen, axis=-1)


def consistency_loss(strong: jax.Array, weak: jax.Array, weights: jax.Array) -> jax.Array:
    """sum g |F' - G'|^2 over cells, with F' and G' of length 1 in each cell: [B].

    Args:
        strong: [B,rows,columns,K], features with a gradient.
        weak: likewise, which get none.
        weights: g [B,rows,columns].
    """
    difference = _unit(strong) - jax.lax.stop_gradient(_unit(weak))
    return jnp.sum(weights * jnp.sum(difference**2, axis=-1), axis=(1, 2))


def _unit(features: jax.Array) -> jax.Array:
    squares = jnp.sum(features**2, axis=-1, keepdims=True)
    return features * jax.lax.rsqrt(jnp.maximum(squares, _SMALL))


def per_object(total: jax.Array, objects: jax.Array) -> jax.Array:
    """The sum of a batch divided by its number of objects; 0 without any."""
    return total / (objects + _NONE)

"""D-RoI cross-attention of Point-DETR3D (Gao et al., AAAI 2024, arXiv 2403.15317).

A query samples the levels of a feature pyramid at two kinds of places, which are put together:

- deformable ones (Zhu et al., ICLR 2021, arXiv 2010.04159): some learnt places around its reference
  for each head and level, weighted by a softmax over all of a head;
- a grid on its region of interest, moved by learnt offsets. One logit a place is shared by heads
  and levels; the softmax is over heads, levels and places together, so that a head has 1 / heads
  of it.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from wsol_jax.models.box_codes import cell_centres, corners_of
from wsol_jax.models.deformable import bilinear

_NEAREST = 0.1  # metres in front of a camera
_ASIDE = -10.0  # a share that lies outside of every image
_ZEROS = nnx.initializers.zeros_init()


class DRoIAttention(nnx.Module):
    """D-RoI attention of queries on the levels of one view.

    Args:
        width: channels of queries and levels.
        levels: how many there are.
        heads: of the attention; divides the width.
        points: deformable samples of each head and level.
        side: of the grid on the region of interest.
        axes: of a deformable offset: 2 on the view itself, 3 in the world.
        rngs: for the initial weights.
    """

    def __init__(
        self,
        width: int,
        levels: int,
        heads: int,
        points: int,
        side: int,
        axes: int,
        rngs: nnx.Rngs,
    ):
        self.shape, self.axes = (heads, levels, points), axes

        def zeros(features: int, bias: nnx.Initializer = _ZEROS) -> nnx.Linear:
            return nnx.Linear(width, features, kernel_init=_ZEROS, bias_init=bias, rngs=rngs)

        count = heads * levels * points
        self.offsets = zeros(count * axes, lambda *_: rays(heads, levels, points, axes).ravel())
        self.weights = zeros(count)
        self.roi_offsets, self.roi_weights = zeros(2 * side**2), zeros(side**2)
        self.values = nnx.Linear(width, width, rngs=rngs)
        self.output = nnx.Linear(width, width, rngs=rngs)

    def __call__(
        self,
        queries: jax.Array,
        levels: Sequence[jax.Array],
        place: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
        roi: jax.Array,
        seen: jax.Array,
    ) -> jax.Array:
        """What the queries see.

        Args:
            queries: [B,N,width], with their positions.
            levels: [B,h,w,width] each.
            place: from deformable offsets [B,N,heads,levels,points,axes] to where they sample,
                shares (column, row) of the view [...,2], and whether that counts, bool [...].
            roi: [B,N,side^2,2], shares of the view: the grid on the region of interest.
            seen: bool [B,N,side^2], whether a place of it counts.

        Returns:
            [B,N,width].
        """
        heads, count, _ = self.shape
        lead = queries.shape[:2]
        sizes = jnp.array([level.shape[2:0:-1] for level in levels])[:, None]
        free, counts = place(self.offsets(queries).reshape(*lead, *self.shape, self.axes))
        weights = jax.nn.softmax(self.weights(queries).reshape(*lead, heads, -1))
        weights = weights.reshape(*lead, *self.shape) * counts
        moved = self.roi_offsets(queries).reshape(*lead, 1, 1, -1, 2) / sizes
        grid = jnp.broadcast_to(
            roi[:, :, None, None] + moved, (*lead, heads, count, roi.shape[2], 2)
        )
        shared = jax.nn.softmax(self.roi_weights(queries)) / (heads * count) * seen
        shared = jnp.broadcast_to(shared[:, :, None, None], grid.shape[:-1])
        places = jnp.concatenate([free, grid], axis=4)
        weights = jnp.concatenate([weights, shared], axis=4)
        found = sum(
            sampled(self._split(level), places[:, :, :, i], weights[:, :, :, i])
            for i, level in enumerate(levels)
        )
        return self.output(jnp.asarray(found).reshape(queries.shape))

    def _split(self, level: jax.Array) -> jax.Array:
        """Values of the heads: [B,h,w,width] -> [B,h,w,heads,width/heads]."""
        return self.values(level).reshape(*level.shape[:3], self.shape[0], -1)


def rays(heads: int, levels: int, points: int, axes: int) -> jax.Array:
    """The first offsets: each head looks its own way, each point one step further.

    Returns:
        [heads,levels,points,axes]; height, the third axis, starts at zero.
    """
    angles = 2 * jnp.pi * jnp.arange(heads) / heads
    ways = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    ways = ways / jnp.max(jnp.abs(ways), axis=-1, keepdims=True)
    ways = jnp.pad(ways, ((0, 0), (0, axes - 2)))[:, None, None]
    steps = jnp.arange(1, points + 1)[:, None]
    return jnp.broadcast_to(ways * steps, (heads, levels, points, axes))


def sampled(values: jax.Array, places: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted sums of what each head finds at its places.

    Args:
        values: [B,h,w,heads,K], bilinear between the centres of their cells, zero outside.
        places: [B,N,heads,S,2], shares (column, row) of the view.
        weights: [B,N,heads,S].

    Returns:
        [B,N,heads,K].
    """
    height, width = values.shape[1:3]

    def of_head(x: jax.Array, where: jax.Array, weight: jax.Array) -> jax.Array:
        found = bilinear(x, where[..., 1] * height - 0.5, where[..., 0] * width - 0.5)
        return jnp.sum(found * weight[..., None], axis=2)

    return jax.vmap(of_head, (3, 2, 2), 2)(values, places, weights)


def projected(
    places: jax.Array, projection: jax.Array, size: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Where a camera sees places.

    Args:
        places: [B,...,3] in metres, in the frame of the LiDAR.
        projection: [B,3,4], from there to pixels.
        size: [B,2], width and height of the image in pixels.

    Returns:
        Shares (column, row) of the image [B,...,2], and whether the place is in front of the
        camera, bool [B,...]; the share of another place is outside of the image.
    """
    shape = (len(places), *(1,) * (places.ndim - 2), 2)
    found = jnp.einsum('bij,b...j->b...i', projection[:, :, :3], places)
    found = found + projection[:, :, 3].reshape(*shape[:-1], 3)
    front = found[..., 2] > _NEAREST
    depth = jnp.where(front, found[..., 2], 1.0)
    pixels = found[..., :2] / depth[..., None] + 0.5  # their centres are at whole numbers
    shares = pixels / jnp.maximum(size, 1).reshape(shape)
    return jnp.where(front[..., None], shares, _ASIDE), front


def hull_grid(
    boxes: jax.Array, projection: jax.Array, size: jax.Array, side: int
) -> tuple[jax.Array, jax.Array]:
    """A grid on the upright rectangle around the projected corners of each box.

    Args:
        boxes: [B,N,7].
        projection: see `projected`; corners behind the camera do not count.
        size: likewise.
        side: of the grid.

    Returns:
        Shares (column, row) of the image [B,N,side^2,2], and whether a place of the grid lies in
        the image of a box that the camera sees, bool [B,N,side^2].
    """
    shares, front = projected(corners_of(boxes), projection, size)
    front = front[..., None]
    low = jnp.min(jnp.where(front, shares, jnp.inf), axis=2)
    high = jnp.max(jnp.where(front, shares, -jnp.inf), axis=2)
    seen = jnp.any(front, axis=2)
    low, high = (jnp.where(seen, end, _ASIDE) for end in (low, high))
    x, y = jnp.meshgrid(cell_centres(side), cell_centres(side), indexing='xy')
    cells = jnp.stack([x.ravel(), y.ravel()], axis=-1)
    grid = low[:, :, None] + (high - low)[:, :, None] * cells
    return grid, jnp.all((grid >= 0) & (grid <= 1), axis=-1)

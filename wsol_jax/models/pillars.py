"""Points in a bird's-eye view: PointPillars' encoder and a pyramid of its features.

PointPillars: Lang et al., CVPR 2019, arXiv 1812.05784; FPN: Lin et al., CVPR 2017, arXiv
1612.03144. Boxes are rows [x, y, z, l, w, h, yaw] in metres in the frame of the LiDAR.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from wsol_jax.models.layers import ConvNorm, conv, he_normal

FEATURES = 10  # of a point, see `decorated`


class Grid(NamedTuple):
    """The part of the world that is looked at, and its pillars.

    Rows of a bird's-eye view go with y, columns with x, both upwards.

    Attributes:
        low: (x, y, z) of its corner, in metres.
        high: (x, y, z) of the corner opposite.
        pillar: side of a pillar in metres.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    pillar: float

    @classmethod
    def of(cls, limits: Sequence[float], pillar: float) -> 'Grid':
        """Of (x0, y0, z0, x1, y1, z1).

        Raises:
            ValueError: there are not six numbers, or a side is shorter than a pillar.
        """
        if len(limits) != 6:
            raise ValueError(f'must be (x0, y0, z0, x1, y1, z1), got {tuple(limits)}')
        low, high = tuple(limits[:3]), tuple(limits[3:])
        sides = [b - a for a, b in zip(low, high, strict=True)]
        if min(sides[:2]) < pillar or sides[2] <= 0:
            raise ValueError(f'must hold a pillar of {pillar:g} m, got {tuple(limits)}')
        return cls(low, high, pillar)  # type: ignore[arg-type]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of pillars."""
        return round((self.high[1] - self.low[1]) / self.pillar), round(
            (self.high[0] - self.low[0]) / self.pillar
        )

    def share(self, places: jax.Array) -> jax.Array:
        """Where places [...,3] in metres lie between `low`, 0, and `high`, 1."""
        low, high = jnp.array(self.low), jnp.array(self.high)
        return (places - low) / (high - low)

    def metres(self, shares: jax.Array) -> jax.Array:
        """The inverse of `share`."""
        low, high = jnp.array(self.low), jnp.array(self.high)
        return low + shares * (high - low)

    def inside(self, places: jax.Array) -> jax.Array:
        """Whether places [...,3] in metres are in it: bool [...]."""
        return jnp.all((places >= jnp.array(self.low)) & (places < jnp.array(self.high)), axis=-1)


def pillar_index(points: jax.Array, valid: jax.Array, grid: Grid) -> jax.Array:
    """The pillar of each point, row by row; one more than the last for what is in none.

    Args:
        points: [P,5], their x, y, z in metres first.
        valid: bool [P].
        grid: with its pillars.

    Returns:
        int32 [P].
    """
    rows, columns = grid.shape
    place = jnp.floor((points[:, :2] - jnp.array(grid.low[:2])) / grid.pillar).astype(jnp.int32)
    inside = grid.inside(points[:, :3]) & valid
    # The last pillar may be cut by the edge.
    column, row = jnp.clip(place[:, 0], 0, columns - 1), jnp.clip(place[:, 1], 0, rows - 1)
    return jnp.where(inside, row * columns + column, rows * columns)


def decorated(points: jax.Array, index: jax.Array, grid: Grid) -> jax.Array:
    """What the encoder sees of each point (Lang et al., section 2.1).

    Args:
        points: [P,5]: x, y, z in metres, intensity, time lag in seconds.
        index: int [P], of `pillar_index`.
        grid: with its pillars.

    Returns:
        [P,10]: x, y, z as shares of the grid, intensity and time lag; then, in pillars, how far
        the point is from the mean of its pillar's points (3) and from the pillar's centre (2).
    """
    rows, columns = grid.shape
    count = rows * columns + 1
    ones = jnp.ones(len(points))
    xyz = points[:, :3]
    sums = jax.ops.segment_sum(xyz, index, count)
    means = sums / jnp.maximum(jax.ops.segment_sum(ones, index, count), 1)[:, None]
    place = jnp.stack([index % columns, index // columns], axis=-1)
    centres = jnp.array(grid.low[:2]) + (place + 0.5) * grid.pillar
    from_mean, from_centre = xyz - means[index], xyz[:, :2] - centres
    offsets = jnp.concatenate([from_mean, from_centre], axis=-1) / grid.pillar
    return jnp.concatenate([grid.share(xyz), points[:, 3:], offsets], axis=-1)


class PillarEncoder(nnx.Module):
    """A linear layer, batch normalization and ReLU on each point; the maximum in each pillar."""

    def __init__(self, grid: Grid, width: int, *, rngs: nnx.Rngs):
        self.grid, self.width = grid, width
        self.linear = nnx.Linear(FEATURES, width, use_bias=False, kernel_init=he_normal, rngs=rngs)
        self.bn = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)

    def __call__(self, points: jax.Array, valid: jax.Array) -> jax.Array:
        """A bird's-eye view; pillars without points are zero.

        Args:
            points: [B,P,5], see `decorated`.
            valid: bool [B,P]; the others change nothing, nor do points outside of the grid.

        Returns:
            [B,rows,columns,width].
        """
        rows, columns = self.grid.shape
        index = jax.vmap(lambda p, v: pillar_index(p, v, self.grid))(points, valid)
        features = jax.vmap(lambda p, i: decorated(p, i, self.grid))(points, index)
        seen = index < rows * columns
        features = jnp.where(seen[..., None], features, 0)
        found = nnx.relu(self._normalized(self.linear(features), seen))
        found = jnp.where(seen[..., None], found, 0)  # ReLU: no pillar is below an empty one
        canvas = jax.vmap(
            lambda f, i: jax.ops.segment_max(f, i, rows * columns + 1)[: rows * columns]
        )(found, index)
        return jnp.maximum(canvas, 0).reshape(-1, rows, columns, self.width)

    def _normalized(self, x: jax.Array, seen: jax.Array) -> jax.Array:
        """[B,P,width] by the statistics of what is seen, bool [B,P]; nothing seen changes none."""
        anything, statistics = jnp.any(seen), (self.bn.mean, self.bn.var)
        before = [statistic[...] for statistic in statistics]
        x = self.bn(x, mask=(seen | ~anything)[..., None])
        if not self.bn.use_running_average:
            for statistic, value in zip(statistics, before, strict=True):
                statistic.set_value(jnp.where(anything, statistic[...], value))
        return x


class Pyramid(nnx.Module):
    """A few stages of strided 3x3 convolutions and a feature pyramid: equal widths at all levels.

    Args:
        features: of its input.
        widths: channels of each stage; the first keeps the sides of its input, each other one
            halves those before.
        width: channels of all levels.
        rngs: for the initial weights.
    """

    def __init__(self, features: int, widths: Sequence[int], width: int, *, rngs: nnx.Rngs):
        ins = (features, *widths[:-1])
        strides = [min(i + 1, 2) for i in range(len(widths))]
        self.entries = nnx.List(
            ConvNorm(i, o, 3, strides=s, rngs=rngs)
            for i, o, s in zip(ins, widths, strides, strict=True)
        )
        self.blocks = nnx.List(ConvNorm(o, o, 3, rngs=rngs) for o in widths)
        self.sides = nnx.List(conv(o, width, 1, rngs=rngs) for o in widths)
        self.outputs = nnx.List(ConvNorm(width, width, 3, rngs=rngs) for _ in widths)

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """[B,H,W,features] -> a [B,h,w,width] of each level, the finest first."""
        stages = []
        for entry, block in zip(self.entries, self.blocks, strict=True):
            x = block(entry(x))
            stages.append(x)
        return merged_levels(stages, self.sides, self.outputs)


def merged_levels(
    stages: Sequence[jax.Array], sides: Sequence[nnx.Module], outputs: Sequence[nnx.Module]
) -> list[jax.Array]:
    """The way down of a feature pyramid: each level gets what the coarser ones know.

    Args:
        stages: [B,h,w,K] each, the finest first.
        sides: of each stage, to the width of the levels.
        outputs: of each level, on the sum.
    """
    levels: list[jax.Array] = []
    for stage, side in zip(reversed(stages), reversed(sides), strict=True):
        x = side(stage)
        if levels:
            x = x + jax.image.resize(levels[0], x.shape, 'nearest')
        levels.insert(0, x)
    return [output(x) for output, x in zip(outputs, levels, strict=True)]

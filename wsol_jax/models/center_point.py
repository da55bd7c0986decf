"""CenterPoint (Yin et al., CVPR 2021, arXiv 2006.11275) on pillars: boxes as peaks of heatmaps.

Heatmaps, radii and their focal loss are those of CornerNet (Law and Deng, ECCV 2018, arXiv
1808.01244) and CenterNet (Zhou et al. 2019, arXiv 1904.07850). All classes share one head here.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from wsol_jax.models.box_codes import SIZE, boxes_of
from wsol_jax.models.heads import Heads, Trunk
from wsol_jax.models.layers import ConvNorm, conv
from wsol_jax.models.network import Network
from wsol_jax.models.pillars import Grid, PillarEncoder, Pyramid

_RARE_LOGIT = math.log(0.1 / 0.9)  # the heatmap starts at probabilities of about 0.1
_OVERLAP = 0.1  # of a box whose corners are off by the radius
_LEAST = 2  # cells of a radius


class CenterPoint(Heads):
    """A heatmap of each class and the box of each cell, from a bird's-eye view of LiDAR points.

    Args:
        network: whose classes count; its image is not looked at.
        grid: of the bird's-eye view.
        widths: channels of the stages of the bird's-eye view.
        width: channels of its features, which are those of the finest level.
        rngs: for the initial weights.
    """

    def __init__(
        self, network: Network, grid: Grid, widths: Sequence[int], width: int, rngs: nnx.Rngs
    ):
        self.grid = grid
        self.pillars = PillarEncoder(grid, widths[0], rngs=rngs)
        self.pyramid = Pyramid(widths[0], widths, width, rngs=rngs)
        self.shared = nnx.List(ConvNorm(width, width, 3, rngs=rngs) for _ in range(2))
        self.heat = conv(width, network.num_classes, 1, rngs=rngs)
        self.codes = conv(width, SIZE, 1, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def features(self, points: jax.Array, valid: jax.Array) -> jax.Array:
        """The bird's-eye view of points [B,P,5], of which some are valid: [B,h,w,width]."""
        return self.pyramid(self.pillars(points, valid))[0]

    def __call__(
        self, endpoints: Mapping[str, jax.Array], classes: jax.Array | None, trunk: Trunk
    ) -> dict[str, jax.Array]:
        """What is found in the points; nothing where none are given.

        Returns:
            'heatmap' [B,h,w,C], logits; 'codes' [B,h,w,8], of which the first two are offsets from
            the cell in cells; 'features' [B,h,w,width]; and, where `weak_points` are given, 'weak',
            the features of these, without a gradient.
        """
        del endpoints, classes
        targets = trunk.targets
        if 'points' not in targets:
            return {}
        features = self.features(targets['points'], targets['points_valid'])
        first, second = (layer(features) for layer in self.shared)
        found = {
            'heatmap': self.heat(first) + _RARE_LOGIT,
            'codes': self.codes(second),
            'features': features,
        }
        if 'weak_points' in targets:
            weak = self.features(targets['weak_points'], targets['points_valid'])
            found['weak'] = jax.lax.stop_gradient(weak)
        return found


def gaussian_radius(lengths: jax.Array, widths: jax.Array) -> jax.Array:
    """How far in cells the corners of a box may be off while it still overlaps by a tenth.

    The rule of CornerNet as its code, and CenterPoint's, has it: of three cases the least, at
    least 2, rounded down.

    Args:
        lengths: in cells.
        widths: in cells, of the same shape.
    """
    total, area, share = lengths + widths, lengths * widths, _OVERLAP

    def root(a: float, b: jax.Array, c: jax.Array) -> jax.Array:
        return (b + jnp.sqrt(jnp.maximum(b**2 - 4 * a * c, 0))) / 2

    one_each = root(1.0, total, area * (1 - share) / (1 + share))
    inside = root(4.0, 2 * total, (1 - share) * area)
    around = root(4 * share, -2 * share * total, (share - 1) * area)
    least = jnp.minimum(jnp.minimum(one_each, inside), around)
    return jnp.maximum(jnp.floor(least), _LEAST)


def cells_of(places: jax.Array, grid: Grid) -> jax.Array:
    """Places [...,2+] in metres as (column, row) in cells [...,2]."""
    return (places[..., :2] - jnp.array(grid.low[:2])) / grid.pillar


def gaussians(places: jax.Array, radii: jax.Array, valid: jax.Array, grid: Grid) -> jax.Array:
    """A Gaussian around the cell of each place, 1 there and 0 beyond its radius.

    Args:
        places: [N,2+] in metres.
        radii: [N] in cells; sigma is (2 r + 1) / 6.
        valid: bool [N]; the others have none.
        grid: whose cells count.

    Returns:
        [N,rows,columns].
    """
    rows, columns = grid.shape
    cells = jnp.floor(cells_of(places, grid))
    right = jnp.arange(columns) - cells[:, :1]
    up = jnp.arange(rows) - cells[:, 1:]
    sigma = (2 * radii + 1) / 6
    near = [jnp.abs(offsets) <= radii[:, None] for offsets in (right, up)]
    parts = [
        jnp.where(n, jnp.exp(-(offsets**2) / (2 * sigma[:, None] ** 2)), 0)
        for n, offsets in zip(near, (right, up), strict=True)
    ]
    return jnp.where(valid[:, None, None], parts[1][:, :, None] * parts[0][:, None], 0)


def true_heatmap(boxes: jax.Array, classes: jax.Array, num_classes: int, grid: Grid) -> jax.Array:
    """The largest Gaussian of the boxes of each class at each cell.

    Args:
        boxes: [N,7].
        classes: int [N]; -1 for none.
        num_classes: C.
        grid: whose cells count.

    Returns:
        [rows,columns,C].
    """
    radii = gaussian_radius(boxes[:, 3] / grid.pillar, boxes[:, 4] / grid.pillar)
    each = gaussians(boxes, radii, classes >= 0, grid)
    of_class = jax.nn.one_hot(classes, num_classes)
    return jnp.max(each[..., None] * of_class[:, None, None], axis=0, initial=0)


def heatmap_loss(logits: jax.Array, heatmap: jax.Array) -> jax.Array:
    """The focal loss of CornerNet, alpha 2 and beta 4, summed over cells and classes.

    Args:
        logits: [...,C].
        heatmap: [...,C], 1 where objects are, less around.
    """
    probability = nnx.sigmoid(logits)
    yes = -((1 - probability) ** 2) * jax.nn.log_sigmoid(logits)
    no = -((1 - heatmap) ** 4) * probability**2 * jax.nn.log_sigmoid(-logits)
    return jnp.sum(jnp.where(heatmap == 1, yes, no))


def peaks(
    logits: jax.Array, codes: jax.Array, most: int, grid: Grid
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The highest peaks of a heatmap, which are largest among their 3x3 neighbours, as boxes.

    Args:
        logits: [rows,columns,C].
        codes: [rows,columns,8], see `CenterPoint`.
        most: how many.
        grid: whose cells these are.

    Returns:
        Boxes [most,7], scores [most] and classes int32 [most], -1 where there are no more.
    """
    scores = nnx.sigmoid(logits)
    around = nnx.max_pool(scores[None], (3, 3), padding='SAME')[0]
    count = logits.shape[-1]
    values, places = jax.lax.top_k(jnp.where(scores == around, scores, 0).ravel(), most)
    cell, classes = places // count, (places % count).astype(jnp.int32)
    own = codes.reshape(-1, codes.shape[-1])[cell]
    corner = jnp.stack([cell % logits.shape[1], cell // logits.shape[1]], axis=-1)
    centres = jnp.array(grid.low[:2]) + (corner + own[:, :2]) * grid.pillar
    boxes = boxes_of(jnp.concatenate([centres, own[:, 2:]], axis=-1))
    return boxes, values, jnp.where(values > 0, classes, -1)

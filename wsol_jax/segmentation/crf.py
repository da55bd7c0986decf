"""The dense conditional random field: labels that agree with each other and with an image's edges.

Krähenbühl & Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials",
NIPS 2011: mean field with Potts' model and two Gaussian kernels over all pairs of pixels, one of
position and colour, one of position. The first is filtered on the permutohedral lattice (Adams,
Baek & Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Computer Graphics
Forum 2010), approximately and at a cost that does not grow with its width; the second exactly.

As in the authors' code, which published settings belong to, a kernel K is normalized symmetrically,
to D^-1/2 K D^-1/2 with D = diag(K 1), and a pixel is among its own neighbours, which it is not in
the paper.
"""

from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wsol_jax.data.records import Pixels

_FLOOR = 1e-5  # of probabilities, so that their logarithms are finite
# Single images are filled up to a power of two, or to multiples of this:
_STEP = 64  # pixels of a side
_CLASSES = 8
_NOWHERE = np.iinfo(np.int32).max
_AXES = 5  # of the lattice: x, y, red, green, blue
_CORNERS = _AXES + 1  # of one of its cells
_J = np.arange(1, _CORNERS)
# The lattice lies in the plane of 6-D space whose coordinates sum to 0. Column j - 1 is an
# orthogonal axis of this plane: j ones, then -j, then zeros.
_BASIS = np.triu(np.ones((_CORNERS, _AXES), int)) - np.diag(_J, -1)[:, :_AXES]


@dataclass(frozen=True)
class DenseCRF:
    """Settings; the defaults are those of the authors' code.

    Attributes:
        bilateral_weight: of the kernel exp(-|p - p'|² / 2 bilateral_xy² - |I - I'|² / 2
            bilateral_rgb²) of positions p and colours I.
        bilateral_xy: in pixels.
        bilateral_rgb: in grey levels, 0 to 255.
        spatial_weight: of the kernel exp(-|p - p'|² / 2 spatial_xy²).
        spatial_xy: in pixels.
        iterations: of mean field.
    """

    bilateral_weight: float = 10.0
    bilateral_xy: float = 80.0
    bilateral_rgb: float = 13.0
    spatial_weight: float = 3.0
    spatial_xy: float = 3.0
    iterations: int = 10

    def __post_init__(self) -> None:
        for name in ('bilateral_xy', 'bilateral_rgb', 'spatial_xy'):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f'{name} must be positive, got {getattr(self, name)}')


# Ahn et al., "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations",
# CVPR 2019, for labels from maps; Chen et al., "DeepLab", TPAMI 2018, for a network's output.
IRN = DenseCRF(bilateral_xy=50.0, bilateral_rgb=5.0)
DEEPLAB = DenseCRF(bilateral_weight=4.0, bilateral_xy=67.0, bilateral_rgb=3.0, spatial_xy=1.0)


def dense_crf(
    images: jax.Array,
    probabilities: jax.Array,
    setting: DenseCRF | None = None,
    valid: jax.Array | None = None,
) -> jax.Array:
    """Refines probabilities of classes by the image; one program for all settings, image by image.

    A class whose probabilities are 0 in the whole image counts as absent, so that images with few
    classes can be filled up; others are raised to 1e-5. What is not finite is taken for 0, and a
    pixel without any probability is decided by the other pixels.

    Args:
        images: uint8 [B,H,W,3], RGB.
        probabilities: [B,H,W,K] of K classes, the background being one; they need not sum to 1.
        setting: of the field; None: `DenseCRF()`.
        valid: bool [B,H,W], False at padding, which influences nothing; None: no padding.

    Returns:
        float32 [B,H,W,K], sums to 1; 0 at padding.

    Raises:
        ValueError: the shapes or the type are others, or the lattice has too many points to be
            numbered: the image is too large for so narrow a kernel.
    """
    setting = setting or DenseCRF()
    images, probabilities = jnp.asarray(images), jnp.asarray(probabilities)
    _check(images, probabilities, setting, valid)
    if valid is None:
        valid = jnp.ones(images.shape[:3], bool)
    return _refine(images, probabilities, valid, _numbers(setting))


def refine_image(image: Pixels, probabilities: np.ndarray) -> np.ndarray:
    """`dense_crf` of one image with the setting of IRN.

    A program serves all images that are filled up to the same size and number of classes, sides to
    the next power of two below 64 pixels, else to multiples of 64, and whose lattice has room in
    one of four lengths. The lattice is counted first: it seldom has a third of the points that it
    could have, and most of the time goes into summing over them.

    Args:
        image: uint8 [H,W,3], RGB.
        probabilities: float32 [H,W,K] of K classes, the background being one.

    Returns:
        float32 [H,W,K].
    """
    height, width, count = probabilities.shape
    padding = [(0, _missing(side, _STEP)) for side in (height, width)]
    absent = _missing(count, _CLASSES)
    filled = jnp.asarray(np.pad(probabilities, [*padding, (0, absent)]))
    valid = jnp.asarray(np.pad(np.ones((height, width), bool), padding))
    pixels = jnp.asarray(np.pad(image, [*padding, (0, 0)]))
    _check(pixels[None], filled[None], IRN, valid[None])
    setting = _numbers(IRN)
    cells = _cells_of(pixels, setting)
    room = _room(np.asarray(_numbered(cells[0], valid)), valid)
    found = _mean_field(cells, filled, valid, setting, room)
    return np.asarray(found)[:height, :width, :count]


def _missing(count: int, step: int) -> int:
    """How many more there are in the next power of two, or multiple of `step`."""
    return -count % min(1 << (count - 1).bit_length(), step)


def _room(numbers: np.ndarray, valid: jax.Array) -> int:
    """A length of the lattice that is enough; one of four, for each is a program of its own."""
    count, most = len(np.unique(numbers)) + 1, _most_points(valid)
    return next(room for room in (most // 8, most // 4, most // 2, most) if room >= count)


def _most_points(valid: jax.Array) -> int:
    return _CORNERS * valid.size + 1


def _numbers(setting: DenseCRF) -> tuple:
    *kernels, iterations = astuple(setting)
    return (*map(float, kernels), iterations)


def _check(
    images: jax.Array, probabilities: jax.Array, setting: DenseCRF, valid: jax.Array | None
) -> None:
    masks = [] if valid is None else [np.shape(valid)]
    fitting = images.ndim == probabilities.ndim == 4 and images.shape[3] == 3
    fitting &= {*masks, probabilities.shape[:3]} == {images.shape[:3]}
    if images.dtype != np.uint8 or not fitting:
        listed = ', '.join(str(list(s)) for s in (images.shape, probabilities.shape, *masks))
        raise ValueError(
            'expected images uint8 [B,H,W,3], probabilities [B,H,W,K] and valid [B,H,W], '
            f'got {images.dtype} {listed}'
        )
    height, width = images.shape[1:3]
    extents = np.array([width, height, 256, 256, 256])
    sigmas = _sigmas(setting.bilateral_xy, setting.bilateral_rgb)
    # Digits of `_numbering` along each axis, with what cells and neighbours need at both ends.
    if np.prod(extents / sigmas * np.sqrt(2 / 3 * (1 + 1 / _J)) + 6) >= 2**31 - 1:
        raise ValueError(
            f'an image of {width}x{height} pixels is too large for bilateral_xy='
            f'{setting.bilateral_xy:g} and bilateral_rgb={setting.bilateral_rgb:g}; widen them'
        )


def _sigmas(xy: Any, rgb: Any) -> list[Any]:
    return [xy, xy, rgb, rgb, rgb]


@jax.jit
def _refine(
    images: jax.Array, probabilities: jax.Array, valid: jax.Array, setting: tuple
) -> jax.Array:
    def one(arrays: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        image, probabilities, valid = arrays
        room = _most_points(valid)
        return _mean_field(_cells_of(image, setting), probabilities, valid, setting, room)

    # One image after the other: the lattices of a batch are gigabytes.
    return jax.lax.map(one, (images, probabilities, valid))


@partial(jax.jit, static_argnames='room')
def _mean_field(
    cells: '_Cells', probabilities: jax.Array, valid: jax.Array, setting: tuple, room: int
) -> jax.Array:
    weight, _, _, spatial_weight, spatial_xy, iterations = setting
    logits = _logits(probabilities.astype(jnp.float32), valid)
    bilateral = _normalized(_bilateral(_lattice(cells, valid.ravel(), room)), valid)
    spatial = _normalized(_spatial(valid.shape, spatial_xy), valid)

    def message(labels: jax.Array) -> jax.Array:
        return weight * bilateral(labels) + spatial_weight * spatial(labels)

    def step(_: int, marginals: jax.Array) -> jax.Array:
        # What all classes have in common cancels: around their mean they sum to 0, so that the
        # message of the last one follows from the others.
        others = message(marginals[..., :-1] - 1 / marginals.shape[-1])
        last = -others.sum(-1, keepdims=True)
        return jax.nn.softmax(logits + jnp.concatenate([others, last], -1))

    marginals = jax.lax.fori_loop(0, iterations, step, jax.nn.softmax(logits))
    return jnp.where(valid[..., None], marginals, 0)


def _logits(probabilities: jax.Array, valid: jax.Array) -> jax.Array:
    """Logarithms [H,W,K], of classes that are absent -inf."""
    known = jnp.where(jnp.isfinite(probabilities) & valid[..., None], probabilities, 0)
    present = (known > 0).any((0, 1))
    return jnp.where(present | ~present.any(), jnp.log(jnp.maximum(known, _FLOOR)), -jnp.inf)


_Cells = tuple[jax.Array, jax.Array]  # of `_cells`
_Filter = Callable[[jax.Array], jax.Array]  # [H,W,C] -> [H,W,C]


def _normalized(kernel: _Filter, valid: jax.Array) -> _Filter:
    """D^-1/2 K D^-1/2 of a kernel K, padding left out."""
    sums = kernel(valid[..., None].astype(jnp.float32))
    scale = jnp.where(valid[..., None], jax.lax.rsqrt(jnp.maximum(sums, 1e-20)), 0)
    return lambda values: scale * kernel(scale * values)


def _spatial(shape: tuple[int, ...], xy: jax.Array) -> _Filter:
    rows, columns = (_gaussian(side, xy) for side in shape)
    highest = jax.lax.Precision.HIGHEST
    return lambda v: jnp.einsum('ih,jw,hwc->ijc', rows, columns, v, precision=highest)


def _gaussian(side: int, sigma: jax.Array) -> jax.Array:
    places = jnp.arange(side)
    return jnp.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2)


@jax.jit
def _cells_of(image: jax.Array, setting: tuple) -> '_Cells':
    """`_cells` of the pixels of an image [H,W,3]."""
    height, width, _ = image.shape
    y, x = jnp.mgrid[:height, :width]
    features = jnp.concatenate([x[..., None], y[..., None], image.astype(jnp.float32)], -1)
    _, xy, rgb, *_ = setting
    return _cells(features.reshape(-1, _AXES) / jnp.stack(_sigmas(xy, rgb)))


def _bilateral(lattice: '_Lattice') -> _Filter:
    return lambda v: _blur(lattice, v.reshape(-1, v.shape[-1])).reshape(v.shape)


class _Lattice(NamedTuple):
    """The points of the lattice that N pixels lie between, and at least one that is none.

    Attributes:
        corners: [N,6] which points each pixel lies between.
        weights: [N,6] barycentric coordinates of the pixel, which sum to 1.
        neighbours: [6,2,M] the points before and after each point along the six directions; the
            last point, whose value stays 0, where there is none.
    """

    corners: jax.Array
    weights: jax.Array
    neighbours: jax.Array


def _blur(lattice: _Lattice, values: jax.Array) -> jax.Array:
    """Sums [N,C] of the values [N,C] of all pixels, weighted with the kernel."""
    count = lattice.neighbours.shape[-1]
    shares = lattice.weights[..., None] * values[:, None]
    points = jnp.zeros((count, values.shape[-1])).at[lattice.corners].add(shares)
    # A loop, or XLA computes the sums of one direction anew for each use in the next.
    points = jax.lax.scan(_sum_along, points, lattice.neighbours)[0]
    return (lattice.weights[..., None] * points[lattice.corners]).sum(1)


def _sum_along(points: jax.Array, neighbours: jax.Array) -> tuple[jax.Array, None]:
    before, after = neighbours
    return points + 0.5 * (points[before] + points[after]), None


@jax.jit
def _numbered(corners: jax.Array, valid: jax.Array) -> jax.Array:
    """Numbers [N,6] of corners [N,6,5], the same where points are; the last of all at padding."""
    return jnp.where(valid.reshape(-1, 1), _numbering(corners)(corners), _NOWHERE)


def _lattice(cells: '_Cells', valid: jax.Array, room: int) -> _Lattice:
    """The lattice of cells with this number of points, more than it has."""
    corners, weights = cells
    number, nowhere = _numbering(corners), _NOWHERE
    points, first, which = jnp.unique(
        _numbered(corners, valid),
        size=room,
        fill_value=nowhere,
        return_index=True,
        return_inverse=True,
    )
    corner_of = corners.reshape(-1, _AXES)[first]
    last = len(points) - 1

    def neighbours(step: jax.Array) -> jax.Array:
        asked = number(corner_of + step)
        found = jnp.searchsorted(points, asked).clip(0, last)
        after = jnp.where((points[found] == asked) & (points < nowhere), found, last)
        before = jnp.full_like(after, last).at[after].set(jnp.arange(last + 1))
        return jnp.stack([before.at[last].set(last), after])

    pairs = jax.lax.map(neighbours, jnp.asarray(_BASIS))
    return _Lattice(which.reshape(corners.shape[:2]), weights, pairs)


def _cells(features: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Corners [N,6,5] of the cells that features [N,5] lie in, and barycentric coordinates [N,6].

    A point y of the lattice, six integers that are the same modulo 6 and sum to 0, is written as
    the integers y · _BASIS / 6; the six directions of the blur are the rows of _BASIS then.
    """
    # Splatting, blurring and slicing together have the variance 1 at this scale.
    scale = _CORNERS * np.sqrt(2 / 3) / np.sqrt(_J * (_J + 1))
    y = jnp.matmul(features * scale, _BASIS.T, precision=jax.lax.Precision.HIGHEST)
    nearest = jnp.round(y / _CORNERS).astype(int)
    beyond = nearest.sum(-1, keepdims=True)  # how far rounding left the plane
    rank = jnp.argsort(jnp.argsort(_CORNERS * nearest - y, axis=-1), axis=-1) + beyond
    nearest += (rank < 0).astype(int) - (rank >= _CORNERS)
    order = jnp.argsort(rank % _CORNERS, axis=-1)
    rest = jnp.take_along_axis(y / _CORNERS - nearest, order, -1)[:, ::-1]  # rising
    weights = jnp.diff(rest, axis=-1, prepend=rest[:, -1:] - 1)
    steps = jnp.asarray(_BASIS)[order[:, :0:-1]].cumsum(1)
    first = (nearest @ _BASIS)[:, None]
    return jnp.concatenate([first, first - steps], 1), weights


def _numbering(corners: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """[...,5] -> numbers [...], one for each point in the range of the corners and next to it."""
    digits = corners // _J  # what they leave out follows from the digit before
    low, high = digits.min((0, 1)) - 1, digits.max((0, 1)) + 1
    strides = jnp.cumprod(jnp.concatenate([jnp.ones(1, int), (high - low + 1)[:-1]]))
    return lambda points: ((points // _J - low) * strides).sum(-1)

"""Faithfulness: does the classifier's probability hang on what a map calls relevant?

Average drop and increase in confidence: Chattopadhay et al., Grad-CAM++, WACV 2018.
Insertion and deletion: Petsiuk et al., RISE, BMVC 2018.
ROAD: Rong et al., A Consistent and Efficient Evaluation Strategy for Attribution Methods, ICML
2022; both orders combined as in pytorch-grad-cam's ROADCombined.

Every score compares probabilities of one class over perturbed images. A perturbed image
keeps the pixels whose rank in the map lies in a range and fills the others: one forward pass,
`chunk_size` perturbed copies of the batch at a time.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg

from wsol_jax.data.images import batches, listed, resized_shape
from wsol_jax.maps.fuse import min_max, resize
from wsol_jax.maps.result import Localization
from wsol_jax.models import Network, Preprocessing
from wsol_jax.names import unknown_name
from wsol_jax.parallel import BATCH, Devices, in_batches, in_parts

SCORES = {
    'average_drop': 'AverageDrop',
    'increase': 'Increase',
    'insertion': 'Insertion',
    'deletion': 'Deletion',
    'road': 'ROAD',
}
_IN_PERCENT = ('average_drop', 'increase')
PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90)
STEPS, CHUNK_SIZE = 20, 10
BLUR_TAPS, BLUR_SIGMA = 11, 5  # klen and ksig of RISE's Evaluation.ipynb
NOISE = 0.01  # standard deviation for pixels in [0, 1], as in the authors' road_evaluation

_EXPLANATION, _DELETION, _INSERTION, _ROAD = range(4)
Key = TypeVar('Key', bound=Hashable)


def faithfulness(
    network: Network,
    images: Any,
    maps: Localization | Mapping[Key, np.ndarray | jax.Array],
    classes: Sequence[int] | np.ndarray | jax.Array | None = None,
    *,
    resize: bool | int | tuple[int, int] = True,
    scores: Sequence[str] = tuple(SCORES),
    steps: int = STEPS,
    chunk_size: int = CHUNK_SIZE,
    batch_size: int = BATCH,
) -> dict[Key, dict[str, jax.Array]]:
    """Scores many maps of each image of a batch in one compiled program.

    Below, s is the probability of the image's class, the softmax or what `Network.probability`
    says, and every map is min-max scaled to [0, 1] and then bilinearly resized to the image; a
    constant map or one with NaN becomes zeros. Pixels are ranked by falling value, ties from the
    top left. All fills are on the preprocessed scale, where 0 is the mean colour.

    - 'average_drop': 100 relu(s - s_m) / s percent, with s_m on the image times the map. Lower is
      better.
    - 'increase': 100 where s_m > s, else 0 percent. Higher is better.
    - 'deletion': area under s, in [0, 1], over the fraction of most relevant pixels replaced by
      the mean colour; trapezoids over `steps` equal steps. Lower is better.
    - 'insertion': the same for inserting them into the blurred image, see `blur`. Higher is better.
    - 'road': (LeRF - MoRF) / 2 in [-1/2, 1/2]: s with the p percent most relevant pixels kept,
      minus s with the p percent least relevant kept, averaged over p = 10, 20 .. 90; the others
      are filled by `impute` plus noise of standard deviation 0.01 on the [0, 1] scale. The noise
      is one fixed field for all images and maps, so they compare under the same draw. Higher is
      better.

    Per map this costs 1 (drop, increase) + (steps - 1) for each of insertion and deletion + 18
    (ROAD) forward passes, `chunk_size` together, and memory for `chunk_size` copies of the batch
    in the network plus one [B,H,W] map per key.

    Args:
        network: the classifier.
        images: B images in any of the forms that `localize` takes.
        maps: what `localize` returned, whose maps begin with the ReLU of their method, if any; or
          {key: [B,h,w]} maps at any resolution, rectified where they must be.
        classes: [B] class index of each image; None for those that `localize` explained.
        resize: see `localize`.
        scores: which of `SCORES`.
        steps: number of steps of insertion and deletion, at least 2.
        chunk_size: perturbed copies of the batch per forward pass.
        batch_size: images that are computed at once; a shorter list is not filled up to it.

    Returns:
        {key: {score: [B]}} per image, in the units above.

    Raises:
        ValueError: a wrong name, shape, class or number.
    """
    channels, shape = network.input_shape[2], resized_shape(network.input_shape[:2], resize)
    images = listed(images, channels)
    if isinstance(maps, Localization) and classes is None:
        classes = maps.classes
    given: Any = maps.rectified() if isinstance(maps, Localization) else maps
    _check_maps(given, len(images))
    targets = _checked_classes(classes, len(images), network.num_classes)
    _check_options(scores, steps, chunk_size)
    of_network = (network.apply, network.preprocessing, network.probabilities)
    options = (tuple(scores), steps, chunk_size, network.state)

    def program(images: Any, rows: tuple) -> dict[str, jax.Array]:
        return compute_faithfulness(*of_network, *options, images, *rows)

    each = batches(images, shape, min(batch_size, len(images)), channels)
    values, _ = in_batches(program, each, (list(given.values()), targets))
    return {key: {s: values[s][:, i] for s in scores} for i, key in enumerate(given)}


def faithfulness_program(network: Network, devices: Devices) -> Callable[..., dict[str, jax.Array]]:
    """All scores of `faithfulness` in one program that the devices share.

    Args:
        network: the classifier.
        devices: what the program runs on.

    Returns:
        (state, images [B,H,W,3], [maps [B,h,w]], classes [B]) -> {score: [B,M]} of M maps, the
        state from `devices.replicate`, the rest from `devices.shard`.
    """
    of_network = (network.apply, network.preprocessing, network.probabilities)
    options = (tuple(SCORES), STEPS, CHUNK_SIZE)
    return devices.per_image(partial(compute_faithfulness, *of_network, *options))


def summarize(values: Mapping[str, Any]) -> dict[str, float]:
    """Averages per-image scores {score: [N]} into {'AverageDrop': .., 'ROAD': ..}.

    All in percent: the areas and ROAD, which `faithfulness` gives as fractions, times 100.
    """
    means = {score: float(np.mean(per_image)) for score, per_image in values.items()}
    return {SCORES[s]: m if s in _IN_PERCENT else 100.0 * m for s, m in means.items()}


def _check_maps(maps: Mapping[Any, Any], batch: int) -> None:
    if not isinstance(maps, Mapping) or not maps:
        raise ValueError('maps must be a dictionary {key: [B,h,w]} with at least one map')
    for key, m in maps.items():
        if np.ndim(m) != 3 or len(m) != batch:
            shape = list(np.shape(m))
            raise ValueError(f'map {key!r} must be [{batch},h,w], one per image, got {shape}')


def _checked_classes(classes: Any, batch: int, num_classes: int) -> np.ndarray:
    indices = np.asarray(classes)
    if indices.dtype.kind not in 'iu' or indices.shape != (batch,):
        got = 'none' if classes is None else f'{indices.dtype} {list(indices.shape)}'
        raise ValueError(f'classes must be integers of shape [{batch}], one per image, got {got}')
    wrong = indices[(indices < 0) | (indices >= num_classes)]
    if (wrong == -1).any():
        raise ValueError('class -1: maps of no single class have no probability to score')
    if wrong.size:
        raise ValueError(f'class {wrong[0]} is outside 0..{num_classes - 1}')
    return indices.astype(np.int32)


def _check_options(scores: Sequence[str], steps: int, chunk_size: int) -> None:
    if isinstance(scores, str) or not scores:
        raise ValueError(f"scores must be a sequence such as ('road',), got {scores!r}")
    for score in scores:
        if score not in SCORES:
            raise ValueError(unknown_name('faithfulness score', score, SCORES))
    for name, number, least in (('steps', steps, 2), ('chunk_size', chunk_size, 1)):
        if not isinstance(number, int) or number < least:
            raise ValueError(f'{name} must be an integer of at least {least}, got {number!r}')


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def compute_faithfulness(
    apply: Callable[..., Any],
    preprocessing: Preprocessing,
    probability: Callable[[jax.Array], jax.Array],
    scores: tuple[str, ...],
    steps: int,
    chunk_size: int,
    state: Any,
    images: jax.Array,
    maps: Sequence[jax.Array],
    classes: jax.Array,
) -> dict[str, jax.Array]:
    """The compiled program of `faithfulness`: {score: [B,M]} of M maps [B,h,w] per image."""
    inputs = preprocessing(images)
    size = (inputs.shape[1], inputs.shape[2])
    scaled = jnp.stack([resize(min_max(jnp.asarray(m, jnp.float32)), size) for m in maps])
    blurred = blur(inputs)
    draw = jax.random.normal(jax.random.key(0), inputs.shape[1:])
    noise = NOISE * 255 / jnp.array(preprocessing.std) * draw
    classify = partial(_probabilities, apply, probability, state, classes)
    ends = classify(jnp.stack([inputs, jnp.zeros_like(inputs), blurred], axis=1))
    passes = _passes(scores, steps, size[0] * size[1])
    chunks = jnp.array(passes[in_parts(len(passes), chunk_size)])

    def score(scaled: jax.Array) -> dict[str, jax.Array]:
        perturb = partial(_perturb, inputs, blurred, noise, scaled, _ranks(scaled))
        found = jax.lax.map(lambda chunk: classify(perturb(chunk)), chunks)  # [chunks,B,n]
        found = jnp.moveaxis(found, 1, 0).reshape(len(inputs), -1)[:, : len(passes)]
        return _scores(scores, ends, {k: found[:, passes[:, 0] == k] for k in range(4)})

    return jax.tree.map(jnp.transpose, jax.lax.map(score, scaled))


def _probabilities(
    apply: Callable[..., Any],
    probability: Callable[[jax.Array], jax.Array],
    state: Any,
    classes: jax.Array,
    inputs: jax.Array,
) -> jax.Array:
    """Probability [B,n] of each image's class on n inputs [B,n,H,W,3] per image."""
    # The batch stays the major axis: sharded over devices, it needs no communication.
    logits, _ = apply(state, inputs.reshape(-1, *inputs.shape[2:]), None)
    probabilities = probability(logits.astype(jnp.float32)).reshape(*inputs.shape[:2], -1)
    return jnp.take_along_axis(probabilities, classes[:, None, None], axis=-1)[..., 0]


def _ranks(scaled: jax.Array) -> jax.Array:
    """Rank of each pixel of [B,H,W] in its map: 0 is the most relevant, ties from the top left."""
    flat = scaled.reshape(len(scaled), -1)
    order = jnp.argsort(flat, axis=1, stable=True, descending=True)
    return jnp.argsort(order, axis=1).reshape(scaled.shape)


def _passes(scores: Sequence[str], steps: int, pixels: int) -> np.ndarray:
    """Forward passes [P,3] as (kind, start, stop): the pixels of rank start..stop-1 are kept.

    The ends of the curves, where every pixel or none is kept, are the same for all maps: not here.
    """
    curve = [pixels * i // steps for i in range(1, steps)]
    kept = [pixels * p // 100 for p in PERCENTILES]
    found: list[tuple[int, int, int]] = []
    if {'average_drop', 'increase'} & set(scores):
        found += [(_EXPLANATION, 0, pixels)]
    if 'deletion' in scores:
        found += [(_DELETION, n, pixels) for n in curve]
    if 'insertion' in scores:
        found += [(_INSERTION, 0, n) for n in curve]
    if 'road' in scores:
        found += [(_ROAD, 0, n) for n in kept] + [(_ROAD, pixels - n, pixels) for n in kept]
    return np.array(found, np.int32)


def _perturb(
    inputs: jax.Array,
    blurred: jax.Array,
    noise: jax.Array,
    scaled: jax.Array,
    ranks: jax.Array,
    chunk: jax.Array,
) -> jax.Array:
    """The perturbed images [B,n,H,W,3] of the passes [n,3] of one chunk."""
    kind, start, stop = chunk.T[..., None, None]
    known = (ranks[:, None] >= start) & (ranks[:, None] < stop)
    keep = jnp.where(kind == _EXPLANATION, scaled[:, None], known)[..., None]

    def imputed() -> jax.Array:
        # Pass by pass: all systems at once would fall out of a CPU's cache, three times slower.
        solve = partial(jax.vmap(impute), inputs)
        return jnp.moveaxis(jax.lax.map(solve, jnp.moveaxis(known, 1, 0)), 0, 1) + noise

    kind = kind[..., None]
    none = jnp.zeros((*known.shape, inputs.shape[-1]))
    # A real branch, not a select: chunks without ROAD solve no linear system.
    solved = jax.lax.cond(jnp.any(kind == _ROAD), imputed, lambda: none)
    fill = jnp.where(kind == _INSERTION, blurred[:, None], jnp.where(kind == _ROAD, solved, none))
    return keep * inputs[:, None] + (1 - keep) * fill


def _scores(
    scores: Sequence[str], ends: jax.Array, found: Mapping[int, jax.Array]
) -> dict[str, jax.Array]:
    """{score: [B]} of one map.

    Args:
        scores: which.
        ends: [B,3] probability on the image, on the mean colour and on the blurred image.
        found: {kind: [B,passes]} probability on the perturbed images.
    """
    whole, blank, blurred = ends.T
    values = {}
    if found[_EXPLANATION].size:
        explained = found[_EXPLANATION][:, 0]
        drop = jax.nn.relu(whole - explained) / jnp.maximum(whole, jnp.finfo(whole.dtype).tiny)
        values['average_drop'] = 100 * drop
        values['increase'] = 100.0 * (explained > whole)
    if found[_DELETION].size:
        values['deletion'] = _area(whole, found[_DELETION], blank)
    if found[_INSERTION].size:
        values['insertion'] = _area(blurred, found[_INSERTION], whole)
    if found[_ROAD].size:
        least_first, most_first = jnp.split(found[_ROAD], 2, axis=1)
        values['road'] = jnp.mean(least_first - most_first, axis=1) / 2
    return {score: values[score] for score in scores}


def _area(first: jax.Array, between: jax.Array, last: jax.Array) -> jax.Array:
    """[B] area under curves first [B], between [B,steps-1], last [B] over [0, 1], trapezoids."""
    return (first / 2 + between.sum(axis=1) + last / 2) / (between.shape[1] + 1)


def blur(inputs: jax.Array) -> jax.Array:
    """Where insertion starts: preprocessed inputs [B,H,W,C] blurred as RISE's code does.

    11 x 11 taps, sigma 5 pixels, the mean colour outside the image. RISE makes the kernel by
    filtering an impulse on an 11 x 11 grid with mirrored borders: the tails fold back, and the
    kernel is nearly a box.
    """
    offsets = np.arange(-4 * BLUR_SIGMA, 4 * BLUR_SIGMA + 1)
    gauss = np.exp(-(offsets**2) / (2 * BLUR_SIGMA**2))
    # Mirroring a grid about an impulse in its middle is the same as wrapping it around.
    line = np.bincount((offsets + BLUR_TAPS // 2) % BLUR_TAPS, gauss) / gauss.sum()
    channels = inputs.shape[-1]
    kernel = jnp.tile(jnp.array(np.outer(line, line), inputs.dtype)[..., None, None], channels)
    layout = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(
        inputs, kernel, (1, 1), 'SAME', dimension_numbers=layout, feature_group_count=channels
    )


def impute(image: jax.Array, known: jax.Array, iterations: int = 50) -> jax.Array:
    """ROAD's linear imputation of one image: each unknown pixel is the mean of its neighbours.

    Rong et al., ICML 2022: with N the 8 neighbours inside the image, weights 1/6 beside
    and 1/12 diagonally, x_i sum_N w_ij = sum_N w_ij x_j for every unknown pixel i. The system is
    symmetric and positive definite; conjugate gradients with a multilevel preconditioner
    (Bramble, Pasciak and Xu, 1990) take 10 to 20 iterations at any image size, where plain ones
    take as many as the image is wide.

    Args:
        image: [H,W,C]; its unknown pixels are not read.
        known: [H,W] bool, at least one True.
        iterations: bound on the number of iterations; they stop at a relative residual of 1e-4.

    Returns:
        [H,W,C], the known pixels as they were, without noise.
    """
    unknown = ~known
    inside = _neighbours(jnp.ones(known.shape, image.dtype))
    # Channels first: they share the matrix, and rows of pixels lie together in memory.
    given = jnp.where(known, jnp.moveaxis(image, -1, 0), 0)
    solved, _ = cg(
        lambda x: unknown * (inside * x - _neighbours(x)),
        unknown * _neighbours(given),
        tol=1e-4,
        maxiter=iterations,
        M=lambda residual: _multilevel(residual, unknown),
    )
    return jnp.moveaxis(given + solved, 0, -1)


def _neighbours(x: jax.Array) -> jax.Array:
    """Weighted sum of the 8 neighbours of each pixel of [..., H, W], zero outside.

    The weights are those of (1 2 1) by (1 2 1) over 12 without the middle.
    """
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(1, 1), (1, 1)])
    rows = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:] - 4 * x) / 12


def _multilevel(residual: jax.Array, unknown: jax.Array) -> jax.Array:
    """Sum of the residual [C,H,W] restricted to ever coarser grids and interpolated back."""
    height, width = unknown.shape
    if max(height, width) <= 4:
        return residual
    # A coarse pixel stands for four unknown ones: a correction must not reach across known pixels.
    rows, columns = -(-height // 2), -(-width // 2)
    even = jnp.pad(unknown, ((0, height % 2), (0, width % 2)), constant_values=True)
    coarse = even.reshape(rows, 2, columns, 2).all(axis=(1, 3))

    def finer(x: jax.Array) -> jax.Array:
        return resize(x, (2 * rows, 2 * columns))[..., :height, :width]

    grid = jax.ShapeDtypeStruct((len(residual), rows, columns), residual.dtype)
    (restricted,) = jax.linear_transpose(finer, grid)(residual)
    return residual + unknown * finer(coarse * _multilevel(coarse * restricted, coarse))

"""Biased objects leave pseudo labels (MARS; Jo et al., ICCV 2023, arXiv 2304.09913).

Labels from image classes often hold what always stands beside the class, such as rails beside a
train. Features of an unsupervised segmentation model tell both apart, and what is beside a class
here is background in other images. Features and labels may be anybody's: a label map
`<image_id>.png` and an array `<image_id>.npy`, float [D, h, w], for every image. What is alike is
told by cosines: from features without negative values, as a ReLU leaves them, take the mean first.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from numpy.typing import NDArray

from wsol_jax.data.decode import decode_image
from wsol_jax.data.files import printable, reason
from wsol_jax.data.label_maps import BACKGROUND, MISSING, label_map_of, resized_label_map
from wsol_jax.data.records import BadImage, DataError, Pixels, Record, Source
from wsol_jax.segmentation.label_maps import write_label_map

ALPHA = 0.40
CLUSTERS = 2  # of each class and of the background, in each image
_CANDIDATES = 64  # for the first centroids
_ROUNDS = 50
_EXACT = jax.lax.Precision.HIGHEST

_Floats = NDArray[np.floating]
# (image uint8 [H,W,3], probabilities float32 [H,W,2] of background and object) -> the same refined,
# such as `dense_crf` of one image.
Refinement = Callable[[Pixels, _Floats], _Floats]


@partial(jax.jit, static_argnames=('count', 'rounds'))
def kmeans(
    points: jax.Array, members: jax.Array, count: int = CLUSTERS, rounds: int = _ROUNDS
) -> jax.Array:
    """The centroids of K-means among several sets of points; the same whenever it is called.

    The first centroids are chosen as greedy k-means++ would (Arthur & Vassilvitskii, SODA 2007),
    without chance: one after another that of 64 evenly spaced members which lowers the sum of
    squared distances the most. A cluster that loses its members stays where it is.

    Args:
        points: [N,D].
        members: bool [M,N]: which points each set has. Of a set without any, centroids mean
            nothing.
        count: clusters of a set.
        rounds: of assigning points and moving centroids.

    Returns:
        [M,count,D].
    """
    return jax.vmap(partial(_kmeans, count, rounds), (None, 0))(points, members)


def _kmeans(count: int, rounds: int, points: jax.Array, member: jax.Array) -> jax.Array:
    def moved(_: int, centroids: jax.Array) -> jax.Array:
        own = jnp.argmin(_squares(centroids, points), axis=0)
        shares = jax.nn.one_hot(own, count, axis=0) * member
        sizes = jnp.sum(shares, axis=1, keepdims=True)
        sums = jnp.matmul(shares, points, precision=_EXACT)
        return jnp.where(sizes > 0, sums / jnp.maximum(sizes, 1), centroids)

    return jax.lax.fori_loop(0, rounds, moved, _first_centroids(count, points, member))


def _first_centroids(count: int, points: jax.Array, member: jax.Array) -> jax.Array:
    members_first = jnp.argsort(~member)
    candidates = points[members_first[jnp.arange(_CANDIDATES) * jnp.sum(member) // _CANDIDATES]]
    squares = _squares(candidates, points)
    nearest, chosen = jnp.full(len(points), jnp.inf), []
    for _ in range(count):
        left = jnp.where(member, jnp.minimum(nearest, squares), 0)
        best = jnp.argmin(jnp.sum(left, axis=1))
        nearest = jnp.minimum(nearest, squares[best])
        chosen.append(candidates[best])
    return jnp.stack(chosen)


def _squares(x: jax.Array, y: jax.Array) -> jax.Array:
    """Squared distances: [N,D], [M,D] -> [N,M]."""
    products = jnp.matmul(x, y.T, precision=_EXACT)
    return jnp.sum(x**2, 1)[:, None] + jnp.sum(y**2, 1) - 2 * products


def image_centroids(
    features: _Floats, label_map: Pixels, clusters: int = CLUSTERS
) -> dict[int, NDArray[np.float32]]:
    """The centroids of each class of one image.

    Args:
        features: [D,h,w], of any size.
        label_map: uint8 [H,W]; pixels of 254 and 255 count for no class.
        clusters: of each class.

    Returns:
        {value of the label map: float32 [clusters,D]}, 0 for the background.
    """
    small = resized_label_map(label_map, (features.shape[1], features.shape[2])).ravel()
    values = [int(value) for value in np.unique(small) if value < MISSING]
    # Filled up to powers of two: few programs are compiled, whatever the sizes of images.
    points = np.zeros((_power(small.size), len(features)), np.float32)
    points[: small.size] = features.reshape(len(features), -1).T
    members = np.zeros((_power(len(values)), len(points)), bool)
    for row, value in enumerate(values):
        members[row, : small.size] = small == value
    found = np.asarray(kmeans(points, members, clusters))
    return dict(zip(values, found, strict=False))


def _power(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()


def mean_distance(foreground: _Floats, background: _Floats) -> _Floats:
    """The mean of (1 - cos(u, v)) / 2 over all background centroids v: [N,D], [M,D] -> [N].

    By the mean of these, each of length 1: at the cost of N + M centroids, not of their pairs.
    """
    return (1 - _unit(foreground) @ _unit(background).mean(axis=0)) / 2


def _unit(vectors: _Floats) -> _Floats:
    """Along the last axis; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def debiased_centroids(
    centroids: Mapping[int, _Floats], alpha: float = ALPHA
) -> dict[int, _Floats]:
    """What is the class itself: the mean of its centroids that are least like background.

    Args:
        centroids: of all images together, {value: [N,D]}, 0 for the background.
        alpha: the share of the centroids of a class that are taken, at least one.

    Returns:
        {value: [D]} of every class.

    Raises:
        DataError: there is no background to compare with.
    """
    if BACKGROUND not in centroids:
        raise DataError('no label map has background, by which biased objects are told')
    background = centroids[BACKGROUND]
    return {
        value: _farthest(found, background, alpha).mean(axis=0)
        for value, found in centroids.items()
        if value != BACKGROUND
    }


def _farthest(foreground: _Floats, background: _Floats, alpha: float) -> _Floats:
    count = math.ceil(round(alpha * len(foreground), 6))
    distances = mean_distance(foreground, background)
    return foreground[np.argsort(-distances, kind='stable')[: max(count, 1)]]


def object_score(features: _Floats, centroids: _Floats) -> _Floats:
    """How much each place is like one of several objects, the highest cosine, at least 0.

    Args:
        features: [D,h,w].
        centroids: those of the classes of the image, [K,D].

    Returns:
        [h,w], from 0 to 1.
    """
    cosines = np.einsum('dhw,kd->khw', _unit(features.T).T, _unit(centroids))
    return np.clip(cosines.max(axis=0), 0, 1)


def debiased_label_map(label_map: Pixels, is_object: NDArray[np.bool_]) -> Pixels:
    """The label map [H,W], `MISSING` where it has a class and there is no object."""
    of_class = (label_map != BACKGROUND) & (label_map < MISSING)
    return np.where(of_class & ~is_object, np.uint8(MISSING), label_map)


def read_features(path: Path) -> NDArray[np.float32]:
    """Features of an image, float [D, h, w], from a .npy file.

    Raises:
        DataError: it is missing, damaged, holds something else, or values that are not finite.
    """
    where = f'features {printable(str(path))}'
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f'{where}: {reason(error)}') from None
    shape = f'{found.dtype} {list(np.shape(found))}'
    if found.ndim != 3 or found.dtype.kind != 'f' or not found.size:
        raise DataError(f'{where}: must be floats [channels, height, width], are {shape}')
    if not np.isfinite(found).all():
        raise DataError(f'{where}: must be finite')
    return found.astype(np.float32)


def collect_centroids(
    source: Source, labels: Path, features: Path, clusters: int = CLUSTERS
) -> dict[int, NDArray[np.float32]]:
    """The centroids of all images of a data set, {value: [N,D]}; see `image_centroids`.

    An image that cannot be read and has no label map is told and passed over.

    Args:
        source: the data set.
        labels: folder of label maps, `<image_id>.png`.
        features: folder of features, `<image_id>.npy`.
        clusters: of each class in each image.

    Raises:
        DataError: a label map or features are missing, damaged, or do not fit the others.
    """
    found: dict[int, list[NDArray[np.float32]]] = {}
    channels = 0
    for record, label_map in _labelled(source, labels):
        array = read_features(path := features / f'{record.image_id}.npy')
        channels = channels or len(array)
        if len(array) != channels:
            raise DataError(
                f'features {printable(str(path))}: have {len(array)} channels, those of other '
                f'images {channels}'
            )
        for value, centroids in image_centroids(array, label_map, clusters).items():
            found.setdefault(value, []).append(centroids)
    return {value: np.concatenate(parts) for value, parts in found.items()}


def remove_bias(
    source: Source,
    labels: Path,
    features: Path,
    out: Path,
    alpha: float = ALPHA,
    clusters: int = CLUSTERS,
    refine: Refinement | None = None,
) -> None:
    """Writes the debiased label map of every image of a data set, to be trained on by 'mars'.

    Images are passed over as by `collect_centroids`.

    Args:
        source: the data set.
        labels: folder of label maps, `<image_id>.png`.
        features: folder of features, `<image_id>.npy`.
        out: folder for label maps that have `MISSING`, too.
        alpha: see `debiased_centroids`.
        clusters: see `image_centroids`.
        refine: makes object and background follow the image, such as a CRF; None leaves them as
            they are.

    Raises:
        DataError: see `collect_centroids`.
    """
    centroids = debiased_centroids(collect_centroids(source, labels, features, clusters), alpha)
    for record, label_map in _labelled(source, labels, logging.DEBUG):  # told before
        path = out / f'{record.image_id}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        of_image = [centroids[1 + k] for k in record.labels if 1 + k in centroids]
        if of_image:
            array = read_features(features / f'{record.image_id}.npy')
            score = object_score(array, np.stack(of_image))
            label_map = debiased_label_map(label_map, _is_object(record, score, label_map, refine))
        write_label_map(path, label_map)


def _is_object(
    record: Record, score: _Floats, label_map: Pixels, refine: Refinement | None
) -> NDArray[np.bool_]:
    """Where an object is likelier than background: [H,W], of a score [h,w]."""
    height, width = label_map.shape
    likely = cv2.resize(score.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    probabilities: _Floats = np.stack([1 - likely, likely], axis=-1).astype(np.float32)
    if refine:
        probabilities = refine(decode_image(record), probabilities)
    return probabilities[..., 1] > probabilities[..., 0]


def _labelled(
    source: Source, labels: Path, level: int = logging.WARNING
) -> Iterator[tuple[Record, Pixels]]:
    """Records with their label maps; those left out are told at a level of the log."""
    for record in (source[index] for index in range(len(source))):
        try:
            label_map = label_map_of(record, labels, source.num_classes)
        except BadImage as error:
            logging.log(level, 'without a label map and passed over: %s', error)
            continue
        yield record, label_map

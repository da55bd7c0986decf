"""Seeds: label maps of the class maps of an image, for the classes that its labels name.

NumPy and OpenCV alone: they are scored in processes that need no JAX.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from wsol_jax.data.label_maps import BACKGROUND, IGNORED
from wsol_jax.data.records import Pixels

# Places [H,W], 0 for the background and i + 1 for the i-th of K classes, and their number 1 + K ->
# places that fit the image better; see `crf_of_places`.
Refine = Callable[[Pixels, int], Pixels]


def seed_probabilities(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Class maps in the pixels of the image, each divided by its maximum there.

    Args:
        maps: [K, h, w] of K classes; what is negative counts as 0, a map with a NaN or an infinity
            as nothing.
        size: (width, height) of the image in pixels.

    Returns:
        float32 [K, H, W] in [0, 1], bilinear; zeros where a map is positive nowhere.
    """
    rectified = [np.maximum(m, 0) if np.isfinite(m).all() else np.zeros_like(m) for m in maps]
    resized = [cv2.resize(m, size, interpolation=cv2.INTER_LINEAR) for m in rectified]
    return _scaled(np.array(resized, np.float32).reshape(len(maps), *size[::-1]))


def joined_probabilities(kinds: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of several kinds of maps of the same classes, divided by its maximum.

    So the maps of BAS and the CAM of a plain classifier become one (Zhai et al., IJCV, arXiv
    2309.12943).

    Args:
        kinds: float32 [K, H, W] each, as from `seed_probabilities`.

    Returns:
        float32 [K, H, W] in [0, 1].
    """
    return _scaled(np.asarray(kinds, np.float32).sum(axis=0))


def _scaled(maps: np.ndarray) -> np.ndarray:
    """Maps [K, H, W] from 0 with the maximum 1, or of zeros."""
    highest = maps.max(axis=(1, 2), initial=0, keepdims=True)
    return maps / np.where(highest > 0, highest, 1)


def seed_label_map(
    probabilities: np.ndarray,
    labels: Sequence[int],
    threshold: float,
    refine: Refine | None = None,
) -> Pixels:
    """The class of the highest map at each pixel, where that is above the threshold.

    No class but those of the image occurs. `seed_curves` counts the same at many thresholds.

    Args:
        probabilities: [K, H, W] of the K classes of the image; K may be 0.
        labels: [K] these classes, 0 .. C - 1.
        threshold: of the background.
        refine: makes them fit the image, such as `crf_of_places` of it; None for none.

    Returns:
        uint8 [H, W].
    """
    places = _places(probabilities, threshold)
    if refine and len(labels):
        places = refine(places, 1 + len(labels))
    return np.array([BACKGROUND, *(k + 1 for k in labels)], np.uint8)[places]


def confident_label_map(
    probabilities: np.ndarray,
    labels: Sequence[int],
    foreground: float,
    background: float,
    refine: Refine | None = None,
) -> Pixels:
    """What is surely of a class and what is surely background; 255 between (IRN, CVPR 2019).

    A pixel is of a class where it is so above the threshold of the foreground, and background where
    it is so at those of both; with `refine` after it was applied to the label map at each.

    Args:
        probabilities: [K, H, W] of the K classes of the image.
        labels: [K] these classes, 0 .. C - 1.
        foreground: threshold; 0.3 for IRN.
        background: threshold, not above it; 0.05 for IRN.
        refine: such as `crf_of_places` of the image; None for none.

    Returns:
        uint8 [H, W].

    Raises:
        ValueError: the threshold of the background is above that of the foreground.
    """
    if background > foreground:
        raise ValueError(
            f'background={background:g} must not be above foreground={foreground:g}: '
            'what is sure of both would be neither'
        )
    sure, possible = (
        seed_label_map(probabilities, labels, t, refine) for t in (foreground, background)
    )
    return np.where((sure == BACKGROUND) & (possible != BACKGROUND), np.uint8(IGNORED), sure)


def refined_label_map(label_map: Pixels, values: Sequence[int], refine: Refine) -> Pixels:
    """A label map that fits its image: what `seed_label_map` gives with the same `refine`.

    Args:
        label_map: uint8 [H, W].
        values: those that it may have, ascending, the background first.
        refine: such as `crf_of_places` of the image.

    Returns:
        uint8 [H, W].
    """
    if len(values) < 2:
        return label_map
    places = np.searchsorted(values, label_map).astype(np.uint8)
    return np.array(values, np.uint8)[refine(places, len(values))]


def crf_of_places(image: Pixels, certainty: float = 0.7) -> Refine:
    """The dense CRF of IRN, for `confident_label_map`; this one needs JAX.

    Args:
        image: uint8 [H, W, 3], RGB.
        certainty: the probability that a pixel is of the class it is taken for; the others share
            what is left.
    """
    from wsol_jax.segmentation.crf import refine_image

    def refine(places: Pixels, count: int) -> Pixels:
        own = places[..., None] == np.arange(count)
        probabilities = np.where(own, certainty, (1 - certainty) / (count - 1)).astype(np.float32)
        return refine_image(image, probabilities).argmax(axis=-1).astype(np.uint8)

    return refine


def _places(probabilities: np.ndarray, threshold: float) -> Pixels:
    """Which map is the highest at each pixel, counted from 1; 0 where none is above."""
    if not len(probabilities):
        return np.zeros(probabilities.shape[1:], np.uint8)
    best = probabilities.argmax(axis=0).astype(np.uint8) + 1
    above = probabilities.max(axis=0) > np.float64(threshold)  # as `seed_curves` compares
    return np.where(above, best, BACKGROUND).astype(np.uint8)

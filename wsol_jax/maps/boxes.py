"""Boxes of maps, by the protocol of wsolevaluation; NumPy and OpenCV only.

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020.
Boxes are x0, y0, x1, y1 in pixels.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from wsol_jax.maps.score import score_map

Array = np.ndarray


def boxes_from_map(
    raw: Array,
    image_size: Any,
    threshold: float,
    *,
    closing: int = 0,
    relu: bool = False,
) -> Array:
    """Boxes of what a raw map highlights, in pixels of the image.

    The map is resized to the image (bicubic) and min-max scaled; each contour of what lies above
    `threshold` times its maximum gives a box.

    Args:
        raw: [h, w] map of one image and class, at any resolution.
        image_size: (width, height) of the image in pixels; or the image, or the shape of its array
            (height, width, channels).
        threshold: fraction of the maximum, in [0, 1).
        closing: diameter in pixels of a grey-scale closing of the score map; 0 for none.
        relu: set negative values to zero first, for methods whose definition ends in a ReLU:
            `Localization.boxes` knows which.

    Returns:
        [n, 4] int boxes, the largest contour first; [[0, 0, 0, 0]] if there is none.

    Raises:
        ValueError: the map is not two-dimensional or the threshold is outside [0, 1).

    Example:
        >>> raw = np.array([[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]])
        >>> boxes_from_map(raw, (4, 4), 0.5)
        array([[1, 1, 3, 3]])
    """
    raw = np.asarray(raw)
    if raw.ndim != 2:
        raise ValueError(f'expected one map [h, w], got shape {list(raw.shape)}')
    return threshold_boxes(score_map(raw, image_size, closing=closing, relu=relu), [threshold])[0]


def threshold_boxes(scores: Array, thresholds: Sequence[float] | Array) -> list[Array]:
    """Boxes of a score map at each threshold.

    Scores become 0..255 by truncation; a pixel counts if it is strictly greater than
    int(threshold * maximum). Thresholds with the same cut share their boxes.

    Args:
        scores: [h, w] in [0, 1].
        thresholds: [T] in [0, 1).

    Returns:
        T arrays [n, 4] int, the largest contour first; [[0, 0, 0, 0]] where there is none.

    Raises:
        ValueError: a threshold is outside [0, 1), or the map holds NaN or leaves [0, 1].
    """
    grey, cuts, which = cuts_of(scores, thresholds)
    found = contour_boxes(grey, cuts)
    return [found[i] for i in which]


def cuts_of(scores: Array, thresholds: Sequence[float] | Array) -> tuple[Array, Array, Array]:
    """Where thresholds cut a score map.

    Args:
        scores: [h, w] in [0, 1].
        thresholds: [T] in [0, 1).

    Returns:
        The map as uint8 [h, w]; its C cuts in rising order, none where it is zero everywhere; and
        which one of them each threshold means, [T]: 0 where there is none.

    Raises:
        ValueError: a threshold is outside [0, 1), or the map holds NaN or leaves [0, 1].
    """
    thresholds = np.asarray(thresholds)
    if not np.all((thresholds >= 0) & (thresholds < 1)):
        raise ValueError(f'thresholds must lie in [0, 1), got {thresholds.tolist()}')
    if not (np.min(scores) >= 0 and np.max(scores) <= 1):  # not so with NaN
        raise ValueError('score maps must lie in [0, 1] without NaN')
    grey = (scores * 255).astype(np.uint8)
    if not grey.any():
        return grey, np.zeros(0, int), np.zeros(len(thresholds), int)
    return grey, *np.unique((thresholds * grey.max()).astype(int), return_inverse=True)


def contour_boxes(grey: Array, cuts: Array) -> list[Array]:
    """Boxes of all contours at each cut, those of holes included, the largest polygon area first.

    Args:
        grey: [h, w] uint8.
        cuts: [C] below its maximum.

    Returns:
        C arrays [n, 4] int; without a cut one, [[0, 0, 0, 0]].
    """
    if not len(cuts):
        return [np.zeros((1, 4), int)]
    found = [
        cv2.findContours(
            (grey[rows, columns] > cut).view(np.uint8),
            cv2.RETR_TREE,
            cv2.CHAIN_APPROX_SIMPLE,
            offset=(columns.start, rows.start),
        )[0]
        for cut, rows, columns in zip(
            cuts.tolist(),  # NumPy integers would have the pixels compared as int64
            _extents(grey.max(axis=1), cuts),
            _extents(grey.max(axis=0), cuts),
            strict=True,
        )
    ]
    contours = [contour for of_cut in found for contour in of_cut]
    counts = [len(of_cut) for of_cut in found]
    areas = np.array([cv2.contourArea(c) for c in contours])
    x, y, w, h = np.array([cv2.boundingRect(c) for c in contours]).T
    boxes = inside(np.stack([x, y, x + w, y + h], axis=1), grey)
    order = np.lexsort((-areas, np.repeat(np.arange(len(cuts)), counts)))  # stable: first wins ties
    return np.split(boxes[order], np.cumsum(counts)[:-1])


def inside(boxes: Array, grey: Array) -> Array:
    """Boxes [n, 4] whose ends, which lie a pixel beyond them, do not leave the map [h, w]."""
    return np.minimum(boxes, np.tile(grey.shape[::-1], 2) - 1)


def _extents(peaks: Array, cuts: Array) -> list[slice]:
    """Where each cut's foreground starts and ends along one axis: contours are sought in there."""
    above = peaks > cuts[:, None]
    first, last = above.argmax(axis=1), len(peaks) - above[:, ::-1].argmax(axis=1)
    return [slice(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True)]

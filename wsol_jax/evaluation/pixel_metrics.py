"""Scores against masks: PxAP over the pixels of all images together, mIoU over images.

PxAP: Choe et al., CVPR 2020, as wsolevaluation computes it. mIoU: the LID challenge, track 3.
Masks are [h, w] with 1 foreground, 0 background, 255 ignored.
"""

import numpy as np


def histograms(
    scores: np.ndarray, mask: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Histograms [T + 2] of the scores of one image's foreground, and of its background.

    Args:
        scores: [h, w] in [0, 1].
        mask: [h, w].
        thresholds: [T], lower edges of the bins; a score of 1 falls into the bin [1, 2).
    """
    edges = np.append(thresholds, [1.0, 2.0, 3.0])
    return np.histogram(scores[mask == 1], edges)[0], np.histogram(scores[mask == 0], edges)[0]


def mask_ious(scores: np.ndarray, mask: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """IoU [T] of the mask and {score >= threshold}; NaN without foreground.

    Args:
        scores: [h, w].
        mask: [h, w].
        thresholds: [T], in any order.
    """
    reached = [_reaching(scores[mask == value], thresholds) for value in (1, 0)]
    foreground = int((mask == 1).sum())
    return (
        reached[0] / (reached[1] + foreground) if foreground else np.full(len(thresholds), np.nan)
    )


def _reaching(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """[T] how many values lie at each threshold or above it."""
    return len(values) - np.searchsorted(np.sort(values), thresholds)


def average_precision(foreground: np.ndarray, background: np.ndarray) -> np.ndarray:
    """PxAP in percent of histograms [..., T + 2]; NaN without foreground."""
    true = np.cumsum(foreground[..., ::-1], axis=-1)
    positive = true + np.cumsum(background[..., ::-1], axis=-1)
    total = true[..., -1:]
    steps = np.diff(true, axis=-1, prepend=0) / np.where(total, total, np.nan)
    return 100.0 * np.sum(steps * true / np.maximum(positive, 1), axis=-1)


def image_ious(foreground: np.ndarray, background: np.ndarray) -> np.ndarray:
    """IoU [..., T] of the mask and {score >= threshold}, from the histograms [..., T + 2]."""
    true = np.cumsum(foreground[..., ::-1], axis=-1)[..., ::-1]
    false = np.cumsum(background[..., ::-1], axis=-1)[..., ::-1]
    ious = true / np.maximum(false + foreground.sum(axis=-1, keepdims=True), 1)
    return ious[..., :-2]

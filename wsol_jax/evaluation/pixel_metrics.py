"""Scores against masks: PxAP over the pixels of all images together, mIoU over images.

PxAP: Choe et al., CVPR 2020, as wsolevaluation computes it. mIoU: the LID challenge, track 3.
"""

from dataclasses import dataclass

import numpy as np


@dataclass
class PixelCounts:
    """Histograms of scores over foreground and background pixels; merge by adding.

    Attributes:
        thresholds: [T], lower edges of the bins; a score of 1 falls into the bin [1, 2).
        foreground: [T + 2] counts.
        background: [T + 2] counts.
        image_ious: [T] sum over the images with foreground of their IoU in [0, 1].
        images: how many images were scored.
        with_foreground: how many of them have foreground: without it an IoU says nothing.
    """

    thresholds: np.ndarray
    foreground: np.ndarray
    background: np.ndarray
    image_ious: np.ndarray
    images: int = 0
    with_foreground: int = 0

    @classmethod
    def zero(cls, thresholds: np.ndarray) -> 'PixelCounts':
        """Nothing counted yet."""
        empty = np.zeros(len(thresholds) + 2, int)
        return cls(thresholds, empty, empty.copy(), np.zeros(len(thresholds)))

    def __add__(self, other: 'PixelCounts') -> 'PixelCounts':
        """Counts of both sets of images."""
        names = ('foreground', 'background', 'image_ious', 'images', 'with_foreground')
        return PixelCounts(self.thresholds, *(getattr(self, n) + getattr(other, n) for n in names))

    def add(self, scores: np.ndarray, mask: np.ndarray) -> None:
        """Counts one image.

        Args:
            scores: [h, w] in [0, 1].
            mask: [h, w] with 1 foreground, 0 background, 255 ignored.
        """
        foreground, background = histograms(scores, mask, self.thresholds)
        self.foreground += foreground
        self.background += background
        self.images += 1
        if foreground.any():
            self.image_ious += image_ious(foreground, background)
            self.with_foreground += 1

    @property
    def defined(self) -> bool:
        """Whether any pixel is foreground; without, neither score below is defined."""
        return bool(self.foreground.any())

    @property
    def iou(self) -> np.ndarray:
        """[T] percentage TP / (TP + FP + FN) over the pixels of all images together."""
        return 100.0 * image_ious(self.foreground, self.background)

    @property
    def mean_iou(self) -> np.ndarray:
        """[T] percentage: the IoU of each image that has foreground, averaged over them."""
        return 100.0 * self.image_ious / max(self.with_foreground, 1)

    @property
    def average_precision(self) -> float:
        """PxAP in percent: sum of precision times the step in recall, no interpolation.

        Raises:
            ValueError: no pixel is foreground.
        """
        if not self.defined:
            raise ValueError('PxAP is undefined: no pixel of the masks is foreground')
        return float(average_precision(self.foreground, self.background))


def histograms(
    scores: np.ndarray, mask: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Histograms [T + 2] of the scores of one image's foreground, and of its background.

    Args:
        scores: [h, w] in [0, 1].
        mask: [h, w] with 1 foreground, 0 background, 255 ignored.
        thresholds: [T], lower edges of the bins; a score of 1 falls into the bin [1, 2).
    """
    edges = np.append(thresholds, [1.0, 2.0, 3.0])
    return np.histogram(scores[mask == 1], edges)[0], np.histogram(scores[mask == 0], edges)[0]


def mask_iou(predicted: np.ndarray, mask: np.ndarray | None) -> float:
    """IoU of a predicted mask [h, w] with the true one; NaN without foreground.

    Args:
        predicted: bool.
        mask: with 1 foreground, 0 background, 255 ignored; None where it is not known.
    """
    if mask is None or not (mask == 1).any():
        return np.nan
    counted = predicted & (mask != 255)
    return float((counted & (mask == 1)).sum() / (counted | (mask == 1)).sum())


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

"""Scores over the threshold: sums over images that add, and the accuracies that follow from them.

Definitions: Choe et al., CVPR 2020 (MaxBoxAcc, MaxBoxAccV2, PxAP); the LID challenge, track 3
(mIoU).
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from wsol_jax.evaluation.box_metrics import IOUS, RIGHT
from wsol_jax.evaluation.pixel_metrics import average_precision, image_ious

# What curves.csv has of every threshold, see `Curves.curves`.
CURVES = (
    *(f'{kind}_{100 * iou:.0f}' for kind in ('largest', 'all') for iou in IOUS),
    'mIoU',
    'PooledIoU',
)


@dataclass(frozen=True)
class Curves:
    """Sums over images of one (method, layer), at every threshold; merge by adding.

    Attributes:
        thresholds: [T].
        largest: [3, T] images whose largest contour's box reaches IoU 0.3, 0.5, 0.7.
        anywhere: [3, T] images where the box of some contour does.
        foreground: [T + 2] histogram of the scores of the masks' foreground, with the thresholds
            as lower edges of the bins; a score of 1 falls into the bin [1, 2).
        background: likewise.
        image_ious: [T] sum over the images with foreground of their IoU in [0, 1].
        images: how many have ground truth.
        boxed: how many of them have boxes.
        with_foreground: how many have foreground in their mask: without it an IoU says nothing.
        blank: how many maps of all images were constant or had a NaN.
    """

    thresholds: np.ndarray
    largest: np.ndarray
    anywhere: np.ndarray
    foreground: np.ndarray
    background: np.ndarray
    image_ious: np.ndarray
    images: int = 0
    boxed: int = 0
    with_foreground: int = 0
    blank: int = 0

    @classmethod
    def zero(cls, thresholds: np.ndarray) -> 'Curves':
        """Of no image."""
        per_iou = np.zeros((len(IOUS), len(thresholds)), int)
        bins = np.zeros(len(thresholds) + 2, int)
        return cls(thresholds, per_iou, per_iou, bins, bins, np.zeros(len(thresholds)))

    def __add__(self, other: 'Curves') -> 'Curves':
        """Of both sets of images."""
        names = [field.name for field in fields(self)[1:]]
        return Curves(self.thresholds, *(getattr(self, n) + getattr(other, n) for n in names))

    @property
    def masked(self) -> bool:
        """Whether any pixel is foreground; without, no score of pixels is defined."""
        return bool(self.foreground.any())

    @property
    def gt_known(self) -> np.ndarray:
        """[T] percentage of images whose largest contour's box reaches IoU 0.5."""
        return self._accuracy(self.largest[IOUS.index(RIGHT)])

    @property
    def max_box_acc(self) -> float:
        """MaxBoxAcc: the best of `gt_known` over the thresholds (an oracle)."""
        return float(self.gt_known.max())

    @property
    def max_box_acc_v2(self) -> float:
        """MaxBoxAccV2: mean over IoU 0.3, 0.5, 0.7 of the best accuracy with any contour."""
        return float(self._accuracy(self.anywhere).max(axis=1).mean())

    @property
    def pooled_iou(self) -> np.ndarray:
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
        if not self.masked:
            raise ValueError('PxAP is undefined: no pixel of the masks is foreground')
        return float(average_precision(self.foreground, self.background))

    @property
    def curve(self) -> np.ndarray | None:
        """[T] the score that thresholds are chosen by: GT-known, else mIoU, else None."""
        if self.boxed:
            return self.gt_known
        return self.mean_iou if self.masked else None

    @property
    def best_threshold(self) -> float | None:
        """Where `curve` is best; the lowest of several."""
        return None if self.curve is None else float(self.thresholds[np.argmax(self.curve)])

    @property
    def score(self) -> float | None:
        """The score that layers are chosen by: MaxBoxAcc, else PxAP, else None."""
        if self.boxed:
            return self.max_box_acc
        return self.average_precision if self.masked else None

    def nearest(self, threshold: float) -> int:
        """Index of the threshold next to this one."""
        return int(np.argmin(np.abs(self.thresholds - threshold)))

    def curves(self) -> dict[str, np.ndarray]:
        """Percentages [T] by name, at every threshold.

        'largest_50' is the share of images whose largest contour's box reaches IoU 50 %, 'all_50'
        that where some contour's does; 'mIoU' the IoU with the mask averaged over images,
        'PooledIoU' that over the pixels of all images together.
        """
        curves: dict[str, np.ndarray] = {}
        if self.boxed:
            both = np.concatenate([self.largest, self.anywhere])
            curves |= zip(CURVES, self._accuracy(both), strict=False)
        if self.masked:
            curves |= {'mIoU': self.mean_iou, 'PooledIoU': self.pooled_iou}
        return curves

    def oracles(self) -> dict[str, Any]:
        """The scores at the best threshold on these images, or over all thresholds, in percent."""
        best: dict[str, Any] = {}
        if self.boxed:
            best['MaxBoxAcc'] = self.max_box_acc
            best['MaxBoxAcc_threshold'] = float(self.thresholds[np.argmax(self.gt_known)])
            best['MaxBoxAccV2'] = self.max_box_acc_v2
        if self.masked:
            best['PxAP'] = self.average_precision
            for name, curve in (('PeakIoU', self.mean_iou), ('PeakPooledIoU', self.pooled_iou)):
                best[name] = float(curve.max())
                best[f'{name}_threshold'] = float(self.thresholds[np.argmax(curve)])
        return best

    def _accuracy(self, counts: np.ndarray) -> np.ndarray:
        return 100.0 * counts / max(self.boxed, 1)

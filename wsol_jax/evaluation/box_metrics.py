"""MaxBoxAcc, MaxBoxAccV2, GT-known, Top-1 and Top-5 localization, as counts that add up.

Definitions: Choe et al., CVPR 2020 (MaxBoxAcc, MaxBoxAccV2) and the ILSVRC localization task.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsol_jax.evaluation.boxes import box_iou

IOUS = (0.3, 0.5, 0.7)
RIGHT = 0.5  # the IoU from which on a box is right
_HALF = IOUS.index(RIGHT)


@dataclass
class BoxCounts:
    """Correct images at every threshold; merge by adding.

    Attributes:
        thresholds: [T].
        largest: [3, T] images whose largest contour's box reaches IoU 0.3, 0.5, 0.7.
        anywhere: [3, T] images where the box of some contour does.
        top1: [T] images with the right top-1 class whose largest contour reaches 0.5.
        top5: [T] the same with the right class among the first five.
        images: how many images were scored.
    """

    thresholds: np.ndarray
    largest: np.ndarray
    anywhere: np.ndarray
    top1: np.ndarray
    top5: np.ndarray
    images: int = 0

    @classmethod
    def zero(cls, thresholds: np.ndarray) -> 'BoxCounts':
        """Nothing counted yet."""
        count = len(thresholds)
        per_iou = np.zeros((len(IOUS), count), int)
        flat = np.zeros(count, int)
        return cls(thresholds, per_iou, per_iou.copy(), flat, flat.copy())

    def __add__(self, other: 'BoxCounts') -> 'BoxCounts':
        """Counts of both sets of images."""
        names = ('largest', 'anywhere', 'top1', 'top5', 'images')
        return BoxCounts(self.thresholds, *(getattr(self, n) + getattr(other, n) for n in names))

    def add(
        self,
        boxes: Sequence[np.ndarray],
        truth: np.ndarray,
        *,
        top1_right: bool = False,
        top5_boxes: Sequence[np.ndarray] | None = None,
    ) -> None:
        """Counts one image.

        Args:
            boxes: per threshold [n, 4], the largest contour first.
            truth: [m, 4] ground-truth boxes on the same canvas.
            top1_right: the class ranked first is right.
            top5_boxes: `boxes` of the right class if it is among the first five, else None.
        """
        largest, anywhere = _best_ious(boxes, truth)
        levels = np.array(IOUS)[:, None]
        hits = largest >= levels
        self.largest += hits
        self.anywhere += anywhere >= levels
        self.top1 += hits[_HALF] & top1_right
        if top5_boxes is not None:
            right = largest if top5_boxes is boxes else _best_ious(top5_boxes, truth)[0]
            self.top5 += right >= RIGHT
        self.images += 1

    def accuracy(self, counts: np.ndarray) -> np.ndarray:
        """Counts as a percentage of the images."""
        return 100.0 * counts / max(self.images, 1)

    @property
    def gt_known(self) -> np.ndarray:
        """[T] percentage of images whose largest contour's box reaches IoU 0.5."""
        return self.accuracy(self.largest[_HALF])

    @property
    def max_box_acc(self) -> float:
        """MaxBoxAcc: the best of `gt_known` over the thresholds (an oracle)."""
        return float(self.gt_known.max())

    @property
    def max_box_acc_v2(self) -> float:
        """MaxBoxAccV2: mean over IoU 0.3, 0.5, 0.7 of the best accuracy with any contour."""
        return float(self.accuracy(self.anywhere).max(axis=1).mean())


def defined_for(target: str) -> tuple[str, ...]:
    """Which box scores mean something for maps of these classes (`LocalizeConfig.classes`)."""
    defined = {
        'ground_truth': ('GTKnownLoc', 'Top1Loc', 'Top5Loc'),
        'top1': ('Top1Loc',),
        'top5': ('Top1Loc', 'Top5Loc'),
    }
    return defined.get(target, ())


def _best_ious(boxes: Sequence[np.ndarray], truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[T] best IoU with any true box: of the largest contour, and of any contour."""
    # Neighbouring thresholds mostly share one array of boxes: score each only once.
    unique = {id(b): b for b in boxes}
    ious = dict(zip(unique, _split_ious(list(unique.values()), truth), strict=True))
    largest = np.array([ious[id(b)][0] for b in boxes])
    anywhere = np.array([ious[id(b)].max() for b in boxes])
    return largest, anywhere


def _split_ious(groups: list[np.ndarray], truth: np.ndarray) -> list[np.ndarray]:
    best = box_iou(np.concatenate(groups), truth).max(axis=1)
    return np.split(best, np.cumsum([len(g) for g in groups])[:-1])

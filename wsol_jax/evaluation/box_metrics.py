"""When a box is right: for MaxBoxAcc, MaxBoxAccV2, GT-known, Top-1 and Top-5 localization.

Definitions: Choe et al., CVPR 2020 (MaxBoxAcc, MaxBoxAccV2) and the ILSVRC localization task.
"""

from collections.abc import Sequence

import numpy as np

from wsol_jax.evaluation.boxes import box_iou

IOUS = (0.3, 0.5, 0.7)
RIGHT = 0.5  # the IoU from which on a box is right


def defined_for(target: str) -> tuple[str, ...]:
    """Which box scores mean something for maps of these classes (`LocalizeConfig.classes`).

    'given' are maps of the object, of which no classifier is known.
    """
    defined = {
        'ground_truth': ('GTKnownLoc', 'Top1Loc', 'Top5Loc'),
        'given': ('GTKnownLoc',),
        'top1': ('Top1Loc',),
        'top5': ('Top1Loc', 'Top5Loc'),
    }
    return defined.get(target, ())


def best_ious(boxes: Sequence[np.ndarray], truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best IoU with any true box: [T] of the largest contour, and [T] of any contour.

    Args:
        boxes: T times [n, 4], the largest contour first.
        truth: [m, 4] on the same canvas.
    """
    # Neighbouring thresholds mostly share one array of boxes: score each only once.
    unique = {id(b): b for b in boxes}
    ious = dict(zip(unique, _split_ious(list(unique.values()), truth), strict=True))
    largest = np.array([ious[id(b)][0] for b in boxes])
    anywhere = np.array([ious[id(b)].max() for b in boxes])
    return largest, anywhere


def _split_ious(groups: list[np.ndarray], truth: np.ndarray) -> list[np.ndarray]:
    best = box_iou(np.concatenate(groups), truth).max(axis=1)
    return np.split(best, np.cumsum([len(g) for g in groups])[:-1])

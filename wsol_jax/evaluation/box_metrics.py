"""When a box is right: for MaxBoxAcc, MaxBoxAccV2, GT-known, Top-1 and Top-5 localization.

Definitions: Choe et al., CVPR 2020 (MaxBoxAcc, MaxBoxAccV2) and the ILSVRC localization task.
"""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import numpy as np
from absl import logging

from wsol_jax.evaluation.boxes import box_iou
from wsol_jax.maps.boxes import contour_boxes, cuts_of, inside

IOUS = (0.3, 0.5, 0.7)
RIGHT = 0.5  # the IoU from which on a box is right
_FEW = 8  # cuts that OpenCV's contours of each are quicker for
_ENDS = np.array([0, 0, 1, 1])  # OpenCV's boxes end a pixel after their last one


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


def best_boxes(
    scores: np.ndarray, thresholds: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The box of the largest contour at each threshold, and how well it and any other one fits.

    With numba installed, all thresholds take one pass; the numbers are the same.

    Args:
        scores: [h, w] score map in [0, 1].
        thresholds: [T] in [0, 1).
        truth: [m, 4] true boxes on the canvas of the map; none where they are not known.

    Returns:
        Boxes [T, 4] int, as `threshold_boxes` has them; the best IoU [T] of that box with a true
        one, and that of the box of any contour: NaN without true boxes.

    Raises:
        ValueError: a threshold is outside [0, 1), or the map holds NaN or leaves [0, 1].
    """
    grey, cuts, which = cuts_of(scores, thresholds)
    by = _in_one_pass if len(cuts) > _FEW and _compiled() else _cut_by_cut
    boxes, largest, anywhere = by(grey, cuts, truth)
    return boxes[which], largest[which], anywhere[which]


@cache
def _compiled() -> bool:
    """Whether numba is there, and a place where it can keep what it compiles."""
    if find_spec('numba') is None:
        return False
    try:
        from wsol_jax.maps.components import contours

        found = contours(np.eye(3, dtype=np.uint8))
        found.best(np.zeros(len(found.boxes)))
    except (OSError, RuntimeError) as error:
        logging.info('contours are sought without numba: %s', error)
        return False
    return True


def _cut_by_cut(
    grey: np.ndarray, cuts: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = contour_boxes(grey, cuts)
    unknown = np.full(len(found), np.nan)
    ious = best_ious(found, truth) if len(truth) else (unknown, unknown)
    return np.array([boxes[0] for boxes in found]), *ious


def _in_one_pass(
    grey: np.ndarray, cuts: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from wsol_jax.maps.components import contours

    # How many cuts a pixel is above: more than i of them where it is above cuts[i].
    found = contours(np.searchsorted(cuts, np.arange(256)).astype(np.uint8)[grey])
    largest = inside(found.largest + _ENDS, grey)
    if found.unclear.any():  # OpenCV's order decides between several
        several = contour_boxes(grey, cuts[found.unclear])
        largest[found.unclear] = [boxes[0] for boxes in several]
    if not len(truth):
        unknown = np.full(len(cuts), np.nan)
        return largest, unknown, unknown
    ious = box_iou(inside(found.boxes + _ENDS, grey), truth).max(axis=1)
    return largest, box_iou(largest, truth).max(axis=1), found.best(ious)


def best_ious(boxes: Sequence[np.ndarray], truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best IoU with any true box: [T] of the largest contour, and [T] of any contour.

    Args:
        boxes: T times [n, 4], the largest contour first.
        truth: [m, 4] on the same canvas.
    """
    best = box_iou(np.concatenate(boxes), truth).max(axis=1)
    ious = np.split(best, np.cumsum([len(b) for b in boxes])[:-1])
    return np.array([of[0] for of in ious]), np.array([of.max() for of in ious])

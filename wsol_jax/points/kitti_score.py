"""Average precision of KITTI's detection benchmark, from above (BEV) and in 3D.

NumPy alone, in processes without JAX. Geiger et al., "Are we ready for Autonomous Driving? The
KITTI Vision Benchmark Suite", CVPR 2012, with 11 recall points; Simonelli et al., "Disentangling
Monocular 3D Object Detection", ICCV 2019, with 40. Details are those of the devkit's program.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from wsol_jax.data.boxes_3d import NEAREST, corners, in_region, project
from wsol_jax.data.frames import Camera, frame_of
from wsol_jax.data.kitti import CLASSES
from wsol_jax.data.records import Record
from wsol_jax.points.rotated_iou import bev_iou, iou_3d
from wsol_jax.points.tables import FrameTable

Array = np.ndarray

LEAST_IOU = (0.7, 0.5, 0.5)  # of each class, above which a detection is right
# So like the class that a detection of one is neither right nor wrong.
NEIGHBOURS = ('Van', 'Person_sitting', '')
DIFFICULTIES = ('easy', 'moderate', 'hard')
MIN_HEIGHTS = (40, 25, 25)  # of the box in the image, in pixels
MAX_OCCLUSIONS = (0, 1, 2)
MAX_TRUNCATIONS = (0.15, 0.3, 0.5)
VIEWS = {'BEV': bev_iou, '3D': iou_3d}

_CASES = (len(CLASSES), len(DIFFICULTIES), len(VIEWS))
_STEPS = 40  # recall is looked at in steps of 1 / 40


@dataclass(frozen=True)
class Detections:
    """What was found in a frame.

    Attributes:
        boxes: [n, 7], rows x, y, z, l, w, h, yaw.
        names: [n], their classes as KITTI spells them; the case does not count.
        scores: [n].
        heights: [n] in pixels, of the boxes in the image.
    """

    boxes: Array
    names: Sequence[str]
    scores: Array
    heights: Array


@dataclass(frozen=True)
class Labels:
    """The lines of a frame's label file.

    Lines of DontCare have a box in the image only, so that they hide no detection here; they may
    be there or not.

    Attributes:
        boxes: [m, 7].
        names: [m].
        heights: [m] in pixels, of the boxes in the image.
        occlusions: [m], 0 .. 3.
        truncations: [m], 0 .. 1.
    """

    boxes: Array
    names: Sequence[str]
    heights: Array
    occlusions: Array
    truncations: Array


@dataclass(frozen=True)
class KittiTable(FrameTable):
    """How the detections of some frames count.

    Each detection has a row in each case: a class, a difficulty and a view. What is right in a
    frame at a threshold depends on no other frame, so that counts at a threshold are sums of rows.

    Attributes:
        objects: int [3, 3, 2], how many true boxes count in each case.
        cases: int [r], flat indices into [class, difficulty, view].
        scores: [r].
        right: int [r], how many true positives there are more when the threshold comes down to this
            score; may be below 0.
        wrong: int [r], likewise false positives.
        found: bool [r], whether it is the best of a true box: thresholds are scores of such.
    """

    cases: Array
    scores: Array
    right: Array
    wrong: Array
    found: Array


def match_record(
    record: Record, boxes: Array, classes: Array, scores: Array, region: tuple[float, ...]
) -> KittiTable:
    """Matches what was found in a frame of KITTI with its labels; see `match_frame`.

    Args:
        record: of the source `kitti`; of another one nothing is matched.
        boxes: [n, 7] in the frame of the LiDAR.
        classes: int [n], indices into `CLASSES`.
        scores: [n].
        region: labels whose centre lies outside of it do not count, see `in_region`.
    """
    if 'kitti' not in record.extra:
        none = np.zeros(0, int)
        return KittiTable(np.zeros(_CASES, int), none, none, none, none, none.astype(bool))
    known = record.extra['kitti']
    places = np.reshape([label.box for label in known], (-1, 7))
    inside = in_region(places, region)
    labels = [label for label, counts in zip(known, inside, strict=True) if counts]
    heights = image_heights(boxes, frame_of(record).cameras[0])
    return match_frame(
        Detections(boxes, [CLASSES[k] for k in classes], scores, heights),
        Labels(
            places[inside],
            [label.name for label in labels],
            np.array([label.box_2d[3] - label.box_2d[1] for label in labels]),
            np.array([label.occluded for label in labels]),
            np.array([label.truncated for label in labels]),
        ),
    )


def image_heights(boxes: Array, camera: Camera) -> Array:
    """How high boxes [n, 7] are in an image, in pixels [n]; 0 of those that are not in it."""
    places = corners(boxes)
    pixels, depth = project(places.reshape(-1, 3), camera.projection)
    seen = np.clip(pixels, 0, camera.size).reshape(*places.shape[:2], 2)
    front = (depth >= NEAREST).reshape(*places.shape[:2], 1)
    low = np.where(front, seen, np.inf).min(1)
    high = np.where(front, seen, -np.inf).max(1)
    width, height = np.where(front.any(1), high - low, 0.0).T
    return np.where(width > 0, height, 0.0)


def match_frame(detections: Detections, labels: Labels) -> KittiTable:
    """Matches the detections of one frame with its labels in every class, difficulty and view.

    Labels that are too low, occluded or truncated for a difficulty are ignored, and those of a
    neighbouring class: what covers them is neither right nor wrong. So are detections that are too
    low, whatever their class.

    Raises:
        ValueError: a box is none, see `rotated_iou`.
    """
    return KittiTable.joined(
        case for k in range(len(CLASSES)) for case in _of_class(k, detections, labels)
    )


def _of_class(k: int, detections: Detections, labels: Labels) -> Iterator[KittiTable]:
    own, same = _named(detections.names, CLASSES[k]), _named(labels.names, CLASSES[k])
    near = same | _named(labels.names, NEIGHBOURS[k])
    true_boxes = np.reshape(labels.boxes, (-1, 7))[near]
    ious = [iou(detections.boxes, true_boxes) for iou in VIEWS.values()]
    scores = np.asarray(detections.scores, float)
    for d, height in enumerate(MIN_HEIGHTS):
        low = np.asarray(detections.heights) < height
        kept, counted = own | low, (same & ~_too_hard(labels, d))[near]
        for v, iou in enumerate(ious):
            yield _case((k, d, v), iou[kept], scores[kept], low[kept], counted)


def _named(names: Sequence[str], name: str) -> Array:
    return np.array([given.lower() == name.lower() for given in names], bool)


def _too_hard(labels: Labels, difficulty: int) -> Array:
    return (
        (np.asarray(labels.heights) <= MIN_HEIGHTS[difficulty])
        | (np.asarray(labels.occlusions) > MAX_OCCLUSIONS[difficulty])
        | (np.asarray(labels.truncations) > MAX_TRUNCATIONS[difficulty])
    )


def _case(
    case: tuple[int, int, int], ious: Array, scores: Array, ignored: Array, counted: Array
) -> KittiTable:
    """Of detections [n] and true boxes [m] with these overlaps [n, m]."""
    objects = np.zeros(_CASES, int)
    objects[case] = counted.sum()
    order = np.argsort(-scores, kind='stable')
    covers = np.where(ious > LEAST_IOU[case[0]], ious, 0)
    found = _found(covers, scores, ignored, counted)
    right, wrong = _counts(covers, scores, scores[order], ignored, counted)
    return KittiTable(
        objects=objects,
        cases=np.full(len(order), np.ravel_multi_index(case, _CASES)),
        scores=scores[order],
        right=np.diff(right, prepend=0),
        wrong=np.diff(wrong, prepend=0),
        found=found[order],
    )


def _found(covers: Array, scores: Array, ignored: Array, counted: Array) -> Array:
    """Bool [n], the detection of highest score of each true box in turn, if both of them count."""
    found, free = np.zeros((2, len(scores)), bool)
    free[:] = True
    for cover, counts in zip(covers.T, counted, strict=True):
        able = free & (cover > 0)
        if able.any():
            best = np.where(able, scores, -np.inf).argmax()
            free[best] = False
            found[best] = counts and not ignored[best]
    return found


def _counts(
    covers: Array, scores: Array, thresholds: Array, ignored: Array, counted: Array
) -> tuple[Array, Array]:
    """True and false positives [t], where only what reaches a threshold was found.

    True boxes, in turn, take the detection that covers them most, one that is ignored for want of
    a better one.
    """
    free = scores >= thresholds[:, None]
    right = np.zeros(len(thresholds), int)
    for cover, counts in zip(covers.T if len(scores) else (), counted, strict=False):
        able = free & (cover > 0)
        sure = able & ~ignored
        best = np.where(sure.any(axis=1), (sure * cover).argmax(axis=1), able.argmax(axis=1))
        free[np.arange(len(best)), best] &= ~able.any(axis=1)
        right += counts & sure.any(axis=1)
    return right, (free & ~ignored).sum(axis=1)


def average_precisions(table: KittiTable) -> Array:
    """Average precision in percent: [class, difficulty, view, 2] with 11 and with 40 recall points.

    The mean over the recalls 0, 0.1 .. 1, or 1 / 40, 2 / 40 .. 1, of the best precision there or at
    a higher recall; NaN where no true box counts. As in the devkit, precision is looked at where
    recall comes next to 0, 1 / 40 .. 1. There each detection serves one of these points only, so
    that even what is perfect is far below 100 in fewer than 40 boxes; here it serves all that it is
    next to. Above 60 boxes both are the same.

    Args:
        table: of all frames.
    """
    found = np.full((*_CASES, 2), np.nan)
    for flat, case in enumerate(np.ndindex(_CASES)):
        if table.objects[case]:
            precisions = _precisions(table, flat, int(table.objects[case]))
            found[case] = 100 * precisions[::4].mean(), 100 * precisions[1:].mean()
    return found


def _precisions(table: KittiTable, case: int, objects: int) -> Array:
    """The best precision [41] at each recall or a higher one."""
    rows = np.flatnonzero(table.cases == case)
    rows = rows[np.argsort(-table.scores[rows], kind='stable')]
    scores = table.scores[rows]
    thresholds = _thresholds(scores[table.found[rows]], objects)
    last = np.searchsorted(-scores, -thresholds, side='right') - 1
    right, wrong = (np.cumsum(of[rows])[last] for of in (table.right, table.wrong))
    precisions = np.zeros(_STEPS + 1)
    precisions[: len(last)] = right / np.maximum(right + wrong, 1)
    return np.maximum.accumulate(precisions[::-1])[::-1]


def _thresholds(scores: Array, objects: int) -> Array:
    """Scores [at most 41], of those [n] by which recall grows, where it is next to each step."""
    recalls = np.arange(1, len(scores) + 1) / objects
    chosen: list[float] = []
    at, step = 0, 0.0
    while at < len(scores) and len(chosen) <= _STEPS:
        while at + 1 < len(scores) and recalls[at + 1] - step < step - recalls[at]:
            at += 1
        chosen.append(scores[at])
        step += 1 / _STEPS
        # The last one serves no step that its recall does not reach, but for rounding.
        if at + 1 == len(scores) and recalls[at] < step - 1e-9:
            break
    return np.array(chosen)


def scores_of(table: KittiTable) -> dict[str, float]:
    """The percentages of `average_precisions` that are defined, by name: 'Car_3D_moderate_R40'.

    Args:
        table: of all frames.
    """
    found = average_precisions(table)
    names = product(CLASSES, DIFFICULTIES, VIEWS, ('R11', 'R40'))
    return {
        f'{name}_{view}_{difficulty}_{points}': float(value)
        for (name, difficulty, view, points), value in zip(names, found.flat, strict=True)
        if not np.isnan(value)
    }

"""Scores of nuScenes' detection task: rows of frames, which join, and what follows from them.

NumPy alone, in processes without JAX. Caesar et al., "nuScenes: A multimodal dataset for autonomous
driving", CVPR 2020, section 3.1, in the details as the nuScenes devkit has them. A detection is
right by how far its centre is from that of a true box on the ground, not by overlap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from wsol_jax.data.boxes_3d import points_inside
from wsol_jax.data.nuscenes_tables import BIKES
from wsol_jax.points.tables import FrameTable

Array = np.ndarray

DISTANCES = np.array([0.5, 1, 2, 4])  # metres below which a detection is right
ERRORS = ('ATE', 'ASE', 'AOE')  # metres, 1 - IoU, radians
LOWEST = 0.1  # recall and precision up to here do not count
# How far from the vehicle objects of a class are looked for, in metres.
RANGES = {
    'car': 50,
    'truck': 50,
    'bus': 50,
    'trailer': 50,
    'construction_vehicle': 50,
    'pedestrian': 40,
    'motorcycle': 40,
    'bicycle': 40,
    'traffic_cone': 30,
    'barrier': 30,
}

_ERRORS_AT = 2  # index of the distance at which errors of the right detections are measured
_RECALLS = np.linspace(0, 1, 101)
_FIRST = round(100 * LOWEST) + 1


@dataclass(frozen=True)
class DetectionTable(FrameTable):
    """The detections of some frames that are in range, matched with their true boxes.

    Attributes:
        objects: int [C], how many true boxes of each class are in range.
        classes: int [n], of each detection.
        scores: [n].
        right: bool [n, 4], at each of `DISTANCES`.
        errors: [n, 3], `ERRORS` of those that are right at 2 m, else NaN.
    """

    classes: Array
    scores: Array
    right: Array
    errors: Array


def match_frame(
    boxes: Array,
    classes: Array,
    scores: Array,
    true_boxes: Array,
    true_classes: Array,
    names: Sequence[str],
    *,
    vehicle: tuple[float, float] = (0.0, 0.0),
    racks: ArrayLike = (),
) -> DetectionTable:
    """Matches the detections of one frame with its true boxes.

    In each class and for each distance, detections take the nearest true box that is still free, if
    it is near enough: the highest score first, of equal ones the first. Bicycles and motorcycles
    whose centre lies in a bicycle rack do not count, be they true or detected. nuScenes drops true
    boxes in which no LiDAR or radar point lies: leave such boxes out.

    Args:
        boxes: [n, 7], rows x, y, z, l, w, h, yaw.
        classes: int [n], 0 .. C - 1.
        scores: [n].
        true_boxes: [m, 7].
        true_classes: int [m]; boxes of no class, -1, do not count.
        names: [C] of the classes; one that is not in `RANGES` counts at any distance.
        vehicle: x, y from where ranges are measured in the frame of the boxes. nuScenes measures
            from the middle of the rear axle, which its LiDAR is not above.
        racks: [r, 7] of bicycle racks.
    """
    boxes, true_boxes = (np.reshape(given, (-1, 7)) for given in (boxes, true_boxes))
    classes, true_classes = (np.asarray(given, int) for given in (classes, true_classes))
    found = _counted(boxes, classes, names, vehicle, racks)
    true = _counted(true_boxes, true_classes, names, vehicle, racks)
    scores = np.asarray(scores, float)
    found = found[np.argsort(-scores[found], kind='stable')]

    def of_class(k: int) -> DetectionTable:
        own, objects = found[classes[found] == k], true[true_classes[true] == k]
        return _match(boxes[own], scores[own], true_boxes[objects], k, names)

    return DetectionTable.joined(of_class(k) for k in range(len(names)))


def _counted(
    boxes: Array,
    classes: Array,
    names: Sequence[str],
    vehicle: tuple[float, float],
    racks: ArrayLike,
) -> Array:
    """Indices of the boxes of a class that lie in its range, and are no bikes in a rack."""
    limits = np.array([RANGES.get(name, np.inf) for name in names])
    away = np.hypot(*(boxes[:, :2] - vehicle).T)
    bikes = np.isin(classes, [k for k, name in enumerate(names) if name in BIKES])
    in_rack = bikes & points_inside(boxes, racks).any(0)
    return np.flatnonzero((classes >= 0) & (away < limits[classes]) & ~in_rack)


def _match(
    boxes: Array, scores: Array, true_boxes: Array, k: int, names: Sequence[str]
) -> DetectionTable:
    """Of one frame and class, with detections by descending score."""
    partners = _partners(boxes, true_boxes)
    pairs = partners[:, _ERRORS_AT]
    hit = pairs >= 0
    errors = np.full((len(boxes), len(ERRORS)), np.nan)
    errors[hit] = _errors(boxes[hit], true_boxes[pairs[hit]], names[k])
    objects = len(true_boxes) * (np.arange(len(names)) == k)
    return DetectionTable(objects, np.full(len(boxes), k), scores, partners >= 0, errors)


def _partners(boxes: Array, true_boxes: Array) -> Array:
    """Index [n, 4] of the true box that each detection takes at each distance, -1 if none."""
    partners = np.full((len(boxes), len(DISTANCES)), -1)
    if not len(true_boxes):
        return partners
    gaps = np.hypot(*(boxes[:, None, axis] - true_boxes[:, axis] for axis in (0, 1)))
    taken = np.zeros((len(DISTANCES), len(true_boxes)), bool)
    for row in np.flatnonzero(gaps.min(axis=1) < DISTANCES[-1]):
        free = np.where(taken, np.inf, gaps[row])
        nearest = free.argmin(axis=1)
        near = np.flatnonzero(free.min(axis=1) < DISTANCES)
        partners[row, near] = nearest[near]
        taken[near, nearest[near]] = True
    return partners


def _errors(boxes: Array, true_boxes: Array, name: str) -> Array:
    """`ERRORS` [n, 3] of detections against their true boxes."""
    away = np.hypot(*(boxes - true_boxes)[:, :2].T)
    sizes, true_sizes = boxes[:, 3:6], true_boxes[:, 3:6]
    shared = np.minimum(sizes, true_sizes).prod(axis=1)  # centres and headings put together
    union = sizes.prod(axis=1) + true_sizes.prod(axis=1) - shared
    overlap = np.divide(shared, union, out=np.zeros_like(union), where=union > 0)
    period = np.pi if name == 'barrier' else 2 * np.pi  # a barrier has no front
    turn = np.abs(((boxes - true_boxes)[:, 6] + period / 2) % period - period / 2)
    return np.stack([away, 1 - overlap, turn], axis=1)


def class_scores(table: DetectionTable, names: Sequence[str]) -> dict[str, Array]:
    """Scores of each class by name; NaN for a class without true boxes.

    Average precision at each distance, `AP_0.5` .. `AP_4`, and their mean `AP`, in percent: the
    mean of the precision at the recalls 11 % .. 100 %, of which 10 % are taken off, divided by
    90 %. `ATE`, `ASE`, `AOE`: the errors of the detections that are right at 2 m, averaged over all
    down to the score of each recall from 11 % to the highest that is reached, and then over these
    recalls; 1 where 11 % are not. `AOE` is NaN for cones.

    Args:
        table: of all frames.
        names: [C] of the classes.

    Returns:
        Each [C].
    """
    columns: dict[str, list[float]] = {}
    for k, name in enumerate(names):
        for column, value in _of_class(table, k, name).items():
            columns.setdefault(column, []).append(value)
    return {column: np.array(values) for column, values in columns.items()}


def _of_class(table: DetectionTable, k: int, name: str) -> dict[str, float]:
    rows, objects = _in_order(table, k), table.objects[k]
    scores, right, errors = table.scores[rows], table.right[rows], table.errors[rows]
    precisions = [100 * _average_precision(hits, objects) for hits in right.T]
    of_distances = {f'AP_{d:g}': ap for d, ap in zip(DISTANCES, precisions, strict=True)}
    means = _mean_errors(scores, right[:, _ERRORS_AT], errors, objects)
    of_errors = dict(zip(ERRORS, means, strict=True))
    if name == 'traffic_cone':
        of_errors['AOE'] = np.nan
    return {'AP': float(np.mean(precisions)), **of_distances, **of_errors}


def _in_order(table: DetectionTable, k: int) -> Array:
    """Rows of a class, the highest score first; equal ones not in the order of the frames."""
    rows = np.flatnonzero(table.classes == k)
    keys = [*table.errors[rows].T, *table.right[rows].T, -table.scores[rows]]
    return rows[np.lexsort(keys)]


def _average_precision(right: Array, objects: int) -> float:
    """0 to 1, of detections [n] by descending score; NaN without true boxes."""
    if not objects:
        return np.nan
    if not right.any():
        return 0.0
    found = np.cumsum(right)
    precision = found / np.arange(1, len(right) + 1)
    at_recalls = np.interp(_RECALLS, found / objects, precision, right=0)
    return float(np.clip((at_recalls[_FIRST:] - LOWEST) / (1 - LOWEST), 0, 1).mean())


def _mean_errors(scores: Array, right: Array, errors: Array, objects: int) -> Array:
    """[3] of detections [n] by descending score; NaN without true boxes."""
    if not objects:
        return np.full(len(ERRORS), np.nan)
    recall = np.cumsum(right) / objects
    reached = np.flatnonzero(recall.max(initial=0) >= _RECALLS)[_FIRST:]
    if not len(reached):
        return np.ones(len(ERRORS))
    levels = np.interp(_RECALLS[reached], recall, scores)
    hits = errors[right]
    means = np.cumsum(hits, axis=0) / np.arange(1, len(hits) + 1)[:, None]
    ascending = scores[right][::-1]
    return np.array([np.interp(levels, ascending, mean[::-1]).mean() for mean in means.T])


def scores_of(table: DetectionTable, names: Sequence[str]) -> dict[str, float]:
    """Scores of a data set by name; none where no class has true boxes.

    `mAP` and the errors `mATE` (metres), `mASE` (1 - IoU) and `mAOE` (radians) are the means over
    the classes of `class_scores`. `NDS`, the nuScenes detection score, is (5 mAP + the sum of
    1 - min(1, error) over five errors) / 10: velocity and attribute are not predicted here, so that
    their errors count as 1 and the score is at most 80. `mAP` and `NDS` are percentages.

    A class without true boxes is left out. The devkit counts it as not found; in the splits that
    nuScenes publishes numbers of, all ten have boxes.

    Args:
        table: of all frames.
        names: [C] of the classes.
    """
    if not table.objects.any():
        return {}
    columns = class_scores(table, names)
    errors = {f'm{name}': _mean(columns[name]) for name in ERRORS}
    mean_ap = _mean(columns['AP'])
    true_positive = sum(1 - min(1.0, error) for error in errors.values() if not np.isnan(error))
    nds = (5 * mean_ap + 100 * true_positive) / 10
    found = {'mAP': mean_ap, 'NDS': nds, **errors}
    return {name: value for name, value in found.items() if not np.isnan(value)}


def metrics_of(table: DetectionTable, names: Sequence[str]) -> dict[str, Any]:
    """All that is told of a data set, for a file of JSON.

    Args:
        table: of all frames.
        names: [C] of the classes.

    Returns:
        What `scores_of` gives; `absent_classes`, how many are left out of it; `by_class`, the
        `class`, its `name`, its true `boxes`, its `detections`, and those of `class_scores` that
        are defined.
    """
    columns = class_scores(table, names)
    rows = [
        {
            'class': k,
            'name': name,
            'boxes': int(table.objects[k]),
            'detections': int((table.classes == k).sum()),
        }
        | {column: float(v[k]) for column, v in columns.items() if not np.isnan(v[k])}
        for k, name in enumerate(names)
    ]
    absent = int((table.objects == 0).sum())
    return {**scores_of(table, names), 'absent_classes': absent, 'by_class': rows}


def _mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan

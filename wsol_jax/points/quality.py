"""How well true boxes are found, each for itself: what tells quality over distance.

NumPy alone, in processes without JAX.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from wsol_jax.points.rotated_iou import iou_3d
from wsol_jax.points.tables import FrameTable

Array = np.ndarray
REACH = 2.0  # metres on the ground, below which a detection is of a true box
EDGES = (0, 10, 20, 30, np.inf)  # metres from the sensor


@dataclass(frozen=True)
class QualityTable(FrameTable):
    """The true boxes of some frames, a row each.

    Attributes:
        distances: [m] of the boxes from the sensor, in metres on the ground.
        errors: [m] in metres on the ground, to the detection that takes the box; NaN without one.
        overlaps: [m], the 3D IoU with it; 0 without one.
    """

    distances: Array
    errors: Array
    overlaps: Array


def match_quality(
    boxes: Array, classes: Array, scores: Array, true_boxes: Array, true_classes: Array
) -> QualityTable:
    """Of one frame: by descending score, detections take the nearest true box that is free.

    Args:
        boxes: [n,7], rows x, y, z, l, w, h, yaw.
        classes: int [n].
        scores: [n].
        true_boxes: [m,7].
        true_classes: int [m].
    """
    count = len(true_boxes)
    errors, overlaps = np.full(count, np.nan), np.zeros(count)
    gaps = np.hypot(*(boxes[:, None, i] - true_boxes[None, :, i] for i in (0, 1)))
    gaps[classes[:, None] != true_classes] = np.inf
    for i in np.argsort(-scores, kind='stable') if count else ():
        k = int(np.argmin(gaps[i]))
        if gaps[i, k] < REACH:
            errors[k] = gaps[i, k]
            overlaps[k] = iou_3d(boxes[i : i + 1], true_boxes[k : k + 1])[0, 0]
            gaps[:, k] = np.inf
    distances = np.hypot(true_boxes[:, 0], true_boxes[:, 1])
    return QualityTable(np.array(count), distances, errors, overlaps)


def quality_rows(table: QualityTable, edges: Sequence[float] = EDGES) -> list[dict[str, Any]]:
    """Quality in rings around the sensor; rings without boxes are left out.

    Args:
        table: of all frames.
        edges: of the rings in metres.

    Returns:
        Of each ring where it begins, `from`, in metres, how many `boxes` are in it, the percentage
        of them that was found within 2 m, `recall`, the mean `IoU` in percent, in which boxes that
        were not found count as 0, and the mean `error` in metres of those that were, if any.
    """
    rows = []
    for low, high in pairwise(edges):
        inside = (table.distances >= low) & (table.distances < high)
        if inside.any():
            errors = table.errors[inside]
            found = ~np.isnan(errors)
            row = {'from': float(low), 'boxes': int(inside.sum())}
            row |= {'recall': 100 * float(found.mean())}
            row |= {'IoU': 100 * float(table.overlaps[inside].mean())}
            rows.append(row | ({'error': float(errors[found].mean())} if found.any() else {}))
    return rows

"""Scores of the boxes in 3D that are stored of a split; without JAX, in processes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsol_jax.data.boxes_3d import as_boxes, in_region
from wsol_jax.data.frames import Frame, frame_of
from wsol_jax.data.records import Record
from wsol_jax.evaluation.split import Results
from wsol_jax.points.kitti_score import KittiTable, match_record
from wsol_jax.points.nuscenes_score import DetectionTable, match_frame
from wsol_jax.points.quality import QualityTable, match_quality

Truth = tuple[np.ndarray, np.ndarray]  # boxes [m,7], classes [m]
Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes [n,7], classes [n], scores [n]


@dataclass(frozen=True)
class FrameScores:
    """Tables of some frames.

    Attributes:
        detections: as nuScenes scores them.
        quality: of each true box.
        kitti: as KITTI scores them; empty for frames of other sources.
    """

    detections: DetectionTable
    quality: QualityTable
    kitti: KittiTable


def true_boxes(record: Record, region: tuple[float, ...]) -> Truth:
    """Boxes [m,7] and classes [m] of a frame whose centres lie in a region (x0, y0, z0, x1 ..)."""
    frame = frame_of(record)
    boxes, classes = as_boxes(frame.boxes), np.array(frame.classes, int)
    inside = in_region(boxes, region)
    return boxes[inside], classes[inside]


def found_boxes(columns: Mapping[str, np.ndarray], i: int) -> Found:
    """Boxes [n,7], classes [n] and scores [n] of one of the frames of some columns."""
    own = columns['classes'][i] >= 0
    boxes, classes, scores = (columns[name][i][own] for name in ('boxes', 'classes', 'scores'))
    return boxes, classes, scores


def score_frames(
    part: Results,
    setting: Any,
    chosen: None,
    *,
    names: tuple[str, ...],
    region: tuple[float, ...],
) -> FrameScores:
    """Scores of some frames.

    Args:
        part: frames with their boxes, those found and, among the records, those that are true.
        setting: not looked at.
        chosen: likewise.
        names: of the classes.
        region: see `true_boxes`.
    """
    del setting, chosen
    boxes, classes = np.zeros((0, 7)), np.zeros(0, int)
    nothing = Record('', b'', (), None, extra={'frame': Frame((), ())})
    tables = [_scored(nothing, (boxes, classes, np.zeros(0)), names, region)]
    for i, record in enumerate(part.records):
        tables.append(_scored(record, found_boxes(part.columns, i), names, region))
    return joined(tables)


def _scored(
    record: Record, found: Found, names: tuple[str, ...], region: tuple[float, ...]
) -> FrameScores:
    true, frame = true_boxes(record, region), frame_of(record)
    return FrameScores(
        match_frame(*found, *true, names, vehicle=frame.vehicle, racks=frame.racks),
        match_quality(*found, *true),
        match_record(record, *found, region),
    )


def joined(parts: Iterable[FrameScores]) -> FrameScores:
    """Of all frames of some parts, at least one."""
    parts = list(parts)
    return FrameScores(
        DetectionTable.joined(part.detections for part in parts),
        QualityTable.joined(part.quality for part in parts),
        KittiTable.joined(part.kitti for part in parts),
    )

"""What came of each image at the chosen threshold: intervals, and tables by class and by size."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from wsol_jax.data import Record, stored_size
from wsol_jax.evaluation.box_metrics import RIGHT, defined_for
from wsol_jax.evaluation.boxes import box_iou, rescale_boxes
from wsol_jax.evaluation.counts import ground_truth, thresholds_of
from wsol_jax.evaluation.intervals import mean_intervals, pxap_interval
from wsol_jax.evaluation.pixel_metrics import histograms, mask_iou
from wsol_jax.evaluation.split import Part
from wsol_jax.maps import Key
from wsol_jax.maps.boxes import threshold_boxes
from wsol_jax.maps.score import score_map

if TYPE_CHECKING:
    from wsol_jax.config import EvaluateConfig

# Between sizes of objects: the share of the image that they take, in percent.
SIZES = (0, 10, 30, 50, 100)

_Truth = tuple[np.ndarray, np.ndarray | None]  # boxes and mask, as from `ground_truth`


@dataclass
class Outcomes:
    """Of n images and one (method, layer).

    Attributes:
        boxes: [n,K,4] of the largest contour of each map, in pixels of the stored image.
        overlap: [n] best IoU of the first map's box with a true one; NaN without true boxes.
        top1: [n] that IoU if the first map is that of the right class, ranked first, else 0.
        top5: [n] the IoU of the right class's map if it is among the first five, else 0.
        foreground: [n, T + 2] histogram of the first map's scores, as in `PixelCounts`; [n, 0]
            where no image of the split has a mask.
        background: likewise.
        mask_overlap: [n] IoU of the true mask and {first map's score >= threshold}; NaN without
            foreground.
        size: [n] share of the image that the largest true box, or the mask, takes; NaN without.
    """

    boxes: np.ndarray
    overlap: np.ndarray
    top1: np.ndarray
    top5: np.ndarray
    foreground: np.ndarray
    background: np.ndarray
    mask_overlap: np.ndarray
    size: np.ndarray

    @classmethod
    def joined(cls, parts: Iterable['Outcomes']) -> 'Outcomes':
        """Those of all images of the parts."""
        columns = zip(*([getattr(p, f.name) for f in fields(cls)] for p in parts), strict=True)
        return cls(*map(np.concatenate, columns))

    def scores(self, target: str) -> dict[str, np.ndarray]:
        """Percentages [n] of each image by name; NaN where an image does not count.

        Args:
            target: the classes that the maps are for, as in `LocalizeConfig.classes`; '' where
                class scores mean nothing.
        """
        scores = {'mIoU': self.mask_overlap}
        named = {'GTKnownLoc': self.overlap, 'Top1Loc': self.top1, 'Top5Loc': self.top5}
        for name in defined_for(target):
            scores[name] = np.where(np.isnan(named[name]), np.nan, named[name] >= RIGHT)
        return {name: 100 * values for name, values in scores.items() if not _empty(values)}

    def means(self, target: str) -> dict[str, float]:
        """`scores`, averaged over the images that count."""
        return {name: float(np.nanmean(values)) for name, values in self.scores(target).items()}


def outcomes_of(
    part: Part, thresholds: Mapping[Key, float], setting: 'EvaluateConfig'
) -> dict[Key, Outcomes]:
    """What comes of some images.

    Args:
        part: the images and their maps.
        thresholds: where each (method, layer) is cut.
        setting: the canvas and the closing.
    """
    truths = [ground_truth(record, (setting.size,) * 2) for record in part.records]
    return {key: _of_key(part, key, truths, thresholds[key], setting) for key in part.maps}


def _of_key(
    part: Part, key: Key, truths: Sequence[_Truth], threshold: float, setting: 'EvaluateConfig'
) -> Outcomes:
    images = [
        _of_image(part, i, maps, truth, threshold, setting)
        for i, (maps, truth) in enumerate(zip(part.maps[key], truths, strict=True))
    ]
    return Outcomes(*map(np.stack, zip(*images, strict=True)))


def _of_image(
    part: Part,
    i: int,
    maps: np.ndarray,
    truth: _Truth,
    threshold: float,
    setting: 'EvaluateConfig',
) -> tuple:
    """The fields of `Outcomes` for one image."""
    canvas, (true_boxes, mask) = (setting.size, setting.size), truth
    scores = [score_map(raw, canvas, closing=setting.closing) for raw in maps]
    boxes = np.stack([threshold_boxes(s, [threshold])[0][0] for s in scores])
    edges = thresholds_of(setting)
    bins = np.zeros((2, len(edges) + 2 if part.masked else 0), np.int32)
    if mask is not None:
        bins[:] = histograms(scores[0], mask, edges)
    stored = rescale_boxes(boxes, canvas, stored_size(part.records[i]))
    size = _size(true_boxes, mask, setting.size**2)
    covered = mask_iou(scores[0] >= threshold, mask)
    if not len(true_boxes):
        return stored, np.nan, np.nan, np.nan, *bins, covered, size
    overlaps = box_iou(boxes, true_boxes).max(axis=1)
    column = part.label_column(i)
    top5 = 0.0 if column is None else overlaps[column]
    return stored, overlaps[0], overlaps[0] * part.top1_right(i), top5, *bins, covered, size


def _size(boxes: np.ndarray, mask: np.ndarray | None, pixels: int) -> float:
    if len(boxes):
        return float((boxes[:, 2:] - boxes[:, :2]).prod(axis=1).max() / pixels)
    return np.nan if mask is None or not (mask == 1).any() else float((mask == 1).mean())


def intervals(outcomes: Mapping[Key, Outcomes], target: str) -> dict[Key, dict[str, list[float]]]:
    """95 % bootstrap intervals in percent, {key: {score: [low, high]}}."""
    names, columns = [], []
    for key, found in outcomes.items():
        for name, values in found.scores(target).items():
            names.append((key, name))
            columns.append(values)
    ends: dict[Key, dict[str, list[float]]] = {key: {} for key in outcomes}
    if columns:
        for (key, name), row in zip(names, mean_intervals(np.stack(columns, axis=1)), strict=True):
            ends[key][name] = row.tolist()
    for key, found in outcomes.items():
        if found.foreground.any():
            ends[key]['PxAP'] = pxap_interval(found.foreground, found.background).tolist()
    return ends


def by_class(
    outcomes: Mapping[Key, Outcomes],
    records: Sequence[Record],
    target: str,
    name_of: Callable[[int], str],
) -> list[dict[str, Any]]:
    """A row of mean scores for every (method, layer) and class; unlabelled images are left out.

    Args:
        outcomes: of these images.
        records: of the images.
        target: the classes that the maps are for.
        name_of: the name of a label.
    """
    labels = np.array([record.labels[0] if record.labels else -1 for record in records])
    groups = {k: labels == k for k in np.unique(labels[labels >= 0]).tolist()}
    facts = {k: {'class': k, 'name': name_of(k)} for k in groups}
    return _rows(outcomes, groups, facts, target)


def by_size(outcomes: Mapping[Key, Outcomes], target: str) -> list[dict[str, Any]]:
    """A row of mean scores for every (method, layer) and size of the object, see `SIZES`."""
    if not outcomes:
        return []
    share = 100 * next(iter(outcomes.values())).size
    bins = np.where(np.isnan(share), -1, np.digitize(share, SIZES[1:-1]))
    facts = {i: {'size': f'{a}-{b} %'} for i, (a, b) in enumerate(pairwise(SIZES))}
    return _rows(outcomes, {i: bins == i for i in facts}, facts, target)


def _rows(
    outcomes: Mapping[Key, Outcomes],
    groups: Mapping[int, np.ndarray],
    facts: Mapping[int, dict[str, Any]],
    target: str,
) -> list[dict[str, Any]]:
    rows = []
    for key, found in outcomes.items():
        scores = found.scores(target)
        for group, members in groups.items():
            some = {name: values[members] for name, values in scores.items()}
            means = {k: float(np.nanmean(v)) for k, v in some.items() if not _empty(v)}
            if means:
                row = {'method': key[0], 'layer': key[1], **facts[group]}
                images = max(int((~np.isnan(v)).sum()) for v in some.values())
                rows.append({**row, 'images': images, **means})
    return rows


def _empty(values: np.ndarray) -> bool:
    return bool(np.isnan(values).all())

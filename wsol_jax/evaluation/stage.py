"""The stage `evaluate`: boxes and scores of the maps in the workdir.

Layer and threshold are chosen on one split (val) and applied to the others; what is best on the
scored split itself is an oracle and is named MaxBoxAcc, or PeakIoU for masks.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from wsol_jax.config import Config, EvaluateConfig
from wsol_jax.data import (
    DataError,
    Record,
    Source,
    decode_mask,
    evaluation_batches,
    evenly_spaced,
    stored_size,
)
from wsol_jax.evaluation.box_metrics import BoxCounts
from wsol_jax.evaluation.boxes import rescale_boxes, threshold_boxes
from wsol_jax.evaluation.faithfulness import faithfulness, summarize
from wsol_jax.evaluation.pixel_metrics import PixelCounts
from wsol_jax.localization.maps import score_map
from wsol_jax.localization.store import DONE, SKIPPED, Key, MapStore
from wsol_jax.models import Network
from wsol_jax.workdir import write_csv, write_text

_READ = 64  # images whose maps are read at once
_BOX_COLUMNS = ('image_id', 'method', 'layer', 'class', 'class_score', 'threshold')


@dataclass
class Counts:
    """What one (method, layer) scored on one split; a part without ground truth stays empty."""

    boxes: BoxCounts
    pixels: PixelCounts

    @classmethod
    def zero(cls, setting: EvaluateConfig) -> 'Counts':
        """Nothing counted yet, at the thresholds of the settings."""
        thresholds = _thresholds(setting)
        return cls(BoxCounts.zero(thresholds), PixelCounts.zero(thresholds))

    @property
    def curve(self) -> np.ndarray | None:
        """[T] the score that thresholds are chosen by: GT-known, else mIoU, else None."""
        if self.boxes.images:
            return self.boxes.gt_known
        return self.pixels.mean_iou if self.pixels.defined else None

    @property
    def score(self) -> float | None:
        """The score that layers are chosen by: MaxBoxAcc, else PxAP, else None."""
        if self.boxes.images:
            return self.boxes.max_box_acc
        return self.pixels.average_precision if self.pixels.defined else None


@dataclass
class Split:
    """A split with its maps: what evaluation reads.

    Attributes:
        name: of the split.
        source: its records, for the ground truth.
        store: its maps.
    """

    name: str
    source: Source
    store: MapStore
    status: np.ndarray = field(init=False)
    classes: np.ndarray = field(init=False)
    top: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.status, self.classes, self.top = (
            self.store.fact(name) for name in ('status', 'classes', 'top')
        )
        if self.store.image_ids != [self.source[i].image_id for i in range(len(self.source))]:
            raise DataError(f'{self.store.folder} has maps of other images than split {self.name}')
        missing = int(np.sum((self.status != DONE) & (self.status != SKIPPED)))
        if missing:
            raise DataError(
                f'{self.store.folder} has maps of {self.store.count - missing} of the '
                f'{len(self.source)} images; run the stage localize first'
            )

    def maps(self, key: Key) -> Iterator[tuple[int, Record, np.ndarray]]:
        """(position, record, raw maps [K,h,w]) of every image that could be read."""
        for start in range(0, len(self.source), _READ):
            stop = min(start + _READ, len(self.source))
            for i, maps in enumerate(self.store.read(key, start, stop), start):
                if self.status[i] == DONE:
                    yield i, self.source[i], maps

    def rectified(self, key: Key, index: np.ndarray) -> np.ndarray:
        """Maps [n,h,w] of the first class of some images, after the ReLU of the method, if any."""
        maps = self.store.arrays[key][index, 0].read().result()
        return np.maximum(maps, 0) if self.store.relu[key] else maps


def evaluate(
    config: Config,
    sources: Mapping[str, Source],
    workdir: Path,
    network: Network | None = None,
) -> dict[str, Any]:
    """Scores the maps of every split; writes metrics.json and boxes/<split>.csv.

    Args:
        config: the experiment.
        sources: {split: source}; layers and thresholds are chosen on `evaluate.choose_on`.
        workdir: with the maps of these splits.
        network: the classifier, for `evaluate.faithfulness`.

    Returns:
        What metrics.json holds.

    Raises:
        DataError: maps are missing or do not belong to these images.
        FileNotFoundError: a split has no maps at all.
    """
    setting = config.evaluate
    splits = [Split(n, s, MapStore(workdir / 'maps' / n)) for n, s in sources.items()]
    counts = {split.name: _count_split(split, setting) for split in splits}
    chosen = choose(counts.get(setting.choose_on, {}), setting)
    last = splits[-1]
    rows = [
        _row(split, key, counts[split.name][key], chosen.get(key), setting)
        for split in splits
        for key in split.store.arrays
    ]
    _mark_layers(rows, counts.get(setting.choose_on, {}))
    if setting.faithfulness:
        if network is None:
            raise ValueError('evaluate.faithfulness needs the network')
        _add_faithfulness(rows, last, network, config)
    for split in splits:
        thresholds = {key: chosen.get(key, setting.threshold) for key in split.store.arrays}
        _write_boxes(split, thresholds, setting, workdir / 'boxes' / f'{split.name}.csv')
    metrics = {
        'split': last.name,
        'class': last.store.target,
        'classification': _classification(last),
        'skipped': {split.name: int(np.sum(split.status == SKIPPED)) for split in splits},
        'localization': rows,
    }
    write_text(workdir / 'metrics.json', json.dumps(metrics, indent=2) + '\n')
    return metrics


def choose(counts: Mapping[Key, Counts], setting: EvaluateConfig) -> dict[Key, float]:
    """The threshold that is best on these images, for every (method, layer) that has a score."""
    thresholds = _thresholds(setting)
    curves = {key: c.curve for key, c in counts.items()}
    return {k: float(thresholds[np.argmax(c)]) for k, c in curves.items() if c is not None}


def _thresholds(setting: EvaluateConfig) -> np.ndarray:
    return np.arange(0, 1, setting.threshold_step)


def _count_split(split: Split, setting: EvaluateConfig) -> dict[Key, Counts]:
    bar = tqdm(split.store.arrays, desc=f'evaluate {split.name}', unit='layer', disable=None)
    return {key: _count(split, key, setting) for key in bar}


def _count(split: Split, key: Key, setting: EvaluateConfig) -> Counts:
    counts = Counts.zero(setting)
    canvas = (setting.size, setting.size)
    for i, record, maps in split.maps(key):
        scores = canvas_scores(split.store, key, maps[0], setting)
        if record.boxes:
            _count_boxes(counts.boxes, split, key, i, record, maps, scores, setting)
        if record.masks:
            counts.pixels.add(scores, decode_mask(record, canvas))
    return counts


def canvas_scores(
    store: MapStore, key: Key, raw: np.ndarray, setting: EvaluateConfig
) -> np.ndarray:
    """The score map of one raw map on the square canvas that scores are counted on.

    Args:
        store: that the map is from.
        key: its (method, layer).
        raw: [h, w].
        setting: with the size of the canvas in pixels.

    Returns:
        [size, size] float64 in [0, 1].
    """
    canvas = (setting.size, setting.size)
    return score_map(raw, canvas, closing=setting.closing, relu=store.relu[key])


def _count_boxes(
    counts: BoxCounts, split: Split, key: Key, i: int, record, maps, scores, setting
) -> None:
    truth = rescale_boxes(np.array(record.boxes), stored_size(record), (setting.size,) * 2)
    boxes = threshold_boxes(scores, counts.thresholds)
    label, ranked = record.labels[0] if record.labels else -1, split.top[i]
    columns = np.flatnonzero(split.classes[i] == label)
    top5_boxes = None
    if label in ranked and len(columns):
        top5_boxes = boxes
        if columns[0] != 0:
            right = canvas_scores(split.store, key, maps[columns[0]], setting)
            top5_boxes = threshold_boxes(right, counts.thresholds)
    counts.add(
        boxes,
        truth,
        blank=not scores.any(),
        top1_right=ranked[0] == label == split.classes[i][0],
        top5_boxes=top5_boxes,
    )


def _row(split: Split, key: Key, counts: Counts, chosen: float | None, setting) -> dict[str, Any]:
    row: dict[str, Any] = {'method': key[0], 'layer': key[1], 'split': split.name}
    row['images'] = max(counts.boxes.images, counts.pixels.images)
    threshold = setting.threshold if chosen is None else chosen
    row |= scores_at(counts, threshold, split.store.target)
    row['threshold'] = threshold
    row['threshold_from'] = 'config' if chosen is None else setting.choose_on
    return row


def scores_at(counts: Counts, threshold: float, target: str) -> dict[str, Any]:
    """The scores of a row of metrics.json: those at one threshold, and the oracles beside them.

    Args:
        counts: of one (method, layer) on one split.
        threshold: in [0, 1); the counted one next to it is taken.
        target: the classes that the maps are for, as in `LocalizeConfig.classes`.

    Returns:
        Percentages by name; without boxes, or masks, what needs them is left out.
    """
    scores = _box_scores(counts.boxes, threshold, target) if counts.boxes.images else {}
    return scores | (_pixel_scores(counts.pixels, threshold) if counts.pixels.defined else {})


def _box_scores(counts: BoxCounts, threshold: float, target: str) -> dict[str, Any]:
    at = _nearest(counts.thresholds, threshold)
    scores = {
        'MaxBoxAcc': counts.max_box_acc,
        'MaxBoxAcc_threshold': float(counts.thresholds[np.argmax(counts.gt_known)]),
        'MaxBoxAccV2': counts.max_box_acc_v2,
    }
    if target == 'ground_truth':
        scores['GTKnownLoc'] = float(counts.gt_known[at])
    if target in ('ground_truth', 'top1', 'top5'):
        scores['Top1Loc'] = float(counts.accuracy(counts.top1)[at])
    if target in ('ground_truth', 'top5'):
        scores['Top5Loc'] = float(counts.accuracy(counts.top5)[at])
    return {**scores, 'blank_maps': counts.blank}


def _pixel_scores(counts: PixelCounts, threshold: float) -> dict[str, Any]:
    curve = counts.mean_iou
    return {
        'PxAP': counts.average_precision,
        'mIoU': float(curve[_nearest(counts.thresholds, threshold)]),
        'PeakIoU': float(curve.max()),
        'PeakIoU_threshold': float(counts.thresholds[np.argmax(curve)]),
        'PooledIoU': float(counts.iou.max()),
    }


def _nearest(thresholds: np.ndarray, threshold: float) -> int:
    return int(np.argmin(np.abs(thresholds - threshold)))


def _mark_layers(rows: list[dict[str, Any]], counts: Mapping[Key, Counts]) -> None:
    """Sets `chosen` on the rows of the layer that is best where layers are chosen."""
    scores = {key: c.score for key, c in counts.items() if c.score is not None}
    best: dict[str, Key] = {}
    for key, score in scores.items():
        if key[0] not in best or score > scores[best[key[0]]]:
            best[key[0]] = key
    for row in rows:
        if best:
            row['chosen'] = best[row['method']] == (row['method'], row['layer'])


def _add_faithfulness(
    rows: list[dict[str, Any]], split: Split, network: Network, config: Config
) -> None:
    """Scores the chosen layer of every method on evenly spaced images of a split."""
    shown = [r for r in rows if r['split'] == split.name and r.get('chosen', True)]
    keys = [(r['method'], r['layer']) for r in shown]
    read = np.flatnonzero(split.status == DONE)
    images = evenly_spaced(read, config.evaluate.faithfulness)
    count = len(images)
    if not count:
        return
    values: dict[Key, list[dict[str, np.ndarray]]] = {key: [] for key in keys}
    size = config.network.input_size or network.input_size
    batch_size = min(config.localize.batch_size, count)
    bar = tqdm(total=count, desc=f'faithfulness {split.name}', unit='image', disable=None)
    with bar:
        for batch in evaluation_batches(split.source, size, batch_size, images.tolist()):
            index = np.maximum(batch.index, 0)  # padding is scored with the first image's maps
            maps = {key: split.rectified(key, index) for key in keys}
            scores = faithfulness(network, batch.images, maps, split.classes[index, 0])
            for key, of_key in jax.device_get(scores).items():
                values[key].append({name: v[batch.valid] for name, v in of_key.items()})
            bar.update(int(batch.valid.sum()))
    for row, key in zip(shown, keys, strict=True):
        columns = {name: [v[name] for v in values[key]] for name in values[key][0]}
        row |= summarize({name: np.concatenate(parts) for name, parts in columns.items()})
        row['faithfulness_images'] = count


def _classification(split: Split) -> dict[str, float]:
    read = np.flatnonzero(split.status == DONE)
    labels = [split.source[int(i)].labels for i in read]
    if not labels or not all(labels):
        return {}
    right = split.top[read] == np.array([first for first, *_ in labels])[:, None]
    return {'top1': 100.0 * float(right[:, 0].mean()), 'top5': 100.0 * float(right.any(1).mean())}


def _write_boxes(split: Split, thresholds: Mapping[Key, float], setting, path: Path) -> None:
    scores = split.store.fact('class_scores')
    rows = (
        (record.image_id, *key, int(label), f'{score:.6f}', f'{thresholds[key]:g}', *box)
        for key in split.store.arrays
        for i, record, maps in split.maps(key)
        for label, score, raw in zip(split.classes[i], scores[i], maps, strict=True)
        for box in [_box(split, key, raw, record, thresholds[key], setting)]
    )
    write_csv(path, (*_BOX_COLUMNS, 'x0', 'y0', 'x1', 'y1'), rows)


def _box(split: Split, key: Key, raw, record: Record, threshold: float, setting) -> list[int]:
    """The largest contour's box in pixels of the stored image, by way of the scoring canvas."""
    boxes = threshold_boxes(canvas_scores(split.store, key, raw, setting), [threshold])[0]
    canvas = (setting.size, setting.size)
    return rescale_boxes(boxes[:1], canvas, stored_size(record))[0].tolist()

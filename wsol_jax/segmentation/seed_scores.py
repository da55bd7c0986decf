"""Scores of seeds of stored maps and of predicted label maps; in processes that need no JAX."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsol_jax.data import Record, stored_size
from wsol_jax.data.label_maps import read_label_map, true_label_map
from wsol_jax.data.records import Pixels
from wsol_jax.evaluation.split import Results, StoredSplit
from wsol_jax.maps import NO_CLASS, Key
from wsol_jax.maps.store import path_of
from wsol_jax.segmentation.label_maps import write_label_map
from wsol_jax.segmentation.score import SeedCurves, confusion, seed_curves
from wsol_jax.segmentation.seeds import seed_label_map, seed_probabilities

if TYPE_CHECKING:  # counting processes start without what only names types
    from wsol_jax.config import EvaluateConfig
    from wsol_jax.evaluation.split import ImageMaps

LABEL_MAPS = 'label_maps'  # of seeds in the workdir, of predictions in the folder of their store


@dataclass(frozen=True)
class Predictions(Results):
    """Some images whose label maps were predicted.

    Attributes:
        folder: of the store, see `predicted_file`.
    """

    folder: Path


class PredictedSplit(StoredSplit):
    """A split with the label maps that were predicted of its images."""

    def parts(self, share: slice = slice(None)) -> Iterator[Predictions]:
        """Some images at a time, with the folder of their label maps."""
        for part in super().parts(share):
            yield Predictions(part.records, part.columns, self.store.folder)


def predicted_file(folder: Path, record: Record) -> Path:
    """Where the predicted label map of an image lies, in the folder of its store."""
    return folder / LABEL_MAPS / f'{record.image_id}.png'


def score_predicted(
    part: Predictions, count: int, setting: 'EvaluateConfig', chosen: None
) -> np.ndarray:
    """Int64 [count, count], as from `confusion`, of some images.

    Args:
        part: images of a `PredictedSplit`; those without a true label map do not count.
        count: how many classes there are, the background among them.
        setting: of the evaluation; of no use here.
        chosen: likewise.

    Raises:
        DataError: a label map cannot be read, or does not fit its image.
    """
    del setting, chosen
    return total_confusion(part.records, partial(predicted_file, part.folder), count)


def total_confusion(
    records: Iterable[Record],
    file_of: Callable[[Record], Path],
    count: int,
    read: Callable[[Path], Pixels] = read_label_map,
) -> np.ndarray:
    """Int64 [count, count], as from `confusion`, of all images whose true label map is known.

    Args:
        records: of the images.
        file_of: where the label map of an image lies that is scored.
        count: how many classes there are, the background among them.
        read: its file -> the label map.

    Raises:
        DataError: a label map cannot be read, or does not fit its image.
    """
    total = np.zeros((count, count), np.int64)
    for record in filter(has_truth, records):
        file = file_of(record)
        truth, names = true_label_map(record, count - 1), (str(file), record.image_id)
        total += confusion(read(file), truth, count, names=names)
    return total


def score_seeds(
    part: 'ImageMaps', count: int, setting: 'EvaluateConfig', chosen: Mapping[Key, float] | None
) -> dict[Key, SeedCurves]:
    """What the maps of some images make of their pixels at every background threshold.

    Args:
        part: images with their maps; those without a true label map do not count.
        count: how many classes there are, the background among them.
        setting: of the evaluation.
        chosen: thresholds; of no use here.

    Raises:
        DataError: a true label map cannot be read, or does not fit its image.
    """
    del chosen
    thresholds = np.arange(0, 1, setting.threshold_step)
    nothing = np.zeros(0, np.int64)
    found = {key: [SeedCurves(thresholds, count, nothing, nothing)] for key in part.maps}
    for i, record in enumerate(part.records):
        if not has_truth(record):
            continue
        truth = true_label_map(record, count - 1)
        for key, maps in part.maps.items():
            seeds = image_seeds(maps[i], part.classes[i], record)
            found[key].append(seed_curves(*seeds, truth, thresholds, count))
    return {key: SeedCurves.joined(curves) for key, curves in found.items()}


def joined_curves(parts: Iterable[Mapping[Key, SeedCurves]]) -> dict[Key, SeedCurves]:
    """Of all images of some parts, at least one."""
    known = list(parts)
    return {key: SeedCurves.joined(part[key] for part in known) for key in known[0]}


def write_seeds(part: 'ImageMaps', folder: Path, thresholds: Mapping[Key, float]) -> int:
    """Writes the label maps of some images, each `folder/<method>/<layer>/<image_id>.png`.

    Args:
        part: images with their maps.
        folder: of all splits, so that train and val can be learnt from together.
        thresholds: of the background, for every (method, layer).

    Returns:
        How many images they are.

    Raises:
        OSError: one cannot be written.
    """
    for i, record in enumerate(part.records):
        for key, threshold in thresholds.items():
            seeds = image_seeds(part.maps[key][i], part.classes[i], record)
            label_map = seed_label_map(*seeds, threshold)
            write_label_map(seed_file(folder, key, record), label_map)
    return len(part.records)


def seed_file(folder: Path, key: Key, record: Record) -> Path:
    """Where the label map of an image lies that a (method, layer) made."""
    return folder / path_of(key) / f'{record.image_id}.png'


def has_truth(record: Record) -> bool:
    """Whether the true label map of an image is known; some are drawn when they are asked for."""
    return 'segmentation' in record.extra


def image_seeds(
    maps: np.ndarray, classes: np.ndarray, record: Record
) -> tuple[np.ndarray, list[int]]:
    """What a store has of an image, as `seed_label_map` takes it.

    Args:
        maps: [L, h, w], with nothing in the places that are left over.
        classes: [L], -1 in these.
        record: of the image.

    Returns:
        Probabilities float32 [K, H, W] of its K classes, see `seed_probabilities`, and these.
    """
    own = classes != NO_CLASS
    return seed_probabilities(maps[own], stored_size(record)), classes[own].tolist()

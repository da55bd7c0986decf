"""The page of somebody's label maps: what `python -m wsol_jax.evaluation --report` writes."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from wsol_jax.config import ReportConfig
from wsol_jax.data import DataError, Record, evenly_spaced, stored_size
from wsol_jax.data.files import find_images, printable
from wsol_jax.data.label_maps import IGNORED, read_label_map
from wsol_jax.report.segmentation import SegmentedImage, segmented_image, write_segmentation_page
from wsol_jax.segmentation.folders import Pair, label_map_pairs


def write_label_map_page(
    file: Path,
    metrics: dict[str, Any],
    segmentation: Path,
    ground_truth: Path,
    listed: Path | None = None,
    ignore: int = IGNORED,
    images: Path | None = None,
) -> None:
    """Writes the page of label maps that were scored.

    Args:
        file: the page.
        metrics: what `evaluate_segmentation` returned of these folders.
        segmentation: folder of the predicted label maps.
        ground_truth: folder of the true ones.
        listed: file of the names that were scored; None for all.
        ignore: the index of true pixels that do not count.
        images: folder of the images, by the names of the label maps; None to show these alone.

    Raises:
        DataError: an image is missing, cannot be read, or is not of the size of its label map.
    """
    name, truth = segmentation.resolve().name, ground_truth.resolve().name
    facts = {'images': str(metrics['images']), 'label maps': name, 'ground truth': truth}
    facts |= {'list': listed.name} if listed else {}
    pairs = label_map_pairs(segmentation, ground_truth, listed)
    shown = evenly_spaced(np.arange(len(pairs)), ReportConfig().gallery)
    names = [row['name'] for row in metrics['by_class']]
    write_segmentation_page(
        file,
        f'{name} on {truth}',
        facts | {'made': time.strftime('%Y-%m-%d')},
        np.array(metrics['confusion']),
        names,
        list(_gallery([pairs[i] for i in shown], images, len(names), ignore)),
    )


def _gallery(
    pairs: list[Pair], images: Path | None, count: int, ignore: int
) -> Iterator[SegmentedImage]:
    found = _by_name(images) if images else {}
    for pair in pairs:
        predicted, truth = read_label_map(pair.predicted), read_label_map(pair.truth)
        truth[truth == ignore] = IGNORED
        record = _record(pair, images, found, truth) if images else None
        yield segmented_image(pair.name, record, predicted, truth, count)


def _by_name(images: Path) -> dict[str, Path]:
    """Images by what their label maps are called."""
    found = find_images(images).images.items()
    return {str(PurePosixPath(name).with_suffix('')): file for name, file in found}


def _record(pair: Pair, images: Path, found: Mapping[str, Path], truth: np.ndarray) -> Record:
    if pair.name not in found:
        raise DataError(f'{printable(f"{images}/{pair.name}")}: no such image, of any ending')
    record = Record(pair.name, found[pair.name], (), None)
    (width, height), (high, wide) = stored_size(record), truth.shape
    if (width, height) != (wide, high):
        where = printable(str(record.image))
        raise DataError(f'{where}: is {width}x{height}, its label map {wide}x{high}')
    return record

"""Scores of anybody's label maps on disk, by the definition of PASCAL VOC.

Images are scored in processes of their own; their confusion matrices add.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wsol_jax.data.files import find_images, printable
from wsol_jax.data.label_maps import IGNORED, read_label_map
from wsol_jax.data.metadata import class_names, read_list
from wsol_jax.data.records import DataError
from wsol_jax.evaluation.processes import in_parts
from wsol_jax.names import shown
from wsol_jax.segmentation.score import confusion, metrics_of
from wsol_jax.settings import SETTINGS

_ANY = 255  # classes that there may be where nothing names them: every index but `IGNORED`


@dataclass(frozen=True)
class Pair:
    """One image: its name and the files of its two label maps."""

    name: str
    predicted: Path
    truth: Path


def evaluate_segmentation(
    segmentation: str | Path,
    ground_truth: str | Path,
    classes: str | Path | None = None,
    listed: str | Path | None = None,
    ignore: int = IGNORED,
    processes: int = 1,
) -> dict[str, Any]:
    """Scores the label maps of a folder.

    Args:
        segmentation: folder of the predicted label maps, `<name>.png`: palette or grey, 8 bit.
        ground_truth: folder of the true ones, of the same names and sizes.
        classes: file of the names of the classes by line, the background first; without, classes
            are numbered as far as an index occurs.
        listed: file of the names to score by line, such as ImageSets/Segmentation/val.txt of VOC;
            without, both folders must have the same names.
        ignore: the index of true pixels that do not count.
        processes: how many to count with.

    Returns:
        What `metrics_of` says.

    Raises:
        DataError: a file is missing or damaged, two of an image differ in size, an index is no
            class, or every pixel is ignored.
        ValueError: `ignore` or the number of processes is out of range.
    """
    if fault := SETTINGS['evaluate.processes'].fault(processes):
        raise ValueError(f'processes must {fault}, got {shown(processes)}')
    if not 0 <= ignore <= 255:
        raise ValueError(f'ignore must lie in 0..255, got {shown(ignore)}')
    names = read_class_names(classes) if classes else ()
    pairs = label_map_pairs(segmentation, ground_truth, listed)
    counted = partial(_confusion, count=len(names) or _ANY, ignored=ignore)
    matrix = sum(in_parts(counted, pairs, processes), start=np.zeros((), np.int64))
    if not matrix.any():
        raise DataError(f'{ground_truth}: no pixel to score, all are {ignore}, which is ignored')
    count = len(names) or 1 + int(np.flatnonzero(matrix.any(axis=0) | matrix.any(axis=1))[-1])
    names = names or tuple(map(str, range(count)))
    return {'images': len(pairs), **metrics_of(matrix[:count, :count], names)}


def read_class_names(file: str | Path) -> tuple[str, ...]:
    """The names of the classes by line, the background first.

    Raises:
        DataError: the file is missing or empty, or names more than a label map can hold.
    """
    names, _ = class_names(Path(file), False)
    if not names:
        raise DataError(f'{file}: no such file')
    if len(names) > _ANY:
        raise DataError(f'{file}: names {len(names)} classes, a label map has at most {_ANY}')
    return names


def label_map_pairs(
    segmentation: str | Path, ground_truth: str | Path, listed: str | Path | None = None
) -> list[Pair]:
    """What there is to score, in the order of the list, or else of the names.

    Args:
        segmentation: folder of the predicted label maps.
        ground_truth: folder of the true ones.
        listed: file of the names to score; None for those in both folders, which are the same.

    Raises:
        DataError: a file or folder is missing, or a line of the list is wrong.
    """
    folders = Path(segmentation), Path(ground_truth)
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f'{folder}: no such folder of label maps')
    names = read_list(Path(listed)) if listed else _names(*folders)
    files = [[folder / f'{name}.png' for name in names] for folder in folders]
    for of_folder in files:
        missing = [file for file in of_folder if not file.is_file()]
        if missing:
            many = f'{len(missing)} of {len(names)} are missing'
            hint = '' if listed else '; --list FILE scores some alone'
            raise DataError(f'{printable(str(missing[0]))}: no such label map ({many}{hint})')
    return [Pair(*one) for one in zip(names, *files, strict=True)]


def _names(segmentation: Path, ground_truth: Path) -> list[str]:
    """The names of all label maps of both folders."""
    found = (name for folder in (ground_truth, segmentation) for name in find_images(folder).images)
    names = dict.fromkeys(name.removesuffix('.png') for name in found if name.endswith('.png'))
    if not names:
        raise DataError(f'{ground_truth}: has no label map, which are .png')
    return list(names)


def _confusion(pairs: Sequence[Pair], count: int, ignored: int) -> np.ndarray:
    """Int64 [count, count] of some images."""
    total = np.zeros((count, count), np.int64)
    for pair in pairs:
        names = printable(str(pair.predicted)), printable(str(pair.truth))
        predicted, truth = read_label_map(pair.predicted), read_label_map(pair.truth)
        total += confusion(predicted, truth, count, ignored=ignored, names=names)
    return total

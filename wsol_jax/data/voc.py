"""The layout of PASCAL VOC's segmentation: images of several classes, with label maps."""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import numpy as np

from wsol_jax.data.decode import IGNORED, read_label_map
from wsol_jax.data.files import open_file, printable, reason
from wsol_jax.data.label_maps import check_label_map
from wsol_jax.data.metadata import class_names, read_lines, read_list
from wsol_jax.data.records import (
    ADVICE,
    MAX_PIXELS,
    DataError,
    Decoding,
    ListedRecords,
    Record,
    is_displayed,
)
from wsol_jax.names import shown, unknown_name

THREADS = 8
IMAGES = 'JPEGImages'
LABEL_MAPS = ('SegmentationClassAug', 'SegmentationClass')
BACKGROUND = 'background'
MOST_CLASSES = IGNORED - 1  # whose values a label map has room for
# VOC's train with the label maps of SBD, whose lists go by both names.
_SAME = {'train_aug': ('train_aug', 'trainaug'), 'trainaug': ('trainaug', 'train_aug')}
_PATHS = re.compile(r'/|.*\.jpg\s')  # how a line begins that has paths, as some lists do
MAX_XML = 1_000_000  # bytes: VOC's have a few thousand
VOC_CLASSES = (
    *('aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow'),
    *('diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa'),
    *('train', 'tvmonitor'),
)


class Voc(ListedRecords):
    """A split of a folder in the layout of VOC2012.

    `ImageSets/Segmentation/<split>.txt` lists image ids, `JPEGImages/<id>.jpg` are the images.
    The label map of an image, `extra['segmentation']`, is its PNG in SegmentationClassAug/ or else
    in SegmentationClass/: 0 background, k + 1 for class k, 255 ignored. Its labels are the classes
    of all objects in `Annotations/<id>.xml`; without that file, those of its label map; without
    both, as in test, it has none. Whether an image exists is found when it is decoded.

    Args:
        root: VOC2012, or a folder that holds it or VOCdevkit. Links in it may not lead out of it,
            but for the folders of images, label maps and annotations themselves. The classes are
            VOC's, or with `class_names.txt` those that it names, one a line, after `background`.
        split: such as 'train' or 'val'; 'train_aug' may also be listed in trainaug.txt.
        orientation: the frame of the label maps: 'displayed' or 'stored', which 'auto' is; see
            `is_displayed`.
        max_pixels: see `Decoding`.
        faults: gets what is wrong with the labels of single images, which then have none; by
            default it is raised.

    Raises:
        DataError: a file is missing, or malformed, or has a class that there is not.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        orientation: str = 'auto',
        max_pixels: int = MAX_PIXELS,
        faults: list[str] | None = None,
    ) -> None:
        folder = voc_folder(Path(root))
        ids = split_ids(folder, split)
        self.class_names = _classes(folder / 'class_names.txt')
        parts = (folder, *(folder / name for name in (IMAGES, *LABEL_MAPS, 'Annotations')))
        roots = tuple(dict.fromkeys(part.resolve() for part in parts))
        decoding = Decoding(is_displayed(orientation, 'stored'), max_pixels, roots)
        with ThreadPoolExecutor(THREADS) as pool:
            read = list(pool.map(_Reader(folder, self.class_names, decoding), ids))
        self._records = [record for record, _ in read]
        report([fault for _, fault in read if fault], faults)


def report(found: Sequence[str], faults: list[str] | None) -> None:
    """Passes on what is wrong with single images, or raises it where nothing takes it.

    Raises:
        DataError: something is, and `faults` is None.
    """
    if faults is not None:
        faults += found
    elif found:
        more = f' ({len(found)} such faults; {ADVICE})' if len(found) > 1 else ''
        raise DataError(f'{found[0]}{more}')


def voc_folder(root: Path) -> Path:
    """The folder with ImageSets/Segmentation: `root`, or VOC2012 in it.

    Raises:
        DataError: there is none.
    """
    if found := is_voc(root):
        return found
    raise DataError(f'{root}: no folder ImageSets/Segmentation in it, as VOC2012 has')


def is_voc(root: Path) -> Path | None:
    """The folder with ImageSets/Segmentation, if there is one."""
    places = (root, root / 'VOC2012', root / 'VOCdevkit' / 'VOC2012')
    return next((p for p in places if (p / 'ImageSets' / 'Segmentation').is_dir()), None)


def voc_splits(folder: Path) -> list[str]:
    """The splits of a folder in the layout of VOC2012, sorted."""
    return sorted(file.stem for file in (folder / 'ImageSets/Segmentation').glob('[!.]*.txt'))


def split_ids(folder: Path, split: str) -> list[str]:
    """The images of a split, in order.

    Args:
        folder: with ImageSets/Segmentation.
        split: such as 'train'.

    Raises:
        DataError: there is no such split, or its file is malformed.
    """
    splits = folder / 'ImageSets' / 'Segmentation'
    named = (splits / f'{name}.txt' for name in _SAME.get(split, (split,)))
    file = next((f for f in named if f.stem in voc_splits(folder)), splits / f'{split}.txt')
    if file.stem not in voc_splits(folder):
        found = ', '.join(voc_splits(folder)) or 'none'
        raise DataError(f'{file}: no split {split!r}; available: {found}')
    for where, line in read_lines(file):
        if _PATHS.match(line):
            right = PurePosixPath(line.split()[0]).stem
            raise DataError(f'{where}: expected ids alone, such as {right!r}, got {shown(line)}')
    return read_list(file)


def _classes(file: Path) -> tuple[str, ...]:
    names, _ = class_names(file, class_index=False)
    if not names:
        return VOC_CLASSES
    if names[0] != BACKGROUND:
        raise DataError(f'{file}:1: expected {BACKGROUND!r}, got {shown(names[0])}')
    if not 1 < len(names) <= MOST_CLASSES + 1:
        raise DataError(
            f'{file}: names {len(names) - 1} classes after the background; '
            f'label maps have room for 1..{MOST_CLASSES}'
        )
    return names[1:]


@dataclass(frozen=True)
class _Reader:
    """Makes the record of an image, and says what is wrong with its labels; '' if nothing is."""

    folder: Path
    class_names: tuple[str, ...]
    decoding: Decoding

    def __call__(self, image_id: str) -> tuple[Record, str]:
        maps = (self.folder / name / f'{image_id}.png' for name in LABEL_MAPS)
        label_map = next((path for path in maps if os.path.lexists(path)), None)
        labels: tuple[int, ...] = ()
        fault = ''
        try:
            labels = self._labels(image_id, label_map)
        except DataError as error:
            fault = str(error)
        record = Record(
            image_id=image_id,
            image=self.folder / IMAGES / f'{image_id}.jpg',
            labels=labels,
            size=None,
            decoding=self.decoding,
            extra={} if label_map is None else {'segmentation': label_map},
        )
        return record, fault

    def _labels(self, image_id: str, label_map: Path | None) -> tuple[int, ...]:
        annotation = self.folder / 'Annotations' / f'{image_id}.xml'
        if os.path.lexists(annotation):
            return _annotated(annotation, self.class_names, self.decoding.roots)
        if label_map is None:
            return ()
        values = read_label_map(label_map, self.decoding)
        check_label_map(values, len(self.class_names) + 1, printable(str(label_map)), IGNORED)
        found = np.flatnonzero(np.bincount(values.ravel(), minlength=256)[1:IGNORED])
        return tuple(found.tolist())


def _annotated(file: Path, classes: Sequence[str], roots: Sequence[Path]) -> tuple[int, ...]:
    """The classes of all objects of an annotation, parts of them left out."""
    where = printable(str(file))
    try:
        with open_file(file, roots) as opened:
            content = opened.read(MAX_XML + 1)
        if len(content) > MAX_XML:
            raise ValueError(f'larger than {MAX_XML} bytes; an annotation has a few thousand')
        text = content.decode('utf-8-sig')
        if '<!DOCTYPE' in text:  # of no use, and entities may grow without end
            raise ValueError('has a DOCTYPE; an annotation has none')
        objects = ElementTree.fromstring(text).findall('object')
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise DataError(f'{where}: {reason(error)}') from None
    names = {(found.findtext('name') or '').strip() for found in objects}
    if unknown := sorted(names.difference(classes)):
        raise DataError(f'{where}: {unknown_name("class", unknown[0], classes)}')
    return tuple(sorted(map(list(classes).index, names)))

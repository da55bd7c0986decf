"""Finds what is wrong with a data set: before training, cheaply, or on disk, file by file."""

import hashlib
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import tensorstore
from absl import logging
from tqdm import tqdm

from wsol_jax.data.class_folder import ClassFolder, split_folders
from wsol_jax.data.decode import LARGE, Described, decode_image, describe_image, stored_mask
from wsol_jax.data.files import AGAIN, UNUSABLE, find_images, printable, read_file
from wsol_jax.data.folders import ImageFolder, WsolFolder, split_names
from wsol_jax.data.records import DataError, Record, Source

THREADS = 8
SHOWN = 10

UNREAD = (
    'metadata or folders that cannot be read; correct the first fault of each split, check again'
)
MISSING = 'image files that are not there; copy them, or take their lines out of the metadata'
BROKEN = 'images that do not decode; replace them, or take them out of the data set'
DAMAGED = 'JPEG files with damage inside, decoded all the same; look at them'
SIZE = 'sizes that differ from image_sizes.txt; correct it, boxes are scaled by it'
BOX = 'boxes that reach beyond their image; correct localization.txt'
MASK = 'masks that cannot be read; replace them, or correct localization.txt'
CLASS = 'classes without training images; add images, or number the classes without gaps'
SHARED = 'images in two splits; take them out of one'
SAME = 'one image under two names in two splits; take one out'
UNLISTED = 'image files that no split lists'
TURNED = 'images with an EXIF orientation, which is applied (config.data.orientation)'
UNTURNED = 'images with an EXIF orientation, which is not applied (config.data.orientation)'
DEEP = 'images of more than 8 bits, which are scaled to 8'
TRANSPARENT = 'images with transparency, which are put on white'
MASK_SIZE = 'masks of another size than their image, which are stretched over it'
OBJECTLESS = 'images without an object in localization.txt; they count for classification alone'
SEVERAL = 'images with several labels; training a classifier takes one each, or the loss sigmoid'
_ONE_LABEL = "training a classifier takes one label an image, unless config.train.loss='sigmoid'"

_Splits = Mapping[str, Source]


class _Finding(NamedTuple):
    kind: str
    line: str
    harmful: bool = True


@dataclass(frozen=True)
class Report:
    """What `check_folder` found.

    Attributes:
        summary: a line for each split that can be read.
        problems: lines by kind; the kind says what to do about it.
        notes: likewise, what is worth knowing but harms nothing.
    """

    summary: tuple[str, ...]
    problems: Mapping[str, Sequence[str]]
    notes: Mapping[str, Sequence[str]]

    def text(self) -> str:
        """The report for a terminal, at most `SHOWN` lines of a kind."""
        count = sum(map(len, self.problems.values()))
        lines = [*map(printable, self.summary)]
        for word, found in (('problem', self.problems), ('note', self.notes)):
            for kind, items in found.items():
                lines.append(f'{word}: {kind}')
                lines += [f'  {printable(item)}' for item in items[:SHOWN]]
                if len(items) > SHOWN:
                    lines.append(f'  ... and {len(items) - SHOWN} more')
        return '\n'.join([*lines, f'{count or "no"} problem{"s" * (count != 1)} found'])


def check_training(train: Source, val: Source, several: bool = False) -> None:
    """Refuses splits that cannot be trained on honestly, from their records alone.

    Looks at folders only: examples of TFDS would have to be read from disk, shapes to be drawn. It
    compares the ids of images, which can be equal in `WsolFolder` alone: in class folders they
    begin with the folder of their split, or val was drawn. One image under two names is found by
    `python -m wsol_jax.data check` only, which compares contents.

    Args:
        train: labels 0..num_classes-1, as without `class_index`.
        val: of the same data set.
        several: whether an image may have several labels.

    Raises:
        DataError: a class has no training image, an image has several labels or its id is in both
            splits, or none of the image files of a split is there; if some are not, that is told.
    """
    folders = WsolFolder | ClassFolder
    if not isinstance(train, folders) or not isinstance(val, folders):
        return
    splits = {'train': train, 'val': val}
    if untrained := _untrained_classes(splits):
        raise DataError(untrained[0])
    found = _several_labels((name, r) for name in splits for r in _records(splits[name]))
    if found and not several:
        raise DataError(f'{found[0]} ({len(found)} such images); {_ONE_LABEL}')
    if shared := _shared_ids(splits):
        raise DataError(f'{shared[0]} ({len(shared)} such images); take them out of one split')
    for name, source in splits.items():
        _check_there(name, source)


def _check_there(split: str, source: Source) -> None:
    """Tells before the first step of files that are not there; training passes them over."""
    files = [record.image for record in _records(source) if isinstance(record.image, Path)]
    missing = [file for file in files if not file.is_file()]
    if missing:
        what = f'{printable(str(missing[0]))}: no such file'
        count = f'{len(missing)} of the {len(files)} images of {split} are missing'
        if len(missing) == len(files):
            raise DataError(f'{what} ({count})')
        logging.warning('%s (%s, and passed over)', what, count)


def check_folder(root: str | Path, orientation: str = 'auto') -> Report:
    """Reads every file of a data set and lists all that is wrong with it.

    Args:
        root: a folder in the layout of wsolevaluation if it holds metadata/, else class folders, or
            a folder of images.
        orientation: as of the source, whose 'auto' is its own.

    Raises:
        DataError: there is no data set.
    """
    root = Path(root)
    splits, unread = _open_splits(root, orientation)
    records = [(split, record) for split, source in splits.items() for record in _records(source)]
    contents, found = _examine_all(records)
    findings = [_Finding(UNREAD, line) for line in unread] + found
    if 'train' in splits:
        findings += [_Finding(CLASS, line) for line in _untrained_classes(splits)]
    findings += [_Finding(SHARED, line) for line in _shared_ids(splits)]
    findings += [_Finding(SAME, line) for line in _same_contents(contents)]
    findings += [_Finding(SEVERAL, line, False) for line in _several_labels(records)]
    findings += [_Finding(OBJECTLESS, line, False) for line in _objectless(splits)]
    findings += _other_files(root, records, whole=not unread)
    summary = tuple(_summary(split, source) for split, source in splits.items())
    problems = _by_kind(found for found in findings if found.harmful)
    return Report(summary, problems, _by_kind(found for found in findings if not found.harmful))


def _open_splits(root: Path, orientation: str) -> tuple[dict[str, Source], list[str]]:
    """The splits that can be read, and why the others cannot."""
    metadata = root / 'metadata'
    kind: type[WsolFolder] | type[ClassFolder]
    if metadata.is_dir():
        kind, names = WsolFolder, split_names(root)
    elif _holds_images(root):
        return {'images': ImageFolder(root, orientation=orientation)}, []
    else:
        kind, names = ClassFolder, list(split_folders(root))
    splits: dict[str, Source] = {}
    unread = [] if names else [f'{metadata}: holds no split']
    for name in names:
        try:
            splits[name] = kind(root, name, orientation=orientation)
        except DataError as error:
            unread.append(str(error))
    return splits, list(dict.fromkeys(unread))


def _holds_images(root: Path) -> bool:
    """Whether images lie in the folder itself, and no class folder beside them."""
    if not root.is_dir() or any(path.is_dir() for path in root.glob('[!.]*')):
        return False
    return bool(find_images(root).images)


def _records(source: Source) -> list[Record]:
    return [source[index] for index in range(len(source))]


def _examine_all(
    records: Sequence[tuple[str, Record]],
) -> tuple[dict[bytes, list[tuple[str, str]]], list[_Finding]]:
    """(split, image id) of every image by content, and what is wrong with single images."""
    contents = defaultdict(list)
    findings = []
    with ThreadPool(THREADS) as pool:
        results = pool.imap(_examine, (record for _, record in records))
        bar = tqdm(results, total=len(records), desc='check', unit='image', disable=None)
        for (split, record), (digest, found) in zip(records, bar, strict=True):
            findings += found
            if digest:
                contents[digest].append((split, record.image_id))
    return contents, findings


def _examine(record: Record) -> tuple[bytes, list[_Finding]]:
    """SHA-256 of an image file, b'' if it does not decode, and what is to be said of it."""
    assert isinstance(record.image, Path)
    try:
        described = describe_image(record)
        decode_image(replace(record, size=None), side=1)
        content = read_file(record.image)
    except (DataError, OSError) as error:
        kind = BROKEN if os.path.lexists(record.image) else MISSING
        return b'', [*_bad_masks(record, None), _Finding(kind, str(error))]
    notes = [
        _Finding(kind, f'{record.image_id!r}{more}', False)
        for kind, holds, more in _remarkable(record, described)
        if holds
    ]
    if damage := _damage(described, content):
        notes.append(_Finding(DAMAGED, f'{record.image}: {damage}'))
    digest = hashlib.sha256(content).digest()
    return digest, [*_bad_masks(record, described.size), *_wrong_size(record, described), *notes]


def _damage(described: Described, content: bytes) -> str:
    """What libjpeg warns of; Pillow does not pass it on, tensorstore does."""
    if described.format != 'JPEG' or math.prod(described.size) > LARGE:
        return ''
    context = tensorstore.Context()
    store = {'driver': 'memory', 'path': 'image'}
    tensorstore.KvStore.open({'driver': 'memory'}, context=context).result()['image'] = content
    try:
        spec = {'driver': 'jpeg', 'kvstore': store}
        tensorstore.open(spec, context=context, read=True).result().read().result()
    except ValueError as error:
        found = re.search(r'Corrupt JPEG data: ([^\[]*)', str(error))
        return found[1].strip() if found else ''
    return ''


def _remarkable(record: Record, described: Described) -> list[tuple[str, bool, str]]:
    turned = described.orientation > 1
    return [
        (
            TURNED if record.decoding.displayed else UNTURNED,
            turned,
            f': orientation {described.orientation}',
        ),
        (DEEP, described.deep, ''),
        (TRANSPARENT, described.transparent, ''),
    ]


def _wrong_size(record: Record, described: Described) -> list[_Finding]:
    width, height = described.size
    findings = []
    if record.size not in (None, described.size):
        frame = 'displayed' if record.decoding.displayed else 'stored'
        listed = 'x'.join(map(str, record.size or ()))
        line = f'{record.image_id!r}: {frame} as {width}x{height}, image_sizes.txt says {listed}'
        if described.orientation >= 5 and record.size == (height, width):
            other = 'stored' if record.decoding.displayed else 'displayed'
            line += f', as with config.data.orientation={other!r}'
        findings.append(_Finding(SIZE, line))
    for box in record.boxes:
        if box[2] > width or box[3] > height:
            line = f'{record.image_id!r}: box {box}, image of {width}x{height}'
            findings.append(_Finding(BOX, line))
    return findings


def _bad_masks(record: Record, size: tuple[int, int] | None) -> list[_Finding]:
    findings = []
    for png in chain.from_iterable(record.masks):
        if png is None:
            continue
        try:
            height, width = stored_mask(replace(record, size=size), png).shape
        except DataError as error:
            findings.append(_Finding(MASK, str(error)))
            continue
        if size not in (None, (width, height)):
            line = f'{png!s}: {width}x{height}, image of {"x".join(map(str, size or ()))}'
            findings.append(_Finding(MASK_SIZE, line, False))
    return findings


def _untrained_classes(splits: _Splits) -> list[str]:
    """What to say of each class of any split that is the label of no image of train."""
    trained = {label for record in _records(splits['train']) for label in record.labels}
    named = max(splits.values(), key=lambda source: source.num_classes)
    return [
        f'class {label} {named.class_name(label)!r} has no training image; '
        'labels must be 0..n-1 without gaps'
        if named.class_name(label) != str(label)
        else f'no training image has label {label}; labels must be 0..n-1 without gaps'
        for label in range(named.num_classes)
        if label not in trained
    ]


def _shared_ids(splits: _Splits) -> list[str]:
    owners: dict[str, list[str]] = defaultdict(list)
    for split, source in splits.items():
        for record in _records(source):
            owners[record.image_id].append(split)
    return [
        f'{name!r} is in both {" and ".join(found)}'
        for name, found in owners.items()
        if len(found) > 1
    ]


def _same_contents(contents: Mapping[bytes, Sequence[tuple[str, str]]]) -> list[str]:
    return [
        ', '.join(f'{name!r} in {split}' for split, name in found)
        for found in contents.values()
        if len({split for split, _ in found}) > 1 and len({name for _, name in found}) > 1
    ]


def _several_labels(records: Iterable[tuple[str, Record]]) -> list[str]:
    return [
        f'{record.image_id!r} in {split}: {", ".join(map(str, record.labels))}'
        for split, record in records
        if len(record.labels) > 1
    ]


def _objectless(splits: _Splits) -> list[str]:
    lines = []
    for split, source in splits.items():
        records = _records(source)
        if any(record.boxes or record.masks for record in records):
            none = (record for record in records if not (record.boxes or record.masks))
            lines += [f'{record.image_id!r} in {split}' for record in none]
    return lines


def _other_files(
    root: Path, records: Sequence[tuple[str, Record]], whole: bool
) -> Iterator[_Finding]:
    """What lies where the images are and is none, or is an image that no split lists."""
    found = find_images(root / 'images' if (root / 'metadata').is_dir() else root)
    listed = {record.image for _, record in records if isinstance(record.image, Path)}
    folders = {folder for image in listed for folder in image.parents}
    for kind, path in found.passed:
        if path not in listed and not (kind == AGAIN and path in folders):
            yield _Finding(kind, str(path), harmful=kind in UNUSABLE)
    if whole:
        unlisted = (path for path in found.images.values() if path not in listed)
        yield from (_Finding(UNLISTED, str(path), False) for path in unlisted)


def _summary(split: str, source: Source) -> str:
    records = _records(source)
    counts = {
        'images': len(records),
        'classes': len({label for record in records for label in record.labels}),
        'labels': sum(len(record.labels) for record in records),
        'boxes': sum(len(record.boxes) for record in records),
        'masks': sum(len(record.masks) for record in records),
    }
    return f'{split}: ' + ', '.join(f'{count} {name}' for name, count in counts.items() if count)


def _by_kind(findings: Iterable[_Finding]) -> dict[str, list[str]]:
    by_kind = defaultdict(list)
    for finding in findings:
        by_kind[finding.kind].append(finding.line)
    return dict(by_kind)

"""Finds what is wrong with a data set: before training, cheaply, or on disk, file by file."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

from absl import logging
from tqdm import tqdm

from wsol_jax.data.check_frames import camera_records, frame_findings
from wsol_jax.data.check_images import Finding, examine
from wsol_jax.data.check_segmentation import class_counts, purpose, segmentation_findings
from wsol_jax.data.class_folder import ClassFolder, split_folders
from wsol_jax.data.coco import Coco, coco_splits
from wsol_jax.data.coco_expressions import ANNOTATIONS, CocoExpressions
from wsol_jax.data.files import AGAIN, UNUSABLE, find_images, printable
from wsol_jax.data.folders import ImageFolder, WsolFolder, split_names
from wsol_jax.data.frames import frame_of
from wsol_jax.data.kitti import Kitti, kitti_splits
from wsol_jax.data.nuscenes import Nuscenes, nuscenes_splits
from wsol_jax.data.records import DataError, Listed, Record, Source
from wsol_jax.data.refcoco import RefCoco, refcoco_splits
from wsol_jax.data.voc import IMAGES, Voc, is_voc, voc_splits

THREADS = 8
SHOWN = 10

UNREAD = (
    'metadata or folders that cannot be read; correct the first fault of each split, check again'
)
CLASS = 'classes without training images; add images, or number the classes without gaps'
SHARED = 'images in two splits; take them out of one'
SAME = 'one image under two names in two splits; take one out'
UNLISTED = 'image files that no split lists'
OBJECTLESS = 'images without an object in localization.txt; they count for classification alone'
SEVERAL = 'images with several labels; training a classifier takes one each, or the loss sigmoid'
_ONE_LABEL = "training a classifier takes one label an image, unless config.train.loss='sigmoid'"

_GAPS = 'labels must be 0..n-1 without gaps'
_OF_SEVERAL = Voc | Coco | RefCoco  # classes an image

_Splits = Mapping[str, Source]


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
            splits, or none of the image files of a split is there; if some are not, that is told,
            and so is a class without training images of VOC, COCO or RefCOCO, which list them.
    """
    folders = WsolFolder | ClassFolder | _OF_SEVERAL
    if not isinstance(train, folders) or not isinstance(val, folders):
        return
    splits = {'train': train, 'val': val}
    if untrained := _untrained_classes(splits):
        if not isinstance(train, _OF_SEVERAL):
            raise DataError(f'{untrained[0]}; {_GAPS}')
        logging.warning('%s (%d such classes)', untrained[0], len(untrained))
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
        root: a folder in the layout of wsolevaluation if it holds metadata/, of VOC, COCO,
            RefCOCO, KITTI or nuScenes if it holds their lists or sweeps, else class folders, or a
            folder of images. Boxes that expressions are made of are looked at beside VOC's lists.
        orientation: as of the source, whose 'auto' is its own.

    Raises:
        DataError: there is no data set.
    """
    root = Path(root)
    faults: list[str] = []
    splits, unread = _open_splits(root, orientation, faults)
    frames = any(isinstance(source, Kitti | Nuscenes) for source in splits.values())
    if frames:  # some build them anew whenever they are asked for
        splits = {name: Listed(source) for name, source in splits.items()}
    records = [
        (split, image)
        for split, source in splits.items()
        for record in _records(source)
        for image in camera_records(record)
    ]
    several = frames or any(isinstance(source, _OF_SEVERAL) for source in splits.values())
    alike = purpose if several else str
    contents, found = _examine_all(records, _classes_on_disk(splits))
    findings = [Finding(UNREAD, line) for line in unread] + found
    findings += [Finding(SHARED, line) for line in _shared_ids(splits, alike)]
    findings += [Finding(SAME, line) for line in _same_contents(contents, alike)]
    if frames:
        findings += frame_findings(splits, THREADS)
    elif several:
        findings += segmentation_findings(splits, faults, found)
    else:
        findings += _findings_of_labels(splits, records)
    findings += _other_files(_image_folders(root, splits), records, whole=not unread)
    summary = [_summary(split, source) for split, source in splits.items()]
    if several:
        summary += [class_counts(split, source) for split, source in splits.items()]
    problems = _by_kind(found for found in findings if found.harmful)
    notes = _by_kind(found for found in findings if not found.harmful)
    return Report(tuple(summary), problems, notes)


def _open_splits(
    root: Path, orientation: str, faults: list[str]
) -> tuple[dict[str, Source], list[str]]:
    """The splits that can be read, and why the others cannot; faults of single images apart."""
    metadata = root / 'metadata'
    kind: Callable[..., Source]
    if metadata.is_dir():
        kind, names = WsolFolder, split_names(root)
    elif folder := is_voc(root):
        kind, names = partial(Voc, faults=faults), voc_splits(folder)
        faults += _bad_expressions(root, names, orientation)
    elif names := kitti_splits(root):
        kind = Kitti
    elif names := nuscenes_splits(root):
        kind = Nuscenes
    elif names := coco_splits(root):
        kind = partial(Coco, faults=faults)
    elif names := refcoco_splits(root):
        kind = partial(RefCoco, faults=faults)
    elif _holds_images(root):
        return {'images': ImageFolder(root, orientation=orientation)}, []
    else:
        kind, names = ClassFolder, list(split_folders(root))
    splits: dict[str, Source] = {}
    unread = [] if names else [f'{root}: holds no split']
    for name in names:
        try:
            splits[name] = kind(root, name, orientation=orientation)
        except DataError as error:
            unread.append(str(error))
    return splits, list(dict.fromkeys(unread))


def _bad_expressions(root: Path, names: Sequence[str], orientation: str) -> Iterator[str]:
    """What is wrong with the annotations that expressions are made of, where there are any."""
    for name in names if os.path.lexists(root / ANNOTATIONS) else ():
        try:
            CocoExpressions(root, name, orientation)
        except DataError as error:
            yield str(error)


def _classes_on_disk(splits: _Splits) -> int:
    """How many classes the files of label maps are of; 0 where there are no such files."""
    return max((s.num_classes for s in splits.values() if isinstance(s, Voc)), default=0)


def _image_folders(root: Path, splits: _Splits) -> list[Path]:
    if folder := is_voc(root):
        return [folder / IMAGES]
    if any(isinstance(source, Coco) for source in splits.values()):
        return [root / split for split in splits]
    if kitti_splits(root):
        return [root / 'training' / 'image_2']
    if nuscenes_splits(root):
        return []  # most of its images are of no frame
    beside = (root / 'metadata').is_dir() or refcoco_splits(root)
    return [root / 'images' if beside else root]


def _holds_images(root: Path) -> bool:
    """Whether images lie in the folder itself, and no class folder beside them."""
    if not root.is_dir() or any(path.is_dir() for path in root.glob('[!.]*')):
        return False
    return bool(find_images(root).images)


def _records(source: Source) -> list[Record]:
    return [source[index] for index in range(len(source))]


def _examine_all(
    records: Sequence[tuple[str, Record]], num_classes: int
) -> tuple[dict[bytes, list[tuple[str, str]]], list[Finding]]:
    """(split, image id) of every image by content, and what is wrong with single images."""
    once = list(dict.fromkeys(record for _, record in records))  # train is a part of trainval
    with ThreadPool(THREADS) as pool:
        results = pool.imap(partial(examine, num_classes=num_classes), once)
        bar = tqdm(results, total=len(once), desc='check', unit='image', disable=None)
        examined = dict(zip(once, bar, strict=True))
        pool.close()
        pool.join()  # else its threads end some time later
    contents = defaultdict(list)
    for split, record in records:
        if digest := examined[record][0]:
            contents[digest].append((split, record.image_id))
    return contents, [finding for _, found in examined.values() for finding in found]


def _findings_of_labels(
    splits: _Splits, records: Sequence[tuple[str, Record]]
) -> Iterator[Finding]:
    if 'train' in splits:
        yield from (Finding(CLASS, f'{line}; {_GAPS}') for line in _untrained_classes(splits))
    yield from (Finding(SEVERAL, line, False) for line in _several_labels(records))
    yield from (Finding(OBJECTLESS, line, False) for line in _objectless(splits))


def _untrained_classes(splits: _Splits) -> list[str]:
    """What to say of each class of any split that is the label of no image of train."""
    trained = {label for record in _records(splits['train']) for label in record.labels}
    named = max(splits.values(), key=lambda source: source.num_classes)
    return [
        f'class {label} {named.class_name(label)!r} has no training image'
        if named.class_name(label) != str(label)
        else f'no training image has label {label}'
        for label in range(named.num_classes)
        if label not in trained
    ]


def _shared_ids(splits: _Splits, alike: Callable[[str], str] = str) -> list[str]:
    owners: dict[str, list[str]] = defaultdict(list)
    for split, source in splits.items():
        for record in _records(source) if alike(split) else ():
            owners[record.image_id].append(split)
    return [
        f'{name!r} is in both {" and ".join(found)}'
        for name, found in owners.items()
        if len(set(map(alike, found))) > 1
    ]


def _same_contents(
    contents: Mapping[bytes, Sequence[tuple[str, str]]], alike: Callable[[str], str]
) -> list[str]:
    return [
        ', '.join(f'{name!r} in {split}' for split, name in found)
        for found in contents.values()
        if len({alike(split) for split, _ in found} - {''}) > 1 < len({name for _, name in found})
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
    folders: Sequence[Path], records: Sequence[tuple[str, Record]], whole: bool
) -> Iterator[Finding]:
    """What lies where the images are and is none, or is an image that no split lists."""
    listed = {record.image for _, record in records if isinstance(record.image, Path)}
    parents = {folder for image in listed for folder in image.parents}
    for found in map(find_images, folders):
        for kind, path in found.passed:
            if path not in listed and not (kind == AGAIN and path in parents):
                yield Finding(kind, str(path), harmful=kind in UNUSABLE)
        unlisted = (path for path in found.images.values() if path not in listed)
        yield from (Finding(UNLISTED, str(path), False) for path in unlisted if whole)


def _summary(split: str, source: Source) -> str:
    records = _records(source)
    frames = [frame_of(record) for record in records if 'frame' in record.extra]
    counts = {
        'images': len(records),
        'classes': len({label for record in records for label in record.labels}),
        'labels': sum(len(record.labels) for record in records),
        'boxes': sum(len(record.boxes) for record in records),
        'masks': sum(len(record.masks) for record in records),
        'expressions': sum(len(record.extra.get('expressions', ())) for record in records),
        'label maps': sum('segmentation' in record.extra for record in records),
        'sweeps': sum(len(frame.sweeps) for frame in frames),
        'boxes in 3D': sum(len(frame.boxes) for frame in frames),
    }
    return f'{split}: ' + ', '.join(f'{count} {name}' for name, count in counts.items() if count)


def _by_kind(findings: Iterable[Finding]) -> dict[str, list[str]]:
    by_kind = defaultdict(list)
    for finding in findings:
        by_kind[finding.kind].append(finding.line)
    return dict(by_kind)

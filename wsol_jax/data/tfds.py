"""Data sets of TensorFlow Datasets, prepared as array_record and read without TensorFlow."""

import difflib
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from numpy.typing import NDArray
from tensorflow_datasets.core import read_only_builder
from tensorflow_datasets.core.features.bounding_boxes_utils import BBoxFormat

from wsol_jax.data.decode import stored_size
from wsol_jax.data.records import (
    MAX_PIXELS,
    BadImage,
    Box,
    DataError,
    Decoding,
    NamedClasses,
    Record,
    drawn,
    is_displayed,
)
from wsol_jax.data.tfds_builders import BUILDERS, open_folders, record_of, wsol_features
from wsol_jax.names import unknown_name

_FORMAT = 'array_record'
_ALIASES = {'val': 'validation'}
_IDS = ('image/filename', 'file_name', 'filename')
_Features = dict[str, tfds.features.FeatureConnector]
_NAME = re.compile(r'(\w+)(/[\w.-]+)?(:[\d.*]+)?')


class TfdsSource(NamedClasses):
    """A split of a data set that TFDS has prepared in the file format array_record.

    Besides those of `prepare`, any data set serves that has the features `image` and `label` (or
    `labels`) of classes. Of the others it reads `bbox` (normalised ymin, xmin, ymax, xmax), and
    `image/filename`, `file_name` or `filename` as image_id (`<split>/<index>` without them).
    Where there is no split for validation, val is every tenth example of train, and train the rest.
    Images stay encoded until they are decoded as those of any other source.

    Args:
        name: 'name', 'name/config' or 'name/config:1.2.3' as TFDS spells it; the newest version
            that was prepared by default.
        root: TFDS's data_dir; '' for its default.
        split: name of a split; 'val' also finds 'validation'.
        orientation: the frame of sizes, boxes and masks: 'displayed' or 'stored', which 'auto' is;
            see `is_displayed`.
        max_pixels: see `Decoding`.

    Raises:
        DataError: the name or the split is unknown, the data set is not prepared in root or not
            as array_record, or it lacks a feature.
    """

    def __init__(
        self,
        name: str,
        root: str | Path,
        split: str,
        orientation: str = 'auto',
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._arguments = (name, os.fspath(root), split, orientation, max_pixels)
        self._decoding = Decoding(is_displayed(orientation, 'stored'), max_pixels)
        builder = _open_prepared(name, os.fspath(root))
        features = dict(builder.info.features.items())
        self._own = set(wsol_features()) <= set(features)
        self._label, self.class_names = _classes(name, features)
        if self._own and self.class_names == tuple(map(str, range(self.num_classes))):
            self._unnamed, self.class_names = self.num_classes, ()  # had no class_names.txt
        self._several = not isinstance(features[self._label], tfds.features.ClassLabel)
        _check_boxes(name, features)
        encoded = {key: tfds.decode.SkipDecoding() for key, f in features.items() if _is_image(f)}
        self._split, shared = _find_split(name, builder, split)
        self._examples = builder.as_data_source(self._split, decoders=encoded, file_format=_FORMAT)
        _check_files(builder.info.splits[self._split].filepaths)
        every = np.arange(len(self._examples))
        self._positions = every[drawn(len(every), split)] if shared else every

    def __reduce__(self) -> tuple[type['TfdsSource'], tuple[str, str, str, str, int]]:
        # A worker process opens the files again.
        return TfdsSource, self._arguments

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def most_labels(self) -> int:
        """The most labels that an image has, at least 1; reads all that may have several."""
        if not self._several:
            return 1
        return max([1, *(len(self._examples[int(i)][self._label]) for i in self._positions)])

    def __getitem__(self, index: int) -> Record:
        position = int(self._positions[index])
        example = self._examples[position]
        if self._own:
            return replace(record_of(example), decoding=self._decoding)
        return _record(example, self._label, f'{self._split}/{position}', self._decoding)


def prepare(name: str, root: str | Path, data_dir: str | Path) -> None:
    """Store a data set of wsolevaluation once, as array_record, for `TfdsSource`.

    Does nothing where it is prepared already; a run that fails leaves nothing to be read.

    Args:
        name: 'cub200_wsol', 'ilsvrc_wsol' or 'openimages_wsol'.
        root: the folder in the layout of wsolevaluation (see `WsolFolder`); all its splits.
        data_dir: TFDS's data_dir, where to store it; '' for its default.

    Raises:
        DataError: the name is unknown, the metadata are wrong, or an image or mask is missing.
    """
    if name not in BUILDERS:
        raise DataError(unknown_name('data set to prepare', name, BUILDERS))
    builder = BUILDERS[name](data_dir=os.fspath(data_dir) or None)
    if builder.data_path.exists():
        print(f'{name}: already prepared in {builder.data_path}; remove that to prepare it again')
        return
    open_folders(Path(root))
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=root), file_format=_FORMAT
    )


def _open_prepared(name: str, root: str) -> tfds.core.DatasetBuilder:
    if not _NAME.fullmatch(name):
        raise DataError(
            f"{name!r} is no TFDS name; write 'name', 'name/config' or 'name/config:1.2.3'"
        )
    try:
        # From the files alone: the version that was prepared counts, and the code of a data set
        # may want TensorFlow.
        builder = read_only_builder.builder_from_files(name, data_dir=root or None)
    except tfds.core.DatasetNotFoundError:
        raise DataError(_not_found(name, root or tfds.core.constants.DATA_DIR)) from None
    formats = [stored.value for stored in builder.info.available_file_formats()]
    if _FORMAT not in formats:
        raise DataError(
            f'{name}: prepared in {builder.data_path} as {", ".join(formats)}; convert it with '
            f'`tfds convert_format --dataset_version_dir={builder.data_path} '
            f'--out_file_format={_FORMAT}`'
        )
    return builder


def _not_found(name: str, root: str) -> str:
    base = re.split('[/:]', name)[0]
    # The community data sets would be looked up on the network.
    known = tfds.list_builders(with_community_datasets=False)
    here = Path(root).expanduser() / base
    if base not in [*BUILDERS, *known] and not here.is_dir():
        near = difflib.get_close_matches(base, known)
        return unknown_name('TFDS data set', base, dict.fromkeys([*BUILDERS, *near]))
    if base in BUILDERS:
        command = f'`python -m wsol_jax.data prepare {base} ROOT {root}`'
    else:
        data_dir = f'data_dir={root!r}'
        command = (
            f"`tfds.builder('{name}', {data_dir}).download_and_prepare(file_format='{_FORMAT}')`"
        )
    found = sorted(path.name for path in here.glob('*')) if here.is_dir() else []
    there = f' (there are: {", ".join(found)})' if found else ''
    return f'{name}: not prepared in {root}{there}; run {command}'


def _find_split(name: str, builder: tfds.core.DatasetBuilder, split: str) -> tuple[str, bool]:
    """The split of the data set, and whether train and val are to be drawn from it."""
    splits = builder.info.splits
    drawn = 'train' in splits and not {'val', *_ALIASES.values()} & set(splits)
    for asked in (split, _ALIASES.get(split, split)):
        if asked in splits:
            return asked, drawn and asked == 'train'
    if drawn and split == 'val':
        return 'train', True
    raise DataError(f'{name}: no split {split!r}; available: {", ".join(splits)}')


def _check_files(shards: list[Path]) -> None:
    missing = [shard for shard in shards if not shard.exists()]
    if missing:
        raise DataError(f'{missing[0]}: no such file ({len(missing)} of {len(shards)} are missing)')


def _classes(name: str, features: _Features) -> tuple[str, tuple[str, ...]]:
    """The feature that holds the labels, and the names of its classes."""
    for key in ('label', 'labels'):
        labels = _inside(features, key)
        if isinstance(labels, tfds.features.ClassLabel) and _is_image(features.get('image')):
            return key, tuple(map(labels.int2str, range(labels.num_classes)))
    found = ', '.join(f'{key} ({type(features[key]).__name__})' for key in sorted(features))
    raise DataError(
        f'{name}: needs the features image (Image) and label or labels (ClassLabel); has {found}'
    )


def _check_boxes(name: str, features: _Features) -> None:
    boxes = _inside(features, 'bbox')
    # None: prepared before TFDS had a second format.
    if boxes and getattr(boxes, 'bbox_format', '') not in (BBoxFormat.REL_YXYX, None):
        raise DataError(f'{name}: bbox is no BBox of normalised (ymin, xmin, ymax, xmax): {boxes}')


def _inside(features: _Features, key: str) -> Any:
    """A feature, that inside it where it is a sequence, or None."""
    feature = features.get(key)
    return getattr(feature, 'feature', feature)


def _is_image(feature: Any) -> bool:
    return isinstance(feature, tfds.features.Image)


def _record(example: dict[str, Any], label: str, position: str, decoding: Decoding) -> Record:
    """Record of a data set of TFDS's own; a broken image has no boxes, but keeps its place."""
    image_id = next((example[key].decode() for key in _IDS if key in example), position)
    labels = tuple(int(k) for k in np.atleast_1d(example[label]) if k >= 0)  # -1: unlabelled
    record = Record(image_id, example['image'], labels, None, decoding=decoding)
    if 'bbox' not in example:
        return record
    try:
        size = stored_size(record)
    except BadImage:
        return record
    return replace(record, size=size, boxes=_pixel_boxes(np.asarray(example['bbox']), size))


def _pixel_boxes(boxes: NDArray[np.float32], size: tuple[int, int]) -> tuple[Box, ...]:
    """(x0, y0, x1, y1) in pixels of normalised (ymin, xmin, ymax, xmax) [4] or [N, 4]."""
    width, height = size
    scaled = np.rint(boxes.reshape(-1, 4) * np.array([height, width, height, width]))
    return tuple((x0, y0, x1, y1) for y0, x0, y1, x1 in scaled.astype(int).tolist())

"""The one record type every data source hands out, and what a data source is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsol_jax.names import unknown_name

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]
Encoded = Path | bytes
UNLABELLED = -1
LABEL_MAP = 'label_map'  # names of targets end so that lie on the image
VAL_EVERY = 10
ADVICE = "'python -m wsol_jax.data check DIR' lists all that is wrong with a data set"
MAX_PIXELS = 500_000_000  # of an image
ORIENTATIONS = ('auto', 'displayed', 'stored')


class DataError(ValueError):
    """Wrong input data: the message names the file, key or value at fault and what is right."""


class BadImage(DataError):
    """An image or a sweep that is missing, truncated or none: its record is passed over."""


class ReadError(DataError):
    """The system could not read a file that is there; another time it may. Says nothing of it."""


@dataclass(frozen=True)
class Decoding:
    """How the files of a record are read.

    Attributes:
        displayed: turn images and masks as their EXIF orientation says; else as they are stored.
        max_pixels: images and masks with more are refused.
        roots: real paths of folders, one of which the files must lie in, links followed; () for
            anywhere.
    """

    displayed: bool = False
    max_pixels: int = MAX_PIXELS
    roots: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Record:
    """One image and what is known about it; small, picklable, reads nothing until decoded.

    Attributes:
        image_id: name of the image, unique within its source.
        image: file, or the encoded bytes themselves.
        labels: classes of the image; () where unlabelled.
        size: (width, height) of the image in its frame; None where only decoding tells.
        boxes: ground truth (x0, y0, x1, y1) in pixels of that frame, x1 and y1 exclusive.
        masks: one (mask, ignore) pair of PNGs per instance; ignore may be None.
        decoding: the frame, which is that of the stored pixels or the displayed picture, and what
            is refused.
        extra: what else a task of yours knows of the image, by name; can be pickled.
    """

    image_id: str
    image: Encoded
    labels: tuple[int, ...]
    size: tuple[int, int] | None
    boxes: tuple[Box, ...] = ()
    masks: tuple[tuple[Encoded, Encoded | None], ...] = ()
    decoding: Decoding = field(default=Decoding(), compare=False, repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


# What a batch carries of an image beside its pixels: arrays by name, of one shape for all records,
# but for label maps: uint8 [h, w] of the whole image, of any size, whose names end in `LABEL_MAP`;
# 255 is for what is not known. Worker processes call it, so it can be pickled. A record of which it
# raises `BadImage` is passed over, and one of `ReadError` tried again.
Targets = Callable[[Record], Mapping[str, NDArray[Any]]]


@dataclass(frozen=True)
class Labels:
    """The target 'labels' of an image: int32 [most], its classes, then `UNLABELLED`.

    Attributes:
        most: labels that an image may have, such as `Source.most_labels`; 1 where what is computed
            from them is defined for one label.
        required: whether each image must have one.
    """

    most: int = 1
    required: bool = False

    def __call__(self, record: Record) -> dict[str, NDArray[np.int32]]:
        """{'labels': [most]} of a record.

        Raises:
            DataError: it has more labels, or none where one is required; names the image.
        """
        labels = record.labels
        name = record.image_id if isinstance(record.image, bytes) else record.image
        if self.required and not labels:
            raise DataError(f'{name}: has no label; {ADVICE}')
        if len(labels) > self.most:
            several = f'{len(labels)} labels ({", ".join(map(str, labels))})'
            raise DataError(f'{name}: has {several}, but can have {self.most} here; {ADVICE}')
        padding = (UNLABELLED,) * (self.most - len(labels))
        return {'labels': np.array(labels + padding, np.int32)}


class Source(Protocol):
    """A data set: an indexable sequence of records and the names of their classes."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of this data set, in its own order; () where they have none."""

    @property
    def num_classes(self) -> int:
        """How many classes this data set has."""

    @property
    def most_labels(self) -> int:
        """The most labels that an image has, at least 1."""

    def class_name(self, label: int) -> str:
        """Name of a label as it stands in `Record.labels`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class NamedClasses:
    """The part of a `Source` that names its classes.

    Attributes:
        class_names: in the order of the data set; () where they have none.
        class_index: the label of each as it stands in the records; () for 0, 1, 2 ...
    """

    class_names: tuple[str, ...] = ()
    class_index: tuple[int, ...] = ()
    _unnamed: int = 0  # how many classes there are, where they have no names

    @property
    def num_classes(self) -> int:
        """How many classes the data set has."""
        return self._unnamed or len(self.class_names)

    @property
    def most_labels(self) -> int:
        """The most labels that an image has, at least 1."""
        return 1

    def class_name(self, label: int) -> str:
        """Name of a label as it stands in the records; the number itself where it has no name."""
        labels = self.class_index or range(len(self.class_names))
        return self.class_names[labels.index(label)] if label in labels else str(label)


class ListedRecords(NamedClasses):
    """A `Source` whose records are all there."""

    _records: list[Record]

    @property
    def most_labels(self) -> int:
        """The most labels that an image has, at least 1."""
        return max([1, *(len(record.labels) for record in self._records)])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]


class Listed(ListedRecords):
    """All records of a source, asked for once: generated ones are drawn whenever they are.

    Args:
        source: with names of its classes, or none.
    """

    def __init__(self, source: Source) -> None:
        self.class_names = source.class_names
        self._records = [source[i] for i in range(len(source))]


def filled(rows: NDArray[Any], shape: tuple[int, ...], value: int = 0) -> NDArray[Any]:
    """An array in the first places of a larger one: what targets of one shape are made by.

    Args:
        rows: [n, ...].
        shape: of the leading axes of the larger one, none below that of `rows`; the others stay.
        value: of all other places.
    """
    whole = np.full((*shape, *rows.shape[len(shape) :]), value, rows.dtype)
    whole[tuple(map(slice, rows.shape[: len(shape)]))] = rows
    return whole


def drawn(count: int, split: str) -> NDArray[np.bool_]:
    """Which of `count` images [count] are those of train, or val, where a data set has no val.

    Every tenth is drawn for val, at least one of two, and never the only one; train is the rest.
    """
    period = max(2, min(VAL_EVERY, count))
    return (np.arange(count) % period == period - 1) == (split == 'val')


def evenly_spaced(positions: NDArray[np.integer], count: int) -> NDArray[np.integer]:
    """At most `count` of some positions: picked by nobody, and not all from the first classes."""
    places = np.linspace(0, len(positions) - 1, min(count, len(positions)))
    return positions[places.round().astype(int)]


def is_displayed(orientation: str, auto: str) -> bool:
    """Whether one of `ORIENTATIONS` means displayed images.

    Args:
        orientation: 'displayed' turns images as their EXIF orientation says, 'stored' does not.
        auto: what 'auto' stands for.

    Raises:
        DataError: it is something else.
    """
    if orientation not in ORIENTATIONS:
        raise DataError(unknown_name('orientation', orientation, ORIENTATIONS))
    return (auto if orientation == 'auto' else orientation) == 'displayed'

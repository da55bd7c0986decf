"""The one record type every data source hands out, and how its image and masks are decoded."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]
Encoded = Path | bytes
IGNORE = 255
VAL_EVERY = 10


class DataError(ValueError):
    """Wrong input data: the message names the file, key or value at fault and what is right."""


class BadImage(DataError):
    """An image file that is missing, truncated or not an image."""


@dataclass(frozen=True)
class Record:
    """One image and what is known about it; small, picklable, reads nothing until decoded.

    Attributes:
        image_id: name of the image, unique within its source.
        image: file, or the encoded bytes themselves.
        labels: classes of the image, the first one leading; () where unlabelled.
        size: (width, height) of the stored image; None where only decoding tells.
        boxes: ground truth (x0, y0, x1, y1) in pixels of the stored image, x1 and y1 exclusive.
        masks: one (mask, ignore) pair of grey PNGs per instance; ignore may be None.
    """

    image_id: str
    image: Encoded
    labels: tuple[int, ...]
    size: tuple[int, int] | None
    boxes: tuple[Box, ...] = ()
    masks: tuple[tuple[Encoded, Encoded | None], ...] = ()


class Source(Protocol):
    """A data set: an indexable sequence of records and the names of their classes."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of this data set, in its own order."""

    @property
    def num_classes(self) -> int:
        """How many classes this data set has."""

    def class_name(self, label: int) -> str:
        """Name of a label as it stands in `Record.labels`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class NamedClasses:
    """The part of a `Source` that names its classes: label k has the k-th name."""

    class_names: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """How many classes the data set has."""
        return len(self.class_names)

    def class_name(self, label: int) -> str:
        """Name of a label as it stands in the records; the number itself where it has no name."""
        return self.class_names[label] if 0 <= label < self.num_classes else str(label)


class ListedRecords(NamedClasses):
    """A `Source` whose records are all there."""

    _records: list[Record]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]


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


def decode_image(record: Record) -> Pixels:
    """Decode the image of a record as uint8 RGB [H, W, 3], whatever its stored colour mode.

    Raises:
        BadImage: the file is missing, truncated or not an image.
    """
    with _opened(record) as image:
        return np.array(image.convert('RGB'))


def stored_size(record: Record) -> tuple[int, int]:
    """(width, height) of the stored image; opens its header where the record does not tell.

    Raises:
        BadImage: the file is missing or not an image.
    """
    if record.size is not None:
        return record.size
    with _opened(record) as image:
        return image.size


def resize_image(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Squash a whole uint8 RGB image [H, W, 3] to (width, height), bilinear with antialiasing."""
    height, width = image.shape[:2]
    if (width, height) == tuple(size):
        return image
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def decode_mask(record: Record, size: tuple[int, int]) -> Pixels:
    """Union of the instance masks of a record at (width, height), as in wsolevaluation.

    Returns:
        uint8 [height, width]: 1 foreground, 0 background, 255 ignore (and not foreground).

    Raises:
        DataError: the record carries no mask, or one of its PNGs cannot be read.
    """
    if not record.masks:
        raise DataError(f'{record.image_id}: has no mask')
    foreground = np.zeros(size[::-1], bool)
    ignore = np.zeros(size[::-1], bool)
    for mask_png, ignore_png in record.masks:
        foreground |= _decode_grey(record, mask_png, size)
        if ignore_png is not None:
            ignore |= _decode_grey(record, ignore_png, size)
    mask = foreground.astype(np.uint8)
    mask[ignore & ~foreground] = IGNORE
    return mask


@contextmanager
def _opened(record: Record) -> Iterator[Image.Image]:
    stored = io.BytesIO(record.image) if isinstance(record.image, bytes) else record.image
    try:
        with Image.open(stored) as image:
            yield image
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise BadImage(f'{_where(record, record.image)}: {_reason(error)}') from None


def _decode_grey(record: Record, png: Encoded, size: tuple[int, int]) -> NDArray[np.bool_]:
    try:
        stored = png if isinstance(png, bytes) else png.read_bytes()
        grey = cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_GRAYSCALE)
    except (OSError, cv2.error) as error:
        raise DataError(f'mask {_where(record, png)}: {_reason(error)}') from None
    if grey is None:
        raise DataError(f'mask {_where(record, png)}: not an image that can be decoded')
    return cv2.resize(grey, size, interpolation=cv2.INTER_NEAREST) > 0.5


def _where(record: Record, stored: Encoded) -> str:
    return record.image_id if isinstance(stored, bytes) else str(stored)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return 'no such file'
    if isinstance(error, Image.UnidentifiedImageError):
        return 'not an image that can be decoded'
    return ' '.join(str(error).split()) or type(error).__name__

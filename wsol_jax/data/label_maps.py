"""Label maps: which class each pixel of an image is of.

A label map is uint8 [H, W] in the frame of its image: 0 background, k + 1 for class k of the data
set, 255 ignored. On disk it is a PNG whose palette is that of PASCAL VOC.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from wsol_jax.data.decode import (
    IGNORED,
    decode_image,
    orientation_of,
    read_label_map,
    stored_size,
)
from wsol_jax.data.files import printable
from wsol_jax.data.records import DataError, Pixels, Record

BACKGROUND = 0
# No label is known, and one is to be found in training: -1 of the paper on MARS. Apart from
# `IGNORED`, which stays as it is.
MISSING = 254
_Array = TypeVar('_Array', bound=Any)


def true_label_map(record: Record, num_classes: int | None = None) -> Pixels:
    """The true label map of a record, which lies in its `extra['segmentation']`.

    Args:
        record: of the image.
        num_classes: how many classes the data set has, without the background; None for any.

    Returns:
        uint8 [H, W] in the record's frame.

    Raises:
        DataError: the record has none, or it cannot be read, is not of the size of the image, or
            has an index that is no class.
    """
    png, name = record.extra.get('segmentation'), printable(record.image_id)
    if png is None:
        raise DataError(f'{name}: has no true label map')
    label_map = read_label_map(png, record.decoding, name)
    where = name if isinstance(png, bytes) else printable(str(png))
    (width, height), (high, wide) = stored_size(record), label_map.shape
    if (wide, high) != (width, height):
        turned = f' with {orientation_of(record)}; set that to the frame of the label maps'
        advice = turned if (wide, high) == (height, width) else ''
        raise DataError(f'label map {where}: is {wide}x{high}, its image {width}x{height}{advice}')
    if num_classes is not None:
        check_label_map(label_map, num_classes + 1, where, IGNORED)
    return label_map


def label_map_of(
    record: Record, folder: Path, num_classes: int | None = None, also: int = IGNORED
) -> Pixels:
    """The label map of a record in a folder of them, `<image_id>.png`.

    Args:
        record: of the image.
        folder: of the label maps.
        num_classes: as in `true_label_map`.
        also: another index that is right.

    Returns:
        uint8 [H, W] in the record's frame.

    Raises:
        BadImage: it is missing, and the image cannot be read: such images are passed over where
            label maps are made.
        DataError: see `true_label_map`; names the file.
    """
    png = folder / f'{record.image_id}.png'
    if not os.path.lexists(png):
        decode_image(record)
    decoding = replace(record.decoding, roots=())  # its folder is none of the data set's
    found = true_label_map(replace(record, extra={'segmentation': png}, decoding=decoding))
    if num_classes is not None:
        of_classes = np.where(found == also, IGNORED, found)
        check_label_map(of_classes, num_classes + 1, printable(str(png)), IGNORED)
    return found


def check_label_map(label_map: Pixels, count: int, where: str, ignored: int | None = None) -> None:
    """Refuses a label map with an index that is no class.

    Args:
        label_map: uint8 [H, W].
        count: how many classes there are, the background among them.
        where: what the message calls the map.
        ignored: another index that it may have; None for none.

    Raises:
        DataError: it has one.
    """
    allowed = np.arange(256) < count
    if ignored is not None:
        allowed[ignored] = True
    wrong = label_map[~allowed[label_map]]
    if wrong.size:
        right = f'0..{count - 1}' + ('' if ignored is None else f', {ignored} is ignored')
        raise DataError(f'label map {where}: has index {wrong[0]}; the classes are {right}')


def resized_label_map(label_maps: _Array, size: tuple[int, int]) -> _Array:
    """Label maps [..., H, W] at (height, width), each the pixel in the middle of its part.

    They may be NumPy's or JAX's.
    """
    rows, columns = (
        (2 * np.arange(count) + 1) * side // (2 * count)
        for count, side in zip(size, label_maps.shape[-2:], strict=True)
    )
    return label_maps[..., rows[:, None], columns]

"""Finds what is wrong with single images, their boxes, masks and label maps, file by file."""

import hashlib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import tensorstore

from wsol_jax.data.decode import (
    IGNORED,
    LARGE,
    Described,
    decode_image,
    describe_image,
    read_label_map,
    stored_mask,
)
from wsol_jax.data.files import printable, read_file
from wsol_jax.data.label_maps import check_label_map
from wsol_jax.data.records import DataError, Record

MISSING = 'image files that are not there; copy them, or take their lines out of the metadata'
BROKEN = 'images that do not decode; replace them, or take them out of the data set'
DAMAGED = 'JPEG files with damage inside, decoded all the same; look at them'
SIZE = 'sizes other than the listed ones; correct those, boxes are scaled by them'
BOX = 'boxes that reach beyond their image; correct localization.txt'
MASK = 'masks that cannot be read; replace them, or correct localization.txt'
TURNED = 'images with an EXIF orientation, which is applied (config.data.orientation)'
UNTURNED = 'images with an EXIF orientation, which is not applied (config.data.orientation)'
DEEP = 'images of more than 8 bits, which are scaled to 8'
TRANSPARENT = 'images with transparency, which are put on white'
MASK_SIZE = 'masks of another size than their image, which are stretched over it'
MAP = 'label maps that cannot be read, or have values that are no class; correct them'
MAP_SIZE = 'label maps of another size than their image; replace them'


class Finding(NamedTuple):
    """One line to tell; the kind says what to do about it."""

    kind: str
    line: str
    harmful: bool = True


def examine(record: Record, num_classes: int) -> tuple[bytes, list[Finding]]:
    """SHA-256 of an image file, b'' if it does not decode, and what is to be said of it.

    Args:
        record: whose image is a file.
        num_classes: whose values its label map may have; 0 for label maps that are no files.
    """
    assert isinstance(record.image, Path)
    maps = partial(_bad_label_map, record, num_classes)
    try:
        described = describe_image(record)
        decode_image(replace(record, size=None), side=1)
        content = read_file(record.image)
    except (DataError, OSError) as error:
        kind = BROKEN if os.path.lexists(record.image) else MISSING
        return b'', [*_bad_masks(record, None), *maps(None), Finding(kind, str(error))]
    notes = [
        Finding(kind, f'{record.image_id!r}{more}', False)
        for kind, holds, more in _remarkable(record, described)
        if holds
    ]
    if damage := _damage(described, content):
        notes.append(Finding(DAMAGED, f'{record.image}: {damage}'))
    wrong = [*_bad_masks(record, described.size), *maps(described.size)]
    return hashlib.sha256(content).digest(), [*wrong, *_wrong_size(record, described), *notes]


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


def _wrong_size(record: Record, described: Described) -> list[Finding]:
    width, height = described.size
    findings = []
    if record.size not in (None, described.size):
        frame = 'displayed' if record.decoding.displayed else 'stored'
        listed = 'x'.join(map(str, record.size or ()))
        line = f'{record.image_id!r}: {frame} as {width}x{height}, listed as {listed}'
        if described.orientation >= 5 and record.size == (height, width):
            other = 'stored' if record.decoding.displayed else 'displayed'
            line += f', as with config.data.orientation={other!r}'
        findings.append(Finding(SIZE, line))
    for box in record.boxes:
        if box[2] > width or box[3] > height:
            line = f'{record.image_id!r}: box {box}, image of {width}x{height}'
            findings.append(Finding(BOX, line))
    return findings


def _bad_masks(record: Record, size: tuple[int, int] | None) -> list[Finding]:
    findings = []
    for png in chain.from_iterable(record.masks):
        if png is None:
            continue
        try:
            height, width = stored_mask(replace(record, size=size), png).shape
        except DataError as error:
            findings.append(Finding(MASK, str(error)))
            continue
        if size not in (None, (width, height)):
            line = f'{png!s}: {width}x{height}, image of {"x".join(map(str, size or ()))}'
            findings.append(Finding(MASK_SIZE, line, False))
    return findings


def _bad_label_map(
    record: Record, num_classes: int, size: tuple[int, int] | None
) -> Iterator[Finding]:
    png = record.extra.get('segmentation') if num_classes else None
    if png is None:
        return
    try:
        values = read_label_map(png, record.decoding)
        check_label_map(values, num_classes + 1, printable(str(png)), IGNORED)
    except DataError as error:
        yield Finding(MAP, str(error))
        return
    height, width = values.shape
    if size not in (None, (width, height)):
        line = f'{png!s}: {width}x{height}, image of {"x".join(map(str, size or ()))}'
        yield Finding(MAP_SIZE, line)

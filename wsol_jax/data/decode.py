"""The pixels of a record: its image, the size of it, its mask or label map; all in one frame.

The frame is that of the stored pixels, or with `Decoding.displayed` that of viewers, which turn an
image as its EXIF orientation says. The first picture of a file is the image. It becomes 8 bit RGB:

- 16 bit grey and other depths: the full scale becomes 0..255.
- floats: within 0..1, or else within 0..255; integers of 32 bits: within 0..255. Anything else is
  refused, for nothing tells which value is white.
- transparent pixels show a white ground.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH

from wsol_jax.data.files import may_pass, open_file, printable, reason
from wsol_jax.data.formats import as_rgb, check_sums, identified, white_value
from wsol_jax.data.records import (
    BadImage,
    DataError,
    Decoding,
    Encoded,
    Pixels,
    ReadError,
    Record,
)

IGNORED = 255
LARGE = 64_000_000  # pixels: beyond, an image is reduced while it is decoded, one at a time
SPARE = 4  # what is left of a reduced image, relative to the size that is asked for
BAND = 16_000_000  # pixels of a large image that are converted at once
_LARGE = Lock()
_LOADING = Lock()  # one image may stand several times in a list that threads go through
_BLOCK = 2**26  # bytes: blocks above 2**25 go back to the system when a large image is done with
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_INVERSE = {6: 8, 8: 6}  # the others undo themselves
_Size = tuple[int, int]
_AS_STORED = Decoding()


def decode_image(record: Record, side: int = 0) -> Pixels:
    """Decode the image of a record as uint8 RGB [H, W, 3], whatever its stored colour mode.

    Args:
        record: whose image.
        side: pixels that it will be resized to. An image of more than `LARGE` pixels then comes
            reduced, but no side below `SPARE` times that; 0 for every image whole.

    Raises:
        BadImage: the file is missing, truncated, too large or not an image.
        ReadError: the system failed to read it.
        DataError: the record knows a size, which is that of the other frame.
    """
    with _opened(record) as image, _guarded(image):
        _check_frame(record, image)
        check_sums(image)
        return _pixels(image, record.decoding.displayed, side)


def pixels_of(image: Image.Image) -> Pixels:
    """The pixels [H, W, 3] of an image that Pillow has opened, by the same rules, as displayed.

    Raises:
        BadImage: the file behind it is truncated, or its depth tells not what is white.
    """
    try:
        with _LOADING:
            image.load()
        return _pixels(image, True, 0)
    except Exception as error:  # decoders raise nearly anything on broken bytes
        name = printable(str(getattr(image, 'filename', '') or 'a PIL image'))
        raise BadImage(f'{name}: {_reason(error)}') from None


def stored_size(record: Record) -> _Size:
    """(width, height) of the image in its frame; opens the file where the record does not tell.

    Raises:
        BadImage: the file is missing, too large or not an image.
    """
    if record.size is not None:
        return record.size
    with _opened(record) as image:
        return _frame(image, record.decoding.displayed)


@dataclass(frozen=True)
class Described:
    """What is told of an image without its pixels.

    Attributes:
        format: as Pillow calls it, such as 'JPEG'.
        size: (width, height) in the frame of its record.
        orientation: EXIF's, 1 (upright) to 8.
        deep: has more than 8 bits a channel.
        transparent: has an alpha channel or a transparent colour.
    """

    format: str
    size: _Size
    orientation: int
    deep: bool
    transparent: bool


def describe_image(record: Record) -> Described:
    """What `decode_image` makes something else of than the stored pixels.

    Raises:
        BadImage: the file is missing, too large or not an image.
    """
    with _opened(record) as image, _guarded(image):
        deep = image.mode[0] in 'IF' or _is_deep(image)
        size = _frame(image, record.decoding.displayed)
        facts = _orientation(image), deep, image.has_transparency_data
        return Described(image.format or '', size, *facts)


def resize_image(image: Pixels, size: _Size) -> Pixels:
    """Squash a whole uint8 RGB image [H, W, 3] to (width, height), bilinear with antialiasing."""
    height, width = image.shape[:2]
    if (width, height) == tuple(size):
        return image
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def decode_mask(record: Record, size: _Size) -> Pixels:
    """Union of the instance masks of a record at (width, height), as in wsolevaluation.

    Foreground is what is not 0: at any depth; in colours, any channel, where it is not transparent;
    in a palette, the index, unless all its colours are greys. Black on transparent ground is a
    drawing by transparency alone.

    Returns:
        uint8 [height, width]: 1 foreground, 0 background, 255 ignore (and not foreground).

    Raises:
        DataError: the record carries no mask, one of its PNGs cannot be read, or has the size of
            the other frame.
    """
    if not record.masks:
        raise DataError(f'{printable(record.image_id)}: has no mask')
    foreground = np.zeros(size[::-1], bool)
    ignore = np.zeros(size[::-1], bool)
    for mask_png, ignore_png in record.masks:
        foreground |= _resized_mask(record, mask_png, size)
        if ignore_png is not None:
            ignore |= _resized_mask(record, ignore_png, size)
    mask = foreground.astype(np.uint8)
    mask[ignore & ~foreground] = IGNORED
    return mask


def stored_mask(record: Record, png: Encoded) -> NDArray[np.bool_]:
    """Foreground [H, W] of one mask of a record, in the record's frame.

    Raises:
        DataError: it cannot be read, or has the size of the other frame.
    """
    try:
        with _read(png, record.decoding) as (image, stored), _guarded(image):
            check_sums(image)
            turn = _turn(image, record.decoding.displayed)
            mask = _foreground(image, stored)
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise DataError(f'mask {_where(record, png)}: {_reason(error)}') from None
    mask = np.array(_turned(Image.fromarray(mask), turn))
    height, width = mask.shape
    if record.size == (height, width) and height != width:
        raise DataError(
            f'mask {_where(record, png)}: is {width}x{height}, its image {height}x{width} with '
            f'{orientation_of(record)}; set that to the frame of the masks'
        )
    return mask


def read_label_map(png: Encoded | str, decoding: Decoding = _AS_STORED, name: str = '') -> Pixels:
    """The values of a label map: the indices of a palette PNG, or the greys of another.

    Args:
        png: file or its bytes.
        decoding: as of the record whose label map it is.
        name: what messages call bytes, such as the id of the image.

    Returns:
        uint8 [H, W]; which classes there are is not looked at, see `check_label_map`.

    Raises:
        DataError: it cannot be read, or is no PNG with a palette or with greys of 8 bits.
    """
    png = Path(png) if isinstance(png, str) else png
    try:
        with _read(png, decoding) as (image, _), _guarded(image):
            check_sums(image)
            _check_indexed(image)
            turn = _turn(image, decoding.displayed)
            return np.array(_turned(image, turn))
    except Exception as error:  # decoders raise nearly anything on broken bytes
        where = printable(name if isinstance(png, bytes) else str(png))
        raise DataError(f'label map {where}: {_reason(error)}') from None


def _check_indexed(image: ImageFile) -> None:
    """Refuses what keeps no class: colours, and greys of fewer bits, which Pillow stretches."""
    stored = image.tile[0].args if image.tile else image.mode
    if image.format == 'PNG' and (image.mode == 'P' or stored == 'L'):
        return
    found = f'a PNG of mode {stored}' if image.format == 'PNG' else f'in the format {image.format}'
    raise ValueError(f'{found}; a label map is a PNG with a palette, or with greys of 8 bits')


@contextmanager
def _opened(record: Record) -> Iterator[ImageFile]:
    try:
        with _read(record.image, record.decoding) as (image, _):
            yield image
    except DataError:
        raise
    except Exception as error:  # decoders raise nearly anything on broken bytes
        kind = ReadError if may_pass(error) else BadImage
        raise kind(f'{_where(record, record.image)}: {_reason(error)}') from None


@contextmanager
def _read(encoded: Encoded, decoding: Decoding) -> Iterator[tuple[ImageFile, BinaryIO]]:
    roots, limit = decoding.roots, decoding.max_pixels
    stored = io.BytesIO(encoded) if isinstance(encoded, bytes) else open_file(encoded, roots)
    with stored, identified(stored) as image:
        width, height = image.size
        if width * height > limit:
            raise ValueError(
                f'{width}x{height} pixels are more than config.data.max_pixels={limit}; '
                'raise that if the file is sound'
            )
        yield image, stored


@contextmanager
def _guarded(image: ImageFile) -> Iterator[None]:
    """Where an image is decoded; large ones one at a time, without the guard of Pillow."""
    if image.width * image.height <= LARGE:
        yield
        return
    with _LARGE:
        guard, block = Image.MAX_IMAGE_PIXELS, Image.core.get_block_size()
        Image.MAX_IMAGE_PIXELS = None
        Image.core.set_block_size(_BLOCK)
        try:
            yield
        finally:
            image.close()
            Image.MAX_IMAGE_PIXELS = guard
            Image.core.set_block_size(block)


def _pixels(image: Image.Image, displayed: bool, side: int) -> Pixels:
    least, large = side * SPARE, image.width * image.height > LARGE
    if side and large:
        image.draft(None, (least, least))
    turn = _turn(image, displayed)
    image.load()
    white = white_value(image)
    factor = max(1, min(image.size) // least) if side and large else 1
    upright = _banded(image, white, factor) if factor > 1 else as_rgb(image, white)
    return np.array(_turned(upright, turn))


def _banded(image: Image.Image, white: float, factor: int) -> Image.Image:
    """The image in RGB, reduced by a whole factor, without a whole copy of it."""
    width, height = image.size
    reduced = Image.new('RGB', (-(-width // factor), -(-height // factor)))
    rows = max(1, BAND // (width * factor)) * factor
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height)))
        reduced.paste(as_rgb(band, white).reduce(factor), (0, top // factor))
    return reduced


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF spoils no picture
        return 1
    return value if value in _TURN else 1


def _turn(image: Image.Image, displayed: bool) -> int:
    """How to turn what Pillow loads: TIFF alone comes as displayed."""
    if displayed == (image.format == 'TIFF'):
        return 1
    found = _orientation(image)
    return found if displayed else _INVERSE.get(found, found)


def _turned(image: Image.Image, turn: int) -> Image.Image:
    return image.transpose(_TURN[turn]) if turn in _TURN else image


def _frame(image: ImageFile, displayed: bool) -> _Size:
    tags = getattr(image, 'tag_v2', {}) if image.format == 'TIFF' else {}
    width, height = tags.get(IMAGEWIDTH, image.width), tags.get(IMAGELENGTH, image.height)
    return (height, width) if displayed and _orientation(image) >= 5 else (width, height)


def _check_frame(record: Record, image: ImageFile) -> None:
    """Refuses a size that the image has in the other frame: boxes would be scaled by it."""
    if record.size is None or record.size == (frame := _frame(image, record.decoding.displayed)):
        return
    (width, height), (wide, high) = frame, record.size
    turned = _orientation(image) >= 5
    if (wide, high) == (height, width) or (turned and (width - height) * (wide - high) < 0):
        right = 'set that to the frame of the metadata, or correct them' if turned else 'correct it'
        raise DataError(
            f'{_where(record, record.image)}: is {width}x{height} with {orientation_of(record)}, '
            f'but listed as {wide}x{high}; {right}'
        )


def orientation_of(record: Record) -> str:
    """The setting that its frame is of, for messages."""
    frame = 'displayed' if record.decoding.displayed else 'stored'
    return f'config.data.orientation={frame!r}'


def _resized_mask(record: Record, png: Encoded, size: _Size) -> NDArray[np.bool_]:
    mask = stored_mask(record, png).astype(np.uint8)
    return cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST) > 0


def _foreground(image: ImageFile, stored: BinaryIO) -> NDArray[np.bool_]:
    deep = _is_deep(image)
    image.load()
    values = np.asarray(image)
    if image.mode == 'P':
        colours = np.array(image.getpalette()).reshape(-1, 3)
        grey = (colours == colours[:, :1]).all()
        return (np.resize(colours[:, 0], 256)[values] if grey else values) > 0
    if values.ndim == 2:
        return values > 0.5
    if deep:  # Pillow keeps the high byte alone
        stored.seek(0)
        values = np.asarray(
            cv2.imdecode(np.frombuffer(stored.read(), np.uint8), cv2.IMREAD_UNCHANGED)
        )
    else:
        values = np.asarray(image.convert('RGBA' if image.has_transparency_data else 'RGB'))
    return _drawn(values)


def _is_deep(image: ImageFile) -> bool:
    return bool(image.tile) and ';16' in str(image.tile[0].args)


def _drawn(values: NDArray) -> NDArray[np.bool_]:
    colour = values[..., :3].max(axis=-1) > 0
    if values.shape[-1] < 4:
        return colour
    opaque = values[..., 3] > 0
    return colour & opaque if colour.any() or opaque.all() else opaque


def _where(record: Record, stored: Encoded) -> str:
    return printable(record.image_id if isinstance(stored, bytes) else str(stored))


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return 'not an image that can be decoded'
    return reason(error)

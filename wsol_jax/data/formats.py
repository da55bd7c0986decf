"""Which formats are read, what their values show, and the damage that Pillow passes over."""

import struct
import zlib
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, IMAGELENGTH, PHOTOMETRIC_INTERPRETATION

# Raster formats: others may start an interpreter (EPS) or read other files.
FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'PPM', 'TIFF', 'WEBP', 'JPEG2000', 'AVIF')


def identified(stored: BinaryIO) -> ImageFile:
    """`Image.open`, for our formats, and without a guard that takes large scans for attacks."""
    prefix = stored.read(16)
    for name in FORMATS:
        if name not in Image.OPEN:
            Image.init()
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or (accept and accept(prefix) is not True):
            continue
        stored.seek(0)
        try:
            return factory(stored, '')
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue
    raise Image.UnidentifiedImageError


def check_sums(image: ImageFile) -> None:
    """Refuses what Pillow passes over: wrong checksums in a PNG, missing strips of a TIFF."""
    ends = [extents[3] for _, extents, *_ in image.tile if extents]
    rows = getattr(image, 'tag_v2', {}).get(IMAGELENGTH, 0)
    if image.format == 'TIFF' and ends and max(ends) < rows:
        raise ValueError('damaged: the lower rows are missing')
    if image.format != 'PNG' or image.fp is None:
        return
    place = image.fp.tell()
    image.fp.seek(8)
    while len(header := image.fp.read(8)) == 8:
        length, kind = struct.unpack('>I4s', header)
        content = image.fp.read(min(length, 2**31) + 4)
        if zlib.crc32(kind + content[:-4]).to_bytes(4, 'big') != content[-4:]:
            raise ValueError(f'damaged: a wrong checksum in {kind!r}')
        if kind == b'IEND':
            break
    image.fp.seek(place)


def as_rgb(image: Image.Image, white: float) -> Image.Image:
    """An image in RGB, on a white ground; `white` is its `white_value`."""
    if white:
        grey = np.asarray(image, np.float32) * np.float32(255 / white)
        grey = grey if white > 0 else 255 + grey
        image = Image.fromarray(np.rint(grey).astype(np.uint8))
    elif image.has_transparency_data:
        ground = Image.new('RGBA', image.size, 'white')
        image = Image.alpha_composite(ground, image.convert('RGBA'))
    return image if image.mode == 'RGB' else image.convert('RGB')


def white_value(image: Image.Image) -> float:
    """The value that shows white, of more than 8 bits; -v where 0 does and v is black; 0 for 8.

    Raises:
        ValueError: none is known to.
    """
    if image.mode[0] not in 'IF':
        return 0
    tags = getattr(image, 'tag_v2', {})
    sign = -1 if tags.get(PHOTOMETRIC_INTERPRETATION) == 0 else 1
    if image.mode.startswith('I;16'):
        return sign * (2 ** tags.get(BITSPERSAMPLE, (16,))[0] - 1)
    if image.mode == 'I' and image.format in ('PNG', 'PPM'):
        return sign * 65535
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 255):
        kind, right = ('floats', '0..1 or 0..255') if image.mode == 'F' else ('integers', '0..255')
        raise ValueError(
            f'32 bit {kind} from {low:g} to {high:g}, of which none is known to be white; '
            f'store {right}, or 8 or 16 bits'
        )
    return sign * (1 if image.mode == 'F' and high <= 1 else 255)

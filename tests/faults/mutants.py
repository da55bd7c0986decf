"""Images in many formats, and what bad disks, networks and people make of files."""

import io
from random import Random

import numpy as np
from PIL import Image


def picture():
    """A smooth RGB image of 40 x 30 pixels with an edge."""
    rows, columns = np.mgrid[:30, :40]
    values = np.stack([rows * 8, columns * 6, 120 + 60 * (rows > columns)], axis=2)
    return Image.fromarray(values.astype(np.uint8))


def images():
    """{'name.suffix': bytes}."""
    rgb = picture()
    variants = {
        'base.jpg': (rgb, {'quality': 90}),
        'progressive.jpg': (rgb, {'quality': 90, 'progressive': True}),
        'grey.jpg': (rgb.convert('L'), {}),
        'rgb.png': (rgb, {}),
        'palette.png': (rgb.quantize(16), {}),
        'alpha.png': (rgb.convert('RGBA'), {}),
        'lossy.webp': (rgb, {'quality': 80}),
        'lossless.webp': (rgb, {'lossless': True}),
        'raw.tif': (rgb, {}),
        'lzw.tif': (rgb, {'compression': 'tiff_lzw'}),
        'deflate.tif': (rgb, {'compression': 'tiff_adobe_deflate'}),
        'rgb.bmp': (rgb, {}),
        'palette.gif': (rgb.quantize(16), {}),
        'rgb.ppm': (rgb, {}),
    }
    kinds = {'jpg': 'JPEG', 'tif': 'TIFF', 'ppm': 'PPM'}
    found = {}
    for name, (image, options) in variants.items():
        file, suffix = io.BytesIO(), name.rpartition('.')[2]
        image.save(file, kinds.get(suffix, suffix.upper()), **options)
        found[name] = file.getvalue()
    return found


def mutant(content: bytes, rng: Random) -> bytes:
    """One file with one kind of damage."""
    data = bytearray(content)
    place = rng.randrange(len(data))
    match rng.randrange(6):
        case 0:
            return bytes(data[:place])  # cut off
        case 1:
            for _ in range(rng.randint(1, 3)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 2:
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(min(64, len(data)))] = rng.choice([0, 1, 127, 128, 255])
        case 3:
            data[place : place + rng.randint(1, 64)] = b''  # a hole
        case 4:
            data[place : place + 32] = bytes(len(data[place : place + 32]))  # zeros
        case 5:
            data[place:place] = rng.randbytes(rng.randint(1, 16))
    return bytes(data)

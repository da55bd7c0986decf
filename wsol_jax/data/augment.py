"""What happens to a training image: cropped at random, mirrored, its colours varied."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageEnhance

from wsol_jax.data.decode import LARGE, resize_image
from wsol_jax.data.records import Pixels
from wsol_jax.fields import ConfigError, Range, documented, setting
from wsol_jax.names import unknown_name

if TYPE_CHECKING:  # counting processes know the settings, and draw nothing
    from numpy.random import Generator

_FLIP = 0.5
_AREA = (0.08, 1.0)
_LONGEST = 4 / 3
_TRIES = 10
_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@documented
@dataclass(frozen=True)
class AugmentConfig:
    """What happens to a training image; the result has the network's input size s."""

    crop: str = setting(
        'warp',
        "'warp' squashes the image to (s + margin)^2 and crops s x s at random (DGL); 'short_side' "
        "resizes the short side to s + margin and crops s x s at random (SPG); 'resized' crops a "
        'random part (8 to 100 % of the area, aspect 3/4 to 4/3) and squashes it to s x s '
        '(Inception)',
        'checkpoints',
        choices=('warp', 'short_side', 'resized'),
    )
    margin: int = setting(
        0, 'pixels; 0 for s / 7, the published 256 / 224', 'checkpoints', Range(0, 4096)
    )
    flip: bool = setting(True, 'mirror with probability 1/2', 'checkpoints')
    jitter: float = setting(
        0.0,
        'largest relative change of brightness, contrast and saturation; 0 for none',
        'checkpoints',
        Range(0, 1, '[)'),
    )


def augment(image: Pixels, size: int, setting: AugmentConfig, rng: 'Generator') -> Pixels:
    """Crop, mirror and recolour an image at random.

    Args:
        image: uint8 RGB [H, W, 3].
        size: side of the result in pixels.
        setting: which crop, with what margin, and what else; only that is drawn from `rng`.
        rng: decides everything.

    Returns:
        uint8 RGB [size, size, 3].

    Raises:
        ConfigError: an unknown crop.
    """
    if setting.crop not in _CROPS:
        raise ConfigError(unknown_name('crop', setting.crop, _CROPS))
    image = _CROPS[setting.crop](image, size, setting.margin or round(size / 7), rng)
    if setting.flip and rng.random() < _FLIP:
        image = image[:, ::-1]
    return _jittered(image, setting.jitter, rng) if setting.jitter else image


def _warp(image: Pixels, size: int, margin: int, rng: 'Generator') -> Pixels:
    return _random_crop(resize_image(image, (size + margin, size + margin)), size, rng)


def _short_side(image: Pixels, size: int, margin: int, rng: 'Generator') -> Pixels:
    height, width = image.shape[:2]
    short, side = min(width, height), size + margin
    wide, high = side * width // short, side * height // short
    if wide * high > LARGE:  # a thread of an image: nothing but the crop is made
        return _crop_of_resized(image, (wide, high), size, rng)
    return _random_crop(resize_image(image, (wide, high)), size, rng)


def _crop_of_resized(
    image: Pixels, resized: tuple[int, int], size: int, rng: 'Generator'
) -> Pixels:
    """`_random_crop` of the image at (width, height), but for rounding."""
    wide, high = resized
    top, left = rng.integers(0, [high - size, wide - size], endpoint=True)
    corners = np.array([left, top, left + size, top + size]) / [wide, high, wide, high]
    height, width = image.shape[:2]
    box = np.minimum(corners, 1) * [width, height, width, height]
    pixels = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, tuple(box))
    return np.array(pixels)


def _random_crop(image: Pixels, size: int, rng: 'Generator') -> Pixels:
    height, width = image.shape[:2]
    top, left = rng.integers(0, [height - size, width - size], endpoint=True)
    return image[top : top + size, left : left + size]


def _resized(image: Pixels, size: int, margin: int, rng: 'Generator') -> Pixels:
    top, left, height, width = _random_part(image.shape[0], image.shape[1], rng)
    return resize_image(image[top : top + height, left : left + width], (size, size))


def _random_part(height: int, width: int, rng: 'Generator') -> tuple[int, int, int, int]:
    """(top, left, height, width) of torchvision's RandomResizedCrop (Szegedy et al. 2015)."""
    for _ in range(_TRIES):
        area = height * width * rng.uniform(*_AREA)
        aspect = _LONGEST ** rng.uniform(-1, 1)
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            top, left = rng.integers(0, [height - high, width - wide], endpoint=True)
            return int(top), int(left), high, wide
    # Too long an image: its centre, of the nearest allowed aspect.
    wide = min(width, round(height * _LONGEST))
    high = min(height, round(width * _LONGEST))
    return (height - high) // 2, (width - wide) // 2, high, wide


def _jittered(image: Pixels, jitter: float, rng: 'Generator') -> Pixels:
    pixels = Image.fromarray(image)
    for kind in rng.permutation(len(_ENHANCERS)):
        pixels = _ENHANCERS[kind](pixels).enhance(rng.uniform(1 - jitter, 1 + jitter))
    return np.array(pixels)


_CROPS: dict[str, Callable[[Pixels, int, int, 'Generator'], Pixels]] = {
    'warp': _warp,
    'short_side': _short_side,
    'resized': _resized,
}

"""What happens to a training image: cropped at random, mirrored, its colours varied."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from wsol_jax.data.decode import IGNORED, LARGE, resize_image
from wsol_jax.data.records import Box, Pixels
from wsol_jax.fields import ConfigError, Range, documented, setting
from wsol_jax.names import unknown_name

if TYPE_CHECKING:  # counting processes know the settings, and draw nothing
    from numpy.random import Generator

_FLIP = 0.5
_AREA = (0.08, 1.0)
_LONGEST = 4 / 3
_TRIES = 10
_MEAN = (124, 116, 104)  # of ImageNet, with which the published recipes pad
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
        "(Inception); 'scale' resizes the long side to s times a random factor and crops s x s at "
        'random, padded with the mean colour of ImageNet where the image is smaller (DeepLab, IRN)'
        "; 'whole' squashes the image to s x s, as in evaluation: boxes stay where they are",
        'checkpoints',
        choices=('warp', 'short_side', 'resized', 'scale', 'whole'),
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
    scale: tuple[float, float] = setting(
        (0.5, 1.5), "least and greatest factor of 'scale'", 'checkpoints', Range(0.01, 16)
    )

    @property
    def keeps_places(self) -> bool:
        """Whether all of an image is seen as it is, so that boxes stay where they are."""
        return self.crop == 'whole' and not self.flip


class Crop(NamedTuple):
    """A window of a resized part of an image: what is done to its pixels and its label maps alike.

    Attributes:
        part: (left, top, right, bottom) of what is resized, in pixels of the image.
        resized: (width, height) that it gets.
        corner: (left, top) of the window in that; where the window leaves it there is no image.
        size: (width, height) of the window.
        mirrored: left and right of the window change places.
    """

    part: Box
    resized: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]
    mirrored: bool = False

    def pixels(self, image: Pixels) -> Pixels:
        """What is seen of an image [H, W, 3], bilinear; the mean colour where there is no image."""
        (left, top, right, bottom), (wide, high) = self.part, self.resized
        (x, y), (width, height) = self.corner, self.size
        inside = (max(x, 0), max(y, 0), min(x + width, wide), min(y + height, high))
        # Of a thread of an image nothing but the window is made.
        window_of = _window_alone if wide * high > LARGE else _window
        found = window_of(image[top:bottom, left:right], self.resized, inside)
        if found.shape[:2] != (height, width):
            found = _padded(found, (inside[0] - x, inside[1] - y), self.size)
        return found[:, ::-1] if self.mirrored else found

    def labels(self, label_map: Pixels, height: int, width: int) -> Pixels:
        """What is seen of a label map [h, w] of an image of H x W pixels, by nearest neighbour.

        Where there is no image it is `IGNORED`.
        """
        rows, columns = (
            _cells(self.corner[k], self.size[k], self.resized[k], self.part[k::2], side, cells)
            for k, side, cells in ((1, height, len(label_map)), (0, width, label_map.shape[1]))
        )
        edged = np.pad(label_map, ((0, 1), (0, 1)), constant_values=IGNORED)
        found = edged[np.ix_(rows, columns)]
        return found[:, ::-1] if self.mirrored else found


def augment(
    image: Pixels,
    label_maps: Mapping[str, Pixels],
    size: int,
    setting: AugmentConfig,
    rng: 'Generator',
) -> tuple[Pixels, dict[str, Pixels]]:
    """Crop, mirror and recolour an image at random, and crop and mirror its label maps with it.

    Args:
        image: uint8 RGB [H, W, 3].
        label_maps: uint8 [h, w] by name, each of the whole image, of any size.
        size: side of the result in pixels.
        setting: which crop, with what margin, and what else; only that is drawn from `rng`.
        rng: decides everything.

    Returns:
        uint8 RGB [size, size, 3], and the label maps [size, size].

    Raises:
        ConfigError: an unknown crop.
    """
    if setting.crop not in _CROPS:
        raise ConfigError(unknown_name('crop', setting.crop, _CROPS))
    height, width = image.shape[:2]
    crop = _CROPS[setting.crop](height, width, size, setting, rng)
    if setting.flip and rng.random() < _FLIP:
        crop = crop._replace(mirrored=True)
    image, label_maps = _cropped(image, label_maps, crop)
    return (_jittered(image, setting.jitter, rng) if setting.jitter else image), label_maps


def squash(
    image: Pixels, label_maps: Mapping[str, Pixels], size: tuple[int, int]
) -> tuple[Pixels, dict[str, Pixels]]:
    """A whole image [H, W, 3] and its label maps at (width, height); see `augment`."""
    height, width = image.shape[:2]
    return _cropped(image, label_maps, Crop((0, 0, width, height), size, (0, 0), size))


def _cropped(
    image: Pixels, label_maps: Mapping[str, Pixels], crop: Crop
) -> tuple[Pixels, dict[str, Pixels]]:
    shape = image.shape[:2]
    return crop.pixels(image), {name: crop.labels(m, *shape) for name, m in label_maps.items()}


def _window(image: Pixels, resized: tuple[int, int], window: Box) -> Pixels:
    left, top, right, bottom = window
    return resize_image(image, resized)[top:bottom, left:right]


def _window_alone(image: Pixels, resized: tuple[int, int], window: Box) -> Pixels:
    """`_window` but for rounding."""
    height, width = image.shape[:2]
    box = np.array(window) / [*resized, *resized] * [width, height, width, height]
    size = (window[2] - window[0], window[3] - window[1])
    pixels = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, tuple(box))
    return np.array(pixels)


def _padded(image: Pixels, corner: tuple[int, int], size: tuple[int, int]) -> Pixels:
    """The mean colour of (width, height) with an image on it, whose (left, top) is given."""
    (left, top), (height, width) = corner, image.shape[:2]
    ground = np.full((*size[::-1], 3), _MEAN, np.uint8)
    ground[top : top + height, left : left + width] = image
    return ground


def _cells(
    first: int, count: int, resized: int, part: Sequence[int], side: int, cells: int
) -> NDArray[np.int64]:
    """In which of the cells along a side of an image the pixels of a window lie; -1 for none."""
    shares = (first + np.arange(count) + 0.5) / resized
    start, stop = part
    found = ((start + shares * (stop - start)) / side * cells).astype(np.int64)
    return np.where((shares > 0) & (shares < 1), found, -1)


def _warp(height: int, width: int, size: int, setting: AugmentConfig, rng: 'Generator') -> Crop:
    side = size + _margin(size, setting)
    return _window_of((0, 0, width, height), (side, side), size, rng)


def _short_side(
    height: int, width: int, size: int, setting: AugmentConfig, rng: 'Generator'
) -> Crop:
    short, side = min(width, height), size + _margin(size, setting)
    resized = (side * width // short, side * height // short)
    return _window_of((0, 0, width, height), resized, size, rng)


def _scale(height: int, width: int, size: int, setting: AugmentConfig, rng: 'Generator') -> Crop:
    factor = size * rng.uniform(*setting.scale) / max(width, height)
    resized = (max(1, round(factor * width)), max(1, round(factor * height)))
    return _window_of((0, 0, width, height), resized, size, rng)


def _resized(height: int, width: int, size: int, setting: AugmentConfig, rng: 'Generator') -> Crop:
    top, left, high, wide = _random_part(height, width, rng)
    return Crop((left, top, left + wide, top + high), (size, size), (0, 0), (size, size))


def _whole(height: int, width: int, size: int, setting: AugmentConfig, rng: 'Generator') -> Crop:
    return Crop((0, 0, width, height), (size, size), (0, 0), (size, size))


def _margin(size: int, setting: AugmentConfig) -> int:
    return setting.margin or round(size / 7)


def _window_of(part: Box, resized: tuple[int, int], size: int, rng: 'Generator') -> Crop:
    """A random window; along a side that is shorter than it, one that holds all of the image."""
    spare = np.array(resized[::-1]) - size
    top, left = rng.integers(np.minimum(spare, 0), np.maximum(spare, 0), endpoint=True)
    return Crop(part, resized, (int(left), int(top)), (size, size))


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


_CROPS: dict[str, Callable[[int, int, int, AugmentConfig, 'Generator'], Crop]] = {
    'warp': _warp,
    'short_side': _short_side,
    'resized': _resized,
    'scale': _scale,
    'whole': _whole,
}

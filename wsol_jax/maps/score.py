"""From a raw map to a score map on the host: NumPy and OpenCV only, in float64.

Numbers that are compared with other people's tables go through here; counting processes import
this without JAX.
"""

from typing import Any

import cv2
import numpy as np


def score_map(raw: np.ndarray, size: Any, *, closing: int = 0, relu: bool = False) -> np.ndarray:
    """Score map of one raw map on the host, as wsolevaluation makes it.

    Bicubic resize in float64, then min-max, then optionally grey-scale closing.

    Args:
        raw: [h, w] raw map.
        size: of the result in pixels, as `size_of` takes it: (width, height), or the image.
        closing: diameter in pixels of the closing's elliptical kernel, see `close`; 0 for none.
        relu: set negative values to zero first, for methods whose definition ends in a ReLU.

    Returns:
        [height, width] float64 in [0, 1]; zeros if the map is constant or holds NaN.

    Example:
        >>> score_map(np.array([[-1, 1], [2, 3]]), (2, 2))
        array([[0.  , 0.5 ],
               [0.75, 1.  ]])
    """
    size = size_of(size)
    raw = np.asarray(raw, np.float64)
    raw = np.maximum(raw, 0) if relu else raw
    if is_blank(raw):
        return np.zeros(size[::-1])
    resized = cv2.resize(raw, size, interpolation=cv2.INTER_CUBIC)
    resized -= resized.min()
    if not resized.any():  # shrinking can miss every pixel that differed
        return resized
    scaled = resized / resized.max()
    return close(scaled, closing) if closing else scaled


def is_blank(raw: np.ndarray) -> bool:
    """Whether a raw map carries no location: constant, or with a NaN or an infinity."""
    return not np.isfinite(raw).all() or float(np.min(raw)) == float(np.max(raw))


def close(scores: np.ndarray, diameter: int) -> np.ndarray:
    """Grey-scale morphological closing: dilation, then erosion. Fills gaps between parts.

    Args:
        scores: [h, w] score map.
        diameter: of the elliptical kernel in pixels; about 1/16 of the side is a good start.

    Returns:
        [h, w], nowhere below `scores`.

    Raises:
        ValueError: the diameter is not positive and odd (an even kernel has no centre).
    """
    if diameter < 1 or diameter % 2 == 0:
        raise ValueError(f'closing diameter must be odd and positive, got {diameter}')
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (diameter, diameter))
    return cv2.morphologyEx(scores, cv2.MORPH_CLOSE, kernel)


_MOST_PIXELS = 2**31 - 1  # as config.data.max_pixels can be


def size_of(given: Any) -> tuple[int, int]:
    """(width, height) of an image, in the order of PIL's sizes and of boxes.

    Args:
        given: (width, height); or the image itself; or the shape of its array, (height, width,
            channels), which its third number tells from a size.

    Raises:
        ValueError: it is none of these.
    """
    if hasattr(given, 'convert'):  # a PIL image
        return given.size
    numbers = tuple(given.shape if np.ndim(given) == 3 else given if np.ndim(given) == 1 else ())
    if len(numbers) == 3 and numbers[2] in (1, 3, 4):
        numbers = numbers[1::-1]
    if len(numbers) == 2 and all(isinstance(n, int | np.integer) and n > 0 for n in numbers):
        width, height = map(int, numbers)
        if width * height > _MOST_PIXELS:
            raise ValueError(f'no image has {width}x{height} pixels')
        return width, height
    got = f'an array {list(given.shape)}' if np.ndim(given) > 1 else repr(given)
    raise ValueError(
        'the size of an image is (width, height), or the image, or its shape '
        f'(height, width, channels); got {got}'
    )


def sizes_of(given: Any, count: int) -> list[tuple[int, int]]:
    """(width, height) of each of `count` images.

    Args:
        given: one for all, as `size_of` takes it; or one for each, such as the images themselves.

    Raises:
        ValueError: it is none of these, or there are others than `count`.
    """
    if hasattr(given, 'convert') or getattr(given, 'ndim', 0) in (1, 3):
        return [size_of(given)] * count
    each = list(given)
    if each and isinstance(each[0], int | np.integer):
        return [size_of(each)] * count
    if len(each) != count:
        raise ValueError(f'sizes must be one for all or one for each of {count} images, got {each}')
    return [size_of(one) for one in each]

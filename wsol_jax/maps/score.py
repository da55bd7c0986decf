"""From a raw map to a score map on the host: NumPy and OpenCV only, in float64.

Numbers that are compared with other people's tables go through here; counting processes import
this without JAX.
"""

import cv2
import numpy as np


def score_map(
    raw: np.ndarray, size: tuple[int, int], *, closing: int = 0, relu: bool = False
) -> np.ndarray:
    """Score map of one raw map on the host, as wsolevaluation makes it.

    Bicubic resize in float64, then min-max, then optionally grey-scale closing.

    Args:
        raw: [h, w] raw map.
        size: (width, height) of the result in pixels.
        closing: diameter in pixels of the closing's elliptical kernel, see `close`; 0 for none.
        relu: set negative values to zero first, for methods whose definition ends in a ReLU.

    Returns:
        [height, width] float64 in [0, 1]; zeros if the map is constant or holds NaN.
    """
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

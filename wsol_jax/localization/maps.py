"""From raw maps to score maps: normalize, resize, fuse, close.

The device functions (JAX) are for speed inside one compiled program; `score_map` is the host path
in float64 that numbers compared with other people's tables go through.
"""

from collections.abc import Callable, Sequence

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from wsol_jax.names import unknown_name


def min_max(maps: jax.Array) -> jax.Array:
    """Scales each map [..., h, w] to [0, 1]; a constant map or one with NaN becomes zeros."""
    low = jnp.min(maps, axis=(-2, -1), keepdims=True)
    span = jnp.max(maps, axis=(-2, -1), keepdims=True) - low
    usable = (span > 0) & jnp.isfinite(span)
    return jnp.where(usable, (maps - low) / jnp.where(usable, span, 1), 0)


def resize(maps: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear resize of maps [..., h, w] to [..., *size], size = (height, width)."""
    if maps.shape[-2:] == size:
        return maps
    return jax.image.resize(maps, (*maps.shape[:-2], *size), 'linear', antialias=False)


FUSIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'mean': lambda stack: jnp.mean(stack, axis=0),
    'max': lambda stack: jnp.max(stack, axis=0),
    'product': lambda stack: jnp.prod(stack, axis=0),
    # LayerCAM (Jiang et al., IEEE TIP 2021, eq. 8 and 9)
    'layer_cam': lambda stack: jnp.max(jnp.tanh(2 * stack), axis=0),
}


def fuse(maps: Sequence[jax.Array], how: str = 'mean') -> jax.Array:
    """Fuses maps [..., h_i, w_i]: each min-max scaled, resized to the largest, then combined.

    Args:
        maps: the maps; their leading axes agree.
        how: one of `FUSIONS`; 'layer_cam' is the largest tanh(2 map).

    Returns:
        [..., h, w] with (h, w) the largest resolution among the maps.

    Raises:
        ValueError: `how` is none of these.
    """
    if how not in FUSIONS:
        raise ValueError(unknown_name('fusion', how, FUSIONS))
    height, width = max((m.shape[-2:] for m in maps), key=lambda s: s[0] * s[1])
    return FUSIONS[how](jnp.stack([resize(min_max(m), (height, width)) for m in maps]))


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

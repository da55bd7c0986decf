"""95 % bootstrap intervals: how far a score would move with other images of the same kind.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile intervals).
"""

from collections.abc import Iterator

import numpy as np

from wsol_jax.evaluation.pixel_metrics import average_precision

RESAMPLES = 1000
_AT_ONCE = 50
_PERCENTILES = (2.5, 97.5)


def mean_intervals(values: np.ndarray) -> np.ndarray:
    """Intervals of means over images.

    Args:
        values: [n, M], M scores of each image; NaN where an image does not count.

    Returns:
        [M, 2] lower and upper end; NaN for a score that no image has.
    """
    counts = ~np.isnan(values)
    known = np.where(counts, values, 0.0)
    means = [_ratio(w @ known, w @ counts) for w in _weights(len(values))]
    return _interval(np.concatenate(means))


def pxap_interval(foreground: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Interval [2] of PxAP in percent.

    Args:
        foreground: [n, bins] histogram of scores of each image, as of `Table`.
        background: likewise.
    """
    draws = [average_precision(w @ foreground, w @ background) for w in _weights(len(foreground))]
    return _interval(np.concatenate(draws)[:, None])[0]


def _weights(count: int) -> Iterator[np.ndarray]:
    """[<=50, n] how often each image was drawn, always the same: scores stay comparable."""
    rng = np.random.default_rng(0)
    for _ in range(0, RESAMPLES, _AT_ONCE):
        drawn = rng.integers(count, size=(_AT_ONCE, count))
        yield np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(float)


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _interval(draws: np.ndarray) -> np.ndarray:
    """[M, 2] percentiles of draws [resamples, M]; a draw in which nothing counted is left out."""
    ends = np.full((draws.shape[1], 2), np.nan)
    some = ~np.isnan(draws).all(axis=0)
    ends[some] = np.nanpercentile(draws[:, some], _PERCENTILES, axis=0).T
    return ends

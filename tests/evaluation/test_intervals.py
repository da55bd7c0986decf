"""Bootstrap intervals against the binomial's standard error and a plain resampling loop."""

import numpy as np
import pytest

from wsol_jax.evaluation.intervals import mean_intervals, pxap_interval
from wsol_jax.evaluation.pixel_metrics import average_precision


def test_a_share_has_the_normal_approximation_of_the_binomial():
    count = 2000
    hits = np.arange(count) % 10 < 7
    ((low, high),) = mean_intervals(hits[:, None].astype(float))
    half = 1.96 * np.sqrt(0.7 * 0.3 / count)
    assert (low, high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.1 * half)


def test_images_that_do_not_count_are_left_out():
    rng = np.random.default_rng(1)
    values = rng.random((300, 2))
    values[::3, 0] = np.nan
    values[:, 1] = np.nan
    known, none = mean_intervals(values)
    mean, error = np.nanmean(values[:, 0]), np.nanstd(values[:, 0]) / np.sqrt(200)
    assert known == pytest.approx([mean - 1.96 * error, mean + 1.96 * error], abs=0.3 * error)
    assert np.isnan(none).all()


def test_nothing_varies_where_all_images_agree():
    assert mean_intervals(np.full((5, 1), 3.0)).tolist() == [[3.0, 3.0]]


def test_scores_are_resampled_together_and_always_the_same():
    values = np.random.default_rng(2).random((40, 1))
    pair = mean_intervals(np.hstack([values, values + 1]))
    np.testing.assert_allclose(pair[1], pair[0] + 1)
    # Sums of one column and of two may be rounded otherwise.
    np.testing.assert_allclose(pair[:1], mean_intervals(values), rtol=1e-12)
    np.testing.assert_array_equal(mean_intervals(values), mean_intervals(values))


def test_pxap_against_a_plain_loop():
    rng = np.random.default_rng(3)
    foreground = rng.integers(0, 50, (30, 12)) * np.arange(12)
    background = rng.integers(0, 200, (30, 12))
    draws = []
    for _ in range(1000):
        drawn = rng.integers(30, size=30)
        draws.append(average_precision(foreground[drawn].sum(0), background[drawn].sum(0)))
    expected = np.percentile(draws, [2.5, 97.5])
    spread = expected[1] - expected[0]
    found = pxap_interval(foreground, background)
    np.testing.assert_allclose(found, expected, atol=0.1 * spread)
    assert found[0] < average_precision(foreground.sum(0), background.sum(0)) < found[1]

"""CenterPoint's radii, heatmaps, losses and peaks by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsol_jax.models.center_point import (
    cells_of,
    gaussian_radius,
    gaussians,
    heatmap_loss,
    peaks,
    true_heatmap,
)
from wsol_jax.models.pillars import Grid

GRID = Grid.of((0, -5, -1, 12, 5, 1), 1.0)


def test_the_radius_is_the_least_of_three_cases():
    # 8 x 4 cells: shifted (12 + sqrt(144 - 4 32 .9 / 1.1)) / 2, inside (24 + sqrt(576 - 16 32 .9))
    # / 2, around (-2.4 + sqrt(5.76 + 1.6 .9 32)) / 2.
    expected = min((12 + np.sqrt(144 - 128 * 0.9 / 1.1)) / 2, (-2.4 + np.sqrt(5.76 + 46.08)) / 2)
    found = gaussian_radius(jnp.array([8.0, 80.0, 1.0]), jnp.array([4.0, 40.0, 1.0]))
    assert float(found[0]) == max(2, np.floor(expected))
    assert float(found[1]) == np.floor(10 * (-2.4 + np.sqrt(5.76 + 46.08)) / 2)
    assert float(found[2]) == 2


def test_gaussians_by_hand():
    places = jnp.array([[2.6, 0.2, 0], [2.6, 0.2, 0]])
    found = gaussians(places, jnp.array([2.0, 2.0]), jnp.array([True, False]), GRID)
    assert found.shape == (2, 10, 12) and not found[1].any()
    sigma = 5 / 6
    assert float(found[0, 5, 2]) == 1
    assert float(found[0, 6, 4]) == pytest.approx(np.exp(-5 / (2 * sigma**2)), rel=1e-5)
    assert float(found[0, 5, 5]) == 0 and np.count_nonzero(found[0]) == 25
    np.testing.assert_allclose(cells_of(places, GRID)[0], [2.6, 5.2], rtol=1e-6)


def test_heatmaps_keep_the_larger_one():
    boxes = jnp.array([[2.5, 0.5, 0, 1, 1, 1, 0], [4.5, 0.5, 0, 1, 1, 1, 0], [8, 2, 0, 1, 1, 1, 0]])
    found = true_heatmap(boxes, jnp.array([1, 1, -1]), 3, GRID)
    assert found.shape == (10, 12, 3)
    assert not found[..., 0].any() and not found[..., 2].any()
    assert np.argwhere(found[..., 1] == 1).tolist() == [[5, 2], [5, 4]]
    expected = np.exp(-1 / (2 * (5 / 6) ** 2))
    assert float(found[5, 3, 1]) == pytest.approx(expected, rel=1e-5)


def test_the_focal_loss_by_hand():
    logits = np.array([[0.3, -1.0]], np.float32)
    p = 1 / (1 + np.exp(-logits[0].astype(float)))
    expected = -((1 - p[0]) ** 2) * np.log(p[0]) - 0.4**4 * p[1] ** 2 * np.log(1 - p[1])
    found = heatmap_loss(logits, np.array([[1.0, 0.6]], np.float32))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_peaks_are_decoded():
    logits = np.full((10, 12, 2), -5.0, np.float32)
    logits[5, 2, 1], logits[5, 3, 1], logits[0, 11, 0] = 2.0, 1.5, 1.0  # the second is no peak
    codes = np.zeros((10, 12, 8), np.float32)
    codes[5, 2] = [0.25, 0.75, 0.4, *np.log([4, 2, 1.5]), 1, 0]
    find = jax.jit(peaks, static_argnums=(2, 3))
    boxes, scores, classes = find(logits, codes, 3, GRID)
    np.testing.assert_allclose(boxes[0], [2.25, 0.75, 0.4, 4, 2, 1.5, np.pi / 2], rtol=1e-5)
    np.testing.assert_allclose(scores[:2], nnx.sigmoid(jnp.array([2.0, 1.0])), rtol=1e-6)
    assert classes[:2].tolist() == [1, 0] and scores[2] < 0.01

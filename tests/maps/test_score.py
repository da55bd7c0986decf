"""Score maps and closing on the host."""

import cv2
import numpy as np
import pytest

from wsol_jax.maps.score import close, is_blank, score_map


def random_maps(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_score_map_is_cubic_resize_then_min_max_in_float64():
    raw = random_maps(7, 9)
    scores = score_map(raw, (60, 40))
    assert scores.shape == (40, 60) and scores.dtype == np.float64
    resized = cv2.resize(raw.astype(np.float64), (60, 40), interpolation=cv2.INTER_CUBIC)
    expected = (resized - resized.min()) / (resized.max() - resized.min())
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-12)
    assert scores.min() == 0 and scores.max() == 1


def test_score_map_order_matters():
    # Cubic overshoots: scaling before the resize would leave values below 0 and above 1.
    raw = np.zeros((4, 4))
    raw[1, 1] = 1
    first = cv2.resize(raw, (16, 16), interpolation=cv2.INTER_CUBIC)
    assert first.min() < 0
    assert score_map(raw, (16, 16)).min() == 0


def test_score_map_relu_comes_first():
    raw = np.array([[-8.0, -8.0, 0.0], [-8.0, 1.0, 2.0], [-8.0, 1.0, 0.0]])
    np.testing.assert_allclose(
        score_map(raw, (3, 3), relu=True), [[0, 0, 0], [0, 0.5, 1], [0, 0.5, 0]]
    )
    np.testing.assert_allclose(
        score_map(raw, (3, 3)), [[0, 0, 0.8], [0, 0.9, 1], [0, 0.9, 0.8]], rtol=1e-12
    )


@pytest.mark.parametrize(
    'raw',
    [
        np.zeros((3, 3)),
        np.full((3, 3), -2.5),
        np.array([[0, np.nan], [1, 2]]),
        np.array([[0, np.inf], [1, 2]]),
    ],
)
def test_blank_maps_score_zero(raw):
    assert is_blank(raw)
    scores = score_map(raw, (5, 4))
    assert scores.shape == (4, 5) and not scores.any()


def test_negative_map_is_blank_after_relu_only():
    raw = -1 - np.arange(9.0).reshape(3, 3)
    assert not score_map(raw, (4, 4), relu=True).any()
    assert score_map(raw, (4, 4)).max() == 1


def test_map_that_vanishes_in_shrinking_scores_zero():
    # Cubic interpolation without antialiasing reads 4 of every 16 pixels.
    raw = np.zeros((64, 64))
    raw[16 * 2, 16 * 2] = 1
    scores = score_map(raw, (4, 4))
    assert scores.shape == (4, 4) and not scores.any()


def test_score_map_leaves_its_input_alone():
    raw = random_maps(6, 6).astype(np.float64)
    before = raw.copy()
    score_map(raw, (6, 6), relu=True, closing=3)
    score_map(raw, (6, 6))
    np.testing.assert_array_equal(raw, before)


@pytest.mark.parametrize('diameter', [1, 3, 7])
def test_closing_never_lowers_and_is_idempotent(diameter):
    scores = np.random.default_rng(1).random((24, 31))
    closed = close(scores, diameter)
    assert closed.shape == scores.shape
    assert (closed >= scores).all()
    assert diameter == 1 or (closed > scores).any()
    np.testing.assert_array_equal(close(closed, diameter), closed)


def test_closing_fills_a_gap_narrower_than_the_kernel():
    scores = np.zeros((9, 11))
    scores[2:7, 2:5] = scores[2:7, 6:9] = 1
    assert close(scores, 3)[4, 5] == 1 and close(scores, 3)[4, 9] == 0
    scores[2:7, 4:7] = 0  # now the gap is 3 + 1 wide
    assert close(scores, 3)[4, 5] == 0


def test_closing_by_hand():
    # The elliptical kernel of diameter 3 is a cross.
    scores = np.random.default_rng(3).random((6, 7))

    def sweep(image, best, outside):
        padded = np.pad(image, 1, constant_values=outside)
        cross = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]
        return best([padded[y : y + 6, x : x + 7] for y, x in cross], axis=0)

    expected = sweep(sweep(scores, np.max, -np.inf), np.min, np.inf)
    np.testing.assert_array_equal(close(scores, 3), expected)
    raw = score_map(scores, (7, 6))
    np.testing.assert_array_equal(score_map(scores, (7, 6), closing=3), close(raw, 3))


@pytest.mark.parametrize('diameter', [0, 2, 4, -3])
def test_closing_needs_a_centre(diameter):
    with pytest.raises(ValueError, match=f'odd and positive, got {diameter}'):
        close(np.zeros((4, 4)), diameter)

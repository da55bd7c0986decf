"""Normalizing, resizing, fusing and closing maps, on the device and on the host."""

import cv2
import numpy as np
import pytest

from wsol_jax.localization.maps import close, fuse, is_blank, min_max, resize, score_map


def random_maps(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_min_max_scales_each_map():
    maps = np.array([[[1.0, 3.0], [2.0, 5.0]], [[-4.0, 0.0], [0.0, 4.0]]], np.float32)
    expected = [[[0, 0.5], [0.25, 1]], [[0, 0.5], [0.5, 1]]]
    np.testing.assert_allclose(min_max(maps), expected, rtol=1e-6)
    np.testing.assert_allclose(min_max(maps[None])[0], expected, rtol=1e-6)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_min_max_of_useless_maps_is_zero_and_leaves_the_others(value):
    maps = random_maps(3, 4, 4)
    maps[0] = 2.5
    maps[1, 2, 2] = value
    scaled = np.asarray(min_max(maps))
    assert not scaled[:2].any()
    assert scaled[2].min() == 0 and scaled[2].max() == 1


@pytest.mark.parametrize(('shape', 'size'), [((7, 7), (28, 28)), ((5, 8), (9, 31))])
def test_resize_equals_opencv_bilinear(shape, size):
    maps = random_maps(2, 3, *shape)
    resized = resize(maps, size)
    assert resized.shape == (2, 3, *size)
    expected = cv2.resize(maps[1, 2].astype(float), size[::-1], interpolation=cv2.INTER_LINEAR)
    # float32 rounds the sampling positions.
    np.testing.assert_allclose(resized[1, 2], expected, rtol=0, atol=5e-6)


def test_resize_does_not_smooth_when_it_shrinks():
    maps = random_maps(1, 12, 12)
    expected = cv2.resize(maps[0].astype(float), (5, 4), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(resize(maps, (4, 5))[0], expected, rtol=0, atol=5e-6)
    assert resize(maps, (12, 12)) is maps


@pytest.mark.parametrize(
    ('how', 'expected'),
    [
        ('mean', [[0.0, 0.5], [0.25, 1.0]]),
        ('max', [[0.0, 1.0], [0.5, 1.0]]),
        ('product', [[0.0, 0.0], [0.0, 1.0]]),
    ],
)
def test_fuse_by_hand(how, expected):
    # min-max: (0 1)(.5 1) and (0 0)(0 1)
    maps = [np.float32([[2, 6], [4, 6]]), np.float32([[-3, -3], [-3, 7]])]
    np.testing.assert_allclose(fuse(maps, how), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ('how', 'combine'), [('mean', np.mean), ('max', np.max), ('product', np.prod)]
)
def test_fuse_of_different_resolutions_is_at_the_largest(how, combine):
    maps = [random_maps(2, *s, seed=s[0]) for s in ((4, 4), (8, 6), (2, 3))]
    fused = fuse(maps, how)
    assert fused.shape == (2, 8, 6)
    for i in range(2):
        scaled = [(m[i] - m[i].min()) / np.ptp(m[i]) for m in maps]
        parts = [cv2.resize(m, (6, 8), interpolation=cv2.INTER_LINEAR) for m in scaled]
        np.testing.assert_allclose(fused[i], combine(parts, axis=0), rtol=0, atol=2e-6)


def test_fuse_with_a_blank_part():
    maps = [np.float32([[0, 4], [2, 4]]), np.full((2, 2), np.nan, np.float32)]
    np.testing.assert_allclose(fuse(maps, 'mean'), [[0, 0.5], [0.25, 0.5]])


def test_unknown_fusion():
    with pytest.raises(ValueError, match="'maks'; did you mean 'max'"):
        fuse([random_maps(2, 2)], 'maks')


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

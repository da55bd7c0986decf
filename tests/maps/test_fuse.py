"""Normalizing, resizing and fusing maps on the device."""

import cv2
import numpy as np
import pytest

from wsol_jax.maps.fuse import fuse, min_max, resize


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

"""Keys that depend on the image alone, noise with them, resizing."""

import cv2
import jax
import numpy as np
import pytest

from wsol_jax.localization.views import image_keys, noisy, other_keys, scaled


@pytest.fixture(scope='module')
def inputs():
    """Float images [5,12,10,3] of very different contrast and brightness."""
    rng = np.random.default_rng(1)
    contrast, offset = np.array([0.01, 1, 2, 5, 40]), np.array([0, 0, -3, 9, 100])
    noise = rng.normal(size=(12, 10, 3, 5)) * contrast + offset
    return np.moveaxis(noise, -1, 0).astype(np.float32)


compiled_keys = jax.jit(lambda inputs, seed: jax.random.key_data(image_keys(inputs, seed)))


@jax.jit
def compiled_noisy(inputs, sigma, sample):
    return noisy(inputs, sigma, other_keys(image_keys(inputs, 0), sample))


def bits(inputs, seed=0):
    """The keys as a list of tuples, to compare and to count."""
    data = compiled_keys(np.asarray(inputs, np.float32), seed)
    return [tuple(row) for row in np.asarray(data).tolist()]


def test_keys_are_those_of_the_image_wherever_it_is(inputs):
    keys = bits(inputs)
    assert bits(inputs[::-1]) == keys[::-1]
    assert [bits(inputs[i : i + 1])[0] for i in range(5)] == keys
    assert bits(np.concatenate([inputs, inputs[:2]]))[5:] == keys[:2]


def test_different_images_have_different_keys(inputs):
    image = inputs[1]
    swapped = image.copy()
    swapped[[0, 7], [0, 3]] = swapped[[7, 0], [3, 0]]
    nudged = image.copy()
    nudged[11, 9, 2] = np.nextafter(nudged[11, 9, 2], np.inf)
    permuted = np.random.default_rng(0).permutation(image.reshape(-1, 3)).reshape(image.shape)
    others = [image[::-1], image[:, ::-1], image[..., ::-1], -image, np.roll(image, 1, 1)]
    many = [*inputs, swapped, nudged, permuted, *others]
    assert len(set(bits(many))) == len(many)


def test_images_of_few_values_have_different_keys():
    # Their bit patterns end in many zeros.
    rng = np.random.default_rng(2)
    black_and_white = rng.integers(0, 2, (300, 8, 8, 3))
    assert len(set(bits(black_and_white))) == 300
    grey_levels = rng.integers(-128, 128, (2000, 8, 8, 3)) / 64
    assert len(set(bits(grey_levels))) == 2000


def test_bytes_have_keys_of_their_own():
    images = np.random.default_rng(3).integers(0, 4, (500, 6, 5, 3), np.uint8)
    keys = jax.random.key_data(jax.jit(lambda x: image_keys(x, 0))(images))
    assert len(np.unique(keys, axis=0)) == 500
    nudged = images[:1] + np.eye(6, 5, dtype=np.uint8)[..., None]
    assert not (jax.random.key_data(image_keys(nudged, 0)) == keys).all(1).any()


def test_another_seed_gives_other_keys(inputs):
    assert not set(bits(inputs, 0)) & set(bits(inputs, 1))
    assert bits(inputs, 7) == bits(inputs, 7)


@pytest.fixture(scope='module')
def large():
    rng = np.random.default_rng(4)
    contrast = np.array([0.2, 1, 30]).reshape(3, 1, 1, 1)
    return (rng.normal(size=(3, 64, 64, 3)) * contrast + 5 * contrast).astype(np.float32)


def noises(inputs, sigma, sample):
    """What was added, in units of each image's standard deviation."""
    added = np.asarray(compiled_noisy(inputs, sigma, sample), np.float64) - inputs
    return added / inputs.std(axis=(1, 2, 3), keepdims=True, dtype=np.float64)


@pytest.mark.parametrize('sigma', [0.3, 2.0])
def test_noise_is_gaussian_in_units_of_each_images_deviation(large, sigma):
    for noise in noises(large, sigma, 1) / sigma:
        assert abs(noise.mean()) < 0.04  # 12288 numbers: four standard errors
        assert noise.std() == pytest.approx(1, abs=0.03)
        assert np.mean(np.abs(noise) < 1) == pytest.approx(0.6827, abs=0.02)


def test_noise_is_the_images_own_and_the_same_every_time(large):
    first = np.asarray(compiled_noisy(large, 0.3, 1))
    np.testing.assert_array_equal(first, compiled_noisy(large, 0.3, 1))
    alone = np.concatenate([compiled_noisy(large[i : i + 1], 0.3, 1) for i in range(3)])
    np.testing.assert_allclose(first, alone, rtol=1e-5, atol=1e-5)
    turned = compiled_noisy(large[::-1], 0.3, 1)[::-1]
    np.testing.assert_allclose(first, turned, rtol=1e-5, atol=1e-5)


def test_samples_and_images_draw_independent_noise(large):
    drawn = [noise.ravel() for sample in (0, 1, 2) for noise in noises(large, 0.3, sample)]
    between = np.corrcoef(drawn) - np.eye(9)
    assert np.abs(between).max() < 0.05


def test_larger_views_are_bilinear(inputs):
    actual = scaled(inputs, 1.5)
    assert actual.shape == (5, 18, 15, 3)
    for i in range(5):
        expected = cv2.resize(inputs[i].astype(np.float64), (15, 18))
        np.testing.assert_allclose(actual[i], expected, rtol=1e-5, atol=1e-5)


def test_smaller_views_average_what_they_leave_out():
    ramp = np.arange(16.0, dtype=np.float32)[None, :, None, None] * np.ones((1, 1, 12, 3), 'f')
    half = np.asarray(scaled(ramp, 0.5))
    assert half.shape == (1, 8, 6, 3)
    # Pixel i lies midway between 2i and 2i + 1.
    np.testing.assert_allclose(half[0, 1:-1, 0, 0], 2 * np.arange(1, 7) + 0.5, rtol=1e-5)
    stripes = np.tile(np.float32([0, 0, 1, 1]).reshape(1, 4, 1, 1), (1, 4, 12, 3))
    quarter = np.asarray(scaled(stripes, 0.25))[0, 1:-1]
    np.testing.assert_allclose(quarter, 0.5, atol=0.13)


def test_a_scale_that_leaves_nothing_is_told(inputs):
    with pytest.raises(ValueError, match=r'scale 0\.01 leaves 0x0 pixels of the input'):
        scaled(inputs, 0.01)


def test_scale_one_leaves_everything(inputs):
    assert scaled(inputs, 1.0) is inputs
    assert scaled(inputs, 0.74).shape == (5, 9, 7, 3)

import math
import tracemalloc

import numpy as np
import pytest

from wsol_jax.config import AugmentConfig, ConfigError
from wsol_jax.data import resize_image
from wsol_jax.data.augment import augment

SIZE = 28


def plain(crop, margin=0, flip=False, jitter=0.0):
    return AugmentConfig(crop, margin, flip, jitter)


def ramp(height, width):
    """Red tells the column and green the row, up to 240 of them."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, rows // 2], axis=-1).astype(np.uint8)


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize('seed', range(8))
def test_warp_draws_as_it_always_did(seed):
    """Top and left in one draw, then the coin: published runs depend on it."""
    image, rng = noise(40, 61), np.random.default_rng(seed)
    top, left = rng.integers(0, 4, size=2, endpoint=True)
    expected = resize_image(image, (32, 32))[top : top + SIZE, left : left + SIZE]
    expected = expected[:, ::-1] if rng.random() < 0.5 else expected
    got = augment(image, SIZE, AugmentConfig(), np.random.default_rng(seed))
    np.testing.assert_array_equal(got, expected, strict=True)


@pytest.mark.parametrize(
    ('crop', 'height', 'width', 'resized'),
    [
        ('warp', 90, 60, (34, 34)),
        ('short_side', 90, 60, (34, 51)),
        ('short_side', 45, 100, (75, 34)),
        ('short_side', 34, 34, (34, 34)),
    ],
)
def test_crops_are_windows_of_the_resized_image_everywhere(crop, height, width, resized):
    whole = resize_image(noise(height, width), resized)
    windows = {
        whole[top : top + SIZE, left : left + SIZE].tobytes(): (top, left)
        for top in range(resized[1] - SIZE + 1)
        for left in range(resized[0] - SIZE + 1)
    }
    rng, setting = np.random.default_rng(0), plain(crop, margin=6)
    found = [
        windows[augment(noise(height, width), SIZE, setting, rng).tobytes()] for _ in range(400)
    ]
    tops, lefts = map(set, zip(*found, strict=True))
    assert tops == set(range(resized[1] - SIZE + 1))
    assert lefts == set(range(resized[0] - SIZE + 1))


@pytest.mark.parametrize(('size', 'side'), [(224, 256), (28, 32)])
def test_margin_is_a_seventh_by_default(size, side):
    """The short side of the resized image is known from the ramp along it."""
    image = ramp(200, 200)
    got = augment(image, size, plain('short_side'), np.random.default_rng(1)).astype(float)
    slope = (got[size // 2, -5, 0] - got[size // 2, 4, 0]) / (size - 9)
    assert 200 / slope == pytest.approx(side, rel=0.01 if size > 200 else 0.03)


def parts(count, height, width):
    """Area and aspect, relative to the image, of random parts, read off the ramp."""
    rng, image = np.random.default_rng(0), ramp(height, width)
    for _ in range(count):
        got = augment(image, 64, plain('resized'), rng).astype(float)
        wide = (got[32, 47, 0] - got[32, 16, 0]) / 31 * 64
        high = (got[47, 32, 1] - got[16, 32, 1]) / 31 * 64
        yield wide * high / (height * width), wide / high, got[32, 32, 0] - wide / 2


def test_resized_has_the_published_areas_and_aspects():
    """Below 70 % of a square image every aspect fits: area and log aspect are uniform there."""
    area, aspect, left = np.array(list(parts(2000, 240, 240))).T
    assert 0.07 < area.min() < 0.1 and 0.85 < area.max() < 1.03
    assert 0.7 < aspect.min() < 0.78 and 1.29 < aspect.max() < 1.4
    small = area < 0.7
    quarters = (0.25, 0.5, 0.75)
    np.testing.assert_allclose(
        np.quantile(area[small], quarters), 0.08 + 0.62 * np.array(quarters), atol=0.035
    )
    np.testing.assert_allclose(
        np.quantile(np.log(aspect[small]), quarters),
        np.log(4 / 3) * np.array([-0.5, 0, 0.5]),
        atol=0.03,
    )
    free = 240 * (1 - np.sqrt(area * aspect))
    assert np.mean(left[free > 50] / free[free > 50]) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ('height', 'width', 'centre'),
    [(20, 400, np.s_[:, 186:213]), (400, 20, np.s_[186:213, :])],
)
def test_resized_takes_the_centre_where_no_part_fits(height, width, centre):
    image = noise(height, width)
    got = augment(image, SIZE, plain('resized'), np.random.default_rng(0))
    np.testing.assert_array_equal(got, resize_image(image[centre], (SIZE, SIZE)))


def test_resized_tries_ten_times():
    """At 3:1 a try fits with probability (E[aspect] / 3 - 0.08) / 0.92 = 0.28: 0.72^10 is left."""
    image, rng = noise(80, 240), np.random.default_rng(0)
    centre = resize_image(image[:, 66:173], (8, 8))
    count = sum((augment(image, 8, plain('resized'), rng) == centre).all() for _ in range(2000))
    assert 54 < count < 95


def test_flip_mirrors_half_of_the_images():
    image, mirrored = noise(32, 32), 0
    for seed in range(400):
        one, two = (
            augment(image, SIZE, plain('warp', flip=flip), np.random.default_rng(seed))
            for flip in (False, True)
        )
        assert (one == two).all() or (one[:, ::-1] == two).all()
        mirrored += (one != two).any()
    assert 170 < mirrored < 230


def luminance(image):
    return (image @ np.array([0.299, 0.587, 0.114]))[..., None]


def enhanced(image, kind, factor):
    """Blends with black, with the mean luminance, or with the luminance of each pixel."""
    ground = (0.0, luminance(image).mean(), luminance(image))[kind]
    return np.clip(ground + factor * (image - ground), 0, 255)


def test_jitter_varies_brightness_contrast_and_saturation_in_any_order():
    image, orders = noise(32, 32), set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        cropped = augment(image, SIZE, plain('warp'), rng)
        expected, order = cropped.astype(float), tuple(rng.permutation(3).tolist())
        for kind in order:
            expected = enhanced(expected, kind, rng.uniform(0.6, 1.4))
        orders.add(order)
        got = augment(image, SIZE, plain('warp', jitter=0.4), np.random.default_rng(seed))
        assert abs(got - expected).max() < 4  # PIL cuts fractions off, three times
    assert len(orders) == math.factorial(3)


def test_only_what_is_switched_on_is_drawn():
    def follows(setting):
        rng = np.random.default_rng(3)
        augment(noise(40, 40), SIZE, setting, rng)
        return rng.random()

    rng = np.random.default_rng(3)
    rng.integers(0, 4, size=2, endpoint=True)
    assert follows(plain('warp')) == rng.random()
    assert follows(plain('warp', flip=True)) == rng.random()


def test_an_unknown_crop_is_named():
    with pytest.raises(ConfigError, match=r"unknown crop 'short'; .*known: warp, short_side"):
        augment(noise(40, 40), SIZE, plain('short'), np.random.default_rng(0))


@pytest.mark.parametrize(('height', 'width'), [(90, 60), (45, 100), (34, 34), (300, 7)])
def test_the_crop_alone_is_resized_where_all_would_be_too_large(monkeypatch, height, width):
    """The same window as of the whole, to a level of rounding; as many draws."""
    for seed in range(5):
        ways = []
        for limit in (64_000_000, 1):
            monkeypatch.setattr('wsol_jax.data.augment.LARGE', limit)
            rng = np.random.default_rng(seed)
            crop = augment(noise(height, width), SIZE, plain('short_side', 6), rng)
            ways.append((crop.astype(int), rng.random()))
        assert ways[0][1] == ways[1][1] and ways[0][0].shape == (SIZE, SIZE, 3)
        assert abs(ways[0][0] - ways[1][0]).max() <= 1


@pytest.mark.parametrize('crop', ['short_side', 'warp', 'resized'])
def test_a_thread_of_an_image_takes_little_memory(crop):
    """1 x 20,000 pixels with a short side of 256 would be 3.9 GB."""
    tracemalloc.start()
    got = augment(noise(20_000, 1), 224, plain(crop, 32), np.random.default_rng(0))
    assert got.shape == (224, 224, 3) and tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()

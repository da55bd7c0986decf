import math
import tracemalloc

import numpy as np
import pytest

from wsol_jax.config import AugmentConfig, ConfigError
from wsol_jax.data import resize_image
from wsol_jax.data.augment import augment as augment_all
from wsol_jax.data.augment import squash

SIZE = 28


def augment(image, size, setting, rng):
    """Of an image that has no label map."""
    found, label_maps = augment_all(image, {}, size, setting, rng)
    assert label_maps == {}
    return found


def plain(crop, margin=0, flip=False, jitter=0.0, scale=(0.5, 1.5)):
    return AugmentConfig(crop, margin, flip, jitter, scale)


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
        ('scale', 80, 100, (42, 34)),
    ],
)
def test_crops_are_windows_of_the_resized_image_everywhere(crop, height, width, resized):
    whole = resize_image(noise(height, width), resized)
    windows = {
        whole[top : top + SIZE, left : left + SIZE].tobytes(): (top, left)
        for top in range(resized[1] - SIZE + 1)
        for left in range(resized[0] - SIZE + 1)
    }
    rng, setting = np.random.default_rng(0), plain(crop, margin=6, scale=(1.5, 1.5))
    found = [
        windows[augment(noise(height, width), SIZE, setting, rng).tobytes()] for _ in range(400)
    ]
    tops, lefts = map(set, zip(*found, strict=True))
    assert tops == set(range(resized[1] - SIZE + 1))
    assert lefts == set(range(resized[0] - SIZE + 1))


def test_the_whole_image_is_seen_as_in_evaluation():
    image, rng = noise(90, 60), np.random.default_rng(0)
    expected, _ = squash(image, {}, (SIZE, SIZE))
    np.testing.assert_array_equal(augment(image, SIZE, plain('whole'), rng), expected)
    assert rng.random() == np.random.default_rng(0).random()  # nothing is drawn


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


@pytest.mark.parametrize('name', ['short_side', 'scale'])
@pytest.mark.parametrize(('height', 'width'), [(90, 60), (45, 100), (34, 34), (300, 7)])
def test_the_crop_alone_is_resized_where_all_would_be_too_large(monkeypatch, name, height, width):
    """The same window as of the whole, to a level of rounding; as many draws."""
    for seed in range(5):
        ways = []
        for limit in (64_000_000, 1):
            monkeypatch.setattr('wsol_jax.data.augment.LARGE', limit)
            rng = np.random.default_rng(seed)
            crop = augment(noise(height, width), SIZE, plain(name, 6), rng)
            ways.append((crop.astype(int), rng.random()))
        assert ways[0][1] == ways[1][1] and ways[0][0].shape == (SIZE, SIZE, 3)
        assert abs(ways[0][0] - ways[1][0]).max() <= 1


@pytest.mark.parametrize('crop', ['short_side', 'warp', 'resized', 'scale', 'whole'])
def test_a_thread_of_an_image_takes_little_memory(crop):
    """1 x 20,000 pixels with a short side of 256 would be 3.9 GB."""
    tracemalloc.start()
    got = augment(noise(20_000, 1), 224, plain(crop, 32), np.random.default_rng(0))
    assert got.shape == (224, 224, 3) and tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


MEAN = (124, 116, 104)


def painted(height, width, cell):
    """Labels 0 to 5 in blocks, and an image whose red tells them; its green is no padding's."""
    blocks = np.random.default_rng(1).integers(0, 6, (-(-height // cell), -(-width // cell)))
    labels = np.kron(blocks, np.ones((cell, cell), int))[:height, :width].astype(np.uint8)
    return np.stack([40 * labels, labels * 0 + 200, labels * 0 + 9], axis=-1), labels


def told_by(image):
    """The labels that an image tells, and where they are plain: far from an edge."""
    labels = np.where((image == MEAN).all(axis=-1), 255, np.rint(image[..., 0] / 40)).astype(int)
    near = [np.roll(image.astype(int), (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    plain = np.ptp(near, axis=0).max(axis=-1) == 0
    plain[[0, -1]] = plain[:, [0, -1]] = False  # what rolls in there comes from the other side
    return labels, plain


@pytest.mark.parametrize('times', [1, 3])
@pytest.mark.parametrize('crop', ['warp', 'short_side', 'resized', 'scale', 'whole'])
def test_a_label_map_takes_the_way_of_its_image(crop, times):
    """Whatever its own size."""
    image, labels = painted(140, 180, cell=30)
    label_maps = {'label_map': labels.repeat(times, 0).repeat(times, 1)}
    seen, compared = set(), 0.0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        found, maps = augment_all(image, label_maps, 48, plain(crop, flip=True), rng)
        expected, sure = told_by(found)
        got = maps['label_map']
        assert got.dtype == np.uint8 and got.shape == (48, 48)
        np.testing.assert_array_equal(got[sure], expected[sure])
        seen |= set(got.ravel().tolist())
        compared += sure.mean() / 12
    assert seen == {*range(6), *([255] if crop == 'scale' else [])} and compared > 0.3


def test_unscaled_a_label_map_is_cut_pixel_by_pixel():
    image, labels = painted(40, 48, cell=1)
    for seed in range(6):
        rng, setting = np.random.default_rng(seed), plain('scale', flip=True, scale=(1, 1))
        found, maps = augment_all(image, {'label_map': labels}, 48, setting, rng)
        np.testing.assert_array_equal(maps['label_map'], told_by(found)[0])
        assert (maps['label_map'] == 255).sum() == 8 * 48


def test_a_smaller_image_lies_anywhere_on_the_mean_colour():
    """40 x 80 pixels at a long side of 20 are 10 x 20, in a window of 28 x 28."""
    image, corners = np.full((40, 80, 3), 255, np.uint8), set()
    whole, rng = np.full((10, 20, 3), 255), np.random.default_rng(0)
    setting = plain('scale', scale=(20 / SIZE, 20 / SIZE))
    for _ in range(400):
        found = augment(image, SIZE, setting, rng)
        top, left = np.argwhere(found[..., 0] == 255)[0]
        corners.add((int(top), int(left)))
        expected = np.full((SIZE, SIZE, 3), MEAN)
        expected[top : top + 10, left : left + 20] = whole
        np.testing.assert_array_equal(found, expected)
    tops, lefts = map(set, zip(*corners, strict=True))
    assert tops == set(range(19)) and lefts == set(range(9))


def test_the_scale_is_drawn_evenly():
    image, rng = np.full((50, 100, 3), 255, np.uint8), np.random.default_rng(0)
    setting = plain('scale', scale=(0.2, 0.8))
    wide = [(augment(image, 50, setting, rng) == 255).all(-1).any(0).sum() for _ in range(600)]
    np.testing.assert_allclose(np.quantile(wide, [0, 0.25, 0.5, 1]), [10, 17.5, 25, 40], atol=1.5)


def test_squashed_label_maps_are_nearest():
    """Of 6 x 4 cells at 3 x 8 pixels: every second row, every column twice."""
    label_map = np.arange(24, dtype=np.uint8).reshape(6, 4)
    image, maps = squash(noise(30, 50), {'label_map': label_map}, (8, 3))
    np.testing.assert_array_equal(image, resize_image(noise(30, 50), (8, 3)))
    np.testing.assert_array_equal(maps['label_map'], label_map[1::2].repeat(2, axis=1))

"""The dense CRF: the lattice against all pairs of pixels, and what it is for.

All quick tests share a shape, and so a compiled program: two images, three classes.
"""

import cv2
import jax
import numpy as np
import pytest

from wsol_jax.segmentation import crf
from wsol_jax.segmentation.crf import DEEPLAB, IRN, DenseCRF, _numbers, _refine, dense_crf

SIDE = 24
Y, X = np.mgrid[:SIDE, :SIDE]


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def all_pairs(image, probabilities, setting):
    """Mean field with one loop over pixels, in float64."""
    height, width, classes = probabilities.shape
    places = np.stack(np.mgrid[:height, :width], -1).reshape(-1, 2)
    colours = image.reshape(-1, 3).astype(float)
    near, alike = np.zeros((2, len(places), len(places)))
    for i in range(len(places)):
        apart = ((places - places[i]) ** 2).sum(1)
        unlike = ((colours - colours[i]) ** 2).sum(1) / (2 * setting.bilateral_rgb**2)
        alike[i] = np.exp(-apart / (2 * setting.bilateral_xy**2) - unlike)
        near[i] = np.exp(-apart / (2 * setting.spatial_xy**2))
    alike, near = (k / np.sqrt(np.outer(k.sum(0), k.sum(0))) for k in (alike, near))
    kernel = setting.bilateral_weight * alike + setting.spatial_weight * near
    logits = np.log(np.maximum(probabilities.reshape(-1, classes), 1e-5))
    marginals = softmax(logits)
    for _ in range(setting.iterations):
        marginals = softmax(logits + kernel @ marginals)
    return marginals.reshape(probabilities.shape)


EDGES = [(8, 16), (6, 19)]  # columns where the stripes of two images end


def stripe_of(edges):
    return np.stack([np.searchsorted(e, X, side='right') for e in edges])


def noisy(image, noise=2.0):
    """uint8 with noise of this standard deviation."""
    return (image + np.random.default_rng(0).normal(0, noise, image.shape)).round().astype(np.uint8)


def clouds():
    """Colours that vary smoothly, with no edge: the lattice has few points around a pixel."""
    rough = np.random.default_rng(4).uniform(40, 220, (5, 5, 3))
    return noisy(cv2.resize(rough, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC).clip(20, 235))


def blurred(edges, width=1.5):
    """Probabilities of three stripes whose boundaries are blurred over some columns."""
    rises = np.stack([1 / (1 + np.exp((edge - 0.5 - X) / width)) for edge in edges])
    return np.stack([1 - rises[0], rises[0] - rises[1], rises[1]], -1).clip(0).astype(np.float32)


@pytest.fixture(scope='module')
def images():
    """Three stripes of one colour each, with noise."""
    colours = np.array([[60, 70, 50], [150, 110, 90], [90, 130, 200]])
    return noisy(colours[stripe_of(EDGES)])


@pytest.fixture(scope='module')
def probabilities():
    """Boundaries one or two columns beside the edges of the images."""
    return np.stack([blurred((10, 17)), blurred((5, 17))])


@pytest.mark.slow
@pytest.mark.parametrize(
    'setting',
    [IRN, DEEPLAB, DenseCRF(bilateral_xy=8, bilateral_weight=2, spatial_weight=1)],
    ids=['irn', 'deeplab', 'weak'],
)
def test_the_lattice_gives_nearly_what_all_pairs_give(images, probabilities, setting):
    photos = np.stack([images[0], clouds()])
    refined = np.asarray(dense_crf(photos, probabilities, setting))
    expected = np.stack([all_pairs(*o, setting) for o in zip(photos, probabilities, strict=True)])
    np.testing.assert_allclose(refined.sum(-1), 1, atol=1e-5)
    # Measured: 0.987 or more of the labels, 0.006 or less apart; refining moves by 0.09 or more.
    assert (refined.argmax(-1) == expected.argmax(-1)).mean() > 0.98
    assert np.abs(refined - expected).mean() < 0.01
    assert np.abs(probabilities - expected).mean() > 0.05
    # Where colours differ clearly, no pixel is apart.
    np.testing.assert_allclose(refined[0], expected[0], atol=0.03)


def test_labels_end_at_the_edges_of_the_image(images, probabilities):
    refined = dense_crf(images, probabilities)
    before, after = (p.argmax(-1) == stripe_of(EDGES) for p in (probabilities, refined))
    assert before.mean() < 0.9
    assert after.all()


def test_in_an_image_of_one_colour_both_kernels_are_one(probabilities):
    grey = np.full((2, SIDE, SIDE, 3), 90, np.uint8)
    by_colour = DenseCRF(3, 6, 13, 0, 1, iterations=2)
    by_place = DenseCRF(0, 80, 13, 3, 6, iterations=2)
    one, other = (np.asarray(dense_crf(grey, probabilities, s)) for s in (by_colour, by_place))
    np.testing.assert_allclose(one, other, atol=0.08)  # measured: 0.06
    assert np.abs(one - probabilities).max() > 0.15


def test_padding_influences_nothing(images, probabilities):
    valid = (Y < 17) & (X < 20) | (np.arange(2) == 1)[:, None, None]
    other = np.where(valid[..., None], images, 255 - images)
    junk = np.where(valid[..., None], probabilities, np.nan)
    refined = np.asarray(dense_crf(images, probabilities, IRN, valid))
    np.testing.assert_allclose(refined, dense_crf(other, junk, IRN, valid), atol=1e-5)
    assert not refined[0][~valid[0]].any()
    expected = all_pairs(images[0, :17, :20], probabilities[0, :17, :20], IRN)
    assert np.abs(refined[0, :17, :20] - expected).mean() < 1e-3


def test_a_class_that_is_nowhere_changes_nothing(images, probabilities):
    first = probabilities[..., 0]
    two = np.stack([first, 1 - first, np.zeros_like(first)], -1)
    refined = np.asarray(dense_crf(images, two))
    assert not refined[..., 2].any()
    expected = all_pairs(images[0], two[0, ..., :2], DenseCRF())
    assert np.abs(refined[0, ..., :2] - expected).mean() < 1e-3


def test_a_pixel_without_a_number_is_decided_by_the_others(images, probabilities):
    torn = probabilities.copy()
    torn[:, 5, 2] = np.nan
    torn[:, 7, 3, 1] = np.inf
    refined = np.asarray(dense_crf(images, torn))
    assert np.isfinite(refined).all()
    assert (refined[:, 5, 2].argmax(-1) == 0).all()
    nothing = np.asarray(dense_crf(images, np.full_like(torn, np.nan)))
    np.testing.assert_allclose(nothing, 1 / 3, atol=1e-6)


def test_images_of_a_batch_do_not_touch_each_other(images, probabilities):
    refined = np.asarray(dense_crf(images, probabilities))
    twice = dense_crf(images[[1, 1]], probabilities[[1, 1]])
    np.testing.assert_allclose(twice, refined[[1, 1]], atol=1e-5)


def test_settings_share_one_program(images, probabilities):
    dense_crf(images, probabilities)
    before = crf._refine._cache_size()
    dense_crf(images, probabilities, DenseCRF(bilateral_xy=20, iterations=3))
    assert crf._refine._cache_size() == before


@pytest.mark.slow
def test_one_image_without_jit_gives_what_the_batch_gives(images, probabilities):
    setting = DenseCRF(iterations=2)
    refined = dense_crf(images, probabilities, setting)
    with jax.disable_jit():
        one = dense_crf(images[1:], probabilities[1:], setting)
    np.testing.assert_allclose(one[0], refined[1], atol=1e-5)


def test_cells_of_the_lattice_hold_their_pixels():
    features = np.random.default_rng(1).uniform(-9, 9, (300, 5)).astype(np.float32)
    corners, weights = map(np.asarray, jax.jit(crf._cells)(features))
    assert weights.min() > -1e-5
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    # The pixel in the coordinates of its corners; axis j of the lattice is sqrt(j (j + 1)) long.
    j = np.arange(1, 6)
    there = features * np.sqrt(2 / 3) * np.sqrt(j * (j + 1))
    np.testing.assert_allclose((weights[..., None] * corners).sum(1), there, atol=1e-4)
    numbers = np.asarray(jax.jit(lambda c: crf._numbering(c)(c))(corners))
    assert len(np.unique(numbers)) == len(np.unique(corners.reshape(-1, 5), axis=0))


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'images': np.zeros((2, 4, 4, 3))}, 'expected images uint8'),
        ({'probabilities': np.zeros((2, 4, 5, 2))}, r'\[2, 4, 5, 2\]'),
        ({'valid': np.ones((4, 4), bool)}, r'\[4, 4\]'),
        ({'images': np.zeros((4, 4, 3), np.uint8)}, r'uint8 \[4, 4, 3\], '),
        ({'setting': DenseCRF(bilateral_xy=0.01, bilateral_rgb=0.2)}, '4x4 pixels is too large'),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    right = {'images': np.zeros((2, 4, 4, 3), np.uint8), 'probabilities': np.ones((2, 4, 4, 2))}
    with pytest.raises(ValueError, match=message):
        dense_crf(**right | wrong)


def test_a_kernel_needs_a_width():
    with pytest.raises(ValueError, match='spatial_xy must be positive, got 0'):
        DenseCRF(spatial_xy=0)


@pytest.mark.slow
def test_a_batch_needs_the_memory_of_one_image():
    def memory(count):
        shapes = ((count, 32, 32, 3), np.uint8), ((count, 32, 32, 5), np.float32)
        arrays = [jax.ShapeDtypeStruct(*s) for s in (*shapes, ((count, 32, 32), bool))]
        compiled = _refine.lower(*arrays, _numbers(DenseCRF())).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(8) < 2 * memory(1)

"""Seeds by hand and in loops: maps in the pixels of an image, label maps, what is sure of them."""

import cv2
import numpy as np
import pytest

from wsol_jax.segmentation.crf import _STEP, IRN, _mean_field, _missing, dense_crf
from wsol_jax.segmentation.score import confusion, seed_curves
from wsol_jax.segmentation.seeds import (
    confident_label_map,
    crf_of_places,
    joined_probabilities,
    seed_label_map,
    seed_probabilities,
)


def test_maps_in_the_pixels_of_the_image_by_hand():
    maps = np.array([[[-4.0, 2.0]], [[-1.0, -2.0]], [[np.nan, 5.0]]], np.float32)
    found = seed_probabilities(maps, (4, 2))
    # Rectified 0, 2; bilinear with the ends held 0, .5, 1.5, 2; divided by 2.
    np.testing.assert_allclose(found[0], [[0, 0.25, 0.75, 1]] * 2)
    assert found.shape == (3, 2, 4) and found.dtype == np.float32
    assert not found[1:].any()
    assert seed_probabilities(np.zeros((0, 3, 3), np.float32), (4, 2)).shape == (0, 2, 4)


def test_two_kinds_of_maps_by_hand():
    bas = np.array([[[1.0, 0.5, 0.0]], [[0, 0, 0]]], np.float32)
    cam = np.array([[[0.0, 1.0, 0.25]], [[0, 0, 0]]], np.float32)
    found = joined_probabilities([bas, cam])
    np.testing.assert_allclose(found[0], [[1 / 1.5, 1, 0.25 / 1.5]], rtol=1e-6)
    assert not found[1].any()


PROBABILITIES = np.array([[[0.9, 0.2, 0.5, 0.1]], [[0.3, 0.4, 0.5, 0.1]]], np.float32)


def test_label_maps_by_hand():
    # Of the classes 6 and 2; of two equal maps the first; above 0.4 is not 0.4 itself.
    found = seed_label_map(PROBABILITIES, (6, 2), np.float32(0.4))
    assert found.tolist() == [[7, 0, 7, 0]] and found.dtype == np.uint8
    assert seed_label_map(PROBABILITIES, (6, 2), 0.05).tolist() == [[7, 3, 7, 7]]
    assert seed_label_map(np.zeros((0, 1, 2)), (), 0.1).tolist() == [[0, 0]]


def test_scores_of_all_thresholds_are_those_of_the_label_maps():
    rng = np.random.default_rng(0)
    probabilities = seed_probabilities(rng.normal(size=(2, 3, 4)).astype(np.float32), (12, 9))
    truth = rng.choice(np.array([0, 1, 4, 255], np.uint8), (9, 12))
    thresholds, labels = np.arange(0, 1, 0.05), (0, 3)
    curves = seed_curves(probabilities, labels, truth, thresholds, 6)
    for threshold, found in zip(thresholds, curves.confusions, strict=True):
        label_map = seed_label_map(probabilities, labels, threshold)
        np.testing.assert_array_equal(found, confusion(label_map, truth, 6))


def test_what_is_sure_by_hand():
    # Above 0.6 of a class, at most 0.2 background, and 255 between.
    found = confident_label_map(PROBABILITIES, (6, 2), 0.6, 0.2)
    assert found.tolist() == [[7, 255, 255, 0]]
    with pytest.raises(ValueError, match=r'^background=0\.5 must not be above foreground=0\.3'):
        confident_label_map(PROBABILITIES, (6, 2), 0.3, 0.5)


def test_what_is_sure_after_refinement_by_hand():
    """As IRN has it: a class where the first says so, background where neither has a class."""
    asked = []

    def refine(places, count):
        asked.append((places.tolist(), count))
        return np.array([[0, 2, 0, 0]] if len(asked) == 1 else [[0, 0, 1, 2]], np.uint8)

    found = confident_label_map(PROBABILITIES, (6, 2), 0.6, 0.2, refine)
    assert asked == [([[1, 0, 0, 0]], 3), ([[1, 2, 1, 0]], 3)]
    assert found.tolist() == [[0, 3, 255, 255]]


@pytest.mark.slow
def test_the_crf_moves_places_to_an_edge():
    """A red half and a grey one; what is taken for the class reaches two columns too far."""
    image = np.full((16, 16, 3), 90, np.uint8)
    image[:, :8, 0] = 220
    places = np.zeros((16, 16), np.uint8)
    places[:, :10] = 1
    found = crf_of_places(image)(places, 2)
    expected = np.zeros((16, 16), np.uint8)
    expected[:, :8] = 1
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_images_of_many_sizes_share_programs_and_are_refined_as_alone():
    rng = np.random.default_rng(2)
    image = cv2.resize(rng.integers(0, 256, (5, 8, 3), np.uint8), (40, 21))
    places = cv2.resize(rng.integers(0, 3, (3, 4), np.uint8), (40, 21), interpolation=0)
    before = _mean_field._cache_size()
    found = crf_of_places(image)(places, 3)
    crf_of_places(image[:17, :33])(places[:17, :33], 4)
    programs = _mean_field._cache_size()
    assert programs - before in (1, 2)  # as many points as fit, in one of four lengths
    crf_of_places(image)(places[::-1], 4)
    assert _mean_field._cache_size() == programs
    probabilities = np.where(places[..., None] == np.arange(3), 0.7, 0.15)
    alone = np.asarray(dense_crf(image[None], probabilities[None], IRN)[0])
    assert (found != places).any()
    np.testing.assert_array_equal(found, alone.argmax(-1))


def test_sides_are_filled_up_to_few_lengths():
    assert [side + _missing(side, _STEP) for side in (1, 17, 32, 33, 64)] == [1, 32, 32, 64, 64]
    assert {side + _missing(side, _STEP) for side in range(65, 513)} == set(range(128, 513, 64))


def test_resizing_is_bilinear_between_centres():
    rng = np.random.default_rng(1)
    raw = rng.random((1, 3, 4)).astype(np.float32)
    found = seed_probabilities(raw, (9, 7))[0]
    expected = np.zeros((7, 9))
    for y in range(7):
        for x in range(9):
            v = np.clip((y + 0.5) * 3 / 7 - 0.5, 0, 2), np.clip((x + 0.5) * 4 / 9 - 0.5, 0, 3)
            i, j = int(v[0]), int(v[1])
            corners = raw[0][np.ix_([i, min(i + 1, 2)], [j, min(j + 1, 3)])]
            weights = np.outer([1 - v[0] % 1, v[0] % 1], [1 - v[1] % 1, v[1] % 1])
            expected[y, x] = (corners * weights).sum()
    np.testing.assert_allclose(found, expected / expected.max(), rtol=1e-4)

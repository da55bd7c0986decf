"""Boxes and their overlap: published values, and a literal per-threshold loop."""

import cv2
import numpy as np
import pytest
from PIL import Image

from wsol_jax.evaluation.boxes import box_iou, rescale_boxes
from wsol_jax.maps.boxes import boxes_from_map, threshold_boxes
from wsol_jax.maps.score import score_map

FIFTHS = [0, 0.2, 0.4, 0.6, 0.8]
FINE = np.arange(0, 1, 0.01)


def first_boxes(scores, thresholds):
    return [b[0].tolist() for b in threshold_boxes(np.array(scores, float), thresholds)]


# Values of the tests of wsolevaluation (Choe et al., CVPR 2020).
def test_zero_map():
    assert first_boxes(np.zeros((3, 3)), FIFTHS) == 5 * [[0, 0, 0, 0]]


def test_unimodal_map():
    scores = [
        [0, 0, 0, 0, 0],
        [0, 0.4, 0.4, 0.4, 0.6],
        [0, 0.4, 1, 0.8, 0.6],
        [0, 0.4, 0.4, 0.4, 0.6],
    ]
    assert first_boxes(scores, FIFTHS) == [
        [1, 1, 4, 3],
        [1, 1, 4, 3],
        [2, 1, 4, 3],
        [2, 2, 4, 3],
        [2, 2, 3, 3],
    ]


def test_multimodal_map():
    scores = [
        [0.4, 0, 0.2, 0.2, 0.2],
        [0.4, 0.4, 0, 0.4, 0],
        [0, 0, 0, 0.4, 0],
        [1, 0.6, 0.8, 0.2, 0.2],
    ]
    assert first_boxes(scores, FIFTHS) == [
        [0, 0, 4, 3],
        [0, 0, 2, 2],
        [0, 3, 3, 3],
        [2, 3, 3, 3],
        [0, 3, 1, 3],
    ]


def test_iou_values():
    np.testing.assert_allclose(box_iou([[1, 2, 5, 6]], [[3, 1, 4, 5]]), [[8 / 27]])
    assert box_iou([[0, 0, 0, 0]], [[0, 0, 0, 0]]) == [[1.0]]
    two = [[1, 1, 3, 3], [4, 4, 5, 5]]
    np.testing.assert_array_equal(box_iou(two, two), np.eye(2))


def test_rescale_values():
    assert rescale_boxes([[1, 2, 4, 3]], (10, 20), (35, 10)).tolist() == [[3, 1, 14, 1]]
    assert rescale_boxes([[0, 0, 10, 20]], (10, 20), (35, 10)).tolist() == [[0, 0, 35, 10]]


def literal_boxes(scores, threshold):
    """All boxes at one threshold, the largest polygon first; step by step as published."""
    height, width = scores.shape
    grey = np.array([[int(v * 255) for v in row] for row in scores], np.uint8)
    cut = int(threshold * grey.max())
    binary = np.array([[255 if v > cut else 0 for v in row] for row in grey], np.uint8)
    contours, _ = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    boxes = []
    for contour in contours:
        xs, ys = contour[:, 0, 0], contour[:, 0, 1]
        x1, y1 = int(xs.max()) + 1, int(ys.max()) + 1
        boxes.append([int(xs.min()), int(ys.min()), min(x1, width - 1), min(y1, height - 1)])
    if not boxes:
        return [[0, 0, 0, 0]]
    areas = [cv2.contourArea(contour) for contour in contours]
    largest = areas.index(max(areas))
    return [boxes[largest], *boxes[:largest], *boxes[largest + 1 :]]


def blobs(seed, levels=None):
    """A smooth map of many blobs, some at the border; with plateaus if quantized."""
    coarse = np.random.default_rng(seed).normal(size=(6, 7))
    scores = score_map(coarse, (40, 33))
    return np.floor(scores * levels) / levels if levels else scores


def ring():
    y, x = np.mgrid[:30, :36]
    scores = np.exp(-((np.hypot(y - 14, x - 17) - 8) ** 2) / 8)
    return scores / scores.max()


def squares():
    scores = np.zeros((20, 30))
    for x in (0, 8, 16, 26):  # equal areas: ties
        scores[3:7, x : x + 4] = 1
    scores[12:20, 5:9] = 0.5
    return scores


MAPS = {
    'smooth': blobs(0),
    'smooth2': blobs(1),
    'plateaus': blobs(2, levels=5),
    'plateaus2': blobs(3, levels=12),
    'ring with a hole': ring(),
    'ties': squares(),
    'one pixel': np.eye(1, 12).reshape(3, 4),
    'noise': np.random.default_rng(7).random((17, 19)),
    'binary noise': (np.random.default_rng(8).random((25, 25)) > 0.6).astype(float),
    'empty': np.zeros((5, 6)),
    'constant': np.ones((5, 6)),
    'half': np.full((5, 6), 0.5),
    'faint': 0.003 * blobs(4),
}


@pytest.mark.parametrize('name', MAPS)
def test_parity_with_a_literal_loop(name):
    found = threshold_boxes(MAPS[name], FINE)
    assert len(found) == len(FINE)
    for boxes, threshold in zip(found, FINE, strict=True):
        expected = literal_boxes(MAPS[name], threshold)
        assert boxes[0].tolist() == expected[0], threshold
        assert sorted(boxes.tolist()) == sorted(expected), threshold


def test_a_hole_has_a_contour_too():
    scores = np.zeros((12, 12))
    scores[2:10, 2:10] = 1
    scores[5:7, 5:7] = 0
    assert threshold_boxes(scores, [0.5])[0].tolist() == [[2, 2, 10, 10], [4, 4, 8, 8]]


def test_largest_by_area_of_the_polygon_not_by_pixels():
    scores = np.zeros((12, 30))
    scores[1, 1:29] = 1  # 28 pixels, polygon of area 0
    scores[5:9, 3:7] = 1  # 16 pixels, polygon of area 9
    assert threshold_boxes(scores, [0.5])[0].tolist() == [[3, 5, 7, 9], [1, 1, 29, 2]]


def test_the_cut_is_strict_and_truncated():
    # 127 of 255: threshold .5 cuts at int(127.5) = 127, which 127 does not exceed.
    scores = np.array([[0.5, 0.5, 0, 1, 0, 0]] * 3)
    grey_is_127 = [[0, 0, 2, 2], [3, 0, 4, 2]]
    assert sorted(threshold_boxes(scores, [0.497])[0].tolist()) == grey_is_127
    assert threshold_boxes(scores, [0.5])[0].tolist() == [[3, 0, 4, 2]]


def test_the_cut_is_relative_to_the_maximum():
    scores = 0.4 * np.array([[0.3, 0.3, 0, 1, 0, 0]] * 3)
    assert len(threshold_boxes(scores, [0.25])[0]) == 2
    assert len(threshold_boxes(scores, [0.35])[0]) == 1


def test_contours_touch_diagonally():
    foreground = np.zeros((6, 6), bool)
    foreground[1:3, 1:3] = foreground[3:5, 3:5] = True
    assert threshold_boxes(foreground, [0.5])[0].tolist() == [[1, 1, 5, 5]]


@pytest.mark.parametrize('scores', [[[0.0, np.nan]], [[0.0, 1.01]], [[-0.01, 1.0]]])
def test_scores_outside_0_1_are_errors(scores):
    with pytest.raises(ValueError, match=r'score maps must lie in \[0, 1\] without NaN'):
        threshold_boxes(np.array(scores), [0.1])


@pytest.mark.parametrize('threshold', [-0.1, 1.0, np.nan])
def test_thresholds_outside_0_1_are_errors(threshold):
    with pytest.raises(ValueError, match=r'thresholds must lie in \[0, 1\)'):
        threshold_boxes(np.ones((3, 3)), [0.2, threshold])


def literal_iou(a, b):
    pixels = [
        {(x, y) for x in range(r[0], r[2] + 1) for y in range(r[1], r[3] + 1)} for r in (a, b)
    ]
    return len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1])


def test_iou_counts_pixels_of_both_ends():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 12, (2, 8, 2))
    boxes, others = np.concatenate([low, low + rng.integers(0, 9, low.shape)], axis=2)
    found = box_iou(boxes, others[:5])
    assert found.shape == (8, 5)
    expected = [[literal_iou(a, b) for b in others[:5]] for a in boxes]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert 0 < np.mean(found > 0) < 1


@pytest.mark.parametrize('wrong', [[1, 1, 0, 0], [1, 0, 0, 5], [0, 5, 4, 4]])
def test_box_that_ends_before_it_starts(wrong):
    right = [[0, 0, 4, 4]]
    for pair in (([wrong], right), (right, [*right, wrong])):
        with pytest.raises(ValueError, match='ends before it starts'):
            box_iou(*pair)


def test_rescaling_truncates_the_exact_value():
    # 83 * (224 / 83) is below 224 in float64; the box of a whole image must stay whole.
    for side in range(2, 700):
        assert rescale_boxes([[0, 0, side, side]], (side, side), (224, 224))[0, 2] == 224, side
    for side in (83, 375, 500):
        boxes = np.array([[x, 0, x + 1, 1] for x in range(side)])
        found = rescale_boxes(boxes, (side, 7), (224, 7))
        assert found[:, 0].tolist() == [x * 224 // side for x in range(side)]


def test_boxes_from_map_go_through_the_score_map():
    raw = np.random.default_rng(3).normal(size=(7, 7))
    for options in ({}, {'relu': True}, {'closing': 5}):
        scores = score_map(raw, (90, 60), **options)
        expected = literal_boxes(scores, 0.3)
        found = boxes_from_map(raw, (90, 60), 0.3, **options)
        assert found[0].tolist() == expected[0]
        assert sorted(found.tolist()) == sorted(expected)
    plain = boxes_from_map(raw, (90, 60), 0.3)
    assert boxes_from_map(raw, (90, 60), 0.3, relu=True).tolist() != plain.tolist()
    assert boxes_from_map(raw, (90, 60), 0.3, closing=15).tolist() != plain.tolist()


def test_boxes_from_map_on_a_landscape_image():
    raw = np.zeros((4, 8))
    raw[:, 6:] = 1
    (box,) = boxes_from_map(raw, (80, 40), 0.5).tolist()
    assert box[1:] == [0, 79, 39] and abs(box[0] - 60) <= 2


@pytest.mark.parametrize('raw', [np.ones((3, 3)), np.full((3, 3), np.nan)])
def test_blank_map_has_no_box(raw):
    assert boxes_from_map(raw, (20, 10), 0.2).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    'size', [(80, 40), np.zeros((40, 80, 3)), (40, 80, 3), (40, 80, 1), Image.new('L', (80, 40))]
)
def test_the_size_of_an_image_in_every_form(size):
    raw = np.random.default_rng(0).random((4, 8))
    expected = literal_boxes(score_map(raw, (80, 40)), 0.5)
    assert boxes_from_map(raw, size, 0.5)[0].tolist() == expected[0]


@pytest.mark.parametrize(
    'size', [80, (80,), (80, 40, 7), (80, -1), (80.0, 40.0), 'ab', np.zeros((2, 2)), None]
)
def test_what_is_no_size_is_told(size):
    message = r'the size of an image is \(width, height\), or the image, or its shape'
    with pytest.raises(ValueError, match=message):
        boxes_from_map(np.eye(3), size, 0.5)


def test_no_image_is_that_large():
    with pytest.raises(ValueError, match='no image has 1000000000x1000000000 pixels'):
        boxes_from_map(np.eye(4), (10**9, 10**9), 0.5)


def test_boxes_from_map_takes_one_map():
    with pytest.raises(ValueError, match=r'one map \[h, w\], got shape \[1, 3, 3\]'):
        boxes_from_map(np.ones((1, 3, 3)), (9, 9), 0.2)
    with pytest.raises(ValueError, match='thresholds'):
        boxes_from_map(np.eye(3), (9, 9), 20)

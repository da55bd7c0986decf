"""Scores of label maps: by hand, against a plain loop over pixels, thresholds and classes."""

import numpy as np
import pytest

from wsol_jax.data import DataError
from wsol_jax.segmentation import SeedCurves, class_scores, confusion, scores_of, seed_curves
from wsol_jax.segmentation.score import absent_classes

TRUTH = np.array([[0, 0, 1, 1], [0, 0, 1, 255], [2, 2, 2, 255]], np.uint8)
FOUND = np.array([[0, 0, 1, 0], [0, 1, 1, 1], [0, 2, 2, 2]], np.uint8)
THRESHOLDS = np.linspace(0.05, 0.95, 7)


def plain_confusion(predicted, truth, count):
    matrix = np.zeros((count, count), int)
    for p, t in zip(predicted.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if t != 255:
            matrix[t, p] += 1
    return matrix


def plain_iou(matrix, k):
    true, found = matrix[k].sum(), matrix[:, k].sum()
    union = true + found - matrix[k, k]
    return matrix[k, k] / union if union else None


def test_worked_by_hand():
    matrix = confusion(FOUND, TRUTH, 4)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[3, 1, 0, 0], [1, 2, 0, 0], [1, 0, 2, 0], [0] * 4]
    scores = class_scores(matrix)
    # TP, FP, FN: 3, 2, 1 of the background; 2, 1, 1 and 2, 0, 1 of the others.
    assert scores['IoU'][:3] == pytest.approx([50, 50, 200 / 3])
    assert scores['FP'][:3] == pytest.approx([200 / 6, 25, 0])
    assert scores['FN'][:3] == pytest.approx([100 / 6, 25, 100 / 3])
    assert np.isnan([values[3] for values in scores.values()]).all()
    assert absent_classes(matrix).tolist() == [False, False, False, True]
    assert scores_of(matrix) == pytest.approx(
        {
            'mIoU': 500 / 9,
            'PixelAccuracy': 70,
            'FP': 12.5,
            'FN': (25 + 100 / 3) / 2,
            'Precision': (200 / 3 + 100) / 2,
            'Recall': 200 / 3,
        }
    )


def test_the_example_that_metrics_of_other_libraries_are_shown_with():
    # The documentation of `mean_iou` in Hugging Face's evaluate, which is MMSegmentation's: three
    # images, 255 ignored, background first.
    pairs = [
        ([[1, 2], [3, 4], [5, 0]], [[0, 3], [5, 4], [6, 255]]),
        ([[2, 7], [9, 2], [3, 6]], [[1, 7], [9, 2], [3, 6]]),
        ([[2, 2, 3], [8, 2, 4], [3, 0, 2]], [[1, 2, 2], [8, 2, 1], [3, 255, 1]]),
    ]
    matrix = sum(confusion(*np.array(pair, np.uint8), 10) for pair in pairs)
    ious = [0, 0, 37.5, 40, 50, 0, 50, 100, 100, 100]
    assert class_scores(matrix)['IoU'] == pytest.approx(ious)
    scores = scores_of(matrix)
    assert scores['mIoU'] == pytest.approx(47.75)
    assert scores['PixelAccuracy'] == pytest.approx(52.63157894736842)
    assert class_scores(matrix)['Recall'][1:4] == pytest.approx([0, 75, 200 / 3])


def test_a_class_that_is_only_predicted_counts_as_zero():
    matrix = np.array([[6, 2], [0, 0]])
    assert scores_of(matrix) == {
        'mIoU': 37.5, 'PixelAccuracy': 75.0, 'FP': 100.0, 'FN': 0.0, 'Precision': 0.0
    }  # fmt: skip


def test_nothing_to_score_has_no_scores():
    assert scores_of(np.zeros((3, 3), int)) == {}


def test_as_a_plain_loop_has_it():
    rng, total = np.random.default_rng(0), 0
    plain = np.zeros((21, 21), int)
    for size in ((5, 7), (30, 20), (1, 1)):
        predicted = rng.integers(0, 21, size).astype(np.uint8)
        truth = rng.choice([*range(18), 255], size).astype(np.uint8)
        total = total + confusion(predicted, truth, 21)
        plain += plain_confusion(predicted, truth, 21)
    assert (total == plain).all()
    ious = [iou for k in range(21) if (iou := plain_iou(plain, k)) is not None]
    assert scores_of(total)['mIoU'] == pytest.approx(100 * np.mean(ious))


def test_another_index_may_be_ignored():
    truth = np.where(TRUTH == 255, 3, TRUTH).astype(np.uint8)
    assert (confusion(FOUND, truth, 4, ignored=3) == confusion(FOUND, TRUTH, 4)).all()


@pytest.mark.parametrize(
    ('predicted', 'truth', 'message'),
    [
        (FOUND.T, TRUTH, 'label map prediction: is 3x4, ground truth is 4x3'),
        (TRUTH, TRUTH, r'label map prediction: has index 255; the classes are 0\.\.2$'),
        (FOUND, TRUTH + (TRUTH == 2), r'ground truth: has index 3; .* 0\.\.2, 255 is ignored'),
    ],
)
def test_what_cannot_be_scored(predicted, truth, message):
    with pytest.raises(DataError, match=message):
        confusion(predicted, truth, 3)


def images():
    """Maps, labels and truths; values that are thresholds, and an image without labels."""
    rng = np.random.default_rng(1)
    for labels in ((4, 0), (2,), (), (1, 3, 4)):
        maps = rng.random((len(labels), 9, 8))
        maps[rng.random(maps.shape) < 0.3] = THRESHOLDS[3]
        yield maps, labels, rng.choice([0, 1, 2, 5, 255], (9, 8)).astype(np.uint8)


def test_all_thresholds_at_once_are_one_after_another():
    given = list(images())
    curves = SeedCurves.joined(seed_curves(*image, THRESHOLDS, 6) for image in given)
    scores = curves.curves()
    for i, threshold in enumerate(THRESHOLDS):
        plain = np.zeros((6, 6), int)
        for maps, labels, truth in given:
            background = np.full((1, 9, 8), threshold)  # argmax takes the first of equals
            found = np.array([0, *(k + 1 for k in labels)])[np.argmax([*background, *maps], 0)]
            plain += plain_confusion(found, truth, 6)
        assert (curves.confusions[i] == plain).all()
        expected = scores_of(plain)
        assert {n: v[i] for n, v in scores.items()} == {n: expected[n] for n in scores}
    best = int(np.argmax(scores['mIoU']))
    assert curves.best_threshold == THRESHOLDS[best]
    assert (curves.at(THRESHOLDS[best] + 0.01) == curves.confusions[best]).all()


def test_parts_add_to_the_whole():
    a, b, *rest = [seed_curves(*image, THRESHOLDS, 6) for image in images()]
    parts = SeedCurves.joined([a + b, SeedCurves.joined(rest)])
    whole = SeedCurves.joined([a, b, *rest])
    assert (parts.places == whole.places).all() and (parts.pixels == whole.pixels).all()
    assert len(a.places) < 6 * 6 * 8 / 2  # what one image is sent as


def test_maps_of_another_size_or_class_are_refused():
    with pytest.raises(DataError, match='class maps are 8x9, the ground truth 4x3'):
        seed_curves(np.zeros((1, 9, 8)), (0,), TRUTH, THRESHOLDS, 6)
    with pytest.raises(DataError, match=r'label 5 of the class maps is outside 0\.\.4'):
        seed_curves(np.zeros((1, 3, 4)), (5,), TRUTH, THRESHOLDS, 6)


def test_no_threshold_is_best_where_all_is_ignored():
    curves = seed_curves(np.ones((1, 2, 2)), (0,), np.full((2, 2), 255, np.uint8), THRESHOLDS, 3)
    with pytest.raises(ValueError, match='no pixel to score'):
        _ = curves.best_threshold

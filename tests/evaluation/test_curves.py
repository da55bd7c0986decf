"""PxAP and the IoU with masks, by hand and against naive implementations."""

import numpy as np
import pytest

from wsol_jax.evaluation.curves import Curves
from wsol_jax.evaluation.scoring import Rules, score_image

FINE = np.arange(0, 1, 0.001)


def count(scores, mask, thresholds=FINE):
    scores, mask = np.atleast_2d(np.asarray(scores, float)), np.atleast_2d(np.asarray(mask))
    rules = Rules(scores.shape[::-1], np.asarray(thresholds))
    return score_image([scores], (np.zeros((0, 4), int), mask), rules).curves


def naive_average_precision(pairs, thresholds):
    """Every threshold from the top: those who reach it are positive; 2 is out of reach."""
    scores = np.concatenate([s[m != 255] for s, m in pairs])
    truth = np.concatenate([m[m != 255] for s, m in pairs]) == 1
    total, recall = 0.0, 0.0
    for t in [1.0, *sorted(thresholds, reverse=True)]:
        positive = scores >= t
        if not positive.any():
            continue
        right = (positive & truth).sum()
        total += right / positive.sum() * (right / truth.sum() - recall)
        recall = right / truth.sum()
    return 100 * total


def test_by_hand():
    # From the top: 1.0 fg (precision 1), .6 bg, .6 fg (2 of 3), .3 bg, 0 fg (3 of 5).
    counts = count([[1.0, 0.6, 0.6, 0.3, 0.0]], [[1, 0, 1, 0, 1]])
    expected = 100 * (1 / 3 * 1 + 1 / 3 * 2 / 3 + 1 / 3 * 3 / 5)
    assert counts.average_precision == pytest.approx(expected)


def test_scores_share_the_bin_between_two_thresholds():
    counts = count([[0.51, 0.74]], [[1, 0]], [0, 0.25, 0.5, 0.75])
    assert counts.foreground.tolist() == [0, 0, 1, 0, 0, 0]
    assert counts.background.tolist() == [0, 0, 1, 0, 0, 0]
    assert counts.average_precision == pytest.approx(50)


def test_scores_on_an_edge_and_at_1():
    counts = count([[0.0, 0.25, 0.5, 0.75, 1.0]], [[1, 1, 1, 1, 1]], [0, 0.25, 0.5, 0.75])
    assert counts.foreground.tolist() == [1, 1, 1, 1, 1, 0]


def images(seed):
    rng = np.random.default_rng(seed)
    for _ in range(4):
        scores = np.round(rng.random((13, 11)), 2)
        mask = rng.choice([0, 1, 255], (13, 11), p=[0.5, 0.3, 0.2]).astype(np.uint8)
        yield np.clip(scores + 0.2 * (mask == 1), 0, 1), mask


@pytest.mark.parametrize('thresholds', [np.arange(0, 1, 0.01), np.arange(0, 1, 0.2)])
def test_naive_implementation(thresholds):
    pairs = list(images(0))
    counts = Curves.zero(thresholds)
    for scores, mask in pairs:
        counts += count(scores, mask, thresholds)
    expected = naive_average_precision(pairs, thresholds)
    assert counts.average_precision == pytest.approx(expected, rel=1e-12)
    assert counts.images == 4
    for t, value in zip(thresholds, counts.pooled_iou, strict=True):
        tp, fp, fn = (
            sum(int(((s >= t) == p)[m == v].sum()) for s, m in pairs)
            for p, v in ((True, 1), (True, 0), (False, 1))
        )
        assert value == pytest.approx(100 * tp / (tp + fp + fn))


def test_pooled_over_pixels_not_averaged_over_images():
    pairs = list(images(1))
    parts = [count(*pair) for pair in pairs]
    merged = parts[0] + parts[1] + parts[2] + parts[3] + Curves.zero(FINE)
    assert merged.images == 4
    assert merged.average_precision == pytest.approx(naive_average_precision(pairs, FINE))
    mean = np.mean([p.average_precision for p in parts])
    assert abs(merged.average_precision - mean) > 0.01


def test_ignored_pixels_do_not_count():
    scores = np.array([[0.9, 0.8, 0.7, 0.1]])
    mask = np.array([[1, 255, 1, 0]])
    for ignored in (0.0, 0.8, 1.0):
        scores[0, 1] = ignored
        assert count(scores, mask).average_precision == pytest.approx(100)
    assert count(scores, np.array([[1, 0, 1, 0]])).average_precision < 100


# Prevalence of the foreground on images of the test data of wsolevaluation.
@pytest.mark.parametrize(
    ('foreground', 'counted', 'expected'),
    [(43031, 50176, 85.7601), (833, 50175, 1.66019), (347, 14256, 2.43406)],
)
@pytest.mark.parametrize('value', [0.0, 0.5, 1.0])
def test_constant_map_has_the_precision_of_guessing(foreground, counted, expected, value):
    mask = np.zeros(224 * 224, np.uint8)
    mask[:foreground] = 1
    mask[counted:] = 255
    counts = count(np.full(224 * 224, value), mask)
    assert counts.average_precision == pytest.approx(expected, abs=1e-4)


def test_all_ones_mask_and_perfect_map():
    scores = np.random.default_rng(0).random((9, 9))
    assert count(scores, np.ones((9, 9))).average_precision == pytest.approx(100)
    mask = (scores > 0.4).astype(int)
    assert count(mask, mask).average_precision == pytest.approx(100)
    assert count(scores, mask).average_precision == pytest.approx(100)


def test_without_foreground_it_is_undefined():
    with pytest.raises(ValueError, match='no pixel of the masks is foreground'):
        _ = count(np.ones((3, 3)), [[0, 0, 255]] * 3).average_precision


def test_iou_curve_by_hand():
    scores = [[0.1, 0.3, 0.6, 0.9], [0.0, 0.25, 0.5, 0.8]]
    mask = [[0, 1, 1, 1], [0, 0, 1, 255]]
    counts = count(scores, mask, [0, 0.25, 0.5, 0.75])
    # >= 0: 4 of 7; >= .25: TP 4, FP 1 of 5; >= .5: TP 3, FN 1; >= .75: TP 1, FN 3.
    np.testing.assert_allclose(counts.pooled_iou, [400 / 7, 80, 75, 25])


@pytest.mark.parametrize('thresholds', [np.arange(0, 1, 0.01), np.arange(0, 1, 0.2)])
def test_mean_iou_is_that_of_a_plain_loop_over_images(thresholds):
    pairs = [*images(2), (np.full((13, 11), 0.5), np.zeros((13, 11), np.uint8))]
    parts = [count(*pair, thresholds) for pair in pairs]
    merged = sum(parts[1:], parts[0])
    assert (merged.images, merged.with_foreground) == (5, 4)  # the last has no foreground
    for t, value in zip(thresholds, merged.mean_iou, strict=True):
        ious = []
        for scores, mask in pairs[:4]:
            found = (scores >= t) & (mask != 255)
            ious.append((found & (mask == 1)).sum() / (found | (mask == 1)).sum())
        assert value == pytest.approx(100 * np.mean(ious))
    assert np.abs(merged.mean_iou - merged.pooled_iou).max() > 0.01


def test_mean_iou_by_hand():
    counts = count([[0.9, 0.6, 0.3, 0.9]], [[1, 0, 0, 255]], [0, 0.25, 0.5, 0.75])
    np.testing.assert_allclose(counts.mean_iou, [100 / 3, 100 / 3, 50, 100])
    large = np.full((10, 10), 0.5)  # many pixels weigh no more than few
    counts += count(large, np.ones((10, 10)), [0, 0.25, 0.5, 0.75])
    np.testing.assert_allclose(counts.mean_iou, [200 / 3, 200 / 3, 75, 50])
    # All 101 foreground pixels found among 103 at .25, among 102 at .5, 1 of 101 at .75.
    np.testing.assert_allclose(
        counts.pooled_iou, np.divide([10100, 10100, 10100, 100], [103, 103, 102, 101])
    )


def test_ignored_pixels_do_not_count_in_the_mean_iou():
    mask = np.array([[1, 255, 255, 0]])
    for ignored in (0.0, 0.8, 1.0):
        counts = count([[0.8, ignored, 1 - ignored, 0.1]], mask, [0, 0.5])
        np.testing.assert_allclose(counts.mean_iou, [50, 100])


def test_mean_iou_without_foreground_is_zero_and_undefined():
    counts = count(np.ones((3, 3)), np.zeros((3, 3)))
    assert not counts.masked and not counts.mean_iou.any()

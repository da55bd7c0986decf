"""Box scores against naive loops and hand counts."""

import numpy as np
import pytest

from wsol_jax.evaluation.box_metrics import IOUS, BoxCounts

THRESHOLDS = np.array([0.0, 0.25, 0.5, 0.75])
TRUTH = np.array([[0, 0, 9, 9]])  # 100 pixels, both ends inclusive


def overlap(percent):
    """A box inside TRUTH with that IoU: rows of ten pixels."""
    return [0, 0, 9, percent // 10 - 1]


def per_threshold(*percents):
    return [np.array([overlap(p)]) for p in percents]


def iou(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0]) + 1
    h = min(a[3], b[3]) - max(a[1], b[1]) + 1
    inside = max(w, 0) * max(h, 0)
    areas = [(x[2] - x[0] + 1) * (x[3] - x[1] + 1) for x in (a, b)]
    return inside / (sum(areas) - inside)


def random_image(rng):
    def boxes(n):
        low = rng.integers(0, 10, (n, 2))
        return np.concatenate([low, low + rng.integers(0, 12, (n, 2))], axis=1)

    groups = [boxes(rng.integers(1, 5)) for _ in range(3)]
    # Neighbouring thresholds share one array, as threshold_boxes hands them out.
    return [groups[0], groups[1], groups[1], groups[2]], boxes(rng.integers(1, 4))


def test_counts_equal_a_naive_loop():
    rng = np.random.default_rng(0)
    counts = BoxCounts.zero(THRESHOLDS)
    largest, anywhere = np.zeros((3, 4), int), np.zeros((3, 4), int)
    top1, top5 = np.zeros(4, int), np.zeros(4, int)
    for i in range(60):
        boxes, truth = random_image(rng)
        other, _ = random_image(rng)
        right1, top5_boxes = i % 2 == 0, (None, boxes, other)[i % 3]
        counts.add(boxes, truth, top1_right=right1, top5_boxes=top5_boxes)
        for t in range(4):
            first = max(iou(boxes[t][0], g) for g in truth)
            best = max(iou(b, g) for b in boxes[t] for g in truth)
            for level, value in enumerate((0.3, 0.5, 0.7)):
                largest[level, t] += first >= value
                anywhere[level, t] += best >= value
            top1[t] += right1 and first >= 0.5
            if top5_boxes is not None:
                top5[t] += max(iou(top5_boxes[t][0], g) for g in truth) >= 0.5
    for name, expected in (
        ('largest', largest),
        ('anywhere', anywhere),
        ('top1', top1),
        ('top5', top5),
    ):
        np.testing.assert_array_equal(getattr(counts, name), expected)
        assert expected.any()
    assert counts.images == 60
    np.testing.assert_allclose(counts.gt_known, 100 * largest[1] / 60)


def test_iou_at_the_limit_counts():
    counts = BoxCounts.zero(THRESHOLDS)
    counts.add(per_threshold(30, 50, 70, 20), TRUTH)
    assert counts.largest.tolist() == [[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]]


def test_largest_contour_or_any():
    counts = BoxCounts.zero(THRESHOLDS[:1])
    counts.add([np.array([overlap(20), overlap(90), overlap(10)])], TRUTH)
    assert counts.largest.tolist() == [[0], [0], [0]]
    assert counts.anywhere.tolist() == [[1], [1], [1]]


def test_any_true_box_will_do():
    counts = BoxCounts.zero(THRESHOLDS[:1])
    counts.add([np.array([overlap(90)])], np.array([[50, 50, 60, 60], *TRUTH]))
    assert counts.largest.tolist() == [[1], [1], [1]]


def test_v2_takes_the_best_threshold_of_each_iou():
    counts = BoxCounts.zero(THRESHOLDS)
    counts.add(per_threshold(30, 50, 10, 10), TRUTH)
    counts.add(per_threshold(40, 20, 10, 90), TRUTH)
    # IoU .3: both at the first threshold; .5 and .7: one image each.
    assert counts.anywhere.tolist() == [[2, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1]]
    assert counts.max_box_acc_v2 == pytest.approx((100 + 50 + 50) / 3)
    assert counts.max_box_acc == 50


def test_v2_is_of_any_contour_and_v1_of_the_largest():
    counts = BoxCounts.zero(THRESHOLDS[:1])
    counts.add([np.array([overlap(20), overlap(90)])], TRUTH)
    assert (counts.max_box_acc, counts.max_box_acc_v2) == (0, 100)


def test_top1_needs_the_class_and_the_box():
    for right, percent, expected in ((True, 60, 1), (True, 40, 0), (False, 60, 0)):
        counts = BoxCounts.zero(THRESHOLDS[:1])
        counts.add(per_threshold(percent), TRUTH, top1_right=right)
        assert counts.top1.tolist() == [expected]


def test_top5_scores_the_boxes_of_the_right_class():
    for other, expected in ((None, 0), (per_threshold(60), 1), (per_threshold(40), 0)):
        counts = BoxCounts.zero(THRESHOLDS[:1])
        counts.add(per_threshold(90), TRUTH, top5_boxes=other)
        assert counts.top5.tolist() == [expected]
        assert counts.top1.tolist() == [0] and counts.largest[1].tolist() == [1]


def test_adding_counts_equals_one_pass():
    rng = np.random.default_rng(5)
    images = [random_image(rng) for _ in range(12)]

    def count(part):
        counts = BoxCounts.zero(THRESHOLDS)
        for i, (boxes, truth) in part:
            top5 = boxes if i % 3 else None
            counts.add(boxes, truth, top1_right=i % 2 == 0, top5_boxes=top5)
        return counts

    numbered = list(enumerate(images))
    whole = count(numbered)
    merged = count(numbered[:5]) + count(numbered[5:]) + BoxCounts.zero(THRESHOLDS)
    for name in ('largest', 'anywhere', 'top1', 'top5', 'images', 'thresholds'):
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))
    assert merged.max_box_acc == whole.max_box_acc > 0
    before = count(numbered[:5]).largest
    part = count(numbered[:5])
    _ = part + whole
    np.testing.assert_array_equal(part.largest, before)


def test_percentages():
    counts = BoxCounts.zero(THRESHOLDS)
    assert counts.max_box_acc == 0  # of no image
    for percents in ((60, 60, 10, 10), (60, 10, 10, 10), (60, 60, 60, 10), (10, 60, 10, 10)):
        counts.add(per_threshold(*percents), TRUTH)
    np.testing.assert_allclose(counts.gt_known, [75, 75, 25, 0])
    assert counts.max_box_acc == 75
    assert IOUS == (0.3, 0.5, 0.7)

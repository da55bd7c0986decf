"""Box scores of tables against naive loops and hand counts."""

from dataclasses import replace

import numpy as np
import pytest

from wsol_jax.evaluation.box_metrics import IOUS, best_ious
from wsol_jax.evaluation.curves import Curves
from wsol_jax.evaluation.table import Scores, Table, joined

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


def table(*images):
    """Of images (boxes of each map at each threshold, true boxes, facts)."""
    return Table.joined([of_image(*image) for image in images])


def of_image(maps, truth, facts=None):
    found = [best_ious(boxes, truth) for boxes in maps]
    empty = Table.empty(1, len(maps), THRESHOLDS[: len(maps[0])])
    columns = {name: np.array([value]) for name, value in (facts or {}).items()}
    return replace(
        empty,
        boxes=np.array([[[of[0] for of in boxes] for boxes in maps]], np.int16),
        overlap=np.array([[largest for largest, _ in found]]),
        anywhere=found[0][1][None],
        boxed=np.array([len(truth) > 0]),
        **columns,
    )


def one(boxes, truth=TRUTH):
    return table(([boxes], truth)).curves()


def test_sums_equal_a_naive_loop():
    rng = np.random.default_rng(0)
    largest, anywhere = np.zeros((3, 4), int), np.zeros((3, 4), int)
    top1, top5, images = np.zeros(4, int), np.zeros(4, int), []
    for i in range(60):
        boxes, truth = random_image(rng)
        other, _ = random_image(rng)
        right1, column = i % 2 == 0, (-1, 0, 1)[i % 3]
        images.append(([boxes, other], truth, {'first_right': right1, 'column': column}))
        for t in range(4):
            first = max(iou(boxes[t][0], g) for g in truth)
            best = max(iou(b, g) for b in boxes[t] for g in truth)
            for level, value in enumerate((0.3, 0.5, 0.7)):
                largest[level, t] += first >= value
                anywhere[level, t] += best >= value
            top1[t] += right1 and first >= 0.5
            if column >= 0:
                top5[t] += max(iou((boxes, other)[column][t][0], g) for g in truth) >= 0.5
    whole = table(*images)
    curves = whole.curves()
    np.testing.assert_array_equal(curves.largest, largest)
    np.testing.assert_array_equal(curves.anywhere, anywhere)
    assert largest.any() and anywhere.any() and top1.any() and top5.any()
    assert curves.images == curves.boxed == 60
    np.testing.assert_allclose(curves.gt_known, 100 * largest[1] / 60)
    for t, threshold in enumerate(THRESHOLDS):
        scores = whole.at([threshold]).means('ground_truth')
        expected = {'GTKnownLoc': largest[1, t], 'Top1Loc': top1[t], 'Top5Loc': top5[t]}
        assert scores == pytest.approx({name: 100 * n / 60 for name, n in expected.items()})


def test_iou_at_the_limit_counts():
    curves = one(per_threshold(30, 50, 70, 20))
    assert curves.largest.tolist() == [[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]]


def test_largest_contour_or_any():
    curves = one([np.array([overlap(20), overlap(90), overlap(10)])])
    assert curves.largest.tolist() == [[0], [0], [0]]
    assert curves.anywhere.tolist() == [[1], [1], [1]]


def test_any_true_box_will_do():
    curves = one([np.array([overlap(90)])], np.array([[50, 50, 60, 60], *TRUTH]))
    assert curves.largest.tolist() == [[1], [1], [1]]


def test_v2_takes_the_best_threshold_of_each_iou():
    curves = one(per_threshold(30, 50, 10, 10)) + one(per_threshold(40, 20, 10, 90))
    # IoU .3: both at the first threshold; .5 and .7: one image each.
    assert curves.anywhere.tolist() == [[2, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1]]
    assert curves.max_box_acc_v2 == pytest.approx((100 + 50 + 50) / 3)
    assert curves.max_box_acc == 50


def test_v2_is_of_any_contour_and_v1_of_the_largest():
    curves = one([np.array([overlap(20), overlap(90)])])
    assert (curves.max_box_acc, curves.max_box_acc_v2) == (0, 100)


def test_top1_needs_the_class_and_the_box():
    for right, percent, expected in ((True, 60, 100), (True, 40, 0), (False, 60, 0)):
        scores = table(([per_threshold(percent)], TRUTH, {'first_right': right})).means('top1')
        assert scores == {'Top1Loc': expected}


def test_top5_scores_the_boxes_of_the_right_class():
    for column, other, expected in ((-1, 60, 0), (1, 60, 100), (1, 40, 0)):
        maps = [per_threshold(90), per_threshold(other)]
        scores = table((maps, TRUTH, {'column': column})).means('ground_truth')
        assert scores == {'GTKnownLoc': 100, 'Top1Loc': 0, 'Top5Loc': expected}


def test_images_without_boxes_have_no_score():
    bare = Table.empty(2, 1, THRESHOLDS)
    assert bare.scores('ground_truth') == {} and bare.curves().images == 0
    scores = Table.joined([bare, table(([per_threshold(60, 60, 60, 60)], TRUTH))])
    known = scores.scores('ground_truth')['GTKnownLoc']
    assert np.isnan(known).tolist() == [True, True, False] and known[2] == 100


def test_joined_parts_equal_one_pass():
    rng = np.random.default_rng(5)
    images = []
    for i in range(12):
        boxes, truth = random_image(rng)
        images.append(([boxes], truth, {'first_right': i % 2 == 0, 'column': (-1, 0)[i % 3 > 0]}))
    key = ('dgl', 'a')
    parts = [table(*images[:5]), Table.empty(0, 1, THRESHOLDS), table(*images[5:])]
    found = joined({key: Scores(part, part.curves())} for part in parts)[key]
    whole = table(*images)
    for name in vars(whole):
        np.testing.assert_array_equal(getattr(found.table, name), getattr(whole, name))
    for name in vars(found.curves):
        np.testing.assert_array_equal(getattr(found.curves, name), getattr(whole.curves(), name))
    assert found.curves.max_box_acc == whole.curves().max_box_acc > 0


def test_some_thresholds_of_a_table():
    whole = table(([per_threshold(30, 50, 70, 20)], TRUTH))
    some = whole.at([0.75, 0.25])
    assert some.thresholds.tolist() == [0.75, 0.25]
    assert some.overlap[0, 0].tolist() == some.anywhere[0].tolist() == [0.2, 0.5]
    assert some.boxes[0, 0, :, 3].tolist() == [1, 4]
    assert some.mask_overlap.shape == (1, 1, 0)


def test_percentages():
    curves = Curves.zero(THRESHOLDS)
    assert curves.max_box_acc == 0  # of no image
    for percents in ((60, 60, 10, 10), (60, 10, 10, 10), (60, 60, 60, 10), (10, 60, 10, 10)):
        curves += one(per_threshold(*percents))
    np.testing.assert_allclose(curves.gt_known, [75, 75, 25, 0])
    assert curves.max_box_acc == 75
    assert IOUS == (0.3, 0.5, 0.7)

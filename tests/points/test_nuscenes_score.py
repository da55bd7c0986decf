"""Scores of nuScenes by hand, and against plain loops."""

import json

import numpy as np
import pytest

from wsol_jax.data.frames import Frame
from wsol_jax.data.records import Record
from wsol_jax.evaluation.split import Results
from wsol_jax.points.nuscenes_score import (
    DetectionTable,
    class_scores,
    match_frame,
    metrics_of,
    scores_of,
)
from wsol_jax.points.score import score_frames

NAMES = ('car', 'pedestrian', 'traffic_cone', 'barrier')
CAR, PEDESTRIAN, CONE, BARRIER = range(4)


def boxes_at(*places, size=(4.0, 2.0, 1.5), yaw=0.0):
    return np.array([[x, y, 0, *size, yaw] for x, y in places], float).reshape(-1, 7)


def table(boxes, classes, scores, true_boxes, true_classes, **more):
    classes, true_classes = (
        np.broadcast_to(given, len(of))
        for given, of in ((classes, boxes), (true_classes, true_boxes))
    )
    return match_frame(boxes, classes, scores, true_boxes, true_classes, NAMES, **more)


def cars(boxes, scores, true_boxes):
    found = table(boxes, CAR, scores, true_boxes, CAR)
    return {name: values[CAR] for name, values in class_scores(found, NAMES).items()}


ROW = boxes_at(*((10.0 * x - 40, 0) for x in range(8)))


def test_perfect_detections():
    """All is right, but for velocity and attribute: NDS is (5 + 3) / 10."""
    true_classes = np.array([0, 0, 1, 1, 1, 1, 3, 3])
    found = table(ROW, true_classes, np.linspace(1, 0.3, 8), ROW, true_classes)
    expected = {'mAP': 100, 'NDS': 80, 'mATE': 0, 'mASE': 0, 'mAOE': 0}
    assert scores_of(found, NAMES) == pytest.approx(expected)
    assert scores_of(found, NAMES)['mAP'] == 100  # to the last bit: reports print it


def test_a_false_positive_before_all():
    """Precision at the k-th of n hits is k / (k + 1), linear in the recall between."""
    away = np.concatenate([boxes_at((0, 30)), ROW])
    scores = cars(away, np.linspace(1, 0.1, 9), ROW)
    recalls, hits = np.arange(11, 101) / 100, np.arange(9)
    precision = np.interp(recalls, hits / 8, hits / (hits + 1))
    expected = 100 * np.mean(np.clip(precision - 0.1, 0, None)) / 0.9
    assert scores['AP'] == pytest.approx(expected)
    assert scores['ATE'] == 0
    after = cars(np.roll(away, -1, axis=0), np.linspace(1, 0.1, 9), ROW)
    assert after['AP'] > 98  # only the last point of the curve is lower


def test_a_second_detection_of_an_object_is_wrong():
    twice = np.concatenate([ROW, ROW])
    scores = np.linspace(1, 0.6, 8)
    last = cars(twice, np.r_[scores, scores - 0.5], ROW)
    assert last['AP'] == pytest.approx(100 * (89 + 0.4 / 0.9) / 90)  # 8 of 16 at a recall of 1
    # Each right after its hit: from 1 / 2 up to k / (2 k - 1) at the k-th hit, and down again.
    between = cars(twice, np.r_[scores, scores - 0.01], ROW)
    precisions = []
    for percent in range(11, 101):
        k, rest = percent * 8 // 100 + 1, percent * 8 % 100 / 100
        precisions.append(1 if k == 1 else 0.5 + rest * (k / (2 * k - 1) - 0.5))
    assert between['AP'] == pytest.approx(100 * (np.mean(precisions) - 0.1) / 0.9)


def test_half_of_the_objects():
    """Precision is 1 at 11 % .. 50 % recall, 40 of 90 points, and 0 above."""
    assert cars(ROW[:4], np.linspace(1, 0.5, 4), ROW)['AP'] == pytest.approx(100 * 40 / 90)


def test_distances_count_without_their_end():
    for shift, right in ((0.49, 4), (0.5, 3), (0.99, 3), (1, 2), (2, 1), (3.9, 1), (4, 0)):
        moved = ROW + np.array([0, shift, 9, 0, 0, 0, 0])  # the height does not count
        found = table(moved, CAR, np.ones(8), ROW, CAR)
        assert found.right.sum(axis=1).tolist() == [right] * 8


def test_the_nearest_free_object_is_taken():
    """The second detection is nearest to an object that is taken and gets the other one."""
    true = boxes_at((10, 0), (11.5, 0))
    found = table(boxes_at((10.1, 0), (10.2, 0)), CAR, [0.9, 0.8], true, CAR)
    assert found.right.tolist() == [[True] * 4, [False, False, True, True]]
    assert found.errors[:, 0] == pytest.approx([0.1, 1.3])


def test_the_highest_score_takes_first_whatever_the_order():
    true = boxes_at((10, 0))
    found = table(boxes_at((10.1, 0), (10.3, 0)), CAR, [0.2, 0.8], true, CAR)
    assert found.scores.tolist() == [0.8, 0.2]
    assert found.right[:, 0].tolist() == [True, False]


def test_another_class_is_no_match():
    found = table(ROW, PEDESTRIAN, np.ones(8), ROW, CAR)
    assert not found.right.any()
    assert scores_of(found, NAMES)['mAP'] == 0
    assert scores_of(found, NAMES)['mATE'] == 1


def test_errors():
    moved = ROW + np.array([0.3, -0.4, 5, 4, 0, 0, 0.2])  # twice as long
    scores = cars(moved, np.linspace(1, 0.5, 8), ROW)
    assert scores['ATE'] == pytest.approx(0.5)
    assert scores['ASE'] == pytest.approx(0.5)
    assert scores['AOE'] == pytest.approx(0.2)


def test_errors_are_averaged_down_to_the_score_of_each_recall():
    """Two hits with errors 0 and 1: mean error 0 to recall 50 %, then by the score up to 1 / 2."""
    true = boxes_at((0, 0), (20, 0))
    scores = cars(boxes_at((0, 0), (20, 1)), [0.9, 0.5], true)
    recalls = np.arange(11, 101) / 100
    assert scores['ATE'] == pytest.approx(np.mean(np.clip(recalls - 0.5, 0, None)))


@pytest.mark.parametrize(
    ('k', 'turn', 'error'),
    [
        (CAR, np.pi, np.pi),
        (CAR, 2 * np.pi - 0.1, 0.1),
        (CAR, -7 * np.pi / 2, np.pi / 2),
        (BARRIER, np.pi, 0),
        (BARRIER, np.pi - 0.1, 0.1),
        (BARRIER, np.pi / 2, np.pi / 2),
        (CONE, 1.0, np.nan),
    ],
)
def test_orientation(k, turn, error):
    true = boxes_at((5, 5), yaw=3.0)
    found = table(true + np.array([0] * 6 + [turn]), k, [1.0], true, k)
    assert class_scores(found, NAMES)['AOE'][k] == pytest.approx(error, nan_ok=True)
    if k == CONE:  # left out of the mean, but not found it would be no better
        assert 'mAOE' not in scores_of(found, NAMES)
        assert scores_of(found, NAMES)['NDS'] == pytest.approx(70)


def test_ranges_of_the_classes():
    places = boxes_at((0, 29.9), (0, 30), (39.9, 0), (0, -40), (-49.9, 0), (50, 0))
    counted = [table(places, k, np.ones(6), places, k).objects[k] for k in range(4)]
    assert counted == [5, 3, 1, 1]
    found = table(places, PEDESTRIAN, np.ones(6), places, CAR)
    assert len(found.scores) == 3 and found.objects[CAR] == 5
    shifted = table(places, CONE, np.ones(6), places, CONE, vehicle=(0, 1))
    assert shifted.objects[CONE] == 2


BIKES = ('car', 'bicycle', 'motorcycle')
RACK = [[10, 0, 0, 6, 2, 2, np.pi / 2]]  # of x 9 to 11, y -3 to 3


def in_racks(boxes, classes, true_boxes, true_classes, racks=RACK):
    scores = np.linspace(1, 0.5, len(boxes))
    return match_frame(boxes, classes, scores, true_boxes, true_classes, BIKES, racks=racks)


def test_bikes_in_racks_do_not_count():
    """Four detections are in the rack; the car there, and the bikes beside it, count."""
    places = [(10, 2.9), (10, -2.9), (10.9, 0), (9.1, 0), (10, 0), (12, 0), (10, 3.1)]
    classes = np.array([1, 2, 1, 2, 0, 1, 2])
    found = in_racks(boxes_at(*places), classes, boxes_at((12, 0)), [1])
    assert sorted(found.classes) == [0, 1, 2] and found.objects.tolist() == [0, 1, 0]
    alone = in_racks(boxes_at((12, 0)), [1], boxes_at((12, 0)), [1])
    of_bicycles = [class_scores(t, BIKES)['AP'][1] for t in (found, alone)]
    assert of_bicycles == [pytest.approx(100)] * 2  # none of the rack is a false positive
    without = in_racks(boxes_at(*places), classes, boxes_at((12, 0)), [1], racks=())
    assert len(without.classes) == 7
    precision = np.arange(11, 101) / 100 / 3  # two bicycles come before
    expected = 100 * np.mean(np.clip(precision - 0.1, 0, None)) / 0.9
    assert class_scores(without, BIKES)['AP_0.5'][1] == pytest.approx(expected)


def test_true_bikes_in_racks_do_not_count():
    true = boxes_at((10, 0), (10, 0), (20, 0))
    assert in_racks(true[:0], [], true, [0, 1, 2]).objects.tolist() == [1, 0, 1]


def test_a_frame_is_scored_with_its_racks():
    boxes = boxes_at((10, 0), (12, 0))
    columns = {
        'boxes': boxes[None],
        'classes': np.array([[1, 1]]),
        'scores': np.array([[0.9, 0.8]]),
    }
    for racks, count in ((), 2), ((tuple(RACK[0]),), 1):
        record = Record('a', b'', (), None, extra={'frame': Frame((), (), racks=racks)})
        part = Results([record], columns)
        scored = score_frames(part, None, None, names=BIKES, region=())
        assert len(scored.detections.classes) == count


def test_a_rack_has_a_height():
    above = boxes_at((10, 0))
    above[:, 2] = 1.1
    assert in_racks(above, [1], above[:0], []).classes.tolist() == [1]


def test_a_class_that_nuscenes_lacks_has_no_range():
    far = boxes_at((900, 0))
    assert match_frame(far, [0], [1], far, [0], ('boat',)).right.all()


def test_boxes_of_no_class_do_not_count():
    found = table(ROW, CAR, np.ones(8), ROW, np.array([-1] * 4 + [0] * 4))
    assert found.objects.tolist() == [4, 0, 0, 0]
    assert found.right[:, 0].sum() == 4


def test_nothing_found_and_nothing_to_find():
    nothing = np.zeros((0, 7))
    missed = table(nothing, CAR, [], ROW, CAR)
    assert scores_of(missed, NAMES) == {'mAP': 0, 'NDS': 0, 'mATE': 1, 'mASE': 1, 'mAOE': 1}
    assert scores_of(table(ROW, CAR, np.ones(8), nothing, CAR), NAMES) == {}
    assert scores_of(table(nothing, CAR, [], nothing, CAR), NAMES) == {}


def test_metrics_are_json_and_tell_what_is_left_out():
    found = metrics_of(table(ROW, CAR, np.ones(8), ROW, CAR), NAMES)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found['absent_classes'] == 3
    car, pedestrian = found['by_class'][:2]
    assert car['boxes'] == car['detections'] == 8 and car['AP_0.5'] == pytest.approx(100)
    assert pedestrian == {'class': 1, 'name': 'pedestrian', 'boxes': 0, 'detections': 0}


def frames(seed, count=6, tied=False):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        true = rng.uniform(-45, 45, (rng.integers(0, 14), 7))
        true[:, 3:6] = rng.uniform(0.5, 5, (len(true), 3))
        true_classes = rng.integers(-1, 4, len(true))
        repeated = np.repeat(np.arange(len(true)), 2)
        boxes = true[repeated] + rng.normal(0, 1, (len(repeated), 7)) * [1, 1, 1, 0, 0, 0, 1]
        boxes[:, 3:6] *= rng.uniform(0.7, 1.4, (len(boxes), 3))
        wild = rng.integers(0, 4, len(boxes))
        classes = np.where(rng.random(len(boxes)) < 0.8, true_classes[repeated], wild)
        scores = rng.permutation(len(boxes)) / 40 + 0.01 * rng.random(len(boxes)) + 0.05
        scores = np.full(len(boxes), 0.5) if tied else scores
        kept = classes >= 0
        yield boxes[kept], classes[kept], scores[kept], true, true_classes


def slow_class(all_frames, k, distance, reach, period):
    """Recall, precision, score levels and mean errors of one class: every box in turn."""
    pool, objects = [], 0
    for index, (boxes, classes, scores, true, true_classes) in enumerate(all_frames):
        for b, c, s in zip(boxes, classes, scores, strict=True):
            if c == k and (b[0] ** 2 + b[1] ** 2) ** 0.5 < reach:
                pool.append((s, index, b))
        for b, c in zip(true, true_classes, strict=True):
            objects += c == k and (b[0] ** 2 + b[1] ** 2) ** 0.5 < reach
    taken, curve, errors, hit_scores = set(), [], [], []
    for s, index, b in sorted(pool, key=lambda row: -row[0]):
        best, least = None, np.inf
        true, true_classes = all_frames[index][3:]
        for j, t in enumerate(true):
            near = (t[0] ** 2 + t[1] ** 2) ** 0.5 < reach
            gap = ((t[0] - b[0]) ** 2 + (t[1] - b[1]) ** 2) ** 0.5
            if true_classes[j] == k and near and (index, j) not in taken and gap < least:
                best, least = j, gap
        if least < distance:
            taken.add((index, best))
            t = true[best]
            shared = min(b[3], t[3]) * min(b[4], t[4]) * min(b[5], t[5])
            union = b[3] * b[4] * b[5] + t[3] * t[4] * t[5] - shared
            turn = (b[6] - t[6]) % period
            errors.append([least, 1 - shared / union, min(turn, period - turn)])
            hit_scores.append(s)
        curve.append((len(taken) / objects, len(taken) / (len(curve) + 1), s))
    return np.array(curve), np.array(errors), np.array(hit_scores)


def slow_ap(curve):
    recall, precision = curve[:, 0], curve[:, 1]
    total = 0.0
    for r in np.linspace(0, 1, 101)[11:]:
        p = np.interp(r, recall, precision) if r <= recall[-1] else 0.0
        total += max(p - 0.1, 0) / 0.9
    return 100 * total / 90


def slow_errors(curve, errors, hit_scores):
    values = []
    for r in np.linspace(0, 1, 101)[11:]:
        if r <= curve[-1, 0]:
            level = np.interp(r, curve[:, 0], curve[:, 2])
            so_far = [errors[: i + 1].mean(axis=0) for i in range(len(errors))]
            below = [
                np.interp(level, hit_scores[::-1], np.array(so_far)[::-1, e]) for e in range(3)
            ]
            values.append(below)
    return np.mean(values, axis=0) if values else np.ones(3)


@pytest.mark.parametrize('seed', range(3))
def test_against_loops(seed):
    all_frames = list(frames(seed))
    found = DetectionTable.joined(match_frame(*frame, NAMES) for frame in all_frames)
    columns = class_scores(found, NAMES)
    for k, reach in enumerate((50, 40, 30, 30)):
        period = np.pi if k == BARRIER else 2 * np.pi
        for distance in (0.5, 1, 2, 4):
            curve, errors, hit_scores = slow_class(all_frames, k, distance, reach, period)
            assert columns[f'AP_{distance:g}'][k] == pytest.approx(slow_ap(curve))
            if distance == 2:
                expected = slow_errors(curve, errors, hit_scores)
                expected[2] = np.nan if k == CONE else expected[2]
                got = [columns[name][k] for name in ('ATE', 'ASE', 'AOE')]
                assert got == pytest.approx(expected, nan_ok=True)
    assert 5 < scores_of(found, NAMES)['mAP'] < 90


def test_scores_do_not_depend_on_parts_or_their_order():
    tables = [match_frame(*frame, NAMES) for frame in frames(7, tied=True)]
    whole = DetectionTable.joined(tables)
    halves = DetectionTable.joined(tables[4:]) + DetectionTable.joined(tables[:4])
    assert scores_of(whole, NAMES) == pytest.approx(scores_of(halves, NAMES), rel=1e-12)
    np.testing.assert_array_equal(whole.objects, halves.objects)

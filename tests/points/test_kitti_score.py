"""Average precision of KITTI by hand, and against plain loops."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wsol_jax.data.frames import Camera, Frame, frame_of, frame_record
from wsol_jax.data.kitti import CLASSES, Kitti, Label
from wsol_jax.data.records import Decoding
from wsol_jax.points import kitti_score
from wsol_jax.points.kitti_score import (
    Detections,
    KittiTable,
    Labels,
    average_precisions,
    image_heights,
    match_frame,
    match_record,
    scores_of,
)
from wsol_jax.points.rotated_iou import bev_iou, iou_3d


def cars(count):
    boxes = np.zeros((count, 7))
    boxes[:, 0], boxes[:, 3:6] = 10 * np.arange(count), (4, 2, 1.5)
    return boxes


def labels(boxes, names='Car', heights=50, occlusions=0, truncations=0):
    per_box = (np.broadcast_to(v, len(boxes)) for v in (names, heights, occlusions, truncations))
    return Labels(boxes, *per_box)


def detections(boxes, scores=None, names='Car', heights=50):
    scores = np.linspace(1, 0.5, len(boxes)) if scores is None else np.array(scores, float)
    names, heights = (np.broadcast_to(v, len(boxes)) for v in (names, heights))
    return Detections(boxes, names, scores, heights)


def scores_with(found, true):
    return scores_of(match_frame(found, true))


def moderate(found, true, view='3D', name='Car'):
    scores = scores_with(found, true)
    return [scores[f'{name}_{view}_moderate_{points}'] for points in ('R11', 'R40')]


@pytest.mark.parametrize('count', [1, 2, 7, 39, 40, 41, 60, 61, 150])
def test_perfect_detections(count):
    scores = scores_with(detections(cars(count)), labels(cars(count)))
    assert len(scores) == 3 * 2 * 2  # of cars alone
    assert set(scores.values()) == {100.0}


@pytest.mark.parametrize(('count', 'found'), [(2, 1), (10, 5), (200, 100)])
def test_half_of_the_objects(count, found):
    """Recall reaches the points up to 0.5: 6 of 11, 20 of 40."""
    expected = [100 * 6 / 11, 50]
    assert moderate(detections(cars(count)[:found]), labels(cars(count))) == pytest.approx(expected)


def test_a_false_positive_before_all():
    """The best precision is at full recall: 9 of 10, everywhere."""
    true = labels(cars(9))
    assert moderate(detections(np.roll(cars(10), 1, axis=0)), true) == pytest.approx([90, 90])
    assert moderate(detections(cars(10)), true) == [100, 100]


def test_duplicates_are_false_positives():
    """The k-th of 8 hits has precision k / (2 k - 1) and serves the recalls next to k / 8."""
    hits = [max(1, round(step / 5)) for step in range(41)]
    curve = np.array([k / (2 * k - 1) for k in hits])
    twice = detections(np.repeat(cars(8), 2, axis=0))
    expected = [100 * curve[::4].mean(), 100 * curve[1:].mean()]
    assert moderate(twice, labels(cars(8))) == pytest.approx(expected)
    last = detections(np.concatenate([cars(8), cars(8)]))
    assert moderate(last, labels(cars(8))) == [100, 100]


def test_of_two_that_cover_a_box_the_better_counts_once_the_threshold_lets_it():
    """The loose one has the higher score: at its score it is right, below the tight one is."""
    loose = cars(1) + np.array([0.3, 0, 0, 0, 0, 0, 0])
    table = match_frame(detections(np.concatenate([loose, cars(1)])), labels(cars(1)))
    of_case = table.cases == np.ravel_multi_index((0, 1, 1), table.objects.shape)
    assert table.right[of_case].tolist() == [1, 0]
    assert table.wrong[of_case].tolist() == [0, 1]
    assert table.found[of_case].tolist() == [True, False]


def people_at(*places):
    """Boxes 4 m long in a row: s apart they overlap by (4 - s) / (4 + s), half of it at 1.33."""
    return cars(len(places)) * [0, 1, 1, 1, 1, 1, 1] + np.outer(places, np.eye(7)[0])


@pytest.mark.parametrize(
    ('found', 'scores'),
    [
        # The first covers both, the second only one, but that one better.
        ((0.6, -0.5), (0.8, 0.9)),
        # The best score covers both, and serves one of them only.
        ((0.5, 1.2), (0.9, 0.8)),
    ],
)
def test_two_boxes_share_two_detections_that_both_could_take(found, scores):
    true = labels(people_at(0, 1), 'Pedestrian')
    both = detections(people_at(*found), scores, 'Pedestrian')
    assert moderate(both, true, name='Pedestrian') == [100, 100]


def test_equal_scores_pass_a_threshold_together():
    """In other frames, too: one is right, the other wrong."""
    right = match_frame(detections(cars(1), [0.5]), labels(cars(1)))
    wrong = match_frame(detections(cars(1), [0.5]), labels(cars(0)))
    for table in (right + wrong, wrong + right):
        assert scores_of(table)['Car_3D_easy_R40'] == 50


@pytest.mark.parametrize(
    ('name', 'shift', 'right'),
    [
        ('Car', 0.7, True),
        ('Car', 0.71, False),
        ('Cyclist', 1.33, True),
        ('Pedestrian', 1.34, False),
    ],
)
def test_least_overlaps(name, shift, right):
    """A box of length 4 moved along: (4 - s) / (4 + s) is 0.7 at 0.706, 0.5 at 1.333."""
    moved = detections(cars(3) + np.array([shift, 0, 0, 0, 0, 0, 0]), names=name)
    expected = [100.0 * right] * 2
    for view in ('BEV', '3D'):
        assert moderate(moved, labels(cars(3), name), view, name) == expected


def test_height_counts_in_3d_alone():
    raised = detections(cars(3) + np.array([0, 0, 0.5, 0, 0, 0, 0]))
    assert moderate(raised, labels(cars(3)), 'BEV') == [100, 100]
    assert moderate(raised, labels(cars(3)), '3D') == [0, 0]


@pytest.mark.parametrize(
    ('hard', 'counts'),
    [
        ({'heights': 41}, 'easy moderate hard'),
        ({'heights': 40}, 'moderate hard'),
        ({'heights': 25}, ''),
        ({'occlusions': 1}, 'moderate hard'),
        ({'occlusions': 2}, 'hard'),
        ({'occlusions': 3}, ''),
        ({'truncations': 0.2}, 'moderate hard'),
        ({'truncations': 0.4}, 'hard'),
        ({'truncations': 0.6}, ''),
    ],
)
def test_difficulties(hard, counts):
    """What is too hard is not missed, and what covers it is not wrong."""
    table = match_frame(detections(cars(2)), labels(cars(2), **hard))
    assert set(scores_of(table)) == {
        f'Car_{view}_{difficulty}_{points}'
        for view in ('BEV', '3D')
        for difficulty in counts.split()
        for points in ('R11', 'R40')
    }
    assert table.wrong.sum() == 0


@pytest.mark.parametrize(
    ('name', 'other', 'wrong'),
    [
        ('Car', 'Van', 0),
        ('Pedestrian', 'Person_sitting', 0),
        ('Cyclist', 'Person_sitting', 1),
        ('Car', 'Truck', 1),
        ('Car', 'Pedestrian', 1),
    ],
)
def test_neighbouring_classes(name, other, wrong):
    """A detection of another class's object is wrong, but for one that is nearly the same."""
    boxes = np.concatenate([cars(1), cars(2)[1:]])
    true = labels(boxes, (name, other))
    table = match_frame(detections(boxes, names=name), true)
    assert (table.wrong.sum() > 0) == wrong
    assert moderate(detections(boxes[::-1], names=name), true, name=name) == [100 / (1 + wrong)] * 2


def test_names_in_any_case():
    assert moderate(detections(cars(2), names='car'), labels(cars(2), 'CAR')) == [100, 100]


def test_low_detections_are_neither_right_nor_wrong():
    low = detections(cars(2), heights=24)
    table = match_frame(low, labels(cars(2)))
    assert scores_of(table)['Car_3D_moderate_R11'] == 0
    assert table.wrong.sum() == 0
    # One of 25 pixels counts; 'easy' asks for 40.
    scores = scores_with(detections(cars(2), heights=25), labels(cars(2)))
    assert scores['Car_3D_moderate_R11'] == 100 and scores['Car_3D_easy_R11'] == 0


def test_low_detections_of_any_class_take_a_box_as_in_the_devkit():
    """A low pedestrian of the best score takes the first car: its own score is no threshold."""
    boxes = np.concatenate([cars(1), cars(2)])
    found = detections(boxes, (0.9, 0.8, 0.7), ('Pedestrian', 'Car', 'Car'), (24, 50, 50))
    assert moderate(found, labels(cars(2)))[1] == 50
    found = detections(boxes, (0.9, 0.8, 0.7), ('Pedestrian', 'Car', 'Car'), (25, 50, 50))
    assert moderate(found, labels(cars(2)))[1] == 100


def test_lines_of_dontcare_change_nothing():
    """Their boxes are no boxes: sizes of -1, far away."""
    away = np.array([[-1000, -1000, -1000, -1, -1, -1, -10.0]])
    true = labels(np.concatenate([cars(2), away]), ('Car', 'Car', 'DontCare'))
    boxes = np.concatenate([cars(3)[2:], cars(2)])
    assert scores_with(detections(boxes), true) == scores_with(detections(boxes), labels(cars(2)))


def test_nothing_found_and_nothing_to_find():
    nothing = np.zeros((0, 7))
    assert set(scores_with(detections(nothing), labels(cars(2))).values()) == {0.0}
    assert scores_with(detections(cars(2)), labels(nothing)) == {}
    assert scores_with(detections(nothing), labels(nothing)) == {}


def frames(seed, count):
    """Frames with jittered, doubled, misnamed and lost detections."""
    rng = np.random.default_rng(seed)
    kinds = ('Car', 'Car', 'Car', 'Pedestrian', 'Cyclist', 'Van', 'Person_sitting', 'Truck')
    for _ in range(count):
        true = rng.uniform(-15, 15, (rng.integers(0, 14), 7))
        true[:, 3:6] = np.array([4, 2, 1.5]) + rng.uniform(-0.5, 0.5, (len(true), 3))
        true[:, 2] /= 30
        names = rng.choice(kinds, len(true))
        repeated = np.flatnonzero(rng.random(len(true)) < 0.8).repeat(2)
        jitter = rng.normal(0, 0.1, (len(repeated), 7))
        called = np.where(rng.random(len(repeated)) < 0.15, rng.choice(CLASSES, len(repeated)), '')
        found = Detections(
            true[repeated] + jitter,
            np.where(called == '', names[repeated], called),
            rng.random(len(repeated)),
            rng.uniform(20, 90, len(repeated)),
        )
        yield (
            found,
            Labels(
                true,
                names,
                rng.uniform(15, 120, len(true)),
                rng.choice(4, len(true), p=[0.7, 0.1, 0.1, 0.1]),
                rng.choice([0, 0.2, 0.4, 0.6], len(true), p=[0.7, 0.1, 0.1, 0.1]),
            ),
        )


def slow_states(found, true, name, difficulty):
    """1 counts, 0 is ignored, -1 is not there; of detections and labels."""
    height, occlusion = (40, 25, 25)[difficulty], difficulty
    truncation = (0.15, 0.3, 0.5)[difficulty]
    like = {'Car': 'Van', 'Pedestrian': 'Person_sitting'}.get(name)
    of_found, of_true = [], []
    for n, h in zip(found.names, found.heights, strict=True):
        of_found.append(0 if h < height else 1 if n == name else -1)
    for j, n in enumerate(true.names):
        hard = true.heights[j] <= height or true.occlusions[j] > occlusion
        hard = hard or true.truncations[j] > truncation
        of_true.append(-1 if n not in (name, like) else 0 if hard or n == like else 1)
    return of_found, of_true


def slow_pass(overlap, least, scores, of_found, of_true, threshold=None):
    """Without a threshold the scores of what is found, else how many are right and wrong."""
    used, hits, right = set(), [], 0
    there = [
        i
        for i, state in enumerate(of_found)
        if state >= 0 and (threshold is None or scores[i] >= threshold)
    ]
    for j, state in enumerate(of_true):
        able = [i for i in there if i not in used and overlap[i, j] > least]
        if state < 0 or not able:
            continue
        if threshold is None:
            chosen = max(able, key=lambda i: scores[i])
        else:
            sure = [i for i in able if of_found[i] == 1]
            chosen = max(sure, key=lambda i, j=j: overlap[i, j]) if sure else able[0]
        used.add(chosen)
        if state == 1 and of_found[chosen] == 1:
            hits.append(scores[chosen])
            right += 1
    if threshold is None:
        return hits
    return right, sum(of_found[i] == 1 and i not in used for i in there)


def devkit_thresholds(scores, objects):
    """As the devkit's program chooses them: at most one recall point a detection."""
    chosen, recall = [], 0.0
    for i, score in enumerate(sorted(scores, reverse=True)):
        left, last = (i + 1) / objects, i == len(scores) - 1
        right = left if last else (i + 2) / objects
        if right - recall < recall - left and not last:
            continue
        chosen.append(score)
        recall += 1 / 40
    return chosen


def slow_average_precisions(all_frames, name, difficulty, view):
    least = 0.7 if name == 'Car' else 0.5
    iou = bev_iou if view == 'BEV' else iou_3d
    cases = [
        (iou(f.boxes, t.boxes), least, f.scores, *slow_states(f, t, name, difficulty))
        for f, t in all_frames
    ]
    objects = sum(case[-1].count(1) for case in cases)
    hits = [s for case in cases for s in slow_pass(*case)]
    curve = [0.0] * 41
    for i, threshold in enumerate(devkit_thresholds(hits, objects)):
        right, wrong = np.sum([slow_pass(*case, threshold) for case in cases], axis=0)
        curve[i] = right / (right + wrong)
    best = [max(curve[i:]) for i in range(41)]
    return objects, [100 * sum(best[::4]) / 11, 100 * sum(best[1:]) / 40]


def test_against_loops_and_the_devkits_choice_of_thresholds():
    all_frames = list(frames(0, 65))
    table = KittiTable.joined(match_frame(*frame) for frame in all_frames)
    found = scores_of(table)
    for difficulty, view in ((1, 'BEV'), (2, '3D')):
        objects, expected = slow_average_precisions(all_frames, 'Car', difficulty, view)
        assert objects > 60
        level = ('easy', 'moderate', 'hard')[difficulty]
        got = [found[f'Car_{view}_{level}_{points}'] for points in ('R11', 'R40')]
        assert got == pytest.approx(expected)
        assert 5 < expected[1] < 90


def test_few_objects_against_loops(monkeypatch):
    """With the devkit's choice of thresholds in place of ours, small classes agree as well."""
    monkeypatch.setattr(
        kitti_score, '_thresholds', lambda scores, n: np.array(devkit_thresholds(scores, n))
    )
    all_frames = list(frames(5, 12))
    found = scores_of(KittiTable.joined(match_frame(*frame) for frame in all_frames))
    for name in CLASSES:
        for difficulty, level in enumerate(('easy', 'moderate', 'hard')):
            _, expected = slow_average_precisions(all_frames, name, difficulty, 'BEV')
            got = [found[f'{name}_BEV_{level}_{points}'] for points in ('R11', 'R40')]
            assert got == pytest.approx(expected)


@pytest.mark.parametrize('objects', [61, 75, 100, 997, 4000])
def test_thresholds_are_the_devkits(objects):
    for found in (1, 2, objects // 3, objects - 1, objects):
        scores = np.linspace(1, 0, found)
        ours = kitti_score._thresholds(scores, objects)
        assert ours.tolist() == devkit_thresholds(scores, objects)


def test_scores_do_not_depend_on_parts_or_their_order():
    tables = [match_frame(*frame) for frame in frames(7, 8)]
    whole = KittiTable.joined(tables)
    halves = KittiTable.joined(tables[5:]) + KittiTable.joined(tables[:5])
    np.testing.assert_array_equal(average_precisions(whole), average_precisions(halves))


# A camera at the origin that looks along x: 100 pixels a metre at 1 m, the middle at (50, 40).
CAMERA = Camera(b'', ((50.0, -100, 0, 0), (40, 0, -100, 0), (1, 0, 0, 0)), (100, 80))


def test_heights_in_the_image_by_hand():
    """From 0.75 m above to as much below, the front 8 m ahead; then 1 m, behind, and across."""
    ahead, near, behind = ([x, 0, 0, 4, 2, 1.5, 0] for x in (10, 3, -10))
    across = [0, 0, 0, 4, 2, 1.5, 0]  # its front alone is seen, 2 m ahead
    heights = image_heights(np.array([ahead, near, behind, across]), CAMERA)
    np.testing.assert_allclose(heights, [150 / 8, 80, 0, 75], rtol=1e-5)
    assert image_heights(np.zeros((0, 7)), CAMERA).shape == (0,)


@pytest.mark.parametrize(
    ('y', 'height'),
    [
        (4.9, 150 / 8),  # columns from -23.75 to 50 - 100 * 3.9 / 14 = 22
        (8.1, 0),  # up to 50 - 100 * 7.1 / 14 = -0.7
        (-8.1, 0),
        (25, 0),
        (-25, 0),
    ],
)
def test_a_box_beside_the_image_has_no_height(y, height):
    """The front is 8 m ahead and the back 14 m; the image shows 0.5 m aside for each m ahead."""
    heights = image_heights(np.array([[11, y, 0, 6, 2, 1.5, 0]]), CAMERA)
    np.testing.assert_allclose(heights, [height], rtol=1e-5)


def test_a_frame_of_kitti_is_scored_by_its_labels():
    """The van is like a car: what finds it is no mistake. The far car is outside of the region."""
    places = {'Car': 10.0, 'Van': 20.0, 'Pedestrian': 15.0}
    boxes = {name: (x, 0.0, 0.0, 4.0, 2.0, 4.0, 0.0) for name, x in places.items()}
    known = [Label(name, 0.0, 0, (0, 0, 9, 50), box) for name, box in boxes.items()]
    known.append(Label('Car', 0.0, 0, (0, 0, 9, 50), (90.0, 0, 0, 4, 2, 4, 0)))
    record = frame_record('a', Frame((), (CAMERA,)), Decoding())
    record = replace(record, extra={**record.extra, 'kitti': tuple(known)})
    found = np.array([boxes['Car'], boxes['Van']])
    region = (0, -40, -3, 70, 40, 3)
    table = match_record(record, found, np.array([0, 0]), np.array([0.5, 0.9]), region)
    scores = scores_of(table)
    assert scores['Car_3D_easy_R40'] == 100 and scores['Pedestrian_3D_easy_R40'] == 0
    assert not any(name.startswith('Cyclist') for name in scores)
    everywhere = match_record(record, found, np.array([0, 0]), np.array([0.5, 0.9]), ())
    assert scores_of(everywhere)['Car_3D_easy_R40'] == 50


def test_a_frame_of_another_source_counts_nothing():
    record = frame_record('a', Frame((), (CAMERA,)), Decoding())
    table = match_record(record, cars(2), np.array([0, 0]), np.array([0.5, 0.9]), ())
    assert scores_of(table) == {} and len(table.scores) == 0


def test_true_boxes_of_real_frames_are_perfect():
    if 'WSOL_DATA' not in os.environ:
        pytest.skip('WSOL_DATA is not set: no real frames')
    tables, close = [], []
    for record in Kitti(Path(os.environ['WSOL_DATA']) / 'kitti', 'train'):
        frame = frame_of(record)
        boxes, classes = np.array(frame.boxes), np.array(frame.classes, int)
        tables.append(match_record(record, boxes, classes, np.linspace(1, 0.5, len(boxes)), ()))
        known = [label for label in record.extra['kitti'] if label.name in CLASSES]
        heights = np.array([label.box_2d[3] - label.box_2d[1] for label in known])
        close += (abs(image_heights(boxes, frame.cameras[0]) / heights - 1) < 0.2).tolist()
    scores = scores_of(KittiTable.joined(tables))
    assert set(scores.values()) == {100.0} and len(scores) >= 12
    assert np.mean(close) > 0.8  # as a person draws them, and as corners are projected

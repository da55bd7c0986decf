"""The experiment on 3D detection: which step learns of what, and its table."""

import pytest

from experiments.points import STEPS, config_of, scores, table


def test_steps_learn_of_what_they_say(tmp_path):
    found = {step: config_of(tmp_path, step, 2) for step in STEPS}
    assert {config.seed for config in found.values()} == {2}
    taught = str(tmp_path / 'teacher' / 'maps' / 'train' / 'pseudo_labels')
    labels = {step: config.train.options.get('labels') for step, config in found.items()}
    assert labels['student'] == labels['student_boxes'] == taught
    assert (labels['student_truth'], labels['student_alone']) == ('truth', '')
    assert len({found[s].train.epochs for s in ('student', 'student_boxes', 'student_truth')}) == 1
    weights = {s: found[s].train.options.get('consistency') for s in ('student', 'student_boxes')}
    assert weights == {'student': None, 'student_boxes': 0.0}
    assert not found['teacher_lidar'].train.options['cameras']


def test_scores_are_those_of_the_last_split():
    ring = {'from': 10.0, 'boxes': 3, 'recall': 50.0, 'IoU': 20.0}
    rows = [{'split': 'val'}, {'split': 'test', 'mAP': 30.0, 'mATE': 0.5, 'by_distance': [ring]}]
    expected = {'mAP': 30.0, 'mATE': 50.0, 'recall 10 m': 50.0, 'IoU 10 m': 20.0}
    assert scores({'detection': rows}) == pytest.approx(expected)


def test_a_row_is_the_mean_of_its_seeds():
    one, other = (
        {'mAP': 40.0, 'IoU 0 m': 10.0, 'recall 0 m': 60.0},
        {'mAP': 50.0, 'recall 0 m': 60.0},
    )
    lines = table([{'teacher': one, 'student': one}, {'teacher': other}]).splitlines()
    assert lines[0].split(' | ')[2:] == ['mAP', 'recall 0 m', 'IoU 0 m |']
    assert lines[2] == '| teacher | 2 | 45.0 ± 7.1 | 60.0 ± 0.0 | 10.0 |'
    assert lines[3] == '| student | 1 | 40.0 | 60.0 | 10.0 |'

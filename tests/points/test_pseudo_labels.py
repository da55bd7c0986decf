"""Files of boxes: what is written is read, what is wrong is told, and where students use them."""

import json

import numpy as np
import pytest

from wsol_jax.data import open_source
from wsol_jax.data.frames import FrameTargets
from wsol_jax.data.records import DataError
from wsol_jax.points.pseudo_labels import (
    StudentTargets,
    read_pseudo_labels,
    write_pseudo_labels,
)

NAMES = ('car', 'pedestrian', 'cyclist')
BOXES = np.array([[1, 2, 3, 4, 2, 1.5, 0.1], [5, 6, 7, 1, 1, 2, -3]], np.float32)


def write(path):
    write_pseudo_labels(path, BOXES, np.array([2, 0]), np.array([0.9, 0.1]), NAMES)


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / 'train' / 'a.json')
    boxes, classes = read_pseudo_labels(tmp_path / 'train' / 'a.json', NAMES)
    np.testing.assert_allclose(boxes, BOXES, atol=1e-4)
    assert classes.tolist() == [2, 0]
    write_pseudo_labels(tmp_path / 'b.json', BOXES[:0], np.zeros(0, int), np.zeros(0), NAMES)
    assert read_pseudo_labels(tmp_path / 'b.json', NAMES)[0].shape == (0, 7)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'no such file'),
        ('{', 'must be JSON'),
        ('{"boxes": [[1, 2]], "classes": ["car"]}', 'must be JSON'),
        ({'boxes': BOXES.tolist(), 'classes': ['car']}, '2 boxes and 1 classes'),
        ({'boxes': BOXES.tolist(), 'classes': ['car', 'kar']}, "unknown class 'kar'"),
        ({'boxes': (-BOXES).tolist(), 'classes': ['car', 'car']}, 'a box of'),
    ],
)
def test_wrong_files_are_one_line(tmp_path, content, message):
    path = tmp_path / 'a.json'
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError) as caught:
        read_pseudo_labels(path, NAMES)
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)
    assert '\n' not in str(caught.value)


def test_students_learn_of_them_where_no_boxes_are_known(tmp_path):
    source = open_source('lidar_scenes', '', 'train', count=2, size=32, seed=0, labelled=0.5)
    known = [record.extra['frame'].labelled for record in (source[0], source[1])]
    assert sorted(known) == [False, True]
    frames = FrameTargets(64, source.most_boxes)
    labelled, other = source[known.index(True)], source[known.index(False)]
    write(tmp_path / f'{other.image_id}.json')
    targets = StudentTargets(frames, str(tmp_path), NAMES)
    for name, value in frames(labelled).items():
        np.testing.assert_array_equal(targets(labelled)[name], value)
    plain, found = frames(other), targets(other)
    assert (
        found['labelled'] and not plain['labelled'] and found['boxes'].shape == plain['boxes'].shape
    )
    np.testing.assert_allclose(found['boxes'][:2], BOXES, atol=1e-4)
    assert found['box_classes'][:3].tolist() == [2, 0, -1]
    np.testing.assert_array_equal(found['point_classes'], plain['box_classes'])
    truth = StudentTargets(frames, 'truth', NAMES)(other)
    np.testing.assert_array_equal(truth['boxes'], plain['boxes'])
    assert truth['labelled'] and not StudentTargets(frames, '', NAMES)(other)['labelled']

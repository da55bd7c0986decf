"""Files of boxes: what is written is read, what is wrong is told, and where students use them."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from wsol_jax.config import TrainConfig
from wsol_jax.data import open_source
from wsol_jax.data.frames import FrameTargets
from wsol_jax.data.records import DataError, ReadError
from wsol_jax.points.pseudo_labels import (
    FOLDER,
    StudentTargets,
    read_pseudo_labels,
    without_pseudo_labels,
    write_pseudo_labels,
)
from wsol_jax.training.methods import make_method
from wsol_jax.workdir import write_csv

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


def test_a_disk_that_fails_is_no_missing_file(tmp_path, monkeypatch):
    def failing(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, 'read_text', failing)
    with pytest.raises(ReadError, match=r'a\.json: Input/output error'):
        read_pseudo_labels(tmp_path / 'a.json', NAMES)


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


def files_of(folder, *image_ids):
    for image_id in image_ids:
        write(folder / f'{image_id}.json')


def test_frames_without_a_file_are_those_that_the_teacher_skipped(tmp_path):
    folder, image_ids = tmp_path / FOLDER, ['a/0', 'a/1', 'b', 'c']
    files_of(folder, 'a/0', 'b', 'c', 'other')
    write_csv(tmp_path / 'skipped.csv', ('image_id', 'reason'), [('a/1', 'broken'), ('b', 'once')])
    assert without_pseudo_labels(folder, image_ids) == {'a/1'}
    assert without_pseudo_labels(folder, ['b', 'c']) == without_pseudo_labels(folder, []) == set()
    (folder / 'c.json').unlink()
    said = f'{folder}: has no file of 1 of the 4 frames that need one, such as c.json; run the st'
    with pytest.raises(DataError) as caught:
        without_pseudo_labels(folder, image_ids)
    assert str(caught.value).startswith(said) and '\n' not in str(caught.value)


def test_a_student_passes_over_what_its_teacher_could_not_read(tmp_path, caplog):
    source = open_source('lidar_scenes', '', 'train', count=4, size=32, seed=0, labelled=0.5)
    first, second = (source.image_id(i) for i in np.flatnonzero(~source.labelled).tolist())
    files_of(tmp_path / FOLDER, first)
    student = make_method(
        TrainConfig(method='center_point', options={'labels': str(tmp_path / FOLDER)})
    )
    with pytest.raises(DataError, match=f'has no file of 1 of the 2 frames .* as {second}.json'):
        student.targets(source, required=False)
    write_csv(tmp_path / 'skipped.csv', ('image_id', 'reason'), [(second, 'broken')])
    with caplog.at_level('WARNING'):
        student.targets(source, required=False)
        targets = student.targets(source, required=True)
    assert [r.getMessage() for r in caplog.records] == [
        f'{tmp_path / FOLDER}: has no boxes of 1 frames that their teacher could not read: no '
        'box is learnt'
    ]
    labelled = {record.image_id: bool(targets(record)['labelled']) for record in source}
    assert labelled == {record.image_id: record.image_id != second for record in source}


def test_true_boxes_and_frames_that_are_labelled_need_no_file(tmp_path):
    source = open_source('lidar_scenes', '', 'train', count=2, size=32, seed=0)
    student = make_method(TrainConfig(method='center_point', options={'labels': str(tmp_path)}))
    assert student.targets(source, required=True).without == frozenset()

import os
import pickle
from pathlib import Path

import pytest

from wsol_jax.data import ClassFolder, DataError, Record, WsolFolder, open_source


def made(root, *names):
    """Empty image files, and folders where a name ends in a slash."""
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.mkdir() if name.endswith('/') else file.write_bytes(b'')
    return root


def ids(root, split):
    return [(record.image_id, record.labels) for record in ClassFolder(root, split)]


SPLIT = (
    'train/bee/b/2.PNG',
    'train/bee/1.jpg',
    'train/ant/1.jpg',
    'val/bee/9.jpg',
    'test/ant/0.jpg',
)


def test_a_folder_for_each_split(tmp_path):
    made(tmp_path, *SPLIT, 'train/bee/notes.txt', 'train/.cache/x.jpg', 'extra/0.jpg')
    source = ClassFolder(tmp_path, 'train')
    assert source[0] == Record('train/ant/1.jpg', tmp_path / 'train/ant/1.jpg', (0,), None)
    assert [record.image_id for record in source] == [
        'train/ant/1.jpg',
        'train/bee/1.jpg',
        'train/bee/b/2.PNG',
    ]
    assert (source.class_names, source.num_classes) == (('ant', 'bee'), 2)
    assert source.class_name(1) == 'bee'
    assert ids(tmp_path, 'val') == [('val/bee/9.jpg', (1,))]
    assert ids(tmp_path, 'test') == [('test/ant/0.jpg', (0,))]
    assert ClassFolder(tmp_path, 'val').class_names == ('ant', 'bee')
    assert list(pickle.loads(pickle.dumps(source))) == list(source)


@pytest.mark.parametrize('name', ['val', 'valid', 'validation'])
def test_names_of_val(tmp_path, name):
    made(tmp_path, 'train/ant/1.jpg', f'{name}/ant/2.jpg')
    assert ids(tmp_path, 'val') == [(f'{name}/ant/2.jpg', (0,))]


def test_without_train_the_split_tells_the_classes(tmp_path):
    made(tmp_path, 'val/bee/1.jpg', 'test/ant/1.jpg', 'test/cat/1.jpg')
    assert ids(tmp_path, 'val') == [('val/bee/1.jpg', (0,))]
    assert ClassFolder(tmp_path, 'test').class_names == ('ant', 'cat')


@pytest.mark.parametrize(
    ('count', 'val'),
    [(1, []), (2, [2]), (9, [9]), (10, [10]), (19, [10]), (20, [10, 20]), (35, [10, 20, 30])],
)
def test_every_tenth_image_of_a_class_is_drawn_for_val(tmp_path, count, val):
    made(tmp_path, *(f'ant/{k:02d}.jpg' for k in range(1, count + 1)), 'bee/a.jpg', 'bee/b.jpg')
    drawn = [f'ant/{k:02d}.jpg' for k in val]
    rest = [f'ant/{k:02d}.jpg' for k in range(1, count + 1) if k not in val]
    assert ids(tmp_path, 'val') == [*((name, (0,)) for name in drawn), ('bee/b.jpg', (1,))]
    assert ids(tmp_path, 'train') == [*((name, (0,)) for name in rest), ('bee/a.jpg', (1,))]


def test_a_class_may_be_called_train(tmp_path):
    made(tmp_path, 'train/1.jpg', 'bus/1.jpg')
    assert ClassFolder(tmp_path, 'train').class_names == ('bus', 'train')


@pytest.mark.parametrize(
    ('names', 'split', 'said'),
    [
        (SPLIT[:2], 'val', "no split 'val'; available: train"),
        (('ant/1.jpg',), 'test', "no split 'test'; available: train, val, drawn from the class"),
        ((*SPLIT, 'val/cat/1.jpg'), 'val', "val/cat: {root}/train has no class 'cat'"),
        ((*SPLIT, 'train/cat/'), 'train', 'train/cat: holds no image'),
        (('ant/1.jpg', 'bee/'), 'val', 'bee: holds no image'),
        (('1.jpg',), 'train', '{root}: holds no class folder (expected {root}/class/image.jpg)'),
        (('train/', 'val/a/1.jpg'), 'train', 'train: holds no class folder'),
        (('ant/1.jpg', 'test/1.jpg'), 'val', 'test: a split beside class folders'),
    ],
)
def test_wrong_folders_are_named(tmp_path, names, split, said):
    with pytest.raises(DataError) as error:
        ClassFolder(made(tmp_path, *names), split)
    assert said.format(root=tmp_path) in str(error.value) and '\n' not in str(error.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match='gone: no such folder'):
        ClassFolder(tmp_path / 'gone', 'train')


def test_open_by_name(tmp_path):
    source = open_source('class_folder', made(tmp_path, 'ant/1.jpg', 'ant/2.jpg'), 'train')
    assert isinstance(source, ClassFolder) and len(source) == 1


@pytest.mark.skipif('WSOL_DATA' not in os.environ, reason='WSOL_DATA is not set: no real images')
def test_real_class_folders():
    """The images of CUB lie in class folders: as many as the metadata lists, same classes."""
    root = Path(os.environ['WSOL_DATA']) / 'cub30'
    train, val = (ClassFolder(root / 'images', split) for split in ('train', 'val'))
    assert len(train) + len(val) == 750 + 150 + 801
    label_of = {r.image_id: r.labels for r in [*train, *val]}
    listed = [r for split in ('train', 'val', 'test') for r in WsolFolder(root, split)]
    assert label_of == {record.image_id: record.labels for record in listed}

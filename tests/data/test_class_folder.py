import os
import pickle
from pathlib import Path

import pytest

from wsol_jax.data import ClassFolder, DataError, Record, WsolFolder, open_source
from wsol_jax.data.class_folder import split_folders
from wsol_jax.data.files import MARKER


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
    assert [source.class_name(k) for k in (1, 9, -1)] == ['bee', '9', '-1']
    assert ids(tmp_path, 'val') == [('val/bee/9.jpg', (1,))]
    assert ids(tmp_path, 'test') == [('test/ant/0.jpg', (0,))]
    assert ClassFolder(tmp_path, 'val').class_names == ('ant', 'bee')
    assert list(pickle.loads(pickle.dumps(source))) == list(source)


@pytest.mark.parametrize(
    'names',
    [
        ('train', 'val', 'test'),
        ('Train', 'VAL', 'Test'),
        ('training', 'valid', 'testing'),
        ('TRAINING', 'Validation', 'Testing'),
    ],
)
def test_names_of_splits(tmp_path, names):
    made(tmp_path, *(f'{name}/ant/{name}.jpg' for name in names))
    for split, name in zip(('train', 'val', 'test'), names, strict=True):
        assert ids(tmp_path, split) == [(f'{name}/ant/{name}.jpg', (0,))]


@pytest.mark.parametrize('test', [('test/ant/01.jpg', 'test/bee/a.jpg'), ()])
def test_without_val_it_is_drawn_from_train(tmp_path, test):
    made(tmp_path, *(f'train/ant/{k:02d}.jpg' for k in range(1, 13)), *test)
    made(tmp_path, 'train/bee/a.jpg', 'train/bee/b.jpg', 'train/cat/a.jpg')
    assert ids(tmp_path, 'val') == [('train/ant/10.jpg', (0,)), ('train/bee/b.jpg', (1,))]
    assert ids(tmp_path, 'train') == [
        *((f'train/ant/{k:02d}.jpg', (0,)) for k in range(1, 13) if k != 10),
        ('train/bee/a.jpg', (1,)),
        ('train/cat/a.jpg', (2,)),
    ]
    assert list(split_folders(tmp_path)) == ['train', 'val', *['test'] * bool(test)]
    if test:
        assert ids(tmp_path, 'test') == [('test/ant/01.jpg', (0,)), ('test/bee/a.jpg', (1,))]


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
    made(tmp_path, 'Train/1.jpg', 'bus/1.jpg')
    assert ClassFolder(tmp_path, 'train').class_names == ('Train', 'bus')


def test_images_of_a_class_may_lie_deeper(tmp_path):
    made(tmp_path, 'ant/1.jpg', 'dev/a/1.jpg', 'dev/a/b/2.jpg', 'prod/c/3.jpg')
    assert [name for name, _ in ids(tmp_path, 'train')] == [
        'ant/1.jpg',
        'dev/a/1.jpg',
        'prod/c/3.jpg',
    ]
    made(tmp_path / 'all', 'train/ant/old/1.jpg', 'train/bee/new/1.jpg')
    assert ClassFolder(tmp_path / 'all', 'train').class_names == ('ant', 'bee')


@pytest.mark.parametrize(
    'names', [('dev/ant/1.jpg', 'prod/ant/2.jpg'), ('train/ant/1.jpg', 'dev/ant/2.jpg')]
)
def test_what_looks_like_splits_makes_no_classes(tmp_path, names):
    made(tmp_path, *names, 'dev/README.txt', 'dev/folder.jpg/1.jpg')
    with pytest.raises(DataError) as error:
        ClassFolder(tmp_path, 'train')
    assert str(error.value) == (
        f'{tmp_path}: its folders hold folders but no image (as dev), like splits; rename them '
        '(known: train, training, val, valid, validation, test, testing), '
        'or move class folders to train/'
    )


DRAWN = (
    'drawn from the class folders; make a folder for each split, '
    'or do without: `--config.localize.splits="(\'val\',)"`'
)


@pytest.mark.parametrize(
    ('names', 'split', 'said'),
    [
        (SPLIT[-1:], 'val', "no split 'val'; available: test"),
        (('ant/1.jpg',), 'test', f"no split 'test'; available: train, val, {DRAWN}"),
        (('train/ant/1.jpg',), 'test', f"no split 'test'; available: train, val, {DRAWN}"),
        (
            (*SPLIT, 'Valid/ant/1.jpg'),
            'train',
            '{root}: Valid, test, train, val: two folders for one',
        ),
        ((*SPLIT, 'val/cat/1.jpg'), 'val', "val/cat: {root}/train has no class 'cat'"),
        ((*SPLIT, 'train/cat/'), 'train', 'train/cat: holds no image'),
        (('ant/1.jpg', 'bee/'), 'val', 'bee: holds no image'),
        (('1.jpg',), 'train', '{root}: holds no class folder (expected {root}/class/image.jpg)'),
        (('train/', 'val/a/1.jpg'), 'train', 'train: holds no class folder'),
        (('ant/1.jpg', 'test/1.jpg'), 'val', 'test: a split beside class folders'),
        (('ant/1.jpg', 'Testing/1.jpg'), 'val', 'Testing: a split beside class folders'),
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


def test_class_index_is_by_name(tmp_path):
    made(tmp_path, 'train/bee/1.jpg', 'train/ant/1.jpg', 'train/ant/2.jpg', 'test/bee/3.jpg')
    (tmp_path / 'class_names.txt').write_text('bee, 309\nant,310\n')
    source = ClassFolder(tmp_path, 'train', class_index=True)
    assert [(r.image_id, r.labels) for r in source] == [
        ('train/ant/1.jpg', (310,)),
        ('train/bee/1.jpg', (309,)),
    ]
    assert (source.class_names, source.num_classes) == (('ant', 'bee'), 2)
    assert [source.class_name(k) for k in (309, 310, 0)] == ['bee', 'ant', '0']
    test = open_source('class_folder', tmp_path, 'test', class_index=True)
    assert [r.labels for r in test] == [(309,)]
    assert ids(tmp_path, 'test') == [('test/bee/3.jpg', (1,))]


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        (None, ': no such file'),
        ('ant,1', ": no line for the class folder 'bee'"),
        ('ant,1\nbee,2\ncat,3', ": there is no class folder 'cat'"),
        ('ant,1\nbee,2\nant,3', ": 'ant' is listed twice"),
        ('ant,1\nbee,1', ":2: index 1 is that of 'ant', too"),
        ('ant,1\nbee,-1', ':2: index -1 outside 0..999999'),
        ('ant\nbee', ":1: expected 'name,index', got 'ant'"),
    ],
)
def test_wrong_class_names_are_named(tmp_path, text, said):
    made(tmp_path, 'ant/1.jpg', 'bee/1.jpg')
    if text is not None:
        (tmp_path / 'class_names.txt').write_text(text)
    with pytest.raises(DataError) as error:
        ClassFolder(tmp_path, 'train', class_index=True)
    assert str(error.value) == f'{tmp_path}/class_names.txt{said}'


def test_class_folders_may_be_links_to_a_store(tmp_path):
    made(tmp_path, 'store/x/1.jpg', 'store/y/2.jpg', 'root/bee/3.jpg')
    (tmp_path / 'root/ant').symlink_to('../store/x')
    (tmp_path / 'root/bee/more').symlink_to('../../store/y')
    assert ids(tmp_path / 'root', 'train') == [('ant/1.jpg', (0,)), ('bee/3.jpg', (1,))]
    assert ids(tmp_path / 'root', 'val') == [('bee/more/2.jpg', (1,))]


def test_a_workdir_is_no_class(tmp_path):
    made(tmp_path, 'ant/1.jpg', 'bee/1.jpg', 'W/figures/1.png', f'W/{MARKER}', '.x/1.jpg')
    assert ClassFolder(tmp_path, 'train').class_names == ('ant', 'bee')


def test_orientation_is_applied_by_default(tmp_path):
    made(tmp_path, 'ant/1.jpg')
    kinds = {'auto': True, 'displayed': True, 'stored': False}
    for orientation, displayed in kinds.items():
        record = ClassFolder(tmp_path, 'train', orientation=orientation)[0]
        assert record.decoding.displayed == displayed
    with pytest.raises(DataError, match=r"orientation 'shown'; .*known: auto, displayed, stored"):
        ClassFolder(tmp_path, 'train', orientation='shown')

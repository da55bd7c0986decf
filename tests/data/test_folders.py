import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from wsol_jax.data import (
    BadImage,
    DataError,
    ImageFolder,
    Record,
    WsolFolder,
    check_folder,
    decode_image,
    decode_mask,
    open_source,
)
from wsol_jax.data.check_images import MISSING
from wsol_jax.data.folders import split_names
from wsol_jax.data.tfds_builders import open_folders


def real(name):
    if 'WSOL_DATA' not in os.environ:
        pytest.skip('WSOL_DATA is not set: no real images')
    return Path(os.environ['WSOL_DATA']) / name


def png(array):
    return cv2.imencode('.png', np.asarray(array, np.uint8))[1].tobytes()


FILES = {
    'class_names.txt': 'ant,30\nbee,10',
    'metadata/test/image_ids.txt': 'a.png\nb,c.png',
    'metadata/test/class_labels.txt': 'a.png,0\nb,c.png,1',
    'metadata/test/image_sizes.txt': 'a.png,20,10\nb,c.png,8,8',
    'metadata/test/localization.txt': 'a.png,0,0,20,10\na.png,1,2,3,4\nb,c.png,0,0,8,8',
}


def tiny(root, changes=None):
    """A correct folder of two images, with some files replaced or, where None, left out."""
    (root / 'images').mkdir()
    for name, text in {**FILES, **(changes or {})}.items():
        if text is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ('name', 'classes', 'counts'),
    [
        ('imagenette', 10, (1000, 150, 150)),
        ('cub30', 30, (750, 150, 801)),
        ('pets', 3, (255, 45, 298)),
        ('tiny20', 20, (6000, 500, 1000)),
    ],
)
def test_real_folder_counts(name, classes, counts):
    for split, count in zip(('train', 'val', 'test'), counts, strict=True):
        source = WsolFolder(real(name), split)
        assert (len(source), source.num_classes) == (count, classes)
        assert {record.labels[0] for record in source} == set(range(classes))
        supervised = [bool(record.boxes or record.masks) for record in source]
        assert all(supervised) if split != 'train' else not any(supervised)


@pytest.mark.parametrize('name', ['imagenette', 'cub30', 'pets', 'tiny20'])
def test_real_images_have_the_size_the_metadata_says(name):
    source = WsolFolder(real(name), 'test')
    for record in list(source)[:: len(source) // 5]:
        assert decode_image(record).shape == (*record.size[::-1], 3)


def test_real_images_carry_several_boxes():
    source = WsolFolder(real('imagenette'), 'test')
    assert source[0].boxes == ((78, 110, 224, 204), (106, 77, 223, 167))
    assert sum(len(record.boxes) for record in source) == 221


def test_real_masks():
    source = WsolFolder(real('pets'), 'test')
    for record in list(source)[::60]:
        mask = decode_mask(record, (224, 200))
        assert mask.shape == (200, 224) and mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 1, 255}


def test_real_class_index():
    source = WsolFolder(real('imagenette'), 'test', class_index=True)
    local = WsolFolder(real('imagenette'), 'test')
    mapped = dict(zip((r.labels[0] for r in local), (r.labels[0] for r in source), strict=True))
    assert (mapped[0], mapped[1], len(mapped)) == (0, 217, 10)
    assert source.class_name(217) == local.class_name(1) == 'n02102040'
    assert source.num_classes == 10 and source.class_names == local.class_names


def test_class_names_with_commas_stay_whole():
    assert WsolFolder(real('tiny20'), 'val').class_name(1).startswith('ladybug, ladybeetle, ')


def test_tiny_folder(tmp_path):
    source = WsolFolder(tiny(tmp_path), 'test')
    assert source.class_names == ('ant', 'bee')
    assert source[0] == Record(
        'a.png', tmp_path / 'images/a.png', (0,), (20, 10), ((0, 0, 20, 10), (1, 2, 3, 4))
    )
    assert source[1].image_id == 'b,c.png' and source[1].size == (8, 8)
    assert pickle.loads(pickle.dumps(source))[1] == source[1]


def test_class_index_maps_labels(tmp_path):
    source = WsolFolder(tiny(tmp_path), 'test', class_index=True)
    assert [record.labels for record in source] == [(30,), (10,)]
    assert [source.class_name(k) for k in (30, 10, 7)] == ['ant', 'bee', '7']
    assert source.num_classes == 2


def test_optional_files_may_be_absent_or_empty(tmp_path):
    absent = {'class_names.txt': None, 'metadata/test/localization.txt': None}
    source = WsolFolder(tiny(tmp_path, {**absent, 'metadata/test/image_sizes.txt': ''}), 'test')
    assert (source.class_names, source.num_classes, source.class_name(1)) == ((), 2, '1')
    assert [(r.size, r.boxes, r.masks) for r in source] == [(None, (), ())] * 2
    (tmp_path / 'metadata/test/image_sizes.txt').unlink()
    assert WsolFolder(tmp_path, 'test')[0].size is None


def test_masks_are_paths_below_the_root(tmp_path):
    lines = 'a.png,m/0.png,\na.png,m/1.PNG,i/1.png\nb,c.png,m/2.png,'
    source = WsolFolder(tiny(tmp_path, {'metadata/test/localization.txt': lines}), 'test')
    assert source[0].masks == (
        (tmp_path / 'm/0.png', None),
        (tmp_path / 'm/1.PNG', tmp_path / 'i/1.png'),
    )
    assert source[1].masks == ((tmp_path / 'm/2.png', None),)


def test_windows_line_ends_and_blank_lines(tmp_path):
    text = FILES['metadata/test/class_labels.txt'].replace('\n', '\r\n\r\n') + '\r\n'
    source = WsolFolder(tiny(tmp_path, {'metadata/test/class_labels.txt': text}), 'test')
    assert [record.labels for record in source] == [(0,), (1,)]


IDS, LABELS = 'metadata/test/image_ids.txt', 'metadata/test/class_labels.txt'
SIZES, BOXES = 'metadata/test/image_sizes.txt', 'metadata/test/localization.txt'
NAMES = 'class_names.txt'


@pytest.mark.parametrize(
    ('file', 'text', 'said'),
    [
        (IDS, None, 'image_ids.txt: no such file'),
        (IDS, '', 'image_ids.txt: lists no image'),
        (IDS, 'a.png\na.png', "image_ids.txt:2: 'a.png' is listed twice"),
        (LABELS, None, 'class_labels.txt: no such file'),
        (LABELS, 'a.png,0', "class_labels.txt: no line for 'b,c.png' (1 of 2 images lack one)"),
        (LABELS, 'a.png,0\nz.png,1', "class_labels.txt:2: 'z.png' is not in image_ids.txt"),
        (LABELS, 'a.png', "class_labels.txt:1: expected 'path,label', got 'a.png'"),
        (LABELS, 'a.png,cat', "class_labels.txt:1: expected 'path,label' with whole numbers"),
        (LABELS, 'a.png,12', 'class_labels.txt:1: label 12 outside 0..1'),
        (LABELS, 'a.png,2', 'class_labels.txt:1: label 2 outside 0..1'),
        (LABELS, 'a.png,-1', 'class_labels.txt:1: label -1 outside 0..1'),
        (SIZES, 'a.png,20,10', "image_sizes.txt: no line for 'b,c.png'"),
        (SIZES, 'a.png,20,wide', "image_sizes.txt:1: expected 'path,width,height'"),
        (SIZES, 'a.png,0,10', 'image_sizes.txt:1: size 0x10 is not positive'),
        (SIZES, 'z.png,9,9', "image_sizes.txt:1: 'z.png' is not in image_ids.txt"),
        (BOXES, '', 'localization.txt: names no image; without the file, no object is known'),
        (BOXES, 'a.png,0,0,9,99999999999', 'localization.txt:1: expected'),
        (BOXES, '../a.png,m.png,', "localization.txt:1: '../a.png' is not in image_ids.txt"),
        (BOXES, 'a.png,../m.png,', "localization.txt:1: '../m.png' leaves its folder"),
        (BOXES, 'a.png,m.png,/dev/i.png', "localization.txt:1: '/dev/i.png' leaves its folder"),
        (IDS, 'a.png\nx/../../y.png', "image_ids.txt:2: 'x/../../y.png' leaves its folder"),
        (IDS, '/a.png', "image_ids.txt:1: '/a.png' leaves its folder"),
        (IDS, 'a\0.png', "image_ids.txt:1: 'a\\x00.png' leaves its folder"),
        (SIZES, 'a.png,1_0,10', "image_sizes.txt:1: expected 'path,width,height' with whole"),
        (SIZES, 'a.png,' + 999 * '9' + ',10', 'image_sizes.txt:1: expected'),
        (LABELS, 'a.png,1000000000', 'class_labels.txt:1: label 1000000000 outside 0..1'),
        (BOXES, 'z.png,0,0,9,9', "localization.txt:1: 'z.png' is not in image_ids.txt"),
        (BOXES, 'a.png,5,0,5,9', 'localization.txt:1: box (5, 0, 5, 9) is empty'),
        (BOXES, 'a.png,0,9,5,2', 'localization.txt:1: box (0, 9, 5, 2) is empty'),
        (BOXES, 'a.png,0,0,21,9', 'box (0, 0, 21, 9) lies outside the image of 20x10'),
        (BOXES, 'a.png,-1,0,9,9', 'localization.txt:1: box (-1, 0, 9, 9) lies outside the image'),
        (BOXES, 'a.png,0,0,9', "localization.txt:1: expected 'path,x0,y0,x1,y1'"),
        (BOXES, 'a.png,0,0,9,x', "localization.txt:1: expected 'path,x0,y0,x1,y1' with whole"),
        (NAMES, '', 'class_names.txt: names no class'),
    ],
)
def test_wrong_metadata_is_named(tmp_path, file, text, said):
    with pytest.raises(DataError) as error:
        WsolFolder(tiny(tmp_path, {file: text}), 'test')
    assert said in str(error.value) and '\n' not in str(error.value)


def test_class_index_needs_the_second_column(tmp_path):
    root = tiny(tmp_path, {NAMES: 'ant,3\nbee'})
    with pytest.raises(DataError, match=r"class_names.txt:2: expected 'name,index', got 'bee'"):
        WsolFolder(root, 'test', class_index=True)
    (root / NAMES).unlink()
    with pytest.raises(DataError, match=r'class_names.txt: no such file'):
        WsolFolder(root, 'test', class_index=True)


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r'nowhere: no such folder'):
        WsolFolder(tmp_path / 'nowhere', 'test')
    (tmp_path / 'images').mkdir()
    with pytest.raises(DataError, match=r'metadata: no such folder'):
        WsolFolder(tmp_path, 'test')
    (tmp_path / 'metadata' / 'val').mkdir(parents=True)
    (tmp_path / 'metadata' / 'train').mkdir()
    with pytest.raises(DataError, match=r"no split 'tset'; available: train, val"):
        WsolFolder(tmp_path, 'tset')


def test_hidden_folders_are_no_splits(tmp_path):
    (tiny(tmp_path) / 'metadata/.ipynb_checkpoints').mkdir()
    assert split_names(tmp_path) == ['test'] == list(open_folders(tmp_path))
    with pytest.raises(DataError, match=r"no split 'val'; available: test$"):
        WsolFolder(tmp_path, 'val')
    report = check_folder(tmp_path)
    assert list(report.problems) == [MISSING] and len(report.summary) == 1


def test_image_folder(tmp_path):
    for name in ('b.PNG', 'deep/er/a.jpeg', 'a.tif', 'notes.txt', 'c.ppm'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b'')
    source = ImageFolder(tmp_path)
    assert [r.image_id for r in source] == ['a.tif', 'b.PNG', 'c.ppm', 'deep/er/a.jpeg']
    assert source[3] == Record('deep/er/a.jpeg', tmp_path / 'deep/er/a.jpeg', (), None)
    assert (source.num_classes, source.class_names, source.class_name(3)) == (0, (), '3')


def test_image_folder_without_images(tmp_path):
    with pytest.raises(DataError, match='holds no image'):
        ImageFolder(tmp_path)
    with pytest.raises(DataError, match=r'gone: no such folder'):
        ImageFolder(tmp_path / 'gone')


def test_open_source_by_name(tmp_path):
    assert len(open_source('wsol_folder', tiny(tmp_path), 'test', class_index=True)) == 2
    (tmp_path / 'images/a.png').write_bytes(b'')
    assert len(open_source('image_folder', tmp_path, 'test')) == 1
    assert len(open_source('shapes', '', 'val', count=5)) == 5
    with pytest.raises(DataError, match=r"data source 'wsolfolder'; did you mean 'wsol_folder'"):
        open_source('wsolfolder', tmp_path, 'test')


def test_an_image_without_a_line_has_no_known_object(tmp_path):
    source = WsolFolder(tiny(tmp_path, {BOXES: 'b,c.png,0,0,8,8'}), 'test')
    assert [record.boxes for record in source] == [(), ((0, 0, 8, 8),)]
    (tmp_path / BOXES).write_text('a.png,m.png,')
    assert [bool(record.masks) for record in WsolFolder(tmp_path, 'test')] == [True, False]


@pytest.mark.parametrize('label', [1_000_000, 10**9])
def test_labels_have_a_limit_where_nothing_tells_the_classes(tmp_path, label):
    changes = {NAMES: None, LABELS: f'a.png,0\nb,c.png,{label}'}
    with pytest.raises(DataError) as error:
        WsolFolder(tiny(tmp_path, changes), 'test')
    assert str(error.value) == f'{tmp_path}/{LABELS}:2: label {label} outside 0..999999'


@pytest.mark.parametrize('split', ['../metadata/test', '/etc', '..', ''])
def test_no_split_lies_elsewhere(tmp_path, split):
    with pytest.raises(DataError, match=r'no split .*; available: test'):
        WsolFolder(tiny(tmp_path), split)


def test_links_of_a_data_set_stay_in_it(tmp_path):
    """But `images` itself may lie elsewhere, as large data do."""
    root, store = tmp_path / 'root', tmp_path / 'store'
    root.mkdir()
    tiny(root, {IDS: 'a.png\nb.png', LABELS: 'a.png,0\nb.png,0', SIZES: None, BOXES: None})
    for file in (store / 'a.png', tmp_path / 'secret.png'):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(png(np.zeros((3, 3, 3))))
    (root / 'images').rmdir()
    (root / 'images').symlink_to('../store')
    (store / 'b.png').symlink_to('../secret.png')
    inside, outside = WsolFolder(root, 'test')
    assert decode_image(inside).shape == (3, 3, 3)
    with pytest.raises(BadImage, match=r'b.png: a link that leaves the data set'):
        decode_image(outside)


def test_a_pipe_of_metadata_is_not_read(tmp_path):
    tiny(tmp_path, {IDS: None})
    os.mkfifo(tmp_path / IDS)
    with pytest.raises(DataError, match=r'image_ids.txt: not a regular file'):
        WsolFolder(tmp_path, 'test')


def test_frames_of_the_sources(tmp_path):
    for orientation, displayed in {'auto': False, 'displayed': True, 'stored': False}.items():
        root = tmp_path / orientation
        root.mkdir()
        source = open_source(
            'wsol_folder', tiny(root), 'test', orientation=orientation, max_pixels=7
        )
        assert source[0].decoding.displayed == displayed and source[0].decoding.max_pixels == 7
    (root / 'images/a.png').write_bytes(b'')
    assert ImageFolder(root)[0].decoding.displayed


def test_what_is_no_usable_image_is_warned_of(tmp_path, caplog):
    for name in ('a.png', '.b.png', 'c\n.png'):
        (tmp_path / name).write_bytes(b'')
    (tmp_path / 'd.png').symlink_to('gone.png')
    assert [record.image_id for record in ImageFolder(tmp_path)] == ['a.png']
    first, second = (record.getMessage() for record in caplog.records)
    assert 'c\\n.png' in first and 'd.png' in second and '\n' not in first + second

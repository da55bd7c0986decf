import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsol_jax.data import Coco, DataError, Voc, check_folder, check_training
from wsol_jax.data.__main__ import main
from wsol_jax.data.check import SAME, SHARED, UNLISTED, UNREAD
from wsol_jax.data.check_images import BROKEN, MAP, MAP_SIZE, MISSING, SIZE
from wsol_jax.data.check_segmentation import LABELS, UNLABELLED, UNMAPPED, UNTRAINED, purpose

SPLITS = {'train': 'ab', 'train_aug': 'abc', 'trainval': 'abd', 'val': 'd', 'test': 'e'}
OBJECT = '<a><object><name>{}</name></object></a>'


def picture(file, seed, size=(3, 2)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(file)


def write_map(root, name, values):
    Image.fromarray(np.array(values, np.uint8)).save(root / 'SegmentationClass' / f'{name}.png')


def write_list(root, split, names):
    (root / 'ImageSets/Segmentation' / f'{split}.txt').write_text('\n'.join(names))


@pytest.fixture
def voc(tmp_path):
    """A sound data set of auks and bats, 3x2 pixels, without labels in test."""
    for name in ('ImageSets/Segmentation', 'JPEGImages', 'SegmentationClass', 'Annotations'):
        (tmp_path / name).mkdir(parents=True)
    for split, names in SPLITS.items():
        write_list(tmp_path, split, names)
    for seed, name in enumerate('abcde'):
        picture(tmp_path / 'JPEGImages' / f'{name}.jpg', seed)
    for name in 'abd':
        write_map(tmp_path, name, [[0, 1, 255], [2, 2, 0]])
    write_map(tmp_path, 'c', [[0, 0, 0], [0, 0, 1]])
    (tmp_path / 'class_names.txt').write_text('background\nauk\nbat')
    return tmp_path


def test_a_sound_voc_folder(voc):
    report = check_folder(voc)
    assert report.problems == {} and report.notes == {}
    assert report.summary == (
        'test: 1 images',
        'train: 2 images, 2 classes, 4 labels, 2 label maps',
        'train_aug: 3 images, 2 classes, 5 labels, 3 label maps',
        'trainval: 3 images, 2 classes, 6 labels, 3 label maps',
        'val: 1 images, 2 classes, 2 labels, 1 label maps',
        'test, images of each class: none',
        'train, images of each class: auk 2, bat 2',
        'train_aug, images of each class: auk 3, bat 2',
        'trainval, images of each class: auk 3, bat 3',
        'val, images of each class: auk 1, bat 1',
    )
    assert main(['check', str(voc)]) == 0


def truncated(voc):
    file = voc / 'SegmentationClass/b.png'
    file.write_bytes(file.read_bytes()[:-20])


def no_class(voc):
    write_map(voc, 'b', [[0, 3, 0], [0, 0, 0]])


def no_class_beside_an_annotation(voc):
    no_class(voc)
    (voc / 'Annotations/b.xml').write_text(OBJECT.format('auk'))


def other_size(voc):
    write_map(voc, 'b', [[1, 2]])


def unknown_object(voc):
    (voc / 'Annotations/b.xml').write_text(OBJECT.format('cat'))


def missing(voc):
    (voc / 'JPEGImages/b.jpg').unlink()


def broken(voc):
    (voc / 'JPEGImages/b.jpg').write_bytes(b'\xff\xd8\xff\xe0')


def shared(voc):
    write_list(voc, 'val', 'da')


def same(voc):
    shutil.copy(voc / 'JPEGImages/c.jpg', voc / 'JPEGImages/d.jpg')


def unreadable(voc):
    write_list(voc, 'val', 'dd')


@pytest.mark.slow
@pytest.mark.parametrize(
    ('harm', 'kind', 'line'),
    [
        (truncated, MAP, 'label map {voc}/SegmentationClass/b.png: damaged'),
        (
            no_class,
            MAP,
            'label map {voc}/SegmentationClass/b.png: has index 3; the classes are 0..2',
        ),
        (
            no_class_beside_an_annotation,
            MAP,
            'label map {voc}/SegmentationClass/b.png: has index 3',
        ),
        (other_size, MAP_SIZE, '{voc}/SegmentationClass/b.png: 2x1, image of 3x2'),
        (unknown_object, LABELS, "{voc}/Annotations/b.xml: unknown class 'cat'; "),
        (missing, MISSING, '{voc}/JPEGImages/b.jpg: no such file'),
        (broken, BROKEN, '{voc}/JPEGImages/b.jpg: '),
        (shared, SHARED, "'a' is in both train and train_aug and val"),
        (same, SAME, "'c' in train_aug, 'd' in trainval, 'd' in val"),
        (unreadable, UNREAD, "{voc}/ImageSets/Segmentation/val.txt:2: 'd' is listed twice"),
    ],
)
def test_each_problem_is_found_once(voc, harm, kind, line):
    harm(voc)
    report = check_folder(voc)
    assert list(report.problems) == [kind]
    (found,) = report.problems[kind]
    assert found.startswith(line.format(voc=voc)) and '\n' not in found
    assert main(['check', str(voc)]) == 1


def unlabelled(voc):
    write_map(voc, 'c', [[0] * 3] * 2)


def unmapped(voc):
    (voc / 'SegmentationClass/c.png').unlink()
    (voc / 'Annotations/c.xml').write_text(OBJECT.format('auk'))


def unlisted(voc):
    picture(voc / 'JPEGImages/f.jpg', 9)


def untrained(voc):
    (voc / 'class_names.txt').write_text('background\nauk\nbat\ncod')


@pytest.mark.parametrize(
    ('harm', 'kind', 'line'),
    [
        (unlabelled, UNLABELLED, "'c' in train_aug"),
        (unmapped, UNMAPPED, "'c' in train_aug"),
        (unlisted, UNLISTED, '{voc}/JPEGImages/f.jpg'),
        (untrained, UNTRAINED, 'cod'),
    ],
)
def test_notes_are_no_problems(voc, harm, kind, line):
    harm(voc)
    report = check_folder(voc)
    assert report.problems == {} and report.notes == {kind: [line.format(voc=voc)]}


@pytest.fixture
def coco(tmp_path):
    """A person in an image of train, another in one of val."""
    (tmp_path / 'annotations').mkdir()
    for key, split in enumerate(('train2014', 'val2014')):
        (tmp_path / split).mkdir()
        picture(tmp_path / split / f'{key}.jpg', key)
        write_objects(tmp_path, split, key, [[0, 0, 2, 0, 2, 2]])
    return tmp_path


def write_objects(root, split, key, polygons):
    thing = {'id': 7, 'image_id': key, 'category_id': 1, 'iscrowd': 0, 'segmentation': polygons}
    content = {
        'images': [{'id': key, 'file_name': f'{key}.jpg', 'width': 3, 'height': 2}],
        'annotations': [thing],
        'categories': [{'id': 1, 'name': 'person'}],
    }
    (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


def test_a_sound_coco_folder(coco):
    report = check_folder(coco)
    assert report.problems == {} and report.notes == {}
    assert report.summary == (
        'train2014: 1 images, 1 classes, 1 labels, 1 label maps',
        'val2014: 1 images, 1 classes, 1 labels, 1 label maps',
        'train2014, images of each class: person 1',
        'val2014, images of each class: person 1',
    )


def test_problems_of_a_coco_folder(coco):
    picture(coco / 'train2014/0.jpg', 3, (6, 4))
    (coco / 'train2014/more.jpg').write_bytes(b'')
    write_objects(coco, 'val2014', 1, [[0, 0, 2, 0]])
    (coco / 'val2014/1.jpg').unlink()
    report = check_folder(coco)
    assert list(report.problems) == [SIZE, MISSING, LABELS]
    assert report.problems[SIZE] == ["'0.jpg': stored as 6x4, listed as 3x2"]
    (fault,) = report.problems[LABELS]
    assert fault.startswith(f'{coco}/annotations/instances_val2014.json: annotation 7: has a poly')
    assert report.notes == {UNLISTED: [f'{coco}/train2014/more.jpg']}


@pytest.mark.parametrize(
    ('split', 'found'),
    [
        ('train', 'train'),
        ('train_aug', 'train'),
        ('train2014', 'train'),
        ('val2017', 'val'),
        ('trainval', ''),
        ('2017', '2017'),
    ],
)
def test_splits_for_one_purpose_may_share_images(split, found):
    assert purpose(split) == found


def test_what_can_be_trained_on(voc, coco, caplog):
    check_training(Voc(voc, 'train'), Voc(voc, 'val'), several=True)
    check_training(Coco(coco, 'train2014'), Coco(coco, 'val2014'), several=True)
    assert not caplog.text
    untrained(voc)
    check_training(Voc(voc, 'train'), Voc(voc, 'val'), several=True)
    assert "class 2 'cod' has no training image (1 such classes)" in caplog.text
    with pytest.raises(DataError, match="'a' is in both train and val"):
        check_training(Voc(voc, 'train'), Voc(voc, 'trainval'), several=True)
    with pytest.raises(DataError, match="'a' in train: 0, 1"):
        check_training(Voc(voc, 'train'), Voc(voc, 'val'))


@pytest.mark.skipif('WSOL_DATA' not in os.environ, reason='WSOL_DATA is not set: no real images')
def test_real_images_are_sound():
    report = check_folder(Path(os.environ['WSOL_DATA']) / 'coco_seg')
    assert report.problems == {} and list(report.notes) == [UNLABELLED, UNTRAINED]
    assert report.notes[UNTRAINED] == ['parking meter', 'sheep', 'surfboard', 'hair drier']
    assert report.summary[1] == 'train: 150 images, 76 classes, 495 labels, 150 label maps'

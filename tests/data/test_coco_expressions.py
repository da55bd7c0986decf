import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsol_jax.data import DataError, check_folder, decode_image, open_source
from wsol_jax.data.check_segmentation import LABELS
from wsol_jax.data.coco_expressions import MOST_EXPRESSIONS, CocoExpressions
from wsol_jax.run import open_split
from wsol_jax.settings import Config, DataConfig


def sound():
    """Of 'a' two dogs and a crowd of cats; nothing of 'b'; of 'c' a cat of less than a pixel."""
    return {
        'classes': ['background', 'dog', 'cat'],
        'images': {
            'a': {
                'size': [40, 30],
                'boxes': [
                    [0.4, 1.6, 10.2, 11.9, 1, 0],
                    [20, 2, 39.9, 30.2, 1, 0],
                    [3, 3, 5, 5, 2, 1],
                ],
            },
            'b': {'size': [40, 30], 'boxes': []},
            'c': {'size': [40, 30], 'boxes': [[39.6, 29.7, 39.8, 29.9, 2, 0]]},
        },
    }


def write(root, content):
    for folder in ('JPEGImages', 'ImageSets/Segmentation'):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / 'ImageSets/Segmentation/train.txt').write_text('a\nb\n')
    (root / 'ImageSets/Segmentation/val.txt').write_text('c\n')
    text = content if isinstance(content, str) else json.dumps(content)
    (root / 'annotations.json').write_text(text)


def test_expressions_of_the_boxes_of_single_objects(tmp_path):
    write(tmp_path, sound())
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / 'JPEGImages/a.jpg')
    source = open_source('coco_expressions', tmp_path, 'train')
    assert source.class_names == ('dog', 'cat')
    (record,) = source
    assert decode_image(record).shape == (30, 40, 3)
    assert (record.image_id, record.labels, record.size) == ('a', (0,), (40, 30))
    assert record.boxes == ((0, 2, 10, 12), (20, 2, 40, 30))
    assert record.extra['proposal_classes'] == (0, 0)
    said = record.extra['expressions']
    assert len(said) == MOST_EXPRESSIONS
    assert {each.box for each in said if each.relation == 'leftmost'} <= {(0, 2, 10, 12)}
    assert {each.subject for each in said} == {'dog'} and all(each.generated for each in said)
    assert pickle.loads(pickle.dumps(source))[0] == record
    assert CocoExpressions(tmp_path, 'train')[0] == record
    others = [CocoExpressions(tmp_path, 'train', seed=k)[0] for k in range(1, 4)]
    assert any(other.extra['expressions'] != said for other in others)


def test_a_box_has_a_pixel_at_least(tmp_path):
    write(tmp_path, sound())
    (record,) = CocoExpressions(tmp_path, 'val')
    assert record.boxes == ((39, 29, 40, 30),)
    assert [each.text for each in record.extra['expressions']] == ['the cat']


def edited(*keys, value):
    content = sound()
    part = content
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    return content


BOXES = 'images', 'a', 'boxes'


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{', r'annotations\.json: Expecting'),
        ([], r"annotations\.json: expected an object with 'images'"),
        (edited('images', 'a', value=3), "with 'images', an object by id of each"),
        (edited('classes', value='dog'), "with 'classes', a list of names"),
        (edited('classes', value=['dog', 'cat']), "must be 'background' and others"),
        (edited('images', 'a', 'size', value=[40]), r"image 'a': size \[40\] is no \[width, h"),
        (sound() | {'images': {}}, "image 'a': is not there, but in a list of ImageSets"),
        (edited(*BOXES, value=None), "image 'a': boxes None are no list"),
        (edited(*BOXES, value=[[1, 2, 3, 4]]), r'box \[1, 2, 3, 4\] is not \[x0, y0, x1, y1, cl'),
        (edited(*BOXES, value=[[1, 2, 3, 'x', 1, 0]]), r"box \[1, 2, 3, 'x', 1, 0\] is not"),
        (edited(*BOXES, value=[[1, 2, 3, 31, 1, 0]]), r'box \(1, 2, 3, 31\).* image of 40x30'),
        (edited(*BOXES, value=[[1, 2, 3, 4, 3, 0]]), r'class 2 is not one of 0\.\.1'),
        (edited(*BOXES, value=[[1, 2, 3, 4, 0, 0]]), r'class -1 is not one of'),
        (edited(*BOXES, value=[]), "nothing can be said of the boxes of any image of 'train'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, content, message):
    write(tmp_path, content)
    with pytest.raises(DataError, match=message):
        CocoExpressions(tmp_path, 'train')


def test_a_missing_split_or_file_is_named(tmp_path):
    write(tmp_path, sound())
    with pytest.raises(DataError, match=r"no split 'test'; available: train, val"):
        CocoExpressions(tmp_path, 'test')
    with pytest.raises(DataError, match=r'none/annotations\.json: no such file'):
        CocoExpressions(tmp_path / 'none', 'train')


def test_of_real_images():
    if 'WSOL_DATA' not in os.environ:
        pytest.skip('WSOL_DATA is not set: no real images')
    root = Path(os.environ['WSOL_DATA']) / 'coco_seg'
    config = Config(data=DataConfig(source='coco_expressions', root=str(root)))
    sources = [open_split(config, split) for split in ('train', 'val', 'test')]
    assert len(sources[0].class_names) == 80
    for source, most in zip(sources, (147, 50, 50), strict=True):
        assert most - 3 <= len(source) <= most  # three images of train have no boxes
        for record in source:
            for each in record.extra['expressions']:
                assert each.box in record.boxes and each.subject in source.class_names
    assert decode_image(sources[0][0]).shape[1::-1] == sources[0][0].size


def test_data_check_reads_the_boxes_that_expressions_are_made_of(tmp_path):
    content = sound()
    content['images']['c']['boxes'].append([0, 0, 10, 10, 1, 0])
    write(tmp_path, content)
    for name in 'abc':
        pixels = np.full((30, 40, 3), ord(name), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f'JPEGImages/{name}.jpg')
    assert check_folder(tmp_path).problems == {}
    content['images']['c']['boxes'][1][2] = 41
    write(tmp_path, content)
    (line,) = check_folder(tmp_path).problems[LABELS]
    assert "annotations.json: image 'c': box (0, 0, 41, 10)" in line

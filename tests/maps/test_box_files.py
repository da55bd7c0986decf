"""Boxes in files: CSV as the command writes it, and COCO's results."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from wsol_jax import Localization, localize, write_boxes, write_coco
from wsol_jax.maps.box_files import BoxRow

SIZES = [(30, 20), (9, 40)]
# The upper left quarter of 4 x 4 pixels; nothing at all.
QUARTER = np.kron(np.array([[1.0, 0], [0, 0]]), np.ones((2, 2)))
BLANK = np.zeros((4, 4))


def result_of(classes, maps, probability=jax.nn.sigmoid):
    logits = np.array([[0.0, 2.0, -1.0], [4.0, 0.0, 1.0]], np.float32)
    return Localization(maps, logits, np.array(classes), {}, SIZES, (), probability)


def both(first, second):
    return {('dgl', 'a'): np.array([first, second]), ('cam', 'b'): np.array([second, first])}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def read(path):
    with Path(path).open(newline='') as file:
        return list(csv.DictReader(file))


def test_a_row_for_every_map_of_every_image():
    result = result_of([1, 2], both(QUARTER, BLANK))
    rows = result.box_rows(0.5, ['x.jpg', 7])
    places = [(r.method, r.layer, r.image_id, r.label) for r in rows]
    assert places == [
        ('dgl', 'a', 'x.jpg', 1),
        ('dgl', 'a', 7, 2),
        ('cam', 'b', 'x.jpg', 1),
        ('cam', 'b', 7, 2),
    ]
    assert [r.class_score for r in rows] == pytest.approx([sigmoid(2.0), sigmoid(1.0)] * 2)
    found = result.boxes(0.5)
    assert [r.box for r in rows] == [tuple(b[0]) for boxes in found.values() for b in boxes]
    assert rows[1].box == rows[2].box == (0, 0, 0, 0) and rows[0].box[2] in (14, 15)
    assert result.box_rows(0.5, 'ab', key='cam') == [
        r._replace(image_id=name) for r, name in zip(rows[2:], 'ab', strict=True)
    ]


def test_rows_of_several_classes_and_of_none():
    maps = {('dgl', 'a'): np.array([[QUARTER, BLANK], [QUARTER.T, BLANK]])}
    rows = result_of([[2, 1], [0, -1]], maps).box_rows(0.5, 'ab')
    assert [(r.image_id, r.label) for r in rows] == [('a', 2), ('a', 1), ('b', 0)]
    scores = [sigmoid(-1.0), sigmoid(2.0), sigmoid(4.0)]
    assert [r.class_score for r in rows] == pytest.approx(scores)
    free = result_of([-1, -1], both(QUARTER, BLANK)).box_rows(0.5, 'ab', key='dgl')
    assert [(r.label, r.class_score) for r in free] == [(-1, None)] * 2


def test_only_the_largest_contour():
    two = np.zeros((8, 8))
    two[0, 0], two[3:7, 3:7] = 1, 1
    result = result_of([1, 1], {('dgl', 'a'): np.array([two, two])})
    rows = result.box_rows(0.5, 'ab', (8, 8))
    assert [r.box for r in rows] == [(3, 3, 7, 7)] * 2
    assert len(result.boxes(0.5, (8, 8))['dgl', 'a'][0]) == 2


def test_the_probability_is_that_of_the_network(toy, toy_images):
    network = replace(toy, probability='sigmoid')
    result = localize(network, toy_images, ('dgl',), ('late',), 'top2')
    rows = result.box_rows(0.2, range(4))
    logits, classes = np.asarray(result.logits), np.asarray(result.classes)
    expected = sigmoid(np.take_along_axis(logits, classes, 1)).ravel()
    assert [r.class_score for r in rows] == pytest.approx(expected.tolist(), rel=1e-5)


def test_csv_has_the_columns_of_the_command(tmp_path):
    rows = [
        BoxRow('=x.jpg', 'dgl', 'a', 3, 0.12345678, 0.2, (1, 2, 3, 4)),
        BoxRow(7, 'cam', 'b', -1, None, 0.25, (0, 0, 0, 0)),
    ]
    write_boxes(tmp_path / 'boxes.csv', iter(rows))
    first, second = read(tmp_path / 'boxes.csv')
    assert first == {
        'image_id': "'=x.jpg",  # no formula
        'method': 'dgl',
        'layer': 'a',
        'class': '3',
        'class_score': '0.123457',
        'threshold': '0.2',
        **dict(zip(('x0', 'y0', 'x1', 'y1'), '1234', strict=True)),
    }
    assert (second['image_id'], second['class'], second['class_score']) == ('7', '-1', '')


def test_coco_results(tmp_path):
    rows = [
        BoxRow(np.int64(42), 'dgl', 'a', np.int32(1), np.float32(0.5), 0.2, (10, 20, 30, 60)),
        BoxRow('b', 'dgl', 'a', 0, 0.25, 0.2, (0, 0, 5, 1)),
        BoxRow(43, 'dgl', 'a', 1, 0.75, 0.2, (0, 0, 0, 0)),
    ]
    write_coco(tmp_path / 'coco.json', rows, {0: 1, 1: 90})
    assert json.loads((tmp_path / 'coco.json').read_text()) == [
        {'image_id': 42, 'category_id': 90, 'bbox': [10, 20, 20, 40], 'score': 0.5},
        {'image_id': 'b', 'category_id': 1, 'bbox': [0, 0, 5, 1], 'score': 0.25},
    ]
    write_coco(tmp_path / 'coco.json', rows[:1])
    (found,) = json.loads((tmp_path / 'coco.json').read_text())
    assert found['category_id'] == 1


ROW = BoxRow(1, 'dgl', 'a', 5, 0.5, 0.2, (1, 2, 3, 4))


@pytest.mark.parametrize(
    ('rows', 'categories', 'message'),
    [
        ([ROW, ROW._replace(method='cam')], None, r'one detector: choose one of .*cam.* by key='),
        ([ROW._replace(label=-1)], None, 'box of dgl in image 1 is of no single class'),
        ([ROW._replace(class_score=None)], None, r'no score: .*replace\(result, probability='),
        ([ROW], {4: 4}, 'is of class 5, which categories has no id for'),
    ],
)
def test_what_coco_cannot_hold(tmp_path, rows, categories, message):
    with pytest.raises(ValueError, match=message):
        write_coco(tmp_path / 'coco.json', rows, categories)
    assert not any(tmp_path.iterdir())


def test_every_image_has_an_id():
    with pytest.raises(ValueError, match='image_ids must name 2 images, got 3'):
        result_of([1, 2], both(QUARTER, BLANK)).box_rows(0.5, 'abc')

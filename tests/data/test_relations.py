import pickle

import cv2
import numpy as np
import pytest

from wsol_jax.data import DataError, Relations, decode_image, open_source
from wsol_jax.data.expressions import SUPERLATIVES
from wsol_jax.data.relations import MOST_BOXES, MOST_EXPRESSIONS, SHAPES

COUNT = 40


@pytest.fixture(scope='module')
def train():
    return Relations('train', COUNT, 64)


def test_an_image_depends_on_seed_split_and_index_alone(train):
    other = Relations('train', 2 * COUNT, 64)
    for index in (30, 3):
        assert other[index] == train[index]
    assert pickle.loads(pickle.dumps(other))[5] == train[5]
    kinds = Relations('val', 2, 64), Relations('test', 2, 64), Relations('train', 2, 64, seed=1)
    assert len({source[i].image for source in (*kinds, train) for i in range(2)}) == 8


def test_expressions_are_of_the_boxes_and_classes(train):
    for record in train:
        classes, said = record.extra['proposal_classes'], record.extra['expressions']
        assert 2 <= len(record.boxes) == len(classes) <= MOST_BOXES
        assert record.labels == tuple(sorted(set(classes)))
        assert len(record.labels) <= train.most_labels
        assert 1 <= len(said) <= MOST_EXPRESSIONS
        for each in said:
            (box,) = (k for k, box in enumerate(record.boxes) if box == each.box)
            assert each.subject == train.class_names[classes[box]] and each.generated
    relations = [each.relation for record in train for each in record.extra['expressions']]
    assert len(set(relations)) == 13
    assert np.mean([relation not in SUPERLATIVES for relation in relations]) > 0.3


def test_a_shape_of_its_colour_fills_its_box(train):
    hues = [cv2.cvtColor(np.float32([[s.colour]]), cv2.COLOR_RGB2HSV)[0, 0, 0] for s in SHAPES]
    for record in train:
        hsv = cv2.cvtColor(np.float32(decode_image(record)) / 255, cv2.COLOR_RGB2HSV)
        for (x0, y0, x1, y1), label in zip(
            record.boxes, record.extra['proposal_classes'], strict=True
        ):
            hue, strength, _ = hsv[y0:y1, x0:x1].reshape(-1, 3).T
            off = abs((hue - hues[label] + 180) % 360 - 180)
            assert np.mean((off < 30) & (strength > 0.5)) > 0.3


def test_boxes_do_not_touch(train):
    for record in train:
        count = np.zeros((64, 64), int)
        for x0, y0, x1, y1 in record.boxes:
            assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64
            count[y0:y1, x0:x1] += 1
        assert count.max() == 1


def test_a_wrong_split_is_named():
    with pytest.raises(DataError, match="relations has no split 'tran'; available: train, val"):
        open_source('relations', '', 'tran', count=4)

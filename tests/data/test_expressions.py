from dataclasses import astuple

import numpy as np
import pytest

from wsol_jax.data import DataError, generate_expressions
from wsol_jax.data.expressions import RELATIONS, SUPERLATIVES

NAMES = ('dog', 'apple', 'cat')
SIZE = (200, 100)


def said(boxes, classes, most=100, seed=0):
    return generate_expressions(boxes, classes, NAMES, SIZE, np.random.default_rng(seed), most)


def stands(relation, one, other):
    """Whether the relation is true of two boxes, in whole numbers."""
    (a0, b0, a1, b1), (c0, d0, c1, d1) = one, other
    areas = (a1 - a0) * (b1 - b0), (c1 - c0) * (d1 - d0)
    return {
        'left of': a0 + a1 < c0 + c1,
        'right of': a0 + a1 > c0 + c1,
        'above': b0 + b1 < d0 + d1,
        'below': b0 + b1 > d0 + d1,
        'larger than': areas[0] > areas[1],
        'smaller than': areas[0] < areas[1],
    }[relation]


def meant(expression, boxes, classes):
    """The boxes that an expression is true of."""
    label = NAMES.index(expression.subject)
    same = [k for k in range(len(boxes)) if classes[k] == label]
    if not expression.relation:
        return same
    if expression.relation in SUPERLATIVES:
        relation = RELATIONS[SUPERLATIVES.index(expression.relation)]
        others = {k: [j for j in same if j != k] for k in same}
        return [k for k in same if all(stands(relation, boxes[k], boxes[j]) for j in others[k])]
    label = NAMES.index(expression.object or expression.subject)
    objects = [j for j in range(len(boxes)) if classes[j] == label]
    return [
        k
        for k in same
        if any(stands(expression.relation, boxes[k], boxes[j]) for j in objects if j != k)
    ]


def test_each_is_true_of_its_box_alone():
    rng = np.random.default_rng(1)
    relations = set()
    for seed in range(150):
        n = int(rng.integers(1, 9))
        low = rng.integers(0, (180, 80), (n, 2))
        boxes = [
            tuple(map(int, row)) for row in np.hstack([low, low + rng.integers(1, 21, (n, 2))])
        ]
        boxes[-1] = boxes[0]  # as annotations have it now and then
        classes = rng.integers(0, 3, n).tolist()
        found = said(boxes, classes, seed=seed)
        assert len(set(found)) == len(found)
        for each in found:
            (box,) = meant(each, boxes, classes)
            assert boxes[box] == each.box and each.generated
        relations |= {each.relation for each in found}
    assert relations == {'', *RELATIONS, *SUPERLATIVES}


def test_all_that_can_be_said_of_a_scene():
    """Two dogs, one of them left, and a cat between them; all of one size and height."""
    boxes = [(0, 0, 10, 10), (100, 0, 110, 10), (50, 0, 60, 10)]
    assert {astuple(each) for each in said(boxes, (0, 0, 2))} == {
        ('the cat', 'cat', '', '', boxes[2], True),
        ('the leftmost dog', 'dog', 'leftmost', '', boxes[0], True),
        ('the rightmost dog', 'dog', 'rightmost', '', boxes[1], True),
        ('the dog left of another dog', 'dog', 'left of', 'dog', boxes[0], True),
        ('the dog right of another dog', 'dog', 'right of', 'dog', boxes[1], True),
        ('the dog left of the cat', 'dog', 'left of', 'cat', boxes[0], True),
        ('the dog right of the cat', 'dog', 'right of', 'cat', boxes[1], True),
    }


def test_nothing_is_said_that_is_hard_to_see():
    """Centres must differ by 5 % of the image, areas by half; a third dog makes it untrue."""
    first = (0, 0, 10, 10)
    assert not said([first, (9, 4, 19, 14)], (0, 0))
    across = {'leftmost', 'rightmost', 'left of', 'right of'}
    assert {each.relation for each in said([first, (11, 4, 21, 14)], (0, 0))} == across
    wider = {each.relation for each in said([first, (0, 0, 16, 10)], (0, 0))}
    assert wider == {'largest', 'smallest', 'larger than', 'smaller than'}
    assert not said([first, (0, 0, 14, 10)], (0, 0))
    three = said([(1, 0, 11, 10), first, (40, 0, 50, 10)], (0, 0, 0))
    assert {each.relation for each in three} == {'rightmost'}


def test_articles():
    boxes = [(0, 0, 10, 10), (30, 0, 40, 10), (60, 0, 70, 10), (90, 0, 100, 10)]
    assert 'the dog right of an apple' in {each.text for each in said(boxes, (0, 1, 0, 1))}


def test_the_seed_chooses_and_boxes_take_turns():
    boxes = [(0, 0, 10, 10), (50, 20, 80, 50), (100, 60, 190, 100), (0, 90, 5, 95)]
    classes = (0, 0, 0, 2)
    assert said(boxes, classes, 5, seed=1) == said(boxes, classes, 5, seed=1)
    assert len({said(boxes, classes, 5, seed=k) for k in range(5)}) > 1
    for seed in range(5):
        found = said(boxes, classes, 3, seed=seed)  # of the dog in the middle nothing can be said
        assert {each.box for each in found} == {boxes[0], boxes[2], boxes[3]}


@pytest.mark.parametrize(
    ('boxes', 'classes', 'message'),
    [
        ([], (), 'has no boxes'),
        ([(0, 0, 5, 5)], (0, 1), '1 boxes and 2 classes'),
        ([(0, 0, 5, 5), (0, 0, 5, 101)], (0, 1), r'box \(0, 0, 5, 101\).*200x100'),
        ([(-1, 0, 5, 5)], (0,), r'box \(-1, 0, 5, 5\)'),
        ([(5, 0, 5, 5)], (0,), r'box \(5, 0, 5, 5\): not x0, y0, x1, y1 within'),
        ([(0, 0, 5, 5)], (3,), r'class 3 is not one of 0\.\.2'),
    ],
)
def test_wrong_boxes_are_named(boxes, classes, message):
    with pytest.raises(DataError, match=message):
        said(boxes, classes)

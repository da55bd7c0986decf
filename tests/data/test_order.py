"""The order of the images of a training: every image once, or every class equally often."""

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from conftest import Listed

from wsol_jax.data import DataError, Shapes
from wsol_jax.data.order import TrainingOrder, images_of_classes

# Five classes of 9, 1, 4, 2 and 1 images; the last image has two.
CLASSES = tuple(map(np.array, ([0, 1, 2, 3, 4, 5, 6, 7, 8], [9], [10, 11, 12, 13], [14, 15], [15])))


def test_the_order_of_a_long_training_is_small(monkeypatch):
    made = []
    new = np.random.default_rng
    monkeypatch.setattr(np.random, 'default_rng', lambda seed: made.append(seed) or new(seed))
    order = TrainingOrder(1000, 10, 7, range(100, 10**9))
    assert len(order) == 10 * (10**9 - 100)
    keys = [order[k] for k in range(2000)]
    assert [draw.epoch for draw in keys] == [1] * 1000 + [2] * 1000
    assert [order[k] for k in (999, 1000)] == keys[999:1001] and made == [[7, 1], [7, 2]]
    assert order[2000].epoch == 3 and order[0] == keys[0] and made[2:] == [[7, 3], [7, 1]]
    stored = pickle.dumps(order)
    assert len(stored) < 200 and pickle.loads(stored)[1234] == keys[1234]


def test_images_of_classes():
    records = Shapes('train', 5, size=32)
    labels = [(4,), (0, 4), (2,), (0,), (4, 2)]
    source = Listed(replace(records[k], labels=some) for k, some in enumerate(labels))
    assert [some.tolist() for some in images_of_classes(source)] == [[1, 3], [2, 4], [0, 1, 4]]
    unlabelled = Listed([*source.records, replace(records[0], labels=())])
    with pytest.raises(DataError, match=r'^train/00000.png: has no label; '):
        images_of_classes(unlabelled)


@pytest.mark.parametrize('count', [16, 3, 20])
def test_every_class_is_drawn_equally_often(count):
    """In an epoch up to one; of its images each as often, up to one."""
    classes = CLASSES[:4]
    order = TrainingOrder(count, 1, 3, range(2 * count), classes)
    for epoch in range(2):
        draws = [order[epoch * count + k] for k in range(count)]
        of_class = [[d.image for d in draws if d.image in some] for some in classes]
        assert {draw.epoch for draw in draws} == {epoch} and sum(map(len, of_class)) == count
        assert max(map(len, of_class)) - min(map(len, of_class)) <= 1
        for some, found in zip(classes, of_class, strict=True):
            times = [found.count(k) for k in some]
            assert max(times) - min(times) <= 1
        # Every fourth draw starts a round with one of each class.
        for k in range(0, count - 3, 4):
            assert (
                len({i for d in draws[k : k + 4] for i in range(4) if d.image in classes[i]}) == 4
            )
        seen = Counter()
        for draw in draws:
            assert draw.turn == seen[draw.image]
            seen[draw.image] += 1


def test_an_image_of_two_classes_is_drawn_for_both():
    order = TrainingOrder(50, 10, 3, range(5), CLASSES)
    times = Counter(draw.image for draw in order)
    assert times[15] == 10 + 5 and times[14] == 5 and times[9] == 10


def test_balanced_epochs_differ_and_are_those_of_the_seed():
    def draws(seed, steps):
        order = TrainingOrder(16, 4, seed, steps, CLASSES)
        return [order[k] for k in range(len(order))]

    whole = draws(1, range(12))
    assert [draw.image for draw in whole[:16]] != [draw.image for draw in whole[16:32]]
    assert draws(2, range(4)) != whole[:16]
    # One that was interrupted goes on in the midst of an epoch; so do worker processes.
    assert draws(1, range(6, 12)) == whole[24:]
    stored = pickle.loads(pickle.dumps(TrainingOrder(16, 4, 1, range(12), CLASSES)))
    assert [stored[k] for k in range(48)] == whole


def test_the_last_balanced_batch_is_filled_up_with_the_first_draws():
    order = TrainingOrder(16, 6, 1, range(3), CLASSES)
    draws = [order[k] for k in range(18)]
    assert draws[16:] == draws[:2]
    assert order.valid(2).tolist() == [True] * 4 + [False] * 2

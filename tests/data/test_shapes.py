import pickle

import numpy as np
import pytest

from wsol_jax.data import DataError, Shapes, decode_image, decode_mask
from wsol_jax.data.shapes import PARTS, draw

COUNT = 48


@pytest.fixture(scope='module')
def train():
    return Shapes('train', COUNT)


def pixels(source):
    return np.stack([decode_image(record) for record in source])


def test_the_same_images_every_time(train):
    np.testing.assert_array_equal(pixels(train), pixels(Shapes('train', COUNT)))


def test_an_image_depends_on_its_index_only(train):
    other = Shapes('train', 2 * COUNT)
    for index in (40, 3, 17):
        assert other[index] == train[index]
    assert pickle.loads(pickle.dumps(other))[5] == train[5]


def test_splits_and_seeds_differ(train):
    sources = [train, Shapes('val', 8), Shapes('test', 8), Shapes('train', 8, seed=1)]
    images = {source[i].image for source in sources for i in range(8)}
    assert len(images) == 32


def test_labels_are_balanced_and_named(train):
    counts = np.bincount([record.labels[0] for record in train])
    assert counts.tolist() == [COUNT // len(PARTS)] * len(PARTS)
    assert [train.class_name(k) for k in range(6)] == list(train.class_names)
    assert train.num_classes == 6 and len(set(train.class_names)) == 6
    assert [train.class_name(k) for k in (6, -1)] == ['6', '-1']


def test_fewer_classes():
    source = Shapes('val', 9, num_classes=3)
    assert [record.labels[0] for record in source] == [0, 1, 2] * 3
    assert source.num_classes == 3


@pytest.mark.parametrize('size', [32, 64, 96, 131])
def test_records_fit_their_size(size):
    record = Shapes('test', 1, size)[0]
    assert record.size == (size, size)
    assert decode_image(record).shape == (size, size, 3)


def test_box_is_the_tight_box_of_the_mask(train):
    for record in train:
        mask = decode_mask(record, record.size)
        assert set(np.unique(mask)) == {0, 1}
        inside = [(x, y) for y in range(96) for x in range(96) if mask[y, x]]
        xs, ys = zip(*inside, strict=True)
        assert record.boxes == ((min(xs), min(ys), max(xs) + 1, max(ys) + 1),)


def test_boxes_vary_within_the_promised_range(train):
    boxes = np.array([record.boxes[0] for record in train])
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    area, aspect = width * height / 96**2, width / height
    assert 0.11 < area.min() < 0.25 and 0.45 < area.max() < 0.62
    assert 0.4 < aspect.min() < 0.7 and 1.4 < aspect.max() < 2.5


def test_one_object_and_only_its_part_tells_the_class():
    """Drawn twice from the same stream, two classes differ in a small spot of the object alone."""
    for seed in range(30):
        one, mask = draw(np.random.default_rng(seed), PARTS[1], PARTS[:1], 96)
        two, same = draw(np.random.default_rng(seed), PARTS[3], PARTS[:1], 96)
        differs = (one != two).any(-1)
        assert 0 < differs.sum() < 0.2 * mask.sum()
        assert (differs & (mask == 0)).sum() < 0.5 * differs.sum()
        np.testing.assert_array_equal(mask, same)
        ys, xs = np.nonzero(differs)
        centre = np.array([np.mean(np.nonzero(mask)[k]) for k in (0, 1)])
        spot = np.array([ys.mean(), xs.mean()])
        assert np.hypot(*(spot - centre)) > 0.2 * np.sqrt(mask.sum())


def test_decoys_are_parts_of_other_classes_off_the_object():
    """Drawn twice with other decoys, images differ away from the object, in most of them."""
    different = 0
    for seed in range(30):
        one, mask = draw(np.random.default_rng(seed), PARTS[1], PARTS[:1], 96)
        two, same = draw(np.random.default_rng(seed), PARTS[1], PARTS[4:5], 96)
        np.testing.assert_array_equal(mask, same)
        differs = (one != two).any(-1)
        assert (differs & (mask == 1)).sum() <= 0.1 * differs.sum()
        different += differs.any()
    assert different >= 25


def test_image_is_not_noise(train):
    image = pixels(train).astype(float)
    steps = abs(np.diff(image, axis=1)).mean((1, 2, 3))
    contrast = image.std((1, 2, 3))
    assert (steps < 0.5 * contrast).all()


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ({'split': 'tran', 'count': 4}, "no split 'tran'; available: train, val, test"),
        ({'split': 'val', 'count': 0}, 'count 0'),
        ({'split': 'val', 'count': 4, 'size': 8}, 'size 8'),
        ({'split': 'val', 'count': 4, 'num_classes': 7}, 'num_classes 7'),
    ],
)
def test_wrong_arguments_are_named(arguments, said):
    with pytest.raises(DataError, match=said):
        Shapes(**arguments)


def test_index_out_of_range(train):
    with pytest.raises(IndexError, match='image 48 of 48'):
        train[COUNT]

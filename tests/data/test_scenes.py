import pickle
from itertools import pairwise

import numpy as np
import pytest

from wsol_jax.data import DataError, Scenes, decode_image, open_source, read_label_map
from wsol_jax.data.scenes import COATS, MOST, TRAIN, draw

COUNT = 36


@pytest.fixture(scope='module')
def train():
    return Scenes('train', COUNT, 64)


def maps(record):
    return (read_label_map(record.extra[name]) for name in ('segmentation', 'context'))


def test_an_image_depends_on_seed_split_and_index_alone(train):
    other = Scenes('train', 2 * COUNT, 64)
    for index in (30, 3):
        assert other[index] == train[index]
    assert pickle.loads(pickle.dumps(other))[5] == train[5]
    sources = [Scenes('val', 2, 64), Scenes('test', 2, 64), Scenes('train', 2, 64, seed=1), train]
    assert len({source[i].image for source in sources for i in range(2)}) == 8


def test_labels_are_the_classes_of_the_label_map(train):
    counts = np.zeros(len(COATS), int)
    for record in train:
        label_map, _ = maps(record)
        assert decode_image(record).shape == (64, 64, 3) and label_map.shape == (64, 64)
        assert record.labels == tuple(k for k in range(len(COATS)) if (label_map == k + 1).any())
        assert 1 <= len(record.labels) <= MOST == train.most_labels
        assert 0 in label_map and label_map.max() <= train.num_classes == len(COATS)
        counts[list(record.labels)] += 1
    assert counts.min() >= COUNT // len(COATS)
    assert {len(record.labels) for record in train} == {1, 2, 3}


def test_every_object_can_be_seen(train):
    for record in train:
        shares = np.bincount(next(maps(record)).ravel(), minlength=7)[1:] / 64**2
        assert shares[list(record.labels)].min() > 0.015


def test_rails_are_background_and_seen_with_trains_alone(train):
    seen = []
    for record in train:
        label_map, context = maps(record)
        assert set(np.unique(context)) <= {0, TRAIN + 1}
        assert not label_map[context > 0].any()
        seen.append((TRAIN in record.labels, context.any()))
    assert set(seen) == {(True, True), (False, False)}


def test_rails_lead_from_edge_to_edge():
    _, label_map, context = draw(np.random.default_rng(2), [TRAIN], 64)
    covered = (context > 0) | (label_map == TRAIN + 1)
    border = np.concatenate([covered[0], covered[:, -1], covered[-1, ::-1], covered[::-1, 0]])
    assert sum(a and not b for a, b in pairwise([*border, border[0]])) == 2
    assert (context > 0).sum() > (label_map > 0).sum()


def test_a_class_shows_all_over_its_object():
    """Drawn twice from the same stream, objects of two classes differ from end to end."""
    one, mask, _ = draw(np.random.default_rng(4), [0], 64)
    two, same, _ = draw(np.random.default_rng(4), [2], 64)
    np.testing.assert_array_equal(mask > 0, same > 0)
    differs = (abs(one.astype(int) - two).max(-1) > 40) & (mask > 0)
    for part in (np.s_[:, :32], np.s_[:, 32:], np.s_[:32], np.s_[32:]):
        assert differs[part].sum() > 0.3 * (mask[part] > 0).sum()
    assert (one == two).all(-1)[mask == 0].mean() > 0.8  # but for shadows, they lie on one ground


@pytest.mark.parametrize(
    ('split', 'options', 'said'),
    [
        ('tran', {'count': 4}, "scenes has no split 'tran'; available: train, val, test"),
        ('val', {'count': 0}, 'scenes needs count >= 1 and size >= 32, got count 0, size 96'),
        ('val', {'count': 4, 'size': 8}, 'size 8'),
    ],
)
def test_wrong_arguments_are_named(split, options, said):
    with pytest.raises(DataError, match=said):
        open_source('scenes', '', split, **options)

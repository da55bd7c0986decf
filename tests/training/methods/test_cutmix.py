"""CutMix: which pixels are pasted, what they count for, and only in training."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsol_jax.config import ConfigError
from wsol_jax.models.heads import Outputs
from wsol_jax.training.method import Shard, TrainedMethod
from wsol_jax.training.methods.cutmix import CutMix, partners


def batch_of(labels, valid=None):
    count = len(labels)
    valid = np.ones(count, bool) if valid is None else np.asarray(valid)
    targets = {'labels': np.asarray(labels, np.int32)[:, None]}
    return Shard(None, targets, valid, np.arange(count))


def mixed(method, count, valid=None, seed=0, shape=(20, 30), keys=None):
    """Images whose pixels are their numbers from 1, mixed: (pixels [B,H,W], targets)."""
    inputs = jnp.broadcast_to(1.0 + jnp.arange(count)[:, None, None, None], (count, *shape, 2))
    keys = jax.random.split(jax.random.key(seed), count) if keys is None else keys
    found, batch = method.augment(inputs, batch_of(range(count), valid), keys)
    found = np.asarray(found)
    np.testing.assert_array_equal(found[..., 0], found[..., 1])
    return found[..., 0], {name: np.asarray(value) for name, value in batch.targets.items()}


PARTNERS = [1, 0, 3, 2, 5, 4]


def test_neighbours_change_places():
    assert partners(jnp.arange(6)).tolist() == PARTNERS
    assert partners(jnp.arange(5)).tolist() == [1, 0, 3, 2, 4]
    rows = jnp.arange(12).reshape(4, 3)
    np.testing.assert_array_equal(partners(rows), np.asarray(rows)[[1, 0, 3, 2]])


@pytest.mark.slow
def test_a_box_is_of_the_partner_and_the_share_is_its_area():
    found, targets = mixed(CutMix(), 6, seed=3)
    assert targets['mixed'].dtype == np.int32 and targets['mixed'].tolist() == [
        [label] for label in PARTNERS
    ]
    assert targets['labels'].tolist() == [[k] for k in range(6)]
    for k, image in enumerate(found):
        theirs = image == 1 + PARTNERS[k]
        assert (theirs | (image == 1 + k)).all()
        np.testing.assert_allclose(targets['share'][k], theirs.mean(), rtol=1e-6)
        rows, columns = theirs.any(1), theirs.any(0)
        np.testing.assert_array_equal(theirs, rows[:, None] & columns)
        assert (np.abs(np.diff(np.pad(rows, 1).astype(int))).sum() in (0, 2)) and theirs.any()
    assert len(set(targets['share'].tolist())) == 6  # every image draws its own


@pytest.mark.slow
def test_boxes_against_a_plain_loop():
    """What is drawn of a key, cut off at the border as wsolevaluation does it."""
    keys = jax.random.split(jax.random.key(3), 200)
    found, targets = mixed(CutMix(), 200, keys=keys)
    for k, key in enumerate(keys):
        _, stays, *places = jax.random.split(key, 4)
        part = np.sqrt(np.float32(1) - np.asarray(jax.random.uniform(stays)))
        expected = np.full((20, 30), 1 + k, np.float32)
        ends = []
        for side, place in zip((20, 30), places, strict=True):
            centre, length = int(jax.random.randint(place, (), 0, side)), int(side * part)
            ends += [max(centre - length // 2, 0), min(centre + length // 2, side)]
        top, bottom, left, right = ends
        expected[top:bottom, left:right] = 1 + (k ^ 1)
        np.testing.assert_array_equal(found[k], expected)
        assert targets['share'][k] == pytest.approx((bottom - top) * (right - left) / 600)


@pytest.mark.slow
def test_shares_follow_their_distribution():
    def shares(**options):
        return mixed(CutMix(**options), 3000, shape=(32, 32))[1]['share']

    # Where nothing is cut off, the share is 1 - Beta: many boxes are, so it is smaller.
    assert 0.25 < shares().mean() < 0.5
    # Beta(a, a) with large a is close to 1/2: boxes have a side of .7, which the border cuts to
    # (.7 - .7**2 / 4)**2 = .334 on average.
    assert shares(beta=1000.0).mean() == pytest.approx(0.334, abs=0.02)
    some = shares(prob=0.3)
    # Of boxes some have no pixel: their half sides round to 0.
    assert 0.25 < (some > 0).mean() < 0.3 + 0.03
    assert not shares(prob=0.0).any()
    tiny = shares(beta=0.01)
    assert np.isfinite(tiny).all() and 0.4 < (tiny == 0).mean() < 0.6


@pytest.mark.slow
def test_what_has_no_partner_stays_as_it_is():
    valid = [True, False, True, True, True]
    found, targets = mixed(CutMix(), 5, valid)
    assert (found[0] == 1).all() and (found[4] == 5).all()
    assert targets['share'][0] == 0 and (targets['share'][2:4] > 0).all()
    assert targets['mixed'][4] == targets['labels'][4]  # it is its own partner


@pytest.mark.slow
def test_an_image_draws_by_its_key_alone():
    keys = jax.random.split(jax.random.key(1), 8)
    whole, targets = mixed(CutMix(), 8, keys=keys)
    part, others = mixed(CutMix(), 4, keys=keys[:4])
    np.testing.assert_array_equal(whole[:4], part)
    np.testing.assert_array_equal(targets['share'][:4], others['share'])
    assert not np.array_equal(mixed(CutMix(), 8, seed=2)[0], whole)


LOGITS = jnp.array([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])


def outputs():
    return Outputs(LOGITS, {}, {})


def test_the_loss_by_hand():
    batch = batch_of([0, 1])
    share = np.array([0.25, 0.75], np.float32)
    targets = {**batch.targets, 'mixed': np.array([[2], [0]], np.int32), 'share': share}
    losses, values = CutMix().loss(outputs(), batch._replace(targets=targets), None)
    norms = [np.log(np.exp(2) + 1 + np.exp(1)), np.log(np.exp(3) + 2)]
    # -log softmax of both labels, mixed: .75 x 2 + .25 x 1 and .25 x 3 + .75 x 0.
    np.testing.assert_allclose(losses, [norms[0] - 1.75, norms[1] - 0.75], rtol=1e-6)
    # The larger part of the first image is its own, of class 0; of the second its partner's.
    assert values['accuracy'].tolist() == [100, 0]


def test_smoothing_holds_for_both_labels():
    batch, smooth = batch_of([0, 1]), {'label_smoothing': 0.3}
    targets = {**batch.targets, 'mixed': np.array([[2], [0]]), 'share': jnp.array([1.0, 0.0])}
    found, _ = CutMix(**smooth).loss(outputs(), batch._replace(targets=targets), None)
    expected, _ = TrainedMethod(**smooth).loss(outputs(), batch_of([2, 1]), None)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_on_val_it_is_the_plain_classifier():
    found = CutMix().loss(outputs(), batch_of([0, 1]), None)
    expected = TrainedMethod().loss(outputs(), batch_of([0, 1]), None)
    for one, two in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.slow
def test_no_pair_is_one_line():
    with pytest.raises(ConfigError, match=r'config\.train\.batch_size must .* got 1'):
        mixed(CutMix(), 1)
    assert replace(CutMix(), beta=0.5) == CutMix(beta=0.5)

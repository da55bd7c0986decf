import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from wsol_jax.models import build
from wsol_jax.training.checkpoints import Checkpoints, TrainState


def state_of(seed):
    module = build('resnet10', 3, nnx.Rngs(seed), width=2)
    _, params, stats, _ = nnx.split(module, nnx.Param, nnx.BatchStat, nnx.RngState)
    # Values that a round trip through text or half precision would change.
    params = jax.tree.map(lambda x: x + jnp.float32(1e-7) * seed, params)
    optimizer = optax.sgd(0.1, momentum=0.9).init(params)
    return TrainState(params, stats, jax.tree.map(lambda x: x + 1.5, optimizer))


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, two in zip(leaves(found), leaves(expected), strict=True):
        np.testing.assert_array_equal(one, two, strict=True)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp('saved')
    Checkpoints(folder).save(1, state_of(1))
    Checkpoints(folder).save(2, state_of(2))
    return folder


def test_round_trip_is_exact(saved):
    assert Checkpoints(saved).epoch() == 2
    assert_same(Checkpoints(saved).restore(state_of(3)), state_of(2))


def test_a_part_can_be_left_out(saved):
    found = Checkpoints(saved).restore(state_of(3)._replace(optimizer=None))
    assert_same(found, state_of(2)._replace(optimizer=None))


def test_only_the_newest_is_kept(saved):
    assert [path.name for path in (saved / 'checkpoints').iterdir()] == ['2']


def test_none_at_first(tmp_path):
    assert Checkpoints(tmp_path).epoch() == 0

"""What training leaves on disk: exact, whole, in any number of devices' hands."""

import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from wsol_jax.models import build
from wsol_jax.training.checkpoints import Checkpoints, TrainState
from wsol_jax.training.step import split_module


def state_of(seed, step=3, ema=True):
    _, params, stats, _ = split_module(build('resnet10', 3, nnx.Rngs(seed), width=2))
    # Values that a round trip through text or half precision would change.
    params = jax.tree.map(lambda x: x + jnp.float32(1e-7) * seed, params)
    optimizer = optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9)).init(params)
    moved = jax.tree.map(lambda x: x + 1.5, optimizer)
    average = jax.tree.map(lambda x: 0.5 * x, params) if ema else None
    return TrainState(jnp.int32(step), params, stats, moved, average)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, two in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two), strict=True)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """Steps 1 and 2 as last, step 1 as best."""
    folder = tmp_path_factory.mktemp('saved')
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state_of(1, step=1))
        checkpoints.save_best(state_of(1, step=1), 62.5)
        checkpoints.save(state_of(2, step=2))
    return folder


def test_round_trip_is_exact(saved):
    with Checkpoints(saved) as checkpoints:
        assert (checkpoints.step(), checkpoints.step('best')) == (2, 1)
        assert_same(checkpoints.restore(state_of(3)), state_of(2, step=2))
        assert checkpoints.best_accuracy() == 62.5


def test_a_state_without_an_average(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_of(1, ema=False))
        assert_same(checkpoints.restore(state_of(3, ema=False)), state_of(1, ema=False))


def test_a_network_without_batch_statistics(tmp_path):
    state, stats = state_of(1, ema=False), state_of(1).stats
    without = state._replace(stats=jax.tree.map(lambda _: None, stats))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(without)
        checkpoints.save_best(without, 1.0)
        assert_same(checkpoints.restore(without), without)
        for kind in ('last', 'best'):
            assert len(checkpoints.weights(kind)) == len(jax.tree.leaves(state.params))


def test_parts_can_be_left_out(saved):
    with Checkpoints(saved) as checkpoints:
        like = state_of(3)._replace(optimizer=None, ema=None)
        assert_same(checkpoints.restore(like), state_of(2, 2)._replace(optimizer=None, ema=None))


def test_the_best_is_what_is_evaluated(saved):
    with Checkpoints(saved) as checkpoints:
        like = state_of(3)._replace(optimizer=None, ema=None)
        found = checkpoints.restore(like, 'best')
    expected = state_of(1, 1)
    assert_same(found, like._replace(step=jnp.int32(1), params=expected.ema, stats=expected.stats))


def test_evaluated_without_an_average():
    state = state_of(1, ema=False)
    assert_same(state.evaluated(), state._replace(optimizer=None))


@pytest.mark.parametrize(('kind', 'seed'), [('last', 2), ('best', 1)])
def test_weights_by_name_are_those_evaluated(saved, kind, seed):
    with Checkpoints(saved) as checkpoints:
        found = checkpoints.weights(kind)
    state = state_of(seed).evaluated()
    assert len(found) == len(jax.tree.leaves([state.params, state.stats]))
    for name, tree in (('bias', state.params), ('mean', state.stats)):
        expected = tree['layer2'][0]['conv1']['bn'][name][...]
        np.testing.assert_array_equal(found[f'layer2.0.conv1.bn.{name}'], expected)


def test_weights_without_an_average(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_of(1, ema=False))
        found = checkpoints.weights('last')['fc.kernel']
    np.testing.assert_array_equal(found, state_of(1).params['fc']['kernel'][...])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_only_the_newest_of_a_kind_is_kept(saved):
    assert names(saved / 'checkpoints') == ['best', 'last']
    assert names(saved / 'checkpoints/last') == ['2']
    assert names(saved / 'checkpoints/best') == ['1']


def test_none_at_first(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.step(), checkpoints.step('best')) == (0, 0)
        assert checkpoints.best_accuracy() == -1


def test_the_best_is_on_disk_before_the_last(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_best(state_of(1), 50.0)
        assert names(tmp_path / 'checkpoints/best') == ['3']
        assert checkpoints.best_accuracy() == 50.0


@pytest.fixture
def interrupting(monkeypatch):
    """Ctrl-C comes before orbax writes anything."""
    save = ocp.CheckpointManager.save

    def interrupted(manager, *arguments, **options):
        signal.raise_signal(signal.SIGINT)
        return save(manager, *arguments, **options)

    monkeypatch.setattr(ocp.CheckpointManager, 'save', interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


@pytest.mark.parametrize('kind', ['last', 'best'])
def test_an_interrupt_waits_for_the_checkpoint(tmp_path, interrupting, kind):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(state_of(1)) if kind == 'last' else checkpoints.save_best(
                state_of(1), 1.0
            )
        assert checkpoints.step(kind) == 3
    assert names(tmp_path / 'checkpoints' / kind) == ['3']


def test_threads_can_save(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        thread = threading.Thread(target=checkpoints.save, args=(state_of(1),))
        thread.start()
        thread.join()
    assert names(tmp_path / 'checkpoints/last') == ['3']

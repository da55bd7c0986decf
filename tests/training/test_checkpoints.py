"""What training leaves on disk: exact, whole, in any number of devices' hands."""

import os
import shutil
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from wsol_jax.models import build
from wsol_jax.training.checkpoints import CheckpointError, Checkpoints, Row, TrainState
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
        checkpoints.save_best(state_of(1, step=1), 'accuracy', 62.5)
        checkpoints.save(state_of(2, step=2))
    return folder


@pytest.mark.slow
def test_round_trip_is_exact(saved):
    with Checkpoints(saved) as checkpoints:
        assert (checkpoints.step(), checkpoints.step('best')) == (2, 1)
        assert_same(checkpoints.restore(state_of(3))[0], state_of(2, step=2))
        assert checkpoints.best_value('accuracy') == 62.5


def test_a_state_without_an_average(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_of(1, ema=False))
        assert_same(checkpoints.restore(state_of(3, ema=False))[0], state_of(1, ema=False))


def test_a_network_without_batch_statistics(tmp_path):
    state, stats = state_of(1, ema=False), state_of(1).stats
    without = state._replace(stats=jax.tree.map(lambda _: None, stats))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(without)
        checkpoints.save_best(without, 'accuracy', 1.0)
        assert_same(checkpoints.restore(without)[0], without)
        for kind in ('last', 'best'):
            assert len(checkpoints.weights(kind)) == len(jax.tree.leaves(state.params))


def test_parts_can_be_left_out(saved):
    with Checkpoints(saved) as checkpoints:
        like = state_of(3)._replace(optimizer=None, ema=None)
        assert_same(checkpoints.restore(like)[0], state_of(2, 2)._replace(optimizer=None, ema=None))


@pytest.mark.slow
def test_the_best_is_what_is_evaluated(saved):
    with Checkpoints(saved) as checkpoints:
        like = state_of(3)._replace(optimizer=None, ema=None)
        found, _ = checkpoints.restore(like, 'best')
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


def test_the_two_newest_of_a_kind_are_kept(saved, tmp_path):
    assert names(saved / 'checkpoints') == ['best', 'last']
    assert names(saved / 'checkpoints/last') == ['1', '2']
    assert names(saved / 'checkpoints/best') == ['1']
    shutil.copytree(saved, tmp_path / 'W')
    with Checkpoints(tmp_path / 'W') as checkpoints:
        checkpoints.save(state_of(4, step=4))
    assert names(tmp_path / 'W/checkpoints/last') == ['2', '4']


def test_the_row_that_is_begun_is_exact(tmp_path):
    row = Row(2**53 + 2.0, {'loss': 0.1 + 0.2, 'of my own': 1 / 3})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_of(1), row)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(state_of(2))[1] == row
    shutil.rmtree(tmp_path / 'checkpoints/last/3/row')
    with Checkpoints(tmp_path) as checkpoints:  # of an older version
        assert checkpoints.restore(state_of(2))[1] == Row()


def test_a_row_of_an_older_version_goes_on(tmp_path):
    """It counted the images that were right, and the best had an accuracy only."""
    older = {
        name: np.asarray(value) for name, value in (('loss', 0.3), ('right', 7), ('images', 9))
    }
    with Checkpoints(tmp_path) as checkpoints:
        parts = {'params': {'w': np.ones(3)}, 'row': older}
        checkpoints._write('last', 4, parts)
    like = TrainState(None, {'w': np.zeros(3)}, None, None, None)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(like)[1] == Row(9.0, {'loss': 0.3, 'accuracy': 700.0})


def test_the_value_of_the_best_goes_by_its_name(saved):
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.best_value('loss') is None


def test_rows_add_up_what_all_their_images_have():
    row = Row().plus(2, {'loss': 0.5, 'old': 1.0}).plus(3, {'loss': 0.25, 'new': 1.0})
    assert row == Row(5, {'loss': 0.75}) and row.means() == {'loss': 0.15}
    assert Row().means() == {}


def spoil(folder, how):
    """Damages a checkpoint as a full disk or a crash of the machine does."""
    files = sorted((p for p in folder.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
    if how == 'largest':
        os.truncate(files[-1], 1000)
    elif how == 'empty':
        for file in files:
            os.truncate(file, 0)
    else:
        shutil.rmtree(folder / how)


@pytest.fixture
def damaged(saved, tmp_path):
    """Two of each kind: steps 2 and 5."""
    shutil.copytree(saved, tmp_path / 'W')
    shutil.rmtree(tmp_path / 'W/checkpoints/last/1')
    with Checkpoints(tmp_path / 'W') as checkpoints:
        checkpoints.save_best(state_of(5, step=5), 'accuracy', 75.0)
        checkpoints.save(state_of(5, step=5))
    return tmp_path / 'W'


@pytest.mark.slow
@pytest.mark.parametrize('how', ['largest', 'empty', 'params', 'optimizer'])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damaged, caplog, how):
    spoil(damaged / 'checkpoints/last/5', how)
    with Checkpoints(damaged) as checkpoints:
        state, _ = checkpoints.restore(state_of(3))
        assert_same(state, state_of(2, step=2))
        assert checkpoints.step() == 2
        # What is trained again is written again.
        checkpoints.save(state_of(5, step=5))
    (message,) = [r.getMessage() for r in caplog.records if 'cannot be read' in r.getMessage()]
    assert message.startswith(f'{damaged}/checkpoints/last/5 cannot be read (')
    assert message.endswith('); going on from step 2') and '\n' not in message
    assert names(damaged / 'checkpoints/damaged') == ['last-5']
    assert names(damaged / 'checkpoints/last') == ['2', '5']
    with Checkpoints(damaged) as checkpoints:
        assert_same(checkpoints.restore(state_of(3))[0], state_of(5, step=5))


def test_a_damaged_best_gives_way_to_the_one_before(damaged):
    spoil(damaged / 'checkpoints/best/5', 'empty')
    expected = state_of(1).ema['fc']['kernel'][...]
    with Checkpoints(damaged, read_only=True) as checkpoints:
        np.testing.assert_array_equal(checkpoints.weights('best')['fc.kernel'], expected)
    assert names(damaged / 'checkpoints') == ['best', 'last']  # who reads moves nothing
    with Checkpoints(damaged) as checkpoints:
        assert checkpoints.best_value('accuracy') == 62.5
    assert names(damaged / 'checkpoints/damaged') == ['best-5']


def test_where_nothing_can_be_read_nothing_is_lost(damaged):
    for kind in ('last', 'best'):
        for folder in (damaged / 'checkpoints' / kind).iterdir():
            spoil(folder, 'empty')
    before = sorted(damaged.rglob('*'))
    message = r'checkpoints/{}: no checkpoint can be read; delete .*checkpoints and train anew \('
    with Checkpoints(damaged) as checkpoints:
        for read in (
            lambda: checkpoints.restore(state_of(3)),
            lambda: checkpoints.weights('last'),
        ):
            with pytest.raises(CheckpointError, match=message.format('last')):
                read()
        with pytest.raises(CheckpointError, match=message.format('best')):
            checkpoints.weights('best')
    assert sorted(damaged.rglob('*')) == before


@pytest.mark.slow
def test_a_best_that_cannot_be_read_is_followed_by_another(damaged, caplog):
    for folder in (damaged / 'checkpoints/best').iterdir():
        spoil(folder, 'empty')
    with Checkpoints(damaged) as checkpoints:
        assert checkpoints.best_value('accuracy') is None
        assert 'best cannot be read: the best of the epochs to come counts' in caplog.text
        checkpoints.save_best(state_of(1, step=9), 'accuracy', 12.5)
        assert (checkpoints.step('best'), checkpoints.best_value('accuracy')) == (9, 12.5)


FULL = """import resource, signal, sys
from pathlib import Path
import jax.numpy as jnp
from wsol_jax.training.checkpoints import CheckpointError, Checkpoints, Row, TrainState

def state(step, size):
    return TrainState(jnp.int32(step), {'a': jnp.arange(size * 1.0)}, {}, None, None)

resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    with Checkpoints(Path(sys.argv[1])) as checkpoints:
        checkpoints.save(state(1, 10))
        facts = *sys.argv[3:4], *map(float, sys.argv[4:])
        getattr(checkpoints, sys.argv[2])(state(2, 10**5), *facts)
except OSError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize('method', [['save'], ['save_best', 'accuracy', '50']])
def test_a_full_disk_is_one_line(tmp_path, method):
    command = [sys.executable, '-c', FULL, str(tmp_path), *method]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100)
    kind = {'save': 'last', 'save_best': 'best'}[method[0]]
    folder = tmp_path / 'checkpoints' / kind
    line = f'cannot write {folder}: File too large; the checkpoint before stays\n'
    assert (run.returncode, run.stdout) == (0, line)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.step() == 1


def test_none_at_first(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.step(), checkpoints.step('best')) == (0, 0)
        assert checkpoints.best_value('accuracy') is None


def test_the_best_is_on_disk_before_the_last(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_best(state_of(1), 'accuracy', 50.0)
        assert names(tmp_path / 'checkpoints/best') == ['3']
        assert checkpoints.best_value('accuracy') == 50.0


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
                state_of(1), 'accuracy', 1.0
            )
        assert checkpoints.step(kind) == 3
    assert names(tmp_path / 'checkpoints' / kind) == ['3']


def test_threads_can_save(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        thread = threading.Thread(target=checkpoints.save, args=(state_of(1),))
        thread.start()
        thread.join()
    assert names(tmp_path / 'checkpoints/last') == ['3']

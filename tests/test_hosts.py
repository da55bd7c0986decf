"""Several processes that share a run: on loopback, as they would on as many hosts."""

import csv
import signal
import socket
import threading

import jax
import numpy as np
import pytest
from test_main import CACHE, FORKS, TINY, run_told, write_weights
from test_parallel import saved

import wsol_jax.hosts
from wsol_jax.config import Config, ConfigError
from wsol_jax.hosts import (
    ProcessDied,
    barrier,
    first_of_all,
    is_in_a_job,
    join,
    own_share,
    reason_of,
)
from wsol_jax.maps.columns import CHUNK, SKIPPED, Column, Store
from wsol_jax.maps.store import MapStore
from wsol_jax.parallel import _OfAll
from wsol_jax.peers import SILENCE, _is_gone, _watch, loss_of
from wsol_jax.progress import read_progress
from wsol_jax.training.checkpoints import Checkpoints
from wsol_jax.workdir import check_same, open_workdir, read_json

COUNT = 4 * CHUNK - 5


def as_process(monkeypatch, index, count):
    monkeypatch.setattr(wsol_jax.hosts, 'processes', lambda: count)
    monkeypatch.setattr(wsol_jax.hosts, 'process', lambda: index)


@pytest.mark.parametrize('count', [1, 2, 3, 5])
def test_shares_are_whole_chunks_and_all_there_is(monkeypatch, count):
    positions = np.r_[3:5, 8:20, 30:34, 36]  # chunks of 4: 0 to 4, 7 to 9
    shares = []
    for index in range(count):
        as_process(monkeypatch, index, count)
        shares.append(positions[own_share(positions, 4)])
    np.testing.assert_array_equal(np.concatenate(shares), positions)  # in order
    chunks = [set((share // 4).tolist()) for share in shares]
    assert sum(map(len, chunks)) == len(set.union(*chunks)) == 8
    assert max(map(len, chunks)) - min(map(len, chunks)) <= 1


def test_alone_there_is_nobody_to_wait_for():
    barrier('nobody')
    assert first_of_all('nobody', lambda: 1, lambda: 2) == 1


def test_who_waits_for_a_dead_process_is_told(monkeypatch):
    as_process(monkeypatch, 0, 2)  # which JAX knows nothing of

    def died(*_):
        raise RuntimeError('heartbeat timeout')

    monkeypatch.setattr('orbax.checkpoint.multihost.get_barrier_sync_fn', died)
    with pytest.raises(ProcessDied, match='another process of this run has ended'):
        barrier('here')


class Service:
    """A coordination service in which process 1 lives for two beats; it has a clock."""

    def __init__(self, monkeypatch):
        self.now, self.values = 0.0, {}
        monkeypatch.setattr('wsol_jax.peers.time.monotonic', lambda: self.now)
        monkeypatch.setattr('wsol_jax.peers.time.sleep', lambda _: None)

    def key_value_set(self, key, value, allow_overwrite=False):
        self.values[key] = value

    def key_value_dir_get(self, folder):
        self.values[f'{folder}/1'] = str(min(self.now, 10.0))
        return [(key, value) for key, value in self.values.items() if key.startswith(folder)]

    def blocking_key_value_get(self, key, timeout_in_ms):
        if key not in self.values:
            self.now += timeout_in_ms / 1000
            raise jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: GetKeyValue() timed out')
        return self.values[key]


def unreachable(*_, **__):
    raise jax.errors.JaxRuntimeError('UNAVAILABLE: this process is at its end, or the first is')


def test_a_process_that_gives_no_sign_of_life_ends_the_others(monkeypatch):
    service, said = Service(monkeypatch), []
    monkeypatch.setattr('wsol_jax.peers._end', said.append)
    _watch(service, 0, 2)
    assert said == [loss_of('process 1')]
    assert 10 + SILENCE < service.now < 50
    _watch(service, 1, 2)  # hears of it
    assert said == [loss_of('process 1')] * 2
    service.values['wsol_jax/verdict'] = 'finished'
    _watch(service, 0, 2)
    monkeypatch.setattr(service, 'key_value_set', unreachable)
    _watch(service, 1, 2)
    assert len(said) == 2


@pytest.mark.slow
def test_the_first_process_is_there_where_its_service_speaks():
    with socket.socket() as listening:
        listening.bind(('localhost', 0))
        address = f'localhost:{listening.getsockname()[1]}'
        assert _is_gone(address)  # refused
        listening.listen()
        assert _is_gone(address)  # it hangs: only the system answers
        threading.Thread(target=lambda: [listening.accept()[0].send(b'x') for _ in '12']).start()
        assert not _is_gone(address)


def test_an_error_of_a_collective_is_the_loss_of_another(monkeypatch):
    failed = ValueError('UNKNOWN: Gloo AllGather failed: Connection reset by peer')
    assert reason_of(failed) == str(failed)  # alone
    as_process(monkeypatch, 0, 2)
    assert reason_of(failed) == loss_of('another process')
    assert reason_of(ConfigError('no such peer')) == 'no such peer'


@pytest.mark.parametrize(
    'given, message',
    [
        (('h:1', None, 0), '--coordinator, --num_processes, --process_id go together; '
         '--num_processes missing'),
        ((None, 2, None), 'go together; --coordinator and --process_id missing'),
        (('host', 2, 0), r'--coordinator=host: must be HOST:PORT of the first process'),
        (('host:0', 2, 0), r'--coordinator=host:0: must be HOST:PORT'),
        (('host:1', 2, 2), r'--process_id=2 must be in 0\.\.1, see --num_processes'),
        (('host:1', 2, -1), r'--process_id=-1 must be in 0\.\.1'),
    ],
)  # fmt: skip
def test_wrong_flags_are_one_line(given, message):
    with pytest.raises(ConfigError, match=message):
        join(*given)


@pytest.mark.parametrize(
    'environment, asked',
    [
        ({}, False),
        ({'SLURM_NTASKS': '1'}, False),
        ({'SLURM_NTASKS': '2'}, True),
        ({'OMPI_COMM_WORLD_SIZE': '1'}, False),
        ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, False),
        ({'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '0'}, True),
        ({'TPU_ML_PLATFORM': 'JAX'}, True),
    ],
)
def test_where_jax_looks_for_other_processes(environment, asked):
    assert is_in_a_job(environment) == asked


def test_other_settings_than_those_of_the_first_are_refused(tmp_path):
    open_workdir(tmp_path, Config())
    check_same(tmp_path, Config())
    with pytest.raises(ConfigError, match=r'the first process has seed=0, this one 1: start all'):
        check_same(tmp_path, Config(seed=1))


def test_what_several_processes_skipped_is_joined(tmp_path):
    store = Store.prepare(tmp_path / 's', 4, {'x': Column((), 'float32')}, {})
    store.skip({'b': 'torn'})
    store.skip({'d': 'short'}, process=2)
    store.skip({'c': 'empty'}, process=2)
    assert store.skipped() == {'b': 'torn', 'c': 'empty', 'd': 'short'}
    store.join_skipped()
    text = 'image_id,reason\nb,torn\nc,empty\nd,short\n'
    assert (tmp_path / 's/skipped.csv').read_text() == text
    assert len(list((tmp_path / 's').glob('skipped*'))) == 1


def test_named_images_can_be_written_in_any_order(tmp_path):
    names = [f'{i}.png' for i in range(6)]
    store = Store.prepare(tmp_path / 's', 6, {'x': Column((), 'float32')}, {})
    other = Store(tmp_path / 's')
    store.name(names)
    other.read_names()
    other.write(np.array([4, 5]), names[4:], np.array([1, SKIPPED]), {'x': np.float32([4, 5])})
    assert Store(tmp_path / 's').image_ids == names
    assert store.pending().tolist() == [0, 1, 2, 3]


def test_all_stop_behind_the_same_step():
    """What processes do together, on the devices of one."""
    devices = _OfAll(jax.local_devices())
    assert devices.own_rows(devices.size * 3).tolist() == list(range(devices.size * 3))
    state = devices.replicate({'w': np.float32(1)}, donated=True)
    rows = devices.shard(np.arange(2.0 * devices.size, dtype=np.float32))
    state, total = devices.step(lambda s, x: ({'w': s['w'] + x.sum()}, x.sum()))(state, rows)
    assert float(devices.one(state)['w']) == 1 + float(devices.one(total))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored
    with pytest.raises(KeyboardInterrupt), devices.stopping_together() as stop:
        stop()
        signal.raise_signal(signal.SIGINT)  # while a step is computed
        stop()  # asks the others
        stop()
        pytest.fail('it goes on')
    signal.signal(signal.SIGINT, before)


# What a process of a run does, in a folder of its own: files of the run are in the one above.
def one_of_several(arguments, folder, cache, devices, told):
    jax.config.update('jax_num_cpu_devices', devices)
    run_told(arguments, folder, cache, None, told)


def start(folder, index, *arguments, devices=1, told=None):
    own = folder / f'process{index}'
    own.mkdir(exist_ok=True)
    arguments = ('--config', '../tiny.py', '--workdir', '../W', *arguments)
    facts = arguments, own, CACHE.name, devices, told
    process = FORKS.Process(target=one_of_several, args=facts)
    process.start()
    return process, own


def finish(process, own):
    process.join(timeout=500)
    assert process.exitcode is not None, 'the command hangs'
    out, err = ((own / name).read_text() for name in ('out', 'err'))
    return process.exitcode, out, err


def job(count):
    """The flags of each process, with a port that is free."""
    with socket.socket() as found:
        found.bind(('localhost', 0))
        port = found.getsockname()[1]
    flags = f'--coordinator=localhost:{port}', f'--num_processes={count}'
    return [(*flags, f'--process_id={index}') for index in range(count)]


def run(folder, count, *arguments, told=None, who=-1, **facts):
    """Runs all processes, one of which, the last, is told something; what each said."""
    flags, tell = [()] if count == 1 else job(count), {who % count: told}
    started = [
        start(folder, i, *arguments, *own, told=tell.get(i), **facts) for i, own in enumerate(flags)
    ]
    return [finish(*one) for one in started]


def folder_of(folder):
    folder.mkdir()
    (folder / 'tiny.py').write_text(TINY.replace('(24, 12, 12)', f'(24, 12, {COUNT})'))
    write_weights(folder / 'w.safetensors')
    return folder


LOCALIZE = (
    '--config.network.weights=../w.safetensors',
    '--config.localize.batch_size=16',
    '--config.report.images=0',
    '--config.stages=("localize","evaluate","report")',
)


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """What one process makes."""
    folder = folder_of(tmp_path_factory.mktemp('alone') / 'run')
    ((code, out, err),) = run(folder, 1, *LOCALIZE)
    assert (code, err) == (0, '') and 'report.html' in out
    return folder / 'W'


def assert_same(workdir, expected, elsewhere=None):
    for split in ('val', 'test'):
        one, other = (MapStore(w / 'maps' / split) for w in (workdir, expected))
        assert not len(one.pending()) and one.image_ids == other.image_ids
        for name in one.names:
            whole = slice(0, one.count)
            np.testing.assert_allclose(one.rows(name, whole), other.rows(name, whole), atol=1e-6)
    for name in ('boxes/val.csv', 'boxes/test.csv', 'curves.csv'):
        assert (workdir / name).read_bytes() == (expected / name).read_bytes()
    found, metrics = (read_json(w / 'metrics.json') for w in (workdir, expected))
    assert jax.tree.structure(found) == jax.tree.structure(metrics)
    values = pytest.approx(jax.tree.leaves(metrics), abs=1e-6, nan_ok=True)
    assert jax.tree.leaves(found) == values
    places = (workdir, elsewhere) if elsewhere else (workdir,)
    names = {p.relative_to(w) for w in places for p in w.rglob('*') if '.__lock' not in p.name}
    assert names == {p.relative_to(expected) for p in expected.rglob('*')}


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4])
def test_several_processes_make_what_one_makes(alone, tmp_path, count):
    folder = folder_of(tmp_path / 'run')
    (code, out, _), *others = run(folder, count, *LOCALIZE)
    assert code == 0 and 'report.html' in out
    assert [code for code, *_ in others] == [0] * (count - 1)
    assert_same(folder / 'W', alone)
    with (folder / 'W/progress.csv').open() as file:
        rows = [row for row in csv.DictReader(file) if row['split'] == 'test']
    chunks = -(-4 // count)
    assert len(rows) == chunks * CHUNK // 16  # those of the first process


def assert_told_of_death(code, err, *who):
    """By one line, behind those of JAX where it saw it first."""
    line = err.splitlines()[-1]
    assert code == 2 and err.count('error: ') == 1
    assert line in {f'error: {loss_of(w)}' for w in ('another process', *who)}


@pytest.mark.slow
def test_the_run_goes_on_alone_when_one_has_died(alone, tmp_path):
    folder = folder_of(tmp_path / 'run')
    told = 'maps', 5, signal.SIGKILL
    (code, out, err), (killed, *_) = run(folder, 2, *LOCALIZE, told=told)
    assert (killed, out) == (-signal.SIGKILL, '')
    assert_told_of_death(code, err, 'process 1')
    store = MapStore(folder / 'W/maps/test')
    assert set((store.pending() // CHUNK).tolist()) in ({2, 3}, {3})
    done = (folder / 'W/maps/test/status/0').stat().st_mtime_ns
    ((code, *_),) = run(folder, 1, *LOCALIZE)
    assert code == 0
    assert (folder / 'W/maps/test/status/0').stat().st_mtime_ns == done
    assert_same(folder / 'W', alone)


@pytest.mark.slow
def test_maps_elsewhere_go_on_after_a_kill_and_are_of_one_run(alone, tmp_path):
    folder, there = folder_of(tmp_path / 'run'), tmp_path / 'there'
    store, told = f'--config.localize.store=file://{there}/', ('maps', 5, signal.SIGKILL)
    _, (killed, *_) = run(folder, 2, *LOCALIZE, store, told=told)
    assert killed == -signal.SIGKILL
    done = next((there / 'maps/test').glob('*/*/0.0.0.0')).stat().st_mtime_ns
    ((code, *_),) = run(folder, 1, *LOCALIZE, store)
    assert code == 0
    assert next((there / 'maps/test').glob('*/*/0.0.0.0')).stat().st_mtime_ns == done
    for where, message in ((f'{store}2', 'was made with localize.store='), (store, '')):
        ((code, _, err),) = run(folder, 1, *LOCALIZE, where)
        assert (code, err.count('\n')) == ((2, 1) if message else (0, 0)) and message in err
    ((code, _, err),) = run(folder_of(tmp_path / 'other'), 1, *LOCALIZE, store)
    assert code == 2 and err.endswith(
        f"store='file://{there}' holds the maps of another run: choose another, or delete what is "
        'there\n'
    )
    (there / 'wsol_jax_run').unlink()
    assert_same(folder / 'W', alone, there)


@pytest.mark.slow
def test_a_second_run_is_refused_in_the_same_workdir(tmp_path):
    folder = folder_of(tmp_path / 'run')
    with wsol_jax.workdir.locked(folder / 'W'):
        (code, _, err), (other, *_) = run(folder, 2, *LOCALIZE)
    assert code == 2 and 'in use by process' in err
    assert other != 0


TRAIN = (
    *('--config.stages=train', '--config.train.epochs=3', '--config.train.ema=0.5'),
    *('--config.train.log_every=1', '--config.train.keep=best_localization'),
)


@pytest.fixture(scope='module')
def trained_alone(tmp_path_factory):
    """What one process trains on one device."""
    folder = folder_of(tmp_path_factory.mktemp('trained') / 'run')
    ((code, *_),) = run(folder, 1, *TRAIN)
    assert code == 0
    return folder / 'W'


def assert_same_training(workdir, expected):
    for kind in ('last', 'best', 'best_localization'):
        found, values = saved(workdir, kind), saved(expected, kind)
        assert list(found) == list(values) and len(found) > 60
        for name, value in values.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    rows = [read_progress(w) for w in (workdir, expected)]
    assert len(rows[0]) == len(rows[1]) == 3 * (3 + 1)  # 24 images make 3 batches of 8
    for mine, theirs in zip(*rows, strict=True):
        del mine['images_per_second'], theirs['images_per_second']
        numbers = [
            {k: float(v) for k, v in row.items() if k not in NAMES and v} for row in (mine, theirs)
        ]
        assert numbers[0] == pytest.approx(numbers[1], abs=1e-4)
        assert [mine[name] for name in NAMES] == [theirs[name] for name in NAMES]


NAMES = ('stage', 'split', 'step')


@pytest.mark.slow
@pytest.mark.parametrize(('count', 'devices'), [(2, 2), (4, 1)])
def test_several_processes_train_as_one_does(trained_alone, tmp_path, count, devices):
    folder = folder_of(tmp_path / 'run')
    results = run(folder, count, *TRAIN, devices=devices)
    assert [code for code, *_ in results] == [0] * count
    assert_same_training(folder / 'W', trained_alone)


@pytest.mark.slow
def test_training_goes_on_with_other_processes(trained_alone, tmp_path):
    folder, steps = folder_of(tmp_path / 'run'), []
    for number in (signal.SIGTERM, signal.SIGKILL):
        told = 'steps', 3, number
        (code, _, err), (other, *_) = run(folder, 2, *TRAIN, told=told)
        if number == signal.SIGTERM:  # both have stopped behind one step
            assert (code, other) == (143, 143)
            assert 'interrupted; the same command goes on from here' in err
        else:
            assert other == -signal.SIGKILL
            assert_told_of_death(code, err, 'process 1')
        with Checkpoints(folder / 'W', read_only=True) as checkpoints:
            steps.append(checkpoints.step())
    assert steps[0] == 5  # told in the fourth step, known to all behind the fifth
    assert steps[1] == 6
    ((code, *_),) = run(folder, 1, *TRAIN)
    assert code == 0
    assert_same_training(folder / 'W', trained_alone)


@pytest.mark.slow
def test_the_loss_of_the_first_process_is_told_behind_the_lines_of_jax(tmp_path):
    folder, told = folder_of(tmp_path / 'run'), ('steps', 2, signal.SIGKILL)
    (killed, *_), (code, _, err) = run(folder, 2, *TRAIN, told=told, who=0)
    assert killed == -signal.SIGKILL
    assert_told_of_death(code, err, 'the first process')

"""Runs that are interrupted or killed end where an undisturbed run ends."""

import csv
import os
import random
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from test_main import TINY, files, finish, start, write_weights
from test_parallel import saved

from wsol_jax.maps.columns import CHUNK
from wsol_jax.maps.store import MapStore

pytestmark = pytest.mark.slow  # runs that are killed, and go on

INTERRUPTED = 'interrupted; the same command goes on from here\n'


def stop(process, signal_number, reached):
    """Signals the process soon after `reached()`."""
    deadline = time.monotonic() + 100
    while not reached():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.02))
    os.kill(process.pid, signal_number)


def rows(workdir, stage):
    with (workdir / 'progress.csv').open() as file:
        return [row for row in csv.DictReader(file) if row['stage'] == stage]


COUNT = 4 * CHUNK
LOCALIZE = (
    *('--config', 'tiny.py', '--workdir', 'W', '--config.network.weights=w.safetensors'),
    *('--config.localize.splits=test', '--config.localize.batch_size=2'),
    '--config.stages=("localize","evaluate")',
)


def localize_folder(folder):
    folder.mkdir()
    (folder / 'tiny.py').write_text(TINY.replace('(24, 12, 12)', f'(24, 12, {COUNT})'))
    write_weights(folder / 'w.safetensors')
    return folder


def pending(workdir):
    if not (workdir / 'maps/test/index.json').exists():
        return np.arange(COUNT)
    return MapStore(workdir / 'maps/test').pending()


def maps_of(workdir, chunks):
    """Files of the maps of these chunks."""
    found = files(workdir / 'maps/test/dgl', workdir / 'maps/test/cam')
    return {p: f for p, f in found.items() if p.name.split('.')[0] in map(str, chunks)}


def test_localize_goes_on_where_it_was_stopped(tmp_path):
    whole, broken = localize_folder(tmp_path / 'whole'), localize_folder(tmp_path / 'broken')
    assert finish(start(whole, *LOCALIZE), whole).code == 0
    workdir = broken / 'W'
    previous = COUNT
    for number, left in ((signal.SIGTERM, 3 * CHUNK), (signal.SIGKILL, 2 * CHUNK)):
        process = start(broken, *LOCALIZE)
        stop(process, number, lambda left=left: len(pending(workdir)) <= left)
        code, out, err = finish(process, broken)
        killed = number == signal.SIGKILL
        assert (code, out, err) == ((-9, '', '') if killed else (143, '', INTERRUPTED))
        assert 0 < len(pending(workdir)) < previous
        previous = len(pending(workdir))
    left = pending(workdir)
    done = set(range(4)) - set((left // CHUNK).tolist())
    finished, logged = maps_of(workdir, done), len(rows(workdir, 'localize'))
    assert len(finished) == 5 * len(done) > 0
    assert finish(start(broken, *LOCALIZE), broken).code == 0
    assert maps_of(workdir, done) == finished
    assert len(rows(workdir, 'localize')) - logged == -(-len(left) // 2)
    for name in ('maps', 'boxes'):
        expected = {p.relative_to(whole): f[0] for p, f in files(whole / 'W' / name).items()}
        found = {p.relative_to(broken): f[0] for p, f in files(workdir / name).items()}
        assert {p: f for p, f in found.items() if '__lock' not in p.name} == expected
    assert (workdir / 'metrics.json').read_bytes() == (whole / 'W/metrics.json').read_bytes()


TRAIN = (
    *('--config', 'tiny.py', '--workdir', 'W', '--config.stages=train'),
    *('--config.train.epochs=5', '--config.train.log_every=1', '--config.train.ema=0.5'),
)

# What a run is trained by; BAS has a frozen copy of its network in every step.
METHODS = {
    'plain': {},
    'bas': {'method': 'bas', 'options': {'width': 8, 'layer': 'stage2'}},
}


def train_folder(folder, method='plain'):
    folder.mkdir()
    lines = [f'    config.train.{name} = {value!r}\n' for name, value in METHODS[method].items()]
    ends = '    return config\n'
    (folder / 'tiny.py').write_text(TINY.replace(ends, ''.join([*lines, ends])))
    return folder


@pytest.fixture(scope='module', params=METHODS)
def undisturbed(request, tmp_path_factory):
    """A workdir that was never interrupted, and the method it was trained by."""
    folder = train_folder(tmp_path_factory.mktemp('undisturbed') / 'whole', request.param)
    assert finish(start(folder, *TRAIN), folder).code == 0
    return folder / 'W', request.param


def step_of(workdir):
    """The newest whole checkpoint; that of a process that still runs, too."""
    folder = workdir / 'checkpoints/last'
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def test_training_goes_on_where_it_was_stopped(undisturbed, tmp_path):
    whole, method = undisturbed
    folder, seen = train_folder(tmp_path / 'broken', method), 0
    workdir = folder / 'W'
    # 24 images in batches of 8: three steps an epoch, fifteen in all. Told of by count: a process
    # that watches this one may be late, and it would end.
    for number, every, steps in (
        (signal.SIGINT, 1, 2),
        (signal.SIGKILL, 2, 4),
        (signal.SIGTERM, 2, 3),
    ):
        told = ('steps', steps, number)
        process = start(folder, *TRAIN, f'--config.train.checkpoint_every={every}', told=told)
        code, out, err = finish(process, folder)
        killed = number == signal.SIGKILL
        # orbax may have something to say of a checkpoint that was killed half removed.
        assert (code, out) == ((-9 if killed else 128 + number), '')
        assert err.endswith('' if killed else INTERRUPTED)
        seen, before = step_of(workdir), seen
        assert before < seen < 15
    assert finish(start(folder, *TRAIN), folder).code == 0
    for kind in ('last', 'best'):
        expected, found = saved(whole, kind), saved(workdir, kind)
        assert list(found) == list(expected) and len(found) > 60
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    logged = [
        [(r['split'], r['step'], r['loss'], r['accuracy']) for r in rows(w, 'train')]
        for w in (whole, workdir)
    ]
    assert logged[0] == logged[1]
    assert [int(step) for split, step, *_ in logged[0] if split == 'train'] == list(range(1, 16))


def test_a_full_disk_is_one_line(tmp_path):
    folder = train_folder(tmp_path / 'full')
    command = [sys.executable, '-m', 'wsol_jax.main', *TRAIN]
    run = subprocess.run(
        ['bash', '-c', f'ulimit -f 40; exec {shlex.join(command)}'],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if 'CACHE' not in name},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode, run.stdout, run.stderr) == (
        *(2, ''),
        f'error: cannot write {folder.resolve()}/W/checkpoints/best: File too large; '
        'the checkpoint before stays\n',
    )

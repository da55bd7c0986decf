"""Runs that are interrupted or killed end where an undisturbed run ends."""

import csv
import os
import random
import signal
import time

import numpy as np
import pytest
from test_main import TINY, files, finish, start, write_weights

from wsol_jax.localization.store import MapStore
from wsol_jax.training.checkpoints import Checkpoints

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


LOCALIZE = (
    *('--config', 'tiny.py', '--workdir', 'W', '--config.network.weights=w.safetensors'),
    *('--config.localize.splits=test', '--config.localize.batch_size=1'),
    '--config.stages=("localize","evaluate")',
)


def localize_folder(folder):
    folder.mkdir()
    (folder / 'tiny.py').write_text(TINY.replace('(24, 12, 12)', '(24, 12, 60)'))
    write_weights(folder / 'w.safetensors')
    return folder


def pending(workdir):
    if not (workdir / 'maps/test/index.json').exists():
        return np.arange(60)
    return MapStore(workdir / 'maps/test').pending()


def maps_of(workdir, images):
    """Files of the maps of these images, each a chunk of its own."""
    found = files(workdir / 'maps/test/dgl', workdir / 'maps/test/cam')
    return {p: f for p, f in found.items() if p.name.split('.')[0] in map(str, images)}


def test_localize_goes_on_where_it_was_stopped(tmp_path):
    whole, broken = localize_folder(tmp_path / 'whole'), localize_folder(tmp_path / 'broken')
    assert finish(start(whole, *LOCALIZE), whole).code == 0
    workdir = broken / 'W'
    previous = 60
    for number, left in ((signal.SIGINT, 57), (signal.SIGKILL, 40)):
        process = start(broken, *LOCALIZE)
        stop(process, number, lambda left=left: len(pending(workdir)) <= left)
        code, out, err = finish(process, broken)
        killed = number == signal.SIGKILL
        assert (code, out, err) == ((-9, '', '') if killed else (130, '', INTERRUPTED))
        assert 0 < len(pending(workdir)) < previous
        previous = len(pending(workdir))
    done = set(range(60)) - set(pending(workdir).tolist())
    finished, logged = maps_of(workdir, done), len(rows(workdir, 'localize'))
    assert len(finished) == 5 * len(done)
    assert finish(start(broken, *LOCALIZE), broken).code == 0
    assert maps_of(workdir, done) == finished
    assert len(rows(workdir, 'localize')) - logged == 60 - len(done)
    for name in ('maps', 'boxes'):
        expected = {p.relative_to(whole): f[0] for p, f in files(whole / 'W' / name).items()}
        found = {p.relative_to(broken): f[0] for p, f in files(workdir / name).items()}
        assert {p: f for p, f in found.items() if '__lock' not in p.name} == expected
    assert (workdir / 'metrics.json').read_bytes() == (whole / 'W/metrics.json').read_bytes()


TRAIN = (
    *('--config', 'tiny.py', '--workdir', 'W', '--config.stages=train'),
    '--config.train.epochs=5',
)


def train_folder(folder):
    folder.mkdir()
    (folder / 'tiny.py').write_text(TINY)
    return folder


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    folder = train_folder(tmp_path_factory.mktemp('undisturbed') / 'whole')
    assert finish(start(folder, *TRAIN), folder).code == 0
    return folder / 'W'


def saved(workdir):
    """Everything in the newest checkpoint, by name."""
    manager = Checkpoints(workdir)._manager
    found = manager.restore(manager.latest_step())
    return {f'{part}{key}': np.asarray(v) for part in found for key, v in found[part].items()}


def test_training_goes_on_where_it_was_stopped(undisturbed, tmp_path):
    folder = train_folder(tmp_path / 'broken')
    for number, epoch in ((signal.SIGINT, 1), (signal.SIGKILL, 2)):
        process = start(folder, *TRAIN)
        reached = [folder / f'W/checkpoints/{n}' for n in range(epoch, 6)]
        stop(process, number, lambda reached=reached: any(p.exists() for p in reached))
        code, out, err = finish(process, folder)
        killed = number == signal.SIGKILL
        assert (code, out, err) == ((-9, '', '') if killed else (130, '', INTERRUPTED))
    done = Checkpoints(folder / 'W').epoch()
    assert 1 <= done < 5
    logged = len(rows(folder / 'W', 'train'))
    assert finish(start(folder, *TRAIN), folder).code == 0
    again = rows(folder / 'W', 'train')[logged:]
    # 24 images in batches of 8, rows at even steps and at the ends of epochs.
    assert int(again[0]['step']) == (3 * done + 1 if done % 2 else 3 * done + 2)
    assert again[-1]['step'] == '15'
    expected, found = saved(undisturbed), saved(folder / 'W')
    assert list(found) == list(expected) and len(found) > 100
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    losses = [{r['step']: r['loss'] for r in rows(w, 'train')} for w in (undisturbed, folder / 'W')]
    assert losses[0] == losses[1]

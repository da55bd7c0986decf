"""Killed again and again in every stage, a run ends where an undisturbed one ends, bit for bit."""

import os
import random
import signal
import time

import numpy as np
import pytest
from runs import begin
from test_main import finish
from test_main_resume import step_of
from test_parallel import saved

pytestmark = [pytest.mark.faults, pytest.mark.slow]

# Of the process that wrote them, or in an order of its own.
_OWN = ('.wsol_jax_workdir', 'progress.csv', 'config.json')


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('undisturbed') / 'whole'
    assert finish(begin(folder), folder).code == 0
    return folder / 'W'


def results(workdir):
    """{name: content} of all files but checkpoints."""
    found = (path for path in workdir.rglob('*') if path.is_file() and path.name not in _OWN)
    names = {path.relative_to(workdir).as_posix(): path for path in found}
    return {
        name: path.read_bytes()
        for name, path in names.items()
        if not name.startswith('checkpoints/') and '__lock' not in name
    }


def newest(workdir, pattern):
    return max((p.stat().st_mtime_ns for p in workdir.glob(pattern)), default=0)


SIGNS = {  # that a stage is at work: a number that grows
    'train': step_of,
    'localize': lambda workdir: len([*workdir.glob('maps/*/status/[0-9]*')]),
    'evaluate': lambda workdir: newest(workdir, 'boxes/*.csv'),
    'report': lambda workdir: newest(workdir, 'figures/*.png'),
    'seeds': lambda workdir: newest(workdir, 'label_maps/*/*/*/*.png'),  # evaluate, of label maps
}


def kill_in(stage, folder, pause, *arguments):
    """Goes on with a run and kills it soon after a sign of life of a stage."""
    workdir, sign = folder / 'W', SIGNS[stage]
    if stage in ('evaluate', 'seeds'):  # may have ended before it was killed
        (workdir / 'metrics.json').unlink(missing_ok=True)
    before, deadline = sign(workdir), time.monotonic() + 100
    process = begin(folder, *arguments)
    while sign(workdir) <= before:
        assert process.is_alive() and time.monotonic() < deadline, stage
        time.sleep(0.002)
    time.sleep(pause)
    os.kill(process.pid, signal.SIGKILL)
    code, out, _ = finish(process, folder)
    assert (code, out) == (-signal.SIGKILL, ''), stage


def assert_same_training(workdir, undisturbed):
    for kind in ('last', 'best'):
        expected, found = saved(undisturbed, kind), saved(workdir, kind)
        assert list(found) == list(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_twelve_kills_change_nothing(undisturbed, tmp_path):
    folder, rng = tmp_path / 'killed', random.Random(11)
    for stage in ('train', 'localize', 'evaluate', 'report'):
        for _ in range(3):
            kill_in(stage, folder, rng.uniform(0, 0.1))
    code, _, err = finish(begin(folder), folder)
    assert (code, err) == (0, '')
    assert_same_training(folder / 'W', undisturbed)
    expected, found = results(undisturbed), results(folder / 'W')
    assert found.keys() == expected.keys() and len(found) > 20
    assert [name for name in found if found[name] != expected[name]] == []


def test_the_second_of_two_jobs_is_refused_and_harms_nothing(undisturbed, tmp_path):
    folders, workdir = [tmp_path / name for name in ('one', 'other')], tmp_path / 'shared/W'
    workdir.mkdir(parents=True)
    for folder in folders:  # of their own but for the workdir
        folder.mkdir()
        (folder / 'W').symlink_to(workdir)
    jobs = [begin(folder) for folder in folders]
    ended = sorted(finish(job, folder) for job, folder in zip(jobs, folders, strict=True))
    assert [ended[0].code, ended[1].code] == [0, 2]
    assert ended[1].err.count('\n') == 1 and 'in use by process' in ended[1].err
    assert_same_training(workdir, undisturbed)
    expected, found = results(undisturbed), results(workdir)
    assert [name for name in expected if found[name] != expected[name]] == []


def test_kills_change_nothing_in_two_stages_of_one_method(tmp_path):
    start, rng = tmp_path / 'plain', random.Random(3)
    assert finish(begin(start, '--config.stages=train'), start).code == 0
    for stage in (1, 2):
        arguments = (
            '--config.stages=train',
            '--config.train.method=ornet',
            f"--config.train.options={{'stage': {stage}, 'base': 2}}",
            f'--config.train.init_from={start / "W"}',
        )
        whole, killed = (tmp_path / f'{name} {stage}' for name in ('whole', 'killed'))
        assert finish(begin(whole, *arguments), whole).code == 0
        for _ in range(2):
            kill_in('train', killed, rng.uniform(0, 0.1), *arguments)
        assert finish(begin(killed, *arguments), killed).code == 0
        assert_same_training(killed / 'W', whole / 'W')
        start = killed


SEGMENTATION = (
    '--config.task=segmentation',
    '--config.data.source=scenes',
    '--config.train.loss=sigmoid',
    "--config.network.options={'width': 4}",
    "--config.localize.methods=('layer_cam',)",
    "--config.localize.layers=('stage4',)",
)
SEGMENTER = {'labels': 'truth', 'head': 'v2', 'rates': (1, 2)}
# What differs from a plain classifier and its seeds; in which stages it is killed.
STEPS = {
    'seeds': ((), ('train', 'localize', 'seeds')),
    'segmenter': (
        ('--config.train.method=segmenter', f'--config.train.options={SEGMENTER}'),
        ('train', 'localize'),
    ),
}


@pytest.mark.parametrize('step', STEPS)
def test_kills_change_nothing_in_segmentation(step, tmp_path):
    (own, stages), rng = STEPS[step], random.Random(5)
    whole, killed, arguments = tmp_path / 'whole', tmp_path / 'killed', (*SEGMENTATION, *own)
    assert finish(begin(whole, *arguments), whole).code == 0
    for stage in stages:
        kill_in(stage, killed, rng.uniform(0, 0.1), *arguments)
    assert finish(begin(killed, *arguments), killed).code == 0
    assert_same_training(killed / 'W', whole / 'W')
    expected, found = results(whole / 'W'), results(killed / 'W')
    assert found.keys() == expected.keys()
    assert len([name for name in found if 'label_maps/' in name]) > 50
    assert [name for name in found if found[name] != expected[name]] == []

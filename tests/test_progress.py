"""progress.csv, and what TensorBoard and Weights & Biases get."""

import csv
import subprocess
import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest

from wsol_jax.config import ConfigError
from wsol_jax.progress import ProgressLog, read_progress
from wsol_jax.workdir import read_csv, write_text

HEADER = 'stage,split,step,loss,accuracy,images_per_second'


def test_progress_is_appended_with_one_header(tmp_path):
    ProgressLog(tmp_path).row('train', 'train', 10, 320, loss=0.123456789, accuracy=50.0)
    ProgressLog(tmp_path).row('localize', 'val', 0, 4)
    with (tmp_path / 'progress.csv').open(newline='') as file:
        lines = list(csv.reader(file))
    assert lines[0] == ['stage', 'split', 'step', 'loss', 'accuracy', 'images_per_second']
    assert lines[1][:5] == ['train', 'train', '10', '0.123457', '50']
    assert lines[2][:5] == ['localize', 'val', '0', '', '']
    assert len(lines) == 3 and all(float(line[5]) > 0 for line in lines[1:])


def steps_of(workdir):
    return [(r['stage'], r['split'], int(r['step'])) for r in read_csv(workdir / 'progress.csv')]


def test_progress_beyond_a_step_is_forgotten(tmp_path):
    log = ProgressLog(tmp_path)
    log.forget('train', after=0)
    assert not (tmp_path / 'progress.csv').exists()
    rows = [('train', 'train', 5), ('train', 'val', 5), ('localize', 'val', 9), ('train', 'val', 6)]
    for stage, split, step in rows:
        log.row(stage, split, step, 1, accuracy=0.25)
    before = read_csv(tmp_path / 'progress.csv')
    log.forget('train', after=6)
    assert read_csv(tmp_path / 'progress.csv') == before
    ProgressLog(tmp_path).forget('train', after=5)
    assert read_csv(tmp_path / 'progress.csv') == before[:3]
    log.row('train', 'train', 6, 1)
    assert steps_of(tmp_path) == [*rows[:3], ('train', 'train', 6)]


def test_values_of_new_names_get_columns(tmp_path):
    log = ProgressLog(tmp_path)
    log.row('train', 'train', 1, 1, loss=0.5, accuracy=25.0)
    log.row('train', 'train', 2, 1, loss=0.25, area=0.125)
    ProgressLog(tmp_path).row('localize', 'val', 0, 1)
    ProgressLog(tmp_path).row('train', 'val', 2, 1, other=3.0, area=0.5)
    assert (tmp_path / 'progress.csv').read_text().splitlines()[0] == f'{HEADER},area,other'
    values = [(r['loss'], r['accuracy'], r['area'], r['other']) for r in read_progress(tmp_path)]
    assert values == [
        ('0.5', '25', '', ''),
        ('0.25', '', '0.125', ''),
        ('', '', '', ''),
        ('', '', '0.5', '3'),
    ]
    ProgressLog(tmp_path).forget('train', after=1)
    assert [(r['step'], r['area']) for r in read_progress(tmp_path)] == [('1', ''), ('0', '')]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a,b\n1,2\n', "no column 'stage'"),
        (
            'stage,split,step,loss,accuracy,images_per_second\ntrain,val,x,,,\n',
            "row 2: step is 'x'",
        ),
        ('stage,split,step,loss,accuracy,images_per_second\ntrain,va', 'row 2 has 2 cells, not 6'),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, text, message):
    (tmp_path / 'progress.csv').write_text(text)
    for read in (read_progress, lambda workdir: ProgressLog(workdir).forget('train', after=1)):
        with pytest.raises(ConfigError, match=f'progress.csv: {message}; delete it and run again'):
            read(tmp_path)


class Writer:
    """What there is of tensorboardX: the calls, by folder."""

    calls: ClassVar[list] = []

    def __init__(self, folder, purge_step=None):
        self.folder = folder
        self.calls.append((folder, purge_step))

    def add_scalar(self, name, value, step):
        self.calls.append((self.folder, name, value, step))

    def flush(self):
        self.calls.append('flush')


@pytest.fixture
def tensorboard(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorboardX', SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setattr(Writer, 'calls', [])


def test_tensorboard_gets_every_scalar(tmp_path, tensorboard):
    ProgressLog(tmp_path).row('train', 'val', 7, 5, loss=0.5, accuracy=40.0)
    folder = str(tmp_path / 'tensorboard')
    speed = Writer.calls[3][2]
    assert Writer.calls == [
        (folder, None),
        (folder, 'train/val/loss', 0.5, 7),
        (folder, 'train/val/accuracy', 40.0, 7),
        (folder, 'train/val/images_per_second', speed, 7),
        'flush',
    ]
    logged = read_csv(tmp_path / 'progress.csv')[0]
    assert speed == pytest.approx(float(logged['images_per_second']), rel=1e-4) and speed > 0


def test_tensorboard_is_opened_by_the_first_row_and_hides_what_is_forgotten(tmp_path, tensorboard):
    log = ProgressLog(tmp_path)
    log.forget('train', after=6)
    assert Writer.calls == []
    for step in (7, 8):
        log.row('train', 'train', step, 1)
    opened = [call for call in Writer.calls if call != 'flush' and len(call) == 2]
    assert opened == [(str(tmp_path / 'tensorboard'), 7)]
    assert [call[-1] for call in Writer.calls if call != 'flush'] == [7, 7, 8]


def test_without_tensorboard_nothing_happens(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorboardX', None)
    ProgressLog(tmp_path).row('train', 'val', 7, 5, loss=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ['progress.csv']


class Run:
    """What there is of a run of wandb: the calls."""

    def __init__(self, options):
        self.id, self.options, self.calls = options['id'], options, []

    def define_metric(self, name, step_metric):
        self.calls.append((name, step_metric))

    def log(self, values):
        self.calls.append(values)


@pytest.fixture
def wandb(monkeypatch):
    module = SimpleNamespace(run=None, runs=[], Error=type('Error', (Exception,), {}))

    def init(**options):
        module.run = Run(options)
        module.runs.append(module.run)
        return module.run

    module.init = init
    monkeypatch.setitem(sys.modules, 'wandb', module)
    monkeypatch.setitem(sys.modules, 'tensorboardX', None)
    return module


def test_weights_and_biases_gets_every_scalar_over_its_own_step(tmp_path, wandb):
    write_text(tmp_path / 'config.json', '{"config": {"seed": 3}}')
    ProgressLog(tmp_path, 'birds').row('train', 'val', 7, 5, loss=0.5, accuracy=40.0)
    (run,) = wandb.runs
    assert run.options['project'] == 'birds' and run.options['dir'] == str(tmp_path)
    assert run.options['config'] == {'seed': 3} and run.options['resume'] == 'allow'
    metric, values = run.calls
    assert metric == ('train/val/*', 'train/val/step')
    speed = values.pop('train/val/images_per_second')
    assert values == {'train/val/loss': 0.5, 'train/val/accuracy': 40.0, 'train/val/step': 7}
    assert speed == pytest.approx(float(read_progress(tmp_path)[0]['images_per_second']), rel=1e-4)


def test_a_workdir_has_one_run_however_often_it_goes_on(tmp_path, wandb):
    for workdir in (tmp_path / 'a', tmp_path / 'a', tmp_path / 'b'):
        workdir.mkdir(exist_ok=True)
        ProgressLog(workdir, 'birds').row('train', 'val', 1, 1)
    assert len(wandb.runs) == 2  # of one process
    wandb.run = None  # as in another one
    ProgressLog(tmp_path / 'a', 'birds').row('train', 'val', 2, 1)
    first, other, again = (run.id for run in wandb.runs)
    assert first == again != other and len(first) == 32


def test_nobody_is_told_of_a_run_unless_asked(tmp_path, wandb):
    ProgressLog(tmp_path).row('train', 'val', 7, 5, loss=0.5)
    assert wandb.runs == [] and [path.name for path in tmp_path.iterdir()] == ['progress.csv']


def test_without_the_package_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    message = r"config\.wandb='birds' needs Weights & Biases: pip install 'wsol_jax\[wandb\]'$"
    with pytest.raises(ConfigError, match=message):
        ProgressLog(tmp_path, 'birds')


def test_a_run_that_cannot_begin_is_one_line(tmp_path, wandb, monkeypatch):
    def init(**_):
        raise wandb.Error('No API key.\nLog in.')

    monkeypatch.setattr(wandb, 'init', init)
    with pytest.raises(ConfigError, match=r"^config\.wandb='birds': No API key\. Log in\.; WAN"):
        ProgressLog(tmp_path, 'birds')


OFFLINE = """import sys
from pathlib import Path
from wsol_jax.progress import ProgressLog
ProgressLog(Path('W'), 'birds').row('train', 'val', int(sys.argv[1]), 4, loss=0.5)
"""


@pytest.mark.slow
def test_the_real_one_keeps_one_run_in_the_workdir_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip('wandb', reason='wandb is not installed')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    (tmp_path / 'W').mkdir()
    for step in ('1', '2'):
        subprocess.run([sys.executable, '-c', OFFLINE, step], cwd=tmp_path, check=True, timeout=200)
    name = (tmp_path / 'W/wandb/run_id.txt').read_text().strip()
    files = list((tmp_path / 'W/wandb').glob('offline-run-*/run-*.wandb'))
    assert [file.name for file in files] == [f'run-{name}.wandb'] * 2
    for file in files:
        assert b'train/val/loss' in file.read_bytes() and b'birds' in file.read_bytes()

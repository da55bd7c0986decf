"""progress.csv: what was done, and how fast; for TensorBoard and Weights & Biases, too."""

import csv
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from wsol_jax.config import ConfigError
from wsol_jax.names import shown
from wsol_jax.workdir import read_csv, read_json, write_csv, write_text

# Takes the values of a row: 'stage/split', its step and {name: value}.
Writer = Callable[[str, int, Mapping[str, float]], None]


class ProgressLog:
    """Appends rows to progress.csv, and for the dashboards that are there.

    A value of a name that the file has no column for gets one; older rows are empty there.

    TensorBoard's files are written where tensorboardX is installed
    (`pip install 'wsol_jax[tensorboard]'`); `wandb` names a project of Weights & Biases, which
    needs `pip install 'wsol_jax[wandb]'`; '' for none.

    Raises:
        ConfigError: Weights & Biases is asked for, and not installed or not to be reached.
    """

    COLUMNS = ('stage', 'split', 'step', 'loss', 'accuracy', 'images_per_second')

    def __init__(self, workdir: Path, wandb: str = ''):
        self._path = workdir / 'progress.csv'
        self._clock = time.perf_counter()
        self._purge_step: int | None = None
        self._wandb = _wandb(workdir, wandb) if wandb else None

    @cached_property
    def _writers(self) -> list[Writer]:
        board = _tensorboard(self._path.with_name('tensorboard'), self._purge_step)
        return [writer for writer in (board, self._wandb) if writer]

    def forget(self, stage: str, after: int) -> None:
        """Drops rows of a stage beyond a step: a run that goes on from there writes them again.

        Before the first row of this log it makes TensorBoard hide its points beyond that step, too;
        Weights & Biases keeps them, and gets them again.
        """
        self._purge_step = after + 1
        rows = read_progress(self._path.parent)
        kept = [r for r in rows if r['stage'] != stage or int(r['step']) <= after]
        if len(kept) < len(rows):
            write_csv(self._path, list(rows[0]), [list(r.values()) for r in kept])

    def row(self, stage: str, split: str, step: int, images: int, **values: float) -> None:
        """Appends a row; `images` were processed since the last one."""
        now = time.perf_counter()
        values['images_per_second'] = images / max(now - self._clock, 1e-9)
        self._clock = now
        columns = self._columns(values)
        with self._path.open('a', newline='', encoding='utf-8') as file:
            numbers = [f'{values[c]:.6g}' if c in values else '' for c in columns[3:]]
            csv.writer(file).writerow([stage, split, step, *numbers])
        for write in self._writers:
            write(f'{stage}/{split}', step, values)

    def _columns(self, values: Iterable[str]) -> list[str]:
        """Of the file, which is made, or gets those of `values` that it lacks."""
        if not (self._path.exists() and self._path.stat().st_size):
            columns = [*self.COLUMNS, *(name for name in values if name not in self.COLUMNS)]
            write_csv(self._path, columns, [])
            return columns
        with self._path.open(newline='', encoding='utf-8') as file:
            columns = next(csv.reader(file))
        if added := [name for name in values if name not in columns]:
            empty = [''] * len(added)
            rows = [[*row.values(), *empty] for row in read_progress(self._path.parent)]
            columns += added
            write_csv(self._path, columns, rows)
        return columns


def read_progress(workdir: Path) -> list[dict[str, str]]:
    """Rows of progress.csv, whose steps are whole numbers; [] without the file.

    Raises:
        ConfigError: the file is damaged.
    """
    path = workdir / 'progress.csv'
    rows = read_csv(path, ProgressLog.COLUMNS)
    for number, row in enumerate(rows, 2):
        if not (row['step'].isascii() and row['step'].isdecimal()):
            what = f'row {number}: step is {shown(row["step"])}'
            raise ConfigError(f'{path}: {what}; delete it and run again')
    return rows


def _tensorboard(folder: Path, purge_step: int | None) -> Writer | None:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    board = SummaryWriter(str(folder), purge_step=purge_step)

    def write(name: str, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            board.add_scalar(f'{name}/{key}', value, step)
        board.flush()

    return write


def _wandb(workdir: Path, project: str) -> Writer:
    """Of the workdir's one run, which other processes may have begun."""
    run = _wandb_run(workdir, project)

    def write(name: str, step: int, values: Mapping[str, float]) -> None:
        run.define_metric(f'{name}/*', step_metric=f'{name}/step')
        run.log({f'{name}/{key}': value for key, value in {**values, 'step': step}.items()})

    return write


def _wandb_run(workdir: Path, project: str) -> Any:
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            f"config.wandb={project!r} needs Weights & Biases: pip install 'wsol_jax[wandb]'"
        ) from None
    name, record = _run_id(workdir), workdir / 'config.json'
    if wandb.run and wandb.run.id == name:
        return wandb.run
    settings = read_json(record).get('config') if record.exists() else None
    options: dict[str, Any] = {'project': project, 'dir': str(workdir), 'name': workdir.name}
    try:
        return wandb.init(
            **options, id=name, resume='allow', reinit='finish_previous', config=settings
        )
    except wandb.Error as error:
        reason = ' '.join(str(error).split())
        raise ConfigError(
            f'config.wandb={project!r}: {reason}; WANDB_MODE=offline keeps the run in the workdir'
        ) from None


def _run_id(workdir: Path) -> str:
    """The name of the workdir's run, drawn once."""
    file = workdir / 'wandb' / 'run_id.txt'
    if not file.exists():
        write_text(file, f'{uuid.uuid4().hex}\n')
    return file.read_text(encoding='utf-8').strip()

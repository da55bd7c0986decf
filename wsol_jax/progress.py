"""progress.csv: what was done, and how fast; for TensorBoard, too."""

import csv
import time
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from wsol_jax.config import ConfigError
from wsol_jax.names import shown
from wsol_jax.workdir import read_csv, write_csv


class ProgressLog:
    """Appends rows to progress.csv, and for TensorBoard.

    A value of a name that the file has no column for gets one; older rows are empty there.

    TensorBoard's files need tensorboardX (`pip install 'wsol_jax[tensorboard]'`).
    """

    COLUMNS = ('stage', 'split', 'step', 'loss', 'accuracy', 'images_per_second')

    def __init__(self, workdir: Path):
        self._path = workdir / 'progress.csv'
        self._clock = time.perf_counter()
        self._purge_step: int | None = None

    @cached_property
    def _board(self) -> Any:
        return _tensorboard(self._path.with_name('tensorboard'), self._purge_step)

    def forget(self, stage: str, after: int) -> None:
        """Drops rows of a stage beyond a step: a run that goes on from there writes them again.

        Before the first row of this log it makes TensorBoard hide its points beyond that step, too.
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
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(f'{stage}/{split}/{name}', value, step)
            self._board.flush()

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


def _tensorboard(folder: Path, purge_step: int | None) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=purge_step)

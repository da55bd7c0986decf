"""The working directory: what lies where, atomic writes, and what a changed config invalidates."""

import csv
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from wsol_jax.config import Config, ConfigError, flatten

# Folder of computed results: (what is in it once an epoch or a batch is done, the groups of
# settings that it depends on).
_RESULTS = {
    'checkpoints': ('*/[0-9]*', ('seed', 'data', 'augment', 'network', 'train')),
    'maps': ('*/status/[0-9]*', ('seed', 'data', 'augment', 'network', 'train', 'localize')),
}
# Changes which maps are scored, not what they are; and which checkpoint is localized with.
_NO_PART = {'maps': ('localize.splits',), 'checkpoints': ('train.keep',)}
# Of no effect on what is kept: these may change between runs in one workdir.
_FREE = (
    'stages',
    'parallel',
    'data.workers',
    'localize.batch_size',
    'localize.chunk_size',
    'train.log_every',
    'train.checkpoint_every',
    'evaluate.processes',
    'report.images',
    'report.gallery',
    'report.format',
)
_PACKAGES = (
    'jax',
    'jaxlib',
    'flax',
    'optax',
    'orbax-checkpoint',
    'numpy',
    'opencv-python-headless',
)
# What a spreadsheet takes for a formula, also behind apostrophes: those of the text stay apart.
_FORMULA = re.compile(r"'*[=+\-@\s\uff1d\uff0b\uff0d\uff20]")


def open_workdir(path: Path, config: Config) -> None:
    """Creates the folder and records the config in config.json.

    A workdir made with another config goes on only where nothing already computed depends on the
    difference. Scores, boxes and pages of another config are removed; they are made anew.

    Raises:
        ConfigError: checkpoints or maps there were made with other settings; names the keys.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f'workdir {path}: cannot make this folder: {error.strerror}') from None
    record = path / 'config.json'
    new = flatten(config)
    if record.exists():
        old = flatten(Config()) | _recorded(record)  # older versions had fewer settings
        changed = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
        changed = [k for k in changed if k not in _FREE]
        _refuse(path, changed, old, new)
        if changed:
            _remove_scores(path)
    write_text(record, json.dumps({'config': new, **_environment()}, indent=2) + '\n')


def _recorded(record: Path) -> dict[str, Any]:
    old = read_json(record).get('config')
    if not isinstance(old, dict):
        raise ConfigError(f'{record} records no config; delete it and run again')
    return old


def _refuse(path: Path, changed: list[str], old: dict, new: dict) -> None:
    for name, (result, groups) in _RESULTS.items():
        made = [k for k in changed if k.split('.')[0] in groups and k not in _NO_PART[name]]
        folder = path / name
        if made and any(folder.glob(result)):
            key = made[0]
            raise ConfigError(
                f'{folder} was made with {key}={old.get(key)!r}, now it is '
                f'{new.get(key)!r}: choose another --workdir or delete that folder'
            )
        if made:
            shutil.rmtree(folder, ignore_errors=True)  # prepared, but nothing came of it


def _remove_scores(path: Path) -> None:
    for name in ('metrics.json', 'curves.csv', 'report.html'):
        (path / name).unlink(missing_ok=True)
    for folder in ('boxes', 'figures'):
        for file in (path / folder).glob('*.*'):
            file.unlink()


def _environment() -> dict[str, Any]:
    import jax  # here: counting processes write files of results without it

    return {
        'versions': {name: metadata.version(name) for name in _PACKAGES},
        'python': platform.python_version(),
        'devices': [str(d) for d in jax.devices()],
        'git': _git_revision(),
    }


def _git_revision() -> str:
    here = Path(__file__).parent
    command = ['git', '-C', str(here), 'describe', '--always', '--dirty', '--abbrev=12']
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ''


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """The temporary name to write a file under; it is renamed to `path` when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    yield temporary
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file, whole or not at all.

    A spreadsheet takes a cell that begins with = + - @ or white space for a formula. Unless it is
    a number, an apostrophe goes before it; `read_csv` takes it away.
    """
    with (
        written_whole(path) as temporary,
        temporary.open('w', newline='', encoding='utf-8') as file,
    ):
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([_harmless(cell) for cell in row] for row in rows)


def read_csv(path: Path, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rows of a file of `write_csv` as dictionaries; [] if there is none.

    Args:
        path: the file.
        columns: that it must have.

    Raises:
        ConfigError: it is damaged.
    """
    if not path.exists():
        return []
    _check_regular(path)
    try:
        with path.open(newline='', encoding='utf-8') as file:
            header, *rows = list(csv.reader(file)) or [list(columns)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise _damaged(path, f'no CSV file that can be read: {error}') from None
    if absent := [name for name in columns if name not in header]:
        raise _damaged(path, f'no column {absent[0]!r}')
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise _damaged(path, f'row {number} has {len(row)} cells, not {len(header)}')
    return [dict(zip(header, map(_as_given, row), strict=True)) for row in rows]


def _harmless(cell: Any) -> Any:
    if not (isinstance(cell, str) and _FORMULA.match(cell)):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def _as_given(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _check_regular(path: Path) -> None:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise _damaged(path, 'not a regular file')


def _damaged(path: Path, what: str) -> ConfigError:
    return ConfigError(f'{path}: {what}; delete it and run again')


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ConfigError: the file is not JSON, or no object.
    """
    _check_regular(path)
    try:
        value = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f'{path} is not valid JSON ({error}); delete it and run again') from None
    if not isinstance(value, dict):
        raise ConfigError(f'{path} is not a JSON object; delete it and run again')
    return value


class ProgressLog:
    """Appends rows to progress.csv, and for TensorBoard: what was done, and how fast.

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
        rows = read_csv(self._path)
        kept = [r for r in rows if r['stage'] != stage or int(r['step']) <= after]
        if len(kept) < len(rows):
            write_csv(self._path, self.COLUMNS, [list(r.values()) for r in kept])

    def row(self, stage: str, split: str, step: int, images: int, **values: float) -> None:
        """Appends a row; `images` were processed since the last one."""
        now = time.perf_counter()
        values['images_per_second'] = images / max(now - self._clock, 1e-9)
        self._clock = now
        new = not self._path.exists()
        with self._path.open('a', newline='', encoding='utf-8') as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(self.COLUMNS)
            numbers = [f'{values[c]:.6g}' if c in values else '' for c in self.COLUMNS[3:]]
            writer.writerow([stage, split, step, *numbers])
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(f'{stage}/{split}/{name}', value, step)
            self._board.flush()


def _tensorboard(folder: Path, purge_step: int | None) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=purge_step)

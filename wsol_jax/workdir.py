"""The working directory: what lies where, atomic writes, and what a changed config invalidates."""

import csv
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from wsol_jax.config import Config, ConfigError, flatten

# What each stage's results depend on besides its own group, and where they lie.
_GROUPS = {
    'train': ('seed', 'data', 'network', 'train'),
    'localize': ('seed', 'data', 'network', 'train', 'localize'),
    'evaluate': ('evaluate',),
    'report': ('report',),
}
_OUTPUTS = {'train': 'checkpoints', 'localize': 'maps'}
# Speed only: these may change between runs in one workdir.
_FREE = ('stages', 'data.workers', 'localize.batch_size', 'train.log_every')
_PACKAGES = (
    'jax',
    'jaxlib',
    'flax',
    'optax',
    'orbax-checkpoint',
    'numpy',
    'opencv-python-headless',
)


def open_workdir(path: Path, config: Config) -> None:
    """Creates the folder and records the config in config.json.

    A workdir made with another config goes on only where nothing already computed depends on the
    difference. Scores, boxes and pages of another config are removed; they are made anew.

    Raises:
        ConfigError: checkpoints or maps there were made with other settings; names the keys.
    """
    path.mkdir(parents=True, exist_ok=True)
    record = path / 'config.json'
    new = flatten(config)
    if record.exists():
        old = read_json(record).get('config', {})
        changed = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
        changed = [k for k in changed if k not in _FREE]
        _refuse(path, changed, old, new)
        if changed:
            _remove_scores(path)
    write_text(record, json.dumps({'config': new, **_environment()}, indent=2) + '\n')


def _refuse(path: Path, changed: list[str], old: dict, new: dict) -> None:
    for stage, folder in _OUTPUTS.items():
        made = [k for k in changed if k.split('.')[0] in _GROUPS[stage]]
        if made and (path / folder).exists():
            key = made[0]
            raise ConfigError(
                f'{path / folder} was made with {key}={old.get(key)!r}, now it is '
                f'{new.get(key)!r}: choose another --workdir or delete that folder'
            )


def _remove_scores(path: Path) -> None:
    for name in ('metrics.json', 'report.html'):
        (path / name).unlink(missing_ok=True)
    for folder in ('boxes', 'figures'):
        for file in (path / folder).glob('*.*'):
            file.unlink()


def _environment() -> dict[str, Any]:
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


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or none: under a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    temporary.write_text(text, encoding='utf-8')
    temporary.replace(path)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    with temporary.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    temporary.replace(path)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file as dictionaries; [] if there is none."""
    if not path.exists():
        return []
    with path.open(newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ConfigError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ConfigError(f'{path} is not valid JSON ({error}); delete it and run again') from None


class ProgressLog:
    """Appends rows to progress.csv: what was done, and how fast."""

    COLUMNS = ('stage', 'split', 'step', 'loss', 'accuracy', 'images_per_second')

    def __init__(self, workdir: Path):
        self._path = workdir / 'progress.csv'
        self._clock = time.perf_counter()

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

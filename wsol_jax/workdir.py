"""The working directory: what lies where, who works there, what a changed config invalidates."""

import csv
import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from absl import logging

from wsol_jax import __version__
from wsol_jax.data.files import MARKER
from wsol_jax.fields import ConfigError, Kept, flatten
from wsol_jax.settings import Config, invalidates

_ORIGIN = 'made_from.json'  # beside a result
# Kind of result: its folders, and what is in one once an epoch or a batch is done.
_RESULTS: dict[Kept, tuple[str, str]] = {
    'checkpoints': ('checkpoints', '*/[0-9]*'),
    'maps': ('maps/*', 'status/[0-9]*'),
}
_WAYS_OUT = 'choose another --workdir or delete that folder'
_PACKAGES = (
    'jax',
    'jaxlib',
    'flax',
    'optax',
    'orbax-checkpoint',
    'numpy',
    'opencv-python-headless',
)
_UNFINISHED = re.compile(r'\..+\.\d+')  # the temporary names of `written_whole`
# What a spreadsheet takes for a formula, also behind apostrophes: those of the text stay apart.
_FORMULA = re.compile(r"'*[=+\-@\s\uff1d\uff0b\uff0d\uff20]")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Makes the workdir and keeps it for this process; everybody else is refused meanwhile.

    The lock is flock's, which the system gives back when the process ends, however it ends. On NFS
    it holds between machines (Linux makes it a lock of the server), unless the mount says
    `nolock` or `local_lock`; then it holds on each machine alone.

    Args:
        path: of the workdir.

    Raises:
        ConfigError: the folder cannot be made, or another process works there; names that one.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        marker = os.open(path / MARKER, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise ConfigError(f'workdir {path}: cannot make this folder: {error.strerror}') from None
    with os.fdopen(marker, 'r+', encoding='utf-8') as file:
        _lock(path, file)
        file.truncate(0)
        file.write(json.dumps(_this_process()) + '\n')
        file.flush()
        _remove_unfinished(path)
        yield


def _remove_unfinished(path: Path) -> None:
    """Removes what killed processes were writing: under the lock there is nobody else."""
    flat = ('.', 'boxes', 'figures', 'checkpoints', 'maps/*')
    for folder in (*flat, 'label_maps/**', 'maps/*/label_maps/**'):
        for file in path.glob(f'{folder}/.*'):
            if _UNFINISHED.fullmatch(file.name) and file.is_file():
                file.unlink(missing_ok=True)


def _lock(path: Path, file: IO[str]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            logging.warning('%s: no locks on this file system; run one job at a time', path)
            return
        raise ConfigError(
            f'workdir {path} is in use by {_owner(file.read())}: wait for it, or choose another'
        ) from None


def _owner(text: str) -> str:
    try:
        owner = json.loads(text)
        where = f'process {owner["pid"]} on {owner["host"]} since {owner["since"]}'
        return f'{where} ({owner["command"]})'
    except (ValueError, KeyError, TypeError):
        return 'another process, which has just started'


def _this_process() -> dict[str, Any]:
    return {
        'pid': os.getpid(),
        'host': socket.gethostname(),
        'since': time.strftime('%Y-%m-%d %H:%M:%S'),
        'command': shlex.join(sys.argv),
    }


def open_workdir(path: Path, config: Config) -> None:
    """Creates the folder and records the config in config.json.

    A workdir made with another config goes on only where nothing already computed depends on the
    difference. Scores, boxes and pages of another config are removed; they are made anew.

    Raises:
        ConfigError: checkpoints or maps there were made with other settings or from weights files
            of other contents; names what differs.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f'workdir {path}: cannot make this folder: {error.strerror}') from None
    record = path / 'config.json'
    new = {'config': flatten(config), 'contents': _contents(config)}
    old = _recorded(record) if record.exists() else None
    for kind, (folders, _) in _RESULTS.items():
        for folder in sorted(path.glob(folders)):
            _check_result(path, kind, folder, old, new)
    if old is None or _changed(old, new, 'scores'):
        remove_scores(path)
    run = {'run': (old or {}).get('run') or uuid.uuid4().hex}
    write_text(record, json.dumps(new | run | environment(), indent=2) + '\n')


def run_id(path: Path) -> str:
    """What tells the run of a workdir, which `open_workdir` has opened, from all others."""
    return str(read_json(path / 'config.json')['run'])


def check_same(path: Path, config: Config) -> None:
    """Checks that this process of a run was started with the settings that the first recorded.

    Raises:
        ConfigError: it has others.
    """
    record = path / 'config.json'
    one = _recorded(record)['config']
    other = json.loads(json.dumps(flatten(config)))
    if keys := [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]:
        key = min(keys)
        raise ConfigError(
            f'{record}: the first process has {key}={one.get(key)!r}, this one '
            f'{other.get(key)!r}: start all with the same arguments'
        )


def _recorded(record: Path) -> dict[str, Any]:
    """What config.json, or the file beside a result, tells of a config."""
    old = read_json(record)
    contents = old.get('contents', {})
    if not isinstance(old.get('config'), dict) or not isinstance(contents, dict):
        raise ConfigError(f'{record} records no config; delete it and run again')
    # Older versions had fewer settings, and did not turn images.
    turned = old['config'].get('data.source') in ('class_folder', 'image_folder')
    before = flatten(Config()) | ({'data.orientation': 'stored'} if turned else {})
    return {**old, 'config': before | old['config'], 'contents': contents}


def _changed(old: Mapping[str, Any], new: Mapping[str, Any], kind: Kept) -> list[str]:
    """What a kind of result depends on: settings that differ, or name a file of other contents."""
    one, other = old['config'], new['config']
    keys = {k for k in one.keys() | other.keys() if one.get(k) != other.get(k)}
    before, now = old['contents'], new['contents']
    keys |= {k for k in before.keys() & now.keys() if before[k] != now[k]}
    return sorted(k for k in keys if invalidates(k, kind))


def _check_result(
    path: Path, kind: Kept, folder: Path, old: dict[str, Any] | None, new: dict[str, Any]
) -> None:
    """Refuses a result that was made from something else; removes one that is only prepared."""
    made = _recorded(folder / _ORIGIN) if (folder / _ORIGIN).exists() else old
    keys = [] if made is None else _changed(made, new, kind)
    if made is not None and not keys:
        return
    if not any(folder.glob(_RESULTS[kind][1])):
        shutil.rmtree(folder, ignore_errors=True)  # prepared, but nothing came of it
    elif made is None:
        raise ConfigError(
            f'{path / kind}: config.json, which told what it was made with, is gone: {_WAYS_OUT}'
        )
    else:
        raise ConfigError(f'{path / kind} was made {_difference(keys[0], made, new)}: {_WAYS_OUT}')


def _difference(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    before, now = old['config'].get(key), new['config'].get(key)
    if before != now:
        return f'with {key}={before!r}, now it is {now!r}'
    digests = f'SHA-256 {old["contents"][key][:12]}, now {new["contents"][key][:12]}'
    return f'with other contents of {key}={now!r} ({digests})'


def record_origin(workdir: Path, folder: Path, network: str = '') -> None:
    """Records beside a result what it is made from: its settings and files, as in config.json.

    Args:
        workdir: that `open_workdir` has opened; without its config.json nothing is recorded.
        folder: of the result.
        network: what tells the network that it is made with from others.

    Raises:
        ConfigError: the result that is there was made with another network.
    """
    file, record = folder / _ORIGIN, workdir / 'config.json'
    made = read_json(file).get('network') if file.exists() else network
    if made != network:
        raise ConfigError(
            f'{folder} was made with another network ({made}, now {network}): delete that folder'
        )
    if not file.exists() and record.exists():
        origin = {name: read_json(record)[name] for name in ('config', 'contents')}
        write_text(file, json.dumps(origin | {'network': network}, indent=2) + '\n')


def remove_scores(path: Path) -> None:
    """Removes scores, boxes, label maps and pages of a workdir, which are made anew."""
    for name in ('metrics.json', 'curves.csv', 'report.html'):
        (path / name).unlink(missing_ok=True)
    for folder in ('boxes', 'figures'):
        for file in (path / folder).glob('*.*'):
            file.unlink()
    shutil.rmtree(path / 'label_maps', ignore_errors=True)


def _contents(config: Config) -> dict[str, str]:
    """SHA-256 of what training or localization starts from, by setting, where it is there."""
    from wsol_jax.models import cached_weights  # here, as JAX

    starts = {'network.weights': config.network.weights, 'train.init_from': config.train.init_from}
    found = {key: cached_weights(name) for key, name in starts.items() if name}
    return {key: _digest(path) for key, path in found.items() if path}


def _digest(path: Path) -> str:
    """SHA-256 of a file; of another workdir that of the checkpoint that is started from."""
    if path.is_file():
        return _sha256(path)
    files = sorted(p for p in _newest(path).rglob('*') if p.is_file())
    return hashlib.sha256(''.join(map(_sha256, files)).encode()).hexdigest()


def _newest(workdir: Path) -> Path:
    for kind in (_kept(workdir), 'best', 'last'):
        steps = [p for p in workdir.glob(f'checkpoints/{kind}/*') if p.name.isdecimal()]
        if steps:
            return max(steps, key=lambda p: int(p.name))
    return workdir / 'checkpoints'


def _kept(workdir: Path) -> str:
    """The kind of checkpoint that a training says it is to be opened at."""
    records = [workdir / 'checkpoints' / _ORIGIN, workdir / 'config.json']
    made = (read_json(file).get('config') for file in records if file.exists())
    config: Any = next(made, {})
    return config.get('train.keep', '') if isinstance(config, dict) else ''


def _sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def environment() -> dict[str, Any]:
    """What results were made with: versions of packages, devices, git revision."""
    import jax  # here: counting processes write files of results without it

    return {
        'versions': {'wsol_jax': __version__} | {n: metadata.version(n) for n in _PACKAGES},
        'python': platform.python_version(),
        'devices': [str(d) for d in jax.devices()],
        'git': _git_revision(),
    }


def _git_revision() -> str:
    # `describe --dirty` takes a lock: commits beside it fail, and a killed run leaves it behind.
    if not _git('ls-files', Path(__file__).name):
        return ''  # installed, may be in a checkout of something else
    revision = _git('describe', '--always', '--abbrev=12')
    changed = revision and _git('status', '--porcelain', '--untracked-files=no')
    return f'{revision}-dirty' if changed else revision


def _git(*arguments: str) -> str:
    command = ['git', '--no-optional-locks', '-C', str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ''


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """The temporary name to write a file under; it is renamed to `path` when all went well.

    Raises:
        OSError: it cannot be written, or `path` is a link, a folder or a device: renaming would
            put a file in its place.
    """
    check_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:  # it would name the temporary file, or none
        raise OSError(f'{path}: cannot be written: {error.strerror or error}') from None
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Checks before the work that a file can be written there.

    Raises:
        OSError: `path` is no plain file, or no folder for it can be made or written to.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        kind = 'link' if path.is_symlink() else 'folder' if path.is_dir() else 'device or a pipe'
        raise OSError(f'{path}: is a {kind}; name a plain file, or one that is not there yet')
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise OSError(f'{path}: {folder} is no folder that can be written to')


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


def write_class_names(path: Path, names: Sequence[str]) -> None:
    """Notes what a classifier calls its classes, in the order of its logits."""
    write_text(path, json.dumps({'class_names': list(names)}) + '\n')


def read_class_names(path: Path) -> tuple[str, ...] | None:
    """What `write_class_names` noted; () without the file, None where it holds no list.

    Raises:
        ConfigError: see `read_json`.
    """
    names = read_json(path).get('class_names') if path.exists() else []
    return tuple(map(str, names)) if isinstance(names, list) else None

"""From a photo to pictures of its maps: what a user writes and waits for, here and in torch.

Both scripts draw the same maps of the same weights, each in a process of its own: three methods at
a layer, four layers, two classes. Boxes and the shape of the pictures come with ours alone.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from matplotlib import cbook

from experiments.benchmark.libraries import python_of
from experiments.benchmark.turns import Row, rows, take_turns
from wsol_jax.config import ConfigError

MOMENTS = ('imports', 'methods', 'layers', 'classes')  # each script prints what it has done
_THEIRS, _OURS = 'pytorch-grad-cam', 'wsol_jax'
_WEIGHTS = 'weights/squeezenet1_1.safetensors'


def section(repeats: int, venv: str) -> Iterator[Row]:
    """Rows of the imports, of the first and the last picture, and of the lines of code.

    Raises:
        ConfigError: there are no weights.
    """
    weights = Path(os.environ.get('WSOL_DATA', 'data')) / _WEIGHTS
    if not weights.exists():
        raise ConfigError(f'{weights}: not there; set WSOL_DATA to the folder with the weights')
    here = Path(__file__).parent
    scripts = {_THEIRS: here / 'photo_grad_cam.py', _OURS: here / 'photo_wsol_jax.py'}
    pythons = {_THEIRS: python_of(venv), _OURS: sys.executable}
    yield from against(scripts, pythons, weights, repeats)


def against(
    scripts: dict[str, Path], pythons: dict[str, str], weights: Path, repeats: int
) -> Iterator[Row]:
    """Rows of scripts, that take turns; the ratios are to the first.

    Args:
        scripts: by what they use.
        pythons: that run them.
        weights: a file.
        repeats: turns that are counted; one goes before them.
    """
    first = next(iter(scripts))
    cases = {n: partial(moments, [pythons[n], script], weights) for n, script in scripts.items()}
    turns = take_turns(cases, repeats)
    for i, which in enumerate(('imports', 'first picture', 'last picture')):
        seconds = {name: found[:, i] for name, found in turns.items()}
        yield from rows(seconds, first, 's', where=f'{which}: ')
    for name, script in scripts.items():
        yield Row(f'code: {name}', lines_of(script), 'lines')


def moments(command: list[str | Path], weights: Path) -> list[float]:
    """Seconds from the start of a process to its imports, first picture and last picture.

    Raises:
        ConfigError: it ended before that.
    """
    photo = cbook.get_sample_data('grace_hopper.jpg', asfileobj=False)
    start, found = time.perf_counter(), []
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [*command, photo, weights, folder], stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        for line in process.stdout:
            if line.strip() in MOMENTS:
                found.append(time.perf_counter() - start)
    if process.returncode or len(found) != len(MOMENTS):
        raise ConfigError(f'{command[-1]}: ended with {process.returncode} before its last picture')
    return [*found[:2], found[-1]]


def lines_of(script: Path) -> int:
    """How many lines of it are neither empty nor docstring."""
    lines = script.read_text('utf-8').splitlines()
    return sum(bool(line.strip()) and not line.lstrip().startswith('"""') for line in lines)

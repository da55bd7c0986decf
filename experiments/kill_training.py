"""Kills a training again and again, resumes it, and compares it with one that nobody disturbed.

    python -m experiments.kill_training --workdir DIR [--kills 10] [--seed 0]

Trains a tiny ResNet on generated shapes with `python -m wsol_jax.main`, once to the end in
DIR/whole, and once in DIR/killed with SIGKILL at random moments after its first step. Then compares
everything in both folders of checkpoints, weights, batch statistics, moving average, optimizer and
step, bit for bit. Prints the verdict; the exit code is 1 if anything differs.
"""

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags, logging

from wsol_jax.workdir import read_csv

_KILLS = flags.DEFINE_integer('kills', 10, 'How often the training is killed.', lower_bound=1)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the moments of the kills.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where to train.', required=True)
_ROOT = Path(__file__).parent.parent
_OPTIONS = (
    '--config=configs/shapes_resnet.py',
    '--config.stages=("train",)',
    '--config.data.shapes_size=32',
    '--config.data.shapes_counts=(240,32,32)',
    '--config.network.input_size=32',
    '--config.network.options.width=4',
    '--config.augment.jitter=0.2',
    '--config.train.batch_size=16',
    '--config.train.epochs=20',
    '--config.train.ema=0.9',
    '--config.train.log_every=1',
    '--config.train.checkpoint_every=4',
)


def start(workdir: Path) -> subprocess.Popen:
    """Starts the training, or goes on with it."""
    command = [sys.executable, '-m', 'wsol_jax.main', *_OPTIONS, f'--workdir={workdir}']
    return subprocess.Popen(command, cwd=_ROOT)


def finish(workdir: Path) -> None:
    """Trains to the end."""
    if start(workdir).wait():
        sys.exit(f'error: the training in {workdir} failed')


def last_step(workdir: Path) -> int:
    """The last step that progress.csv tells of."""
    return max((int(row['step']) for row in read_csv(workdir / 'progress.csv')), default=0)


def checkpoint(workdir: Path, kind: str = 'last') -> Path | None:
    """The newest finished checkpoint."""
    found = (workdir / 'checkpoints' / kind).glob('[0-9]*')
    return max((p for p in found if p.name.isdecimal()), key=lambda p: int(p.name), default=None)


def kill_after_first_step(workdir: Path, seconds: float) -> bool:
    """Goes on with the training and kills it some seconds after its first new step.

    Returns:
        Whether it was still there to be killed.
    """
    resumed = checkpoint(workdir)
    first = int(resumed.name) if resumed else 0
    process = start(workdir)
    _wait_for_step(process, workdir, first)
    time.sleep(seconds)
    if process.poll() is not None:
        print(f'from step {first}: came to its end before the kill', flush=True)
        return False
    process.kill()
    process.wait()
    newest = checkpoint(workdir)
    print(
        f'from step {first}: killed {seconds:.2f} s after its first step, at step '
        f'{last_step(workdir)}; the checkpoint is of step {newest.name if newest else 0}',
        flush=True,
    )
    return True


def _wait_for_step(process: subprocess.Popen, workdir: Path, first: int) -> None:
    """Waits for a step after the first ones; a run that goes on drops the rows beyond them."""
    dropped = False
    while process.poll() is None and not (dropped and last_step(workdir) > first):
        dropped |= last_step(workdir) <= first
        time.sleep(0.01)


def differences(one: Path, other: Path) -> list[str]:
    """What differs between the final checkpoints of two workdirs; [] if not one bit does."""
    found = []
    for kind in ('last', 'best'):
        a, b = (_arrays(checkpoint(workdir, kind)) for workdir in (one, other))
        found += [f'{kind}: {name} is in one of them alone' for name in sorted(a.keys() ^ b.keys())]
        found += [f'{kind}: {name}' for name in sorted(a.keys() & b.keys()) if a[name] != b[name]]
        print(f'{kind}: {len(a)} arrays in {len({n.split(":")[0] for n in a})} parts compared')
    return found


def _arrays(folder: Path | None) -> dict[str, tuple]:
    """{'params: conv1.conv.kernel.value': (dtype, shape, bytes)} and the step of a checkpoint."""
    if folder is None:
        return {}
    arrays: dict[str, tuple] = {'step: in the name': (folder.name,)}
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        tree = ocp.StandardCheckpointer().restore(part.absolute())
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            value = np.asarray(leaf)
            key = f'{part.name}: {jax.tree_util.keystr(path, simple=True)}'
            arrays[key] = (value.dtype, value.shape, value.tobytes())
    return arrays


def main(_: Sequence[str]) -> None:
    """Runs both trainings and compares them."""
    logging.set_verbosity(logging.WARNING)
    folder = Path(_WORKDIR.value).absolute()
    for name in ('whole', 'killed'):
        shutil.rmtree(folder / name, ignore_errors=True)
    before = time.perf_counter()
    finish(folder / 'whole')
    seconds = time.perf_counter() - before
    print(f'undisturbed: {last_step(folder / "whole")} steps, {seconds:.0f} s', flush=True)
    rng = random.Random(_SEED.value)
    # As short as to leave steps for the last kill.
    pauses = [rng.uniform(0, seconds / _KILLS.value) for _ in range(_KILLS.value)]
    kills = sum(kill_after_first_step(folder / 'killed', pause) for pause in pauses)
    finish(folder / 'killed')
    found = differences(folder / 'whole', folder / 'killed')
    for line in found:
        print(f'differs: {line}')
    print('DIFFERENT' if found else f'equal, bit for bit, after {kills} kills')
    sys.exit(bool(found))


if __name__ == '__main__':
    app.run(main)

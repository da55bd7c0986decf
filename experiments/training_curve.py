"""Localization against training time: maps of the weights after every epoch of a training.

    python -m experiments.training_curve --config configs/cub30_mobilenet_v1.py --workdir DIR

Trains in DIR/run as the command does (a training that is there goes on), keeps the weights of every
`--every`-th epoch in DIR/epoch_K, then localizes and scores val with each. The table and the figure
(DIR/training_curve.csv and .png) show top-1 and, for each method, MaxBoxAcc at its best layer: both
on val, so the layer and the threshold are oracles; what counts is how they move.
"""

import dataclasses
import shutil
import sys
import time
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import matplotlib.pyplot as plt
from absl import flags, logging

from wsol_jax.command_line import CONFIG, WORKDIR, run_command
from wsol_jax.config import Config, read_config
from wsol_jax.data import steps_per_epoch
from wsol_jax.run import open_split, run
from wsol_jax.workdir import read_json, write_csv

EVERY = flags.DEFINE_integer('every', 1, 'Epochs between two points of the curve.', 1)


def keep_epochs(process: BaseProcess, folder: Path, epoch_steps: int) -> None:
    """Copies every checkpoint at the end of an epoch while the training runs."""
    last = folder / 'run' / 'checkpoints' / 'last'
    while True:
        ended = not process.is_alive()
        for path in last.glob('[0-9]*'):
            # Beside it lies what orbax is still writing, under longer names.
            epoch, rest = divmod(int(path.name), epoch_steps) if path.name.isdecimal() else (0, 1)
            if not rest and epoch % EVERY.value == 0:
                keep(path, folder / f'epoch_{epoch}' / 'checkpoints' / 'last' / path.name)
        if ended:
            return
        time.sleep(1)


def keep(checkpoint: Path, kept: Path) -> None:
    """Copies a checkpoint, whole or not at all: the training may remove it at any moment."""
    if kept.exists():
        return
    part = kept.with_name('part')
    try:
        shutil.copytree(checkpoint, part, dirs_exist_ok=True)
        part.rename(kept)
    except (FileNotFoundError, shutil.Error):
        shutil.rmtree(kept.parent.parent.parent)


def score(config: Config, epoch: int, folder: Path) -> dict[str, float]:
    """{'top1': ..., method: MaxBoxAcc (or PxAP) at its best layer} on val, in percent."""
    changed = {'epochs': epoch, 'keep': 'last'}
    config = dataclasses.replace(
        config,
        stages=('localize', 'evaluate'),
        train=dataclasses.replace(config.train, **changed),
        localize=dataclasses.replace(config.localize, splits=('val',)),
    )
    run(config, folder)
    metrics = read_json(folder / 'metrics.json')
    scores = {'top1': metrics['classification']['top1']}
    for row in metrics['localization']:
        value = row.get('MaxBoxAcc', row.get('PxAP'))
        scores[row['method']] = max(value, scores.get(row['method'], 0.0))
    return scores


def plot(epochs: Sequence[int], scores: Sequence[dict[str, float]], file: Path) -> None:
    """A line for each score over the epochs."""
    figure, axes = plt.subplots(figsize=(6, 4), layout='constrained')
    for name in scores[0]:
        style = {'color': 'grey', 'linestyle': '--'} if name == 'top1' else {'marker': 'o'}
        axes.plot(epochs, [s[name] for s in scores], label=name, **style)
    axes.set(xlabel='epoch', ylabel='%', ylim=(0, 100), title='val: best layer and threshold')
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)


def _main(arguments: Sequence[str]) -> None:
    del arguments
    logging.set_verbosity(logging.WARNING)
    config, folder = read_config(CONFIG.value), Path(WORKDIR.value)
    training = dataclasses.replace(config, stages=('train',))
    # Of its own: copying must not wait for a step.
    process = get_context('spawn').Process(target=run, args=(training, folder / 'run'))
    process.start()
    images = len(open_split(config, 'train'))
    keep_epochs(process, folder, steps_per_epoch(images, config.train.batch_size))
    if process.exitcode:
        sys.exit(process.exitcode)
    every = range(EVERY.value, config.train.epochs + 1, EVERY.value)
    if missed := [e for e in every if not (folder / f'epoch_{e}').exists()]:
        print(f'epochs {missed} were too short to be kept')
    epochs = sorted(int(p.name.removeprefix('epoch_')) for p in folder.glob('epoch_*'))
    scores = [score(config, epoch, folder / f'epoch_{epoch}') for epoch in epochs]
    rows = [[e, *(f'{v:.1f}' for v in s.values())] for e, s in zip(epochs, scores, strict=True)]
    write_csv(folder / 'training_curve.csv', ['epoch', *scores[0]], rows)
    plot(epochs, scores, folder / 'training_curve.png')
    print((folder / 'training_curve.csv').read_text())


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdir'])
    run_command(_main)

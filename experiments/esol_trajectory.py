r"""What ESOL's two stages do to its map: recall and precision of the pixels, epoch by epoch.

    python -m experiments.esol_trajectory --workdir DIR --config configs/shapes_resnet.py \
        --config.data.source=scenes --config.train.loss=sigmoid [--epochs 4] [--rate 0.001]

Trains the classifier of the config in DIR/plain, then stage 1 and stage 2 in DIR/expansion and
DIR/shrinkage, each for some epochs with AdamW at a rate; what is done already is not done again.
After each epoch the maps of the classes of each image of val, divided by their maxima and resized
to the image, are compared with its true label map: a pixel is found where a map is at least 0.3,
all pixels of all images count together. Beside it the best IoU at any threshold of 0.05, 0.1 ...
0.95, an oracle. The first row is CAM of the plain network. Prints the table and writes it with a
figure to DIR/esol_trajectory.md and .png.

The paper claims that recall rises in the expansion, and precision in the shrinkage. With

    --config.data.shapes_size=64 --config.network.input_size=64 --config.network.options.width=8 \
    --config.data.shapes_counts='(400,80,30)' --config.train.epochs=7

it is not so (one seed): recall falls from 88.2 of CAM to 44.6 in the expansion and comes back to
65.1 in the shrinkage; precision goes from 36.8 to 28.9 and 27.2, the best IoU from 44.2 to 21.5 and
24.3.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from absl import flags, logging
from matplotlib.figure import Figure

from wsol_jax.command_line import CONFIG, WORKDIR, run_command
from wsol_jax.config import Config, flatten, read_config
from wsol_jax.data import Labels, Source, evaluation_batches
from wsol_jax.localization.localize import localize
from wsol_jax.models import Network
from wsol_jax.report.table import markdown
from wsol_jax.run import load_classifier, open_splits
from wsol_jax.segmentation import true_label_map
from wsol_jax.training.loop import train
from wsol_jax.workdir import read_csv, write_text

_EPOCHS = flags.DEFINE_integer('epochs', 4, 'Of each stage.', lower_bound=1)
_RATE = flags.DEFINE_float('rate', 0.001, 'Learning rate of both stages.', lower_bound=0)

THRESHOLDS = np.arange(1, 20) / 20
_AT = 5  # the place of 0.3 among them
_STAGES = ('expansion', 'shrinkage')
_NAMES = ('recall', 'precision', 'IoU')


def counts(maps: np.ndarray, labels: Sequence[int], truth: np.ndarray) -> np.ndarray:
    """Pixels of one image at each threshold, int64 [3,T]: found rightly, found, true.

    Args:
        maps: [K,h,w], from 0, of the classes of the image.
        labels: [K].
        truth: its label map, [H,W].
    """
    found = np.zeros((3, len(THRESHOLDS)), np.int64)
    for values, label in zip(maps, labels, strict=True):
        scaled = cv2.resize(values / max(values.max(), 1e-12), truth.shape[::-1])
        above = scaled[None] >= THRESHOLDS[:, None, None]
        own = truth == label + 1
        found += [(above & own).sum((1, 2)), above.sum((1, 2)), np.full(len(above), own.sum())]
    return found


def scores(right: np.ndarray, found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Of pixels [T] of a data set, in percent: recall and precision at 0.3, the best IoU."""
    recall, precision = right / np.maximum(true, 1), right / np.maximum(found, 1)
    best = np.max(right / np.maximum(true + found - right, 1))
    values = (recall[_AT], precision[_AT], best)
    return {name: 100 * float(value) for name, value in zip(_NAMES, values, strict=True)}


def map_scores(
    method: str, batch: int, config: Config, trained: Network, source: Source
) -> Callable[[Network], Mapping[str, float]]:
    """Network -> `scores` of the maps of a method on a source; see `EpochScores`."""
    size = config.network.input_size or trained.input_size
    labels = Labels(source.most_labels)

    def score(network: Network) -> Mapping[str, float]:
        total = np.zeros((3, len(THRESHOLDS)), np.int64)
        for part in evaluation_batches(source, size, batch, targets=labels):
            classes = np.maximum(part.targets['labels'], 0)
            maps = localize(network, part.images, (method,), classes=classes, resize=False).maps
            (found,) = maps.values()
            for own, position in zip(np.asarray(found), part.index[: part.real], strict=False):
                record = source[int(position)]
                kept = np.maximum(own[: len(record.labels)], 0)
                total += counts(kept, record.labels, true_label_map(record))
        return scores(*total)

    return score


def stage_config(config: Config, stage: int, start: Path) -> Config:
    """The training of a stage from the workdir of the one before; its last epoch is kept."""
    options = {**config.train.options, 'stage': stage}
    setting = {'method': 'esol', 'options': options, 'init_from': str(start), 'keep': 'last'}
    rate = {'optimizer': 'adamw', 'learning_rate': _RATE.value, 'epochs': _EPOCHS.value}
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **setting, **rate))


def trained(config: Config, sources: tuple[Source, Source], workdir: Path, batch: int) -> None:
    """Trains in a workdir, and notes the scores of the map after each epoch."""
    workdir.mkdir(parents=True, exist_ok=True)
    noted = {'config': flatten(config), 'contents': {}}  # by which the next stage starts from it
    write_text(workdir / 'config.json', json.dumps(noted))
    if not config.train.method:
        train(config, *sources, workdir)
        return
    looked_at = dataclasses.replace(config.train, keep='best_localization')
    config = dataclasses.replace(config, train=looked_at)
    train(config, *sources, workdir, None, partial(map_scores, 'esol', batch))


def trajectory(workdir: Path) -> list[tuple[float, ...]]:
    """The scores after each epoch of the training in a workdir."""
    rows = [r for r in read_csv(workdir / 'progress.csv') if r['split'] == 'val']
    return [tuple(float(row[name]) for name in _NAMES) for row in rows if row['stage'] == 'train']


def table(cam: Sequence[float], stages: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Markdown: a row for CAM, and one for each epoch of {stage: scores}."""
    lines = [['map', 'epoch', *_NAMES[:2], 'IoU*'], ['cam', '', *map('{:.1f}'.format, cam)]]
    for name, epochs in stages.items():
        for number, values in enumerate(epochs, 1):
            lines.append([name, str(number), *map('{:.1f}'.format, values)])
    return '\n\n'.join([markdown(lines), _NOTE])


_NOTE = (
    'Percent of the pixels of val, at 0.3 of the maximum of each map. * best threshold on this '
    'split (an oracle).'
)


def plot(cam: Sequence[float], stages: Mapping[str, Sequence[Sequence[float]]], file: Path) -> None:
    """Recall, precision and IoU over the epochs of both stages, CAM at 0."""
    values = np.array([cam, *(row for epochs in stages.values() for row in epochs)])
    figure = Figure(figsize=(7, 3.4), layout='constrained')
    axes = figure.subplots()
    for name, line in zip((*_NAMES[:2], 'IoU at the best threshold'), values.T, strict=True):
        axes.plot(line, marker='o', markersize=3, label=name)
    axes.axvline(len(stages['expansion']) + 0.5, color='#999999', linewidth=1)
    axes.set(xlabel='epochs of expansion, then of shrinkage; CAM at 0', ylabel='%', ylim=(0, 100))
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


def main(_: Sequence[str]) -> None:
    """Trains what is missing, prints the table and writes it with the figure."""
    logging.set_verbosity(logging.WARNING)
    config, folder = read_config(CONFIG.value), Path(WORKDIR.value)
    splits, batch = open_splits(config), config.localize.batch_size
    sources = splits('train'), splits('val')
    trained(config, sources, folder / 'plain', batch)
    plain = load_classifier(config, folder / 'plain')
    cam = tuple(map_scores('cam', batch, config, plain, sources[1])(plain).values())
    before = folder / 'plain'
    for number, name in enumerate(_STAGES, 1):
        trained(stage_config(config, number, before), sources, folder / name, batch)
        before = folder / name
    found = {name: trajectory(folder / name) for name in _STAGES}
    text = table(cam, found)
    write_text(folder / 'esol_trajectory.md', text + '\n')
    plot(cam, found, folder / 'esol_trajectory.png')
    print(text)


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdir'])
    run_command(main)

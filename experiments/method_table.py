"""Every method that needs no training, at every endpoint of one classifier.

    WSOL_DATA=DATA python -m experiments.method_table --workdir DIR \
        --config configs/imagenette_mobilenet_v1.py [--heavy 12 --heavy_layers pw_11]

Layer and threshold are chosen on val and applied to test, for each method. All methods but those
that pay a forward pass for every channel come from one pass over the images; Score- and
Ablation-CAM are computed on a few images and layers only, SS- and IS-CAM, 35 and 10 times as slow,
on even fewer (`--slowest`). Prints the table and writes DIR/method_table.md and .png; a second run
goes on where the first one stopped.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from matplotlib.figure import Figure

from wsol_jax.command_line import CONFIG, WORKDIR, run_command
from wsol_jax.config import Config, read_config
from wsol_jax.data import Record, Source, evaluation_batches, evenly_spaced
from wsol_jax.evaluation.stage import evaluate
from wsol_jax.localization.localize import compute_maps
from wsol_jax.localization.methods import METHODS
from wsol_jax.localization.plan import make_plan
from wsol_jax.localization.stage import localize_split
from wsol_jax.models import Network
from wsol_jax.report.table import heading, markdown
from wsol_jax.run import load_classifier, open_splits
from wsol_jax.workdir import locked, open_workdir, read_json, write_text

_HEAVY = flags.DEFINE_integer('heavy', 12, 'Images of each split for Score- and Ablation-CAM.')
_SLOWEST = flags.DEFINE_integer('slowest', 0, 'Images of each split for SS- and IS-CAM.')
_HEAVY_LAYERS = flags.DEFINE_list('heavy_layers', [], 'Layers for all four; the last by default.')
_FAITHFUL = flags.DEFINE_integer('faithful', 50, 'Test images for the scores of faithfulness.')
_BATCH = 8  # of the timings

HEAVY, SLOWEST = ('score_cam', 'ablation_cam'), ('ss_cam', 'is_cam')
_SCORES = ('GTKnownLoc', 'MaxBoxAccV2', 'AverageDrop', 'Increase', 'Insertion', 'Deletion', 'ROAD')
_COLOURS = ('#0072B2', '#999999')


class Every:
    """Evenly spaced records of a source."""

    def __init__(self, source: Source, count: int):
        self._source = source
        self._positions = evenly_spaced(np.arange(len(source)), count)
        self.num_classes = source.num_classes
        self.class_name = source.class_name

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Record:
        return self._source[int(self._positions[index])]


def rows_of(
    config: Config, network: Network, sources: dict[str, Source], folder: Path
) -> list[dict[str, Any]]:
    """What metrics.json says of every method at its chosen layer on test.

    Args:
        config: with the methods and layers.
        network: the classifier.
        sources: val and test.
        folder: where maps and scores go, and where they are taken up again.
    """
    metrics = folder / 'metrics.json'
    with locked(folder):
        open_workdir(folder, config)
        if not metrics.exists():
            for split, source in sources.items():
                localize_split(config, network, source, split, folder)
            evaluate(config, sources, folder, network)
    rows = read_json(metrics)['localization']
    return [row for row in rows if row['split'] == 'test' and row.get('chosen')]


def milliseconds(config: Config, network: Network, source: Source, row: dict[str, Any]) -> float:
    """Median time of one image for one method alone at one layer, compilation left out."""
    size = config.network.input_size or network.input_size
    images = next(evaluation_batches(source, size, _BATCH)).images
    layers = None if row['layer'] not in network.endpoints() else (row['layer'],)
    plan = make_plan(network, (row['method'],), layers)
    program = (network.apply, network.preprocessing, plan, network.state, jax.device_put(images))

    def seconds() -> float:
        start = time.perf_counter()
        jax.block_until_ready(compute_maps(*program, 1))
        return time.perf_counter() - start

    seconds()
    return 1000 * float(np.median([seconds() for _ in range(3)])) / len(images)


def table(title: str, rows: Sequence[dict[str, Any]]) -> str:
    """The table, in Markdown."""
    lines = [['method', 'layer', *map(heading, _SCORES), 'ms/image', 'images']]
    for row in rows:
        scores = [f'{row[name]:.1f}' for name in _SCORES]
        lines.append([row['method'], row['layer'], *scores, f'{row["ms"]:.0f}', str(row['images'])])
    return '\n\n'.join([title, markdown(lines), _note(rows)])


def _note(rows: Sequence[dict[str, Any]]) -> str:
    images = max(row['images'] for row in rows)
    return (
        'Percent on test; layer and threshold chosen on val for each method. * best threshold on '
        f'test (an oracle). Faithfulness on {min(_FAITHFUL.value, images)} test images (or as many '
        f'as the method has). Time: the method alone, batches of {_BATCH}, {_device()}.'
    )


def _device() -> str:
    kind = jax.devices()[0].device_kind
    return kind if kind != 'cpu' else 'CPU'


def plot(title: str, rows: Sequence[dict[str, Any]], file: Path) -> None:
    """GT-known of every method, best first, with standard errors."""
    rows = sorted(rows, key=lambda row: row['GTKnownLoc'])
    shares = [row['GTKnownLoc'] / 100 for row in rows]
    errors = [100 * math.sqrt(p * (1 - p) / r['images']) for p, r in zip(shares, rows, strict=True)]
    most = max(row['images'] for row in rows)
    figure = Figure(figsize=(7, 0.8 + 0.27 * len(rows)), layout='constrained')
    axes = figure.subplots()
    axes.barh(
        [f'{row["method"]} ({row["layer"]})' for row in rows],
        [100 * p for p in shares],
        xerr=errors,
        ecolor='#555555',
        color=[_COLOURS[row['images'] < most] for row in rows],
    )
    axes.set(xlabel='GT-known Loc (%), bars: standard error; grey: on fewer images', xlim=(0, 100))
    axes.set_title(title, fontsize=9)
    axes.spines[['top', 'right']].set_visible(False)
    figure.savefig(file, dpi=150)


def main(_: Sequence[str]) -> None:
    """Runs what is missing, prints the table, writes it and the figure."""
    logging.set_verbosity(logging.WARNING)
    config, folder = read_config(CONFIG.value), Path(WORKDIR.value)
    splits = open_splits(config)
    network = load_classifier(config, folder)
    layers = config.localize.layers or network.layers()
    scored = replace(config, evaluate=replace(config.evaluate, faithfulness=_FAITHFUL.value))

    def rows(name: str, sources: dict[str, Source], **setting: Any) -> list[dict[str, Any]]:
        here = replace(scored, localize=replace(config.localize, **setting))
        return rows_of(here, network, sources, folder / name)

    whole = {split: splits(split) for split in ('val', 'test')}
    light = tuple(name for name in METHODS if name not in HEAVY + SLOWEST)
    found = rows('light', whole, methods=light, layers=layers)
    last = tuple(_HEAVY_LAYERS.value) or layers[-1:]
    for names, images in ((HEAVY, _HEAVY.value), (SLOWEST, _SLOWEST.value)):
        few: dict[str, Source] = {n: Every(s, images) for n, s in whole.items()}
        for name in names if images else ():
            found += rows(name, few, methods=(name,), layers=last)
    timed = partial(milliseconds, config, network, whole['test'])
    found = [row | {'ms': timed(row)} for row in found]
    title = f'{network.name}, {len(whole["test"])} test images, no training'
    text = table(title, found)
    write_text(folder / 'method_table.md', text + '\n')
    plot(title, found, folder / 'method_table.png')
    print(text)


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdir'])
    run_command(main)

"""What the refinement of ORNet does to its maps: their values, and how boxes hang on the threshold.

    WSOL_DATA=DATA python -m experiments.ornet_refinement --config configs/cub30_trained.py:ornet \
        --workdirs DIR1,DIR2 --workdir DIR [--split test]

DIR1 and DIR2 are finished workdirs of stage 1 and stage 2. Prints a table and writes it with a
figure to DIR/ornet_refinement.md and .png: which share of all places of the raw maps lies how near
to 0 and to 1; GT-known Loc against the threshold, by the rules of ORNet on the raw map (the
protocol 'ornet', every 0.05) and by those of wsolevaluation on the scaled one (curves.csv); and how
wide the range of thresholds is that come within 2 and within 5 points of the best one.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from wsol_jax.command_line import CONFIG, WORKDIR, run_command
from wsol_jax.config import read_config
from wsol_jax.data import Source
from wsol_jax.evaluation.protocols import ornet, protocol_right
from wsol_jax.evaluation.split import SplitMaps
from wsol_jax.maps.store import MapStore
from wsol_jax.report.table import markdown
from wsol_jax.run import open_split
from wsol_jax.workdir import read_csv, write_text

_WORKDIRS = flags.DEFINE_list('workdirs', None, 'Workdirs of stage 1 and stage 2.')
_SPLIT = flags.DEFINE_string('split', 'test', 'Whose maps.')
_KEY = ('ornet', 'head')
_CANVAS = (224, 224)
_EDGES = (0.0, 0.1, 0.3, 0.7, 0.9, 1.0)
_THRESHOLDS = tuple(k / 20 for k in range(1, 20))  # those of the authors' code
Curve = tuple[Sequence[float], Sequence[float]]


def raw_curve(split: SplitMaps) -> Curve:
    """GT-known Loc in percent at each threshold on the raw maps, by the protocol 'ornet'."""
    maps = split.rectified(_KEY, split.readable)
    shares = []
    for rules in map(ornet, _THRESHOLDS):
        right = [
            protocol_right(rules, m[None], (), (), None, r.boxes, r.size, _CANVAS)[0]
            for m, r in zip(maps, split.records, strict=True)
            if r.boxes
        ]
        shares.append(100 * float(np.mean(right)))
    return _THRESHOLDS, shares


def scaled_curve(workdir: Path, split: str) -> Curve:
    """GT-known Loc in percent at each threshold on the scaled maps, by wsolevaluation."""
    rows = [
        (float(row['threshold']), float(row['largest_50']))
        for row in read_csv(workdir / 'curves.csv')
        if (row['split'], row['method'], row['layer']) == (split, *_KEY)
    ]
    thresholds, shares = zip(*rows, strict=True)
    return thresholds, shares


def width(curve: Curve, points: float) -> float:
    """The share of the thresholds that come within some points of the best one, in percent."""
    shares = np.asarray(curve[1])
    return 100 * float(np.mean(shares >= shares.max() - points))


def described(values: np.ndarray, raw: Curve, scaled: Curve) -> list[str]:
    """The cells of one workdir."""
    counts = np.histogram(values, _EDGES)[0]
    cells = [f'{100 * c / values.size:.1f}' for c in counts]
    for curve in (raw, scaled):
        best = int(np.argmax(curve[1]))
        cells += [f'{curve[1][best]:.1f} ({curve[0][best]:g})']
        cells += [f'{width(curve, points):.0f}' for points in (2, 5)]
    return cells


def table(stages: Mapping[str, tuple[np.ndarray, Curve, Curve]]) -> str:
    """Markdown: a row for each of {workdir: (values of its maps, raw curve, scaled curve)}."""
    bins = [f'{a:g}…{b:g}' for a, b in pairwise(_EDGES)]
    names = [f'{kind} {what}' for kind in ('raw', 'scaled') for what in ('best*', '≤ 2', '≤ 5')]
    return markdown([['', *bins, *names], *([k, *described(*v)] for k, v in stages.items())])


def plot(stages: Mapping[str, tuple[np.ndarray, Curve, Curve]], file: Path) -> None:
    """Histograms of the values, and both curves."""
    figure = Figure(figsize=(10, 3.2), layout='constrained')
    titles = ('values of the raw maps', 'threshold on the raw map', 'threshold on the scaled map')
    panels = figure.subplots(1, 3)
    for stage, (values, *curves) in stages.items():
        panels[0].hist(values.ravel(), np.linspace(0, 1, 41), density=True, alpha=0.5, label=stage)
        for axes, curve in zip(panels[1:], curves, strict=True):
            axes.plot(*curve, label=stage)
    for axes, title in zip(panels, titles, strict=True):
        axes.set(xlim=(0, 1), xlabel=title)
        axes.spines[['top', 'right']].set_visible(False)
    panels[0].set_ylabel('density')
    panels[1].set(ylabel='GT-known Loc (%)', ylim=(0, 100))
    panels[2].set(ylim=(0, 100))
    panels[0].legend(frameon=False)
    figure.savefig(file, dpi=150)


def measured(workdir: Path, source: Source) -> tuple[np.ndarray, Curve, Curve]:
    """(values of the maps, raw curve, scaled curve) of a workdir."""
    split = SplitMaps(_SPLIT.value, source, MapStore(workdir / 'maps' / _SPLIT.value))
    values = split.rectified(_KEY, split.readable)
    return values, raw_curve(split), scaled_curve(workdir, _SPLIT.value)


def main(_: Sequence[str]) -> None:
    """Measures both stages, prints the table and writes it with the figure."""
    folder, source = Path(WORKDIR.value), open_split(read_config(CONFIG.value), _SPLIT.value)
    folder.mkdir(parents=True, exist_ok=True)
    found = {Path(w).name: measured(Path(w), source) for w in _WORKDIRS.value}
    text = '\n\n'.join([table(found), _NOTE])
    write_text(folder / 'ornet_refinement.md', text + '\n')
    plot(found, folder / 'ornet_refinement.png')
    print(text)


_NOTE = (
    'Percent. First the places of the maps by value; then GT-known Loc at the best threshold, and '
    'the share of thresholds within 2 and 5 points of it. * best threshold on this split (an '
    'oracle).'
)


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdirs', 'workdir'])
    run_command(main)

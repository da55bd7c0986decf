"""Figures of a run: maps and boxes over images, scores over layers, thresholds and methods.

The suffix of a figure's path, .png or .svg, says what is written.
"""

import base64
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wsol_jax.config import Config
from wsol_jax.data import Source, decode_image, evenly_spaced, resize_image
from wsol_jax.evaluation.scoring import canvas_scores
from wsol_jax.evaluation.truth import true_boxes
from wsol_jax.maps import Key
from wsol_jax.maps.boxes import threshold_boxes
from wsol_jax.maps.columns import DONE
from wsol_jax.maps.store import MapStore
from wsol_jax.report.overlay import DPI, Cell, draw_grid, map_title
from wsol_jax.report.table import Row, heading, split_rows, starred
from wsol_jax.workdir import written_whole

# The colours of Okabe and Ito, told apart with any colour vision, without the yellow that is too
# light for a line on white. Each goes with one marker; styles of lines tell more methods apart.
_COLORS = ('#0072B2', '#E69F00', '#009E73', '#D55E00', '#CC79A7', '#56B4E9', '#000000')
_MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
_LINES = ('-', '--', ':', '-.')
# Of those that a run has, the first is shown: at val's threshold, but the oracle MaxBoxAcc.
_BOX_SCORES = ('GTKnownLoc', 'Top1Loc', 'MaxBoxAcc')
_MASK_SCORES = ('PxAP', 'mIoU')
_PNG = re.compile(rb'data:image/png;base64,([^"]+)')
_CURVES = ('largest_50', 'mIoU', 'PooledIoU')


def method_figure(
    config: Config, metrics: dict[str, Any], source: Source, store: MapStore, path: Path
) -> None:
    """Images by methods, each method at its chosen layer (or its last one)."""
    _overlays(config, _best_rows(metrics), source, store, path)


def layer_figure(
    config: Config,
    metrics: dict[str, Any],
    source: Source,
    store: MapStore,
    method: str,
    path: Path,
) -> None:
    """Images by layers of one method."""
    rows = [row for row in split_rows(metrics) if row['method'] == method]
    _overlays(config, rows, source, store, path)


def score_figure(metrics: dict[str, Any], path: Path) -> None:
    """A score over the layers, one line a method, with its 95 % intervals where there are any.

    The score is GT-known (or another one of boxes), or PxAP where there are no boxes.

    Args:
        metrics: what metrics.json holds; without scores there is no figure.
        path: ends in .png or .svg.
    """
    rows = split_rows(metrics)
    score = next(iter(_scores(rows)), None)
    if score is None:
        return
    layers = _layers(rows)
    styles = _styles(rows)
    figure = _figure(max(5.0, 0.5 * len(layers) + 2.5), len(styles))
    axes = figure.subplots()
    for i, (method, style) in enumerate(styles.items()):
        shift = 0.6 * ((i + 0.5) / len(styles) - 0.5)  # intervals above each other hide each other
        own = [row for row in rows if row['method'] == method and score in row]
        places = [layers.index(row['layer']) + shift for row in own]
        axes.errorbar(
            places,
            [row[score] for row in own],
            _bars(own, score),
            label=method,
            markersize=4 if len(own) > 1 else 6,  # one layer has no line to be seen by
            linewidth=1.2,
            elinewidth=0.5,
            ecolor=(style['color'], 0.6),
            **style,
        )
    axes.set_xticks(range(len(layers)), layers, rotation=45, ha='right')
    axes.set_ylabel(f'{starred(score, rows)} on {metrics["split"]} (%)')
    _frame(axes, 'y')
    _legend(figure, axes)
    _save(figure, path)


def curve_figure(metrics: dict[str, Any], curves: Sequence[dict[str, str]], path: Path) -> None:
    """Scores over the threshold, a line for each method at its chosen layer (or its last one).

    Panels: localization accuracy at IoU 0.5 for boxes; mean IoU, and the IoU over the pixels of
    all images together, for masks. The mark on a line is at the threshold chosen for it.

    Args:
        metrics: what metrics.json holds.
        curves: rows of curves.csv; where none is of the scored split there is no figure.
        path: ends in .png or .svg.
    """
    rows = [(row, _curve(metrics['split'], row, curves)) for row in _best_rows(metrics)]
    titles = _curve_titles(metrics['class'])
    panels = [name for name in titles if any(np.isfinite(curve[name]).any() for _, curve in rows)]
    if not panels:
        return
    styles = _styles(split_rows(metrics))
    figure = _figure(3.4 * len(panels) + 2.0, len(rows))
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, name in zip(grid, panels, strict=True):
        for row, curve in rows:
            if len(curve['threshold']):
                _draw_curve(axes, row, curve['threshold'], curve[name], styles[row['method']])
        axes.set(xlim=(0, 1), xlabel='threshold (fraction of the maximum)', ylabel=titles[name])
        _frame(axes, 'y')
    origin = rows[0][0]['threshold_from']
    itself = ' itself (oracle)' if any(row.get('oracle') for row, _ in rows) else ''
    _legend(figure, grid[0], f'on {metrics["split"]}; mark: threshold of {origin}{itself}')
    _save(figure, path)


def _draw_curve(
    axes: Axes, row: Row, thresholds: np.ndarray, scores: np.ndarray, style: dict[str, Any]
) -> None:
    at = int(np.argmin(np.abs(thresholds - row['threshold'])))
    mark = {'markevery': [at], 'markeredgecolor': 'white', 'markeredgewidth': 0.5}
    axes.plot(thresholds, scores, label=_name(row), linewidth=1.2, **(style | mark))


def comparison_figure(metrics: dict[str, Any], path: Path) -> None:
    """Each method's score at its chosen layer (or its last one) with its 95 % interval, best first.

    Panels: GT-known (or another score of boxes); PxAP and mIoU for masks. The first one sorts.

    Args:
        metrics: what metrics.json holds; without scores there is no figure.
        path: ends in .png or .svg.
    """
    rows = _best_rows(metrics)
    scores = _scores(rows)
    if not scores:
        return
    rows = sorted(rows, key=lambda row: row.get(scores[0], -1.0), reverse=True)
    figure = Figure(figsize=(2.6 * len(scores) + 1.6, 0.22 * len(rows) + 0.6), layout='constrained')
    grid = figure.subplots(1, len(scores), squeeze=False, sharey=True)[0]
    for axes, score in zip(grid, scores, strict=True):
        _draw_comparison(axes, rows, score)
        around = ', 95 % interval' if any(score in r.get('intervals', {}) for r in rows) else ''
        name = starred(score, rows)
        axes.set_xlabel(f'{name} on {metrics["split"]} (%){around}', fontsize=8)
    grid[0].set(ylim=(len(rows) - 0.4, -0.6))  # the best one at the top
    grid[0].set_yticks(range(len(rows)), list(map(_name, rows)))
    _save(figure, path)


def _draw_comparison(axes: Axes, rows: Sequence[Row], score: str) -> None:
    own = [(place, row) for place, row in enumerate(rows) if score in row]
    axes.errorbar(
        [row[score] for _, row in own],
        [place for place, _ in own],
        xerr=_bars([row for _, row in own], score),
        fmt='o',
        color=_COLORS[0],
        markersize=4.5,
        elinewidth=1.2,
    )
    beside = axes.get_yaxis_transform()
    for place, row in own:
        axes.text(1.02, place, f'{row[score]:.1f}', transform=beside, va='center', fontsize=8)
    axes.tick_params(length=0, labelsize=8)
    _frame(axes, 'both')


def _best_rows(metrics: dict[str, Any]) -> list[Row]:
    """The row of each method at its chosen layer; where none is chosen, at its last one."""
    rows = split_rows(metrics)
    last = {row['method']: row for row in rows}
    return list((last | {row['method']: row for row in rows if row.get('chosen')}).values())


def _scores(rows: Sequence[Row]) -> list[str]:
    """What to show of the rows: one score of boxes, and those of masks, if they have them."""
    boxes, masks = (
        [name for name in names if any(name in row for row in rows)]
        for names in (_BOX_SCORES, _MASK_SCORES)
    )
    return boxes[:1] + masks


def _name(row: Row) -> str:
    return f'{row["method"]} ({row["layer"]})'


def _layers(rows: Sequence[Row]) -> list[str]:
    """All layers, in the order of the method that has most: CAM knows only the last one."""
    counts = Counter(row['method'] for row in rows)
    most_first = sorted(rows, key=lambda row: counts[row['method']], reverse=True)
    return list(dict.fromkeys(row['layer'] for row in most_first))


def _styles(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """{method: how its line is drawn}, the same in every figure of a run."""
    methods = dict.fromkeys(row['method'] for row in rows)
    return {
        method: {
            'color': _COLORS[i % len(_COLORS)],
            'marker': _MARKERS[i % len(_MARKERS)],
            'linestyle': _LINES[i // len(_COLORS) % len(_LINES)],
        }
        for i, method in enumerate(methods)
    }


def _bars(rows: Sequence[Row], score: str) -> np.ndarray:
    """[2, n] how far the intervals reach below and above the scores; NaN where there is none."""
    none = (np.nan, np.nan)
    ends = np.array([row.get('intervals', {}).get(score, none) for row in rows]).reshape(-1, 2)
    values = np.array([row[score] for row in rows])
    # Nothing makes an interval of resampled images contain the score; a bar cannot be negative.
    return np.maximum([values - ends[:, 0], ends[:, 1] - values], 0)


def _curve_titles(target: str) -> dict[str, str]:
    """{column of curves.csv: its axis}; only maps of the true class give GT-known."""
    boxes = heading('GTKnownLoc') if target == 'ground_truth' else 'images with box IoU ≥ 0.5'
    return dict(zip(_CURVES, (f'{boxes} (%)', 'mIoU (%)', 'IoU over all pixels (%)'), strict=True))


def _curve(split: str, row: Row, curves: Sequence[dict[str, str]]) -> dict[str, np.ndarray]:
    """Columns of curves.csv of one row of metrics.json, NaN where they are empty."""
    key = (split, row['method'], row['layer'])
    own = [line for line in curves if (line['split'], line['method'], line['layer']) == key]
    return {
        name: np.array([float(line[name] or 'nan') for line in own])
        for name in ('threshold', *_CURVES)
    }


def _figure(width: float, lines: int) -> Figure:
    """A figure high enough for the legend of so many lines."""
    return Figure(figsize=(width, max(3.6, 0.16 * lines + 0.6)), layout='constrained')


def _frame(axes: Axes, grid: Literal['y', 'both']) -> None:
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis=grid, alpha=0.3)


def _legend(figure: Figure, axes: Axes, title: str = '') -> None:
    lines, names = axes.get_legend_handles_labels()
    figure.legend(
        lines,
        names,
        loc='outside right upper',
        frameon=False,
        handlelength=3.5,
        fontsize=7,
        title=title,
        title_fontproperties={'size': 7},
        alignment='left',
    )


def _overlays(
    config: Config, rows: Sequence[Row], source: Source, store: MapStore, path: Path
) -> None:
    """Images by rows of metrics.json."""
    positions = evenly_spaced(np.flatnonzero(store.fact('status') == DONE), config.report.images)
    if not len(positions):
        return
    lines = [_overlay_line(config, rows, source, store, int(position)) for position in positions]
    figure = Figure(layout='constrained')
    draw_grid(figure, ['image', *(map_title((r['method'], r['layer'])) for r in rows)], lines)
    _save(figure, path)


def _overlay_line(
    config: Config, rows: Sequence[Row], source: Source, store: MapStore, position: int
) -> list[Cell]:
    record, size = source[position], config.evaluate.size
    image = resize_image(decode_image(record, size), (size, size))
    truth = true_boxes(record, (size, size))
    line = [Cell(image, truth)]
    for row in rows:
        key: Key = (row['method'], row['layer'])
        raw = store.read(key, position, position + 1)[0, 0]
        scores = canvas_scores(store, key, raw, config.evaluate)
        box = threshold_boxes(scores, [row['threshold']])[0][0]
        line.append(Cell(image, truth, scores, box))
    return line


def _save(figure: Figure, path: Path) -> None:
    # Text stays text, and the same figure gives the same bytes.
    settings: Any = {'svg.fonttype': 'none', 'svg.hashsalt': 'wsol_jax'}
    kind = path.suffix[1:]
    with matplotlib.rc_context(settings), written_whole(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=DPI, metadata={'Date': None})
        if kind == 'svg':
            temporary.write_bytes(_PNG.sub(_as_jpeg, temporary.read_bytes()))


def _as_jpeg(png: re.Match[bytes]) -> bytes:
    """An image that matplotlib put into an SVG, at a tenth of its size."""
    data = np.frombuffer(base64.b64decode(png[1]), np.uint8)
    picture = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
    jpeg = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    return b'data:image/jpeg;base64,' + base64.b64encode(jpeg.tobytes())

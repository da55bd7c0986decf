"""Figures of a run: maps and boxes over images, and scores over layers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from wsol_jax.config import Config
from wsol_jax.data import Source, decode_image, evenly_spaced, resize_image, stored_size
from wsol_jax.evaluation.boxes import box_iou, rescale_boxes, threshold_boxes
from wsol_jax.evaluation.stage import canvas_scores
from wsol_jax.localization.store import DONE, Key, MapStore

# Okabe-Ito colours: told apart with any colour vision.
TRUE_COLOR, BOX_COLOR = '#FFFFFF', '#E69F00'
_MAP_COLORS = 'viridis'
_OPACITY = 0.6
_CELL = 1.6  # inches


def method_figure(
    config: Config, metrics: dict[str, Any], source: Source, store: MapStore, path: Path
) -> None:
    """Images by methods, each method at its chosen layer (or its last one)."""
    rows = {(r['method'], r['layer']): r for r in _split_rows(metrics)}
    chosen = {key[0]: key for key in rows}
    chosen |= {key[0]: key for key, row in rows.items() if row.get('chosen')}
    _overlays(config, rows, list(chosen.values()), source, store, path)


def layer_figure(
    config: Config,
    metrics: dict[str, Any],
    source: Source,
    store: MapStore,
    method: str,
    path: Path,
) -> None:
    """Images by layers of one method."""
    rows = {(r['method'], r['layer']): r for r in _split_rows(metrics)}
    _overlays(config, rows, [key for key in rows if key[0] == method], source, store, path)


def score_figure(metrics: dict[str, Any], path: Path) -> None:
    """A score over the layers, one line a method: MaxBoxAcc, or PxAP where there are no boxes."""
    rows = _split_rows(metrics)
    score = next((s for s in ('MaxBoxAcc', 'PxAP') if any(s in r for r in rows)), None)
    if score is None:
        return
    layers = list(dict.fromkeys(row['layer'] for row in rows))
    figure = Figure(figsize=(max(5.0, 0.5 * len(layers) + 2.5), 3.6), layout='constrained')
    axes = figure.subplots()
    for method in dict.fromkeys(row['method'] for row in rows):
        points = {r['layer']: r[score] for r in rows if r['method'] == method}
        places = [layers.index(layer) for layer in points]
        size = 4 if len(points) > 1 else 8  # a method of one layer has no line to be seen by
        axes.plot(places, list(points.values()), marker='o', markersize=size, label=method)
    axes.set_xticks(range(len(layers)), layers, rotation=45, ha='right')
    axes.set_ylabel(f'{score} on {metrics["split"]} (%)')
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', alpha=0.3)
    figure.legend(frameon=False, loc='outside right upper')
    _save(figure, path)


def _split_rows(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in metrics['localization'] if row['split'] == metrics['split']]


def _overlays(
    config: Config,
    rows: dict[Key, dict[str, Any]],
    keys: Sequence[Key],
    source: Source,
    store: MapStore,
    path: Path,
) -> None:
    positions = evenly_spaced(np.flatnonzero(store.fact('status') == DONE), config.report.images)
    if not len(positions):
        return
    shape = (len(positions), len(keys) + 1)
    figure = Figure(figsize=(_CELL * shape[1], _CELL * shape[0] + 0.4), layout='constrained')
    grid = figure.subplots(*shape, squeeze=False)
    for axes, title in zip(grid[0], ['image', *map(_title, keys)], strict=True):
        axes.set_title(title, fontsize=7)
    for line, position in zip(grid, positions, strict=True):
        _overlay_row(config, rows, keys, source, store, int(position), line)
    _save(figure, path)


def _title(key: Key) -> str:
    return '\n'.join((key[0], *key[1].split('+')))


def _overlay_row(config, rows, keys, source, store, position: int, line: Sequence[Axes]) -> None:
    record, size = source[position], config.evaluate.size
    image = resize_image(decode_image(record), (size, size))
    truth = np.array(record.boxes).reshape(-1, 4)
    truth = rescale_boxes(truth, stored_size(record), (size, size))
    for axes in line:
        axes.imshow(image)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        for box in truth:
            _draw_box(axes, box, TRUE_COLOR, '--')
    for axes, key in zip(line[1:], keys, strict=True):
        raw = store.read(key, position, position + 1)[0, 0]
        scores = canvas_scores(store, key, raw, config.evaluate)
        axes.imshow(scores, cmap=_MAP_COLORS, alpha=_OPACITY, vmin=0, vmax=1)
        box = threshold_boxes(scores, [rows[key]['threshold']])[0][0]
        _draw_box(axes, box, BOX_COLOR, '-')
        if len(truth):
            overlap = box_iou(box[None], truth).max()
            axes.set_xlabel(f'IoU {overlap:.2f}', fontsize=6, labelpad=1)


def _draw_box(axes: Axes, box: np.ndarray, color: str, style: str) -> None:
    x0, y0, x1, y1 = box
    corner, width, height = (x0, y0), x1 - x0, y1 - y0
    # A dark edge below keeps the line visible on any image.
    axes.add_patch(Rectangle(corner, width, height, fill=False, ec='black', lw=2.4, alpha=0.5))
    axes.add_patch(Rectangle(corner, width, height, fill=False, ec=color, lw=1.4, ls=style))


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}')
    with matplotlib.rc_context({'savefig.dpi': 150}):
        figure.savefig(temporary, format='png')
    temporary.replace(path)

"""The page of boxes in 3D: scores by class and by distance, frames from above and in cameras."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from wsol_jax.config import Config
from wsol_jax.data import Source, evenly_spaced
from wsol_jax.data.frames import annotated_points
from wsol_jax.evaluation.split import StoredSplit
from wsol_jax.maps.columns import Store
from wsol_jax.points.detections import frame_method
from wsol_jax.points.drawing import frame_picture
from wsol_jax.points.score import found_boxes
from wsol_jax.report.frame import rendered
from wsol_jax.report.gallery import jpeg
from wsol_jax.workdir import read_json, write_text

LEAST_SCORE = 0.3  # of the boxes that pictures show
_SHOWN = ('mAP', 'NDS', 'mATE', 'mASE', 'mAOE')
_OF_CLASS = ('boxes', 'AP', 'AP_0.5', 'AP_1', 'AP_2', 'AP_4', 'ATE', 'ASE', 'AOE')


class Picture(NamedTuple):
    """A frame on the page.

    Attributes:
        name: of the frame.
        jpeg: base64.
        size: (width, height) in pixels.
    """

    name: str
    jpeg: str
    size: tuple[int, int]


def report_boxes(config: Config, source: Source, workdir: Path) -> str:
    """Writes report.html.

    Args:
        config: the experiment.
        source: the last split.
        workdir: with metrics.json, and the boxes of the last split.

    Returns:
        The text for the terminal.
    """
    rows = read_json(workdir / 'metrics.json')['detection']
    tables, last = {'Scores': [_scores(row) for row in rows]}, rows[-1]
    tables[f'Classes of {last["split"]}'] = [_of_class(row) for row in last['by_class']]
    if last['by_distance']:
        tables[f'Distances of {last["split"]}'] = [_ring(row) for row in last['by_distance']]
    if 'kitti' in last:
        tables[f'Average precision of KITTI, {last["split"]}'] = _kitti_rows(last['kitti'])
    facts = {'network': config.network.name, 'method': config.train.method}
    facts |= {'made': time.strftime('%Y-%m-%d')}
    page = rendered(
        'points.html',
        title=f'Boxes of {config.data.source}',
        facts=facts,
        tables=tables,
        pictures=list(_pictures(config, source, workdir)),
        least=LEAST_SCORE,
    )
    write_text(workdir / 'report.html', page)
    lines = [{name: _text(value) for name, value in row.items()} for row in tables['Scores']]
    return '\n'.join(' '.join(f'{name}: {value}' for name, value in row.items()) for row in lines)


def _pictures(config: Config, source: Source, workdir: Path) -> Iterator[Picture]:
    """Frames of the last split with the boxes that were found, evenly spaced."""
    name = config.localize.splits[-1]
    split = StoredSplit(name, source, Store(workdir / 'maps' / name))
    columns = {column: split.store.fact(column) for column in split.store.names}
    for i in evenly_spaced(split.readable, config.report.images).tolist():
        boxes, _, scores = found_boxes(columns, i)
        record, shown = source[i], boxes[scores >= LEAST_SCORE]
        region, points = frame_method(config).limits, annotated_points(record)
        pixels = frame_picture(record, region, shown, points)
        yield Picture(record.image_id, jpeg(pixels), (pixels.shape[1], pixels.shape[0]))


def _scores(row: Mapping[str, Any]) -> dict[str, Any]:
    facts = {'split': row['split'], 'frames': row['frames']}
    return facts | {name: row.get(name, '') for name in _SHOWN}


def _of_class(row: Mapping[str, Any]) -> dict[str, Any]:
    return {'class': row['name'], **{name: row.get(name, '') for name in _OF_CLASS}}


def _ring(row: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: row.get(name, '') for name in ('boxes', 'recall', 'IoU', 'error')}
    return {'from (m)': row['from'], **values}


def _kitti_rows(scores: Mapping[str, float]) -> list[dict[str, Any]]:
    """A row for each class, view and number of recall points; columns are difficulties."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for name, value in scores.items():
        kind, view, difficulty, points = name.split('_')
        row = {'class': kind, 'view': view, 'recall points': points.removeprefix('R')}
        rows.setdefault((kind, view, points), row)[difficulty] = value
    return list(rows.values())


def _text(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)

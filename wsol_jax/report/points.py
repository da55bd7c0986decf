"""The page of boxes in 3D: scores by class and by distance."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsol_jax.config import Config
from wsol_jax.data import Source
from wsol_jax.report.frame import write_tables
from wsol_jax.workdir import read_json

_SHOWN = ('mAP', 'NDS', 'mATE', 'mASE', 'mAOE')
_OF_CLASS = ('boxes', 'AP', 'AP_0.5', 'AP_1', 'AP_2', 'AP_4', 'ATE', 'ASE', 'AOE')


def report_boxes(config: Config, source: Source, workdir: Path) -> str:
    """Writes report.html.

    Args:
        config: the experiment.
        source: the last split.
        workdir: with metrics.json.

    Returns:
        The text for the terminal.
    """
    del source
    rows = read_json(workdir / 'metrics.json')['detection']
    tables: dict[str, list[dict[str, Any]]] = {'Scores': [_scores(row) for row in rows]}
    last = rows[-1]
    tables[f'Classes of {last["split"]}'] = [_of_class(row) for row in last['by_class']]
    if last['by_distance']:
        tables[f'Distances of {last["split"]}'] = [_ring(row) for row in last['by_distance']]
    facts = {'network': config.network.name, 'method': config.train.method}
    facts |= {'made': time.strftime('%Y-%m-%d')}
    write_tables(workdir, f'Boxes of {config.data.source}', facts, tables)
    return '\n'.join(
        ' '.join(f'{k}: {_text(v)}' for k, v in row.items()) for row in tables['Scores']
    )


def _scores(row: Mapping[str, Any]) -> dict[str, Any]:
    facts = {'split': row['split'], 'frames': row['frames']}
    return facts | {name: row.get(name, '') for name in _SHOWN}


def _of_class(row: Mapping[str, Any]) -> dict[str, Any]:
    return {'class': row['name'], **{name: row.get(name, '') for name in _OF_CLASS}}


def _ring(row: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: row.get(name, '') for name in ('boxes', 'recall', 'IoU', 'error')}
    return {'from (m)': row['from'], **values}


def _text(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)

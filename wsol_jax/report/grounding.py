"""The stage `report` of grounding: the table on the terminal, and a page of sentences and boxes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wsol_jax.config import Config, ConfigError
from wsol_jax.data import Record, Source, evenly_spaced, stored_size
from wsol_jax.data.records import Box
from wsol_jax.grounding.sentences import RIGHT, expressions_of, overlaps
from wsol_jax.maps.columns import DONE, Store
from wsol_jax.report.frame import rendered
from wsol_jax.report.gallery import jpeg_of
from wsol_jax.report.table import aligned
from wsol_jax.workdir import read_json, write_text

TITLE = 'Grounding of sentences'
SIDE = 160  # an image of the page has as many pixels as a square of this side
MOST = 300  # sentences on the page: with images of that size it stays below 15 MB
_SCORES = ('Accuracy', 'Chance', 'Largest', 'ClassOnly', 'Best')
_GROUPS = {
    'by_alike': ('alike', "By proposals of the subject's class"),
    'by_relation': ('relation', 'By what the relation is to'),
}


def report_grounding(config: Config, source: Source, workdir: Path) -> str:
    """Writes report.html; returns the table for the terminal.

    Args:
        config: the experiment.
        source: images of the last split.
        workdir: with metrics.json and the results.

    Raises:
        ConfigError: metrics.json is missing or of another task.
    """
    rows, split = _rows(workdir), config.localize.splits[-1]
    shown = next(row for row in rows if row['split'] == split)
    page = rendered(
        'grounding.html',
        title=TITLE,
        facts={'split': split, 'images': str(len(source)), 'sentences': str(shown['sentences'])},
        tables=_tables(rows, shown),
        images=list(_images(config, source, Store(workdir / 'maps' / split))),
    )
    write_text(workdir / 'report.html', page)
    return _text(rows)


def _rows(workdir: Path) -> list[dict[str, Any]]:
    path = workdir / 'metrics.json'
    if not path.exists():
        raise ConfigError(f'{path} is missing; run the stage evaluate before report')
    rows = read_json(path).get('grounding')
    if not isinstance(rows, list):
        raise ConfigError(f'{path}: has no scores of grounding; delete it and run again')
    return rows


def _tables(rows: list[dict[str, Any]], shown: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Scores of all splits, then those of groups of sentences of the one that is shown."""
    tables = {'Scores': [{'split': row['split'], **_cells(row)} for row in rows]}
    for name, (key, heading) in _GROUPS.items():
        if shown[name]:
            tables[heading] = [{key: row[key], **_cells(row)} for row in shown[name]]
    return tables


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    return {'sentences': row['sentences'], **{n: row[n] for n in _SCORES if n in row}}


def _text(rows: list[dict[str, Any]]) -> str:
    lines = [['split', 'images', 'sentences', *_SCORES]]
    for row in rows:
        scores = [f'{row[name]:.1f}' if name in row else '' for name in _SCORES]
        lines.append([row['split'], str(row['images']), str(row['sentences']), *scores])
    return '\n'.join(aligned(lines))


def _images(config: Config, source: Source, store: Store) -> Iterator[dict[str, Any]]:
    """What the page shows of `report.gallery` of the images, picked by nobody."""
    done = np.flatnonzero(store.fact('status') == DONE)
    subject, second = store.fact('subject'), store.fact('object')
    left = MOST
    for i in evenly_spaced(done, config.report.gallery).tolist():
        record = source[i]
        jpeg, size = jpeg_of(record, SIDE)
        sentences = _sentences(record, size, subject[i], second[i])[:left]
        if sentences:
            yield {
                'image_id': record.image_id, 'jpeg': jpeg, 'size': size, 'sentences': sentences
            }  # fmt: skip
        left -= len(sentences)


def _sentences(
    record: Record, size: tuple[int, int], subject: np.ndarray, second: np.ndarray
) -> list[dict[str, Any]]:
    """Each sentence with its boxes at the size of the page, and whether the chosen one is right."""
    right, factors = overlaps(record) >= RIGHT, np.array(size) / stored_size(record)
    found = []
    for k, said in enumerate(expressions_of(record)):
        boxes = {'object': record.boxes[second[k]]} if said.object else {}
        boxes |= {'true': said.box, 'chosen': record.boxes[subject[k]]}
        drawn = {name: _rect(box, factors) for name, box in boxes.items()}
        found.append({'text': said.text, 'boxes': drawn, 'right': bool(right[k, subject[k]])})
    return found


def _rect(box: Box, factors: np.ndarray) -> list[float]:
    """(x, y, width, height) of a box in an image that is resized."""
    corners = np.array(box).reshape(2, 2) * factors
    return np.concatenate([corners[0], corners[1] - corners[0]]).round(1).tolist()

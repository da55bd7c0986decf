"""report.html: tables, curves and a gallery of a run in one file that needs no network."""

import base64
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from absl import logging

from wsol_jax.config import Config, config_source
from wsol_jax.data import Source
from wsol_jax.evaluation.curves import CURVES
from wsol_jax.maps.columns import DONE
from wsol_jax.maps.store import MapStore
from wsol_jax.report.frame import rendered
from wsol_jax.report.gallery import SIDES, THRESHOLDS, Gallery, Shown, blob, collect, map_blobs
from wsol_jax.report.overlay import MAP_COLORS
from wsol_jax.report.results import read_curves
from wsol_jax.report.table import Row, columns, heading, is_oracle, starred, threshold_text
from wsol_jax.workdir import read_json, write_text

LIMIT = 15_000_000  # bytes of a whole page
_CURVES = ('threshold', *CURVES)
# What the script knows of a row.
_ROW = ('split', 'method', 'layer', 'threshold', 'threshold_from', 'chosen', 'oracle')


def write_page(
    config: Config, metrics: dict[str, Any], source: Source, store: MapStore, workdir: Path
) -> None:
    """Writes report.html: scores, what curves.csv holds, and a gallery of `report.gallery` images.

    Args:
        config: the experiment.
        metrics: what metrics.json holds.
        source: images of the split that metrics names.
        store: their maps.
        workdir: where the page goes.

    Raises:
        DataError: an image of the gallery can no longer be read.
    """
    page = {
        'title': f'Localization on {metrics["split"]}',
        'done': int(np.sum(store.fact('status') == DONE)),
        'closing': config.evaluate.closing,
        'origin': origin(config, workdir),
        'again': config_source(config),
    }
    gallery = collect(config, source, store) if config.report.gallery else None
    text = page_text(metrics, read_curves(workdir), gallery, **page)
    write_text(workdir / 'report.html', text)


def page_text(
    metrics: dict[str, Any],
    curves: Iterable[Mapping[str, str]],
    gallery: Gallery | None,
    **page: Any,
) -> str:
    """The page, of at most 15 MB.

    Args:
        metrics: what metrics.json holds.
        curves: the lines of curves.csv.
        gallery: None for a page without one.
        page: its `title`; how many images are `done`; `closing` of the maps, 0 for none; `origin`,
            {what: text} below the title; and `again`, a config file, '' for none.
    """
    rows = sorted(metrics['localization'], key=lambda row: not row.get('chosen'))
    page |= {'metrics': metrics, 'curves': _curves(rows, curves), **_tables(metrics, rows)}
    return _fitting(page, gallery)


def origin(config: Config, workdir: Path) -> dict[str, str]:
    """What made the results, for the head of the page: nothing but names of files and folders.

    Args:
        config: the experiment, whose last split is shown.
        workdir: of the experiment.
    """
    data, split = config.data, config.localize.splits[-1]
    start = _file_name(config.train.init_from or config.network.weights)
    trained = (workdir / 'checkpoints').exists()
    parts = [f'trained in {workdir.name}'] * trained + [f'from {start}' if trained else start]
    name = data.name or Path(data.root).name
    kind = f'{name} ({data.source})' if name else data.source
    record = workdir / 'config.json'
    code = read_json(record).get('git') if record.exists() else ''
    facts = {
        'model': config.network.name,
        'weights': ', '.join(parts) if start else ''.join(parts[:trained]),
        'data': f'{kind}, {split}',
        'code': str(code or ''),
        'made': time.strftime('%Y-%m-%d'),
    }
    return {what: text for what, text in facts.items() if text}


def _file_name(weights: str) -> str:
    """Of a file or folder the last part of its path; weights by name are as they are."""
    return Path(weights).name if Path(weights).exists() else weights


def _tables(metrics: dict[str, Any], rows: list[Row]) -> dict[str, Any]:
    scores, protocols = columns(rows), _protocols(rows)
    scored = [i for i, row in enumerate(rows) if row['split'] == metrics['split']]
    start = max(scored, key=lambda i: _rank(rows[i], scores), default=0)
    oracle = any(rows[i].get('oracle') for i in scored)
    details = {name: _detail(metrics.get(f'by_{name}', []), oracle) for name in ('class', 'size')}
    known = [{name: row[name] for name in _ROW if name in row} for row in rows]
    return {
        'rows': rows,
        'chooses': any('chosen' in row for row in rows),
        'layered': any(row['layer'] for row in rows),
        'blank': any(row.get('blank_maps') for row in rows),
        'threshold_text': threshold_text,
        'splits': list(dict.fromkeys(row['split'] for row in rows)),
        'headings': [*map(heading, scores), *(f'{heading(s)} {p}' for p, s in protocols)],
        'cells': [_cells(row, scores, protocols) for row in rows],
        'start': start,
        'details': details,
        'data': {'split': metrics['split'], 'start': start, 'rows': known, 'details': details},
    }


def _protocols(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """(protocol, score) of the rows, each once."""
    found = [
        (p, s) for row in rows for p, scores in row.get('protocols', {}).items() for s in scores
    ]
    return list(dict.fromkeys(found))


def _cells(row: Row, scores: Sequence[str], protocols: Sequence[tuple[str, str]]) -> list[tuple]:
    """(percentage or None, its 95 % interval or None, '*' or '') of every column of scores."""
    intervals, quoted = row.get('intervals', {}), row.get('protocols', {})
    own = [(row.get(s), intervals.get(s), _star(row, s)) for s in scores]
    return own + [(quoted.get(protocol, {}).get(score), None, '') for protocol, score in protocols]


def _star(row: Row, score: str) -> str:
    """What marks an oracle in a column that holds other scores, too."""
    return '*' if '*' not in heading(score) and is_oracle(row, score) else ''


def _rank(row: Row, scores: Sequence[str]) -> tuple[bool, float]:
    """What the row that is shown first has most of."""
    return row.get('chosen', False), next((row[s] for s in scores if s in row), 0.0)


def _detail(rows: list[Row], oracle: bool) -> dict[str, Any]:
    marked = [{**row, 'oracle': oracle, 'chosen': True} for row in rows]
    headings = [starred(score, marked) for score in columns(rows)]
    return {'columns': columns(rows), 'headings': headings, 'rows': rows}


def _curves(rows: Sequence[Row], lines: Iterable[Mapping[str, str]]) -> str:
    """Blob of JSON: for each row {column: [T] numbers or null}, or null; '' without curves."""
    found: dict[tuple[str, ...], dict[str, list[float | None]]] = {}
    for line in lines:
        key = line['split'], line['method'], line['layer']
        curve = found.setdefault(key, {name: [] for name in _CURVES})
        for name in _CURVES:
            curve[name].append(round(float(line[name]), 3) if line[name] else None)
    listed = [found.get((row['split'], row['method'], row['layer'])) for row in rows]
    return blob(json.dumps(listed).encode()) if any(listed) else ''


def _fitting(page: dict[str, Any], gallery: Gallery | None) -> str:
    """The page with maps as fine as its size allows; with fewer images where none are."""
    bare = rendered('page.html', **page, gallery=None)
    room = max(LIMIT - len(bare.encode()), 0)
    while gallery and gallery.images:
        for side in SIDES:
            text = rendered('page.html', **page, gallery=_packed(gallery, side))
            size = len(text.encode())
            if size <= LIMIT:
                return text
        count = len(gallery.images)
        gallery = gallery.take(min(count - 1, count * room // (size - LIMIT + room)))
        left = len(gallery.images)
        logging.warning('report.html shows %d images: more would exceed 15 MB', left)
    return bare


def _packed(gallery: Gallery, side: int) -> dict[str, Any]:
    """What the template and the script need of a gallery."""
    keys = list(gallery.maps)
    maps, shapes = map_blobs(gallery, side)
    return {
        'images': gallery.images,
        'labels': _labels(gallery),
        'side': side,
        'judged': any(image.boxes or image.outline for image in gallery.images),
        'blobs': {
            'maps': maps,
            'boxes': [blob(gallery.boxes[key].tobytes()) for key in keys],
            'overlaps': [blob(v.tobytes()) for v in gallery.overlaps.values()],
        },
        'facts': {
            'size': gallery.size,
            'steps': len(THRESHOLDS),
            'classes': gallery.maps[keys[0]].shape[1],
            'keys': [[*key, *shape] for key, shape in zip(keys, shapes, strict=True)],
            'images': [_facts(image) for image in gallery.images],
            'colors': base64.b64encode(_colors().tobytes()).decode('ascii'),
        },
        'ramp': ', '.join(f'rgb({r} {g} {b})' for r, g, b in _colors()[::32]),
    }


def _facts(image: Shown) -> dict[str, Any]:
    return {
        'labels': image.labels,
        'boxes': image.boxes,
        'masked': bool(image.outline),
        'maps': image.map_names,
    }


def _labels(gallery: Gallery) -> list[tuple[int, str]]:
    """(class, name) of the images, by name."""
    named = {k: n for i in gallery.images for k, n in zip(i.labels, i.names, strict=True)}
    return sorted(named.items(), key=lambda item: item[1])


def _colors() -> np.ndarray:
    """uint8 [256, 3] colours of a map's levels, in an order that any colour vision can follow."""
    return matplotlib.colormaps[MAP_COLORS](np.arange(256), bytes=True)[:, :3]

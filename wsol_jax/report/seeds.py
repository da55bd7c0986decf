"""The stage `report` of segmentation: the table on the terminal, and the page."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wsol_jax.config import Config, ConfigError
from wsol_jax.data import Record, Source, evenly_spaced
from wsol_jax.data.label_maps import read_label_map, true_label_map
from wsol_jax.report.frame import write_tables
from wsol_jax.report.segmentation import SegmentedImage, segmented_image, write_segmentation_page
from wsol_jax.report.table import aligned, threshold_text
from wsol_jax.segmentation.seed_scores import (
    LABEL_MAPS,
    has_truth,
    predicted_file,
    seed_file,
)
from wsol_jax.workdir import read_csv, read_json

_SHOWN = ('mIoU', 'FP', 'FN', 'Precision', 'Recall', 'PeakmIoU')
_CURVES = ('threshold', 'mIoU', 'Precision', 'Recall')
_TITLE = 'Segmentation from image labels'
_UNSCORED = '{split}: no image has a true label map to compare with'


def report_seeds(config: Config, source: Source, workdir: Path) -> str:
    """Writes report.html; returns the table for the terminal.

    The page is of the (method, layer) that is best on `evaluate.choose_on`; where nothing is scored
    there, on the last split itself. Label maps that were predicted have no threshold.

    Args:
        config: the experiment.
        source: images of the last split.
        workdir: with metrics.json, curves.csv and the label maps.

    Raises:
        ConfigError: metrics.json is missing or of another task.
    """
    split, metrics = config.localize.splits[-1], _metrics(workdir)
    rows = [row for row in metrics['segmentation'] if row['split'] == split]
    facts = {'split': split, 'images': str(len(source))}
    if not rows:
        write_tables(workdir, _TITLE, facts, {})
        return _UNSCORED.format(split=split)
    best = _best(metrics['segmentation'], rows, config.evaluate.choose_on)
    facts |= {name: best[name] for name in ('method', 'layer')}
    chosen = {r['threshold_from']: r['threshold'] for r in [best] if 'threshold' in r}
    facts |= {f'threshold from {name}': threshold_text(value) for name, value in chosen.items()}
    names = [row['name'] for row in best['by_class']]
    write_segmentation_page(
        workdir / 'report.html',
        _TITLE,
        facts,
        np.array(best['confusion']),
        names,
        list(_gallery(config, source, workdir, best, len(names))),
        _curves(workdir, best) if chosen else None,
        chosen,
    )
    return _table(rows)


def _metrics(workdir: Path) -> dict[str, Any]:
    path = workdir / 'metrics.json'
    if not path.exists():
        raise ConfigError(f'{path} is missing; run the stage evaluate before report')
    metrics = read_json(path)
    if not isinstance(metrics.get('segmentation'), list):
        raise ConfigError(f'{path}: has no scores of segmentation; delete it and run again')
    return metrics


def _best(
    every: list[dict[str, Any]], rows: list[dict[str, Any]], choose_on: str
) -> dict[str, Any]:
    """Of some rows that of the (method, layer) with the highest mIoU where it is chosen."""
    known = {(r['method'], r['layer']): r['mIoU'] for r in every if r['split'] == choose_on}
    return max(rows, key=lambda r: known.get((r['method'], r['layer']), r['mIoU']))


def _gallery(
    config: Config, source: Source, workdir: Path, row: dict[str, Any], count: int
) -> Iterator[SegmentedImage]:
    for i in evenly_spaced(np.arange(len(source)), config.report.gallery).tolist():
        record = source[i]
        file = _file(workdir, row, record)
        if has_truth(record) and file.exists():  # images that cannot be read have none
            truth = true_label_map(record, count - 1)
            yield segmented_image(record.image_id, record, read_label_map(file), truth, count)


def _file(workdir: Path, row: dict[str, Any], record: Record) -> Path:
    """Where the label map of an image lies that a row is about."""
    if 'threshold' not in row:
        return predicted_file(workdir / 'maps' / row['split'], record)
    return seed_file(workdir / LABEL_MAPS, (row['method'], row['layer']), record)


def _curves(workdir: Path, row: dict[str, Any]) -> dict[str, list[float]]:
    """What each threshold gives on the split of a row."""
    own = ('split', 'method', 'layer')
    lines = read_csv(workdir / 'curves.csv', (*own, *_CURVES))
    known = [line for line in lines if all(line[name] == row[name] for name in own)]
    return {name: [float(line[name] or 'nan') for line in known] for name in _CURVES}


def _table(rows: list[dict[str, Any]]) -> str:
    """Scores of the last split; those named with a star are oracles."""
    title = f'{rows[0]["split"]}: {rows[0]["images"]} images'
    star = '*' if any(row.get('oracle') for row in rows) else ''
    shown = [name for name in _SHOWN if any(name in row for row in rows)]
    heads = ['PeakmIoU*' if name == 'PeakmIoU' else f'{name}{star}' for name in shown]
    cells = [['method', 'layer', 'threshold', *heads]]
    for row in rows:
        scores = [f'{row[name]:.1f}' if name in row else '' for name in shown]
        threshold = threshold_text(row['threshold']) if 'threshold' in row else ''
        cells.append([row['method'], row['layer'], threshold, *scores])
    return '\n'.join([title, *aligned(cells)])

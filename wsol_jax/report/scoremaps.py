"""The page of somebody's score maps: what `python -m wsol_jax.evaluation --report` writes."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wsol_jax.config import ReportConfig
from wsol_jax.data import Record, evenly_spaced
from wsol_jax.evaluation.curves import CURVES
from wsol_jax.evaluation.scoremaps import (
    CANVAS,
    class_namer,
    read_scoremap,
    scoremap_records,
    scoremap_rules,
)
from wsol_jax.evaluation.scoring import score_image
from wsol_jax.evaluation.table import Scores
from wsol_jax.evaluation.truth import ground_truth
from wsol_jax.report.gallery import SIDES, THRESHOLDS, Gallery, gallery_of, reduced, shown
from wsol_jax.report.page import page_text
from wsol_jax.report.table import SCORES
from wsol_jax.workdir import write_text


def write_scoremap_page(
    file: Path,
    metrics: dict[str, Any],
    scoremaps: Path,
    metadata: Path,
    masks: Path | None = None,
    images: Path | None = None,
) -> None:
    """Writes the page of a split that was scored.

    Args:
        file: the page.
        metrics: what `evaluate_scoremaps` returned of these folders.
        scoremaps: folder of the maps.
        metadata: of the split.
        masks: folder that the masks are relative to.
        images: folder of the images, which the gallery needs.

    Raises:
        DataError: an image or a map cannot be read.
    """
    name, split = scoremaps.resolve().name, metadata.resolve().name
    facts = {'maps': name, 'data': split, 'made': time.strftime('%Y-%m-%d')}
    page = {'title': f'{name} on {split}', 'done': metrics['images'], 'closing': 0}
    records = scoremap_records(scoremaps, metadata, masks)
    gallery = _gallery(name, records, metadata, images) if images else None
    lines = _lines(split, name, metrics)
    text = page_text(
        _as_of_a_run(split, name, metrics), lines, gallery, **page, origin=facts, again=''
    )
    write_text(file, text)


def _as_of_a_run(split: str, name: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """The scores as metrics.json of a run has them."""
    place = {'method': name, 'layer': ''}
    known = (*SCORES, 'images', 'threshold', 'threshold_from', 'intervals', 'blank_maps')
    row: dict[str, Any] = {**place, 'split': split}
    row |= {key: metrics[key] for key in known if key in metrics}
    older = metrics.get('protocols', {})
    row |= {'protocols': {p: {'GTKnownLoc': score} for p, score in older.items()}} if older else {}
    row |= {'oracle': True} if {'GTKnownLoc', 'mIoU'} & set(metrics['oracles']) else {}
    parts = {part: [place | line for line in metrics[part]] for part in ('by_class', 'by_size')}
    return {
        'split': split,
        'classification': {},
        'skipped': {},
        'localization': [row],
        **parts,
    }


def _lines(split: str, name: str, metrics: dict[str, Any]) -> Iterator[dict[str, str]]:
    """The curves as curves.csv of a run has them, at hundredths: finer ones show nothing more."""
    curves: dict[str, list[float]] = {}
    for kind, curve in metrics['curves'].items():
        levels = {f'{kind}_{k}': v for k, v in curve.items()} if isinstance(curve, dict) else {}
        curves |= levels or {kind: curve}
    thresholds = metrics['thresholds']
    best = {metrics[key] for key in metrics if key.endswith('threshold')}
    step = max(1, len(thresholds) // 100)
    for i, threshold in enumerate(thresholds):
        if i % step == 0 or threshold in best:
            values = {key: str(curves[key][i]) if key in curves else '' for key in CURVES}
            place = {'split': split, 'method': name, 'layer': ''}
            yield {**place, 'threshold': str(threshold), **values}


def _gallery(name: str, records: list[Record], metadata: Path, images: Path) -> Gallery:
    """Some of the images with their maps, scored as the protocol scores them."""
    index = evenly_spaced(np.arange(len(records)), ReportConfig().gallery)
    picked = [records[i] for i in index]
    maps = [read_scoremap(Path(str(record.image))) for record in picked]
    rules, key = scoremap_rules(THRESHOLDS), (name, '')
    scores = Scores.joined(
        score_image(
            [of_image],
            ground_truth(record, CANVAS),
            rules,
            THRESHOLDS,
            masked=bool(record.masks),
        )
        for of_image, record in zip(maps, picked, strict=True)
    )
    class_name = class_namer(metadata)
    pictures = [replace(record, image=images / record.image_id) for record in picked]
    cards = [shown(record, CANVAS[0], class_name) for record in pictures]
    small = np.array([[reduced(of_image, SIDES[0])] for of_image in maps], np.float32)
    return gallery_of(CANVAS[0], cards, {key: small}, {key: scores.table})

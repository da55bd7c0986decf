"""Boxes in files: a CSV file, or the results of a detector in the format of COCO."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsol_jax.maps import NO_CLASS
from wsol_jax.workdir import write_csv, write_text

_COLUMNS = (
    *('image_id', 'method', 'layer', 'class', 'class_score', 'threshold'),
    *('x0', 'y0', 'x1', 'y1'),
)


class BoxRow(NamedTuple):
    """One box; `Localization.box_rows` makes them.

    Attributes:
        image_id: name or number of the image.
        method: of the map.
        layer: of the map.
        label: class that the map is for; -1 for no single one.
        class_score: its probability; None where it is not known.
        threshold: fraction of the map's maximum that it was cut at.
        box: x0, y0, x1, y1 in pixels of the image; four zeros where there is none.
    """

    image_id: Any
    method: str
    layer: str
    label: int
    class_score: float | None
    threshold: float
    box: tuple[int, int, int, int]


def write_boxes(path: str | Path, rows: Iterable[BoxRow]) -> None:
    """Writes boxes as the command does into `boxes/<split>.csv` of its workdir.

    Args:
        path: the file, written whole or not at all.
        rows: from `Localization.box_rows`, of any number of results.

    Raises:
        OSError: it cannot be written.
    """
    write_csv(Path(path), _COLUMNS, map(_cells, rows))


def _cells(row: BoxRow) -> tuple[Any, ...]:
    score = '' if row.class_score is None else f'{row.class_score:.6f}'
    name = row.image_id if isinstance(row.image_id, str) else str(row.image_id)
    return (name, row.method, row.layer, row.label, score, f'{row.threshold:g}', *row.box)


def write_coco(
    path: str | Path, rows: Iterable[BoxRow], categories: Mapping[int, int] | None = None
) -> None:
    """Writes boxes as COCO's results of detection, which `COCO.loadRes` of pycocotools reads.

    That is a list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"}, the score
    being the probability of the class. Where a map gave no box there is no detection.

    Args:
        path: the file, written whole or not at all.
        rows: of one (method, layer), from `Localization.box_rows` with `key=`; their `image_id` is
            what COCO's annotations call the image, mostly a number.
        categories: {class: category_id}; None: the class itself. COCO's own ids have gaps.

    Raises:
        ValueError: rows of several maps, of no single class, without a probability, or of a class
            that `categories` lacks.
        OSError: it cannot be written.
    """
    rows = list(rows)
    maps = sorted({(row.method, row.layer) for row in rows})
    if len(maps) > 1:
        raise ValueError(f'COCO results are of one detector: choose one of {maps} by key=')
    found = [_detection(row, categories) for row in rows if any(row.box)]
    write_text(Path(path), json.dumps(found) + '\n')


def _detection(row: BoxRow, categories: Mapping[int, int] | None) -> dict[str, Any]:
    where = f'the box of {row.method} in image {row.image_id}'
    if row.label == NO_CLASS:
        raise ValueError(f'{where} is of no single class, and COCO results need one')
    if row.class_score is None:
        raise ValueError(
            f'{where} has no score: what the logits stand for is not known; '
            'dataclasses.replace(result, probability=jax.nn.softmax) tells it'
        )
    if categories is not None and row.label not in categories:
        raise ValueError(f'{where} is of class {row.label}, which categories has no id for')
    x0, y0, x1, y1 = map(int, row.box)
    number = isinstance(row.image_id, int | np.integer)
    return {
        'image_id': int(row.image_id) if number else str(row.image_id),
        'category_id': int(row.label if categories is None else categories[row.label]),
        'bbox': [x0, y0, x1 - x0, y1 - y0],
        'score': round(float(row.class_score), 6),
    }

"""The page of label maps: scores, classes, confusion matrix, curves of seeds, and a gallery."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from absl import logging

from wsol_jax.data import Record, evenly_spaced
from wsol_jax.data.label_maps import BACKGROUND, IGNORED
from wsol_jax.data.records import Pixels
from wsol_jax.report.frame import rendered
from wsol_jax.report.gallery import blob, displayed_size, jpeg_of
from wsol_jax.report.page import LIMIT
from wsol_jax.segmentation.label_maps import palette
from wsol_jax.segmentation.score import absent_classes, class_scores, confusion, scores_of
from wsol_jax.workdir import write_text

SIDE = 224  # an image of the gallery has as many pixels as a square of this side
_HEADINGS = {
    'mIoU': 'mIoU',
    'PixelAccuracy': 'pixel accuracy',
    'IoU': 'IoU',
    'FP': 'FP',
    'FN': 'FN',
    'Precision': 'precision',
    'Recall': 'recall',
}
_CURVES = ('threshold', 'mIoU', 'Precision', 'Recall')
_MOST = 10  # confusions that are listed
_DENSE = 25  # classes from which on the cells of the matrix are too small for a number
_OPACITY = 0.6


@dataclass(frozen=True)
class SegmentedImage:
    """One image of the gallery.

    Attributes:
        image_id: of its record.
        jpeg: the image, base64; '' where there is none.
        size: (width, height) as it is shown, in pixels.
        predicted: uint8 [height, width], the label map at that size.
        truth: likewise.
        classes: the indices that each of the two label maps has at its own size, but background
            and ignored pixels.
        mean_iou: percentage, over the classes of the image; None where all of it is ignored.
    """

    image_id: str
    jpeg: str
    size: tuple[int, int]
    predicted: Pixels
    truth: Pixels
    classes: tuple[tuple[int, ...], tuple[int, ...]]
    mean_iou: float | None


def segmented_image(
    image_id: str, record: Record | None, predicted: Pixels, truth: Pixels, count: int
) -> SegmentedImage:
    """An image with its label maps, small enough to lie inside the page.

    Args:
        image_id: what it is called.
        record: with the image; None to show the label maps alone.
        predicted: uint8 [H, W], in the frame of the image.
        truth: likewise; 255 is ignored.
        count: how many classes there are, the background among them.

    Raises:
        DataError: the image cannot be read, or the label maps do not fit each other.
    """
    mean_iou = scores_of(confusion(predicted, truth, count)).get('mIoU')
    height, width = truth.shape
    jpeg, size = jpeg_of(record, SIDE) if record else ('', displayed_size(width / height, SIDE))
    return SegmentedImage(
        image_id,
        jpeg,
        size,
        predicted=_resized(predicted, size),
        truth=_resized(truth, size),
        classes=(_classes(predicted), _classes(truth)),
        mean_iou=mean_iou,
    )


def _resized(label_map: Pixels, size: tuple[int, int]) -> Pixels:
    return np.asarray(cv2.resize(label_map, size, interpolation=cv2.INTER_NEAREST), np.uint8)


def _classes(label_map: Pixels) -> tuple[int, ...]:
    return tuple(np.setdiff1d(label_map, (BACKGROUND, IGNORED)).tolist())


def write_segmentation_page(
    path: Path,
    title: str,
    facts: Mapping[str, str],
    matrix: np.ndarray,
    names: Sequence[str],
    gallery: Sequence[SegmentedImage] = (),
    curves: Mapping[str, Sequence[float] | np.ndarray] | None = None,
    chosen: Mapping[str, float] | None = None,
) -> None:
    """Writes a page of at most 15 MB, with fewer images where they do not fit.

    Args:
        path: of the page.
        title: of the page.
        facts: shown below the title.
        matrix: int64 [n, n], as from `wsol_jax.segmentation.confusion`, of all images.
        names: [n] of the classes, the background first.
        gallery: of images.
        curves: of seeds, {'threshold', 'mIoU', 'Precision', 'Recall'} [T] each, NaN where one is
            not defined; None for a page without.
        chosen: {where: background threshold that was chosen there}, marked in the curves.
    """
    page = {'title': title, 'facts': facts, **_tables(matrix, names)}
    curve = {name: _numbers(curves[name]) for name in _CURVES} if curves else None
    page['data'] |= {'curve': curve, 'chosen': dict(chosen or {})}
    page['curves'] = bool(curves)
    write_text(path, _fitting(page, gallery, names))


def _fitting(page: dict[str, Any], gallery: Sequence[SegmentedImage], names: Sequence[str]) -> str:
    text = rendered('segmentation.html', **page, gallery=_packed(gallery, names))
    size = len(text.encode())
    if size <= LIMIT or not gallery:
        return text
    index = evenly_spaced(
        np.arange(len(gallery)), min(len(gallery) - 1, len(gallery) * LIMIT // size)
    )
    logging.warning('the page shows %d images: more would exceed 15 MB', len(index))
    return _fitting(page, [gallery[i] for i in index], names)


def _tables(matrix: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """What the template shows of a confusion matrix; classes that occur nowhere are left out."""
    occurring = np.flatnonzero(~absent_classes(matrix)).tolist()
    small = matrix[np.ix_(occurring, occurring)]
    labelled = [{'name': names[k], 'color': _color(k)} for k in occurring]
    shown = [row['name'] for row in labelled]
    of_classes = class_scores(small)
    return {
        'scores': {_HEADINGS[name]: value for name, value in scores_of(matrix).items()},
        'absent': len(matrix) - len(occurring),
        'headings': [_HEADINGS[name] for name in of_classes],
        'classes': _class_rows(small, labelled, of_classes),
        'matrix': {'names': shown, 'dense': len(small) >= _DENSE, 'rows': _cells(small, shown)},
        'confused': _confused(small, labelled),
        'data': {'matrix': {'names': shown, 'counts': small.tolist()}},
    }


def _class_rows(
    matrix: np.ndarray, labelled: Sequence[dict[str, str]], scores: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    shares = 100 * matrix.sum(axis=1) / max(matrix.sum(), 1)
    cells = [_numbers(row) for row in np.transpose(list(scores.values()))]
    return [
        row | {'share': share, 'cells': own}
        for row, share, own in zip(labelled, shares.tolist(), cells, strict=True)
    ]


def _cells(matrix: np.ndarray, names: Sequence[str]) -> list[tuple[str, list[tuple[int, str]]]]:
    """(name, (shade in percent, text) of each cell) by line."""
    shares = _shares(matrix)
    shades = np.rint(100 * np.sqrt(shares)).astype(int).tolist()
    numbers = np.rint(100 * shares).astype(int).tolist()
    dense = len(matrix) >= _DENSE
    texts = [['' if dense or not n else str(n) for n in line] for line in numbers]
    lines = [list(zip(*line, strict=True)) for line in zip(shades, texts, strict=True)]
    return list(zip(names, lines, strict=True))


def _confused(matrix: np.ndarray, labelled: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """The pairs of classes that most of the true class's pixels are lost to."""
    shares = _shares(matrix)
    np.fill_diagonal(shares, 0)
    most = np.argsort(-shares, axis=None, kind='stable')[:_MOST]
    places = zip(*np.unravel_index(most, shares.shape), strict=True)
    return [
        {
            'true': labelled[t],
            'predicted': labelled[p],
            'share': 100 * shares[t, p],
            'of_all': 100 * matrix[t, p] / matrix.sum(),
        }
        for t, p in places
        if shares[t, p]
    ]


def _shares(matrix: np.ndarray) -> np.ndarray:
    """Of the pixels of the true class, [n, n] in [0, 1]."""
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


def _packed(gallery: Sequence[SegmentedImage], names: Sequence[str]) -> dict[str, Any] | None:
    """What the template and the script need of a gallery."""
    if not gallery:
        return None
    maps = (m.tobytes() for image in gallery for m in (image.predicted, image.truth))
    found = sorted({k for image in gallery for part in image.classes for k in part})
    return {
        'images': [_card(image, names) for image in gallery],
        'classes': sorted(((k, names[k]) for k in found), key=lambda item: item[1]),
        'opacity': _OPACITY,
        'ignored': _color(IGNORED),
        'labels': blob(b''.join(maps)),
        'facts': {
            'names': list(names),
            'colors': base64.b64encode(palette().tobytes()).decode('ascii'),
            'images': [_facts(image) for image in gallery],
        },
    }


def _facts(image: SegmentedImage) -> dict[str, Any]:
    predicted, truth = image.classes
    return {
        'size': image.size, 'predicted': predicted, 'truth': truth, 'meanIou': image.mean_iou
    }  # fmt: skip


def _card(image: SegmentedImage, names: Sequence[str]) -> dict[str, Any]:
    predicted, truth = image.classes
    marks = {k: 'extra' for k in predicted if k not in truth}
    marks |= {k: 'missed' for k in truth if k not in predicted}
    chips = [
        {'name': names[k], 'color': _color(k), 'mark': marks.get(k, '')}
        for k in dict.fromkeys((*truth, *predicted))
    ]
    shown = {name: getattr(image, name) for name in ('image_id', 'jpeg', 'size', 'mean_iou')}
    return shown | {'chips': chips}


def _color(index: int) -> str:
    return '#' + bytes(palette()[index]).hex()


def _numbers(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """For JSON, which has no NaN."""
    return [None if np.isnan(v) else round(float(v), 3) for v in values]

"""Scores of label maps: confusion matrices, which add over images, and what follows from them.

NumPy alone, in processes without JAX. The matrices are those of all pixels of a data set: mIoU is
that of PASCAL VOC (Everingham et al., IJCV 2015), no mean over images.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from wsol_jax.data.label_maps import BACKGROUND, IGNORED, check_label_map
from wsol_jax.data.records import DataError, Pixels


def confusion(
    predicted: Pixels,
    truth: Pixels,
    count: int,
    *,
    ignored: int = IGNORED,
    names: tuple[str, str] = ('prediction', 'ground truth'),
) -> np.ndarray:
    """How many pixels of each class are taken for which.

    Args:
        predicted: uint8 [H, W], a class at every pixel.
        truth: uint8 [H, W].
        count: how many classes there are, the background among them.
        ignored: the index of true pixels that do not count.
        names: what messages call the two.

    Returns:
        int64 [count, count]: true classes are rows, predicted ones columns. Those of several
        images add.

    Raises:
        DataError: the sizes differ, or an index is no class.
    """
    if predicted.shape != truth.shape:
        sizes = ['x'.join(map(str, m.shape[::-1])) for m in (predicted, truth)]
        raise DataError(f'label map {names[0]}: is {sizes[0]}, {names[1]} is {sizes[1]}')
    check_label_map(predicted, count, names[0])
    check_label_map(truth, count, names[1], ignored)
    pairs = truth.astype(np.intp) * 256 + predicted
    table = np.bincount(pairs.ravel(), minlength=2**16).reshape(256, 256)
    table[ignored] = 0
    return table[:count, :count]


def class_scores(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Percentages of each class by name; NaN where nothing is divided by nothing.

    With the true positives TP, false positives FP and false negatives FN of a class, in pixels:
    `IoU` is TP / (TP + FP + FN), `FP` and `FN` are their shares of the same sum, so that the three
    make 100; `Precision` is TP / (TP + FP), `Recall` is TP / (TP + FN).

    Args:
        matrix: int64 [..., n, n], as from `confusion`.

    Returns:
        Each [..., n].
    """
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    true, predicted = matrix.sum(axis=-1), matrix.sum(axis=-2)
    either = true + predicted - hits
    return {
        'IoU': _percent(hits, either),
        'FP': _percent(predicted - hits, either),
        'FN': _percent(true - hits, either),
        'Precision': _percent(hits, predicted),
        'Recall': _percent(hits, true),
    }


def scores_of(matrix: np.ndarray) -> dict[str, float]:
    """Percentages of a data set by name; those that are defined.

    `mIoU` is the mean IoU of the classes, the background among them; a class that is neither true
    nor predicted anywhere is left out. `PixelAccuracy` is the share of pixels whose class is right.
    `FP` and `FN` are the means over the foreground classes of `class_scores`, the false positive
    and false negative rates of the tables of weakly supervised segmentation (SEAM, Wang et al.,
    CVPR 2020; the ablation of MARS, Jo et al., ICCV 2023, gives them as fractions); so are
    `Precision` and `Recall`.

    Args:
        matrix: int64 [n, n], as from `confusion`, of all images.
    """
    accuracy = _percent(np.trace(matrix), matrix.sum())
    found = {'PixelAccuracy': accuracy, **_means(class_scores(matrix))}
    order = ('mIoU', 'PixelAccuracy', 'FP', 'FN', 'Precision', 'Recall')
    return {name: float(found[name]) for name in order if not np.isnan(found[name])}


def metrics_of(matrix: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """All that is told of a data set, for a file of JSON.

    Args:
        matrix: int64 [n, n], as from `confusion`, of all images.
        names: [n] of the classes.

    Returns:
        The percentages of `scores_of`; `absent_classes`, how many classes are left out of them;
        `by_class`, the `class`, its `name`, its true `pixels` and the percentages of
        `class_scores` that are defined; and `confusion`, the matrix in lists.
    """
    scores, pixels = class_scores(matrix), matrix.sum(axis=1)
    rows = [
        {'class': k, 'name': name, 'pixels': int(pixels[k])}
        | {score: float(v[k]) for score, v in scores.items() if not np.isnan(v[k])}
        for k, name in enumerate(names)
    ]
    absent = int(absent_classes(matrix).sum())
    found = {**scores_of(matrix), 'absent_classes': absent}
    return {**found, 'by_class': rows, 'confusion': matrix.tolist()}


def absent_classes(matrix: np.ndarray) -> np.ndarray:
    """Bool [n]: the classes that are neither true nor predicted anywhere.

    Args:
        matrix: int64 [n, n], as from `confusion`.
    """
    return np.logical_not(matrix.any(axis=0) | matrix.any(axis=1))


def _means(of_classes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Means [...] over the classes where they are defined; NaN where nowhere."""
    foreground = {name: _mean(v[..., BACKGROUND + 1 :]) for name, v in of_classes.items()}
    return {**foreground, 'mIoU': _mean(of_classes['IoU'])}


def _mean(values: np.ndarray) -> np.ndarray:
    defined = ~np.isnan(values)
    count = defined.sum(axis=-1)
    total = np.where(defined, values, 0).sum(axis=-1)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(100.0 * part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


@dataclass(frozen=True)
class SeedCurves:
    """What class maps make of pixels at each of T background thresholds; adds over images.

    A pixel is of the class whose map is highest there if that value is above the threshold, and
    else background. Which class it is does not depend on the threshold, so the pixels are counted
    once, by how many thresholds their value is above; most of the counts are 0 and not kept.

    Attributes:
        thresholds: [T], ascending.
        count: how many classes there are, n, the background among them.
        places: int64 [m], each once: (true class, class of the highest map, number of thresholds
            below its value) as a flat index into [n, n, T + 1].
        pixels: int64 [m], how many there are of each.
    """

    thresholds: np.ndarray
    count: int
    places: np.ndarray
    pixels: np.ndarray

    def __add__(self, other: 'SeedCurves') -> 'SeedCurves':
        """Of both sets of images."""
        return SeedCurves.joined([self, other])

    @classmethod
    def joined(cls, parts: Iterable['SeedCurves']) -> 'SeedCurves':
        """Of all images of some parts, at least one."""
        parts = iter(parts)
        first = next(parts)
        total = first._dense()
        for part in parts:
            total[part.places] += part.pixels
        places = np.flatnonzero(total)
        return replace(first, places=places, pixels=total[places])

    def _dense(self) -> np.ndarray:
        dense = np.zeros(self.count**2 * (len(self.thresholds) + 1), np.int64)
        dense[self.places] = self.pixels
        return dense

    @cached_property
    def confusions(self) -> np.ndarray:
        """Int64 [T, n, n], as from `confusion`, at every threshold."""
        counts = self._dense().reshape(self.count, self.count, -1)
        below = counts[..., :-1].cumsum(axis=-1)  # pixels that are background at each threshold
        matrices = counts.sum(axis=-1, keepdims=True) - below
        matrices[:, BACKGROUND] += below.sum(axis=1)
        return np.ascontiguousarray(np.moveaxis(matrices, -1, 0))

    def curves(self) -> dict[str, np.ndarray]:
        """Percentages [T] by name: `mIoU`, `Precision`, `Recall`, as `scores_of` has them.

        NaN where one is not defined, as precision is where nothing is foreground.
        """
        means = _means(class_scores(self.confusions))
        return {name: means[name] for name in ('mIoU', 'Precision', 'Recall')}

    @property
    def best_threshold(self) -> float:
        """Where mIoU is best; the lowest of several.

        Raises:
            ValueError: there is no pixel to score.
        """
        scores = self.curves()['mIoU']
        if np.isnan(scores).all():
            raise ValueError('no pixel to score: all of the ground truth is ignored')
        return float(self.thresholds[np.nanargmax(scores)])

    def at(self, threshold: float) -> np.ndarray:
        """Int64 [n, n], as from `confusion`, at the threshold next to this one."""
        return self.confusions[np.argmin(np.abs(self.thresholds - threshold))]


def seed_curves(
    maps: np.ndarray,
    labels: Sequence[int],
    truth: Pixels,
    thresholds: np.ndarray,
    count: int,
) -> SeedCurves:
    """What the class maps of one image make of its pixels at every background threshold.

    Args:
        maps: [K, H, W] finite, of the K classes of the image, in the size of the truth, their
            scale that of the thresholds; K may be 0.
        labels: [K] these classes, 0 .. C - 1.
        truth: uint8 [H, W], the true label map.
        thresholds: [T], ascending; a pixel is foreground where the highest map is above.
        count: C + 1.

    Raises:
        DataError: the sizes differ, or a label or an index of the truth is no class.
    """
    if maps.shape[1:] != truth.shape:
        sizes = ['x'.join(map(str, size[::-1])) for size in (maps.shape[1:], truth.shape)]
        raise DataError(f'class maps are {sizes[0]}, the ground truth {sizes[1]}')
    if wrong := [k for k in labels if not 0 <= k < count - 1]:
        raise DataError(f'label {wrong[0]} of the class maps is outside 0..{count - 2}')
    check_label_map(truth, count, 'ground truth', IGNORED)
    kept = truth != IGNORED
    best, above = _highest(maps[:, kept], thresholds)
    # Counted by the maps of this image, which are few, and then placed among all classes.
    classes = np.array([k + 1 for k in labels] or [BACKGROUND])
    shape = count, len(classes), len(thresholds) + 1
    pixels = np.bincount(np.ravel_multi_index((truth[kept], best, above), shape))
    true, best, above = np.unravel_index(np.flatnonzero(pixels), shape)
    places = np.ravel_multi_index((true, classes[best], above), (count, count, shape[2]))
    return SeedCurves(np.asarray(thresholds), count, places, pixels[pixels > 0])


def _highest(maps: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of maps [K, P] the place [P] of the highest and how many thresholds are below it; or 0, 0."""
    if not len(maps):
        nothing = np.zeros(maps.shape[1], np.intp)
        return nothing, nothing
    return maps.argmax(axis=0), np.searchsorted(thresholds, maps.max(axis=0))

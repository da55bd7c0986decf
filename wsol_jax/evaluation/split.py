"""What evaluation reads: the records of a split and its results, some images at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from wsol_jax.data import DataError, Labels, Record, Source, stored_size
from wsol_jax.evaluation.multi_label import average_precisions, positives
from wsol_jax.evaluation.processes import AT_ONCE
from wsol_jax.maps import Key
from wsol_jax.maps.columns import DONE, SKIPPED, Store
from wsol_jax.maps.store import MapStore

_ALL = slice(None)


@dataclass(frozen=True)
class ImageMaps:
    """Some images with all their maps.

    Attributes:
        records: of n images, without the bytes of the image.
        maps: {(method, layer): [n,K,h,w]}, after the ReLU of the method, if any.
        classes: [n,K] what the maps are for.
        top: [n,<=5] the classes ranked first.
        masked: whether any image of the split has a mask.
    """

    records: list[Record]
    maps: dict[Key, np.ndarray]
    classes: np.ndarray
    top: np.ndarray
    masked: bool

    @classmethod
    def read(cls, store: MapStore, positions: np.ndarray, records: list[Record]) -> 'ImageMaps':
        """Those of some images of a store.

        Args:
            store: the maps.
            positions: [n] of the images there.
            records: of the n images.

        Raises:
            DataError: maps are damaged.
        """
        maps = {key: _rectified(store, key, store.take(key, positions)) for key in store.arrays}
        classes, top = (store.fact(name)[positions] for name in ('classes', 'top'))
        return cls(records, maps, classes, top, any(record.masks for record in records))

    def some(self, rows: slice) -> 'ImageMaps':
        """Some of the images."""
        maps = {key: m[rows] for key, m in self.maps.items()}
        return replace(
            self,
            records=self.records[rows],
            maps=maps,
            classes=self.classes[rows],
            top=self.top[rows],
        )


@dataclass(frozen=True)
class Results:
    """Some images with all that is stored of them.

    Attributes:
        records: of n images, without the bytes of the image.
        columns: {name: [n, ...]}, as in the store.
    """

    records: list[Record]
    columns: dict[str, np.ndarray]


class StoredSplit:
    """A split with what was computed of its images.

    Attributes:
        name: of the split.
        source: its records, for the ground truth.
        store: the results.
        readable: [n] positions of the images that could be read.
        records: what is known of those: their size for certain, without their pixels.
        skipped: how many could not be read.
    """

    def __init__(self, name: str, source: Source, store: Store):
        """Opens a split.

        Raises:
            DataError: results are missing, or they are of other images.
        """
        self.name, self.source, self.store = name, source, store
        status = store.fact('status')
        missing = int(np.sum((status != DONE) & (status != SKIPPED)))
        if missing:
            raise DataError(
                f'{store.folder} has results of {store.count - missing} of the '
                f'{store.count} images; run the stage localize first'
            )
        self.readable = np.flatnonzero(status == DONE)
        self.skipped = int(np.sum(status == SKIPPED))
        self.records = list(self._known(status == DONE))

    def _known(self, readable: np.ndarray) -> Iterator[Record]:
        """Reads each record once: some sources hand out the whole image with it."""
        others = f'{self.store.folder} has results of other images than split {self.name}'
        if len(self.source) != self.store.count:
            raise DataError(others)
        if len(self.store.image_ids) < self.store.count:
            raise DataError(
                f'{self.store.folder}/image_ids.txt lists {len(self.store.image_ids)} of the '
                f'{self.store.count} images; run the stage localize again'
            )
        for i, image_id in enumerate(self.store.image_ids):
            record = self.source[i]
            if record.image_id != image_id:
                raise DataError(others)
            if readable[i]:
                yield replace(record, size=stored_size(record), image=b'')

    def parts(self, share: slice = _ALL) -> Iterator[Any]:
        """What is scored of readable images in order, some at a time: here `Results`.

        Args:
            share: which of the readable images.
        """
        columns = {name: self.store.fact(name)[self.readable] for name in self.store.names}
        start, stop, _ = share.indices(len(self.records))
        for i in range(start, max(stop, start + 1), AT_ONCE):
            rows = slice(i, min(i + AT_ONCE, stop))
            yield Results(self.records[rows], {n: c[rows] for n, c in columns.items()})


class SplitMaps(StoredSplit):
    """A split with its maps.

    Attributes:
        store: the maps.
    """

    store: MapStore

    @property
    def without_object(self) -> int:
        """How many readable images have no box and no mask, where others have some.

        They count in classification, and in no score of localization.
        """
        known = sum(bool(record.boxes or record.masks) for record in self.records)
        return len(self.records) - known if known else 0

    @cached_property
    def target(self) -> str:
        """The classes that the maps are for; '' where images have no label to compare them with."""
        return self.store.target if all(record.labels for record in self.records) else ''

    @property
    def classification(self) -> dict[str, float]:
        """Percentages of images with a label of theirs ranked first, and among the first five.

        Where every class is for itself mAP, too. Without these two where an image has no label.
        """
        labels, found = [record.labels for record in self.records], {}
        if labels and all(labels):
            right = np.array([np.isin(t, of) for t, of in zip(self.top, labels, strict=True)])
            scores = {'top1': right[:, 0], 'top5': right.any(axis=1)}
            found = {name: 100.0 * float(column.mean()) for name, column in scores.items()}
        of_class = [row['AP'] for row in self.average_precision]
        return found | ({'mAP': float(np.mean(of_class))} if of_class else {})

    @cached_property
    def average_precision(self) -> list[dict[str, Any]]:
        """Of each class that an image has: the `class`, its `name`, how many `images`, its `AP`.

        An image without a label has none of them. [] where classes are not each for itself, or no
        image has a label.
        """
        if 'logits' not in self.store.names or not any(r.labels for r in self.records):
            return []
        logits = self.store.fact('logits')[self.readable]
        labels = Labels(self.source.most_labels)
        each = np.array([labels(record)['labels'] for record in self.records])
        positive = positives(each, logits.shape[1])
        facts = zip(positive.sum(axis=0), average_precisions(logits, positive), strict=True)
        return [
            {'class': k, 'name': self.source.class_name(k), 'images': int(n), 'AP': float(value)}
            for k, (n, value) in enumerate(facts)
            if n
        ]

    @cached_property
    def classes(self) -> np.ndarray:
        """[n,K] the classes that the maps of readable images are for."""
        return self.store.fact('classes')[self.readable]

    @cached_property
    def top(self) -> np.ndarray:
        """[n,<=5] the classes ranked first on readable images."""
        return self.store.fact('top')[self.readable]

    def parts(self, share: slice = _ALL) -> Iterator[ImageMaps]:
        """Readable images in order, at most `AT_ONCE` at a time; without any, one of none."""
        masked = any(record.masks for record in self.records)
        own = self.readable[share]
        if not len(own):
            maps = {
                k: np.zeros((0, *a.shape[1:]), np.float32) for k, a in self.store.arrays.items()
            }
            yield ImageMaps([], maps, self.classes[:0], self.top[:0], masked)
        for first in (np.unique(own // self.store.chunk) * self.store.chunk).tolist():
            stop = min(first + self.store.chunk, self.store.count)
            inside = own[(own >= first) & (own < stop)]
            chunk = slice(*np.searchsorted(self.readable, (inside[0], inside[-1] + 1)))
            maps = {
                key: _rectified(self.store, key, self.store.read(key, first, stop)[inside - first])
                for key in self.store.arrays
            }
            facts = self.records[chunk], maps, self.classes[chunk], self.top[chunk], masked
            for i in range(0, len(inside), AT_ONCE):
                yield ImageMaps(*facts).some(slice(i, i + AT_ONCE))

    def rectified(self, key: Key, index: np.ndarray) -> np.ndarray:
        """Maps [n,h,w] of the first class of some images, after the ReLU of the method, if any."""
        return _rectified(self.store, key, self.store.take(key, index))[:, 0]


def _rectified(store: MapStore, key: Key, maps: np.ndarray) -> np.ndarray:
    return np.maximum(maps, 0) if store.relu[key] else maps

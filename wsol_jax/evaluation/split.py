"""What evaluation reads: the records of a split and its maps, some images at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from wsol_jax.data import DataError, Record, Source, stored_size
from wsol_jax.evaluation.processes import AT_ONCE
from wsol_jax.maps import Key
from wsol_jax.maps.columns import DONE, SKIPPED
from wsol_jax.maps.store import MapStore


@dataclass(frozen=True)
class Part:
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

    def label_column(self, i: int) -> int | None:
        """Which map of image i is that of its label, if the label is among the classes `top`."""
        record = self.records[i]
        if not record.labels or record.labels[0] not in self.top[i]:
            return None
        columns = np.flatnonzero(self.classes[i] == record.labels[0])
        return int(columns[0]) if len(columns) else None

    def top1_right(self, i: int) -> bool:
        """Whether the first map of image i is that of its label, which is ranked first."""
        labels = self.records[i].labels
        return bool(labels) and self.top[i][0] == labels[0] == self.classes[i][0]


class Split:
    """A split with its maps.

    Attributes:
        name: of the split.
        source: its records, for the ground truth.
        store: its maps.
        readable: [n] positions of the images that could be read.
        records: what is known of those: their size for certain, without their pixels.
        skipped: how many could not be read.
    """

    def __init__(self, name: str, source: Source, store: MapStore):
        """Opens a split.

        Raises:
            DataError: maps are missing, or they are of other images.
        """
        self.name, self.source, self.store = name, source, store
        status = store.fact('status')
        missing = int(np.sum((status != DONE) & (status != SKIPPED)))
        if missing:
            raise DataError(
                f'{store.folder} has maps of {store.count - missing} of the '
                f'{store.count} images; run the stage localize first'
            )
        self.readable = np.flatnonzero(status == DONE)
        self.skipped = int(np.sum(status == SKIPPED))
        self.records = list(self._known(status == DONE))

    def _known(self, readable: np.ndarray) -> Iterator[Record]:
        """Reads each record once: some sources hand out the whole image with it."""
        others = f'{self.store.folder} has maps of other images than split {self.name}'
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

    @cached_property
    def classes(self) -> np.ndarray:
        """[n,K] the classes that the maps of readable images are for."""
        return self.store.fact('classes')[self.readable]

    @cached_property
    def top(self) -> np.ndarray:
        """[n,<=5] the classes ranked first on readable images."""
        return self.store.fact('top')[self.readable]

    def parts(self) -> Iterator[Part]:
        """All readable images in order, at most `AT_ONCE` at a time."""
        masked = any(record.masks for record in self.records)
        for first in range(0, self.store.count, self.store.chunk):
            stop = min(first + self.store.chunk, self.store.count)
            start, end = np.searchsorted(self.readable, (first, stop))
            inside = self.readable[start:end] - first
            maps = {k: self._rectified(k, self.store.read(k, first, stop)) for k in self.store.relu}
            for i in range(0, len(inside), AT_ONCE):
                rows, some = (
                    inside[i : i + AT_ONCE],
                    slice(start + i, min(start + i + AT_ONCE, end)),
                )
                of_part = {key: m[rows] for key, m in maps.items()}
                records = self.records[some]
                yield Part(records, of_part, self.classes[some], self.top[some], masked)

    def rectified(self, key: Key, index: np.ndarray) -> np.ndarray:
        """Maps [n,h,w] of the first class of some images, after the ReLU of the method, if any."""
        return self._rectified(key, self.store.take(key, index))[:, 0]

    def _rectified(self, key: Key, maps: np.ndarray) -> np.ndarray:
        return np.maximum(maps, 0) if self.store.relu[key] else maps

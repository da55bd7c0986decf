"""Results by image on disk: zarr arrays through tensorstore, filled chunk by chunk, resumable."""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from wsol_jax.data import DataError
from wsol_jax.maps.elsewhere import clear, reason_of
from wsol_jax.maps.layout import (
    AGAIN,
    Column,
    arrays_of,
    index_of,
    is_damage,
    lines_of,
    make,
    opened,
    places_of,
    read_ids,
    read_index,
)
from wsol_jax.workdir import read_csv, write_csv, write_text

PENDING, DONE, SKIPPED = 0, 1, 2
CHUNK = 64  # images: few files, and little is read or written that is not asked for
_AT_ONCE = 16  # chunks that are read side by side
_SECONDS = 3.0  # of work that a kill can cost where a chunk fills slowly
_IDS = 'image_ids.txt'
_INDEX = 'index'


class Store:
    """What was computed of each image of one split, in typed columns.

    One zarr array [images, ...] per column; `status` [images], written last for each chunk, so what
    it does not mark done is computed again. `index.json` lists the columns and what they mean,
    `image_ids.txt` the images in order, as far as there are results.

    Every array has a file with a checksum for the same `chunk` images; nothing is ever read from
    one that is missing or damaged.

    Attributes:
        folder: of the store.
        count: how many images the split has.
        chunk: how many images one file is of.
        about: what the columns mean, as `prepare` was told.
        image_ids: in order, as far as there are results.
    """

    def __init__(self, folder: Path):
        """Opens the store that `prepare` made.

        Raises:
            FileNotFoundError: there is none.
            DataError: it is damaged, or of another version.
        """
        if not (folder / 'index.json').exists():
            raise FileNotFoundError(f'no results in {folder}; run the stage localize first')
        self.folder = folder
        index = read_index(folder)
        self.count: int = index['images']
        self.chunk: int = index['chunk']
        self.about: dict[str, Any] = index['about']
        self.image_ids = read_ids(folder / _IDS)
        if len(self.image_ids) > self.count:
            raise DataError(f'{folder / _IDS} lists more than the {self.count} images; delete it')
        self._places = places_of(folder, index)
        self._arrays = {n: opened(self._places[n], m) for n, m in arrays_of(index).items()}

    @property
    def names(self) -> list[str]:
        """Of the columns, without 'status'."""
        return [name for name in self._arrays if name != 'status']

    @classmethod
    def prepare(
        cls,
        folder: Path,
        count: int,
        columns: Mapping[str, Column],
        about: Mapping[str, Any],
        url: str = '',
    ) -> Self:
        """Opens a store to write to, making what does not exist yet.

        What is damaged is removed; its images are pending again. Of several processes the first
        does this, and the others open what it made.

        Args:
            folder: of the store.
            count: how many images the split has.
            columns: by name; a name may hold a slash.
            about: what they mean, of JSON's types.
            url: under which the columns are to lie, with nothing else, see
                `wsol_jax.maps.elsewhere`; '' for the folder.

        Raises:
            ConfigError: the URL is out of reach.
            DataError: the store there is of other images or columns, or of another version.
        """
        from wsol_jax.hosts import first_of_all  # here, as JAX

        index = index_of(count, CHUNK, columns, about, url)
        made = partial(cls._made, folder, index)
        return first_of_all(f'store {folder.name}', made, partial(cls, folder))

    @classmethod
    def _made(cls, folder: Path, index: dict[str, Any]) -> Self:
        there = (folder / 'index.json').exists()
        if there and read_index(folder) != index:
            raise DataError(
                f'{folder} holds results of other images or settings, such as methods, layers or '
                'classes, than the run has now; delete that folder'
            )
        fresh = not folder.exists()
        if not there and 'url' in index:
            clear(index['url'])  # what lies there, no status knows of any more
        for name, place in places_of(folder, index).items():
            make(place, arrays_of(index)[name])
        if not there:
            write_text(folder / 'index.json', json.dumps(index, indent=2) + '\n')
        store = cls(folder)
        if not fresh:
            store._repair()
        return store

    def expect(self, image_ids: Sequence[str], first: int = 0) -> None:
        """Checks that results there are of these images, which stand in the source from `first` on.

        Raises:
            DataError: they are of others.
        """
        known = self.image_ids[first : first + len(image_ids)]
        if known != list(image_ids[: len(known)]):
            raise DataError(
                f'{self.folder} holds results of other images than the split has now; '
                'delete that folder'
            )

    def name(self, image_ids: Sequence[str]) -> None:
        """Notes all images, in order: where several processes write, none has those of the others.

        Raises:
            DataError: there are results of other images.
        """
        self.expect(image_ids)
        known = len(self.image_ids)
        self._name(range(known, len(image_ids)), image_ids[known:])

    def read_names(self) -> None:
        """Takes up what another process noted with `name`."""
        self.image_ids = read_ids(self.folder / _IDS)

    def fact(self, name: str) -> np.ndarray:
        """Reads 'status' or another column whole: [images, ...].

        Raises:
            DataError: it is damaged.
        """
        return self.rows(name, slice(0, self.count))

    def pending(self) -> np.ndarray:
        """Positions of the images still to be done."""
        return np.flatnonzero(self.fact('status') == PENDING)

    def write(
        self,
        index: np.ndarray,
        image_ids: Sequence[str],
        status: np.ndarray,
        values: Mapping[str, np.ndarray],
    ) -> None:
        """Stores some images: everything else first, their status last.

        Args:
            index: [n] their positions, increasing; those without an id yet follow each other.
            image_ids: n of them.
            status: [n] `DONE` or `SKIPPED`.
            values: {column: [n, ...]}.

        Raises:
            DataError: there are results of other images at these positions, or these cannot be
                written; those before are kept.
        """
        if not len(index):
            return
        self._name(index.tolist(), image_ids)
        self._put(index, values)
        self._put(index, {'status': status.astype(np.uint8)})

    def _put(self, index: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        writes = {name: self._arrays[name][index].write(value) for name, value in values.items()}
        for name, written in writes.items():
            try:
                written.result()
            except ValueError as error:
                raise DataError(f'{self._places[name]}: {reason_of(error)}') from None

    def _name(self, index: Sequence[int], image_ids: Sequence[str]) -> None:
        """Appends to image_ids.txt the ids that it does not have."""
        known = len(self.image_ids)
        for position, image_id in zip(index, image_ids, strict=True):
            if position < known:
                self.expect([image_id], position)
        new = [(i, name) for i, name in zip(index, image_ids, strict=True) if i >= known]
        if [i for i, _ in new] != list(range(known, known + len(new))):
            raise ValueError(f'images {new[0][0]} ... do not follow the {known} that are there')
        names = [name for _, name in new]
        with (self.folder / _IDS).open('ab') as file:
            file.write(lines_of(names))
        self.image_ids += names

    def skipped(self) -> dict[str, str]:
        """{image_id: reason} of the images that could not be read."""
        return _reasons([self.folder / 'skipped.csv', *self._skipped_by_others()])

    def _skipped_by_others(self) -> list[Path]:
        """What other processes than the first skipped, until it is joined."""
        return sorted(self.folder.glob('skipped.[0-9]*.csv'))

    def skip(self, reasons: Mapping[str, str], process: int = 0) -> None:
        """Adds images to skipped.csv; processes after the first have files of their own.

        Args:
            reasons: {image_id: reason}.
            process: which one this is.
        """
        if reasons:
            name = f'skipped.{process}.csv' if process else 'skipped.csv'
            self._write_skipped(name, _reasons([self.folder / name]) | dict(reasons))

    def join_skipped(self) -> None:
        """Puts into skipped.csv what other processes skipped, once they are done."""
        if others := self._skipped_by_others():
            self._write_skipped('skipped.csv', self.skipped())
            for file in others:
                file.unlink()

    def _write_skipped(self, name: str, reasons: Mapping[str, str]) -> None:
        write_csv(self.folder / name, ('image_id', 'reason'), sorted(reasons.items()))

    def redo(self, positions: Sequence[int]) -> None:
        """Makes images that were skipped pending again."""
        if positions:
            again = {self.image_ids[i] for i in positions}
            left = {i: reason for i, reason in self.skipped().items() if i not in again}
            self._write_skipped('skipped.csv', left)
            pending = np.full(len(positions), PENDING, np.uint8)
            self._put(np.array(positions), {'status': pending})

    def rows(self, name: str, index: slice | np.ndarray) -> np.ndarray:
        """Reads a column [n, ...] at some positions.

        Raises:
            DataError: it is damaged there.
        """
        try:
            return self._arrays[name][index].read().result()
        except ValueError as error:
            chunks = np.unique(np.r_[index] // self.chunk).tolist()
            where, reason = next(self._unreadable(name, chunks), (chunks[0], reason_of(error)))
            first, stop = self._bounds(where)
            image_id = ''.join(self.image_ids[first : first + 1])
            images = f'images {first} to {stop - 1} ({image_id} ...)'
            raise DataError(f'{self._places[name]}: {images}: {_fault(reason)}') from None

    def _bounds(self, chunk: int) -> tuple[int, int]:
        """Positions of the first image of a chunk and of the one behind its last."""
        return chunk * self.chunk, min((chunk + 1) * self.chunk, self.count)

    def _unreadable(self, name: str, chunks: Iterable[int]) -> Iterator[tuple[int, str]]:
        """Those of the chunks of an array that cannot be read, and what tensorstore says."""
        chunks = list(chunks)
        for i in range(0, len(chunks), _AT_ONCE):
            some = chunks[i : i + _AT_ONCE]
            slices = [slice(*self._bounds(chunk)) for chunk in some]
            reads = [self._arrays[name][s].read() for s in slices]
            for chunk, read in zip(some, reads, strict=True):
                try:
                    read.result()
                except ValueError as error:
                    yield chunk, reason_of(error)

    def _repair(self) -> None:
        """Removes what is damaged; what is not whole any more is pending again."""
        whole, ids = len(lines_of(self.image_ids)), self.folder / _IDS
        if ids.exists() and ids.stat().st_size > whole:
            os.truncate(ids, whole)
        chunks = range(-(-self.count // self.chunk))
        found: set[int] = set()
        for name in self._arrays:
            for chunk, reason in self._unreadable(name, chunks):
                if not _is_missing(reason):
                    if not is_damage(reason):
                        raise DataError(f'{self._places[name]}: {reason}')
                    self._remove(name, chunk)
                found.add(chunk)
        status = self.fact('status')
        for first, stop in map(self._bounds, sorted(found)):
            status[first:stop] = PENDING
        status[len(self.image_ids) :] = PENDING
        changed = np.flatnonzero(status != self.fact('status'))
        if len(changed):
            self._put(changed, {'status': status[changed]})

    def _remove(self, name: str, chunk: int) -> None:
        zeros = '.0' * (self._arrays[name].rank - 1)
        kvstore: Any = self._arrays[name].kvstore
        kvstore.write(f'{chunk}{zeros}', None).result()


def _is_missing(reason: str) -> bool:
    return reason.startswith('NOT_FOUND')


def _fault(reason: str) -> str:
    """What is wrong with a chunk, and what to do."""
    if _is_missing(reason):
        return f'missing; {AGAIN}'
    return f'damaged ({reason}); {AGAIN}' if is_damage(reason) else reason


def _reasons(files: Iterable[Path]) -> dict[str, str]:
    return {row['image_id']: row['reason'] for file in files for row in read_csv(file)}


class ChunkWriter:
    """Collects batches for a store, and writes each chunk once where it can.

    Whatever ends the `with` block, all that was added is written. Where chunks fill slowly, one is
    written before it is whole, so that a kill costs some seconds of work.
    """

    def __init__(self, store: Store):
        """Writes to this store."""
        self._store = store
        self._batches: list[dict[str, np.ndarray]] = []
        self._written = time.monotonic()

    def __enter__(self) -> 'ChunkWriter':
        return self

    def __exit__(self, *_: object) -> None:
        self._write(self._store.count)

    def add(
        self,
        index: np.ndarray,
        image_ids: Sequence[str],
        status: np.ndarray,
        values: Mapping[str, np.ndarray],
    ) -> None:
        """Takes a batch as `Store.write` does; positions must increase over all batches."""
        if not len(index):
            return
        names = np.array(image_ids, object)
        self._batches.append({_INDEX: index, _IDS: names, 'status': status, **values})
        first, stop = self._batches[0][_INDEX][0], index[-1] + 1
        whole = stop // self._store.chunk
        if whole > first // self._store.chunk:
            self._write(whole * self._store.chunk)
        elif time.monotonic() - self._written > _SECONDS:
            self._write(self._store.count)

    def _write(self, stop: int) -> None:
        """Writes the images before a position."""
        if self._batches:
            rows = {n: np.concatenate([b[n] for b in self._batches]) for n in self._batches[0]}
            count = int(np.searchsorted(rows[_INDEX], stop))
            now = {name: values[:count] for name, values in rows.items()}
            index, names, status = (now.pop(name) for name in (_INDEX, _IDS, 'status'))
            self._store.write(index, names.tolist(), status, now)
            left = {name: values[count:] for name, values in rows.items()}
            self._batches = [left] if len(left[_INDEX]) else []
        self._written = time.monotonic()

"""Raw maps on disk: zarr arrays through tensorstore, filled chunk by chunk, resumable."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsol_jax.data import DataError
from wsol_jax.maps import Key
from wsol_jax.workdir import read_csv, read_json, write_csv, write_text

if TYPE_CHECKING:  # counting processes know of the store, and open none
    import tensorstore as ts

PENDING, DONE, SKIPPED = 0, 1, 2
TOP = 5
CHUNK = 64  # images: few files, and little is read or written that is not asked for
_AT_ONCE = 16  # chunks that are read side by side
_SECONDS = 3.0  # of work that a kill can cost where a chunk fills slowly
_FACTS = {'status': 'uint8', 'classes': 'int32', 'class_scores': 'float32', 'top': 'int32'}
_VALUES = ('classes', 'class_scores', 'top')
# What tensorstore says of a file that is there, but not whole, or not of this array.
_DAMAGED = ('DATA_LOSS', 'FAILED_PRECONDITION', 'INVALID_ARGUMENT', 'OUT_OF_RANGE')
_AGAIN = 'run the stage localize again'
_IDS = 'image_ids.txt'


class MapStore:
    """The maps of one split, `maps/<split>/` in the workdir.

    One zarr array [images, classes, h, w] per (method, layer); `classes` [images, K], what each
    map is for; `class_scores` [images, K], its probability; `top` [images, 5], the classes
    ranked first; `status` [images], written last for each chunk, so what it does not mark done is
    computed again. `index.json` lists the arrays, `image_ids.txt` the images in order, as far as
    there are maps.

    Every array has a file with a checksum for the same `chunk` images; nothing is ever read from
    one that is missing or damaged.
    """

    def __init__(self, folder: Path):
        """Opens the store that `create` made.

        Raises:
            FileNotFoundError: there is none.
            DataError: it is damaged, or of another version.
        """
        if not (folder / 'index.json').exists():
            raise FileNotFoundError(f'no maps in {folder}; run the stage localize first')
        self.folder = folder
        index = _read_index(folder)
        self.target: str = index['classes']
        self.count: int = index['images']
        self.chunk: int = index['chunk']
        self.image_ids = _read_ids(folder / _IDS)
        if len(self.image_ids) > self.count:
            raise DataError(f'{folder / _IDS} lists more than the {self.count} images; delete it')
        self._arrays = {n: _opened(folder / n, m) for n, m in _layout(index).items()}
        keys = {(m['method'], m['layer']): m for m in index['maps']}
        self.arrays = {key: self._arrays[m['path']] for key, m in keys.items()}
        self.relu: dict[Key, bool] = {key: m['relu'] for key, m in keys.items()}

    @classmethod
    def create(
        cls,
        folder: Path,
        count: int,
        target: str,
        shapes: Mapping[Key, tuple[int, ...]],
        relu: Mapping[Key, bool],
        num_top: int,
    ) -> 'MapStore':
        """Opens a store to write to, making what does not exist yet.

        What is damaged is removed; its images are pending again.

        Args:
            folder: of the store.
            count: how many images the split has.
            target: which classes the maps are for, as configured.
            shapes: (K, h, w) of the maps of every (method, layer).
            relu: whether scoring starts with a ReLU.
            num_top: length of the ranking of classes.

        Raises:
            DataError: the store there is of other images, maps or classes, or of another version.
        """
        index = _index(count, target, shapes, relu, num_top)
        there = (folder / 'index.json').exists()
        if there and _read_index(folder) != index:
            raise DataError(
                f'{folder} holds maps of other images, methods, layers or classes than the run '
                'has now; delete that folder'
            )
        fresh = not folder.exists()
        if len(set(map(_path, shapes))) < len(shapes):
            raise DataError(f'two layers of {list(shapes)} would be stored under one name')
        for name, metadata in _layout(index).items():
            _make(folder / name, metadata)
        if not there:
            write_text(folder / 'index.json', json.dumps(index, indent=2) + '\n')
        store = cls(folder)
        if not fresh:
            store._repair()
        return store

    def expect(self, image_ids: Sequence[str], first: int = 0) -> None:
        """Checks that maps there are of these images, which stand in the source from `first` on.

        Raises:
            DataError: they are of others.
        """
        known = self.image_ids[first : first + len(image_ids)]
        if known != list(image_ids[: len(known)]):
            raise DataError(
                f'{self.folder} holds maps of other images than the split has now; '
                'delete that folder'
            )

    def fact(self, name: str) -> np.ndarray:
        """Reads 'status', 'classes', 'class_scores' or 'top' whole.

        Raises:
            DataError: it is damaged.
        """
        return self._read(name, slice(0, self.count))

    def pending(self) -> np.ndarray:
        """Positions of the images still to be done."""
        return np.flatnonzero(self.fact('status') == PENDING)

    def read(self, key: Key, start: int, stop: int) -> np.ndarray:
        """Raw maps [stop - start, K, h, w] of one (method, layer).

        Raises:
            DataError: they are damaged.
        """
        return self._read(_path(key), slice(start, stop))

    def take(self, key: Key, positions: np.ndarray) -> np.ndarray:
        """Raw maps [n, K, h, w] of one (method, layer) at any n positions.

        Raises:
            DataError: they are damaged.
        """
        return self._read(_path(key), positions)

    def write(
        self,
        index: np.ndarray,
        image_ids: Sequence[str],
        status: np.ndarray,
        facts: Mapping[str, np.ndarray],
        maps: Mapping[Key, np.ndarray],
    ) -> None:
        """Stores some images: everything else first, their status last.

        Args:
            index: [n] their positions, increasing; those without an id yet follow each other.
            image_ids: n of them.
            status: [n] `DONE` or `SKIPPED`.
            facts: {name: [n, ...]}, see `fact`.
            maps: {(method, layer): [n, K, h, w]}.

        Raises:
            DataError: there are maps of other images at these positions.
        """
        if not len(index):
            return
        self._name(index.tolist(), image_ids)
        writes = [self._arrays[name][index].write(value) for name, value in facts.items()]
        writes += [self.arrays[key][index].write(value) for key, value in maps.items()]
        for future in writes:
            future.result()
        self._arrays['status'][index].write(status.astype(np.uint8)).result()

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
            file.write(_lines(names))
        self.image_ids += names

    def skipped(self) -> dict[str, str]:
        """{image_id: reason} of the images that could not be read."""
        return {r['image_id']: r['reason'] for r in read_csv(self.folder / 'skipped.csv')}

    def skip(self, reasons: Mapping[str, str]) -> None:
        """Adds images to skipped.csv."""
        if reasons:
            rows = sorted((self.skipped() | dict(reasons)).items())
            write_csv(self.folder / 'skipped.csv', ('image_id', 'reason'), rows)

    def redo(self, positions: Sequence[int]) -> None:
        """Makes images that were skipped pending again."""
        if positions:
            again = {self.image_ids[i] for i in positions}
            rows = [(i, reason) for i, reason in self.skipped().items() if i not in again]
            write_csv(self.folder / 'skipped.csv', ('image_id', 'reason'), rows)
            self._arrays['status'][np.array(positions)].write(np.uint8(PENDING)).result()

    def _read(self, name: str, index: slice | np.ndarray) -> np.ndarray:
        try:
            return self._arrays[name][index].read().result()
        except ValueError as error:
            chunks = np.unique(np.r_[index] // self.chunk).tolist()
            where, reason = next(self._unreadable(name, chunks), (chunks[0], _reason(error)))
            first, stop = self._bounds(where)
            image_id = ''.join(self.image_ids[first : first + 1])
            images = f'images {first} to {stop - 1} ({image_id} ...)'
            fault = 'missing' if reason.startswith('NOT_FOUND') else f'damaged ({reason})'
            raise DataError(f'{self.folder / name}: {images}: {fault}; {_AGAIN}') from None

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
                    yield chunk, _reason(error)

    def _repair(self) -> None:
        """Removes what is damaged; what is not whole any more is pending again."""
        whole, ids = len(_lines(self.image_ids)), self.folder / _IDS
        if ids.exists() and ids.stat().st_size > whole:
            os.truncate(ids, whole)
        chunks = range(-(-self.count // self.chunk))
        found: set[int] = set()
        for name in self._arrays:
            for chunk, reason in self._unreadable(name, chunks):
                if not reason.startswith(('NOT_FOUND', *_DAMAGED)):
                    raise DataError(f'{self.folder / name}: {reason}')
                self._file(name, chunk).unlink(missing_ok=True)
                found.add(chunk)
        status = self.fact('status')
        for first, stop in map(self._bounds, sorted(found)):
            status[first:stop] = PENDING
        status[len(self.image_ids) :] = PENDING
        changed = np.flatnonzero(status != self.fact('status'))
        if len(changed):
            self._arrays['status'][changed].write(status[changed]).result()

    def _file(self, name: str, chunk: int) -> Path:
        zeros = '.0' * (self._arrays[name].rank - 1)
        return self.folder / name / f'{chunk}{zeros}'


class ChunkWriter:
    """Collects batches for a store, and writes each chunk once where it can.

    Whatever ends the `with` block, all that was added is written. Where chunks fill slowly, one is
    written before it is whole, so that a kill costs some seconds of work.
    """

    def __init__(self, store: MapStore):
        """Writes to this store."""
        self._store = store
        self._batches: list[dict[Any, np.ndarray]] = []
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
        facts: Mapping[str, np.ndarray],
        maps: Mapping[Key, np.ndarray],
    ) -> None:
        """Takes a batch as `MapStore.write` does; positions must increase over all batches."""
        if not len(index):
            return
        names = np.array(image_ids, object)
        self._batches.append({'index': index, 'ids': names, 'status': status, **facts, **maps})
        first, stop = self._batches[0]['index'][0], index[-1] + 1
        whole = stop // self._store.chunk
        if whole > first // self._store.chunk:
            self._write(whole * self._store.chunk)
        elif time.monotonic() - self._written > _SECONDS:
            self._write(self._store.count)

    def _write(self, stop: int) -> None:
        """Writes the images before a position."""
        if self._batches:
            rows = {n: np.concatenate([b[n] for b in self._batches]) for n in self._batches[0]}
            count = int(np.searchsorted(rows['index'], stop))
            now = {name: values[:count] for name, values in rows.items()}
            self._store.write(
                now['index'],
                now['ids'].tolist(),
                now['status'],
                {name: values for name, values in now.items() if name in _VALUES},
                {key: values for key, values in now.items() if key in self._store.arrays},
            )
            left = {name: values[count:] for name, values in rows.items()}
            self._batches = [left] if len(left['index']) else []
        self._written = time.monotonic()


def _index(
    count: int,
    target: str,
    shapes: Mapping[Key, Sequence[int]],
    relu: Mapping[Key, bool],
    num_top: int,
) -> dict[str, Any]:
    """What index.json holds."""
    maps = [
        {'method': k[0], 'layer': k[1], 'path': _path(k), 'shape': [*shape], 'relu': relu[k]}
        for k, shape in shapes.items()
    ]
    return {'classes': target, 'images': count, 'top': num_top, 'chunk': CHUNK, 'maps': maps}


def _read_index(folder: Path) -> dict[str, Any]:
    """index.json of a store.

    Raises:
        ConfigError: it is no JSON object.
        DataError: it is not as `_index` makes it.
    """
    file = folder / 'index.json'
    index = read_json(file)
    if index.keys() == {'classes', 'images', 'maps'}:
        raise DataError(
            f'{folder} holds maps of an older version of wsol_jax, in files of another form; '
            'delete that folder and run the stage localize again'
        )
    if not _is_index(index):
        raise DataError(f'{file} is no index of maps of this version; delete it and {_AGAIN}')
    return index


def _is_index(index: Mapping[str, Any]) -> bool:
    try:
        keys = {(m['method'], m['layer']): m for m in index['maps']}
        shapes = {key: m['shape'] for key, m in keys.items()}
        relu = {key: bool(m['relu']) for key, m in keys.items()}
        same = _index(index['images'], str(index['classes']), shapes, relu, index['top'])
        numbers = [index[name] for name in ('images', 'top', 'chunk')]
        numbers += [size for shape in shapes.values() for size in shape]
        return (
            index == same | {'chunk': index['chunk']}
            and all(type(n) is int and 0 < n < 2**31 for n in numbers)
            and {len(shape) for shape in shapes.values()} == {3}
        )
    except (AttributeError, DataError, KeyError, TypeError):
        return False


def _path(key: Key) -> str:
    """Where the maps of a (method, layer) are, below the folder of the store."""
    method, layer = key[0], key[1].replace('/', '.')
    wrong = {'', '.', '..'}
    if method in wrong.union(_FACTS) or layer in wrong or '/' in method or '\0' in method + layer:
        raise DataError(f'maps of {key[0]!r} at {key[1]!r} cannot be stored under these names')
    return f'{method}/{layer}'


def _layout(index: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{name: metadata} of every array of a store, status first."""
    num_classes = index['maps'][0]['shape'][0]
    widths = {'classes': (num_classes,), 'class_scores': (num_classes,), 'top': (index['top'],)}
    count, chunk = index['images'], min(index['chunk'], index['images'])
    facts = {name: (widths.get(name, ()), dtype) for name, dtype in _FACTS.items()}
    maps = {m['path']: (m['shape'], 'float32') for m in index['maps']}
    return {
        name: _metadata((count, *shape), (chunk, *shape), dtype)
        for name, (shape, dtype) in (facts | maps).items()
    }


def _metadata(shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str) -> dict[str, Any]:
    compression = {'cname': 'lz4', 'clevel': 5, 'shuffle': 'shuffle'}
    return {
        'shape': shape,
        'data_type': dtype,
        'fill_value': 0,
        'chunk_grid': {'name': 'regular', 'configuration': {'chunk_shape': chunks}},
        'chunk_key_encoding': {'name': 'v2', 'configuration': {'separator': '.'}},
        'codecs': [
            {'name': 'bytes', 'configuration': {'endian': 'little'}},
            {'name': 'blosc', 'configuration': compression},
            {'name': 'crc32c'},
        ],
    }


def _make(path: Path, metadata: dict[str, Any]) -> None:
    """Makes an array, in place of one that cannot be opened or is another."""
    try:
        _open(path, metadata)
    except ValueError:
        shutil.rmtree(path, ignore_errors=True)
        _open(path, metadata)


def _opened(path: Path, metadata: dict[str, Any]) -> 'ts.TensorStore':
    try:
        return _open(path, metadata, create=False)
    except ValueError as error:
        raise DataError(f'{path}: {_reason(error)}; {_AGAIN}') from None


def _open(path: Path, metadata: dict[str, Any], create: bool = True) -> 'ts.TensorStore':
    import tensorstore as ts

    spec: dict[str, Any] = {
        'driver': 'zarr3',
        'kvstore': {'driver': 'file', 'path': str(path.absolute())},
        'metadata': metadata,
        # Every chunk that was written has a file, and one without is an error, not zeros; but no
        # status means pending.
        'store_data_equal_to_fill_value': True,
        'fill_missing_data_reads': path.name == 'status',
    }
    return ts.open(spec, open=True, create=create).result()


def _reason(error: Exception) -> str:
    """The one line of tensorstore's message that says what is wrong."""
    return ' '.join(str(error).split(' [tensorstore_spec')[0].split())


def _read_ids(file: Path) -> list[str]:
    """The lines of image_ids.txt; the last one does not count where a kill cut it off."""
    try:
        lines = file.read_bytes().split(b'\n')[:-1] if file.exists() else []
    except OSError as error:
        raise DataError(f'{file}: {error.strerror}') from None
    texts = (line.decode('utf-8', 'surrogateescape') for line in lines)
    return [re.sub(r'\\([n\\])', lambda m: '\n' if m[1] == 'n' else m[1], t) for t in texts]


def _lines(image_ids: Iterable[str]) -> bytes:
    r"""Lines of image_ids.txt; a line end in a name is \n there, and \ is \\."""
    escaped = (name.replace('\\', r'\\').replace('\n', r'\n') for name in image_ids)
    return ''.join(f'{name}\n' for name in escaped).encode('utf-8', 'surrogateescape')

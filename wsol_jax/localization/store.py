"""Raw maps on disk: zarr arrays through tensorstore, filled batch by batch, resumable."""

import json
from collections.abc import Mapping, Sequence
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


class MapStore:
    """The maps of one split, `maps/<split>/` in the workdir.

    One zarr array [images, classes, h, w] per (method, layer); `classes` [images, K], what each
    map is for; `class_scores` [images, K], its softmax probability; `top` [images, 5], the classes
    ranked first; `status` [images], written last for each batch, so what it does not mark done is
    computed again. `index.json` lists the arrays, `image_ids.txt` the images in order.
    """

    def __init__(self, folder: Path):
        """Opens the store that `create` made.

        Raises:
            FileNotFoundError: there is none.
        """
        if not (folder / 'index.json').exists():
            raise FileNotFoundError(f'no maps in {folder}; run the stage localize first')
        self.folder = folder
        index = read_json(folder / 'index.json')
        self.target: str = index['classes']
        self.count: int = index['images']
        self.image_ids = (folder / 'image_ids.txt').read_text(encoding='utf-8').split('\n')[:-1]
        self.arrays = {(m['method'], m['layer']): _open(folder / m['path']) for m in index['maps']}
        self.relu: dict[Key, bool] = {(m['method'], m['layer']): m['relu'] for m in index['maps']}
        self._facts = {name: _open(folder / name) for name in _FACTS}

    @classmethod
    def create(
        cls,
        folder: Path,
        image_ids: Sequence[str],
        target: str,
        shapes: Mapping[Key, tuple[int, int, int]],
        relu: Mapping[Key, bool],
        num_top: int,
        chunk: int,
    ) -> 'MapStore':
        """Opens a store, making its arrays where they do not exist yet.

        Args:
            folder: of the store.
            image_ids: in the order of the source.
            target: which classes the maps are for, as configured.
            shapes: (K, h, w) of the maps of every (method, layer).
            relu: whether scoring starts with a ReLU.
            num_top: length of the ranking of classes.
            chunk: images per chunk.

        Raises:
            DataError: the store there is of other images.
        """
        if not (folder / 'index.json').exists():
            count = len(image_ids)
            num_classes = next(iter(shapes.values()))[0]
            widths = {'classes': (num_classes,), 'class_scores': (num_classes,), 'top': (num_top,)}
            for name, dtype in _FACTS.items():
                shape = (count, *widths.get(name, ()))
                _open(folder / name, _metadata(shape, shape, dtype))
            for key, shape in shapes.items():
                size = min(chunk, count)
                _open(folder / _path(key), _metadata((count, *shape), (size, *shape), '<f4'))
            maps = [
                {'method': k[0], 'layer': k[1], 'path': _path(k), 'relu': relu[k]} for k in shapes
            ]
            index = {'classes': target, 'images': count, 'maps': maps}
            write_text(folder / 'image_ids.txt', ''.join(f'{i}\n' for i in image_ids))
            write_text(folder / 'index.json', json.dumps(index, indent=2) + '\n')
        store = cls(folder)
        if store.image_ids != list(image_ids):
            raise DataError(
                f'{folder} holds maps of other images than the split has now; delete that folder'
            )
        return store

    def fact(self, name: str) -> np.ndarray:
        """Reads 'status', 'classes', 'class_scores' or 'top' whole."""
        return self._facts[name].read().result()

    def pending(self) -> np.ndarray:
        """Positions of the images still to be done."""
        return np.flatnonzero(self.fact('status') == PENDING)

    def read(self, key: Key, start: int, stop: int) -> np.ndarray:
        """Raw maps [stop - start, K, h, w] of one (method, layer)."""
        return self.arrays[key][start:stop].read().result()

    def write(
        self,
        index: np.ndarray,
        status: np.ndarray,
        facts: Mapping[str, np.ndarray],
        maps: Mapping[Key, np.ndarray],
    ) -> None:
        """Stores a batch: everything else first, its status last."""
        if not len(index):
            return
        writes = [self._facts[name][index].write(value) for name, value in facts.items()]
        writes += [self.arrays[key][index].write(value) for key, value in maps.items()]
        for future in writes:
            future.result()
        self._facts['status'][index].write(status.astype(np.uint8)).result()

    def skipped(self) -> dict[str, str]:
        """{image_id: reason} of the images that could not be read."""
        return {r['image_id']: r['reason'] for r in read_csv(self.folder / 'skipped.csv')}

    def skip(self, reasons: Mapping[str, str]) -> None:
        """Adds images to skipped.csv."""
        if reasons:
            rows = sorted((self.skipped() | dict(reasons)).items())
            write_csv(self.folder / 'skipped.csv', ('image_id', 'reason'), rows)


_FACTS = {'status': '|u1', 'classes': '<i4', 'class_scores': '<f4', 'top': '<i4'}


def _path(key: Key) -> str:
    return f'{key[0]}/{key[1].replace("/", ".")}'


def _metadata(shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str) -> dict[str, Any]:
    return {'shape': shape, 'chunks': chunks, 'dtype': dtype, 'fill_value': 0}


def _open(path: Path, metadata: dict[str, Any] | None = None) -> 'ts.TensorStore':
    import tensorstore as ts

    spec: dict[str, Any] = {
        'driver': 'zarr',
        'kvstore': {'driver': 'file', 'path': str(path.absolute())},
    }
    if metadata is not None:
        return ts.open({**spec, 'metadata': metadata}, open=True, create=True).result()
    return ts.open(spec, open=True).result()

"""Raw maps on disk: the maps of one split as columns of a store."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsol_jax.data import DataError
from wsol_jax.maps import Key
from wsol_jax.maps.columns import Store
from wsol_jax.maps.layout import AGAIN, Column, is_inside
from wsol_jax.workdir import read_class_names, write_class_names

TOP = 5
_NAMES = 'class_names.json'


class MapStore(Store):
    """The maps of one split, `maps/<split>/` in the workdir.

    One column [K, h, w] per (method, layer); `classes` [K], what each map is for; `class_scores`
    [K], its probability; `top` [5], the classes ranked first. Images with fewer than K classes have
    class -1, score 0 and maps of zeros in the places left over. Where every class is for
    itself `logits` [C], too.

    Attributes:
        target: which classes the maps are for, as configured.
        relu: whether scoring starts with a ReLU, by (method, layer).
        arrays: the arrays of maps by (method, layer).
    """

    def __init__(self, folder: Path):
        """Opens the store that `create` made.

        Raises:
            FileNotFoundError: there is none.
            DataError: it is damaged, of another version, or no store of maps.
        """
        super().__init__(folder)
        try:
            listed = {(m['method'], m['layer']): m['relu'] for m in self.about['maps']}
            self.arrays = {key: self._arrays[path_of(key)] for key in listed}
            wrong = not listed or self.about != _about(str(self.about['classes']), listed)
        except (AttributeError, DataError, KeyError, TypeError):
            wrong = True
        if wrong:
            file = folder / 'index.json'
            raise DataError(f'{file} is no index of maps of this version; delete it and {AGAIN}')
        self.target: str = self.about['classes']
        self.relu: dict[Key, bool] = listed

    @classmethod
    def create(
        cls,
        folder: Path,
        count: int,
        target: str,
        shapes: Mapping[Key, tuple[int, ...]],
        relu: Mapping[Key, bool],
        num_top: int,
        num_logits: int = 0,
        url: str = '',
    ) -> 'MapStore':
        """Opens a store to write to, making what does not exist yet; see `Store.prepare`.

        Args:
            folder: of the store.
            count: how many images the split has.
            target: which classes the maps are for, as configured.
            shapes: (K, h, w) of the maps of every (method, layer).
            relu: whether scoring starts with a ReLU.
            num_top: length of the ranking of classes.
            num_logits: of how many classes logits are stored.
            url: under which the maps are to lie; '' for the folder.

        Raises:
            DataError: the store there is of other images, maps or classes, or of another version.
        """
        if len(set(map(path_of, shapes))) < len(shapes):
            raise DataError(f'two layers of {list(shapes)} would be stored under one name')
        num_classes = next(iter(shapes.values()))[0]
        columns = {
            'classes': Column((num_classes,), 'int32'),
            'class_scores': Column((num_classes,), 'float32'),
            'top': Column((num_top,), 'int32'),
        }
        columns |= {'logits': Column((num_logits,), 'float32')} if num_logits else {}
        columns |= {path_of(key): Column(tuple(s), 'float32') for key, s in shapes.items()}
        about = _about(target, {k: relu[k] for k in shapes})
        return cls.prepare(folder, count, columns, about, url)

    def name_classes(self, names: Sequence[str]) -> None:
        """Notes what the classifier calls its classes, for labels that the data set does not name.

        Args:
            names: in the order of the logits.
        """
        write_class_names(self.folder / _NAMES, names)

    def class_names(self) -> tuple[str, ...]:
        """What `name_classes` noted; () where nothing is."""
        return read_class_names(self.folder / _NAMES) or ()

    def read(self, key: Key, start: int, stop: int) -> np.ndarray:
        """Raw maps [stop - start, K, h, w] of one (method, layer).

        Raises:
            DataError: they are damaged.
        """
        return self.rows(path_of(key), slice(start, stop))

    def take(self, key: Key, positions: np.ndarray) -> np.ndarray:
        """Raw maps [n, K, h, w] of one (method, layer) at any n positions.

        Raises:
            DataError: they are damaged.
        """
        return self.rows(path_of(key), positions)


def _about(target: str, relu: Mapping[Key, bool]) -> dict[str, Any]:
    """What index.json tells of the columns."""
    maps = [{'method': k[0], 'layer': k[1], 'relu': bool(value)} for k, value in relu.items()]
    return {'classes': target, 'maps': maps}


def by_column(maps: Mapping[Key, np.ndarray]) -> dict[str, np.ndarray]:
    """Maps by the names of their columns."""
    return {path_of(key): values for key, values in maps.items()}


def path_of(key: Key) -> str:
    """The name of the column with the maps of a (method, layer).

    Raises:
        DataError: this name would lead elsewhere.
    """
    method, layer = key[0], key[1].replace('/', '.')
    facts = ('classes', 'class_scores', 'top', 'logits')
    name = f'{method}/{layer}'
    if '/' in method or method in facts or not is_inside(name):
        raise DataError(f'maps of {key[0]!r} at {key[1]!r} cannot be stored under these names')
    return name

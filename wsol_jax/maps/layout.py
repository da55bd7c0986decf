"""How a store lies on disk: its index, the names of its columns, and the files of their arrays."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from wsol_jax.data import DataError
from wsol_jax.fields import store_url
from wsol_jax.maps.elsewhere import context, reason_of
from wsol_jax.workdir import read_json

if TYPE_CHECKING:  # counting processes know of the store, and open none
    import tensorstore as ts

AGAIN = 'run the stage localize again'
# What tensorstore says of a file that is there, but not whole, or not of this array.
_DAMAGED = ('DATA_LOSS', 'FAILED_PRECONDITION', 'INVALID_ARGUMENT', 'OUT_OF_RANGE')


class Column(NamedTuple):
    """What is stored of each image under one name.

    Attributes:
        shape: of one image's values.
        dtype: such as 'float32'.
    """

    shape: tuple[int, ...]
    dtype: str


_DTYPES = ('uint8', 'int32', 'float32')
STATUS = {'status': Column((), 'uint8')}


class Place(NamedTuple):
    """Where an array lies.

    Attributes:
        folder: of its store.
        url: under which it lies instead; '' for the folder.
        name: of the array.
    """

    folder: Path
    url: str
    name: str

    def __str__(self) -> str:
        return f'{self.url or self.folder}/{self.name}'

    @property
    def kvstore(self) -> Any:
        """As tensorstore is told."""
        if self.url:
            return f'{self.url}/{quote(self.name)}/'
        return {'driver': 'file', 'path': str((self.folder / self.name).absolute())}


def index_of(
    count: int, chunk: int, columns: Mapping[str, Column], about: Mapping[str, Any], url: str = ''
) -> dict[str, Any]:
    """What index.json holds.

    Args:
        count: images.
        chunk: images that are stored together.
        columns: by name.
        about: JSON that tells what the columns mean.
        url: under which they lie; '' for the folder.
    """
    listed = {n: {'shape': [*c.shape], 'dtype': c.dtype} for n, c in columns.items()}
    index = {'images': count, 'chunk': chunk, 'columns': listed, 'about': dict(about)}
    return index | ({'url': url} if url else {})


def read_index(folder: Path) -> dict[str, Any]:
    """index.json of a store.

    Raises:
        ConfigError: it is no JSON object.
        DataError: it is not as `index_of` makes it.
    """
    file = folder / 'index.json'
    index = read_json(file)
    if {'classes', 'images', 'maps'} <= index.keys():
        raise DataError(
            f'{folder} holds maps of an older version of wsol_jax, in files of another form; '
            'delete that folder and run the stage localize again'
        )
    if not _is_index(index):
        raise DataError(f'{file} is no index of results of this version; delete it and {AGAIN}')
    return index


def _is_index(index: Mapping[str, Any]) -> bool:
    try:
        columns = columns_of(index)
        count, chunk = index['images'], index['chunk']
        numbers = [count, chunk, *(n for c in columns.values() for n in c.shape)]
        return (
            index == index_of(count, chunk, columns, index['about'], index.get('url', ''))
            and not store_url(index.get('url', ''))
            and all(type(n) is int and 0 < n < 2**31 for n in numbers)
            and all(map(_is_column, columns.items()))
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return False


def _is_column(item: tuple[str, Column]) -> bool:
    name, column = item
    return is_inside(name) and column.dtype in _DTYPES


def is_inside(name: str) -> bool:
    """Whether the name of a column leads to a place of its own in the folder of the store."""
    parts = name.split('/')
    known = {
        *STATUS,
        'index.json',
        'image_ids.txt',
        'skipped.csv',
        'made_from.json',
        'class_names.json',
    }
    return not (known & {parts[0]} or {'', '.', '..'} & {*parts} or '\0' in name)


def columns_of(index: Mapping[str, Any]) -> dict[str, Column]:
    """The columns that index.json lists, by name."""
    return {n: Column(tuple(c['shape']), c['dtype']) for n, c in index['columns'].items()}


def arrays_of(index: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{name: metadata} of every array of a store, status first."""
    count, chunk = index['images'], min(index['chunk'], index['images'])
    return {
        name: _metadata((count, *shape), (chunk, *shape), dtype)
        for name, (shape, dtype) in (STATUS | columns_of(index)).items()
    }


def places_of(folder: Path, index: dict[str, Any]) -> dict[str, Place]:
    """{name: place} of every array of a store; the status lies in its folder always."""
    url = index.get('url', '')
    return {name: Place(folder, '' if name in STATUS else url, name) for name in arrays_of(index)}


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


def make(place: Place, metadata: dict[str, Any]) -> None:
    """Makes an array, in place of one that is damaged or another.

    Raises:
        DataError: what is there cannot be read for another reason.
    """
    try:
        try:
            _open(place, metadata, open=True, create=True)
        except ValueError as error:
            if not is_damage(reason_of(error)):
                raise
            _open(place, metadata, create=True, delete_existing=True)
    except ValueError as error:
        raise DataError(f'{place}: {reason_of(error)}') from None


def opened(place: Place, metadata: dict[str, Any]) -> 'ts.TensorStore':
    """Opens an array.

    Raises:
        DataError: there is none, or it is damaged or another, or cannot be read.
    """
    try:
        return _open(place, metadata, open=True)
    except ValueError as error:
        reason = reason_of(error)
        again = f'; {AGAIN}' if is_damage(reason) or reason.startswith('NOT_FOUND') else ''
        raise DataError(f'{place}: {reason}{again}') from None


def _open(place: Place, metadata: dict[str, Any], **how: Any) -> 'ts.TensorStore':
    import tensorstore as ts

    spec: dict[str, Any] = {
        'driver': 'zarr3',
        'kvstore': place.kvstore,
        'metadata': metadata,
        # Every chunk that was written has a file, and one without is an error, not zeros; but no
        # status means pending.
        'store_data_equal_to_fill_value': True,
        'fill_missing_data_reads': place.name in STATUS,
    }
    return ts.open(spec, context=context(), **how).result()


def is_damage(reason: str) -> bool:
    """Whether what is there is at fault, not the way to it."""
    return reason.startswith(_DAMAGED)


def read_ids(file: Path) -> list[str]:
    """The lines of image_ids.txt; the last one does not count where a kill cut it off.

    Raises:
        DataError: it cannot be read.
    """
    try:
        lines = file.read_bytes().split(b'\n')[:-1] if file.exists() else []
    except OSError as error:
        raise DataError(f'{file}: {error.strerror}') from None
    texts = (line.decode('utf-8', 'surrogateescape') for line in lines)
    return [re.sub(r'\\([n\\])', lambda m: '\n' if m[1] == 'n' else m[1], t) for t in texts]


def lines_of(image_ids: Iterable[str]) -> bytes:
    r"""Lines of image_ids.txt; a line end in a name is \n there, and \ is \\."""
    escaped = (name.replace('\\', r'\\').replace('\n', r'\n') for name in image_ids)
    return ''.join(f'{name}\n' for name in escaped).encode('utf-8', 'surrogateescape')

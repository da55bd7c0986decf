"""How a store lies on disk: its index, the names of its columns, and the files of their arrays."""

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from wsol_jax.data import DataError
from wsol_jax.workdir import read_json

if TYPE_CHECKING:  # counting processes know of the store, and open none
    import tensorstore as ts

AGAIN = 'run the stage localize again'
# What tensorstore says of a file that is there, but not whole, or not of this array.
DAMAGED = ('DATA_LOSS', 'FAILED_PRECONDITION', 'INVALID_ARGUMENT', 'OUT_OF_RANGE')


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


def index_of(
    count: int, chunk: int, columns: Mapping[str, Column], about: Mapping[str, Any]
) -> dict[str, Any]:
    """What index.json holds; `about` is JSON that tells what the columns mean."""
    listed = {n: {'shape': [*c.shape], 'dtype': c.dtype} for n, c in columns.items()}
    return {'images': count, 'chunk': chunk, 'columns': listed, 'about': dict(about)}


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
            index == index_of(count, chunk, columns, index['about'])
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


def make(path: Path, metadata: dict[str, Any]) -> None:
    """Makes an array, in place of one that is damaged or another.

    Raises:
        DataError: what is there cannot be read for another reason.
    """
    try:
        _open(path, metadata)
    except ValueError as error:
        if not reason_of(error).startswith(DAMAGED):
            raise DataError(f'{path}: {reason_of(error)}') from None
        shutil.rmtree(path, ignore_errors=True)
        _open(path, metadata)


def opened(path: Path, metadata: dict[str, Any]) -> 'ts.TensorStore':
    """Opens an array.

    Raises:
        DataError: there is none, or it is damaged or another.
    """
    try:
        return _open(path, metadata, create=False)
    except ValueError as error:
        raise DataError(f'{path}: {reason_of(error)}; {AGAIN}') from None


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


def reason_of(error: Exception) -> str:
    """The one line of tensorstore's message that says what is wrong."""
    return ' '.join(str(error).split(' [tensorstore_spec')[0].split())


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

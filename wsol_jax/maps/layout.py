"""How a store of maps lies on disk: its index, the names of its arrays, and the arrays' files."""

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsol_jax.data import DataError
from wsol_jax.maps import Key
from wsol_jax.workdir import read_json

if TYPE_CHECKING:  # counting processes know of the store, and open none
    import tensorstore as ts

FACTS = {'status': 'uint8', 'classes': 'int32', 'class_scores': 'float32', 'top': 'int32'}
AGAIN = 'run the stage localize again'
# What tensorstore says of a file that is there, but not whole, or not of this array.
DAMAGED = ('DATA_LOSS', 'FAILED_PRECONDITION', 'INVALID_ARGUMENT', 'OUT_OF_RANGE')


def index_of(
    count: int,
    target: str,
    shapes: Mapping[Key, Sequence[int]],
    relu: Mapping[Key, bool],
    num_top: int,
    chunk: int,
) -> dict[str, Any]:
    """What index.json holds."""
    maps = [
        {'method': k[0], 'layer': k[1], 'path': path_of(k), 'shape': [*shape], 'relu': relu[k]}
        for k, shape in shapes.items()
    ]
    return {'classes': target, 'images': count, 'top': num_top, 'chunk': chunk, 'maps': maps}


def read_index(folder: Path) -> dict[str, Any]:
    """index.json of a store.

    Raises:
        ConfigError: it is no JSON object.
        DataError: it is not as `index_of` makes it.
    """
    file = folder / 'index.json'
    index = read_json(file)
    if index.keys() == {'classes', 'images', 'maps'}:
        raise DataError(
            f'{folder} holds maps of an older version of wsol_jax, in files of another form; '
            'delete that folder and run the stage localize again'
        )
    if not _is_index(index):
        raise DataError(f'{file} is no index of maps of this version; delete it and {AGAIN}')
    return index


def _is_index(index: Mapping[str, Any]) -> bool:
    try:
        keys = {(m['method'], m['layer']): m for m in index['maps']}
        shapes = {key: m['shape'] for key, m in keys.items()}
        relu = {key: bool(m['relu']) for key, m in keys.items()}
        numbers = [index[name] for name in ('images', 'top', 'chunk')]
        same = index_of(numbers[0], str(index['classes']), shapes, relu, *numbers[1:])
        numbers += [size for shape in shapes.values() for size in shape]
        return (
            index == same
            and all(type(n) is int and 0 < n < 2**31 for n in numbers)
            and {len(shape) for shape in shapes.values()} == {3}
        )
    except (AttributeError, DataError, KeyError, TypeError):
        return False


def path_of(key: Key) -> str:
    """Where the maps of a (method, layer) are, below the folder of the store.

    Raises:
        DataError: these names would lead elsewhere.
    """
    method, layer = key[0], key[1].replace('/', '.')
    wrong = {'', '.', '..'}
    if method in wrong.union(FACTS) or layer in wrong or '/' in method or '\0' in method + layer:
        raise DataError(f'maps of {key[0]!r} at {key[1]!r} cannot be stored under these names')
    return f'{method}/{layer}'


def arrays_of(index: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{name: metadata} of every array of a store, status first."""
    num_classes = index['maps'][0]['shape'][0]
    widths = {'classes': (num_classes,), 'class_scores': (num_classes,), 'top': (index['top'],)}
    count, chunk = index['images'], min(index['chunk'], index['images'])
    facts = {name: (widths.get(name, ()), dtype) for name, dtype in FACTS.items()}
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

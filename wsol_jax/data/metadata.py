"""The metadata files of wsolevaluation: every line is checked, every fault named."""

import json
import os
import re
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from wsol_jax.data.files import printable, read_file, reason, stays_below
from wsol_jax.data.records import Box, DataError, Encoded

MAX_CLASSES = 1_000_000
_LARGEST = 2**31 - 1
_INTEGER = re.compile(r'[+-]?[0-9]{1,10}')

_Masks = tuple[Encoded, Encoded | None]
_Sizes = dict[str, tuple[int, int]]


def class_names(file: Path, class_index: bool) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names by line of class_names.txt, () without the file; and their second column if asked for.

    A number after the last comma belongs to the name, unless `class_index` says that it is none.
    It is left out of the names, too, where it can be nothing else: every line has one, all differ,
    and the names before it differ and end in no digit, or are WordNet ids.

    Args:
        file: class_names.txt.
        class_index: every line is `name,index`.

    Raises:
        DataError: the file is empty; with `class_index`, it is missing, or an index is none.
    """
    if not class_index and not os.path.lexists(file):
        return (), ()
    lines = list(read_lines(file))
    if not lines:
        raise DataError(f'{file}: names no class')
    if class_index:
        return _indexed(lines)
    whole = tuple(line for _, line in lines)
    pairs = [line.rpartition(',')[::2] for line in whole]
    names = tuple(name.strip() for name, _ in pairs)
    return (names if _are_indexed(names, [index.strip() for _, index in pairs]) else whole), ()


def _indexed(lines: list[tuple[str, str]]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    found: dict[int, str] = {}
    for where, line in lines:
        name, (index,) = _integers(where, line, 'name,index')
        if not 0 <= index < MAX_CLASSES:
            raise DataError(f'{where}: index {index} outside 0..{MAX_CLASSES - 1}')
        if index in found:
            raise DataError(f'{where}: index {index} is that of {_short(found[index])}, too')
        found[index] = name
    return tuple(found.values()), tuple(found)


def _are_indexed(names: tuple[str, ...], indices: list[str]) -> bool:
    return (
        all(re.fullmatch('0|[1-9][0-9]*', index) for index in indices)
        and len(set(names)) == len(names) == len(set(indices))
        and all(re.fullmatch(r'n[0-9]{8}|.*[^0-9]', name) for name in names)
    )


def read_ids(folder: Path) -> list[str]:
    """The images of one split, in order, of its image_ids.txt.

    Raises:
        DataError: the file is missing or empty, or lists an image twice.
    """
    return read_list(folder / 'image_ids.txt')


def read_list(file: Path) -> list[str]:
    """The images of a file that lists one a line, in order.

    Raises:
        DataError: the file is missing or empty, or lists an image twice.
    """
    ids: dict[str, None] = {}
    for where, name in read_lines(file):
        if name in ids:
            raise DataError(f'{where}: {_short(name)} is listed twice')
        ids[_inside(where, name)] = None
    if not ids:
        raise DataError(f'{file}: lists no image')
    return list(ids)


def read_json(
    file: Path,
    hook: Callable[[dict[str, Any]], Any] | None = None,
    roots: tuple[Path, ...] = (),
) -> Any:
    """What a JSON file holds.

    Args:
        file: the file.
        hook: what is kept of each object in it, while it is read.
        roots: see `open_file`.

    Raises:
        DataError: the file is missing, or no JSON.
    """
    try:
        return json.loads(read_file(file, roots), object_hook=hook)
    except DataError:
        raise  # of the hook
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f'{printable(str(file))}: {reason(error)}') from None


def read_labels(
    folder: Path, ids: list[str], num_classes: int | None
) -> dict[str, tuple[int, ...]]:
    """Labels by image, in the order of the ids; several lines of an image make several labels.

    Args:
        folder: with class_labels.txt.
        ids: the images.
        num_classes: labels lie below it; None for any.

    Raises:
        DataError: the file is missing, a line is wrong, or the file lists other images.
    """
    file = folder / 'class_labels.txt'
    labels: dict[str, tuple[int, ...]] = dict.fromkeys(ids, ())
    for where, line in read_lines(file):
        name, (label,) = _integers(where, line, 'path,label')
        _check_listed(where, name, labels)
        if not 0 <= label < (num_classes or MAX_CLASSES):
            right = f'0..{(num_classes or MAX_CLASSES) - 1}'
            raise DataError(f'{where}: label {label} outside {right}')
        labels[name] += (label,)
    check_complete(file, labels, {name for name in ids if labels[name]})
    return labels


def read_sizes(file: Path, labels: dict[str, tuple[int, ...]]) -> _Sizes:
    """(width, height) by image; empty where there is no such file.

    Args:
        file: image_sizes.txt.
        labels: by image; only the images matter.

    Raises:
        DataError: a line is wrong, or the file lists other images.
    """
    sizes: _Sizes = {}
    for where, line in read_lines(file) if os.path.lexists(file) else ():
        name, (width, height) = _integers(where, line, 'path,width,height')
        _check_listed(where, name, labels)
        if width <= 0 or height <= 0:
            raise DataError(f'{where}: size {width}x{height} is not positive')
        sizes[name] = (width, height)
    if sizes:
        check_complete(file, labels, sizes)
    return sizes


def read_localization(
    file: Path, root: Path, labels: dict[str, tuple[int, ...]], sizes: _Sizes
) -> tuple[dict[str, list[Box]], dict[str, list[_Masks]]]:
    """Boxes and masks by image; both empty where the split has none (weak supervision).

    An image without a line has no known object, and stands in neither.

    Args:
        file: localization.txt.
        root: folder that its masks are relative to.
        labels: by image; only the images matter.
        sizes: (width, height) by image, for those that have one.

    Raises:
        DataError: a line is wrong, names another image, or leaves the root; or no image is named.
    """
    boxes: dict[str, list[Box]] = {}
    masks: dict[str, list[_Masks]] = {}
    if not os.path.lexists(file):
        return boxes, masks
    for where, line in read_lines(file):
        if _names_mask(line):
            name, mask, ignore = _fields(where, line, 'path,mask.png,ignore.png')
            pair = (
                root / _inside(where, mask),
                root / _inside(where, ignore) if ignore else None,
            )
            masks.setdefault(name, []).append(pair)
        else:
            name, corners = _integers(where, line, 'path,x0,y0,x1,y1')
            boxes.setdefault(name, []).append(_checked_box(where, corners, sizes.get(name)))
        _check_listed(where, name, labels)
    if not boxes and not masks:
        raise DataError(f'{file}: names no image; without the file, no object is known')
    return boxes, masks


def _names_mask(line: str) -> bool:
    fields = line.split(',')
    return len(fields) > 2 and fields[-2].strip().lower().endswith('.png')


def _checked_box(where: str, corners: tuple[int, ...], size: tuple[int, int] | None) -> Box:
    x0, y0, x1, y1 = corners
    if x1 <= x0 or y1 <= y0:
        raise DataError(f'{where}: box {corners} is empty; x0 < x1 and y0 < y1 are needed')
    if x0 < 0 or y0 < 0:
        raise DataError(f'{where}: box {corners} lies outside the image: negative corner')
    if size is not None and (x1 > size[0] or y1 > size[1]):
        raise DataError(f'{where}: box {corners} lies outside the image of {size[0]}x{size[1]}')
    return x0, y0, x1, y1


def _inside(where: str, name: str) -> str:
    if not stays_below(name):
        raise DataError(f'{where}: {_short(name)} leaves its folder; write a path below it')
    return name


def _check_listed(where: str, name: str, labels: dict[str, tuple[int, ...]]) -> None:
    if name not in labels:
        raise DataError(f'{where}: {_short(name)} is not in image_ids.txt')


def check_complete(file: Path, labels: dict[str, tuple[int, ...]], present: Container[str]) -> None:
    """Refuses a file that has no line for some image.

    Args:
        file: for the message.
        labels: by image; only the images matter.
        present: the images that have a line.

    Raises:
        DataError: some image is not present.
    """
    if absent := [name for name in labels if name not in present]:
        raise DataError(
            f'{file}: no line for {_short(absent[0])} '
            f'({len(absent)} of {len(labels)} images lack one)'
        )


def read_lines(file: Path, roots: Sequence[Path] = ()) -> Iterator[tuple[str, str]]:
    """Yield ('file:number', text) for every line that is not blank.

    Args:
        file: of text.
        roots: see `open_file`.

    Raises:
        DataError: it cannot be read, or is no UTF-8.
    """
    try:
        text = read_file(file, roots).decode('utf-8-sig')
    except OSError as error:
        raise DataError(f'{printable(str(file))}: {reason(error)}') from None
    except UnicodeDecodeError as error:
        raise DataError(f'{printable(str(file))}: not a UTF-8 text file ({error})') from None
    for number, line in enumerate(re.split('\r\n?|\n', text), 1):
        if line.strip():
            yield f'{printable(str(file))}:{number}', line.strip()


def _fields(where: str, line: str, form: str) -> list[str]:
    # From the right: a path may hold commas of its own.
    fields = line.rsplit(',', form.count(','))
    if len(fields) <= form.count(',') or not fields[0].strip():
        raise DataError(f'{where}: expected {form!r}, got {_short(line)}')
    return [field.strip() for field in fields]


def _integers(where: str, line: str, form: str) -> tuple[str, tuple[int, ...]]:
    name, *values = _fields(where, line, form)
    if not all(_INTEGER.fullmatch(value) and abs(int(value)) <= _LARGEST for value in values):
        raise DataError(f'{where}: expected {form!r} with whole numbers, got {_short(line)}')
    return name, tuple(map(int, values))


def _short(line: str) -> str:
    return repr(line if len(line) <= 100 else f'{line[:80]}...{line[-17:]}')

"""Data sets on disk: the folder layout of wsolevaluation, and a plain folder of images."""

from collections.abc import Iterator
from pathlib import Path

from wsol_jax.data.records import Box, DataError, Encoded, ListedRecords, Record

IMAGE_EXTENSIONS = frozenset(['.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm'])

_Masks = tuple[Encoded, Encoded | None]
_Sizes = dict[str, tuple[int, int]]


class WsolFolder(ListedRecords):
    """A split of a folder in the layout of wsolevaluation.

    `images/` holds the images, `metadata/<split>/` the files image_ids.txt, class_labels.txt and,
    where known, image_sizes.txt and localization.txt (boxes or masks), `class_names.txt` one class
    a line. Every line is checked here; whether an image exists is found when it is decoded.

    Args:
        root: the folder.
        split: name of a folder in `metadata/`.
        class_index: give the labels of the classifier named in the second column of
            class_names.txt (`name,index`) instead of line numbers.

    Raises:
        DataError: a file is missing, a line is malformed, or the files disagree.
    """

    def __init__(self, root: str | Path, split: str, class_index: bool = False) -> None:
        root = Path(root)
        folder = _split_folder(root, split)
        names, columns = _read_class_names(root / 'class_names.txt', class_index)
        labels = read_labels(folder, read_ids(folder), len(names) or None)
        sizes = read_sizes(folder / 'image_sizes.txt', labels)
        boxes, masks = read_localization(folder / 'localization.txt', root, labels, sizes)
        self.class_names = names or tuple(map(str, range(1 + max(map(max, labels.values())))))
        self._names = dict(zip(columns or range(self.num_classes), self.class_names, strict=True))
        self._records = [
            Record(
                image_id=name,
                image=root / 'images' / name,
                labels=tuple(columns[k] for k in classes) if columns else classes,
                size=sizes.get(name),
                boxes=tuple(boxes.get(name, ())),
                masks=tuple(masks.get(name, ())),
            )
            for name, classes in labels.items()
        ]

    def class_name(self, label: int) -> str:
        """Name of a label as it stands in the records; the number itself where it has no name."""
        return self._names.get(label, str(label))


class ImageFolder(ListedRecords):
    """Every image below a folder, sorted by path, without labels; ids are relative paths.

    Raises:
        DataError: the folder is missing or holds no image.
    """

    def __init__(self, root: str | Path) -> None:
        files = image_files(Path(root))
        self._records = [Record(name, file, (), None) for name, file in files.items()]


def split_names(root: Path) -> list[str]:
    """The splits of a folder in the layout of wsolevaluation, sorted; hidden folders are none."""
    return sorted(path.name for path in (root / 'metadata').glob('[!.]*') if path.is_dir())


def image_files(root: Path) -> dict[str, Path]:
    """Every image below a folder, by its posix path relative to it, sorted.

    Raises:
        DataError: the folder is missing or holds no image.
    """
    if not root.is_dir():
        raise DataError(f'{root}: no such folder')
    files = (path for path in root.rglob('*') if path.suffix.lower() in IMAGE_EXTENSIONS)
    by_id = {path.relative_to(root).as_posix(): path for path in files if path.is_file()}
    if not by_id:
        endings = ', '.join(sorted(IMAGE_EXTENSIONS))
        raise DataError(f'{root}: holds no image (looked for {endings})')
    return dict(sorted(by_id.items()))


def _split_folder(root: Path, split: str) -> Path:
    for folder in (root, root / 'images', root / 'metadata'):
        if not folder.is_dir():
            raise DataError(f'{folder}: no such folder (expected images/ and metadata/ in {root})')
    folder = root / 'metadata' / split
    if not split or not folder.is_dir():
        found = ', '.join(split_names(root)) or 'none'
        raise DataError(f'{folder}: no split {split!r}; available: {found}')
    return folder


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yield ('file:number', text) for every line that is not blank."""
    try:
        text = file.read_text(encoding='utf-8-sig')
    except FileNotFoundError:
        raise DataError(f'{file}: no such file') from None
    except UnicodeDecodeError as error:
        raise DataError(f'{file}: not a UTF-8 text file ({error})') from None
    for number, line in enumerate(text.split('\n'), 1):
        if line.strip():
            yield f'{file}:{number}', line.strip()


def _fields(where: str, line: str, form: str) -> list[str]:
    # From the right: a path may hold commas of its own.
    fields = line.rsplit(',', form.count(','))
    if len(fields) <= form.count(',') or not fields[0]:
        raise DataError(f'{where}: expected {form!r}, got {line!r}')
    return [field.strip() for field in fields]


def _integers(where: str, line: str, form: str) -> tuple[str, tuple[int, ...]]:
    name, *values = _fields(where, line, form)
    try:
        return name, tuple(map(int, values))
    except ValueError:
        raise DataError(f'{where}: expected {form!r} with whole numbers, got {line!r}') from None


def _read_class_names(
    file: Path, class_index: bool
) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Names by line, and their second column where it is asked for."""
    if not file.exists() and not class_index:
        return (), None
    lines = list(_lines(file))
    if not lines:
        raise DataError(f'{file}: names no class')
    indexed = all(line.rpartition(',')[2].strip().isdecimal() for _, line in lines)
    if not class_index and not indexed:
        return tuple(line for _, line in lines), None
    pairs = [_integers(where, line, 'name,index') for where, line in lines]
    names = tuple(name for name, _ in pairs)
    return names, tuple(values[0] for _, values in pairs) if class_index else None


def read_ids(folder: Path) -> list[str]:
    """The images of one split, in order, of its image_ids.txt.

    Raises:
        DataError: the file is missing or empty, or lists an image twice.
    """
    file = folder / 'image_ids.txt'
    ids: dict[str, None] = {}
    for where, name in _lines(file):
        if name in ids:
            raise DataError(f'{where}: {name!r} is listed twice')
        ids[name] = None
    if not ids:
        raise DataError(f'{file}: lists no image')
    return list(ids)


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
    for where, line in _lines(file):
        name, (label,) = _integers(where, line, 'path,label')
        _check_listed(where, name, labels)
        if label < 0 or (num_classes is not None and label >= num_classes):
            right = 'below 0' if num_classes is None else f'outside 0..{num_classes - 1}'
            raise DataError(f'{where}: label {label} {right}')
        labels[name] += (label,)
    _check_complete(file, labels, (name for name in ids if not labels[name]))
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
    for where, line in _lines(file) if file.exists() else ():
        name, (width, height) = _integers(where, line, 'path,width,height')
        _check_listed(where, name, labels)
        if width <= 0 or height <= 0:
            raise DataError(f'{where}: size {width}x{height} is not positive')
        sizes[name] = (width, height)
    if sizes:
        _check_complete(file, labels, (name for name in labels if name not in sizes))
    return sizes


def read_localization(
    file: Path, root: Path, labels: dict[str, tuple[int, ...]], sizes: _Sizes
) -> tuple[dict[str, list[Box]], dict[str, list[_Masks]]]:
    """Boxes and masks by image; both empty where the split has none (weak supervision).

    Args:
        file: localization.txt.
        root: folder that its masks are relative to.
        labels: by image; only the images matter.
        sizes: (width, height) by image, for those that have one.

    Raises:
        DataError: a line is wrong, or the file lists other images.
    """
    boxes: dict[str, list[Box]] = {}
    masks: dict[str, list[_Masks]] = {}
    if not file.exists():
        return boxes, masks
    for where, line in _lines(file):
        if _names_mask(line):
            name, mask, ignore = _fields(where, line, 'path,mask.png,ignore.png')
            pair = (root / mask, root / ignore if ignore else None)
            masks.setdefault(name, []).append(pair)
        else:
            name, corners = _integers(where, line, 'path,x0,y0,x1,y1')
            boxes.setdefault(name, []).append(_checked_box(where, corners, sizes.get(name)))
        _check_listed(where, name, labels)
    missing = (name for name in labels if name not in boxes and name not in masks)
    _check_complete(file, labels, missing)
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


def _check_listed(where: str, name: str, labels: dict[str, tuple[int, ...]]) -> None:
    if name not in labels:
        raise DataError(f'{where}: {name!r} is not in image_ids.txt')


def _check_complete(file: Path, labels: dict[str, tuple[int, ...]], missing: Iterator[str]) -> None:
    absent = list(missing)
    if absent:
        raise DataError(
            f'{file}: no line for {absent[0]!r} ({len(absent)} of {len(labels)} images lack one)'
        )

"""The format of MS COCO: images, and the objects in them as polygons and runs of pixels."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from wsol_jax.data.decode import IGNORED
from wsol_jax.data.drawing import png
from wsol_jax.data.files import printable, stays_below
from wsol_jax.data.metadata import read_json
from wsol_jax.data.records import (
    MAX_PIXELS,
    DataError,
    Decoding,
    ListedRecords,
    Pixels,
    Record,
    is_displayed,
)
from wsol_jax.data.voc import MOST_CLASSES, report
from wsol_jax.names import shown

FARTHEST = 100_000  # pixels, of the corners of polygons
_LISTS = ('images', 'annotations', 'categories')
_OF_IMAGE = ('id', 'file_name', 'width', 'height')
_OF_OBJECT = ('id', 'image_id', 'category_id', 'iscrowd', 'segmentation')
_Dict = dict[str, Any]


class Coco(ListedRecords):
    """A split of MS COCO, or of what is annotated in its format.

    `annotations/instances_<split>.json` lists images, which lie in `<split>/`, their objects, and
    categories; classes are numbered in the order of the categories' ids. Labels of an image are
    the classes of all its objects. Its label map, `extra['segmentation']`, is drawn each time that
    it is asked for: 0 background, k + 1 for class k, small objects in front of large ones; crowds
    that no object covers are 255. Whether an image exists is found when it is decoded.

    Args:
        root: the folder. Links in it may not lead out of it, but for that of the images itself.
        split: such as 'train2014'; 'train' will do where there is no other year.
        orientation: the frame of the objects: 'displayed' or 'stored', which 'auto' is; see
            `is_displayed`.
        max_pixels: see `Decoding`.
        faults: gets what is wrong with single objects, which are then left out; by default it is
            raised.

    Raises:
        DataError: pycocotools is not installed, a file is missing or malformed, or an object is
            of a class or an image that there is not.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        orientation: str = 'auto',
        max_pixels: int = MAX_PIXELS,
        faults: list[str] | None = None,
    ) -> None:
        root = Path(root)
        _pycocotools()  # if it is missing that is told before anything is computed
        split = _named(root, split)
        file = _file(root, split)
        listed = read_lists(file, _compact)
        label_of = category_labels(file, listed['categories'])
        self.class_names = tuple(label_of[key][1] for key in sorted(label_of))
        images = listed_images(file, listed['images'], max_pixels)
        objects, found = _objects(file, listed['annotations'], images, label_of)
        roots = (root.resolve(), (root / split).resolve())
        decoding = Decoding(is_displayed(orientation, 'stored'), max_pixels, roots)
        self._records = [
            Record(
                image_id=name,
                image=root / split / name,
                labels=tuple(sorted({each.label for each in objects[key]})),
                size=size,
                decoding=decoding,
                extra=LabelMap(tuple(objects[key]), size),
            )
            for key, (name, size) in images.items()
        ]
        report(found, faults)


@dataclass(frozen=True)
class Object:
    """What is seen of an object, or of a crowd of them.

    Attributes:
        label: its class.
        crowd: whether it is several, not told apart.
        polygons: of its parts: x0, y0, x1, y1 ... of each as bytes of float64.
        runs: instead of them, how many pixels, from top to bottom and from left to right, are
            outside, inside, outside ...: bytes of int64.
    """

    label: int
    crowd: bool
    polygons: tuple[bytes, ...] = ()
    runs: bytes = b''

    def mask(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Its pixels [H, W] in an image of (width, height)."""
        if self.runs:
            runs = np.frombuffer(self.runs, np.int64)
            return np.repeat(np.arange(len(runs)) % 2 > 0, runs).reshape(size).T
        corners = [np.frombuffer(polygon).tolist() for polygon in self.polygons]
        tools = _pycocotools()
        parts = tools.frPyObjects(corners, size[1], size[0])
        return tools.decode(tools.merge(parts)) > 0


@dataclass(frozen=True)
class LabelMap(Mapping[str, bytes]):
    """{'segmentation': PNG of the label map}, drawn each time that it is asked for.

    Attributes:
        objects: of the image.
        size: (width, height) of it.
    """

    objects: tuple[Object, ...]
    size: tuple[int, int]

    def __getitem__(self, key: str) -> bytes:
        if key not in self:
            raise KeyError(key)
        return png(label_map(self.objects, self.size))

    def __contains__(self, key: object) -> bool:
        return key == 'segmentation'

    def __iter__(self) -> Iterator[str]:
        return iter(('segmentation',))

    def __len__(self) -> int:
        return 1


def label_map(objects: Sequence[Object], size: tuple[int, int]) -> Pixels:
    """Draws crowds, then objects, the largest first.

    Args:
        objects: of an image.
        size: (width, height) of it.

    Returns:
        uint8 [H, W]: 0 background, k + 1 for class k, 255 for crowds.
    """
    values = np.zeros(size[::-1], np.uint8)
    drawn = [(each, each.mask(size)) for each in objects]
    for each, mask in sorted(drawn, key=lambda pair: (not pair[0].crowd, -int(pair[1].sum()))):
        values[mask] = IGNORED if each.crowd else each.label + 1
    return values


def coco_splits(root: Path) -> list[str]:
    """The splits of a folder in the layout of MS COCO, sorted."""
    found = (root / 'annotations').glob('instances_*.json')
    return sorted(file.stem.removeprefix('instances_') for file in found)


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ModuleNotFoundError:
        raise DataError("this needs pycocotools: pip install 'wsol_jax[coco]'") from None
    return mask


def _named(root: Path, split: str) -> str:
    """The split that is called so, or the only one of any year."""
    known = coco_splits(root)
    found = [name for name in known if re.fullmatch(re.escape(split) + '[0-9]*', name)]
    if split in known or len(found) == 1:
        return split if split in known else found[0]
    file = root / 'annotations' / f'instances_{split}.json'
    raise DataError(f'{file}: no split {split!r}; available: {", ".join(known) or "none"}')


def _file(root: Path, split: str) -> Path:
    file = root / 'annotations' / f'instances_{split}.json'
    if not (root / split).is_dir():
        raise DataError(f'{root / split}: no such folder (expected the images of {file.name})')
    return file


def read_lists(file: Path, hook: Callable[[_Dict], _Dict]) -> _Dict:
    """The lists of a file: images, annotations and categories, each of objects.

    Args:
        file: such as instances_train2014.json.
        hook: what is kept of each object.

    Raises:
        DataError: the file is missing or malformed.
    """
    listed = read_json(file, hook)
    for name in _LISTS:
        found = listed.get(name) if isinstance(listed, dict) else None
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            where = printable(str(file))
            raise DataError(f'{where}: expected lists of objects {", ".join(_LISTS)}; no {name}')
    return listed


def _compact(found: _Dict) -> _Dict:
    """A part of a file while it is read, polygons as bytes: 8 a number, where lists take 32."""
    if 'segmentation' in found:
        kept = {key: found.get(key) for key in _OF_OBJECT}
        if isinstance(polygons := kept['segmentation'], list):
            kept['segmentation'] = tuple(map(_packed, polygons))
        return kept
    return {key: found.get(key) for key in _OF_IMAGE} if 'file_name' in found else found


def _packed(polygon: Any) -> bytes | None:
    try:
        corners = np.array(polygon, np.float64)
    except (TypeError, ValueError):
        return None
    return corners.tobytes() if corners.ndim == 1 else None


def category_labels(file: Path, categories: Sequence[_Dict]) -> dict[int, tuple[int, str]]:
    """(label, name) by id of the category.

    Raises:
        DataError: a category has no id of its own or no name, or there are too many.
    """
    names: dict[int, str] = {}
    for each in categories:
        key, name = each.get('id'), each.get('name')
        if not is_integer(key) or key in names or not isinstance(name, str) or not name:
            raise DataError(
                f'{file}: category {shown(key)}: each needs an id of its own and a name'
            )
        names[key] = name
    if not 1 <= len(names) <= MOST_CLASSES:
        right = f'label maps have room for 1..{MOST_CLASSES}'
        raise DataError(f'{file}: lists {len(names)} categories; {right}')
    return {key: (label, names[key]) for label, key in enumerate(sorted(names))}


def listed_images(
    file: Path, listed: Sequence[_Dict], max_pixels: int
) -> dict[int, tuple[str, tuple[int, int]]]:
    """(name, (width, height)) of every image by its id.

    Raises:
        DataError: an image has no id, name or size that is right.
    """
    images: dict[int, tuple[str, tuple[int, int]]] = {}
    names: set[str] = set()
    for each in listed:
        key, name, width, height = (each.get(field) for field in _OF_IMAGE)
        where = f'{file}: image {shown(key)}'
        if not is_integer(key) or key in images:
            raise DataError(f'{where}: not a whole number, or that of another image')
        if not isinstance(name, str) or not name or not stays_below(name) or name in names:
            raise DataError(
                f'{where}: file_name {shown(name)} is missing, leaves its folder or is that of '
                'another image'
            )
        if not (is_integer(width) and is_integer(height) and 0 < width * height <= max_pixels):
            raise DataError(
                f'{where}: width {shown(width)} and height {shown(height)} must be whole numbers, '
                f'of 1..{max_pixels} pixels (config.data.max_pixels)'
            )
        images[key] = name, (width, height)
        names.add(name)
    if not images:
        raise DataError(f'{file}: lists no image')
    return images


def _objects(
    file: Path,
    annotations: Sequence[_Dict],
    images: Mapping[int, tuple[str, tuple[int, int]]],
    label_of: Mapping[int, tuple[int, str]],
) -> tuple[dict[int, list[Object]], list[str]]:
    """The objects of every image by its id, and what is wrong with others."""
    objects: dict[int, list[Object]] = {key: [] for key in images}
    faults = []
    for each in annotations:
        where = f'{file}: annotation {shown(each.get("id"))}'
        image, category = each.get('image_id'), each.get('category_id')
        try:
            if not is_integer(image) or image not in images:
                raise ValueError(f'there is no image {shown(image)}')
            if not is_integer(category) or category not in label_of:
                raise ValueError(f'there is no category {shown(category)}')
            shape = _shape(each.get('segmentation'), images[image][1])
            objects[image].append(Object(label_of[category][0], bool(each.get('iscrowd')), **shape))
        except ValueError as error:
            faults.append(f'{where}: {error}')
    return objects, faults


def _shape(found: Any, size: tuple[int, int]) -> _Dict:
    """Polygons or runs of an `Object`.

    Raises:
        ValueError: they are malformed, or for an image of another size.
    """
    if isinstance(found, dict):
        return {'runs': _runs(found, size)}
    if not isinstance(found, tuple) or not found:
        raise ValueError('has no segmentation, neither polygons nor size and counts')
    for polygon in found:
        corners = np.frombuffer(polygon or b'')
        # Two points would be taken for a box.
        if len(corners) < 6 or len(corners) % 2:
            raise ValueError('has a polygon that is no list of the x, y of at least three points')
        if not (abs(corners) <= FARTHEST).all():
            raise ValueError(f'has a polygon with corners beyond {FARTHEST} pixels')
    return {'polygons': found}


def _runs(found: _Dict, size: tuple[int, int]) -> bytes:
    """Runs are checked here: pycocotools takes what they leave out from somewhere in memory."""
    if found.get('size') != [size[1], size[0]]:
        expected = f'[{size[1]}, {size[0]}], the height and width of its image'
        raise ValueError(f'size {shown(found.get("size"))} is not {expected}')
    counts = found.get('counts')
    runs = _unpacked(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(is_integer(run) and run >= 0 for run in runs):
        raise ValueError('counts are neither whole numbers nor their compressed form')
    if sum(runs) != size[0] * size[1]:
        raise ValueError(f'counts are of {sum(runs)} pixels, the image has {size[0] * size[1]}')
    return np.array(runs, np.int64).tobytes()


def _unpacked(text: str) -> list[int]:
    """The runs of their compressed form: 5 bits a character, the differences of every other run.

    Raises:
        ValueError: it is not that.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f'counts have the character {character!r}')
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32 and shift < 60:  # more follow
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs


def is_integer(value: Any) -> TypeGuard[int]:
    """Whether a value of JSON is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)

"""Real images with expressions that are generated from the annotated boxes of their objects."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from wsol_jax.data.coco import is_integer
from wsol_jax.data.expressions import check_proposals, generate_expressions, is_box, pixel_box
from wsol_jax.data.files import printable
from wsol_jax.data.metadata import read_json
from wsol_jax.data.records import (
    MAX_PIXELS,
    Box,
    DataError,
    Decoding,
    ListedRecords,
    Record,
    is_displayed,
)
from wsol_jax.data.voc import BACKGROUND, IMAGES, split_ids
from wsol_jax.names import shown

ANNOTATIONS = 'annotations.json'
MOST_EXPRESSIONS = 8  # of an image


class CocoExpressions(ListedRecords):
    """A split of images whose objects are annotated by boxes; expressions are made of these.

    The layout is that of VOC with one more file, `annotations.json`: {'classes': [names, the first
    of which is 'background'], 'images': {id: {'size': [width, height], 'boxes': [[x0, y0, x1, y1,
    class, iscrowd], ...]}}}. `ImageSets/Segmentation/<split>.txt` lists the ids of a split; boxes
    are in pixels of `JPEGImages/<id>.jpg`, which is looked for when it is decoded.

    The `boxes` of a record are those of single objects; `extra['proposal_classes']` are their
    classes, of which the first after the background is 0; `extra['expressions']` are made of them
    by `generate_expressions` and depend on the seed and the image alone. An image of which nothing
    can be said, for it has no boxes or all look alike, is left out.

    Args:
        root: the folder. Links in it may not lead out of it, but for JPEGImages itself.
        split: such as 'train', 'val' or 'test'.
        orientation: the frame of the boxes: 'displayed' or 'stored', which 'auto' is; see
            `is_displayed`.
        max_pixels: see `Decoding`.
        seed: chooses what is said.

    Raises:
        DataError: the file is missing or malformed, a box reaches beyond its image or is of a
            class that there is not, or there is no such split, or an image of it is not annotated.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        orientation: str = 'auto',
        max_pixels: int = MAX_PIXELS,
        seed: int = 0,
    ) -> None:
        root = Path(root)
        file = root / ANNOTATIONS
        self.class_names, images = _read(file)
        roots = root.resolve(), (root / IMAGES).resolve()
        decoding = Decoding(is_displayed(orientation, 'stored'), max_pixels, roots)
        made = [
            self._record(root, name, images.get(name), decoding, seed)
            for name in split_ids(root, split)
        ]
        self._records = [record for record in made if record.extra['expressions']]
        if not self._records:
            raise DataError(f'{file}: nothing can be said of the boxes of any image of {split!r}')

    def _record(
        self, root: Path, name: str, image: dict[str, Any] | None, decoding: Decoding, seed: int
    ) -> Record:
        where = f'{root / ANNOTATIONS}: image {shown(name)}'
        if image is None:
            raise DataError(f'{where}: is not there, but in a list of ImageSets/Segmentation')
        try:
            size = _size(image.get('size'))
            boxes, classes = _boxes(image.get('boxes'), size, len(self.class_names))
            rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
            named = boxes, classes, self.class_names, size, rng, MOST_EXPRESSIONS
            said = generate_expressions(*named) if boxes else ()
        except DataError as error:
            raise DataError(f'{where}: {error}') from None
        return Record(
            image_id=name,
            image=root / IMAGES / f'{name}.jpg',
            labels=tuple(sorted(set(classes))),
            size=size,
            boxes=boxes,
            decoding=decoding,
            extra={'proposal_classes': classes, 'expressions': said},
        )


def _read(file: Path) -> tuple[tuple[str, ...], dict[str, dict[str, Any]]]:
    """Names of the classes without the background, and the images by id."""
    found, where = read_json(file), printable(str(file))
    found = found if isinstance(found, dict) else {}
    classes, images = found.get('classes'), found.get('images')
    if not isinstance(images, dict) or not all(isinstance(v, dict) for v in images.values()):
        raise DataError(f"{where}: expected an object with 'images', an object by id of each")
    if not isinstance(classes, list) or not all(isinstance(v, str) and v for v in classes):
        raise DataError(f"{where}: expected an object with 'classes', a list of names")
    if len(classes) < 2 or classes[0] != BACKGROUND:
        raise DataError(f'{where}: classes {shown(classes)} must be {BACKGROUND!r} and others')
    return tuple(classes[1:]), images


def _size(size: Any) -> tuple[int, int]:
    if isinstance(size, list) and len(size) == 2 and all(is_integer(v) and v > 0 for v in size):
        return size[0], size[1]
    raise DataError(f'size {shown(size)} is no [width, height]')


def _boxes(
    found: Any, size: tuple[int, int], num_classes: int
) -> tuple[tuple[Box, ...], tuple[int, ...]]:
    """Boxes of single objects and their classes, 0..num_classes-1."""
    if not isinstance(found, list):
        raise DataError(f'boxes {shown(found)} are no list')
    for each in found:
        if not is_box(each, 6) or each[4] != int(each[4]):
            right = '[x0, y0, x1, y1, class, iscrowd] in numbers'
            raise DataError(f'box {shown(each)} is not {right}')
        check_proposals([pixel_box(each[:4], size)], [int(each[4]) - 1], num_classes, size)
    single = [each for each in found if not each[5]]
    boxes = tuple(pixel_box(each[:4], size) for each in single)
    return boxes, tuple(int(each[4]) - 1 for each in single)

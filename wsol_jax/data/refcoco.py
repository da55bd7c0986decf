"""RefCOCO, RefCOCO+ and RefCOCOg: images of MS COCO, and what people said to tell an object."""

import json
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Never

from wsol_jax.data.coco import category_labels, is_integer, listed_images, read_lists
from wsol_jax.data.expressions import Expression, check_proposals, is_box, pixel_box
from wsol_jax.data.files import open_file, printable, reason
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
from wsol_jax.data.triads import nouns_of, triad_or_unknown
from wsol_jax.data.voc import report
from wsol_jax.names import shown

REFS = 'refs.json'
INSTANCES = 'instances.json'
_OF_BOX = ('id', 'image_id', 'category_id', 'iscrowd', 'bbox')
_Dict = dict[str, Any]


class RefCoco(ListedRecords):
    """A split of RefCOCO, RefCOCO+ or RefCOCOg, or of what has their form.

    `instances.json` is of MS COCO's form, `images/` holds its images, and `refs.json` is the list
    of refs that `convert_refs` makes of the published `refs(unc).p`: each has a ref_id, the
    ann_id of its object, the image_id of its image, a split, and sentences, each with a 'sent'.
    (Yu et al., "Modeling Context in Referring Expressions", ECCV 2016)

    A record is an image with refs in the split. Its `boxes` are those of all single objects that
    are annotated in it, in whole pixels; `extra['proposal_classes']` are their classes, numbered
    in the order of the categories' ids; `extra['expressions']` are its sentences, their triads by
    `triad_or_unknown`. Whether an image exists is found when it is decoded.

    Args:
        root: the folder. Links in it may not lead out of it, but for images/ itself.
        split: 'train', 'val', 'testA', 'testB' or 'test', as in the refs.
        orientation: the frame of the boxes: 'displayed' or 'stored', which 'auto' is; see
            `is_displayed`.
        max_pixels: see `Decoding`.
        faults: gets what is wrong with single refs and boxes, which are then left out; by default
            it is raised.

    Raises:
        DataError: a file is missing or malformed, there is no such split, a ref is of an object or
            image that there is not, or a box reaches beyond its image.
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
        refs, file = _of_split(root / REFS, split), root / INSTANCES
        listed = read_lists(file, _compact)
        label_of = category_labels(file, listed['categories'])
        self.class_names = tuple(label_of[key][1] for key in sorted(label_of))
        sizes = listed_images(file, listed['images'], max_pixels)
        wanted = {ref['image_id'] for ref in refs}
        images = {key: _Image(*sizes[key]) for key in sizes if key in wanted}
        found = _add_objects(file, listed['annotations'], images, label_of)
        found += _add_sentences(root / REFS, refs, images, nouns_of(self.class_names))
        roots = root.resolve(), (root / 'images').resolve()
        decoding = Decoding(is_displayed(orientation, 'stored'), max_pixels, roots)
        said = (image for image in images.values() if image.expressions)
        self._records = [image.record(root / 'images', decoding) for image in said]
        report(found, faults)


@dataclass
class _Image:
    """What is collected of an image; objects by the ids of their annotations, crowds apart."""

    name: str
    size: tuple[int, int]
    objects: dict[int, tuple[Box, int]] = field(default_factory=dict)
    crowds: dict[int, tuple[Box, int]] = field(default_factory=dict)
    expressions: list[Expression] = field(default_factory=list)

    def record(self, folder: Path, decoding: Decoding) -> Record:
        classes = tuple(label for _, label in self.objects.values())
        return Record(
            image_id=self.name,
            image=folder / self.name,
            labels=tuple(sorted(set(classes))),
            size=self.size,
            boxes=tuple(box for box, _ in self.objects.values()),
            decoding=decoding,
            extra={'proposal_classes': classes, 'expressions': tuple(self.expressions)},
        )


def refcoco_splits(root: Path) -> list[str]:
    """The splits of the refs of a folder, sorted; none where it has no refs.

    Raises:
        DataError: the file is malformed.
    """
    file = root / REFS
    return sorted({ref['split'] for ref in _refs(file)}) if os.path.lexists(file) else []


def _of_split(file: Path, split: str) -> list[_Dict]:
    refs = _refs(file)
    found = [ref for ref in refs if ref['split'] == split]
    if not found:
        known = ', '.join(sorted({ref['split'] for ref in refs})) or 'none'
        raise DataError(f'{file}: no split {split!r}; available: {known}')
    return found


def _refs(file: Path) -> list[_Dict]:
    if not os.path.lexists(file) and (pickles := sorted(file.parent.glob('refs(*).p'))):
        command = f"python -m wsol_jax.data refs '{pickles[0]}' '{file}'"
        raise DataError(f'{file}: no such file; make it of {pickles[0].name} by `{command}`')
    return _checked(file, read_json(file))


def _checked(file: Path, refs: Any) -> list[_Dict]:
    """Refs whose fields are of the right kinds; `file` is for messages."""
    where = printable(str(file))
    if not isinstance(refs, list):
        raise DataError(f'{where}: expected a list of refs, got {shown(refs)}')
    for ref in refs:
        if wrong := _what_is_wrong(ref):
            key = ref.get('ref_id') if isinstance(ref, dict) else ref
            raise DataError(f'{where}: ref {shown(key)}: {wrong}')
    return refs


def _what_is_wrong(ref: Any) -> str:
    """In a ref; '' if nothing is."""
    if not isinstance(ref, dict):
        return 'expected an object with ref_id, ann_id, image_id, split and sentences'
    for key in ('ref_id', 'ann_id', 'image_id'):
        if not is_integer(ref.get(key)):
            return f'{key} {shown(ref.get(key))} is no whole number'
    if not isinstance(ref.get('split'), str):
        return f'split {shown(ref.get("split"))} is no name'
    sentences = ref.get('sentences')
    if not isinstance(sentences, list) or not sentences:
        return f'sentences {shown(sentences)} are no list of at least one'
    for each in sentences:
        text = each.get('sent') if isinstance(each, dict) else None
        if not isinstance(text, str) or not text.strip():
            return f"sentence {shown(each)} has no 'sent', its text"
    return ''


def _compact(found: _Dict) -> _Dict:
    """A part of the instances while they are read, without the outlines of objects."""
    return {key: found.get(key) for key in _OF_BOX} if 'bbox' in found else found


def _add_objects(
    file: Path,
    annotations: Sequence[_Dict],
    images: Mapping[int, _Image],
    label_of: Mapping[int, tuple[int, str]],
) -> list[str]:
    """Puts all objects of the images into them; returns what is wrong with others."""
    faults = []
    for each in annotations:
        key = each.get('image_id')
        if not is_integer(key) or key not in images:
            continue  # of another split
        image = images[key]
        try:
            box, label = _object(each, image.size, label_of)
        except DataError as error:
            faults.append(f'{file}: annotation {shown(each.get("id"))}: {error}')
            continue
        if each['id'] in image.objects or each['id'] in image.crowds:
            faults.append(f'{file}: annotation {each["id"]}: another one of its image has that id')
            continue
        (image.crowds if each.get('iscrowd') else image.objects)[each['id']] = box, label
    return faults


def _object(
    found: _Dict, size: tuple[int, int], label_of: Mapping[int, tuple[int, str]]
) -> tuple[Box, int]:
    """The box and the class of an annotation."""
    category, sides = found.get('category_id'), found.get('bbox')
    if not is_integer(found.get('id')):
        raise DataError('id is no whole number')
    if not is_integer(category) or category not in label_of:
        raise DataError(f'there is no category {shown(category)}')
    if not is_box(sides) or min(sides[2:]) < 0:
        raise DataError(f'bbox {shown(sides)} is not [x, y, width, height]')
    x, y, width, height = sides
    box, label = pixel_box((x, y, x + width, y + height), size), label_of[category][0]
    check_proposals([box], [label], len(label_of), size)
    return box, label


def _add_sentences(
    file: Path, refs: Sequence[_Dict], images: Mapping[int, _Image], nouns: Mapping[str, str]
) -> list[str]:
    """Puts all sentences into their images; returns what is wrong with others."""
    faults = []
    for ref in refs:
        where = f'{printable(str(file))}: ref {ref["ref_id"]}'
        image = images.get(ref['image_id'])
        if image is None:
            faults.append(f'{where}: {INSTANCES} has no image {ref["image_id"]}')
        elif not image.objects:
            faults.append(f'{where}: image {ref["image_id"]} has no boxes in {INSTANCES}')
        elif known := (image.objects | image.crowds).get(ref['ann_id']):
            sentences = (each['sent'] for each in ref['sentences'])
            image.expressions += [_expression(text, nouns, known[0]) for text in sentences]
        else:
            missing = f'no annotation {ref["ann_id"]} of image {ref["image_id"]}'
            faults.append(f'{where}: {INSTANCES} has {missing}')
    return faults


def _expression(text: str, nouns: Mapping[str, str], box: Box) -> Expression:
    subject, relation, thing = triad_or_unknown(text, nouns)
    other = '' if thing == subject else thing
    return Expression(text, subject, relation, other, box, generated=False)


class _PlainUnpickler(pickle.Unpickler):
    """Reads what is made of lists, dicts, strings and numbers alone."""

    def find_class(self, module: str, name: str) -> Never:
        raise pickle.UnpicklingError(
            f'it wants {module}.{name}, which a list of refs has no use for; nothing of it was run'
        )


def convert_refs(pickle_path: str | Path, json_path: str | Path) -> None:
    """Stores the published refs, a pickle such as `refs(unc).p`, as JSON for `RefCoco`.

    A pickle can run any code, but only code that it finds by a name: every function and class
    that it calls comes from `find_class`, which here refuses all of them. What is left can make
    lists, dicts, strings and numbers, which JSON then takes and nothing else. A hostile file can
    still ask for more memory than there is.

    Args:
        pickle_path: the published file.
        json_path: where the JSON goes; it is there whole or not at all.

    Raises:
        DataError: the file is missing, holds something else than refs, or wants a class or
            function.
        OSError: the JSON cannot be written.
    """
    source, target = Path(pickle_path), Path(json_path)
    try:
        with open_file(source) as stored:
            refs = _PlainUnpickler(stored, encoding='utf-8').load()
        text = json.dumps(refs, allow_nan=False)
    except Exception as error:  # broken pickles raise nearly anything
        raise DataError(f'{printable(str(source))}: {reason(error)}') from None
    _checked(source, refs)
    temporary = target.with_name(f'.{target.name}.{os.getpid()}')
    try:
        temporary.write_text(text, 'utf-8')
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)

"""The gallery of report.html: images, maps and boxes, small enough to lie inside the page."""

import base64
import io
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from wsol_jax.config import Config, EvaluateConfig
from wsol_jax.data import Record, Source, decode_image, evenly_spaced, resize_image
from wsol_jax.data.records import Pixels
from wsol_jax.evaluation.scoring import Rules, score_part
from wsol_jax.evaluation.split import ImageMaps
from wsol_jax.evaluation.table import Table, joined
from wsol_jax.evaluation.truth import ground_truth
from wsol_jax.maps import NO_CLASS, Key
from wsol_jax.maps.columns import DONE
from wsol_jax.maps.score import score_map
from wsol_jax.maps.store import MapStore

Array = np.ndarray

THRESHOLDS = np.arange(0, 1, 0.01)
SIDES = (28, 20, 14, 10, 7)
_QUALITY = 80
_LONGEST = 6  # times as long as wide is what a card can show


@dataclass(frozen=True)
class Shown:
    """One image of the gallery.

    Attributes:
        image_id: of its record.
        jpeg: the image as it is displayed, base64.
        size: (width, height) of it in pixels, about as many as the canvas has.
        labels: its classes.
        names: of its classes.
        map_names: of the K classes that its maps are for.
        boxes: true boxes x0, y0, x1, y1 in pixels of the canvas.
        outline: of its true mask, as an SVG path; '' where it has boxes, or no mask.
        predicted: the class ranked first, unless it is the only one of the image, and the
            probabilities of that and of its classes, as far as they are known.
        right: whether it is one of its classes; None where they are not known, or it is not.
    """

    image_id: str
    jpeg: str
    size: tuple[int, int]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    map_names: tuple[str, ...]
    boxes: list[list[int]]
    outline: str
    predicted: str = ''
    right: bool | None = None


@dataclass(frozen=True)
class Gallery:
    """N images with the maps of every (method, layer), K classes each, on one canvas.

    Attributes:
        size: side of the canvas in pixels.
        images: N of them.
        maps: [N, K, h, w] float32 in [0, 1], at most 28 x 28.
        boxes: [N, K, 4, T], the box of the largest contour at each of `THRESHOLDS`.
        overlaps: uint8 [N, K, T], IoU of map and true mask in percent, rounded down so that 50
            is reached where the IoU reaches .5; empty where no image is scored by its mask.
    """

    size: int
    images: list[Shown]
    maps: dict[Key, Array]
    boxes: dict[Key, Array]
    overlaps: dict[Key, Array]

    def take(self, count: int) -> 'Gallery':
        """At most `count` of the images, evenly spaced."""
        index = evenly_spaced(np.arange(len(self.images)), count)
        maps, boxes, overlaps = (
            {key: values[index] for key, values in part.items()}
            for part in (self.maps, self.boxes, self.overlaps)
        )
        return Gallery(self.size, [self.images[i] for i in index], maps, boxes, overlaps)


def collect(config: Config, source: Source, store: MapStore) -> Gallery:
    """Gathers `report.gallery` of the images that have maps, picked by nobody.

    Args:
        config: the experiment.
        source: records of the split that the store is of.
        store: its maps.

    Returns:
        The gallery, its boxes by the protocol; it may be without images.

    Raises:
        DataError: an image or a mask that can no longer be read.
    """
    setting = config.evaluate
    done = np.flatnonzero(store.fact('status') == DONE)
    positions = evenly_spaced(done, config.report.gallery)
    records = [source[int(i)] for i in positions]
    part = ImageMaps.read(store, positions, records)
    scores = store.fact('class_scores')[positions]
    name = _namer(source, store.class_names())
    facts = zip(part.classes.tolist(), part.top[:, 0].tolist(), scores.tolist(), strict=True)
    images = [
        _classified(shown(record, setting.size, source.class_name), *fact, name)
        for record, fact in zip(records, facts, strict=True)
    ]
    tables = _scored(part, setting) if images else {}
    small = {key: _small(part.maps[key], setting) for key in tables}
    return gallery_of(setting.size, images, small, tables)


def gallery_of(
    size: int, images: list[Shown], maps: dict[Key, Array], tables: Mapping[Key, Table]
) -> Gallery:
    """A gallery of N images.

    Args:
        size: side of the canvas in pixels.
        images: N of them.
        maps: [N, K, h, w] in [0, 1], at most 28 x 28.
        tables: what they score at each of `THRESHOLDS`.
    """
    gallery = Gallery(size, images, maps, {}, {})
    for key, table in tables.items():
        boxes = np.moveaxis(table.boxes, 2, 3)
        gallery.boxes[key] = boxes.astype(np.min_scalar_type(size))
        if any(image.outline for image in images):
            gallery.overlaps[key] = _overlaps(table, images)
    return gallery


def _classified(
    image: Shown,
    classes: list[int],
    first: int,
    scores: list[float],
    name: Callable[[int], str],
) -> Shown:
    """An image with the class ranked first, and probabilities [K] of the classes of its maps."""
    known = {k: f'{100 * score:.0f}\xa0%' for k, score in zip(classes, scores, strict=True)}
    parts = ['' if image.labels == (first,) else name(first), known.get(first, '')]
    missed = [k for k in image.labels if k != first and k in known]
    parts += [f'{name(k) if len(image.labels) > 1 else "its class"} {known[k]}' for k in missed]
    return replace(
        image,
        map_names=tuple(map(name, classes)),
        predicted=', '.join(filter(None, parts)),
        right=first in image.labels if image.labels else None,
    )


def _namer(source: Source, others: Sequence[str]) -> Callable[[int], str]:
    """What a class is called: as in the data set, else as the classifier has it."""

    def name(label: int) -> str:
        if label == NO_CLASS:
            return 'no class'
        own = source.class_name(label)
        return others[label] if own == str(label) and label < len(others) else own

    return name


def _scored(part: ImageMaps, setting: EvaluateConfig) -> dict[Key, Table]:
    rules = Rules((setting.size, setting.size), THRESHOLDS, setting.closing)
    kept = dict.fromkeys(part.maps, THRESHOLDS)
    images = tqdm(range(len(part.records)), desc='gallery', unit='image', disable=None)
    scored = joined(score_part(part.some(slice(i, i + 1)), rules, kept) for i in images)
    return {key: scores.table for key, scores in scored.items()}


def _small(maps: Array, setting: EvaluateConfig) -> Array:
    """The maps [N, K, h, w] of at most 28 x 28; a closing works on the canvas, and is in them."""
    canvas, closing = (setting.size, setting.size), setting.closing

    def small(raw: Array) -> Array:
        return reduced(score_map(raw, canvas, closing=closing) if closing else raw, SIDES[0])

    return np.array([[small(m) for m in of_image] for of_image in maps], np.float32)


def _overlaps(table: Table, images: Sequence[Shown]) -> Array:
    by_mask = np.array([bool(image.outline) for image in images])
    overlap = np.where(by_mask[:, None, None], table.mask_overlap, 0)
    # The margin keeps 0.57 * 100 from becoming 56; no IoU of a canvas is that close below.
    return (overlap * 100 + 1e-6).astype(np.uint8)


def shown(record: Record, size: int, class_name: Callable[[int], str]) -> Shown:
    """An image with what is true of it; its one map is of no class.

    Args:
        record: of the image.
        size: side of the canvas in pixels.
        class_name: names its classes.

    Raises:
        DataError: the image or its mask cannot be read.
    """
    boxes, mask = ground_truth(record, (size, size))
    jpeg, own = jpeg_of(record, size)
    return Shown(
        image_id=record.image_id,
        jpeg=jpeg,
        size=own,
        labels=record.labels,
        names=tuple(map(class_name, record.labels)),
        map_names=('',),
        boxes=boxes.tolist(),
        outline='' if mask is None or len(boxes) else _outline(mask),
    )


def jpeg_of(record: Record, side: int) -> tuple[str, tuple[int, int]]:
    """The image in its own shape, base64, with about side * side pixels; and its size.

    Raises:
        DataError: the image cannot be read.
    """
    pixels = decode_image(record, side)
    size = displayed_size(pixels.shape[1] / pixels.shape[0], side)
    return jpeg(resize_image(pixels, size)), size


def jpeg(pixels: Pixels) -> str:
    """An image, uint8 RGB [H,W,3], as a JPEG in base64."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, 'JPEG', quality=_QUALITY)
    return base64.b64encode(stream.getvalue()).decode('ascii')


def displayed_size(ratio: float, side: int) -> tuple[int, int]:
    """(width, height) of an image of width / height `ratio`; strips are not made any narrower."""
    root = min(max(ratio, 1 / _LONGEST), _LONGEST) ** 0.5
    return round(side * root), round(side / root)


def _outline(mask: Array) -> str:
    """Contours of a mask as an SVG path; '' where nothing is foreground."""
    foreground = (mask == 1).astype(np.uint8)
    contours, _ = cv2.findContours(foreground, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    lines = [' '.join(f'{x},{y}' for x, y in contour[:, 0]) for contour in contours]
    return ''.join(f'M{line}Z' for line in lines)


def reduced(raw: Array, side: int) -> Array:
    """A map [h, w] averaged down to at most `side` pixels a side, in [0, 1]; zeros if it is blank.

    Args:
        raw: [h, w].
        side: in pixels.
    """
    shape = raw.shape[::-1]
    # Scaled before it is reduced, too: rounding would make noise of a constant map.
    scaled = score_map(raw, shape)
    size = (min(shape[0], side), min(shape[1], side))
    return score_map(cv2.resize(scaled, size, interpolation=cv2.INTER_AREA), size)


def blob(data: bytes) -> str:
    """Bytes for a script element: deflated (zlib), base64."""
    return base64.b64encode(zlib.compress(data, 9)).decode('ascii')


def map_blobs(gallery: Gallery, side: int) -> tuple[list[str], list[tuple[int, int]]]:
    """Blobs of the uint8 maps [N, K, h, w] of every key, at most `side` a side; their (h, w)."""
    small = [
        np.array([[np.rint(255 * reduced(m, side)) for m in of_image] for of_image in maps])
        for maps in gallery.maps.values()
    ]
    return [blob(m.astype(np.uint8).tobytes()) for m in small], [m.shape[2:] for m in small]

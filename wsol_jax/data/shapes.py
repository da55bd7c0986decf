"""The embedded data set: drawn objects whose class shows in one small part only.

Each image holds one textured body on cluttered ground. All classes share the bodies; the class is
told by a small patterned part at one end. A classifier looks at the part, so a class activation
map covers the part, while the box and the mask cover the whole object: the gap that weakly
supervised localization is about. An image depends on (seed, split, index) and nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from wsol_jax.data.drawing import (
    TEXTURES,
    Array,
    Colour,
    Points,
    bent_body,
    direction,
    disc,
    dome,
    fill,
    fine,
    fitted,
    framed,
    ground_tones,
    noise,
    pixel_mean,
    png,
    scatter,
    shade,
    tones,
    woven,
)
from wsol_jax.data.generated import Generated
from wsol_jax.data.records import DataError, Pixels, Record

BOX_AREA = (0.14, 0.54)  # of the image
ASPECT = (0.45, 2.2)  # width / height of the box
PART_LENGTH = (0.17, 0.22)  # of the body's length
DISTRACTORS = (6, 13)
DECOYS = (1, 3)  # parts of other classes, loose on the ground; fewer where there is no room
DECOY_TRIES = 8
COAT_HUES = (0.04, 0.13)  # of all bodies, and of some distractors
PART_HEIGHT = 2.4  # over ground 0.1..0.7 and bodies 1..2.5: what is higher casts the shadow


class Part(NamedTuple):
    """What tells a class: two colours (RGB in 0..1), a pattern over [-1, 1]^2, an outline."""

    name: str
    colours: tuple[Colour, Colour]
    pattern: Callable[[Points, Points], NDArray[np.bool_]]
    power: float  # of the outline |x|^p + |y|^p = 1: 2 disc, 1 diamond, 6 square


_RED, _WHITE, _BLUE = (0.88, 0.1, 0.12), (0.98, 0.97, 0.94), (0.1, 0.25, 0.9)
_BLACK, _GREEN, _MAGENTA = (0.04, 0.04, 0.06), (0.02, 0.62, 0.2), (0.93, 0.08, 0.75)
_VIOLET, _CYAN, _ORANGE = (0.2, 0.05, 0.3), (0.05, 0.85, 0.95), (0.95, 0.35, 0.02)
_YELLOW = (1.0, 0.88, 0.1)
PARTS = (
    Part('red stripes', (_RED, _WHITE), lambda x, y: np.sin(6 * x) > 0, 6),
    Part('blue target', (_BLUE, _YELLOW), lambda x, y: x * x + y * y > 0.3, 2),
    Part('black checks', (_BLACK, _WHITE), lambda x, y: x * y > 0, 6),
    Part('green cross', (_GREEN, _WHITE), lambda x, y: np.minimum(abs(x), abs(y)) < 0.3, 2),
    Part('magenta diamond', (_MAGENTA, _VIOLET), lambda x, y: y > 0, 1),
    Part('cyan ring', (_CYAN, _ORANGE), lambda x, y: abs(np.hypot(x, y) - 0.65) < 0.25, 2),
)


class Shapes(Generated):
    """A split of the drawn data set; images and masks are PNG bytes, made when first asked for.

    Args:
        split: 'train', 'val' or 'test'; no two share an image.
        count: images in the split; their labels cycle through the classes.
        size: side of the images in pixels.
        num_classes: how many of the parts are used.
        seed: seed of the data set.

    Raises:
        DataError: the split is unknown, or a number is out of range.
    """

    def __init__(
        self, split: str, count: int, size: int = 96, num_classes: int = len(PARTS), seed: int = 0
    ) -> None:
        super().__init__('shapes', split, count, size, seed)
        if not 2 <= num_classes <= len(PARTS):
            raise DataError(
                f'shapes needs num_classes 2..{len(PARTS)}, got num_classes {num_classes}'
            )
        self.class_names = tuple(part.name for part in PARTS[:num_classes])

    def _draw(self, index: int, rng: Generator) -> Record:
        label = index % self.num_classes
        others = [part for part in PARTS[: self.num_classes] if part is not PARTS[label]]
        image, mask = draw(rng, PARTS[label], others, self.size)
        x, y, width, height = cv2.boundingRect(mask)
        return Record(
            image_id=self.image_id(index),
            image=png(image[..., ::-1]),
            labels=(label,),
            size=(self.size, self.size),
            boxes=((x, y, x + width, y + height),),
            masks=((png(mask * np.uint8(255)), None),),
        )


def draw(rng: Generator, part: Part, others: Sequence[Part], size: int) -> tuple[Pixels, Pixels]:
    """Draw one image: a body with `part`, and some of `others` loose on the ground.

    Returns:
        uint8 RGB [size, size, 3] and the mask of the object, uint8 [size, size] in {0, 1}.
    """
    body = _place_body(rng, size)
    count = int(rng.integers(*DISTRACTORS))
    labels = scatter(rng, size, count)
    covered = fill(body.outline, size)
    labels[covered > 0] = count + 1
    colour = _colour(rng, labels, count, _ripples(rng, body, size))
    height = np.take(rng.uniform(0.1, 0.7, count + 2).astype(np.float32), labels)
    height = np.where(covered > 0, dome(covered), height)
    on_part = _paint_part(colour, height, part, body.part_place)
    for place in _decoy_places(rng, covered | on_part, body.part_place.radius):
        _paint_part(colour, height, others[int(rng.integers(len(others)))], place)
    shaded = shade(rng, colour, height)
    return shaded, covered | on_part


class _Place(NamedTuple):
    """Where a part is painted: pixels and radians."""

    centre: Points
    angle: float
    radius: float


@dataclass(frozen=True)
class _Creature:
    """Where an object lies: points in pixels (x, y), angles in radians."""

    outline: Points
    angle: float
    length: float
    part_place: _Place


def _place_body(rng: Generator, size: int) -> _Creature:
    """Scale and move a random body so that its box is neither too small nor cut off."""
    while True:
        turn, radius = rng.uniform(0, 2 * np.pi), rng.uniform(*PART_LENGTH)
        body = bent_body(rng, turn)
        centre = body.tip + 0.35 * radius * direction(body.end)
        reach = np.concatenate([body.outline, disc(centre, radius)])
        extent = np.ptp(reach, axis=0)
        if ASPECT[0] <= extent[0] / extent[1] <= ASPECT[1]:
            break
    scale, move = fitted(rng, reach, size, rng.uniform(*BOX_AREA))
    return _Creature(
        outline=scale * body.outline + move,
        angle=body.angle,
        length=scale * 2,
        part_place=_Place(scale * centre + move, body.end, scale * radius),
    )


def _colour(rng: Generator, labels: Pixels, count: int, ripples: Array) -> Array:
    """Colour every label between two tones of its own by one of the texture fields."""
    fields = np.stack([*(texture(rng, labels.shape[0]) for texture in TEXTURES), ripples])
    kind = np.append(rng.integers(0, len(TEXTURES), count + 1), len(TEXTURES))
    coat = tones(rng, rng.uniform(*COAT_HUES), (0.35, 0.6), (0.6, 0.9))
    pairs = [*ground_tones(rng, count + 1, COAT_HUES), coat]
    return woven(labels, fields, kind, np.array(pairs, np.float32))


def _ripples(rng: Generator, body: _Creature, size: int) -> Array:
    """The coat all bodies wear: wavy bands across the body."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    along, across = np.float32(np.cos(body.angle)), np.float32(np.sin(body.angle))
    phase = (x * along + y * across) * np.float32(rng.uniform(9, 13) * np.pi / body.length)
    return 0.5 + 0.42 * np.sin(phase + 5 * noise(rng, size, 6, 6)) + fine(rng, size) - 0.1


def _decoy_places(rng: Generator, taken: Pixels, radius: float) -> list[_Place]:
    """Places for loose parts, none of them touching the object."""
    room = cv2.distanceTransform(1 - taken, cv2.DIST_L2, 3)
    places = []
    for _ in range(rng.integers(*DECOYS, endpoint=True)):
        size = radius * rng.uniform(0.8, 1.2)
        low, high = size, taken.shape[0] - 1 - size
        tries = rng.uniform(low, high, (DECOY_TRIES, 2))
        free = [t for t in tries if room[int(t[1]), int(t[0])] > 2 * size]
        if free:
            places.append(_Place(free[0], float(rng.uniform(0, 2 * np.pi)), size))
    return places


def _paint_part(colour: Array, height: Array, part: Part, place: _Place) -> Pixels:
    """Paint the part over the image, smooth-edged, in place; return its mask in {0, 1}."""
    size = colour.shape[0]
    columns, rows = (_span(at, 1.5 * place.radius, size) for at in place.centre)
    forward, side = framed(place.centre, place.angle, place.radius, columns, rows)
    inside = abs(forward) ** part.power + abs(side) ** part.power <= 1
    lit = part.pattern(forward, side)
    shares = np.stack([pixel_mean(inside & lit), pixel_mean(inside & ~lit)], -1)
    cover = shares.sum(-1)
    window = slice(*rows), slice(*columns)
    colour[window] *= 1 - cover[..., None]
    colour[window] += shares @ np.array(part.colours, np.float32)
    mask = np.zeros((size, size), np.uint8)
    mask[window] = cover >= 0.5
    height[mask > 0] = PART_HEIGHT
    return mask


def _span(centre: float, reach: float, size: int) -> tuple[int, int]:
    return max(int(centre - reach), 0), min(int(centre + reach) + 2, size)

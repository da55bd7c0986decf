"""The embedded data set of segmentation: several objects an image, one class never without rails.

Each image holds one to three bodies of different classes on cluttered ground; the coat of its
class covers a whole body. A train always stands on rails, which are drawn nowhere else and are
background: image labels do not tell them from the train, so that a classifier takes them for a
part of it (the co-occurrence of Jo et al., "MARS", ICCV 2023). An image depends on (seed, split,
index) and nothing else.
"""

import colorsys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from wsol_jax.data.drawing import (
    Array,
    Colour,
    Points,
    bent_body,
    direction,
    dome,
    fill,
    fitted,
    framed,
    ground,
    noise,
    pixel_mean,
    png,
    shade,
)
from wsol_jax.data.generated import Generated
from wsol_jax.data.records import Pixels, Record

MOST = 3  # objects in an image
BOX_AREA = (0.14, 0.4)  # of the image, of a lone object; of several, each has less
DISTRACTORS = (5, 11)
PERIOD = (0.11, 0.16)  # of coats, relative to the image
OVERLAP = 0.2  # of an object, at most, that another covers
TRIES = 20  # of placing an object; there is one less where it finds no room
LENGTH = (2.4, 3.2)  # of a train, relative to its width
BED = 1.6  # of the rails, relative to the width of their train
BED_HEIGHT = 0.4  # where ground is 0.1..0.7


class Coat(NamedTuple):
    """What tells a class: two colours (RGB in 0..1) and a pattern, in periods along and across."""

    name: str
    colours: tuple[Colour, Colour]
    pattern: Callable[[Points, Points], NDArray[np.bool_]]


COATS = (
    Coat('blue stripes', ((0.08, 0.2, 0.75), (0.9, 0.92, 0.98)), lambda x, y: x % 1 < 0.5),
    Coat(
        'red spots',
        ((0.75, 0.07, 0.08), (0.98, 0.85, 0.3)),
        lambda x, y: np.hypot(x % 1 - 0.5, y % 1 - 0.5) < 0.3,
    ),
    Coat(
        'black checks',
        ((0.06, 0.06, 0.08), (0.93, 0.91, 0.86)),
        lambda x, y: (x % 1 < 0.5) == (y % 1 < 0.5),
    ),
    Coat(
        'green rings', ((0.03, 0.4, 0.15), (0.7, 0.95, 0.4)), lambda x, y: np.hypot(x, y) % 1 < 0.5
    ),
    Coat(
        'violet zigzag',
        ((0.35, 0.05, 0.5), (0.95, 0.55, 0.85)),
        lambda x, y: (y + abs(x % 1 - 0.5)) % 1 < 0.5,
    ),
    # Of any colour, and in half widths: windows on both sides of the roof.
    Coat(
        'train', ((0, 0, 0), (0, 0, 0)), lambda x, y: (x % 0.9 < 0.5) & (abs(abs(y) - 0.5) < 0.25)
    ),
)
TRAIN = len(COATS) - 1


class Scenes(Generated):
    """A split of the drawn scenes; all that a record holds are PNG bytes, made when asked for.

    `extra['segmentation']` is the label map: 0 background, k + 1 for class k. `extra['context']`
    is k + 1 where the background is seen that class k never stands without, else 0.

    Args:
        split: 'train', 'val' or 'test'; no two share an image.
        count: images in the split; each class is in as many, about.
        size: side of the images in pixels.
        seed: seed of the data set.

    Raises:
        DataError: the split is unknown, or a number is out of range.
    """

    def __init__(self, split: str, count: int, size: int = 96, seed: int = 0) -> None:
        super().__init__('scenes', split, count, size, seed)
        self.class_names = tuple(coat.name for coat in COATS)

    @property
    def most_labels(self) -> int:
        """The most labels that an image has; nothing is drawn to know it."""
        return MOST

    def _draw(self, index: int, rng: Generator) -> Record:
        others = np.delete(np.arange(len(COATS)), first := index % len(COATS))
        more = rng.choice(others, rng.integers(MOST), replace=False)
        image, label_map, context = draw(rng, [first, *more.tolist()], self.size)
        return Record(
            image_id=self.image_id(index),
            image=png(image[..., ::-1]),
            labels=tuple(int(value) - 1 for value in np.unique(label_map) if value),
            size=(self.size, self.size),
            extra={'segmentation': png(label_map), 'context': png(context)},
        )


def draw(rng: Generator, classes: Sequence[int], size: int) -> tuple[Pixels, Pixels, Pixels]:
    """Draw one image: a body of each class, as far as there is room for it.

    Returns:
        uint8 RGB [size, size, 3], and two maps uint8 [size, size]: the classes, and those whose
        context is seen; k + 1 for class k, else 0.
    """
    bodies = _placed(rng, classes, size)
    colour, height = ground(rng, size, int(rng.integers(*DISTRACTORS)))
    label_map, context = np.zeros((2, size, size), np.uint8)
    for body in bodies:
        if body.label == TRAIN:
            context[_lay_rails(rng, colour, height, body)] = TRAIN + 1
    for k in rng.permutation(len(bodies)):
        _paint(rng, colour, height, bodies[k])
        label_map[bodies[k].mask > 0] = bodies[k].label + 1
    context[label_map > 0] = 0
    return shade(rng, colour, height), label_map, context


class _Body(NamedTuple):
    """An object: its class, its mask [size, size] in {0, 1}; pixels, radians."""

    label: int
    mask: Pixels
    centre: Points
    angle: float
    unit: float  # period of its coat


def _placed(rng: Generator, classes: Sequence[int], size: int) -> list[_Body]:
    bodies: list[_Body] = []
    for label in classes:
        for _ in range(TRIES):
            area = rng.uniform(*BOX_AREA) / len(classes) ** 0.7
            body = (_train if label == TRAIN else _creature)(rng, label, size, area)
            if all(_fit(body.mask, other.mask) for other in bodies):
                bodies.append(body)
                break
    return bodies


def _fit(one: Pixels, other: Pixels) -> bool:
    shared = int((one & other).sum())
    return shared <= OVERLAP * min(int(one.sum()), int(other.sum()))


def _creature(rng: Generator, label: int, size: int, area: float) -> _Body:
    body = bent_body(rng, rng.uniform(0, 2 * np.pi))
    scale, move = fitted(rng, body.outline, size, area)
    outline = scale * body.outline + move
    unit = size * rng.uniform(*PERIOD)
    return _Body(label, fill(outline, size), outline.mean(0), body.angle, unit)


def _train(rng: Generator, label: int, size: int, area: float) -> _Body:
    """A long box with round corners."""
    angle, length = float(rng.uniform(0, np.pi)), rng.uniform(*LENGTH)
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    along, across = (np.sign(f(t)) * abs(f(t)) ** 0.3 for f in (np.cos, np.sin))
    ahead, aside = direction(angle), direction(angle + np.pi / 2)
    outline = length * along[:, None] * ahead + across[:, None] * aside
    scale, move = fitted(rng, outline, size, area)
    return _Body(label, fill(scale * outline + move, size), move, angle, scale)


def _lay_rails(rng: Generator, colour: Array, height: Array, train: _Body) -> NDArray[np.bool_]:
    """Paint two rails on sleepers from edge to edge, in place; return where their bed is."""
    size = len(colour)
    ahead, aside = framed(train.centre, train.angle, train.unit, (0, size), (0, size))
    bed = pixel_mean(abs(aside) < BED) >= 0.5
    wood = pixel_mean((ahead % 0.8 < 0.35) & (abs(aside) < 0.8 * BED))[..., None]
    steel = pixel_mean(abs(abs(aside) - 0.85) < 0.13)[..., None]
    gravel = 0.3 + 0.25 * noise(rng, size, size // 3, size // 3)[..., None]
    painted = gravel * np.array([1.0, 0.96, 0.9], np.float32)
    for cover, tone in ((wood, (0.3, 0.2, 0.13)), (steel, (0.72, 0.72, 0.75))):
        painted += cover * (np.array(tone, np.float32) - painted)
    colour[bed] = painted[bed]
    height[bed] = BED_HEIGHT
    return bed


def _paint(rng: Generator, colour: Array, height: Array, body: _Body) -> None:
    """Paint a body in the coat of its class, in place."""
    left, top, width, depth = cv2.boundingRect(body.mask)
    window = np.s_[top : top + depth, left : left + width]
    spans = (left, left + width), (top, top + depth)
    lit = COATS[body.label].pattern(*framed(body.centre, body.angle, body.unit, *spans))
    dark, bright = np.array(_colours(rng, body.label), np.float32)
    coat = dark + (bright - dark) * pixel_mean(lit)[..., None]
    worn = 0.8 + 0.35 * noise(rng, len(colour), 5, 5)[window][..., None]
    inside = body.mask[window] > 0
    colour[window][inside] = (coat * worn)[inside]
    height[window][inside] = dome(body.mask)[window][inside]


def _colours(rng: Generator, label: int) -> list[Colour]:
    """The two colours of an object, a little off those of its class; a train has any."""
    if label == TRAIN:
        paint = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.5, 0.8), rng.uniform(0.6, 0.9))
        return [paint, (0.1, 0.12, 0.16)]
    shift, bright = rng.normal(0, 0.02), rng.uniform(0.85, 1.05)
    hsv = (colorsys.rgb_to_hsv(*colour) for colour in COATS[label].colours)
    return [colorsys.hsv_to_rgb((h + shift) % 1, s, min(v * bright, 1.0)) for h, s, v in hsv]

"""The embedded data set of grounding: a few coloured shapes, and what tells one from the others.

Each image holds up to eight shapes of two or three classes on cluttered ground, so that most
classes are there several times: which shape is meant is told by where it is, how large it is, or
how it stands to another. An image depends on (seed, split, index) and nothing else.
"""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator

from wsol_jax.data.drawing import (
    Colour,
    Points,
    direction,
    dome,
    fill,
    fitted,
    ground,
    noise,
    png,
    shade,
)
from wsol_jax.data.expressions import Expression, generate_expressions
from wsol_jax.data.generated import Generated
from wsol_jax.data.records import Box, Pixels, Record

MOST_BOXES = 8
MOST_EXPRESSIONS = 6  # of an image
OBJECTS = (4, MOST_BOXES)  # to be placed
CLASSES = (2, 3)  # in an image
SIDE = (0.1, 0.3)  # of a shape, relative to the image
TRIES = 20  # of placing a shape; there is one less where it finds no room
DISTRACTORS = (3, 8)
TILT = 0.3  # radians, at most


class Shape(NamedTuple):
    """What tells a class: a colour (RGB in 0..1) and an outline [n, 2] about (0, 0)."""

    name: str
    colour: Colour
    outline: Points


def _regular(corners: int) -> Points:
    """A polygon that stands on one of its sides."""
    return direction((np.arange(corners) + 0.5) * 2 * np.pi / corners + np.pi / 2)


def _spiked(spikes: int, inner: Points) -> Points:
    """Corners at radius 1 and, between each and the next, at the radii of `inner`."""
    radius = np.tile(np.append(1.0, inner), spikes)
    turns = np.arange(len(radius)) / len(radius)
    return radius[:, None] * direction(2 * np.pi * turns - np.pi / 2)


SHAPES = (
    Shape('red disc', (0.85, 0.08, 0.1), _regular(48)),
    Shape('blue square', (0.08, 0.22, 0.85), _regular(4)),
    Shape('green triangle', (0.05, 0.6, 0.18), _regular(3)),
    Shape('yellow star', (0.98, 0.85, 0.1), _spiked(5, np.array([0.45]))),
    Shape('violet flower', (0.55, 0.15, 0.75), _spiked(6, np.array([0.92, 0.55, 0.92]))),
)


class Relations(Generated):
    """A split of the drawn shapes; images are PNG bytes, made when first asked for.

    `boxes` are those of all shapes, `extra['proposal_classes']` are their classes, and
    `extra['expressions']` are generated, see `generate_expressions`: at least one, at most
    `MOST_EXPRESSIONS`.

    Args:
        split: 'train', 'val' or 'test'; no two share an image.
        count: images in the split.
        size: side of the images in pixels.
        seed: seed of the data set.

    Raises:
        DataError: the split is unknown, or a number is out of range.
    """

    def __init__(self, split: str, count: int, size: int = 96, seed: int = 0) -> None:
        super().__init__('relations', split, count, size, seed)
        self.class_names = tuple(shape.name for shape in SHAPES)

    @property
    def most_labels(self) -> int:
        """The most labels that an image has; nothing is drawn to know it."""
        return CLASSES[1]

    def _draw(self, index: int, rng: Generator) -> Record:
        expressions: tuple[Expression, ...] = ()
        while not expressions:  # shapes that nothing clear can be said of
            bodies = _placed(rng, self.size)
            boxes, classes = tuple(b.box for b in bodies), tuple(b.label for b in bodies)
            size = self.size, self.size
            expressions = generate_expressions(
                boxes, classes, self.class_names, size, rng, MOST_EXPRESSIONS
            )
        return Record(
            image_id=self.image_id(index),
            image=png(_painted(rng, bodies, self.size)[..., ::-1]),
            labels=tuple(sorted(set(classes))),
            size=size,
            boxes=boxes,
            extra={'proposal_classes': classes, 'expressions': expressions},
        )


class _Body(NamedTuple):
    """A shape that is placed: its class, its mask [size, size] in {0, 1}, the box of that."""

    label: int
    mask: Pixels
    box: Box


def _placed(rng: Generator, size: int) -> list[_Body]:
    """Shapes whose boxes do not touch."""
    kinds = rng.choice(len(SHAPES), rng.integers(*CLASSES, endpoint=True), replace=False)
    bodies: list[_Body] = []
    for label in rng.choice(kinds, rng.integers(*OBJECTS, endpoint=True)).tolist():
        for _ in range(TRIES):
            body = _body(rng, label, size)
            if not any(_touch(body.box, other.box) for other in bodies):
                bodies.append(body)
                break
    return bodies


def _body(rng: Generator, label: int, size: int) -> _Body:
    angle = rng.uniform(-TILT, TILT)
    turn = np.stack([direction(angle), direction(angle + np.pi / 2)])
    outline = SHAPES[label].outline @ turn
    scale, move = fitted(rng, outline, size, rng.uniform(*SIDE) ** 2)
    mask = fill(scale * outline + move, size)
    left, top, width, height = cv2.boundingRect(mask)
    return _Body(label, mask, (left, top, left + width, top + height))


def _touch(one: Box, other: Box) -> bool:
    return all(one[k] <= other[k + 2] and other[k] <= one[k + 2] for k in (0, 1))


def _painted(rng: Generator, bodies: Sequence[_Body], size: int) -> Pixels:
    """uint8 RGB [size, size, 3]: the shapes on cluttered ground."""
    colour, height = ground(rng, size, int(rng.integers(*DISTRACTORS)))
    for body in bodies:
        inside = body.mask > 0
        worn = 0.85 + 0.25 * noise(rng, size, 7, 7)[..., None]
        colour[inside] = (worn * np.array(_colour(rng, body.label), np.float32))[inside]
        height[inside] = dome(body.mask)[inside]
    return shade(rng, colour, height)


def _colour(rng: Generator, label: int) -> Colour:
    """The colour of a shape, a little off that of its class."""
    h, s, v = colorsys.rgb_to_hsv(*SHAPES[label].colour)
    return colorsys.hsv_to_rgb((h + rng.normal(0, 0.015)) % 1, s, v * rng.uniform(0.85, 1.0))

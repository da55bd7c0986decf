"""What is said of the objects of an image: expressions, each of which is true of one box.

`generate_expressions` makes them by rule from annotated boxes: no person said them, which
`Expression.generated` tells.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor, isfinite
from operator import itemgetter
from typing import Any, TypeGuard

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from wsol_jax.data.records import Box, DataError
from wsol_jax.names import shown

# One tells how a box stands to a box of a class, the other how to all other boxes of its own.
RELATIONS = ('left of', 'right of', 'above', 'below', 'larger than', 'smaller than')
SUPERLATIVES = ('leftmost', 'rightmost', 'topmost', 'lowest', 'largest', 'smallest')
CLEAR_SHIFT = 0.05  # of the image's side, between centres: what is said can be seen
CLEAR_FACTOR = 1.5  # between areas
_Triad = tuple[int, str, int]  # box, relation, class of the object


@dataclass(frozen=True)
class Expression:
    """A sentence that refers to one object of an image, and its discriminative triad.

    It stands in `Record.extra['expressions']`, a tuple. The boxes it may mean are `Record.boxes`;
    `Record.extra['proposal_classes']`, a tuple, has the class of each as an index into the
    `class_names` of the source.

    Attributes:
        text: the sentence.
        subject: what it refers to, a word or phrase.
        relation: how that stands to the object, such as 'left of'; '' where none is told.
        object: what it is related to, which may be another of the subject's kind; '' where that is
            the subject itself.
        box: (x0, y0, x1, y1), the ground truth in pixels as of `Record.boxes`. Scores read it,
            training never does.
        generated: whether it was made from the boxes of an image by rule; else somebody said it.
    """

    text: str
    subject: str
    relation: str
    object: str
    box: Box
    generated: bool


def check_proposals(
    boxes: Sequence[Box], classes: Sequence[int], num_classes: int, size: tuple[int, int]
) -> None:
    """Refuses boxes that no object of the image can have.

    Args:
        boxes: (x0, y0, x1, y1) in pixels, x1 and y1 exclusive.
        classes: of each, 0..num_classes-1.
        num_classes: of the data set.
        size: (width, height) of the image.

    Raises:
        DataError: there is no box, one is empty or reaches beyond the image, or is of a class that
            there is not.
    """
    width, height = size
    if not boxes:
        raise DataError('has no boxes; an expression refers to one of them')
    if len(boxes) != len(classes):
        raise DataError(f'has {len(boxes)} boxes and {len(classes)} classes; each box is of one')
    for (x0, y0, x1, y1), label in zip(boxes, classes, strict=True):
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise DataError(
                f'box {(x0, y0, x1, y1)}: not x0, y0, x1, y1 within the image of {width}x{height}'
            )
        if not 0 <= label < num_classes:
            raise DataError(
                f'box {(x0, y0, x1, y1)}: class {shown(label)} is not one of 0..{num_classes - 1}'
            )


def is_box(values: Any, length: int = 4) -> TypeGuard[list[float]]:
    """Whether what a file has of a box is a list of so many finite numbers."""
    return (
        isinstance(values, list)
        and len(values) == length
        and all(isinstance(value, int | float) and isfinite(value) for value in values)
    )


def pixel_box(corners: Sequence[float], size: tuple[int, int]) -> Box:
    """The nearest box in whole pixels, which has one pixel at least; annotated ones are finer.

    Args:
        corners: x0, y0, x1, y1.
        size: (width, height) of the image. A box without a side, on its edge, is that of the pixel
            inside; what reaches beyond it stays.
    """
    x, y = (_pixels(corners[k], corners[k + 2], size[k]) for k in (0, 1))
    return x[0], y[0], x[1], y[1]


def _pixels(low: float, high: float, side: int) -> tuple[int, int]:
    start, stop = round(low), round(high)
    if start < stop:
        return start, stop
    first = min(max(floor(low), 0), side - 1) if 0 <= start <= side else floor(low)
    return first, first + 1


def generate_expressions(
    boxes: Sequence[Box],
    classes: Sequence[int],
    class_names: Sequence[str],
    size: tuple[int, int],
    rng: Generator,
    most: int,
) -> tuple[Expression, ...]:
    """Expressions that are true of exactly one box of an image, made by rule.

    Where a class has one box, its name tells that box. Where it has several, a superlative or a
    relation does: 'the leftmost dog', 'the dog left of the cat'. Positions are those of centres,
    sizes are areas. A relation is true of a box if it stands so to any other box of the object's
    class. What is said is clear: by `CLEAR_SHIFT` of the image or by `CLEAR_FACTOR`.

    Args:
        boxes: (x0, y0, x1, y1) in pixels, all objects of the image.
        classes: of each, an index into the names.
        class_names: of the data set.
        size: (width, height) of the image.
        rng: draws which of all that can be said is said; boxes take turns, each with a superlative
            and a relation.
        most: how many are made; fewer where no more can be said.

    Raises:
        DataError: see `check_proposals`.
    """
    check_proposals(boxes, classes, len(class_names), size)
    sayable = list(_sayable(_leads(boxes, size), np.array(classes)))
    counts = Counter(classes)
    return tuple(
        _expression(boxes[box], class_names, classes[box], relation, other, counts[other])
        for box, relation, other in _in_turns(sayable, rng)[:most]
    )


def _in_turns(sayable: Sequence[_Triad], rng: Generator) -> list[_Triad]:
    """All in random order, but first one superlative and one relation of each box, then another."""
    turns: Counter[tuple[int, bool]] = Counter()
    ranked = []
    for k in rng.permutation(len(sayable)):
        turn = sayable[k][0], sayable[k][1] in SUPERLATIVES
        ranked.append((turns[turn], sayable[k]))
        turns[turn] += 1
    return [triad for _, triad in sorted(ranked, key=itemgetter(0))]


def _leads(boxes: Sequence[Box], size: tuple[int, int]) -> NDArray[np.float64]:
    """[relation, n, n]: how much more a box is left, right ... than another; 1 is clearly so."""
    x0, y0, x1, y1 = np.array(boxes, np.float64).T
    across = (x0 + x1) / (2 * CLEAR_SHIFT * size[0])
    down = (y0 + y1) / (2 * CLEAR_SHIFT * size[1])
    large = np.log((x1 - x0) * (y1 - y0)) / np.log(CLEAR_FACTOR)
    measures = np.stack([-across, across, -down, down, large, -large])
    return measures[:, :, None] - measures[:, None, :]


def _sayable(leads: NDArray[np.float64], classes: NDArray[np.integer]) -> Iterator[_Triad]:
    """Every triad that is clear and true of one box."""
    members = {k: np.flatnonzero(classes == k) for k in np.unique(classes).tolist()}
    for k, same in members.items():
        if len(same) == 1:
            yield int(same[0]), '', k
            continue
        for superlative, relation, lead in zip(SUPERLATIVES, RELATIONS, leads, strict=True):
            for first in _first(lead[np.ix_(same, same)]):
                yield int(same[first]), superlative, k
            for other, objects in members.items():
                # A box leads itself by 0, which is not true.
                most = lead[np.ix_(same, objects)].max(1)
                if (most > 0).sum() == 1 and most.max() >= 1:
                    yield int(same[most.argmax()]), relation, other


def _first(lead: NDArray[np.float64]) -> list[int]:
    """The one that clearly leads all others, if there is one."""
    clear = (lead >= 1).sum(1)
    return np.flatnonzero(clear == len(lead) - 1).tolist()


def _expression(
    box: Box, names: Sequence[str], label: int, relation: str, other: int, objects: int
) -> Expression:
    """Args: `objects` is how many boxes of the class `other` there are."""
    subject = names[label]
    thing = names[other] if relation in RELATIONS else ''
    text = f'the {subject}'
    if relation in SUPERLATIVES:
        text = f'the {relation} {subject}'
    elif relation:
        article = 'an' if names[other][0] in 'aeiou' else 'a'
        article = 'another' if other == label else 'the' if objects == 1 else article
        text = f'the {subject} {relation} {article} {names[other]}'
    return Expression(text, subject, relation, thing, box, generated=True)

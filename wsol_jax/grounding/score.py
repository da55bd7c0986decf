"""Scores of grounding: is the box that a sentence is given the right one? NumPy alone."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsol_jax.config import EvaluateConfig
from wsol_jax.data import DataError, Record
from wsol_jax.evaluation.split import Results
from wsol_jax.grounding.sentences import RIGHT, expressions_of, overlaps

Array = NDArray[Any]
MANY = 4  # proposals of the subject's class, from which on sentences are counted together


@dataclass(frozen=True)
class Grounded:
    """E sentences and what is right of them; columns are joined end to end.

    Attributes:
        accuracy: [E] 1 where the chosen proposal has an IoU of .5 with the true box, else 0.
        chance: [E] the share of proposals that have, what guessing gives.
        largest: [E] as accuracy, of the proposal of the largest area.
        same_class: [E] what guessing gives among those of the subject's class; among all where
            there is none.
        best: [E] 1 where any proposal has.
        alike: [E] how many proposals are of the subject's class.
        kind: [E] 0 where no relation is told, 1 to a box of another class, 2 to those of its own.
    """

    accuracy: Array
    chance: Array
    largest: Array
    same_class: Array
    best: Array
    alike: Array
    kind: Array


KINDS = ('none', 'other class', 'own class')
_SCORES = {
    'Accuracy': 'accuracy',
    'Chance': 'chance',
    'Largest': 'largest',
    'ClassOnly': 'same_class',
    'Best': 'best',
}


def score_grounding(
    part: Results, setting: EvaluateConfig | None = None, chosen: Any = None
) -> Grounded:
    """The scores of all sentences of some images.

    Args:
        part: with the columns 'subject' and 'classes' [n,S], see `ground_split`.
        setting: not needed.
        chosen: likewise; nothing is chosen.

    Raises:
        DataError: the results are of other sentences or boxes.
    """
    del setting, chosen
    columns = part.columns['subject'], part.columns['classes']
    rows = (score_image(*row) for row in zip(part.records, *columns, strict=True))
    return joined([_NONE, *rows])


def score_image(record: Record, subject: Array, classes: Array) -> Grounded:
    """The scores of the sentences of one image.

    Args:
        record: of it.
        subject: [S] index of the proposal that each sentence is given; -1 behind the last.
        classes: [S] index of the class of its subject; likewise.

    Raises:
        DataError: there are other sentences or boxes.
    """
    said, count = expressions_of(record), len(record.boxes)
    subject, classes = subject[subject >= 0], classes[classes >= 0]
    if not len(said) == len(subject) == len(classes) or (subject >= count).any():
        raise DataError(f'{record.image_id}: results are of other sentences or boxes than it has')
    right = overlaps(record) >= RIGHT
    own = np.array(record.extra['proposal_classes']) == classes[:, None]
    among = np.where(own.any(axis=1, keepdims=True), own, True)
    sides = np.diff(np.array(record.boxes).reshape(-1, 2, 2), axis=1)[:, 0]
    return Grounded(
        accuracy=np.take_along_axis(right, subject[:, None], axis=1)[:, 0].astype(float),
        chance=right.mean(axis=1),
        largest=right[:, np.argmax(sides.prod(axis=1))].astype(float),
        same_class=(right & among).sum(axis=1) / among.sum(axis=1),
        best=right.any(axis=1).astype(float),
        alike=own.sum(axis=1),
        kind=np.array([_kind(e.relation, e.object, e.subject) for e in said]),
    )


def _kind(relation: str, second: str, subject: str) -> int:
    return 0 if not relation else 1 if second not in ('', subject) else 2


_NONE = Grounded(
    *(np.zeros(0, int if f.name in ('alike', 'kind') else float) for f in fields(Grounded))
)


def joined(parts: Iterable[Grounded]) -> Grounded:
    """Scores of parts, at least one, as those of all their sentences."""
    every = list(parts)
    columns = ([getattr(part, f.name) for part in every] for f in fields(Grounded))
    return Grounded(*map(np.concatenate, columns))


def metrics_of(found: Grounded) -> dict[str, Any]:
    """The scores in percent, of all sentences and of groups of them.

    Returns:
        'sentences' and 'Accuracy', beside it what it is compared with: 'Chance', 'Largest' (box),
        'ClassOnly' (guessing among proposals of the subject's class) and 'Best' (any proposal);
        the same in the rows 'by_alike', by how many proposals are of the subject's class, and
        'by_relation', by what the relation is to. Scores are absent where there is no sentence.
    """
    alike = np.minimum(found.alike, MANY)
    names = [*map(str, range(MANY)), f'{MANY} or more']
    return {
        **_means(found, alike >= 0),
        'by_alike': _groups(found, alike, names, 'alike'),
        'by_relation': _groups(found, found.kind, KINDS, 'relation'),
    }


def _groups(found: Grounded, of: Array, names: Sequence[str], key: str) -> list[dict[str, Any]]:
    return [{key: name, **_means(found, of == k)} for k, name in enumerate(names) if k in of]


def _means(found: Grounded, rows: Array) -> dict[str, Any]:
    count = int(rows.sum())
    if not count:
        return {'sentences': 0}
    scores = {n: 100 * float(getattr(found, f)[rows].mean()) for n, f in _SCORES.items()}
    return {'sentences': count, **scores}

"""What training and scores know of the sentences about an image: vectors of words, boxes, truth."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsol_jax.data import DataError, Record, Source, stored_size
from wsol_jax.data.expressions import Expression
from wsol_jax.data.records import filled
from wsol_jax.evaluation.boxes import box_iou
from wsol_jax.grounding.words import NO_RELATION, Words, nearest_classes

RIGHT = 0.5  # IoU with the true box from which on a proposal is right


@dataclass(frozen=True)
class Sentences:
    """The targets of an image with N proposals and S sentences at most.

    'boxes' float32 [N,4], x0, y0, x1, y1 as shares of the image; 'proposals' bool [N], which are
    there; 'phrases' float32 [S,4,D], the vectors of subject, class of the subject, object and
    relation; 'sentences' bool [S]; 'classes' int32 [S], the index of the class, -1 for padding.
    Where no object is told it is the subject.

    Attributes:
        words: phrase -> its vector.
        class_names: of the data set.
        class_of: subject -> index of the class whose name is nearest to it.
        boxes: N.
        sentences: S.
        by_class: the subject stands for its class, else for itself.
        scored: beside that 'right' bool [S,N], which proposals have an IoU of .5 with the true box.
    """

    words: Words
    class_names: tuple[str, ...]
    class_of: Mapping[str, int]
    boxes: int
    sentences: int
    by_class: bool = True
    scored: bool = False

    def __call__(self, record: Record) -> dict[str, NDArray]:
        """All of these, of a record.

        Raises:
            DataError: it has no boxes or sentences.
        """
        said = expressions_of(record)
        boxes = np.array(record.boxes) / np.tile(stored_size(record), 2)
        classes = np.array([self.class_of[each.subject] for each in said], np.int32)
        phrases = np.array([self._phrases(each) for each in said])
        found = {
            'boxes': filled(boxes.astype(np.float32), (self.boxes,)),
            'proposals': np.arange(self.boxes) < len(boxes),
            'phrases': filled(phrases, (self.sentences,)),
            'sentences': np.arange(self.sentences) < len(said),
            'classes': filled(classes, (self.sentences,), -1),
        }
        if self.scored:
            right = overlaps(record) >= RIGHT
            found['right'] = filled(right, (self.sentences, self.boxes))
        return found

    def _phrases(self, said: Expression) -> NDArray[np.float32]:
        """[4,D]."""
        name = self.class_names[self.class_of[said.subject]] if self.by_class else said.subject
        parts = said.subject, name, said.object or said.subject, said.relation or NO_RELATION
        return np.array([self.words(part) for part in parts], np.float32)


def sentences_of(
    source: Source, words: Words, by_class: bool = True, scored: bool = False
) -> Sentences:
    """The targets of a source, whose images are all asked for what is said of them.

    Args:
        source: of images with expressions.
        words: phrase -> its vector.
        by_class: see `Sentences`.
        scored: likewise.

    Raises:
        DataError: an image has no sentences or boxes.
    """
    records = [source[i] for i in range(len(source))]
    said = [expressions_of(record) for record in records]
    subjects = {each.subject for of_image in said for each in of_image}
    names = source.class_names
    return Sentences(
        words,
        names,
        nearest_classes(sorted(subjects), names, words),
        max(len(record.boxes) for record in records),
        max(map(len, said)),
        by_class,
        scored,
    )


def expressions_of(record: Record) -> tuple[Expression, ...]:
    """What is said of an image.

    Raises:
        DataError: nothing is, or there are no proposals to choose from.
    """
    said = record.extra.get('expressions', ())
    if not said or not record.boxes:
        missing = 'boxes' if said else 'expressions'
        raise DataError(
            f'{record.image_id}: has no {missing}; grounding needs a source of expressions, such '
            "as config.data.source='relations'"
        )
    return said


def overlaps(record: Record) -> NDArray[np.float64]:
    """The IoU of the true box of each sentence with each proposal: [S,N]."""
    inside = np.array([0, 0, 1, 1])  # `box_iou` counts the last pixel
    true = np.array([said.box for said in expressions_of(record)])
    return box_iou(true - inside, np.array(record.boxes) - inside)

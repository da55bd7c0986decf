"""What is said of the objects of an image: expressions, each of which is true of one box."""

from dataclasses import dataclass

from wsol_jax.data.records import Box


@dataclass(frozen=True)
class Expression:
    """A sentence that refers to one object of an image, and its discriminative triad.

    It stands in `Record.extra['expressions']`, a tuple. The boxes it may mean are `Record.boxes`;
    `Record.extra['proposal_classes']`, a tuple, has the class of each as an index into the
    `class_names` of the source.

    Attributes:
        text: the sentence.
        subject: what it refers to, one word or phrase.
        relation: how that stands to the object, such as 'left of'; '' where none is told.
        object: what it is related to; '' where that is the subject itself.
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

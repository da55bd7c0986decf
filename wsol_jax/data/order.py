"""Which image stands where in the batches of a training: of (seed, step) alone."""

import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsol_jax.data.records import Labels, Source

_Indices = NDArray[np.int64]


class Draw(NamedTuple):
    """One image of a training.

    Attributes:
        epoch: from 0.
        image: its position in the source.
        turn: how often the epoch had it before.
    """

    epoch: int
    image: int
    turn: int


def steps_per_epoch(count: int, batch_size: int) -> int:
    """How many batches hold as many images as there are, `count`; the last one is filled up."""
    return math.ceil(count / batch_size)


def images_of_classes(source: Source) -> tuple[_Indices, ...]:
    """The positions of the images of each class that has some, in the order of the classes.

    An image of several labels is one of each of them. Every record is read: of TensorFlow Datasets
    with its image.

    Raises:
        DataError: an image has no label; names it.
    """
    known = Labels(source.most_labels, required=True)
    labels = np.array([known(source[i])['labels'] for i in range(len(source))]).reshape(
        -1, known.most
    )
    images, places = np.nonzero(labels >= 0)
    found = labels[images, places]
    by_class = np.argsort(found, kind='stable')
    _, first = np.unique(found[by_class], return_index=True)
    return tuple(np.split(images[by_class], first[1:]))


class TrainingOrder:
    """The images of some steps of a training in order: a sequence of `Draw`.

    Picklable, and small however many steps there are; keeps the order of the two newest epochs.

    Args:
        count: images in the source.
        batch_size: images in a batch.
        seed: of the experiment.
        steps: of the training, from 0; each has the same images whatever the others are.
        classes: positions of the images of each class, to be drawn equally often; () for every
            image once in an epoch.
        rows: which rows of each batch; those behind its last are its first ones again. All of it by
            default.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        steps: range,
        classes: Sequence[_Indices] = (),
        rows: _Indices | None = None,
    ) -> None:
        self._rows = np.arange(batch_size) if rows is None else rows
        self._arguments = (count, batch_size, seed, steps, classes, rows)
        self._count, self._batch_size, self._steps = count, batch_size, steps
        self._epoch_steps = steps_per_epoch(count, batch_size)
        self._drawn = lru_cache(maxsize=2)(partial(_drawn, count, seed, classes))

    def __reduce__(self) -> tuple[type['TrainingOrder'], tuple]:
        # A cache cannot be pickled: a worker process makes its own.
        return TrainingOrder, self._arguments

    def __len__(self) -> int:
        return len(self._steps) * len(self._rows)

    def __getitem__(self, position: int) -> Draw:
        batch, place_in_batch = divmod(position, len(self._rows))
        row = int(self._rows[place_in_batch]) % self._batch_size
        epoch, step = divmod(self._steps[batch], self._epoch_steps)
        place = (step * self._batch_size + row) % self._count
        images, turns = self._drawn(epoch)
        return Draw(epoch, int(images[place]), int(turns[place]))

    def valid(self, step: int) -> NDArray[np.bool_]:
        """Which rows of a step come first in their epoch, and so count."""
        first = step % self._epoch_steps * self._batch_size
        return (self._rows < self._batch_size) & (first + self._rows < self._count)


def _drawn(
    count: int, seed: int, classes: Sequence[_Indices], epoch: int
) -> tuple[_Indices, _Indices]:
    """The images [count] of an epoch, and the turn of each."""
    rng = np.random.default_rng([seed, epoch])
    if not classes:
        return rng.permutation(count), np.zeros(count, np.int64)
    images = _balanced(rng, classes, count)
    return images, _turns(images)


def _balanced(rng: np.random.Generator, classes: Sequence[_Indices], count: int) -> _Indices:
    """[count] images: round by round one of every class, which has all its images before one again.

    The last round may lack some classes.
    """
    rounds = -(-count // len(classes))
    images = np.stack([_in_rounds(rng, some, rounds) for some in classes], axis=1)
    return rng.permuted(images, axis=1).reshape(-1)[:count]


def _in_rounds(rng: np.random.Generator, images: _Indices, rounds: int) -> _Indices:
    """[rounds] images of one class, shuffled anew whenever all were there."""
    passes = -(-rounds // len(images))
    return np.concatenate([rng.permutation(images) for _ in range(passes)])[:rounds]


def _turns(images: _Indices) -> _Indices:
    """How many equal ones come before each."""
    order = np.argsort(images, kind='stable')
    _, first, counts = np.unique(images[order], return_index=True, return_counts=True)
    turns = np.empty_like(images)
    turns[order] = np.arange(len(images)) - np.repeat(first, counts)
    return turns

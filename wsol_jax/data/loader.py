"""Batches of decoded images from any source, read ahead by grain."""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import NamedTuple

import grain
import numpy as np
from absl import flags
from numpy.typing import NDArray

from wsol_jax.config import AugmentConfig
from wsol_jax.data.augment import augment
from wsol_jax.data.records import BadImage, DataError, Pixels, Source, decode_image, resize_image

THREADS = 8
_AUGMENT = AugmentConfig()
_ADVICE = "'python -m wsol_jax.data check DIR' lists all that is wrong with a data set"


@dataclass(frozen=True)
class Batch:
    """A batch of B images of s x s pixels.

    Attributes:
        images: uint8 RGB [B, s, s, 3].
        labels: int32 [B], the first label of each image; -1 for none and for padding.
        index: int64 [B], position of each image in the source; -1 for padding.
        valid: bool [B], False for what must not count: padding (zeros; in training, images of the
            same epoch once more, with their labels and positions) and images that did not decode.
        errors: why an image did not decode, by its position in the source.
    """

    images: Pixels
    labels: NDArray[np.int32]
    index: NDArray[np.int64]
    valid: NDArray[np.bool_]
    errors: dict[int, str]


class _Item(NamedTuple):
    image: Pixels | None
    label: int
    position: int
    error: str


def evaluation_batches(
    source: Source,
    size: int,
    batch_size: int,
    indices: Sequence[int] | None = None,
    workers: int = 0,
) -> Iterator[Batch]:
    """Every image once, in order, squashed to size x size; the last batch is padded.

    An image that does not decode keeps its place, with `valid` False and the reason in `errors`.

    Args:
        source: the data set.
        size: side of the images in pixels.
        batch_size: images in a batch.
        indices: positions in the source to read; all by default.
        workers: processes that decode (a script then needs its `__main__` guard); 0 decodes in
            threads of this one.
    """
    order = range(len(source)) if indices is None else indices
    items = _read_ahead(order, partial(_load, source, partial(_squash, size)), batch_size, workers)
    with closing(items):
        while chunk := list(islice(items, batch_size)):
            yield _collate(chunk, size, batch_size)


def training_batches(
    source: Source,
    size: int,
    batch_size: int,
    seed: int,
    epoch: int,
    workers: int = 0,
    setting: AugmentConfig = _AUGMENT,
    start: int = 0,
) -> Iterator[Batch]:
    """One shuffled, augmented epoch: every image once, in ceil(images / batch_size) batches.

    The order depends on (seed, epoch); the augmentation of an image on (seed, epoch, index) only.
    The last batch is filled up with the first images of the same order, their `valid` being False:
    batch normalization sees real images, the loss leaves them out.

    Args:
        source: the data set.
        size: side of the images in pixels.
        batch_size: images in a batch.
        seed: of the experiment.
        epoch: which pass over the data.
        workers: as in `evaluation_batches`.
        setting: the augmentation.
        start: batches to leave out; the others are those of the whole epoch.

    Raises:
        DataError: an image does not decode, or has no label.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(source))
    filled = np.resize(order, math.ceil(len(order) / batch_size) * batch_size)
    rest = filled[start * batch_size :].tolist()
    transform = partial(_augment, size, setting, seed, epoch)
    items = _read_ahead(rest, partial(_load, source, transform), batch_size, workers)
    with closing(items):
        for first in range(start * batch_size, len(filled), batch_size):
            batch = _collate(list(islice(items, batch_size)), size, batch_size)
            _check_usable(source, batch)
            yield replace(batch, valid=first + np.arange(batch_size) < len(order))


def _check_usable(source: Source, batch: Batch) -> None:
    for error in batch.errors.values():
        raise DataError(f'{error}; {_ADVICE}')
    for index in batch.index[batch.labels < 0]:
        record = source[int(index)]
        name = record.image_id if isinstance(record.image, bytes) else record.image
        raise DataError(f'{name}: has no label; {_ADVICE}')


def _read_ahead(
    order: Sequence[int], load: Callable[[int], _Item], batch_size: int, workers: int
) -> Generator[_Item]:
    ahead = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=THREADS + 2 * batch_size)
    dataset = grain.MapDataset.source(order).map(load).to_iter_dataset(ahead)
    if workers > 0:
        if not flags.FLAGS.is_parsed():  # grain reads a flag of its own, parsed only under app.run
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    # Left open, an iterator that was not exhausted keeps its threads and processes.
    with closing(iter(dataset)) as items:
        yield from items


def _load(source: Source, transform: Callable[[Pixels, int], Pixels], index: int) -> _Item:
    record = source[index]
    label = record.labels[0] if record.labels else -1
    try:
        return _Item(transform(decode_image(record), index), label, index, '')
    except BadImage as error:
        return _Item(None, label, index, str(error))


def _squash(size: int, image: Pixels, index: int) -> Pixels:
    return resize_image(image, (size, size))


def _augment(
    size: int, setting: AugmentConfig, seed: int, epoch: int, image: Pixels, index: int
) -> Pixels:
    # The trailing 1 keeps this stream apart from the shuffle's: zeros at the end change nothing.
    return augment(image, size, setting, np.random.default_rng([seed, epoch, index, 1]))


def _collate(items: list[_Item], size: int, batch_size: int) -> Batch:
    images = np.zeros((batch_size, size, size, 3), np.uint8)
    labels = np.full(batch_size, -1, np.int32)
    index = np.full(batch_size, -1, np.int64)
    valid = np.zeros(batch_size, bool)
    for row, item in enumerate(items):
        labels[row], index[row] = item.label, item.position
        if item.image is not None:
            images[row], valid[row] = item.image, True
    return Batch(images, labels, index, valid, {i.position: i.error for i in items if i.error})

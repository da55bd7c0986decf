"""Batches of decoded images from any source, read ahead by grain."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple

import grain
import numpy as np
from absl import flags
from numpy.typing import NDArray

from wsol_jax.data.records import BadImage, DataError, Pixels, Source, decode_image, resize_image

THREADS = 8
_FLIP = 0.5


@dataclass(frozen=True)
class Batch:
    """A batch of B images of s x s pixels.

    Attributes:
        images: uint8 RGB [B, s, s, 3]; zeros where not valid.
        labels: int32 [B], the first label of each image; -1 for none and for padding.
        index: int64 [B], position of each image in the source; -1 for padding.
        valid: bool [B], False for padding and for images that did not decode.
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
    source: Source, size: int, batch_size: int, seed: int, epoch: int, workers: int = 0
) -> Iterator[Batch]:
    """One shuffled, augmented epoch without its last incomplete batch.

    The order depends on (seed, epoch); the augmentation of an image on (seed, epoch, index) only:
    the whole image is squashed to (size + margin)^2, cropped at random to size^2 and flipped with
    probability 1/2. The margin is size / 7, the published 256 / 224.

    Raises:
        DataError: the source holds fewer images than a batch, or an image does not decode.
    """
    if len(source) < batch_size:
        raise DataError(f'{len(source)} training images do not fill one batch of {batch_size}')
    order = np.random.default_rng([seed, epoch]).permutation(len(source)).tolist()
    order = order[: len(order) // batch_size * batch_size]
    augment = partial(_augment, size, seed, epoch)
    items = _read_ahead(order, partial(_load, source, augment), batch_size, workers)
    with closing(items):
        while chunk := list(islice(items, batch_size)):
            batch = _collate(chunk, size, batch_size)
            if batch.errors:
                raise DataError(next(iter(batch.errors.values())))
            yield batch


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


def _augment(size: int, seed: int, epoch: int, image: Pixels, index: int) -> Pixels:
    # The trailing 1 keeps this stream apart from the shuffle's: zeros at the end change nothing.
    rng = np.random.default_rng([seed, epoch, index, 1])
    margin = round(size / 7)
    image = resize_image(image, (size + margin, size + margin))
    top, left = rng.integers(0, margin, size=2, endpoint=True)
    image = image[top : top + size, left : left + size]
    return image[:, ::-1] if rng.random() < _FLIP else image


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

"""Batches of decoded images from any source, read ahead by grain."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import grain
import numpy as np
from absl import flags
from numpy.typing import NDArray

from wsol_jax.data.augment import AugmentConfig, augment, squash
from wsol_jax.data.decode import IGNORED, decode_image
from wsol_jax.data.order import Draw, TrainingOrder, images_of_classes
from wsol_jax.data.records import (
    LABEL_MAP,
    UNLABELLED,
    BadImage,
    DataError,
    Pixels,
    ReadError,
    Record,
    Source,
    Targets,
    filled,
)
from wsol_jax.interrupts import deaf_children, end_with_parent

THREADS = 8
_PAUSES = (0.1, 1.0, 5.0)  # seconds
_AUGMENT = AugmentConfig()
# Shared memory is for images; that of a few labels would cost more than sending them.
_SENT = grain.experimental.DatasetOptions(min_shm_size=4096)
_Key = TypeVar('_Key')
_Read = TypeVar('_Read')
# Of an image and its label maps what a batch holds of them.
_Transform = Callable[[Pixels, Mapping[str, Pixels]], tuple[Pixels, dict[str, Pixels]]]
_KILLED = 'a process that reads images was killed (memory?); lower config.data.workers and go on'


class ReaderKilled(OSError):
    """A process that reads images ended without a word, as when the system lacks memory."""


@dataclass(frozen=True)
class Batch:
    """A batch of B images of s x s pixels.

    Attributes:
        images: uint8 RGB [B, s, s, 3].
        targets: what else there is of each image, {name: [B, ...]}, such as 'labels' int32 [B, L],
            see `Labels`. Padding has -1 in signed integers, 0 in others. Those whose names end in
            'label_map' are uint8 [B, s, s] and lie on the images, cropped and mirrored with them:
            255 where there is no image.
        index: int64 [B], position of each image in the source; -1 for padding.
        image_ids: B of them; '' for padding.
        valid: bool [B], False for what must not count: padding (zeros; in training, images of the
            same epoch once more, with their targets and positions) and images that did not decode.
        errors: why an image did not decode, by its position in the source.
    """

    images: Pixels
    targets: dict[str, NDArray[Any]]
    index: NDArray[np.int64]
    valid: NDArray[np.bool_]
    errors: dict[int, str]
    image_ids: tuple[str, ...]

    @property
    def real(self) -> int:
        """How many of the images come from the source; padding follows them."""
        return int((self.index >= 0).sum())


class _Item(NamedTuple):
    image: Pixels | None
    targets: Mapping[str, NDArray[Any]]
    position: int
    error: str
    image_id: str


def _nothing(record: Record) -> dict[str, NDArray[Any]]:
    del record
    return {}


def evaluation_batches(
    source: Source,
    size: int | tuple[int, int],
    batch_size: int,
    indices: Sequence[int] | None = None,
    workers: int = 0,
    targets: Targets = _nothing,
) -> Generator[Batch]:
    """Every image once, in order, squashed to one size; the last batch is padded.

    An image that does not decode, or whose targets raise `BadImage`, keeps its place, with `valid`
    False, the reason in `errors`, and in the latter case another's targets; `ReadError` where the
    system fails to read it, time and again.

    Args:
        source: the data set.
        size: side of the images in pixels, or (height, width).
        batch_size: images in a batch.
        indices: positions in the source to read; all by default.
        workers: processes that decode (a script then needs its `__main__` guard); 0 decodes in
            threads of this one.
        targets: what the batches carry beside the images, such as `Labels()`; its other errors
            are raised here.
    """
    order = range(len(source)) if indices is None else indices
    height, width = (size, size) if isinstance(size, int) else size
    transform = partial(squash, size=(width, height))
    load = partial(_load, source, transform, (height, width), max(width, height), targets)
    items = _read_ahead(order, load, batch_size, workers)
    with closing(items):
        while chunk := list(islice(items, batch_size)):
            yield _collate(chunk, (height, width), batch_size)


def training_batches(
    source: Source,
    size: int,
    batch_size: int,
    seed: int,
    steps: range,
    workers: int = 0,
    setting: AugmentConfig = _AUGMENT,
    targets: Targets = _nothing,
    balanced: bool = False,
    rows: NDArray[np.int64] | None = None,
) -> Generator[Batch]:
    """The shuffled, augmented batches of some steps of a training, over all its epochs.

    Step k belongs to epoch k // m with m = `steps_per_epoch`: every image once in m steps.
    The order depends on (seed, epoch); the augmentation of an image on (seed, epoch, index) only.
    Balanced, as many images are drawn in m steps, as often of each class that has some; one that
    is drawn again in an epoch is augmented anew.
    The last batch of an epoch is filled up with the first images of the same order, their `valid`
    being False: batch normalization sees real images, the loss leaves them out. An image that does
    not decode keeps its place likewise, with another's pixels and the reason in `errors`.

    Args:
        source: the data set.
        size: side of the images in pixels.
        batch_size: images in a batch.
        seed: of the experiment.
        steps: of the training, from 0; each gives the same batch whatever the others are.
        workers: as in `evaluation_batches`; they start once, and read ahead over epochs.
        setting: the augmentation.
        targets: as in `evaluation_batches`.
        balanced: draw every class equally often; all labels are read first.
        rows: which of each batch, whose others another process reads; those from `batch_size` on
            are its first ones again, and not valid. All of it by default.

    Raises:
        DataError: an image has no label, by which it is to be drawn.
    """
    classes = images_of_classes(source) if balanced else ()
    order = TrainingOrder(len(source), batch_size, seed, steps, classes, rows)
    count = batch_size if rows is None else len(rows)
    load = partial(_load_augmented, source, size, setting, seed, targets)
    items = _read_ahead(order, load, count, workers)
    with closing(items):
        for step in steps:
            batch = _collate(list(islice(items, count)), (size, size), count)
            valid = order.valid(step) & batch.valid
            yield replace(batch, images=_stood_in_for(batch), valid=valid)


def _stood_in_for(batch: Batch) -> Pixels:
    """The images, the first readable one in place of others: batch norm shall see no black ones."""
    if batch.valid.all() or not batch.valid.any():
        return batch.images
    stand_in = batch.images[np.argmax(batch.valid)]
    return np.where(batch.valid[:, None, None, None], batch.images, stand_in)


def _read_ahead(
    order: grain.sources.RandomAccessDataSource[_Key],
    load: Callable[[_Key], _Item],
    batch_size: int,
    workers: int,
) -> Generator[_Item]:
    ahead = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=THREADS + 2 * batch_size)
    dataset = grain.MapDataset.source(order).map(load).to_iter_dataset(ahead)
    if workers > 0:
        if not flags.FLAGS.is_parsed():  # grain reads a flag of its own, parsed only under app.run
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers)
        dataset = grain.experimental.WithOptionsIterDataset(dataset, _SENT)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_start_reading)
    # Left open, an iterator that was not exhausted keeps its threads and processes.
    with closing(iter(dataset)) as items:
        try:
            with deaf_children() if workers else nullcontext():
                first = list(islice(items, 1))  # starts the processes
            yield from first
            yield from items
        except RuntimeError as error:
            if 'Worker process was terminated' not in str(error):
                raise
            raise ReaderKilled(_KILLED) from None


def _start_reading(index: int, count: int) -> None:
    """What a process that reads does first; grain hands it its number."""
    del index, count
    end_with_parent()


def _load(
    source: Source,
    transform: _Transform,
    size: tuple[int, int],
    side: int,
    targets: Targets,
    index: int,
) -> _Item:
    record, found = source[index], None
    try:
        found = _read_again(partial(targets, record))
        image = _read_again(partial(decode_image, record, side))
    except BadImage as error:
        if found is None:
            found = _of_another(source, targets, index, error)
        unknown = dict.fromkeys(_label_maps(found), np.full(size, IGNORED, np.uint8))
        return _Item(None, {**found, **unknown}, index, str(error), record.image_id)
    image, label_maps = transform(image, _label_maps(found))
    return _Item(image, {**found, **label_maps}, index, '', record.image_id)


def _label_maps(found: Mapping[str, NDArray[Any]]) -> dict[str, Pixels]:
    return {name: found[name] for name in found if name.endswith(LABEL_MAP)}


def _of_another(
    source: Source, targets: Targets, index: int, error: BadImage
) -> Mapping[str, NDArray[Any]]:
    """Targets of another record, where those of one cannot be read: they have the right shapes.

    Raises:
        BadImage: the error of that one, where there is no other.
    """
    # Not the next ones: a whole folder may be missing.
    for other in np.random.default_rng(index).permutation(len(source)).tolist():
        with suppress(BadImage):
            return _read_again(partial(targets, source[other]))
    raise error


def _read_again(read: Callable[[], _Read]) -> _Read:
    """Another try where the disk or the network failed; an image is not skipped for that."""
    for pause in _PAUSES:
        try:
            return read()
        except ReadError:
            time.sleep(pause)
    return read()


def _load_augmented(
    source: Source,
    size: int,
    setting: AugmentConfig,
    seed: int,
    targets: Targets,
    draw: Draw,
) -> _Item:
    epoch, index, turn = draw
    # 1 and more keep this stream apart from the shuffle's: zeros at the end change nothing.
    rng = np.random.default_rng([seed, epoch, index, 1 + turn])
    crop = partial(augment, size=size, setting=setting, rng=rng)
    return _load(source, crop, (size, size), size + setting.margin, targets, index)


def _collate(items: list[_Item], size: tuple[int, int], batch_size: int) -> Batch:
    images = np.zeros((batch_size, *size, 3), np.uint8)
    index = np.full(batch_size, -1, np.int64)
    valid = np.zeros(batch_size, bool)
    for row, item in enumerate(items):
        index[row] = item.position
        if item.image is not None:
            images[row], valid[row] = item.image, True
    errors = {item.position: item.error for item in items if item.error}
    targets = {name: _padded(_targets(items, name), batch_size) for name in items[0].targets}
    names = (*(item.image_id for item in items), *([''] * (batch_size - len(items))))
    return Batch(images, targets, index, valid, errors, names)


def _targets(items: Sequence[_Item], name: str) -> list[NDArray[Any]]:
    """What each image has of a target."""
    first = np.shape(items[0].targets[name])
    for item in items:
        if name not in item.targets or np.shape(item.targets[name]) != first:
            has = f'shape {list(np.shape(item.targets[name]))}' if name in item.targets else 'none'
            raise DataError(
                f'{item.image_id}: target {name!r} has {has}, that of {items[0].image_id} '
                f'{list(first)}; a batch needs one shape'
            )
    return [np.asarray(item.targets[name]) for item in items]


def _padded(rows: Sequence[NDArray[Any]], count: int) -> NDArray[Any]:
    """[count, ...] of at most so many arrays of one shape."""
    found = np.stack(rows)
    return filled(found, (count,), UNLABELLED if found.dtype.kind == 'i' else 0)

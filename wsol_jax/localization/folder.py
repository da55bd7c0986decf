"""Maps of a whole folder of images, one image after another, in memory that does not grow."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import logging
from PIL import Image
from tqdm import tqdm

from wsol_jax.data import (
    Batch,
    DataError,
    ImageFolder,
    Record,
    Source,
    evaluation_batches,
    stored_size,
)
from wsol_jax.data.images import DISPLAYED, check_batch_size, listed, resized_shape
from wsol_jax.data.records import ListedRecords
from wsol_jax.localization.localize import (
    check_gradients,
    check_network,
    plan_of_call,
    run_plan,
)
from wsol_jax.localization.method import Method
from wsol_jax.localization.plan import MapPlan, check_options
from wsol_jax.maps import Maps
from wsol_jax.maps.result import Localization
from wsol_jax.names import shown
from wsol_jax.parallel import BATCH, one_ahead

if TYPE_CHECKING:
    from wsol_jax.models import Network


def localize_folder(
    network: 'Network',
    images: str | Path | Iterable[str | Path],
    methods: Sequence[str | Method] = ('dgl',),
    layers: Sequence[str] | None = None,
    classes: Any = None,
    *,
    resize: bool | int | tuple[int, int] = True,
    batch_size: int = BATCH,
    **options: Any,
) -> Generator[tuple[Path, Localization]]:
    """Maps of every image of a folder, one after another: a generator.

    Threads read some images ahead, and batches of one size go through one compiled program; what is
    in memory does not depend on how many images there are. An image that cannot be read is named in
    a warning and passed over. Closing the generator, or Ctrl-C, ends the threads.

    Args:
        network: as for `localize`.
        images: a folder, of which every image is taken, those of its folders too, sorted by path;
          or files.
        methods: as for `localize`.
        layers: as for `localize`.
        classes: as for `localize`, but one for all images: None, 'top1', 'top5', an index or a
          function of the logits.
        resize: as for `localize`, but not False.
        batch_size: images that are computed at once; the last batch is filled up.
        **options: as for `localize`.

    Yields:
        (file, what `localize` gives for it alone), in order; NumPy arrays, as copies.

    Raises:
        ValueError: as `localize`; before the first image is read where it is a wrong name, option
            or folder.
        ReadError: the system fails to read a file, time and again.
    """
    check_network(network)
    check_options(localize_folder, options)
    check_batch_size(batch_size)
    shape = resized_shape(network.input_shape[:2], resize)
    if shape is None:
        raise ValueError('resize=False has a program for every size: give a side, or True')
    if not (classes is None or callable(classes) or isinstance(classes, str | int | np.integer)):
        raise ValueError(
            "classes of a folder are one for all images, None, 'top5', an index or a function, "
            f'got {shown(classes)}; give localize the list of files'
        )
    source = _source(images, network.input_shape[2])
    plan = plan_of_call(network, methods, layers, classes, options)
    size = batch_size if len(source) > 1 else 1
    reader = evaluation_batches(source, shape, size, targets=_size)
    return _each(network, plan, classes, source, reader)


def _source(images: Any, channels: int) -> ListedRecords:
    if isinstance(images, str | Path) and not Path(images).is_file():
        return ImageFolder(images)
    files = listed(images, channels)
    for file in files:
        if not isinstance(file, str | Path):
            raise ValueError(
                f'images must be a folder or files, got a {type(file).__name__}; '
                'localize takes images in memory'
            )
    return _Files(files)


class _Files(ListedRecords):
    def __init__(self, files: Iterable[str | Path]):
        self._records = [Record(str(f), Path(f), (), None, decoding=DISPLAYED) for f in files]


def _size(record: Record) -> dict[str, np.ndarray]:
    """(width, height) of the image, found by the threads; zeros where it cannot be read."""
    with suppress(DataError):
        return {'size': np.array(stored_size(record))}
    return {'size': np.zeros(2, int)}


def _each(
    network: 'Network', plan: MapPlan, classes: Any, source: Source, reader: Generator[Batch]
) -> Generator[tuple[Path, Localization]]:
    """The results of all images that can be read."""

    def launch(batch: Batch) -> tuple[Localization, dict[str, jax.Array]]:
        images = _grey(batch.images) if network.input_shape[2] == 1 else batch.images
        sizes = list(map(tuple, batch.targets['size'].tolist()))
        return run_plan(network, plan, classes, [(images, sizes)], len(images))

    bar = tqdm(total=len(source), desc='localize', unit='image', disable=None)
    with bar, closing(reader):
        launched = ((batch, *launch(batch)) for batch in reader)
        for step, (batch, found, faults) in enumerate(one_ahead(launched)):
            for reason in batch.errors.values():
                logging.warning('%s; passed over', reason)
            if step == 0:
                check_gradients(faults, batch.valid)
            host = _on_host(found)
            for row in np.flatnonzero(batch.valid).tolist():
                record = source[int(batch.index[row])]
                size = host.sizes[row] if all(host.sizes[row]) else stored_size(record)
                assert isinstance(record.image, Path)
                yield record.image, _one(host, row, size)
            bar.update(batch.real)


def _grey(images: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(x).convert('L'))[..., None] for x in images])


def _on_host(found: Localization) -> Localization:
    maps, logits, classes = jax.device_get((found.maps, found.logits, found.classes))
    return replace(found, maps=maps, logits=logits, classes=classes)


def _one(found: Localization, row: int, size: tuple[int, int]) -> Localization:
    """One image of a batch, as a copy: a view would keep the whole batch."""

    def copied(x: Any) -> Any:
        return x[row : row + 1].copy()

    maps = Maps((key, copied(m)) for key, m in found.maps.items())
    logits, classes = copied(found.logits), copied(found.classes)
    return replace(found, maps=maps, logits=logits, classes=classes, sizes=[size])

"""The offline pass: what a trained network computes of every image of a split, into a store."""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from wsol_jax.config import Config, ConfigError
from wsol_jax.data import BadImage, Batch, Record, Source, decode_image, evaluation_batches
from wsol_jax.data.records import Targets
from wsol_jax.hosts import barrier, first_of_all, is_first, own_share, process, processes
from wsol_jax.maps.columns import DONE, SKIPPED, ChunkWriter, Column, Store
from wsol_jax.models import Network
from wsol_jax.parallel import Devices, local_devices, one_ahead
from wsol_jax.progress import ProgressLog
from wsol_jax.workdir import record_origin, remove_scores


def all_right(batch: Batch) -> tuple[int, str]:
    """That nothing is wrong with any image of a batch, see `Pass.first_fault`."""
    return batch.real, ''


class Pass(NamedTuple):
    """What a task computes of a batch of images.

    Attributes:
        size: side of the images in pixels, or (height, width).
        targets: what a batch carries of a record, see `evaluation_batches`.
        launch: batch -> results, with the images as leading axis, still on the devices.
        columns: (batch, results as NumPy arrays, number of the batch) -> {column: [B, ...]}.
        first_fault: batch -> how many images come before the first one that cannot be computed,
            and what is wrong with that one; '' if nothing is.
    """

    size: int | tuple[int, int]
    targets: Targets
    launch: Callable[[Batch], Any]
    columns: Callable[[Batch, Any, int], dict[str, np.ndarray]]
    first_fault: Callable[[Batch], tuple[int, str]] = all_right


# (state, images [B,H,W,3], targets of a batch) -> results with the images as leading axis. Equal
# ones are compiled once.
Program = Callable[[Any, jax.Array, Any], Any]


class Work(NamedTuple):
    """What a task computes of a split with one program.

    Attributes:
        program: that computes it; it gets the state of the network.
        targets: see `Pass`.
        kinds: {column: (shape of a row, dtype)} of the store.
        about: what the index of the store tells.
        columns: see `Pass`.
    """

    program: Program
    targets: Targets
    kinds: Mapping[str, tuple[tuple[int, ...], str]]
    about: Mapping[str, str]
    columns: Callable[[Batch, Any, int], dict[str, np.ndarray]]


def compute_split(
    config: Config, network: Network, source: Source, split: str, workdir: Path, work: Work
) -> Store:
    """Computes what is not in `maps/<split>` of a workdir yet.

    Args:
        config: the experiment.
        network: that is computed with.
        source: the images of the split.
        split: its name.
        workdir: of the run.
        work: what is computed.

    Returns:
        The finished store.

    Raises:
        ConfigError: the results there are of another network.
        DataError: they are of other images.
    """
    folder, devices = workdir / 'maps' / split, local_devices(config.parallel)
    rows = {name: Column(*kind) for name, kind in work.kinds.items()}
    store = Store.prepare(folder, len(source), rows, work.about)
    check_origin(network, folder, workdir)
    compiled, state = _compile(devices, work.program), devices.replicate(network.state)

    def launch(batch: Batch) -> Any:
        return compiled(state, *devices.shard((batch.images, batch.targets)))

    size = config.network.input_size or network.input_size
    passed = Pass(size, work.targets, launch, work.columns)
    fill_store(config, source, split, store, passed, workdir)
    return store


@lru_cache(maxsize=4)
def _compile(devices: Devices, program: Program) -> Callable[..., Any]:
    return devices.per_image(program)


def fill_store(
    config: Config, source: Source, split: str, store: Store, work: Pass, workdir: Path
) -> None:
    """Computes what a store lacks, batch by batch; interrupted, it goes on where it stopped.

    Of several processes each computes its share; all are done when it returns.

    An image that cannot be read is listed in the store's `skipped.csv` and passed over until it
    can be: each run tries it again.

    Args:
        config: the experiment.
        source: the images of the split.
        split: its name.
        store: where the results go.
        work: what is computed.
        workdir: of the run, for progress.csv.

    Raises:
        ConfigError: an image cannot be computed; what came before it is kept.
        DataError: the results there are of other images.
    """
    pending = _own_pending(source, split, store, workdir, work.targets)
    devices, workers = local_devices(config.parallel), config.data.workers
    batch_size = devices.round_up(min(config.localize.batch_size, len(source)))
    reader = evaluation_batches(source, work.size, batch_size, pending, workers, work.targets)
    progress = tqdm(total=len(pending), desc=f'localize {split}', unit='image', disable=None)
    log = ProgressLog(workdir, config.wandb if pending else '') if is_first() else None
    with progress, closing(reader), ChunkWriter(store) as writer:
        launched = ((batch, work.launch(batch)) for batch in reader)
        for step, (batch, results) in enumerate(one_ahead(launched)):
            columns = work.columns(batch, devices.gather(results), step)
            right, fault = work.first_fault(batch)
            _add(store, writer, batch, columns, right)
            if fault:
                raise ConfigError(fault)
            if log:
                log.row('localize', split, step, batch.real)
            progress.update(batch.real)
    barrier(f'{split} is done')
    if is_first():
        store.join_skipped()


def _own_pending(
    source: Source, split: str, store: Store, workdir: Path, targets: Targets
) -> list[int]:
    """Which images this process is to do; nobody begins before all know theirs."""

    def prepare() -> None:
        store.join_skipped()
        store.redo(_readable_now(source, store, targets))
        if processes() > 1:  # who writes a chunk does not know the images before it
            store.name([source[i].image_id for i in range(len(source))])

    first_of_all(f'{split} is prepared', prepare, store.read_names)
    pending = store.pending()
    if is_first() and len(pending):
        remove_scores(workdir)  # they tell of other results
    barrier(f'{split} is shared')
    return pending[own_share(pending, store.chunk)].tolist()


def _add(
    store: Store, writer: ChunkWriter, batch: Batch, columns: Mapping[str, np.ndarray], count: int
) -> None:
    """Stores the first images of a batch."""
    index, names = batch.index[:count], batch.image_ids[:count]
    named = dict(zip(index.tolist(), names, strict=True))
    store.skip({named[i]: why for i, why in batch.errors.items() if i in named}, process())
    status = np.where(batch.valid[:count], DONE, SKIPPED)
    writer.add(index, names, status, {name: values[:count] for name, values in columns.items()})


def check_origin(network: Network, folder: Path, workdir: Path) -> None:
    """Records which network the results in a folder are of, or checks it.

    Raises:
        ConfigError: they are of another network, such as one that was trained anew.
    """
    if folder.exists():
        record = partial(record_origin, workdir, folder, _digest(network.state))
        first_of_all(f'origin of {folder.name}', record, record)


def _digest(state: Any) -> str:
    """SHA-256 of all weights and batch statistics, shortened."""
    digest = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(state)):
        digest.update(f'{leaf.dtype}{leaf.shape}'.encode() + np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _readable_now(source: Source, store: Store, targets: Targets) -> list[int]:
    """Which of the images that were skipped can be read now: a disk was away, a file is mended."""
    skipped = np.flatnonzero(store.fact('status') == SKIPPED).tolist()
    return [i for i in skipped if _is_readable(source[i], targets)]


def _is_readable(record: Record, targets: Targets) -> bool:
    try:
        targets(record)
        decode_image(record)
    except BadImage:
        return False
    return True

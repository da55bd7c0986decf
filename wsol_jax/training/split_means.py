"""How a network does on val after an epoch: means over its images, and mAP of several labels."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import jax
import numpy as np

from wsol_jax.config import Config
from wsol_jax.data import Batch, DataError, Source, evaluation_batches
from wsol_jax.data.records import Targets
from wsol_jax.evaluation.multi_label import (
    average_precisions,
    mean_average_precision,
    positives,
)
from wsol_jax.hosts import gathered, own_share
from wsol_jax.parallel import Devices, local_devices, one_ahead
from wsol_jax.training.checkpoints import Row
from wsol_jax.training.method import Shard
from wsol_jax.training.skipped import SkipList
from wsol_jax.training.step import Program

_RANKED = ('logits', 'labels')


def on_devices(devices: Devices, batch: Batch) -> Shard:
    """A batch on the devices, which its rows divide by."""
    index = batch.index.astype(np.int32)
    return devices.shard(Shard(batch.images, batch.targets, batch.valid, index))


def split_means(
    program: Program,
    devices: Devices,
    state: Any,
    source: Source,
    size: int,
    config: Config,
    targets: Targets,
    skipped: SkipList,
) -> dict[str, float]:
    """Means over the images of a split that can be read: of the loss, and of what it names.

    Where images have several labels 'mAP', too, which is no mean over images.

    Args:
        program: whose `evaluate` gives the values of images.
        devices: that the state lies on.
        state: of the training.
        source: of the split.
        size: of the images, their side in pixels.
        config: the experiment.
        targets: what a batch carries of a record.
        skipped: where images that cannot be read are noted.

    Raises:
        DataError: no image can be read.
    """
    own, ranked, local = Row(), [], local_devices(config.parallel)
    batch_size = local.round_up(config.train.batch_size)
    if local is not devices:
        state = local.replicate(devices.one(state))

    def launch(batch: Batch) -> tuple[Batch, dict[str, jax.Array]]:
        return batch, program.evaluate(state, on_devices(local, batch))

    # In threads: worker processes would start anew after every epoch, beside those of the training.
    images = range(len(source))[own_share(np.arange(len(source)), 1)]
    batches = evaluation_batches(source, size, batch_size, images, targets=targets)
    results: Iterator[tuple[Batch, dict[str, jax.Array]]] = one_ahead(map(launch, batches))
    for batch, values in results:
        found = {n: v[batch.valid] for n, v in local.gather(values).items()}
        ranked.append({n: found.pop(n).tolist() for n in _RANKED if n in found})
        sums = {n: float(np.sum(v, dtype=np.float64)) for n, v in found.items()}
        own = own.plus(int(batch.valid.sum()), sums)
        skipped.note('val', batch)
    row, parts = Row(), gathered((int(own.images), dict(own.sums), ranked))
    for images_of_one, sums, _ in parts:
        row = row.plus(images_of_one, sums) if images_of_one else row
    if not row.images:
        raise DataError(f'no image of val can be read; {skipped.path} tells why')
    return row.means() | _ranking(chain.from_iterable(part for *_, part in parts))


def _ranking(parts: Iterable[Mapping[str, list]]) -> dict[str, float]:
    """mAP of logits [N,C] and labels [N,L], in parts; nothing where those are not kept."""
    known = [part for part in parts if part]
    if not known:
        return {}
    logits, labels = (np.array([row for p in known for row in p[name]]) for name in _RANKED)
    of_class = average_precisions(logits, positives(labels, logits.shape[1]))
    return {'mAP': mean_average_precision(of_class)}

"""The stage `localize`: raw maps of whole splits into the workdir."""

import hashlib
from collections.abc import Mapping
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from wsol_jax.config import Config, ConfigError, LocalizeConfig
from wsol_jax.data import Batch, Record, Source, evaluation_batches
from wsol_jax.localization.localize import (
    check_gradients,
    compute_maps,
    top_count,
)
from wsol_jax.localization.plan import MapPlan, make_plan
from wsol_jax.localization.store import DONE, SKIPPED, TOP, ChunkWriter, MapStore
from wsol_jax.maps import Key
from wsol_jax.models import Network, sides
from wsol_jax.parallel import Devices, local_devices, one_ahead
from wsol_jax.workdir import ProgressLog, record_origin, remove_scores

_PREDICTED = ('top1', 'top5')
_NOT_PLANNED = ('methods', 'layers', 'classes', 'splits', 'batch_size')


class _Outputs(NamedTuple):
    logits: Any
    classes: Any
    maps: dict[Key, Any]
    dead: dict[str, Any]


def plan_of(setting: LocalizeConfig, network: Network, seed: int = 0) -> MapPlan:
    """The maps that the settings ask for, with the experiment's seed; checks their names.

    Raises:
        ValueError: see `make_plan`.
    """
    options = {k: v for k, v in vars(setting).items() if k not in _NOT_PLANNED}
    return make_plan(network, setting.methods, setting.layers, seed=seed, **options)


def localize_split(
    config: Config, network: Network, source: Source, split: str, workdir: Path
) -> MapStore:
    """Computes the maps of every image of a split that are not in the workdir yet.

    An image that cannot be read is listed in `maps/<split>/skipped.csv` and passed over.

    Args:
        config: the experiment.
        network: the classifier.
        source: the images of the split.
        split: its name.
        workdir: maps go to `workdir/maps/<split>`.

    Returns:
        The finished store.

    Raises:
        ConfigError: ground-truth classes were asked for and an image has no label or one that the
            network does not know; nothing is written then.
        DataError: the maps there are of other images.
        ValueError: a wrong method, layer or class.
    """
    setting = config.localize
    plan = plan_of(setting, network, config.seed)
    _check_target(setting.classes, network, source)
    devices = local_devices(config.parallel)
    batch_size = devices.round_up(min(setting.batch_size, len(source)))
    size = config.network.input_size or network.input_size
    store = _open_store(setting.classes, network, plan, source, size, workdir / 'maps' / split)
    pending = store.pending()
    check_maps(network, split, workdir)
    if len(pending):
        remove_scores(workdir)  # they tell of other maps
    state = devices.replicate(network.state)
    top = _top(setting.classes, network)
    program = _compile(devices, network.apply, network.preprocessing, plan, top)
    reader = evaluation_batches(source, size, batch_size, pending.tolist(), config.data.workers)
    progress = tqdm(total=len(pending), desc=f'localize {split}', unit='image', disable=None)
    log = ProgressLog(workdir)

    def launch(batch: Batch) -> tuple[Batch, _Outputs]:
        classes = _classes_of(setting.classes, batch)
        return batch, program(state, *devices.shard((batch.images, classes)))

    with progress, closing(reader), ChunkWriter(store) as writer:
        for step, (batch, launched) in enumerate(one_ahead(map(launch, reader))):
            outputs = devices.gather(launched)
            if step == 0:
                check_gradients(outputs.dead, batch.valid)
            _store(store, writer, source, batch, outputs)
            done = int((batch.index >= 0).sum())
            log.row('localize', split, step, done)
            progress.update(done)
    return store


def check_maps(network: Network, split: str, workdir: Path) -> None:
    """Records which network the maps of a split are of, or checks it.

    Raises:
        ConfigError: they are of another network, such as one that was trained anew.
    """
    folder = workdir / 'maps' / split
    if folder.exists():
        record_origin(workdir, folder, _digest(network.state))


def _digest(state: Any) -> str:
    """SHA-256 of all weights and batch statistics, shortened."""
    digest = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(state)):
        digest.update(f'{leaf.dtype}{leaf.shape}'.encode() + np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=4)
def _compile(devices: Devices, apply, preprocessing, plan: MapPlan, top: int):
    """(state, images, classes) -> outputs; the same program for every split."""

    def program(state, images, classes):
        maps = compute_maps(apply, preprocessing, plan, state, images, top, classes)
        return _Outputs(*maps)

    return devices.per_image(program)


def _open_store(target, network, plan: MapPlan, source, size, folder) -> MapStore:
    def shapes(images, classes):
        arguments = (network.apply, network.preprocessing, plan, network.state)
        return compute_maps(*arguments, images, _top(target, network), classes)

    shape = (*sides(size), network.input_shape[2])
    images = jax.ShapeDtypeStruct((1, *shape), np.uint8)
    _, _, maps, _ = jax.eval_shape(shapes, images, jax.ShapeDtypeStruct((1, 1), np.int32))
    return MapStore.create(
        folder,
        [source[i].image_id for i in range(len(source))],
        target,
        {key: maps[key].shape[1:] for key in plan.keys},
        plan.relu,
        min(TOP, network.num_classes),
    )


def _top(target: str, network: Network) -> int:
    return min(top_count(target), network.num_classes) if target in _PREDICTED else 0


def _classes_of(target: str, batch: Batch):
    """Classes [B,1] for `compute_maps`, None where they are predicted; padding asks for class 0."""
    if target in _PREDICTED:
        return None
    if target == 'ground_truth':
        return np.maximum(batch.labels, 0)[:, None]
    return np.full((len(batch.labels), 1), int(target), np.int32)


def _check_target(target: str, network: Network, source: Source) -> None:
    if target == 'ground_truth':
        for i in range(len(source)):
            _check_label(source[i], network)
    elif target not in _PREDICTED and not (
        target.isdecimal() and int(target) < network.num_classes
    ):
        raise ConfigError(
            f"config.localize.classes must be 'ground_truth', 'top1', 'top5' or a class index "
            f'below {network.num_classes}, got {target!r}'
        )


def _check_label(record: Record, network: Network) -> None:
    if not record.labels:
        raise ConfigError(
            f'{record.image_id} has no label, which '
            "config.localize.classes='ground_truth' needs; use 'top1'"
        )
    if record.labels[0] >= network.num_classes:
        raise ConfigError(
            f'{record.image_id} has label {record.labels[0]}, but {network.name} has the '
            f'classes 0..{network.num_classes - 1}'
        )


def _store(
    store: MapStore, writer: ChunkWriter, source: Source, batch: Batch, outputs: _Outputs
) -> None:
    real = batch.index >= 0
    index = batch.index[real]
    facts = _facts(outputs.logits.astype(np.float64), outputs.classes)
    store.skip({source[i].image_id: reason for i, reason in batch.errors.items()})
    writer.add(
        index,
        np.where(batch.valid[real], DONE, SKIPPED),
        {name: value[real] for name, value in facts.items()},
        {key: m[real] for key, m in outputs.maps.items()},
    )


def _facts(logits: np.ndarray, classes: np.ndarray) -> Mapping[str, Any]:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    return {
        'classes': classes,
        'class_scores': np.take_along_axis(probabilities, classes, axis=1).astype(np.float32),
        'top': np.argsort(-logits, axis=1, kind='stable')[:, :TOP].astype(np.int32),
    }

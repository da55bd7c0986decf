"""The stage `localize`: raw maps of whole splits into the workdir."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from wsol_jax.config import Config, ConfigError, LocalizeConfig
from wsol_jax.data import BadImage, Batch, Labels, Record, Source, decode_image, evaluation_batches
from wsol_jax.data.records import UNLABELLED, ListedRecords
from wsol_jax.localization.localize import (
    check_gradients,
    compute_maps,
    emptied,
    filled_up,
    top_count,
)
from wsol_jax.localization.method import Apply
from wsol_jax.localization.plan import MapPlan, backward_rules_told, make_plan
from wsol_jax.localization.result import NO_CLASS
from wsol_jax.maps import Key
from wsol_jax.maps.columns import DONE, SKIPPED, ChunkWriter
from wsol_jax.maps.store import TOP, MapStore, by_column
from wsol_jax.models import Network, Preprocessing, sides
from wsol_jax.parallel import Devices, local_devices, one_ahead
from wsol_jax.progress import ProgressLog
from wsol_jax.settings import MapOptions, check
from wsol_jax.workdir import record_origin, remove_scores

_PREDICTED = ('top1', 'top5')


class _Outputs(NamedTuple):
    logits: Any
    classes: Any
    maps: dict[Key, Any]
    faults: dict[str, Any]


def plan_of(setting: LocalizeConfig, network: Network, seed: int = 0) -> MapPlan:
    """The maps that the settings ask for, with the experiment's seed; checks their names.

    Raises:
        ValueError: see `make_plan`.
    """
    options = {field.name: getattr(setting, field.name) for field in fields(MapOptions)}
    return make_plan(network, setting.methods, setting.layers, seed=seed, **options)


def localize_split(
    config: Config, network: Network, source: Source, split: str, workdir: Path
) -> MapStore:
    """Computes the maps of every image of a split that are not in the workdir yet.

    An image that cannot be read is listed in `maps/<split>/skipped.csv` and passed over until it
    can be: each run tries it again.

    Args:
        config: the experiment.
        network: the classifier.
        source: the images of the split.
        split: its name.
        workdir: maps go to `workdir/maps/<split>`.

    Returns:
        The finished store.

    Raises:
        ConfigError: the labels are not classes of the network, or an image lacks the label that
            ground-truth classes need. Where the source lists its records nothing is written then,
            else what came before that image is kept.
        DataError: the maps there are of other images.
        ValueError: a wrong method, layer or class.
    """
    setting = config.localize
    plan = plan_of(setting, network, config.seed)
    known = _checked_ids(setting.classes, network, source, split)
    devices = local_devices(config.parallel)
    batch_size = devices.round_up(min(setting.batch_size, len(source)))
    size = config.network.input_size or network.input_size
    folder = workdir / 'maps' / split
    labels, workers = Labels(source.most_labels), config.data.workers
    store = _open_store(setting.classes, network, plan, len(source), labels.most, size, folder)
    store.expect(known)
    check_maps(network, split, workdir)
    store.redo(_readable_now(source, store))
    pending = store.pending()
    if len(pending):
        remove_scores(workdir)  # they tell of other maps
    state = devices.replicate(network.state)
    top = _top(setting.classes, network)
    program = _compile(devices, network.apply, network.preprocessing, plan, top)
    reader = evaluation_batches(source, size, batch_size, pending.tolist(), workers, labels)
    progress = tqdm(total=len(pending), desc=f'localize {split}', unit='image', disable=None)
    log = ProgressLog(workdir)

    def launch(batch: Batch) -> tuple[Batch, _Outputs]:
        classes = _classes_of(setting.classes, batch, network)
        with backward_rules_told(plan):
            return batch, program(state, *devices.shard((batch.images, classes)))

    with progress, closing(reader), ChunkWriter(store) as writer:
        for step, (batch, launched) in enumerate(one_ahead(map(launch, reader))):
            outputs = devices.gather(launched)
            if step == 0:
                check_gradients(outputs.faults, batch.valid)
            done = int((batch.index >= 0).sum())
            labelled = list(zip(batch.image_ids, map(_known, batch.targets['labels']), strict=True))
            right, fault = _first_fault(labelled[:done], setting.classes, network)
            _store(store, writer, network, batch, outputs, right)
            if fault:
                raise ConfigError(fault)
            log.row('localize', split, step, done)
            progress.update(done)
    return store


def _checked_ids(target: str, network: Network, source: Source, split: str) -> list[str]:
    """The ids of a source that lists its records, whose labels are all right.

    Other sources read the image with its label: there each batch is checked when it comes.
    """
    if fault := check('localize.splits', (split,)):
        raise ConfigError(fault)
    check_target(target, network)
    _check_classes(network, source, split)
    records = [source[i] for i in range(len(source))] if isinstance(source, ListedRecords) else []
    labels = [(record.image_id, record.labels) for record in records]
    if fault := _first_fault(labels, target, network)[1]:
        raise ConfigError(fault)
    return [record.image_id for record in records]


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
def _compile(
    devices: Devices, apply: Apply, preprocessing: Preprocessing, plan: MapPlan, top: int
) -> Callable[..., _Outputs]:
    """(state, images, classes) -> outputs; the same program for every split."""

    def program(state: Any, images: jax.Array, classes: jax.Array | None) -> _Outputs:
        maps = compute_maps(apply, preprocessing, plan, state, images, top, classes)
        return _Outputs(*maps)

    return devices.per_image(program)


def _open_store(
    target: str,
    network: Network,
    plan: MapPlan,
    count: int,
    most: int,
    size: int | tuple[int, int],
    folder: Path,
) -> MapStore:
    """A store for `count` images, the most labelled of which has `most` labels."""

    def shapes(images: jax.Array, classes: jax.Array) -> tuple:
        arguments = (network.apply, network.preprocessing, plan, network.state)
        return compute_maps(*arguments, images, _top(target, network), classes)

    shape = (*sides(size), network.input_shape[2])
    images = jax.ShapeDtypeStruct((1, *shape), np.uint8)
    classes = jax.ShapeDtypeStruct((1, most if target == 'ground_truth' else 1), np.int32)
    _, _, maps, _ = jax.eval_shape(shapes, images, classes)
    return MapStore.create(
        folder,
        count,
        target,
        {key: maps[key].shape[1:] for key in plan.keys},
        plan.relu,
        min(TOP, network.num_classes),
    )


def _readable_now(source: Source, store: MapStore) -> list[int]:
    """Which of the images that were skipped decode now: a disk was away, a file is mended."""
    skipped = np.flatnonzero(store.fact('status') == SKIPPED).tolist()
    return [i for i in skipped if _decodes(source[i])]


def _decodes(record: Record) -> bool:
    try:
        decode_image(record)
    except BadImage:
        return False
    return True


def _top(target: str, network: Network) -> int:
    return min(top_count(target), network.num_classes) if target in _PREDICTED else 0


def _classes_of(target: str, batch: Batch, network: Network) -> np.ndarray | None:
    """Classes [B,K] for `compute_maps`, None where they are predicted; padding asks for class 0."""
    if target in _PREDICTED:
        return None
    if target == 'ground_truth':
        return np.clip(filled_up(batch.targets['labels']), 0, network.num_classes - 1)
    return np.full((len(batch.index), 1), int(target), np.int32)


def check_target(target: str, network: Network) -> None:
    """Checks that `localize.classes` names classes of the network.

    Raises:
        ConfigError: it does not.
    """
    index = int(target) if target.isdecimal() and len(target) < 10 else network.num_classes
    if target not in ('ground_truth', *_PREDICTED) and index >= network.num_classes:
        raise ConfigError(
            f"config.localize.classes must be 'ground_truth', 'top1', 'top5' or a class index "
            f'below {network.num_classes}, got {target!r}'
        )


def _check_classes(network: Network, source: Source, split: str) -> None:
    """Refuses labels that count the classes of the data set where the network has others."""
    count = len(source.class_names)
    if count not in (0, network.num_classes) and not getattr(source, 'class_index', ()):
        raise ConfigError(
            f'{split} has labels 0..{count - 1} of its own {count} classes, {network.name} was '
            f'trained on {network.num_classes} others: in folders set config.data.class_index=True '
            "with a class_names.txt of lines 'name,index', or localize without labels with "
            "config.data.source='image_folder' and config.localize.classes='top1'"
        )


def _known(labels: np.ndarray) -> list[int]:
    """Of the target 'labels' of an image, without padding."""
    return labels[labels != UNLABELLED].tolist()


def _first_fault(
    labelled: Sequence[tuple[str, Sequence[int]]], target: str, network: Network
) -> tuple[int, str]:
    """How many images come before the first one whose label is wrong, and what is wrong with it."""
    for i, (image_id, labels) in enumerate(labelled):
        if not labels and target == 'ground_truth':
            needs = "config.localize.classes='ground_truth' needs; use 'top1'"
            return i, f'{image_id} has no label, which {needs}'
        if wrong := [k for k in labels if not 0 <= k < network.num_classes]:
            known = f'{network.name} has the classes 0..{network.num_classes - 1}'
            return i, f'{image_id} has label {wrong[0]}, but {known}'
    return len(labelled), ''


def _store(
    store: MapStore,
    writer: ChunkWriter,
    network: Network,
    batch: Batch,
    outputs: _Outputs,
    count: int,
) -> None:
    """Stores the first images of a batch."""
    index, names = batch.index[:count], batch.image_ids[:count]
    named = dict(zip(index.tolist(), names, strict=True))
    store.skip({named[i]: reason for i, reason in batch.errors.items() if i in named})
    facts = _facts(network, outputs.logits, outputs.classes)
    facts, maps = jax.tree.map(lambda x: x[:count], (facts, outputs.maps))
    if store.target == 'ground_truth':
        facts, maps = _without_padding(facts, maps, batch.targets['labels'][:count])
    writer.add(
        index,
        names,
        np.where(batch.valid[:count], DONE, SKIPPED),
        facts | by_column(maps),
    )


def _without_padding(
    facts: dict[str, np.ndarray], maps: dict[Key, np.ndarray], labels: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[Key, np.ndarray]]:
    """Nothing in the places [B,K] of images with fewer labels than others: no class, score, map."""
    classes, maps = jax.tree.map(np.asarray, emptied(labels, facts['classes'], maps))
    scores = np.where(classes == NO_CLASS, np.float32(0), facts['class_scores'])
    return facts | {'classes': classes, 'class_scores': scores}, maps


def _facts(network: Network, logits: np.ndarray, classes: np.ndarray) -> dict[str, np.ndarray]:
    probabilities = np.asarray(network.probabilities(jnp.asarray(logits)))
    return {
        'classes': classes,
        'class_scores': np.take_along_axis(probabilities, classes, axis=1).astype(np.float32),
        'top': np.argsort(-logits, axis=1, kind='stable')[:, :TOP].astype(np.int32),
    }

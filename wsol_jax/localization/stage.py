"""The stage `localize`: raw maps of whole splits into the workdir."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np

from wsol_jax.config import Config, ConfigError, LocalizeConfig
from wsol_jax.data import Batch, Labels, Source
from wsol_jax.data.records import UNLABELLED, ListedRecords
from wsol_jax.hosts import is_first
from wsol_jax.localization.localize import (
    check_gradients,
    compute_maps,
    emptied,
    filled_up,
    top_count,
)
from wsol_jax.localization.method import Apply
from wsol_jax.localization.plan import MapPlan, backward_rules_told, make_plan
from wsol_jax.maps import NO_CLASS, Key
from wsol_jax.maps.store import TOP, MapStore, by_column
from wsol_jax.models import Network, Preprocessing, sides
from wsol_jax.offline import Pass, check_origin, fill_store
from wsol_jax.parallel import Devices, local_devices
from wsol_jax.settings import MapOptions, check

_PREDICTED = ('top1', 'top5')
_ALL_BACKGROUND = ('segmentation',)  # tasks in which that is what an image without a label shows
# What to do about images without a label and about labels of other classes, by `config.task`.
_WITHOUT_LABEL = {
    'localization': "use 'top1'",
    'segmentation': "leave it out of config.localize.splits: only a network that 'segmenter' or "
    "'mars' trained needs no labels",
}
_OTHER_CLASSES = {
    'localization': "localize without labels with config.data.source='image_folder' and "
    "config.localize.classes='top1'"
}


# Maps {(method, layer): [B,K,h,w]} -> maps, of the same or fewer keys; one program for equal ones.
Finish = Callable[[dict[Key, jax.Array]], dict[Key, jax.Array]]


class MapOutputs(NamedTuple):
    """What is computed of a batch, see `compute_maps`."""

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
    config: Config,
    network: Network,
    source: Source,
    split: str,
    workdir: Path,
    finish: Finish | None = None,
    seeds: bool = False,
) -> MapStore:
    """Computes the maps of every image of a split that are not in the workdir yet.

    An image that cannot be read is listed in `maps/<split>/skipped.csv` and passed over until it
    can be: each run tries it again. In segmentation an image without a label gets no map.

    Args:
        config: the experiment.
        network: the classifier.
        source: the images of the split.
        split: its name.
        workdir: maps go to `workdir/maps/<split>`; their arrays under `localize.store`, where
            there is one, which the run has claimed.
        finish: what is done with the maps of each image before they are stored; None for nothing.
        seeds: how several views become one map, see `MapPlan`.

    Returns:
        The finished store.

    Raises:
        ConfigError: the labels are not classes of the network, or an image lacks the label that
            ground-truth classes need; in segmentation all do. Where the source lists its records
            nothing is written then, else what came before that image is kept. Or `localize.store`
            is out of reach.
        DataError: the maps there are of other images.
        ValueError: a wrong method, layer or class.
    """
    setting = config.localize
    plan = replace(plan_of(setting, network, config.seed), seeds=seeds)
    known = _checked_ids(config, network, source, split)
    size = config.network.input_size or network.input_size
    folder, labels = workdir / 'maps' / split, Labels(source.most_labels)
    url = _url_of(setting.store, split)
    program = _Program.of(setting.classes, network, plan, finish)
    store = _open_store(
        setting.classes, network, program, len(source), labels.most, size, folder, url
    )
    store.expect(known)
    check_origin(network, folder, workdir)
    if is_first() and network.class_names and store.class_names() != network.class_names:
        store.name_classes(network.class_names)
    work = Pass(
        size,
        labels,
        launcher(config, network, plan, finish),
        partial(_columns, network, setting.classes),
        partial(_fault_of_batch, network, config),
    )
    fill_store(config, source, split, store, work, workdir)
    return store


def _url_of(store: str, split: str) -> str:
    """What the maps of a split lie under; '' for the workdir."""
    return store and f'{store.rstrip("/")}/maps/{quote(split)}'


def launcher(
    config: Config, network: Network, plan: MapPlan, finish: Finish | None = None
) -> Callable[[Batch], MapOutputs]:
    """Batch -> outputs, on the devices; one program for all networks of one make.

    Args:
        config: with the classes that maps are made of.
        network: the classifier.
        plan: of the maps.
        finish: see `localize_split`.
    """
    devices, target = local_devices(config.parallel), config.localize.classes
    state = devices.replicate(network.state)
    program = _compile(devices, _Program.of(target, network, plan, finish))

    def launch(batch: Batch) -> MapOutputs:
        classes = _classes_of(target, batch, network)
        with backward_rules_told(plan):
            return program(state, *devices.shard((batch.images, classes)))

    return launch


def _columns(
    network: Network, target: str, batch: Batch, outputs: MapOutputs, step: int
) -> dict[str, np.ndarray]:
    """What is stored of a batch."""
    if step == 0:
        check_gradients(outputs.faults, batch.valid)
    facts, maps = facts_of(network, outputs.logits, outputs.classes), outputs.maps
    if target == 'ground_truth':
        facts, maps = _without_padding(facts, maps, batch.targets['labels'])
    return facts | by_column(maps)


def _fault_of_batch(network: Network, config: Config, batch: Batch) -> tuple[int, str]:
    labels = map(_known, batch.targets['labels'])
    labelled = list(zip(batch.image_ids, labels, strict=True))[: batch.real]
    return _first_fault(labelled, config, network)


def _checked_ids(config: Config, network: Network, source: Source, split: str) -> list[str]:
    """The ids of a source that lists its records, whose labels are all right.

    Other sources read the image with its label: there each batch is checked when it comes.
    """
    if fault := check('localize.splits', (split,)):
        raise ConfigError(fault)
    check_target(config.localize.classes, network)
    _check_classes(config, network, source, split)
    records = [source[i] for i in range(len(source))] if isinstance(source, ListedRecords) else []
    labels = [(record.image_id, record.labels) for record in records]
    if labels and _needs_labels(config) and not any(own for _, own in labels):
        raise ConfigError(_without_label(f'no image of {split} has a label', config))
    if fault := _first_fault(labels, config, network)[1]:
        raise ConfigError(fault)
    return [record.image_id for record in records]


@dataclass(frozen=True)
class _Program:
    """(state, images, classes) -> outputs."""

    apply: Apply
    preprocessing: Preprocessing
    plan: MapPlan
    top: int
    finish: Finish | None

    @classmethod
    def of(cls, target: str, network: Network, plan: MapPlan, finish: Finish | None) -> '_Program':
        return cls(network.apply, network.preprocessing, plan, _top(target, network), finish)

    def __call__(self, state: Any, images: jax.Array, classes: jax.Array | None) -> MapOutputs:
        arguments = (self.apply, self.preprocessing, self.plan, state, images, self.top, classes)
        outputs = MapOutputs(*compute_maps(*arguments))
        return outputs._replace(maps=self.finish(outputs.maps)) if self.finish else outputs


@lru_cache(maxsize=4)
def _compile(devices: Devices, program: _Program) -> Callable[..., MapOutputs]:
    """The same for every split."""
    return devices.per_image(program)


def _open_store(
    target: str,
    network: Network,
    program: _Program,
    count: int,
    most: int,
    size: int | tuple[int, int],
    folder: Path,
    url: str,
) -> MapStore:
    """A store for `count` images, the most labelled of which has `most` labels."""
    shape = (*sides(size), network.input_shape[2])
    images = jax.ShapeDtypeStruct((1, *shape), np.uint8)
    classes = jax.ShapeDtypeStruct((1, most if target == 'ground_truth' else 1), np.int32)
    maps = jax.eval_shape(partial(program, network.state), images, classes).maps
    return MapStore.create(
        folder,
        count,
        target,
        {key: maps[key].shape[1:] for key in program.plan.keys if key in maps},
        program.plan.relu,
        min(TOP, network.num_classes),
        _num_logits(network),
        url,
    )


def _num_logits(network: Network) -> int:
    """How many logits are stored of an image: all, where every class is for itself, else none."""
    several = network.probability == 'sigmoid' and network.num_classes > 1
    return network.num_classes if several else 0


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


def _check_classes(config: Config, network: Network, source: Source, split: str) -> None:
    """Refuses labels that count the classes of the data set where the network has others."""
    count = len(source.class_names)
    if count not in (0, network.num_classes) and not getattr(source, 'class_index', ()):
        raise ConfigError(
            f'{split} has labels 0..{count - 1} of its own {count} classes, {network.name} was '
            f'trained on {network.num_classes} others: in folders set config.data.class_index=True '
            "with a class_names.txt of lines 'name,index', or "
            + _OTHER_CLASSES.get(config.task, 'train one on these')
        )


def _known(labels: np.ndarray) -> list[int]:
    """Of the target 'labels' of an image, without padding."""
    return labels[labels != UNLABELLED].tolist()


def _first_fault(
    labelled: Sequence[tuple[str, Sequence[int]]], config: Config, network: Network
) -> tuple[int, str]:
    """How many images come before the first one whose label is wrong, and what is wrong with it."""
    each_needs = _needs_labels(config) and config.task not in _ALL_BACKGROUND
    for i, (image_id, labels) in enumerate(labelled):
        if each_needs and not labels:
            return i, _without_label(f'{image_id} has no label', config)
        if wrong := [k for k in labels if not 0 <= k < network.num_classes]:
            known = f'{network.name} has the classes 0..{network.num_classes - 1}'
            return i, f'{image_id} has label {wrong[0]}, but {known}'
    return len(labelled), ''


def _needs_labels(config: Config) -> bool:
    return config.localize.classes == 'ground_truth'


def _without_label(what: str, config: Config) -> str:
    advice = _WITHOUT_LABEL.get(config.task, 'leave it out of the split')
    return f"{what}, which config.localize.classes='ground_truth' needs; {advice}"


def _without_padding(
    facts: dict[str, np.ndarray], maps: dict[Key, np.ndarray], labels: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[Key, np.ndarray]]:
    """Nothing in the places [B,K] of images with fewer labels than others: no class, score, map."""
    classes, maps = jax.tree.map(np.asarray, emptied(labels, facts['classes'], maps))
    scores = np.where(classes == NO_CLASS, np.float32(0), facts['class_scores'])
    return facts | {'classes': classes, 'class_scores': scores}, maps


def facts_of(network: Network, logits: np.ndarray, classes: np.ndarray) -> dict[str, np.ndarray]:
    """What is stored of images beside their maps.

    Args:
        network: the classifier.
        logits: [B,C] of it.
        classes: [B,K] that the maps are for.

    Returns:
        'classes' [B,K], 'class_scores' [B,K], their probabilities, and 'top' [B,<=5], the classes
        ranked first; where every class is for itself also 'logits' [B,C].
    """
    probabilities = np.asarray(network.probabilities(jnp.asarray(logits)))
    kept = {'logits': np.asarray(logits, np.float32)} if _num_logits(network) else {}
    return kept | {
        'classes': classes,
        'class_scores': np.take_along_axis(probabilities, classes, axis=1).astype(np.float32),
        'top': np.argsort(-logits, axis=1, kind='stable')[:, :TOP].astype(np.int32),
    }

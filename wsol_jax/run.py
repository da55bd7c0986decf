"""An experiment: its stages in order, its splits and its classifier."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

from flax import nnx

from wsol_jax.config import Config, ConfigError, flatten
from wsol_jax.data import Source, open_source
from wsol_jax.grounding.task import GROUNDING
from wsol_jax.hosts import barrier, end_together, first_of_all, is_first
from wsol_jax.interrupts import readers_may_leave
from wsol_jax.localization.task import LOCALIZATION
from wsol_jax.maps.elsewhere import claim
from wsol_jax.models import Network, as_network, local_weights
from wsol_jax.offline import check_origin
from wsol_jax.points.task import POINTS
from wsol_jax.segmentation.task import SEGMENTATION
from wsol_jax.task import Task
from wsol_jax.training.loop import train
from wsol_jax.training.method import TrainedMethod
from wsol_jax.training.methods import make_module
from wsol_jax.training.trained import load_network, probability_of, trained_network
from wsol_jax.workdir import check_same, locked, open_workdir, run_id

Splits = Callable[[str], Source]
ROOTED = (
    'voc',
    'coco',
    'coco_expressions',
    'kitti',
    'nuscenes',
)  # sources, beside folders, with a root
FRAMES = ('lidar_scenes', 'kitti', 'nuscenes')  # sources of LiDAR frames
# By `config.task`.
TASKS = {
    'localization': LOCALIZATION,
    'segmentation': SEGMENTATION,
    'points': POINTS,
    'grounding': GROUNDING,
}


def run(config: Config, workdir: Path, task: Task | None = None) -> None:
    """Runs the stages of an experiment.

    Of several processes, see `wsol_jax.hosts`, all do this with the same arguments: the first
    alone keeps the workdir locked and writes what there is one of.

    Args:
        config: the experiment.
        workdir: where its results go, and where they are taken up again.
        task: what is learnt and scored; None for the one that the config names.

    Raises:
        ConfigError: another run works in the workdir or has `localize.store`, or a setting is
            wrong.
        ProcessDied: another process of this run has ended.
    """
    task = task or TASKS[config.task]
    task.check(config)  # what is misspelt is found before anything is done, or given up
    task.method(config)
    _check_places(config)
    workdir = workdir.expanduser().resolve()  # once: libraries differ in how they take `..`
    if config.data.root and Path(config.data.root).resolve() == workdir:
        raise ConfigError(f'{workdir} is config.data.root; results need a --workdir of their own')
    if 'train' in config.stages and not (workdir / 'checkpoints').exists():
        local_weights(config.train.init_from or config.network.weights)  # fetched before all work
    with locked(workdir) if is_first() else nullcontext():
        opened = partial(open_workdir, workdir, config)
        first_of_all('workdir', opened, partial(check_same, workdir, config))
        _run_stages(config, workdir, task)
        end_together()


def _check_places(config: Config) -> None:
    """Says what the folder `data` of our config files stands for, where it is not there."""
    for name in (config.data.root, config.network.weights, config.train.init_from):
        if name.startswith('data/') and 'WSOL_DATA' not in os.environ and not Path(name).exists():
            raise ConfigError(
                f'{name}: not there; set WSOL_DATA to the folder with the data sets and weights, '
                'which is data/ while it is not set'
            )


def _run_stages(config: Config, workdir: Path, task: Task) -> None:
    splits = open_splits(config)
    network = cache(partial(load_classifier, config, workdir, task.method(config)))
    if config.localize.store and 'localize' in config.stages and is_first():
        claim(config.localize.store.rstrip('/'), run_id(workdir))  # before the training
    if 'train' in config.stages:
        _train(config, workdir, task, splits)
    if 'localize' in config.stages:
        for split in config.localize.splits:
            task.compute(config, network(), splits(split), split, workdir)
    elif 'evaluate' in config.stages and (workdir / 'checkpoints').exists():
        for split in config.localize.splits:
            check_origin(network(), workdir / 'maps' / split, workdir)
    if 'evaluate' in config.stages and not (workdir / 'metrics.json').exists():
        sources = {s: splits(s) for s in config.localize.splits}
        task.evaluate(config, sources, workdir, network() if task.needs_network(config) else None)
    if 'report' in config.stages and is_first():
        text = task.report(config, splits(config.localize.splits[-1]), workdir)
        with readers_may_leave():
            print(text, f'Page: {workdir / "report.html"}', sep='\n')


def _train(config: Config, workdir: Path, task: Task, splits: Splits) -> None:
    method, split = task.method(config), config.train.split
    if 'localize' in config.stages:
        # A misspelt method, layer, class or split is found before the training, not after it.
        task.check_network(config, _as_built(config, method, splits(split)))
        for name in config.localize.splits:
            splits(name)
    train_source, val_source = splits(split), splits('val')
    task.check_sources(config, train_source, val_source)
    train(config, train_source, val_source, workdir, method, task.epoch_score)
    barrier('trained')


def _as_built(config: Config, method: TrainedMethod, source: Source) -> Network:
    """The network that will be trained on a source, without weights."""
    net, num_logits = config.network, method.num_logits(source)

    def built() -> nnx.Module:
        return make_module(net.name, None, num_logits, method, config.seed, net.options)

    module = nnx.eval_shape(built)
    return as_network(net.name, module, probability=probability_of(flatten(config)))


def open_splits(config: Config) -> Splits:
    """`open_split` by name alone, which opens each split once."""
    return cache(partial(open_split, config))


def open_split(config: Config, split: str) -> Source:
    """The images of one split of the experiment's data set."""
    data = config.data
    known = _labelled(config, split)
    if data.source in ('shapes', 'scenes', 'relations', 'lidar_scenes'):
        names = ('train', 'val', 'test')
        if split not in names or len(data.shapes_counts) != len(names):
            raise ConfigError(
                f'{data.source} has the splits {names} and as many counts; no {split!r}'
            )
        count = data.shapes_counts[names.index(split)]
        options = {'count': count, 'size': data.shapes_size, 'seed': config.seed}
        return open_source(data.source, '', split, **options, **known)
    if not data.root and data.source.endswith(('folder', *ROOTED)):
        raise ConfigError(f'config.data.source={data.source!r} needs config.data.root, its folder')
    common = {'orientation': data.orientation, 'max_pixels': data.max_pixels}
    options_of: dict[str, dict[str, Any]] = {
        'wsol_folder': {'class_index': data.class_index},
        'class_folder': {'class_index': data.class_index},
        'tfds': {'name': data.name},
        'kitti': {'seed': config.seed, **known},
        'nuscenes': {'seed': config.seed, 'name': data.name, **known},
    }
    options = options_of.get(data.source, {})
    if data.class_index and 'class_index' not in options:
        raise ConfigError(
            f'config.data.class_index=True has no effect on source {data.source!r}, only on '
            "'wsol_folder' and 'class_folder', whose class_names.txt has the indices"
        )
    return open_source(data.source, data.root, split, **common, **options)


def _labelled(config: Config, split: str) -> dict[str, float]:
    """The share of frames whose boxes are known, for a source of frames: all but in training."""
    share, source = config.data.labelled, config.data.source
    if source in FRAMES:
        return {'labelled': share if split == config.train.split else 1.0}
    if share < 1:
        raise ConfigError(
            f'config.data.labelled={share} has no effect on source {source!r}, only on '
            f'those of LiDAR frames: {", ".join(FRAMES)}'
        )
    return {}


def load_classifier(config: Config, workdir: Path, method: TrainedMethod | None = None) -> Network:
    """The network trained in the workdir, or the one of `network.weights`.

    Args:
        config: the experiment.
        workdir: of the training.
        method: that it was trained by; None for the one that the config names.

    Raises:
        ConfigError: there is neither.
        WeightsError: training there is not finished.
    """
    net = config.network
    if network := trained_network(config, workdir, method):
        return network
    if not net.weights:
        raise ConfigError(
            f'no classifier to localize with: {workdir} holds no checkpoint and '
            "config.network.weights is empty; add 'train' to config.stages or give weights"
        )
    return load_network(
        net.name,
        net.weights,
        preprocessing=net.preprocessing,
        probability=net.probability or None,
        seed=config.seed,
        **net.options,
    )

"""Localization as a task: from image labels to maps, boxes and their scores."""

from pathlib import Path

from wsol_jax.config import Config, ConfigError, SegmentationConfig
from wsol_jax.data import Source, check_training
from wsol_jax.data.records import ListedRecords
from wsol_jax.evaluation.protocols import protocol
from wsol_jax.evaluation.stage import evaluate
from wsol_jax.evaluation.truth import label_of
from wsol_jax.localization.epoch import EpochScore
from wsol_jax.localization.stage import check_target, localize_split, plan_of
from wsol_jax.maps.store import MapStore
from wsol_jax.models import Network
from wsol_jax.report.results import read_metrics
from wsol_jax.report.stage import report
from wsol_jax.task import Task
from wsol_jax.training.methods import make_method


def _check(config: Config) -> None:
    for name in config.evaluate.protocols:
        protocol(name)
    if config.segmentation != SegmentationConfig():
        raise ConfigError(f'config.segmentation has no effect with config.task={config.task!r}')


def _check_sources(config: Config, train: Source, val: Source) -> None:
    check_training(train, val, several=make_method(config.train).several)
    if 'val' in config.localize.splits:
        _check_labels(config, val)  # now: the training takes longer


def _check_network(config: Config, network: Network) -> None:
    plan = plan_of(config.localize, network)
    last = [m.name for fused in plan.methods for m in fused if m.where == 'last']
    if last and network.own_map and network.own_map.classifies:
        name = network.own_map.name
        raise ConfigError(
            f'config.localize.methods: {last[0]} reads the weights of a linear layer, and {name} '
            f'trains heads that take its place; ask for {name!r} or grad_cam instead'
        )
    check_target(config.localize.classes, network)


def _compute(
    config: Config, network: Network, source: Source, split: str, workdir: Path
) -> MapStore:
    _check_labels(config, source)  # now: the maps take longer
    return localize_split(config, network, source, split, workdir)


def _check_labels(config: Config, source: Source) -> None:
    """Refuses images of several labels that cannot be scored, where scores follow."""
    if 'evaluate' in config.stages and isinstance(source, ListedRecords):
        for i in range(len(source)):
            label_of(source[i])


def _report(config: Config, source: Source, workdir: Path) -> str:
    metrics = read_metrics(workdir, config.localize.splits[-1])
    return report(config, metrics, source, workdir)


LOCALIZATION = Task(
    method=lambda config: make_method(config.train),
    compute=_compute,
    evaluate=evaluate,
    report=_report,
    needs_network=lambda config: config.evaluate.faithfulness > 0,
    check=_check,
    check_sources=_check_sources,
    epoch_score=EpochScore,
    check_network=_check_network,
)

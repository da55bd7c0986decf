"""What a task of weak supervision brings of its own; all else is shared by the tasks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsol_jax.config import Config
from wsol_jax.data import Source
from wsol_jax.maps.columns import Store
from wsol_jax.models import Network
from wsol_jax.training.method import EpochScores, TrainedMethod


def _nothing(*_: Any) -> None:
    """What is checked where a task has nothing to check."""


@dataclass(frozen=True)
class Task:
    """A task: localization, or one of yours. `wsol_jax.run.run` takes it through all stages.

    Training loop, checkpoints, loader, store, sharding, evaluation in processes, and the frame of
    the page are the same for all.

    Attributes:
        method: config -> how its network is trained: which targets a batch carries of a record,
            which heads the network gets, the loss and what it names, and what tells the best epoch.
            An error of it is one of the config.
        compute: (config, network, source, split, workdir) -> the finished store of what was
            computed of each image of a split, in `workdir/maps/<split>`; see `wsol_jax.offline`.
        evaluate: (config, {split: source}, workdir, network or None) -> what metrics.json holds;
            see `wsol_jax.evaluation.frame`.
        report: (config, source, workdir) -> the text for the terminal; writes report.html, see
            `wsol_jax.report.frame`.
        needs_network: config -> whether `evaluate` does.
        check: (config) finds what is wrong with settings before anything is done.
        check_sources: (config, train source, val source) finds what is wrong with these before
            training.
        epoch_score: (config, network in training, val source) -> a function network -> {name:
            value}, made once and called after every epoch of a training that began with
            `train.keep='best_localization'`; the highest first value tells the epoch that is kept.
        check_network: (config, network without weights) finds misspelt names before training.
    """

    method: Callable[[Config], TrainedMethod]
    compute: Callable[[Config, Network, Source, str, Path], Store]
    evaluate: Callable[[Config, Mapping[str, Source], Path, Network | None], dict[str, Any]]
    report: Callable[[Config, Source, Path], str]
    needs_network: Callable[[Config], bool] = lambda _: False
    check: Callable[[Config], None] = _nothing
    check_sources: Callable[[Config, Source, Source], None] = _nothing
    epoch_score: EpochScores | None = None
    check_network: Callable[[Config, Network], None] = _nothing

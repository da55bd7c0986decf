"""Grounding as a task: from sentences about images to the boxes that they mean."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsol_jax.config import Config, ConfigError
from wsol_jax.data import Batch, Source
from wsol_jax.evaluation.frame import evaluate_splits
from wsol_jax.evaluation.split import StoredSplit
from wsol_jax.grounding.score import Grounded, joined, metrics_of, score_grounding
from wsol_jax.maps.columns import Store
from wsol_jax.models import Network, Preprocessing
from wsol_jax.models.grounding import GroundingHeads
from wsol_jax.models.heads import Outputs
from wsol_jax.offline import Work, compute_split
from wsol_jax.report.grounding import report_grounding
from wsol_jax.task import Task
from wsol_jax.training.methods import make_method
from wsol_jax.training.methods.dtmr import DTMR

_CHOSEN = ('subject', 'object', 'classes')


def ground_split(
    config: Config, network: Network, source: Source, split: str, workdir: Path
) -> Store:
    """Finds the pair of proposals of every sentence of a split that is not in the workdir yet.

    No true box is looked at.

    Args:
        config: the experiment.
        network: with the heads that ground.
        source: the images of the split.
        split: its name.
        workdir: of the run.

    Returns:
        The finished store. Its columns are, of S sentences and N proposals at most, 'subject' and
        'object' int32 [S], the indices of the chosen proposals; 'scores' float32 [S,N], the highest
        of each proposal as subject; 'classes' int32 [S], that of the subject. Behind the last
        sentence all are -1, and so are scores behind the last proposal.

    Raises:
        ConfigError: the network has no such heads.
        DataError: an image has no sentences or boxes, or results are of other images.
    """
    targets = _method(config).sentences(source)
    kinds = dict.fromkeys(('subject', 'object', 'classes'), ((targets.sentences,), 'int32'))
    work = Work(
        program=_Pairs.of(network),
        targets=targets,
        kinds={**kinds, 'scores': ((targets.sentences, targets.boxes), 'float32')},
        about={'grounding': 'pairs'},
        columns=_columns,
    )
    return compute_split(config, network, source, split, workdir, work)


@dataclass(frozen=True)
class _Pairs:
    """A `Program`: the columns of `ground_split`, not masked yet."""

    outputs: Callable[..., Outputs]
    preprocessing: Preprocessing

    @classmethod
    def of(cls, network: Network) -> '_Pairs':
        """Those of a network.

        Raises:
            ConfigError: it has no heads that ground.
        """
        if not isinstance(getattr(network.module(), 'heads', None), GroundingHeads):
            raise ConfigError(
                f"{network.name} was not trained to ground; 'train' with config.train.method="
                "'dtmr' comes first"
            )
        assert network.outputs is not None
        return cls(network.outputs, network.preprocessing)

    def __call__(self, state: Any, images: jax.Array, targets: Any) -> dict[str, jax.Array]:
        scores = self.outputs(state, self.preprocessing(images), targets).extras['scores']
        best = jnp.max(scores, axis=-1)
        subject = jnp.argmax(best, axis=-1)
        row = jnp.take_along_axis(scores, subject[..., None, None], axis=2)[:, :, 0]
        return {'subject': subject, 'object': jnp.argmax(row, axis=-1), 'scores': best}


def _columns(batch: Batch, found: dict[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
    """What is stored of a batch; -1 where there is no sentence or proposal."""
    del step
    said, proposals = batch.targets['sentences'], batch.targets['proposals']
    there = said[:, :, None] & proposals[:, None]
    chosen = {n: np.where(said, found[n], -1).astype(np.int32) for n in ('subject', 'object')}
    scores = np.where(there, found['scores'], -1).astype(np.float32)
    return chosen | {'scores': scores, 'classes': batch.targets['classes']}


def evaluate_grounding(
    config: Config, sources: Mapping[str, Source], workdir: Path, network: Network | None = None
) -> dict[str, Any]:
    """Scores the chosen boxes of every split; writes metrics.json.

    Nothing is chosen on a split.

    Args:
        config: the experiment.
        sources: {split: source}.
        workdir: with the results of these splits.
        network: not needed.

    Returns:
        What metrics.json holds: 'grounding', a row for each split, see `metrics_of`.

    Raises:
        DataError: results are missing, or of other images or sentences.
    """
    del network
    splits = [StoredSplit(n, s, Store(workdir / 'maps' / n)) for n, s in sources.items()]
    return evaluate_splits(
        config.evaluate,
        splits,
        workdir,
        score=score_grounding,
        join=joined,
        summarize=_summary,
    )


def _summary(
    splits: Sequence[StoredSplit], found: Mapping[str, Grounded], chosen: None
) -> dict[str, Any]:
    del chosen
    rows = [
        {'split': split.name, 'images': len(split.records), **metrics_of(found[split.name])}
        for split in splits
    ]
    return {'grounding': rows}


def _method(config: Config) -> DTMR:
    """How it is trained.

    Raises:
        ConfigError: the config names another method.
    """
    method = make_method(config.train)
    if not isinstance(method, DTMR):
        raise ConfigError(
            "config.train.method must be 'dtmr' with config.task='grounding', got "
            f'{config.train.method!r}'
        )
    return method


def _check(config: Config) -> None:
    """Refuses what would move the boxes, which belong to the whole image."""
    if not config.augment.keeps_places:
        raise ConfigError(
            "config.augment.crop must be 'whole' and config.augment.flip False with "
            f"config.task='grounding', whose boxes are of the whole image, got "
            f'{config.augment.crop!r} and {config.augment.flip}'
        )


GROUNDING = Task(
    method=_method,
    compute=ground_split,
    evaluate=evaluate_grounding,
    report=report_grounding,
    check=_check,
)

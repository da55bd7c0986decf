"""3D detection from points as a task: from one point an object to boxes and their scores."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from wsol_jax.config import Config, ConfigError
from wsol_jax.data import Source
from wsol_jax.evaluation.frame import evaluate_splits
from wsol_jax.evaluation.split import StoredSplit
from wsol_jax.maps.columns import Store
from wsol_jax.models import Network
from wsol_jax.points.detections import detect_split, frame_method
from wsol_jax.points.kitti_score import scores_of
from wsol_jax.points.nuscenes_score import metrics_of
from wsol_jax.points.quality import quality_rows
from wsol_jax.points.score import FrameScores, joined, score_frames
from wsol_jax.report.points import report_boxes
from wsol_jax.task import Task


def evaluate_boxes(
    config: Config, sources: Mapping[str, Source], workdir: Path, network: Network | None = None
) -> dict[str, Any]:
    """Scores the boxes of every split; writes metrics.json.

    Args:
        config: the experiment.
        sources: {split: source}, of frames.
        workdir: with the boxes of these splits.
        network: not looked at.

    Returns:
        What metrics.json holds: of each split `metrics_of` of nuScenes, `by_distance`, and for
        frames of KITTI `kitti`, the average precisions of its benchmark.

    Raises:
        DataError: boxes are missing or of other frames.
    """
    del network
    splits = [StoredSplit(n, s, Store(workdir / 'maps' / n)) for n, s in sources.items()]
    names, region = splits[-1].source.class_names, frame_method(config).limits
    return evaluate_splits(
        config.evaluate,
        splits,
        workdir,
        score=partial(score_frames, names=names, region=region),
        join=joined,
        summarize=_summary,
    )


def _summary(
    splits: Sequence[StoredSplit], scores: Mapping[str, FrameScores], chosen: None
) -> dict[str, Any]:
    del chosen
    return {'detection': [_row(split, scores[split.name]) for split in splits]}


def _row(split: StoredSplit, scores: FrameScores) -> dict[str, Any]:
    facts = {'split': split.name, 'frames': len(split.records)}
    found = metrics_of(scores.detections, split.source.class_names)
    kitti = scores_of(scores.kitti)
    found |= {'by_distance': quality_rows(scores.quality)} | ({'kitti': kitti} if kitti else {})
    return facts | found


def _check(config: Config) -> None:
    frame_method(config)
    if not config.augment.keeps_places:
        raise ConfigError(
            "config.task='points' needs config.augment.crop='whole' and config.augment.flip=False: "
            'projections are those of the whole image'
        )


def _check_sources(config: Config, train: Source, val: Source) -> None:
    for source in (train, val):
        frame_method(config).targets(source, False)
    if train.class_names != val.class_names:
        raise ConfigError(
            f'train has the classes {train.class_names}, val {val.class_names}: they must be the '
            'same'
        )


POINTS = Task(
    method=frame_method,
    compute=detect_split,
    evaluate=evaluate_boxes,
    report=report_boxes,
    check=_check,
    check_sources=_check_sources,
)

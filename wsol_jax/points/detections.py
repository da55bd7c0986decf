"""Boxes in 3D that a network finds in every frame of a split."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsol_jax.config import Config, ConfigError
from wsol_jax.data import Batch, Source
from wsol_jax.maps.columns import Store
from wsol_jax.models import Network, Preprocessing
from wsol_jax.offline import Work, compute_split
from wsol_jax.points.pseudo_labels import FOLDER, write_pseudo_labels
from wsol_jax.training.methods import make_method
from wsol_jax.training.methods.frames import Boxes, FrameMethod
from wsol_jax.training.methods.point_detr3d import PointDETR3D

_KIND = {'boxes': '3D'}  # what the index of the store tells


def frame_method(config: Config) -> FrameMethod:
    """The method of a config.

    Raises:
        ConfigError: it is none that learns boxes in 3D.
    """
    method = make_method(config.train)
    if isinstance(method, FrameMethod):
        return method
    raise ConfigError(
        "config.train.method must be 'point_detr3d' or 'center_point' with config.task='points', "
        f'got {config.train.method!r}'
    )


def detect_split(
    config: Config, network: Network, source: Source, split: str, workdir: Path
) -> Store:
    """Finds the boxes of every frame of a split that is not in the workdir yet.

    Of a network whose queries are annotated points they are labels for a student, too:
    `maps/<split>/pseudo_labels/<image_id>.json`.

    Args:
        config: the experiment.
        network: with the heads that detect.
        source: the frames of the split.
        split: its name.
        workdir: of the run.

    Returns:
        The finished store: columns `boxes` [M,7], `scores` [M] and `classes` [M], -1 for none.

    Raises:
        ConfigError: the network has no such heads.
        DataError: the boxes there are of other frames.
    """
    if network.outputs is None:
        raise ConfigError(f'{network.name} has no heads that detect: train it with this task')
    method = frame_method(config)
    most, folder = method.most_found(source), workdir / 'maps' / split / FOLDER
    labels = isinstance(method, PointDETR3D) and method.at_points

    def columns(batch: Batch, found: Boxes, step: int) -> dict[str, np.ndarray]:
        del step
        if labels:
            _write(folder, batch, found, source.class_names)
        return found._asdict()

    work = Work(
        program=_Detection(network.outputs, network.preprocessing, method),
        targets=method.frame_targets(source),
        kinds={
            'boxes': ((most, 7), 'float32'),
            'scores': ((most,), 'float32'),
            'classes': ((most,), 'int32'),
        },
        about=_KIND,
        columns=columns,
    )
    return compute_split(config, network, source, split, workdir, work)


@dataclass(frozen=True)
class _Detection:
    """A `Program`: the boxes of each frame."""

    outputs: Callable[..., Any]
    preprocessing: Preprocessing
    method: FrameMethod

    def __call__(self, state: Any, images: Any, targets: Any) -> Boxes:
        found = self.outputs(state, self.preprocessing(images), targets)
        return self.method.boxes(found.extras, targets)


def _write(folder: Path, batch: Batch, found: Boxes, names: tuple[str, ...]) -> None:
    """The pseudo labels of a batch."""
    for i in np.flatnonzero(batch.valid).tolist():
        boxes, scores, classes = (np.asarray(part)[i] for part in found)
        own = classes >= 0
        path = folder / f'{batch.image_ids[i]}.json'
        write_pseudo_labels(path, boxes[own], classes[own], scores[own], names)

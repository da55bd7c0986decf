"""Boxes in 3D that a network finds in every frame of a split."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from wsol_jax.config import Config, ConfigError
from wsol_jax.data import Batch, Source
from wsol_jax.maps.columns import Column, Store
from wsol_jax.models import Network, Preprocessing
from wsol_jax.offline import Pass, check_origin, fill_store
from wsol_jax.parallel import Devices, local_devices
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
    method, devices = frame_method(config), local_devices(config.parallel)
    folder, most = workdir / 'maps' / split, method.most_found(source)
    kinds = {'boxes': ((most, 7), 'float32'), 'scores': ((most,), 'float32')}
    kinds |= {'classes': ((most,), 'int32')}
    columns = {name: Column(*kind) for name, kind in kinds.items()}
    store = Store.prepare(folder, len(source), columns, _KIND)
    check_origin(network, folder, workdir)
    program = _compile(devices, _Detection(network.outputs, network.preprocessing, method))
    state = devices.replicate(network.state)

    def launch(batch: Batch) -> Boxes:
        images, targets = devices.shard((batch.images, batch.targets))
        return program(state, images, targets)

    def written(batch: Batch, found: Boxes, step: int) -> dict[str, np.ndarray]:
        del step
        if isinstance(method, PointDETR3D) and method.at_points:
            _write(folder / FOLDER, batch, found, source.class_names)
        return found._asdict()

    size = config.network.input_size or network.input_size
    work = Pass(size, method.frame_targets(source), launch, written)
    fill_store(config, source, split, store, work, workdir)
    return store


@dataclass(frozen=True)
class _Detection:
    """(state, images, targets) -> boxes of each frame."""

    outputs: Callable[..., Any]
    preprocessing: Preprocessing
    method: FrameMethod

    def __call__(self, state: Any, images: Any, targets: Any) -> Boxes:
        found = self.outputs(state, self.preprocessing(images), targets)
        return self.method.boxes(found.extras, targets)


@lru_cache(maxsize=4)
def _compile(devices: Devices, program: _Detection) -> Callable[..., Boxes]:
    return devices.per_image(program)


def _write(folder: Path, batch: Batch, found: Boxes, names: tuple[str, ...]) -> None:
    """The pseudo labels of a batch."""
    for i in np.flatnonzero(batch.valid).tolist():
        boxes, scores, classes = (np.asarray(part)[i] for part in found)
        own = classes >= 0
        path = folder / f'{batch.image_ids[i]}.json'
        write_pseudo_labels(path, boxes[own], classes[own], scores[own], names)

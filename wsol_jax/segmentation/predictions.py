"""Label maps that a segmentation network predicts of images alone: no label is looked at."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from wsol_jax.config import Config
from wsol_jax.data import Batch, Record, Source, stored_size
from wsol_jax.data.records import Pixels
from wsol_jax.localization.views import mirrored, scaled
from wsol_jax.maps.columns import Store
from wsol_jax.maps.fuse import resize
from wsol_jax.models import Network, Preprocessing
from wsol_jax.models.deeplab import SegmentationHeads
from wsol_jax.offline import Work, compute_split
from wsol_jax.segmentation.label_maps import write_label_map
from wsol_jax.segmentation.seed_scores import LABEL_MAPS

_KIND = {'label_maps': 'predicted'}  # what the index of the store tells
_FLOOR = 1e-30  # of probabilities, so that their logarithms are finite


def predicts(network: Network) -> bool:
    """Whether a network has the heads that segment."""
    return network.own_map is not None and network.own_map.name == SegmentationHeads.map_name


def is_predicted(store: Store) -> bool:
    """Whether a store is one of `segment_split`."""
    return store.about == _KIND


def segment_split(
    config: Config, network: Network, source: Source, split: str, workdir: Path
) -> Store:
    """Predicts the label map of every image of a split that is not in the workdir yet.

    They are `maps/<split>/label_maps/<image_id>.png`. Probabilities are averaged over
    `localize.scales` and, with `localize.flip`, the mirrored image; their logarithms are resized to
    the image, bilinearly, and the highest one counts.

    Args:
        config: the experiment.
        network: with the heads that segment.
        source: the images of the split.
        split: its name.
        workdir: of the run.

    Returns:
        The finished store; its column `classes` tells what the label map of each image has.

    Raises:
        DataError: the label maps there are of other images.
    """
    folder = workdir / 'maps' / split / LABEL_MAPS
    work = Work(
        program=_Probabilities.of(network, config),
        targets=_size_of,
        kinds={'classes': ((1 + network.num_classes,), 'uint8')},
        about=_KIND,
        columns=partial(_written, folder),
    )
    return compute_split(config, network, source, split, workdir, work)


@dataclass(frozen=True)
class _Probabilities:
    """A `Program`: probabilities [B,1+C,h,w], averaged over views of the images."""

    apply: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    map_of: Callable[[Any, Mapping[str, jax.Array], jax.Array], jax.Array]
    preprocessing: Preprocessing
    num_classes: int
    scales: tuple[float, ...]
    mirrors: tuple[bool, ...]

    @classmethod
    def of(cls, network: Network, config: Config) -> '_Probabilities':
        """Those that the settings ask for."""
        assert network.own_map is not None
        setting, mirrors = config.localize, (False, True) if config.localize.flip else (False,)
        facts = network.preprocessing, network.num_classes, setting.scales, mirrors
        return cls(network.apply, network.own_map.function, *facts)

    def __call__(self, state: Any, images: jax.Array, targets: Any) -> jax.Array:
        del targets
        inputs = self.preprocessing(images)
        views = [self._of_view(state, inputs, s, m) for s in self.scales for m in self.mirrors]
        height, width = max((v.shape[-2:] for v in views), key=math.prod)
        return jnp.mean(jnp.stack([resize(v, (height, width)) for v in views]), axis=0)

    def _of_view(self, state: Any, inputs: jax.Array, scale: float, mirror: bool) -> jax.Array:
        _, endpoints = self.apply(state, mirrored(scaled(inputs, scale), mirror, axis=2))
        every = jnp.arange(-1, self.num_classes)  # the heads take -1 for the background
        asked = jnp.broadcast_to(every, (len(inputs), len(every)))
        return mirrored(self.map_of(state, endpoints, asked), mirror, axis=-1)


def _size_of(record: Record) -> dict[str, np.ndarray]:
    return {'size': np.array(stored_size(record), np.int32)}


def _written(folder: Path, batch: Batch, found: np.ndarray, step: int) -> dict[str, np.ndarray]:
    """Writes the label maps of a batch; what is stored beside them: bool [B,1+C]."""
    classes = np.zeros(found.shape[:2], np.uint8)
    for i in np.flatnonzero(batch.valid).tolist():
        label_map = predicted_label_map(found[i], tuple(batch.targets['size'][i].tolist()))
        write_label_map(folder / f'{batch.image_ids[i]}.png', label_map)
        classes[i, np.unique(label_map)] = 1
    return {'classes': classes}


def predicted_label_map(probabilities: np.ndarray, size: tuple[int, int]) -> Pixels:
    """The most probable class at each pixel.

    Args:
        probabilities: [1+C, h, w], the background first.
        size: (width, height) of the image in pixels.

    Returns:
        uint8 [H, W]; of equal ones the first.
    """
    logs = np.log(np.maximum(probabilities, _FLOOR))
    label_map = np.zeros(size[::-1], np.uint8)
    # One class after the other: all of them in the pixels of a large image are gigabytes.
    each = (cv2.resize(m, size, interpolation=cv2.INTER_LINEAR) for m in logs)
    highest = next(each)
    for k, found in enumerate(each, 1):
        label_map[found > highest] = k
        np.maximum(found, highest, out=highest)
    return label_map

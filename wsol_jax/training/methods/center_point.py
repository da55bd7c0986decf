"""CenterPoint, the student of Point-DETR3D (Yin et al., CVPR 2021, arXiv 2006.11275)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from wsol_jax.config import ConfigError
from wsol_jax.data.frames import FrameSource
from wsol_jax.data.records import Source, Targets
from wsol_jax.fields import Range, documented, setting
from wsol_jax.models import Network
from wsol_jax.models.box_codes import codes_of
from wsol_jax.models.center_point import (
    CenterPoint,
    cells_of,
    gaussian_radius,
    gaussians,
    heatmap_loss,
    peaks,
    true_heatmap,
)
from wsol_jax.models.heads import Heads, Outputs
from wsol_jax.points.consistency import consistency_loss, per_object, warped_back
from wsol_jax.points.pseudo_labels import TRUTH, StudentTargets, without_pseudo_labels
from wsol_jax.points.views import drawn_view, moved
from wsol_jax.training.matching import BOX_WEIGHT
from wsol_jax.training.method import Shard, Update
from wsol_jax.training.methods.frames import Boxes, FrameMethod, frames_of

_SIZE = (5.0, 5.0)  # metres: l and w of a class whose mean is not known


@documented
@dataclass(frozen=True, kw_only=True)
class CenterPoint3D(FrameMethod):
    """A detector in LiDAR alone: boxes are the peaks of a heatmap of each class.

    It needs no annotated point, and learns of boxes: the true ones of frames that have some, and
    of the others those that `point_detr3d` found at their points. Annotated points help by
    themselves, too: the network sees each frame as it is, without a gradient, and mirrored, turned,
    scaled and moved; around each point its features of both are to be the same once they are
    warped back.

    All classes share one head, features are those of the finest level, and velocity is not
    predicted. The sum of differences is divided by all objects; the authors' code divides by those
    of their last group of classes.

    Weak where pseudo labels are wrong in the same way everywhere: that is learnt, too.
    """

    labels: str = setting(
        '',
        'boxes of frames that have points alone: a folder of IMAGE_ID.json, such as '
        "maps/train/pseudo_labels of a teacher; 'truth' for the true ones; '' for none",
        'checkpoints',
    )
    width: int = setting(128, "channels of the bird's-eye view", 'checkpoints', Range(1, 65_536))
    consistency: float = setting(
        0.1,
        'weight of the difference between both views; 0 for none',
        'checkpoints',
        Range(0, 1000),
    )
    point_size: float = setting(
        4.0,
        'what lies around a point: of the mean size of its class',
        'checkpoints',
        Range(0, 1000, '(]'),
    )
    detections: int = setting(100, 'most boxes of a frame', 'maps', Range(1, 10_000))

    @property
    def needs_boxes(self) -> bool:
        """Where nothing else is learnt of the other frames."""
        return not (self.labels or (self.consistency and self.views))

    def targets(self, source: Source, required: bool) -> Targets:
        """Those of frames, with boxes of `labels`.

        Raises:
            ConfigError: there is no such folder.
            DataError: it lacks files of frames, though their teacher could read these.
        """
        frames, without = self.frame_targets(source), frozenset[str]()
        if self.labels not in ('', TRUTH):
            without = self._without_labels(frames_of(source))
        if without and required:  # told once: it is not required where sources are checked
            said = (
                '%s: has no boxes of %d frames that their teacher could not read: no box is learnt'
            )
            logging.warning(said, self.labels, len(without))
        return StudentTargets(frames, self.labels, source.class_names, without)

    def _without_labels(self, source: FrameSource) -> frozenset[str]:
        if not Path(self.labels).is_dir():
            raise ConfigError(
                "config.train.options.labels must be a folder of pseudo labels, 'truth' or '', got "
                f'{self.labels!r}'
            )
        own = np.flatnonzero(~source.labelled).tolist()
        return without_pseudo_labels(Path(self.labels), [source.image_id(i) for i in own])

    def heads(self, network: Network, rngs: nnx.Rngs) -> Heads:
        """The detector."""
        return CenterPoint(network, self.grid, self.widths, self.width, rngs)

    def augment(self, inputs: jax.Array, batch: Shard, keys: jax.Array) -> tuple[jax.Array, Shard]:
        """Each frame in a view of its own; as it is, too, where both are compared."""
        if not self.views:
            return inputs, batch
        views, given = jax.vmap(drawn_view)(keys), batch.targets
        targets = moved(given, views)
        if self.consistency:
            weak = {f'weak_{name}': given[name] for name in ('points', 'annotated')}
            targets |= {**weak, 'views': views}
        return inputs, batch._replace(targets=targets)

    def loss(
        self, outputs: Outputs, batch: Shard, update: Update
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Heatmap and boxes, divided by the boxes of the batch, and the difference between views.

        Logged beside it: the terms of each frame, divided by its objects.
        """
        targets, extras = batch.targets, outputs.extras
        known = targets['labelled'] & batch.valid
        classes = self._classes_inside(targets)
        heat, distance = jax.vmap(self._of_frame)(
            extras['heatmap'], extras['codes'], targets['boxes'], classes
        )
        counts = jnp.sum(classes >= 0, axis=1)
        losses = jnp.where(known, heat + BOX_WEIGHT * distance, 0)
        total, count = update.total((jnp.sum(losses), jnp.sum(jnp.where(known, counts, 0))))
        values = {'detection_loss': losses / jnp.maximum(counts, 1)}
        loss = total / jnp.maximum(count, 1)
        if 'weak' in extras:
            objects = jnp.sum(targets['point_classes'] >= 0, axis=1)
            apart = jnp.where(batch.valid, self._apart(extras, targets), 0)
            total, count = update.total((jnp.sum(apart), jnp.sum(objects * batch.valid)))
            loss += self.consistency * per_object(total, count)
            values['consistency'] = apart / jnp.maximum(objects, 1)
        else:
            values['consistency'] = jnp.zeros(len(known))
        return loss, values

    def _classes_inside(self, targets: Mapping[str, Any]) -> jax.Array:
        return jnp.where(self.grid.inside(targets['boxes'][..., :3]), targets['box_classes'], -1)

    def _of_frame(
        self, heatmap: jax.Array, codes: jax.Array, boxes: jax.Array, classes: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The loss of the heatmap and the L1 distance of the codes of all boxes."""
        expected = true_heatmap(boxes, classes, heatmap.shape[-1], self.grid)
        cells = cells_of(boxes, self.grid)
        places = jnp.floor(cells).astype(jnp.int32)
        column, row = (jnp.clip(places[:, i], 0, codes.shape[1 - i] - 1) for i in range(2))
        true = codes_of(boxes).at[:, :2].set(cells - places)
        distance = jnp.sum(jnp.abs(codes[row, column] - true), axis=-1)
        return heatmap_loss(heatmap, expected), jnp.sum(jnp.where(classes >= 0, distance, 0))

    def _apart(self, extras: Mapping[str, jax.Array], targets: Mapping[str, Any]) -> jax.Array:
        """How far the features of both views are apart around annotated points: [B]."""
        back, seen = warped_back(extras['features'], targets['views'], self.grid)
        near = jax.vmap(self._around)(targets['weak_annotated'], targets['point_classes'])
        return consistency_loss(back, extras['weak'], near * seen)

    def _around(self, points: jax.Array, classes: jax.Array) -> jax.Array:
        """The largest Gaussian of the points of a frame at each cell."""
        cells = self.point_size * self._mean_sizes(classes) / self.grid.pillar
        valid = (classes >= 0) & self.grid.inside(points)
        each = gaussians(points, gaussian_radius(cells[:, 0], cells[:, 1]), valid, self.grid)
        return jnp.max(each, axis=0, initial=0)

    def _mean_sizes(self, classes: jax.Array) -> jax.Array:
        if not self.sizes:
            return jnp.broadcast_to(jnp.array(_SIZE), (len(classes), 2))
        return jnp.array([size[:2] for size in self.sizes])[jnp.maximum(classes, 0)]

    def most_found(self, source: Source) -> int:
        """As the setting says, but no more than there are cells and classes."""
        rows, columns = self.grid.shape
        return min(self.detections, rows * columns * source.num_classes)

    def boxes(self, extras: Mapping[str, jax.Array], targets: Mapping[str, Any]) -> Boxes:
        """The highest peaks."""
        del targets
        rows, columns, count = extras['heatmap'].shape[1:]
        most = min(self.detections, rows * columns * count)
        of_frame = jax.vmap(lambda heat, codes: peaks(heat, codes, most, self.grid))
        return Boxes(*of_frame(extras['heatmap'], extras['codes']))

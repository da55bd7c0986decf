"""Point-DETR3D, the teacher of boxes from points (Gao et al., AAAI 2024, arXiv 2403.15317)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from wsol_jax.config import ConfigError
from wsol_jax.data.frames import FrameTargets
from wsol_jax.data.records import Source
from wsol_jax.fields import Range, documented, setting
from wsol_jax.models import Network
from wsol_jax.models.box_codes import boxes_of, codes_of
from wsol_jax.models.heads import Heads, Outputs
from wsol_jax.models.point_detr import Decoder, PointDETR, classes_within
from wsol_jax.points.views import drawn_view, moved
from wsol_jax.training.matching import BOX_WEIGHT, CLASS_WEIGHT, SetLoss, set_loss
from wsol_jax.training.method import Shard, Update, known_endpoint
from wsol_jax.training.methods.frames import Boxes, FrameMethod

_COUNT = Range(1, 100_000)


@documented
@dataclass(frozen=True, kw_only=True)
class PointDETR3D(FrameMethod):
    """A transformer makes a box of each annotated point; it teaches a detector without points.

    Every query is an annotated point: what is learnt of its class, where it is, how large its class
    is on average. It looks at a bird's-eye view of the LiDAR's points and at the images of cameras,
    by deformable attention and on a grid on its region of interest, at first a box of 5 x 5 x 4 m.
    Predictions are matched with true boxes one to one (focal loss and L1). It learns of the frames
    whose boxes are known; to the others, which have one point an object alone, the stage `localize`
    gives boxes, of which `center_point` learns.

    Here pillars take the place of voxels, and no weights of another detector are started from.

    Weak where points are few: a box of one LiDAR return has the size of its class.
    """

    cameras: int = setting(
        1,
        'of a frame that are looked at, the first ones: 1 is the front camera, 0 is LiDAR alone',
        'checkpoints',
        Range(0, 100),
    )
    camera_size: tuple[int, int] = setting(
        (256, 704),
        'height and width in pixels that images of several cameras are resized to; the image of '
        'one alone has the size of the network',
        'checkpoints',
        Range(8, 10_000),
    )
    image_layers: tuple[str, ...] = setting(
        (),
        'endpoints of the network that are looked at, the finest first; () for the last main one '
        'of each of the three coarsest sizes',
        'checkpoints',
    )
    queries: int = setting(
        0,
        'learnt queries in place of those at annotated points, as in DETR3D; 0 for none',
        'checkpoints',
        Range(0, 10_000),
    )
    width: int = setting(256, 'channels of queries', 'checkpoints', Range(6, 65_536))
    layers: int = setting(1, 'of the decoder', 'checkpoints', Range(1, 100))
    heads_count: int = setting(8, 'of the attention; divides the width', 'checkpoints', _COUNT)
    samples: int = setting(16, 'deformable samples of each head and level', 'checkpoints', _COUNT)
    side: int = setting(7, 'of the grid on a region of interest', 'checkpoints', Range(1, 100))
    hidden: int = setting(512, 'channels of the feed-forward layers', 'checkpoints', _COUNT)

    @property
    def needs_boxes(self) -> bool:
        """Always: frames without have no loss."""
        return True

    @property
    def reads_images(self) -> bool:
        """With a camera."""
        return self.cameras > 0

    def heads(self, network: Network, rngs: nnx.Rngs) -> Heads:
        """The detector.

        Raises:
            ConfigError: the network has no such endpoint, or the width cannot be divided.
        """
        if self.width % self.heads_count:
            raise ConfigError(
                f'config.train.options.width must be a multiple of heads_count, got {self.width} '
                f'and {self.heads_count}'
            )
        decoder = Decoder(
            self.width, self.layers, self.heads_count, self.samples, self.side, self.hidden
        )
        layers = self._image_layers(network) if self.cameras else ()
        parts = self.widths, layers, self.cameras, self.sizes, self.queries
        return PointDETR(network, self.grid, decoder, *parts, rngs)

    def frame_targets(self, source: Source) -> FrameTargets:
        """With the images of all cameras, where several are looked at."""
        targets = super().frame_targets(source)
        return replace(targets, num_cameras=max(self.cameras, 1), camera_size=self.camera_size)

    def _image_layers(self, network: Network) -> Sequence[str]:
        for name in self.image_layers:
            known_endpoint(network, 'image_layers', name)
        last = {network.shapes[name][:2]: name for name in network.layers()}
        return self.image_layers or tuple(last.values())[-3:]

    def augment(self, inputs: jax.Array, batch: Shard, keys: jax.Array) -> tuple[jax.Array, Shard]:
        """Each frame in a view of its own; its image stays."""
        if not self.views:
            return inputs, batch
        return inputs, batch._replace(targets=moved(batch.targets, jax.vmap(drawn_view)(keys)))

    def loss(
        self, outputs: Outputs, batch: Shard, update: Update
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Focal loss and L1 of matched boxes, divided by their number in what is computed at once.

        Logged beside it: both terms of each frame, of the last layer, divided by its boxes, and
        their sum.
        """
        found = self._sums(outputs.extras, batch)
        totals = update.total(jax.tree.map(jnp.sum, (found.focal, found.boxes)))
        count = update.total(jnp.sum(found.matched[:, -1]))
        loss = (CLASS_WEIGHT * totals[0] + BOX_WEIGHT * totals[1]) / jnp.maximum(count, 1)
        own = jnp.maximum(found.matched[:, -1], 1)
        of_class = CLASS_WEIGHT * found.focal[:, -1] / own
        of_boxes = BOX_WEIGHT * found.boxes[:, -1] / own
        terms = {'class_loss': of_class, 'box_loss': of_boxes}
        return loss, {**terms, 'detection_loss': of_class + of_boxes}

    def _sums(self, extras: Mapping[str, jax.Array], batch: Shard) -> SetLoss:
        """Of each frame and layer [B,layers]; 0 where the boxes of a frame are not known."""
        targets = batch.targets
        classes = classes_within(targets, self.grid)
        of_layers = jax.vmap(set_loss, (0, 0, None, None, None))
        found = jax.vmap(of_layers)(
            extras['class_logits'],
            extras['codes'],
            extras['queries'],
            classes,
            codes_of(targets['boxes']),
        )
        known = (targets['labelled'] & batch.valid)[:, None]
        return jax.tree.map(lambda x: jnp.where(known, x, 0), found)

    @property
    def at_points(self) -> bool:
        """Whether boxes are those of annotated points: labels for a student."""
        return not self.queries

    def most_found(self, source: Source) -> int:
        """One a query."""
        return self.queries or self.frame_targets(source).most_boxes

    def boxes(self, extras: Mapping[str, jax.Array], targets: Mapping[str, Any]) -> Boxes:
        """Of each query the box of the last layer: of the class of its point, or the likeliest."""
        scores = nnx.sigmoid(extras['class_logits'][:, -1])
        if self.queries:
            classes = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        else:
            classes = classes_within(targets, self.grid).astype(jnp.int32)
        own = jnp.take_along_axis(scores, jnp.maximum(classes, 0)[..., None], axis=-1)[..., 0]
        valid = extras['queries']
        return Boxes(
            boxes_of(extras['codes'][:, -1]),
            jnp.where(valid, own, 0),
            jnp.where(valid, classes, -1),
        )

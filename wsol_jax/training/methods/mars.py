"""DeepLab that completes label maps (MARS; Jo et al., ICCV 2023, arXiv 2304.09913)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from wsol_jax.config import ConfigError
from wsol_jax.data.label_maps import IGNORED, MISSING
from wsol_jax.data.records import Record, Source, Targets
from wsol_jax.fields import documented, setting
from wsol_jax.models.heads import Outputs
from wsol_jax.segmentation.crf import dense_crf
from wsol_jax.training.method import Shard, Update, pixel_mean
from wsol_jax.training.methods.segmenter import (
    LabelMaps,
    Segmenter,
    accuracies,
    pixel_losses,
)

_PADDING = 'padding_label_map'


@documented
@dataclass(frozen=True, kw_only=True)
class MARS(Segmenter):
    """The segmenter on debiased label maps: a teacher says what stands where labels are missing.

    Label maps are those of `wsol_jax.segmentation.remove_bias`, with 254 where a label is missing.
    The teacher is the moving average of the network, `train.ema`. A pixel that it labels counts as
    much as it is certain that one of the classes of its image is there; others count in full. The
    map is that of the segmenter, by the same name.

    Weak while the teacher knows little: what it labels wrong with certainty is learnt.
    """

    most_classes: ClassVar[int] = MISSING - 1
    crf: bool = setting(
        False,
        "let the teacher's labels follow the edges of the image (dense CRF), as published; slow",
        'checkpoints',
    )

    def num_logits(self, train: Source) -> int:
        """See `Segmenter.num_logits`.

        Raises:
            ConfigError: also where the CRF would see another size than that of the image.
        """
        if self.crf and self.resolution != 'full':
            raise ConfigError("config.train.options.crf needs resolution='full', got 'head'")
        return super().num_logits(train)

    def targets(self, source: Source, required: bool) -> Targets:
        """See `Segmenter.targets`; with the CRF also what is padding."""
        super().targets(source, required)
        found = LabelMaps(self.labels, source.num_classes, source.most_labels, also=MISSING)
        return _WithPadding(found) if self.crf else found

    def loss(
        self, outputs: Outputs, batch: Shard, update: Update
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The weighted mean cross-entropy of all pixels that are not ignored.

        Logged beside it: `accuracies` where labels are known, and the mean certainty of the teacher
        where they are missing, 0 if none is. See `TrainedMethod.loss`.

        Raises:
            ConfigError: there is no moving average.
        """
        if update.average is None:
            raise ConfigError(
                'config.train.ema must be above 0 for mars, whose teacher it makes, such as 0.999'
            )
        logits, label_map = self.aligned(outputs, batch)
        taught, _ = self.aligned(update.average(), batch)
        probabilities = jax.nn.softmax(taught)
        refined = _refined(probabilities, batch, update) if self.crf else probabilities
        missing = label_map == MISSING
        certain = certainty(probabilities, batch.targets['labels'])
        completed = jnp.where(missing, jnp.argmax(refined, axis=-1), label_map)
        losses = jnp.where(missing, certain, 1) * pixel_losses(logits, completed)
        known = jnp.where(missing, IGNORED, label_map)
        count = jnp.maximum(jnp.sum(missing, axis=(1, 2)), 1)
        return pixel_mean(losses, label_map != IGNORED, batch, update), {
            **accuracies(logits, known),
            'certainty': jnp.sum(certain * missing, axis=(1, 2)) / count,
        }


@dataclass(frozen=True)
class _WithPadding:
    """Targets and a label map that crops make `IGNORED` where they pad, and that has no other."""

    targets: Targets

    def __call__(self, record: Record) -> dict[str, NDArray]:
        return {**self.targets(record), _PADDING: np.zeros((1, 1), np.uint8)}


def _refined(probabilities: jax.Array, batch: Shard, update: Update) -> jax.Array:
    """Those of the CRF, in which padding, as like as one pixel to another, has no say."""
    inside = batch.targets[_PADDING] != IGNORED
    refine = update.alone(lambda images, p, valid: dense_crf(images, p, valid=valid))
    return refine(batch.images, probabilities, inside)


def certainty(probabilities: jax.Array, labels: jax.Array) -> jax.Array:
    """The highest probability at each place among the classes of an image.

    Args:
        probabilities: [B,h,w,1+C] of background and classes.
        labels: [B,L], the classes of each image, then -1.

    Returns:
        [B,h,w]; 0 where an image has no class.
    """
    count = probabilities.shape[-1] - 1
    present = jnp.max(jax.nn.one_hot(labels, count), axis=1)
    return jnp.max(probabilities[..., 1:] * present[:, None, None], axis=-1)

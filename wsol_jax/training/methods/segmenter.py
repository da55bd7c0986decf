"""DeepLab on label maps (Chen et al., TPAMI 2018, arXiv 1606.00915; ECCV 2018, 1802.02611)."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray

from wsol_jax.config import ConfigError
from wsol_jax.data.label_maps import IGNORED, label_map_of, resized_label_map, true_label_map
from wsol_jax.data.records import BadImage, Labels, Pixels, Record, Source, Targets
from wsol_jax.fields import Range, documented, setting
from wsol_jax.models import Network
from wsol_jax.models.deeplab import RATES, SegmentationHeads
from wsol_jax.models.heads import Heads, Outputs
from wsol_jax.training.method import Shard, TrainedMethod, Update, known_endpoint, pixel_mean

TRUTH = 'truth'  # in place of a folder: the label maps of the data set
_UNKNOWN = np.full((1, 1), IGNORED, np.uint8)
_RATE = Range(1, 1000)


@documented
@dataclass(frozen=True, kw_only=True)
class Segmenter(TrainedMethod):
    """DeepLab on the network, trained on the cross-entropy of every pixel of label maps.

    Label maps may be anybody's: one PNG an image, see `wsol_jax.segmentation.label_maps`; those of
    the data set itself show what full supervision would give. Pixels that they ignore, and what
    augmentation pads, do not count. Val has label maps of the same kind, and the best epoch is the
    one that agrees with them most, every class of an image counting alike.

    How fine the last layer is the network says: `network.options` such as {'output_stride': 16,
    'dilated': True}. The map, 'segmenter', is the probability of the class at each place; logits
    are of the whole image, see `SegmentationHeads`.

    Weak where label maps are wrong in the same way everywhere: that is learnt, too.
    """

    best: ClassVar[tuple[str, Literal['max', 'min']]] = ('class_accuracy', 'max')
    most_classes: ClassVar[int] = IGNORED - 1
    labels: str = setting(
        '',
        "folder of the label maps of train and val, IMAGE_ID.png; 'truth' for those of the data "
        'set',
        'checkpoints',
    )
    head: str = setting(
        'v3+',
        "'v2' is the sum of dilated convolutions, 'v3+' has batch normalization, the mean of the "
        'image and a decoder',
        'checkpoints',
        choices=tuple(RATES),
    )
    rates: tuple[int, ...] = setting(
        (),
        'dilations, in places of the last layer; () for 6, 12, 18 and, with v2, 24',
        'checkpoints',
        _RATE,
    )
    low: str = setting(
        '',
        "endpoint that the decoder of 'v3+' reads beside the last; '' for the last main one with a "
        "quarter of the input's sides",
        'checkpoints',
    )
    width: int = setting(256, "channels of 'v3+'", 'checkpoints', Range(1, 65_536))
    resolution: str = setting(
        'full',
        "where the loss is computed: at that of the input ('full'), to which logits are resized, "
        "or of the logits ('head')",
        'checkpoints',
        choices=('full', 'head'),
    )

    def num_logits(self, train: Source) -> int:
        """One a class, without the background.

        Raises:
            ConfigError: there is none, there are too many for a label map, or a setting is for
                classifiers alone.
        """
        count = train.num_classes
        if not 1 <= count <= self.most_classes:
            raise ConfigError(
                f'label maps have 1 to {self.most_classes} classes beside the background, found '
                f'{count}'
            )
        self.refuse_weights('the loss of pixels has none')
        return count

    def targets(self, source: Source, required: bool) -> Targets:
        """'label_map' and 'labels', of any number.

        Raises:
            ConfigError: no label maps are named, or there is no such folder.
        """
        del required
        if not self.labels or (self.labels != TRUTH and not Path(self.labels).is_dir()):
            raise ConfigError(
                "config.train.options.labels must be a folder of label maps or 'truth', got "
                f'{self.labels!r}'
            )
        return LabelMaps(self.labels, source.num_classes, source.most_labels)

    def heads(self, network: Network, rngs: nnx.Rngs) -> Heads:
        """DeepLab's.

        Raises:
            ConfigError: the network has no such layer, or none to choose.
        """
        low = '' if self.head == 'v2' else low_layer(network, self.low)
        rates = self.rates or RATES[self.head]
        return SegmentationHeads(network, self.head, low, self.width, rates, rngs)

    def loss(
        self, outputs: Outputs, batch: Shard, update: Update
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean cross-entropy of all known pixels of the batch; beside it see `accuracies`.

        See `TrainedMethod.loss`.
        """
        logits, label_map = self.aligned(outputs, batch)
        losses = pixel_losses(logits, label_map)
        loss = pixel_mean(losses, label_map != IGNORED, batch, update)
        return loss, accuracies(logits, label_map)

    def aligned(self, outputs: Outputs, batch: Shard) -> tuple[jax.Array, jax.Array]:
        """Logits [B,h,w,1+C] and label maps [B,h,w] of one size, that of the loss."""
        logits, label_map = outputs.extras['segmentation'], batch.targets['label_map']
        if self.resolution == 'head':
            return logits, resized_label_map(label_map, (logits.shape[1], logits.shape[2]))
        shape = (*label_map.shape, logits.shape[-1])
        return jax.image.resize(logits, shape, 'linear', antialias=False), label_map


def pixel_losses(logits: jax.Array, label_map: jax.Array) -> jax.Array:
    """The cross-entropy of each pixel: [B,h,w,K], [B,h,w] -> [B,h,w]; 0 where it is ignored."""
    known = label_map != IGNORED
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(known, label_map, 0).astype(jnp.int32)
    )
    return jnp.where(known, losses, 0)


def accuracies(logits: jax.Array, label_map: jax.Array) -> dict[str, jax.Array]:
    """How many pixels of each image have their highest logit at their class, in percent.

    Args:
        logits: [B,h,w,K].
        label_map: [B,h,w]; pixels that it ignores do not count.

    Returns:
        'pixel_accuracy' [B], of all pixels; 'class_accuracy' [B], of the pixels of each class, a
        mean over the classes that the label map has. 0 where it ignores all.
    """
    # Ignored pixels are of no class.
    of_class = jax.nn.one_hot(label_map, logits.shape[-1])
    right = jnp.argmax(logits, axis=-1) == label_map
    sizes = jnp.sum(of_class, axis=(1, 2))
    found = jnp.sum(of_class * right[..., None], axis=(1, 2))
    pixels, classes = jnp.sum(sizes, axis=1), jnp.sum(sizes > 0, axis=1)
    shares = jnp.sum(found / jnp.maximum(sizes, 1), axis=1)
    return {
        'pixel_accuracy': 100 * jnp.sum(found, axis=1) / jnp.maximum(pixels, 1),
        'class_accuracy': 100 * shares / jnp.maximum(classes, 1),
    }


def low_layer(network: Network, asked: str) -> str:
    """The endpoint that the decoder reads; see `Segmenter.low`.

    Raises:
        ConfigError: the network has none of that name, or none to choose.
    """
    if asked:
        return known_endpoint(network, 'low', asked)
    height, width, _ = network.input_shape
    fine = [
        name
        for name in network.layers()
        if tuple(4 * side for side in network.shapes[name][:2]) == (height, width)
    ]
    if not fine:
        raise ConfigError(
            f"no main endpoint of {network.name} has a quarter of its input's sides: name one in "
            f'config.train.options.low; known: {", ".join(network.layers())}'
        )
    return fine[-1]


@dataclass(frozen=True)
class LabelMaps:
    """The targets 'label_map', uint8 [H,W], and 'labels' of an image.

    Attributes:
        folder: of PNGs; 'truth' for the label maps of the records.
        num_classes: of the data set, without the background.
        most_labels: see `Labels`.
        also: another index that label maps of the folder may have, beside those of classes.
    """

    folder: str
    num_classes: int
    most_labels: int
    also: int = IGNORED

    def __call__(self, record: Record) -> dict[str, NDArray]:
        """Both, of a record.

        Where the image cannot be read all of its label map is unknown.

        Raises:
            DataError: the label map is missing or damaged, is not of the size of the image, or has
                an index that is no class; names the file.
        """
        return {**Labels(self.most_labels)(record), 'label_map': self._label_map(record)}

    def _label_map(self, record: Record) -> Pixels:
        try:
            if self.folder == TRUTH:
                return true_label_map(record, self.num_classes)
            return label_map_of(record, Path(self.folder), self.num_classes, self.also)
        except BadImage:  # of the image itself, which is passed over
            return _UNKNOWN

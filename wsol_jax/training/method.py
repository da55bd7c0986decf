"""What a training method is: its heads, what it does to a batch, its loss; the plain classifier."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from wsol_jax.config import ConfigError
from wsol_jax.data.records import Labels, Source, Targets
from wsol_jax.models import Network
from wsol_jax.models.heads import Heads, Outputs


class Shard(NamedTuple):
    """What a step takes of a batch of B images.

    Attributes:
        images: uint8 RGB [B,s,s,3].
        targets: of `Batch`, see `TrainedMethod.targets`: 'labels' int32 [B,1], if no others.
        valid: bool [B]; the others count neither in the loss nor in what it names.
        index: int32 [B], positions in the source: each image has random keys of its own.
    """

    images: Any
    targets: Any
    valid: Any
    index: Any


@dataclass(frozen=True, kw_only=True)
class TrainedMethod:
    """How a network is trained: here as a plain classifier; the others inherit what they keep.

    A method is a frozen dataclass, its options are its fields, and it is equal by value.

    Attributes:
        best: the value of val by which the best epoch is told, and whether the highest or the
            lowest is; 'loss' or a name that `loss` gives.
        label_smoothing: of the one-hot labels; from `train.label_smoothing`.
    """

    best: ClassVar[tuple[str, Literal['max', 'min']]] = ('accuracy', 'max')
    label_smoothing: float = 0.0

    def heads(self, network: Network, rngs: nnx.Rngs) -> Heads | None:
        """What is attached to the network, if anything: more outputs, and a map of its own.

        Args:
            network: without heads; its shapes and classes count, not its weights.
            rngs: for the initial weights.
        """
        del network, rngs
        return None

    def num_logits(self, train: Source) -> int:
        """How many logits the network has, for the data set of training: here one a class.

        Raises:
            ConfigError: there is nothing to tell apart.
        """
        if train.num_classes < 2:
            raise ConfigError(
                f'training needs labels of at least 2 classes, found {train.num_classes}'
            )
        return train.num_classes

    def targets(self, required: bool) -> Targets:
        """What a batch carries of a record for `loss`: here its one label.

        Args:
            required: each image must have it, as those that are trained on.
        """
        return Labels(required=required)

    def augment(self, inputs: jax.Array, batch: Shard, keys: jax.Array) -> tuple[jax.Array, Shard]:
        """What becomes of inputs and targets in training, before the network sees them.

        Args:
            inputs: [B,H,W,3], preprocessed.
            batch: of the same images.
            keys: random keys [B], of (seed, step, image) alone: a training that was interrupted
                draws the same, on any number of devices.
        """
        del keys
        return inputs, batch

    def loss(
        self, outputs: Outputs, batch: Shard, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss, in training as on val, and what is logged beside it.

        Args:
            outputs: of the network with its heads; logits and extras in float32.
            batch: of the same images.
            step: how many updates were made.

        Returns:
            The losses [B], or one number that is a mean over the valid images, finite even where
            there are none (on val, and under pmap, of the images that one device has); and values
            [B] by name, whose means over the valid images are logged.
        """
        del step
        labels = labels_of(batch)
        losses = cross_entropy(outputs.logits, labels, self.label_smoothing)
        return losses, {'accuracy': accuracy(outputs.logits, labels)}


def labels_of(batch: Shard) -> jax.Array:
    """The one label of each image: [B] of 'labels' [B,1].

    Raises:
        ValueError: there are several an image.
    """
    labels = batch.targets['labels']
    if labels.shape[1:] != (1,):
        raise ValueError(f'this loss takes one label an image, got labels {list(labels.shape)}')
    return labels[:, 0]


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """Of softmax probabilities: logits [B,C], labels [B] -> [B]."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """100 where the highest logit is that of the label, else 0: [B]."""
    return jnp.where(jnp.argmax(logits, axis=-1) == labels, 100.0, 0.0)

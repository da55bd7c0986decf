"""What a training method is: its heads, what it does to a batch, its loss; the plain classifier."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from wsol_jax.config import Config, ConfigError
from wsol_jax.data.records import Labels, Source, Targets
from wsol_jax.models import Network
from wsol_jax.models.heads import Heads, Outputs
from wsol_jax.names import unknown_name

ALL_BUT_HEADS = r'(?!heads\.)'  # of `TrainedMethod.freeze`: the network keeps its weights


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


class Start(Protocol):
    """The training that another one starts from, such as `trained.Training`."""

    @property
    def workdir(self) -> Path:
        """Of it."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Its settings by name, such as 'network.name'."""

    @property
    def method(self) -> 'TrainedMethod':
        """That it trained by."""

    def start(self) -> dict[str, np.ndarray]:
        """The weights by name."""


class Update(NamedTuple):
    """The update that a loss is computed for.

    Attributes:
        step: how many updates were made before it.
        total: sums over the images of one device -> sums over those of all devices; on val the
            same. A loss that divides such sums is the same on any number of devices.
        average: what the network gives for the same images with the moving average of its weights,
            in inference mode, without a gradient; computed where it is called. None without
            `train.ema`.
        alone: a function of arrays [B,...] of images -> the same, which each device calls with its
            own; for loops over images, which no device should go through for the others.
    """

    step: jax.Array
    total: Callable[[Any], Any]
    average: Callable[[], Outputs] | None = None
    alone: Callable[[Callable], Callable] = lambda function: function


# (config, network in training, val) -> network -> {name: value}: what is looked at after an epoch
# beside the loss; the first value tells the best one.
EpochScores = Callable[[Config, Network, Source], Callable[[Network], Mapping[str, float]]]


@dataclass(frozen=True, kw_only=True)
class TrainedMethod:
    """How a network is trained: here as a plain classifier; the others inherit what they keep.

    A method is a frozen dataclass, its options are its fields, and it is equal by value.

    Attributes:
        best: the value of val by which the best epoch is told, and whether the highest or the
            lowest is; 'loss' or a name that `loss` gives. See `criterion`.
        network_options: those that its network must be built with.
        label_smoothing: of the one-hot labels; from `train.label_smoothing`.
        class_weights: factors on the loss, one a class, or (); from `train.class_weights`.
        sigmoid: the loss of classification takes every class for itself; from `train.loss`.
    """

    best: ClassVar[tuple[str, Literal['max', 'min']]] = ('accuracy', 'max')
    network_options: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    sigmoid: bool = False

    @property
    def several(self) -> bool:
        """Whether an image may have several labels; val then has an mAP, too."""
        return self.sigmoid

    @property
    def criterion(self) -> tuple[str, Literal['max', 'min']]:
        """`best`; where images have several labels mAP takes the place of accuracy."""
        name, direction = self.best
        return ('mAP' if self.several and name == 'accuracy' else name), direction

    @property
    def freeze(self) -> tuple[str, ...]:
        """What the method freezes beside `train.freeze`, likewise."""
        return ()

    def heads(self, network: Network, rngs: nnx.Rngs) -> Heads | None:
        """What is attached to the network, if anything: more outputs, and a map of its own.

        Args:
            network: without heads; its shapes and classes count, not its weights.
            rngs: for the initial weights.
        """
        del network, rngs
        return None

    def begin(self, module: nnx.Module, start: Start | None) -> None:
        """What is done once, before the first step; what it sets is in the checkpoints then.

        Args:
            module: the network with its heads, filled with what training starts from.
            start: the training that it starts from; None for weights of a file, or random ones.

        Raises:
            ConfigError: the method cannot start from there.
        """
        del module, start

    def num_logits(self, train: Source) -> int:
        """How many logits the network has, for the data set of training: here one a class.

        Raises:
            ConfigError: there is nothing to tell apart, or not one weight for each class.
        """
        count, weights = train.num_classes, len(self.class_weights)
        if count < 2:
            raise ConfigError(f'training needs labels of at least 2 classes, found {count}')
        if weights not in (0, count):
            raise ConfigError(
                f'config.train.class_weights must have a weight for each of the {count} classes, '
                f'got {weights}'
            )
        return count

    def refuse_weights(self, what: str) -> None:
        """For methods whose loss knows neither class weights nor smoothed labels.

        Args:
            what: has none, in the message.

        Raises:
            ConfigError: one of them is set.
        """
        for name in ('class_weights', 'label_smoothing'):
            if getattr(self, name):
                raise ConfigError(f'config.train.{name}: {what}')

    def learns_from(self, train: Source) -> Source:
        """The records of train that an epoch goes through: here all.

        Raises:
            ConfigError: there is none.
        """
        return train

    def targets(self, source: Source, required: bool) -> Targets:
        """What a batch carries of a record for `loss`: here its label, or labels.

        Args:
            source: of the records.
            required: each image must have a label, as those that are trained on.
        """
        return Labels(source.most_labels if self.several else 1, required)

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
        self, outputs: Outputs, batch: Shard, update: Update
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss, in training as on val, and what is logged beside it.

        Args:
            outputs: of the network with its heads; logits and extras in float32.
            batch: of the same images.
            update: that it is computed for.

        Returns:
            The losses [B], or one number for the whole batch, finite even where no image is valid
            (on val a mean over the images that one device has); and values [B] by name, whose means
            over the valid images are logged.
        """
        del update
        losses = self.classification(outputs.logits, batch)
        return losses, {'accuracy': accuracy(outputs.logits, batch.targets['labels'])}

    def classification(self, logits: jax.Array, batch: Shard) -> jax.Array:
        """The losses of classification, as the settings of training say: logits [B,C] -> [B]."""
        weights = jnp.array(self.class_weights or (1.0,) * logits.shape[-1])
        if self.sigmoid:
            labels = batch.targets['labels']
            return binary_cross_entropy(logits, labels, self.label_smoothing, weights)
        labels = labels_of(batch)
        return weights[labels] * cross_entropy(logits, labels, self.label_smoothing)


def labels_of(batch: Shard) -> jax.Array:
    """The one label of each image: [B] of 'labels' [B,1].

    Raises:
        ValueError: there are several an image.
    """
    labels = batch.targets['labels']
    if labels.shape[1:] != (1,):
        raise ValueError(
            f'config.train.method: this one takes one label an image, and there are up to '
            f'{labels.shape[-1]}; take the plain classifier for them'
        )
    return labels[:, 0]


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """Of softmax probabilities: logits [B,C], labels [B] -> [B]."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def binary_cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float, weights: jax.Array
) -> jax.Array:
    """Of the sigmoid of each logit, averaged over the classes: [B]; the multi-label soft margin.

    Args:
        logits: [B,C].
        labels: [B,L], the classes of each image, then -1.
        smoothing: targets become this much nearer to 1/2, as a share of the way.
        weights: [C], factors on the terms of the classes.
    """
    targets = jnp.max(jax.nn.one_hot(labels, logits.shape[-1]), axis=1)
    targets = (1 - smoothing) * targets + smoothing / 2
    return jnp.mean(weights * optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """100 where the highest logit is that of a label, else 0: [B] of labels [B], or [B,L]."""
    best = jnp.argmax(logits, axis=-1, keepdims=True)
    return jnp.where(jnp.any(best == labels.reshape(len(best), -1), axis=-1), 100.0, 0.0)


def known_endpoint(network: Network, option: str, name: str) -> str:
    """The endpoint that an option of a method names.

    Raises:
        ConfigError: the network has none of that name.
    """
    if name not in network.shapes:
        where = f'endpoint of {network.name} in config.train.options.{option}'
        raise ConfigError(unknown_name(where, name, network.shapes))
    return name


def batch_mean(values: jax.Array, batch: Shard, update: Update) -> jax.Array:
    """The mean over the valid images of all devices: values [B] -> one number; 0 if there are none.

    Its gradient is right where the loss of the method is one number: a device counts by its images.
    """
    sums = jnp.sum(jnp.where(batch.valid, values, 0)), jnp.sum(batch.valid)
    total, count = update.total(sums)
    return total / jnp.maximum(count, 1)


def pixel_mean(values: jax.Array, counts: jax.Array, batch: Shard, update: Update) -> jax.Array:
    """The mean over the places that count in the valid images of all devices; 0 if there are none.

    Args:
        values: [B,h,w].
        counts: bool [B,h,w].
        batch: of the same images.
        update: whose sums are over all devices.
    """
    counts = counts & batch.valid[:, None, None]
    total, count = update.total((jnp.sum(jnp.where(counts, values, 0)), jnp.sum(counts)))
    return total / jnp.maximum(count, 1)

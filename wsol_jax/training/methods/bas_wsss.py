"""BAS for images of several labels (Zhai et al. 2023, arXiv 2309.12943, IJCV)."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from wsol_jax.data.records import Source
from wsol_jax.fields import Range, documented, setting
from wsol_jax.models import Network
from wsol_jax.models.heads import ClassMaps, Heads, MapGenerator, Outputs, class_maps
from wsol_jax.training.method import Shard, TrainedMethod, Update, accuracy, cross_entropy
from wsol_jax.training.methods.bas import (
    SuppressionHeads,
    background_share,
    checked_layer,
    no_layer,
)

_NONE = -1e9  # in place of minus infinity, whose gradient is not a number


@documented
@dataclass(frozen=True, kw_only=True)
class BASWSSS(TrainedMethod):
    """BAS for images of several labels, whose maps are the seeds of a segmentation.

    Each time an image is seen, one of its labels is drawn; L_frg, L_ac and L_bas are those of BAS
    for that class. The class maps are one 1x1 convolution of the last layer, the generator is one
    3x3 convolution, both without biases. As in the released code L_frg is the cross-entropy of the
    drawn class among all classes, from class maps without a gradient, so that it teaches the
    generator alone; the loss of classification sums over the labels of an image the cross-entropy
    of that label among all classes that the image does not have. `config.train.loss` does not
    change it. On val the first label stands for the drawn one.

    The map, 'bas_wsss', is the generator's of the class that is asked for.

    The release has layer4 of ResNet-50 at stride 1, `config.network.options.output_stride=16`.

    Weak where the surroundings tell the class as well, as BAS is.
    """

    layer: str = setting(
        '',
        'endpoint that the generator reads; empty for the last main one with fewer channels than '
        "the network's last layer",
        'checkpoints',
    )
    alpha: float = setting(
        0.2,
        'weight of the classification of what the foreground map keeps of the class maps',
        'checkpoints',
        Range(0, 1000),
    )
    beta: float = setting(1.2, 'weight of the area', 'checkpoints', Range(0, 1000))
    cap: float = setting(
        1.0,
        'what an image counts, without a gradient, whose background activates its class more than '
        'the whole image',
        'checkpoints',
        Range(0, 1000),
    )

    @property
    def several(self) -> bool:
        """Images may have several labels, whatever `config.train.loss` is."""
        return True

    def num_logits(self, train: Source) -> int:
        """One a class.

        Raises:
            ConfigError: there is nothing to tell apart, or a setting is for other losses alone.
        """
        self.refuse_weights('the losses of bas_wsss have none')
        return super().num_logits(train)

    def heads(self, network: Network, rngs: nnx.Rngs) -> Heads:
        """Generator and classifier.

        Raises:
            ConfigError: there is no such layer.
        """
        return _Heads(network, _layer(network, self.layer), rngs)

    def augment(self, inputs: jax.Array, batch: Shard, keys: jax.Array) -> tuple[jax.Array, Shard]:
        """Draws a label of each image, and puts it first; see `TrainedMethod.augment`."""
        labels = jax.vmap(drawn_first)(keys, batch.targets['labels'])
        return inputs, batch._replace(targets={**batch.targets, 'labels': labels})

    def loss(
        self, outputs: Outputs, batch: Shard, update: Update
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logged beside it: accuracy, the area in [0, 1], what share the background keeps.

        An image without a label, on val, counts 0. See `TrainedMethod.loss`.
        """
        del update
        labels, extras = batch.targets['labels'], outputs.extras
        drawn = labels[:, 0]
        ratio = background_share(outputs.logits, extras['logits_background'], drawn)
        losses = (
            labels_against_others(outputs.logits, labels)
            + self.alpha * cross_entropy(extras['logits_foreground'], drawn, 0.0)
            + self.beta * extras['area']
            + jnp.where(ratio > 1, self.cap, ratio)
        )
        return jnp.where(drawn >= 0, losses, 0), {
            'accuracy': accuracy(outputs.logits, labels),
            'area': extras['area'],
            'ratio': jnp.minimum(ratio, 1),
        }


def drawn_first(key: jax.Array, labels: jax.Array) -> jax.Array:
    """Labels [L] of an image, then -1, with one of them drawn to the first place.

    Args:
        key: random; each label is as likely as the others.
        labels: at least one; the one that stood first goes where the drawn one was.
    """
    place = jax.random.categorical(key, jnp.where(labels >= 0, 0.0, -jnp.inf))
    return labels.at[0].set(labels[place]).at[place].set(labels[0])


def labels_against_others(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The cross-entropy of each label among the classes that the image does not have, summed.

    Args:
        logits: [B,C].
        labels: [B,L], the classes of each image, then -1.

    Returns:
        [B], 0 for an image without labels, or with all of them.
    """
    has = jnp.any(jax.nn.one_hot(labels, logits.shape[-1], dtype=bool), axis=1)
    others = jax.nn.logsumexp(jnp.where(has, _NONE, logits), axis=-1, keepdims=True)
    # -log(e^z / (e^z + sum of e^others)) of every class.
    return jnp.sum(jnp.where(has, jax.nn.softplus(others - logits), 0), axis=-1)


def _layer(network: Network, asked: str) -> str:
    """The endpoint that the generator reads.

    Raises:
        ConfigError: there is none of that name or kind, or nothing comes after it.
    """
    if layer := checked_layer(network, asked):
        return layer
    channels = {name: network.shapes[name][-1] for name in network.layers()}
    usual = [name for name, count in channels.items() if count < channels[network.last_layer]]
    if not usual:
        raise no_layer(network, 'has fewer channels than')
    return usual[-1]


class _Heads(SuppressionHeads):
    map_name = 'bas_wsss'
    guides = False

    def __init__(self, network: Network, layer: str, rngs: nnx.Rngs):
        self.reads = (layer, network.last_layer)
        features, last = (network.shapes[name][-1] for name in self.reads)
        count = network.num_classes
        self.generator = MapGenerator(features, count, use_bias=False, rngs=rngs)
        self.classifier = ClassMaps(last, count, 1, use_bias=False, rngs=rngs)

    def map(self, endpoints: Mapping[str, jax.Array], classes: jax.Array) -> jax.Array:
        """See `Heads.map`."""
        return class_maps(self.generator(endpoints[self.reads[0]]), classes)

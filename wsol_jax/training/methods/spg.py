"""Self-produced guidance (Zhang et al., ECCV 2018, arXiv 1807.08902)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from wsol_jax.config import ConfigError
from wsol_jax.fields import Range, documented, setting
from wsol_jax.maps.fuse import min_max, resize
from wsol_jax.models import Network
from wsol_jax.models.heads import ConvHead, Heads, Outputs, Trunk, class_map, class_maps
from wsol_jax.models.layers import conv, global_average_pool, glorot_uniform
from wsol_jax.training.method import (
    Shard,
    TrainedMethod,
    Update,
    accuracy,
    known_endpoint,
    labels_of,
    pixel_mean,
)

_FEW = 30  # pixels; a map with fewer above the threshold is cut at a share of its maximum instead
_SHARE = 0.7


@documented
@dataclass(frozen=True, kw_only=True)
class SPG(TrainedMethod):
    """A classifier whose own class map teaches earlier layers where the foreground is.

    A is the classifier. Its map of the class supervises B2, a foreground map from a layer in the
    middle of the network; B2's supervises B1, from an earlier one; the mean of both supervises C,
    one from what A's maps are made of. What supervises is cut into foreground, background and a
    rest that does not count, at the size of the input (section 3.2). The logits are those of A and
    the map, 'spg', is its class map: B and C shape the features alone.

    Weak where A's map is wrong, for it teaches all others; and six thresholds have to fit.
    """

    attention: tuple[float, float] = setting(
        (0.7, 0.05),
        "thresholds on A's map, scaled to [0, 1]: foreground above the first, background below the "
        'second (.01 in wsolevaluation)',
        'checkpoints',
        Range(0, 1),
    )
    upper_side: tuple[float, float] = setting(
        (0.5, 0.05), 'likewise on the map of B2', 'checkpoints', Range(0, 1)
    )
    both_sides: tuple[float, float] = setting(
        (0.7, 0.1), 'likewise on the mean of the maps of B1 and B2', 'checkpoints', Range(0, 1)
    )
    layer: str = setting(
        '',
        "endpoint that A reads; '' is the last layer. What comes behind it learns nothing: "
        'freeze it',
        'checkpoints',
    )
    upper: str = setting('', "endpoint that B2 reads; '' is the main one before A's", 'checkpoints')
    lower: str = setting(
        '',
        "endpoint that B1 reads; '' is the last main one before B2's with another number of "
        'channels, the end of the stage before',
        'checkpoints',
    )
    width: int = setting(
        1024, 'channels of the 3x3 convolutions of A', 'checkpoints', Range(1, 65_536)
    )
    side_width: int = setting(512, 'and of those of B and C', 'checkpoints', Range(1, 65_536))

    def heads(self, network: Network, rngs: nnx.Rngs) -> Heads:
        """A, B and C.

        Raises:
            ConfigError: the network has no such layer, none to choose, or thresholds are in the
                wrong order.
        """
        for name in ('attention', 'upper_side', 'both_sides'):
            high, low = getattr(self, name)
            if high < low:
                raise ConfigError(
                    f'config.train.options.{name} must be (high, low), got ({high}, {low})'
                )
        layers = layers_of(network, self.layer, self.upper, self.lower)
        return _Heads(network, layers, self.width, self.side_width, rngs)

    def loss(
        self, outputs: Outputs, batch: Shard, update: Update
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The cross-entropy of A, and those of B2, B1 and C, which are means over the whole batch.

        See `TrainedMethod.loss`.
        """
        attention, lower, upper, top = (
            outputs.extras[name] for name in ('attention', 'lower', 'upper', 'top')
        )
        sides = nnx.sigmoid(lower), nnx.sigmoid(upper)
        guided = (
            (upper, min_max(attention), self.attention),
            (lower, sides[1], self.upper_side),
            (top, (sides[0] + sides[1]) / 2, self.both_sides),
        )
        losses = self.classification(outputs.logits, batch)
        for logits, scores, thresholds in guided:
            losses = losses + guidance(logits, ternary(scores, *thresholds), batch, update)
        return losses, {'accuracy': accuracy(outputs.logits, labels_of(batch))}


class Layers(NamedTuple):
    """The endpoints that the parts of SPG read: B1, B2 and A."""

    lower: str
    upper: str
    last: str


def layers_of(network: Network, layer: str, upper: str, lower: str) -> Layers:
    """The endpoints by name, or for '' by their place in the network; see `SPG`.

    Of InceptionV3 with A at Mixed_6e these are Mixed_5d and Mixed_6d, as published.

    Raises:
        ConfigError: the network has none of that name, or none there.
    """
    last = known_endpoint(network, 'layer', layer or network.last_layer)
    upper = upper or _last_before(network, last, 'upper')
    lower = lower or _last_before(network, known_endpoint(network, 'upper', upper), 'lower')
    return Layers(known_endpoint(network, 'lower', lower), upper, last)


def _last_before(network: Network, layer: str, option: str) -> str:
    """The last main endpoint before a layer; as 'lower' one with another number of channels."""
    names = list(network.shapes)
    features = network.shapes[layer][-1]
    found = [
        name
        for name in network.layers()
        if names.index(name) < names.index(layer)
        and (option == 'upper' or network.shapes[name][-1] != features)
    ]
    if not found:
        raise ConfigError(
            f'config.train.options.{option} must name an endpoint: {network.name} has none before '
            f'{layer!r} to choose'
        )
    return found[-1]


class Mask(NamedTuple):
    """What supervises a foreground map.

    Attributes:
        foreground: bool [B,h,w]; what is not, is background.
        counts: bool [B,h,w]; the others are neither.
    """

    foreground: jax.Array
    counts: jax.Array


def ternary(scores: jax.Array, high: float, low: float) -> Mask:
    """Cuts scores into foreground, background, and what is neither.

    Foreground is above `high`, background below `low`. Where fewer than 30 pixels of an image are
    above, its foreground is what is above .7 of its maximum (and not below `low`); of each image by
    itself, where the release goes on with that threshold. A map of zeros supervises nothing.

    Args:
        scores: [B,h,w], from 0.
        high: threshold of the foreground.
        low: of the background.
    """
    highest = jnp.max(scores, axis=(1, 2), keepdims=True)
    few = jnp.sum(scores > high, axis=(1, 2), keepdims=True) < _FEW
    above = scores > jnp.where(few, _SHARE * highest, high)
    below = scores < low
    return Mask(above & ~below, (above | below) & (highest > 0))


def guidance(logits: jax.Array, mask: Mask, batch: Shard, update: Update) -> jax.Array:
    """The mean binary cross-entropy of a foreground map over all pixels that count.

    Args:
        logits: [B,h,w].
        mask: what they should be; without a gradient.
        batch: of the same images; those that are not valid do not count.
        update: whose sums are over all devices.

    Returns:
        One number; 0 where nothing counts.
    """
    losses = optax.sigmoid_binary_cross_entropy(logits, mask.foreground.astype(logits.dtype))
    return pixel_mean(losses, mask.counts, batch, update)


class _Heads(Heads):
    map_name = 'spg'

    def __init__(
        self, network: Network, layers: Layers, width: int, side_width: int, rngs: nnx.Rngs
    ):
        self.reads, self.last = tuple(layers), layers.last
        lower, upper, last = (network.shapes[name][-1] for name in layers)
        self.a = ConvHead(last, width, network.num_classes, rngs=rngs)
        self.b1 = conv(lower, side_width, 3, kernel_init=glorot_uniform, rngs=rngs)
        self.b2 = conv(upper, side_width, 3, kernel_init=glorot_uniform, rngs=rngs)
        self.b = _Foreground(side_width, side_width, rngs=rngs)
        self.c = _Foreground(width, side_width, rngs=rngs)

    def __call__(
        self, endpoints: Mapping[str, jax.Array], classes: jax.Array | None, trunk: Trunk
    ) -> dict[str, jax.Array]:
        """'logits'; with classes A's map 'attention' and the logits of B1, B2 and C, too.

        These are 'lower', 'upper' and 'top'; all [B,H,W] at the size of the input.
        """
        lower, upper, last = (endpoints[name] for name in self.reads)
        features = self.a.features(last)
        maps = self.a.maps(features)
        extras = {'logits': global_average_pool(maps)}
        if classes is None:
            return extras
        found = {
            'attention': class_map(maps, classes),
            'lower': self.b(nnx.relu(self.b1(lower))),
            'upper': self.b(nnx.relu(self.b2(upper))),
            'top': self.c(features),
        }
        height, width = trunk.inputs.shape[1:3]
        return extras | {name: resize(found[name], (height, width)) for name in found}

    def map(self, endpoints: Mapping[str, jax.Array], classes: jax.Array) -> jax.Array:
        """A's maps; see `Heads.map`."""
        return class_maps(self.a(endpoints[self.last]), classes)


class _Foreground(nnx.Module):
    """A 3x3 convolution with ReLU and a 1x1 convolution: the logit of the foreground."""

    def __init__(self, features: int, width: int, *, rngs: nnx.Rngs):
        self.conv1 = conv(features, width, 3, kernel_init=glorot_uniform, rngs=rngs)
        self.conv2 = conv(width, 1, 1, kernel_init=glorot_uniform, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B,h,w,K] -> [B,h,w], float32."""
        return self.conv2(nnx.relu(self.conv1(x)))[..., 0].astype(jnp.float32)

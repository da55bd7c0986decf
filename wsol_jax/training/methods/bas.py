"""Background activation suppression (Wu et al., CVPR 2022, arXiv 2112.00580; extended in IJCV,
arXiv 2309.12943).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from wsol_jax.config import ConfigError
from wsol_jax.fields import Range, documented, setting
from wsol_jax.models import Network
from wsol_jax.models.heads import (
    ConvHead,
    Heads,
    MapGenerator,
    Outputs,
    Trunk,
    area,
    class_maps,
    frozen,
    of_each_class,
)
from wsol_jax.models.layers import global_average_pool
from wsol_jax.training.method import (
    Shard,
    TrainedMethod,
    Update,
    accuracy,
    known_endpoint,
    labels_of,
)

_EPSILON = 1e-8
_LAYER = 'config.train.options.layer'


@documented
@dataclass(frozen=True, kw_only=True)
class BAS(TrainedMethod):
    """A generator makes foreground maps, and learns from what the class keeps without them.

    The loss is L_cls + alpha L_frg + beta L_ac + L_bas of sections 3.2 and 3.3. As in the released
    code the generator sees features that go on training; what the background keeps is computed by a
    frozen copy of all that follows them, from features without a gradient, so that L_bas reaches
    the foreground map alone.

    The map, 'bas', is the generator's of the class that is asked for at top_k=1 (as on ILSVRC);
    above that the mean over so many classes, those with the highest logits, whichever class is
    asked for (on CUB the release takes 80 or all 200).

    Weak where the surroundings tell the class as well: leaving them out costs the class something.
    alpha and beta hang on the network.
    """

    layer: str = setting(
        '',
        'endpoint that the generator reads; empty for the last main one whose sides are twice '
        "those of the network's last layer",
        'checkpoints',
    )
    width: int = setting(
        1024, 'channels of the 3x3 convolutions of the classifier', 'checkpoints', Range(1, 65_536)
    )
    alpha: float = setting(
        0.5,
        'weight of the classification of what the foreground map keeps of the class maps',
        'checkpoints',
        Range(0, 1000),
    )
    beta: float = setting(1.5, 'weight of the area', 'checkpoints', Range(0, 1000))
    top_k: int = setting(
        1,
        'classes whose maps are averaged, at most all; 1 for the class asked for',
        'checkpoints',
        Range(1, 10**6),
    )
    cap: float = setting(
        1.0,
        'what an image counts, without a gradient, whose background activates its class more than '
        'the whole image: 0 in the code of CVPR, 1 in the extension',
        'checkpoints',
        Range(0, 1000),
    )

    def heads(self, network: Network, rngs: nnx.Rngs) -> Heads:
        """Generator and classifier.

        Raises:
            ConfigError: there is no such layer.
        """
        return _Heads(network, _layer(network, self.layer), self.width, self.top_k, rngs)

    def loss(
        self, outputs: Outputs, batch: Shard, update: Update
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logged beside it: accuracy, the area in [0, 1], what share the background keeps.

        See `TrainedMethod.loss`.
        """
        del update
        labels, extras = labels_of(batch), outputs.extras
        ratio = background_share(outputs.logits, extras['logits_background'], labels)
        losses = (
            self.classification(outputs.logits, batch)
            + self.alpha * self.classification(extras['logits_foreground'], batch)
            + self.beta * extras['area']
            + jnp.where(ratio > 1, self.cap, ratio)
        )
        return losses, {
            'accuracy': accuracy(outputs.logits, labels),
            'area': extras['area'],
            'ratio': jnp.minimum(ratio, 1),
        }


def background_share(logits: jax.Array, background: jax.Array, labels: jax.Array) -> jax.Array:
    """What share of the activation of its class an image keeps where the foreground is suppressed.

    Args:
        logits: [B,C], of whole images; without a gradient.
        background: [B,C], of what is left.
        labels: [B].

    Returns:
        [B], from 0; 0 / 0 is 0. A mistake of the classifier may put it above 1.
    """
    chosen = (jnp.take_along_axis(x, labels[:, None], axis=1)[:, 0] for x in (logits, background))
    whole, left = map(nnx.relu, chosen)
    return left / (jax.lax.stop_gradient(whole) + _EPSILON)


def pooled(maps: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Means over equal parts of the image: maps [B,H,W] -> [B,*size], size = (height, width).

    Where sides do not divide, a value counts by how much of it lies in the part.
    """
    rows, columns = (_parts(*sides) for sides in zip(maps.shape[1:], size, strict=True))
    return jnp.einsum('bhw,ih,jw->bij', maps, rows, columns)


def _parts(length: int, count: int) -> np.ndarray:
    """How much of each of `length` values is in each of `count` equal parts: rows sum to 1."""
    edges = np.linspace(0, length, count + 1)[:, None]
    values = np.arange(length)
    shares = np.minimum(edges[1:], values + 1) - np.maximum(edges[:-1], values)
    return np.asarray(np.maximum(shares, 0) * count / length, np.float32)


def checked_layer(network: Network, asked: str) -> str:
    """The endpoint that is asked for, which something comes after; '' stays.

    Raises:
        ConfigError: there is none of that name, or it is the last one.
    """
    if asked == network.last_layer:
        raise ConfigError(f'{_LAYER} must come before {asked}, the last layer of {network.name}')
    return known_endpoint(network, 'layer', asked) if asked else ''


def no_layer(network: Network, wanted: str) -> ConfigError:
    """The error where no endpoint is `wanted`, and so one has to be named."""
    known = ', '.join(name for name in network.layers() if name != network.last_layer)
    return ConfigError(
        f'no main endpoint of {network.name} {wanted} {network.last_layer}: name one in {_LAYER}; '
        f'known: {known}'
    )


def _layer(network: Network, asked: str) -> str:
    """The endpoint that the generator reads.

    Raises:
        ConfigError: there is none of that name or of the usual size, or nothing comes after it.
    """
    if layer := checked_layer(network, asked):
        return layer
    shapes = network.shapes
    twice = tuple(2 * side for side in shapes[network.last_layer][:2])
    usual = [name for name in network.layers() if shapes[name][:2] == twice]
    if not usual:
        raise no_layer(network, 'is twice as fine as')
    return usual[-1]


class SuppressionHeads(Heads):
    """A generator of maps in (0, 1) and a classifier by class maps; what each leaves of the other.

    Attributes:
        generator: of foreground maps [B,H,W,C] of the first of `reads`.
        classifier: of class maps [B,h,w,C] of the second one, the network's last layer.
        guides: whether the gradient of what the foreground keeps of the class maps reaches these.
    """

    generator: MapGenerator
    classifier: nnx.Module
    guides: bool = True

    def __call__(
        self, endpoints: Mapping[str, jax.Array], classes: jax.Array | None, trunk: Trunk
    ) -> dict[str, jax.Array]:
        """'logits'; with classes those of fore- and background, [B,C], and the 'area' [B], too."""
        features, last = (endpoints[name] for name in self.reads)
        maps = self.classifier(last)
        extras = {'logits': global_average_pool(maps)}
        if classes is None:
            return extras
        foreground = self.generator.of_class(features, jnp.maximum(classes, 0))
        seen = pooled(foreground, (maps.shape[1], maps.shape[2]))[..., None]
        kept = seen * (maps if self.guides else jax.lax.stop_gradient(maps))
        return extras | {
            'logits_foreground': global_average_pool(kept),
            'logits_background': self._background(features, foreground, trunk),
            'area': area(foreground),
        }

    def _background(self, features: jax.Array, foreground: jax.Array, trunk: Trunk) -> jax.Array:
        """The logits where the foreground is suppressed; a gradient for its map alone."""
        kept = (1 - foreground)[..., None].astype(features.dtype)
        left = jax.lax.stop_gradient(features) * kept
        _, endpoints = trunk.again({self.reads[0]: lambda _: left})
        return global_average_pool(frozen(self.classifier)(endpoints[self.reads[1]]))


class _Heads(SuppressionHeads):
    map_name = 'bas'

    def __init__(self, network: Network, layer: str, width: int, top_k: int, rngs: nnx.Rngs):
        self.reads = (layer, network.last_layer)
        self.top_k = min(top_k, network.num_classes)
        features, last = (network.shapes[name][-1] for name in self.reads)
        self.generator = MapGenerator(features, network.num_classes, rngs=rngs)
        self.classifier = ConvHead(last, width, network.num_classes, rngs=rngs)

    def map(self, endpoints: Mapping[str, jax.Array], classes: jax.Array) -> jax.Array:
        """See `BAS` for which classes are averaged, and `Heads.map`."""
        maps = self.generator(endpoints[self.reads[0]])
        if self.top_k == 1:
            return class_maps(maps, classes)
        logits = global_average_pool(self.classifier(endpoints[self.reads[1]]))
        highest = jax.lax.top_k(logits, self.top_k)[1]
        return of_each_class(class_maps(maps, highest).mean(axis=1), classes)

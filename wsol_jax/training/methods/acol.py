"""Adversarial complementary learning (Zhang et al., CVPR 2018, arXiv 1804.06962)."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from wsol_jax.fields import Range, documented, setting
from wsol_jax.maps.fuse import min_max
from wsol_jax.models import Network
from wsol_jax.models.heads import ConvHead, Heads, Outputs, Trunk, area, class_map, erased
from wsol_jax.models.layers import global_average_pool
from wsol_jax.training.method import (
    Shard,
    TrainedMethod,
    Update,
    accuracy,
    known_endpoint,
    labels_of,
)


@documented
@dataclass(frozen=True, kw_only=True)
class ACoL(TrainedMethod):
    """Two classifiers: B sees an endpoint without what A finds a class by.

    The logits are those of A. The map, 'acol', is the larger of both maps at every position.

    Weak where A has found all of the object: B learns the class from the ground then, and the map
    shows that, too.
    """

    delta: float = setting(
        0.6,
        "erased is where A's map of the class, scaled to [0, 1], is at least this",
        'checkpoints',
        Range(0, 1, '(]'),
    )
    width: int = setting(
        1024, 'channels of the 3x3 convolutions of A and of B', 'checkpoints', Range(1, 65_536)
    )
    layer: str = setting(
        '',
        "endpoint that both read; '' is the last layer. What comes behind it learns nothing: "
        'freeze it',
        'checkpoints',
    )

    def heads(self, network: Network, rngs: nnx.Rngs) -> Heads:
        """Both classifiers.

        Raises:
            ConfigError: the network has no such layer.
        """
        layer = known_endpoint(network, 'layer', self.layer or network.last_layer)
        return _Heads(network, layer, self.delta, self.width, rngs)

    def loss(
        self, outputs: Outputs, batch: Shard, update: Update
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The sum of both cross-entropies; logged beside it: A's accuracy, B's, the share erased.

        See `TrainedMethod.loss`.
        """
        del update
        labels, of_b = labels_of(batch), outputs.extras['logits_b']
        return self.classification(outputs.logits, batch) + self.classification(of_b, batch), {
            'accuracy': accuracy(outputs.logits, labels),
            'accuracy_b': accuracy(of_b, labels),
            'erased': outputs.extras['erased'],
        }


class _Heads(Heads):
    map_name = 'acol'

    def __init__(self, network: Network, layer: str, delta: float, width: int, rngs: nnx.Rngs):
        self.reads, self.last = (layer,), layer
        self.delta = delta
        features = network.shapes[layer][-1]
        self.a = ConvHead(features, width, network.num_classes, rngs=rngs)
        self.b = ConvHead(features, width, network.num_classes, rngs=rngs)

    def __call__(
        self, endpoints: Mapping[str, jax.Array], classes: jax.Array | None, trunk: Trunk
    ) -> dict[str, jax.Array]:
        """'logits'; with classes 'logits_b' [B,C] and 'erased' [B], the share of positions, too."""
        del trunk
        features = endpoints[self.reads[0]]
        maps = self.a(features)
        extras = {'logits': global_average_pool(maps)}
        if classes is None:
            return extras
        found = self._found(maps, classes)
        extras['logits_b'] = global_average_pool(self.b(erased(features, found)))
        return extras | {'erased': area(found)}

    def map(self, endpoints: Mapping[str, jax.Array], classes: jax.Array) -> jax.Array:
        """The larger of A's and B's map of each class, each scaled to [0, 1]; see `Heads.map`."""
        features = endpoints[self.reads[0]]
        maps = self.a(features)

        def fused(classes: jax.Array) -> jax.Array:
            others = self.b(erased(features, self._found(maps, classes)))
            both = min_max(class_map(maps, classes)), min_max(class_map(others, classes))
            return jnp.maximum(*both)

        return jax.vmap(fused, 1, 1)(classes)

    def _found(self, maps: jax.Array, classes: jax.Array) -> jax.Array:
        """Where A finds a class: bool [B,H,W]; nowhere in a map that is the same everywhere."""
        return min_max(class_map(maps, classes)) >= self.delta

"""Token semantic coupled attention map (TS-CAM; Gao et al., ICCV 2021, arXiv 2103.14862)."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from wsol_jax.config import ConfigError
from wsol_jax.models import Network
from wsol_jax.models.heads import ClassMaps, Heads, Trunk, class_maps
from wsol_jax.models.layers import global_average_pool
from wsol_jax.training.method import TrainedMethod

TOKENS = 'norm'  # the endpoint of a vision transformer that its patches are classified at


@dataclass(frozen=True, kw_only=True)
class TSCAM(TrainedMethod):
    """A vision transformer that classifies its patches; the loss is that of the plain classifier.

    The map, 'ts_cam', is the attention that the class token pays to each patch, the mean of all
    blocks, times the map of the class.

    Weak where the attention looks elsewhere: the map is small there, whatever the class.
    """

    def heads(self, network: Network, rngs: nnx.Rngs) -> Heads:
        """The classifier of the patches.

        Raises:
            ConfigError: the network shows no attention.
        """
        return _Heads(network, rngs)


class _Heads(Heads):
    map_name = 'ts_cam'

    def __init__(self, network: Network, rngs: nnx.Rngs):
        attention = tuple(n for n in network.shapes if n.endswith('/attention'))
        if not attention:
            raise ConfigError(
                f'config.train.method: ts_cam reads the attention of each block, and '
                f'{network.name} shows none: it is for vision transformers, such as deit_tiny'
            )
        self.reads = (TOKENS, *attention)
        features = network.shapes[TOKENS][-1]
        self.classifier = ClassMaps(features, network.num_classes, rngs=rngs)

    def __call__(
        self, endpoints: Mapping[str, jax.Array], classes: jax.Array | None, trunk: Trunk
    ) -> dict[str, jax.Array]:
        """'logits', the means of the class maps."""
        return {'logits': global_average_pool(self.classifier(endpoints[TOKENS]))}

    def map(self, endpoints: Mapping[str, jax.Array], classes: jax.Array) -> jax.Array:
        """Attention times the map of each class (equation 5 of the paper); see `Heads.map`."""
        maps = self.classifier(endpoints[TOKENS])
        # The class token is the first of the queries.
        blocks = jnp.stack([endpoints[name][..., 0] for name in self.reads[1:]])
        return blocks.mean(axis=0)[:, None] * class_maps(maps, classes)

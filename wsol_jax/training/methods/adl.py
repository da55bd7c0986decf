"""Attention-based dropout layer (Choe and Shim, CVPR 2019, arXiv 1908.10028)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from wsol_jax.fields import Range, documented, setting
from wsol_jax.models import Network
from wsol_jax.models.heads import Heads
from wsol_jax.models.layers import Perturbations, Random
from wsol_jax.training.method import TrainedMethod, known_endpoint


@documented
@dataclass(frozen=True, kw_only=True)
class ADL(TrainedMethod):
    """The plain classifier, from which in training the most active part of a layer is dropped.

    By chance, for every image alone: either what is dropped is erased, or every position is
    weighted by its activity. A trained network computes as one that was trained without; its maps
    are those of CAM and of the others. Defaults are those of both releases (junsukchoe/ADL and
    wsolevaluation), which draw once for the whole batch.

    Weak where the most active part is the whole object, or none of it: activity knows no class.
    """

    drop: float = setting(0.75, 'probability that a part is erased', 'checkpoints', Range(0, 1))
    threshold: float = setting(
        0.9,
        'erased is where the mean over channels is at least this share of its maximum',
        'checkpoints',
        Range(0, 1),
    )
    layers: tuple[str, ...] = setting(
        (), 'endpoints where it is done; () is the last layer alone', 'checkpoints'
    )

    def heads(self, network: Network, rngs: nnx.Rngs) -> Heads:
        """What changes the layers; no weights.

        Raises:
            ConfigError: the network has no such layer.
        """
        layers = self.layers or (network.last_layer,)
        for name in layers:
            known_endpoint(network, 'layers', name)
        return _Heads(layers, self.drop, self.threshold, rngs)


class _Heads(Heads):
    def __init__(self, layers: tuple[str, ...], drop: float, threshold: float, rngs: nnx.Rngs):
        self.layers = layers
        self.drops = nnx.List([_Dropout(drop, threshold, rngs=rngs) for _ in layers])

    def changes(self) -> Perturbations:
        """See `Heads.changes`."""
        return dict(zip(self.layers, self.drops, strict=True))


class _Dropout(Random):
    def __init__(self, drop: float, threshold: float, *, rngs: nnx.Rngs):
        super().__init__(rngs=rngs)
        self.drop, self.threshold = drop, threshold

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B,H,W,K] -> [B,H,W,K].

        As in both releases the importance map has a gradient, and a comparison has none.
        """
        if self.deterministic:
            return x
        attention = jnp.mean(x, axis=-1, keepdims=True, dtype=jnp.float32)
        highest = jnp.max(attention, axis=(1, 2), keepdims=True)
        kept = attention < self.threshold * highest
        erases = jax.vmap(lambda key: jax.random.bernoulli(key, self.drop))(self.keys(len(x)))
        chosen = jnp.where(erases[:, None, None, None], kept, jax.nn.sigmoid(attention))
        return x * chosen.astype(x.dtype)

"""Spatial-aware token (Wu et al., ICCV 2023)."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from wsol_jax.fields import Range, documented, setting
from wsol_jax.models import Network
from wsol_jax.models.heads import ClassMaps, Heads, Outputs, Trunk, area, of_each_class
from wsol_jax.models.layers import depthwise_conv, global_average_pool
from wsol_jax.training.method import Shard, TrainedMethod, Update, accuracy, batch_mean
from wsol_jax.training.methods.ts_cam import TOKENS

# The 3x3 Gaussian of the released code: the same in both directions, [.0513, .8975, .0513] in each.
CORNER, EDGE, CENTRE = 0.00263, 0.04601, 0.80544
GAUSSIAN = np.array(
    [[CORNER, EDGE, CORNER], [EDGE, CENTRE, EDGE], [CORNER, EDGE, CORNER]], np.float32
)


@documented
@dataclass(frozen=True, kw_only=True)
class SAT(TrainedMethod):
    """A vision transformer, one token of which learns what the last blocks may attend to.

    The classifier, on the patches, sees the object through masks that cover a given share of all
    images together: what does not help to classify goes. The map, 'sat', is the mean of the masks;
    it is the same for each class.

    Weak at telling several objects apart, and where the share that masks are to cover is not that
    of the objects.
    """

    network_options: ClassVar[Mapping[str, Any]] = MappingProxyType({'spatial_token': True})

    area: float = setting(
        0.25,
        'the share of the images that masks are to cover, all images of a batch together (lambda '
        'of the paper; 0.25 for CUB, 0.35 for ILSVRC)',
        'checkpoints',
        Range(0, 1, '()'),
    )

    def heads(self, network: Network, rngs: nnx.Rngs) -> Heads:
        """The classifier of the patches, and the map."""
        return _Heads(network, rngs)

    def loss(
        self, outputs: Outputs, batch: Shard, update: Update
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Classification, |mean area of the batch - lambda| and the normalization loss, summed.

        Logged beside it: the accuracy, the area of each mask, its normalization loss. See
        `TrainedMethod.loss`.
        """
        mask = outputs.extras['mask']
        values = {
            'accuracy': accuracy(outputs.logits, batch.targets['labels']),
            'area': area(mask),
            'normalization': normalization(mask),
        }
        each = self.classification(outputs.logits, batch) + values['normalization']
        of_batch = jnp.abs(batch_mean(values['area'], batch, update) - self.area)
        return batch_mean(each, batch, update) + of_batch, values


class _Heads(Heads):
    map_name = 'sat'

    def __init__(self, network: Network, rngs: nnx.Rngs):
        self.reads = (TOKENS, *(n for n in network.shapes if n.endswith('/mask')))
        features = network.shapes[TOKENS][-1]
        self.classifier = ClassMaps(features, network.num_classes, rngs=rngs)

    def __call__(
        self, endpoints: Mapping[str, jax.Array], classes: jax.Array | None, trunk: Trunk
    ) -> dict[str, jax.Array]:
        """'logits', the means of the class maps, and 'mask' [B,h,w]."""
        logits = global_average_pool(self.classifier(endpoints[TOKENS]))
        return {'logits': logits, 'mask': self._mask(endpoints)}

    def map(self, endpoints: Mapping[str, jax.Array], classes: jax.Array) -> jax.Array:
        """The mask, for each class; see `Heads.map`."""
        return of_each_class(self._mask(endpoints), classes)

    def _mask(self, endpoints: Mapping[str, jax.Array]) -> jax.Array:
        """The mean of the masks of the last blocks: [B,h,w]."""
        return jnp.stack([endpoints[name][..., 0] for name in self.reads[1:]]).mean(axis=0)


def normalization(mask: jax.Array) -> jax.Array:
    """The mean of m (1 - m) over a smoothed mask m: 0 where it says yes or no.

    Args:
        mask: [B,h,w], in [0, 1]; zero outside of the image.

    Returns:
        [B], at most 1/4.
    """
    smooth = depthwise_conv(mask[..., None], jnp.asarray(GAUSSIAN)[..., None, None], 1)[..., 0]
    return area(smooth * (1 - smooth))

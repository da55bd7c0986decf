"""DeepLab's segmentation heads: a map of each class and of the background, on any network.

Version 2: Chen et al., TPAMI 2018, arXiv 1606.00915; V3+: Chen et al., ECCV 2018, arXiv 1802.02611.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from wsol_jax.models.heads import Heads, Trunk, class_maps, side_by_side
from wsol_jax.models.layers import ConvNorm, Dropout, conv
from wsol_jax.models.network import Network

# How far apart the weights of the 3x3 convolutions look, as published at an output stride of 16
# (V3+), and of 8 (version 2).
RATES: Mapping[str, tuple[int, ...]] = {'v2': (6, 12, 18, 24), 'v3+': (6, 12, 18)}
_LOW = 48  # channels of what the decoder of V3+ sees of the low-level features
_DROPPED = 0.1
_SMALL = nnx.initializers.normal(0.01)


class SummedASPP(nnx.Module):
    """Atrous spatial pyramid pooling of version 2: the sum of dilated 3x3 convolutions."""

    def __init__(self, features: int, num_maps: int, rates: Sequence[int], *, rngs: nnx.Rngs):
        self.branches = nnx.List(
            [conv(features, num_maps, 3, dilation=r, kernel_init=_SMALL, rngs=rngs) for r in rates]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B,h,w,K] -> [B,h,w,num_maps], float32."""
        return sum((branch(x).astype(jnp.float32) for branch in self.branches), jnp.float32(0))


class ASPP(nnx.Module):
    """That of version 3: a 1x1 and dilated 3x3 convolutions and the mean of the image, joined."""

    def __init__(self, features: int, width: int, rates: Sequence[int], *, rngs: nnx.Rngs):
        dilated = [ConvNorm(features, width, 3, dilation=rate, rngs=rngs) for rate in rates]
        self.branches = nnx.List([ConvNorm(features, width, 1, rngs=rngs), *dilated])
        self.pooling = ConvNorm(features, width, 1, rngs=rngs)
        self.projection = ConvNorm((len(rates) + 2) * width, width, 1, rngs=rngs)
        self.dropout = Dropout(_DROPPED, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B,h,w,K] -> [B,h,w,width]."""
        found = [branch(x) for branch in self.branches]
        mean = self.pooling(x.mean(axis=(1, 2), keepdims=True))
        found.append(jnp.broadcast_to(mean, found[0].shape))
        return self.dropout(self.projection(jnp.concatenate(found, axis=-1)))


class Decoder(nnx.Module):
    """Joins the features of V3+ with finer ones of an early layer."""

    def __init__(self, low: int, width: int, num_maps: int, *, rngs: nnx.Rngs):
        self.reduction = ConvNorm(low, _LOW, 1, rngs=rngs)
        self.conv1 = ConvNorm(_LOW + width, width, 3, rngs=rngs)
        self.conv2 = ConvNorm(width, width, 3, rngs=rngs)
        self.classifier = conv(width, num_maps, 1, kernel_init=_SMALL, rngs=rngs)

    def __call__(self, low: jax.Array, x: jax.Array) -> jax.Array:
        """[B,H,W,low], [B,h,w,width] -> [B,H,W,num_maps], float32."""
        x = side_by_side(self.reduction(low), x)
        return self.classifier(self.conv2(self.conv1(x))).astype(jnp.float32)


class SegmentationHeads(Heads):
    """Logits of background and classes at every place, in place of a network's classifier.

    The logit of a class for the whole image is the logarithm of its mean probability over all
    places: the softmax of these is each class's share of the foreground.

    Args:
        network: that they are attached to.
        kind: 'v2' or 'v3+'.
        low: the endpoint that the decoder of 'v3+' reads beside the last layer.
        width: channels of 'v3+'.
        rates: see `RATES`.
        rngs: for the initial weights.
    """

    map_name = 'segmenter'

    def __init__(
        self,
        network: Network,
        kind: str,
        low: str,
        width: int,
        rates: Sequence[int],
        rngs: nnx.Rngs,
    ):
        last, count = network.last_layer, 1 + network.num_classes
        features, summed = network.shapes[last][-1], kind == 'v2'
        self.reads = (last,) if summed else (last, low)
        self.aspp = (
            SummedASPP(features, count, rates, rngs=rngs)
            if summed
            else ASPP(features, width, rates, rngs=rngs)
        )
        self.decoder = None if summed else Decoder(network.shapes[low][-1], width, count, rngs=rngs)

    def segmentation(self, endpoints: Mapping[str, jax.Array]) -> jax.Array:
        """Logits of background and classes: [B,h,w,1+C], float32, as fine as `reads`' last."""
        x = self.aspp(endpoints[self.reads[0]])
        return self.decoder(endpoints[self.reads[1]], x) if self.decoder else x

    def __call__(
        self, endpoints: Mapping[str, jax.Array], classes: jax.Array | None, trunk: Trunk
    ) -> dict[str, jax.Array]:
        """'segmentation' [B,h,w,1+C], and 'logits'."""
        maps = self.segmentation(endpoints)
        return {'logits': log_shares(maps), 'segmentation': maps}

    def map(self, endpoints: Mapping[str, jax.Array], classes: jax.Array) -> jax.Array:
        """The probability of each class at each place; see `Heads.map`."""
        return class_maps(jax.nn.softmax(self.segmentation(endpoints)), 1 + classes)


def log_shares(maps: jax.Array) -> jax.Array:
    """The logarithm of the mean probability of each class: logits [B,h,w,1+C] -> [B,C]."""
    places = maps.shape[1] * maps.shape[2]
    found = jax.nn.logsumexp(jax.nn.log_softmax(maps), axis=(1, 2)) - jnp.log(places)
    return found[:, 1:]

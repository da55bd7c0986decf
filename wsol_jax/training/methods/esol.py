"""Expansion and shrinkage of localization (Li et al., NeurIPS 2022, arXiv 2209.07761).

A reconstruction: no code was published, and of the paper abstract and method figure were read.
Certain are the two deformable convolutions, of which the offsets alone learn, behind a classifier
that is frozen; the classification loss that the first one maximizes; the clip behind it; and the
classification and area losses of the second one. Chosen here are the kernels, identities that take
one sample at each place; that they stand behind the last layer; the form of the clip, the bound of
the loss, the form of the area, and all weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from wsol_jax.config import ConfigError
from wsol_jax.fields import Range, documented, setting
from wsol_jax.models import Network
from wsol_jax.models.deformable import DeformableConv
from wsol_jax.models.heads import Heads, Outputs, Trunk, area, class_maps
from wsol_jax.models.layers import global_average_pool
from wsol_jax.models.network import freeze
from wsol_jax.training.method import Shard, Start, TrainedMethod, Update, accuracy
from wsol_jax.training.stages import check_start

_EPSILON = 1e-8
_LINEAR = 1e-3  # of the largest logit: what a linear classifier may be off by


@documented
@dataclass(frozen=True, kw_only=True)
class ESOL(TrainedMethod):
    """A classifier's map is made to cover more than the object, then to cover less.

    Each stage is a training in a workdir of its own that starts (`train.init_from`) from the one
    before: a plain training of the same network, of one label an image or of several; stage 1, the
    expansion; stage 2, the shrinkage. Behind the last layer F of the network, a deformable
    convolution learns where to sample; kernel, network and classifier stay as they are. In stage 1
    it raises the loss of classification, by a little, and the features are clipped. In stage 2
    a second one samples those, and minimizes the loss of classification plus the area.

    The map, 'esol', is relu(w_c F') with the features F' of the stage. Logits are those of the
    plain network: its CAM can be asked for beside.

    A reconstruction: clip, bound, kernels and weights are not the authors', nor are its scores.

    Weak where stage 1 takes samples from off the object: the map finds less of it then, not more.
    On generated scenes it did so from the first epoch on (`experiments/esol_trajectory.py`).
    """

    best: ClassVar[tuple[str, Literal['max', 'min']]] = ('loss', 'min')
    stage: int = setting(1, 'expansion or shrinkage', 'checkpoints', Range(1, 2))
    clip: float = setting(
        0.3,
        'expanded features are cut at this share of their largest in each channel of an image, '
        'and scaled to the mean they had',
        'checkpoints',
        Range(0, 1, '(]'),
    )
    rise: float = setting(
        0.05,
        "how far stage 1 raises an image's loss above that of the plain network: beyond, it has no "
        'gradient',
        'checkpoints',
        Range(0, 1000, '(]'),
    )
    area_weight: float = setting(0.3, 'of the area in stage 2', 'checkpoints', Range(0, 1000))

    @property
    def freeze(self) -> tuple[str, ...]:
        """All but the offsets of the stage."""
        sampler = ('expansion', 'shrinkage')[self.stage - 1]
        return (rf'(?!heads\.{sampler}\.offsets\.)',)

    def heads(self, network: Network, rngs: nnx.Rngs) -> Heads:
        """Both deformable convolutions, and a copy of the classifier for the map."""
        return _Heads(network, self.stage, self.clip, rngs)

    def begin(self, module: Any, start: Start | None) -> None:
        """Checks what training starts from; stage 1 copies the classifier.

        Raises:
            ConfigError: see `check_start`; or the classifier is not linear in the means of the
                last layer.
        """
        check_start('esol', self, ('clip',), module, start)
        if self.stage == 1:
            kernel, bias = linear_classifier(module, *module.heads.sizes)
            module.heads.classifier.kernel.set_value(kernel)
            module.heads.classifier.bias.set_value(bias)

    def loss(
        self, outputs: Outputs, batch: Shard, update: Update
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Stage 1: minus the loss of classification, bounded; stage 2: that loss plus the area.

        Logged beside it: the accuracy of the network, which stays, that by the features of the
        stage, and the area. See `TrainedMethod.loss`.
        """
        del update
        labels, extras = batch.targets['labels'], outputs.extras
        losses = self.classification(extras['sampled'], batch)
        covered = mean_area(extras['maps'], labels)
        values = {
            'accuracy': accuracy(outputs.logits, labels),
            'accuracy_sampled': accuracy(extras['sampled'], labels),
            'area': covered,
        }
        if self.stage == 1:
            most = self.classification(outputs.logits, batch) + self.rise
            return -jnp.minimum(losses, jax.lax.stop_gradient(most)), values
        return losses + self.area_weight * covered, values


def clipped(features: jax.Array, share: float) -> jax.Array:
    """Features without peaks, for which the rest is raised: [B,H,W,K], from 0, to the same shape.

    Args:
        features: what is above `share` of the largest in its image and channel becomes that; then
            each channel of an image is scaled to the mean it had. What a classifier on the means
            finds stays as it is.
        share: above 0, up to 1.
    """
    cut = jnp.minimum(features, share * jnp.max(features, axis=(1, 2), keepdims=True))
    means = (jnp.mean(x, axis=(1, 2), keepdims=True) for x in (features, cut))
    return cut * (next(means) / jnp.maximum(next(means), _EPSILON))


def mean_area(maps: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean of the maps of an image's classes, each divided by its maximum: [B].

    Args:
        maps: [B,h,w,C], from 0; one that is zero everywhere has the area 0.
        labels: [B,L], the classes of each image, then -1.
    """
    given = labels >= 0
    own = class_maps(maps, jnp.maximum(labels, 0))
    scaled = own / jnp.maximum(jnp.max(own, axis=(2, 3), keepdims=True), _EPSILON)
    areas = jax.vmap(area, 1, 1)(scaled)
    return jnp.sum(areas * given, axis=1) / jnp.maximum(jnp.sum(given, axis=1), 1)


def linear_classifier(
    module: nnx.Module, layer: str, inputs: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """The classifier of a network on the means of a layer, read off its logits: [K,C], [C].

    Args:
        module: `module(inputs, perturb) -> (logits [B,C], endpoints)`.
        layer: the endpoint that it classifies by.
        inputs: (H,W,3) of the network.
        shape: (h,w,K) of the layer.

    Raises:
        ConfigError: the logits are no linear function of those means.
    """
    thaw, state = freeze(module)

    @jax.jit
    def logits(state: Any, features: jax.Array) -> jax.Array:
        images = jnp.zeros((1, *inputs))
        return thaw(state)(images, {layer: lambda _: features[None]})[0][0]

    def of_means(means: jax.Array) -> jax.Array:
        return logits(state, jnp.broadcast_to(means, shape))

    nothing = jnp.zeros(shape[-1])
    bias, kernel = of_means(nothing), jax.jacrev(of_means)(nothing).T
    tried = jax.random.uniform(jax.random.key(0), shape)
    found, expected = logits(state, tried), tried.mean((0, 1)) @ kernel + bias
    if not kernel.any() or np.abs(found - expected).max() > _LINEAR * np.abs(expected).max():
        raise ConfigError(
            f'esol needs a classifier that is linear in the means of {layer}, the last layer, as '
            'those of resnet50 or inception_v3'
        )
    return kernel, bias


def _sampler(features: int, rngs: nnx.Rngs) -> DeformableConv:
    """As it starts, what it is given: a kernel of one place, in each channel by itself."""
    one = nnx.initializers.ones_init()
    return DeformableConv(features, features, 1, depthwise=True, kernel_init=one, rngs=rngs)


class _Heads(Heads):
    map_name = 'esol'
    classifies = False

    def __init__(self, network: Network, stage: int, clip: float, rngs: nnx.Rngs):
        layer = network.last_layer
        self.reads, self.stage, self.clip = (layer,), stage, clip
        self.sizes = (layer, network.input_shape, network.shapes[layer])
        features = network.shapes[layer][-1]
        self.expansion = _sampler(features, rngs)
        self.shrinkage = _sampler(features, rngs)
        self.classifier = nnx.Linear(features, network.num_classes, rngs=rngs)

    def __call__(
        self, endpoints: Mapping[str, jax.Array], classes: jax.Array | None, trunk: Trunk
    ) -> dict[str, jax.Array]:
        """'sampled' [B,C], the logits of the features of the stage, and their 'maps' [B,h,w,C]."""
        del classes, trunk
        features = self._features(endpoints)
        return {
            'sampled': self.classifier(global_average_pool(features)),
            'maps': nnx.relu(features @ self.classifier.kernel[...]),
        }

    def map(self, endpoints: Mapping[str, jax.Array], classes: jax.Array) -> jax.Array:
        """relu(w_c F') of each class; see `Heads.map`."""
        kernels = jnp.take(self.classifier.kernel[...], classes, axis=1)
        return nnx.relu(jnp.einsum('bhwk,kbn->bnhw', self._features(endpoints), kernels))

    def _features(self, endpoints: Mapping[str, jax.Array]) -> jax.Array:
        """F' [B,h,w,K] of the stage, float32."""
        last = endpoints[self.reads[0]]
        expanded = clipped(self.expansion(last).astype(jnp.float32), self.clip)
        return expanded if self.stage == 1 else self.shrinkage(expanded)

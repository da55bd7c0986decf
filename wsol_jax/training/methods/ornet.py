"""ORNet: online refinement of an activation map (Xie et al., ICCV 2021).

Of the authors' code (github.com/Sierkinhane/ORNet) the trainer of stage 1 is not published; what
departs from the rest on purpose is told where it does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from wsol_jax.config import ConfigError
from wsol_jax.fields import Range, documented, setting
from wsol_jax.models import Network
from wsol_jax.models.heads import Heads, Outputs, Trunk, area, frozen, of_each_class, side_by_side
from wsol_jax.models.layers import (
    ConvNorm,
    Perturbations,
    Random,
    global_average_pool,
    he_normal,
    max_pool,
)
from wsol_jax.names import unknown_name
from wsol_jax.training.method import Shard, Start, TrainedMethod, Update, accuracy, labels_of
from wsol_jax.training.stages import check_start

SPARED, RANKED = 3, 25  # classes: of the first 25, the map may answer to the first 3
LEAST_WINDOW = 4  # half the height or width of what attentive erasing may erase, in places
_SPREAD = 0.1  # of the Gaussian that weights the entropy
_EPSILON = 1.1920929e-07  # of float32
_FACTORS = Range(0, 1_000_000)


@documented
@dataclass(frozen=True, kw_only=True)
class ORNet(TrainedMethod):
    """A generator makes a map of low-level features; an evaluator that is frozen refines it.

    The map, 'ornet', is the same for all classes. Each stage is a training in a workdir of its own
    that starts (`train.init_from`) from the one before: a plain training of the same network, whose
    copy is the evaluator from then on; stage 1; stage 2. The logits are those of the network on
    features times the map. In the paper the evaluator is a VGG16 beside a ResNet-50, and classes
    are those it finds in the whole image. Frozen parts stay as they are, where the authors' code
    lets dropout and moving statistics on; and the best epoch is the one of the lowest loss on val,
    where they choose on the test images.

    Weak in cost, three trainings one after another, and at telling several objects apart: the map
    knows no class.
    """

    best: ClassVar[tuple[str, Literal['max', 'min']]] = ('loss', 'min')
    stage: int = setting(
        1,
        'the generator beside the whole network, or its refinement alone',
        'checkpoints',
        Range(1, 2),
    )
    layer: str = setting(
        '', 'what the generator sees; of all layers the first if empty', 'checkpoints'
    )
    base: int = setting(
        64,
        'width of the generator, twice to eight times which its layers are',
        'checkpoints',
        Range(1, 65_536),
    )
    area_weight: float = setting(0.02, 'of the area in stage 2', 'checkpoints', _FACTORS)
    entropy_weight: float = setting(1.5, 'of the entropy in stage 2', 'checkpoints', _FACTORS)

    @property
    def freeze(self) -> tuple[str, ...]:
        """The evaluator; in stage 2 all but the upper half of the generator."""
        if self.stage == 1:
            return (r'heads\.evaluator\.',)
        return (r'(?!heads\.(erasing|generator\.(up_2|up_3|attention))\.)',)

    def heads(self, network: Network, rngs: nnx.Rngs) -> Heads:
        """Generator, side branch and evaluator."""
        layer = self.layer or network.layers()[0]
        if layer not in network.shapes:
            where = f'layer of {network.name} in config.train.options.layer'
            raise ConfigError(unknown_name(where, layer, network.shapes))
        return _Heads(network, layer, self.base, self.stage, rngs)

    def begin(self, module: Any, start: Start | None) -> None:
        """Checks what training starts from; stage 1 copies its network as the evaluator."""
        check_start('ornet', self, ('layer', 'base'), module, start)
        if self.stage == 1:
            weights: Any = nnx.state(module, (nnx.Param, nnx.BatchStat))
            _, network = nnx.split_state(weights, lambda path, _: path[0] == 'heads', ...)
            nnx.update(module.heads.evaluator, network)

    def loss(
        self, outputs: Outputs, batch: Shard, update: Update
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The losses of the stage; logged beside them: accuracies, area, in stage 2 the entropy.

        Stage 1: both cross-entropies. Stage 2: the evaluator's, and weighted area and entropy. See
        `TrainedMethod.loss`.
        """
        del update
        labels, extras = labels_of(batch), outputs.extras
        values = {'accuracy': accuracy(outputs.logits, labels), 'area': area(extras['map'])}
        if self.stage == 1:
            losses = self.classification(outputs.logits, batch)
            side = extras['side']
            return losses + self.classification(side, batch), {
                **values,
                'accuracy_side': accuracy(side, labels),
            }
        found, entropy = extras['evaluator'], weighted_entropy(extras['map'])
        covered = area_loss(extras['map'], extras['responses'], found)
        losses = self.classification(found, batch) + self.area_weight * covered
        return losses + self.entropy_weight * entropy, {
            **values,
            'accuracy_evaluator': accuracy(found, labels),
            'entropy': entropy,
        }


def weighted_entropy(maps: jax.Array) -> jax.Array:
    """The entropy of each place, in nats, by how near to 1/2 it is: [B,h,w] in [0, 1] -> [B].

    The weight is a Gaussian of standard deviation 0.1, through which gradients go, too.
    """
    entropy = -maps * jnp.log(maps + _EPSILON) - (1 - maps) * jnp.log(1 - maps + _EPSILON)
    return area(entropy * jnp.exp(-((maps - 0.5) ** 2) / (2 * _SPREAD**2)))


def area_loss(maps: jax.Array, responses: jax.Array, logits: jax.Array) -> jax.Array:
    """The area of maps, and what they answer to classes that are found, but not among the first.

    Args:
        maps: [B,h,w].
        responses: mean features of the generator, one a class, [B,C].
        logits: by which classes are ranked, [B,C]. Of less than `RANKED` all are; of no more than
            `SPARED` all are spared.

    Returns:
        [B].
    """
    _, ranked = jax.lax.top_k(logits, min(RANKED, logits.shape[-1]))
    others = jnp.take_along_axis(responses, ranked[:, SPARED:], axis=1)
    return area(maps) + jnp.sum(others, axis=1)


class AttentiveErasing(Random):
    """Hides parts of what a map shows, strong ones more often; in inference nothing is done.

    In half of the images some places are candidates: those above a threshold that lies up to half
    of the span below the peak, in a window around the peak of random height and width. A map a
    becomes b = 0.6 a + 0.2, and a candidate 0 with probability b. Every image draws its own
    threshold, where the authors' code draws one for a batch.
    """

    def __call__(self, maps: jax.Array) -> jax.Array:
        """[B,h,w] -> [B,h,w]; what is erased gets no gradient."""
        if self.deterministic:
            return maps
        fixed = jax.lax.stop_gradient(maps)
        return jnp.where(jax.vmap(_erased)(self.keys(len(maps)), fixed), 0, _damped(maps))


def _damped(maps: jax.Array) -> jax.Array:
    return 0.6 * maps + 0.2


def _erased(key: jax.Array, values: jax.Array) -> jax.Array:
    """Where a map [h,w] is erased: bool [h,w]."""
    drawn, factor, height, width, noise = jax.random.split(key, 5)
    high, low = jnp.max(values), jnp.min(values)
    above = values > high - (high - low) * jax.random.uniform(factor, maxval=0.5)
    row, column = jnp.unravel_index(jnp.argmax(values), values.shape)
    rows = _window(height, jnp.any(above, axis=1), row)
    columns = _window(width, jnp.any(above, axis=0), column)
    candidates = above & rows[:, None] & columns & jax.random.bernoulli(drawn)
    return candidates & jax.random.bernoulli(noise, _damped(values))


def _window(key: jax.Array, above: jax.Array, centre: jax.Array) -> jax.Array:
    """Less than a random distance from a place, bool [n]; nowhere if too little is above, [n]."""
    places = jnp.arange(len(above))
    extent = len(above) - 1 - jnp.argmax(above[::-1]) - jnp.argmax(above)
    most = extent // 2
    distance = jax.random.randint(key, (), LEAST_WINDOW, most)
    return (jnp.abs(places - centre) < distance) & (most > LEAST_WINDOW)


class _Heads(Heads):
    map_name = 'ornet'
    classifies = False

    def __init__(self, network: Network, layer: str, base: int, stage: int, rngs: nnx.Rngs):
        self.reads = (f'{layer}/map',)
        self.layer, self.stage = layer, stage
        classes = network.num_classes
        self.generator = _Generator(network.shapes[layer][-1], base, classes, rngs=rngs)
        self.side = nnx.Linear(classes, classes, use_bias=False, kernel_init=_he_fan_out, rngs=rngs)
        self.evaluator = network.module()
        self.erasing = AttentiveErasing(rngs=rngs)

    def changes(self) -> Perturbations:
        """The features times their map go on; what the generator makes is shown below them."""
        return {self.layer: self._masked}

    def _masked(self, x: jax.Array) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        features, maps = self.generator(x)
        return x * maps.astype(x.dtype), {'features': features, 'map': maps}

    def __call__(
        self, endpoints: Mapping[str, jax.Array], classes: jax.Array | None, trunk: Trunk
    ) -> dict[str, jax.Array]:
        """With classes 'map' [B,h,w] and 'responses' [B,C], the means of the features.

        In stage 1 'side' [B,C], too: logits of the side branch, which come of the features by a
        1x1 convolution and their means; of the means alone, which is the same. In stage 2
        'evaluator' [B,C]: logits of the evaluator for the images times their maps.
        """
        if classes is None:
            return {}
        maps = endpoints[f'{self.layer}/map'][..., 0]
        responses = global_average_pool(endpoints[f'{self.layer}/features'])
        extras = {'map': maps, 'responses': responses}
        if self.stage == 1:
            return extras | {'side': self.side(responses)}
        shape = (*trunk.inputs.shape[:3], 1)
        shown = jax.image.resize(self.erasing(maps)[..., None], shape, 'nearest')
        return extras | {'evaluator': frozen(self.evaluator)(trunk.inputs * shown)[0]}

    def map(self, endpoints: Mapping[str, jax.Array], classes: jax.Array) -> jax.Array:
        """The map as it is, for each class; see `Heads.map`."""
        return of_each_class(endpoints[self.reads[0]][..., 0], classes)


class _Generator(nnx.Module):
    """A U-Net (Ronneberger et al., MICCAI 2015) with a channel for each class, and their map.

    Widths are those of the authors' code, which scales them by `base` and takes the features
    themselves for its first level.
    """

    def __init__(self, features: int, base: int, num_classes: int, *, rngs: nnx.Rngs):
        self.down_1 = _DoubleConv(features, 2 * base, rngs=rngs)
        self.down_2 = _DoubleConv(2 * base, 4 * base, rngs=rngs)
        self.down_3 = _DoubleConv(4 * base, 8 * base, rngs=rngs)
        self.up_1 = _DoubleConv(12 * base, 4 * base, rngs=rngs)
        self.up_2 = _DoubleConv(6 * base, 3 * base, rngs=rngs)
        self.up_3 = _DoubleConv(3 * base + features, num_classes, rngs=rngs)
        self.attention = ConvNorm(num_classes, 1, 3, relu=False, kernel_init=_he_fan_out, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B,h,w,K] -> (features [B,h,w,C], map in (0, 1) [B,h,w,1], float32)."""
        x1 = self.down_1(_halved(x))
        x2 = self.down_2(_halved(x1))
        lowest = self.down_3(_halved(x2))
        y = self.up_1(side_by_side(x2, lowest))
        y = self.up_2(side_by_side(x1, y))
        features = self.up_3(side_by_side(x, y))
        return features, nnx.sigmoid(self.attention(features).astype(jnp.float32))


class _DoubleConv(nnx.Module):
    """Twice a 3x3 convolution, batch norm and leaky ReLU."""

    def __init__(self, in_features: int, features: int, *, rngs: nnx.Rngs):
        facts: dict[str, Any] = {'momentum': 0.99, 'relu': False, 'kernel_init': _he_fan_out}
        self.conv1 = ConvNorm(in_features, features, 3, **facts, rngs=rngs)
        self.conv2 = ConvNorm(features, features, 3, **facts, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B,h,w,K] -> [B,h,w,K']."""
        return nnx.leaky_relu(self.conv2(nnx.leaky_relu(self.conv1(x))))


def _halved(x: jax.Array) -> jax.Array:
    return max_pool(x, 2, 2, 'SAME')  # of an odd side the last place alone, so that none is lost


def _he_fan_out(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """`he_normal` with fan-out in place of fan-in."""
    return he_normal(key, shape, dtype) * math.sqrt(shape[-2] / shape[-1])

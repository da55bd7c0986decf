"""CutMix (Yun et al., ICCV 2019, arXiv 1905.04899)."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from wsol_jax.config import ConfigError
from wsol_jax.fields import Range, documented, setting
from wsol_jax.models.heads import Outputs, area
from wsol_jax.training.method import Shard, TrainedMethod, Update


@documented
@dataclass(frozen=True, kw_only=True)
class CutMix(TrainedMethod):
    """The plain classifier, trained on images into which a box of another image is pasted.

    The loss is that of both labels, by the areas of their images. The other image is the neighbour
    in the batch, 1 and 2, 3 and 4, ...: devices that have an even number of images need not
    exchange any. The last of an odd number stays as it is, and so does one whose neighbour cannot
    be read. Every image draws a box of its own, where wsolevaluation (Choe et al., CVPR 2020), from
    which the defaults are, draws one for the whole batch and any partner in it.

    Weak where the box covers the object: what counts of a label is the area of its image.
    """

    beta: float = setting(
        1.0,
        'what stays of an image is drawn from Beta(beta, beta), before the box is cut off at the '
        'border',
        'checkpoints',
        Range(0, 1000, '(]'),
    )
    prob: float = setting(1.0, 'probability that an image is mixed', 'checkpoints', Range(0, 1))

    def augment(self, inputs: jax.Array, batch: Shard, keys: jax.Array) -> tuple[jax.Array, Shard]:
        """Pastes the boxes; more targets: 'mixed', the partner's label, and 'share' [B], its area.

        See `TrainedMethod.augment`.

        Raises:
            ConfigError: there is no pair.
        """
        if len(inputs) < 2:
            raise ConfigError(
                'config.train.batch_size must give every device, in each of the parts of '
                'train.accumulate, at least 2 images for cutmix to mix, got 1'
            )
        height, width = inputs.shape[1:3]
        boxes = jax.vmap(partial(_box, self.beta, self.prob, height, width))(keys)
        boxes &= partners(batch.valid)[:, None, None]
        mixed = jnp.where(boxes[..., None], partners(inputs), inputs)
        more = {'mixed': partners(batch.targets['labels']), 'share': area(boxes)}
        return mixed, batch._replace(targets={**batch.targets, **more})

    def loss(
        self, outputs: Outputs, batch: Shard, update: Update
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mixed loss; in training 'accuracy' is for the label of the larger part.

        See `TrainedMethod.loss`.
        """
        own = super().loss(outputs, batch, update)
        if 'share' not in batch.targets:  # on val nothing is mixed
            return own
        share, labels = batch.targets['share'], batch.targets['mixed']
        theirs = batch._replace(targets={**batch.targets, 'labels': labels})
        other = super().loss(outputs, theirs, update)
        values = jax.tree.map(partial(jnp.where, share > 0.5), other[1], own[1])
        return (1 - share) * own[0] + share * other[0], values


def partners(x: jax.Array) -> jax.Array:
    """Neighbours change places, [B,...] -> [B,...]; the last of an odd number stays."""
    # Not x[i ^ 1]: of sharded images that would gather all of them.
    even = len(x) // 2 * 2
    pairs = x[:even].reshape(even // 2, 2, *x.shape[1:])[:, ::-1]
    return jnp.concatenate([pairs.reshape(even, *x.shape[1:]), x[even:]])


def _box(beta: float, prob: float, height: int, width: int, key: jax.Array) -> jax.Array:
    """What is pasted of one image: bool [height,width]."""
    mixes, stays, row, column = jax.random.split(key, 4)
    # Beta(1, 1) is uniform; the sampler of Beta takes seconds to compile.
    kept = jax.random.uniform(stays) if beta == 1 else jax.random.beta(stays, beta, beta)
    inside = [
        _span(side, jnp.sqrt(1 - kept), centre) for side, centre in ((height, row), (width, column))
    ]
    return inside[0][:, None] & inside[1] & jax.random.bernoulli(mixes, prob)


def _span(side: int, part: jax.Array, key: jax.Array) -> jax.Array:
    """A span of a side, bool [side]: a part of it around a random pixel, cut off at the ends."""
    centre = jax.random.randint(key, (), 0, side)
    half = (part * side).astype(int) // 2
    pixels = jnp.arange(side)
    return (pixels >= centre - half) & (pixels < centre + half)

"""Heads that find what a sentence refers to among proposals (DTMR; Sun et al., arXiv 2106.04053).

A sentence is a triad (subject, relation, object); every pair of proposals is scored as its subject
and object, and what the scores attend to must tell the words again.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from wsol_jax.models.heads import Heads, Trunk
from wsol_jax.models.network import Network

GRID = 7  # places along each side of a proposal
SAMPLES = 2  # along each side of such a place
SCALE = 20.0  # of normalised features, as it starts
PLACE = 5  # numbers that tell where a proposal lies
SUBJECT, CLASS, OBJECT, RELATION = range(4)  # what is known of a sentence, in this order
CLASS_SHARE = 0.9  # of what a subject is looked for by
FACTORS = (2.0, 1.0, 1.0)  # of the scores of subject, object and pair
ATTENTIONS = ('raw', 'softmax')
_LOWEST = -1e30  # score of what is not there
_LEAST = 1e-12  # squared length from which on a vector has a direction


class GroundingHeads(Heads):
    """Scores of all pairs of proposals for each sentence, and the words that these tell.

    Of an image they read, as `Trunk.targets`: 'boxes' [B,N,4], x0, y0, x1, y1 as shares of the
    image, of which 'proposals' [B,N] are there; and 'phrases' [B,S,4,D], the vectors of subject,
    class of the subject, object and relation of each sentence. Without them they give nothing.

    Args:
        network: that they are attached to.
        layer: the endpoint whose features the proposals have.
        words: D, the length of the vectors.
        width: of all hidden layers; the first of the reconstructions is twice as wide.
        place: whether pairs know where their proposals lie.
        attention: 'raw' weighs by the scores themselves, 'softmax' by shares that add up to 1.
        factors: of the scores of subject, object and pair, by the sum of which a pair is chosen.
        rngs: for the initial weights.
    """

    def __init__(
        self,
        network: Network,
        layer: str,
        words: int,
        width: int,
        place: bool,
        attention: str,
        factors: tuple[float, float, float],
        rngs: nnx.Rngs,
    ):
        self.reads = (layer,)
        self.attention, self.factors = attention, factors
        features = network.shapes[layer][-1]
        of_one = features + width if place else features
        self.norm = ScaledNorm(features)
        self.place = Place(width, rngs=rngs) if place else None
        self.single = SimAttention(words, (features,), width, rngs=rngs)
        self.pair = SimAttention(3 * words, (of_one, of_one), width, rngs=rngs)
        self.told = Reconstruction(features, words, width, rngs=rngs)
        self.related = Reconstruction(2 * of_one, words, width, rngs=rngs)

    def __call__(
        self, endpoints: Mapping[str, jax.Array], classes: jax.Array | None, trunk: Trunk
    ) -> dict[str, jax.Array]:
        """See `ground`; {} where no sentences are given."""
        given = trunk.targets
        if 'phrases' not in given:
            return {}
        features = endpoints[self.reads[0]]
        return self.ground(features, given['boxes'], given['proposals'], given['phrases'])

    def ground(
        self, features: jax.Array, boxes: jax.Array, proposals: jax.Array, phrases: jax.Array
    ) -> dict[str, jax.Array]:
        """Scores and reconstructions of all sentences.

        Args:
            features: [B,H,W,K] of the images.
            boxes: [B,N,4], shares of the image.
            proposals: bool [B,N], which boxes are there.
            phrases: [B,S,4,D], see the class.

        Returns:
            'subject_scores' [B,S,N], 'object_scores' [B,S,N] and 'pair_scores' [B,S,N,N], 0 where
            there is no proposal; 'scores' [B,S,N,N], their sum, -inf there; and 'subject', 'object'
            and 'relation' [B,S,D], the words told.
        """
        seen = self.seen(features, boxes)
        one = seen if self.place is None else jnp.concatenate([seen, self.place(boxes)], axis=-1)
        subject = subjects(phrases)
        second, relation = phrases[:, :, OBJECT], phrases[:, :, RELATION]
        triads = jnp.concatenate([subject, second, relation], axis=-1)
        there = proposals[:, None]
        pairs = there[..., :, None] & there[..., None, :]
        of_subject = jnp.where(there, self.single(subject, seen), 0)
        of_object = jnp.where(there, self.single(second, seen), 0)
        of_pair = jnp.where(pairs, self.pair(triads, one, one), 0)
        weights = (
            self._weights(*found)
            for found in ((of_subject, there), (of_object, there), (of_pair, pairs))
        )
        by_subject, by_object, by_pair = weights
        return {
            'subject_scores': of_subject,
            'object_scores': of_object,
            'pair_scores': of_pair,
            'scores': jnp.where(pairs, self.summed(of_subject, of_object, of_pair), -jnp.inf),
            'subject': self.told(attended(by_subject, seen)),
            'object': self.told(attended(by_object, seen)),
            'relation': self.related(attended_pairs(by_pair, one)),
        }

    def seen(self, features: jax.Array, boxes: jax.Array) -> jax.Array:
        """The feature of each proposal: [B,H,W,K], [B,N,4] -> [B,N,K]."""
        return jnp.mean(self.norm(roi_align(features, boxes)), axis=(2, 3))

    def summed(self, subject: jax.Array, second: jax.Array, pair: jax.Array) -> jax.Array:
        """2 a_sub + a_obj + a_pair, as it was published: [B,S,N], [B,S,N], [B,S,N,N]."""
        of_subject, of_object, of_pair = self.factors
        both = of_subject * subject[..., :, None] + of_object * second[..., None, :]
        return both + of_pair * pair

    def _weights(self, scores: jax.Array, there: jax.Array) -> jax.Array:
        """What proposals, or pairs, are summed up by, from the third axis on."""
        if self.attention == 'raw':
            return scores
        axes = tuple(range(2, scores.ndim))
        # No infinity: where nothing is there, shares are finite, and then 0.
        return jnp.where(there, jax.nn.softmax(jnp.where(there, scores, _LOWEST), axes), 0)


class ScaledNorm(nnx.Module):
    """Vectors of length 1, times a learnt factor for each channel (Liu et al., 1506.04579)."""

    def __init__(self, features: int):
        self.scale = nnx.Param(jnp.full(features, SCALE))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[...,K] -> [...,K]; a vector of zeros stays one."""
        squared = jnp.sum(x * x, axis=-1, keepdims=True)
        known = squared > _LEAST
        return jnp.where(known, x * jax.lax.rsqrt(jnp.where(known, squared, 1)), 0) * self.scale


class Place(nnx.Module):
    """Where a proposal lies: its corners and its area, normalised, through a linear layer."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = ScaledNorm(PLACE)
        self.linear = _linear(PLACE, width, rngs)

    def __call__(self, boxes: jax.Array) -> jax.Array:
        """[B,N,4], shares of the image -> [B,N,width]."""
        sides = boxes[..., 2:] - boxes[..., :2]
        area = jnp.prod(sides, axis=-1, keepdims=True)
        return self.linear(self.norm(jnp.concatenate([boxes, area], axis=-1)))


class SimAttention(nnx.Module):
    """Scores of proposals, or of pairs of them, for words: two hidden layers with ReLU.

    The first is linear in the words and each proposal joined, so that each is multiplied alone, and
    the products are added: nothing is ever joined for all pairs.

    Args:
        words: length of what is known of a sentence.
        parts: length of the feature of each proposal of a pair, or of the one.
        width: of the hidden layers.
        rngs: for the initial weights.
    """

    def __init__(self, words: int, parts: tuple[int, ...], width: int, *, rngs: nnx.Rngs):
        total = words + sum(parts)  # what the first layer sees
        self.words = _linear(words, width, rngs, of=total)
        layers = [_linear(size, width, rngs, of=total, use_bias=False) for size in parts]
        self.parts = nnx.List(layers)
        self.hidden = _linear(width, width, rngs)
        self.score = _linear(width, 1, rngs)

    def __call__(self, words: jax.Array, *parts: jax.Array) -> jax.Array:
        """Words [B,S,D] and as many features [B,N,.] as it was made for -> [B,S,N] or [B,S,N,N]."""
        axes = tuple(range(2, 2 + len(parts)))  # one for each proposal
        x = jnp.expand_dims(self.words(words), axes)
        for own, layer, part in zip(axes, self.parts, parts, strict=True):
            others = tuple(axis for axis in axes if axis != own)
            x += jnp.expand_dims(layer(part), (1, *others))
        return self.score(nnx.relu(self.hidden(nnx.relu(x))))[..., 0]


class Reconstruction(nnx.Module):
    """Words told from what is attended to: two hidden layers with ReLU."""

    def __init__(self, features: int, words: int, width: int, *, rngs: nnx.Rngs):
        self.first = _linear(features, 2 * width, rngs)
        self.second = _linear(2 * width, width, rngs)
        self.words = _linear(width, words, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[...,K] -> [...,D]."""
        return self.words(nnx.relu(self.second(nnx.relu(self.first(x)))))


def _linear(
    features: int, width: int, rngs: nnx.Rngs, of: int = 0, use_bias: bool = True
) -> nnx.Linear:
    """A linear layer whose weights start uniform within 1 / sqrt(n), as the authors' code has it.

    Sums over all pairs and vectors of length 20 are large: with larger weights the first steps are
    spent on making them smaller.

    Args:
        features: that it reads.
        width: of what it gives.
        rngs: for the weights.
        of: n, where it is a part of a layer that reads more; 0 for `features`.
        use_bias: which starts at 0.
    """
    scale = features / (of or features) / 3
    init = nnx.initializers.variance_scaling(scale, 'fan_in', 'uniform')
    return nnx.Linear(features, width, use_bias=use_bias, kernel_init=init, rngs=rngs)


def subjects(phrases: jax.Array) -> jax.Array:
    """e_f = 0.1 e_s + 0.9 e_c, the subject with its class: [B,S,4,D] -> [B,S,D]."""
    return (1 - CLASS_SHARE) * phrases[:, :, SUBJECT] + CLASS_SHARE * phrases[:, :, CLASS]


def attended(weights: jax.Array, features: jax.Array) -> jax.Array:
    """The weighted sum of the features of proposals: [B,S,N], [B,N,K] -> [B,S,K]."""
    return jnp.einsum('bsn,bnk->bsk', weights, features)


def attended_pairs(weights: jax.Array, features: jax.Array) -> jax.Array:
    """The weighted sum of [x_i; x_j] over all pairs: [B,S,N,N], [B,N,K] -> [B,S,2K].

    Each half needs the sum of the weights over the other proposal alone.
    """
    halves = (attended(jnp.sum(weights, axis=axis), features) for axis in (3, 2))
    return jnp.concatenate(list(halves), axis=-1)


def roi_align(
    features: jax.Array, boxes: jax.Array, side: int = GRID, samples: int = SAMPLES
) -> jax.Array:
    """Features in boxes by bilinear interpolation (RoIAlign; He et al., ICCV 2017).

    Args:
        features: [B,H,W,K], the centres of whose places lie at (i + 1/2) / H.
        boxes: [B,N,4], x0, y0, x1, y1 as shares of the image.
        side: how many places a box gets along each side.
        samples: how many points along each side of such a place are averaged.

    Returns:
        [B,N,side,side,K].
    """
    height, width = features.shape[1:3]
    rows = _tents(boxes[..., 1], boxes[..., 3], height, side, samples)
    columns = _tents(boxes[..., 0], boxes[..., 2], width, side, samples)
    found = jnp.einsum('bnpy,byxk->bnpxk', rows, features)
    return jnp.einsum('bnqx,bnpxk->bnpqk', columns, found)


def _tents(low: jax.Array, high: jax.Array, count: int, side: int, samples: int) -> jax.Array:
    """What each of `count` places counts in each part of an interval: [B,N] -> [B,N,side,count]."""
    shares = (jnp.arange(side * samples) + 0.5) / (side * samples)
    points = low[..., None] + (high - low)[..., None] * shares
    points = jnp.clip(points * count - 0.5, 0, count - 1)
    tents = jnp.maximum(1 - jnp.abs(points[..., None] - jnp.arange(count)), 0)
    return jnp.mean(tents.reshape(*low.shape, side, samples, count), axis=3)

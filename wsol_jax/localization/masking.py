"""Channel weights from masked and ablated forward passes: Score-, SS-, IS- and Ablation-CAM.

S [B,h,w,K] are the activations of a layer; the map is sum_k w_k S_k. Each channel costs a forward
pass; `chunk_size` copies of the batch go through the network at once, whatever K.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from wsol_jax.localization.method import Method, Run
from wsol_jax.localization.views import other_keys
from wsol_jax.maps.fuse import min_max, resize
from wsol_jax.parallel import in_parts


def score_cam() -> Method:
    """Score-CAM: sum_k w_k S_k, w = softmax_k of the score of the image under channel k's mask.

    Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks",
    CVPR Workshops 2020, eq. 6 and 7. The mask is S_k resized to the input and scaled to [0, 1];
    it multiplies the preprocessed input. The baseline score, equal for all k, cancels.

    Weak in cost, a forward pass for each channel, and where scores of masked images differ much:
    the softmax leaves one channel then.
    """
    return Method('score_cam', passes=_MaskTerms(_once), relu=True)


def ss_cam(samples: int = 35, sigma: float = 2.0) -> Method:
    """SS-CAM: sum_k w_k S_k, as Score-CAM, scores averaged over Gaussian noise on the masks.

    Wang et al., "SS-CAM: Smoothed Score-CAM for Sharper Visual Feature Localization", 2020.

    Weak where Score-CAM is, at `samples` times its cost.

    Args:
        samples: how many noises.
        sigma: their standard deviation; the masks are in [0, 1].
    """
    return Method('ss_cam', passes=_MaskTerms(_Noises(samples, sigma)), relu=True)


def is_cam(samples: int = 10) -> Method:
    """IS-CAM: sum_k w_k S_k, as Score-CAM, scores averaged over the masks times i/n, i = 1 ... n.

    Naidu et al., "IS-CAM: Integrated Score-CAM for axiomatic-based explanations", 2020.

    Weak where Score-CAM is, at `samples` times its cost.

    Args:
        samples: n.
    """
    return Method('is_cam', passes=_MaskTerms(_Fractions(samples)), relu=True)


def ablation_cam() -> Method:
    """Ablation-CAM: sum_k w_k S_k, w_k = (y - y_k) / |y|, y_k the score without channel k.

    Desai and Ramaswamy, "Ablation-CAM: Visual Explanations for Deep Convolutional Network via
    Gradient-free Localization", WACV 2020, eq. 4. The paper divides by y, which would turn the map
    upside down where the score is negative.

    Weak in cost, a forward pass for each channel, and where many channels say the same: none of
    them is missed alone.
    """
    return Method('ablation_cam', passes=_ablation_terms, relu=True)


# A mask [B,H,W] -> the scores [B,K] of the images under it.
ScoresOf = Callable[[jax.Array], jax.Array]
# The scores [B,K] of one channel's mask [B,H,W], given the scores of any one mask.
Vary = Callable[[Run, ScoresOf, jax.Array], jax.Array]


def _once(run: Run, scores_of: ScoresOf, mask: jax.Array) -> jax.Array:
    del run
    return scores_of(mask)


@dataclass(frozen=True)
class _Fractions:
    samples: int

    def __call__(self, run: Run, scores_of: ScoresOf, mask: jax.Array) -> jax.Array:
        del run
        fractions = jnp.arange(1, self.samples + 1) / self.samples
        return jnp.mean(jax.lax.map(lambda f: scores_of(f * mask), fractions), axis=0)


@dataclass(frozen=True)
class _Noises:
    samples: int
    sigma: float

    def __call__(self, run: Run, scores_of: ScoresOf, mask: jax.Array) -> jax.Array:
        def one(sample: jax.Array) -> jax.Array:
            draw = jax.vmap(lambda key: jax.random.normal(key, mask.shape[1:]))
            return scores_of(mask + self.sigma * draw(other_keys(run.keys, sample)))

        return jnp.mean(jax.lax.map(one, jnp.arange(self.samples)), axis=0)


@dataclass(frozen=True)
class _MaskTerms:
    vary: Vary

    def __call__(self, run: Run, layers: Sequence[str]) -> dict[str, jax.Array]:
        return {n: _weighted(run.activations[n], self._weights(run, n)) for n in layers}

    def _weights(self, run: Run, layer: str) -> jax.Array:
        size = (run.inputs.shape[1], run.inputs.shape[2])

        def scores_of(mask: jax.Array) -> jax.Array:
            return run.scores(run.forward(run.inputs * mask[..., None])[0])

        def of_channel(channel: jax.Array) -> jax.Array:  # [B,h,w] -> [B,K]
            return self.vary(run, scores_of, min_max(resize(channel, size)))

        channels = jnp.moveaxis(run.activations[layer], -1, 0)
        return jax.nn.softmax(_over_channels(of_channel, channels, run), axis=0)


def _ablation_terms(run: Run, layers: Sequence[str]) -> dict[str, jax.Array]:
    whole = run.scores(run.logits)
    size = jnp.abs(whole)

    def weights(layer: str) -> jax.Array:
        s = run.activations[layer]

        def ablated(number: jax.Array) -> jax.Array:
            one = jax.nn.one_hot(number, s.shape[-1], dtype=s.dtype)
            return run.scores(run.forward(run.inputs, {layer: -s * one})[0])

        scores = _over_channels(ablated, jnp.arange(s.shape[-1]), run)
        return (whole - scores) / jnp.where(size, size, 1)

    return {n: _weighted(run.activations[n], weights(n)) for n in layers}


def _over_channels(
    function: Callable[[jax.Array], jax.Array], channels: jax.Array, run: Run
) -> jax.Array:
    """`function` of every channel, `chunk_size` copies of the batch at once."""
    parts = channels[in_parts(len(channels), run.chunk_size)]
    results = jax.lax.map(jax.vmap(function), parts)
    return results.reshape(-1, *results.shape[2:])[: len(channels)]


def _weighted(s: jax.Array, weights: jax.Array) -> jax.Array:
    """[B,h,w,K'], weights [K',B,K] -> terms [K,B,h,w,K']."""
    return s * jnp.moveaxis(weights, (0, 2), (2, 0))[:, :, None, None]

"""Maps from the gradient of the score at the input itself: the baselines of the CAM family.

x [B,H,W,C] are the preprocessed inputs, g the gradient of the score with respect to them. Maps are
as fine as the input, and noisy: they tell pixels that matter, not what belongs to the object.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from wsol_jax.localization.guided import guided
from wsol_jax.localization.method import INPUT, Method, Run
from wsol_jax.localization.targets import score_gradients
from wsol_jax.localization.views import noisy, other_keys


def saliency() -> Method:
    """Saliency: max_k |g_k|.

    Simonyan et al., "Deep Inside Convolutional Networks: Visualising Image Classification Models
    and Saliency Maps", ICLR Workshop 2014, section 3.1.

    Weak as a map of an object: noisy, at edges, and without a sign.
    """
    return Method('saliency', passes=_saliency, reduce=_largest, where='input')


def smooth_grad(samples: int = 25, sigma: float = 0.6) -> Method:
    """SmoothGrad: max_k |mean g_k| over noisy inputs.

    Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017, section 3.

    Weak where saliency is, if less noisy, at a forward and a backward pass for each noisy input.

    Args:
        samples: how many noisy inputs.
        sigma: of the noise, see `noisy`; 0.6 is about 15 % of the range of a photo.
    """
    passes = _SmoothGrad(samples, sigma)
    return Method('smooth_grad', passes=passes, reduce=_largest, where='input')


def integrated_gradients(steps: int = 32, baseline: float = 0.0) -> Method:
    """Integrated gradients: sum_k (x_k - b) mean g_k along the straight line from b to x.

    Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017, eq. 1, by the
    midpoint rule. Complete: the raw map sums to the score of the input minus that of the baseline,
    but for the error of the rule. Scoring takes what is positive.

    Weak where the object is as the baseline: what does not differ from it gets nothing.

    Args:
        steps: gradients along the line.
        baseline: value of every pixel and channel of the preprocessed baseline; 0 is the mean
            colour for networks that subtract it.
    """
    passes = _Integrated(steps, baseline)
    return Method('integrated_gradients', passes=passes, reduce=_total, where='input', relu=True)


def guided_backprop() -> Method:
    """Guided backpropagation: max_k |g_k|, each ReLU handing on what is positive alone.

    Springenberg et al., "Striving for Simplicity: The All Convolutional Net", ICLR Workshop 2015,
    section 3.4. Which calls are ReLUs, see `guided`.

    Weak as an explanation: it draws the image's edges, much the same with random weights in the
    last layers (Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018).
    """
    return Method('guided_backprop', passes=_guided, reduce=_largest, where='input')


def _largest(g: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(g), axis=-1)


def _total(contributions: jax.Array) -> jax.Array:
    # Not `channel_sum`: what `eigen_smooth` would put in its place is of features, not colours.
    return jnp.sum(contributions, axis=-1)


def _saliency(run: Run, layers: Sequence[str]) -> dict[str, jax.Array]:
    del layers
    return {INPUT: _gradients(run, run.inputs)}


def _guided(run: Run, layers: Sequence[str]) -> dict[str, jax.Array]:
    del layers
    logits = guided(lambda x: run.forward(x)[0], run.inputs)
    return {INPUT: score_gradients(lambda x: run.scores(logits(x)), run.inputs)}


@dataclass(frozen=True)
class _SmoothGrad:
    samples: int
    sigma: float

    def __call__(self, run: Run, layers: Sequence[str]) -> dict[str, jax.Array]:
        del layers

        def drawn(sample: jax.Array) -> jax.Array:
            return noisy(run.inputs, self.sigma, other_keys(run.keys, sample))

        return {INPUT: _mean_gradients(run, drawn, self.samples)}


@dataclass(frozen=True)
class _Integrated:
    steps: int
    baseline: float

    def __call__(self, run: Run, layers: Sequence[str]) -> dict[str, jax.Array]:
        del layers
        way = run.inputs - self.baseline

        def between(step: jax.Array) -> jax.Array:
            return self.baseline + (step + 0.5) / self.steps * way

        return {INPUT: way * _mean_gradients(run, between, self.steps)}


def _gradients(run: Run, inputs: jax.Array) -> jax.Array:
    """Gradients [K,B,H,W,C] of the scores with respect to inputs [B,H,W,C]."""
    return score_gradients(lambda x: run.scores(run.forward(x)[0]), inputs)


def _mean_gradients(run: Run, inputs_of: Callable[[jax.Array], jax.Array], count: int) -> jax.Array:
    """Their mean over `count` inputs, one after another."""
    zeros = jnp.zeros((run.scores(run.logits).shape[1], *run.inputs.shape), run.inputs.dtype)

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + _gradients(run, inputs_of(i))

    return jax.lax.fori_loop(0, count, add, zeros) / count

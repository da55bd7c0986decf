"""FullGrad: what the input and the biases contribute to a score.

Srinivas and Fleuret, "Full-Gradient Representation for Neural Network Visualization", NeurIPS 2019.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from wsol_jax.localization.method import ALL, Method, Run, class_score
from wsol_jax.localization.targets import score_gradients
from wsol_jax.maps.fuse import min_max, resize

Layers = dict[str, jax.Array]  # {layer: [B,h,w,K']}


def full_grad() -> Method:
    """FullGrad: psi(|g_x x|) + sum_l sum_k psi(|g_l b_l|)_k.

    Srinivas and Fleuret, "Full-Gradient Representation for Neural Network Visualization", NeurIPS
    2019, eq. 5, at the resolution of the input. The network is taken as the chain of its main
    layers: b_l = S_l - J_l S_(l-1) is what layer l adds to the linear part of the step before it
    (the implicit bias of the paper, section 3), with every bias, batch-norm shift and clipping in
    between. psi scales each channel to [0, 1] and resizes it.

    Weak in cost, a derivative for each layer, and where the sign matters: it sums magnitudes, so
    what speaks against the class counts as what speaks for it.
    """
    return Method('full_grad', (class_score,), passes=_full_grad, where='all', forward_mode=True)


def _full_grad(run: Run, layers: Sequence[str]) -> dict[str, jax.Array]:
    del layers
    at_input, of_layers = contributions(run)
    parts = [at_input, *of_layers.values()]
    size = (run.inputs.shape[1], run.inputs.shape[2])
    maps = jnp.stack([resize(_scaled_sum(p), size) for p in parts])
    return {ALL: jnp.sum(maps, axis=0)[..., None]}


def contributions(run: Run) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The full-gradient representation: g_x x [K,B,H,W,3] and g_l b_l {layer: [K,B,h,w,K']}.

    Over a network that is linear by parts, everything sums to the score without the biases behind
    the last main layer (eq. 3).
    """
    chain = run.main_layers
    zeros = {n: jnp.zeros_like(run.activations[n]) for n in chain}

    def endpoints(x: jax.Array, perturb: Layers) -> Layers:
        _, seen = run.forward(x, perturb)
        return {n: seen[n] for n in chain}

    def linear(number: jax.Array) -> Layers:
        """{layer: J S} with the input (number 0) or one layer as the only direction."""
        along = {n: run.activations[n] * (number == i) for i, n in enumerate(chain, 1)}
        tangents = (run.inputs * (number == 0), along)
        return jax.jvp(endpoints, (run.inputs, zeros), tangents)[1]

    def fill(number: jax.Array, biases: Layers) -> Layers:
        moved = linear(number)
        here = {n: number == i for i, n in enumerate(chain)}
        return {n: jnp.where(here[n], run.activations[n] - moved[n], biases[n]) for n in chain}

    # One layer after another: all steps at once would hold every layer's tangents at every step.
    biases = jax.lax.fori_loop(0, len(chain), fill, zeros)
    g = score_gradients(lambda x: run.scores(run.forward(x)[0]), run.inputs)
    return g * run.inputs, {n: run.gradients[n] * biases[n] for n in chain}


def _scaled_sum(part: jax.Array) -> jax.Array:
    channels = jnp.moveaxis(jnp.abs(part), -1, 0)
    return jnp.sum(min_max(channels), axis=0)

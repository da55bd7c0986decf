"""One forward pass, many pull-backs, every chosen endpoint at once.

A localization method is two small functions: which cotangents it needs on the logits, and how
it combines activations with the gradients they pull back. Methods asked for together share the
forward pass and every cotangent they have in common.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# network.apply: (state, inputs [B,H,W,3], perturb) -> (logits [B,C], {endpoint: [B,h,w,K]})
Apply = Callable[[Any, jax.Array, Mapping[str, jax.Array] | None], tuple[jax.Array, dict]]
# (logits [B,C], classes [B,K]) -> cotangents on the logits [N,B,C], N = K or 1 (shared by classes)
Cotangent = Callable[[jax.Array, jax.Array], jax.Array]
# class indices [B,K], or logits [B,C] -> [B,K]
Classes = jax.Array | Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class Method:
    """A localization method over activation gradients.

    Attributes:
        name: key of its maps in results, tables and files.
        cotangents: what it pulls back from the logits, in the order `combine` takes the gradients.
        combine: (activations [B,h,w,K], *gradients [B,h,w,K]) -> raw map [B,h,w].
        last_layer_only: defined only on the endpoint before global average pooling.
        relu: its definition ends in a ReLU. Raw maps come without; scoring applies it.
    """

    name: str
    cotangents: tuple[Cotangent, ...]
    combine: Callable[..., jax.Array]
    last_layer_only: bool = False
    relu: bool = False


def class_score(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Cotangents e_c that pull back the class score z_c: [K,B,C] for classes [B,K]."""
    return jax.nn.one_hot(classes.T, logits.shape[-1], dtype=logits.dtype)


def softmax_probabilities(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Cotangent p = softmax(z), the same for every class: [1,B,C]."""
    del classes
    return jax.nn.softmax(logits, axis=-1)[None]


def activation_gradients(
    apply: Apply,
    state: Any,
    inputs: jax.Array,
    classes: Classes,
    layers: Sequence[str],
    cotangents: Sequence[Cotangent],
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array], dict[str, dict[Cotangent, jax.Array]]]:
    """Runs the network once and pulls every cotangent back to every layer.

    Args:
        apply: the network as a pure function.
        state: its state; no gradient of it is taken.
        inputs: [B,H,W,3], preprocessed.
        classes: [B,K] class indices, or a function logits [B,C] -> [B,K].
        layers: endpoints to pull back to.
        cotangents: what to pull back; held constant, never differentiated.

    Returns:
        logits [B,C], classes [B,K], activations {layer: [B,h,w,K']} and gradients
        {layer: {cotangent: [N,B,h,w,K']}} with N = K, or 1 for a cotangent shared by the classes.
    """

    def forward(perturb):
        logits, endpoints = apply(state, inputs, perturb)
        return logits, {layer: endpoints[layer] for layer in layers}

    zeros = _zero_perturbations(apply, state, inputs, layers)
    logits, pull_back, activations = jax.vjp(forward, zeros, has_aux=True)
    chosen = classes(logits) if callable(classes) else classes
    groups = [c(logits, chosen) for c in cotangents]
    ends = np.cumsum([len(g) for g in groups])[:-1]
    (pulled,) = jax.vmap(pull_back)(jnp.concatenate(groups))
    gradients = {
        layer: dict(zip(cotangents, jnp.split(g, ends), strict=True)) for layer, g in pulled.items()
    }
    return logits, chosen, activations, gradients


def _zero_perturbations(apply, state, inputs, layers) -> dict[str, jax.Array]:
    # Shaped from the real batch: a batch-1 perturbation would broadcast, and its gradient would
    # be the sum over the batch without any error.
    _, shapes = jax.eval_shape(lambda s, x: apply(s, x, None), state, inputs)
    return {layer: jnp.zeros(shapes[layer].shape, shapes[layer].dtype) for layer in layers}


def raw_maps(
    apply: Apply,
    state: Any,
    inputs: jax.Array,
    classes: Classes,
    layers_of: Mapping[Method, Sequence[str]],
) -> tuple[jax.Array, jax.Array, dict[tuple[str, str], jax.Array], dict[str, jax.Array]]:
    """Maps of several methods, each at several layers, from one forward pass.

    Args:
        apply: the network as a pure function.
        state: its state.
        inputs: [B,H,W,3], preprocessed.
        classes: [B,K] class indices, or a function logits [B,C] -> [B,K].
        layers_of: the methods to compute and the layers of each.

    Returns:
        logits [B,C]; classes [B,K]; raw maps {(method, layer): [B,K,h,w]} at feature resolution;
        {layer: [B] bool}, whether no class score depends on that layer (gradient zero everywhere).
    """
    cotangents = list(dict.fromkeys(c for m in layers_of for c in (class_score, *m.cotangents)))
    layers = list(dict.fromkeys(layer for chosen in layers_of.values() for layer in chosen))
    logits, chosen, activations, gradients = activation_gradients(
        apply, state, inputs, classes, layers, cotangents
    )
    maps = {
        (method.name, layer): _combine(method, activations[layer], gradients[layer])
        for method, at in layers_of.items()
        for layer in at
    }
    dead = {n: jnp.all(g[class_score] == 0, axis=(0, 2, 3, 4)) for n, g in gradients.items()}
    return logits, chosen, maps, dead


def _combine(method: Method, activations, gradients) -> jax.Array:
    """`combine` for each class: gradients [K or 1,B,h,w,K'] -> maps [B,K,h,w]."""
    used = [gradients[c] for c in method.cotangents]
    count = max(len(g) for g in used)
    used = [jnp.broadcast_to(g, (count, *g.shape[1:])) for g in used]
    combine = jax.vmap(method.combine, in_axes=(None,) + (0,) * len(used), out_axes=1)
    return combine(activations, *used)

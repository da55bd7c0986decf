"""One forward pass, many pull-backs, every chosen endpoint at once.

A localization method is two small functions: which cotangents it needs on the logits, and how
it combines activations with the gradients they pull back. Methods asked for together share the
forward pass and every cotangent they have in common; only what they ask for is pulled back.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsol_jax.localization.method import (
    Apply,
    Classes,
    Cotangent,
    Method,
    Run,
    channel_sum,
    class_score,
    softmax_probabilities,
)
from wsol_jax.localization.targets import Score, logit, target_cotangents, target_scores

# What can be wrong with the gradient of an image at a layer.
ZERO, UNEVEN = 1, 2


def activation_gradients(
    apply: Apply,
    state: Any,
    inputs: jax.Array,
    classes: Classes,
    layers: Sequence[str],
    cotangents: Sequence[Cotangent],
    others: Sequence[str] = (),
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array], dict[str, dict[Cotangent, jax.Array]]]:
    """Runs the network once and pulls every cotangent back to every layer.

    Args:
        apply: the network as a pure function.
        state: its state; no gradient of it is taken.
        inputs: [B,H,W,3], preprocessed.
        classes: see `Classes`.
        layers: endpoints to pull back to; without any there is no backward pass.
        cotangents: what to pull back; held constant, never differentiated.
        others: endpoints whose activations are wanted, too.

    Returns:
        logits [B,C], classes [B,K], activations {layer: [B,h,w,K']} and gradients
        {layer: {cotangent: [N,B,h,w,K']}} with N = K, or 1 for a cotangent shared by the classes.
    """

    def forward(perturb: dict[str, jax.Array] | None) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits, endpoints = apply(state, inputs, perturb)
        return logits, {layer: endpoints[layer] for layer in (*layers, *others)}

    if not layers:
        logits, activations = forward(None)
        return logits, _chosen(classes, logits), activations, {}
    zeros = _zero_perturbations(apply, state, inputs, layers)
    logits, pull_back, activations = jax.vjp(forward, zeros, has_aux=True)
    chosen = _chosen(classes, logits)
    groups = [c(logits, chosen) for c in cotangents]
    ends = np.cumsum([g.shape[0] for g in groups])[:-1]
    (pulled,) = jax.vmap(pull_back)(jnp.concatenate(groups))
    gradients = {
        layer: dict(zip(cotangents, jnp.split(g, ends), strict=True)) for layer, g in pulled.items()
    }
    return logits, chosen, activations, gradients


def _chosen(classes: Classes, logits: jax.Array) -> jax.Array:
    return classes(logits) if callable(classes) else classes


def _zero_perturbations(
    apply: Apply, state: Any, inputs: jax.Array, layers: Sequence[str]
) -> dict[str, jax.Array]:
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
    keys: jax.Array,
    *,
    score: Score = logit,
    probability: Callable[[jax.Array], jax.Array] = jax.nn.softmax,
    main_layers: tuple[str, ...] = (),
    chunk_size: int = 16,
) -> tuple[jax.Array, jax.Array, dict[tuple[str, str], jax.Array], dict[str, jax.Array]]:
    """Maps of several methods, each at several layers; all `terms` methods from one forward pass.

    Args:
        apply: the network as a pure function.
        state: its state.
        inputs: [B,H,W,3], preprocessed.
        classes: see `Classes`.
        layers_of: the methods to compute and the layers of each; (ALL,) for one that needs all,
            (HEAD,) for that of a trained head, (INPUT,) for one at the input.
        keys: random keys [B], for the methods that draw.
        score: what is explained of a class.
        probability: logits [B,C] -> probabilities [B,C], in place of the softmax.
        main_layers: of the network, for the methods that need them all.
        chunk_size: see `Run`.

    Returns:
        logits [B,C]; classes [B,K]; raw maps {(method, layer): [B,K,h,w]} at feature resolution;
        {layer: [B]} for the layers with gradients: ZERO where no score depends on that layer
        (gradient zero everywhere), UNEVEN where a method for the last layer finds other gradients
        at other positions, else 0.
    """
    cotangents = list(dict.fromkeys(c for m in layers_of for c in m.cotangents))
    layers = _activations_of(layers_of, main_layers)
    pulled_at = _activations_of({m: n for m, n in layers_of.items() if m.cotangents}, main_layers)
    logits, chosen, activations, pulled = activation_gradients(
        apply,
        state,
        inputs,
        classes,
        pulled_at,
        _meant(cotangents, score, probability),
        [n for n in layers if n not in pulled_at],
    )
    gradients = {n: dict(zip(cotangents, g.values(), strict=True)) for n, g in pulled.items()}
    run = Run(
        partial(apply, state),
        inputs,
        lambda z: target_scores(score, z, chosen),
        logits,
        activations,
        {n: g[class_score] for n, g in gradients.items() if class_score in g},
        main_layers,
        chunk_size,
        keys,
        state,
        chosen,
    )
    # Of `shape`, not `len`: exported programs leave batch size and number of targets open.
    targets = 1 if chosen.dtype == bool else chosen.shape[1]
    terms = _all_terms(run, layers_of, gradients, targets)
    maps = {
        (method.name, n): jnp.broadcast_to(m, (m.shape[0], targets, *m.shape[2:]))
        for (method, n), m in _reduced(terms).items()
    }
    return logits, chosen, maps, _all_faults(layers_of, gradients)


def _meant(
    cotangents: Sequence[Cotangent], score: Score, probability: Callable[[jax.Array], jax.Array]
) -> list[Cotangent]:
    """The cotangents, with what is explained and the network's probabilities in their places."""
    stands_for: dict[Cotangent, Cotangent] = {
        class_score: partial(target_cotangents, score),
        softmax_probabilities: lambda logits, classes: probability(logits)[None],
    }
    return [stands_for.get(c, c) for c in cotangents]


def _activations_of(
    layers_of: Mapping[Method, Sequence[str]], main_layers: tuple[str, ...]
) -> list[str]:
    """The endpoints that the layers of all methods stand for, each once."""
    named = [
        {'all': main_layers, 'head': method.endpoints, 'input': ()}.get(method.where, (layer,))
        for method, chosen in layers_of.items()
        for layer in chosen
    ]
    return list(dict.fromkeys(n for names in named for n in names))


def _all_faults(
    layers_of: Mapping[Method, Sequence[str]],
    gradients: Mapping[str, Mapping[Cotangent, jax.Array]],
) -> dict[str, jax.Array]:
    """What is wrong at each layer with gradients, those of the class score if they are there."""
    even = {n for method, at in layers_of.items() for n in at if method.where == 'last'}
    first = {n: g.get(class_score, next(iter(g.values()))) for n, g in gradients.items()}
    return {n: _faults(g, n in even) for n, g in first.items()}


def _faults(gradient: jax.Array, even: bool) -> jax.Array:
    """What is wrong with gradients [N,B,h,w,K'], for each image: 0, ZERO or UNEVEN."""
    size = jnp.max(jnp.abs(gradient), axis=(0, 2, 3, 4))
    faults = jnp.where(size == 0, ZERO, 0)
    if even:
        means = jnp.mean(gradient, axis=(2, 3), keepdims=True)
        spread = jnp.max(jnp.abs(gradient - means), axis=(0, 2, 3, 4))
        faults = jnp.where(spread > 1e-3 * size, UNEVEN, faults)
    return faults


def _reduced(terms: Mapping[tuple[Method, str], jax.Array]) -> dict[tuple[Method, str], jax.Array]:
    """Terms [K or 1,B,h,w,K'] -> maps [B,K or 1,h,w]."""
    groups: dict[Any, list[tuple[Method, str]]] = {}
    for (method, layer), x in terms.items():
        alone = (method, layer) if method.reduce is not channel_sum else None
        groups.setdefault(alone or (layer, x.shape), []).append((method, layer))
    maps: dict[tuple[Method, str], jax.Array] = {}
    for pairs in groups.values():
        together = [terms[pair] for pair in pairs]
        reduce = pairs[0][0].reduce
        sums = _channel_sums(together) if reduce is channel_sum else [jax.vmap(reduce)(*together)]
        maps |= {p: jnp.moveaxis(m, 0, 1) for p, m in zip(pairs, sums, strict=True)}
    return {pair: maps[pair] for pair in terms}


def _channel_sums(terms: Sequence[jax.Array]) -> Sequence[jax.Array]:
    """Sums of several arrays of one shape over the last axis.

    In one loop: they are made from the same activations and gradients, which are then read once,
    and what XLA fuses into the loop is computed once.
    """

    def add(totals: tuple[jax.Array, ...], values: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(a + b for a, b in zip(totals, values, strict=True))

    zeros = tuple(jnp.zeros((), x.dtype) for x in terms)
    return jax.lax.reduce(tuple(terms), zeros, add, (terms[0].ndim - 1,))


def _all_terms(
    run: Run,
    layers_of: Mapping[Method, Sequence[str]],
    gradients: Mapping[str, Mapping[Cotangent, jax.Array]],
    targets: int,
) -> dict[tuple[Method, str], jax.Array]:
    """Terms [K or 1,B,h,w,K'] of every method at each of its layers."""
    terms: dict[tuple[Method, str], jax.Array] = {}
    for method, at in layers_of.items():
        if method.passes:
            own = method.passes(run, at)
        else:
            own = {n: _terms(method, run.activations[n], gradients.get(n, {}), targets) for n in at}
        terms |= {(method, n): own[n] for n in at}
    return terms


def _terms(
    method: Method, activations: jax.Array, gradients: Mapping[Cotangent, jax.Array], targets: int
) -> jax.Array:
    """`terms` for each target: gradients [K or 1,B,h,w,K'] -> [K or 1,B,h,w,K']."""
    assert method.terms is not None
    used = [gradients[c] for c in method.cotangents]
    if not used:
        return method.terms(activations)[None]
    used = [jnp.broadcast_to(g, (targets, *g.shape[1:])) for g in used]
    return jax.vmap(method.terms, in_axes=(None,) + (0,) * len(used))(activations, *used)

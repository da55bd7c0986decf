"""What a localization method is: which cotangents it pulls back, and the terms of its map."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

# network.apply: (state, inputs [B,H,W,3], perturb) -> (logits [B,C], {endpoint: [B,h,w,K]})
Apply = Callable[[Any, jax.Array, Mapping[str, jax.Array] | None], tuple[jax.Array, dict]]
# (logits [B,C], classes [B,K]) -> cotangents on the logits [N,B,C], N = K or 1 (shared by classes)
Cotangent = Callable[[jax.Array, jax.Array], jax.Array]
# class indices [B,K] or bool [B,C] (see `target_scores`), or logits [B,C] -> [B,K]
Classes = jax.Array | Callable[[jax.Array], jax.Array]

ALL = 'all'  # the layer in the key of a map that is made of all main layers
HEAD = 'head'  # and of a map that a trained head of the network makes
INPUT = 'input'  # and of one at the input itself


def channel_sum(terms: jax.Array) -> jax.Array:
    """[B,h,w,K] -> [B,h,w]."""
    return jnp.sum(terms, axis=-1)


@dataclass(frozen=True)
class Run:
    """What a method that runs the network itself starts from, for a batch of B images.

    Attributes:
        forward: (inputs [B,H,W,3], perturb=None) -> (logits [B,C], endpoints).
        inputs: [B,H,W,3], preprocessed.
        scores: logits [B,C] -> the scores of the K targets of every image [B,K].
        logits: [B,C].
        activations: {layer: [B,h,w,K']}, at least at the method's layers.
        gradients: {layer: [K,B,h,w,K']} of the scores, at the same layers; only for methods that
            name `class_score` among their cotangents.
        main_layers: of the network, from input to output.
        chunk_size: copies of the batch that may go through the network at once.
        keys: random keys [B], of each image alone.
        state: of the network.
        classes: [B,K] or bool [B,C], see `Classes`.
    """

    forward: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    inputs: jax.Array
    scores: Callable[[jax.Array], jax.Array]
    logits: jax.Array
    activations: dict[str, jax.Array]
    gradients: dict[str, jax.Array]
    main_layers: tuple[str, ...]
    chunk_size: int
    keys: jax.Array
    state: Any
    classes: jax.Array


@dataclass(frozen=True, repr=False)
class Method:
    """A localization method: either `terms` over shared pull-backs, or `passes` of its own.

    Methods compare by value, and compiled programs are keyed by them: options belong into frozen
    dataclasses, for every new lambda or partial is a method of its own.

    Attributes:
        name: key of its maps in results, tables and files.
        cotangents: what it pulls back from the logits, in the order `terms` takes the gradients;
            `class_score` stands for whatever score is explained, `softmax_probabilities` for what
            the network's logits stand for. () needs no backward pass.
        terms: (activations [B,h,w,K], *gradients [B,h,w,K]) -> [B,h,w,K], which `reduce` makes
            the map of.
        passes: (run, layers) -> {layer: terms [K,B,h,w,K']} for the K targets, or [1,B,h,w,K'].
        reduce: [B,h,w,K] -> raw map [B,h,w]; the sum over channels for nearly all.
        where: 'any' layer; 'last', defined only on the endpoint before global average pooling;
            'all', one map from all main layers; 'head', one map of a trained head; or 'input', one
            as fine as the input.
        endpoints: those that a method for 'head' reads.
        part: what the blocks of the network must show, such as 'attention'; '' for nothing.
        relu: its definition ends in a ReLU, or what is negative speaks against the class and marks
            no object. Raw maps come without; scoring applies it.
        forward_mode: it takes forward-mode derivatives, of which a model with a jax.custom_vjp has
            none.
    """

    name: str
    cotangents: tuple[Cotangent, ...] = ()
    terms: Callable[..., jax.Array] | None = None
    passes: Callable[[Run, Sequence[str]], dict[str, jax.Array]] | None = None
    reduce: Callable[[jax.Array], jax.Array] = channel_sum
    where: Literal['any', 'last', 'all', 'head', 'input'] = 'any'
    endpoints: tuple[str, ...] = ()
    part: str = ''
    relu: bool = False
    forward_mode: bool = False

    def __repr__(self) -> str:
        parts: tuple[Any, ...] = (self.terms, self.passes, self.reduce)
        options = [
            (f.name, getattr(p, f.name)) for p in parts if is_dataclass(p) for f in fields(p)
        ]
        shown = [f'{name}={getattr(value, "__name__", repr(value))}' for name, value in options]
        return f'Method({", ".join([repr(self.name), *shown])})'

    def combine(self, activations: jax.Array, *gradients: jax.Array) -> jax.Array:
        """(activations [B,h,w,K], *gradients [B,h,w,K]) -> raw map [B,h,w], of a `terms` method."""
        assert self.terms is not None, f'{self.name} runs the network itself'
        return self.reduce(self.terms(activations, *gradients))


def class_score(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Cotangents e_c that pull back the class score z_c: [K,B,C] for classes [B,K]."""
    return jax.nn.one_hot(classes.T, logits.shape[-1], dtype=logits.dtype)


def softmax_probabilities(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Cotangent p = softmax(z), the same for every class: [1,B,C]."""
    del classes
    return jax.nn.softmax(logits, axis=-1)[None]

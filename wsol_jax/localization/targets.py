"""What a map explains: the score of a class, of several, against similar ones, or your own.

A score is a function of the logits of one image and a class index. Gradient methods pull back its
gradient with respect to the logits; methods that mask or ablate read its values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from wsol_jax.names import unknown_name

# (logits [C], class index) -> scalar
Score = Callable[[jax.Array, jax.Array], jax.Array]


def logit(logits: jax.Array, index: jax.Array) -> jax.Array:
    """The class score z_c."""
    return logits[index]


def softmax(logits: jax.Array, index: jax.Array) -> jax.Array:
    """The softmax probability p_c."""
    return jax.nn.softmax(logits)[index]


@dataclass(frozen=True)
class FinerCAM:
    """What tells a class from those most like it: sum_i p_i (z_c - alpha z_i) / sum_i p_i.

    Zhang et al., "Finer-CAM: Spotting the Difference Reveals Finer Details for Visual
    Explanation", CVPR 2025. The i are the classes whose logits are closest to z_c; p = softmax(z).

    Attributes:
        alpha: strength of the comparison; 0 gives the class score.
        references: how many similar classes.
    """

    alpha: float = 1.0
    references: int = 3

    def __call__(self, logits: jax.Array, index: jax.Array) -> jax.Array:
        """(logits [C], class index) -> score."""
        distance = jnp.abs(logits - logits[index]).at[index].set(jnp.inf)
        count = min(self.references, len(logits) - 1)
        similar = jax.lax.top_k(-jax.lax.stop_gradient(distance), count)[1]
        # p_i / sum_i p_i, without the quotient of two numbers that may both be zero.
        p = jax.nn.softmax(logits[similar])
        return jnp.sum(p * (logits[index] - self.alpha * logits[similar]))


@dataclass(frozen=True)
class FreeScore:
    """Somebody's function logits [C] -> scalar as a score; the class index is of no use to it."""

    function: Callable[[jax.Array], jax.Array]

    def __call__(self, logits: jax.Array, index: jax.Array) -> jax.Array:
        """(logits [C], class index) -> score."""
        del index
        return self.function(logits)


SCORES: dict[str, Score] = {'logit': logit, 'softmax': softmax, 'finer_cam': FinerCAM()}


def resolve_score(score: str | Score) -> Score:
    """The score of a name; a function is its own.

    Raises:
        ValueError: an unknown name.
    """
    if callable(score):
        return score
    if score not in SCORES:
        raise ValueError(unknown_name('score', score, SCORES))
    return SCORES[score]


def target_scores(score: Score, logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Scores of every target of every image.

    Args:
        score: of a class.
        logits: [B,C].
        classes: [B,K] class indices, K targets an image; or bool [B,C], one target an image: the
            sum of the scores of the classes that are set.

    Returns:
        [B,K], or [B,1].
    """
    several = classes.dtype == bool
    indices = jnp.broadcast_to(jnp.arange(logits.shape[-1]), logits.shape) if several else classes
    scores = jax.vmap(jax.vmap(score, (None, 0)))(logits, indices)
    if scores.ndim != 2:
        raise ValueError(
            'a score must be a scalar of the logits [C] of one image, '
            f'got shape {list(scores.shape[2:])}'
        )
    return jnp.sum(jnp.where(classes, scores, 0), axis=1, keepdims=True) if several else scores


def target_cotangents(score: Score, logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Gradients of `target_scores` with respect to the logits: [K,B,C], K = 1 for bool classes."""
    return score_gradients(lambda z: target_scores(score, z, classes), logits)


def score_gradients(scores_of: Callable[[Any], jax.Array], at: Any) -> Any:
    """Gradients [K,B,...] of scores [B,K] with respect to arrays [B,...]; images do not mix."""
    scores, pull_back = jax.vjp(scores_of, at)
    one_each = jnp.eye(scores.shape[1], dtype=scores.dtype)
    # One pull-back serves the same target of all images.
    return jax.vmap(lambda e: pull_back(jnp.broadcast_to(e, scores.shape))[0])(one_each)

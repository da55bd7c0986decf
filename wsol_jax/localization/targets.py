"""What a map explains: the score of a class, of several, against similar ones, or your own.

A score is a function of the logits of one image and a class index. Gradient methods pull back its
gradient with respect to the logits; methods that mask or ablate read its values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
    """Somebody's function logits [C] -> scalar as a score; the class index is of no use to it.

    Programs are keyed by it. Where the function is a pytree, such as `Similarity` or a
    `jax.tree_util.Partial`, it is the structure alone that counts, and programs are given the
    arrays: one serves all.

    Attributes:
        function: the function, or the structure of a pytree.
    """

    function: Any

    @classmethod
    def split(cls, function: Callable[[jax.Array], jax.Array]) -> tuple['FreeScore', list[Any]]:
        """The score without the arrays of the function, and these."""
        arrays, structure = jax.tree.flatten(function)
        leaf = jax.tree_util.treedef_is_leaf(structure)
        return (cls(function), []) if leaf else (cls(structure), arrays)

    def whole(self, arrays: Sequence[Any]) -> 'FreeScore':
        """What `split` took apart."""
        if not isinstance(self.function, jax.tree_util.PyTreeDef):
            return self
        return FreeScore(jax.tree.unflatten(self.function, arrays))

    def __call__(self, logits: jax.Array, index: jax.Array) -> jax.Array:
        """(logits [C], class index) -> score."""
        del index
        return self.function(logits)


@dataclass(frozen=True, eq=False)
class Similarity:
    """How similar outputs are to others, such as those of another image: the cosine.

    A function for `classes=`; all vectors share a compiled program.

    Attributes:
        vector: [N], as long as the outputs of an image.

    Raises:
        ValueError: it is no vector, or has no direction.
    """

    vector: Any

    def __post_init__(self) -> None:
        given = np.asarray(self.vector, np.float64)
        if given.ndim != 1 or not np.isfinite(given).all() or not given.any():
            raise ValueError(
                'vector must be finite numbers [N], not all zero, such as the logits of one image, '
                f'got shape {list(given.shape)}'
            )
        unit = given / np.linalg.norm(given)
        object.__setattr__(self, 'vector', unit.astype(np.float32))

    def __call__(self, outputs: jax.Array) -> jax.Array:
        """Outputs [N] of one image -> their cosine to the vector."""
        if outputs.shape != self.vector.shape:
            raise ValueError(
                f'the vector has {len(self.vector)} numbers, the network gives {len(outputs)}'
            )
        return jnp.dot(outputs, self.vector) / jnp.linalg.norm(outputs)


@dataclass(frozen=True, eq=False)
class Region:
    """The score of a class in a region of the image, of a network for semantic segmentation.

    The sum over the region of the outputs of the class: Vinogradova et al., "Towards Interpretable
    Semantic Segmentation via Gradient-Weighted Class Activation Mapping", AAAI 2020, equation 2. A
    function for `classes=`; all masks of one size share a compiled program.

    Attributes:
        mask: [H,W], bool or weights, at the resolution of the outputs [H,W,C].
        index: of the class.

    Raises:
        ValueError: the mask is of another shape, or empty.
    """

    mask: Any
    index: int

    def __post_init__(self) -> None:
        given = np.array(self.mask, np.float32)
        if given.ndim != 2 or not given.any():
            raise ValueError(f'mask must be [H,W] and not empty, got {list(given.shape)}')
        object.__setattr__(self, 'mask', given)

    def __call__(self, outputs: jax.Array) -> jax.Array:
        """Outputs [H*W*C] of one image -> the sum in the region."""
        mask = self.mask
        if len(outputs) % mask.size or not 0 <= self.index < len(outputs) // mask.size:
            raise ValueError(
                f'class {self.index} in a region of {list(mask.shape)} is not among the '
                f'{len(outputs)} outputs of the network: the mask must be as large as they are'
            )
        return jnp.sum(mask * outputs.reshape(*mask.shape, -1)[..., self.index])


def _with_arrays(kind: type, array: str, *others: str) -> None:
    """Makes a dataclass a pytree of one array, the other attributes being its structure."""

    def flatten(target: Any) -> tuple[tuple[Any], tuple[Any, ...]]:
        return (getattr(target, array),), tuple(getattr(target, name) for name in others)

    def unflatten(values: tuple[Any, ...], arrays: tuple[Any]) -> Any:
        made: Any = object.__new__(kind)  # what it holds was checked, and may be traced now
        for name, value in zip((array, *others), (*arrays, *values), strict=True):
            object.__setattr__(made, name, value)
        return made

    jax.tree_util.register_pytree_node(kind, flatten, unflatten)


_with_arrays(Similarity, 'vector')
_with_arrays(Region, 'mask', 'index')

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

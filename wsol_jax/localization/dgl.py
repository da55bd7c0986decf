"""Dual-Gradients Localization (DGL).

Tan, Gu, Ruan, Wei, Zhao: "Dual-Gradients Localization Framework for Weakly Supervised Object
Localization", ACM MM 2020.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from wsol_jax.localization.method import Method, class_score, softmax_probabilities

_BOTH = (class_score, softmax_probabilities)
_TINY = 1e-12  # guards the squared norms, as in the released code


def dgl(alpha: float = 10.0) -> Method:
    """DGL: sum_k g_k A_k with the class-aware enhanced map A = S/|S| - G/|G|, on any layer.

    Tan, Gu, Ruan, Wei, Zhao, "Dual-Gradients Localization Framework for Weakly Supervised Object
    Localization", ACM MM 2020. The norms are L2 over the whole activation tensor of one image. No
    ReLU anywhere.

    Two pull-backs, e_c and p = softmax(z), give both gradients for every alpha: g pulls back e_c
    and G = q - alpha g pulls back p - alpha e_c. That is the gradient the released code uses; the
    mathematical gradient of -alpha log p_c is alpha (p - e_c), from which alpha would cancel. Where
    the network's logits stand for something else than a softmax, p is that: sigmoid(z) for one.

    Weak at the layer before global average pooling, where it is CAM but for a constant: it gains
    from earlier ones. Weak, as all maps of one layer, on objects of few cells.

    Args:
        alpha: weight of the class in the loss gradient; the paper uses 10. As it grows the method
          tends to gradient x activation plus squared gradient.
    """
    return Method('dgl', _BOTH, _Dual(alpha))


def sgl_g1() -> Method:
    """SGL-G1: sum_k (S/|S| + g/|g|) g/|g|, the limit of DGL for large alpha.

    From G2M, the later code of DGL's first author.

    Weak where DGL is.
    """
    return Method('sgl_g1', (class_score,), _sgl_g1)


def sgl_g2(alpha: float = 10.0) -> Method:
    """SGL-G2: sum_k (-G/|G|) A with DGL's enhanced map A and loss gradient G.

    From G2M, the later code of DGL's first author.

    Weak where DGL is; the squared gradient stays where no feature is active.

    Args:
        alpha: see `dgl`.
    """
    return Method('sgl_g2', _BOTH, _Steepest(alpha))


@dataclass(frozen=True)
class _Dual:
    alpha: float

    def __call__(self, s: jax.Array, g: jax.Array, q: jax.Array) -> jax.Array:
        return g * (_unit(s) - _unit(q - self.alpha * g))


@dataclass(frozen=True)
class _Steepest:
    alpha: float

    def __call__(self, s: jax.Array, g: jax.Array, q: jax.Array) -> jax.Array:
        direction = _unit(q - self.alpha * g)
        return -direction * (_unit(s) - direction)


def _sgl_g1(s: jax.Array, g: jax.Array) -> jax.Array:
    return (_unit(s) + _unit(g)) * _unit(g)


def _unit(x: jax.Array) -> jax.Array:
    squares = jnp.sum(jnp.square(x), axis=(1, 2, 3), keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, _TINY))

"""Class activation maps from the gradient of the class score.

S [B,h,w,K] are the activations of a layer, g [B,h,w,K] the gradient of the class score (the
logit) with respect to them. All maps are raw, before any normalization and resizing; where the
paper's definition ends in a ReLU, the method says so and scoring applies it.
"""

import jax
import jax.numpy as jnp

from wsol_jax.localization.gradients import Method, class_score

_SPACE = (1, 2)


def cam() -> Method:
    """CAM: sum_k w_k^c S_k with the weights of the linear classifier on pooled features.

    Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016. Behind
    global average pooling and a linear layer g_k = w_k^c / (hw) at every position, so the weights
    are read off the gradient; hence only on the last layer.
    """
    return Method('cam', (class_score,), _cam, last_layer_only=True)


def grad_cam() -> Method:
    """Grad-CAM: sum_k mean(g_k) S_k. Selvaraju et al., ICCV 2017."""
    return Method('grad_cam', (class_score,), _grad_cam, relu=True)


def grad_cam_pp() -> Method:
    """Grad-CAM++: weights sum_xy a relu(g), a = g^2 / (2 g^2 + sum_xy(S) g^3).

    Chattopadhay et al., WACV 2018, eq. 19 (exponential score). a = 0 where g = 0.
    """
    return Method('grad_cam_pp', (class_score,), _grad_cam_pp, relu=True)


def hires_cam() -> Method:
    """HiResCAM: sum_k g_k S_k, no averaging of the gradient. Draelos & Carin, 2020."""
    return Method('hires_cam', (class_score,), _hires_cam)


def xgrad_cam() -> Method:
    """XGrad-CAM: weights sum_xy(g S) / sum_xy(S). Fu et al., BMVC 2020, eq. 8."""
    return Method('xgrad_cam', (class_score,), _xgrad_cam, relu=True)


def layer_cam() -> Method:
    """LayerCAM: sum_k relu(g_k) S_k. Jiang et al., IEEE TIP 2021, eq. 6."""
    return Method('layer_cam', (class_score,), _layer_cam)


def _cam(s: jax.Array, g: jax.Array) -> jax.Array:
    return _weighted(s, jnp.sum(g, axis=_SPACE))


def _grad_cam(s: jax.Array, g: jax.Array) -> jax.Array:
    return _weighted(s, jnp.mean(g, axis=_SPACE))


def _grad_cam_pp(s: jax.Array, g: jax.Array) -> jax.Array:
    # g^2 cancels: a = 1 / (2 + sum(S) g). The uncancelled form with a fixed epsilon is dominated
    # by it where gradients are small.
    denominator = 2.0 + jnp.sum(s, axis=_SPACE, keepdims=True) * g
    a = jnp.where((g == 0) | (denominator == 0), 0.0, 1.0 / jnp.where(denominator, denominator, 1))
    return _weighted(s, jnp.sum(a * jax.nn.relu(g), axis=_SPACE))


def _hires_cam(s: jax.Array, g: jax.Array) -> jax.Array:
    return jnp.sum(g * s, axis=-1)


def _xgrad_cam(s: jax.Array, g: jax.Array) -> jax.Array:
    total = jnp.sum(s, axis=_SPACE)
    weights = jnp.sum(g * s, axis=_SPACE) / jnp.where(total, total, 1)
    return _weighted(s, weights)


def _layer_cam(s: jax.Array, g: jax.Array) -> jax.Array:
    return jnp.sum(jax.nn.relu(g) * s, axis=-1)


def _weighted(s: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.einsum('bhwk,bk->bhw', s, weights)

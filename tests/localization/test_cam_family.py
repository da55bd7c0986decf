"""The later members of the CAM family: NumPy loops, closed forms, finite differences, limits."""

from dataclasses import replace
from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsol_jax.localization.cam import smooth_grad_cam_pp
from wsol_jax.localization.dgl import sgl_g2
from wsol_jax.localization.localize import localize
from wsol_jax.localization.method import ALL
from wsol_jax.localization.methods import METHODS, resolve_methods
from wsol_jax.localization.views import image_keys, noisy, other_keys

CLASSES = np.array([[1, 4], [0, 5], [5, 2], [3, 1]])


def close(actual, expected, tolerance=1e-5):
    """Equal up to `tolerance` times the largest magnitude."""
    scale = np.abs(expected).max()
    assert scale > 0, 'nothing to compare'
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance * scale)


def relu(x):
    return np.maximum(x, 0)


def unit(x):
    return x / np.sqrt((x**2).sum())


def min_max(m):
    m = np.asarray(m, np.float64)
    return (m - m.min()) / (m.max() - m.min())


@pytest.fixture(scope='module')
def tensors():
    """S >= 0 with an empty channel, g and q of both signs; float64 of float32 values."""
    rng = np.random.default_rng(4)
    s = relu(rng.normal(size=(3, 5, 4, 6))).astype(np.float32)
    g, q = rng.normal(size=(2, *s.shape)).astype(np.float32)
    s[..., 2] = 0
    g[:, 1] = 0
    return s.astype(np.float64), g.astype(np.float64), q.astype(np.float64)


def combine(method, *tensors):
    return method.combine(*(jnp.asarray(t, jnp.float32) for t in tensors))


def test_elementwise_clips_every_product(tensors):
    s, g, _ = tensors
    s = s - 0.5  # of both signs, or clipping the gradient would do
    actual = combine(METHODS['grad_cam_elementwise'](), s, g)
    for i, y, x in np.ndindex(3, 5, 4):
        expected = sum(max(a * b, 0) for a, b in zip(g[i, y, x], s[i, y, x], strict=True))
        assert actual[i, y, x] == pytest.approx(expected, abs=1e-5)


def test_eigen_grad_cam_is_the_first_principal_component_of_the_products(tensors):
    s, g, _ = tensors
    actual = jax.jit(METHODS['eigen_grad_cam']().combine)(*np.float32([s, g]))
    for i in range(3):
        matrix = (g[i] * s[i]).reshape(20, 6)
        matrix = matrix - matrix.mean(0)
        expected = (matrix @ np.linalg.svd(matrix)[2][0]).reshape(5, 4)
        expected *= np.sign(expected.flat[np.abs(expected).argmax()])
        close(actual[i], expected, 1e-4)


def test_sgl_g1_is_the_limit_of_dgl(tensors):
    limit = combine(METHODS['dgl'](1e6), *tensors)
    far = combine(METHODS['dgl'](1.0), *tensors)
    actual = combine(METHODS['sgl_g1'](), *tensors[:2])
    for i in range(3):
        close(min_max(actual[i]), min_max(limit[i]))
        assert np.abs(min_max(actual[i]) - min_max(far[i])).max() > 0.05


def test_sgl_g1_by_hand_and_normalizing_the_outer_gradient_changes_nothing(tensors):
    s, g, _ = tensors
    actual = combine(METHODS['sgl_g1'](), s, g)
    for i in range(3):
        enhanced = unit(s[i]) + unit(g[i])
        close(actual[i], (enhanced * unit(g[i])).sum(-1))
        close(min_max(actual[i]), min_max((enhanced * g[i]).sum(-1)))


@pytest.mark.parametrize('alpha', [1.0, 10.0])
def test_sgl_g2_by_hand(tensors, alpha):
    actual = combine(METHODS['sgl_g2'](alpha), *tensors)
    for i, (s, g, q) in enumerate(zip(*tensors, strict=True)):
        loss = unit(q - alpha * g)
        close(actual[i], (-loss * (unit(s) - loss)).sum(-1))


def test_alpha_reaches_sgl_g2():
    assert resolve_methods(('sgl_g2',), 3.0) == ((sgl_g2(3.0),),)
    assert sgl_g2(3.0) != sgl_g2(10.0)


@pytest.fixture(scope='module')
def inputs(toy, toy_images):
    return np.asarray(toy.preprocessing(toy_images))


@partial(jax.jit, static_argnums=(0, 3))
def pulled(apply, state, inputs, layer, classes):
    """(S, g) [B,h,w,K] by jax.grad."""

    def total(perturb):
        logits, endpoints = apply(state, inputs, {layer: perturb})
        return logits[jnp.arange(len(inputs)), classes].sum(), endpoints[layer]

    g, s = jax.grad(total, has_aux=True)(jnp.zeros_like(apply(state, inputs)[1][layer]))
    return s, g


def gradient_at(network, inputs, layer, k):
    """(S, g) [B,h,w,K] of the k-th classes, as float64."""
    found = pulled(network.apply, network.state, inputs, layer, CLASSES[:, k])
    return tuple(np.asarray(t, np.float64) for t in found)


def plus_plus_by_hand(s, gradients):
    """Of one image: Grad-CAM++ with the moments of several gradients [h,w,K]."""
    expected = np.zeros(s.shape[:2])
    for k in range(s.shape[2]):
        weight = 0.0
        for y, x in np.ndindex(s.shape[:2]):
            first, second, third = (
                np.mean([g[y, x, k] ** p for g in gradients]) for p in (1, 2, 3)
            )
            bottom = 2 * second + s[..., k].sum() * third
            weight += (second / bottom if second and bottom else 0) * max(first, 0)
        expected += weight * s[..., k]
    return expected


@pytest.mark.slow
@pytest.mark.parametrize('size', [1.0, 1e-30], ids=['', 'tiny gradients'])
def test_smooth_grad_cam_pp(toy, toy_images, inputs, size):
    network = replace(toy, state=toy.state | {'head': toy.state['head'] * np.float32(size)})
    method = smooth_grad_cam_pp(samples=3, sigma=0.5)
    maps = localize(network, toy_images, (method, 'grad_cam_pp'), ('early',), CLASSES).maps
    keys = [other_keys(image_keys(toy_images, 0), sample) for sample in range(3)]
    views = [jax.jit(noisy)(inputs, 0.5, k) for k in keys]
    changes = []
    for k in range(2):
        s, _ = gradient_at(network, inputs, 'early', k)
        drawn = [gradient_at(network, view, 'early', k)[1] for view in views]
        for i in range(4):
            expected = plus_plus_by_hand(s[i], [g[i] for g in drawn])
            # Its unit is free.
            actual = np.asarray(maps['smooth_grad_cam_pp', 'early'][i, k])
            close(actual / actual.max(), expected / expected.max())
            sharp = np.asarray(maps['grad_cam_pp', 'early'][i, k])
            changes.append(np.abs(sharp / sharp.max() - expected / expected.max()).max())
    assert max(changes) > 1e-3  # the noise matters


def test_refine_cam_is_the_product_over_all_layers(toy, toy_images, inputs):
    # Whatever layers the other methods are asked for.
    maps = localize(toy, toy_images, ('refine_cam', 'cam'), ('late',), CLASSES).maps
    assert maps['refine_cam', ALL].shape == (4, 2, 8, 8)
    for k in range(2):
        tensors = {layer: gradient_at(toy, inputs, layer, k) for layer in ('early', 'late')}
        for i in range(4):
            early, late = (relu(plus_plus_by_hand(s[i], [g[i]])) for s, g in tensors.values())
            expected = min_max(early) * cv2.resize(min_max(late), (8, 8))
            close(maps['refine_cam', ALL][i, k], expected)


def tanh_apply(state, inputs, perturb=None):
    """The toy network with tanh in place of ReLU: smooth, so that scores have a Hessian."""
    perturb = perturb or {}
    early = jnp.tanh(inputs @ state['early']) + perturb.get('early', 0.0)
    pooled = early.reshape(len(early), 4, 2, 4, 2, 4).mean((2, 4))
    late = jnp.tanh(pooled @ state['late']) + perturb.get('late', 0.0)
    return late.mean((1, 2)) @ state['head'] + state['bias'], {'early': early, 'late': late}


def tanh_gradient(w, layer, s, c, score):
    """Gradient of the score of one image by the chain rule, as a function of S at a layer."""
    late = s
    if layer == 'early':
        late = np.tanh(s.reshape(4, 2, 4, 2, 4).mean((1, 3)) @ w['late'])
    z = late.mean((0, 1)) @ w['head'] + w['bias']
    one = np.eye(6)[c]
    p = np.exp(z) / np.exp(z).sum()
    g = np.broadcast_to(
        (one if score == 'logit' else p[c] * (one - p)) @ w['head'].T / 16, (4, 4, 5)
    )
    if layer == 'early':
        g = ((g * (1 - late**2)) @ w['late'].T / 4).repeat(2, 0).repeat(2, 1)
    return g


def shapley_by_hand(w, layer, s, c, score):
    """(the map, what Grad-CAM would be) of one image: H S by central differences of g."""
    g = tanh_gradient(w, layer, s, c, score)
    up, down = (tanh_gradient(w, layer, s * (1 + step), c, score) for step in (1e-5, -1e-5))
    curved = (up - down) / 2e-5
    return s @ (g - curved / 2).mean((0, 1)), s @ g.mean((0, 1))


@pytest.mark.parametrize('score', ['logit', 'softmax'])
def test_shapley_cam_of_a_smooth_network(toy, toy_images, inputs, score):
    # Smaller weights, or tanh and softmax would be saturated.
    w = {k: np.asarray(v, np.float64) * 0.5 for k, v in toy.state.items()}
    state = {k: v * np.float32(0.5) for k, v in toy.state.items()}
    network = replace(toy, apply=tanh_apply, state=state)
    layers = ('early', 'late')
    maps = localize(network, toy_images, ('shapley_cam',), layers, CLASSES, score=score).maps
    early = np.tanh(inputs.astype(np.float64) @ w['early'])
    late = np.tanh(early.reshape(4, 4, 2, 4, 2, 4).mean((2, 4)) @ w['late'])
    for layer, s in {'early': early, 'late': late}.items():
        differences = []
        for i, k in np.ndindex(4, 2):
            expected, flat = shapley_by_hand(w, layer, s[i], CLASSES[i, k], score)
            close(maps['shapley_cam', layer][i, k], expected, 1e-4)
            differences.append(np.abs(flat - expected).max() / np.abs(expected).max())
        # The logit is linear in the last layer; everywhere else the Hessian counts.
        assert (max(differences) > 1e-3) == (score == 'softmax' or layer == 'early')


def test_shapley_cam_of_a_logit_is_grad_cam_where_the_network_is_linear_by_parts(toy, toy_images):
    layers = ('early', 'late')
    maps = localize(toy, toy_images, ('shapley_cam', 'grad_cam'), layers, CLASSES).maps
    for layer in layers:
        close(maps['shapley_cam', layer], np.asarray(maps['grad_cam', layer]), 1e-6)


LAST = ('cam', 'grad_cam', 'hires_cam', 'xgrad_cam', 'layer_cam', 'shapley_cam', 'dgl', 'sgl_g1')


@pytest.fixture(scope='module')
def last_layer(toy, toy_images, inputs):
    """Maps before pooling and classifier; activations and all numbers of the head, in float64."""
    result = localize(toy, toy_images, LAST, ('late',), CLASSES)
    maps = {name: np.asarray(result.maps[name, 'late'], np.float64) for name in LAST}
    s = np.asarray(toy.apply(toy.state, inputs)[1]['late'], np.float64)
    head, bias = (np.asarray(toy.state[k], np.float64) for k in ('head', 'bias'))
    return maps, s, head, bias, np.asarray(result.logits)


@pytest.mark.parametrize('name', [name for name in LAST if name not in ('cam', 'layer_cam')])
def test_behind_pooling_and_a_linear_layer_they_are_cam(last_layer, name):
    maps, *_ = last_layer
    for i, k in np.ndindex(4, 2):
        close(min_max(maps[name][i, k]), min_max(maps['cam'][i, k]))


def test_cam_and_layer_cam_from_the_classifiers_weights(last_layer):
    maps, s, head, *_ = last_layer
    for i, k in np.ndindex(4, 2):
        weights = head[:, CLASSES[i, k]]
        assert weights.min() < 0 < weights.max()
        close(maps['cam'][i, k], s[i] @ weights)
        close(min_max(maps['layer_cam'][i, k]), min_max(s[i] @ relu(weights)))


def test_mean_of_cam_and_the_bias_are_the_logit(last_layer):
    maps, _, _, bias, logits = last_layer
    for i, k in np.ndindex(4, 2):
        c = CLASSES[i, k]
        assert maps['cam'][i, k].mean() + bias[c] == pytest.approx(logits[i, c], rel=1e-4)

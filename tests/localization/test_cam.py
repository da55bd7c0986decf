"""The CAM family: each method against a plain loop, and what they have in common."""

import jax
import numpy as np
import pytest

from wsol_jax.localization import cam
from wsol_jax.localization.localize import localize
from wsol_jax.localization.methods import METHODS, resolve_methods
from wsol_jax.localization.plan import make_plan

# The younger ones have their closed forms in test_cam_family.py.
FAMILY = ['cam', 'grad_cam', 'grad_cam_pp', 'xgrad_cam', 'hires_cam', 'layer_cam']


def relu(x):
    return max(x, 0.0)


def weights_by_hand(name, s, g):
    """w [h,w,K] of one image, so that the map is sum_k w_k S_k; textbook formulas in float64."""
    height, width, features = s.shape
    w = np.zeros_like(s)
    for k in range(features):
        sk, gk = s[..., k], g[..., k]
        if name == 'cam':
            w[..., k] = gk.sum()
        if name == 'grad_cam':
            w[..., k] = gk.sum() / (height * width)
        if name == 'xgrad_cam':
            w[..., k] = (gk * sk).sum() / sk.sum() if sk.sum() else 0
        if name == 'grad_cam_pp':
            total = 0.0
            for y in range(height):
                for x in range(width):
                    bottom = 2 * gk[y, x] ** 2 + sk.sum() * gk[y, x] ** 3
                    alpha = gk[y, x] ** 2 / bottom if bottom else 0.0
                    total += alpha * relu(gk[y, x])
            w[..., k] = total
        if name == 'hires_cam':
            w[..., k] = gk
        if name == 'layer_cam':
            w[..., k] = np.vectorize(relu)(gk)
    return w


@pytest.fixture(scope='module')
def tensors():
    """Activations >= 0 with an empty channel, gradients of both signs with zeros in between."""
    rng = np.random.default_rng(4)
    s = np.maximum(rng.normal(size=(3, 5, 4, 6)), 0).astype(np.float32)
    g = rng.normal(size=s.shape).astype(np.float32)
    s[:, :, :, 2] = 0
    g[:, 1:3, :, :] = 0
    return s, g


@pytest.mark.parametrize('name', FAMILY)
def test_closed_form(name, tensors):
    s, g = tensors
    actual = METHODS[name]().combine(s, g)
    assert actual.shape == (3, 5, 4)
    for i in range(3):
        exact = s[i].astype(np.float64), g[i].astype(np.float64)
        expected = (weights_by_hand(name, *exact) * exact[0]).sum(-1)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(actual[i], expected, rtol=0, atol=1e-5 * scale)


def test_grad_cam_pp_keeps_small_gradients(tensors):
    # g^2 and g^3 of 1e-15 underflow float32; in the textbook formula they cancel.
    s, g = tensors
    small = np.float32(1e-15) * np.abs(g)
    actual = METHODS['grad_cam_pp']().combine(s, small)[0]
    exact = s[0].astype(np.float64), small[0].astype(np.float64)
    expected = (weights_by_hand('grad_cam_pp', *exact) * exact[0]).sum(-1)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3 * expected.max())


def test_all_zero_tensors_give_zero_maps():
    zero = np.zeros((1, 3, 3, 2), np.float32)
    for name in FAMILY:
        assert not np.asarray(METHODS[name]().combine(zero, zero)).any(), name


def test_which_definitions_end_in_a_relu():
    assert {name for name in METHODS if METHODS[name]().relu} == {
        'grad_cam',
        'grad_cam_pp',
        'smooth_grad_cam_pp',
        'xgrad_cam',
        'shapley_cam',
        'eigen_grad_cam',
        'kpca_cam',
        'score_cam',
        'ss_cam',
        'is_cam',
        'ablation_cam',
        'random_cam',
        'integrated_gradients',
    }


def test_every_method_has_its_name_and_its_place():
    assert len(METHODS) == 29
    assert all(METHODS[name]().name == name for name in METHODS)
    places = {name: METHODS[name]().where for name in METHODS}
    assert {n: p for n, p in places.items() if p != 'any'} == {
        'cam': 'last',
        'refine_cam': 'all',
        'full_grad': 'all',
        'saliency': 'input',
        'smooth_grad': 'input',
        'integrated_gradients': 'input',
        'guided_backprop': 'input',
        'rollout': 'all',
    }


@pytest.fixture(scope='module')
def last_layer(resnet, images):
    """Float64 maps and activations at the layer before pooling, and the head's own weights."""
    result = localize(resnet, images, FAMILY, ('stage4',), classes=[1, 6, 3])
    _, endpoints = jax.jit(resnet.apply)(resnet.state, resnet.preprocessing(images))
    maps = {name: np.asarray(result.maps[name, 'stage4'], np.float64) for name in FAMILY}
    kernel = np.asarray(resnet.state['fc']['kernel'].get_value(), np.float64)
    return maps, np.asarray(endpoints['stage4'], np.float64), kernel[:, [1, 6, 3]].T


def min_max(m):
    return (m - m.min()) / (m.max() - m.min())


def test_cam_is_the_weighted_sum_with_the_classifiers_weights(last_layer):
    maps, s, weights = last_layer
    for i in range(3):
        expected = sum(weights[i, k] * s[i, :, :, k] for k in range(s.shape[-1]))
        scale = np.abs(expected).max()
        np.testing.assert_allclose(maps['cam'][i], expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize('name', ['grad_cam', 'hires_cam', 'xgrad_cam'])
def test_behind_pooling_and_a_linear_layer_they_are_cam(last_layer, name):
    maps, *_ = last_layer
    for i in range(3):
        expected = min_max(maps['cam'][i])
        np.testing.assert_allclose(min_max(maps[name][i]), expected, rtol=0, atol=1e-5)


def test_layer_cam_is_cam_with_positive_weights(last_layer):
    maps, s, weights = last_layer
    for i in range(3):
        expected = min_max(s[i] @ np.maximum(weights[i], 0))
        np.testing.assert_allclose(min_max(maps['layer_cam'][i]), expected, rtol=0, atol=1e-5)
        assert np.abs(expected - min_max(maps['cam'][i])).max() > 0.01


def test_cam_is_at_the_last_layer_whatever_was_asked_for(resnet, images):
    result = localize(resnet, images, ('cam', 'layer_cam'), ('stage2', 'stage3'))
    expected = {('cam', 'stage4'), ('layer_cam', 'stage2'), ('layer_cam', 'stage3')}
    assert set(result.maps) == expected
    plan = make_plan(resnet, ('cam', 'layer_cam'), ('stage2', 'stage3'))
    assert set(plan.keys) == expected and len(plan.keys) == 3


def test_names_resolve_and_wrong_ones_are_errors():
    resolved = resolve_methods(['cam', cam.layer_cam(), 'grad_cam+cam'])
    names = [tuple(m.name for m in fused) for fused in resolved]
    assert names == [('cam',), ('layer_cam',), ('grad_cam', 'cam')]
    with pytest.raises(ValueError, match=r"'gradcam'; did you mean 'grad_cam'"):
        resolve_methods(['gradcam'])
    with pytest.raises(ValueError, match="'cam' is given more than once"):
        resolve_methods(['cam', 'dgl', cam.cam()])
    with pytest.raises(ValueError, match=r"'layercam'; did you mean 'layer_cam'"):
        resolve_methods(['cam+layercam'])
    with pytest.raises(ValueError, match=r"'cam\+dgl' is given more than once"):
        resolve_methods(['cam+dgl', 'dgl', 'cam+dgl'])
    with pytest.raises(ValueError, match='no localization method'):
        resolve_methods([])
    with pytest.raises(ValueError, match=r"\('dgl',\)"):
        resolve_methods('dgl')

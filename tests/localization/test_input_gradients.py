"""Maps at the input: by plain jax.grad, by sums that must hold, by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import _toy_apply, _toy_network
from flax import linen, nnx

from wsol_jax import boxes_from_map, export, load_exported, localize
from wsol_jax.localization.dgl import dgl
from wsol_jax.localization.guided import guided
from wsol_jax.localization.input_gradients import (
    guided_backprop,
    integrated_gradients,
    saliency,
    smooth_grad,
)
from wsol_jax.localization.views import image_keys, noisy, other_keys
from wsol_jax.models import Preprocessing, from_linen

CLASSES = np.array([[1, 4], [0, 5], [2, 2], [3, 0]])
ALL = ('saliency', 'smooth_grad', 'integrated_gradients', 'guided_backprop')


def close(actual, expected, tolerance=1e-5):
    """Equal up to `tolerance` times the largest magnitude."""
    scale = np.abs(expected).max()
    assert scale > 0, 'nothing to compare'
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance * scale)


def map_of(network, images, method, classes=CLASSES, **options):
    result = localize(network, images, (method,), classes=classes, **options)
    assert list(result.maps) == [(method.name, 'input')]
    return np.asarray(result.maps[method.name, 'input'])


def gradients(network, inputs):
    """Of the classes, by jax.grad: [B,K,H,W,C]."""

    def score(x, c):
        return network.apply(network.state, x[None])[0][0, c]

    of_classes = jax.vmap(jax.grad(score), (None, 0))
    return np.asarray(jax.vmap(of_classes)(inputs, CLASSES))


@pytest.mark.slow
def test_saliency_is_the_largest_gradient_over_channels(toy, toy_images):
    g = gradients(toy, toy.preprocessing(toy_images))
    close(map_of(toy, toy_images, saliency()), np.abs(g).max(-1))


def test_smooth_grad_is_the_mean_over_noisy_inputs(toy, toy_images):
    inputs = toy.preprocessing(toy_images)
    keys = image_keys(jnp.asarray(toy_images), 7)
    drawn = [gradients(toy, noisy(inputs, 0.5, other_keys(keys, i))) for i in range(3)]
    actual = map_of(toy, toy_images, smooth_grad(3, 0.5), seed=7)
    close(actual, np.abs(np.mean(drawn, axis=0)).max(-1))
    assert np.abs(actual - np.abs(drawn[0]).max(-1)).max() > 0.05 * actual.max()


def test_smooth_grad_without_noise_is_saliency(toy, toy_images):
    close(map_of(toy, toy_images, smooth_grad(2, 0.0)), map_of(toy, toy_images, saliency()))


def quadratic(state, inputs, perturb=None):
    """As the toy network, with squares in place of ReLUs: gradients are cubic along a line."""
    early = (inputs @ state['early']) ** 2 + (perturb or {}).get('early', 0.0)
    return early.mean((1, 2)) @ state['late'] @ state['head'] + state['bias'], {'early': early}


@pytest.mark.slow
@pytest.mark.parametrize('baseline', [0.0, -0.7])
def test_integrated_gradients_sum_to_the_difference_of_the_scores(toy, toy_images, baseline):
    squares = _toy_network(quadratic, {'early': (8, 8, 4)}, last_layer='early')
    for network, steps, tolerance in ((toy, 1024, 3e-3), (squares, 1, 1e-5), (squares, 5, 1e-5)):
        inputs = network.preprocessing(toy_images)
        logits = network.apply(network.state, inputs)[0]
        of_baseline = network.apply(network.state, jnp.full_like(inputs, baseline))[0]
        expected = np.take_along_axis(np.asarray(logits - of_baseline), CLASSES, axis=1)
        maps = map_of(network, toy_images, integrated_gradients(steps, baseline))
        close(maps.sum((2, 3)), expected, tolerance)
    method = integrated_gradients()
    assert method.relu and not saliency().relu


def test_more_steps_leave_a_smaller_error(toy, toy_images):
    inputs = toy.preprocessing(toy_images)
    # From 0 the network is linear along the line, as it has ReLUs and no biases.
    logits, of_grey = (toy.apply(toy.state, x)[0] for x in (inputs, jnp.full_like(inputs, -0.7)))
    expected = np.take_along_axis(np.asarray(logits - of_grey), CLASSES, axis=1)
    errors = []
    for steps in (2, 16, 128):
        sums = map_of(toy, toy_images, integrated_gradients(steps, -0.7)).sum((2, 3))
        errors.append(np.abs(sums - expected).max())
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


# ---------------------------------------------------------------- guided backpropagation


def guided_by_hand(state, inputs, classes, most=np.inf):
    """Of the toy network, in float64: [B,K,H,W,3]."""
    a, b, h = (np.asarray(state[k], np.float64) for k in ('early', 'late', 'head'))
    before = np.asarray(inputs, np.float64) @ a
    early = np.clip(before, 0, most)
    pooled = early.reshape(len(early), 4, 2, 4, 2, -1).mean((2, 4))
    after = pooled @ b
    found = []
    for c in classes.T:
        g = np.broadcast_to((h.T[c] / 16)[:, None, None], after.shape)
        g = np.where((after > 0) & (g > 0), g, 0) @ b.T
        g = g.repeat(2, axis=1).repeat(2, axis=2) / 4
        g = np.where(before < most, g, 0)
        found.append(np.where((before > 0) & (g > 0), g, 0) @ a.T)
    return np.stack(found, axis=1)


def test_guided_backprop_by_hand(toy, toy_images):
    expected = guided_by_hand(toy.state, toy.preprocessing(toy_images), CLASSES)
    close(map_of(toy, toy_images, guided_backprop()), np.abs(expected).max(-1))


def test_guided_backprop_through_relu6_and_maximum(toy, toy_images):
    def apply(state, inputs, perturb=None):
        early = jnp.minimum(jnp.maximum(0, inputs @ state['early']), 1.0)
        pooled = early.reshape(len(early), 4, 2, 4, 2, -1).mean((2, 4))
        late = jax.nn.relu(pooled @ state['late'])
        return late.mean((1, 2)) @ state['head'], {'early': early, 'late': late}

    network = replace(toy, apply=apply)
    expected = guided_by_hand(toy.state, toy.preprocessing(toy_images), CLASSES, most=1.0)
    close(map_of(network, toy_images, guided_backprop()), np.abs(expected).max(-1))


@jax.custom_vjp
def handed_back(x):
    """max(x, 0), with guided backpropagation's rule; written apart from the library's."""
    return x * (x > 0)


handed_back.defvjp(lambda x: (x * (x > 0), x), lambda x, g: (g * (g > 0) * (x > 0),))


@pytest.mark.slow
def test_guided_backprop_of_a_residual_network(resnet, images, monkeypatch):
    found = map_of(resnet, images, guided_backprop(), classes=2)
    inputs = resnet.preprocessing(images)
    monkeypatch.setattr(nnx, 'relu', handed_back)
    g = jax.grad(lambda x: resnet.apply(resnet.state, x)[0][:, 2].sum())(inputs)
    close(found, np.abs(g).max(-1), 1e-4)
    monkeypatch.undo()
    plain = jax.grad(lambda x: resnet.apply(resnet.state, x)[0][:, 2].sum())(inputs)
    assert np.abs(np.abs(plain).max(-1) - found).max() > 0.1 * found.max()


def test_a_guided_function_has_the_same_values():
    @jax.custom_vjp
    def doubled(x):
        return 2 * x

    doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (7 * g,))  # kept as it is

    def function(x):
        y = jax.checkpoint(lambda x: jax.nn.relu6(3 * x))(doubled(x))
        loop = jax.lax.scan(lambda c, _: (jnp.sin(c), c), y, None, length=3)
        return jax.jit(jnp.maximum)(loop[0], 0.0) - jnp.max(x) + jnp.maximum(x, 1.0)

    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    np.testing.assert_allclose(guided(function, x)(x), function(x), rtol=1e-6)
    close(
        jax.grad(lambda x: guided(lambda x: jax.nn.relu(doubled(x)), x)(x).sum())(x), 7.0 * (x > 0)
    )


class Block(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(4, (3, 3), strides=2, name='early')(x)
        return linen.Dense(6)(linen.remat(Relu)()(x).mean((1, 2)))


class Relu(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.relu(x)


SCALE = Preprocessing((128.0,) * 3, (64.0,) * 3)


def test_guided_backprop_of_somebodys_model(toy_images):
    module = Block()
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    network = from_linen(module, variables, ('early',), input_size=8, preprocessing=SCALE)

    def by_hand(x):
        early = linen.Conv(4, (3, 3), strides=2)
        x = handed_back(early.apply({'params': variables['params']['early']}, x))
        return linen.Dense(6).apply({'params': variables['params']['Dense_0']}, x.mean((1, 2)))

    g = jax.grad(lambda x: by_hand(x)[:, 3].sum())(network.preprocessing(toy_images))
    close(map_of(network, toy_images, guided_backprop(), classes=3), np.abs(g).max(-1))


def test_a_network_without_relus_has_no_guided_backprop(toy, toy_images):
    network = _toy_network(quadratic, {'early': (8, 8, 4)}, last_layer='early')
    with pytest.raises(ValueError, match=r'guided_backprop changes the ReLUs .* this one has none'):
        localize(network, toy_images, ('guided_backprop',))

    def apply(state, inputs, perturb=None):
        looped = jax.lax.scan(lambda x, _: (jax.nn.relu(x), None), inputs, None, length=2)[0]
        return _toy_apply(state, looped, perturb)

    with pytest.raises(ValueError, match='cannot change the ReLU inside of a scan'):
        localize(replace(toy, apply=apply), toy_images, ('guided_backprop',))


# ---------------------------------------------------------------- like others


@pytest.mark.slow
def test_they_go_with_others(toy, toy_images, tmp_path):
    methods = ('dgl', *ALL, 'cam+saliency', 'layer_cam+saliency')
    result = localize(toy, toy_images, methods, ('early',), flip=True, scales=(1.0, 2.0))
    fused = [('cam+saliency', 'late+input'), ('layer_cam+saliency', 'early')]
    assert list(result.maps) == [('dgl', 'early'), *((n, 'input') for n in ALL), *fused]
    assert {m.shape for k, m in result.maps.items() if k[0] in ALL} == {(4, 16, 16)}
    plain = localize(toy, toy_images, ALL)
    for (key, boxes), raw in zip(plain.boxes(0.3).items(), plain.maps.values(), strict=True):
        relu = key[0] == 'integrated_gradients'
        for box, m in zip(boxes, raw, strict=True):
            np.testing.assert_array_equal(box, boxes_from_map(m, (8, 8), 0.3, relu=relu))
    export(toy, ALL, None, tmp_path / 'maps.zip')
    exported = load_exported(tmp_path / 'maps.zip')(toy_images)
    for key, m in plain.maps.items():
        close(exported.maps[key], np.asarray(m))


def test_an_endpoint_may_be_called_input(toy, toy_images):
    def apply(state, inputs, perturb=None):
        perturb = {'early': perturb['input']} if perturb else None
        logits, seen = toy.apply(state, inputs, perturb)
        return logits, {'input': seen['early']}

    network = replace(toy, apply=apply, shapes={'input': (8, 8, 4)}, last_layer='input')
    found = localize(network, toy_images, ('layer_cam', 'saliency')).maps
    expected = localize(toy, toy_images, ('layer_cam', 'saliency'), ('early',)).maps
    close(found['layer_cam', 'input'], np.asarray(expected['layer_cam', 'early']))
    close(found['saliency', 'input'], np.asarray(expected['saliency', 'input']))


def ranks(m):
    return np.argsort(np.argsort(m.ravel())).astype(float)


@pytest.mark.slow
@pytest.mark.parametrize('method', [saliency(), smooth_grad(2), integrated_gradients(3), dgl()])
def test_another_last_layer_makes_another_map(method, resnet, images):
    """Adebayo et al. 2018: a map that does not change has nothing to say of the network."""
    path = next(p for p, _ in jax.tree_util.tree_leaves_with_path(resnet.state) if 'fc' in str(p))

    def drawn(p, leaf):
        same = str(p) != str(path) and 'fc' not in str(p)
        return leaf if same else np.random.default_rng(0).normal(size=leaf.shape, scale=0.3)

    other = replace(resnet, state=jax.tree_util.tree_map_with_path(drawn, resnet.state))
    before, after = (
        np.asarray(localize(n, images, (method,), ('stage3',), classes=1).maps[method.name])
        for n in (resnet, other)
    )
    correlations = [
        np.corrcoef(ranks(a), ranks(b))[0, 1] for a, b in zip(before, after, strict=True)
    ]
    assert np.mean(correlations) < 0.8

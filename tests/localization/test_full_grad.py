"""FullGrad: that everything sums to the score, and each contribution by hand."""

from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsol_jax.localization.full_grad import contributions
from wsol_jax.localization.gradients import activation_gradients
from wsol_jax.localization.localize import localize
from wsol_jax.localization.method import ALL, Run, class_score
from wsol_jax.localization.targets import logit, target_scores
from wsol_jax.localization.views import image_keys
from wsol_jax.models import Network, Preprocessing
from wsol_jax.models.layers import Endpoints

CLASSES = np.array([[1, 4], [0, 5], [2, 2]])
SIDE = 8


def close(actual, expected, tolerance=1e-5):
    """Equal up to `tolerance` times the largest magnitude."""
    scale = np.abs(expected).max()
    assert scale > 0, 'nothing to compare'
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance * scale)


def made(apply, shapes, seed, main=None):
    """A network with random numbers of these shapes."""
    rng = np.random.default_rng(seed)
    state = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
    return Network.from_apply(
        apply,
        state,
        name='made',
        preprocessing=Preprocessing((128.0,) * 3, (64.0,) * 3),
        input_size=SIDE,
        main=main,
    )


def two_layers(state, inputs, perturb=None):
    """first = relu(x A + a), second = relu(pool(first) B + b), logits = mean(second) H + h."""
    seen = Endpoints(perturb)
    first = seen.tap('first', jax.nn.relu(inputs @ state['A'] + state['a']))
    pooled = first.reshape(len(first), 4, 2, 4, 2, 5).mean((2, 4))
    second = seen.tap('second', jax.nn.relu(pooled @ state['B'] + state['b']))
    return second.mean((1, 2)) @ state['H'] + state['h'], seen.finish()


TWO = {'A': (3, 5), 'a': (5,), 'B': (5, 4), 'b': (4,), 'H': (4, 6), 'h': (6,)}


def convolved(x, kernel, stride=1):
    form = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, 'SAME', dimension_numbers=form)


def sequential(state, inputs, perturb=None):
    """Convolutions with bias, with batch norm in inference mode and relu6, and max pooling."""
    seen = Endpoints(perturb)
    x = seen.tap('one', jax.nn.relu(convolved(inputs, state['one']) + state['bias']))
    x = convolved(x, state['two'], 2)
    x = (x - state['mean']) * jax.lax.rsqrt(state['var'] ** 2 + 1e-3) * state['scale']
    x = seen.tap('two', jax.nn.relu6(x + state['shift']))
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 1, 1, 1), 'SAME')
    x = seen.tap('three', jax.nn.relu(convolved(x, state['three']) + state['bias_3']))
    return x.mean((1, 2)) @ state['H'] + state['h'], seen.finish()


SEQUENTIAL = {
    **{'one': (3, 3, 3, 4), 'bias': (4,), 'two': (3, 3, 4, 6), 'three': (1, 1, 6, 5)},
    **dict.fromkeys(('mean', 'var', 'scale', 'shift'), (6,)),
    **{'bias_3': (5,), 'H': (5, 6), 'h': (6,)},
}
NETWORKS = {
    'two layers': (two_layers, TWO, None),
    'batch norm, relu6, pooling': (sequential, SEQUENTIAL, None),
    'a step over two layers': (sequential, SEQUENTIAL, ('one', 'three')),
    'only the last layer': (sequential, SEQUENTIAL, ('three',)),
}


@pytest.fixture(scope='module')
def images():
    return np.random.default_rng(9).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)


@partial(jax.jit, static_argnums=(0, 1))
def decomposed(apply, chain, state, inputs, classes):
    """Logits, activations and contributions."""
    logits, chosen, activations, gradients = activation_gradients(
        apply, state, inputs, classes, chain, [class_score]
    )
    run = Run(
        forward=partial(apply, state),
        inputs=inputs,
        scores=lambda z: target_scores(logit, z, chosen),
        logits=logits,
        activations=activations,
        gradients={n: g[class_score] for n, g in gradients.items()},
        main_layers=chain,
        chunk_size=16,
        keys=image_keys(inputs, 0),
        state=state,
        classes=classes,
    )
    return logits, activations, *contributions(run)


def decompose(network, images):
    inputs = network.preprocessing(images)
    return decomposed(network.apply, network.layers(), network.state, inputs, CLASSES)


@pytest.mark.slow
@pytest.mark.parametrize('name', NETWORKS)
def test_contributions_sum_to_the_score(name, images):
    apply, shapes, main = NETWORKS[name]
    network = made(apply, shapes, 3, main)
    logits, _, of_input, of_layers = decompose(network, images)
    assert of_input.shape == (2, 3, SIDE, SIDE, 3) and set(of_layers) == set(network.layers())
    parts = [np.asarray(p, np.float64) for p in (of_input, *of_layers.values())]
    for part in parts:
        assert np.abs(part.sum((2, 3, 4))).min() > 1e-3  # every part counts
    for i, k in np.ndindex(3, 2):
        size = sum(np.abs(part[k, i]).sum() for part in parts)
        total = sum(part[k, i].sum() for part in parts) + float(network.state['h'][CLASSES[i, k]])
        assert total == pytest.approx(float(logits[i, CLASSES[i, k]]), rel=1e-5, abs=1e-5 * size)


def test_the_clipping_is_active(images):
    network = made(*NETWORKS['batch norm, relu6, pooling'][:2], 3)
    _, activations, *_ = decompose(network, images)
    clipped = np.mean(np.asarray(activations['two']) == 6)
    assert 0.05 < clipped < 0.9


@pytest.fixture(scope='module')
def by_hand(images):
    """Network and its decomposition in float64: (of the input, of first, of second) [K,B,h,w,.]."""
    network = made(two_layers, TWO, 5)
    w = {k: np.asarray(v, np.float64) for k, v in network.state.items()}
    x = np.asarray(network.preprocessing(images), np.float64)
    first = np.maximum(x @ w['A'] + w['a'], 0)
    second = np.maximum(first.reshape(3, 4, 2, 4, 2, 5).mean((2, 4)) @ w['B'] + w['b'], 0)
    parts = []
    for classes in CLASSES.T:
        g_second = np.broadcast_to(w['H'].T[classes][:, None, None] / 16, second.shape)
        before = g_second * (second > 0)
        g_first = (before @ w['B'].T / 4).repeat(2, 1).repeat(2, 2)
        g_input = (g_first * (first > 0)) @ w['A'].T
        parts.append((g_input * x, g_first * (first > 0) * w['a'], before * w['b']))
    return network, [np.stack(p) for p in zip(*parts, strict=True)]


def test_contributions_of_two_layers_by_hand(images, by_hand):
    network, (of_input, of_first, of_second) = by_hand
    _, _, actual, layers = decompose(network, images)
    close(actual, of_input)
    close(layers['first'], of_first)
    close(layers['second'], of_second)


def psi(part):
    """[h,w,K'] -> every channel's magnitude scaled to [0,1] and resized, summed."""
    total = np.zeros((SIDE, SIDE))
    for k in range(part.shape[-1]):
        channel = np.abs(part[..., k])
        span = channel.max() - channel.min()
        if span:
            total += cv2.resize((channel - channel.min()) / span, (SIDE, SIDE))
    return total


def test_the_map_is_the_sum_of_the_scaled_magnitudes(images, by_hand):
    network, parts = by_hand
    # Whatever layers the other methods are asked for.
    result = localize(network, images, ('full_grad', 'cam'), ('second',), CLASSES)
    maps = result.maps['full_grad', ALL]
    assert maps.shape == (3, 2, SIDE, SIDE)
    for i, k in np.ndindex(3, 2):
        close(maps[i, k], sum(psi(part[k, i]) for part in parts))

"""Convolution with its own weight gradient, and dropout by image, against XLA and by hand."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsol_jax.models.layers import Dropout, conv, convolve

SHAPES = [
    ((3, 3), 1, 'SAME', 1),
    ((3, 3), 2, 'VALID', 1),
    ((3, 3), 2, ((2, 0), (1, 1)), 1),
    ((3, 3), 2, 'SAME', 6),
    ((1, 1), 1, 'VALID', 1),
    ((1, 1), 2, 'SAME', 1),
    ((1, 7), 1, ((0, 0), (3, 3)), 1),
    ((1, 7), 2, 'SAME', 1),
]


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    """Elsewhere `convolve` is XLA's own convolution; its other path must be right there, too."""
    monkeypatch.setattr(jax, 'default_backend', lambda: 'cpu')


def xla(x, kernel, stride, padding, dilation=1, convolution=jax.lax.conv_general_dilated):
    how = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC'), 'rhs_dilation': (dilation,) * 2}
    return convolution(x, kernel, (stride, stride), padding, **how)


ours = partial(xla, convolution=convolve)


def arrays(side):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 9, 10, 3)), jnp.float32)
    return x, jnp.asarray(rng.normal(size=(*side, 3, 4)), jnp.float32)


def everything(convolution, x, kernel):
    """Value and derivatives of all kinds, of a function that is not linear in either."""

    def loss(x, kernel):
        return jnp.sum(jnp.sin(convolution(x, kernel)))

    value, pull_back = jax.vjp(convolution, x, kernel)
    cotangents = jnp.stack([jnp.cos(k * value) for k in range(3)])
    directions = (jnp.cos(x), jnp.sin(kernel))
    return {
        'value': value,
        'gradients': jax.grad(loss, (0, 1))(x, kernel),
        'gradient of the input': jax.grad(loss, 0)(x, kernel),
        'gradient of the kernel': jax.grad(loss, 1)(x, kernel),
        'forward': jax.jvp(loss, (x, kernel), directions),
        'second': jax.jvp(jax.grad(loss, (0, 1)), (x, kernel), directions),
        'many': jax.vmap(pull_back)(cotangents),
    }


@pytest.mark.slow
@pytest.mark.parametrize(('side', 'stride', 'padding', 'dilation'), SHAPES)
def test_convolve_equals_xla(side, stride, padding, dilation):
    x, kernel = arrays(side)
    found, expected = (
        jax.jit(lambda x, k, f=f: everything(lambda x, k: f(x, k, stride, padding, dilation), x, k))
        for f in (ours, xla)
    )
    found, expected = found(x, kernel), expected(x, kernel)
    for name, trees in expected.items():
        for one, two in zip(jax.tree.leaves(found[name]), jax.tree.leaves(trees), strict=True):
            scale = float(jnp.abs(two).max())
            np.testing.assert_allclose(one, two, rtol=0, atol=1e-5 * scale, err_msg=name)


def primitives(jaxpr):
    """Names of all operations, those of inner programs among them."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, 'eqns')):
            inner = getattr(value, 'jaxpr', value)
            if hasattr(inner, 'eqns'):
                yield from primitives(inner)


def test_only_the_gradient_asked_for_is_computed():
    x, kernel = arrays((3, 3))
    g = jnp.ones((2, 9, 10, 4))

    def of_input(x):
        return jax.vjp(lambda x: ours(x, kernel, 1, 'SAME'), x)[1](g)

    def of_kernel(kernel):
        return jax.vjp(lambda kernel: ours(x, kernel, 1, 'SAME'), kernel)[1](g)

    names = list(primitives(jax.make_jaxpr(of_input)(x).jaxpr))
    assert names.count('dot_general') == 0 and names.count('conv_general_dilated') == 2
    names = list(primitives(jax.make_jaxpr(of_kernel)(kernel).jaxpr))
    assert names.count('dot_general') == 9 and names.count('conv_general_dilated') == 1


def test_our_convolutions_take_this_gradient():
    layer = conv(3, 4, 3, rngs=nnx.Rngs(0))
    graph, params = nnx.split(layer)

    def loss(params, x):
        return jnp.sum(nnx.merge(graph, params)(x))

    jaxpr = jax.make_jaxpr(jax.grad(loss))(params, jnp.ones((1, 8, 8, 3)))
    assert list(primitives(jaxpr.jaxpr)).count('dot_general') == 9


def test_other_devices_take_xla_as_it_is(monkeypatch):
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    x, kernel = arrays((3, 3))
    jaxpr = jax.make_jaxpr(jax.grad(lambda k: jnp.sum(ours(x, k, 1, 'SAME'))))(kernel)
    assert 'dot_general' not in list(primitives(jaxpr.jaxpr))


@pytest.fixture
def dropout():
    return Dropout(0.2, rngs=nnx.Rngs(0))


def test_dropout_zeroes_its_rate_and_scales_the_rest(dropout):
    kept = np.asarray(dropout(jnp.full((3, 50, 50), 3.0)))
    assert set(np.unique(kept)) == {0.0, np.float32(3 / 0.8)}
    # Of 2500 values an image, a fifth to four standard deviations: sqrt(0.16 / 2500).
    np.testing.assert_allclose((kept == 0).mean((1, 2)), 0.2, atol=0.032)
    assert all((kept[i] != kept[j]).any() for i, j in itertools.combinations(range(3), 2))


def test_dropout_of_an_image_depends_on_its_key_alone(dropout):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6, 5)), jnp.float32)
    keys = jax.random.split(jax.random.key(7), 4)
    dropout.key.set_value(keys)
    whole, order = dropout(x), np.array([2, 0, 3, 1])
    dropout.key.set_value(keys[order])
    np.testing.assert_array_equal(dropout(x[order]), whole[order])
    dropout.key.set_value(keys[2:])
    np.testing.assert_array_equal(dropout(x[2:]), whole[2:])


def test_dropout_passes_everything_in_evaluation(dropout):
    x = jnp.arange(12.0).reshape(2, 6)
    dropout.eval()
    assert dropout(x) is x
    dropout.train()
    assert (np.asarray(dropout(jnp.ones((2, 100)))) == 0).any()
    assert dropout(jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.bfloat16

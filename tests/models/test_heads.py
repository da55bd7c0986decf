"""Heads beside a module, and the pieces they are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsol_jax.models import Network, Preprocessing
from wsol_jax.models.heads import (
    ConvHead,
    Heads,
    MapGenerator,
    area,
    class_map,
    erased,
    frozen,
    outputs_of,
)
from wsol_jax.models.layers import ConvNorm, Dropout, Endpoints


class Trunk(nnx.Module):
    """Its endpoint is twice the input, its logits are zeros."""

    def __call__(self, inputs, perturb=None):
        x = 2 * inputs + (perturb or {}).get('x', 0.0)
        return jnp.zeros((len(x), 3)), {'x': x}


class Means(Heads):
    """Logits are the mean colours, and there is the class that was given."""

    def __call__(self, endpoints, classes, trunk):
        found = {'logits': endpoints['x'].mean((1, 2))}
        return found if classes is None else found | {'given': classes}


INPUTS = np.random.default_rng(0).random((2, 4, 4, 3), np.float32)


def headed(heads):
    trunk = Trunk()
    trunk.heads = heads
    return trunk


def test_logits_of_the_heads_take_the_place_of_the_others():
    logits, endpoints, extras = outputs_of(headed(Means()), INPUTS, None, jnp.array([2, 1]))
    np.testing.assert_allclose(logits, 2 * INPUTS.mean((1, 2)), rtol=1e-5)
    assert list(endpoints) == ['x'] and extras['given'].tolist() == [2, 1]
    assert outputs_of(headed(Means()), INPUTS).extras == {}
    plain = outputs_of(Trunk(), INPUTS)
    assert not plain.logits.any() and plain.extras == {}


class Sums(Heads):
    """The mean colours plus what is given of the images, where it is."""

    def __call__(self, endpoints, classes, trunk):
        logits = endpoints['x'].mean((1, 2))
        return {'sums': logits + trunk.targets['words']} if trunk.targets else {}


def test_heads_see_what_is_given_beside_the_image():
    words = jnp.array([[1.0, 2, 3], [4, 5, 6]])
    found = outputs_of(headed(Sums()), INPUTS, targets={'words': words})
    np.testing.assert_allclose(found.extras['sums'], 2 * INPUTS.mean((1, 2)) + words, rtol=1e-5)
    facts = {'name': 'sums', 'preprocessing': Preprocessing((0.0,) * 3, (1.0,) * 3)}
    network = Network.from_module(headed(Sums()), input_size=4, **facts)
    again = network.outputs(network.state, INPUTS, {'words': words})
    np.testing.assert_array_equal(again.extras['sums'], found.extras['sums'])
    assert Network.from_module(Trunk(), input_size=4, **facts).outputs is None


def test_what_is_added_at_an_endpoint_reaches_the_heads():
    extra = {'x': jnp.full(INPUTS.shape, 0.5)}
    facts = {'name': 'means', 'preprocessing': Preprocessing((0.0,) * 3, (1.0,) * 3)}
    network = Network.from_module(headed(Means()), input_size=4, **facts)
    logits, _ = network.apply(network.state, INPUTS, extra)
    np.testing.assert_allclose(logits, 2 * INPUTS.mean((1, 2)) + 0.5, rtol=1e-5)
    assert network.own_map is None  # these heads have no map


def test_somebody_elses_attribute_of_that_name_is_no_head():
    assert not outputs_of(headed(8), INPUTS).logits.any()


def test_the_map_of_a_class_is_what_cam_would_be():
    head = ConvHead(3, 5, 4, rngs=nnx.Rngs(1))
    features = jnp.asarray(INPUTS) - 0.5
    hidden = jax.nn.relu(head.conv2(jax.nn.relu(head.conv1(features))))
    weights = head.classifier.kernel[...][0, 0]
    labels = jnp.array([3, 0])
    expected = jnp.einsum('bhwk,kb->bhw', hidden, weights[:, labels])
    np.testing.assert_allclose(class_map(head(features), labels), expected, rtol=1e-4, atol=1e-6)


class Two(nnx.Module):
    """Two layers with batch statistics and dropout; its logits are the mean of the second."""

    def __init__(self):
        rngs = nnx.Rngs(3)
        self.one = ConvNorm(3, 4, 1, rngs=rngs)
        self.two = ConvNorm(4, 5, 1, relu=False, rngs=rngs)
        self.dropout = Dropout(0.5, rngs=rngs)

    def __call__(self, inputs, perturb=None):
        endpoints = Endpoints(perturb)
        x = endpoints.tap('one', self.one(inputs))
        x = endpoints.tap('two', self.two(self.dropout(x)))
        return x.mean((1, 2)), endpoints.finish()


def halved(changes):
    """What is left of the gradient of a score of `Two` with respect to its weights and inputs."""

    def score(weights, inputs):
        module = nnx.merge(graph, weights, rest, copy=True)
        return jnp.sum(frozen(module)(inputs, changes)[0] ** 2)

    graph, weights, rest = nnx.split(Two(), nnx.Param, ...)
    return jax.grad(score, (0, 1))(weights, jnp.asarray(INPUTS))


@pytest.mark.slow
def test_a_frozen_copy_hands_gradients_to_its_inputs_alone():
    of_weights, of_inputs = halved({})
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_weights))
    assert np.abs(of_inputs).max() > 1e-3
    one = jnp.ones((2, 4, 4, 4))
    assert not np.any(halved({'one': lambda _: one})[1])  # replaced: nothing before it counts


def test_a_frozen_copy_uses_batch_statistics_and_leaves_no_trace():
    module, copy = Two(), nnx.clone(module := Two())
    logits, _ = frozen(module)(INPUTS)
    np.testing.assert_array_equal(module.one.bn.mean[...], 0)
    np.testing.assert_array_equal(logits, copy(INPUTS)[0])  # same draws, statistics of the batch
    assert np.any(copy.one.bn.mean[...])
    np.testing.assert_array_equal(module(INPUTS)[0], logits)  # nor was a draw used up


class Doubling(Heads):
    """Doubles what goes on from an endpoint, and looks again with nothing there."""

    def changes(self):
        return {'one': lambda x: 2 * x}

    def __call__(self, endpoints, classes, trunk):
        empty, _ = trunk.again({'one': jnp.zeros_like})
        return {'x': endpoints['one'], 'empty': empty, 'inputs': trunk.inputs}


def test_heads_change_an_endpoint_and_run_the_network_again():
    module = Two()
    module.eval()
    expected = module.one(INPUTS)
    extra = jnp.full((2, 4, 4, 4), 0.25)
    for perturb, base in (({}, expected), ({'one': extra}, expected + 0.25)):
        module.heads = Doubling()
        logits, endpoints, extras = outputs_of(module, INPUTS, perturb)
        np.testing.assert_allclose(endpoints['one'], base, rtol=1e-6)
        np.testing.assert_allclose(logits, module.two(2 * base).mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(extras['empty'], 0, atol=1e-7)  # of two: no bias, mean 0
    np.testing.assert_array_equal(extras['inputs'], INPUTS)


@pytest.mark.slow
def test_the_map_of_one_class_is_that_among_all():
    """And has its gradients."""
    generator = MapGenerator(3, 4, rngs=nnx.Rngs(2))
    generator.conv.bias[...] = jnp.arange(4.0) / 4
    features, classes = jnp.asarray(INPUTS) - 0.5, jnp.array([3, 0])
    weights = jax.random.normal(jax.random.key(0), (2, 4, 4))

    def score(generator, features, alone):
        if alone:
            return jnp.sum(weights * generator.of_class(features, classes))
        return jnp.sum(weights * class_map(generator(features), classes))

    found, expected = (
        nnx.grad(score, argnums=(0, 1))(generator, features, a) for a in (True, False)
    )
    np.testing.assert_allclose(
        generator.of_class(features, classes), class_map(generator(features), classes), rtol=1e-5
    )
    for one, two in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def test_shared_pieces_by_hand():
    generator = MapGenerator(2, 3, rngs=nnx.Rngs(0))
    generator.conv.kernel[...] = jnp.zeros((3, 3, 2, 3)).at[1, 1, 0].set(jnp.array([0.0, 1, -1]))
    maps = generator(jnp.full((1, 2, 2, 2), np.log(3)))
    np.testing.assert_allclose(maps[0, 1, 1], [0.5, 0.75, 0.25], rtol=1e-6)
    np.testing.assert_allclose(area(maps[..., 1]), [0.75], rtol=1e-6)
    found = generator.of_class(jnp.full((1, 2, 2, 2), np.log(3)), jnp.array([2]))
    np.testing.assert_allclose(found, np.full((1, 2, 2), 0.25), rtol=1e-6)
    where = jnp.array([[[True, False], [False, False]]])
    assert erased(jnp.ones((1, 2, 2, 2)), where)[0, ..., 1].tolist() == [[0, 1], [1, 1]]

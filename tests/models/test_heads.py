"""Heads beside a module, and the pieces they are made of."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from wsol_jax.models import Network, Preprocessing
from wsol_jax.models.heads import ConvHead, Heads, class_map, outputs_of


class Trunk(nnx.Module):
    """Its endpoint is twice the input, its logits are zeros."""

    def __call__(self, inputs, perturb=None):
        x = 2 * inputs + (perturb or {}).get('x', 0.0)
        return jnp.zeros((len(x), 3)), {'x': x}


class Means(Heads):
    """Logits are the mean colours, and there is the class that was given."""

    def __call__(self, endpoints, classes):
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

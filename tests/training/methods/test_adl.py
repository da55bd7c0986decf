"""ADL: what is dropped, what is weighted, where gradients go, and nothing in inference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsol_jax.config import ConfigError
from wsol_jax.localization.localize import localize
from wsol_jax.models import as_network, build
from wsol_jax.models.heads import outputs_of
from wsol_jax.training.methods import add_heads
from wsol_jax.training.methods.adl import ADL

# Means over channels: [[4, 2, 0], [3.6, 1, 3.5]], a grid that is not square.
X = np.array([[[5, 3], [2, 2], [0, 0]], [[7, 0.2], [0, 2], [3, 4]]], np.float32)
MEANS = np.array([[4, 2, 0], [3.6, 1, 3.5]])


def changes_of(x, drop, threshold=0.9, seed=0):
    """What the layer of a network becomes in training: [B,H,W,K] -> likewise."""
    module = build('resnet10', 3, nnx.Rngs(0), width=4)
    add_heads('resnet10', module, ADL(drop=drop, threshold=threshold), seed)
    (change,) = module.heads.changes().values()
    keys = jax.random.split(jax.random.key(seed), len(x))
    change.key = nnx.RngKey(keys, tag='dropout')  # as the step of training gives them
    return change(x)


def test_erased_is_where_the_attention_is_high_by_hand():
    # .9 x 4 = 3.6: the corner and what is just as high are erased.
    kept = np.array([[0, 1, 1], [0, 1, 1]])
    np.testing.assert_array_equal(changes_of(X[None], 1.0), [X * kept[..., None]])
    # Half of it: 2, 3.6 and 3.5, too.
    kept = np.array([[0, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(changes_of(X[None], 1.0, 0.5), [X * kept[..., None]])
    # At 1 only the maximum itself.
    kept = np.array([[0, 1, 1], [1, 1, 1]])
    np.testing.assert_array_equal(changes_of(X[None], 1.0, 1.0), [X * kept[..., None]])


def test_otherwise_every_position_is_weighted_by_hand():
    weights = 1 / (1 + np.exp(-MEANS))
    np.testing.assert_allclose(changes_of(X[None], 0.0), [X * weights[..., None]], rtol=1e-6)


def test_images_are_drawn_alone_as_often_as_asked_for():
    many = jnp.broadcast_to(X, (2000, *X.shape))
    erased = np.asarray(changes_of(many, 0.75))[:, 0, 0, 0] == 0
    assert erased.mean() == pytest.approx(0.75, abs=0.03)
    again = np.asarray(changes_of(many, 0.75, seed=1))[:, 0, 0, 0] == 0
    assert 0.3 < (erased != again).mean() < 0.45


def test_the_maximum_is_that_of_its_own_image():
    both, kept = np.stack([X, 10 * X]), (MEANS < 3.6)[..., None]
    np.testing.assert_array_equal(changes_of(both, 1.0), both * kept)


def test_a_constant_map_stays_finite():
    for drop in (0.0, 1.0):
        for value in (0.0, 1.0):
            found = changes_of(jnp.full((2, 3, 2, 4), value), drop)
            expected = (1 - drop) * value / (1 + np.exp(-value))
            np.testing.assert_allclose(found, np.full((2, 3, 2, 4), expected), rtol=1e-6)


@pytest.mark.slow
def test_gradients_pass_the_importance_and_no_drop_mask():
    def total(x, drop):
        return changes_of(x[None], drop).sum()

    kept = (MEANS < 3.6)[..., None] * np.ones(2)
    np.testing.assert_array_equal(jax.grad(total)(X, 1.0), kept)
    # Of sum_k x_k s(mean x): s + (sum_k x_k) s' / 2.
    s = 1 / (1 + np.exp(-MEANS))
    expected = (s + X.sum(-1) * s * (1 - s) / 2)[..., None] * np.ones(2)
    np.testing.assert_allclose(jax.grad(total)(X, 0.0), expected, rtol=1e-5)


def test_bfloat16_stays_bfloat16():
    found = changes_of(jnp.asarray(X[None], jnp.bfloat16), 0.0)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float32), changes_of(X[None], 0.0), rtol=0.02)


IMAGES = np.random.default_rng(1).integers(0, 256, (3, 48, 80, 3), np.uint8)


@pytest.fixture
def modules():
    """A residual network, and the same with ADL at two layers."""
    plain, dropped = (build('resnet10', 3, nnx.Rngs(0), width=4) for _ in range(2))
    add_heads('resnet10', dropped, ADL(layers=('stage3/block1', 'stage4')), 0)
    return plain, dropped


@pytest.mark.slow
def test_in_training_the_layers_named_change_what_goes_on(modules):
    inputs = jnp.asarray(IMAGES / 255, jnp.float32)
    expected, found = (outputs_of(module, inputs) for module in modules)
    # Recorded is what was there before: the first layer is the same, what follows it is not.
    for name in ('stage2', 'stage3/block1'):
        np.testing.assert_allclose(found.endpoints[name], expected.endpoints[name], rtol=1e-5)
    assert not np.allclose(found.endpoints['stage4'], expected.endpoints['stage4'], rtol=1e-2)
    assert not np.allclose(found.logits, expected.logits, rtol=1e-2)
    keys = {path for path, _ in nnx.to_flat_state(nnx.state(modules[1].heads))}
    assert keys == {('drops', k, 'key') for k in (0, 1)}


@pytest.mark.slow
def test_in_inference_it_is_the_plain_network(modules):
    plain, dropped = (as_network('resnet10', module, input_size=64) for module in modules)
    assert dropped.own_map is None
    np.testing.assert_array_equal(dropped(IMAGES)[0], plain(IMAGES)[0])
    expected, found = (localize(n, IMAGES, ('dgl', 'cam')).maps for n in (plain, dropped))
    for key, maps in expected.items():
        np.testing.assert_allclose(found[key], maps, rtol=1e-5, atol=1e-6)


def test_a_wrong_layer_is_one_line():
    module = build('resnet10', 3, nnx.Rngs(0), width=4)
    message = (
        r"endpoint of resnet10 in config\.train\.options\.layers 'stage5'; did you mean 'stage"
    )
    with pytest.raises(ConfigError, match=message):
        add_heads('resnet10', module, ADL(layers=('stage5',)), 0)

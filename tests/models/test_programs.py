"""Programs are compiled for what a network computes, not for the values of its weights."""

import logging
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from wsol_jax.evaluation.faithfulness import faithfulness
from wsol_jax.localization.localize import localize
from wsol_jax.models import (
    Network,
    Preprocessing,
    as_network,
    build,
    from_function,
    from_linen,
    from_nnx,
    load_network,
)
from wsol_jax.models.layers import Endpoints

SIZE = 16
HOW = {'input_size': SIZE, 'preprocessing': Preprocessing((0.0,) * 3, (255.0,) * 3)}
IMAGES = np.random.default_rng(3).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)


class Cnn(nnx.Module):
    """With batch statistics, and dropout whose counter moves in training."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.norm(self.conv(x)))).mean((1, 2)))


class Shown(Cnn):
    """The same model, which shows its endpoint itself."""

    def __call__(self, x, perturb=None):
        endpoints = Endpoints(perturb)
        x = endpoints.tap('norm', self.norm(self.conv(x)))
        return self.head(self.dropout(nnx.relu(x)).mean((1, 2))), endpoints.finish()


class LinenCnn(linen.Module):
    features: list

    @linen.compact
    def __call__(self, x, scale=1.0, train=False):
        x = linen.relu(linen.Conv(self.features[0], (3, 3), strides=2, name='conv')(x))
        return scale * linen.Dense(3, name='head')(x.mean((1, 2)))


def train(module, inputs):
    """One step in training mode; everything that training changes, changes."""
    module.train()
    optimizer = nnx.Optimizer(module, optax.sgd(0.5), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer):
        def loss(module):
            out = module(inputs)
            return jnp.mean((out[0] if isinstance(out, tuple) else out) ** 2)

        optimizer.update(module, nnx.grad(loss)(module))

    step(module, optimizer)


def maps_and_faithfulness(network, layer):
    """What is computed of a network: two programs."""
    result = localize(network, IMAGES, ('dgl',), (layer,))
    scores = faithfulness(network, IMAGES, result.maps, result.classes, scores=('average_drop',))
    return result.logits, result.maps['dgl', layer], scores['dgl', layer]['average_drop']


def compiled(caplog, function):
    """What a function returns, and the names of the programs that were compiled for it."""
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        result = jax.block_until_ready(function())
    messages = [record.getMessage() for record in caplog.records]
    # Finished XLA compilation of jit(name) in ... sec
    return result, [m.split()[4] for m in messages if m.startswith('Finished XLA compilation of')]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('kind', 'wrap'),
    [(Cnn, partial(from_nnx, **HOW)), (Shown, partial(Network.from_module, name='shown', **HOW))],
)
def test_a_live_model_in_training_keeps_its_programs(kind, wrap, caplog):
    module = kind(nnx.Rngs(0))
    first, names = compiled(caplog, lambda: maps_and_faithfulness(wrap(module), 'norm'))
    assert {'jit(compute_maps)', 'jit(compute_faithfulness)'} <= set(names)
    train(module, jnp.asarray(IMAGES, jnp.float32) / 255)
    moved, names = compiled(caplog, lambda: maps_and_faithfulness(wrap(module), 'norm'))
    assert names == []
    # A program of its own, which knows nothing of the first weights.
    network = wrap(module)
    alone = localize(replace(network, apply=partial(network.apply)), IMAGES, ('dgl',), ('norm',))
    np.testing.assert_allclose(moved[0], alone.logits, rtol=1e-5)
    np.testing.assert_allclose(moved[1], alone.maps['dgl', 'norm'], rtol=1e-4, atol=1e-5)
    for old, new in zip(first, moved, strict=True):
        assert not np.allclose(old, new)


@pytest.mark.slow
def test_other_weights_of_the_same_network_share_its_programs(caplog):
    options = {'num_classes': 3, 'width': 4}
    first = load_network('resnet10', seed=0, **options)
    small = IMAGES.repeat(2, axis=1).repeat(2, axis=2)
    old, names = compiled(caplog, lambda: localize(first, small, ('dgl',), ('stage3',)).maps)
    assert names
    other = load_network('resnet10', seed=1, **options)
    assert other.apply == first.apply
    new, names = compiled(caplog, lambda: localize(other, small, ('dgl',), ('stage3',)).maps)
    assert names == []
    assert not np.allclose(new['dgl', 'stage3'], old['dgl', 'stage3'])
    module = build('resnet10', 3, nnx.Rngs(1), width=4)
    assert as_network('resnet10', module).apply == first.apply
    wider = load_network('resnet10', seed=0, num_classes=3, width=8)
    assert wider.apply != first.apply
    assert load_network('resnet10', seed=0, **options | {'num_classes': 4}).apply != first.apply


def test_what_a_linen_program_depends_on(caplog):
    module = LinenCnn([4])
    inputs = jnp.zeros((1, SIZE, SIZE, 3))
    weights = [module.init(jax.random.key(i), inputs) for i in range(2)]
    first, again = (from_linen(LinenCnn([4]), w, **HOW) for w in weights)
    old, _ = compiled(caplog, lambda: localize(first, IMAGES, ('dgl',)))
    new, names = compiled(caplog, lambda: localize(again, IMAGES, ('dgl',)))
    assert names == []
    np.testing.assert_allclose(new.logits, module.apply(weights[1], IMAGES / 255), rtol=1e-4)
    assert not np.allclose(new.logits, old.logits)
    double = from_linen(module, weights[1], call_options={'scale': 2.0}, **HOW)
    assert double.apply != again.apply
    np.testing.assert_allclose(localize(double, IMAGES, ('dgl',)).logits, 2 * new.logits, rtol=1e-5)


def negated(logits):
    return -logits


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'layers': ('norm',)},
        {'output': negated},
        {'tokens': ((4, 4), 1)},
        {'last_layer': 'conv'},
    ],
)
def test_every_choice_of_a_program_counts(options):
    module = Cnn(nnx.Rngs(0))
    plain = from_nnx(module, **HOW)
    one, two = (from_nnx(Cnn(nnx.Rngs(i)), **HOW, **options) for i in range(2))
    assert one.apply == two.apply
    assert hash(one.apply) == hash(two.apply)
    assert (one.apply == plain.apply) is (set(options) <= {'last_layer'})


def test_what_cannot_be_hashed_goes_by_identity():
    class Scaled(Cnn):
        def __call__(self, x, by):
            return by[0] * super().__call__(x)

    module = Scaled(nnx.Rngs(0))
    one, two = (from_nnx(module, call_options={'by': [2.0]}, **HOW) for _ in range(2))
    assert one.apply != two.apply and one.apply == one.apply
    a, b = (localize(n, IMAGES, ('dgl',), ('norm',)) for n in (one, two))
    np.testing.assert_array_equal(a.logits, b.logits)


def test_a_function_is_its_own_program(toy):
    def apply(inputs, perturb):
        return toy.apply(toy.state, inputs, perturb)

    how = {'input_size': 8, 'preprocessing': toy.preprocessing}
    one, two = (from_function(apply, **how) for _ in range(2))
    assert one.apply == two.apply
    assert one.apply != from_function(lambda inputs, perturb: apply(inputs, perturb), **how).apply

"""BAS of several labels: its losses by hand and in loops, what they reach, the labels it draws."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Listed
from flax import nnx
from test_bas import BACKGROUND, FOREGROUND, INPUTS, LOGITS, L, Two, extras_of, gradients

from wsol_jax.config import ConfigError, TrainConfig
from wsol_jax.data.records import Record
from wsol_jax.models import Network, Preprocessing, as_network, build
from wsol_jax.models.heads import Outputs
from wsol_jax.parallel import local_devices
from wsol_jax.training.method import Shard
from wsol_jax.training.methods import add_heads
from wsol_jax.training.methods.bas_wsss import BASWSSS, drawn_first, labels_against_others
from wsol_jax.training.step import make_program


def headed():
    """The module of the tests of BAS: the maps of its heads are the same, without biases."""
    module = Two()
    facts = {'preprocessing': Preprocessing((0.0,) * 2, (1.0,) * 2), 'input_size': 4}

    def apply(state, inputs, perturb=None):
        return module(inputs, perturb)

    network = Network.from_apply(apply, {}, name='two', **facts)
    module.heads = BASWSSS(layer='fine').heads(network, nnx.Rngs(0))
    centre = jnp.zeros((3, 3, 2, 2)).at[1, 1]
    module.heads.generator.conv.kernel[...] = centre.set(jnp.diag(jnp.array([1.0, -1.0])))
    module.heads.classifier.conv.kernel[...] = jnp.eye(2)[None, None]
    return module


@pytest.mark.parametrize('label', [0, 1])
def test_what_the_heads_give_by_hand(label):
    found = extras_of(headed(), label)
    np.testing.assert_allclose(found['logits'], LOGITS, rtol=1e-5)
    np.testing.assert_allclose(found['logits_background'], BACKGROUND[label], rtol=1e-5)
    np.testing.assert_allclose(found['logits_foreground'], FOREGROUND[label], rtol=1e-5)


def test_the_maps_of_all_labels_in_one_pass():
    maps = jax.nn.sigmoid(INPUTS * np.array([1, -1], np.float32)).transpose(0, 3, 1, 2)
    found = headed().heads.map({'fine': jnp.asarray(INPUTS)}, jnp.array([[1, 0, 1]]))
    np.testing.assert_allclose(found, maps[:, [1, 0, 1]], rtol=1e-6)


def test_what_each_loss_reaches():
    """Neither the copy that sees the background nor the class maps of the guidance learn."""
    # Slopes to M as in the tests of BAS, that of M to the centre g of the kernel and to a: 3/16 L.
    slopes = {'logits_background': -4 * (2 * L / 16), 'logits_foreground': 2 * L / 4}
    for name, slope in slopes.items():
        found = gradients(name, 0, headed())
        np.testing.assert_allclose(found.pop('a'), slope * (3 / 16) * L, rtol=1e-4)
        centre = found.pop('heads.generator.conv.kernel')[1, 1]
        np.testing.assert_allclose(centre[0, 0], slope * (3 / 16) * L, rtol=1e-4)
        assert sorted(found) == ['b', 'heads.classifier.conv.kernel']
        assert not any(np.any(gradient) for gradient in found.values())
    found = gradients('logits', 0, headed())
    assert np.any(found['heads.classifier.conv.kernel']) and np.any(found['b'])


LABELS = np.array([[4, 1, -1], [2, -1, -1], [-1, -1, -1], [0, 3, 2]], np.int32)


def batch_of(labels, images=None):
    whole = np.arange(len(labels))
    return Shard(images, {'labels': np.asarray(labels)}, whole >= 0, whole)


def cross_entropy(logits, label):
    return np.log(np.exp(logits).sum()) - logits[label]


@pytest.mark.slow
def test_labels_against_others_in_loops():
    logits = np.random.default_rng(0).normal(size=(4, 5))
    expected = []
    for row, labels in zip(logits, LABELS, strict=True):
        own = [k for k in labels if k >= 0]
        others = [row[k] for k in range(5) if k not in own]
        expected.append(sum(cross_entropy(np.array([row[k], *others]), 0) for k in own))
    found = labels_against_others(jnp.asarray(logits, jnp.float32), jnp.asarray(LABELS))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # An image with all classes has none to tell them from: no loss, no gradient.
    value, slope = jax.value_and_grad(
        lambda z: labels_against_others(z, jnp.array([[0, 1]])).sum()
    )(jnp.array([[3.0, -2.0]]))
    assert value == 0 and not np.any(slope)


def test_the_loss_in_loops():
    rng = np.random.default_rng(1)
    logits, background, foreground = rng.normal(size=(3, 4, 5)) + 1
    background[1, 2], logits[1, 2] = 3.0, 2.0  # more than there was
    area = rng.random(4)
    extras = {'logits_background': background, 'logits_foreground': foreground, 'area': area}
    extras = {name: jnp.asarray(value, jnp.float32) for name, value in extras.items()}
    method = BASWSSS(alpha=0.3, beta=2.0, cap=0.7)
    outputs = Outputs(jnp.asarray(logits, jnp.float32), {}, extras)
    losses, values = method.loss(outputs, batch_of(LABELS), None)
    plain = np.asarray(labels_against_others(outputs.logits, jnp.asarray(LABELS)))
    expected = np.zeros(4)  # the third image has no label
    for i in (0, 1, 3):
        drawn = LABELS[i, 0]
        share = max(background[i, drawn], 0) / (max(logits[i, drawn], 0) + 1e-8)
        expected[i] = plain[i] + 0.3 * cross_entropy(foreground[i], drawn) + 2 * area[i]
        expected[i] += 0.7 if share > 1 else share
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    right = [np.argmax(row) in labels for row, labels in zip(logits, LABELS, strict=True)]
    assert values['accuracy'].tolist() == [100.0 * r for r in right]


@pytest.mark.slow
def test_a_label_is_drawn_and_the_others_stay():
    keys = jax.random.split(jax.random.key(0), 3000)
    found = np.asarray(jax.vmap(drawn_first, (0, None))(keys, jnp.array([7, 4, 9, -1, -1])))
    assert (np.sort(found) == [-1, -1, 4, 7, 9]).all() and (found[:, 3:] == -1).all()
    # A third each: within four standard deviations.
    assert abs(np.bincount(found[:, 0])[[4, 7, 9]] - 1000).max() < 4 * np.sqrt(3000 * 2 / 9)
    alone = jax.vmap(drawn_first, (0, None))(keys[:9], jnp.array([5, -1]))
    assert (np.asarray(alone) == [5, -1]).all()
    nothing = drawn_first(keys[0], jnp.array([-1, -1]))
    assert nothing.tolist() == [-1, -1]


def small(options):
    module = build('resnet10', 5, nnx.Rngs(0), width=4, **options)
    add_heads('resnet10', module, BASWSSS(), 0)
    return module


@pytest.mark.slow
def test_a_step_of_images_of_several_labels():
    """At output stride 16, as in the release; what a step reports is that of its drawn labels."""
    module = small({'output_stride': 16})
    network = as_network('resnet10', module, input_size=32)
    assert network.own_map.name == 'bas_wsss'
    setting = TrainConfig(learning_rate=0.1, warmup=0.0, schedule='constant')
    program = make_program(
        setting, BASWSSS(), module, network.preprocessing, local_devices('jit'), 9, 3
    )
    images = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), np.uint8)
    batch = batch_of(LABELS[[0, 1, 3, 3]], images)
    areas = []
    for step in range(8):  # the same weights: only what is drawn differs
        state = jax.tree.map(jnp.copy, program.initial)._replace(step=jnp.int32(step))
        moved, measured = program.step(state, batch)
        areas.append(float(measured.sums['area']))
    assert np.ptp(areas) > 1e-6
    assert np.isfinite(float(measured.mean_loss))
    kernels = [
        s.params['heads']['generator']['conv']['kernel'][...] for s in (moved, program.initial)
    ]
    assert np.abs(kernels[0] - kernels[1]).max() > 0
    values = program.evaluate(program.initial, batch)
    again = program.evaluate(program.initial, batch)
    np.testing.assert_array_equal(values['area'], again['area'])  # nothing is drawn on val
    assert values['logits'].shape == (4, 5) and values['labels'].shape == (4, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'options', 'layer'),
    [
        ('resnet10', {}, 'stage3'),
        ('resnet18', {'output_stride': 16}, 'stage3'),
        ('resnet50', {'output_stride': 16}, 'stage3'),
        ('mobilenet_v1', {'output_stride': 16}, 'pw_11'),
    ],
)
def test_the_layer_of_the_generator(name, options, layer):
    def make():
        module = build(name, 5, nnx.Rngs(0), **options)
        add_heads(name, module, BASWSSS(), 0)
        return module

    assert nnx.eval_shape(make).heads.reads[0] == layer


def test_settings_of_other_losses_are_refused():
    source = Listed([Record('a', b'', (0, 1), (1, 1))], 'ab')
    assert BASWSSS().num_logits(source) == 2
    assert BASWSSS().targets(source, True).most == 2
    message = r'^config\.train\.label_smoothing: the losses of bas_wsss have none$'
    with pytest.raises(ConfigError, match=message):
        replace(BASWSSS(), label_smoothing=0.1).num_logits(source)

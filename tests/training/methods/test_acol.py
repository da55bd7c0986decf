"""ACoL against numbers worked by hand; its map through localize, export and devices."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsol_jax.config import ConfigError
from wsol_jax.exported import export, load_exported
from wsol_jax.localization.gradients import raw_maps
from wsol_jax.localization.localize import compute_maps, localize
from wsol_jax.localization.method import Method
from wsol_jax.localization.methods import of_head
from wsol_jax.localization.plan import make_plan
from wsol_jax.models import as_network, build
from wsol_jax.models.heads import Outputs, class_map
from wsol_jax.parallel import local_devices
from wsol_jax.training.method import Shard
from wsol_jax.training.methods import add_heads
from wsol_jax.training.methods.acol import ACoL

METHOD = ACoL(delta=0.5, width=2)
FEATURES = np.array([[[4, 0], [2, 1]], [[1, 3], [0, 2]]], np.float32)
# Columns are classes: the maps of A are the features themselves.
WEIGHTS_A = np.array([[1, 0], [0, 1]], np.float32)
WEIGHTS_B = np.array([[2, 1], [1, 0]], np.float32)
LABELS = np.array([0, 1], np.int32)
BATCH = Shard(None, {'labels': LABELS[:, None]}, np.ones(2, bool), np.arange(2))
# By hand. Class 0: A has [[4, 2], [1, 0]], scaled [[1, 1/2], [1/4, 0]]: the upper row is erased,
# and B has 2 a + b = [[0, 0], [5, 2]]. Class 1: A has [[0, 1], [3, 2]], scaled [[0, 1/3],
# [1, 2/3]]: the lower row is erased, and B has [[4, 2], [0, 0]].
LOGITS_A = [[7 / 4, 6 / 4]] * 2
LOGITS_B = [[7 / 4, 1 / 4], [13 / 4, 6 / 4]]
FUSED = [[[1, 0.5], [1, 0.4]], [[1, 0.5], [1, 2 / 3]]]


@pytest.fixture(scope='module')
def heads():
    """3x3 convolutions that hand their input on, and the classifiers above."""
    network = SimpleNamespace(last_layer='x', shapes={'x': (2, 2, 2)}, num_classes=2)
    heads = METHOD.heads(network, nnx.Rngs(0))
    for head, weights in ((heads.a, WEIGHTS_A), (heads.b, WEIGHTS_B)):
        for conv in (head.conv1, head.conv2):
            conv.kernel[...] = jnp.zeros((3, 3, 2, 2)).at[1, 1].set(jnp.eye(2))
        head.classifier.kernel[...] = weights[None, None]
    return heads


def extras_of(heads, features, labels=LABELS):
    return heads({'x': jnp.stack([features] * len(labels))}, jnp.asarray(labels), None)


@pytest.mark.slow
def test_logits_and_what_is_erased_by_hand(heads):
    extras = extras_of(heads, FEATURES)
    np.testing.assert_allclose(extras['logits'], LOGITS_A, rtol=1e-6)
    np.testing.assert_allclose(extras['logits_b'], LOGITS_B, rtol=1e-6)
    assert extras['erased'].tolist() == [0.5, 0.5]
    assert list(heads({'x': FEATURES[None]}, None, None)) == ['logits']


def test_the_loss_by_hand(heads):
    extras = extras_of(heads, FEATURES)
    losses, values = METHOD.loss(Outputs(extras.pop('logits'), {}, extras), BATCH, None)
    expected = [
        np.log1p(np.exp(-1 / 4)) + np.log1p(np.exp(-6 / 4)),
        np.log1p(np.exp(1 / 4)) + np.log1p(np.exp(7 / 4)),
    ]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    shown = {name: np.asarray(value).tolist() for name, value in values.items()}
    assert shown == {'accuracy': [100, 0], 'accuracy_b': [100, 0], 'erased': [0.5, 0.5]}


def test_the_map_by_hand(heads):
    found = heads.map({'x': FEATURES[None]}, jnp.array([[0, 1]]))
    np.testing.assert_allclose(found, [FUSED], rtol=1e-6)


@pytest.mark.slow
def test_the_loss_of_b_reaches_what_is_kept_and_nothing_passes_the_mask(heads):
    def loss_of_b(features):
        extras = extras_of(heads, features, LABELS[:1])
        return -jax.nn.log_softmax(extras['logits_b'])[0, 0]

    # Of class 0, 2 a + b, and of class 1, a, where the upper row is erased and a ReLU lets it pass.
    p = 1 / (1 + np.exp(-6 / 4))
    a, b = (2 * (p - 1) + (1 - p)) / 4, (p - 1) / 4
    expected = [[[0, 0], [0, 0]], [[a, b], [0, b]]]
    np.testing.assert_allclose(jax.grad(loss_of_b)(FEATURES), expected, rtol=1e-5)
    weights = nnx.grad(lambda h: extras_of(h, FEATURES)['logits_b'].sum())(heads)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(weights['a']))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(weights['b']))


def test_a_map_that_is_the_same_everywhere_erases_nothing(heads):
    extras = extras_of(heads, np.ones((2, 2, 2), np.float32))
    assert extras['erased'].tolist() == [0, 0]
    np.testing.assert_allclose(extras['logits_b'], [[3, 1]] * 2)
    assert not heads.map({'x': np.ones((1, 2, 2, 2), np.float32)}, jnp.array([[0]])).any()


@pytest.mark.parametrize(
    ('delta', 'share'), [(1.0, 0.25), (0.51, 0.25), (0.25, 0.75), (1e-6, 0.75)]
)
def test_extreme_thresholds_erase_something_and_leave_something(heads, delta, share):
    # Class 0: A's map is [[1, 1/2], [1/4, 0]], scaled.
    heads.delta = delta
    extras = extras_of(heads, FEATURES, LABELS[:1])
    heads.delta = METHOD.delta
    assert extras['erased'].tolist() == [share]
    kept = FEATURES.reshape(4, 2)[round(4 * share) :]
    np.testing.assert_allclose(extras['logits_b'], [(kept @ WEIGHTS_B).sum(0) / 4], rtol=1e-6)


def test_a_broken_map_erases_nothing(heads):
    for value in (np.nan, np.inf):
        features = FEATURES.copy()
        features[0, 0] = value
        assert extras_of(heads, features, LABELS[:1])['erased'].tolist() == [0]


@pytest.fixture(scope='module')
def network():
    """A small residual network with both heads."""
    module = build('resnet10', 3, nnx.Rngs(0), width=4)
    add_heads('resnet10', module, ACoL(width=6), seed=0)
    return as_network('resnet10', module, input_size=64)


IMAGES = np.random.default_rng(1).integers(0, 256, (4, 64, 64, 3), np.uint8)
CLASSES = np.array([[0, 2], [1, 1], [2, 0], [1, 2]])


@pytest.mark.slow
def test_the_logits_of_a_network_are_those_of_its_heads(network):
    logits, endpoints = network(IMAGES)
    module = network.apply.thaw(network.state)
    expected = module.heads({'stage4': endpoints['stage4']}, None, None)['logits']
    np.testing.assert_allclose(logits, expected, rtol=1e-6)
    assert not np.allclose(logits, module.fc(endpoints['stage4'].mean((1, 2))), atol=1e-3)


@pytest.mark.slow
def test_gradients_go_through_the_heads(network):
    """HiResCAM at the last layer, sum of g S, against the gradient of A's mean map."""
    _, endpoints = network(IMAGES)
    module = network.apply.thaw(network.state)

    def score(features):
        return class_map(module.heads.a(features), jnp.asarray(CLASSES[:, 0])).mean((1, 2)).sum()

    features = endpoints['stage4']
    expected = (jax.grad(score)(features) * features).sum(-1)
    found = localize(network, IMAGES, ('hires_cam',), ('stage4',), CLASSES[:, 0], resize=False)
    np.testing.assert_allclose(found.maps['hires_cam', 'stage4'], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_several_classes_are_the_classes_one_by_one(network):
    together = localize(network, IMAGES, ('acol',), classes=CLASSES, resize=False)
    assert list(together.maps) == [('acol', 'head')] and together.maps['acol', 'head'].ndim == 4
    for k in range(2):
        alone = localize(network, IMAGES, ('acol',), classes=CLASSES[:, k], resize=False)
        found = together.maps['acol', 'head'][:, k]
        np.testing.assert_allclose(found, alone.maps['acol', 'head'], rtol=1e-5, atol=1e-6)
    assert float(together.maps['acol', 'head'].max()) == 1.0
    fused = localize(network, IMAGES, ('acol+layer_cam',), ('stage3',), CLASSES, resize=False)
    assert list(fused.maps) == [('acol+layer_cam', 'stage3')]


def test_the_map_needs_no_backward_pass(network):
    def flops(methods):
        plan = make_plan(network, methods, ('stage4',))

        def maps(state, inputs):
            layers_of, keys = plan.layers_of, jax.random.split(jax.random.key(0), 4)
            return raw_maps(network.apply, state, inputs, jnp.asarray(CLASSES), layers_of, keys)[2]

        inputs = jnp.zeros((4, 64, 64, 3))
        return jax.jit(maps).lower(network.state, inputs).compile().cost_analysis()['flops']

    def by_hand(state, inputs):
        _, endpoints = network.apply(state, inputs, None)
        return network.own_map.function(state, endpoints, jnp.asarray(CLASSES))

    lowered = jax.jit(by_hand).lower(network.state, jnp.zeros((4, 64, 64, 3)))
    forward = lowered.compile().cost_analysis()['flops']
    assert flops(('acol',)) <= 1.01 * forward
    assert flops(('acol', 'grad_cam')) > 1.01 * forward


@pytest.mark.slow
def test_exported_maps_are_the_same(network, tmp_path):
    expected = localize(network, IMAGES, ('acol',), classes=CLASSES, resize=False)
    export(network, ('acol',), None, tmp_path / 'maps.zip', input_size=64)
    found = load_exported(tmp_path / 'maps.zip')(IMAGES, CLASSES)
    np.testing.assert_allclose(
        found.maps['acol', 'head'], expected.maps['acol', 'head'], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize('kind', ['jit', 'pmap'])
def test_devices_give_the_same(network, kind):
    devices, plan = local_devices(kind), make_plan(network, ('acol',))

    def maps(state, images, classes):
        return compute_maps(network.apply, network.preprocessing, plan, state, images, 0, classes)

    program, state = devices.per_image(maps), devices.replicate(network.state)
    found = devices.gather(program(state, *devices.shard((IMAGES, CLASSES.astype(np.int32)))))
    expected = localize(network, IMAGES, ('acol',), classes=CLASSES, resize=False)
    np.testing.assert_allclose(
        found[2]['acol', 'head'], expected.maps['acol', 'head'], rtol=1e-5, atol=1e-6
    )


def test_both_may_read_an_earlier_layer():
    module = build('resnet10', 3, nnx.Rngs(0), width=4, output_stride=8)
    add_heads('resnet10', module, ACoL(width=6, layer='stage3'), seed=0)
    network = as_network('resnet10', module, input_size=64)
    assert network.last_layer == network.layers()[-1] == 'stage3'
    assert localize(network, IMAGES, ('acol',), resize=False).maps['acol', 'head'].shape[1:] == (
        8,
        8,
    )
    with pytest.raises(ConfigError, match=r"config\.train\.options\.layer 'stage5'; did you mean"):
        add_heads('resnet10', module, ACoL(layer='stage5'), seed=0)


def test_wrong_requests_are_one_line(network, resnet, images):
    known = "unknown localization method 'acol'; .*known: dgl, .*; the network has no trained head"
    with pytest.raises(ValueError, match=known):
        make_plan(resnet, ('acol',))
    with pytest.raises(ValueError, match="method 'acl'; did you mean 'acol'"):
        make_plan(network, ('acl',))
    with pytest.raises(ValueError, match='acol makes maps of classes: give indices'):
        localize(network, IMAGES, ('acol',), classes=lambda z: z[0])
    with pytest.raises(ValueError, match='acol makes a map of one class: give indices'):
        localize(network, IMAGES, ('acol',), classes=np.ones((4, 3), bool))


def test_networks_of_one_make_share_their_programs(network):
    module = build('resnet10', 3, nnx.Rngs(1), width=4)
    add_heads('resnet10', module, ACoL(width=6), seed=1)
    other = as_network('resnet10', module, input_size=64)
    assert of_head(other.own_map) == of_head(network.own_map)
    assert isinstance(of_head(other.own_map), Method) and ACoL(width=6) == ACoL(width=6)

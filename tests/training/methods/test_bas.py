"""BAS against numbers worked by hand: its losses, what they reach, its map and what it costs."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsol_jax.config import (
    Config,
    ConfigError,
    DataConfig,
    NetworkConfig,
    TrainConfig,
    flatten,
)
from wsol_jax.data import Shapes
from wsol_jax.localization.localize import localize
from wsol_jax.models import Network, Preprocessing, as_network, build
from wsol_jax.models.heads import Outputs, outputs_of
from wsol_jax.models.layers import Endpoints
from wsol_jax.parallel import local_devices
from wsol_jax.training.checkpoints import Checkpoints
from wsol_jax.training.loop import train
from wsol_jax.training.method import Shard
from wsol_jax.training.methods import add_heads
from wsol_jax.training.methods.bas import BAS, background_share, pooled
from wsol_jax.training.step import make_program
from wsol_jax.training.trained import load_network
from wsol_jax.workdir import read_csv

METHOD = BAS(alpha=0.5, beta=2.0, width=2)


class Two(nnx.Module):
    """fine = a x, coarse = b (mean of 2 x 2); channels are classes."""

    def __init__(self):
        self.a, self.b = nnx.Param(jnp.float32(1)), nnx.Param(jnp.float32(2))

    def __call__(self, inputs, perturb=None):
        endpoints = Endpoints(perturb)
        x = endpoints.tap('fine', self.a * inputs)
        batch, height, width, features = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, features).mean((2, 4))
        x = endpoints.tap('coarse', self.b * x)
        return jnp.zeros((batch, 2)), endpoints.finish()


L = np.float32(np.log(3))  # whose sigmoid is 3/4
# One image: of class 0 a row of 2 x 2 squares on the left, of class 1 one square at the right.
INPUTS = np.zeros((1, 4, 4, 2), np.float32)
INPUTS[0, :2, :2, 0] = L
INPUTS[0, 2:, 2:, 1] = 2 * L
# By hand. The maps of class 0 are sigmoid(x): 3/4 in the square, else 1/2, of class 1
# sigmoid(-x): 1/10 in the square, else 1/2. coarse is 2 x there, 0 elsewhere.
LOGITS = [[2 * L / 4, 4 * L / 4]]
BACKGROUND = {0: [[L / 8, L / 2]], 1: [[L / 4, 9 * L / 10]]}  # times 1 - M
FOREGROUND = {0: [[3 * L / 8, L / 2]], 1: [[L / 4, L / 10]]}  # times M
AREA = {0: (4 * 0.75 + 12 * 0.5) / 16, 1: (4 * 0.1 + 12 * 0.5) / 16}
SHARE = {0: 1 / 4, 1: 9 / 10}


def headed(**options):
    """The module, its generator and its classifier as above."""
    module = Two()
    facts = {'preprocessing': Preprocessing((0.0,) * 2, (1.0,) * 2), 'input_size': 4}

    def apply(state, inputs, perturb=None):
        return module(inputs, perturb)

    network = Network.from_apply(apply, {}, name='two', **facts)
    module.heads = replace(METHOD, **options).heads(network, nnx.Rngs(0))
    centre = jnp.zeros((3, 3, 2, 2)).at[1, 1]
    module.heads.generator.conv.kernel[...] = centre.set(jnp.diag(jnp.array([1.0, -1.0])))
    for conv in (module.heads.classifier.conv1, module.heads.classifier.conv2):
        conv.kernel[...] = centre.set(jnp.eye(2))
    module.heads.classifier.classifier.kernel[...] = jnp.eye(2)[None, None]
    return module


def extras_of(module, label, inputs=INPUTS):
    found = outputs_of(module, jnp.asarray(inputs), None, jnp.array([label]))
    return found.extras | {'logits': found.logits}


@pytest.mark.parametrize('label', [0, 1])
def test_what_the_heads_give_by_hand(label):
    module = headed()
    assert module.heads.reads == ('fine', 'coarse')
    found = extras_of(module, label)
    np.testing.assert_allclose(found['logits'], LOGITS, rtol=1e-5)
    np.testing.assert_allclose(found['logits_background'], BACKGROUND[label], rtol=1e-5)
    np.testing.assert_allclose(found['logits_foreground'], FOREGROUND[label], rtol=1e-5)
    np.testing.assert_allclose(found['area'], [AREA[label]], rtol=1e-5)
    assert outputs_of(module, INPUTS).extras == {}  # no class, nothing but logits


def batch_of(labels):
    labels, whole = np.asarray(labels, np.int32), np.arange(len(labels))
    return Shard(None, {'labels': labels[:, None]}, whole >= 0, whole)


def loss_of(logits, background, labels, cap=1.0, foreground=((0.0, 0.0),), area=0.0):
    size = len(labels)
    extras = {
        'logits_background': jnp.asarray(background),
        'logits_foreground': jnp.broadcast_to(jnp.asarray(foreground), (size, 2)),
        'area': jnp.full(size, area),
    }
    outputs = Outputs(jnp.asarray(logits), {}, extras)
    return replace(METHOD, cap=cap).loss(outputs, batch_of(labels), None)


@pytest.mark.parametrize('label', [0, 1])
def test_the_loss_by_hand(label):
    losses, values = loss_of(
        LOGITS, BACKGROUND[label], [label], 1.0, FOREGROUND[label], AREA[label]
    )

    def cross_entropy(logits):
        (rows,) = np.asarray(logits, np.float64)
        return np.log(np.exp(rows).sum()) - rows[label]

    parts = cross_entropy(LOGITS), 0.5 * cross_entropy(FOREGROUND[label]), 2 * AREA[label]
    np.testing.assert_allclose(losses, [sum(parts) + SHARE[label]], rtol=1e-5)
    found = {name: float(value[0]) for name, value in values.items()}
    expected = {'accuracy': 100.0 * label, 'area': AREA[label], 'ratio': SHARE[label]}
    assert found == pytest.approx(expected, rel=1e-5)


# Of class 0: half is kept; more than there was; of nothing nothing is left; of nothing some.
WHOLE = [[4.0, 0], [2.0, 0], [-1.0, 0], [-1.0, 0]]
LEFT = [[2.0, 0], [3.0, 0], [-2.0, 0], [0.5, 0]]


@pytest.mark.slow
@pytest.mark.parametrize('cap', [0.0, 1.0])
def test_where_the_background_activates_more_a_constant_counts(cap):
    def suppression(background, logits):
        losses, _ = loss_of(logits, background, [0] * 4, cap)
        others, _ = loss_of(logits, jnp.full((4, 2), -1.0), [0] * 4, cap)  # whose share is 0
        return losses - others

    found = suppression(jnp.array(LEFT), jnp.array(WHOLE))
    np.testing.assert_allclose(found, [0.5, cap, 0, cap], atol=1e-6)
    of_background, of_logits = jax.grad(lambda b, z: suppression(b, z).sum(), (0, 1))(
        jnp.array(LEFT), jnp.array(WHOLE)
    )
    # 1 / 4 of the first alone; of what it is divided by, none at all.
    np.testing.assert_allclose(of_background, [[0.25, 0], [0, 0], [0, 0], [0, 0]], atol=1e-6)
    assert not np.any(of_logits)
    ratio = loss_of(WHOLE, LEFT, [0] * 4, cap)[1]['ratio']
    np.testing.assert_allclose(ratio, [0.5, 1, 0, 1], atol=1e-6)


def test_the_share_of_a_classifier_without_activation_is_finite():
    share = background_share(jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.array([1]))
    assert share.tolist() == [0]


def gradients(name, label, module=None):
    """Of the class's logit among these: {parameter: gradient}."""
    module = module or headed()
    graph, weights, rest = nnx.split(module, nnx.Param, ...)

    def score(weights):
        return extras_of(nnx.merge(graph, weights, rest), label)[name][0, label]

    found = nnx.to_flat_state(jax.grad(score)(weights))
    return {'.'.join(map(str, path)): np.asarray(leaf[...]) for path, leaf in found}


@pytest.mark.slow
def test_the_background_reaches_the_foreground_map_alone():
    found = gradients('logits_background', 0)
    # S_bg = b sum (1 - M) x / 16 over the square of x = L: its slope to M is -b L / 16 at each of
    # four places, that of M = sigmoid(g a x) is 3/16 L to the centre g and to a.
    expected = -4 * (2 * L / 16) * (3 / 16) * L
    centre = found['heads.generator.conv.kernel'][1, 1]
    np.testing.assert_allclose(centre[0, 0], expected, rtol=1e-4)
    # a moves M, which the generator reads it for; what is multiplied with 1 - M would add L / 4 b.
    np.testing.assert_allclose(found['a'], expected, rtol=1e-4)
    others = [n for n in found if not n.startswith('heads.generator') and n != 'a']
    assert 'b' in others and 'heads.classifier.conv1.kernel' in others
    assert not any(np.any(found[name]) for name in others)


def test_the_guidance_reaches_everything():
    found = gradients('logits_foreground', 0)
    # The logit is b a L M / 4 of one position, M = sigmoid(g a L) = 3/4.
    np.testing.assert_allclose(found['b'], 3 / 4 * L / 4, rtol=1e-4)
    np.testing.assert_allclose(found['a'], 2 * L / 4 * (3 / 4 + 3 / 16 * L), rtol=1e-4)
    weight = found['heads.generator.conv.kernel'][1, 1, 0, 0]
    np.testing.assert_allclose(weight, 2 * L / 4 * (3 / 16 * L), rtol=1e-4)
    assert np.any(found['heads.classifier.classifier.kernel'])


@pytest.mark.parametrize(
    ('shape', 'size'), [((4, 6), (2, 3)), ((7, 5), (4, 3)), ((7, 7), (3, 3)), ((3, 3), (3, 3))]
)
def test_pooling_against_loops(shape, size):
    """Every value is cut in as many pieces that whole pieces fall into each part."""
    maps = np.random.default_rng(0).random((2, *shape)).astype(np.float32)
    fine = maps.repeat(size[0], 1).repeat(size[1], 2)
    expected = fine.reshape(2, size[0], shape[0], size[1], shape[1]).mean((2, 4))
    np.testing.assert_allclose(pooled(jnp.asarray(maps), size), expected, rtol=1e-5)


def test_the_map_by_hand():
    features = {'fine': jnp.asarray(INPUTS), 'coarse': jnp.asarray(INPUTS[:, ::2, ::2])}
    maps = jax.nn.sigmoid(INPUTS * np.array([1, -1], np.float32)).transpose(0, 3, 1, 2)
    asked = jnp.array([[1, 0, 1]])
    np.testing.assert_allclose(headed().heads.map(features, asked), maps[:, [1, 0, 1]], rtol=1e-6)
    for count in (2, 200):  # all there are
        both = headed(top_k=count).heads.map(features, asked)
        np.testing.assert_allclose(both, maps.mean(1, keepdims=True).repeat(3, 1), rtol=1e-6)


def small(options=None, side=64, **given):
    """A residual network with heads; with batch statistics of its own."""
    module = build('resnet10', 4, nnx.Rngs(0), width=4, **(options or {}))
    add_heads('resnet10', module, BAS(width=6, **given), 0)
    return module, as_network('resnet10', module, input_size=side)


IMAGES = np.random.default_rng(1).integers(0, 256, (4, 64, 64, 3), np.uint8)
LABELS = np.array([3, 0, 2, 1], np.int32)


@pytest.mark.slow
def test_the_classes_of_highest_logits_are_averaged():
    _, network = small(top_k=2)
    found = localize(network, IMAGES, ('bas',), classes=LABELS, resize=False)
    logits, endpoints = network(IMAGES)
    maps = np.asarray(network.apply.thaw(network.state).heads.generator(endpoints['stage3']))
    for image, row in enumerate(np.asarray(logits)):
        best = np.argsort(-row)[:2]
        expected = maps[image][..., best].mean(-1)
        np.testing.assert_allclose(found.maps['bas', 'head'][image], expected, rtol=1e-5)
    # Whichever class is asked for.
    other = localize(network, IMAGES, ('bas',), classes=LABELS[::-1], resize=False)
    np.testing.assert_array_equal(other.maps['bas', 'head'], found.maps['bas', 'head'])


def test_training_free_methods_work_on_a_network_that_it_trained():
    _, network = small()
    layers = ('stage2', 'stage4')
    found = localize(network, IMAGES, ('bas', 'dgl'), layers, LABELS, resize=False)
    assert list(found.maps) == [('bas', 'head'), ('dgl', 'stage2'), ('dgl', 'stage4')]
    assert found.maps['bas', 'head'].shape == (4, 4, 4)
    assert all(np.ptp(m) > 0 for m in found.maps.values())


def statistics(module):
    return [np.asarray(x) for x in jax.tree.leaves(nnx.state(module, nnx.BatchStat))]


@pytest.mark.slow
def test_the_frozen_pass_uses_batch_statistics_and_leaves_none():
    """Also where the classifier is deaf to the foreground."""
    inputs = jnp.asarray(IMAGES, jnp.float32) / 128 - 1
    (module, _), (plain, _), (again, _) = small(), small(), small()
    extras = outputs_of(module, inputs, None, jnp.asarray(LABELS)).extras
    _, endpoints, _ = outputs_of(plain, inputs)
    for found, expected in zip(*map(statistics, (module, plain)), strict=True):
        np.testing.assert_array_equal(found, expected)
    maps = np.asarray(plain.heads.generator(endpoints['stage3']))
    chosen = np.stack([m[..., k] for m, k in zip(maps, LABELS, strict=True)])
    left = endpoints['stage3'] * (1 - chosen)[..., None]
    _, endpoints = again(inputs, {'stage3': lambda _: left})
    expected = again.heads.classifier(endpoints['stage4']).mean((1, 2))
    np.testing.assert_allclose(extras['logits_background'], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_what_lies_before_the_features_is_not_computed_twice():
    module, network = small()
    graph, state = nnx.split(module)
    inputs = jnp.zeros((2, 64, 64, 3))

    def flops(function, *arguments):
        return jax.jit(function).lower(*arguments).compile().cost_analysis()['flops']

    def extras(state, inputs, classes):
        return outputs_of(nnx.merge(graph, state, copy=True), inputs, None, classes)

    def rest(state, features):
        module = nnx.merge(graph, state, copy=True)
        _, endpoints = module(inputs, {'stage3': lambda _: features})
        return module.heads.classifier(endpoints['stage4']), module.heads.generator(features)

    with_classes = flops(lambda s, x: extras(s, x, jnp.array([0, 1]))[::2], state, inputs)
    alone = flops(lambda s, x: extras(s, x, None)[0], state, inputs)
    added = flops(rest, state, jnp.zeros((2, *network.endpoints(64)['stage3'])))
    assert alone < with_classes < alone + 1.1 * added < 1.7 * alone


def program_of(dtype, method=None):
    module, network = small()
    setting = TrainConfig(dtype=dtype, learning_rate=0.1, warmup=0.0, schedule='constant')
    devices = local_devices('jit')
    return make_program(
        setting, method or BAS(width=6), module, network.preprocessing, devices, 9, 3
    )


@pytest.mark.slow
def test_bfloat16_is_near_float32():
    batch = batch_of(LABELS)._replace(images=IMAGES)
    found, expected = (program_of(dtype) for dtype in ('bfloat16', 'float32'))
    results = [p.step(jax.tree.map(jnp.copy, p.initial), batch) for p in (found, expected)]
    (rough, loss), (exact, exact_loss) = results
    assert float(loss.mean_loss) == pytest.approx(float(exact_loss.mean_loss), rel=0.02)
    assert float(loss.mean_loss) != float(exact_loss.mean_loss)
    for name in ('area', 'ratio'):
        assert float(loss.sums[name]) == pytest.approx(float(exact_loss.sums[name]), rel=0.02)
    moved = [
        np.asarray(state.params['heads']['generator']['conv']['kernel'][...])
        - np.asarray(expected.initial.params['heads']['generator']['conv']['kernel'][...])
        for state in (rough, exact)
    ]
    assert np.abs(moved[1]).max() > 0
    np.testing.assert_allclose(moved[0], moved[1], atol=0.1 * np.abs(moved[1]).max())


@pytest.mark.slow
def test_an_interrupted_training_ends_as_if_it_had_not_been_and_opens(tmp_path):
    """With the frozen copy in every step, and a row of its values."""
    options = {'width': 6, 'layer': 'stage2', 'top_k': 2}
    setting = TrainConfig(epochs=2, batch_size=8, log_every=1, method='bas', options=options)
    network = NetworkConfig('resnet10', options={'width': 4}, input_size=32)
    config = Config(network=network, data=DataConfig(shapes_size=32), train=setting)
    sources = Shapes('train', 16, size=32), Shapes('val', 6, size=32)
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    for workdir in (whole, broken):
        workdir.mkdir()
        (workdir / 'config.json').write_text(
            json.dumps({'config': flatten(config), 'contents': {}})
        )
    train(config, *sources, whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, 'save', _interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config, *sources, broken)
    train(config, *sources, broken)
    names = ('step', 'loss', 'accuracy', 'area', 'ratio')
    rows = [[[r[n] for n in names] for r in read_csv(w / 'progress.csv')] for w in (whole, broken)]
    assert rows[0] == rows[1] and len(rows[0]) == 6 and all(map(all, rows[0]))
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    maps = [
        localize(load_network('resnet10', workdir), images, ('bas',)).maps['bas', 'head']
        for workdir in (whole, broken)
    ]
    assert maps[0].shape == (3, 4, 4) and np.ptp(maps[0]) > 0
    np.testing.assert_array_equal(*maps)


_save = Checkpoints.save


def _interrupted(checkpoints, state, row):
    """Once the first epoch is saved."""
    _save(checkpoints, state, row)
    raise KeyboardInterrupt


def abstract(name, method, **options):
    def make():
        module = build(name, 5, nnx.Rngs(0), **options)
        add_heads(name, module, method, 0)
        return module

    return nnx.eval_shape(make).heads


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'options', 'layer'),
    [
        ('vgg16', {}, 'conv4_3'),
        ('resnet50', {}, 'stage3'),
        ('resnet50', {'strides': (1, 2, 1, 2)}, 'stage3'),
        ('mobilenet_v1', {}, 'pw_11'),
        ('mobilenet_v1', {'output_stride': 16}, 'pw_11'),
    ],
)
def test_the_layer_of_the_generator(name, options, layer):
    assert abstract(name, BAS(width=4), **options).reads[0] == layer


@pytest.mark.slow
def test_wrong_layers_are_one_line():
    def message(name, method):
        with pytest.raises(ConfigError) as caught:
            abstract(name, method)
        return str(caught.value)

    found = message('inception_v3', BAS())
    assert found.startswith('no main endpoint of inception_v3 is twice as fine as Mixed_6g: name ')
    assert found.endswith('Mixed_6e, Mixed_6f') and '\n' not in found
    reads = abstract('inception_v3', BAS(layer='Mixed_6e', width=4)).reads
    assert reads == ('Mixed_6e', 'Mixed_6g')
    found = message('resnet10', BAS(layer='stag3'))
    key = 'config.train.options.layer'
    assert found.startswith(f"unknown endpoint of resnet10 in {key} 'stag3'; did you mean 'stage3'")
    expected = f'{key} must come before stage4, the last layer of resnet10'
    assert message('resnet10', BAS(layer='stage4')) == expected

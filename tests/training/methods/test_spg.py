"""SPG: its masks against a plain loop, its losses by hand, and what learns from which of them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsol_jax.config import ConfigError
from wsol_jax.localization.localize import localize
from wsol_jax.maps.fuse import min_max
from wsol_jax.models import as_network, build, load_network
from wsol_jax.models.heads import Outputs, outputs_of
from wsol_jax.training.method import Shard, Update
from wsol_jax.training.methods import add_heads
from wsol_jax.training.methods.spg import SPG, Layers, guidance, layers_of, ternary
from wsol_jax.training.step import split_module

UPDATE = Update(0, lambda sums: sums)


def batch_of(labels, valid=None):
    valid = np.ones(len(labels), bool) if valid is None else np.asarray(valid)
    return Shard(None, {'labels': np.asarray(labels)[:, None]}, valid, np.arange(len(labels)))


def plain_mask(scores, high, low):
    """1, 0 or None for every pixel of one image, one after the other."""
    above = sum(score > high for score in scores.flat)
    bar = high if above >= 30 else 0.7 * scores.max()
    wanted = [0 if s < low else 1 if s > bar else None for s in scores.flat]
    return wanted if scores.max() > 0 else [None] * scores.size


def values_of(mask):
    pairs = zip(np.asarray(mask.foreground).flat, np.asarray(mask.counts).flat, strict=True)
    return [int(foreground) if counts else None for foreground, counts in pairs]


@pytest.mark.parametrize('thresholds', [(0.7, 0.05), (0.5, 0.05), (0.9, 0.9), (0.0, 0.0), (1, 1)])
def test_masks_against_a_plain_loop(thresholds):
    rng = np.random.default_rng(0)
    scores = rng.random((6, 9, 13)).astype(np.float32)
    scores[1] *= 0.6
    scores[2] = np.where(rng.random((9, 13)) < 0.2, 1.0, 0.3)  # 30 or fewer are above
    scores[3] = 0.0
    scores[4] = 0.5
    scores[5] *= 0.04
    mask = ternary(scores, *thresholds)
    expected = [value for image in scores for value in plain_mask(image, *thresholds)]
    assert values_of(mask) == expected
    assert {None, 0, 1} >= set(expected)


def test_exactly_thirty_pixels_are_enough():
    scores = np.full((2, 5, 8), 0.55, np.float32)
    scores[0].flat[:30] = scores[1].flat[:29] = 0.75
    mask = ternary(scores, 0.7, 0.1)
    # .7 x .75 is below .55.
    assert np.asarray(mask.counts).sum((1, 2)).tolist() == [30, 40]
    assert np.asarray(mask.foreground).sum((1, 2)).tolist() == [30, 40]


def test_the_threshold_of_one_image_does_not_reach_the_next():
    weak, strong = np.full((5, 8), 0.55, np.float32), np.full((5, 8), 0.6, np.float32)
    weak[0, 0], strong.flat[:35] = 0.75, 0.9
    alone = values_of(ternary(strong[None], 0.7, 0.1))
    assert values_of(ternary(np.stack([weak, strong]), 0.7, 0.1))[40:] == alone
    assert alone.count(1) == 35 and alone.count(None) == 5


def test_background_comes_last():
    # All below the second threshold, and the fallback would take most of it for foreground.
    scores = np.linspace(0.01, 0.04, 40, dtype=np.float32).reshape(1, 5, 8)
    mask = ternary(scores, 0.7, 0.05)
    assert np.asarray(mask.counts).all() and not np.asarray(mask.foreground).any()


LOGITS = np.array([[[0, 2, -1]], [[3, 0, 1]]], np.float32)


def test_the_loss_of_a_mask_is_a_mean_over_the_batch_by_hand():
    foreground = np.array([[[1, 0, 0]], [[0, 1, 1]]], bool)
    counts = np.array([[[1, 1, 0]], [[0, 0, 1]]], bool)
    mask = SimpleNamespace(foreground=jnp.asarray(foreground), counts=jnp.asarray(counts))
    log2, of_2, of_1 = np.log(2), np.log1p(np.exp(2)), np.log1p(np.exp(-1))
    found = guidance(jnp.asarray(LOGITS), mask, batch_of([0, 0]), UPDATE)
    assert float(found) == pytest.approx((log2 + of_2 + of_1) / 3)  # three pixels of two images
    first = guidance(jnp.asarray(LOGITS), mask, batch_of([0, 0], [True, False]), UPDATE)
    assert float(first) == pytest.approx((log2 + of_2) / 2)
    none = batch_of([0, 0], [False, False])
    assert float(guidance(jnp.asarray(LOGITS), mask, none, UPDATE)) == 0


def extras_of(rng, size=(2, 9, 13)):
    names = ('attention', 'lower', 'upper', 'top')
    return {n: jnp.asarray(rng.normal(size=size) * 3, jnp.float32) for n in names}


def plain_bce(logits, wanted):
    """The mean over what counts of all images."""
    probabilities = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    terms = [
        -np.log(p if w else 1 - p)
        for p, w in zip(probabilities.flat, wanted, strict=True)
        if w is not None
    ]
    return np.mean(terms) if terms else 0.0


@pytest.mark.slow
def test_the_loss_against_a_plain_loop():
    rng = np.random.default_rng(1)
    extras, logits = extras_of(rng), jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
    method = SPG(attention=(0.6, 0.2), upper_side=(0.55, 0.1), both_sides=(0.65, 0.3))
    losses, values = method.loss(Outputs(logits, {}, extras), batch_of([2, 0]), UPDATE)
    attention, lower, upper, top = (np.asarray(x) for x in extras.values())
    scaled = np.stack([(m - m.min()) / (m.max() - m.min()) for m in attention])
    b1, b2 = (1 / (1 + np.exp(-x)) for x in (lower, upper))
    expected = 0.0
    for given, scores, thresholds in (
        (upper, scaled, (0.6, 0.2)),
        (lower, b2, (0.55, 0.1)),
        (top, (b1 + b2) / 2, (0.65, 0.3)),
    ):
        wanted = [value for image in scores for value in plain_mask(image, *thresholds)]
        expected += plain_bce(given, wanted)
    classified = -np.asarray(jax.nn.log_softmax(logits))[[0, 1], [2, 0]]
    np.testing.assert_allclose(losses, classified + expected, rtol=1e-5)
    assert values['accuracy'].shape == (2,)


@pytest.mark.slow
def test_masks_have_no_gradient_and_what_they_supervise_has():
    extras = extras_of(np.random.default_rng(2))
    outputs = Outputs(jnp.zeros((2, 3)), {}, extras)

    def loss(extras):
        return SPG().loss(outputs._replace(extras=extras), batch_of([0, 1]), UPDATE)[0][0]

    found = jax.grad(loss)(extras)
    assert not found['attention'].any()
    # Each of the others learns from its own mask alone, although it makes others.
    upper, attention = extras['upper'], min_max(extras['attention'])
    mask = ternary(attention, 0.7, 0.05)
    counts = np.asarray(mask.counts)
    expected = (np.asarray(nnx.sigmoid(upper)) - np.asarray(mask.foreground)) / counts.sum()
    np.testing.assert_allclose(found['upper'], np.where(counts, expected, 0), atol=1e-7)
    assert found['lower'].any() and found['top'].any()


def test_a_constant_or_broken_class_map_supervises_nothing():
    extras = extras_of(np.random.default_rng(3))
    for value in (0.0, 2.5, np.nan, np.inf):
        given = extras | {'attention': jnp.full((2, 9, 13), value)}

        def loss(upper, given=given):
            outputs = Outputs(jnp.zeros((2, 3)), {}, given | {'upper': upper})
            return SPG().loss(outputs, batch_of([0, 1]), UPDATE)[0][0]

        value, gradient = jax.value_and_grad(loss)(extras['upper'])
        assert np.isfinite(value) and not gradient.any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'options', 'expected'),
    [
        ('inception_v3', ('Mixed_6e', '', ''), ('Mixed_5d', 'Mixed_6d', 'Mixed_6e')),  # published
        ('resnet10', ('', '', ''), ('stage2', 'stage3', 'stage4')),
        ('resnet10', ('', 'stage4/block1', ''), ('stage3', 'stage4/block1', 'stage4')),
        ('mobilenet_v1', ('', '', ''), ('pw_11', 'pw_12', 'pw_13')),
        ('vgg16', ('conv5_3', 'conv5_3', 'conv4_3'), ('conv4_3', 'conv5_3', 'conv5_3')),
    ],
)
def test_the_layers_of_a_network(name, options, expected):
    module = nnx.eval_shape(lambda: build(name, 3, nnx.Rngs(0)))
    assert layers_of(as_network(name, module), *options) == Layers(*expected)


def test_wrong_layers_and_thresholds_are_one_line(toy):
    where = r'config\.train\.options\.'
    for method, message in (
        (SPG(layer='lat'), rf"endpoint of toy in {where}layer 'lat'; did you mean 'late'"),
        (SPG(upper='eary'), rf"endpoint of toy in {where}upper 'eary'; did you mean 'early'"),
        (SPG(upper='late', lower='x'), rf"endpoint of toy in {where}lower 'x'; known: early"),
        (SPG(layer='early'), rf"{where}upper must name an endpoint: toy has none before 'early'"),
        (SPG(), rf"{where}lower must name an endpoint: toy has none before 'early' to choose"),
        (SPG(attention=(0.1, 0.2)), rf'{where}attention must be \(high, low\), got \(0.1, 0.2\)'),
    ):
        with pytest.raises(ConfigError, match=message):
            method.heads(toy, nnx.Rngs(0))


def headed(seed=0, **options):
    module = build('resnet10', 3, nnx.Rngs(seed), width=4, output_stride=8)
    add_heads('resnet10', module, SPG(width=6, side_width=5, **options), seed)
    return module


INPUTS = jnp.asarray(np.random.default_rng(4).normal(size=(2, 40, 56, 3)), jnp.float32)


@pytest.mark.slow
def test_maps_are_those_of_the_input_and_sides_share_a_layer():
    module = headed()
    found = outputs_of(module, INPUTS, None, jnp.array([0, 2]))
    shapes = {name: x.shape for name, x in found.extras.items()}
    assert shapes == dict.fromkeys(('attention', 'lower', 'upper', 'top'), (2, 40, 56))
    weights = {path[0] for path, _ in nnx.to_flat_state(nnx.state(module.heads, nnx.Param))}
    assert weights == {'a', 'b', 'b1', 'b2', 'c'}
    # By hand from the parts: B1 and B2 differ in their first convolution only.
    heads, endpoints = module.heads, found.endpoints
    for name, first, layer in (('lower', heads.b1, 'stage2'), ('upper', heads.b2, 'stage3')):
        small = heads.b.conv2(nnx.relu(heads.b.conv1(nnx.relu(first(endpoints[layer])))))
        large = jax.image.resize(small[..., 0], (2, 40, 56), 'linear', antialias=False)
        np.testing.assert_allclose(found.extras[name], large, rtol=1e-4, atol=1e-5)
    plain = outputs_of(headed(), INPUTS)
    np.testing.assert_allclose(plain.logits, found.logits, rtol=1e-5)
    assert not plain.extras


PARTS = ('classes', 'upper', 'lower', 'top')


@pytest.fixture(scope='module')
def learners():
    """{part of the loss: layers whose weights have a gradient of it alone}."""
    graph, params, *others = split_module(headed())

    def loss(params, part):
        module = nnx.merge(graph, params, *others, copy=True)
        found = outputs_of(module, INPUTS, None, jnp.ones(2, int))
        if part == 'classes':
            return found.logits[:, 1].sum()
        others_off = {n: jax.lax.stop_gradient(x) for n, x in found.extras.items() if n != part}
        outputs = Outputs(jax.lax.stop_gradient(found.logits), {}, found.extras | others_off)
        return SPG().loss(outputs, batch_of([1, 1]), UPDATE)[0][0]

    def layers(gradients):
        named = nnx.to_flat_state(gradients)
        return {'.'.join(map(str, path[:-1])) for path, leaf in named if leaf[...].any()}

    gradients = jax.jit(lambda p: {part: jax.grad(loss)(p, part) for part in PARTS})(params)
    return {part: layers(of) for part, of in gradients.items()}


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize(
    ('part', 'moved', 'still'),
    [
        ('classes', ('heads.a.classifier', 'heads.a.conv2'), ('heads.b', 'heads.b1', 'heads.c')),
        ('upper', ('heads.b2', 'heads.b.conv1', 'layer3.'), ('heads.a', 'heads.b1', 'layer4')),
        ('lower', ('heads.b1', 'heads.b.conv1', 'layer2.'), ('heads.a', 'heads.b2', 'layer3')),
        (
            'top',
            ('heads.c.conv1', 'heads.a.conv2', 'layer4.'),
            ('heads.a.classifier', 'heads.b', 'heads.b2'),
        ),
    ],
)
def test_what_learns_from_which_part(learners, part, moved, still):
    found = learners[part]
    for name in moved:
        assert any(other.startswith(name) for other in found), name
    for name in still:
        assert not any(f'{other}.'.startswith(f'{name}.') for other in found), name


IMAGES = np.random.default_rng(5).integers(0, 256, (2, 40, 56, 3), np.uint8)


@pytest.mark.slow
def test_the_map_is_the_class_map_of_the_logits():
    network = as_network('resnet10', headed(), input_size=48)
    logits, _ = network(IMAGES)
    classes = np.array([[0, 2], [1, 1]])
    found = localize(network, IMAGES, ('spg', 'dgl'), ('stage3',), classes, resize=False)
    maps = found.maps['spg', 'head']
    assert maps.shape == (2, 2, 5, 7)
    expected = np.take_along_axis(np.asarray(logits), classes, 1)
    np.testing.assert_allclose(maps.mean((2, 3)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_what_comes_behind_the_layer_is_passed_over():
    module = headed(layer='stage3', lower='stage1')
    network = as_network('resnet10', module, input_size=48)
    assert network.last_layer == 'stage3' and network.layers() == ('stage1', 'stage2', 'stage3')
    maps = localize(network, IMAGES, ('dgl', 'grad_cam', 'spg')).maps
    assert {layer for _, layer in maps} == {'stage1', 'stage2', 'stage3', 'head'}
    plain = load_network('resnet10', num_classes=3, width=4, output_stride=8)
    assert plain.last_layer == 'stage4' and len(plain.layers()) == 4


@pytest.mark.slow
def test_bfloat16_is_close():
    def losses(dtype):
        module = headed()
        for _, part in nnx.iter_modules(module):
            if hasattr(part, 'dtype'):
                part.dtype = dtype
        found = outputs_of(module, INPUTS.astype(dtype), None, jnp.array([0, 2]))
        extras = {name: x.astype(jnp.float32) for name, x in found.extras.items()}
        logits = found.logits.astype(jnp.float32)
        return SPG().loss(Outputs(logits, {}, extras), batch_of([0, 2]), UPDATE)[0]

    half, whole = losses(jnp.bfloat16), losses(jnp.float32)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, whole, rtol=0.05)

"""Every network: endpoints, perturbations, batches, modes, preprocessing, the command line."""

import os
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from wsol_jax.models import NETWORKS, Network, Preprocessing, build, load_network
from wsol_jax.models.__main__ import describe, main
from wsol_jax.models.layers import (
    Endpoints,
    avg_pool,
    depthwise_conv,
    global_average_pool,
    he_normal,
    max_pool,
    torch_pads,
)

SIZE = 64
IDENTITY = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
# The networks that run; the deeper resnets differ from these by their tables alone.
RUN = {
    'inception_v3': {},
    'resnet10': {'width': 8},
    'resnet50': {'width': 8, 'output_stride': 16},
    'vgg16': {},
    'mobilenet_v1': {},
    'squeezenet1_1': {},
}
CLASSES = 5


def abstract(name, classes=1000, **options):
    module = nnx.eval_shape(lambda: build(name, classes, nnx.Rngs(0), **options))
    return module, Network.from_module(module, name=name, preprocessing=IDENTITY, input_size=224)


@cache
def running(name):
    """A random network with its compiled call; perturbations for all endpoints at once."""
    network = load_network(name, num_classes=CLASSES, seed=1, **RUN[name])
    return network, jax.jit(network.apply)


@cache
def inputs(batch=1):
    return jax.random.normal(jax.random.key(3), (batch, SIZE, SIZE, 3))


def zeros(network, batch=1):
    return {k: jnp.zeros((batch, *shape)) for k, shape in network.endpoints(SIZE).items()}


# To compile these two takes most of the time.
SOME = [
    pytest.param(n, marks=pytest.mark.slow) if n in ('inception_v3', 'vgg16') else n for n in RUN
]


def inception_endpoints(side):
    """Section 3 of the DGL notes, as published."""
    a = {'5b': (64, 64, 96, 32), '5c': (64, 64, 96, 64), '5d': (64, 64, 96, 64)}
    blocks = a | {'6a': (384, 96, 288)} | {f'6{x}': (192,) * 4 for x in 'bcde'}
    expected = {}
    for block, branches in blocks.items():
        for number, width in enumerate(branches):
            expected[f'Mixed_{block}/Branch_{number}'] = (side, side, width)
        expected[f'Mixed_{block}'] = (side, side, sum(branches))
    return expected | {f'Mixed_6{x}': (side, side, 1024) for x in 'fg'}


def resnet_endpoints(blocks, expansion, sides=(56, 28, 14, 7)):
    expected = {'stage1/stem': (sides[0], sides[0], 64)}
    for stage, (count, side) in enumerate(zip(blocks, sides, strict=True), start=1):
        shape = (side, side, (64, 128, 256, 512)[stage - 1] * expansion)
        for block in range(1, count + 1):
            expected[f'stage{stage}/block{block}'] = shape
        expected[f'stage{stage}'] = shape
    return expected


def vgg_endpoints():
    expected = {}
    for group, (count, width) in enumerate([(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)]):
        side = 224 >> group
        for number in range(count):
            expected[f'conv{group + 1}_{number + 1}'] = (side, side, width)
        if group < 4:
            expected[f'pool{group + 1}'] = (side // 2, side // 2, width)
    return expected | {'conv6': (14, 14, 1024)}


def square(names, sides, widths):
    return {n: (s, s, w) for n, s, w in zip(names, sides, widths, strict=True)}


def vit_endpoints(width):
    blocks = {}
    for i in range(1, 13):
        blocks |= {f'block{i}/attention': (14, 14, 197), f'block{i}': (14, 14, width)}
    return blocks | {'norm': (14, 14, width)}


ENDPOINTS_224 = {
    'inception_v3': inception_endpoints(28),
    'resnet10': resnet_endpoints((1, 1, 1, 1), 1),
    'resnet18': resnet_endpoints((2, 2, 2, 2), 1),
    'resnet34': resnet_endpoints((3, 4, 6, 3), 1),
    'resnet50': resnet_endpoints((3, 4, 6, 3), 4),
    'resnet101': resnet_endpoints((3, 4, 23, 3), 4),
    'vgg16': vgg_endpoints(),
    'mobilenet_v1': square(
        [f'pw_{i}' for i in range(1, 14)],
        [112, 56, 56, 28, 28, 14, 14, 14, 14, 14, 14, 7, 7],
        [64, 128, 128, 256, 256] + 6 * [512] + 2 * [1024],
    ),
    'squeezenet1_1': square(
        [f'fire{i}' for i in range(2, 10)] + ['conv10'],
        [55, 55, 27, 27, 13, 13, 13, 13, 13],
        [128, 128, 256, 256, 384, 384, 512, 512, 1000],
    ),
    'deit_tiny': vit_endpoints(192),
    'deit_small': vit_endpoints(384),
    'vit_tiny': vit_endpoints(192),
    'vit_small': vit_endpoints(384),
    'vit_base': vit_endpoints(768),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', NETWORKS)
def test_endpoints_at_224(name):
    _, network = abstract(name)
    assert list(network.endpoints().items()) == list(ENDPOINTS_224[name].items())
    main_names = [n for n in ENDPOINTS_224[name] if '/' not in n]
    assert list(network.layers()) == [n for n in main_names if n not in network.unread]
    assert network.last_layer == main_names[-1]
    assert network.num_classes == 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    ('padding', 'size', 'side'),
    [
        ('same', 324, 41),
        ('torchvision', 224, 28),
        ('torchvision', 324, 40),
        ('torchvision', 321, 40),
    ],
)
def test_inception_sizes(padding, size, side):
    _, network = abstract('inception_v3', padding=padding)
    assert network.endpoints(size) == inception_endpoints(side)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('output_stride', 'sides'),
    [(32, (56, 28, 14, 7)), (16, (56, 28, 14, 14)), (8, (56, 28, 28, 28))],
)
def test_resnet_output_stride(output_stride, sides):
    _, network = abstract('resnet50', output_stride=output_stride)
    assert network.endpoints() == resnet_endpoints((3, 4, 6, 3), 4, sides)


@pytest.mark.slow
def test_sides_as_in_bas():
    """The last but one stage, and pw_11, at 28 x 28; what follows at 14 x 14."""
    _, network = abstract('resnet50', strides=[1, 2, 1, 2])
    assert network.endpoints() == resnet_endpoints((3, 4, 6, 3), 4, (56, 28, 28, 14))
    _, network = abstract('mobilenet_v1', output_stride=16)
    sides = [side for side, _, _ in network.endpoints().values()]
    assert sides == [112, 56, 56, *8 * [28], 14, 14]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'count'),
    [
        # torchvision's published counts.
        ('resnet18', 11_689_512),
        ('resnet34', 21_797_672),
        ('resnet50', 25_557_032),
        ('resnet101', 44_549_160),
        ('squeezenet1_1', 1_235_496),
        # Keras' 4,231,976 trainable ones, less one of the two numbers that its batch norm
        # has for each of the 10,944 channels.
        ('mobilenet_v1', 4_231_976 - 10_944),
        # torchvision's `features`, the added 3x3 convolution, the classifier.
        ('vgg16', 14_714_688 + (9 * 512 + 1) * 1024 + 1025 * 1000),
    ],
)
def test_parameter_counts(name, count):
    module, _ = abstract(name)
    leaves = jax.tree.leaves(nnx.state(module, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == count


@pytest.mark.slow
@pytest.mark.parametrize('name', SOME)
def test_every_endpoint_moves_the_logits(name):
    network, apply = running(name)
    none = zeros(network)
    plain, activations = apply(network.state, inputs(), none)
    assert np.isfinite(plain).all()
    assert plain.shape == (1, CLASSES)
    for endpoint in none:
        step = jnp.full_like(none[endpoint], 1e-3 + jnp.abs(activations[endpoint]).max())
        moved, taps = apply(network.state, inputs(), none | {endpoint: step})
        assert not np.allclose(moved, plain, rtol=1e-4, atol=0), endpoint
        np.testing.assert_allclose(taps[endpoint], activations[endpoint] + step, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('name', SOME)
def test_step_at_the_last_layer_is_linear(name):
    """Behind the last layer is only an average and a classifier: d logits = mean(d) W."""
    network, apply = running(name)
    none = zeros(network)
    plain, activations = apply(network.state, inputs(), none)
    last = network.last_layer
    scale = jnp.abs(activations[last]).max()
    step = scale * jax.random.normal(jax.random.key(0), none[last].shape)
    moved, _ = apply(network.state, inputs(), none | {last: step})
    head = {'mobilenet_v1': 'classifier', 'squeezenet1_1': None}.get(name, 'fc')
    expected = step.mean(axis=(1, 2))
    if head:
        expected = expected @ network.state[head]['kernel'][...]
    tolerance = 1e-5 * float(jnp.abs(plain).max() + jnp.abs(expected).max())
    np.testing.assert_allclose(moved - plain, expected, atol=tolerance)


@pytest.mark.slow
def test_branch_is_a_slice_of_its_block():
    network, apply = running('inception_v3')
    none = zeros(network)
    step = 10 * jax.random.normal(jax.random.key(0), none['Mixed_6e/Branch_1'].shape)
    whole = none['Mixed_6e'].at[..., 192:384].set(step)
    at_branch, taps = apply(network.state, inputs(), none | {'Mixed_6e/Branch_1': step})
    at_block, _ = apply(network.state, inputs(), none | {'Mixed_6e': whole})
    np.testing.assert_allclose(at_branch, at_block, rtol=1e-4, atol=1e-5)
    branches = [taps[f'Mixed_6e/Branch_{i}'] for i in range(4)]
    np.testing.assert_array_equal(taps['Mixed_6e'], np.concatenate(branches, axis=-1))


@pytest.mark.slow
@pytest.mark.parametrize('name', SOME)
def test_batch_of_two_is_two_batches_of_one(name):
    network, apply = running(name)
    pair, endpoints = apply(network.state, inputs(2), zeros(network, 2))
    for row in range(2):
        one, _ = apply(network.state, inputs(2)[row : row + 1], zeros(network))
        np.testing.assert_allclose(pair[row], one[0], rtol=1e-3, atol=1e-5 * np.abs(pair).max())
    assert not np.allclose(*endpoints[network.last_layer])


def test_unknown_endpoint_names_the_nearest():
    network, _ = running('resnet10')
    with pytest.raises(ValueError, match=r"endpoint 'stage5'.*did you mean 'stage"):
        jax.eval_shape(network.apply, network.state, inputs(), {'stage5': jnp.zeros(())})


def test_perturbation_of_another_batch_is_refused():
    network, _ = running('resnet10')
    shape = network.endpoints(SIZE)['stage4']
    with pytest.raises(ValueError, match=r"'stage4' has shape \(1, .*must be.*\(2, "):
        perturb = {'stage4': jnp.zeros((1, *shape))}
        jax.eval_shape(network.apply, network.state, inputs(2), perturb)


@pytest.mark.slow
def test_a_network_gives_a_module_of_its_own(toy):
    network, _ = running('resnet10')
    module = network.module()
    logits, _ = network.apply(network.state, inputs())
    np.testing.assert_array_equal(module(inputs())[0], logits)
    module.fc.bias[...] = module.fc.bias[...] + 1
    np.testing.assert_allclose(module(inputs())[0], logits + 1, rtol=1e-5)
    np.testing.assert_array_equal(network.apply(network.state, inputs())[0], logits)
    with pytest.raises(ValueError, match='toy was made of a function: there is no module'):
        toy.module()


def test_endpoints_keep_their_order_and_add():
    endpoints = Endpoints({'b': jnp.array([10.0])})
    x = endpoints.tap('b', jnp.array([1.0]))
    endpoints.tap('a', 2 * x)
    assert {k: float(v[0]) for k, v in endpoints.finish().items()} == {'b': 11.0, 'a': 22.0}
    assert list(endpoints.finish()) == ['b', 'a']


def test_endpoints_hand_on_what_a_function_makes_of_them():
    added, double = jnp.array([10.0]), lambda x: 2 * x
    endpoints = Endpoints({'a': double, 'b': (added, double)})
    found = [float(endpoints.tap(name, jnp.array([1.0]))[0]) for name in 'ab']
    endpoints.show('c', jnp.array([3.0]))
    assert found == [2, 22]
    assert {k: float(v[0]) for k, v in endpoints.finish().items()} == {'a': 1, 'b': 11, 'c': 3}
    with pytest.raises(ValueError, match=r"'a' has shape \(2,\), it must be .*\(1,\)"):
        Endpoints({'a': lambda _: jnp.zeros(2)}).tap('a', added)
    for change in (added, double):
        with pytest.raises(ValueError, match="'c' can be read alone"):
            Endpoints({'c': change}).show('c', added)


def test_a_function_shows_what_else_it_makes():
    endpoints = Endpoints({'a': lambda x: (2 * x, {'map': x - 1})})
    assert float(endpoints.tap('a', jnp.array([3.0]))[0]) == 6
    assert {k: float(v[0]) for k, v in endpoints.finish().items()} == {'a': 3, 'a/map': 2}
    with pytest.raises(ValueError, match="'a/map' can be read alone"):
        changes = {'a': lambda x: (x, {'map': x}), 'a/map': jnp.array([1.0])}
        Endpoints(changes).tap('a', jnp.array([3.0]))


@pytest.mark.parametrize('name', ['resnet10', 'mobilenet_v1'])
def test_what_lies_before_a_replaced_endpoint_is_not_computed(name):
    network, _ = running(name)
    late = network.layers()[-2]
    value = jnp.ones((1, *network.endpoints(SIZE)[late]))

    def flops(perturb):
        logits = jax.jit(lambda s, x: network.apply(s, x, perturb)[0])
        return logits.lower(network.state, inputs()).compile().cost_analysis()['flops']

    assert flops({late: lambda _: value}) < 0.45 * flops({})


@pytest.mark.slow
@pytest.mark.parametrize(
    'name', [pytest.param('inception_v3', marks=pytest.mark.slow), 'squeezenet1_1']
)
def test_dropout_only_in_training(name):
    module = build(name, CLASSES, nnx.Rngs(0))
    module.train()
    run = nnx.jit(lambda m, x: m(x)[0])
    first, second = run(module, inputs(2)), run(module, inputs(2))
    assert not np.allclose(first, second)

    network, apply = running(name)
    before = jax.tree.map(np.array, network.state)
    logits = [apply(network.state, inputs(2), zeros(network, 2))[0] for _ in range(2)]
    np.testing.assert_array_equal(*logits)
    jax.tree.map(np.testing.assert_array_equal, before, network.state)


def test_training_a_module_leaves_its_network_alone():
    module = build('resnet10', CLASSES, nnx.Rngs(0), width=8)
    module.train()
    network = Network.from_module(module, name='n', preprocessing=IDENTITY, input_size=SIZE)
    apply = jax.jit(network.apply)
    before = apply(network.state, inputs(2))[0]
    assert not module.layer1[0].conv1.bn.use_running_average
    mean = np.array(module.conv1.bn.mean[...])
    nnx.jit(lambda m, x: m(x)[0])(module, inputs(2))
    assert not np.allclose(mean, module.conv1.bn.mean[...])
    np.testing.assert_array_equal(apply(network.state, inputs(2))[0], before)


def test_call_preprocesses():
    network, apply = running('resnet10')
    images = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    logits, _ = jax.jit(network)(images)
    expected, _ = apply(network.state, network.preprocessing(images), zeros(network))
    np.testing.assert_allclose(logits, expected, rtol=1e-4)


def test_seeds_and_initial_variance():
    same = [load_network('resnet10', num_classes=3, seed=s, width=8).state for s in (0, 0, 1)]
    kernels = [s['layer1'][0]['conv1']['conv']['kernel'][...] for s in same]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.allclose(kernels[0], kernels[2])
    drawn = he_normal(jax.random.key(0), (3, 3, 50, 70))
    assert drawn.std() == pytest.approx(np.sqrt(2 / (9 * 50)), rel=0.02)
    assert abs(drawn.mean()) < 0.002


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: load_network('resnet5'), r"unknown network 'resnet5'; did you mean 'resnet50'"),
        (lambda: load_network('resnet10', widht=8), r"resnet10 'widht'; did you mean 'width'"),
        (lambda: build('vgg16', 3, nnx.Rngs(0), width=8), r"option of vgg16 'width'; known: none"),
        (lambda: load_network('resnet10', output_stride=4), r'output_stride 4.*\[32, 16, 8\]'),
        (lambda: load_network('mobilenet_v1', output_stride=8), r'output_stride 8.*\[32, 16\]'),
        (
            lambda: load_network('resnet10', strides=(1, 2, 2)),
            r'^strides must be four .* \(1, 2, 2\)',
        ),
        (
            lambda: load_network('resnet10', strides=(1, 2, 2, 3)),
            'strides must be four numbers, 1 ',
        ),
        (lambda: load_network('resnet10', strides=2), 'strides must be four numbers, 1 or 2'),
        (lambda: load_network('inception_v3', padding='torch'), r"'torch'; did you mean 'torchv"),
    ],
)
def test_misspelt_names(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Preprocessing


def test_preprocessing_by_hand():
    pixel = np.array([0, 128, 255], np.uint8).reshape(1, 1, 1, 3)
    symmetric = Preprocessing((128.0,) * 3, (128.0,) * 3)
    np.testing.assert_allclose(symmetric(pixel)[0, 0, 0], [-1, 0, 127 / 128])
    caffe = Preprocessing((104.0, 117.0, 123.0), (1.0, 1.0, 1.0), bgr=True)
    np.testing.assert_allclose(caffe(pixel)[0, 0, 0], [255 - 104, 128 - 117, 0 - 123])
    np.testing.assert_allclose(caffe(pixel / 255.0), caffe(pixel), atol=1e-4)
    assert jax.jit(caffe)(pixel).dtype == jnp.float32


@pytest.mark.parametrize(
    ('name', 'white'),
    [
        ('resnet18', [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]),
        ('vgg16', [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]),
        ('inception_v3', [127 / 128] * 3),
        ('mobilenet_v1', [127 / 128] * 3),
        ('squeezenet1_1', [151, 138, 132]),
    ],
)
def test_published_preprocessing(name, white):
    from wsol_jax.models.zoo import RECIPES

    image = np.full((1, 1, 1, 3), 255, np.uint8)
    np.testing.assert_allclose(RECIPES[name].preprocessing(image)[0, 0, 0], white, rtol=1e-5)


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        (np.zeros((2, 4, 4, 3), np.int32), 'images are int32'),
        (np.zeros((4, 4, 3), np.uint8), r'shape \(4, 4, 3\), not \[B,H,W,3\]'),
        (np.zeros((1, 4, 4, 1), np.uint8), r'shape \(1, 4, 4, 1\)'),
    ],
)
def test_images_of_another_kind(images, message):
    with pytest.raises(ValueError, match=message):
        IDENTITY(images)


# Layers


def pooled_size(length, window, stride, pad, ceil_mode):
    """Counts windows one by one, by torch's rule."""
    starts = range(-pad, length + pad, stride)
    if ceil_mode:
        return sum(
            start < length and (start + window <= length + pad + stride - 1) for start in starts
        )
    return sum(start + window <= length + pad for start in starts)


@pytest.mark.slow
@pytest.mark.parametrize('ceil_mode', [False, True])
@pytest.mark.parametrize(('window', 'stride', 'pad'), [(3, 2, 1), (3, 2, 0), (2, 2, 0), (3, 1, 1)])
def test_max_pool_against_loops(window, stride, pad, ceil_mode):
    for length in (7, 8, 9, 10):
        x = np.random.default_rng(length).normal(size=(1, length, length, 2)).astype(np.float32)
        pads = torch_pads((length, length), window, stride, pad, ceil_mode)
        got = jax.jit(lambda v, pads=pads: max_pool(v, window, stride, pads))(x)
        side = pooled_size(length, window, stride, pad, ceil_mode)
        assert got.shape == (1, side, side, 2)
        for row, column in np.ndindex(side, side):
            top, left = row * stride - pad, column * stride - pad
            part = x[0, max(top, 0) : top + window, max(left, 0) : left + window]
            np.testing.assert_array_equal(got[0, row, column], part.max(axis=(0, 1)))


def test_max_pool_gradient_goes_to_the_first_maximum():
    x = jnp.array([[0.0, 5.0, 5.0], [5.0, 1.0, 2.0], [0.0, 0.0, 0.0]]).reshape(1, 3, 3, 1)
    gradient = jax.jit(jax.grad(lambda v: max_pool(v, 3, 1, 'VALID').sum()))(x)
    np.testing.assert_array_equal(gradient.reshape(3, 3), [[0, 1, 0], [0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize(('stride', 'padding'), [(1, 'SAME'), (2, 'SAME'), (2, [(1, 1), (1, 2)])])
def test_max_pool_equals_xla(stride, padding):
    x = jax.nn.relu(jax.random.normal(jax.random.key(0), (2, 9, 10, 4)))  # many ties at zero
    pools = (
        lambda v: max_pool(v, 3, stride, padding),
        lambda v: nnx.max_pool(v, (3, 3), strides=(stride, stride), padding=padding),
    )
    # Another weight for every output, so that none can stand in for another.
    ours, theirs = (
        jax.jit(
            jax.value_and_grad(
                lambda v, f=pool: (f(v) * jnp.arange(f(v).size).reshape(f(v).shape)).sum()
            )
        )(x)
        for pool in pools
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    np.testing.assert_array_equal(ours[1], theirs[1])


def test_max_pool_shows_nan():
    for place in range(4):
        x = jnp.arange(4.0).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
        assert jnp.isnan(max_pool(x, 2, 2, 'VALID')).all()


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('side', [7, 8])
def test_depthwise_equals_grouped_convolution(stride, side):
    x = jax.random.normal(jax.random.key(0), (2, side, side, 6))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, 6))
    expected = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        'SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=6,
    )
    got = jax.jit(depthwise_conv, static_argnums=2)(x, kernel, stride)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_avg_pool_at_the_border():
    ones = jnp.ones((1, 4, 4, 1))
    np.testing.assert_allclose(avg_pool(ones, 3, count_padding=False), ones)
    counted = avg_pool(ones, 3, count_padding=True)[0, :, :, 0]
    np.testing.assert_allclose(counted[0], [4 / 9, 6 / 9, 6 / 9, 4 / 9], rtol=1e-6)
    np.testing.assert_allclose(counted[1, 1], 1.0, rtol=1e-6)


def test_global_average_pool():
    x = jnp.arange(12.0).reshape(1, 2, 3, 2)
    np.testing.assert_allclose(global_average_pool(x), [[5.0, 6.0]])


# The command line


def test_listing(capsys):
    main(['resnet10', '--size', '96'])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'resnet10, input 96 x 96, last layer stage4'
    assert lines[-1].replace(' ', '') == 'stage43x3x512'
    assert len(lines) == 10


@pytest.mark.slow
def test_listing_of_all(capsys):
    main([])
    out = capsys.readouterr().out
    assert [block.split(',')[0] for block in out.strip().split('\n\n')] == list(NETWORKS)
    assert describe('resnet10') in out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [(['resnet5'], "did you mean 'resnet50'"), (['vgg16', '--size', '20'], 'at least 64')],
)
def test_listing_of_what_is_not_there(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


# Real weights


@pytest.fixture(scope='module')
def imagenette():
    if 'WSOL_DATA' not in os.environ:
        pytest.skip('WSOL_DATA is not set: no real images and weights')
    root = Path(os.environ['WSOL_DATA'])
    lines = (root / 'imagenette/class_names.txt').read_text().split()
    indices = [int(line.split(',')[1]) for line in lines]
    images, labels = [], []
    for split in ('val', 'test'):
        listing = root / 'imagenette/metadata' / split / 'class_labels.txt'
        for line in listing.read_text().split():
            name, label = line.split(',')
            images.append(np.asarray(Image.open(root / 'imagenette/images' / name).convert('RGB')))
            labels.append(indices[int(label)])
    return root / 'weights', np.stack(images), np.array(labels)


@pytest.mark.slow
@pytest.mark.usefixtures('fully_optimized')
@pytest.mark.parametrize(('name', 'top1'), [('mobilenet_v1', 70.0), ('squeezenet1_1', 60.3)])
def test_top1_of_the_published_weights(imagenette, name, top1):
    weights, images, labels = imagenette
    assert len(images) == 300
    network = load_network(name, weights / f'{name}.safetensors')
    assert network.num_classes == 1000
    best = jax.jit(lambda state, x: network.apply(state, network.preprocessing(x))[0].argmax(-1))
    found = [best(network.state, images[i : i + 50]) for i in range(0, 300, 50)]
    assert 100 * np.mean(np.concatenate(found) == labels) == pytest.approx(top1, abs=0.5)

"""Images of other channels and shapes than square RGB, through everything that takes images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from wsol_jax.evaluation.faithfulness import faithfulness
from wsol_jax.exported import export, load_exported
from wsol_jax.localization.localize import localize
from wsol_jax.models import (
    Network,
    Preprocessing,
    as_network,
    build,
    from_function,
    from_linen,
    from_nnx,
)
from wsol_jax.models.network import sides

HEIGHT, WIDTH = 8, 12


class Cnn(nnx.Module):
    def __init__(self, channels, rngs):
        self.conv = nnx.Conv(channels, 5, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.conv(x)).mean((1, 2)))


class LinenCnn(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(5, (3, 3), strides=2, name='conv')(x))
        return linen.Dense(3, name='head')(x.mean((1, 2)))


def scale(channels):
    """Another mean and std for each channel."""
    steps = np.arange(channels)
    return Preprocessing(100.0 + steps, 50.0 + steps)


def draw(channels, height=HEIGHT, width=WIDTH):
    return np.random.default_rng(1).integers(0, 256, (3, height, width, channels), np.uint8)


@pytest.fixture(scope='module', params=[1, 11])
def rectangular(request):
    channels = request.param
    module = Cnn(channels, nnx.Rngs(0))
    return module, from_nnx(module, input_size=(HEIGHT, WIDTH), preprocessing=scale(channels))


def test_what_the_network_says(rectangular):
    module, network = rectangular
    channels = module.conv.in_features
    assert network.input_size == (HEIGHT, WIDTH)
    assert network.input_shape == (HEIGHT, WIDTH, channels)
    assert network.endpoints() == {'conv': (4, 6, 5)}
    assert network.endpoints((6, 20)) == {'conv': (3, 10, 5)}
    assert network.endpoints(16) == {'conv': (8, 8, 5)}
    weights = 9 * 5 * channels + 5 + 5 * 3 + 3
    assert repr(network) == (
        f"Network 'Cnn': input 8 x 12 x {channels}, 3 classes, {weights} parameters, layers conv"
    )


@pytest.mark.slow
def test_maps_by_hand(rectangular):
    module, network = rectangular
    channels = module.conv.in_features
    images = draw(channels)
    methods = ('dgl', 'full_grad', 'score_cam', 'eigen_cam')
    result = localize(network, images, methods, classes=[2, 0, 1], flip=True)
    assert {m.shape for m in result.maps.values()} == {(3, 4, 6), (3, HEIGHT, WIDTH)}
    assert all(np.isfinite(m).all() for m in result.maps.values())
    steps = np.arange(channels)
    x = module.conv(jnp.asarray((images - (100.0 + steps)) / (50.0 + steps), jnp.float32))
    # The gradient of a class score at the convolution: its weights where the ReLU is open.
    open_ = (x > 0) / 24
    weights = np.asarray(module.head.kernel[...])[:, [2, 0, 1]].T[:, None, None]
    expected = np.sum(x * np.mean(open_ * weights, (1, 2), keepdims=True), -1)
    grad_cam = localize(network, images, ('grad_cam',), classes=[2, 0, 1]).maps['grad_cam', 'conv']
    np.testing.assert_allclose(grad_cam, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_faithfulness_and_export(tmp_path):
    network = from_nnx(Cnn(4, nnx.Rngs(0)), input_size=(HEIGHT, WIDTH), preprocessing=scale(4))
    images = draw(4)
    result = localize(network, images, ('grad_cam',))
    scores = faithfulness(network, images, result.maps, result.classes, steps=2)
    assert all(np.isfinite(v).all() for v in scores['grad_cam', 'conv'].values())
    export(network, ('grad_cam',), None, tmp_path / 'maps.zip')
    exported = load_exported(tmp_path / 'maps.zip')
    assert exported.header.input_shape == network.input_shape
    maps = exported(images).maps['grad_cam', 'conv']
    np.testing.assert_allclose(maps, result.maps['grad_cam', 'conv'], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r'must be \[B,H,W,4\], got .*, 3\]'):
        exported(images[..., :3])


def test_linen_and_functions(rectangular):
    module, network = rectangular
    channels = module.conv.in_features
    how = {'input_size': (HEIGHT, WIDTH), 'preprocessing': scale(channels)}
    weights = LinenCnn().init(jax.random.key(0), jnp.zeros((1, HEIGHT, WIDTH, channels)))
    other = from_linen(LinenCnn(), weights, **how)
    assert other.input_shape == network.input_shape
    assert other.endpoints() == network.endpoints()

    def apply(inputs, perturb):
        return network.apply(network.state, inputs, perturb)

    assert from_function(apply, **how).endpoints() == network.endpoints()


def test_images_of_other_channels_are_told_what_was_expected(rectangular):
    module, network = rectangular
    channels = module.conv.in_features
    with pytest.raises(ValueError, match=rf'B,H,W,{channels}\]'):
        localize(network, draw(3), ('dgl',))
    with pytest.raises(ValueError, match=rf'B,H,W,{channels}\]'):
        network(draw(3))


@pytest.mark.parametrize('adapter', ['nnx', 'linen'])
def test_a_model_of_other_channels(adapter):
    how = {'input_size': HEIGHT, 'preprocessing': scale(3)}
    with pytest.raises(
        ValueError,
        match=r"Cnn: the model fails on inputs \['B', 8, 8, 3\], which input_size and",
    ):
        if adapter == 'nnx':
            from_nnx(Cnn(4, nnx.Rngs(0)), **how)
        else:
            weights = LinenCnn().init(jax.random.key(0), jnp.zeros((1, 8, 8, 4)))
            from_linen(LinenCnn(), weights, **how)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (((1.0, 2.0), (1.0,)), 'as many finite numbers as the network has channels'),
        (((1.0, np.nan), (1.0, 1.0)), 'as many finite numbers'),
        (((1.0,), (0.0,)), r'std must be above 0, got \(0.0,\)'),
        (((1.0,), (1.0,), True), 'bgr turns three channels around, mean has 1'),
    ],
)
def test_wrong_preprocessing(arguments, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(*arguments)


def test_grey_preprocessing_of_plain_numbers():
    grey = Preprocessing(128, 64)
    assert grey.channels == 1 and hash(grey) == hash(Preprocessing((128.0,), [64.0]))
    np.testing.assert_allclose(grey(np.full((1, 2, 3, 1), 192, np.uint8)), np.ones((1, 2, 3, 1)))


@pytest.mark.parametrize('size', [0, -3, 2.5, (1, 2, 3), (4, 0), 'big', (2.0, 3.0)])
def test_wrong_sizes(size):
    with pytest.raises(ValueError, match=r'a side in pixels or \(height, width\), got'):
        sides(size)


def test_sizes():
    assert sides(np.int64(5)) == (5, 5)
    assert sides([3, 4]) == (3, 4)


def test_reprs_are_short():
    module = nnx.eval_shape(lambda: build('resnet18', 7, nnx.Rngs(0)))
    network = as_network('resnet18', module)
    assert repr(network) == (
        "Network 'resnet18': input 224 x 224 x 3, 7 classes, 11,180,103 parameters, "
        'layers stage1 … stage4'
    )
    assert len(repr(network.preprocessing)) < 120
    linen_network = from_linen(
        LinenCnn(),
        LinenCnn().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))),
        input_size=8,
        preprocessing=scale(3),
    )
    assert '158 parameters' in repr(linen_network)


def test_sizes_of_a_network_that_shows_its_endpoints():
    def apply(state, inputs, perturb=None):
        x = inputs @ state['w'] + (perturb or {}).get('x', 0.0)
        return x.mean((1, 2)), {'x': x}

    network = Network.from_apply(
        apply,
        {'w': jnp.ones((2, 3))},
        name='two',
        preprocessing=scale(2),
        input_size=(4, 6),
    )
    assert network.endpoints() == {'x': (4, 6, 3)}
    assert '6 parameters' in repr(network)

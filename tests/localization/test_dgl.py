"""DGL against the paper's facts and an independent float64 version of its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsol_jax.localization.dgl import dgl, sgl_g2
from wsol_jax.localization.gradients import activation_gradients, raw_maps
from wsol_jax.localization.localize import compute_maps, localize, make_plan
from wsol_jax.localization.method import class_score, softmax_probabilities
from wsol_jax.localization.methods import METHODS
from wsol_jax.localization.views import image_keys
from wsol_jax.models import Network, Preprocessing, build, load_network

BRANCHES = tuple(f'Mixed_6e/Branch_{i}' for i in range(4))
LAYERS = (*BRANCHES, 'Mixed_6e', 'Mixed_6f', 'Mixed_6g')


def unit(x):
    return x / np.sqrt(max(np.sum(x**2), 1e-12))


def by_hand(s, g, loss_gradient):
    """The DGL map of one image in float64."""
    s, g, loss_gradient = (np.asarray(x, np.float64) for x in (s, g, loss_gradient))
    return np.sum(g * (unit(s) - unit(loss_gradient)), axis=-1)


def min_max(m):
    m = np.asarray(m, np.float64)
    return (m - m.min()) / (m.max() - m.min())


class Run:
    """One network on two images: activations, gradients and a way to pull anything else back."""

    def __init__(self, network, inputs, classes, layers):
        self.network, self.inputs, self.layers = network, inputs, layers
        self.classes = jnp.asarray(classes)
        self._programs = {}
        names = ('logits', 'activations', 'e', 'p')
        for name, value in zip(names, jax.jit(self._run)(network.state), strict=True):
            setattr(self, name, value)

    def _run(self, state):
        logits, _, activations, pulled = activation_gradients(
            self.network.apply,
            state,
            self.inputs,
            self.classes[:, None],
            self.layers,
            (class_score, softmax_probabilities),
        )
        e, p = (
            {layer: g[c][0] for layer, g in pulled.items()}
            for c in (class_score, softmax_probabilities)
        )
        return logits, activations, e, p

    def pull_back(self, cotangent, layer):
        """A given cotangent on the logits, pulled back by jax.vjp alone."""
        if layer not in self._programs:

            def run(state, cotangent):
                def logits_at(perturbation):
                    return self.network.apply(state, self.inputs, {layer: perturbation})[0]

                zeros = jnp.zeros_like(self.activations[layer])
                return jax.vjp(logits_at, zeros)[1](cotangent)[0]

            self._programs[layer] = jax.jit(run)
        return np.asarray(self._programs[layer](self.network.state, cotangent), np.float64)

    def dgl(self, layer, alpha=10.0):
        """Maps [B,h,w] of the method under test."""
        s, g, q = self.activations[layer], self.e[layer], self.p[layer]
        return np.asarray(dgl(alpha).combine(s, g, q), np.float64)

    @property
    def one_hot(self):
        return jax.nn.one_hot(self.classes, self.logits.shape[1])


@pytest.fixture(scope='module')
def resnet_run(resnet, images):
    inputs = resnet.preprocessing(images[:2])
    return Run(resnet, inputs, [2, 5], ('stage2', 'stage3', 'stage4'))


@pytest.fixture(scope='module')
def inception_run():
    network = load_network('inception_v3', num_classes=5, seed=1)
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), np.uint8)
    return Run(network, network.preprocessing(images), [3, 0], LAYERS)


@pytest.fixture(params=['resnet', pytest.param('inception', marks=pytest.mark.slow)])
def run_and_layers(request):
    """A run with its last layer and one in the middle."""
    run = request.getfixturevalue(f'{request.param}_run')
    return run, *{'resnet': ('stage4', 'stage2'), 'inception': ('Mixed_6g', 'Mixed_6e')}[
        request.param
    ]


def test_the_map_is_the_formula_in_float64(run_and_layers):
    run, last, middle = run_and_layers
    for layer in (last, middle):
        for alpha in (1.0, 10.0):
            loss = np.asarray(run.p[layer]) - alpha * np.asarray(run.e[layer])
            actual = run.dgl(layer, alpha)
            for i in range(2):
                expected = by_hand(run.activations[layer][i], run.e[layer][i], loss[i])
                assert expected.std() > 0
                scale = np.abs(expected).max()
                np.testing.assert_allclose(actual[i], expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(('options', 'alpha'), [({}, 10.0), ({'alpha': 1.0}, 1.0)])
def test_localize_computes_that_map(resnet, resnet_run, images, options, alpha):
    layers = ('stage2', 'stage3')
    result = localize(resnet, images[:2], ('dgl',), layers, classes=[2, 5], **options)
    for layer in layers:
        expected = resnet_run.dgl(layer, alpha)
        actual = np.asarray(result.maps['dgl', layer])
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# 1
def test_on_the_last_layer_it_is_cam(run_and_layers):
    run, last, middle = run_and_layers
    maps = run.dgl(last)
    for i in range(2):
        weights = np.asarray(run.e[last][i], np.float64).sum((0, 1))
        cam = np.asarray(run.activations[last][i], np.float64) @ weights
        np.testing.assert_allclose(min_max(maps[i]), min_max(cam), rtol=0, atol=1e-5)
        # Not so on an earlier one.
        weights = np.asarray(run.e[middle][i], np.float64).sum((0, 1))
        cam = np.asarray(run.activations[middle][i], np.float64) @ weights
        assert np.abs(min_max(run.dgl(middle)[i]) - min_max(cam)).max() > 0.01


# 2 and 3
@pytest.mark.parametrize('alpha', [1.0, 10.0])
def test_loss_gradient_pulls_back_p_minus_alpha_e(run_and_layers, alpha):
    run, _, middle = run_and_layers
    p = jax.nn.softmax(run.logits)
    direct = run.pull_back(p - alpha * run.one_hot, middle)
    combined = np.asarray(run.p[middle]) - alpha * np.asarray(run.e[middle])
    np.testing.assert_allclose(combined, direct, rtol=0, atol=2e-6 * np.abs(direct).max())
    maps = run.dgl(middle, alpha)
    for i in range(2):
        expected = by_hand(run.activations[middle][i], run.e[middle][i], direct[i])
        scale = np.abs(expected).max()
        np.testing.assert_allclose(maps[i], expected, rtol=0, atol=1e-5 * scale)


def test_the_cotangents_are_e_and_p():
    logits = jnp.array([[1.0, 2.0, -1.0], [0.0, 0.0, 3.0]])
    e = class_score(logits, jnp.array([[2, 0], [1, 1]]))
    assert e.tolist() == [[[0, 0, 1], [0, 1, 0]], [[1, 0, 0], [0, 1, 0]]]
    p = softmax_probabilities(logits, jnp.array([[2], [1]]))
    expected = np.exp([[1.0, 2.0, -1.0], [0.0, 0.0, 3.0]])
    np.testing.assert_allclose(p, (expected / expected.sum(1, keepdims=True))[None], rtol=1e-6)
    assert dgl().cotangents == (class_score, softmax_probabilities)


# 2: the detector. The gradient of -alpha log p_c, alpha (p - e_c), is the wrong one.
def test_alpha_changes_the_map_as_it_would_not_with_the_gradient_of_the_cross_entropy(
    run_and_layers,
):
    run, _, middle = run_and_layers
    p = jax.nn.softmax(run.logits)
    for i in range(2):
        s, g = run.activations[middle][i], run.e[middle][i]
        wrong = [
            by_hand(s, g, run.pull_back(alpha * (p - run.one_hot), middle)[i])
            for alpha in (1.0, 10.0)
        ]
        np.testing.assert_allclose(min_max(wrong[0]), min_max(wrong[1]), rtol=0, atol=1e-5)
        one, ten = (min_max(run.dgl(middle, alpha)[i]) for alpha in (1.0, 10.0))
        assert np.abs(one - ten).max() > 1e-3
        assert np.abs(min_max(wrong[1]) - ten).max() > 1e-3
        np.testing.assert_allclose(min_max(wrong[0]), one, rtol=0, atol=1e-4)


# 4
def test_large_alpha_is_sgl_g1(run_and_layers):
    run, _, middle = run_and_layers
    maps = run.dgl(middle, 1e6)
    for i in range(2):
        s, g = (np.asarray(x[middle][i], np.float64) for x in (run.activations, run.e))
        sgl = np.sum((unit(s) + unit(g)) * unit(g), axis=-1)
        np.testing.assert_allclose(min_max(maps[i]), min_max(sgl), rtol=0, atol=1e-4)


# 5
def test_scale_of_the_score_gradient_outside_does_not_matter(run_and_layers):
    run, _, middle = run_and_layers
    for i in range(2):
        s, g, q = (np.asarray(x[middle][i], np.float64) for x in (run.activations, run.e, run.p))
        normalized = np.sum(unit(g) * (unit(s) - unit(q - 10 * g)), axis=-1)
        actual = min_max(run.dgl(middle)[i])
        np.testing.assert_allclose(actual, min_max(normalized), rtol=0, atol=1e-5)


# 6
def test_norm_is_that_of_each_image(resnet, images):
    options = {'methods': ('dgl',), 'layers': ('stage2',)}
    # One image is nearly black: a norm over the batch would change the other's map.
    pair = np.stack([images[0], images[1] // 64])
    both = localize(resnet, pair, classes=[1, 2], **options).maps['dgl', 'stage2']
    for i in range(2):
        alone = localize(resnet, pair[i : i + 1], classes=[1 + i], **options)
        expected = np.asarray(alone.maps['dgl', 'stage2'][0])
        scale = np.abs(expected).max()
        np.testing.assert_allclose(both[i], expected, rtol=0, atol=2e-6 * scale)


# 6, 7
def test_norm_covers_height_width_and_channels():
    s = jnp.array([[[[3.0, 0.0], [0.0, 4.0]]]])  # norm 5
    g = jnp.array([[[[1.0, 0.0], [2.0, 2.0]]]])
    q = jnp.array([[[[3.0, 0.0], [2.0, 8.0]]]])  # alpha 1: G = (2 0)(0 6), norm sqrt 40
    root = np.sqrt(40)
    expected = [[3 / 5 - 2 / root, 2 * (4 / 5 - 6 / root)]]
    np.testing.assert_allclose(dgl(1.0).combine(s, g, q)[0], expected, rtol=1e-6)
    two = [jnp.concatenate([x, f * x]) for x, f in ((s, 7.0), (g, 3.0), (q, 3.0))]
    maps = dgl(1.0).combine(*two)
    np.testing.assert_allclose(maps[0], expected, rtol=1e-6)
    np.testing.assert_allclose(maps[1], 3 * np.array(expected), rtol=1e-6)


# 7
def test_norm_is_not_per_pixel(run_and_layers):
    run, _, middle = run_and_layers
    s, g, q = (np.asarray(x[middle][0], np.float64) for x in (run.activations, run.e, run.p))

    def per_pixel(x):
        return x / np.sqrt(np.maximum(np.sum(x**2, -1, keepdims=True), 1e-12))

    other = np.sum(g * (per_pixel(s) - per_pixel(q - 10 * g)), axis=-1)
    assert np.abs(min_max(other) - min_max(run.dgl(middle)[0])).max() > 0.05


# 8
@pytest.mark.slow
@pytest.mark.parametrize(
    ('size', 'padding', 'side'), [(224, 'same', 28), (324, 'same', 41), (324, 'torchvision', 40)]
)
def test_map_shapes_at_mixed_6e(size, padding, side):
    module = nnx.eval_shape(lambda: build('inception_v3', 10, nnx.Rngs(0), padding=padding))
    identity = Preprocessing((0.0,) * 3, (1.0,) * 3)
    network = Network.from_module(module, name='x', preprocessing=identity, input_size=224)
    assert network.endpoints(size)['Mixed_6e'] == (side, side, 768)
    layers_of = {dgl(): ('Mixed_6e', BRANCHES[1])}
    inputs = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    classes = jax.ShapeDtypeStruct((2, 3), jnp.int32)
    shapes = jax.eval_shape(
        lambda s, x, c: raw_maps(network.apply, s, x, c, layers_of, image_keys(x, 0))[2],
        network.state,
        inputs,
        classes,
    )
    assert {m.shape for m in shapes.values()} == {(2, 3, side, side)}


# 9
@pytest.mark.slow
def test_branches_sum_to_their_concatenation(inception_run):
    run = inception_run
    for e in (run.e, run.p):
        products = {n: np.sum(np.asarray(run.activations[n] * e[n]), axis=-1) for n in LAYERS}
        whole = products['Mixed_6e']
        parts = sum(products[b] for b in BRANCHES)
        np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5 * np.abs(whole).max())
    together = np.concatenate([run.e[b] for b in BRANCHES], axis=-1)
    scale = np.abs(together).max()
    np.testing.assert_allclose(run.e['Mixed_6e'], together, rtol=0, atol=1e-6 * scale)


# 11
def test_vanishing_loss_gradient_is_finite_and_only_at_alpha_1(toy, toy_images):
    # p_c = 1: q = g, so G = 0 at alpha 1 and -9 g at alpha 10.
    sure = {**toy.state, 'bias': toy.state['bias'].at[4].add(1000.0)}

    def maps(alpha):
        plan = make_plan(toy, ('dgl',), ('early',), alpha=alpha)
        program = (toy.apply, toy.preprocessing, plan, sure, toy_images, 1, None)
        return compute_maps(*program)

    _, classes, at_one, _ = maps(1.0)
    assert (classes == 4).all()
    _, _, at_ten, _ = maps(10.0)
    *_, pulled = activation_gradients(
        toy.apply,
        sure,
        toy.preprocessing(toy_images),
        classes,
        ('early',),
        (class_score, softmax_probabilities),
    )
    s = np.asarray(toy.apply(sure, toy.preprocessing(toy_images))[1]['early'], np.float64)
    g = np.asarray(pulled['early'][class_score][0], np.float64)
    np.testing.assert_array_equal(pulled['early'][softmax_probabilities][0], g)
    for i in range(4):
        one, ten = at_one['dgl', 'early'][i, 0], at_ten['dgl', 'early'][i, 0]
        np.testing.assert_allclose(one, np.sum(g[i] * unit(s[i]), -1), rtol=0, atol=1e-5)
        expected = by_hand(s[i], g[i], -9 * g[i])
        np.testing.assert_allclose(ten, expected, rtol=0, atol=1e-5)


def test_zero_activations_and_gradients_give_zero_not_nan():
    zero = jnp.zeros((2, 3, 3, 4))
    assert not np.asarray(dgl(10.0).combine(zero, zero, zero)).any()


def test_equal_alpha_is_one_method():
    assert dgl() == dgl(10.0) == dgl(alpha=10.0) == dgl(10) != dgl(1.0)
    assert len({dgl(), dgl(10.0), dgl(alpha=10.0), METHODS['dgl']()}) == 1
    assert sgl_g2() == sgl_g2(alpha=10.0) != sgl_g2(1.0)

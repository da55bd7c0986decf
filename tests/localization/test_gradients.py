"""Pull-backs against closed forms, finite differences, jax.grad; batches, sharing, devices."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsol_jax.localization import cam
from wsol_jax.localization.dgl import dgl
from wsol_jax.localization.gradients import ZERO, activation_gradients, raw_maps
from wsol_jax.localization.localize import compute_maps, localize
from wsol_jax.localization.masking import ss_cam
from wsol_jax.localization.method import channel_sum, class_score, softmax_probabilities
from wsol_jax.localization.methods import METHODS, resolve_methods
from wsol_jax.localization.plan import make_plan
from wsol_jax.localization.views import image_keys
from wsol_jax.models import build
from wsol_jax.models.layers import global_average_pool

STAGES = ('stage1', 'stage2', 'stage3', 'stage4')
BOTH = (class_score, softmax_probabilities)
# Sums over channels of a product with gradients; test_methods.py has every method.
SUMS = [n for n, m in METHODS.items() if m().cotangents and m().terms and m().reduce is channel_sum]


def gradient_methods():
    return [fused[0] for fused in resolve_methods(SUMS)]


def close(actual, expected, tolerance=1e-6):
    """Equal up to `tolerance` times the largest magnitude."""
    expected = np.asarray(expected)
    scale = np.abs(expected).max()
    assert scale > 0, 'nothing to compare'
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance * scale)


def toy_float64(toy, x):
    """Activations and logits of the toy network in float64."""
    w = {k: np.asarray(v, np.float64) for k, v in toy.state.items()}
    early = np.maximum(x @ w['early'], 0)
    return w, early, *toy_rest(w, early)


def toy_rest(w, early):
    b, h, k = len(early), early.shape[1] // 2, early.shape[3]
    late = np.maximum(early.reshape(b, h, 2, h, 2, k).mean((2, 4)) @ w['late'], 0)
    return late, late.mean((1, 2)) @ w['head'] + w['bias']


@pytest.fixture(scope='module')
def toy_run(toy, toy_images):
    x = toy.preprocessing(toy_images)
    classes = jnp.array([[1, 4], [0, 0], [5, 2], [3, 1]])
    outputs = activation_gradients(toy.apply, toy.state, x, classes, ('early', 'late'), BOTH)
    return np.asarray(x, np.float64), np.asarray(classes), outputs


def test_toy_class_score_gradient_has_its_closed_form(toy, toy_run):
    x, classes, (_, chosen, activations, gradients) = toy_run
    w, early, late, _ = toy_float64(toy, x)
    np.testing.assert_array_equal(chosen, classes)
    close(activations['early'], early)
    close(activations['late'], late)
    for k in range(2):
        head = w['head'].T[classes[:, k]][:, None, None, :] / 16
        close(gradients['late'][class_score][k], np.broadcast_to(head, late.shape))
        at_early = ((late > 0) * head) @ w['late'].T / 4
        close(gradients['early'][class_score][k], at_early.repeat(2, 1).repeat(2, 2))


def test_toy_gradients_match_float64_finite_differences(toy, toy_run):
    x, classes, (*_, gradients) = toy_run
    w, early, _, logits = toy_float64(toy, x)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    rng, step = np.random.default_rng(0), 1e-5
    for _ in range(20):
        direction = rng.normal(size=early.shape)
        up, down = (toy_rest(w, early + s * step * direction)[1] for s in (1, -1))
        change = (up - down) / (2 * step)
        for i in range(len(x)):
            for k in range(2):
                g = np.asarray(gradients['early'][class_score][k, i])
                expected = change[i, classes[i, k]]
                assert np.sum(g * direction[i]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
            q = np.asarray(gradients['early'][softmax_probabilities][0, i])
            # p is held constant: q pulls back p itself, it is not the gradient of softmax.
            expected = p[i] @ change[i]
            assert np.sum(q * direction[i]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def gradients_of(network, inputs, classes, layers):
    """`activation_gradients` for both cotangents, compiled."""

    def run(state, inputs, classes):
        *rest, gradients = activation_gradients(network.apply, state, inputs, classes, layers, BOTH)
        # Functions as keys do not leave jit.
        return *rest, {layer: [g[c] for c in BOTH] for layer, g in gradients.items()}

    *rest, gradients = jax.jit(run)(network.state, inputs, classes)
    return *rest, {layer: dict(zip(BOTH, g, strict=True)) for layer, g in gradients.items()}


@pytest.fixture(scope='module')
def stages(resnet, images):
    """Everything at all stages of the residual network, for two classes an image."""
    inputs = resnet.preprocessing(images)
    classes = jnp.array([[1, 4], [0, 6], [5, 2]])
    return inputs, classes, gradients_of(resnet, inputs, classes, STAGES)


def test_pull_back_equals_grad_of_each_image_alone(stages):
    inputs, classes, (logits, _, activations, gradients) = stages
    module = build('resnet10', 7, nnx.Rngs(3), width=8, output_stride=8)
    module.eval()

    def rest(stage, s, c):
        for number in range(stage + 1, 5):
            for block in getattr(module, f'layer{number}'):
                s = block(s)
        return module.fc(global_average_pool(s))[0, c]

    for stage, name in enumerate(STAGES, start=1):
        alone = jax.jit(jax.value_and_grad(partial(rest, stage)))
        for i in range(len(inputs)):
            for k in range(2):
                score, expected = alone(activations[name][i : i + 1], classes[i, k])
                close(score, logits[i, classes[i, k]], 1e-5)
                close(gradients[name][class_score][k, i], expected[0], 2e-6)


def test_all_layers_at_once_equal_one_at_a_time(resnet, stages):
    inputs, classes, (*_, gradients) = stages
    for name in ('stage1', 'stage3'):
        *_, alone = gradients_of(resnet, inputs, classes, (name,))
        assert list(alone) == [name]
        for cotangent in BOTH:
            close(alone[name][cotangent], gradients[name][cotangent])


def test_classes_at_once_equal_a_loop(resnet, stages):
    inputs, classes, (*_, gradients) = stages
    for k in range(2):
        *_, alone = gradients_of(resnet, inputs, classes[:, k : k + 1], ('stage2',))
        close(alone['stage2'][class_score][0], gradients['stage2'][class_score][k])


def everything(network, plan_layers):
    """A function of (state, inputs, classes) giving the maps of all gradient methods."""
    layers_of = {m: ('stage4',) if m.where == 'last' else plan_layers for m in gradient_methods()}
    return lambda s, x, c: raw_maps(network.apply, s, x, c, layers_of, image_keys(x, 0))[2]


@pytest.fixture(scope='module')
def all_maps(resnet, stages):
    inputs, classes, _ = stages
    return jax.jit(everything(resnet, STAGES[1:]))(resnet.state, inputs, classes)


@pytest.mark.slow
def test_maps_of_a_batch_equal_those_of_its_images(resnet, stages, all_maps):
    inputs, classes, _ = stages
    one = jax.jit(everything(resnet, STAGES[1:]))
    singles = [one(resnet.state, inputs[i : i + 1], classes[i : i + 1]) for i in range(3)]
    assert {m for m, _ in all_maps} == set(SUMS)
    for key, maps in all_maps.items():
        assert maps.shape[:2] == (3, 2)
        for i in range(3):
            close(maps[i], singles[i][key][0], 2e-6)


@pytest.mark.slow
def test_jit_equals_no_jit(toy, toy_images):
    layers_of = {
        m: ('late',) if m.where == 'last' else ('early', 'late') for m in gradient_methods()
    }
    x, classes = toy.preprocessing(toy_images), jnp.array([[1], [4], [0], [5]])

    def run(state):
        return raw_maps(toy.apply, state, x, classes, layers_of, image_keys(x, 0))[2]

    plain, compiled = run(toy.state), jax.jit(run)(toy.state)
    assert plain.keys() == compiled.keys() and len(plain) == 19
    for key in plain:
        close(compiled[key], plain[key], 2e-6)


@pytest.mark.slow
def test_methods_sharing_a_pass_equal_each_alone(toy, toy_images):
    options = {'layers': ('early', 'late'), 'classes': np.array([[1, 2], [4, 0], [0, 5], [5, 3]])}
    together = localize(toy, toy_images, SUMS, **options).maps
    for name in SUMS:
        alone = localize(toy, toy_images, [name], **options).maps
        assert set(alone) == {key for key in together if key[0] == name}
        for key in alone:
            close(alone[key], together[key], 2e-6)


def test_a_shared_cotangent_is_pulled_back_once(toy, toy_images):
    seen = []

    def counting(state, inputs, perturb=None):
        @jax.custom_vjp
        def tail(x):
            return x

        def backward(_, cotangent):
            seen.append(cotangent.shape)
            return (cotangent,)

        tail.defvjp(lambda x: (x, None), backward)
        logits, endpoints = toy.apply(state, inputs, perturb)
        return tail(logits), endpoints

    layers_of = dict.fromkeys((dgl(), cam.cam(), cam.layer_cam()), ('late',))
    x = toy.preprocessing(toy_images)
    raw_maps(counting, toy.state, x, jnp.zeros((4, 1), int), layers_of, image_keys(x, 0))
    # One backward pass, traced once under vmap, whatever the number of methods and layers.
    assert seen == [(4, 6)]


@pytest.mark.slow
def test_methods_without_cotangents_run_no_backward_pass(toy_with_spare, toy_images):
    def forward_only(state, inputs, perturb=None):
        assert not perturb
        return toy_with_spare.apply(state, inputs, perturb)

    network = replace(toy_with_spare, apply=forward_only)
    names = ('eigen_cam', 'kpca_cam', 'fem', 'random_cam')
    result = localize(network, toy_images, names, ('early', 'spare'))  # off the path to the logits
    assert len(result.maps) == 8
    beside = localize(toy_with_spare, toy_images, (*names, 'dgl'), ('early',)).maps
    for name in names:
        close(result.maps[name, 'early'], beside[name, 'early'], 2e-6)


@pytest.mark.slow
def test_what_is_drawn_depends_on_the_image_alone(resnet, images):
    def maps_of(rows, seed=0):
        options = {'noise': 2, 'sigma': 0.5, 'seed': seed}
        noisy = localize(resnet, images[rows], ('grad_cam',), ('stage2',), 1, **options).maps
        drawn = localize(resnet, images[rows], ('random_cam', ss_cam(2)), ('stage4',), 1, seed=seed)
        return [np.asarray(m) for m in (*noisy.values(), *drawn.maps.values())]

    whole = maps_of([0, 1, 2])
    for rows in ([2, 0, 1], [1], [2, 2, 0, 1, 1]):
        for m, expected in zip(maps_of(rows), whole, strict=True):
            close(m, expected[rows], 1e-4)
    for m, other in zip(whole, maps_of([0, 1, 2], seed=1), strict=True):
        assert np.abs(m - other).max() > 1e-2 * np.abs(m).max()


@pytest.mark.slow
def test_maps_of_sharded_batches_equal_a_single_device(tmp_path):
    script = tmp_path / 'sharded.py'
    script.write_text(SHARDED)
    flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=8'
    environment = os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
    result = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split() == ['8', 'devices', 'agree']


SHARDED = """
import jax, numpy as np
from wsol_jax.localization.localize import compute_maps
from wsol_jax.localization.plan import make_plan
from wsol_jax.models import load_network
from wsol_jax.parallel import local_devices

network = load_network('resnet10', num_classes=7, seed=3, width=8, output_stride=8)
names = ['dgl', 'cam', 'grad_cam', 'grad_cam_pp', 'hires_cam', 'xgrad_cam', 'layer_cam']
plan = make_plan(network, names, ['stage2', 'stage4'])
images = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), np.uint8)
classes = (np.arange(11) % 7)[:, None]
devices = local_devices('jit')
size = devices.round_up(11)
assert size == 16 and devices.size == 8
padding = [(0, size - 11)]
padded = np.pad(images, padding + 3 * [(0, 0)]), np.pad(classes, padding + [(0, 0)])

def run(state, images, classes):
    program = (network.apply, network.preprocessing, plan, state, images, 0, classes)
    return compute_maps(*program)

whole = run(network.state, images, classes)
split = run(devices.replicate(network.state), *devices.shard(padded))
for key, maps in split[2].items():
    assert len(maps.sharding.device_set) == 8 and maps.sharding.spec[0] == 'data', maps.sharding
    expected = np.asarray(whole[2][key])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(maps)[:11] / scale, expected / scale, rtol=0, atol=1e-6)
assert len(split[2]) == 13
np.testing.assert_allclose(np.asarray(split[0])[:11], whole[0], rtol=0, atol=1e-5)
for layer, flags in split[3].items():
    np.testing.assert_array_equal(np.asarray(flags)[:11], whole[3][layer])
print(jax.device_count(), 'devices agree')
"""


def test_no_array_is_left_behind(toy, toy_images):
    def call():
        localize(toy, toy_images, ('dgl', 'cam'), ('early',)).maps[
            'dgl', 'early'
        ].block_until_ready()

    call()
    before = len(jax.live_arrays())
    for _ in range(30):
        call()
    assert len(jax.live_arrays()) <= before


def test_same_shape_compiles_once(toy, toy_images):
    localize(toy, toy_images, ('dgl', 'layer_cam'), ('early', 'late'))
    count = compute_maps._cache_size()
    localize(toy, toy_images[::-1], ('dgl', 'layer_cam'), ('early', 'late'))
    assert compute_maps._cache_size() == count
    localize(toy, toy_images[:2], ('dgl', 'layer_cam'), ('early', 'late'))
    assert compute_maps._cache_size() == count + 1


def test_perturbations_have_the_shape_of_the_real_batch(toy, toy_images):
    seen = []

    def recording(state, inputs, perturb=None):
        if perturb is not None:
            seen.append({name: p.shape for name, p in perturb.items()})
        return toy.apply(state, inputs, perturb)

    x = toy.preprocessing(toy_images)
    classes = jnp.zeros((4, 1), int)
    activation_gradients(recording, toy.state, x, classes, ('early', 'late'), (class_score,))
    assert seen == [{'early': (4, 8, 8, 4), 'late': (4, 4, 4, 5)}]


def test_layer_without_gradient_is_an_error_that_names_it(toy_with_spare, toy_images):
    with pytest.raises(ValueError, match="'spare' is zero everywhere"):
        localize(toy_with_spare, toy_images, ('dgl',), ('early', 'spare'))
    localize(toy_with_spare, toy_images, ('dgl',), ('early', 'late'))


def test_a_zero_gradient_is_told_image_by_image(toy, toy_images):
    def first_has_none(state, inputs, perturb=None):
        logits, endpoints = toy.apply(state, inputs, perturb)
        return logits * (jnp.arange(len(inputs)) > 0)[:, None], endpoints

    plan = make_plan(toy, ('dgl',), ('early',))
    program = (first_has_none, toy.preprocessing, plan, toy.state, toy_images, 1, None)
    *_, faults = compute_maps(*program)
    assert faults['early'].tolist() == [ZERO, 0, 0, 0]

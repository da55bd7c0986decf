"""What every method has in common, each on the toy network: batches, classes, devices, views."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import _toy_apply, _toy_network

from wsol_jax.exported import export
from wsol_jax.localization.gradients import raw_maps
from wsol_jax.localization.localize import check_gradients, compute_maps, localize
from wsol_jax.localization.method import channel_sum
from wsol_jax.localization.methods import METHODS
from wsol_jax.localization.plan import make_plan
from wsol_jax.localization.views import image_keys, scaled
from wsol_jax.maps.fuse import min_max
from wsol_jax.maps.score import score_map
from wsol_jax.parallel import local_devices

COUNT = 11
ONE = slice(1, 2)  # of the images; gradients of both signs
NAMES = [n for n, method in METHODS.items() if not method().part]  # of any network
PLACE = {
    name: {'any': 'late', 'last': 'late'}.get(METHODS[name]().where, METHODS[name]().where)
    for name in NAMES
}
every_method = pytest.mark.parametrize('name', NAMES)


def close(actual, expected, tolerance=1e-5):
    """Maps [..., h, w], each equal up to `tolerance` times its largest magnitude."""
    expected = np.asarray(expected)
    scale = np.abs(expected).max((-2, -1), keepdims=True)
    # A map may well be zero where no gradient is positive.
    assert np.mean(scale > 0) > 0.5, 'nothing to compare'
    assert np.all(np.abs(np.asarray(actual) - expected) <= tolerance * scale)


def as_it_is(inputs):
    """Preprocessing of inputs that are preprocessed already."""
    return inputs


def _tilted_apply(state, inputs, perturb=None):
    ramp = jnp.linspace(1.0, state['slope'], inputs.shape[2])[:, None]
    return _toy_apply(state, inputs * ramp, perturb)


def tilted_network():
    """The toy network on inputs that grow brighter to the right: no mirror symmetry."""
    toy = _toy_network(_toy_apply, {'early': (8, 8, 4), 'late': (4, 4, 5)})
    return replace(toy, apply=_tilted_apply, state=toy.state | {'slope': jnp.float32(3.0)})


@pytest.fixture(scope='module')
def tilted():
    return tilted_network()


@pytest.fixture(scope='module')
def inputs(toy):
    """Eleven preprocessed inputs, exact in few bits, whose rescaling by two is exact, too."""
    images = np.random.default_rng(2).integers(0, 256, (COUNT, 8, 8, 3), np.uint8)
    return np.asarray(toy.preprocessing(images))


@pytest.fixture(scope='module')
def classes():
    """Two classes for each of them."""
    return np.stack([np.arange(COUNT) % 6, (np.arange(COUNT) * 3 + 1) % 6], axis=1)


def maps_of(network, inputs, classes, layers, names=NAMES, **options):
    """Raw maps {key: [B,K,h,w]} of preprocessed inputs, on the host."""
    plan = make_plan(network, names, layers, **options)
    program = (network.apply, as_it_is, plan, network.state, inputs, 0, classes)
    return jax.device_get(compute_maps(*program)[2])


@pytest.fixture(scope='module')
def together(tilted, inputs, classes):
    """All methods at both layers, eleven images, two classes: {key: [11,2,h,w]}."""
    return maps_of(tilted, inputs, classes, ('early', 'late'))


@pytest.fixture(scope='module')
def singly(tilted, inputs, classes):
    """All methods for one image and one class at a time: {key: [11,2,h,w]}."""
    one = [
        [
            maps_of(tilted, inputs[i : i + 1], classes[i : i + 1, k : k + 1], ('late',))
            for k in range(2)
        ]
        for i in range(COUNT)
    ]
    return {
        key: np.stack([np.concatenate([m[key][0] for m in pair]) for pair in one])
        for key in one[0][0]
    }


def test_every_method_is_here(together):
    expected = {(n, PLACE[n]) for n in NAMES}
    expected |= {(n, 'early') for n in NAMES if METHODS[n]().where == 'any'}
    assert set(together) == expected and len(expected) == 28 + 21
    for (name, layer), maps in together.items():
        side = 4 if layer == 'late' else 8
        assert maps.shape == (COUNT, 2, side, side), (name, layer)
        assert maps.dtype == np.float32


@pytest.mark.slow
@every_method
def test_a_batch_equals_its_images(name, together, singly):
    key = name, PLACE[name]
    close(together[key][:, 0], singly[key][:, 0])


@every_method
def test_classes_at_once_equal_a_loop(name, together, singly):
    key = name, PLACE[name]
    close(together[key], singly[key])


AT_INPUT = {'saliency', 'smooth_grad', 'integrated_gradients', 'guided_backprop'}
CLASS_FREE = {'eigen_cam', 'kpca_cam', 'fem', 'random_cam'}


@every_method
def test_classes_have_maps_of_their_own(name, together):
    maps = together[name, PLACE[name]]
    differ = np.array([np.abs(m[0] - m[1]).max() > 1e-3 * np.abs(m).max() for m in maps])
    other = np.array([not np.allclose(m, maps[0, 0], rtol=0.01) for m in maps[1:, 0]])
    assert not differ.any() if name in CLASS_FREE else differ.mean() > 0.5
    assert other.all()


@every_method
def test_methods_sharing_a_pass_equal_each_alone(name, tilted, inputs, classes, together):
    alone = maps_of(tilted, inputs, classes, ('late',), (name,))
    assert list(alone) == [(name, PLACE[name])]
    close(alone[name, PLACE[name]], together[name, PLACE[name]])


@pytest.fixture(scope='module')
def of_constant_images(tilted):
    """The same program on images of one colour, that the ramp leaves alone now."""
    values = np.linspace(-1.9, 1.9, COUNT, dtype=np.float32)[:, None, None, None]
    inputs = np.ones((COUNT, 8, 8, 3), np.float32) * values * np.float32([1, 0.7, -0.4])
    flat = replace(tilted, state=tilted.state | {'slope': jnp.float32(1.0)})
    classes = np.zeros((COUNT, 2), np.int64)
    return maps_of(flat, inputs, classes, ('early', 'late'))


# The noise of SmoothGrad is in its maps: a constant image of several colours has some, too.
@pytest.mark.parametrize('name', [n for n in NAMES if n != 'smooth_grad'])
def test_a_constant_image_has_a_blank_map(name, of_constant_images):
    keys = [key for key in of_constant_images if key[0] == name]
    assert keys
    for key in keys:
        maps = of_constant_images[key]
        assert np.isfinite(maps).all()
        assert not np.asarray(min_max(jnp.asarray(maps))).any(), key
        for relu in (False, METHODS[name]().relu):
            for raw in maps[:, 0]:
                assert not score_map(raw, (16, 16), relu=relu).any(), key


@pytest.fixture(scope='module')
def dead_layers(toy_with_spare, toy_images):
    """{name: {layer: [4]}}, whether no score depends on a layer that the method needs."""
    at_the_end = replace(toy_with_spare, last_layer='spare')

    def run(state, images):
        dead = {}
        for name in NAMES:
            network = at_the_end if METHODS[name]().where == 'last' else toy_with_spare
            plan = make_plan(network, (name,), ('spare',))
            dead[name] = compute_maps(network.apply, network.preprocessing, plan, state, images, 1)[
                3
            ]
        return dead

    return jax.jit(run)(toy_with_spare.state, toy_images)


def needs_gradients(name):
    return bool(METHODS[name]().cotangents)


def test_which_methods_pull_nothing_back_to_a_layer():
    others = {name for name in NAMES if not needs_gradients(name)}
    activation_only = {'eigen_cam', 'kpca_cam', 'fem', 'random_cam'}
    masking = {'score_cam', 'ss_cam', 'is_cam', 'ablation_cam'}
    assert others == activation_only | masking | AT_INPUT


@every_method
def test_a_layer_without_gradient_is_named(name, dead_layers):
    if not needs_gradients(name):  # it has maps where no gradient comes
        assert dead_layers[name] == {}
        return
    with pytest.raises(ValueError, match="the gradient at layer 'spare' is zero everywhere"):
        check_gradients(dead_layers[name])
    others = {layer: flags for layer, flags in dead_layers[name].items() if layer != 'spare'}
    assert set(others) == ({'early', 'late'} if METHODS[name]().where == 'all' else set())
    check_gradients(others)


def test_no_array_is_left_behind(tilted, inputs, classes, singly):
    del singly  # compiled
    plan = make_plan(tilted, NAMES, ('late',))
    program = (tilted.apply, as_it_is, plan, tilted.state, inputs[:1], 0, classes[:1, :1])
    jax.block_until_ready(compute_maps(*program))
    before = len(jax.live_arrays())
    for _ in range(50):
        jax.block_until_ready(compute_maps(*program))
    assert len(jax.live_arrays()) <= before


@pytest.fixture(scope='module')
def mirrored_and_scaled(tilted, inputs, classes):
    """Both views of twice the size fused in one program, and the two of them alone."""
    small = inputs[:, :4, 2:6]
    fused = maps_of(tilted, small, classes, ('late',), scales=(2.0,), flip=True)
    large = np.asarray(scaled(jnp.asarray(small), 2.0))
    # What is drawn is drawn for the image, whatever the view.
    keys = image_keys(jnp.asarray(small), 0)
    plan = make_plan(tilted, NAMES, ('early', 'late'))

    def alone(state, inputs):
        options = {'main_layers': plan.main_layers}
        return raw_maps(tilted.apply, state, inputs, classes, plan.layers_of, keys, **options)[2]

    views = (large, large[:, :, ::-1])
    return fused, *(jax.device_get(jax.jit(alone)(tilted.state, view)) for view in views)


@pytest.mark.slow
@every_method
def test_mirrored_and_scaled_views_are_fused(name, mirrored_and_scaled):
    fused, plain, mirrored = (maps[name, PLACE[name]] for maps in mirrored_and_scaled)
    side = 4 if PLACE[name] == 'late' else 8
    assert fused.shape == (COUNT, 2, side, side)

    def normalized(m):
        m = np.maximum(m, 0) if METHODS[name]().relu else m
        span = np.ptp(m, axis=(2, 3), keepdims=True)
        return (m - m.min((2, 3), keepdims=True)) / np.where(span, span, 1)

    expected = (normalized(plain) + normalized(mirrored[..., ::-1])) / 2
    close(fused, expected)
    # Had the mirror not been undone, the mean would differ.
    assert np.abs(fused - (normalized(plain) + normalized(mirrored)) / 2).max() > 0.05


@pytest.fixture(scope='module')
def without_jit(tilted, inputs, classes):
    """Maps of one image and class, operation by operation."""
    plan = make_plan(tilted, NAMES, ('late',))
    one = jnp.asarray(inputs[ONE]), jnp.asarray(classes[ONE, :1])
    keys, options = image_keys(one[0], 0), {'main_layers': plan.main_layers}
    return raw_maps(tilted.apply, tilted.state, *one, plan.layers_of, keys, **options)[2]


@pytest.mark.slow
@every_method
def test_jit_equals_no_jit(name, without_jit, singly):
    key = name, PLACE[name]
    close(without_jit[key], singly[key][ONE, :1])


@pytest.fixture(scope='module')
def terms(tilted, inputs, classes):
    """What the sum over channels is taken of: {name: [11,2,h,w,K]}."""
    plan = make_plan(tilted, NAMES, ('late',))
    layers_of = {replace(m, reduce=lambda t: t): n for m, n in plan.layers_of.items()}

    def run(state, inputs, classes):
        keys, options = image_keys(inputs, 0), {'main_layers': plan.main_layers}
        return raw_maps(tilted.apply, state, inputs, classes, layers_of, keys, **options)[2]

    by_key = jax.device_get(jax.jit(run)(tilted.state, inputs, classes))
    return {name: by_key[name, PLACE[name]] for name in NAMES}


@cache
def reduction(function):
    """Compiled once for all methods that share it."""
    return jax.jit(jax.vmap(function, in_axes=1, out_axes=1))


def principal_component(matrix):
    """Projection [n] of the rows [n,K] on their first principal axis, the largest positive."""
    centred = np.asarray(matrix, np.float64) - np.mean(matrix, axis=0, dtype=np.float64)
    projection = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    return projection * np.sign(projection[np.argmax(np.abs(projection))])


@pytest.mark.slow
@every_method
def test_eigen_smooth_takes_the_principal_component_of_the_terms(name, tilted, terms, together):
    (fused,) = make_plan(tilted, (name,), ('late',), eigen_smooth=True).methods
    channels = terms[name].shape[-1]
    actual = np.asarray(reduction(fused[0].reduce)(terms[name]))
    if METHODS[name]().reduce is not channel_sum or channels == 1:
        close(actual, together[name, PLACE[name]], 1e-4)
        return
    assert channels == 5
    flat = terms[name].reshape(-1, 16, channels)
    expected = np.array([principal_component(m) for m in flat]).reshape(actual.shape)
    close(actual, expected, 1e-3)
    assert np.abs(actual - together[name, 'late']).max() > 0.1 * np.abs(actual).max()


def test_methods_without_a_sum_over_channels():
    others = {name for name in NAMES if METHODS[name]().reduce is not channel_sum}
    assert others == {'eigen_grad_cam', 'eigen_cam', 'kpca_cam'} | AT_INPUT


def run_on_eight_devices(folder):
    """In a process of its own: maps of both ways to use many devices, into files."""
    assert jax.device_count() == 8
    given = np.load(f'{folder}/given.npz')
    network = tilted_network()
    plan = make_plan(network, NAMES, ('late',))

    def program(state, inputs, classes):
        return compute_maps(network.apply, as_it_is, plan, state, inputs, 0, classes)[2]

    for parallel in ('jit', 'pmap'):
        devices = local_devices(parallel)
        padding = devices.round_up(COUNT) - COUNT
        assert padding == 5
        padded = [np.pad(x, [(0, padding)] + (x.ndim - 1) * [(0, 0)]) for x in given.values()]
        run = devices.per_image(program)
        maps = run(devices.replicate(network.state), *devices.shard(padded))
        for key, m in maps.items():
            shares = {shard.index[0].indices(len(m))[:2] for shard in m.addressable_shards}
            assert len(shares) == 8, f'{key} is not split over the devices'
        np.savez(
            f'{folder}/{parallel}.npz',
            **{name: devices.gather(maps[name, PLACE[name]])[:COUNT] for name in NAMES},
        )


@pytest.fixture(scope='module')
def on_eight_devices(inputs, classes, tmp_path_factory):
    folder = tmp_path_factory.mktemp('devices')
    np.savez(folder / 'given.npz', inputs=inputs, classes=classes)
    here = Path(__file__).parent
    environment = os.environ | {
        'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=8',
        'JAX_PLATFORMS': 'cpu',
        'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
        'PYTHONPATH': os.pathsep.join([str(here), str(here.parent)]),
    }
    code = f'import test_methods; test_methods.run_on_eight_devices({str(folder)!r})'
    result = subprocess.run(
        [sys.executable, '-c', code], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return {parallel: np.load(folder / f'{parallel}.npz') for parallel in ('jit', 'pmap')}


@pytest.mark.slow
@every_method
@pytest.mark.parametrize('parallel', ['jit', 'pmap'])
def test_maps_of_sharded_batches_equal_a_single_device(name, parallel, on_eight_devices, together):
    close(on_eight_devices[parallel][name], together[name, PLACE[name]])


@every_method
def test_reprs_are_short(name):
    method = METHODS[name]()
    assert repr(method).startswith(f'Method({name!r}') and len(repr(method)) < 80
    assert ' at 0x' not in repr(method)


def test_reprs_tell_the_options():
    assert repr(METHODS['dgl'](3.0)) == "Method('dgl', alpha=3.0)"
    assert repr(METHODS['cam']()) == "Method('cam')"


@jax.custom_vjp
def squared_relu(x):
    return jax.nn.relu(x) ** 2


squared_relu.defvjp(lambda x: (squared_relu(x), x), lambda x, g: (2 * g * jax.nn.relu(x),))


@pytest.mark.slow
def test_a_custom_backward_rule_is_enough_for_all_but_forward_mode(toy_images, tmp_path):
    def apply(state, inputs, perturb=None):
        perturb = perturb or {}
        early = squared_relu(inputs @ state['early']) + perturb.get('early', 0.0)
        late = squared_relu(squared_relu(early @ state['late'])) + perturb.get('late', 0.0)
        return late.mean((1, 2)) @ state['head'], {'early': early, 'late': late}

    network = _toy_network(apply, {'early': (8, 8, 4), 'late': (8, 8, 5)})
    assert {n for n in NAMES if METHODS[n]().forward_mode} == {'shapley_cam', 'full_grad'}
    result = localize(network, toy_images, ('dgl', 'refine_cam', 'smooth_grad_cam_pp'))
    assert all(np.isfinite(m).all() for m in result.maps.values())
    for asked, named in (
        (('dgl', 'shapley_cam'), 'shapley_cam'),
        (('full_grad', 'shapley_cam'), 'full_grad and shapley_cam'),
    ):
        message = f'^{named} takes forward-mode derivatives, and the model has a jax.custom_vjp'
        with pytest.raises(ValueError, match=message):
            localize(network, toy_images, asked)
    with pytest.raises(ValueError, match='full_grad takes forward-mode'):
        export(network, ('full_grad',), None, tmp_path / 'maps.zip')
    assert not any(tmp_path.iterdir())

"""Plans: keys, parts and views, what they refuse; the options that change finished maps."""

from dataclasses import replace
from itertools import product

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsol_jax.localization.dgl import dgl
from wsol_jax.localization.localize import compute_maps, localize
from wsol_jax.localization.method import Method
from wsol_jax.localization.methods import METHODS
from wsol_jax.localization.plan import make_plan
from wsol_jax.localization.targets import SCORES, logit
from wsol_jax.localization.views import _VIEWS, AS_IT_IS, View, image_keys, noisy, other_keys


def assert_close(actual, expected, tolerance=1e-5):
    expected = np.asarray(expected)
    assert np.ptp(expected) > 0
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance * scale)


def min_max(maps):
    """Maps [B,h,w] in float64."""
    return np.stack([(m - m.min()) / np.ptp(m) for m in np.asarray(maps, np.float64)])


def resized(maps, size):
    """To (height, width) by OpenCV."""
    return np.stack([cv2.resize(m, size[::-1], interpolation=cv2.INTER_LINEAR) for m in maps])


def relu(maps):
    return np.maximum(np.asarray(maps, np.float64), 0)


def named(parts):
    return [(method.name, layer) for method, layer in parts]


def test_parts_of_each_map(toy):
    methods = ('dgl', 'cam', 'refine_cam', 'cam+grad_cam', 'cam+full_grad', 'refine_cam+full_grad')
    plan = make_plan(toy, methods, ('early', 'late+early'))
    both = 'late', 'early'
    assert [(key, named(parts)) for key, parts in plan.parts.items()] == [
        (('dgl', 'early'), [('dgl', 'early')]),
        (('dgl', 'late+early'), [('dgl', n) for n in both]),
        (('cam', 'late'), [('cam', 'late')]),
        (('refine_cam', 'all'), [('refine_cam', 'all')]),
        (('cam+grad_cam', 'early'), [('cam', 'late'), ('grad_cam', 'early')]),
        (('cam+grad_cam', 'late+early'), [('cam', 'late'), *(('grad_cam', n) for n in both)]),
        (('cam+full_grad', 'late+all'), [('cam', 'late'), ('full_grad', 'all')]),
        (('refine_cam+full_grad', 'all'), [('refine_cam', 'all'), ('full_grad', 'all')]),
    ]
    assert plan.keys == list(plan.parts)


def test_layers_that_each_method_is_needed_at(toy):
    plan = make_plan(toy, ('dgl', 'cam+grad_cam', 'cam+full_grad'), ('early+late', 'late'))
    assert [(m.name, layers) for m, layers in plan.layers_of.items()] == [
        ('dgl', ('early', 'late')),
        ('cam', ('late',)),
        ('grad_cam', ('early', 'late')),
        ('full_grad', ('all',)),
    ]
    assert (plan.last_layer, plan.main_layers) == ('late', ('early', 'late'))


def test_layers_are_all_main_ones_unless_named(toy, toy_with_spare):
    assert make_plan(toy).keys == [('dgl', 'early'), ('dgl', 'late')]
    assert make_plan(toy_with_spare).layers == ('early', 'spare', 'late')
    assert make_plan(toy, layers=('late', 'early', 'late')).keys == [
        ('dgl', 'late'),
        ('dgl', 'early'),
    ]


def test_what_the_options_become(toy):
    plan = make_plan(toy, ('sgl_g2', dgl(3.0)), alpha=2.0, score='softmax', chunk_size=5, sigma=0.5)
    assert plan.methods == ((METHODS['sgl_g2'](2.0),), (dgl(3.0),))
    assert (plan.score, plan.chunk_size, plan.sigma) == (SCORES['softmax'], 5, 0.5)
    plain = make_plan(toy)
    assert plain.score is logit and plain.fusion == 'mean' and plain.size is None
    assert not (plain.rectify or plain.normalize or plain.flip or plain.noise)
    assert make_plan(toy, size=[3, 4]).size == (3, 4)


def test_equal_arguments_make_one_plan(toy):
    # Plans are keys of compiled programs.
    names = [name for name, method in METHODS.items() if not method().part]
    for options in ({}, {'eigen_smooth': True, 'scales': [1.0, 2.0], 'size': [5, 5]}):
        one, other = (make_plan(toy, names, **options) for _ in range(2))
        assert one == other and hash(one) == hash(other)
    assert make_plan(toy, alpha=1.0) != make_plan(toy)


def test_only_a_raw_map_of_one_method_asks_for_a_relu(toy):
    plan = make_plan(toy, ('grad_cam', 'cam', 'grad_cam+cam', 'grad_cam_pp+grad_cam'), ('late',))
    assert list(plan.relu.values()) == [True, False, False, False]
    for options in ({'aug_smooth': True}, {'noise': 1}):
        assert not any(make_plan(toy, ('grad_cam',), ('late',), **options).relu.values())


def test_views(toy):
    def views(**options):
        return make_plan(toy, **options).views

    assert views() == [AS_IT_IS] == [View(1.0, False, 1.0, 0)]
    assert views(flip=True) == [View(), View(mirror=True)]
    assert views(noise=2) == [View(), View(sample=1), View(sample=2)]
    # That of the image as it is comes first.
    assert views(scales=(2.0, 1.0)) == [View(1.0), View(2.0)]
    assert views(scales=(0.5, 2.0)) == [View(0.5), View(2.0)]
    for flip in (False, True):
        smooth = views(aug_smooth=True, flip=flip)
        assert smooth[0] == AS_IT_IS and len(smooth) == 6
        assert set(smooth) == {View(1.0, m, g) for m, g in product((False, True), (0.9, 1.0, 1.1))}
    every = views(aug_smooth=True, noise=1, scales=(1.0, 2.0))
    assert len(every) == len(set(every)) == 24


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'methods': 'cam'}, r"methods must be a sequence such as \('cam',\)"),
        ({'methods': ()}, 'no localization method given; choose from dgl, sgl_g1'),
        ({'methods': ('gradcam',)}, "unknown localization method 'gradcam'; did you mean 'grad_c"),
        ({'methods': ('cam+dlg',)}, "unknown localization method 'dlg'; did you mean 'dgl'"),
        ({'methods': ('cam+dgl', 'dgl', 'cam+dgl')}, r"'cam\+dgl' is given more than once"),
        ({'methods': (dgl(1.0), 'dgl+cam')}, "two different methods are called 'dgl'"),
        ({'layers': 'late'}, r"layers must be a sequence such as \('late',\), got the string"),
        ({'layers': ('early', 'lat')}, "unknown layer of toy 'lat'; did you mean 'late'"),
        ({'layers': ('early+lat',)}, "unknown layer of toy 'lat'; did you mean 'late'"),
        ({'score': 'logits'}, "unknown score 'logits'; did you mean 'logit'"),
        ({'fusion': 'layercam'}, "unknown fusion 'layercam'; did you mean 'layer_cam'"),
        ({'scales': ()}, r'scales must be positive factors of the input size, got \(\)'),
        ({'scales': (1.0, -1.0)}, 'scales must be above 0, got -1.0'),
        ({'noise': -1}, 'noise must be at least 0, got -1'),
        ({'noise': 1.5}, 'noise must be whole numbers, got 1.5'),
        ({'scales': (float('nan'),)}, 'scales must be a finite number, got nan'),
        ({'scales': (1e9,)}, 'scales must be at most 16, got 1000000000.0'),
        ({'sigma': float('inf')}, 'sigma must be a finite number, got inf'),
        ({'alpha': 'x'}, "alpha must be numbers, got 'x'"),
        ({'noise': 2, 'sigma': 0.0}, 'sigma must be above 0, got 0.0'),
        ({'chunk_size': 0}, 'chunk_size must be at least 1, got 0'),
        ({'size': (0, 4)}, r'size must be \(height, width\) in pixels, got \(0, 4\)'),
        ({'size': (4, 4, 4)}, r'size must be \(height, width\) in pixels, got \(4, 4, 4\)'),
        ({'methods': (dgl,)}, r'is no method; METHODS holds functions'),
        ({'methods': ('dgl+dgl',)}, 'fuses a method with itself'),
        ({'layers': ('late+late',)}, 'fuses a layer with itself'),
        ({'scales': 1.5}, r'scales must be a sequence such as \(1.5,\), got the number'),
        ({'size': 4}, r'size must be \(height, width\) in pixels, got 4'),
    ],
)
def test_wrong_arguments(toy, options, message):
    with pytest.raises(ValueError, match=message):
        make_plan(toy, **options)


@pytest.fixture(scope='module')
def lopsided(toy):
    """No mirror symmetry, and a map that changes with the brightness of its image."""

    def apply(state, inputs, perturb=None):
        ramp = jnp.linspace(0.2, 3.0, inputs.shape[2])[:, None]
        return toy.apply(state, inputs * ramp + jnp.array([1.0, -0.5, 0.5]), perturb)

    return replace(toy, apply=apply)


def maps_of(network, inputs, methods, layers, **options):
    """Maps {key: [4,h,w]} of class 2, of inputs that are preprocessed already."""
    plan = make_plan(network, methods, layers, **options)
    program = (network.apply, _as_they_are, plan, network.state, inputs, 0, np.full((4, 1), 2))
    return {key: np.asarray(m[:, 0]) for key, m in compute_maps(*program)[2].items()}


def _as_they_are(inputs):
    return inputs


@pytest.fixture(scope='module')
def inputs(toy, toy_images):
    return toy.preprocessing(toy_images)


def _faint(run, layers):
    del layers
    found = 0.01 + 0.001 * run.activations['late'].sum(-1)
    return {'head': jnp.broadcast_to(found, (1, *found.shape))[..., None]}


def test_views_of_seeds_are_rectified_and_averaged_as_they_are(lopsided, inputs):
    faint = Method('faint', passes=_faint, where='head', endpoints=('late',))
    methods, layers = ('cam', 'layer_cam', faint), ('late',)
    plan = make_plan(lopsided, methods, layers, scales=(1.0, 2.0), flip=True)
    program = (lopsided.apply, _as_they_are, replace(plan, seeds=True), lopsided.state, inputs, 0)
    found = compute_maps(*program, np.full((4, 1), 2))[2]
    views = []
    for side in (8, 16):
        images = resized(np.asarray(inputs), (side, side))
        back = maps_of(lopsided, images[:, :, ::-1], methods, layers)
        views += [maps_of(lopsided, images, methods, layers)]
        views += [{key: m[..., ::-1] for key, m in back.items()}]
    for key, m in found.items():
        expected = 0
        for view in views:
            of_view = np.maximum(view[key], 0)
            if key[0] == 'layer_cam':
                of_view = of_view / of_view.max(axis=(1, 2), keepdims=True)
            expected += resized(of_view, (8, 8)) / 4
        assert_close(m[:, 0], expected)
    assert (views[0]['cam', 'late'] < 0).any() and 0 < found['faint', 'head'].max() < 0.1


@pytest.fixture(scope='module')
def raw(lopsided, inputs):
    methods = 'hires_cam', 'grad_cam', 'cam', 'layer_cam', 'refine_cam'
    return maps_of(lopsided, inputs, methods, ('early', 'late'))


@pytest.mark.slow
@pytest.mark.parametrize('rectify', [False, True])
@pytest.mark.parametrize('size', [None, (11, 7), (5, 8)])
@pytest.mark.parametrize('normalize', [False, True])
def test_rectified_then_resized_then_scaled(lopsided, inputs, raw, rectify, size, normalize):
    options = {'rectify': rectify, 'size': size, 'normalize': normalize}
    maps = maps_of(lopsided, inputs, ('hires_cam',), ('early',), **options)
    expected = raw['hires_cam', 'early'].astype(np.float64)
    assert expected.min() < 0 < expected.max()
    expected = relu(expected) if rectify else expected
    expected = resized(expected, size) if size else expected
    assert_close(maps['hires_cam', 'early'], min_max(expected) if normalize else expected)


def test_another_order_of_the_switches_would_be_seen(raw):
    m = raw['hires_cam', 'early'].astype(np.float64)
    right = min_max(resized(relu(m), (11, 7)))
    for other in (
        min_max(relu(resized(m, (11, 7)))),
        resized(min_max(relu(m)), (11, 7)),
        resized(relu(min_max(m)), (11, 7)),
    ):
        assert np.abs(other - right).max() > 0.01


def test_localize_takes_the_switches(toy, toy_images):
    options = {'rectify': True, 'size': (6, 9), 'normalize': True}
    result = localize(toy, toy_images, ('grad_cam', 'cam'), ('late',), 2, **options)
    raw = localize(toy, toy_images, ('grad_cam', 'cam'), ('late',), 2)
    for key, m in result.maps.items():
        assert m.shape == (4, 6, 9)
        for i in range(4):
            expected = resized(relu(raw.maps[key][i : i + 1]), (6, 9))
            expected = min_max(expected) if expected.any() else expected
            np.testing.assert_allclose(m[i : i + 1], expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_aug_smooth_is_the_mean_over_six_views(lopsided, inputs):
    methods = 'grad_cam', 'hires_cam'
    smooth = maps_of(lopsided, inputs, methods, ('early',), aug_smooth=True)
    plain, scaled_only, unmirrored = {}, {}, {}
    for name in methods:
        plain[name], scaled_only[name], unmirrored[name] = [], [], []
    for gain in (0.9, 1.0, 1.1):
        for mirror in (False, True):
            view = inputs[:, :, ::-1] if mirror else inputs
            for (name, _), m in maps_of(lopsided, view * gain, methods, ('early',)).items():
                scaled_map = min_max(relu(m) if name == 'grad_cam' else m)
                back = scaled_map[..., ::-1] if mirror else scaled_map
                plain[name].append(back)
                unmirrored[name].append(scaled_map)
                if gain == 1:
                    scaled_only[name].append(back)
    for name in methods:
        assert len(plain[name]) == 6
        assert_close(smooth[name, 'early'], np.mean(plain[name], axis=0))
        # Without the gains, or with mirrored maps left as they are, it would be another map.
        for other in (scaled_only, unmirrored):
            assert np.abs(np.mean(other[name], axis=0) - smooth[name, 'early']).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(('noise', 'sigma'), [(1, 0.3), (3, 0.7)])
def test_noise_is_the_mean_over_the_image_and_noisy_ones(lopsided, inputs, noise, sigma):
    methods = 'grad_cam', 'hires_cam'
    smooth = maps_of(lopsided, inputs, methods, ('late',), noise=noise, sigma=sigma)
    own = other_keys(image_keys(inputs, 0), _VIEWS)
    keys = [other_keys(own, i) for i in range(1, noise + 1)]
    views = [inputs] + [noisy(inputs, sigma, k) for k in keys]
    views = [maps_of(lopsided, view, methods, ('late',)) for view in views]
    for name in methods:
        parts = [v[name, 'late'] for v in views]
        parts = [min_max(relu(m) if name == 'grad_cam' else m) for m in parts]
        assert_close(smooth[name, 'late'], np.mean(parts, axis=0))
        assert np.abs(parts[1] - parts[0]).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ('how', 'combine'),
    [
        ('mean', lambda parts: np.mean(parts, axis=0)),
        ('max', lambda parts: np.max(parts, axis=0)),
        ('product', lambda parts: np.prod(parts, axis=0)),
        ('layer_cam', lambda parts: np.max([np.tanh(2 * m) for m in parts], axis=0)),
    ],
)
def test_fusion_of_methods_and_layers(lopsided, inputs, raw, how, combine):
    methods = 'layer_cam', 'grad_cam+cam+refine_cam'
    fused = maps_of(lopsided, inputs, methods, ('early+late', 'late'), fusion=how)
    layers = {n: raw['layer_cam', n] for n in ('early', 'late')}
    parts = [min_max(layers['early']), resized(min_max(layers['late']), (8, 8))]
    assert_close(fused['layer_cam', 'early+late'], combine(parts))
    assert_close(fused['layer_cam', 'late'], layers['late'])
    late = [min_max(relu(raw['grad_cam', 'late'])), min_max(raw['cam', 'late'])]
    parts = [resized(m, (8, 8)) for m in late] + [min_max(raw['refine_cam', 'all'])]
    assert_close(fused['grad_cam+cam+refine_cam', 'late'], combine(parts))
    parts.append(min_max(relu(raw['grad_cam', 'early'])))
    assert_close(fused['grad_cam+cam+refine_cam', 'early+late'], combine(parts))


def test_fused_methods_may_all_have_fixed_places(lopsided, inputs, raw):
    fused = maps_of(lopsided, inputs, ('cam+refine_cam',), ('early',))
    assert list(fused) == [('cam+refine_cam', 'late+all')]
    parts = resized(min_max(raw['cam', 'late']), (8, 8)), min_max(raw['refine_cam', 'all'])
    assert_close(fused['cam+refine_cam', 'late+all'], np.mean(parts, axis=0))


def principal(matrix):
    """Rows [n,K] on their first principal axis, the most extreme value positive."""
    centred = matrix - matrix.mean(axis=0)
    projection = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    return projection * np.sign(projection[np.argmax(np.abs(projection))])


@pytest.mark.slow
def test_eigen_smooth_replaces_only_the_sum_over_channels(lopsided, inputs, raw):
    methods = 'hires_cam', 'grad_cam', 'refine_cam'
    smooth = maps_of(lopsided, inputs, methods, ('early',), eigen_smooth=True)
    everything = {
        'hires_cam': lambda s, g: g * s,
        'grad_cam': lambda s, g: s * g.mean(axis=(1, 2), keepdims=True),
    }
    s = np.asarray(lopsided.apply(lopsided.state, inputs)[1]['early'], np.float64)
    zeros = {'early': jnp.zeros(s.shape)}
    score = jax.grad(lambda p: lopsided.apply(lopsided.state, inputs, p)[0][:, 2].sum())
    g = np.asarray(score(zeros)['early'], np.float64)
    for name, terms in everything.items():
        expected = [principal(t.reshape(64, 4)).reshape(8, 8) for t in terms(s, g)]
        assert_close(smooth[name, 'early'], np.stack(expected), 1e-4)
    assert_close(smooth['refine_cam', 'all'], raw['refine_cam', 'all'])


def test_eigen_smooth_leaves_other_reductions_alone(toy):
    names = 'eigen_cam', 'kpca_cam', 'eigen_grad_cam'
    assert make_plan(toy, names, eigen_smooth=True).methods == make_plan(toy, names).methods


def test_eigen_smooth_leaves_a_single_channel_as_it_is(toy, toy_images):
    # Centring would shift it, and turn it upside down where low values are the rarer.
    whole = Method('whole', (), lambda s: jnp.max(s, axis=-1, keepdims=True))
    plain, smooth = (
        localize(toy, toy_images, (whole,), ('late',), 2, eigen_smooth=e).maps['whole', 'late']
        for e in (False, True)
    )
    assert_close(smooth, plain)

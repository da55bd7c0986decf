"""Score-, SS-, IS- and Ablation-CAM against one forward pass at a time; memory and invariances."""

from dataclasses import replace
from inspect import signature

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsol_jax.localization.localize import localize
from wsol_jax.localization.masking import ablation_cam, is_cam, score_cam, ss_cam
from wsol_jax.localization.views import image_keys

CLASSES = np.array([[1, 4], [0, 5]])
LAYERS = ('early', 'late')
SAMPLES, SIGMA = 3, 0.7
METHODS = (score_cam(), ss_cam(SAMPLES, SIGMA), is_cam(4), ablation_cam())


def close(actual, expected, tolerance=1e-5):
    """Equal up to `tolerance` times the largest magnitude."""
    scale = np.abs(expected).max()
    assert scale > 0, 'nothing to compare'
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance * scale)


def min_max(m):
    return (m - m.min()) / (m.max() - m.min()) if m.max() > m.min() else 0 * m


def forward(w, x, without=(None, None)):
    """One image through the toy network in float64, one channel of one layer set to zero."""
    layer, channel = without
    early = np.maximum(x @ w['early'], 0)
    if layer == 'early':
        early[..., channel] = 0
    late = np.maximum(early.reshape(4, 2, 4, 2, 4).mean((1, 3)) @ w['late'], 0)
    if layer == 'late':
        late[..., channel] = 0
    return late.mean((0, 1)) @ w['head'] + w['bias'], {'early': early, 'late': late}


@pytest.fixture(scope='module')
def network(toy):
    """The toy network with weights that leave no channel dead, and scores far apart."""
    rng = np.random.default_rng(55)
    size_of = {'early': 1, 'late': 1, 'head': 8, 'bias': 1}
    draws = {k: size_of[k] * rng.normal(size=toy.state[k].shape) for k in size_of}
    return replace(toy, state={k: jnp.asarray(v, jnp.float32) for k, v in draws.items()})


@pytest.fixture(scope='module')
def exact(network, toy_images):
    """State and inputs [2,8,8,3] in float64."""
    w = {k: np.asarray(v, np.float64) for k, v in network.state.items()}
    return w, np.asarray(network.preprocessing(toy_images[:2]), np.float64)


@pytest.fixture(scope='module')
def maps(network, toy_images):
    return localize(network, toy_images[:2], METHODS, LAYERS, CLASSES).maps


def masked_map(w, x, s, c, masks_of):
    """sum_k softmax_k(mean score under the masks of channel k) S_k."""
    scores = []
    for k in range(s.shape[-1]):
        mask = min_max(cv2.resize(s[..., k], (8, 8)))
        scores.append(np.mean([forward(w, x * m[..., None])[0][c] for m in masks_of(mask)]))
    weights = np.exp(np.array(scores) - max(scores))
    assert weights.min() < 0.9  # else nothing tells the channels apart
    return s @ (weights / weights.sum())


def check(maps, name, exact, masks_of):
    w, inputs = exact
    for i, k in np.ndindex(2, 2):
        for layer, s in forward(w, inputs[i])[1].items():
            expected = masked_map(w, inputs[i], s, CLASSES[i, k], lambda m, i=i: masks_of(m, i))
            close(maps[name, layer][i, k], expected)


def test_score_cam(maps, exact):
    check(maps, 'score_cam', exact, lambda mask, _: [mask])


def test_is_cam(maps, exact):
    check(maps, 'is_cam', exact, lambda mask, _: [mask * n / 4 for n in (1, 2, 3, 4)])


def test_ss_cam(maps, exact, toy_images):
    keys = image_keys(toy_images[:2], 0)

    def noise(i, sample):
        return np.asarray(jax.random.normal(jax.random.fold_in(keys[i], sample), (8, 8)))

    noises = [[SIGMA * noise(i, sample) for sample in range(SAMPLES)] for i in range(2)]
    check(maps, 'ss_cam', exact, lambda mask, i: [mask + n for n in noises[i]])


def test_ablation_cam(maps, exact):
    w, inputs = exact
    for i, k in np.ndindex(2, 2):
        logits, endpoints = forward(w, inputs[i])
        whole = logits[CLASSES[i, k]]
        for layer, s in endpoints.items():
            every = range(s.shape[-1])
            without = [forward(w, inputs[i], (layer, j))[0][CLASSES[i, k]] for j in every]
            close(maps['ablation_cam', layer][i, k], s @ ((whole - without) / abs(whole)))


def test_the_four_differ(maps):
    scaled = [min_max(np.asarray(maps[m.name, 'early'][0, 0])) for m in METHODS]
    for first in range(4):
        for second in range(first):
            assert np.abs(scaled[first] - scaled[second]).max() > 1e-3


def test_published_settings():
    defaults = {f: [p.default for p in signature(f).parameters.values()] for f in (ss_cam, is_cam)}
    assert defaults == {ss_cam: [35, 2.0], is_cam: [10]}


def recorded(network):
    """The network, and the shapes of the logits that each of its runs computes at once."""
    shapes = []

    def note(logits):
        shapes.append(logits.shape)
        return logits

    @jax.custom_jvp
    def through(z):
        shape = jax.ShapeDtypeStruct(z.shape, z.dtype)
        return jax.pure_callback(note, shape, z, vmap_method='broadcast_all')

    through.defjvp(lambda z, dz: (through(z[0]), dz[0]))

    def apply(state, inputs, perturb=None):
        logits, endpoints = network.apply(state, inputs, perturb)
        return through(logits), endpoints

    return replace(network, apply=apply), shapes


@pytest.mark.slow
@pytest.mark.parametrize(('chunk_size', 'copies'), [(1, 1), (3, 2), (16, 4), (1000, 4)])
def test_chunks_bound_what_runs_at_once_and_change_no_map(
    network, toy_images, maps, chunk_size, copies
):
    counted, shapes = recorded(network)
    options = {'classes': CLASSES, 'chunk_size': chunk_size}
    methods = (score_cam(), ss_cam(SAMPLES, SIGMA), ablation_cam())
    found = localize(counted, toy_images[:2], methods, ('early',), **options).maps
    for key in found:
        close(found[key], np.asarray(maps[key]), 1e-6)
    jax.effects_barrier()
    runs = [int(np.prod(shape[:-2])) for shape in shapes]
    assert all(shape[-2:] == (2, 6) for shape in shapes)  # two images, six classes
    assert max(runs) == copies <= chunk_size
    # The pass all share, then for each of four channels: Score-, SS- and Ablation-CAM.
    assert sum(runs) == 1 + 4 * (1 + SAMPLES + 1)


def test_score_cam_is_unchanged_by_a_constant_added_to_all_scores(network, toy_images, maps):
    raised = replace(network, state=network.state | {'bias': network.state['bias'] + 5})
    found = localize(raised, toy_images[:2], METHODS, LAYERS, CLASSES).maps
    for name in ('score_cam', 'ss_cam', 'is_cam'):
        for layer in LAYERS:
            close(found[name, layer], np.asarray(maps[name, layer]))
    assert np.abs(found['ablation_cam', 'late'] - maps['ablation_cam', 'late']).max() > 1e-3


@pytest.mark.parametrize('shift', [30.0, -30.0], ids=['positive', 'negative'])
def test_ablation_cam_behind_pooling_and_a_linear_layer(network, toy_images, exact, shift):
    shifted = replace(network, state=network.state | {'bias': network.state['bias'] + shift})
    result = localize(shifted, toy_images[:2], METHODS, LAYERS, CLASSES)
    w, inputs = exact
    for i, k in np.ndindex(2, 2):
        c = CLASSES[i, k]
        logits, endpoints = forward(w, inputs[i])
        assert np.sign(logits[c] + shift) == np.sign(shift)
        weights = w['head'][:, c] * endpoints['late'].mean((0, 1))
        expected = endpoints['late'] @ weights / abs(logits[c] + shift)
        close(result.maps['ablation_cam', 'late'][i, k], expected, 1e-4)


def test_scores_other_than_the_logit(network, toy_images, exact):
    options = {'classes': CLASSES, 'score': 'softmax'}
    names = ('score_cam', 'ablation_cam')
    maps = localize(network, toy_images[:2], names, ('late',), **options).maps
    w, inputs = exact
    for i, k in np.ndindex(2, 2):
        s = forward(w, inputs[i])[1]['late']

        def p(logits, c=CLASSES[i, k]):
            return np.exp(logits[c] - logits.max()) / np.exp(logits - logits.max()).sum()

        def masked(j, i=i, s=s):
            return inputs[i] * min_max(cv2.resize(s[..., j], (8, 8)))[..., None]

        scores = np.array([p(forward(w, masked(j))[0]) for j in range(5)])
        expected = s @ (np.exp(scores) / np.exp(scores).sum())
        close(maps['score_cam', 'late'][i, k], expected)
        whole = p(forward(w, inputs[i])[0])
        without = np.array([p(forward(w, inputs[i], ('late', j))[0]) for j in range(5)])
        close(maps['ablation_cam', 'late'][i, k], s @ (whole - without) / whole, 1e-4)

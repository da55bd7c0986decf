"""What a map explains: scores by their formulas, gradients against finite differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from wsol_jax.localization.localize import compute_maps, localize
from wsol_jax.localization.targets import (
    SCORES,
    FinerCAM,
    FreeScore,
    Region,
    Similarity,
    logit,
    resolve_score,
    softmax,
    target_cotangents,
    target_scores,
)
from wsol_jax.maps import NO_CLASS
from wsol_jax.models import Preprocessing, from_linen

LOGITS = np.random.default_rng(3).normal(size=(3, 7)).astype(np.float32) * 2
CLASSES = np.array([[1, 4], [0, 0], [6, 2]])


def softmax_by_hand(z, c):
    return np.exp(z[c]) / np.exp(z).sum()


def finer_by_hand(z, c, alpha=1.0, references=3):
    """Of one image, in float64: the similar classes are found by sorting."""
    others = sorted((i for i in range(len(z)) if i != c), key=lambda i: abs(z[i] - z[c]))
    p = np.exp(z) / np.exp(z).sum()
    top = sum(p[i] * (z[c] - alpha * z[i]) for i in others[:references])
    return top / (sum(p[i] for i in others[:references]) + 1e-9)


def slopes(score, z, c):
    """Central differences of a score along every logit, in float64."""
    steps = 1e-6 * np.eye(len(z))
    return np.array([(score(z + s, c) - score(z - s, c)) / 2e-6 for s in steps])


PAIRS = {
    'logit': (logit, lambda z, c: z[c]),
    'softmax': (softmax, softmax_by_hand),
    'finer_cam': (SCORES['finer_cam'], finer_by_hand),
    'finer_cam, one reference': (FinerCAM(0.6, 1), lambda z, c: finer_by_hand(z, c, 0.6, 1)),
    'finer_cam, all references': (FinerCAM(1.5, 99), lambda z, c: finer_by_hand(z, c, 1.5, 99)),
    'own': (lambda z, c: z[c] * z[0] - jnp.sin(z[3]), lambda z, c: z[c] * z[0] - np.sin(z[3])),
}


@partial(jax.jit, static_argnums=0)
def explain(score, logits, classes):
    """Scores [B,K] and cotangents [K,B,C]."""
    return target_scores(score, logits, classes), target_cotangents(score, logits, classes)


@pytest.mark.parametrize('name', PAIRS)
def test_value_and_gradient(name):
    score, by_hand = PAIRS[name]
    values, cotangents = explain(score, LOGITS, CLASSES)
    assert values.shape == (3, 2) and cotangents.shape == (2, 3, 7)
    for i, z in enumerate(LOGITS.astype(np.float64)):
        for k, c in enumerate(CLASSES[i]):
            assert values[i, k] == pytest.approx(by_hand(z, c), rel=1e-5)
            expected = slopes(by_hand, z, c)
            np.testing.assert_allclose(cotangents[k, i], expected, rtol=1e-4, atol=1e-5)


def test_finer_cam_without_comparison_is_the_logit():
    values, cotangents = explain(FinerCAM(alpha=0.0), LOGITS, CLASSES)
    np.testing.assert_allclose(values, LOGITS[np.arange(3)[:, None], CLASSES], rtol=1e-5)
    unit = np.moveaxis(np.eye(7)[CLASSES], 1, 0)
    np.testing.assert_allclose(cotangents, unit, atol=1e-5)


def test_finer_cam_compares_with_the_closest_not_the_highest():
    # Class 0 is closest to 1 and 2; the far higher class 3 does not count.
    z = np.array([[1.0, 1.2, 0.7, 9.0, -8.0, 4.0, -5.0]], np.float32).repeat(3, 0)
    cotangent = explain(FinerCAM(references=2), z, np.zeros((3, 2), int))[1][0, 0]
    assert cotangent[0] == pytest.approx(1.0, abs=1e-4)
    assert cotangent[1] < -0.1 and cotangent[2] < -0.1
    np.testing.assert_allclose(cotangent[3:], 0, atol=1e-4)


@pytest.mark.parametrize('score', SCORES.values(), ids=SCORES)
def test_bool_classes_are_the_sum_of_single_ones(score):
    labels = np.zeros((3, 7), bool)
    labels[0, [1, 4, 5]] = labels[1, 0] = labels[2, [2, 6]] = True
    values, cotangents = explain(score, LOGITS, labels)
    every, of_every = explain(score, LOGITS, np.tile(np.arange(7), (3, 1)))
    assert cotangents.shape == (1, 3, 7) and values.shape == (3, 1)
    np.testing.assert_allclose(values[:, 0], (every * labels).sum(1), rtol=1e-5)
    expected = np.einsum('bk,kbc->bc', labels, of_every)
    np.testing.assert_allclose(cotangents[0], expected, atol=1e-6)


@pytest.mark.parametrize('score', SCORES.values(), ids=SCORES)
def test_several_targets_equal_a_loop(score):
    values, cotangents = explain(score, LOGITS, CLASSES)
    for k in range(2):
        one, of_one = explain(score, LOGITS, CLASSES[:, k : k + 1])
        np.testing.assert_allclose(values[:, k], one[:, 0], rtol=1e-6)
        np.testing.assert_allclose(cotangents[k], of_one[0], atol=1e-6)


def test_free_score_ignores_the_class():
    values, cotangents = explain(FreeScore(lambda z: z[2] - 3 * z[5]), LOGITS, CLASSES)
    expected = np.tile([0, 0, 1, 0, 0, -3, 0], (2, 3, 1))
    np.testing.assert_allclose(cotangents, expected, atol=1e-6)
    exact = LOGITS[:, 2] - 3 * LOGITS[:, 5]
    np.testing.assert_allclose(values, np.stack([exact, exact], 1), rtol=1e-5)


@pytest.fixture(scope='module')
def terms(toy, toy_images):
    """HiResCAM at 'early' of every class [B,C,h,w]; it is linear in the cotangent. And logits."""
    every = np.tile(np.arange(6), (4, 1))
    result = localize(toy, toy_images, ('hires_cam',), ('early',), classes=every)
    maps = np.asarray(result.maps['hires_cam', 'early'], np.float64)
    return maps, np.asarray(result.logits, np.float64)


def early_map(toy, toy_images, **options):
    result = localize(toy, toy_images, ('hires_cam',), ('early',), **options)
    return np.asarray(result.maps['hires_cam', 'early']), np.asarray(result.classes)


def test_map_of_the_softmax_score(toy, toy_images, terms):
    maps, logits = terms
    actual, _ = early_map(toy, toy_images, classes=[1, 4, 0, 5], score='softmax')
    for i, c in enumerate([1, 4, 0, 5]):
        p = np.exp(logits[i] - logits[i].max())
        p /= p.sum()
        expected = p[c] * (maps[i, c] - np.einsum('c,chw->hw', p, maps[i]))
        scale = np.abs(expected).max()
        np.testing.assert_allclose(actual[i], expected, rtol=0, atol=1e-4 * scale)


def test_map_of_several_classes_at_once(toy, toy_images, terms):
    maps, _ = terms
    labels = np.zeros((4, 6), bool)
    labels[0, [1, 4]] = labels[1, 0] = labels[2, :] = labels[3, [2, 3, 5]] = True
    actual, classes = early_map(toy, toy_images, classes=labels)
    expected = np.einsum('bc,bchw->bhw', labels, maps)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert (classes == NO_CLASS).all()


def test_map_of_somebodys_function(toy, toy_images, terms):
    maps, logits = terms
    actual, classes = early_map(toy, toy_images, classes=lambda z: z[1] - 2 * z[4] * z[4])
    expected = maps[:, 1] - 4 * logits[:, 4, None, None] * maps[:, 4]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert (classes == NO_CLASS).all()


def test_names_resolve_and_wrong_ones_are_errors():
    assert resolve_score('logit') is logit and resolve_score('softmax') is softmax
    assert resolve_score('finer_cam') == FinerCAM(alpha=1.0, references=3)
    assert resolve_score(jax.nn.relu) is jax.nn.relu
    with pytest.raises(ValueError, match=r"score 'sofmax'; did you mean 'softmax'"):
        resolve_score('sofmax')


# ---------------------------------------------------------------- not a class at all


def hires_by_grad(score_of, activations):
    """sum_k g_k S_k with g of plain jax.grad; `score_of` takes what is added at the endpoint."""
    g = jax.grad(lambda added: jnp.sum(score_of(added)))(jnp.zeros_like(activations))
    return np.asarray(jnp.sum(g * activations, axis=-1))


def assert_close(actual, expected):
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=1e-5 * scale)


def cosine(x, y):
    return (x * y).sum(-1) / jnp.sqrt((x * x).sum(-1) * (y * y).sum(-1))


VECTOR = np.array([0.5, -1.0, 2.0, 0.0, 1.5, 1.0])


@pytest.mark.parametrize('vector', [VECTOR, VECTOR.tolist(), jnp.asarray(3 * VECTOR)])
def test_similarity_of_the_outputs(toy, toy_images, vector):
    actual, classes = early_map(toy, toy_images, classes=Similarity(vector))
    inputs = toy.preprocessing(toy_images)

    def score_of(added):
        return cosine(toy.apply(toy.state, inputs, {'early': added})[0], VECTOR)

    activations = toy.apply(toy.state, inputs)[1]['early']
    assert_close(actual, hires_by_grad(score_of, activations))
    assert (classes == NO_CLASS).all()


def test_similarity_of_the_pooled_activation_of_a_layer(toy, toy_images):
    embedding = toy.explaining(lambda logits, endpoints: endpoints['late'].mean((1, 2)))
    result = localize(embedding, toy_images, ('hires_cam',), classes=Similarity(VECTOR[:5]))
    inputs = toy.preprocessing(toy_images)
    seen = toy.apply(toy.state, inputs)[1]
    np.testing.assert_allclose(result.logits, seen['late'].mean((1, 2)), rtol=1e-5)
    for layer in ('early', 'late'):

        def score_of(added, layer=layer):
            late = toy.apply(toy.state, inputs, {layer: added})[1]['late']
            return cosine(late.mean((1, 2)), VECTOR[:5])

        assert_close(result.maps['hires_cam', layer], hires_by_grad(score_of, seen[layer]))


def weighted(weights, outputs):
    return (weights * outputs).sum()


KINDS = {
    'Similarity': (Similarity, np.eye(6)),
    'Region': (lambda mask: Region(mask, 1), np.eye(3).reshape(3, 1, 3)),
    'Partial': (lambda weights: jax.tree_util.Partial(weighted, weights), np.eye(6)),
}


@pytest.mark.parametrize('kind', KINDS)
def test_what_differs_in_its_array_alone_shares_a_program(toy, toy_images, kind):
    make, arrays = KINDS[kind]
    first, _ = early_map(toy, toy_images, classes=make(arrays[0]))
    programs = compute_maps._cache_size()
    second, _ = early_map(toy, toy_images, classes=make(arrays[1]))
    assert compute_maps._cache_size() == programs
    score_of = make(arrays[1])  # what JAX makes of it without any program of ours
    inputs = toy.preprocessing(toy_images)

    def scores_of(added):
        return jax.vmap(score_of)(toy.apply(toy.state, inputs, {'early': added})[0])

    assert_close(second, hires_by_grad(scores_of, toy.apply(toy.state, inputs)[1]['early']))
    assert np.abs(first - second).max() > 0.01 * np.abs(second).max()


def test_regions_of_other_classes_have_programs_of_their_own(toy, toy_images):
    maps = [early_map(toy, toy_images, classes=Region(np.ones((1, 3)), i))[0] for i in range(2)]
    assert np.abs(maps[0] - maps[1]).max() > 0.01 * np.abs(maps[1]).max()


class Dense(linen.Module):
    """Semantic segmentation: outputs [B,4,4,3]."""

    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(6, (3, 3), strides=2, name='early')(x))
        return linen.Conv(3, (3, 3), name='scores')(jnp.tanh(x))


@pytest.fixture(scope='module')
def dense():
    module = Dense()
    return module, module.init(jax.random.key(1), jnp.zeros((1, 8, 8, 3)))


def network_of(module, variables, output):
    scale = Preprocessing((128.0,) * 3, (64.0,) * 3)
    return from_linen(module, variables, output=output, input_size=8, preprocessing=scale)


def test_a_region_of_a_segmentation(dense, toy_images):
    module, variables = dense
    network = network_of(module, variables, lambda scores: scores)
    mask = np.zeros((4, 4), bool)
    mask[1:3, 2:] = True
    result = localize(network, toy_images, ('hires_cam',), ('early',), Region(mask, 2))
    inputs = network.preprocessing(toy_images)
    weights = variables['params']

    def early(inputs):
        return linen.Conv(6, (3, 3), strides=2).apply({'params': weights['early']}, inputs)

    def score_of(added):
        x = jnp.tanh(linen.relu(early(inputs) + added))
        scores = linen.Conv(3, (3, 3)).apply({'params': weights['scores']}, x)
        return scores[:, 1:3, 2:, 2].sum((1, 2))

    assert_close(result.maps['hires_cam'], hires_by_grad(score_of, early(inputs)))
    assert result.logits.shape == (4, 4 * 4 * 3)


class Detector(linen.Module):
    """Raw outputs of a detector: {'boxes': [B,16,4], 'scores': [B,16,3]}."""

    @linen.compact
    def __call__(self, x):
        x = linen.Conv(6, (3, 3), strides=2, name='early')(x)
        scores = linen.Conv(3, (3, 3), name='scores')(jnp.tanh(x))
        return {
            'boxes': linen.Conv(4, (1, 1))(x).reshape(len(x), -1, 4),
            'scores': scores.reshape(len(x), -1, 3),
        }


def test_a_box_of_a_detector(toy_images):
    module = Detector()
    variables = module.init(jax.random.key(1), jnp.zeros((1, 8, 8, 3)))
    network = network_of(module, variables, lambda found: found['scores'])
    anchor = 6  # at row 1, column 2
    result = localize(
        network, toy_images, ('hires_cam',), ('early',), lambda z: z.reshape(16, 3)[anchor, 1]
    )
    inputs, weights = network.preprocessing(toy_images), variables['params']

    def early(inputs):
        return linen.Conv(6, (3, 3), strides=2).apply({'params': weights['early']}, inputs)

    def score_of(added):
        x = jnp.tanh(early(inputs) + added)
        scores = linen.Conv(3, (3, 3)).apply({'params': weights['scores']}, x)
        return scores[:, 1, 2, 1]

    assert_close(result.maps['hires_cam'], hires_by_grad(score_of, early(inputs)))


def test_regression_and_its_sign(toy, toy_images):
    network = toy.explaining(lambda logits, endpoints: logits[:, 4:5])
    up = early_map(network, toy_images, classes=0)[0]
    down = early_map(network, toy_images, classes=lambda y: -y[0])[0]
    inputs = toy.preprocessing(toy_images)
    activations = toy.apply(toy.state, inputs)[1]['early']
    expected = hires_by_grad(
        lambda added: toy.apply(toy.state, inputs, {'early': added})[0][:, 4], activations
    )
    assert_close(up, expected)
    assert_close(down, -expected)


def test_outputs_nobody_meant_are_refused(dense):
    module, variables = dense
    with pytest.raises(ValueError, match=r'not logits \[2,C\]; pass output=.* to be explained'):
        network_of(module, variables, None)
    for wrong in (lambda scores: scores.sum(), lambda scores: scores[:1]):
        with pytest.raises(ValueError, match=r'not logits|not outputs'):
            network_of(module, variables, wrong)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: Similarity(np.zeros(6)), r'not all zero, .*got shape \[6\]'),
        (lambda: Similarity(np.ones((1, 6))), r'got shape \[1, 6\]'),
        (lambda: Similarity([1.0, np.nan]), 'finite numbers'),
        (lambda: Region(np.zeros((4, 4)), 0), r'must be \[H,W\] and not empty, got \[4, 4\]'),
        (lambda: Region(np.ones(4), 0), r'got \[4\]'),
    ],
)
def test_wrong_targets(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_targets_of_another_network(toy, toy_images, dense):
    with pytest.raises(ValueError, match='the vector has 5 numbers, the network gives 6'):
        localize(toy, toy_images, classes=Similarity(np.ones(5)))
    network = network_of(*dense, lambda scores: scores)
    for mask, index in ((np.ones((5, 5)), 0), (np.ones((4, 4)), 3)):
        message = rf'class {index} in a region of .*among the 48 outputs'
        with pytest.raises(ValueError, match=message):
            localize(network, toy_images, classes=Region(mask, index))
    with pytest.raises(ValueError, match=r'not outputs \[1,...\] of 1 images'):
        toy.explaining(lambda logits, endpoints: endpoints)

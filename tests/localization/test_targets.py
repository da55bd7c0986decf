"""What a map explains: scores by their formulas, gradients against finite differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsol_jax.localization.localize import localize
from wsol_jax.localization.targets import (
    SCORES,
    FinerCAM,
    FreeScore,
    logit,
    resolve_score,
    softmax,
    target_cotangents,
    target_scores,
)
from wsol_jax.maps import NO_CLASS

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

"""Matching against SciPy's, the set loss by hand, and what padding must not change."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import linear_sum_assignment

from wsol_jax.training.matching import matched_queries, matching_cost, set_loss

LOSS = jax.jit(set_loss)
MATCH = jax.jit(jax.vmap(matched_queries))


@pytest.mark.parametrize('shape', [(7, 5), (4, 6)])
def test_matching_is_scipys_on_what_is_valid(shape):
    rng = np.random.default_rng(0)
    costs = rng.normal(size=(20, *shape), scale=5).astype(np.float32)
    queries, boxes = rng.uniform(size=(20, shape[0])) < 0.7, rng.uniform(size=(20, shape[1])) < 0.7
    queries[0], boxes[1], queries[2], boxes[2] = False, False, True, True
    for cost, own, of, found in zip(
        costs, queries, boxes, MATCH(costs, queries, boxes), strict=True
    ):
        rows, columns = linear_sum_assignment(cost[np.ix_(own, of)])
        expected = np.full(shape[1], -1)
        expected[np.flatnonzero(of)[columns]] = np.flatnonzero(own)[rows]
        assert found.tolist() == expected.tolist()


def focal(logit, true):
    p = 1 / (1 + np.exp(-logit))
    return -0.25 * (1 - p) ** 2 * np.log(p) if true else -0.75 * p**2 * np.log(1 - p)


LOGITS = np.array([[0.5, -1.0], [2.0, 0.1], [-0.3, 0.7]], np.float32)
CODES = np.array([[0.0, 1.0], [5.0, 5.0], [1.0, 1.0]], np.float32)
TRUE = np.array([[5.0, 4.0], [0.0, 0.5]], np.float32)
CLASSES = np.array([0, 1], np.int32)
ALL = np.ones(3, bool)


def test_the_cost_by_hand():
    cost = matching_cost(LOGITS, CODES, CLASSES, TRUE)
    assert cost.shape == (3, 2)
    expected = 2 * (focal(0.7, True) - focal(0.7, False)) + 0.25 * 1.5
    assert cost[2, 1] == pytest.approx(expected, rel=1e-5)


def test_the_loss_by_hand():
    found = LOSS(LOGITS, CODES, ALL, CLASSES, TRUE)
    # Query 1 is next to the first box; of the others, query 2 is of the class of the second.
    pairs = {1: 0, 2: 1}
    expected = sum(focal(LOGITS[q, c], pairs.get(q) == c) for q in range(3) for c in range(2))
    assert float(found.focal) == pytest.approx(expected, rel=1e-5)
    assert float(found.boxes) == pytest.approx(1.0 + 1.5)
    assert int(found.matched) == 2


def test_padding_changes_no_loss():
    plain = LOSS(LOGITS, CODES, ALL, CLASSES, TRUE)
    padded = LOSS(
        np.pad(LOGITS, ((0, 2), (0, 0)), constant_values=9),
        np.pad(CODES, ((0, 2), (0, 0)), constant_values=7),
        np.pad(ALL, (0, 2)),
        np.pad(CLASSES, (0, 3), constant_values=-1),
        np.pad(TRUE, ((0, 3), (0, 0))),
    )
    np.testing.assert_allclose(padded, plain, rtol=1e-6)


def test_padding_gets_no_gradient_and_nothing_is_lost_without_boxes():
    def loss(logits, classes):
        found = set_loss(logits, jnp.asarray(CODES), np.array([True, True, False]), classes, TRUE)
        return found.focal + found.boxes

    gradient = jax.jit(jax.grad(loss))(jnp.asarray(LOGITS), CLASSES)
    assert (gradient[:2] != 0).all() and (gradient[2] == 0).all()
    none = LOSS(LOGITS, CODES, ALL, np.full(2, -1, np.int32), TRUE)
    assert (int(none.matched), float(none.boxes)) == (0, 0)
    zeros = np.zeros_like(LOGITS)
    expected = optax.sigmoid_focal_loss(LOGITS, zeros, alpha=0.25, gamma=2.0).sum()
    assert float(none.focal) == pytest.approx(float(expected), rel=1e-6)


def test_a_network_that_diverged_ends():
    found = LOSS(np.full((3, 2), np.nan, np.float32), CODES, ALL, CLASSES, TRUE)
    assert np.isnan(found.focal)

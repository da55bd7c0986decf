"""The pillar encoder against a plain loop; what must not change it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsol_jax.models.pillars import Grid, PillarEncoder, Pyramid, decorated, pillar_index

GRID = Grid.of((0, -2, -1, 3, 2, 1), 0.5)
ENCODER = PillarEncoder(GRID, 4, rngs=nnx.Rngs(0))
ENCODER.eval()
CALL = jax.jit(ENCODER.__call__)
TRAIN = nnx.jit(lambda module, points, valid: module(points, valid))


def cloud(count, seed=0):
    low, high = np.array([-0.5, -2.5, -1.2]), np.array([3.5, 2.5, 1.2])
    rng = np.random.default_rng(seed)
    places = rng.uniform(low, high, (count, 3))
    return np.concatenate([places, rng.uniform(size=(count, 2))], axis=1).astype(np.float32)


def by_loop(points, kernel):
    """Lang et al., section 2.1; batch normalization as it starts hands its input on."""
    canvas = np.zeros((8, 6, 4))
    for row, column in np.ndindex(8, 6):
        low = np.array([column * 0.5, row * 0.5 - 2])
        own = [p for p in points if (low <= p[:2]).all() and (p[:2] < low + 0.5).all()]
        own = [p for p in own if -1 <= p[2] < 1]
        for p in own:
            share = (p[:3] - [0, -2, -1]) / [3, 4, 2]
            mean, centre = np.mean(own, axis=0)[:3], low + 0.25
            offsets = [*(p[:3] - mean) / 0.5, *(p[:2] - centre) / 0.5]
            seen = np.array([*share, *p[3:], *offsets]) @ kernel / np.sqrt(1 + 1e-5)
            canvas[row, column] = np.maximum(canvas[row, column], seen)
    return canvas


def test_the_grid_has_rows_along_y():
    assert GRID.shape == (8, 6)
    points = jnp.array([[0.1, -1.9, 0, 0, 0], [2.9, -1.9, 0, 0, 0], [0.1, 1.9, 0, 0, 0]])
    assert pillar_index(points, jnp.ones(3, bool), GRID).tolist() == [0, 5, 42]
    np.testing.assert_allclose(GRID.metres(GRID.share(points[:, :3])), points[:, :3], atol=1e-6)
    assert decorated(points, pillar_index(points, jnp.ones(3, bool), GRID), GRID).shape == (3, 10)


def test_what_is_outside_is_in_no_pillar():
    outside = [[-0.1, 0, 0], [3.0, 0, 0], [1, 2.0, 0], [1, 0, -1.1], [1, 0, 1.0]]
    points = np.pad(np.array(outside, np.float32), ((0, 0), (0, 2)))
    assert pillar_index(points, jnp.ones(5, bool), GRID).tolist() == [48] * 5


@pytest.mark.parametrize('limits', [(0, 0, 0, 1, 1), (0, 0, 0, 0.2, 1, 1), (0, 0, 1, 1, 1, 1)])
def test_wrong_limits_are_refused(limits):
    with pytest.raises(ValueError, match='must'):
        Grid.of(limits, 0.5)


def test_the_encoder_is_that_of_a_plain_loop():
    points = cloud(60)
    found = CALL(points[None], jnp.ones((1, 60), bool))[0]
    kernel = np.asarray(ENCODER.linear.kernel[...])
    np.testing.assert_allclose(found, by_loop(points, kernel), rtol=1e-4, atol=1e-5)


def test_neither_order_nor_padding_nor_the_batch_changes_anything():
    points = cloud(60)
    shuffled = np.random.default_rng(1).permutation(points)
    padded = np.concatenate([points[:40], np.full((20, 5), 1.0, np.float32)])
    batch = np.stack([points, shuffled, padded])
    valid = np.ones((3, 60), bool)
    valid[2, 40:] = False
    found = CALL(batch, valid)
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    np.testing.assert_allclose(
        found[2], by_loop(points[:40], ENCODER.linear.kernel[...]), atol=1e-4
    )
    assert not np.allclose(found[0], found[2])


def test_padding_is_not_in_the_statistics_of_a_batch():
    points = cloud(60)
    padded = np.concatenate([points, np.full((20, 5), 1.0, np.float32)])
    module = PillarEncoder(GRID, 4, rngs=nnx.Rngs(0))
    plain = TRAIN(module, points[None], jnp.ones((1, 60), bool))
    mean = np.array(module.bn.mean[...])
    other = PillarEncoder(GRID, 4, rngs=nnx.Rngs(0))
    found = TRAIN(other, padded[None], jnp.arange(80)[None] < 60)
    np.testing.assert_allclose(found, plain, atol=1e-5)
    np.testing.assert_allclose(other.bn.mean[...], mean, atol=1e-6)


def test_a_batch_in_which_nothing_is_seen_leaves_the_statistics_alone():
    module = PillarEncoder(GRID, 4, rngs=nnx.Rngs(0))
    TRAIN(module, cloud(60)[None], jnp.ones((1, 60), bool))
    before = [np.array(module.bn.mean[...]), np.array(module.bn.var[...])]
    found = TRAIN(module, cloud(60)[None], jnp.zeros((1, 60), bool))
    np.testing.assert_array_equal(found, 0)
    np.testing.assert_array_equal([module.bn.mean[...], module.bn.var[...]], before)
    assert before[0].any()


def test_levels_halve_and_coarse_ones_reach_the_fine():
    pyramid = Pyramid(4, (4, 6, 8), 5, rngs=nnx.Rngs(0))
    pyramid.eval()
    x = jnp.zeros((1, 8, 6, 4)).at[0, 0, 0].set(1.0)
    run = jax.jit(pyramid.__call__)
    levels = run(x)
    assert [level.shape for level in levels] == [(1, 8, 6, 5), (1, 4, 3, 5), (1, 2, 2, 5)]
    moved = run(x.at[0, 7, 5].set(2.0))
    assert not np.allclose(levels[0][0, 7, 0], moved[0][0, 7, 0])  # beyond 3x3 of the fine level

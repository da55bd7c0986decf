"""Hide-and-Seek: which pixels are hidden, how often, and only in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsol_jax.models.heads import Outputs
from wsol_jax.training.method import Shard, TrainedMethod
from wsol_jax.training.methods.has import HaS, pixels_of

BATCH = Shard(None, {'labels': np.zeros((500, 1), np.int32)}, np.ones(500, bool), np.arange(500))


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def hidden_of(method, inputs, seed=0):
    return np.asarray(method.augment(inputs, BATCH, keys(len(inputs), seed))[0])


def test_patches_of_a_side_that_does_not_divide_by_hand():
    # Three patches along 7 and along 5 pixels: rows 0-2, 3-4, 5-6; columns 0-1, 2-3, 4.
    patches = np.array([[[1, 2, 3], [4, 5, 6], [7, 8, 9]]])
    expected = [
        *[[1, 1, 2, 2, 3]] * 3,
        *[[4, 4, 5, 5, 6]] * 2,
        *[[7, 7, 8, 8, 9]] * 2,
    ]
    np.testing.assert_array_equal(pixels_of(patches, 7, 5), [expected])


def test_whole_patches_become_zero_and_the_others_stay():
    inputs = 1 + np.random.default_rng(0).random((6, 10, 10, 3)).astype(np.float32)
    found = hidden_of(HaS(grid=3, drop=0.5), inputs)
    hidden = (found == 0).all(-1)
    np.testing.assert_array_equal(found[~hidden], inputs[~hidden])
    thirds = (slice(0, 4), slice(4, 7), slice(7, 10))
    parts = [hidden[:, rows, columns].reshape(6, -1) for rows in thirds for columns in thirds]
    for part in parts:
        assert (part.all(1) | ~part.any(1)).all()
    assert 0 < np.mean([part[:, 0] for part in parts]) < 1


def test_as_many_patches_are_hidden_as_asked_for():
    for drop in (0.0, 0.3, 1.0):
        share = np.mean(hidden_of(HaS(grid=4, drop=drop), jnp.ones((500, 8, 8, 1))) == 0)
        # Of 8000 patches: the standard deviation is .5 % at most.
        assert abs(share - drop) < 0.02 * (0 < drop < 1) + 1e-9


@pytest.mark.slow
def test_extreme_grids():
    inputs = 1 + np.random.default_rng(0).random((40, 5, 7, 3)).astype(np.float32)
    whole = (hidden_of(HaS(grid=1), inputs) == 0).reshape(40, -1)  # one patch is the image
    assert (whole.all(1) | ~whole.any(1)).all() and 0 < whole.all(1).sum() < 40
    # More patches than pixels: every pixel is by itself.
    pixels = (hidden_of(HaS(grid=1024, drop=0.3), inputs) == 0).all(-1)
    assert abs(pixels.mean() - 0.3) < 0.05 and len({p.tobytes() for p in pixels}) == 40
    assert not hidden_of(HaS(grid=1024, drop=1.0), inputs).any()


@pytest.mark.slow
def test_every_image_hides_its_own_by_its_key_alone():
    inputs = jnp.ones((8, 16, 16, 1))
    found = hidden_of(HaS(), inputs)
    assert len({image.tobytes() for image in found}) == 8
    method, order = HaS(), np.array([3, 1, 0])
    some, _ = method.augment(inputs[:3], BATCH, keys(8)[order])
    np.testing.assert_array_equal(some, found[order])
    assert not np.array_equal(hidden_of(method, inputs, seed=1), found)


def test_targets_and_loss_are_those_of_the_plain_classifier():
    batch = jax.tree.map(lambda x: x[:2], BATCH)
    assert HaS().augment(jnp.ones((2, 4, 4, 3)), batch, keys(2))[1] is batch
    outputs = Outputs(jnp.array([[1.0, 2.0], [3.0, 0.0]]), {}, {})
    found, expected = (m.loss(outputs, batch, None) for m in (HaS(), TrainedMethod()))
    for one, two in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_array_equal(one, two)

"""The random walk against powers of a dense matrix, at walls, in batches."""

import itertools

import numpy as np
import pytest

from wsol_jax.maps.paths import straight_paths
from wsol_jax.segmentation import random_walk

RNG = np.random.default_rng(0)
SIZE = (7, 9)


def dense(boundary, radius, beta):
    """T [N,N] of the paper, pair by pair."""
    height, width = boundary.shape
    affinity = np.eye(height * width)
    ways = zip(*map(np.ndarray.tolist, straight_paths(radius)), strict=True)
    for ((down, right), way), (y, x) in itertools.product(ways, np.ndindex(height, width)):
        if 0 <= y + down < height and 0 <= x + right < width:
            value = 1 - max(boundary[y + i, x + j] for i, j in way)
            first, second = y * width + x, (y + down) * width + x + right
            affinity[first, second] = affinity[second, first] = value
    powers = affinity**beta
    return powers / powers.sum(axis=1, keepdims=True)


def walked(maps, boundary, radius, beta, doublings):
    transition = dense(boundary, radius, beta)
    for _ in range(doublings):
        transition = transition @ transition
    return ((maps * (1 - boundary)).reshape(len(maps), -1) @ transition.T).reshape(maps.shape)


@pytest.fixture(scope='module')
def two():
    """Maps of two images and three classes, their boundaries, what comes of them."""
    maps, boundary = RNG.random((2, 3, *SIZE)), RNG.random((2, *SIZE)) ** 4
    maps, boundary = maps.astype(np.float32), boundary.astype(np.float32)
    return maps, boundary, random_walk(maps, boundary, 3, 10.0, 4)


def test_it_is_a_power_of_the_dense_matrix(two):
    for maps, boundary, found in zip(*two, strict=True):
        expected = walked(maps.astype(float), boundary.astype(float), 3, 10.0, 4)
        np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_a_batch_is_its_images(two):
    maps, boundary, found = two
    alone = random_walk(maps[1], boundary[1], 3, 10.0, 4)
    np.testing.assert_allclose(found[1], alone, rtol=1e-5)


def test_the_published_walk_fills_an_object_up_to_its_boundary():
    """One seed on the left of a wall: 256 steps spread it evenly, none passes."""
    maps, boundary = np.zeros((1, *SIZE), np.float32), np.zeros(SIZE, np.float32)
    maps[0, 3, 1], boundary[:, 4] = 1, 1
    found = np.asarray(random_walk(maps, boundary))[0]
    assert not found[:, 4:].any()
    left = found[:, :4]
    # What is left of the seed counts by its share of all pairs.
    pairs = dense(boundary, 5, 10.0).reshape(*SIZE, *SIZE)[:, :4, :, :4] > 0
    np.testing.assert_allclose(left, pairs[3, 1].sum() / pairs.sum(), rtol=1e-3)
    np.testing.assert_allclose(walked(maps, boundary, 5, 10.0, 8)[0], found, rtol=1e-3, atol=1e-6)

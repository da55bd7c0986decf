"""Pairs of positions and the ways between them, by hand and by plain loops."""

import jax.numpy as jnp
import numpy as np

from wsol_jax.maps.paths import framed, moved, path_affinity, straight_paths


def between(down, right):
    """All positions of the rectangle that are less than 1 off the line, by angles."""
    angle, found = np.arctan2(right, down), set()
    for y in range(min(0, down), max(0, down) + 1):
        for x in range(min(0, right), max(0, right) + 1):
            if abs(np.hypot(y, x) * np.sin(np.arctan2(x, y) - angle)) < 1 - 1e-9:
                found.add((y, x))
    return found


def test_pairs_by_hand():
    offsets, ways = straight_paths(2)
    assert offsets.tolist() == [[0, 1], [1, -1], [1, 0], [1, 1]]
    assert {tuple(p) for p in ways[0]} == {(0, 0), (0, 1)}
    # Of a diagonal step both corners are 1 / sqrt 2 off.
    assert {tuple(p) for p in ways[1]} == {(0, 0), (0, -1), (1, 0), (1, -1)}
    offsets, ways = straight_paths(3)
    of = {tuple(o): {tuple(p) for p in way} for o, way in zip(offsets, ways, strict=True)}
    assert of[0, 2] == {(0, 0), (0, 1), (0, 2)}
    assert of[1, 2] == {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)}


def test_numbers_are_those_of_the_published_radii():
    for radius, count in ((5, 34), (10, 152)):
        offsets, ways = straight_paths(radius)
        assert len(offsets) == count
        both = {tuple(o) for o in np.concatenate([offsets, -offsets]).tolist()}
        assert len(both) == 2 * count  # none twice
        for offset, way in zip(offsets.tolist(), ways, strict=True):
            assert {tuple(p) for p in way.tolist()} == between(*offset)


def test_affinities_are_those_of_a_plain_loop():
    boundary = np.random.default_rng(0).random((2, 5, 6)).astype(np.float32)
    offsets, ways = straight_paths(3)
    inside = framed(jnp.asarray(boundary), 2, 1.0)
    for offset, way in zip(offsets, ways, strict=True):
        expected = np.zeros_like(boundary)
        for b, y, x in np.ndindex(boundary.shape):
            end = y + offset[0], x + offset[1]
            if 0 <= end[0] < 5 and 0 <= end[1] < 6:
                on_the_way = [boundary[b, y + i, x + j] for i, j in between(*offset)]
                expected[b, y, x] = 1 - max(on_the_way)
        np.testing.assert_allclose(path_affinity(inside, way, 2), expected, rtol=1e-6)


def test_what_lies_at_an_offset_comes_from_the_frame_at_the_edge():
    inside = framed(jnp.arange(6.0).reshape(2, 3), 2, -1.0)
    found = moved(inside, np.array([1, -2]), 2)
    assert found.tolist() == [[-1, -1, 3], [-1, -1, -1]]

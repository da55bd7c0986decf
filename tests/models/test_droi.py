"""D-RoI attention and places on boxes against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from wsol_jax.models.box_codes import boxes_of, codes_of, corners_of, footprint_grid
from wsol_jax.models.droi import DRoIAttention, hull_grid, projected, rays, sampled

RNG = np.random.default_rng(0)


def value_at(image, y, x):
    """Of an image [H,W,K] between the centres of its cells, with zeros outside."""
    found = np.zeros(image.shape[-1])
    for i, j in np.ndindex(image.shape[:2]):
        found += max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j)) * image[i, j]
    return found


def sampled_by_loop(values, places, weights):
    batch, height, width, heads, features = values.shape
    found = np.zeros((batch, places.shape[1], heads, features))
    for b, n, head, s in np.ndindex(places.shape[:4]):
        x, y = places[b, n, head, s] * [width, height] - 0.5
        found[b, n, head] += weights[b, n, head, s] * value_at(values[b, :, :, head], y, x)
    return found


def test_codes_and_back():
    boxes = np.array([[1, -2, 3, 4, 2, 1.5, 0.7], [0, 0, 0, 1, 1, 1, -3.0]], np.float32)
    codes = codes_of(boxes)
    np.testing.assert_allclose(codes[0, 3:], [*np.log([4, 2, 1.5]), np.sin(0.7), np.cos(0.7)], 1e-6)
    np.testing.assert_allclose(boxes_of(codes), boxes, rtol=1e-5, atol=1e-6)
    assert np.isfinite(codes_of(jnp.zeros((2, 7)))).all()


def test_places_on_a_box_that_looks_to_the_left():
    box = jnp.array([10.0, 5, 1, 4, 2, 3, np.pi / 2])
    corners = np.asarray(corners_of(box))
    np.testing.assert_allclose(corners.min(0), [9, 3, -0.5], atol=1e-5)
    np.testing.assert_allclose(corners.max(0), [11, 7, 2.5], atol=1e-5)
    assert len(np.unique(corners.round(3), axis=0)) == 8
    grid = np.asarray(footprint_grid(box, 2))  # back to front, each from right to left
    np.testing.assert_allclose(grid, [[10.5, 4], [9.5, 4], [10.5, 6], [9.5, 6]], atol=1e-5)


def test_sampling_is_that_of_a_plain_loop():
    values = RNG.normal(size=(2, 3, 4, 2, 3)).astype(np.float32)
    places = RNG.uniform(-0.2, 1.2, (2, 3, 2, 5, 2)).astype(np.float32)
    weights = RNG.uniform(size=(2, 3, 2, 5)).astype(np.float32)
    found = jax.jit(sampled)(values, places, weights)
    np.testing.assert_allclose(found, sampled_by_loop(values, places, weights), 1e-4, 1e-5)


def test_attention_is_that_of_a_plain_loop():
    module = DRoIAttention(6, 2, 2, 3, 2, 2, nnx.Rngs(0))
    for layer in (module.offsets, module.weights, module.roi_offsets, module.roi_weights):
        layer.kernel.set_value(jnp.asarray(RNG.normal(size=layer.kernel.shape), jnp.float32))
    queries = RNG.normal(size=(1, 2, 6)).astype(np.float32)
    levels = [RNG.normal(size=(1, *s, 6)).astype(np.float32) for s in ((4, 6), (2, 3))]
    roi, seen = RNG.uniform(size=(1, 2, 4, 2)).astype(np.float32), np.ones((1, 2, 4), bool)
    seen[0, 1, 2:] = False
    anchors = RNG.uniform(size=(1, 2, 1, 1, 1, 2)).astype(np.float32)

    def place(offsets):
        return anchors + 0.1 * offsets, offsets[..., 0] < 3

    found = jax.jit(lambda *a: module(a[0], a[1], place, *a[2:]))(queries, levels, roi, seen)
    expected = np.zeros((2, 2, 3))
    for n in range(2):
        query = jnp.asarray(queries[0, n])
        offsets = np.asarray(module.offsets(query)).reshape(2, 2, 3, 2)
        logits = np.asarray(module.weights(query)).reshape(2, 2, 3)
        moves = np.asarray(module.roi_offsets(query)).reshape(4, 2)
        shared = np.exp(np.asarray(module.roi_weights(query)))
        for head, level in np.ndindex(2, 2):
            height, width = levels[level].shape[1:3]
            values = np.asarray(module.values(levels[level]))[0, :, :, 3 * head : 3 * head + 3]
            weights = np.exp(logits[head]) / np.exp(logits[head]).sum()
            for p in range(3):
                if offsets[head, level, p, 0] < 3:
                    x, y = anchors[0, n, 0, 0, 0] + 0.1 * offsets[head, level, p]
                    there = value_at(values, y * height - 0.5, x * width - 0.5)
                    expected[n, head] += weights[level, p] * there
            for r in range(4):
                x, y = roi[0, n, r] + moves[r] / [width, height]
                there = value_at(values, y * height - 0.5, x * width - 0.5)
                expected[n, head] += seen[0, n, r] * shared[r] / shared.sum() / 4 * there
    expected = np.asarray(module.output(jnp.asarray(expected.reshape(1, 2, 6), jnp.float32)))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_heads_start_by_looking_around():
    first = np.asarray(rays(4, 2, 3, 3))
    np.testing.assert_allclose(first[1, 0], [[0, 1, 0], [0, 2, 0], [0, 3, 0]], atol=1e-6)
    np.testing.assert_allclose(first[2, 1, 0], [-1, 0, 0], atol=1e-6)


# x forward, y left, z up; a focal length of 100 pixels, an image of 200 x 100.
CAMERA = np.array([[[99.5, -100, 0, 0], [49.5, 0, -100, 0], [1, 0, 0, 0]]], np.float32)
IMAGE = np.array([[200.0, 100.0]], np.float32)


def test_a_camera_sees_what_is_in_front():
    places = np.array([[[10, 0, 0], [10, 5, 2.5], [-10, 0, 0]]], np.float32)
    shares, front = projected(places, CAMERA, IMAGE)
    np.testing.assert_allclose(shares[0, :2], [[0.5, 0.5], [0.25, 0.25]], atol=1e-6)
    assert front.tolist() == [[True, True, False]]
    assert shares[0, 2].max() < -1  # outside, and finite


def test_the_grid_on_an_image_is_that_of_the_hull():
    boxes = np.array([[[11, 0, 0, 2, 4, 2, 0], [-9, 0, 0, 2, 4, 2, 0], [9, 9, 0, 2, 4, 2, 0]]])
    grid, seen = hull_grid(boxes.astype(np.float32), CAMERA, IMAGE, 2)
    # The near face, at x = 10: 2 m to either side, 1 m up and down.
    x, y = 0.5 + np.array([-0.05, 0.05]), 0.5 + np.array([-0.05, 0.05])
    np.testing.assert_allclose(grid[0, 0], [[x[0], y[0]], [x[1], y[0]], [x[0], y[1]], [x[1], y[1]]])
    assert seen[0].tolist() == [[True] * 4, [False] * 4, [False, True] * 2]

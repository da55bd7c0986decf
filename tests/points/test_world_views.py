"""Views of the world by hand, and what must not change in them."""

import jax
import jax.numpy as jnp
import numpy as np

from wsol_jax.models.box_codes import corners_of
from wsol_jax.points.views import SCALE, TURN, drawn_view, moved, moved_boxes, undone

VIEWS = jax.jit(jax.vmap(drawn_view))(jax.random.split(jax.random.key(0), 50))
# A quarter turn to the left, twice as large, 1 m ahead.
QUARTER = jnp.array([[0.0, -2, 0, 1], [2, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
BOX = jnp.array([[3.0, 1, 0.5, 4, 2, 1, 0.3]])


def test_a_box_in_a_view_by_hand():
    expected = [[-1, 6, 1, 8, 4, 2, 0.3 + np.pi / 2]]
    np.testing.assert_allclose(moved_boxes(BOX, QUARTER), expected, atol=1e-5)


def test_a_mirrored_box_looks_to_the_other_side():
    mirror = jnp.diag(jnp.array([1.0, -1, 1, 1]))
    np.testing.assert_allclose(moved_boxes(BOX, mirror), [[3, -1, 0.5, 4, 2, 1, -0.3]], atol=1e-5)


def test_corners_move_with_their_box():
    def apart(view):
        there = corners_of(moved_boxes(BOX, view))[0]
        here = corners_of(BOX)[0] @ view[:3, :3].T + view[:3, 3]
        return jnp.abs(there[:, None] - here).sum(-1).min(1).max()

    assert jax.jit(jax.vmap(apart))(VIEWS).max() < 1e-4


def test_views_are_as_published():
    scales = np.linalg.norm(VIEWS[:, :3, 2], axis=1)
    assert (abs(scales - 1) <= SCALE).all() and scales.std() > 0.05
    angles = np.arctan2(VIEWS[:, 1, 0], VIEWS[:, 0, 0])
    assert (abs(angles) <= TURN).all() and angles.std() > 0.1
    mirrored = np.linalg.det(np.asarray(VIEWS[:, :3, :3])) < 0
    assert 10 < mirrored.sum() < 40


def test_a_view_can_be_undone():
    found = jax.jit(jax.vmap(lambda v: undone(v) @ v))(VIEWS)
    np.testing.assert_allclose(found, np.broadcast_to(np.eye(4), (50, 4, 4)), atol=1e-5)


def test_cameras_see_the_same_in_every_view():
    rng = np.random.default_rng(0)
    frame = {
        'points': rng.normal(size=(2, 5, 5)),
        'boxes': np.tile(BOX, (2, 1, 1)),
        'annotated': rng.normal(size=(2, 1, 3)),
        'projections': rng.normal(size=(2, 1, 3, 4)),
        'labelled': np.array([True, False]),
    }
    frame = jax.tree.map(jnp.asarray, frame)
    found = jax.jit(moved)(frame, VIEWS[:2])

    def pixels(targets):
        points = jnp.pad(targets['points'][..., :3], ((0, 0), (0, 0), (0, 1)), constant_values=1)
        return jnp.einsum('bkij,bpj->bkpi', targets['projections'], points)

    np.testing.assert_allclose(pixels(found), pixels(frame), atol=1e-4)
    np.testing.assert_array_equal(found['points'][..., 3:], frame['points'][..., 3:])
    assert found['labelled'].tolist() == [True, False]

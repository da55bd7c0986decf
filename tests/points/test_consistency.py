"""The loss between two views against a loop; what gets a gradient of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsol_jax.models.pillars import Grid
from wsol_jax.points.consistency import consistency_loss, per_object, warped_back

GRID = Grid.of((-3, -2, -1, 3, 2, 1), 1.0)
RNG = np.random.default_rng(0)
STRONG, WEAK = (RNG.normal(size=(2, 4, 6, 3)).astype(np.float32) for _ in range(2))
WEIGHTS = RNG.uniform(size=(2, 4, 6)).astype(np.float32)
LOSS = jax.jit(consistency_loss)
WARP = jax.jit(warped_back, static_argnums=2)


def view_of(scale=1.0, angle=0.0, mirror=1.0, shift=(0.0, 0.0)):
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    rows = [[cosine, -sine * mirror, 0, shift[0]], [sine, cosine * mirror, 0, shift[1]]]
    return np.array([*rows, [0, 0, scale, 0], [0, 0, 0, 1]], np.float32)


def test_the_loss_is_that_of_a_plain_loop():
    expected = np.zeros(2)
    for b, i, j in np.ndindex(2, 4, 6):
        f, g = (x[b, i, j] / np.linalg.norm(x[b, i, j]) for x in (STRONG, WEAK))
        expected[b] += WEIGHTS[b, i, j] * ((f - g) ** 2).sum()
    np.testing.assert_allclose(LOSS(STRONG, WEAK, WEIGHTS), expected, rtol=1e-5)


def test_views_that_are_the_same_have_no_loss():
    views = np.stack([view_of()] * 2)
    found, seen = WARP(STRONG, views, GRID)
    np.testing.assert_allclose(found, STRONG, atol=1e-6)
    assert seen.all()
    assert (LOSS(found, STRONG, WEIGHTS) < 1e-10).all()


def test_the_weak_view_gets_no_gradient():
    loss = lambda *features: consistency_loss(*features, WEIGHTS).sum()  # noqa: E731
    strong, weak = jax.jit(jax.grad(loss, (0, 1)))(STRONG, WEAK)
    assert (abs(strong) > 0).any() and (weak == 0).all()


def test_warping_undoes_a_view():
    # Mirrored: row i is row 3 - i. Half a turn: both axes change their ends.
    views = np.stack([view_of(mirror=-1), view_of(angle=np.pi)])
    found, seen = WARP(STRONG, views, GRID)
    np.testing.assert_allclose(found[0], STRONG[0, ::-1], atol=1e-4)
    inside = np.asarray(seen[1])
    turned = STRONG[1, ::-1, ::-1]
    np.testing.assert_allclose(np.asarray(found[1])[inside], turned[inside], atol=1e-4)
    assert inside[1:3, 1:5].all()


def test_what_a_view_does_not_see_is_known():
    views = np.stack([view_of(shift=(2.0, 0.0)), view_of(scale=2.0)])
    found, seen = WARP(STRONG, views, GRID)
    assert seen[0].tolist() == [[True] * 4 + [False] * 2] * 4
    np.testing.assert_allclose(found[0, :, :4], STRONG[0, :, 2:], atol=1e-5)
    assert seen[1].tolist() == [
        [False] * 6,
        *[[False, False, True, True, False, False]] * 2,
        [False] * 6,
    ]


def test_it_is_divided_by_all_objects():
    assert float(per_object(jnp.array(6.0), jnp.array(3))) == pytest.approx(2, rel=1e-4)
    assert float(per_object(jnp.array(0.0), jnp.array(0))) == 0

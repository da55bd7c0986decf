"""Frames seen from elsewhere: mirrored, turned, scaled and moved, with all that lies in them."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

TURN, SCALE, SHIFT = 0.3925, 0.15, 0.5  # radians and, of sigma, metres: as published


def drawn_view(key: jax.Array, mirror: bool = True) -> jax.Array:
    """A random change of the world [4,4]: p -> scale * turn * mirror * p + shift.

    Args:
        key: decides everything.
        mirror: y changes its sign in half of the views.
    """
    keys = jax.random.split(key, 4)
    angle = jax.random.uniform(keys[0], (), minval=-TURN, maxval=TURN)
    scale = jax.random.uniform(keys[1], (), minval=1 - SCALE, maxval=1 + SCALE)
    shift = SHIFT * jax.random.normal(keys[2], (3,))
    side = jnp.where(mirror & jax.random.bernoulli(keys[3]), -1.0, 1.0)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    turn = jnp.array([[cosine, -sine * side, 0], [sine, cosine * side, 0], [0, 0, 1]])
    top = jnp.concatenate([scale * turn, shift[:, None]], axis=1)
    return jnp.concatenate([top, jnp.array([[0.0, 0, 0, 1]])])


def undone(view: jax.Array) -> jax.Array:
    """The inverse of a view [4,4], which turns or mirrors, scales alike along all axes, moves."""
    scale = jnp.sum(view[:3, 2] ** 2)
    back = view[:3, :3].T / scale
    top = jnp.concatenate([back, -(back @ view[:3, 3])[:, None]], axis=1)
    return jnp.concatenate([top, view[3:]])


def moved_places(places: jax.Array, view: jax.Array) -> jax.Array:
    """Places [...,3] seen in a view [4,4]."""
    return places @ view[:3, :3].T + view[:3, 3]


def moved_boxes(boxes: jax.Array, view: jax.Array) -> jax.Array:
    """Boxes [...,7] seen in a view [4,4]."""
    heading = jnp.stack([jnp.cos(boxes[..., 6]), jnp.sin(boxes[..., 6])], axis=-1)
    heading = heading @ view[:2, :2].T
    scale = jnp.linalg.norm(view[:3, 2])
    yaw = jnp.arctan2(heading[..., 1], heading[..., 0])[..., None]
    return jnp.concatenate(
        [moved_places(boxes[..., :3], view), boxes[..., 3:6] * scale, yaw], axis=-1
    )


def moved(targets: Mapping[str, jax.Array], views: jax.Array) -> dict[str, jax.Array]:
    """All of a batch in views of its frames; cameras stay where they are in the world.

    Args:
        targets: of `FrameTargets`, [B,...] each.
        views: [B,4,4].
    """

    def of_frame(frame: dict[str, jax.Array], view: jax.Array) -> dict[str, jax.Array]:
        points = frame['points']
        return {
            'points': jnp.concatenate([moved_places(points[:, :3], view), points[:, 3:]], axis=-1),
            'boxes': moved_boxes(frame['boxes'], view),
            'annotated': moved_places(frame['annotated'], view),
            'projections': frame['projections'] @ undone(view),
        }

    names = ('points', 'boxes', 'annotated', 'projections')
    changed = jax.vmap(of_frame)({name: targets[name] for name in names}, views)
    return {**targets, **changed}

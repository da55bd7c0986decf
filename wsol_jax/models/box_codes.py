"""3D boxes as a network learns them, and places on them.

Boxes are rows [x, y, z, l, w, h, yaw] in metres in the frame of the LiDAR: z of the centre, l along
the heading, yaw in radians from +x to +y.
"""

import jax
import jax.numpy as jnp

SIZE = 8  # of a code
_SMALLEST = 1e-2  # metres: boxes of padding have sizes of zero
_LARGEST = 5.0  # of a logarithm of a size: 148 m


def codes_of(boxes: jax.Array) -> jax.Array:
    """What is regressed of a box: [...,7] -> [...,8].

    Returns:
        x, y, z in metres, the logarithms of l, w, h, the sine and cosine of the yaw.
    """
    sizes = jnp.log(jnp.maximum(boxes[..., 3:6], _SMALLEST))
    yaw = boxes[..., 6:]
    return jnp.concatenate([boxes[..., :3], sizes, jnp.sin(yaw), jnp.cos(yaw)], axis=-1)


def boxes_of(codes: jax.Array) -> jax.Array:
    """The inverse of `codes_of`, with finite sizes: [...,8] -> [...,7]."""
    sizes = jnp.exp(jnp.clip(codes[..., 3:6], -_LARGEST, _LARGEST))
    yaw = jnp.arctan2(codes[..., 6:7], codes[..., 7:])
    return jnp.concatenate([codes[..., :3], sizes, yaw], axis=-1)


def corners_of(boxes: jax.Array) -> jax.Array:
    """The corners of boxes: [...,7] -> [...,8,3] in metres; first the four below."""
    ends = jnp.array([-0.5, 0.5])
    z, x, y = (axis.ravel() for axis in jnp.meshgrid(ends, ends, ends, indexing='ij'))
    heights = boxes[..., 2:3] + boxes[..., 5:6] * z
    return jnp.concatenate([on_box(boxes, x, y), heights[..., None]], axis=-1)


def footprint_grid(boxes: jax.Array, side: int) -> jax.Array:
    """The centres of side x side equal cells of each box, seen from above.

    Args:
        boxes: [...,7].
        side: cells along the length as along the width.

    Returns:
        [...,side^2,2], x and y in metres.
    """
    along = cell_centres(side) - 0.5
    x, y = (axis.ravel() for axis in jnp.meshgrid(along, along, indexing='ij'))
    return on_box(boxes, x, y)


def cell_centres(side: int) -> jax.Array:
    """The centres of `side` equal cells between 0 and 1."""
    return (jnp.arange(side) + 0.5) / side


def on_box(boxes: jax.Array, along: jax.Array, across: jax.Array) -> jax.Array:
    """Places on boxes [...,7], as shares of length and width from the centre: [...,K,2] in metres.

    Args:
        boxes: [...,7].
        along: [K], from -1/2 to 1/2.
        across: [K], likewise, to the left.
    """
    sine, cosine = jnp.sin(boxes[..., 6:]), jnp.cos(boxes[..., 6:])
    forward, left = boxes[..., 3:4] * along, boxes[..., 4:5] * across
    x = boxes[..., 0:1] + cosine * forward - sine * left
    y = boxes[..., 1:2] + sine * forward + cosine * left
    return jnp.stack([x, y], axis=-1)

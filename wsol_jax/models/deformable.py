"""Deformable convolution (Dai et al., ICCV 2017, arXiv 1703.06211)."""

import jax
import jax.numpy as jnp
from flax import nnx

from wsol_jax.models.layers import conv, he_normal


class DeformableConv(nnx.Module):
    """A convolution, a 3x3 convolution beside which tells where it samples; without a bias.

    Offsets start as zeros: it starts as the plain convolution. Modulation (v2) is left out.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        side: int = 3,
        *,
        depthwise: bool = False,
        kernel_init: nnx.Initializer = he_normal,
        rngs: nnx.Rngs,
    ):
        zeros = nnx.initializers.zeros_init()
        self.offsets = conv(in_features, 2 * side**2, 3, kernel_init=zeros, rngs=rngs)
        shape = (side, side, 1 if depthwise else in_features, features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B,H,W,in_features] -> [B,H,W,features]."""
        return deformable_conv(x, self.offsets(x), self.kernel[...])


def deformable_conv(x: jax.Array, offsets: jax.Array, kernel: jax.Array) -> jax.Array:
    """y(p) = sum_n W(p_n) x(p + p_n + offset_n(p)) at stride 1; without offsets padded as 'SAME'.

    Between positions x is bilinear, outside of the image it is zero. Where a sample lies on a
    position, its gradient is the slope towards the next one, downwards and to the right.

    Args:
        x: [B,H,W,K].
        offsets: [B,H,W,2N], in positions: down and right for each of the N places of the kernel,
            row by row.
        kernel: [h,w,K,K'], or [h,w,1,K] for one of each channel alone (depthwise).

    Returns:
        [B,H,W,K'] of x's type.

    Raises:
        ValueError: the offsets are not two a place of the kernel, or not of x's positions.
    """
    height, width = kernel.shape[:2]
    expected = (*x.shape[:3], 2 * height * width)
    if offsets.shape != expected:
        raise ValueError(
            f'offsets of a {height}x{width} kernel must be {list(expected)}, '
            f'got {list(offsets.shape)}'
        )
    weights = kernel.reshape(-1, *kernel.shape[2:]).astype(x.dtype)
    depthwise = kernel.shape[2] == 1

    # One place of the kernel after the other, sampled again for the gradient: all of them, with
    # four corners each, would be 36 times x for a 3x3 kernel.
    @jax.checkpoint
    def add(total: jax.Array, place: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        rows, columns, weight = place
        seen = bilinear(x, rows, columns)
        return total + (seen * weight[0] if depthwise else seen @ weight), None

    nothing = jnp.zeros((*x.shape[:3], kernel.shape[3]), x.dtype)
    places = _places(offsets.astype(jnp.float32), height, width)
    return jax.lax.scan(add, nothing, (*places, weights))[0]


def _places(offsets: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Where each of N places of a kernel samples: rows and columns, each [N,B,H,W]."""
    moved = jnp.moveaxis(offsets.reshape(*offsets.shape[:3], -1, 2), (3, 4), (1, 0))
    grid = jnp.mgrid[: offsets.shape[1], : offsets.shape[2]][:, None, None]
    taps = jnp.mgrid[:height, :width].reshape(2, -1, 1, 1, 1)
    centre = jnp.array([(height - 1) // 2, (width - 1) // 2]).reshape(2, 1, 1, 1, 1)
    rows, columns = grid + taps - centre + moved
    return rows, columns


def bilinear(x: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """x [B,H,W,K] at places [B,...] in its positions: [B,...,K]; zero outside."""
    size = (x.shape[1] + 2, x.shape[2] + 2)
    flat = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(len(x), -1, x.shape[3])
    low = [jnp.floor(places) for places in (rows, columns)]
    share = [(p - f).astype(x.dtype) for p, f in zip((rows, columns), low, strict=True)]

    def corner(down: int, right: int) -> jax.Array:
        # A frame of zeros stands for all that is outside.
        i, j = (
            jnp.clip(f + step, -1, side - 2).astype(jnp.int32) + 1
            for f, step, side in zip(low, (down, right), size, strict=True)
        )
        found = jax.vmap(lambda values, places: values[places])(flat, i * size[1] + j)
        weight = [s if step else 1 - s for s, step in zip(share, (down, right), strict=True)]
        return found * (weight[0] * weight[1])[..., None]

    return corner(0, 0) + corner(0, 1) + corner(1, 0) + corner(1, 1)

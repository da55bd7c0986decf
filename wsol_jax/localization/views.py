"""Views of a batch: scaled, mirrored, brighter, noisy. Maps are averaged over them."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

GAINS = (0.9, 1.0, 1.1)  # of `aug_smooth`, as in the library pytorch-grad-cam


@dataclass(frozen=True)
class View:
    """One way to look at an image.

    Attributes:
        scale: factor on its sides.
        mirror: left and right changed over.
        gain: factor on the preprocessed input.
        sample: number of the noise added to it; 0 for none.
    """

    scale: float = 1.0
    mirror: jax.Array | bool = False
    gain: jax.Array | float = 1.0
    sample: jax.Array | int = 0


AS_IT_IS = View()
_VIEWS = 0x76696577  # keeps what views draw apart from what methods draw


def image_keys(images: jax.Array, seed: int) -> jax.Array:
    """Random keys [B] that depend on each image alone, not on its place in the batch.

    Args:
        images: [B,H,W,3] as they are given, uint8 or float: what is computed from them differs in
            its last bits between batches and devices, and every bit counts here.
        seed: another one gives other keys.
    """
    if jnp.issubdtype(images.dtype, jnp.floating):
        bits = jax.lax.bitcast_convert_type(images.astype(jnp.float32), jnp.uint32)
        # Coarse values end in zero bits, which would leave few different sums.
        bits = bits ^ (bits >> 16)
    else:
        bits = images.astype(jnp.uint32)
    factors = jax.random.bits(jax.random.key(0), bits.shape[1:]) | 1  # odd, one for each pixel
    hashes = jnp.sum(bits * factors, axis=(1, 2, 3), dtype=jnp.uint32)
    return jax.vmap(lambda h: jax.random.fold_in(jax.random.key(seed), h))(hashes)


def other_keys(keys: jax.Array, number: jax.Array | int) -> jax.Array:
    """Keys [B] of the same images for another draw."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def noisy(inputs: jax.Array, sigma: float, keys: jax.Array) -> jax.Array:
    """Adds Gaussian noise.

    Args:
        inputs: [B,H,W,3], preprocessed.
        sigma: its standard deviation, in units of that of each image: about 1 in inputs that are
            normalized by mean and standard deviation.
        keys: [B], of the noise of each image.
    """
    noise = jax.vmap(lambda key: jax.random.normal(key, inputs.shape[1:]))(keys)
    return inputs + sigma * jnp.std(inputs, axis=(1, 2, 3), keepdims=True) * noise


def mirrored(x: jax.Array, mirror: jax.Array | bool, *, axis: int) -> jax.Array:
    """Turned around along one axis, or not."""
    if isinstance(mirror, bool):
        return jnp.flip(x, axis) if mirror else x
    return jnp.where(mirror, jnp.flip(x, axis), x)


def seen(inputs: jax.Array, view: View, sigma: float, keys: jax.Array) -> jax.Array:
    """Inputs [B,H,W,3] at the scale of a view -> what it shows of them; noise as in `noisy`.

    All but the scale may be traced values.
    """
    keys = other_keys(keys, _VIEWS)
    inputs = mirrored(inputs, view.mirror, axis=2)
    if isinstance(view.sample, jax.Array):
        drawn = noisy(inputs, sigma, other_keys(keys, view.sample))
        inputs = jnp.where(view.sample > 0, drawn, inputs)
    elif view.sample:
        inputs = noisy(inputs, sigma, other_keys(keys, view.sample))
    return inputs * view.gain


def scaled(inputs: jax.Array, scale: float) -> jax.Array:
    """Inputs [B,H,W,3] resized by a factor, bilinearly.

    Raises:
        ValueError: nothing would be left of them.
    """
    height, width = (round(side * scale) for side in inputs.shape[1:3])
    if scale == 1:
        return inputs
    if not (height and width):
        raise ValueError(f'scale {scale:g} leaves {width}x{height} pixels of the input')
    return jax.image.resize(inputs, (*inputs.shape[:1], height, width, inputs.shape[3]), 'linear')

"""Deformable convolution against a plain loop, its gradients, and torchvision's operator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from wsol_jax.models.deformable import DeformableConv, deformable_conv
from wsol_jax.models.layers import depthwise_conv

RNG = np.random.default_rng(0)
SHAPE = (2, 4, 5, 3)


JITTED = jax.jit(deformable_conv)


def arrays(size, features=2, spread=1.5):
    """x, offsets that are far from where bilinear interpolation has its kinks, a kernel."""
    x = RNG.normal(size=SHAPE)
    whole = np.rint(RNG.normal(size=(*SHAPE[:3], 2 * size[0] * size[1]), scale=spread))
    offsets = whole + RNG.uniform(0.1, 0.9, whole.shape)
    kernel = RNG.normal(size=(*size, SHAPE[3], features))
    return [a.astype(np.float32) for a in (x, offsets, kernel)]


def value_at(image, y, x):
    """Of an image [H,W,K] between positions, with zeros outside."""
    found = np.zeros(image.shape[-1])
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            found += max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j)) * image[i, j]
    return found


def by_loop(x, offsets, kernel):
    height, width = kernel.shape[:2]
    found = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for b, i, j in np.ndindex(*x.shape[:3]):
        for m, n in np.ndindex(height, width):
            down, right = offsets[b, i, j].reshape(height, width, 2)[m, n]
            y, z = i + m - (height - 1) // 2 + down, j + n - (width - 1) // 2 + right
            found[b, i, j] += value_at(x[b], y, z) @ kernel[m, n]
    return found


@pytest.mark.parametrize('size', [(3, 3), (2, 1)])
def test_it_is_that_of_a_plain_loop(size):
    x, offsets, kernel = arrays(size)
    found = JITTED(x, offsets, kernel)
    np.testing.assert_allclose(found, by_loop(x, offsets, kernel), rtol=1e-4, atol=1e-5)
    one = JITTED(x[1:], offsets[1:], kernel)
    np.testing.assert_allclose(found[1:], one, rtol=1e-5, atol=1e-6)


def test_gradients_are_finite_differences():
    x, offsets, kernel = map(jnp.asarray, arrays((3, 3)))
    check_grads(JITTED, (x, offsets, kernel), 1, ['rev'], atol=2e-2, rtol=2e-2)


def test_the_gradient_of_an_offset_by_hand():
    """One tap on a ramp 3 y + 2 x: it moves by 3 down and by 2 to the right, wherever it lies."""
    y, x = np.mgrid[:5, :6].astype(np.float32)
    ramp, kernel = (3 * y + 2 * x)[None, ..., None], np.ones((1, 1, 1, 1), np.float32)

    @jax.jit
    @jax.grad
    def slopes_at(offsets):
        return deformable_conv(ramp, offsets, kernel)[0, 1:-1, 1:-1].sum()

    for start in (0.0, 0.25):
        slopes = slopes_at(jnp.full((1, 5, 6, 2), start))[0, 1:-1, 1:-1]
        np.testing.assert_allclose(slopes, np.broadcast_to([3, 2], slopes.shape), rtol=1e-5)


def test_far_outside_nothing_is_seen_and_nothing_pulls_back():
    x, offsets, kernel = arrays((3, 3))
    value, pull = jax.vjp(JITTED, x, offsets + 1e6, kernel)
    assert not np.any(value) and not any(np.any(g) for g in pull(jnp.ones_like(value)))


def test_it_starts_as_the_plain_convolution():
    layer = DeformableConv(3, 4, rngs=nnx.Rngs(0))
    x = jnp.asarray(RNG.normal(size=SHAPE), jnp.float32)
    expected = jax.lax.conv(
        x.transpose(0, 3, 1, 2), layer.kernel[...].transpose(3, 2, 0, 1), (1, 1), 'SAME'
    )
    found = nnx.jit(DeformableConv.__call__)(layer, x)
    np.testing.assert_allclose(found, expected.transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-5)
    half = jax.eval_shape(layer, x.astype(jnp.bfloat16))
    assert half.shape == found.shape and half.dtype == jnp.bfloat16
    alone = DeformableConv(3, 3, depthwise=True, rngs=nnx.Rngs(1))
    expected = depthwise_conv(x, alone.kernel[...], 1)
    found = nnx.jit(DeformableConv.__call__)(alone, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_offsets_learn_from_zeros_on():
    layer = DeformableConv(3, 4, rngs=nnx.Rngs(0))
    x = jnp.asarray(RNG.normal(size=SHAPE), jnp.float32)
    slopes = nnx.jit(nnx.grad(lambda layer: jnp.square(layer(x)).sum()))(layer)
    assert np.abs(slopes['offsets']['kernel'][...]).min() > 0
    assert np.abs(slopes['offsets']['bias'][...]).min() > 0


def test_offsets_of_another_kernel_are_refused():
    x, offsets, kernel = arrays((3, 3))
    with pytest.raises(ValueError, match=r'3x3 kernel must be \[2, 4, 5, 18\], got \[2, 4, 5, 8\]'):
        deformable_conv(x, offsets[..., :8], kernel)


def test_it_is_torchvisions():
    ops = pytest.importorskip('torchvision.ops')
    torch = pytest.importorskip('torch')
    x, offsets, kernel = arrays((3, 3))

    def chw(array):
        return torch.tensor(array.transpose(0, 3, 1, 2), requires_grad=True)

    given = chw(x), chw(offsets), torch.tensor(kernel.transpose(3, 2, 0, 1), requires_grad=True)
    expected = ops.deform_conv2d(*given, padding=1)
    value, pull = jax.vjp(JITTED, x, offsets, kernel)
    np.testing.assert_allclose(value, expected.detach().permute(0, 2, 3, 1), rtol=1e-4, atol=1e-5)
    expected.square().sum().backward()
    for found, other in zip(pull(2 * value)[:2], given, strict=False):
        np.testing.assert_allclose(found, other.grad.permute(0, 2, 3, 1), rtol=1e-3, atol=1e-4)

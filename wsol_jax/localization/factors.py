"""What an activation tensor says by itself: leading components, factorizations, outliers.

x [B,h,w,K] are activations, or products of gradient and activation; every image is a matrix of
hw positions x K channels and is treated alone. The maps are raw: no ReLU, normalization or resize.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Pair = tuple[jax.Array, jax.Array]
# Eigenvectors by subspace iteration: the leading ones converge as those behind the block decay.
_BLOCK, _DEGREE, _CYCLES = 8, 10, 8
# Above this, the kernel matrices of a whole batch might not fit: one image at a time.
_MOST_POSITIONS_AT_ONCE = 1024
_TANH_1 = 0.7615941559557649

# TF32 or bfloat16 products would lose the vectors of close eigenvalues.
_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def first_component(x: jax.Array, *, centred: bool = False) -> jax.Array:
    """Projects every position on the first right singular vector of its image.

    Eigen-CAM: Muhammad & Yeasin, "Eigen-CAM: Class Activation Map using Principal Components",
    IJCNN 2020. The sign of a singular vector is arbitrary. Uncentred, the sum of the map is made
    non-negative, which makes the map of non-negative x non-negative (Perron-Frobenius).
    Centred, the most extreme value is made positive.

    Args:
        x: [B,h,w,K].
        centred: subtract each channel's mean over the positions first: principal components, as
            pytorch-grad-cam does.

    Returns:
        [B,h,w], in the units of x; zeros where x is zero.
    """
    return jax.vmap(partial(_first_component, centred=centred))(_positions(x)).reshape(x.shape[:-1])


def principal_component(x: jax.Array) -> jax.Array:
    """`first_component`, centred."""
    return first_component(x, centred=True)


def kernel_component(x: jax.Array) -> jax.Array:
    """First component of kernel PCA with the kernel tanh(<a, b> / K + 1) of centred positions.

    KPCA-CAM: Karmani et al., "KPCA-CAM: Visual Explainability of Deep Computer Vision Models
    Using Kernel PCA", 2024, with the kernel of pytorch-grad-cam. The most extreme value is made
    positive.

    Args:
        x: [B,h,w,K]. The matrices of hw x hw of a whole batch are held at once up to
            32 x 32 positions, those of one image above.

    Returns:
        [B,h,w], sqrt(largest eigenvalue) x its unit eigenvector of the double-centred kernel
        matrix; zeros where x is constant over the positions.
    """
    matrices = _positions(x)
    few = matrices.shape[1] <= _MOST_POSITIONS_AT_ONCE
    maps = (
        jax.vmap(_kernel_component)(matrices) if few else jax.lax.map(_kernel_component, matrices)
    )
    return maps.reshape(x.shape[:-1])


def nmf(x: jax.Array, components: int, steps: int = 100) -> Pair:
    """Factorizes relu(x) into non-negative maps and factors, relu(x) ~ maps . factors.

    Deep Feature Factorization: Collins et al., ECCV 2018, each image alone. Multiplicative updates
    of Lee & Seung, "Algorithms for Non-negative Matrix Factorization", NIPS 2000, start at the
    positions that successive projection (Araujo et al., 2001) picks.

    Args:
        x: [B,h,w,K].
        components: how many, R; some remain zero or coincide where the rank of x is smaller.
        steps: updates of both sides; the squared error grows at none of them.

    Returns:
        maps [B,h,w,R] in the units of x, factors [B,R,K] of unit length (or zero), in the order in
        which their positions were picked.

    Raises:
        ValueError: components is not positive.
    """
    if components < 1:
        raise ValueError(f'nmf needs at least one component, got {components}')
    one = partial(_nmf, components=components, steps=steps)
    maps, factors = jax.vmap(one)(_positions(jax.nn.relu(x)))
    return maps.reshape(*x.shape[:-1], components), factors


def exceedance_weights(x: jax.Array) -> jax.Array:
    """Fraction of the positions where a channel exceeds its mean by more than two deviations.

    FEM: Fuad et al., "Features Understanding in 3D CNNs for Actions Recognition in Video",
    IPTA 2020; the deviation is that of the population. The map of FEM is sum_k w_k x_k.

    Args:
        x: [B,h,w,K].

    Returns:
        [B,K] in [0, 1/5) (Cantelli's inequality); zero for constant channels.
    """
    matrices = _positions(x)
    above = _centred(matrices)
    deviation = jnp.sqrt(jnp.mean(above**2, axis=1, keepdims=True))
    return jnp.mean(above > 2 * deviation, axis=1, dtype=matrices.dtype)


def _positions(x: jax.Array) -> jax.Array:
    """[B,h,w,K] -> [B,hw,K], in float32 at least."""
    batch, height, width, channels = x.shape
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return x.reshape(batch, height * width, channels).astype(dtype)


def _centred(matrix: jax.Array) -> jax.Array:
    """[...,hw,K] minus the means of the channels; exact zeros where a channel is constant."""
    shifted = matrix - matrix[..., :1, :]
    return shifted - jnp.mean(shifted, axis=-2, keepdims=True)


def _first_component(matrix: jax.Array, centred: bool) -> jax.Array:
    matrix = _centred(matrix) if centred else matrix
    # Gradients may be so small that their squares underflow.
    matrix, scale = _scaled(matrix)
    if matrix.shape[0] < matrix.shape[1]:
        left, _ = _top_eigenvector(_matmul(matrix, matrix.T), 0.0)
        right = _unit(_matmul(left, matrix))
    else:
        right, _ = _top_eigenvector(_matmul(matrix.T, matrix), 0.0)
    projection = _matmul(matrix, right) * scale
    flip = _extreme_is_negative(projection) if centred else jnp.sum(projection) < 0
    return jnp.where(flip, -projection, projection)


def _kernel_component(matrix: jax.Array) -> jax.Array:
    matrix = _centred(matrix)
    tanh = jnp.tanh(_matmul(matrix, matrix.T) / matrix.shape[1])
    # tanh(z + 1) - tanh(1), without the cancellation; centring removes the constant anyway.
    kernel = tanh * (1 - _TANH_1**2) / (1 + _TANH_1 * tanh)
    means = jnp.mean(kernel, axis=0)
    kernel, scale = _scaled(kernel - means[:, None] - means + jnp.mean(means))
    # This kernel has negative eigenvalues too.
    vector, value = _top_eigenvector(kernel, -jnp.linalg.norm(kernel))
    projection = jnp.sqrt(jnp.maximum(value * scale, 0)) * vector
    return jnp.where(_extreme_is_negative(projection), -projection, projection)


def _top_eigenvector(matrix: jax.Array, lowest: jax.Array | float) -> Pair:
    """Unit eigenvector [n] of the largest eigenvalue, and the eigenvalue, of a symmetric matrix.

    Chebyshev-filtered subspace iteration, Zhou & Saad, 2006: no solver of the size of the matrix,
    so that it runs alike on every platform, and close eigenvalues inside the block do no harm.

    Args:
        matrix: [n,n].
        lowest: no eigenvalue is smaller.
    """
    size = len(matrix), min(_BLOCK, len(matrix))
    start = jnp.asarray(np.random.default_rng(0).standard_normal(size), matrix.dtype)

    def cycle(_: jax.Array, ritz: Pair) -> Pair:
        values, vectors = ritz
        return _rayleigh_ritz(matrix, _chebyshev(matrix, values, vectors, lowest))

    values, vectors = jax.lax.fori_loop(0, _CYCLES, cycle, _rayleigh_ritz(matrix, start))
    return vectors[:, -1], values[-1]


def _rayleigh_ritz(matrix: jax.Array, basis: jax.Array) -> Pair:
    """Eigenvalues, ascending, and eigenvectors of a matrix seen from the span of a basis [n,p]."""
    basis = _one_by_one(lambda x: jnp.linalg.qr(x)[0], basis)
    values, rotation = _one_by_one(lambda x: tuple(jnp.linalg.eigh(x)), _projected(matrix, basis))
    return values, _matmul(basis, rotation)


def _projected(matrix: jax.Array, basis: jax.Array) -> jax.Array:
    return _matmul(basis.T, _matmul(matrix, basis))


def _one_by_one(function: Callable[[jax.Array], Any], x: jax.Array) -> Any:
    """A function of LAPACK, which takes the matrices of a batch one after another on a CPU.

    There it shares a batch out among the threads that it runs on itself, and waits for them: two
    such calls at once in a program wait for each other for ever where there are two threads.
    """
    alone = jax.custom_batching.sequential_vmap(function)
    return jax.lax.platform_dependent(x, cpu=alone, default=function)


def _chebyshev(
    matrix: jax.Array, values: jax.Array, vectors: jax.Array, lowest: jax.Array | float
) -> jax.Array:
    """Applies the Chebyshev polynomial that is small from `lowest` to the least of the values."""
    # A floor, or it would overflow where the block holds all the rank there is.
    width = jnp.maximum(values[0] - lowest, 0.1 * (values[-1] - lowest))
    centre, half = lowest + width / 2, jnp.where(width > 0, width / 2, 1)

    def shifted(v: jax.Array) -> jax.Array:
        return (_matmul(matrix, v) - centre * v) / half

    def raised(_: jax.Array, terms: Pair) -> Pair:
        previous, current = terms
        return current, 2 * shifted(current) - previous

    return jax.lax.fori_loop(1, _DEGREE, raised, (vectors, shifted(vectors)))[1]


def _nmf(matrix: jax.Array, components: int, steps: int) -> Pair:
    matrix, scale = _scaled(matrix)
    factors = _distinct_rows(matrix, components)
    # An exact zero would stay one for ever.
    factors = factors + 0.01 * jnp.mean(matrix, axis=0)
    maps = _matmul(matrix, factors.T)

    def step(_: jax.Array, both: Pair) -> Pair:
        maps, factors = both
        factors = _updated(
            factors, _matmul(maps.T, matrix), _matmul(_matmul(maps.T, maps), factors)
        )
        maps = _updated(
            maps, _matmul(matrix, factors.T), _matmul(maps, _matmul(factors, factors.T))
        )
        return maps, factors

    maps, factors = jax.lax.fori_loop(0, steps, step, (maps, factors))
    length = jnp.linalg.norm(factors, axis=1, keepdims=True)
    return maps * length.T * scale, factors / jnp.where(length > 0, length, 1)


def _distinct_rows(matrix: jax.Array, count: int) -> jax.Array:
    """Rows [count,K], each the longest after projecting out those before it."""

    def pick(rest: jax.Array, _: None) -> Pair:
        at = jnp.argmax(jnp.sum(rest**2, axis=1))
        direction = _unit(rest[at])
        rest = rest - jnp.outer(_matmul(rest, direction), direction)
        # Rounding must not choose once the rank is used up.
        return jnp.where(jnp.abs(rest) > 1e-4, rest, 0), matrix[at]

    return jax.lax.scan(pick, matrix, length=count)[1]


def _updated(factor: jax.Array, numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    positive = denominator > 0
    return jnp.where(positive, factor * numerator / jnp.where(positive, denominator, 1), factor)


def _scaled(matrix: jax.Array) -> Pair:
    """The matrix with its largest magnitude 1 (zeros stay zeros), and that magnitude."""
    peak = jnp.max(jnp.abs(matrix))
    return matrix / jnp.where(peak > 0, peak, 1), peak


def _unit(vector: jax.Array) -> jax.Array:
    length = jnp.linalg.norm(vector)
    return vector / jnp.where(length > 0, length, 1)


def _extreme_is_negative(values: jax.Array) -> jax.Array:
    return -jnp.min(values) > jnp.max(values)

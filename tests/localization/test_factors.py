"""Components, factorizations and outliers of activations, against NumPy in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsol_jax.localization import factors

first_component = jax.jit(factors.first_component, static_argnames='centred')
kernel_component = jax.jit(factors.kernel_component)
nmf = jax.jit(factors.nmf, static_argnames='components')
exceedance_weights = jax.jit(factors.exceedance_weights)

FUNCTIONS = {
    'first': first_component,
    'first_centred': partial(first_component, centred=True),
    'kernel': kernel_component,
    'nmf': partial(nmf, components=3),
    'exceedance': exceedance_weights,
}
# Fewer positions than channels; and so many that the kernel goes image by image.
SHAPES = [(5, 5, 32), (33, 33, 4)]


def relu_features(shape, seed=0):
    """Blobs at random places in sparse channels, noise and a threshold: zeros are frequent."""
    rng = np.random.default_rng(seed)
    height, width, channels = shape
    y, x = np.mgrid[:height, :width]
    places = rng.uniform(0, (height, width), (4, 2))
    blobs = [np.exp(-((y - a) ** 2 + (x - b) ** 2) / height) for a, b in places]
    mixed = np.einsum('rhw,rk->hwk', blobs, rng.gamma(0.4, size=(4, channels)))
    noise = 0.2 * rng.normal(size=shape)
    return np.maximum(2 * mixed + noise - 0.2, 0).astype(np.float32)


def with_singular_values(shape, values, seed=0):
    """Features whose centred matrix has these singular values, and channel means of 0."""
    rng = np.random.default_rng(seed)
    height, width, channels = shape
    left = rng.normal(size=(height * width, len(values)))
    left = np.linalg.qr(left - left.mean(0))[0]
    right = np.linalg.qr(rng.normal(size=(channels, len(values))))[0]
    return ((left * values) @ right.T).reshape(shape).astype(np.float32)


def fixed_sign(m, centred):
    negative = abs(m.min()) > abs(m.max()) if centred else m.sum() < 0
    return -m if negative else m


def first_by_svd(x, centred):
    """Map [h,w] of one image x [h,w,K]."""
    matrix = x.reshape(-1, x.shape[-1]).astype(np.float64)
    if centred:
        matrix = matrix - matrix.mean(0)
    _, _, right = np.linalg.svd(matrix, full_matrices=False)
    return fixed_sign(matrix @ right[0], centred).reshape(x.shape[:2])


def kernel_by_eigh(x):
    """Map [h,w] of one image, and the eigenvalues of the centred kernel matrix."""
    matrix = x.reshape(-1, x.shape[-1]).astype(np.float64)
    matrix = matrix - matrix.mean(0)
    kernel = np.tanh(matrix @ matrix.T / x.shape[-1] + 1.0)
    centring = np.eye(len(kernel)) - 1 / len(kernel)
    values, vectors = np.linalg.eigh(centring @ kernel @ centring)
    component = vectors[:, -1] * np.sqrt(values[-1])
    return fixed_sign(component, True).reshape(x.shape[:2]), values


def nmf_by_hand(x, components, steps):
    """The same start and the same updates, written as in the papers."""
    v = np.maximum(x, 0).reshape(-1, x.shape[-1]).astype(np.float64)
    picked, rest = [], v.copy()
    for _ in range(components):
        picked.append(int(np.argmax(np.linalg.norm(rest, axis=1))))
        span = v[picked]
        rest = v - v @ np.linalg.pinv(span) @ span
    h = v[picked] + 0.01 * v.mean(0)
    w = v @ h.T
    for _ in range(steps):
        h *= (w.T @ v) / (w.T @ w @ h)
        w *= (v @ h.T) / (w @ h @ h.T)
    length = np.linalg.norm(h, axis=1)
    return (w * length).reshape(*x.shape[:2], components), h / length[:, None]


def close(actual, expected, relative):
    assert np.asarray(actual).shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize('centred', [False, True])
@pytest.mark.parametrize('shape', [(14, 14, 64), (2, 3, 40), (9, 9, 3)])
def test_first_component_of_post_relu_features(shape, centred):
    x = np.stack([relu_features(shape, seed) for seed in range(2)])
    actual = first_component(x, centred=centred)
    for i in range(2):
        close(actual[i], first_by_svd(x[i], centred), 2e-5)


@pytest.mark.parametrize('shape', [(14, 14, 128), (10, 10, 300)])
def test_first_component_among_close_singular_values(shape):
    # Power iteration needs some thousand steps against the second, a hundred against the fifth.
    x = with_singular_values(shape, [1.0, 0.998, 0.997, 0.99, *np.linspace(0.97, 0.5, 60)])
    actual = first_component(x[None], centred=True)
    close(actual[0], first_by_svd(x, True), 5e-4)


def test_first_component_of_noise():
    x = np.random.default_rng(3).normal(size=(1, 20, 20, 150)).astype(np.float32)
    close(first_component(x)[0], first_by_svd(x[0], False), 1e-4)


def test_first_component_of_a_networks_features(resnet, images):
    _, endpoints = jax.jit(resnet.apply)(resnet.state, resnet.preprocessing(images))
    x = endpoints[resnet.last_layer]
    for centred in (False, True):
        actual = first_component(x, centred=centred)
        for i in range(len(images)):
            close(actual[i], first_by_svd(np.asarray(x[i]), centred), 1e-4)


def test_rank_one_gives_the_factor_itself():
    rng = np.random.default_rng(1)
    space, channels = rng.uniform(size=(5, 5)), rng.uniform(size=32)
    x = (space[..., None] * channels).astype(np.float32)[None]
    close(first_component(x)[0], space * np.linalg.norm(channels), 1e-6)
    varying = space - space.mean()
    expected = fixed_sign(varying, True) * np.linalg.norm(channels)
    close(first_component(x, centred=True)[0], expected, 1e-5)


def test_the_sign_does_not_depend_on_the_sign_of_the_features():
    x = relu_features(SHAPES[0])[None]
    positive = first_component(x)
    assert np.min(positive) > -1e-6 * np.max(positive)
    close(first_component(-x), np.asarray(positive), 1e-5)
    for centred in (partial(first_component, centred=True), kernel_component):
        # One position far out on either side: the sum of a centred map is zero and says nothing.
        for side in (-1, 1):
            outlier = x.copy()
            outlier[0, 3, 4] += side * 5
            m = np.asarray(centred(outlier)[0])
            assert m[3, 4] == np.abs(m).max()


@pytest.mark.parametrize('centred', [False, True])
def test_first_component_scales_with_features_of_any_size(centred):
    x = relu_features(SHAPES[0])[None]
    expected = np.asarray(first_component(x, centred=centred))
    for scale in (2.0**-80, 2.0**60):
        actual = first_component(np.float32(scale) * x, centred=centred)
        close(np.asarray(actual) / scale, expected, 1e-5)


@pytest.mark.parametrize('amplitude', [1e-3, 1.0, 30.0])
@pytest.mark.parametrize('shape', [(14, 14, 32), (8, 9, 200), (2, 3, 5)])
def test_kernel_component(shape, amplitude):
    x = np.stack([np.float32(amplitude) * relu_features(shape, seed) for seed in range(2)])
    actual = kernel_component(x)
    for i in range(2):
        close(actual[i], kernel_by_eigh(x[i])[0], 5e-5)


def test_kernel_component_behind_many_larger_negative_eigenvalues():
    # Positions on circles in planes of their own, all others zero: the mean of a circle's kernel
    # is negative (tanh saturates at -1 - tanh 1 and 1 - tanh 1) and outdoes its two waves.
    x = np.zeros((16, 32, 24), np.float32)
    for i in range(12):
        angles = np.linspace(0, 2 * np.pi, 15 if i == 0 else 14, endpoint=False)
        x[i, : len(angles), 2 * i] = 20 * np.cos(angles)
        x[i, : len(angles), 2 * i + 1] = (18 if i == 0 else 20) * np.sin(angles)
    expected, values = kernel_by_eigh(x)
    assert values[-2] < 0.99 * values[-1]
    assert (values < -values[-1]).sum() > 8
    close(kernel_component(x[None])[0], expected, 1e-4)


def test_kernel_component_of_many_positions_one_image_at_a_time():
    x = relu_features(SHAPES[1])
    close(kernel_component(x[None])[0], kernel_by_eigh(x)[0], 5e-5)


def test_kernel_component_of_a_large_batch_fits():
    batch = jax.ShapeDtypeStruct((32, 40, 40, 8), jnp.float32)
    memory = kernel_component.lower(batch).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 8 * 1600 * 1600 * 4


@pytest.mark.parametrize('components', [1, 3])
def test_nmf_takes_the_steps_of_lee_and_seung(components):
    x = relu_features((8, 7, 12))
    for steps in (1, 2, 25):
        maps, rows = nmf(x[None], components, steps=steps)
        expected_maps, expected_rows = nmf_by_hand(x, components, steps)
        close(maps[0], expected_maps, 1e-4)
        close(rows[0], expected_rows, 1e-4)


def test_nmf_error_never_grows():
    x = np.stack([relu_features((10, 9, 40), seed) for seed in range(2)])
    errors = []
    for steps in range(60):
        maps, rows = (np.asarray(a, np.float64) for a in nmf(x, 4, steps=steps))
        assert maps.min() >= 0
        assert rows.min() >= 0
        errors.append(((x - np.einsum('bhwr,brk->bhwk', maps, rows)) ** 2).sum((1, 2, 3)))
    errors = np.array(errors)
    assert (errors[1:] <= errors[:-1] * (1 + 1e-6)).all()
    assert (errors[-1] < 0.8 * errors[1]).all()


def test_nmf_recovers_parts_that_each_own_a_position():
    rng = np.random.default_rng(2)
    rows = rng.uniform(size=(3, 10)) * (rng.uniform(size=(3, 10)) > 0.4)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    maps = rng.uniform(size=(6, 6, 3))
    maps[0, :3] = np.diag([5.0, 4.0, 3.0])
    found_maps, found_rows = nmf((maps @ rows).astype(np.float32)[None], 3, steps=2000)
    close(found_rows[0], rows, 1e-2)
    close(found_maps[0], maps, 1e-2)


def test_nmf_keeps_the_units_and_ignores_negative_values():
    x = relu_features((6, 5, 9))
    maps, rows = (np.asarray(a) for a in nmf(x[None], 2))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1, rtol=1e-5)
    for scale in (2.0**-80, 2.0**40):
        changed = np.float32(scale) * np.where(x > 0, x, -1)
        scaled_maps, same_rows = nmf(changed[None], 2)
        close(np.asarray(scaled_maps) / scale, maps, 1e-5)
        close(same_rows, rows, 1e-5)


def test_nmf_of_less_rank_than_components():
    rng = np.random.default_rng(1)
    x = (rng.uniform(size=(5, 4, 2)) @ rng.uniform(size=(2, 6))).astype(np.float32)
    maps, rows = nmf(x[None], 4)
    close(np.einsum('bhwr,brk->bhwk', maps, rows)[0], x, 1e-2)
    # Rounding, which may differ between batch sizes, has no say in the two to spare.
    close(rows[0, 2], np.asarray(rows[0, 3]), 1e-5)
    close(maps[0, ..., 2], np.asarray(maps[0, ..., 3]), 1e-5)


@pytest.mark.parametrize('name', ['first', 'kernel'])
def test_on_a_cpu_lapack_gets_one_matrix_at_a_time(name):
    """Two of its batches at once may wait for each other for ever: see `_one_by_one`."""
    program = jax.jit(FUNCTIONS[name]).lower(jnp.zeros((3, 5, 5, 12))).compile().as_text()
    calls = [line for line in program.splitlines() if 'custom_call_target="lapack_' in line]
    assert calls and not any('f32[3,' in line for line in calls)


def test_nmf_wants_a_component():
    with pytest.raises(ValueError, match='at least one component, got 0'):
        nmf(np.ones((1, 2, 2, 3), np.float32), 0)


def test_exceedance_counts_positions_beyond_two_deviations():
    x = np.random.default_rng(0).gamma(0.5, size=(2, 7, 6, 9)).astype(np.float32)
    actual = np.asarray(exceedance_weights(x))
    for i in range(2):
        for k in range(9):
            channel = x[i, :, :, k].astype(np.float64).ravel()
            count = sum(v > channel.mean() + 2 * channel.std() for v in channel)
            assert actual[i, k] == pytest.approx(count / 42)
    assert 0 < actual.max() < 0.2


def test_exceedance_by_hand():
    # One of n ones: mean 1/n, population deviation sqrt(n - 1)/n; n = 5 is exactly 2 deviations.
    x = np.zeros((1, 1, 6, 3), np.float32)
    x[0, 0, 3, 0] = 7.0
    x[0, 0, :2, 1] = 7.0
    x[..., 2] = 0.1
    np.testing.assert_allclose(exceedance_weights(x)[0], [1 / 6, 0, 0], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('name', FUNCTIONS)
@pytest.mark.parametrize('shape', SHAPES)
def test_an_image_does_not_see_its_batch_and_zeros_give_zeros(name, shape):
    x = np.stack([relu_features(shape, seed) for seed in range(2)] + [np.zeros(shape, np.float32)])
    together = jax.tree.leaves(FUNCTIONS[name](x))
    for i in range(3):
        for whole, single in zip(together, jax.tree.leaves(FUNCTIONS[name](x[[i]])), strict=True):
            close(whole[i], np.asarray(single)[0], 1e-5)
    assert not any(np.asarray(whole[2]).any() for whole in together)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'shape'), [*((name, SHAPES[0]) for name in FUNCTIONS), ('kernel', SHAPES[1])]
)
def test_exports_for_every_platform_and_batch_size(name, shape):
    (batch,) = jax.export.symbolic_shape('b')
    spec = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    function = jax.jit(FUNCTIONS[name])
    program = jax.export.export(function, platforms=('cpu', 'cuda', 'tpu'))(spec)
    assert set(program.platforms) == {'cpu', 'cuda', 'tpu'}
    x = np.stack([relu_features(shape, seed) for seed in range(3)])
    expected = jax.tree.leaves(FUNCTIONS[name](x))
    for actual, wanted in zip(jax.tree.leaves(program.call(x)), expected, strict=True):
        close(actual, np.asarray(wanted), 1e-5)

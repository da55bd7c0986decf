"""Maps from activations: against numpy.linalg, plain loops, made-up parts; what chance draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsol_jax.localization.activation import dff, eigen_cam, random_cam
from wsol_jax.localization.localize import localize
from wsol_jax.localization.methods import METHODS
from wsol_jax.models import Network, Preprocessing


def close(actual, expected, tolerance=1e-4):
    """Equal up to `tolerance` times the largest magnitude."""
    scale = np.abs(expected).max()
    assert scale > 0, 'nothing to compare'
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance * scale)


def activations(shape):
    rng = np.random.default_rng(6)
    return np.maximum(rng.normal(size=(2, *shape)) + 0.3, 0).astype(np.float32)


def map_of(method, s):
    return jax.jit(method.combine)(s)


@pytest.mark.parametrize('shape', [(5, 4, 6), (3, 3, 14)], ids=['tall', 'wide'])
def test_eigen_cam_projects_on_the_first_singular_vector(shape):
    s = activations(shape)
    actual = map_of(eigen_cam(), s)
    for i in range(2):
        matrix = s[i].reshape(-1, shape[-1]).astype(np.float64)
        expected = np.abs(matrix @ np.linalg.svd(matrix)[2][0]).reshape(shape[:2])
        close(actual[i], expected)
    assert actual.min() >= 0 and not eigen_cam().relu


def first_principal_component(matrix):
    """The most extreme value is positive."""
    matrix = matrix - matrix.mean(0)
    projection = matrix @ np.linalg.svd(matrix)[2][0]
    return projection * np.sign(projection[np.abs(projection).argmax()])


def test_centred_eigen_cam_is_the_first_principal_component():
    s = activations((5, 4, 6))
    actual = map_of(eigen_cam(centred=True), s)
    plain = map_of(eigen_cam(), s)
    for i in range(2):
        expected = first_principal_component(s[i].reshape(20, 6).astype(np.float64))
        close(actual[i], expected.reshape(5, 4))
        assert np.abs(np.asarray(plain[i]) - expected.reshape(5, 4)).max() > 0.1
    assert eigen_cam(centred=True).relu


def test_kpca_cam_is_the_first_component_of_the_kernel():
    s = 3 * activations((5, 4, 6))  # far enough for the kernel to bend
    actual = map_of(METHODS['kpca_cam'](), s)
    for i in range(2):
        matrix = s[i].reshape(20, 6).astype(np.float64)
        matrix = matrix - matrix.mean(0)
        centring = np.eye(20) - 1 / 20
        kernel = centring @ np.tanh(matrix @ matrix.T / 6 + 1) @ centring
        values, vectors = np.linalg.eigh(kernel)
        expected = np.sqrt(values[-1]) * vectors[:, -1]
        expected *= np.sign(expected[np.abs(expected).argmax()])
        close(actual[i], expected.reshape(5, 4))
        linear = first_principal_component(matrix).reshape(5, 4)
        bent = np.asarray(actual[i], np.float64)
        assert np.abs(linear / linear.max() - bent / bent.max()).max() > 0.02


def test_fem_counts_the_positions_that_stand_out():
    s = activations((7, 6, 5)) ** 3
    s[:, :, :, 4] = 2.0
    actual = map_of(METHODS['fem'](), s)
    for i in range(2):
        expected = np.zeros((7, 6))
        for k in range(5):
            channel = s[i, :, :, k].astype(np.float64)
            bound = channel.mean() + 2 * channel.std()
            count = sum(value > bound for value in channel.flat)
            assert (count > 0) == (k < 4)
            expected += count / 42 * channel
        close(actual[i], expected, 1e-5)


def drawn_network(activations_of, head):
    """Endpoints 'first' and 'late', both `activations_of(inputs)`; logits = mean(late) . head."""

    def apply(state, inputs, perturb=None):
        perturb = perturb or {}
        first = activations_of(inputs) + perturb.get('first', 0.0)
        late = first + perturb.get('late', 0.0)
        return late.mean((1, 2)) @ state, {'first': first, 'late': late}

    return Network.from_apply(
        apply,
        jnp.asarray(head, jnp.float32),
        name='drawn',
        preprocessing=Preprocessing((0.0,) * 3, (255.0,) * 3),
        input_size=6,
    )


# Channels 0 and 1 are one part, seen where the image is red; 2 and 3 the other, where it is green.
PARTS = np.array([[2.0, 1.0, 0, 0], [0, 0, 1.0, 3.0], [0, 0, 0, 0]], np.float32)
# Class 0 likes the first part, class 1 the second, class 2 neither.
HEAD = np.array([[1.0, -0.1, -1], [1, 0, -1], [-0.2, 1, -2], [0, 1, -2]])


@pytest.fixture(scope='module')
def two_parts():
    images = np.zeros((2, 6, 6, 3), np.float32)
    rng = np.random.default_rng(0)
    images[0, :3, :, 0] = rng.uniform(0.2, 1, (3, 6))
    images[0, 4:, :, 1] = rng.uniform(0.2, 1, (2, 6))
    images[1, :, 2:, 0] = rng.uniform(0.2, 1, (6, 4))
    images[1, :, :1, 1] = rng.uniform(0.2, 1, (6, 1))
    return drawn_network(lambda x: x @ PARTS, HEAD), images


def test_dff_picks_the_part_that_speaks_for_the_class(two_parts):
    network, images = two_parts
    classes = np.array([[0, 1, 2], [2, 1, 0]])
    maps = localize(network, images, (dff(components=2),), ('late',), classes).maps['dff', 'late']
    assert maps.shape == (2, 3, 6, 6)
    picked = []
    for i, k in np.ndindex(2, 3):
        adds = [images[i, ..., j].sum() * PARTS[j] @ HEAD[:, classes[i, k]] for j in (0, 1)]
        part = int(np.argmax(adds))
        picked.append(part)
        # The factor has unit length, the map the rest.
        close(maps[i, k], images[i, ..., part] * np.linalg.norm(PARTS[part]), 1e-3)
    # Of class 2 it is the part that harms it less: one image has little of the second.
    assert picked == [0, 1, 0, 1, 1, 0]


def test_dff_with_more_components_than_parts_keeps_them_apart(two_parts):
    network, images = two_parts
    maps = localize(network, images, ('dff',), ('late',), np.array([[0, 1], [0, 1]])).maps
    for i, part in np.ndindex(2, 2):
        actual = np.asarray(maps['dff', 'late'][i, part])
        assert actual.max() > 0.1
        assert actual[images[i, ..., part] == 0].max() < 0.01 * actual.max()


@pytest.fixture(scope='module')
def readable():
    """A network where one channel is on at each of 36 positions: its maps show the weights.

    And 150 images, the last two alike.
    """
    one_each = np.eye(36, dtype=np.float32).reshape(6, 6, 36)
    head = np.random.default_rng(1).normal(size=(36, 4))
    network = drawn_network(lambda x: x[..., :1] * 0 + one_each, head)
    images = np.random.default_rng(2).integers(0, 256, (150, 6, 6, 3), np.uint8)
    images[-1] = images[-2]
    return network, images


def weights_of(readable, order, method='random_cam', layer='late'):
    network, images = readable
    classes = np.tile([0, 3], (len(images), 1))
    maps = localize(network, images[order], (method,), ('first', 'late'), classes).maps
    return np.asarray(maps['random_cam', layer]).reshape(len(images), 2, 36)


@pytest.fixture(scope='module')
def weights(readable):
    """[150,36]; the same for all classes."""
    drawn = weights_of(readable, slice(None))
    np.testing.assert_array_equal(drawn[:, 0], drawn[:, 1])
    return drawn[:, 0]


def test_random_weights_are_uniform_from_minus_one_to_one(weights):
    assert weights.min() < -0.99 and weights.max() > 0.99 and np.abs(weights).max() <= 1
    assert abs(weights.mean()) < 0.03  # 5364 numbers: four standard errors
    assert weights.std() == pytest.approx(1 / np.sqrt(3), abs=0.02)
    assert np.mean(np.abs(weights) < 0.5) == pytest.approx(0.5, abs=0.03)


def test_random_maps_correlate_with_nothing(weights):
    # The mean over the images, at every position, and with any fixed map.
    assert np.abs(weights.mean(0)).max() < 0.2
    fixed = np.random.default_rng(8).normal(size=36)
    correlations = [np.corrcoef(row, fixed)[0, 1] for row in weights]
    assert abs(np.mean(correlations)) < 4 * np.std(correlations) / np.sqrt(150)
    assert np.abs(np.corrcoef(weights[:-1]) - np.eye(149)).max() < 0.9


def test_random_weights_belong_to_the_image_not_to_its_place(readable, weights):
    order = np.random.default_rng(3).permutation(150)
    np.testing.assert_array_equal(weights_of(readable, order)[:, 0], weights[order])
    np.testing.assert_array_equal(weights[-1], weights[-2])
    assert len(np.unique(weights, axis=0)) == 149


def test_another_seed_or_layer_draws_other_weights(readable, weights):
    other_seed = weights_of(readable, slice(None), random_cam(seed=1))[:, 0]
    other_layer = weights_of(readable, slice(None), layer='first')[:, 0]
    for other in (other_seed, other_layer):
        assert abs(np.corrcoef(other.ravel(), weights.ravel())[0, 1]) < 0.06

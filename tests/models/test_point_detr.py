"""The heads of Point-DETR3D: encodings by hand, and what must not change a prediction."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsol_jax.models import Network, Preprocessing
from wsol_jax.models.heads import Trunk
from wsol_jax.models.pillars import Grid
from wsol_jax.models.point_detr import (
    Decoder,
    PointDETR,
    Scene,
    classes_within,
    sine_encoding,
)

GRID = Grid.of((0, -8, -2, 16, 8, 2), 2.0)
DECODER = Decoder(width=12, layers=2, heads=2, points=2, side=2, hidden=8)
RNG = np.random.default_rng(0)


def test_sines_and_cosines_by_hand():
    found = sine_encoding(jnp.array([0.25, 0.5]), 10)
    slow = np.pi / 100  # a period of 10,000^(1/2) in place of 1, for 0.5
    expected = [1, np.sin(slow / 2), 0, np.cos(slow / 2)]
    expected += [0, np.sin(slow), -1, np.cos(slow), 0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.fixture(scope='module')
def network():
    """Facts alone: heads look at shapes."""
    state = {'w': jnp.zeros((3, 4))}

    def apply(state, inputs, perturb=None):
        return inputs.mean((1, 2)) @ state['w'], {'fine': inputs, 'coarse': inputs[:, ::2, ::2]}

    return Network.from_apply(
        apply, state, name='toy', preprocessing=Preprocessing((0.0,) * 3, (1.0,) * 3), input_size=8
    )


def frame(points=40, objects=3):
    low, high = np.array(GRID.low), np.array(GRID.high)
    places = RNG.uniform(low, high, (2, points, 3))
    camera = np.array([[4, -4, 0, 0], [4, 0, -4, 0], [1, 0, 0, 0.5]])
    found = {
        'points': np.concatenate([places, RNG.uniform(size=(2, points, 2))], axis=-1),
        'annotated': RNG.uniform(low, high, (2, objects, 3)),
        'box_classes': RNG.integers(0, 4, (2, objects)),
        'projections': np.broadcast_to(camera, (2, 1, 3, 4)),
        'image_size': np.full((2, 1, 2), 8),
    }
    single = {k: x.astype(np.float32 if x.dtype == float else np.int32) for k, x in found.items()}
    return {**jax.tree.map(jnp.asarray, single), 'points_valid': jnp.ones((2, points), bool)}


ENDPOINTS = {
    'fine': jnp.asarray(RNG.normal(size=(2, 8, 8, 3)), jnp.float32),
    'coarse': jnp.asarray(RNG.normal(size=(2, 4, 4, 3)), jnp.float32),
}


def made(network, layers=('fine', 'coarse'), queries=0, cameras=1):
    sizes = ((4, 2, 1.5),) * 4
    decoder = DECODER._replace(layers=1 if queries else 2)
    parts = (4, 6), layers, cameras, sizes, queries
    module = PointDETR(network, GRID, decoder, *parts, nnx.Rngs(0))
    rng = np.random.default_rng(1)
    for layer in module.decoder:  # boxes do not start at zero, so that something is to be seen
        kernel = rng.normal(size=layer.codes.kernel.shape, scale=0.3)
        layer.codes.kernel.set_value(jnp.asarray(kernel, jnp.float32))
    module.eval()
    return module


@partial(jax.jit, static_argnums=0)
def run(graph, state, endpoints, targets):
    return nnx.merge(graph, state)(endpoints, None, Trunk(None, jnp.zeros(()), targets))


def found_by(module, targets, endpoints=ENDPOINTS):
    return run(*nnx.split(module), endpoints, targets)


@pytest.fixture(scope='module')
def heads(network):
    return made(network)


TARGETS = frame()


@pytest.fixture(scope='module')
def plain(heads):
    return found_by(heads, TARGETS)


def changed(**values):
    return {**TARGETS, **values}


def same(found, plain, rows=slice(None)):
    for name in ('class_logits', 'codes'):
        np.testing.assert_allclose(found[name][:, :, :3][rows], plain[name][rows], 2e-4, 2e-4)


def test_each_layer_predicts_each_query(plain):
    assert plain['class_logits'].shape == (2, 2, 3, 4) and plain['codes'].shape == (2, 2, 3, 8)
    assert plain['queries'].all()
    assert not np.allclose(plain['codes'][:, 0], plain['codes'][:, 1])


def test_without_points_there_is_nothing(heads):
    assert heads(ENDPOINTS, None, Trunk(None, jnp.zeros(()))) == {}


def test_the_order_of_points_changes_nothing(heads, plain):
    same(found_by(heads, changed(points=TARGETS['points'][:, ::-1])), plain)


def test_padding_changes_nothing(heads, plain):
    more = {
        'points': jnp.pad(TARGETS['points'], ((0, 0), (0, 5), (0, 0)), constant_values=1),
        'points_valid': jnp.pad(TARGETS['points_valid'], ((0, 0), (0, 5))),
        'annotated': jnp.pad(TARGETS['annotated'], ((0, 0), (0, 2), (0, 0))),
        'box_classes': jnp.pad(TARGETS['box_classes'], ((0, 0), (0, 2)), constant_values=-1),
    }
    found = found_by(heads, changed(**more))
    same(found, plain)
    assert found['queries'].tolist() == [[True] * 3 + [False] * 2] * 2


def test_frames_are_looked_at_each_for_itself(heads, plain):
    first = jax.tree.map(lambda x: jnp.concatenate([x[:1], x[:1]]), (TARGETS, ENDPOINTS))
    same(found_by(heads, *first), plain, slice(0, 1))


def test_the_image_counts_where_the_camera_looks(heads, plain):
    darker = jax.tree.map(lambda x: 0.5 * x, ENDPOINTS)
    assert not np.allclose(found_by(heads, TARGETS, darker)['codes'], plain['codes'], atol=1e-3)
    away = changed(projections=-TARGETS['projections'])  # all is behind the camera
    found, other = found_by(heads, away), found_by(heads, away, darker)
    np.testing.assert_array_equal(found['codes'], other['codes'])
    assert np.isfinite(found['codes']).all()


def pyramid_of(inputs):
    """A network's call."""
    return None, {'fine': inputs, 'coarse': inputs[:, ::2, ::2]}


def test_several_cameras_are_seen_one_by_one_and_weighed_by_each_query(network):
    heads = made(network, cameras=3)
    turned = TARGETS['projections'] * jnp.array([1.0, -1, 0.5]).reshape(3, 1, 1)  # one looks back
    images = jnp.asarray(RNG.integers(0, 256, (2, 3, 4, 12, 3)), jnp.uint8)
    size = jnp.broadcast_to(jnp.array([12, 4]), (2, 3, 2))
    given = changed(cameras=images, image_size=size, projections=turned)
    scene = heads._scene({}, Trunk(pyramid_of, jnp.zeros(()), given))
    contents, positions, references, _ = heads.queries(given)
    roi = jnp.concatenate([heads.grid.metres(references), jnp.full((2, 3, 4), 3.0)], axis=-1)
    layer, asked = heads.decoder[0], (contents + positions, references, roi)
    found = layer._in_images(layer.image, *asked, scene)
    expected = 0
    for k in range(3):  # a scene of that camera alone
        of_one = [level.reshape(2, 3, *level.shape[1:])[:, k] for level in scene.image]
        alone = Scene(scene.bev, of_one, given['projections'][:, k], size[:, k].astype(float))
        seen = layer._in_image(layer.image, *asked, alone)
        expected += seen * nnx.sigmoid(layer.trust(asked[0]))[..., k : k + 1]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_images_of_several_cameras_are_preprocessed_as_the_network_wants(network):
    own = dataclasses.replace(network, preprocessing=Preprocessing((10.0,) * 3, (2.0,) * 3))
    images = jnp.asarray(RNG.integers(0, 256, (2, 2, 4, 6, 3)), jnp.uint8)
    found = made(own, cameras=2)._seen(Trunk(pyramid_of, jnp.zeros(()), {'cameras': images}))
    np.testing.assert_allclose(found['fine'][3], (np.asarray(images[1, 1], float) - 10) / 2)


def test_points_outside_of_the_grid_are_no_queries():
    annotated = TARGETS['annotated'].at[0, 1, 0].set(-3)
    classes = classes_within(changed(annotated=annotated), GRID)
    expected = TARGETS['box_classes'].at[0, 1].set(-1)
    np.testing.assert_array_equal(classes, expected)


def test_learnt_queries_see_no_annotation(network):
    module = made(network, ('fine',), queries=5)
    plain = found_by(module, TARGETS)
    other = changed(annotated=TARGETS['annotated'] + 1, box_classes=TARGETS['box_classes'] * 0)
    found = found_by(module, other)
    assert found['codes'].shape == (2, 1, 5, 8) and found['queries'].all()
    np.testing.assert_array_equal(found['codes'], plain['codes'])

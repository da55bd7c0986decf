"""SAT against numbers worked by hand; which weights its losses reach; its map."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wsol_jax.config import ConfigError
from wsol_jax.localization.localize import localize
from wsol_jax.models import as_network
from wsol_jax.models.heads import Outputs, outputs_of
from wsol_jax.training.method import Shard, Update, batch_mean
from wsol_jax.training.methods import make_module
from wsol_jax.training.methods.sat import GAUSSIAN, SAT, normalization

SIDE, GRID, CLASSES = 32, 4, 3
TINY = {'width': 12, 'heads': 3, 'depth': 4, 'patch': 8, 'image_size': SIDE}
ALONE = Update(0, lambda sums: sums)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)


def test_the_gaussian_is_that_of_the_release():
    """The root of what a normal distribution has in three bins of [-49/6, 49/6]."""
    inner, outer = (math.erf(x / math.sqrt(2)) for x in (49 / 18, 49 / 6))
    side = np.sqrt([(outer - inner) / 2, inner, (outer - inner) / 2])
    np.testing.assert_allclose(GAUSSIAN, np.outer(side, side) / side.sum() ** 2, atol=1e-5)


def test_the_normalization_loss_by_hand():
    mask = np.zeros((3, 3, 3), np.float32)
    mask[0, 1, 1] = 1  # becomes the Gaussian itself
    mask[1] = 0.5
    # Of a constant 1/2: whole in the middle, cut at edges and corners.
    line = np.array([GAUSSIAN[1:].sum(0).sum(), 1, GAUSSIAN[1:].sum(0).sum()])
    cut = 0.5 * np.outer(line, line)
    expected = [np.mean(GAUSSIAN * (1 - GAUSSIAN)), np.mean(cut * (1 - cut)), 0]
    np.testing.assert_allclose(normalization(jnp.asarray(mask)), expected, atol=1e-5)


def shard(labels, valid):
    return Shard(None, {'labels': np.asarray(labels)[:, None]}, np.asarray(valid), None)


def loss_of(masks, logits, labels, valid, area=0.25):
    outputs = Outputs(jnp.asarray(logits), {}, {'mask': jnp.asarray(masks)})
    loss, values = SAT(area=area).loss(outputs, shard(labels, valid), ALONE)
    return float(loss), {name: np.asarray(value).tolist() for name, value in values.items()}


def test_the_loss_by_hand():
    masks = np.zeros((3, 4, 4), np.float32)
    masks[0, 0], masks[1], masks[2] = 1, 1, 0.5  # areas 1/4, 1, and one that does not count
    logits = np.log([[3.0, 1.0], [1.0, 1.0], [1.0, 9.0]])
    loss, values = loss_of(masks, logits, [0, 1, 0], [True, True, False])
    entropy = (np.log(4 / 3) + np.log(2)) / 2
    grey = np.asarray(normalization(jnp.asarray(masks)))[:2].mean()
    assert loss == pytest.approx(entropy + abs(0.625 - 0.25) + grey, rel=1e-5)
    assert values['accuracy'] == [100, 0, 0] and values['area'] == [0.25, 1, 0.5]
    assert np.shape(values['normalization']) == (3,)


def test_images_may_have_several_labels():
    """No class is selected: the mask is the same for all."""
    masks, labels = np.zeros((2, 4, 4), np.float32), np.array([[0, 2], [1, -1]])
    outputs = Outputs(jnp.zeros((2, 3)), {}, {'mask': jnp.asarray(masks)})
    batch = shard([0, 0], [True, True])._replace(targets={'labels': labels})
    loss, values = SAT(sigmoid=True).loss(outputs, batch, ALONE)
    assert float(loss) == pytest.approx(np.log(2) + 0.25, rel=1e-5)
    assert values['accuracy'].tolist() == [100, 0]


def test_the_area_is_that_of_the_batch_not_of_each_image():
    masks = np.zeros((2, 4, 4), np.float32)
    masks[0, :2] = 1  # areas 1/2 and 0: 1/4 together
    logits, labels, valid = np.zeros((2, 2), np.float32), [0, 1], [True, True]
    losses = [loss_of(masks, logits, labels, valid, area)[0] for area in (0.25, 0.35, 0.1)]
    assert losses[1] - losses[0] == pytest.approx(0.1, abs=1e-6)
    assert losses[2] - losses[0] == pytest.approx(0.15, abs=1e-6)


@pytest.fixture(scope='module')
def module():
    return make_module('vit_tiny', None, CLASSES, SAT(), 0, TINY)


def gradients_of(module, score):
    """{name of a weight: its largest gradient} of a score of the outputs."""

    def scored(weights):
        copy = nnx.merge(graph, weights, rest, copy=True)
        inputs = jnp.asarray(IMAGES, jnp.float32) / 128 - 1
        return score(outputs_of(copy, inputs, None, jnp.array([0, 1])))

    graph, weights, rest = nnx.split(module, nnx.Param, ...)
    flat = nnx.to_flat_state(jax.grad(scored)(weights))
    return {'.'.join(map(str, k)): float(np.abs(v[...]).max()) for k, v in flat}


@pytest.mark.slow
def test_what_gets_a_gradient(module):
    batch = shard([0, 1], [True, True])
    whole = gradients_of(module, lambda outputs: SAT().loss(outputs, batch, ALONE)[0])
    # The class token's classifier and its last attention give way to the patches'.
    assert {n for n, size in whole.items() if size == 0} == {'head.bias', 'head.kernel'}
    logits = gradients_of(module, lambda outputs: outputs.logits[0, 0])
    assert logits['spatial_token'] > 0  # through the masks alone: nobody attends to its values
    areas = gradients_of(module, lambda o: batch_mean(o.extras['mask'].mean((1, 2)), batch, ALONE))
    assert areas['spatial_embed'] > 0 and areas['blocks.3.attn.qkv.kernel'] > 0
    assert areas['heads.classifier.conv.kernel'] == areas['blocks.3.mlp.fc1.kernel'] == 0


@pytest.mark.slow
def test_the_map_is_the_mean_of_the_masks(module):
    network = as_network('vit_tiny', module)
    _, endpoints = network(IMAGES)
    masks = [np.asarray(endpoints[f'block{i}/mask'][..., 0]) for i in (2, 3, 4)]
    found = localize(network, IMAGES, ('sat', 'dgl'), ('block4',), classes=[[0, 1], [2, 0]])
    assert list(found.maps) == [('sat', 'head'), ('dgl', 'block4')]
    for target in range(2):  # the same for each class
        np.testing.assert_allclose(found.maps['sat', 'head'][:, target], np.mean(masks, 0), 1e-5)
    assert np.ptp(found.maps['dgl', 'block4']) > 0  # which a class token alone would not read


def test_networks_without_a_spatial_token_are_told():
    with pytest.raises(ConfigError, match=r"'resnet10' has no spatial_token.*it fits deit_tiny, "):
        make_module('resnet10', None, CLASSES, SAT(), 0, {})

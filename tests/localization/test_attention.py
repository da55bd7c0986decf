"""Attention rollout against a plain loop over whole matrices."""

import numpy as np
import pytest

from wsol_jax.localization.attention import flow
from wsol_jax.localization.localize import localize
from wsol_jax.localization.plan import make_plan
from wsol_jax.models import load_network

SIDE, GRID, DEPTH = 32, 4, 3
TINY = {'width': 12, 'heads': 2, 'depth': DEPTH, 'patch': 8, 'image_size': SIDE}
IMAGES = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)


def network_of(**options):
    return load_network('vit_tiny', num_classes=4, seed=2, **TINY, **options)


def by_loop(blocks):
    """Blocks of [N,N], rows are queries -> the row of the class token at the patches."""
    product = np.eye(len(blocks[0]))
    for weights in blocks:
        product = (0.5 * weights + 0.5 * np.eye(len(weights))) @ product
    return product[0, 1:]


def test_flow_is_the_product_of_the_blocks():
    rng = np.random.default_rng(1)
    whole = rng.dirichlet(np.full(7, 0.3), size=(DEPTH, 2, 7))  # rows that sum to 1
    shown = [w[:, :, 1:].swapaxes(1, 2).reshape(2, 2, 3, 7).astype(np.float32) for w in whole]
    found = flow(shown)
    for image in range(2):
        expected = by_loop(whole[:, image]).reshape(2, 3)
        np.testing.assert_allclose(found[image], expected, rtol=1e-5)


@pytest.mark.slow
def test_the_map_of_a_network():
    network = network_of()
    _, endpoints = network(IMAGES)
    found = localize(network, IMAGES, ('rollout',), classes=[[0, 1]] * 3)
    assert list(found.maps) == [('rollout', 'all')]
    blocks = [np.asarray(endpoints[f'block{i}/attention']) for i in range(1, 1 + DEPTH)]
    for image in range(3):
        keys = [b[image].reshape(GRID**2, -1).T for b in blocks]
        whole = [np.concatenate([1 - k.sum(1, keepdims=True), k], axis=1) for k in keys]
        expected = by_loop(whole).reshape(GRID, GRID)
        for target in range(2):  # the same for each class
            np.testing.assert_allclose(found.maps['rollout', 'all'][image, target], expected, 1e-4)


@pytest.mark.slow
def test_a_spatial_token_counts_as_the_class_token():
    network = network_of(spatial_token=True)
    _, endpoints = network(IMAGES)
    shown = [endpoints[f'block{i}/attention'][..., :-1] for i in range(1, 1 + DEPTH)]
    found = localize(network, IMAGES, ('rollout',))
    np.testing.assert_allclose(found.maps['rollout', 'all'], flow(shown), rtol=1e-4)


def test_networks_without_attention_are_told(resnet):
    message = 'rollout reads the attention of each block, and resnet10 shows none: .*deit_tiny'
    with pytest.raises(ValueError, match=message):
        make_plan(resnet, ('rollout',))

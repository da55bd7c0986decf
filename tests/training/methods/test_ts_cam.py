"""TS-CAM against an einsum over what its network shows."""

import numpy as np
import pytest

from wsol_jax.config import ConfigError
from wsol_jax.localization.localize import localize
from wsol_jax.models import as_network
from wsol_jax.training.method import TrainedMethod
from wsol_jax.training.methods import make_module
from wsol_jax.training.methods.ts_cam import TSCAM

SIDE, GRID, CLASSES = 32, 4, 3
TINY = {'width': 12, 'heads': 3, 'depth': 3, 'patch': 8, 'image_size': SIDE}
IMAGES = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)


@pytest.fixture(scope='module')
def network():
    return as_network('vit_tiny', make_module('vit_tiny', None, CLASSES, TSCAM(), 0, TINY))


@pytest.fixture(scope='module')
def semantic(network):
    """The class maps [B,h,w,C]: a 3x3 convolution of the patches, position by position."""
    conv = network.state['heads']['classifier']['conv']
    kernel = np.asarray(conv['kernel'][...])
    patches = np.asarray(network(IMAGES)[1]['norm'])
    padded = np.pad(patches, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.einsum('bhwkij,ijkc->bhwc', windows, kernel) + np.asarray(conv['bias'][...])


@pytest.mark.slow
def test_logits_are_the_means_of_the_class_maps(network, semantic):
    np.testing.assert_allclose(network(IMAGES)[0], semantic.mean((1, 2)), rtol=1e-4, atol=1e-5)
    # The loss is that of the plain classifier on these.
    assert TSCAM.loss is TrainedMethod.loss


def test_the_map_is_attention_times_the_map_of_the_class(network, semantic):
    _, endpoints = network(IMAGES)
    # The class token's row of each block, head-averaged.
    rows = [np.asarray(endpoints[f'block{i}/attention'])[..., 0] for i in (1, 2, 3)]
    classes = np.array([[0, 2], [1, 1]])
    found = localize(network, IMAGES, ('ts_cam', 'grad_cam'), ('norm',), classes=classes)
    assert list(found.maps) == [('ts_cam', 'head'), ('grad_cam', 'norm')]
    for image in range(2):
        for target in range(2):
            expected = np.mean(rows, 0)[image] * semantic[image, ..., classes[image, target]]
            got = found.maps['ts_cam', 'head'][image, target]
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)
    assert np.ptp(found.maps['ts_cam', 'head']) > 1e-4


def test_all_blocks_are_layers_once_patches_are_classified(network):
    assert network.layers() == ('block1', 'block2', 'block3', 'norm')


def test_networks_without_attention_are_told():
    with pytest.raises(ConfigError, match=r'ts_cam reads the attention .*resnet10 shows none'):
        make_module('resnet10', None, CLASSES, TSCAM(), 0, {'width': 4})

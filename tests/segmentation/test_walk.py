"""Maps that walk to boundaries while they are made: against those of each step by itself."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from flax import nnx

from wsol_jax.config import Config, ConfigError, LocalizeConfig, NetworkConfig, SegmentationConfig
from wsol_jax.data.scenes import Scenes
from wsol_jax.localization.task import LOCALIZATION
from wsol_jax.models import as_network, build
from wsol_jax.segmentation import random_walk
from wsol_jax.segmentation.task import SEGMENTATION
from wsol_jax.training.methods import add_heads
from wsol_jax.training.methods.irn import IRN

CAM, BOUNDARY = ('cam', 'stage4'), ('irn', 'head')
PLAIN = Config(
    task='segmentation',
    network=NetworkConfig('resnet10', input_size=32),
    localize=LocalizeConfig(methods=('cam', 'irn'), splits=('test',), batch_size=2),
)
WALK = replace(
    PLAIN,
    localize=replace(PLAIN.localize, methods=('cam',)),
    segmentation=SegmentationConfig(walk=2),
)


@pytest.fixture(scope='module')
def network():
    module = build('resnet10', 6, nnx.Rngs(0), width=4, output_stride=8)
    add_heads('resnet10', module, IRN(width=8), 0)
    module.heads.boundary.last.kernel[...] *= 5  # clear boundaries
    return as_network('resnet10', module, input_size=32)


@pytest.mark.slow
def test_stored_maps_have_walked(network, tmp_path):
    source = Scenes('test', 3, size=40)
    plain = SEGMENTATION.compute(PLAIN, network, source, 'test', tmp_path / 'plain')
    walked = SEGMENTATION.compute(WALK, network, source, 'test', tmp_path / 'walked')
    assert list(plain.arrays) == [CAM, BOUNDARY] and list(walked.arrays) == [CAM]
    maps, boundary = plain.read(CAM, 0, 3), plain.read(BOUNDARY, 0, 3)[:, 0]
    assert maps.shape[-2:] == (4, 4) and boundary.shape[-2:] == (8, 8)
    assert (maps < 0).any() and boundary.std() > 0.05
    rectified = [[cv2.resize(np.maximum(m, 0), (8, 8)) for m in image] for image in maps]
    expected = np.asarray(random_walk(np.array(rectified), boundary, doublings=2))
    np.testing.assert_allclose(walked.read(CAM, 0, 3), expected, atol=1e-5)
    assert np.abs(expected - rectified).max() > 0.01
    np.testing.assert_array_equal(walked.fact('classes'), plain.fact('classes'))


def test_what_cannot_walk_is_told(network):
    with pytest.raises(ConfigError, match=r"walk needs a network that config\.train\.method='irn'"):
        SEGMENTATION.check_network(WALK, replace(network, own_map=None))
    SEGMENTATION.check_network(WALK, network)
    with pytest.raises(
        ConfigError, match=r'^config\.segmentation has no effect with config\.task='
    ):
        LOCALIZATION.check(replace(WALK, task='localization'))
    alone = replace(WALK, localize=replace(WALK.localize, methods=('irn',)))
    for wrong in (alone, replace(alone, segmentation=SegmentationConfig())):
        with pytest.raises(ConfigError, match=r'boundaries alone, the same for every class; name'):
            SEGMENTATION.check(wrong)
    boundaries = replace(wrong, stages=('train', 'localize'))  # for a walk of one's own
    for right in (WALK, boundaries):
        SEGMENTATION.check(right)

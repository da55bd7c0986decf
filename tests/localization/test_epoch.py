"""What tells the best epoch: MaxBoxAccV2 on val, as the stages localize and evaluate give it."""

import logging
import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import Listed
from flax import nnx

from wsol_jax.config import (
    Config,
    ConfigError,
    EvaluateConfig,
    LocalizeConfig,
    NetworkConfig,
    TrainConfig,
)
from wsol_jax.data import DataError, Shapes
from wsol_jax.evaluation.stage import evaluate
from wsol_jax.localization.epoch import EpochScore
from wsol_jax.localization.stage import localize_split
from wsol_jax.models import as_network, build, load_network
from wsol_jax.models.zoo import CAFFE
from wsol_jax.training.methods import add_heads
from wsol_jax.training.methods.acol import ACoL

SIDE, COUNT = 48, 10
TRAIN = TrainConfig(keep='best_localization')
CONFIG = Config(
    network=NetworkConfig('resnet10', input_size=SIDE),
    train=TRAIN,
    localize=LocalizeConfig(methods=('dgl',), classes='top1', batch_size=4, scales=(0.5, 1.0)),
    evaluate=EvaluateConfig(size=32, threshold_step=0.05),
)


@pytest.fixture(scope='module')
def source():
    return Shapes('val', COUNT, size=SIDE)


def small(seed=0):
    return load_network('resnet10', num_classes=6, seed=seed, width=8, output_stride=8)


def acol():
    module = build('resnet10', 6, nnx.Rngs(0), width=8, output_stride=8)
    add_heads('resnet10', module, ACoL(width=8), 0)
    return as_network('resnet10', module)


def vit():
    facts = {'width': 16, 'heads': 2, 'depth': 3, 'patch': 8, 'image_size': SIDE}
    return load_network('deit_tiny', num_classes=6, **facts)


def by_stages(config, network, source, method, layers, workdir):
    """MaxBoxAccV2 of a map on val, through the store."""
    asked = LocalizeConfig(methods=(method,), layers=layers, batch_size=3)
    config = replace(config, localize=asked)
    workdir.mkdir()
    localize_split(config, network, source, 'val', workdir)
    (row,) = evaluate(config, {'val': source}, workdir)['localization']
    return row['MaxBoxAccV2']


@pytest.mark.slow
@pytest.mark.parametrize(
    ('make', 'method', 'layers'),
    [(small, 'cam', ()), (acol, 'acol', ()), (vit, 'layer_cam', ('block2',))],
)
def test_it_is_what_the_stages_give(make, method, layers, source, tmp_path, caplog):
    network = make()
    with caplog.at_level(logging.WARNING):
        score = EpochScore(CONFIG, network, source)
        found = [score(network), score(network)]
    expected = by_stages(CONFIG, network, source, method, layers, tmp_path / 'a')
    assert found == 2 * [{'MaxBoxAccV2': expected}] and 5 < expected < 100
    # That another map takes the place of CAM is told once.
    told = [line for line in caplog.messages if 'best_localization' in line]
    instead = 'cam at norm is not defined for this network; the best epoch is that of layer_cam'
    assert len(told) == (method == 'layer_cam') and all(instead in line for line in told)


@pytest.mark.slow
def test_images_without_boxes_and_broken_ones_do_not_count(source, tmp_path):
    network, records = small(), [source[k] for k in range(COUNT)]
    some = [replace(records[0], boxes=(), labels=()), *records[1:]]
    some[2] = replace(some[2], image=b'no image', size=None)
    some[4] = replace(some[4], image=b'no image')
    found = EpochScore(CONFIG, network, Listed(some))(network)
    left = Listed([records[k] for k in (1, 3, 5, 6, 7, 8, 9)], 'abcdef')
    expected = by_stages(CONFIG, network, left, 'cam', (), tmp_path / 'a')
    assert found['MaxBoxAccV2'] == pytest.approx(expected, abs=1e-9)


def test_what_cannot_be_scored_is_told_at_once(source):
    records = [source[k] for k in range(3)]
    none = Listed([replace(r, boxes=()) for r in records])
    message = "config.train.keep='best_localization' needs boxes of images in val, and there are no"
    with pytest.raises(ConfigError, match=re.escape(message)):
        EpochScore(CONFIG, small(), none)
    records[1] = replace(records[1], labels=(0, 1))
    with pytest.raises(DataError, match=r'^val/00001.png: has 2 labels \(0, 1\), but can have 1'):
        EpochScore(CONFIG, small(), Listed(records))


def test_another_map_takes_the_place_of_cam_where_it_is_not_defined(toy, source, tmp_path, caplog):
    """A ReLU follows the layer that is said to be the last one."""
    network, config = replace(toy, last_layer='early'), replace(CONFIG, network=NetworkConfig('a'))
    score = EpochScore(config, network, source)
    assert not caplog.messages
    with caplog.at_level(logging.WARNING):
        found = [score(network), score(network)]
    expected = by_stages(config, network, source, 'layer_cam', ('late',), tmp_path / 'a')
    assert found == 2 * [{'MaxBoxAccV2': expected}]
    assert [m.partition(';')[2] for m in caplog.messages if 'best_localization' in m] == [
        ' the best epoch is that of layer_cam at late'
    ]


def test_one_program_serves_all_epochs(source, caplog):
    """Of a training, whose networks differ in their weights alone."""
    network, other = small(), small(seed=1)
    score = EpochScore(CONFIG, network, source)
    first = score(network)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        second = score(replace(network, state=other.state))
        assert not [line for line in caplog.messages if 'ompil' in line] and first != second
        score(replace(network, preprocessing=CAFFE))
        assert [line for line in caplog.messages if 'ompil' in line]


@pytest.mark.slow
@pytest.mark.parametrize('change', [{'parallel': 'pmap'}, {'processes': 2}, {'size': 64}])
def test_devices_and_processes_do_not_change_it(source, change, tmp_path):
    parallel = replace(CONFIG, parallel=change.pop('parallel', 'jit'))
    config = replace(parallel, evaluate=replace(CONFIG.evaluate, **change))
    network = small()
    found = EpochScore(config, network, source)(network)['MaxBoxAccV2']
    plain = EpochScore(CONFIG, network, source)(network)['MaxBoxAccV2']
    if 'size' in change:
        assert found == by_stages(config, network, source, 'cam', (), tmp_path / 'a')
    else:
        assert found == plain
    assert np.isfinite(found)

"""Every method, killed and resumed, ends as if it had not been; what it leaves localizes."""

import json
from dataclasses import replace

import numpy as np
import pytest
from test_parallel import RECIPE, SIDE, saved

from wsol_jax.config import Config, DataConfig, NetworkConfig, TrainConfig, flatten
from wsol_jax.data import Shapes
from wsol_jax.localization.localize import localize
from wsol_jax.models import zoo
from wsol_jax.training.checkpoints import Checkpoints
from wsol_jax.training.loop import train
from wsol_jax.training.trained import load_network

pytestmark = pytest.mark.slow

# 30 images make 3 steps an epoch; the killed run has saved its fourth step of six.
TRAIN = TrainConfig(epochs=2, batch_size=12, learning_rate=0.1, log_every=1, checkpoint_every=1)
CONFIG = Config(
    network=NetworkConfig('tiny', input_size=SIDE), data=DataConfig(shapes_size=SIDE), train=TRAIN
)
OPTIONS = {
    'has': {},
    'cutmix': {},
    'adl': {'layers': ('late', 'late/early')},
    'spg': {'lower': 'late/early', 'upper': 'late', 'width': 8, 'side_width': 4},
    'ts_cam': {},
    'sat': {},
}
TOKENS = {'width': 8, 'heads': 2, 'depth': 3, 'patch': 8, 'image_size': SIDE, 'drop_path': 0.5}
TRANSFORMER = NetworkConfig('vit_tiny', options=TOKENS)
NETWORKS = {'ts_cam': TRANSFORMER, 'sat': TRANSFORMER}


@pytest.fixture(scope='module', autouse=True)
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.RECIPES, 'tiny', RECIPE)
        yield


@pytest.fixture
def killed(monkeypatch):
    """Processes that are gone before they write the checkpoint of step 5."""
    write = Checkpoints._write

    def gone(checkpoints, name, step, parts):
        if (name, step) == ('last', 5):
            raise SystemExit
        write(checkpoints, name, step, parts)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, '_write', gone)
        yield patch.undo


@pytest.mark.parametrize('method', OPTIONS)
def test_it_goes_on_and_opens_again(method, killed, tmp_path):
    config = replace(CONFIG, train=replace(TRAIN, method=method, options=OPTIONS[method]))
    config = replace(config, network=NETWORKS.get(method, config.network))
    sources = Shapes('train', 30, size=SIDE), Shapes('val', 14, size=SIDE)
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    with pytest.raises(SystemExit):
        train(config, *sources, broken)
    killed()
    for workdir in (broken, whole):
        train(config, *sources, workdir)
    found, expected = saved(broken), saved(whole)
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    record = {'config': flatten(config), 'contents': {}}
    (whole / 'config.json').write_text(json.dumps(record))
    network = load_network(config.network.name, whole)
    images = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    own = [network.own_map.name] if network.own_map else []
    cam = 'grad_cam' if own else 'cam'  # behind a head of convolutions CAM is not defined
    maps = localize(network, images, ('dgl', cam, *own), network.layers()[-1:]).maps
    assert len(maps) == 2 + len(own)
    assert all(np.isfinite(m).all() and np.ptp(m) > 0 for m in maps.values())

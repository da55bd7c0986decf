import csv
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_main import write_weights

from wsol_jax.config import Config, ConfigError, DataConfig, NetworkConfig, TrainConfig
from wsol_jax.data import DataError, ImageFolder, Shapes, decode_image
from wsol_jax.models import Network, Preprocessing, build, load_module
from wsol_jax.training import loop
from wsol_jax.training.checkpoints import Checkpoints, TrainState
from wsol_jax.training.loop import train, trained_network
from wsol_jax.training.optimizer import make_optimizer

TRAIN = TrainConfig(epochs=5, batch_size=12, learning_rate=0.1, log_every=100)
CONFIG = Config(
    network=NetworkConfig('resnet10', input_size=32, options={'width': 8}),
    data=DataConfig(shapes_size=32),
    train=TRAIN,
)


@pytest.fixture(scope='module')
def sources():
    return Shapes('train', 36, size=32), Shapes('val', 14, size=32)


class Keeping(Checkpoints):
    """Checkpoints that also keep every state as it was given."""

    states: tuple = ()

    def save(self, epoch, state):
        Keeping.states += (state,)
        super().save(epoch, state)


@pytest.fixture(scope='module')
def trained(tmp_path_factory, sources):
    workdir = tmp_path_factory.mktemp('trained')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, 'Checkpoints', Keeping)
        train(CONFIG, *sources, workdir)
    return workdir, Keeping.states


def rows(workdir, split):
    with (workdir / 'progress.csv').open() as file:
        return [row for row in csv.DictReader(file) if row['split'] == split]


def pixels(source):
    return np.stack([decode_image(source[i]) for i in range(len(source))])


def test_the_loss_falls(trained):
    losses = [float(row['loss']) for row in rows(trained[0], 'train')]
    assert len(losses) == 5 and losses[0] < 3
    assert losses[-1] < 0.75 * losses[0]
    assert [row['step'] for row in rows(trained[0], 'val')] == ['3', '6', '9', '12', '15']


def test_the_trained_network_is_the_module_after_training(trained, sources):
    workdir, states = trained
    network = trained_network(CONFIG, 6, workdir)
    module = build('resnet10', 6, nnx.Rngs(9), width=8)
    nnx.update(module, states[-1].params, states[-1].stats)
    module.eval()
    images = pixels(sources[1])
    expected, _ = module(network.preprocessing(images))
    np.testing.assert_allclose(network(images)[0], expected, rtol=1e-5, atol=1e-5)
    right = np.argmax(np.asarray(expected), -1) == [sources[1][i].labels[0] for i in range(14)]
    logged = float(rows(workdir, 'val')[-1]['accuracy'])
    assert logged == pytest.approx(100 * right.mean(), abs=0.01)


def test_batch_statistics_are_learnt_and_used_in_evaluation(trained, sources):
    _, states = trained
    module = build('resnet10', 6, nnx.Rngs(0), width=8)
    _, _, stats, _ = loop._split(module)
    for before, after in zip(*map(jax.tree.leaves, (stats, states[-1].stats)), strict=True):
        assert not np.allclose(before, after)
    network = trained_network(CONFIG, 6, trained[0])
    images = network.preprocessing(pixels(sources[1]))
    logits = network.apply(network.state, images)[0]
    # Each image for itself: the statistics of the batch have no part in it.
    alone = [network.apply(network.state, images[i : i + 1])[0][0] for i in range(3)]
    np.testing.assert_allclose(logits[:3], alone, rtol=1e-4, atol=1e-4)
    fresh = nnx.State.merge(states[-1].params, stats)
    assert not np.allclose(network.apply(fresh, images)[0], logits, atol=1e-2)


class Tiny(nnx.Module):
    """1x1 convolution, batch norm, dropout, mean, linear: all that training treats specially."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (1, 1), rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.75, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, inputs, perturb=None):
        x = self.norm(self.conv(inputs))
        return self.head(self.dropout(x).mean((1, 2))), {'x': x}


@pytest.fixture(scope='module')
def tiny():
    module = Tiny(nnx.Rngs(0))
    graph, params, stats, keys = loop._split(module)
    network = Network.from_module(
        module, name='tiny', preprocessing=Preprocessing((0.0,) * 3, (255.0,) * 3), input_size=4
    )
    optimizer = make_optimizer(TrainConfig(learning_rate=0.0, warmup=0.0), 10)
    state = TrainState(params, stats, optimizer.init(params))
    return loop._compile(graph, optimizer, network), state, keys


IMAGES = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), np.uint8)
LABELS = np.arange(8) % 3


def test_dropout_is_active_in_training_only(tiny):
    program, state, keys = tiny
    losses = [
        float(program.step(state, loop._epoch_keys(keys, epoch), IMAGES, LABELS)[2])
        for epoch in (0, 0, 1, 2)
    ]
    assert losses[0] == losses[1] and len(set(losses)) == 3
    _, later, first, _ = program.step(state, loop._epoch_keys(keys, 0), IMAGES, LABELS)
    assert float(program.step(state, later, IMAGES, LABELS)[2]) != float(first)
    predicted = np.asarray(program.predict(state, IMAGES))
    assert (predicted == np.asarray(program.predict(state, IMAGES))).all()
    # By hand, in evaluation: fresh statistics are mean 0, variance 1.
    conv, head = state.params['conv'], state.params['head']
    x = IMAGES / 255.0 @ conv['kernel'][0, 0] + conv['bias']
    logits = (x / np.sqrt(1 + 1e-5)).mean((1, 2)) @ head['kernel'] + head['bias']
    np.testing.assert_array_equal(predicted, np.argmax(logits, -1))


def test_batch_statistics_by_hand(tiny):
    program, state, keys = tiny
    conv = state.params['conv']
    x = np.asarray(IMAGES / 255.0 @ conv['kernel'][0, 0] + conv['bias'], np.float64)
    after, *_ = program.step(state, keys, IMAGES, LABELS)
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(after.stats['norm']['mean'][...], 0.25 * mean, rtol=1e-4)
    np.testing.assert_allclose(after.stats['norm']['var'][...], 0.75 + 0.25 * variance, rtol=1e-4)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path, trained, sources):
    shutil.copytree(trained[0], tmp_path / 'W')
    # Step 16 still sees good weights and is logged by itself; its update ruins them.
    wild = replace(TRAIN, epochs=7, learning_rate=1e38, log_every=16)
    with pytest.raises(FloatingPointError, match=r'(nan|inf) at step 17; lower config\.train'):
        train(replace(CONFIG, train=wild), *sources, tmp_path / 'W')
    assert Checkpoints(tmp_path / 'W').epoch() == 5
    states = [trained_network(CONFIG, 6, w).state for w in (trained[0], tmp_path / 'W')]
    for one, two in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(one, two)
    assert len(rows(tmp_path / 'W', 'train')) == 6


def test_training_that_is_done_is_not_done_again(trained, sources):
    before = (trained[0] / 'progress.csv').read_text()
    train(CONFIG, *sources, trained[0])
    assert (trained[0] / 'progress.csv').read_text() == before


def test_an_unfinished_training_gives_no_network(trained, tmp_path):
    longer = replace(CONFIG, train=replace(TRAIN, epochs=6))
    with pytest.raises(ConfigError, match=r'checkpoints holds epoch 5 of 6; finish with .train.'):
        trained_network(longer, 6, trained[0])
    assert trained_network(CONFIG, 6, tmp_path) is None
    (tmp_path / 'checkpoints').mkdir()
    assert trained_network(CONFIG, 6, tmp_path) is None


@pytest.mark.parametrize('classes', [6, 4])
def test_training_starts_from_the_weights_file(tmp_path, classes):
    file = tmp_path / 'w.safetensors'
    write_weights(file)
    config = replace(CONFIG, network=replace(CONFIG.network, weights=str(file)))
    source = Shapes('train', 12, size=32, num_classes=classes)
    found = nnx.state(loop._initial_module(config, source), (nnx.Param, nnx.BatchStat))
    expected = nnx.state(load_module('resnet10', file, width=8), (nnx.Param, nnx.BatchStat))
    found, expected = dict(nnx.to_flat_state(found)), dict(nnx.to_flat_state(expected))
    for keys, leaf in expected.items():
        if keys[0] != 'fc' or classes == 6:
            np.testing.assert_array_equal(found[keys][...], leaf[...])
    assert found['fc', 'bias'].shape == (classes,)


def test_labels_that_cannot_be_trained_on(tmp_path, sources):
    indexed = replace(CONFIG, data=DataConfig(source='wsol_folder', class_index=True))
    with pytest.raises(ConfigError, match=r'set config\.data\.class_index=False'):
        train(indexed, *sources, tmp_path / 'a')
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images/a.png').write_bytes(sources[0][0].image)
    plain = ImageFolder(tmp_path / 'images')
    with pytest.raises(ConfigError, match='labels of at least 2 classes, found 0'):
        train(CONFIG, plain, plain, tmp_path / 'b')
    few = replace(CONFIG, train=replace(TRAIN, batch_size=37))
    with pytest.raises(DataError, match='36 training images do not fill one batch of 37'):
        train(few, *sources, tmp_path / 'c')


def test_dropout_keys_depend_on_the_epoch_alone():
    *_, keys = loop._split(Tiny(nnx.Rngs(0)))
    data = [
        [
            jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
            for x in jax.tree.leaves(loop._epoch_keys(keys, epoch))
        ]
        for epoch in (1, 1, 2)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(data[0], data[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(data[0], data[2], strict=True))

"""ESOL: clip, area and losses by hand; what each stage starts from, trains and shows."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_parallel import RECIPE, SIDE, Tiny, labelled, saved

from wsol_jax.config import Config, ConfigError, NetworkConfig, TrainConfig, flatten
from wsol_jax.localization.localize import localize
from wsol_jax.models import as_network, zoo
from wsol_jax.models.heads import Outputs, outputs_of
from wsol_jax.parallel import local_devices
from wsol_jax.training.loop import train
from wsol_jax.training.method import Shard
from wsol_jax.training.methods import add_heads
from wsol_jax.training.methods.esol import ESOL, clipped, linear_classifier, mean_area
from wsol_jax.training.step import make_program
from wsol_jax.training.trained import load_network

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
LABELS = np.array([[0, 3], [1, -1], [2, 5], [3, -1]], np.int32)
LOGGED = ('accuracy', 'accuracy_sampled', 'area')
LATE = (SIDE, SIDE, 3), (8, 8, 8)


@pytest.fixture(scope='module', autouse=True)
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.RECIPES, 'tiny', RECIPE)
        yield


def headed(method):
    """Stage 1 as it starts behind a plain network; stage 2 behind a stage 1 that learnt nothing."""
    module = Tiny(6, rngs=nnx.Rngs(0))
    add_heads('tiny', module, method, 0)
    kernel, bias = linear_classifier(module, 'late', *LATE)
    module.heads.classifier.kernel.set_value(kernel)
    module.heads.classifier.bias.set_value(bias)
    return module


def test_the_clip_by_hand():
    # Channel 0: 0 1 2 5, cut at 2.5, mean 2 of 5.5 / 4. Channel 1: zeros.
    features = np.zeros((1, 2, 2, 2), np.float32)
    features[0, ..., 0] = [[0, 1], [2, 5]]
    expected = np.array([[0, 1], [2, 2.5]]) * 8 / 5.5
    found = clipped(jnp.asarray(features), 0.5)
    np.testing.assert_allclose(found[0, ..., 0], expected, rtol=1e-6)
    assert not found[..., 1].any()
    np.testing.assert_allclose(clipped(jnp.asarray(features), 1.0), features, rtol=1e-6)


def test_the_area_by_hand():
    maps = np.zeros((3, 1, 4, 3), np.float32)
    maps[0, 0, :, 0], maps[0, 0, :, 2] = [4, 2, 0, 2], [0, 0, 0, 3]
    maps[1, 0, :, 1] = 7
    labels = np.array([[0, 2], [1, -1], [2, -1]], np.int32)
    np.testing.assert_allclose(mean_area(maps, labels), [(0.5 + 0.25) / 2, 1, 0])


@pytest.mark.slow
@pytest.mark.parametrize('sigmoid', [False, True])
def test_losses_of_both_stages_by_hand(sigmoid):
    labels = np.array([[0], [1]], np.int32)
    batch = Shard(None, {'labels': labels}, np.ones(2, bool), np.arange(2))
    logits = jnp.asarray([[np.log(3), 0.0]] * 2)
    plain = np.log([4 / 3, 4.0])
    if sigmoid:  # of log 3: log 4/3 where it is one, else log 4; of 0: log 2
        plain = (plain + np.log(2)) / 2
    maps = jnp.asarray(np.stack([np.full((2, 2, 2), 3.0), 5 * np.eye(2)[..., None] * [1, 1]]))

    def loss(logits, **options):
        outputs = Outputs(-logits, {}, {'sampled': logits, 'maps': maps})
        return ESOL(sigmoid=sigmoid, **options).loss(outputs, batch, None)

    losses, values = loss(logits, rise=0.5)
    # That of the plain logits, which are the others, is the other image's, and 1/2 may be added.
    of_plain = np.log([4.0, 4 / 3])
    if sigmoid:
        of_plain = (of_plain + np.log(2)) / 2
    np.testing.assert_allclose(losses, -np.minimum(plain, of_plain + 0.5), rtol=1e-6)
    assert (losses[1] > -plain[1]) == (plain[1] > of_plain[1] + 0.5)
    np.testing.assert_allclose(values['area'], [1, 0.5])
    assert values['accuracy'].tolist() == [0, 100]
    assert values['accuracy_sampled'].tolist() == [100, 0]
    slopes = jax.grad(lambda z: loss(z, rise=0.1)[0].sum())(logits)
    assert np.abs(slopes[0]).max() > 0 and not slopes[1].any()  # beyond the bound
    losses, _ = loss(logits, stage=2, area_weight=2.0)
    np.testing.assert_allclose(losses, plain + np.array([2, 1]), rtol=1e-6)


@pytest.mark.slow
def test_it_starts_as_cam_of_clipped_features():
    inputs = zoo.SYMMETRIC(IMAGES)
    for stage in (1, 2):
        module = headed(ESOL(stage=stage))
        module.eval()
        logits, endpoints, extras = nnx.jit(outputs_of)(module, inputs)
        plain, _ = Tiny.__call__(module, inputs)
        np.testing.assert_allclose(logits, plain, rtol=1e-5)
        features = clipped(endpoints['late'], 0.3)
        weights = module.fc.kernel[...]
        expected = features.mean((1, 2)) @ weights + module.fc.bias[...]
        np.testing.assert_allclose(extras['sampled'], expected, rtol=1e-4, atol=1e-5)
        maps = np.maximum(features @ weights, 0)
        np.testing.assert_allclose(extras['maps'], maps, rtol=1e-4, atol=1e-5)
        own = module.heads.map(endpoints, jnp.array([[2, 0]] * 4))
        np.testing.assert_allclose(own[:, 0], maps[..., 2], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(own[:, 1], maps[..., 0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_only_offsets_of_the_stage_learn():
    """Of several labels an image, with weight decay."""
    setting = TrainConfig(optimizer='adamw', learning_rate=0.05, weight_decay=0.1, warmup=0.0)
    for stage, name in ((1, 'expansion'), (2, 'shrinkage')):
        method = ESOL(stage=stage, sigmoid=True, rise=10.0)
        module, devices = headed(method), local_devices('jit')
        program = make_program(setting, method, module, zoo.SYMMETRIC, devices, 10, 5)
        before = named(program.initial)
        valid = np.ones(4, bool)
        batch = Shard(IMAGES, {'labels': LABELS}, valid, np.arange(4, dtype=np.int32))
        state, measured = program.step(program.initial, batch)
        after = named(state)
        changed = {k for k in before if not np.array_equal(before[k], after[k])}
        assert changed == {f'heads.{name}.offsets.{leaf}' for leaf in ('kernel', 'bias')}
        assert np.isfinite(measured.mean_loss) and set(measured.sums) == {*LOGGED}


def named(state):
    parts = [*nnx.to_flat_state(state.params), *nnx.to_flat_state(state.stats)]
    return {'.'.join(map(str, path)): np.array(leaf[...]) for path, leaf in parts}


def test_the_classifier_is_read_off_the_logits():
    module = Tiny(6, rngs=nnx.Rngs(3))
    kernel, bias = linear_classifier(module, 'late', *LATE)
    np.testing.assert_allclose(kernel, module.fc.kernel[...], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(bias, module.fc.bias[...], rtol=1e-5, atol=1e-7)
    with pytest.raises(ConfigError, match='linear in the means of late/early, the last layer'):
        linear_classifier(module, 'late/early', LATE[0], (16, 16, 6))


@pytest.mark.slow
def test_its_map_stands_beside_cam_of_the_plain_network():
    network = as_network('tiny', headed(ESOL()))
    found = localize(network, IMAGES, ('esol', 'cam'), classes=2, resize=False).maps
    assert list(found) == [('esol', 'head'), ('cam', 'late')]
    expected = np.asarray(network(IMAGES)[1]['late'] @ network.module().fc.kernel[...][:, 2])
    cam = found['cam', 'late']
    np.testing.assert_allclose(cam / cam.max(), expected / expected.max(), atol=1e-4)


TRAIN = TrainConfig(epochs=1, batch_size=10, learning_rate=0.5, log_every=1, loss='sigmoid')
PLAIN = Config(network=NetworkConfig('tiny', input_size=SIDE), train=TRAIN)


def trained(workdir, stage, start):
    config = PLAIN
    if stage:
        setting = {'method': 'esol', 'options': {'stage': stage}, 'init_from': str(start)}
        config = replace(PLAIN, train=replace(TRAIN, **setting))
    workdir.mkdir(exist_ok=True)
    (workdir / 'config.json').write_text(json.dumps({'config': flatten(config), 'contents': {}}))
    train(config, labelled('train', 20), labelled(), workdir)
    return workdir


@pytest.mark.slow
def test_each_stage_goes_on_from_the_one_before(tmp_path):
    plain = trained(tmp_path / 'plain', 0, None)
    one = trained(tmp_path / 'one', 1, plain)
    with pytest.raises(ConfigError, match='no training to start from; stage 2 of esol starts from'):
        trained(tmp_path / 'new', 2, '')
    with pytest.raises(ConfigError, match='plain holds a plain training; stage 2 of esol starts'):
        trained(tmp_path / 'new', 2, plain)
    two = trained(tmp_path / 'two', 2, one)
    weights = [saved(run, 'best') for run in (plain, one, two)]
    for leaf in ('kernel', 'bias'):
        expected = weights[0][f'params.fc.{leaf}.value']
        for found in weights[1:]:
            np.testing.assert_array_equal(found[f'params.fc.{leaf}.value'], expected)
            copied = found[f'params.heads.classifier.{leaf}.value']
            np.testing.assert_allclose(copied, expected, rtol=1e-4, atol=1e-6)
    moved = 'params.heads.expansion.offsets.kernel.value'
    assert weights[1][moved].any()
    np.testing.assert_array_equal(weights[2][moved], weights[1][moved])
    network, classes = load_network('tiny', two), [list(range(6))] * 4
    maps = localize(network, IMAGES, ('esol',), classes=classes).maps['esol', 'head']
    assert np.isfinite(maps).all() and np.ptp(maps) > 0

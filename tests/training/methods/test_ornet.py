"""ORNet: losses, erasing, generator by hand; what each stage trains; both through the loop."""

import json
import shutil
import signal
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_parallel import RECIPE, SIDE, Tiny, batch_of, saved

from wsol_jax.config import (
    Config,
    ConfigError,
    LocalizeConfig,
    NetworkConfig,
    TrainConfig,
    flatten,
)
from wsol_jax.data import Shapes
from wsol_jax.exported import export, load_exported
from wsol_jax.localization.localize import localize
from wsol_jax.localization.plan import make_plan
from wsol_jax.localization.task import LOCALIZATION
from wsol_jax.models import as_network, build, zoo
from wsol_jax.models.heads import Outputs, outputs_of
from wsol_jax.parallel import local_devices
from wsol_jax.progress import ProgressLog
from wsol_jax.training.loop import train
from wsol_jax.training.method import Shard
from wsol_jax.training.methods import add_heads, make_method
from wsol_jax.training.methods.ornet import (
    AttentiveErasing,
    ORNet,
    _Generator,
    area_loss,
    weighted_entropy,
)
from wsol_jax.training.step import make_program
from wsol_jax.training.trained import load_network, trained_network
from wsol_jax.workdir import read_csv

RNG = np.random.default_rng(0)
OPTIONS = {'layer': 'late/early', 'base': 2}


@pytest.fixture(scope='module', autouse=True)
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.RECIPES, 'tiny', RECIPE)
        yield


@pytest.mark.parametrize(
    ('value', 'expected'),
    # H(p) exp(-(p - 1/2)^2 / 0.02), in nats.
    [
        (0.5, 0.6931),
        (0.6, 0.4082),
        (0.4, 0.4082),
        (0.7, 0.0827),
        (0.8, 0.00556),
        (0.0, 0),
        (1.0, 0),
    ],
)
def test_weighted_entropy_by_hand(value, expected):
    found = weighted_entropy(jnp.full((2, 3, 4), value))
    np.testing.assert_allclose(found, [expected] * 2, rtol=2e-3, atol=1e-6)
    slope = jax.grad(lambda p: weighted_entropy(p).sum())(jnp.full((1, 1, 1), value))
    assert np.isfinite(slope).all()


def test_the_weight_of_the_entropy_is_differentiated():
    p = 0.6
    weight, entropy = np.exp(-0.5), -p * np.log(p) - (1 - p) * np.log(1 - p)
    expected = weight * (np.log((1 - p) / p) - 100 * (p - 0.5) * entropy)
    found = jax.grad(lambda p: weighted_entropy(p)[0])(jnp.full((1, 1, 1), p))
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-4)


def test_the_area_by_hand():
    logits = np.array([[1.0, 5, 4, 3, 2], [5, 1, 2, 3, 4]])  # ranks 4 and 5: classes 4, 0; 2, 1
    responses = np.array([[1.0, 10, 100, 1000, 5], [1, 10, 100, 1000, 5]])
    maps = np.stack([np.full((2, 2), 0.5), np.eye(2) / 2])
    found = area_loss(jnp.asarray(maps), jnp.asarray(responses), jnp.asarray(logits))
    np.testing.assert_allclose(found, [0.5 + 6, 0.25 + 110])


@pytest.mark.parametrize('classes', [2, 3, 4, 24, 25, 26, 40])
def test_the_area_counts_ranks_4_to_25(classes):
    logits, responses = RNG.normal(size=(2, 3, classes))
    expected = [
        sum(r[c] for c in np.argsort(-z)[3:25]) for z, r in zip(logits, responses, strict=True)
    ]
    found = area_loss(jnp.zeros((3, 2, 2)), jnp.asarray(responses), jnp.asarray(logits))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_losses_of_both_stages_by_hand():
    labels = np.array([0, 1], np.int32)
    batch = Shard(None, {'labels': labels[:, None]}, np.ones(2, bool), np.arange(2))
    # Log-sums: of [0, 0] log 2, of [log 3, 0] log 4.
    even, uneven = np.zeros((2, 2)), np.array([[np.log(3), 0]] * 2)
    extras = {'map': jnp.full((2, 4, 4), 0.6), 'responses': jnp.ones((2, 2))}
    outputs = Outputs(jnp.asarray(uneven), {}, extras | {'side': jnp.asarray(even)})
    losses, values = ORNet().loss(outputs, batch, None)
    expected = np.array([np.log(4 / 3), np.log(4)])
    np.testing.assert_allclose(losses, expected + np.log(2), rtol=1e-6)
    assert sorted(values) == ['accuracy', 'accuracy_side', 'area']
    assert values['accuracy'].tolist() == [100, 0]
    outputs = Outputs(jnp.asarray(even), {}, extras | {'evaluator': jnp.asarray(uneven)})
    losses, values = ORNet(stage=2).loss(outputs, batch, None)
    np.testing.assert_allclose(losses, expected + 0.02 * 0.6 + 1.5 * 0.40822, rtol=1e-4)
    assert sorted(values) == ['accuracy', 'accuracy_evaluator', 'area', 'entropy']
    assert values['accuracy_evaluator'].tolist() == [100, 0]
    other = ORNet(stage=2, area_weight=1.0, entropy_weight=0.0).loss(outputs, batch, None)[0]
    np.testing.assert_allclose(other, expected + 0.6, rtol=1e-5)


def erased_by_loop(values, key):
    """The rules of attentive erasing for one map, place by place, with the draws of its key."""
    drawn, factor, *sides, noise = jax.random.split(key, 5)
    height, width = values.shape
    threshold = values.max() - (values.max() - values.min()) * float(
        jax.random.uniform(factor, maxval=0.5)
    )
    above = [(y, x) for y in range(height) for x in range(width) if values[y, x] > threshold]
    erased, reason = np.zeros(values.shape, bool), ''
    if not jax.random.bernoulli(drawn):
        return erased, 'not drawn'
    if not above:
        return erased, 'nothing above'
    peak = np.unravel_index(np.argmax(values), values.shape)
    reach = []
    for axis, side in enumerate(sides):
        places = [place[axis] for place in above]
        half = (max(places) - min(places)) // 2
        if half <= 4:
            return erased, 'too small'
        reach.append(int(jax.random.randint(side, (), 4, half)))
    drops = jax.random.bernoulli(noise, 0.6 * jnp.asarray(values, jnp.float32) + 0.2)
    for y, x in above:
        if abs(y - peak[0]) < reach[0] and abs(x - peak[1]) < reach[1]:
            erased[y, x] = drops[y, x]
    return erased, reason


def maps_to_erase():
    """Wide and narrow bumps, high and wide stripes, noise, a constant; 20 x 24."""
    y, x = np.mgrid[:20, :24]
    bump = np.exp(-(((y - 9) / 7) ** 2) - ((x - 11) / 8) ** 2)
    corner = np.exp(-((y / 14) ** 2) - (x / 15) ** 2)
    narrow = np.exp(-(((y - 9) / 2) ** 2) - ((x - 11) / 2) ** 2)
    stripe = np.exp(-(((y - 9) / 2) ** 2)) * (0.9 + 0.1 * np.cos(x - 11))
    noise = RNG.random((20, 24))
    kinds = [bump, corner, narrow, stripe, stripe[:, ::-1], noise, np.full((20, 24), 0.3)]
    return np.stack(kinds * 6).astype(np.float32)


@pytest.mark.slow
def test_erasing_is_that_of_a_plain_loop():
    maps, erasing = maps_to_erase(), AttentiveErasing(rngs=nnx.Rngs(3))
    keys = jax.random.split(jax.random.key(8), len(maps))
    erasing.key.set_value(keys)
    found = np.asarray(erasing(jnp.asarray(maps)))
    reasons = []
    for values, key, given in zip(maps, keys, found, strict=True):
        erased, reason = erased_by_loop(values, key)
        np.testing.assert_allclose(given, np.where(erased, 0, 0.6 * values + 0.2), rtol=1e-5)
        reasons.append(reason or ('erased' if erased.any() else 'spared'))
    counts = {reason: reasons.count(reason) for reason in reasons}
    assert set(counts) >= {'erased', 'not drawn', 'nothing above', 'too small'}
    assert counts['erased'] >= 4 and 0.25 < counts['not drawn'] / len(maps) < 0.75
    slope = jax.grad(lambda m: erasing(m).sum())(jnp.asarray(maps))
    np.testing.assert_allclose(slope, np.where(found == 0, 0, 0.6), rtol=1e-6)
    erasing.eval()
    np.testing.assert_array_equal(erasing(maps), maps)


@pytest.mark.slow
@pytest.mark.parametrize('shape', [(1, 1), (7, 13), (9, 4), (16, 16)])
def test_the_generator_keeps_any_size(shape):
    generator = _Generator(5, 2, 7, rngs=nnx.Rngs(0))
    features, maps = generator(jnp.asarray(RNG.normal(size=(2, *shape, 5)), jnp.float32))
    assert features.shape == (2, *shape, 7) and maps.shape == (2, *shape, 1)
    assert float(maps.min()) > 0 and float(maps.max()) < 1
    widths = {name: getattr(generator, name).conv2.conv.kernel.shape[-1] for name in UNET}
    assert widths == {'down_1': 4, 'down_2': 8, 'down_3': 16, 'up_1': 8, 'up_2': 6, 'up_3': 7}


UNET = ('down_1', 'down_2', 'down_3', 'up_1', 'up_2', 'up_3')


@pytest.mark.slow
def test_the_generator_starts_with_the_variance_of_fan_out():
    kernel = np.asarray(_Generator(64, 8, 3, rngs=nnx.Rngs(0)).down_1.conv1.conv.kernel[...])
    assert kernel.shape == (3, 3, 64, 16) and abs(kernel.mean()) < 0.01
    assert kernel.var() == pytest.approx(2 / (9 * 16), rel=0.05)


@pytest.mark.slow
def test_the_generator_is_that_of_torch():
    torch = pytest.importorskip('torch')
    from torch.nn import functional

    generator = _Generator(3, 1, 4, rngs=nnx.Rngs(1))

    def of(array):
        return torch.tensor(np.asarray(array).transpose(3, 2, 0, 1))

    def norm(layer, x):
        x = functional.conv2d(x, of(layer.conv.kernel[...]), padding=1)
        return functional.batch_norm(x, None, None, training=True)

    def double(layer, x):
        for part in (layer.conv1, layer.conv2):
            x = functional.leaky_relu(norm(part, x), 0.01)
        return x

    def up(layer, skipped, x):
        x = functional.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False)
        return double(layer, torch.cat([skipped, x], 1))

    given = RNG.normal(size=(2, 16, 8, 3)).astype(np.float32)
    levels = [torch.tensor(given.transpose(0, 3, 1, 2))]
    for layer in (generator.down_1, generator.down_2, generator.down_3):
        levels.append(double(layer, functional.max_pool2d(levels[-1], 2)))
    x = levels.pop()
    for layer in (generator.up_1, generator.up_2, generator.up_3):
        x = up(layer, levels.pop(), x)
    maps = torch.sigmoid(norm(generator.attention, x))
    features, found = generator(jnp.asarray(given))
    np.testing.assert_allclose(features.transpose(0, 3, 1, 2), x.numpy(), rtol=1e-2, atol=2e-4)
    np.testing.assert_allclose(found.transpose(0, 3, 1, 2), maps.numpy(), rtol=1e-2, atol=2e-4)


def headed(method, classes=6):
    module = Tiny(classes, rngs=nnx.Rngs(0))
    add_heads('tiny', module, method, 0)
    return module


IMAGES = RNG.integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)


@pytest.mark.slow
def test_the_network_goes_on_with_features_times_the_map():
    module = headed(ORNet(**OPTIONS))
    module.eval()
    inputs, labels = zoo.SYMMETRIC(IMAGES), jnp.zeros(4, jnp.int32)
    logits, endpoints, extras = outputs_of(module, inputs, None, labels)
    x = Tiny.__call__(module, inputs)[1]['late/early']  # without heads
    features, maps = module.heads.generator(x)
    np.testing.assert_allclose(endpoints['late/early'], x, rtol=1e-6)
    late = jax.nn.relu(module.conv2(x * maps))
    np.testing.assert_allclose(logits, module.fc(late.mean((1, 2))), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(extras['map'], maps[..., 0], rtol=1e-5)
    # A 1x1 convolution of the features, then their mean.
    side = jnp.einsum('bhwk,kc->bhwc', features, module.heads.side.kernel[...]).mean((1, 2))
    np.testing.assert_allclose(extras['side'], side, rtol=1e-3, atol=1e-5)
    own = module.heads.map(endpoints, jnp.zeros((4, 3), jnp.int32))
    np.testing.assert_allclose(own, jnp.repeat(maps[..., 0][:, None], 3, 1), rtol=1e-5)
    assert outputs_of(module, inputs).extras == {}


@pytest.mark.slow
def test_the_evaluator_sees_the_image_times_the_map():
    module = headed(ORNet(stage=2, **OPTIONS))
    module.eval()
    inputs = zoo.SYMMETRIC(IMAGES)
    extras = outputs_of(module, inputs, None, jnp.zeros(4, jnp.int32)).extras
    maps = np.asarray(extras['map'])
    shown = np.repeat(np.repeat(maps, 2, 1), 2, 2)[..., None]  # 16 x 16 places of 32 x 32
    plain = Tiny(6, rngs=nnx.Rngs(0))
    plain.eval()
    expected = plain(inputs * shown)[0]
    np.testing.assert_allclose(extras['evaluator'], expected, rtol=1e-4, atol=1e-5)


SETTING = TrainConfig(
    optimizer='adamw', learning_rate=0.05, weight_decay=0.1, schedule='constant', warmup=0.0
)


@cache
def program_of(method, setting=SETTING):
    return make_program(setting, method, headed(method), zoo.SYMMETRIC, local_devices('jit'), 10, 5)


def stepped(program, count):
    images = np.concatenate([IMAGES, 255 - IMAGES])
    state = jax.tree.map(jnp.copy, program.initial)
    for _ in range(count):
        state, measured = program.step(state, batch_of(images, np.arange(8, dtype=np.int32) % 6))
    assert np.isfinite(measured.mean_loss)
    return state, measured


def named(state):
    parts = [*nnx.to_flat_state(state.params), *nnx.to_flat_state(state.stats)]
    return {'.'.join(map(str, path)): np.asarray(leaf[...]) for path, leaf in parts}


def moved(program, count=3):
    """The names of what steps with weight decay changed, and of what they did not."""
    before, after = named(program.initial), named(stepped(program, count)[0])
    changed = {n for n in before if not np.array_equal(before[n], after[n])}
    return changed, set(before) - changed


@pytest.mark.slow
def test_stage_1_trains_all_but_the_evaluator():
    changed, kept = moved(program_of(ORNet(**OPTIONS)))
    assert kept == {n for n in changed | kept if n.startswith('heads.evaluator.')}
    assert {'heads.evaluator.norm.mean', 'heads.evaluator.fc.kernel'} <= kept


@pytest.mark.slow
def test_stage_2_trains_four_parts_of_the_generator():
    changed, kept = moved(program_of(ORNet(stage=2, **OPTIONS)))
    trained = tuple(f'heads.generator.{part}.' for part in ('up_2', 'up_3', 'attention'))
    assert changed == {n for n in changed | kept if n.startswith(trained)}
    norms = {f'heads.generator.up_3.conv2.bn.{leaf}' for leaf in ('mean', 'var', 'scale', 'bias')}
    assert norms <= changed and {'norm.mean', 'heads.generator.down_1.conv1.bn.mean'} <= kept


@pytest.mark.slow
def test_frozen_parts_draw_nothing_in_stage_2():
    """Without erasing, a batch makes the same loss at every step: no dropout is left."""
    method = ORNet(stage=2, **OPTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AttentiveErasing, '__call__', lambda _, maps: maps)
        quiet = program_of.__wrapped__(method)

        def losses(program):
            shard = batch_of(IMAGES, np.arange(4, dtype=np.int32))
            states = (program.initial._replace(step=jnp.int32(k)) for k in (0, 1))
            copies = (jax.tree.map(jnp.copy, state) for state in states)
            return [float(program.step(state, shard)[1].mean_loss) for state in copies]

        first, second = losses(quiet)
    assert first == second
    first, second = losses(program_of(method))
    assert first != second


@pytest.mark.slow
def test_the_statistics_of_the_generator_are_updated_once():
    program = program_of(ORNet(**OPTIONS))
    module = headed(ORNet(**OPTIONS))
    images = IMAGES
    x = Tiny.__call__(module, zoo.SYMMETRIC(images))[1]['late/early']
    pooled = np.asarray(x).reshape(4, 8, 2, 8, 2, 6).max((2, 4))
    inner = module.heads.generator.down_1.conv1.conv(jnp.asarray(pooled))
    state = jax.tree.map(jnp.copy, program.initial)
    state, _ = program.step(state, batch_of(images, np.arange(4, dtype=np.int32)))
    found = named(state)['heads.generator.down_1.conv1.bn.mean']
    np.testing.assert_allclose(found, 0.01 * inner.mean((0, 1, 2)), rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('stage', [1, 2])
def test_steps_in_bfloat16_are_finite(stage):
    method = ORNet(stage=stage, **OPTIONS)
    half = stepped(program_of(method, replace(SETTING, dtype='bfloat16')), 1)
    _, measured = stepped(program_of(method), 1)
    assert float(half[1].mean_loss) == pytest.approx(float(measured.mean_loss), rel=0.1)
    assert all(np.isfinite(value).all() for value in named(half[0]).values())


@pytest.fixture(scope='module')
def network():
    module = build('resnet10', 3, nnx.Rngs(0), width=4)
    add_heads('resnet10', module, ORNet(base=2), seed=0)
    return as_network('resnet10', module, input_size=64)


@pytest.mark.slow
def test_the_map_is_one_for_all_classes_beside_other_methods(network):
    images = RNG.integers(0, 256, (2, 64, 64, 3), np.uint8)
    methods, layers = ('ornet', 'dgl'), ('stage1', 'stage3')
    result = localize(network, images, methods, layers, [[0, 2], [1, 0]], resize=False)
    assert list(result.maps) == [('ornet', 'head'), ('dgl', 'stage1'), ('dgl', 'stage3')]
    found = result.maps['ornet', 'head']
    _, endpoints = network(images)
    expected = np.asarray(endpoints['stage1/map'])[..., 0]
    np.testing.assert_allclose(found, np.stack([expected] * 2, 1), rtol=1e-5)
    assert found.min() > 0 and found.max() < 1  # as it is, not scaled


@pytest.mark.slow
def test_cam_is_that_of_the_network_behind_the_map(network):
    LOCALIZATION.check_network(Config(localize=LocalizeConfig(methods=('cam',))), network)
    images = RNG.integers(0, 256, (2, 64, 64, 3), np.uint8)
    found = localize(network, images, ('cam',), classes=2, resize=False).maps['cam', 'stage4']
    expected = network(images)[1]['stage4'] @ network.module().fc.kernel[...][:, 2]
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found / found.max(), expected / expected.max(), atol=1e-4)


@pytest.mark.slow
def test_exported_maps_are_the_same(network, tmp_path):
    images = RNG.integers(0, 256, (2, 64, 64, 3), np.uint8)
    expected = localize(network, images, ('ornet',), classes=0, resize=False)
    export(network, ('ornet',), None, tmp_path / 'maps.zip', input_size=64)
    found = load_exported(tmp_path / 'maps.zip')(images, np.zeros(2, np.int32))
    np.testing.assert_allclose(
        found.maps['ornet', 'head'], expected.maps['ornet', 'head'], rtol=1e-4, atol=1e-5
    )


def test_the_stem_of_a_resnet_is_a_layer_but_no_main_one(network):
    assert 'stage1/stem' in network.endpoints() and network.layers()[0] == 'stage1'
    module = build('resnet10', 3, nnx.Rngs(0), width=4)
    add_heads('resnet10', module, ORNet(base=2, layer='stage1/stem'), seed=0)
    other = as_network('resnet10', module, input_size=64)
    assert other.endpoints()['stage1/stem/map'] == (16, 16, 1)
    assert other.layers() == network.layers()
    assert make_plan(other, ('ornet',)).keys == [('ornet', 'head')]


def test_wrong_options_are_one_line():
    with pytest.raises(ConfigError, match=r"^unknown layer of tiny in config.*'lat'.*'late'"):
        headed(ORNet(layer='lat'))
    with pytest.raises(ConfigError, match=r'config\.train\.options\.stage must be at most 2, got'):
        make_method(TrainConfig(method='ornet', options={'stage': 3}))


# Two trainings after a plain one, 30 images: 3 steps an epoch.
TRAIN = TrainConfig(epochs=2, batch_size=12, learning_rate=0.05, log_every=1)
PLAIN = Config(network=NetworkConfig('tiny', input_size=SIDE), train=TRAIN)


def config_of(stage, start):
    options = {**OPTIONS, 'stage': stage}
    setting = replace(TRAIN, method='ornet', options=options, init_from=str(start))
    return replace(PLAIN, train=setting)


@pytest.fixture(scope='module')
def sources():
    return Shapes('train', 30, size=SIDE), Shapes('val', 14, size=SIDE)


def trained(config, sources, workdir):
    workdir.mkdir(exist_ok=True)
    (workdir / 'config.json').write_text(json.dumps({'config': flatten(config), 'contents': {}}))
    train(config, *sources, workdir)
    return workdir


@pytest.fixture(scope='module')
def runs(tmp_path_factory, sources):
    """Plain training, stage 1 and stage 2, without a break."""
    folder = tmp_path_factory.mktemp('ornet')
    plain = trained(PLAIN, sources, folder / 'plain')
    one = trained(config_of(1, plain), sources, folder / 'one')
    two = trained(config_of(2, one), sources, folder / 'two')
    return plain, one, two


@pytest.mark.slow
def test_each_stage_goes_on_from_the_one_before(runs):
    plain, one, two = (saved(run, 'best') for run in runs)
    copies = [k for k in one if '.heads.evaluator.' in k]
    assert len(copies) == 9
    for key in copies:
        expected = plain[key.replace('heads.evaluator.', '')]
        np.testing.assert_array_equal(one[key], expected)
        np.testing.assert_array_equal(two[key], expected)
    changed = {k.split('.')[3] for k in two if not np.array_equal(two[k], one[k]) and 'gen' in k}
    assert {'up_2', 'up_3', 'attention'} <= changed
    np.testing.assert_array_equal(
        two['params.conv1.kernel.value'], one['params.conv1.kernel.value']
    )
    assert not np.array_equal(one['params.fc.kernel.value'], plain['params.fc.kernel.value'])


@pytest.mark.slow
@pytest.mark.parametrize('stage', [1, 2])
def test_a_stopped_stage_ends_as_if_it_had_not_been(runs, sources, tmp_path, stage):
    config, row = config_of(stage, runs[stage - 1]), ProgressLog.row

    def interrupted(log, name, split, step, *arguments, **values):
        if (split, step) == ('train', 4):
            signal.raise_signal(signal.SIGINT)
        row(log, name, split, step, *arguments, **values)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgressLog, 'row', interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(config, sources, tmp_path)
    signal.signal(signal.SIGINT, before)
    config = replace(config, train=replace(config.train, init_from='gone'))  # not read again
    train(config, *sources, tmp_path)
    for kind in ('last', 'best'):
        found, expected = saved(tmp_path, kind), saved(runs[stage], kind)
        assert list(found) == list(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    progress = [read_csv(run / 'progress.csv')[-1] for run in (tmp_path, runs[stage])]
    assert progress[0]['loss'] == progress[1]['loss'] and progress[0]['area']


@pytest.mark.slow
def test_networks_open_when_what_they_started_from_is_gone(runs, sources, tmp_path):
    for run in runs[1:]:
        shutil.copytree(run, tmp_path / run.name)
        network = load_network('tiny', tmp_path / run.name)
        found = localize(network, IMAGES, ('ornet', 'dgl'), ('late',), classes=0, resize=False)
        expected = trained_network(config_of(1 + (run == runs[2]), 'gone'), run)
        kept = localize(expected, IMAGES, ('ornet', 'dgl'), ('late',), classes=0, resize=False)
        np.testing.assert_array_equal(found.maps['ornet', 'head'], kept.maps['ornet', 'head'])
        assert ('dgl', 'late') in found.maps


@pytest.mark.slow
def test_wrong_starts_are_one_line_that_says_what_to_give(runs, sources, tmp_path):
    plain, one, two = runs

    def message(config, source=sources):
        with pytest.raises(ConfigError) as caught:
            train(config, *source, tmp_path / 'new')
        assert '\n' not in str(caught.value) and not (tmp_path / 'new/progress.csv').exists()
        return str(caught.value)

    first = (
        'stage 1 of ornet starts from a plain training of this network on the same classes: give '
        'its workdir'
    )
    second = first.replace('stage 1', 'stage 2').replace(
        'a plain training', 'a training of stage 1'
    )
    key = 'config.train.init_from:'
    assert message(config_of(1, '')) == f'{key} no training to start from; {first}'
    assert message(config_of(1, one)) == f"{key} {one} holds a training of 'ornet'; {first}"
    assert message(config_of(2, '')) == f'{key} no training to start from; {second}'
    assert message(config_of(2, plain)) == f'{key} {plain} holds a plain training; {second}'
    assert message(config_of(2, two)) == f'{key} {two} holds a training of stage 2; {second}'
    other = config_of(2, one)
    other = replace(other, train=replace(other.train, options={**OPTIONS, 'stage': 2, 'base': 3}))
    assert message(other) == (
        f'{key} {one} was trained with base=2; config.train.options.base must be the same, got 3'
    )
    four = [Shapes(split, 12, size=SIDE, num_classes=4) for split in ('train', 'val')]
    assert message(config_of(1, plain), four) == (
        f'{key} {plain} was trained on other classes: fc.bias is (6,), here (4,); {first}'
    )

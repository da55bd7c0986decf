"""Sharing of batches, here and on eight devices forced from one CPU, through the real stages."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import Listed
from flax import nnx
from jax.sharding import AxisType

from wsol_jax.config import Config, LocalizeConfig, NetworkConfig, TrainConfig
from wsol_jax.data import Shapes
from wsol_jax.data.label_maps import MISSING
from wsol_jax.evaluation.faithfulness import faithfulness_program
from wsol_jax.localization.epoch import EpochScore
from wsol_jax.localization.localize import compute_maps
from wsol_jax.localization.plan import make_plan
from wsol_jax.localization.stage import localize_split
from wsol_jax.models import load_network, zoo
from wsol_jax.models.layers import Dropout, Endpoints, conv, global_average_pool
from wsol_jax.parallel import local_devices, one_ahead
from wsol_jax.training.checkpoints import Checkpoints
from wsol_jax.training.loop import train
from wsol_jax.training.method import Shard, TrainedMethod, batch_mean
from wsol_jax.training.methods import add_heads, make_module
from wsol_jax.training.methods.acol import ACoL
from wsol_jax.training.methods.adl import ADL
from wsol_jax.training.methods.bas import BAS
from wsol_jax.training.methods.bas_wsss import BASWSSS
from wsol_jax.training.methods.cutmix import CutMix
from wsol_jax.training.methods.esol import ESOL
from wsol_jax.training.methods.has import HaS
from wsol_jax.training.methods.irn import IRN
from wsol_jax.training.methods.mars import MARS
from wsol_jax.training.methods.ornet import ORNet
from wsol_jax.training.methods.sat import SAT
from wsol_jax.training.methods.spg import SPG
from wsol_jax.training.methods.ts_cam import TSCAM
from wsol_jax.training.step import make_program
from wsol_jax.training.trained import trained_network
from wsol_jax.workdir import read_csv

SIDE = 32
KINDS = ('jit', 'pmap')


class Tiny(nnx.Module):
    """Convolutions, batch norm if asked for, dropout, linear: compiled in a moment."""

    def __init__(self, num_classes, *, norm=True, rngs):
        self.conv1 = conv(3, 6, 3, strides=2, use_bias=not norm, rngs=rngs)
        self.norm = nnx.BatchNorm(6, momentum=0.5, rngs=rngs) if norm else None
        self.conv2 = conv(6, 8, 3, strides=2, rngs=rngs)
        self.dropout = Dropout(0.25, rngs=rngs)
        self.fc = nnx.Linear(8, num_classes, rngs=rngs)

    def __call__(self, inputs, perturb=None):
        endpoints = Endpoints(perturb)
        x = self.conv1(inputs)
        x = endpoints.tap('late/early', nnx.relu(self.norm(x) if self.norm else x))
        x = endpoints.tap('late', nnx.relu(self.conv2(x)))
        return self.fc(global_average_pool(self.dropout(x))), endpoints.finish()


RECIPE = zoo.Recipe(Tiny, zoo.SYMMETRIC, SIDE, (), r'^fc\b', 'fc.bias', options=('norm',))


@pytest.fixture(scope='module')
def tiny():
    """Makes 'tiny' a network of the zoo."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.RECIPES, 'tiny', RECIPE)
        yield


def saved(workdir, kind='last'):
    """Everything in a checkpoint, by name."""
    with Checkpoints(workdir) as checkpoints:
        folder = workdir / 'checkpoints' / kind / str(checkpoints.step(kind))
        parts = sorted(path.name for path in folder.iterdir() if path.is_dir())
        found = checkpoints._newest(kind, lambda _: dict.fromkeys(parts))
    return {f'{part}.{k}': np.asarray(v) for part in parts for k, v in found[part].items()}


def config_of(parallel, norm):
    """Batches with norm are shared evenly by eight devices, those without are not.

    Those without are of several labels, balanced and weighted.
    """
    setting = TrainConfig(epochs=2, learning_rate=0.1, ema=0.5, clip=5.0, log_every=1)
    batch = (
        {'batch_size': 8, 'keep': LOCALIZING}
        if norm
        else {'batch_size': 6, 'accumulate': 2} | SEVERAL
    )
    return Config(
        parallel=parallel,
        network=NetworkConfig('tiny', input_size=SIDE, options={'norm': norm}),
        train=TrainConfig(**vars(setting) | batch),
        localize=LocalizeConfig(methods=('dgl', 'cam', 'random_cam'), noise=1, batch_size=6),
    )


def labelled(split='val', count=11):
    """Images, every third of which has two labels."""
    records = [Shapes(split, count, size=SIDE)[k] for k in range(count)]
    some = [replace(r, labels=(*r.labels, 5 - r.labels[0])) for r in records[::3]]
    return Listed([some[k // 3] if k % 3 == 0 else r for k, r in enumerate(records)], 'abcdef')


def stages(folder, parallel):
    """Two trainings and a localization, each with an uneven last batch."""
    of_one = Shapes('train', 20, size=SIDE), Shapes('val', 11, size=SIDE)
    for norm, sources in ((True, of_one), (False, (labelled('train', 20), labelled()))):
        train(config_of(parallel, norm), *sources, folder / f'norm={norm}', None, EpochScore)
    network = load_network('tiny', num_classes=6, seed=2)
    localize_split(config_of(parallel, True), network, labelled(), 'val', folder / 'localized')


LOCALIZING = 'best_localization'
SEVERAL = {'loss': 'sigmoid', 'class_weights': (1.0, 2.0, 0.5, 1.0, 1.0, 3.0), 'balanced': True}
METHODS = ('dgl', 'layer_cam', 'eigen_cam', 'score_cam', 'random_cam')
COLLECTIVE = r' (all-[a-z]+|reduce-scatter|collective-[a-z]+)(-start)?\('


def costs(kind):
    """{program: [FLOPs of a device, collectives]} of everything that treats images alone."""
    devices = local_devices(kind)
    module, method = Tiny(6, norm=False, rngs=nnx.Rngs(0)), ACoL(width=8)
    add_heads('tiny', module, method, 0)
    network = zoo.as_network('tiny', module)
    plan = make_plan(network, (*METHODS, 'acol'))

    def maps(state, images, classes):
        return compute_maps(network.apply, network.preprocessing, plan, state, images, 0, classes)

    images, classes = np.zeros((16, SIDE, SIDE, 3), np.uint8), np.zeros(16, np.int32)
    state, setting = devices.replicate(network.state), TrainConfig()
    facts = (network.preprocessing, devices, 10, 5)
    training = make_program(setting, method, module, *facts)
    train_state = devices.replicate(training.initial)
    batch = {
        'maps': (devices.per_image(maps), state, images, classes[:, None]),
        'faithfulness': (
            faithfulness_program(network, devices),
            *(state, images, [np.zeros((16, 8, 8), np.float32)] * 2, classes),
        ),
        'validation': (training.evaluate, train_state, batch_of(images, classes)),
    }
    return {
        name: cost(program.lower(shared, *devices.shard(tuple(arrays))).compile())
        for name, (program, shared, *arrays) in batch.items()
    }


def batch_of(images, labels):
    whole = np.arange(len(images), dtype=np.int32)
    seeds = np.where(images[..., 0] < 200, images[..., 1] % 3, 255).astype(np.uint8)
    targets = {'labels': labels[:, None], 'label_map': seeds}
    return Shard(images, targets, whole >= 0, whole)


def cost(program):
    return [program.cost_analysis()['flops'], len(re.findall(COLLECTIVE, program.as_text()))]


def training_cost(kind):
    """FLOPs of a device in a training step, and the kinds of communication."""
    devices, setting = local_devices(kind), TrainConfig(ema=0.5)
    network = load_network('tiny', num_classes=6, seed=2)
    facts = (network.preprocessing, devices, 10, 5)
    program = make_program(setting, TrainedMethod(), Tiny(6, rngs=nnx.Rngs(0)), *facts)
    images, whole = np.zeros((64, SIDE, SIDE, 3), np.uint8), np.arange(64, dtype=np.int32)
    shard = devices.shard(batch_of(images, whole % 6))
    compiled = program.step.lower(devices.replicate(program.initial), shard).compile()
    kinds = {name for name, _ in re.findall(COLLECTIVE, compiled.as_text())}
    return [compiled.cost_analysis()['flops'], sorted(kinds)]


@dataclass(frozen=True, kw_only=True)
class Coupled(TrainedMethod):
    """Its loss is no sum over images: the square of a mean over the batch."""

    def loss(self, outputs, batch, update):
        values = outputs.logits[:, 0] + batch.index
        return batch_mean(values, batch, update) ** 2, {'accuracy': values}


# Every training method makes the same step on any number of devices.
STEPPED = {
    'acol': ACoL(width=8),
    'has': HaS(),
    'cutmix': CutMix(),
    'adl': ADL(layers=('late/early', 'late')),
    'bas': BAS(width=8, layer='late/early'),
    'bas_wsss': BASWSSS(layer='late/early'),
    'spg': SPG(lower='late/early', upper='late', width=8, side_width=4),
    'coupled': Coupled(),
    'ornet 1': ORNet(layer='late/early', base=2),
    'ornet 2': ORNet(layer='late/early', base=2, stage=2),
    'ts_cam': TSCAM(),
    'sat': SAT(),
    'esol 1': ESOL(),
    'esol 2': ESOL(stage=2),
    'irn': IRN(layers=('late/early', 'late'), radius=3, width=4),
    'mars': MARS(head='v2', rates=(1, 2)),
}
TOKENS = {'width': 8, 'heads': 2, 'depth': 3, 'patch': 8, 'image_size': SIDE, 'drop_path': 0.5}


def trunk_of(name, method):
    """With the heads of the method."""
    if name in ('ts_cam', 'sat'):
        return make_module('vit_tiny', None, 6, method, 0, TOKENS)
    module = Tiny(6, norm=False, rngs=nnx.Rngs(0))
    add_heads('tiny', module, method, 0)
    return module


def one_step_of_each(folder, kind):
    for name, method in STEPPED.items():
        one_step(folder / f'{name}.npz', kind, method, trunk_of(name, method))


def one_step(file, kind, method, module):
    """Writes the weights of a network with heads after one step, and what it reported."""
    devices = local_devices(kind)
    setting = TrainConfig(learning_rate=0.1, warmup=0.0, ema=0.5)
    program = make_program(setting, method, module, zoo.SYMMETRIC, devices, 10, 5)
    images = np.random.default_rng(0).integers(0, 256, (16, SIDE, SIDE, 3), np.uint8)
    batch = batch_of(images, np.arange(16, dtype=np.int32) % 6)
    if isinstance(method, MARS):
        batch.targets['label_map'][:, ::2] = MISSING
    # The last images do not count: devices have unlike shares.
    batch = devices.shard(batch._replace(valid=batch.index < 13))
    state = devices.replicate(program.initial, donated=True)
    state, measured = devices.one(program.step(state, batch))
    leaves = jax.tree.leaves((state.params, measured))
    np.savez(file, *map(np.asarray, leaves))


ON_EIGHT = """
import json, sys
import jax, numpy as np
from pathlib import Path
from test_parallel import KINDS, RECIPE, check_devices, costs, stages, training_cost
from test_parallel import one_step_of_each
from wsol_jax.models import zoo

if __name__ == '__main__':
    zoo.RECIPES['tiny'] = RECIPE
    assert jax.device_count() == 8
    for kind in KINDS:
        check_devices(kind)
        folder = Path(sys.argv[1]) / f'eight {kind}'
        stages(folder, kind)
        one_step_of_each(folder, kind)
        found = costs(kind) | {'training': training_cost(kind)}
        (folder / 'costs.json').write_text(json.dumps(found))
"""


def check_devices(kind):
    """What is put on the devices, however many there are, and what comes back."""
    devices, count = local_devices(kind), jax.device_count()
    assert devices.size == count
    for n in range(1, 3 * count):
        up = devices.round_up(n)
        assert up >= n and up % count == 0 and up - n < count
        assert devices.round_up(n, 3) == 3 * count * math.ceil(n / (3 * count))
    rows = np.arange(6.0 * count).reshape(2 * count, 3)
    shards = devices.shard((rows, rows[:, 0]))
    for array, whole in zip(shards, (rows, rows[:, 0]), strict=True):
        parts = {s.device.id: np.asarray(s.data) for s in array.addressable_shards}
        assert len(parts) == count
        for k, device in enumerate(jax.local_devices()):
            part = parts[device.id].reshape(2, *whole.shape[1:])
            np.testing.assert_array_equal(part, whole[2 * k : 2 * k + 2])
    for one, two in zip(devices.gather(shards), (rows, rows[:, 0]), strict=True):
        assert isinstance(one, np.ndarray)
        np.testing.assert_array_equal(one, two)
    copies = devices.replicate({'w': rows})
    assert len(copies['w'].addressable_shards) == count
    np.testing.assert_array_equal(devices.one(copies)['w'], rows)

    @devices.per_image
    def moved(weights, x, y):
        return {'sum': x + y[:, 1] + weights['w'][0, 1]}

    found = devices.gather(moved(copies, shards[1], shards[0]))
    np.testing.assert_array_equal(found['sum'], rows[:, 0] + rows[:, 1] + rows[0, 1])
    seen = []

    def doubled(own):
        seen.append(own.shape)
        return 2 * own

    def step(state, x):
        return state, devices.total(devices.alone(doubled)(x).sum())

    state = devices.replicate(np.zeros(1), donated=True)
    assert devices.one(devices.step(step)(state, shards[0])[1]) == 2 * rows.sum()
    assert seen == [(2, 3)]

    @devices.step
    def step(weights, x):
        return jax.tree.map(lambda w: w + 1, weights), devices.total(x.sum())

    # One array under two names: each is given up by itself, the caller's stays.
    mine = jax.numpy.asarray(rows)
    given = devices.replicate({'a': mine, 'b': mine}, donated=True)
    after, total = step(given, shards[1])
    assert float(devices.one(total)) == rows[:, 0].sum()
    assert all(x.is_deleted() for x in given.values())
    np.testing.assert_array_equal(devices.one(after)['b'], rows + 1)
    np.testing.assert_array_equal(mine, rows)
    with pytest.raises(ValueError):
        if count == 1:
            raise ValueError('one device can share anything')
        devices.shard(rows[:-1])


@pytest.fixture(scope='module')
def runs(tmp_path_factory, tiny):
    """A folder with what eight devices and one leave behind."""
    folder = tmp_path_factory.mktemp('runs')
    flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=8'
    environment = {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
    environment['PYTHONPATH'] = str(Path(__file__).parent)
    command = [sys.executable, '-c', ON_EIGHT, str(folder)]
    process = subprocess.Popen(command, env=environment)
    stages(folder / 'one jit', 'jit')
    one_step_of_each(folder / 'one jit', 'jit')
    assert process.wait(timeout=600) == 0
    return folder


OTHERS = ('eight jit', 'eight pmap')


def assert_close(found, expected, atol):
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=atol, atol=atol, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize('method', STEPPED)
@pytest.mark.parametrize('run', OTHERS)
def test_every_method_makes_the_same_step_on_any_devices(runs, run, method):
    one, other = (np.load(runs / name / f'{method}.npz') for name in ('one jit', run))
    assert len(one.files) > 8
    assert_close(dict(other), dict(one), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('norm', [True, False])
@pytest.mark.parametrize('run', OTHERS)
def test_training_does_not_depend_on_the_devices(runs, run, norm):
    one, other = runs / f'one jit/norm={norm}', runs / run / f'norm={norm}'
    for kind in ('last', 'best', *([LOCALIZING] if norm else [])):
        assert_close(saved(other, kind), saved(one, kind), 1e-5)
    rows = [read_csv(workdir / 'progress.csv') for workdir in (other, one)]
    # 20 images make 3 batches of 8 or 4 of 6.
    assert len(rows[0]) == len(rows[1]) == 2 * ((3 if norm else 4) + 1)
    for mine, theirs in zip(*rows, strict=True):
        assert (mine['split'], mine['step']) == (theirs['split'], theirs['step'])
        assert mine['accuracy'] == theirs['accuracy']
        assert mine.get('MaxBoxAccV2') == theirs.get('MaxBoxAccV2')
        if theirs['loss']:
            assert float(mine['loss']) == pytest.approx(float(theirs['loss']), abs=1e-5)


@pytest.mark.slow
def test_training_moved_everything(runs, tiny):
    start = load_network('tiny', num_classes=6)
    for path, leaf in nnx.to_flat_state(start.state):
        kind = 'stats' if path[-1] in ('mean', 'var') else 'params'
        trained = saved(runs / 'one jit/norm=True')[f'{kind}.{".".join(path)}.value']
        assert np.abs(trained - np.asarray(leaf[...])).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('run', OTHERS)
def test_maps_do_not_depend_on_the_devices(runs, run, tiny):
    def stored(name):
        network = load_network('tiny', num_classes=6, seed=2)
        # Finished: nothing is computed.
        workdir = runs / name / 'localized'
        return localize_split(config_of('jit', True), network, labelled(), 'val', workdir)

    store, other = stored('one jit'), stored(run)
    assert len(store.arrays) == 3 and not len(other.pending())
    for key in store.arrays:
        expected = store.read(key, 0, 11)
        scale = np.abs(expected).max()
        assert expected.shape[1] == 2 and (np.abs(expected[:, 1]).max((1, 2)) > 0).sum() <= 4
        assert scale > 0 and (np.abs(expected).max((1, 2, 3)) > 0).sum() > 5
        np.testing.assert_allclose(other.read(key, 0, 11), expected, rtol=0, atol=1e-6 * scale)
    for fact in ('classes', 'top', 'status'):
        np.testing.assert_array_equal(other.fact(fact), store.fact(fact))
    np.testing.assert_allclose(other.fact('class_scores'), store.fact('class_scores'), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('run', OTHERS)
def test_one_device_goes_on_from_what_any_number_left(runs, run):
    config = config_of('jit', True)
    images = np.stack([np.full((SIDE, SIDE, 3), 40 * k, np.uint8) for k in range(6)])
    networks = [trained_network(config, runs / name / 'norm=True') for name in ('one jit', run)]
    np.testing.assert_allclose(*(network(images)[0] for network in networks), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_each_device_does_its_share_alone(runs, kind, tiny):
    eight = json.loads((runs / f'eight {kind}' / 'costs.json').read_text())
    for name, (flops, _) in costs('jit').items():
        share, collectives = eight[name]
        assert collectives == 0 and share <= 1.2 * flops / 8, f'{name}: {share} of {flops}'


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_training_shares_its_work_and_sums_only(runs, kind, tiny):
    flops, _ = training_cost('jit')
    share, kinds = json.loads((runs / f'eight {kind}' / 'costs.json').read_text())['training']
    assert kinds == ['all-reduce'] and share <= 1.2 * flops / 8


@pytest.mark.parametrize(
    'operation', ['all-reduce', 'all-gather', 'reduce-scatter', 'collective-permute-start']
)
def test_what_counts_as_a_collective(operation):
    for result in ('f32[8]{0}', '(f32[8]{0}, f32[])'):
        (found,) = re.findall(COLLECTIVE, f'  %r = {result} {operation}(%x, %y), channel_id=1')
        assert ''.join(found) == operation


@pytest.mark.parametrize('kind', KINDS)
def test_on_the_devices_there_are(kind):
    check_devices(kind)
    assert local_devices(kind)._mesh.axis_types == (AxisType.Auto,)
    assert (local_devices(kind).axis is None) == (kind == 'jit')


def test_one_batch_is_launched_ahead():
    order = []

    def launch(i):
        order.append(f'launch {i}')
        return i

    for i in one_ahead(map(launch, range(3))):
        order.append(f'store {i}')
    assert order == ['launch 0', 'launch 1', 'store 0', 'launch 2', 'store 1', 'store 2']
    assert list(one_ahead(iter(()))) == []

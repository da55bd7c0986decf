"""IRN: losses against a plain loop over all pairs, its branches, what learns, its seeds."""

from itertools import combinations, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from test_parallel import RECIPE, SIDE, Tiny, batch_of, labelled

from wsol_jax.config import Config, ConfigError, NetworkConfig, TrainConfig
from wsol_jax.localization.localize import localize
from wsol_jax.maps.paths import straight_paths
from wsol_jax.models import as_network, zoo
from wsol_jax.models.heads import Outputs, outputs_of
from wsol_jax.parallel import local_devices
from wsol_jax.training.loop import train
from wsol_jax.training.method import Shard, Update
from wsol_jax.training.methods import add_heads
from wsol_jax.training.methods.irn import IRN, pair_losses
from wsol_jax.training.step import make_program

RNG = np.random.default_rng(0)
OPTIONS = {'layers': ('late/early', 'late'), 'width': 4, 'radius': 3}


@pytest.fixture(scope='module', autouse=True)
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.RECIPES, 'tiny', RECIPE)
        yield


@pytest.fixture(scope='module')
def maps():
    """Boundaries, displacements and seeds of two images; in the second there is no background."""
    boundary = RNG.uniform(0.1, 0.9, (2, 5, 6)).astype(np.float32)
    displacement = RNG.normal(size=(2, 5, 6, 2)).astype(np.float32)
    labels = RNG.choice([0, 1, 2, 255], (2, 5, 6)).astype(np.uint8)
    labels[1][labels[1] == 0] = 2
    return boundary, displacement, labels


def by_loop(boundary, displacement, labels, radius):
    """Values of all pairs of one image, by kind."""
    found = {name: [] for name in KINDS}
    ways = {tuple(o): w for o, w in zip(*straight_paths(radius), strict=True)}
    for i, j in combinations(product(*map(range, boundary.shape)), 2):
        apart = j[0] - i[0], j[1] - i[1]
        if np.hypot(*apart) >= radius or 255 in (labels[i], labels[j]):
            continue
        affinity = 1 - max(boundary[i[0] + y, i[1] + x] for y, x in ways[apart])
        difference = displacement[i] - displacement[j]
        if labels[i] != labels[j]:
            found['different'].append(-np.log(1 - affinity))
        elif labels[i]:
            found['foreground'].append(-np.log(affinity))
            found['foreground displacement'].append(np.abs(difference - apart).mean())
        else:
            found['background'].append(-np.log(affinity))
            found['background displacement'].append(np.abs(difference).mean())
    return found


KINDS = (
    'foreground',
    'background',
    'different',
    'foreground displacement',
    'background displacement',
)


def test_sums_are_those_of_a_plain_loop_over_all_pairs(maps):
    sums, counts = jax.jit(pair_losses, static_argnums=3)(*maps, 3)
    for k in range(2):
        expected = by_loop(*(x[k] for x in maps), 3)
        for name in KINDS:
            np.testing.assert_allclose(sums[name][k], sum(expected[name]), rtol=1e-3, atol=1e-6)
            assert counts[name.split()[0]][k] == len(expected[name])
    assert counts['background'][0] and not counts['background'][1]


def loss(maps, valid=(True, True), total=lambda sums: sums):
    extras = {'boundary': jnp.asarray(maps[0]), 'displacement': jnp.asarray(maps[1])}
    batch = Shard(None, {'label_map': maps[2]}, np.array(valid), np.arange(2))
    return IRN(radius=3).loss(Outputs(None, {}, extras), batch, Update(0, total))


@pytest.mark.slow
def test_the_loss_is_made_of_means_over_the_pairs_of_the_batch(maps):
    each = [by_loop(*(x[k] for x in maps), 3) for k in range(2)]

    def expected(images):
        mean = {n: np.mean([v for k in images for v in each[k][n]] or [0]) for n in KINDS}
        alike = mean['foreground'] + mean['background']
        affinity = alike / 4 + mean['different'] / 2
        displacement = mean['foreground displacement'] + mean['background displacement']
        return affinity, displacement / 2

    found, values = loss(maps)
    np.testing.assert_allclose(found, sum(expected([0, 1])), rtol=1e-3)
    for k in range(2):
        of_image = values['affinity'][k], values['displacement'][k]
        np.testing.assert_allclose(of_image, expected([k]), rtol=1e-3)
    np.testing.assert_allclose(loss(maps, (True, False))[0], sum(expected([0])), rtol=1e-3)
    assert loss(maps, (False, False))[0] == 0
    # Another device with the same images changes no mean.
    doubled = loss(maps, total=lambda sums: jax.tree.map(lambda x: 2 * x, sums))[0]
    np.testing.assert_allclose(doubled, found, rtol=1e-5)


def headed(**options):
    module = Tiny(6, rngs=nnx.Rngs(0))
    add_heads('tiny', module, IRN(**{**OPTIONS, **options}), 0)
    return module


@pytest.mark.slow
def test_its_map_is_the_boundary_for_all_classes_beside_the_plain_logits():
    images = RNG.integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    module = headed()
    network = as_network('tiny', module)
    found = localize(network, images, ('irn',), classes=[[0, 3]] * 2, resize=False)
    extras = nnx.jit(outputs_of)(network.module(), zoo.SYMMETRIC(images)).extras
    assert extras['boundary'].shape == (2, 16, 16)
    assert extras['displacement'].shape == (2, 16, 16, 2)
    expected = np.stack([extras['boundary']] * 2, 1)
    np.testing.assert_allclose(found.maps['irn', 'head'], expected, rtol=1e-4)
    assert expected.min() > 0 and expected.max() < 1
    plain = jax.jit(lambda x: Tiny.__call__(network.module(), zoo.SYMMETRIC(x))[0])(images)
    np.testing.assert_allclose(jax.jit(network)(images)[0], plain, rtol=1e-4)


def test_branches_have_the_published_widths_and_groups():
    """Of a ResNet-50 with its stem."""
    shapes = {'a': (4, 4, 64), 'b': (4, 4, 256), 'c': (2, 2, 512), 'd': (1, 1, 1024)}
    network = FakeNetwork(shapes | {'e': (1, 1, 2048)})
    heads = jax.eval_shape(
        lambda: nnx.split(IRN(layers=tuple('abcde')).heads(network, nnx.Rngs(0)))[1]
    )
    kernels = {
        '.'.join(map(str, path)): leaf.shape
        for path, leaf in nnx.to_flat_state(heads)
        if path[-1] == 'kernel'
    }
    of_levels = [kernels[f'displacement.levels.{k}.conv.kernel'][-1] for k in range(5)]
    assert of_levels == [64, 128, 256, 256, 256]
    assert kernels['displacement.joined.conv.kernel'] == (1, 1, 768, 256)
    assert kernels['displacement.mixed.conv.kernel'] == (1, 1, 448, 256)
    assert kernels['boundary.last.kernel'] == (1, 1, 160, 1)


class FakeNetwork:
    name = 'fake'

    def __init__(self, shapes):
        self.shapes = shapes


def test_layers_are_those_of_a_quarter_of_the_resolution():
    with pytest.raises(ConfigError, match=r"unknown endpoint of tiny in config.*layers 'lat'"):
        headed(layers=('lat',))
    assert headed(layers=()).heads.reads == ('late',)


@pytest.mark.slow
def test_only_the_branches_learn():
    setting = TrainConfig(optimizer='adamw', learning_rate=0.01, weight_decay=0.1, warmup=0.0)
    method, devices = IRN(**OPTIONS), local_devices('jit')
    program = make_program(setting, method, headed(), zoo.SYMMETRIC, devices, 10, 5)
    before = named(program.initial)
    images = RNG.integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
    batch, state = batch_of(images, np.arange(4, dtype=np.int32)), program.initial
    losses = []
    for _ in range(4):
        state, measured = program.step(state, batch)
        losses.append(float(measured.mean_loss))
    after = named(state)
    changed = {k for k in before if not np.array_equal(before[k], after[k])}
    assert changed == {k for k in before if k.startswith('heads.')}
    assert losses[-1] < losses[0] and set(measured.sums) == {'affinity', 'displacement'}


def named(state):
    parts = [*nnx.to_flat_state(state.params), *nnx.to_flat_state(state.stats)]
    return {'.'.join(map(str, path)): np.array(leaf[...]) for path, leaf in parts}


def written(folder, source):
    for k in range(len(source)):
        seeds = np.full((SIDE, SIDE), 255, np.uint8)
        seeds[:16], seeds[16:, :8] = 1, 0
        file = folder / f'{source[k].image_id}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(seeds).save(file)


def test_seeds_are_those_of_a_folder(tmp_path):
    source = labelled('train', 4)
    written(tmp_path, source)
    found = IRN(labels=str(tmp_path)).targets(source, True)(source[0])
    assert sorted(found) == ['label_map', 'labels'] and found['labels'].shape == (2,)
    assert np.unique(found['label_map']).tolist() == [0, 1, 255]
    with pytest.raises(ConfigError, match=r'options\.labels must be a folder of label maps'):
        IRN().targets(source, True)


@pytest.mark.slow
def test_it_trains_on_seeds_of_a_folder(tmp_path):
    sources = labelled('train', 20), labelled()
    for source in sources:
        written(tmp_path / 'seeds', source)
    options = {**OPTIONS, 'labels': str(tmp_path / 'seeds')}
    setting = TrainConfig(method='irn', options=options, epochs=1, batch_size=10, loss='sigmoid')
    config = Config(network=NetworkConfig('tiny', input_size=SIDE), train=setting)
    train(config, *sources, tmp_path / 'run')
    rows = (tmp_path / 'run/progress.csv').read_text()
    assert 'affinity' in rows and 'displacement' in rows

"""Exported maps: the same as localize's, for any batch, from one file that needs no network."""

import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from safetensors.numpy import load

import wsol_jax.exported as exporting
from wsol_jax.exported import ExportError, export, load_exported
from wsol_jax.localization.localize import Localization, localize
from wsol_jax.localization.methods import METHODS
from wsol_jax.models import Preprocessing, from_linen

ASKED = {'methods': ('dgl+grad_cam', 'cam'), 'layers': ('stage4', 'stage3+stage4')}
CLASSES = [3, 0, 5, 1]


@pytest.fixture(scope='module')
def five():
    return np.random.default_rng(8).integers(0, 256, (5, 48, 48, 3), np.uint8)


@pytest.fixture(scope='module')
def file(resnet, tmp_path_factory):
    path = tmp_path_factory.mktemp('export') / 'maps.wsol'
    export(resnet, **ASKED, path=path, input_size=48)
    return path


@pytest.fixture(scope='module')
def exported(file):
    return load_exported(file)


@pytest.fixture(scope='module')
def toy_file(toy, tmp_path_factory):
    path = tmp_path_factory.mktemp('export') / 'toy.wsol'
    export(toy, ('dgl',), None, path)
    return path


def assert_same(actual, expected, tolerance=1e-6):
    """Maps, logits and classes; maps to a share of their largest value."""
    assert list(actual.maps) == list(expected.maps)
    np.testing.assert_array_equal(actual.classes, expected.classes)
    pairs = {key: (actual.maps[key], m) for key, m in expected.maps.items()}
    for key, (a, b) in (pairs | {'logits': (actual.logits, expected.logits)}).items():
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape and a.dtype == b.dtype == np.float32 and np.ptp(b) > 0
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(), err_msg=key)


@pytest.mark.slow
def test_one_file_serves_every_batch_size(resnet, exported, five):
    expected = localize(resnet, five, **ASKED)
    assert_same(exported(five), expected)
    for batch in (1, 2):
        maps = {key: m[:batch] for key, m in expected.maps.items()}
        part = Localization(maps, expected.logits[:batch], expected.classes[:batch])
        # Another program: the order of sums depends on the batch size.
        assert_same(exported(five[:batch]), part, tolerance=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    'classes', [4, CLASSES, [[c, 5 - c] for c in CLASSES], [[0], [1, 4, 2], [5, 3], [2]]]
)
def test_given_classes(toy, toy_file, toy_images, classes):
    actual = load_exported(toy_file)(toy_images, classes)
    assert_same(actual, localize(toy, toy_images, classes=classes))


@pytest.mark.slow
def test_options_and_predicted_classes_are_compiled_in(toy, toy_images, tmp_path):
    options = {
        'score': 'softmax',
        'alpha': 3.0,
        'fusion': 'max',
        'scales': (1.5,),
        'flip': True,
        'size': (12, 10),
        'normalize': True,
    }
    asked = {'methods': ('dgl', 'grad_cam'), 'layers': ('early+late',)}
    export(toy, **asked, path=tmp_path / 'toy', classes='top5', **options)
    actual = load_exported(tmp_path / 'toy')(toy_images)
    assert actual.maps['dgl', 'early+late'].shape == (4, 5, 12, 10)
    assert_same(actual, localize(toy, toy_images, **asked, classes='top5', **options))


# One of each kind; to compile them is what takes time.
KINDS = ('smooth_grad_cam_pp', 'full_grad', 'eigen_cam', 'ablation_cam')


@pytest.mark.slow
def test_every_method_can_be_exported(toy, tmp_path):
    fit = tuple(name for name in METHODS if name != 'rollout')  # of vision transformers alone
    export(toy, fit, ('early',), tmp_path / 'all')
    assert {method for method, _ in load_exported(tmp_path / 'all').header.keys} == set(fit)


@pytest.mark.slow
def test_methods_of_every_kind(toy, toy_images, tmp_path):
    export(toy, KINDS, ('late',), tmp_path / 'kinds')
    actual = load_exported(tmp_path / 'kinds')(toy_images)
    # The iterations of the eigenvectors magnify what another order of sums changes.
    assert_same(actual, localize(toy, toy_images, KINDS, ('late',)), tolerance=1e-5)


@pytest.mark.slow
def test_weights_in_bfloat16(toy, toy_images, tmp_path):
    halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16), toy.state)

    def apply(state, inputs, perturb=None):
        assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(state))
        return toy.apply(jax.tree.map(lambda x: x.astype(jnp.float32), state), inputs, perturb)

    network = replace(toy, state=halved, apply=apply)
    export(network, ('dgl',), None, tmp_path / 'toy')
    assert_same(load_exported(tmp_path / 'toy')(toy_images), localize(network, toy_images))


@pytest.mark.slow
def test_the_file_runs_in_jax_alone(toy, toy_file, toy_images):
    with zipfile.ZipFile(toy_file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    keys = json.loads(parts['export.json'])['keys']
    weights = load(parts['weights.safetensors'])
    predicted, given = (
        jax.export.deserialize(bytearray(parts[n])) for n in ('predicted.jax', 'given.jax')
    )
    assert predicted.platforms == given.platforms == ('cpu', 'cuda', 'tpu')
    logits, classes, maps, dead = predicted.call(weights, toy_images)
    expected = localize(toy, toy_images)
    np.testing.assert_array_equal(classes[:, 0], expected.classes)
    np.testing.assert_allclose(logits, expected.logits, rtol=1e-5)
    for key, m in zip(keys, maps, strict=True):
        np.testing.assert_allclose(m[:, 0], expected.maps[tuple(key)], rtol=1e-3, atol=1e-6)
    assert {n: d.tolist() for n, d in dead.items()} == {n: [False] * 4 for n in ('early', 'late')}


def test_no_network_is_in_the_program(file, resnet):
    # Weights are arguments: a program with them inside would compile slowly and hold them twice.
    with zipfile.ZipFile(file) as archive:
        sizes = {i.filename: i.file_size for i in archive.infolist()}
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(resnet.state))
    assert weights <= sizes['weights.safetensors'] < 1.2 * weights
    assert max(sizes['predicted.jax'], sizes['given.jax']) < weights / 2


def test_header(exported):
    header = exported.header
    assert repr(exported) == (
        f'ExportedMaps {str(exported.path)!r}: resnet10, input 48 x 48 x 3, 7 classes, '
        f'{len(header.keys)} maps, the first {" at ".join(header.keys[0])}'
    )
    assert header.network == 'resnet10' and header.predicted == 'top1'
    assert (header.input_size, header.num_classes) == (48, 7)
    assert header.platforms == ('cpu', 'cuda', 'tpu') and jax.__version__.startswith(header.jax)
    layers = {'dgl+grad_cam': ASKED['layers'], 'cam': ('stage4',)}
    assert header.keys == tuple((m, n) for m, names in layers.items() for n in names)


# The package itself would import everything: a bare stand-in lets one module be loaded.
FRESH = """
import sys, types
import numpy as np
package = types.ModuleType('wsol_jax')
package.__path__, package.__version__ = [{package!r}], '0'
sys.modules['wsol_jax'] = package
for name in ('wsol_jax.models', 'flax'):
    sys.modules[name] = None
from wsol_jax.exported import load_exported
result = load_exported({file!r})(np.load({images!r}))
np.savez({out!r}, logits=result.logits, **{{'/'.join(k): m for k, m in result.maps.items()}})
"""


@pytest.mark.slow
def test_loads_where_there_are_no_networks(toy, toy_images, toy_file, tmp_path):
    images, out = str(tmp_path / 'images.npy'), str(tmp_path / 'maps.npz')
    np.save(images, toy_images)
    package = str(Path(exporting.__file__).parent)
    code = FRESH.format(package=package, file=str(toy_file), images=images, out=out)
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.load(out)
    expected = localize(toy, toy_images)
    assert set(found) == {'logits', *('/'.join(k) for k in expected.maps)}
    for key, m in expected.maps.items():
        np.testing.assert_allclose(found['/'.join(key)], m, atol=1e-6 * np.abs(m).max())


@pytest.mark.slow
def test_the_file_appears_whole_or_not_at_all(toy, toy_file, tmp_path, monkeypatch):
    path = tmp_path / 'new' / 'toy'
    export(toy, ('dgl',), ('early',), path)
    assert [p.name for p in path.parent.iterdir()] == ['toy']
    before = path.read_bytes()
    write = zipfile.ZipFile.writestr

    def full_disk(self, name, data):
        if name == 'weights.safetensors':
            raise OSError('no space left')
        write(self, name, data)

    monkeypatch.setattr(zipfile.ZipFile, 'writestr', full_disk)
    with pytest.raises(OSError, match='no space left'):
        export(toy, ('dgl',), ('late',), path)
    assert path.read_bytes() == before


def test_images_of_another_kind(toy_file, toy_images):
    with pytest.raises(ValueError) as error:
        load_exported(toy_file)(toy_images / np.float32(255))
    assert str(error.value) == f'{toy_file}: images must be uint8, got float32'
    with pytest.raises(ValueError, match=r'must be \[B,H,W,3\], got \[4, 8, 8\]; grey'):
        load_exported(toy_file)(toy_images[..., 0])


def test_images_of_any_sizes_go_through_in_batches(toy, toy_file, toy_images):
    images = [np.tile(x, (i + 1, 2, 1)) for i, x in enumerate(toy_images)]
    actual = load_exported(toy_file)(images, batch_size=3)
    assert_same(actual, localize(toy, images))
    assert actual.sizes == [(16, 8), (16, 16), (16, 24), (16, 32)]


@pytest.mark.slow
def test_boxes_of_exported_maps_begin_with_the_relu_of_the_method(toy, toy_images, tmp_path):
    methods = ('grad_cam', 'dgl')
    for smooth in (False, True):
        export(toy, methods, ('early',), tmp_path / 'toy', eigen_smooth=smooth)
        actual = load_exported(tmp_path / 'toy')(toy_images)
        assert actual.relu == {('grad_cam', 'early'): True, ('dgl', 'early'): smooth}
        expected = localize(toy, toy_images, methods, ('early',), eigen_smooth=smooth)
        for key, found in actual.boxes(0.3).items():
            for box, other in zip(found, expected.boxes(0.3)[key], strict=True):
                np.testing.assert_array_equal(box, other)


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        ([0, 1, 2], r'classes must be integers of shape \[4\] or \[4,K\], got int64 \[3\]'),
        ('top5', r'classes must be integers of shape \[4\]'),
        (np.ones((4, 6), bool), r'classes must be integers .* got bool \[4, 6\]'),
        (6, r'class 6 is outside 0\.\.5'),
    ],
)
def test_classes_of_another_kind(toy_file, toy_images, classes, message):
    with pytest.raises(ValueError, match=message):
        load_exported(toy_file)(toy_images, classes)


def test_a_layer_without_gradient(toy_with_spare, toy_images, tmp_path):
    export(toy_with_spare, ('dgl',), ('late', 'spare'), tmp_path / 'toy')
    with pytest.raises(ValueError, match="layer 'spare' is zero everywhere"):
        load_exported(tmp_path / 'toy')(toy_images)


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'classes': 'top'}, "classes must be 'top1', 'top5'"),
        ({'classes': 3}, "classes must be 'top1' or 'top5', got 3; indices go to the exported"),
        ({'methods': ('dlg',)}, "did you mean 'dgl'"),
        ({'layers': ('lat',)}, "did you mean 'late'"),
        ({'fusion': 'men'}, "did you mean 'mean'"),
    ],
)
def test_nothing_is_written_for_a_wrong_wish(toy, tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        export(toy, **{'methods': ('dgl',), 'layers': None, 'path': tmp_path / 'toy'} | wrong)
    assert not any(tmp_path.iterdir())


def rewritten(file, path, without='', **changed):
    """A copy with other facts in its header, without one member."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, 'w') as new:
        for name in old.namelist():
            data = old.read(name)
            if name == 'export.json':
                data = json.dumps(json.loads(data) | changed)
            if name != without:
                new.writestr(name, data if isinstance(data, str) else bytes(data))
    return path


def test_names_of_classes(toy, toy_images, toy_file, tmp_path):
    export(replace(toy, class_names=tuple('uvwxyz')), ('dgl',), None, tmp_path / 'named')
    maps = load_exported(tmp_path / 'named')
    assert maps(toy_images[:1], 2).names == ['w']
    assert load_exported(toy_file).header.class_names == ()


def test_files_that_cannot_be_read(toy_file, tmp_path):
    whole = toy_file.read_bytes()
    (tmp_path / 'text').write_text('no archive')
    (tmp_path / 'half').write_bytes(whole[: len(whole) // 2])
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    (tmp_path / 'damaged').write_bytes(damaged)
    with zipfile.ZipFile(tmp_path / 'other', 'w') as archive:
        archive.writestr('readme', 'another archive')
    rewritten(toy_file, tmp_path / 'weightless', without='weights.safetensors')
    for name in ('text', 'half', 'damaged', 'other', 'weightless'):
        with pytest.raises(ExportError) as error:
            load_exported(tmp_path / name)
        assert str(error.value).startswith(
            f'{tmp_path / name}: not a whole file of wsol_jax.export'
        )
        assert '\n' not in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(ExportError, match='nothing: no such file'):
        load_exported(tmp_path / 'nothing')


def test_a_newer_format(toy_file, tmp_path):
    path = rewritten(toy_file, tmp_path / 'new', format=2, unheard_of=True)
    with pytest.raises(ExportError) as error:
        load_exported(path)
    assert str(error.value) == (
        f'{path}: written in format 2, this wsol_jax reads up to 1; update wsol_jax or export again'
    )


def test_a_newer_jax(toy_file, tmp_path):
    path = rewritten(toy_file, tmp_path / 'new', jax='99.0.1')
    with pytest.raises(ExportError, match=r'exported by jax 99\.0\.1, this is jax .*; update jax'):
        load_exported(path)
    # Of its own and older versions it says nothing.
    rewritten(toy_file, tmp_path / 'old', jax='0.9.12')
    assert load_exported(tmp_path / 'old').header.jax == '0.9.12'


class Tokens(linen.Module):
    """Patches as tokens with one in front, as in a vision transformer."""

    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(6, (4, 4), (4, 4), name='patches')(x))
        x = x.reshape(x.shape[0], -1, 6)
        x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)
        x = linen.relu(linen.Dense(5, name='block')(x))
        return linen.Dense(4, name='head')(x.mean(1))


@pytest.mark.slow
def test_a_wrapped_model(tmp_path):
    module = Tokens()
    images = np.random.default_rng(3).integers(0, 256, (3, 16, 16, 3), np.uint8)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    scale = Preprocessing((128.0,) * 3, (64.0,) * 3)
    names = ('patches', 'block')
    network = from_linen(module, variables, names, input_size=16, preprocessing=scale)
    export(network, ('dgl', 'grad_cam'), names, tmp_path / 'file')
    found = load_exported(tmp_path / 'file')(images)
    expected = localize(network, images, ('dgl', 'grad_cam'), names)
    assert set(found.maps) == set(expected.maps) and len(found.maps) == 4
    for key, m in expected.maps.items():
        assert m.shape == (3, 4, 4) and float(np.ptp(m)) > 0
        np.testing.assert_allclose(found.maps[key], m, atol=1e-6 * np.abs(m).max())

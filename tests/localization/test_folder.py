"""A folder of images, one after another: what localize gives, in memory that does not grow."""

import threading
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import logging
from PIL import Image
from tqdm import tqdm

from wsol_jax import localize, localize_folder
from wsol_jax.data import loader
from wsol_jax.localization.localize import compute_maps
from wsol_jax.models import Preprocessing

BROKEN = 'b/2.png'


def photo(i):
    return np.random.default_rng(i).integers(0, 256, (9 + 5 * i, 30 - i, 3), np.uint8)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Five photos, one of them in a folder of its own and broken; and what is no photo."""
    root = tmp_path_factory.mktemp('photos')
    (root / 'b').mkdir()
    for i in range(5):
        Image.fromarray(photo(i)).save(root / ('b' if i in (2, 3) else '.') / f'{i}.png')
    (root / BROKEN).write_bytes((root / BROKEN).read_bytes()[:60])
    (root / 'notes.txt').write_text('no photo')
    exif = Image.Exif()
    exif[274] = 6  # displayed turned by a quarter, clockwise
    Image.fromarray(photo(4)).save(root / '4.png', exif=exif)
    return root


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(logging, 'warning', lambda text, *values: said.append(text % values))
    return said


GOOD = ('0.png', '1.png', '4.png', 'b/3.png')


@pytest.mark.slow
@pytest.mark.parametrize('batch_size', [2, 3, 16])
def test_each_image_gets_what_localize_gives(toy, folder, batch_size, warnings):
    found = list(localize_folder(toy, folder, ('dgl', 'cam'), batch_size=batch_size))
    assert [path for path, _ in found] == [folder / name for name in GOOD]
    assert len(warnings) == 1 and warnings[0].startswith(str(folder / BROKEN))
    assert warnings[0].endswith('; passed over')
    expected = localize(toy, [folder / name for name in GOOD], ('dgl', 'cam'))
    for i, (_, result) in enumerate(found):
        assert result.sizes == expected.sizes[i : i + 1]
        assert result.classes == expected.classes[i]
        for key, m in result.maps.items():
            assert isinstance(m, np.ndarray) and m.base is None
            np.testing.assert_allclose(m[0], expected.maps[key][i], rtol=1e-5, atol=1e-6)
        rows, of_all = result.box_rows(0.3, 'x'), expected.box_rows(0.3, 'abcd')
        assert [r.box for r in rows] == [r.box for r in of_all if r.image_id == 'abcd'[i]]
    assert found[2][1].sizes == [(29, 26)]  # as displayed


@pytest.mark.slow
def test_files_and_other_classes(toy, folder):
    files = [str(folder / '1.png'), folder / '0.png']
    for classes, shape in ((None, (1,)), (3, (1,)), ('top2', (1, 2)), (lambda z: z[0], (1,))):
        found = list(localize_folder(toy, iter(files), ('dgl',), ('late',), classes, resize=12))
        assert [str(path) for path, _ in found] == list(map(str, files))
        expected = localize(toy, files, ('dgl',), ('late',), classes, resize=12)
        for i, (_, result) in enumerate(found):
            assert result.classes.shape == shape
            np.testing.assert_array_equal(result.classes[0], expected.classes[i])
            np.testing.assert_allclose(result.maps['dgl'][0], expected.maps['dgl'][i], rtol=1e-5)
    ((path, _),) = localize_folder(toy, str(folder / '0.png'))
    assert path == folder / '0.png'


def test_grey_networks(toy, folder):
    def apply(state, inputs, perturb=None):
        return toy.apply(state, inputs.repeat(3, axis=-1), perturb)

    network = replace(toy, apply=apply, preprocessing=Preprocessing((128.0,), (64.0,)))
    found = list(localize_folder(network, folder, ('dgl',), ('early',), 1))
    expected = localize(network, [folder / name for name in GOOD], ('dgl',), ('early',), 1)
    for i, (_, result) in enumerate(found):
        # Grey before or after it is resized: a level of 255 more or less.
        np.testing.assert_allclose(result.logits[0], expected.logits[i], atol=0.01)
        assert result.maps['dgl'].shape == (1, 8, 8)
    assert np.ptp(expected.logits, axis=0).max() > 0.1


def test_one_program_for_all_batches_and_folders(toy, folder):
    options = {'methods': ('hires_cam',), 'layers': ('late',), 'batch_size': 3}
    before = compute_maps._cache_size()
    list(localize_folder(toy, folder, **options))
    list(localize_folder(toy, [folder / name for name in GOOD[:2]], **options))
    assert compute_maps._cache_size() == before + 1


@pytest.fixture
def many(tmp_path, monkeypatch):
    """A hundred small images, and a list that grows by one with each that is decoded."""
    for i in range(100):
        Image.fromarray(photo(0)[: 1 + i % 8]).save(tmp_path / f'{i:03}.png')
    decoded = []
    decode = loader.decode_image

    def counted(record, side):
        decoded.append(record.image_id)
        return decode(record, side)

    monkeypatch.setattr(loader, 'decode_image', counted)
    return tmp_path, decoded


def test_what_is_in_memory_does_not_depend_on_the_number_of_images(toy, many):
    folder, decoded = many
    arrays, ahead = [], []
    results = localize_folder(toy, folder, ('dgl',), ('late',), batch_size=4)
    for count, (path, result) in enumerate(results, 1):
        arrays.append(len(jax.live_arrays()))
        ahead.append(len(decoded) - count)
        del path, result
    assert count == len(decoded) == 100
    assert max(arrays[50:]) <= max(arrays[:50])
    # What the threads may hold ready, what they are at, and three batches on their way.
    buffered = loader.THREADS + 2 * 4
    assert 0 < max(ahead) <= buffered + loader.THREADS + 3 * 4


@pytest.mark.parametrize('end', ['close', 'Ctrl-C'])
def test_what_is_left_early_ends_its_threads(toy, many, end):
    folder, decoded = many
    before = set(threading.enumerate())
    results = localize_folder(toy, folder, ('dgl',), ('late',), batch_size=4)
    assert set(threading.enumerate()) == before  # nothing starts before it is asked for
    next(results)
    # The first bar of a process starts a thread that looks after all of them, and stays.
    started = set(threading.enumerate()) - before - {tqdm.monitor}
    assert started
    if end == 'close':
        results.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt)
    for thread in started:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert len(decoded) < 100
    assert next(results, None) is None


def test_all_images_broken(toy, tmp_path, warnings):
    for name in 'ab':
        (tmp_path / f'{name}.jpg').write_bytes(b'junk')
    assert list(localize_folder(toy, tmp_path)) == []
    assert len(warnings) == 2


def test_a_layer_without_gradient_is_an_error(toy_with_spare, folder):
    with pytest.raises(ValueError, match="gradient at layer 'spare' is zero everywhere"):
        next(localize_folder(toy_with_spare, folder, layers=('spare',)))


@pytest.mark.parametrize(
    ('images', 'options', 'message'),
    [
        ('nowhere', {}, 'nowhere: no such folder'),
        ([], {}, 'there are no images'),
        ([np.zeros((8, 8, 3), np.uint8)], {}, 'must be a folder or files, got a ndarray'),
        (None, {'batch_size': 0}, 'batch_size must be a whole number from 1 on, got 0'),
        (None, {'batch_size': 2.5}, r'from 1 on, got 2\.5'),
        (None, {'resize': False}, 'resize=False has a program for every size'),
        (None, {'classes': [1, 2]}, r'one for all images, .* got \[1, 2\]; give localize'),
        (None, {'methods': 'dgl'}, r"\('dgl',\)"),
        (None, {'methods': ('dlg',)}, "did you mean 'dgl'"),
        (None, {'layers': ('lat',)}, "did you mean 'late'"),
        (None, {'fusion': 'men'}, "did you mean 'mean'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_read(toy, folder, images, options, message):
    with pytest.raises(ValueError, match=message):
        localize_folder(toy, folder if images is None else images, **options)


def test_an_unknown_option(toy, folder):
    with pytest.raises(TypeError, match="argument of localize_folder 'batchsize'; did you mean"):
        localize_folder(toy, folder, batchsize=3)


def test_no_network(folder):
    with pytest.raises(ValueError, match='network must come from load_network'):
        localize_folder(Path('a.safetensors'), folder)

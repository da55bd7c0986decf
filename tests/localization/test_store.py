"""Maps on disk: what is written comes back, in which order, and whose maps they are."""

import json

import numpy as np
import pytest

from wsol_jax.data import DataError
from wsol_jax.localization.store import DONE, PENDING, SKIPPED, MapStore

SHAPES = {('dgl', 'stage1/block1'): (2, 3, 4), ('cam', 'a+b'): (2, 2, 2)}
RELU = {('dgl', 'stage1/block1'): False, ('cam', 'a+b'): True}
IDS = ['x/0.png', 'x/1.png', 'é, 2.png', '3.png', '4.png']


def create(folder, ids=IDS, chunk=2):
    return MapStore.create(folder, ids, 'top1', SHAPES, RELU, 3, chunk)


def batch(index, seed=0):
    rng = np.random.default_rng(seed)
    n = len(index)
    facts = {
        'classes': rng.integers(0, 9, (n, 2), np.int32),
        'class_scores': rng.random((n, 2)).astype(np.float32),
        'top': rng.integers(0, 9, (n, 3), np.int32),
    }
    maps = {key: rng.normal(size=(n, *s)).astype(np.float32) for key, s in SHAPES.items()}
    return np.array(index), np.full(n, DONE), facts, maps


def test_what_is_written_comes_back(tmp_path):
    store = create(tmp_path / 's')
    assert store.pending().tolist() == [0, 1, 2, 3, 4]
    index, status, facts, maps = batch([4, 0, 3])
    status[1] = SKIPPED
    store.write(index, status, facts, maps)
    for opened in (store, MapStore(tmp_path / 's')):
        expected = [SKIPPED, PENDING, PENDING, DONE, DONE]
        assert opened.fact('status').tolist() == expected
        assert opened.pending().tolist() == [1, 2]
        for name, values in facts.items():
            np.testing.assert_array_equal(opened.fact(name)[[4, 0, 3]], values)
            assert not opened.fact(name)[[1, 2]].any()
        for key, values in maps.items():
            np.testing.assert_array_equal(opened.read(key, 0, 5)[[4, 0, 3]], values)
            np.testing.assert_array_equal(opened.read(key, 3, 5), values[[2, 0]])


def test_index_lists_every_array_and_its_path(tmp_path):
    store = create(tmp_path / 's')
    index = json.loads((tmp_path / 's/index.json').read_text())
    assert index['classes'] == 'top1' and index['images'] == 5
    assert index['maps'] == [
        {'method': 'dgl', 'layer': 'stage1/block1', 'path': 'dgl/stage1.block1', 'relu': False},
        {'method': 'cam', 'layer': 'a+b', 'path': 'cam/a+b', 'relu': True},
    ]
    for entry in index['maps']:
        assert (tmp_path / 's' / entry['path'] / '.zarray').exists()
    assert (tmp_path / 's/image_ids.txt').read_text(encoding='utf-8').split('\n') == [*IDS, '']
    opened = MapStore(tmp_path / 's')
    assert list(opened.arrays) == list(SHAPES) and opened.relu == RELU
    assert (opened.target, opened.count, opened.image_ids) == ('top1', 5, IDS)
    assert store.image_ids == IDS


def test_status_is_written_last(tmp_path):
    store = create(tmp_path / 's')
    index, status, facts, maps = batch([0, 1])
    key = next(iter(maps))
    maps[key] = maps[key][:, :, :2]  # does not fit: the write fails
    with pytest.raises(ValueError):
        store.write(index, status, facts, maps)
    assert MapStore(tmp_path / 's').pending().tolist() == [0, 1, 2, 3, 4]


def test_status_waits_until_the_maps_are_stored(tmp_path):
    store = create(tmp_path / 's')
    order = []

    class Recorded:
        def __init__(self, name, array):
            self.name, self.array = name, array

        def __getitem__(self, index):
            return Recorded(self.name, self.array[index])

        def write(self, value):
            order.append(f'write {self.name}')
            future = self.array.write(value)

            class Future:
                def result(_):
                    order.append(f'stored {self.name}')
                    return future.result()

            return Future()

    store.arrays = {k: Recorded('map', a) for k, a in store.arrays.items()}
    store._facts = {k: Recorded(k, a) for k, a in store._facts.items()}
    store.write(*batch([0, 1]))
    assert order[-2:] == ['write status', 'stored status']
    before = order[:-2]
    assert sum(step.startswith('stored') for step in before) == len(before) / 2 == 5


def test_an_empty_batch_writes_nothing(tmp_path):
    store = create(tmp_path / 's')
    store.write(*batch([]))
    assert len(store.pending()) == 5


def test_opening_again_keeps_what_is_there_whatever_the_chunk(tmp_path):
    store = create(tmp_path / 's')
    store.write(*batch([0, 1]))
    again = create(tmp_path / 's', chunk=5)
    assert again.pending().tolist() == [2, 3, 4]
    again.write(*batch([2, 3, 4], seed=1))
    assert len(MapStore(tmp_path / 's').pending()) == 0
    key = next(iter(SHAPES))
    np.testing.assert_array_equal(again.read(key, 0, 2), batch([0, 1])[3][key])


def test_other_images_are_refused(tmp_path):
    create(tmp_path / 's')
    for ids in (IDS[:4], [*IDS, 'new.png'], IDS[::-1]):
        with pytest.raises(DataError, match='maps of other images'):
            create(tmp_path / 's', ids)


def test_skipped_images_add_up_sorted(tmp_path):
    store = create(tmp_path / 's')
    assert store.skipped() == {}
    store.skip({})
    assert not (tmp_path / 's/skipped.csv').exists()
    store.skip({'x/1.png': 'truncated, "so"'})
    store.skip({'3.png': 'no such file'})
    assert store.skipped() == {'x/1.png': 'truncated, "so"', '3.png': 'no such file'}
    store.skip({'x/1.png': 'truncated'})
    assert store.skipped() == {'x/1.png': 'truncated', '3.png': 'no such file'}
    lines = (tmp_path / 's/skipped.csv').read_text().split()
    assert lines[0] == 'image_id,reason' and lines[1].startswith('3.png')


def test_no_store(tmp_path):
    with pytest.raises(FileNotFoundError, match='run the stage localize first'):
        MapStore(tmp_path / 'nothing')

"""Maps on disk: what is written comes back, in which order, and whose maps they are."""

import json
import os
import shutil

import numpy as np
import pytest

from wsol_jax.data import DataError
from wsol_jax.maps import columns as module
from wsol_jax.maps import layout
from wsol_jax.maps.columns import DONE, SKIPPED, ChunkWriter, Store
from wsol_jax.maps.layout import Column
from wsol_jax.maps.store import MapStore, by_column, path_of

BLOCK = ('dgl', 'stage1/block1')
SHAPES = {BLOCK: (2, 3, 4), ('cam', 'a+b'): (2, 2, 2)}
RELU = {BLOCK: False, ('cam', 'a+b'): True}
IDS = ['x/0.png', 'x/1.png', 'é, 2.png', '3.png', '4.png']
ARRAYS = ('status', 'classes', 'class_scores', 'top', 'dgl/stage1.block1', 'cam/a+b')


@pytest.fixture(autouse=True)
def pairs(monkeypatch):
    """Two images in a chunk."""
    monkeypatch.setattr(module, 'CHUNK', 2)


def create(folder, count=5, target='top1', shapes=SHAPES):
    return MapStore.create(folder, count, target, shapes, RELU, 3)


def batch(index, seed=0):
    rng = np.random.default_rng(seed)
    n = len(index)
    facts = {
        'classes': rng.integers(0, 9, (n, 2), np.int32),
        'class_scores': rng.random((n, 2)).astype(np.float32),
        'top': rng.integers(0, 9, (n, 3), np.int32),
    }
    maps = {key: rng.normal(size=(n, *s)).astype(np.float32) for key, s in SHAPES.items()}
    return np.array(index), [IDS[i] for i in index], np.full(n, DONE), facts | by_column(maps)


def full(folder):
    store = create(folder)
    store.write(*batch(range(5)))
    return store


def files(folder):
    found = (path for path in folder.rglob('*') if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_what_is_written_comes_back(tmp_path):
    store = create(tmp_path / 's')
    assert store.pending().tolist() == [0, 1, 2, 3, 4]
    store.write(*batch(range(3), seed=1))
    index, names, status, values = batch([0, 3, 4])
    status[0] = SKIPPED
    store.write(index, names, status, values)
    for opened in (store, MapStore(tmp_path / 's')):
        assert opened.fact('status').tolist() == [SKIPPED, DONE, DONE, DONE, DONE]
        assert opened.image_ids == IDS
        for name, column in values.items():
            np.testing.assert_array_equal(opened.fact(name)[[0, 3, 4]], column)
        for key in SHAPES:
            maps = values[path_of(key)]
            np.testing.assert_array_equal(opened.read(key, 0, 5)[[0, 3, 4]], maps)
            np.testing.assert_array_equal(opened.read(key, 3, 5), maps[1:])
            np.testing.assert_array_equal(opened.take(key, np.array([3, 0, 4])), maps[[1, 0, 2]])


def test_index_lists_every_array_and_its_path(tmp_path):
    store = create(tmp_path / 's')
    index = json.loads((tmp_path / 's/index.json').read_text())
    assert (index['images'], index['chunk'], index['about']['classes']) == (5, 2, 'top1')
    assert index['columns'] == {
        'classes': {'shape': [2], 'dtype': 'int32'},
        'class_scores': {'shape': [2], 'dtype': 'float32'},
        'top': {'shape': [3], 'dtype': 'int32'},
        'dgl/stage1.block1': {'shape': [2, 3, 4], 'dtype': 'float32'},
        'cam/a+b': {'shape': [2, 2, 2], 'dtype': 'float32'},
    }
    assert index['about']['maps'] == [
        {'method': 'dgl', 'layer': 'stage1/block1', 'relu': False},
        {'method': 'cam', 'layer': 'a+b', 'relu': True},
    ]
    for name in ARRAYS:
        assert json.loads((tmp_path / 's' / name / 'zarr.json').read_text())['shape'][0] == 5
    store.write(*batch(range(5)))
    assert (tmp_path / 's/image_ids.txt').read_text(encoding='utf-8').split('\n') == [*IDS, '']
    opened = MapStore(tmp_path / 's')
    assert list(opened.arrays) == list(SHAPES) and opened.relu == RELU
    assert (opened.target, opened.count, opened.image_ids) == ('top1', 5, IDS)
    assert store.image_ids == IDS


def test_status_is_written_last(tmp_path):
    store = create(tmp_path / 's')
    index, names, status, values = batch([0, 1])
    values['dgl/stage1.block1'] = values['dgl/stage1.block1'][
        :, :, :2
    ]  # does not fit: the write fails
    with pytest.raises(ValueError):
        store.write(index, names, status, values)
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

    store._arrays = {k: Recorded(k, a) for k, a in store._arrays.items()}
    store.write(*batch([0, 1]))
    assert order[-2:] == ['write status', 'stored status']
    before = order[:-2]
    assert sum(step.startswith('stored') for step in before) == len(before) / 2 == 5


def test_an_empty_batch_writes_nothing(tmp_path):
    store = create(tmp_path / 's')
    store.write(*batch([]))
    with ChunkWriter(store) as writer:
        writer.add(*batch([]))
    assert len(store.pending()) == 5


def test_opening_again_keeps_what_is_there(tmp_path):
    store = create(tmp_path / 's')
    store.write(*batch([0, 1, 2]))  # the second chunk is half done
    before = files(tmp_path / 's')
    again = create(tmp_path / 's')
    assert files(tmp_path / 's') == before
    assert again.pending().tolist() == [3, 4]
    again.write(*batch([3, 4], seed=1))
    assert len(MapStore(tmp_path / 's').pending()) == 0
    np.testing.assert_array_equal(again.read(BLOCK, 0, 3), batch([0, 1, 2])[-1][path_of(BLOCK)])


@pytest.mark.parametrize('size', [1, 2, 3, 4, 5])
def test_each_chunk_is_written_once_whatever_the_batch(tmp_path, monkeypatch, size):
    written, write = [], MapStore.write
    monkeypatch.setattr(
        MapStore, 'write', lambda s, *rows: (written.append(rows[0].tolist()), write(s, *rows))
    )
    index, names, status, values = batch(range(5))
    store = create(tmp_path / 's')
    with ChunkWriter(store) as writer:
        for start in range(0, 5, size):
            rows = slice(start, start + size)
            writer.add(
                index[rows],
                names[rows],
                status[rows],
                {name: column[rows] for name, column in values.items()},
            )
    assert [i for rows in written for i in rows] == [0, 1, 2, 3, 4]
    assert all(rows[0] % 2 == 0 for rows in written)  # each write starts with a chunk
    for name, column in values.items():
        np.testing.assert_array_equal(store.fact(name), column)


def test_what_was_added_is_written_whatever_ends_the_run(tmp_path):
    store = create(tmp_path / 's')
    with pytest.raises(KeyboardInterrupt), ChunkWriter(store) as writer:
        writer.add(*batch([0]))
        raise KeyboardInterrupt
    assert store.pending().tolist() == [1, 2, 3, 4]


def test_a_chunk_that_fills_slowly_is_written_before_it_is_whole(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, 'monotonic', lambda: clock[0])
    monkeypatch.setattr(module, 'CHUNK', 5)
    store = create(tmp_path / 's')
    with ChunkWriter(store) as writer:
        for i, left in enumerate((5, 3, 3, 1, 0)):
            clock[0] += 2.0
            writer.add(*batch([i]))
            assert len(store.pending()) == left


def test_maps_of_other_things_are_refused(tmp_path):
    create(tmp_path / 's')
    for changed in ({'count': 4}, {'target': 'top2'}, {'shapes': {BLOCK: (2, 3, 4)}}):
        with pytest.raises(DataError, match='results of other images or settings'):
            create(tmp_path / 's', **changed)


def test_other_images_are_refused(tmp_path):
    store = create(tmp_path / 's')
    store.expect(IDS)  # nothing is known yet
    store.write(*batch([0, 1, 2]))
    store.expect(IDS)
    store.expect(IDS[2:], 2)
    for ids, first in ((IDS[::-1], 0), (['new.png'], 1)):
        with pytest.raises(DataError, match='results of other images'):
            store.expect(ids, first)
    index, names, *rows = batch([2, 3])
    with pytest.raises(DataError, match='results of other images'):
        store.write(index, ['x/1.png', names[1]], *rows)
    assert store.pending().tolist() == [3, 4]


@pytest.mark.parametrize(
    'names', [['a\nb', 'c\\nd\r', 'caf\udce9.jpg', '\\'], ['', ' ', '=a', '"']]
)
def test_any_name_of_an_image_comes_back(tmp_path, names):
    store = create(tmp_path / 's')
    index, _, *rows = batch(range(4))
    store.write(index, names, *rows)
    assert (tmp_path / 's/image_ids.txt').read_bytes().count(b'\n') == 4
    assert MapStore(tmp_path / 's').image_ids == names
    create(tmp_path / 's').expect(names)


def test_ids_cut_off_by_a_kill_are_written_again(tmp_path):
    full(tmp_path / 's')
    before, ids = files(tmp_path / 's'), tmp_path / 's/image_ids.txt'
    ids.write_bytes(ids.read_bytes()[:-3])
    assert MapStore(tmp_path / 's').image_ids == IDS[:4]
    store = create(tmp_path / 's')
    assert store.pending().tolist() == [4]
    index, names, status, values = batch(range(5))
    store.write(index[4:], names[4:], status[4:], {k: v[4:] for k, v in values.items()})
    assert files(tmp_path / 's') == before


def test_ids_must_follow_each_other(tmp_path):
    with pytest.raises(ValueError, match=r'images 2 \.\.\. do not follow the 0'):
        create(tmp_path / 's').write(*batch([2, 3]))


@pytest.mark.parametrize('name', ARRAYS)
@pytest.mark.parametrize('damage', ['missing', 'empty', 'truncated', 'flipped', 'another'])
def test_a_damaged_chunk_is_never_read_and_done_again(tmp_path, name, damage):
    whole, expected = full(tmp_path / 's'), batch(range(5))
    key = next((k for k in SHAPES if path_of(k) == name), None)
    undisturbed = files(tmp_path / 's')
    chunk = next((tmp_path / 's' / name).glob('1*'))
    data = chunk.read_bytes()
    if damage == 'missing':
        chunk.unlink()
    elif damage == 'another':
        other = 'top' if name == 'status' else 'status'
        shutil.copy(next((tmp_path / 's' / other).glob('1*')), chunk)
    else:
        flipped = data[:-6] + bytes([data[-6] ^ 1]) + data[-5:]
        chunk.write_bytes({'empty': b'', 'truncated': data[:-3], 'flipped': flipped}[damage])
    store = MapStore(tmp_path / 's')
    if (name, damage) == ('status', 'missing'):
        assert store.pending().tolist() == [2, 3]
    else:
        with pytest.raises(
            DataError, match=rf'{name.split("/")[0]}.*images 2 to 3 \(é, 2.png .*(missing|damaged)'
        ):
            store.take(key, np.array([0, 3])) if key else store.fact(name)
    again = create(tmp_path / 's')
    assert again.pending().tolist() == [2, 3]
    index, names, status, values = expected
    rows = [2, 3]
    again.write(
        index[rows],
        [names[i] for i in rows],
        status[rows],
        {n: column[rows] for n, column in values.items()},
    )
    assert files(tmp_path / 's') == undisturbed
    assert len(whole.pending()) == 0


@pytest.mark.parametrize('name', ARRAYS)
@pytest.mark.parametrize('damage', ['missing', 'junk', 'shape'])
def test_a_damaged_array_is_made_again(tmp_path, name, damage):
    full(tmp_path / 's')
    metadata = tmp_path / 's' / name / 'zarr.json'
    if damage == 'missing':
        metadata.unlink()
    else:
        shape = metadata.read_text().replace('"shape":[5', '"shape":[7')
        metadata.write_text({'junk': '{"zarr_format"', 'shape': shape}[damage])
    with pytest.raises(DataError, match=rf'{name.split("/")[0]}.*; run the stage localize again$'):
        MapStore(tmp_path / 's')
    # Without its metadata all of its chunks are still there.
    again = [] if damage == 'missing' else [0, 1, 2, 3, 4]
    assert create(tmp_path / 's').pending().tolist() == again


def test_an_unreadable_chunk_is_no_damage(tmp_path, monkeypatch):
    full(tmp_path / 's')
    monkeypatch.setattr(module, 'reason_of', lambda error: 'PERMISSION_DENIED: so')
    next((tmp_path / 's/top').glob('1*')).unlink()
    with pytest.raises(DataError, match='PERMISSION_DENIED'):
        create(tmp_path / 's')
    assert MapStore(tmp_path / 's').fact('status').tolist() == [DONE] * 5


def test_an_array_that_cannot_be_read_is_not_removed(tmp_path, monkeypatch):
    full(tmp_path / 's')
    before = files(tmp_path / 's')

    def refused(*_, **__):
        raise ValueError('PERMISSION_DENIED: so [tensorstore_spec=...]')

    with monkeypatch.context() as patch:
        patch.setattr(layout, '_open', refused)
        with pytest.raises(DataError, match=r'status: PERMISSION_DENIED: so$'):
            create(tmp_path / 's')
    assert files(tmp_path / 's') == before


def entry(name='dgl/a', dtype='float32', shape=(1, 2, 2), **changed):
    map_of = {'method': 'dgl', 'layer': 'a', 'relu': False} | changed
    about = {'classes': 'top1', 'maps': [map_of]}
    columns = {name: {'shape': [*shape], 'dtype': dtype}}
    return {'images': 5, 'chunk': 2, 'columns': columns, 'about': about}


def told(**changed):
    return entry() | {'about': entry()['about'] | changed}


@pytest.mark.parametrize(
    'index',
    [
        {},
        {'images': 5},
        entry('../../outside'),
        entry('/etc'),
        entry('dgl/..', layer='..'),
        entry('../a', method='..'),
        entry('status/a', method='status'),
        entry(shape=[1, 10**30, 2]),
        entry(shape='abc'),
        entry(dtype='object'),
        entry() | {'images': -1},
        entry() | {'images': 5.0},
        entry() | {'images': 10**12},
        entry() | {'chunk': 0},
        entry() | {'columns': {'dgl/a': 3}},
        entry() | {'columns': [3]},
        entry() | {'columns': None},
    ],
)
def test_an_index_of_another_shape_is_one_line(tmp_path, index):
    full(tmp_path / 's')
    (tmp_path / 's/index.json').write_text(json.dumps(index))
    for use in (MapStore, create):
        with pytest.raises(DataError, match=r'index.json is no index of') as error:
            use(tmp_path / 's')
        assert '\n' not in str(error.value)
    (tmp_path / 's/index.json').unlink()
    assert len(create(tmp_path / 's').pending()) == 0  # all the rest is there


@pytest.mark.parametrize(
    'index',
    [
        entry('dgl/b'),
        entry(layer=3),
        entry(relu='no'),
        told(maps=[]),
        told(maps={'a': 1}),
        told(maps=[3]),
        told(maps=None),
        told(classes=['top1']),
        entry() | {'about': []},
    ],
)
def test_a_store_that_tells_of_no_maps_is_one_line(tmp_path, index):
    columns = {n: Column(tuple(c['shape']), c['dtype']) for n, c in index['columns'].items()}
    Store.prepare(tmp_path / 's', 5, columns, index['about'])
    with pytest.raises(DataError, match=r'index.json is no index of maps'):
        MapStore(tmp_path / 's')


@pytest.mark.parametrize('more', [{}, {'top': 5, 'chunk': 64}])
def test_maps_of_an_older_version_are_refused(tmp_path, more):
    (tmp_path / 's').mkdir()
    old = {'classes': 'top1', 'images': 5, 'maps': []} | more
    (tmp_path / 's/index.json').write_text(json.dumps(old))
    for use in (MapStore, create):
        with pytest.raises(DataError, match='older version of wsol_jax'):
            use(tmp_path / 's')


@pytest.mark.parametrize(
    'keys',
    [
        [('dgl', '..')],
        [('dgl', '')],
        [('..', 'a')],
        [('top', 'a')],
        [('a/b', 'c')],
        [('dgl', 'a/b'), ('dgl', 'a.b')],
    ],
)
def test_names_that_leave_the_store_or_share_a_folder_are_refused(tmp_path, keys):
    with pytest.raises(DataError, match='stored under'):
        shapes, relu = dict.fromkeys(keys, (1, 2, 2)), dict.fromkeys(keys, False)
        MapStore.create(tmp_path / 's', 5, 'top1', shapes, relu, 3)
    assert os.listdir(tmp_path) == []


def test_ids_of_too_many_images_are_one_line(tmp_path):
    full(tmp_path / 's')
    (tmp_path / 's/image_ids.txt').write_text('x\n' * 6)
    with pytest.raises(DataError, match='lists more than the 5 images'):
        MapStore(tmp_path / 's')


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


def test_any_columns_can_be_stored(tmp_path):
    columns = {'score': Column((), 'float32'), 'parts/masks': Column((2, 3), 'uint8')}
    about = {'unit': 'pixels'}
    store = Store.prepare(tmp_path / 's', 3, columns, about)
    values = {'score': np.float32([0.5, 2]), 'parts/masks': np.arange(12).reshape(2, 2, 3)}
    values['parts/masks'] = values['parts/masks'].astype(np.uint8)
    with ChunkWriter(store) as writer:
        writer.add(np.array([0, 1]), IDS[:2], np.array([DONE, SKIPPED]), values)
    opened = Store(tmp_path / 's')
    assert (opened.about, opened.pending().tolist()) == (about, [2])
    np.testing.assert_array_equal(opened.rows('score', slice(0, 2)), [0.5, 2])
    np.testing.assert_array_equal(
        opened.rows('parts/masks', np.array([1])), [[[6, 7, 8], [9, 10, 11]]]
    )
    with pytest.raises(DataError, match='other images'):
        Store.prepare(tmp_path / 's', 3, columns, {'unit': 'metres'})

"""Maps whose arrays lie under a URL: what is there, what is not, and whose it is."""

import numpy as np
import pytest
import tensorstore as ts
from bucket_server import bucket_server
from test_store import IDS, RELU, SHAPES, batch, files, full

from wsol_jax.config import ConfigError
from wsol_jax.data import DataError
from wsol_jax.fields import store_url
from wsol_jax.maps import columns, elsewhere
from wsol_jax.maps.elsewhere import claim
from wsol_jax.maps.store import MapStore, path_of

BLOCK = ('dgl', 'stage1/block1')


@pytest.fixture(autouse=True)
def pairs(monkeypatch):
    """Two images in a chunk; a memory of its own."""
    monkeypatch.setattr(columns, 'CHUNK', 2)
    elsewhere.context.cache_clear()


@pytest.fixture(scope='module')
def bucket():
    """One for all: tensorstore reads once where it is."""
    with bucket_server() as bucket, pytest.MonkeyPatch.context() as patch:
        patch.setenv('TENSORSTORE_GCS_HTTP_URL', bucket.url)
        patch.setenv('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'token')
        yield bucket


def create(folder, url, count=5):
    return MapStore.create(folder, count, 'top1', SHAPES, RELU, 3, url=url)


def objects(url):
    place = ts.KvStore.open(f'{url}/', context=elsewhere.context()).result()
    return {key.decode(): place[key] for key in place.list().result()}


def remove(url, key):
    place = ts.KvStore.open(f'{url}/', context=elsewhere.context()).result()
    del place[key]


def assert_whole(folder, other):
    store, expected = MapStore(folder), MapStore(other)
    assert store.image_ids == IDS and not len(store.pending())
    for name in store.names:
        np.testing.assert_array_equal(store.fact(name), expected.fact(name))


@pytest.fixture(params=['memory', 'file', 'gs'])
def url(request, tmp_path):
    if request.param == 'gs':
        objects = request.getfixturevalue('bucket').objects
        objects.clear()
        return 'gs://bucket/a/run/maps/test'
    return {
        'memory': 'memory://run/maps/test',
        'file': f'file://{tmp_path}/far away/maps/test'.replace(' ', '%20'),
    }[request.param]


def test_the_columns_lie_there_and_all_else_in_the_folder(tmp_path, url):
    full(tmp_path / 'near')
    create(tmp_path / 's', url).write(*batch(range(5)))
    assert_whole(tmp_path / 's', tmp_path / 'near')
    near, far = files(tmp_path / 's'), objects(url)
    assert {name.split('/')[0] for name in near} == {'image_ids.txt', 'index.json', 'status'}
    expected = files(tmp_path / 'near')
    assert far == {name: expected[name] for name in expected.keys() - near.keys()}


@pytest.mark.parametrize('damage', [None, b'', b'no chunk'])
def test_what_is_missing_or_damaged_there_is_done_again(tmp_path, url, damage):
    full(tmp_path / 'near')
    create(tmp_path / 's', url).write(*batch(range(5)))
    chunk = f'{path_of(BLOCK)}/1.0.0.0'
    place = ts.KvStore.open(f'{url}/', context=elsewhere.context()).result()
    place.write(chunk, damage).result()
    fault = 'damaged' if damage is not None else 'missing'
    with pytest.raises(DataError, match=rf'^{url}/dgl/stage1.block1: images 2 to 3 .*{fault}'):
        MapStore(tmp_path / 's').take(BLOCK, np.array([3]))
    again = create(tmp_path / 's', url)
    assert again.pending().tolist() == [2, 3]
    index, names, status, values = batch(range(5))
    some = slice(2, 4)
    again.write(index[some], names[some], status[some], {n: v[some] for n, v in values.items()})
    assert_whole(tmp_path / 's', tmp_path / 'near')


def test_what_no_status_knows_of_is_removed(tmp_path):
    url = 'memory://run/maps/test'
    create(tmp_path / 's', url).write(*batch(range(5)))
    before = objects(url)
    assert create(tmp_path / 'of other images', url, count=4).pending().tolist() == [0, 1, 2, 3]
    assert objects(url).keys() == {name for name in before if name.endswith('zarr.json')}


def test_a_place_is_of_one_run(url, tmp_path):
    url = url.removesuffix('/maps/test')
    claim(url, 'mine')
    create(tmp_path / 's', f'{url}/maps/test').write(*batch(range(5)))
    claim(url, 'mine')
    before = objects(url)
    with pytest.raises(ConfigError, match=rf"store='{url}' holds the maps of another run: choose"):
        claim(url, 'another')
    remove(url, 'wsol_jax_run')
    with pytest.raises(ConfigError, match='holds other files in its folder maps: choose another'):
        claim(url, 'mine')
    assert objects(url).items() == before.items() - {('wsol_jax_run', b'mine')}


def test_of_two_runs_at_once_one_gets_the_place(monkeypatch):
    opened = elsewhere._opened

    def open_when_another_has_it(url):
        place = opened(url)
        if url.endswith('maps'):
            opened('memory://run').write('wsol_jax_run', b'faster').result()
        return place

    monkeypatch.setattr(elsewhere, '_opened', open_when_another_has_it)
    with pytest.raises(ConfigError, match='of another run'):
        claim('memory://run', 'slower')
    assert objects('memory://run') == {'wsol_jax_run': b'faster'}


@pytest.mark.parametrize('status', [400, 401, 403])
def test_a_refusal_is_one_line_and_removes_nothing(tmp_path, bucket, monkeypatch, status):
    url, folder = 'gs://bucket/refused/maps/test', tmp_path / 's'
    claim('gs://bucket/refused', 'mine')
    store = create(folder, url)
    store.write(*batch(range(2)))
    before, local = dict(bucket.objects), files(folder)
    monkeypatch.setattr(bucket, 'refusal', status)
    for act in (
        lambda: claim('gs://bucket/refused', 'mine'),
        lambda: create(folder, url),
        lambda: MapStore(folder),
        lambda: store.take(BLOCK, np.array([0])),
        lambda: store.write(*batch(range(2, 5))),
    ):
        with pytest.raises((ConfigError, DataError), match='gs://bucket/refused') as said:
            act()
        line = str(said.value)
        assert len(line) < 300 and '\n' not in line and 'run the stage' not in line
    monkeypatch.undo()
    assert bucket.objects == before
    assert MapStore(folder).fact('status').tolist() == [1, 1, 0, 0, 0]
    assert files(folder).items() >= {n: d for n, d in local.items() if n != 'image_ids.txt'}.items()


def test_a_bucket_that_is_out_of_reach_is_one_line(monkeypatch, bucket):
    monkeypatch.setattr(elsewhere, '_RETRIES', 1)
    monkeypatch.setattr(bucket, 'refusal', 503)
    with pytest.raises(ConfigError, match=r"^config.localize.store='gs://bucket/far': .*503"):
        claim('gs://bucket/far', 'mine')


@pytest.mark.parametrize(
    'text, right',
    [
        *(('', True), ('gs://b/run', True), ('s3://b', True), ('file:///a/b%20c', True)),
        *(('/a/b', False), ('file://a', False), ('http://a/b', False), ('gs://', False)),
        *(('gs://b/a b', False), ('gs://b/?a', False), ('gs:/b', False)),
    ],
)
def test_which_urls_are_right(text, right):
    assert (store_url(text) == '') is right

"""The stage localize: whole splits, resumed, with broken images, in any batch size."""

import json
import shutil
from dataclasses import replace
from functools import partial

import conftest
import numpy as np
import pytest

from wsol_jax.config import Config, ConfigError, LocalizeConfig, NetworkConfig
from wsol_jax.data import DataError, Shapes, decode_image, resize_image
from wsol_jax.data.records import NamedClasses
from wsol_jax.evaluation.stage import evaluate
from wsol_jax.localization.localize import localize
from wsol_jax.localization.stage import localize_split
from wsol_jax.localization.task import LOCALIZATION
from wsol_jax.maps import columns as store_module
from wsol_jax.maps.columns import DONE, SKIPPED
from wsol_jax.maps.store import MapStore

SIDE = 32
COUNT = 11
BROKEN = 4
Listed = partial(conftest.Listed, class_names='abcdefg')  # as many as the network has
FACTS = ('status', 'classes', 'class_scores', 'top')


def settings(**changed):
    options = {'methods': ('dgl', 'cam'), 'layers': ('stage2',), 'batch_size': 4} | changed
    network = NetworkConfig(name='resnet10', input_size=SIDE)
    return Config(network=network, localize=LocalizeConfig(**options))


@pytest.fixture(autouse=True, scope='module')
def small_chunks():
    """Four images in a chunk, as in a batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, 'CHUNK', 4)
        yield


@pytest.fixture(scope='module')
def source():
    return Listed([Shapes('val', COUNT, size=40)[i] for i in range(COUNT)])


@pytest.fixture(scope='module')
def with_broken(source):
    broken = replace(source[BROKEN], image=b'not an image')
    return Listed([broken if i == BROKEN else source[i] for i in range(COUNT)])


def contents(folder):
    """Every file of the arrays, by its path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


@pytest.fixture(scope='module')
def whole(resnet, source, tmp_path_factory):
    """A workdir in which the split ran through at once."""
    workdir = tmp_path_factory.mktemp('whole')
    return workdir, localize_split(settings(), resnet, source, 'val', workdir)


@pytest.mark.slow
def test_maps_are_those_of_localize(resnet, source, whole):
    _, store = whole
    pictures = np.stack([resize_image(decode_image(r), (SIDE, SIDE)) for r in source.records])
    labels = np.array([r.labels[0] for r in source.records])
    expected = localize(resnet, pictures, ('dgl', 'cam'), ('stage2',), labels, resize=False)
    assert set(store.arrays) == set(expected.maps)
    for key, maps in expected.maps.items():
        stored = store.read(key, 0, COUNT)
        assert stored.shape == (COUNT, 1, *maps.shape[1:])
        scale = np.abs(maps).max()
        np.testing.assert_allclose(stored[:, 0], maps, rtol=0, atol=2e-6 * scale)
    logits = np.asarray(expected.logits, np.float64)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_array_equal(store.fact('classes')[:, 0], labels)
    np.testing.assert_allclose(
        store.fact('class_scores')[:, 0], p[np.arange(COUNT), labels], rtol=1e-4
    )
    np.testing.assert_array_equal(store.fact('top'), np.argsort(-logits, axis=1)[:, :5])
    assert store.fact('status').tolist() == COUNT * [DONE]


def test_index_of_the_workdir(whole):
    workdir, store = whole
    index = json.loads((workdir / 'maps/val/index.json').read_text())
    assert index['about']['classes'] == 'ground_truth' and index['images'] == COUNT
    assert [(m['method'], m['layer']) for m in index['about']['maps']] == [
        ('dgl', 'stage2'),
        ('cam', 'stage4'),
    ]
    assert store.image_ids == [f'val/{i:05d}.png' for i in range(COUNT)]
    assert not (workdir / 'maps/val/skipped.csv').exists()


@pytest.mark.parametrize('writes', [1, 2])
def test_a_stopped_run_goes_on_to_the_same_bytes(
    resnet, source, whole, tmp_path, monkeypatch, writes
):
    write, calls = MapStore.write, []

    def failing(store, *arguments):
        calls.append(arguments[0].tolist())
        if len(calls) > writes:
            raise KeyboardInterrupt
        write(store, *arguments)

    monkeypatch.setattr(MapStore, 'write', failing)
    with pytest.raises(KeyboardInterrupt):
        localize_split(settings(), resnet, source, 'val', tmp_path)
    assert MapStore(tmp_path / 'maps/val').pending().tolist() == list(range(4 * writes, COUNT))
    calls.clear()
    monkeypatch.setattr(
        MapStore, 'write', lambda s, *a: (calls.append(a[0].tolist()), write(s, *a))
    )
    localize_split(settings(), resnet, source, 'val', tmp_path)
    assert [i for call in calls for i in call] == list(range(4 * writes, COUNT))
    assert contents(tmp_path / 'maps/val') == contents(whole[0] / 'maps/val')


def test_a_finished_split_is_not_computed_again(resnet, source, whole, monkeypatch):
    workdir, _ = whole
    before = contents(workdir / 'maps')
    monkeypatch.setattr(MapStore, 'write', lambda *_: pytest.fail('nothing is left to write'))
    store = localize_split(settings(), resnet, source, 'val', workdir)
    assert len(store.pending()) == 0 and contents(workdir / 'maps') == before


@pytest.mark.slow
@pytest.mark.parametrize('batch_size', [1, 5, 64])
def test_batch_size_does_not_change_results(resnet, source, whole, tmp_path, batch_size):
    store = localize_split(settings(batch_size=batch_size), resnet, source, 'val', tmp_path)
    for name in ('status', 'classes', 'top'):
        np.testing.assert_array_equal(store.fact(name), whole[1].fact(name))
    for key in store.arrays:
        expected = whole[1].read(key, 0, COUNT)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(store.read(key, 0, COUNT), expected, rtol=0, atol=2e-6 * scale)


def test_a_broken_image_is_skipped_and_listed(resnet, with_broken, whole, tmp_path):
    store = localize_split(settings(), resnet, with_broken, 'val', tmp_path)
    assert list(store.skipped()) == [f'val/{BROKEN:05d}.png']
    assert 'not an image' in store.skipped()[f'val/{BROKEN:05d}.png']
    status = COUNT * [DONE]
    status[BROKEN] = SKIPPED
    assert store.fact('status').tolist() == status
    others = np.flatnonzero(np.array(status) == DONE)
    for name in FACTS:
        np.testing.assert_array_equal(store.fact(name)[others], whole[1].fact(name)[others])
    for key in store.arrays:
        np.testing.assert_array_equal(
            store.read(key, 0, COUNT)[others], whole[1].read(key, 0, COUNT)[others]
        )


def test_a_skipped_image_that_can_be_read_later_is_taken_up(
    resnet, source, with_broken, whole, tmp_path
):
    localize_split(settings(), resnet, with_broken, 'val', tmp_path)
    skipped, scores = contents(tmp_path / 'maps/val'), tmp_path / 'metrics.json'
    scores.write_text('{}')
    localize_split(settings(), resnet, with_broken, 'val', tmp_path)
    assert contents(tmp_path / 'maps/val') == skipped and scores.exists()
    store = localize_split(settings(), resnet, source, 'val', tmp_path)
    assert not scores.exists()  # they tell of the images without that one
    assert store.skipped() == {} and store.fact('status').tolist() == COUNT * [DONE]
    for name in FACTS:
        np.testing.assert_allclose(store.fact(name), whole[1].fact(name), rtol=1e-5)
    for key in store.arrays:
        expected = whole[1].read(key, 0, COUNT)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(store.read(key, 0, COUNT), expected, rtol=0, atol=2e-6 * scale)


def test_a_batch_of_broken_images_only(resnet, source, tmp_path):
    records = [replace(r, image=b'x') if i < 4 else r for i, r in enumerate(source.records)]
    store = localize_split(settings(), resnet, Listed(records), 'val', tmp_path)
    assert store.fact('status').tolist() == 4 * [SKIPPED] + 7 * [DONE]
    assert len(store.skipped()) == 4


@pytest.mark.slow
@pytest.mark.parametrize(('target', 'count'), [('top1', 1), ('top5', 5), ('3', 1)])
def test_classes_of_the_maps(resnet, source, whole, tmp_path, target, count):
    store = localize_split(settings(classes=target), resnet, source, 'val', tmp_path)
    classes, top = store.fact('classes'), store.fact('top')
    assert store.target == target and classes.shape == (COUNT, count)
    expected = np.full((COUNT, 1), 3) if target == '3' else top[:, :count]
    np.testing.assert_array_equal(classes, expected)
    np.testing.assert_array_equal(top, whole[1].fact('top'))
    truth = whole[1].fact('classes')[:, 0]
    same = [(i, k) for i in range(COUNT) for k in range(count) if classes[i, k] == truth[i]]
    assert same
    for key in store.arrays:
        mine, theirs = store.read(key, 0, COUNT), whole[1].read(key, 0, COUNT)
        scale = np.abs(theirs).max()
        for i, k in same:
            np.testing.assert_allclose(mine[i, k], theirs[i, 0], rtol=0, atol=2e-6 * scale)


def several(record, k):
    """Some have a second label, one a third, of the seven there are."""
    more = {1: (5,), 3: (6, 0), 8: (4,), BROKEN: (1,)}
    return replace(record, labels=record.labels + more.get(k, ()))


@pytest.mark.slow
def test_all_labels_of_an_image_are_localized(resnet, with_broken, whole, tmp_path):
    records = [several(record, k) for k, record in enumerate(with_broken.records)]
    store = localize_split(settings(), resnet, Listed(records), 'val', tmp_path)
    classes, scores = store.fact('classes'), store.fact('class_scores')
    assert classes.tolist() == [[*r.labels, *[-1] * (3 - len(r.labels))] for r in records]
    single = whole[1]
    for key in store.arrays:
        found, one = store.read(key, 0, COUNT), single.read(key, 0, COUNT)[:, 0]
        scale = np.abs(one).max()
        done = [i for i in range(COUNT) if i != BROKEN]
        np.testing.assert_allclose(found[done, 0], one[done], rtol=0, atol=2e-6 * scale)
        assert not found[classes == -1].any()
    np.testing.assert_array_equal(scores[classes == -1], 0)
    # The others are those of a split with that label alone.
    for k, label in ((3, 6), (3, 0), (8, 4)):
        alone = replace(records[k], labels=(label,))
        expected = localize_split(
            settings(), resnet, Listed([alone]), 'val', tmp_path / f'{k} {label}'
        )
        at = records[k].labels.index(label)
        assert scores[k, at] == pytest.approx(expected.fact('class_scores')[0, 0], rel=1e-5)
        for key in store.arrays:
            map_ = expected.read(key, 0, 1)[0, 0]
            scale = np.abs(map_).max()
            found = store.read(key, k, k + 1)[0, at]
            np.testing.assert_allclose(found, map_, rtol=0, atol=5e-6 * scale)


def test_what_cannot_be_scored_is_told_before_its_maps_are_computed(resnet, source, tmp_path):
    records = Listed([several(record, k) for k, record in enumerate(source.records[:4])])
    with pytest.raises(DataError, match=r'00001.png has 2 labels; scores of localization need one'):
        LOCALIZATION.compute(settings(), resnet, records, 'val', tmp_path)
    assert not (tmp_path / 'maps').exists()
    config = replace(settings(), stages=('localize',))
    assert LOCALIZATION.compute(config, resnet, records, 'val', tmp_path).pending().size == 0


def test_a_second_label_the_network_does_not_have(resnet, source, tmp_path):
    records = [replace(r, labels=(2, 7)) if i == 9 else r for i, r in enumerate(source.records)]
    with pytest.raises(ConfigError, match=r'00009.png has label 7, but resnet10 has'):
        localize_split(settings(), resnet, Listed(records), 'val', tmp_path)


def test_a_source_that_has_more_labels_than_it_says(resnet, source, tmp_path):
    records = [replace(r, labels=(2, 3)) if i == 9 else r for i, r in enumerate(source.records)]
    with pytest.raises(DataError, match=r'00009.png: has 2 labels \(2, 3\), but can have 1 here'):
        localize_split(settings(), resnet, Counted(records), 'val', tmp_path)


def test_unlabelled_images_need_predicted_classes(resnet, source, tmp_path):
    records = [replace(r, labels=()) if i == 9 else r for i, r in enumerate(source.records)]
    with pytest.raises(ConfigError, match=r"val/00009.png has no label.*use 'top1'"):
        localize_split(settings(), resnet, Listed(records), 'val', tmp_path)
    segmentation = replace(settings(), task='segmentation')
    without = Listed([replace(record, labels=()) for record in records])
    with pytest.raises(ConfigError, match=r'^no image of val has a label.*; leave it out of conf'):
        localize_split(segmentation, resnet, without, 'val', tmp_path)
    # Nothing is left that would refuse the corrected config.
    assert not (tmp_path / 'maps').exists()
    store = localize_split(settings(classes='top1'), resnet, Listed(records), 'val', tmp_path)
    assert len(store.pending()) == 0


@pytest.mark.parametrize('label', [7, 10**9, -5])
@pytest.mark.parametrize('target', ['ground_truth', 'top1'])
def test_a_label_the_network_does_not_have(resnet, source, tmp_path, label, target):
    records = [replace(r, labels=(label,)) if i == 10 else r for i, r in enumerate(source.records)]
    wrong = rf'00010.png has label {label}, but resnet10 has .* 0\.\.6'
    with pytest.raises(ConfigError, match=wrong):
        localize_split(settings(classes=target), resnet, Listed(records), 'val', tmp_path)
    assert not (tmp_path / 'maps').exists()


class Counted(NamedClasses):
    """Records that are read one by one."""

    def __init__(self, records):
        self.records, self.reads = list(records), []

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        self.reads.append(index)
        return self.records[index]


def test_each_record_is_read_once_a_stage(resnet, with_broken, whole, tmp_path):
    source = Counted(with_broken.records)
    localize_split(settings(), resnet, source, 'val', tmp_path)
    assert sorted(source.reads) == list(range(COUNT))
    assert MapStore(tmp_path / 'maps/val').image_ids == whole[1].image_ids
    source.reads.clear()
    localize_split(settings(), resnet, source, 'val', tmp_path)
    assert source.reads == [BROKEN]  # it might be readable now
    source.reads.clear()
    evaluate(settings(), {'val': source}, tmp_path)
    assert sorted(source.reads) == list(range(COUNT))


@pytest.mark.parametrize('labels', [(), (7,)])
def test_a_wrong_label_is_found_in_its_batch_and_what_came_before_is_kept(
    resnet, source, tmp_path, labels
):
    records = [replace(r, labels=labels) if i == 6 else r for i, r in enumerate(source.records)]
    wrong = 'val/00006.png has no label' if not labels else 'val/00006.png has label 7'
    with pytest.raises(ConfigError, match=wrong):
        localize_split(settings(), resnet, Counted(records), 'val', tmp_path)
    store = MapStore(tmp_path / 'maps/val')
    assert store.pending().tolist() == [6, 7, 8, 9, 10]
    right = Counted(source.records)
    localize_split(settings(), resnet, right, 'val', tmp_path)
    assert sorted(right.reads) == [6, 7, 8, 9, 10]


def test_other_images_of_a_source_that_reads_them_one_by_one(resnet, source, tmp_path):
    localize_split(settings(), resnet, Counted(source.records), 'val', tmp_path)
    next((tmp_path / 'maps/val/classes').glob('1.*')).unlink()
    renamed = [replace(r, image_id=f'new/{r.image_id}') for r in source.records]
    with pytest.raises(DataError, match='results of other images'):
        localize_split(settings(), resnet, Counted(renamed), 'val', tmp_path)
    with pytest.raises(DataError, match='results of other images'):
        localize_split(settings(), resnet, Listed(renamed), 'val', tmp_path)


def test_missing_chunks_are_computed_again_to_the_same_bytes(resnet, source, whole, tmp_path):
    shutil.copytree(whole[0] / 'maps', tmp_path / 'maps')
    for name in ('dgl/stage2', 'classes'):
        next((tmp_path / 'maps/val' / name).glob('1.*')).unlink()
    missing = r'/classes: images 4 to 7 \(val/00004.png \.\.\.\).*localize again'
    with pytest.raises(DataError, match=missing):
        evaluate(settings(), {'val': source}, tmp_path)
    counted = Counted(source.records)
    localize_split(settings(), resnet, counted, 'val', tmp_path)
    assert sorted(counted.reads) == [4, 5, 6, 7]
    assert contents(tmp_path / 'maps/val') == contents(whole[0] / 'maps/val')


@pytest.mark.parametrize('target', ['ground_truth', 'top1', '3'])
def test_labels_of_another_classifier_are_refused(resnet, source, tmp_path, target):
    ten = conftest.Listed(source.records, 'abcdefghij')
    with pytest.raises(ConfigError, match=r"10 classes, resnet10 .* 7 others.*'name,index'"):
        localize_split(settings(classes=target), resnet, ten, 'val', tmp_path)
    assert not (tmp_path / 'maps').exists()


def test_a_split_stays_in_the_workdir(resnet, source, tmp_path):
    for split in ('../x', str(tmp_path / 'x'), '', '..'):
        with pytest.raises(ConfigError, match='must be the plain name of a split'):
            localize_split(settings(), resnet, source, split, tmp_path / 'w')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('target', ['7', '-1', 'groundtruth', '1.0', ''])
def test_a_wrong_target(resnet, source, tmp_path, target):
    with pytest.raises(ConfigError, match=f"class index below 7, got '{target}'"):
        localize_split(settings(classes=target), resnet, source, 'val', tmp_path)
    assert not (tmp_path / 'maps').exists()


@pytest.mark.parametrize('change', [{'methods': ('dlg',)}, {'layers': ('stage9',)}])
def test_wrong_names_write_nothing(resnet, source, tmp_path, change):
    with pytest.raises(ValueError, match='did you mean'):
        localize_split(settings(**change), resnet, source, 'val', tmp_path)
    assert not (tmp_path / 'maps').exists()


def test_a_layer_without_gradient_is_named(toy_with_spare, source, tmp_path):
    source = conftest.Listed(source.records, 'abcdef')
    config = settings(layers=('early', 'spare'), methods=('dgl',))
    with pytest.raises(ValueError, match="'spare' is zero everywhere"):
        localize_split(config, toy_with_spare, source, 'val', tmp_path)


def test_progress_counts_images(resnet, whole):
    lines = (whole[0] / 'progress.csv').read_text().splitlines()
    assert lines[0].startswith('stage,split,step')
    assert [line.split(',')[:3] for line in lines[1:4]] == [
        ['localize', 'val', str(step)] for step in range(3)
    ]

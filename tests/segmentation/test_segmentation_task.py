"""Segmentation as a task: from stored maps to scores, label maps and the page; a run in full."""

import json
import pickle
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from conftest import Listed

from wsol_jax.config import (
    Config,
    ConfigError,
    DataConfig,
    EvaluateConfig,
    LocalizeConfig,
    NetworkConfig,
    ReportConfig,
    SegmentationConfig,
    TrainConfig,
)
from wsol_jax.data import Record, decode_image
from wsol_jax.data.drawing import png
from wsol_jax.maps.columns import DONE, SKIPPED
from wsol_jax.maps.store import MapStore, by_column
from wsol_jax.run import run
from wsol_jax.segmentation import (
    confusion,
    crf_of_places,
    metrics_of,
    read_label_map,
    seed_label_map,
    seed_probabilities,
    true_label_map,
    write_label_map,
)
from wsol_jax.segmentation.seed_scores import PredictedSplit, predicted_file, score_predicted
from wsol_jax.segmentation.task import SEGMENTATION, evaluate_seeds
from wsol_jax.workdir import read_csv

A, B = ('cam', 'late'), ('bas_wsss', 'head/x')
NAMES = ('cat', 'dog', 'cow')
SIZES = ((9, 6), (8, 8), (7, 5))
LABELS = ((2, 0), (1,), (0, 1))
CONFIG = Config(
    task='segmentation',
    localize=LocalizeConfig(splits=('val', 'test')),
    evaluate=EvaluateConfig(threshold_step=0.1, threshold=0.33),
    report=ReportConfig(gallery=2),
)
THRESHOLDS = np.arange(0, 1, 0.1)


def source_of(split, truth=True, even=False):
    """Three images, of noise or one colour; their true label maps have ignored pixels."""
    records, rng = [], np.random.default_rng(len(split))
    for i, ((width, height), labels) in enumerate(zip(SIZES, LABELS, strict=True)):
        values = [0, 255, *(k + 1 for k in labels)]
        label_map = rng.choice(np.array(values, np.uint8), (height, width))
        image = rng.integers(0, 256, (height, width, 3), np.uint8) * np.uint8(not even)
        extra = {'segmentation': png(label_map)} if truth else {}
        name = f'{split}/{i}'
        records.append(Record(name, png(image), labels, (width, height), extra=extra))
    return Listed(records, NAMES)


def store_of(workdir, split, source, skipped=()):
    """Random maps; an image with one label has nothing in the second place."""
    rng = np.random.default_rng(7 + len(split))
    maps = {
        k: rng.normal(size=(3, 2, *s)).astype(np.float32) for k, s in ((A, (3, 4)), (B, (2, 2)))
    }
    classes = np.array([(*labels, -1)[:2] for labels in LABELS], np.int32)
    shapes = {key: m.shape[1:] for key, m in maps.items()}
    folder = workdir / 'maps' / split
    store = MapStore.create(folder, 3, 'ground_truth', shapes, {A: True, B: False}, 3)
    facts = {'classes': classes, 'class_scores': np.ones((3, 2), np.float32)}
    facts['top'] = np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1]], np.int32)
    status = np.array([SKIPPED if i in skipped else DONE for i in range(3)])
    ids = [source[i].image_id for i in range(3)]
    store.write(np.arange(3), ids, status, facts | by_column(maps))
    return maps


def expected_label_map(maps, i, threshold):
    count = len(LABELS[i])
    return seed_label_map(seed_probabilities(maps[i, :count], SIZES[i]), LABELS[i], threshold)


def expected_matrix(maps, source, threshold, images=range(3)):
    truths = {i: read_label_map(source[i].extra['segmentation']) for i in images}
    found = [confusion(expected_label_map(maps, i, threshold), truths[i], 4) for i in images]
    return sum(found)


@pytest.fixture(scope='module')
def scored(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('seeds')
    sources = {split: source_of(split) for split in ('val', 'test')}
    maps = {'val': store_of(workdir, 'val', sources['val'])}
    maps['test'] = store_of(workdir, 'test', sources['test'], skipped=(1,))
    return workdir, sources, maps, evaluate_seeds(CONFIG, sources, workdir)


def test_mirrored_views_keep_what_maps_say(toy, tmp_path):
    """The toy network is mirror symmetric: both views are one map, rectified and not stretched."""
    setting = replace(CONFIG.localize, methods=('cam',), batch_size=3)
    source, found = Listed(source_of('val').records, 'abcdef'), []
    for flip in (False, True):
        config = replace(CONFIG, localize=replace(setting, flip=flip))
        store = SEGMENTATION.compute(config, toy, source, 'val', tmp_path / str(flip))
        found.append(store.read(A, 0, 3))
    assert found[0].min() < 0 < found[0].max()
    np.testing.assert_allclose(found[1], np.maximum(found[0], 0), rtol=1e-4, atol=1e-6)


def rows_of(metrics, split):
    rows = [row for row in metrics['segmentation'] if row['split'] == split]
    return {(row['method'], row['layer']): row for row in rows}


def test_the_threshold_of_val_is_applied_to_test(scored):
    _, sources, maps, metrics = scored
    names = ['background', *NAMES]
    for key in (A, B):
        matrices = [expected_matrix(maps['val'][key], sources['val'], t) for t in THRESHOLDS]
        on_val = [metrics_of(m, names)['mIoU'] for m in matrices]
        best = int(np.argmax(on_val))
        val, test = (rows_of(metrics, split)[key] for split in ('val', 'test'))
        assert val['threshold'] == test['threshold'] == pytest.approx(THRESHOLDS[best])
        assert val['threshold_from'] == test['threshold_from'] == 'val'
        assert val['mIoU'] == val['PeakmIoU'] == pytest.approx(on_val[best])
        assert val['oracle'] and 'oracle' not in test
        images = (0, 2)  # the other one could not be read
        of_test = [
            expected_matrix(maps['test'][key], sources['test'], t, images) for t in THRESHOLDS
        ]
        expected = metrics_of(of_test[best], names)
        assert {name: test[name] for name in expected} == expected
        assert test['PeakmIoU'] == pytest.approx(max(metrics_of(m, names)['mIoU'] for m in of_test))
        assert (val['images'], test['images']) == (3, 2)
    assert all(row['chosen'] for row in metrics['segmentation'])  # one layer each


def test_label_maps_and_curves_are_written(scored):
    workdir, _, maps, metrics = scored
    for split, images in (('val', (0, 1, 2)), ('test', (0, 2))):
        for key, folder in ((A, 'cam/late'), (B, 'bas_wsss/head.x')):
            files = sorted((workdir / 'label_maps' / folder / split).rglob('*.png'))
            assert [f.stem for f in files] == [str(i) for i in images]
            threshold = rows_of(metrics, split)[key]['threshold']
            for i, file in zip(images, files, strict=True):
                expected = expected_label_map(maps[split][key], i, threshold)
                np.testing.assert_array_equal(read_label_map(file), expected)
    curves = read_csv(workdir / 'curves.csv')
    assert len(curves) == 2 * 2 * len(THRESHOLDS)
    of_a = [float(c['mIoU']) for c in curves if (c['split'], c['method']) == ('test', 'cam')]
    assert max(of_a) == pytest.approx(rows_of(metrics, 'test')[A]['PeakmIoU'], rel=1e-5)
    assert json.loads((workdir / 'metrics.json').read_text()) == metrics
    assert metrics['classification']['top1'] == 50  # of the two that could be read


def test_the_page_and_the_table(scored):
    workdir, sources, _, metrics = scored
    text = SEGMENTATION.report(CONFIG, sources['test'], workdir)
    rows = rows_of(metrics, 'test')
    assert text.startswith('test: 2 images\n')
    for key in (A, B):
        assert f'{rows[key]["mIoU"]:.1f}' in text and key[1] in text
    page = (workdir / 'report.html').read_text()
    best = max((A, B), key=lambda key: rows_of(metrics, 'val')[key]['mIoU'])
    assert 'Segmentation from image labels' in page and best[1] in page
    assert 'test/0' in page and 'test/2' in page  # the gallery


@pytest.mark.slow
def test_refined_label_maps_are_written_and_scored(scored, tmp_path):
    plain = scored[-1]
    sources = {split: source_of(split, even=True) for split in ('val', 'test')}
    maps = {split: store_of(tmp_path, split, source) for split, source in sources.items()}
    crf = replace(CONFIG, segmentation=SegmentationConfig(crf=True))
    metrics = evaluate_seeds(crf, sources, tmp_path)
    row, before = (rows_of(m, 'val')[A] for m in (metrics, plain))
    assert (row['threshold'], row['PeakmIoU']) == (before['threshold'], before['PeakmIoU'])
    total = 0
    for i in range(3):
        record = sources['val'][i]
        order = np.argsort(LABELS[i])
        probabilities = seed_probabilities(maps['val'][A][i, : len(order)][order], SIZES[i])
        refine = crf_of_places(decode_image(record))
        labels = sorted(LABELS[i])
        expected = seed_label_map(probabilities, labels, row['threshold'], refine)
        found = read_label_map(tmp_path / f'label_maps/cam/late/val/{i}.png')
        np.testing.assert_array_equal(found, expected)
        total += confusion(found, read_label_map(record.extra['segmentation']), 4)
    names = ['background', *NAMES]
    assert row['confusion'] == total.tolist() != before['confusion']
    assert row['mIoU'] == metrics_of(total, names)['mIoU']


def test_without_true_label_maps_the_seeds_are_written_all_the_same(tmp_path):
    config = replace(CONFIG, localize=replace(CONFIG.localize, splits=('train',)))
    source = source_of('train', truth=False)
    maps = store_of(tmp_path, 'train', source)
    metrics = evaluate_seeds(config, {'train': source}, tmp_path)
    assert metrics['segmentation'] == []
    file = tmp_path / 'label_maps/cam/late/train/2.png'
    # The configured threshold, as near as scores have it.
    expected = expected_label_map(maps[A], 2, THRESHOLDS[3])
    np.testing.assert_array_equal(read_label_map(file), expected)
    text = SEGMENTATION.report(config, source, tmp_path)
    assert text == 'train: no image has a true label map to compare with'
    assert (tmp_path / 'report.html').exists()


class Drawn(Mapping):
    """The label map of an image, drawn when it is asked for."""

    def __init__(self, label_map):
        self.label_map, self.draws = label_map, 0

    def __getitem__(self, key):
        if key not in self:
            raise KeyError(key)
        self.draws += 1
        return self.label_map

    def __contains__(self, key):
        return key == 'segmentation'

    def __iter__(self):
        return iter(('segmentation',))

    def __len__(self):
        return 1


def test_a_true_label_map_is_drawn_once_to_be_scored(tmp_path):
    known = source_of('val')
    source = Listed([replace(r, extra=Drawn(r.extra['segmentation'])) for r in known], NAMES)
    store_of(tmp_path, 'val', source)
    config = replace(CONFIG, localize=replace(CONFIG.localize, splits=('val',)))
    metrics = evaluate_seeds(config, {'val': source}, tmp_path)
    assert [row['images'] for row in metrics['segmentation']] == [3, 3]
    assert [record.extra.draws for record in source] == [1, 1, 1]
    split = PredictedSplit('val', source, MapStore(tmp_path / 'maps/val'))
    parts = list(split.parts())
    assert pickle.dumps(parts) and [record.extra.draws for record in source] == [1, 1, 1]
    for record in source:
        truth = true_label_map(record)
        file = predicted_file(split.store.folder, record)
        write_label_map(file, np.where(truth == 255, np.uint8(0), truth))
    matrix = score_predicted(parts[0], 4, CONFIG.evaluate, None)
    assert matrix.sum() == np.trace(matrix) > 0
    assert [record.extra.draws for record in source] == [3, 3, 3]


def test_an_image_without_a_label_is_all_background(toy, tmp_path):
    rng, records = np.random.default_rng(2), []
    for i, labels in enumerate([(2, 0), (), (1,)]):
        image = rng.integers(0, 256, (8, 8, 3), np.uint8)
        extra = {'segmentation': png(np.full((8, 8), i, np.uint8))}
        records.append(Record(str(i), png(image), labels, (8, 8), extra=extra))
    source = Listed(records, 'abcdef')
    setting = LocalizeConfig(splits=('val',), methods=('layer_cam',), layers=('late',))
    config = replace(CONFIG, localize=setting)
    store = SEGMENTATION.compute(config, toy, source, 'val', tmp_path)
    assert store.fact('classes').tolist() == [[2, 0], [-1, -1], [1, -1]]
    maps = store.read(('layer_cam', 'late'), 0, 3)
    assert not maps[1].any() and maps[[0, 2]].any()
    (row,) = evaluate_seeds(config, {'val': source}, tmp_path)['segmentation']
    assert row['images'] == 3 and row['confusion'][1] == [64, *6 * [0]]
    seeds = [read_label_map(tmp_path / f'label_maps/layer_cam/late/{i}.png') for i in range(3)]
    assert not seeds[1].any() and seeds[0].any()
    assert SEGMENTATION.report(config, source, tmp_path).startswith('val: 3 images\n')


def test_wrong_settings_are_one_line(tmp_path):
    wrong = replace(CONFIG, localize=LocalizeConfig(classes='top1'))
    with pytest.raises(
        ConfigError, match=r"^config\.localize\.classes must be 'ground_truth', the"
    ):
        run(wrong, tmp_path / 'W')
    with pytest.raises(ConfigError, match=r'metrics\.json is missing; run the stage evaluate'):
        SEGMENTATION.report(CONFIG, source_of('test'), tmp_path)
    (tmp_path / 'metrics.json').write_text('{"split": "test", "localization": []}')
    with pytest.raises(ConfigError, match=r'metrics\.json: has no scores of segmentation; delete'):
        SEGMENTATION.report(CONFIG, source_of('test'), tmp_path)


@pytest.mark.slow
def test_a_run_in_full(tmp_path, capsys):
    options = {'width': 8, 'output_stride': 16}
    config = Config(
        task='segmentation',
        data=DataConfig(source='scenes', shapes_size=48, shapes_counts=(24, 12, 6)),
        network=NetworkConfig('resnet10', options=options, input_size=48),
        train=TrainConfig(epochs=2, batch_size=8, method='bas_wsss', learning_rate=0.05),
        localize=LocalizeConfig(
            methods=('bas_wsss', 'cam', 'layer_cam'),
            layers=('stage3',),
            flip=True,
            splits=('val', 'test'),
        ),
        evaluate=EvaluateConfig(threshold_step=0.1),
        report=ReportConfig(gallery=3),
    )
    with pytest.raises(ConfigError, match=r'^config\.localize\.methods: cam reads the weights'):
        run(config, tmp_path / 'a')
    config = replace(config, localize=replace(config.localize, methods=('bas_wsss', 'layer_cam')))
    run(config, tmp_path / 'b')
    metrics = json.loads((tmp_path / 'b/metrics.json').read_text())
    rows = rows_of(metrics, 'test')
    assert list(rows) == [('bas_wsss', 'head'), ('layer_cam', 'stage3')]
    assert all(0 < row['mIoU'] < 100 and row['images'] == 6 for row in rows.values())
    assert 'Page: ' in capsys.readouterr().out
    progress = [r for r in read_csv(tmp_path / 'b/progress.csv') if r.get('mAP')]
    assert len(progress) == 2
    label_map = read_label_map(tmp_path / 'b/label_maps/bas_wsss/head/test/00000.png.png')
    assert label_map.shape == (48, 48)

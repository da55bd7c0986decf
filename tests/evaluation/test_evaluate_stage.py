"""The stage evaluate on maps whose scores can be counted by hand, and on real images."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import Listed

from wsol_jax.config import Config, EvaluateConfig, LocalizeConfig, NetworkConfig
from wsol_jax.data import DataError, Record, Shapes, WsolFolder, decode_image, resize_image
from wsol_jax.evaluation.boxes import rescale_boxes
from wsol_jax.evaluation.faithfulness import faithfulness, summarize
from wsol_jax.evaluation.stage import evaluate
from wsol_jax.evaluation.truth import label_of
from wsol_jax.localization.localize import localize
from wsol_jax.localization.stage import localize_split
from wsol_jax.maps.boxes import boxes_from_map
from wsol_jax.maps.columns import DONE, PENDING, SKIPPED
from wsol_jax.maps.store import MapStore, by_column
from wsol_jax.models import load_network
from wsol_jax.report.table import summary
from wsol_jax.workdir import read_csv

SIDE = 16
SIZE = (32, 16)  # of the stored images: x is twice as large there
A, B = ('dgl', 'a'), ('dgl', 'b')
# On the canvas. IoU of the two is 49 / 169, below all levels.
INNER, OUTER = (2, 2, 8, 8), (2, 2, 14, 14)
CONFIG = Config(evaluate=EvaluateConfig(size=SIDE, threshold_step=0.25, threshold=0.2))


def filled(box, value=1.0):
    x0, y0, x1, y1 = box
    m = np.zeros((SIDE, SIDE), np.float32)
    m[y0:y1, x0:x1] = value
    return m


# Thresholds 0 and .25 give OUTER; at .5 the cut is 127, which the grey value 127 does not
# exceed, so .5 and .75 give INNER.
NESTED = np.maximum(filled(OUTER, 0.5), filled(INNER))
ELSEWHERE = filled((9, 0, 14, 2))


def stored(box):
    return box[0] * 2, box[1], box[2] * 2, box[3]


def record(name, *boxes, label=0, masks=()):
    labels = () if label is None else (label,)
    return Record(name, b'', labels, SIZE, tuple(map(stored, boxes)), masks)


def write_store(workdir, split, source, maps, *, target='ground_truth', relu=False, **facts):
    """A store with the given maps {key: list of [h,w] or [K,h,w]}; facts by default all right."""
    count = len(source)
    maps = {k: np.reshape(v, (count, -1, SIDE, SIDE)).astype(np.float32) for k, v in maps.items()}
    num_classes = next(iter(maps.values())).shape[1]
    labels = [r.labels[0] if r.labels else 0 for r in source.records]
    top = facts.get('top', [[k, *range(20, 24)] for k in labels])
    values = {
        'classes': facts.get('classes', np.repeat(labels, num_classes)),
        'class_scores': facts.get('scores', np.full(count * num_classes, 0.5)),
        'top': top,
    }
    dtypes = {'classes': np.int32, 'class_scores': np.float32, 'top': np.int32}
    values = {k: np.reshape(v, (count, -1)).astype(dtypes[k]) for k, v in values.items()}
    store = MapStore.create(
        workdir / 'maps' / split,
        count,
        target,
        {k: v.shape[1:] for k, v in maps.items()},
        dict.fromkeys(maps, relu),
        5,
    )
    status = np.array(facts.get('status', [DONE] * count))
    names = [r.image_id for r in source.records]
    store.write(np.arange(count), names, status, values | by_column(maps))
    return source


def rows_of(metrics, split):
    return {(r['method'], r['layer']): r for r in metrics['localization'] if r['split'] == split}


def read_boxes(workdir, split):
    with (workdir / f'boxes/{split}.csv').open() as file:
        return list(csv.DictReader(file))


def val_source():
    truths = (INNER, INNER, INNER, OUTER)
    return Listed([record(f'v{i}.png', t) for i, t in enumerate(truths)])


@pytest.fixture(scope='module')
def scored(tmp_path_factory):
    """Layer b is all wrong on val and all right on test; one test image was skipped."""
    workdir = tmp_path_factory.mktemp('scored')
    val = val_source()
    write_store(workdir, 'val', val, {A: [NESTED] * 4, B: [ELSEWHERE] * 4})
    truths = (OUTER, INNER, OUTER, OUTER)
    test = Listed([record(f't{i}.png', t, label=i) for i, t in enumerate(truths)])
    top = [[0, 4, 5, 6, 7], [4, 5, 6, 1, 7], [4, 5, 6, 7, 3], [3, 4, 5, 6, 7]]
    maps = {A: [NESTED] * 4, B: [filled(t) for t in truths[:3]] + [ELSEWHERE]}
    status = [DONE, DONE, DONE, SKIPPED]
    scores = [0.25, 0.125, 0.0625, 0.9]
    write_store(workdir, 'test', test, maps, top=top, status=status, scores=scores)
    sources = {'val': val, 'test': test}
    return evaluate(CONFIG, sources, workdir), workdir, sources


def test_threshold_comes_from_val_and_the_oracle_stands_beside_it(scored):
    metrics, *_ = scored
    val, test = (rows_of(metrics, split)[A] for split in ('val', 'test'))
    assert (val['threshold'], val['threshold_from']) == (0.5, 'val')
    assert (val['GTKnownLoc'], val['MaxBoxAcc'], val['MaxBoxAcc_threshold']) == (75, 75, 0.5)
    assert (test['threshold'], test['threshold_from']) == (0.5, 'val')
    assert test['GTKnownLoc'] == pytest.approx(100 / 3)
    assert test['MaxBoxAcc'] == pytest.approx(200 / 3) and test['MaxBoxAcc_threshold'] == 0
    assert test['MaxBoxAccV2'] == pytest.approx(200 / 3)


def test_rows_of_the_split_that_was_chosen_on_are_oracles(scored):
    metrics, *_ = scored
    assert [(r['split'], r.get('oracle')) for r in metrics['localization']] == [
        ('val', True),
        ('val', True),
        ('test', None),
        ('test', None),
    ]


def test_images_without_an_object_count_in_classification_alone(tmp_path):
    whole, mixed = tmp_path / 'whole', tmp_path / 'mixed'
    upper = np.zeros((SIDE, SIDE))
    upper[:8] = 1
    known = [record('a.png', OUTER), record('b.png', INNER, label=1)]
    known += [record('c.png', INNER), record('d.png', masks=((png(upper), None),))]
    bare = [record(name, label=label) for name, label in (('x.png', 2), ('y.png', 3), ('z.png', 2))]
    among = [bare[0], *known[:2], bare[1], *known[2:], bare[2]]
    evaluated = []
    for workdir, records in ((whole, known), (mixed, among)):
        for split in ('val', 'test'):
            top = [[0, 4, 5, 6, 7]] * len(records)
            write_store(workdir, split, Listed(records), {A: [NESTED] * len(records)}, top=top)
        sources = {split: Listed(records) for split in ('val', 'test')}
        rules = replace(CONFIG.evaluate, protocols=('cvpr16', 'bas:0.4'))
        evaluated.append(evaluate(replace(CONFIG, evaluate=rules), sources, workdir))
    expected, found = evaluated
    for name in ('localization', 'by_class', 'by_size', 'skipped', 'split'):
        assert found[name] == expected[name], name
    assert [row['images'] for row in found['by_class']] == [2, 1]  # boxes of the classes 0 and 1
    assert found['localization'][0]['images'] == 4
    assert expected['without_object'] == {'val': 0, 'test': 0}
    assert found['without_object'] == {'val': 3, 'test': 3}
    assert expected['classification']['top1'] == 75
    assert found['classification']['top1'] == pytest.approx(300 / 7)
    assert (mixed / 'curves.csv').read_bytes() == (whole / 'curves.csv').read_bytes()
    assert len(read_boxes(mixed, 'test')) == 7
    assert summary(found).split('\n')[0].startswith('test: 4 images, 3 more without an object, ')


def test_layer_comes_from_val(scored):
    metrics, *_ = scored
    for split in ('val', 'test'):
        rows = rows_of(metrics, split)
        assert {key: row['chosen'] for key, row in rows.items()} == {A: True, B: False}
    rows = rows_of(metrics, 'test')
    assert rows[B]['MaxBoxAcc'] == 100 > rows[A]['MaxBoxAcc']


def test_skipped_images_are_left_out(scored):
    metrics, workdir, _ = scored
    assert metrics['skipped'] == {'val': 0, 'test': 1}
    rows = rows_of(metrics, 'test')
    assert rows[A]['images'] == rows[B]['images'] == 3
    assert rows[B]['GTKnownLoc'] == 100
    assert {r['image_id'] for r in read_boxes(workdir, 'test')} == {'t0.png', 't1.png', 't2.png'}


def test_top1_and_top5_need_class_and_box(scored):
    metrics, *_ = scored
    rows = rows_of(metrics, 'test')
    # Image 0 is right at rank 1, image 1 at rank 4, image 2 not at all.
    assert rows[B]['Top1Loc'] == pytest.approx(100 / 3)
    assert rows[B]['Top5Loc'] == pytest.approx(200 / 3)
    # Layer a: at .5 the box is right on image 1 alone.
    assert rows[A]['Top1Loc'] == 0
    assert rows[A]['Top5Loc'] == pytest.approx(100 / 3)
    assert metrics['classification'] == {
        'top1': pytest.approx(100 / 3),
        'top5': pytest.approx(200 / 3),
    }


def test_metrics_file_is_what_was_returned(scored):
    metrics, workdir, _ = scored
    assert json.loads((workdir / 'metrics.json').read_text()) == metrics
    assert (metrics['split'], metrics['class']) == ('test', 'ground_truth')
    assert 'PxAP' not in rows_of(metrics, 'test')[A]
    assert [(r['split'], r['layer']) for r in metrics['localization']] == [
        ('val', 'a'),
        ('val', 'b'),
        ('test', 'a'),
        ('test', 'b'),
    ]


def test_boxes_file(scored):
    _, workdir, sources = scored
    rows = read_boxes(workdir, 'test')
    assert list(rows[0]) == [
        *('image_id', 'method', 'layer', 'class', 'class_score', 'threshold'),
        *('x0', 'y0', 'x1', 'y1'),
    ]
    store = MapStore(workdir / 'maps/test')
    thresholds = {'a': 0.5, 'b': 0.0}  # on val b is 0 everywhere: the first one
    expected = []
    for key in (A, B):
        for i, score in enumerate((0.25, 0.125, 0.0625)):
            raw = store.read(key, i, i + 1)[0, 0]
            box = boxes_from_map(raw, (SIDE, SIDE), thresholds[key[1]])[:1]
            (corners,) = rescale_boxes(box, (SIDE, SIDE), SIZE).tolist()
            facts = (f't{i}.png', *key, str(i), f'{score:.6f}', f'{thresholds[key[1]]:g}')
            expected.append([*facts, *map(str, corners)])
    assert [list(row.values()) for row in rows] == expected
    assert expected[0][-4:] == ['4', '2', '16', '8']
    assert len(sources['val']) == 4 and len(read_boxes(workdir, 'val')) == 8


def test_top1_maps_score_top1_alone(tmp_path):
    # The map of the predicted class; image 0 right class and box, 1 wrong class, 2 wrong box.
    source = Listed([record(f'{i}.png', INNER, label=i) for i in range(3)])
    top = [[0, 4, 5, 6, 7], [4, 1, 5, 6, 7], [2, 4, 5, 6, 7]]
    maps = {A: [filled(INNER), filled(INNER), ELSEWHERE]}
    write_store(tmp_path, 'val', source, maps, target='top1', top=top, classes=[0, 4, 2])
    row = rows_of(evaluate(CONFIG, {'val': source}, tmp_path), 'val')[A]
    assert row['Top1Loc'] == pytest.approx(100 / 3)
    assert row['MaxBoxAcc'] == pytest.approx(200 / 3)
    assert 'GTKnownLoc' not in row and 'Top5Loc' not in row
    assert [r['class'] for r in read_boxes(tmp_path, 'val')] == ['0', '4', '2']


def test_top5_maps_score_the_map_of_the_right_class(tmp_path):
    labels = (0, 1, 2, 3, 1)
    source = Listed([record(f'{i}.png', INNER, label=k) for i, k in enumerate(labels)])
    top = [[0, 4, 5, 6, 7], [4, 5, 6, 1, 7], [4, 5, 6, 7, 3], [4, 3, 5, 6, 7], [6, 5, 1, 4, 7]]
    here, there = filled(INNER), ELSEWHERE
    maps = [
        [here, there, there, there, there],  # rank 1, right box: both
        [there, there, there, here, there],  # rank 4, right box: top-5
        [here, here, here, here, here],  # class not ranked: none
        [here, there, here, here, here],  # rank 2, wrong box for that class: none
        [there, there, here, there, there],  # rank 3, right box: top-5
    ]
    scores = np.linspace(0, 0.96, 25)
    facts = {'target': 'top5', 'top': top, 'classes': top, 'scores': scores}
    write_store(tmp_path, 'val', source, {A: maps}, **facts)
    row = rows_of(evaluate(CONFIG, {'val': source}, tmp_path), 'val')[A]
    assert (row['Top1Loc'], row['Top5Loc']) == (20, 60)
    assert row['MaxBoxAcc'] == 60  # of the map of the class ranked first
    assert 'GTKnownLoc' not in row
    boxes = read_boxes(tmp_path, 'val')
    assert [int(r['class']) for r in boxes] == np.ravel(top).tolist()
    assert [r['class_score'] for r in boxes] == [f'{s:.6f}' for s in scores]
    assert [r['x0'] for r in boxes[5:10]] == ['18', '18', '18', '4', '18']


def test_maps_of_a_fixed_class_have_no_classification_scores(tmp_path):
    source = val_source()
    write_store(tmp_path, 'val', source, {A: [NESTED] * 4}, target='3', classes=[3] * 4)
    row = rows_of(evaluate(CONFIG, {'val': source}, tmp_path), 'val')[A]
    assert row['MaxBoxAcc'] == 75
    assert not {'GTKnownLoc', 'Top1Loc', 'Top5Loc'} & set(row)


def png(mask):
    return cv2.imencode('.png', mask.astype(np.uint8) * 255)[1].tobytes()


def test_masks_alone(tmp_path):
    def masked(name, mask):
        return record(name, masks=((png(mask), None),))

    upper = np.zeros((SIDE, SIDE))
    upper[:8] = 1
    val = Listed([masked('v.png', filled(INNER))])
    test = Listed([masked('t.png', upper)])
    for split, source in (('val', val), ('test', test)):
        write_store(tmp_path, split, source, {A: [NESTED], B: [ELSEWHERE]})
    metrics = evaluate(CONFIG, {'val': val, 'test': test}, tmp_path)
    row = rows_of(metrics, 'val')[A]
    # IoU 36/256, 36/144, 36/144 (.5 reaches .5), 36/36.
    assert (row['threshold'], row['threshold_from'], row['PxAP']) == (0.75, 'val', 100)
    assert row['chosen'] and not rows_of(metrics, 'val')[B]['chosen']
    assert 'MaxBoxAcc' not in row and 'GTKnownLoc' not in row and row['images'] == 1
    # Recall 36, 36 and 56 of 128 with precision 1, 72/144 and 128/256.
    expected = 100 * (36 + 36 / 2 + 56 / 2) / 128
    assert rows_of(metrics, 'test')[A]['PxAP'] == pytest.approx(expected)
    assert read_boxes(tmp_path, 'test')[0]['threshold'] == '0.75'


def masked_split(workdir, split, cases):
    """A split of (map, mask) cases under the key A."""
    records = [
        record(f'{split}{i}.png', masks=((png(mask), None),)) for i, (_, mask) in enumerate(cases)
    ]
    return write_store(workdir, split, Listed(records), {A: [m for m, _ in cases]})


def test_mean_iou_at_the_threshold_of_val_and_its_peak(tmp_path):
    # Masks of 36 or 144 pixels, on val three and two. Averaged over images the inner part wins
    # (3.5 / 5 against 2.75 / 5), in the pool of pixels the outer one (396 / 720 against 180 / 396).
    inner, outer = (NESTED, filled(INNER)), (NESTED, filled(OUTER))
    sources = {
        'val': masked_split(tmp_path, 'val', [inner, inner, inner, outer, outer]),
        'test': masked_split(tmp_path, 'test', [inner, outer, outer]),
    }
    metrics = evaluate(CONFIG, sources, tmp_path)
    val, test = (rows_of(metrics, split)[A] for split in ('val', 'test'))
    assert (val['threshold'], val['threshold_from']) == (0.75, 'val')
    assert val['mIoU'] == val['PeakIoU'] == pytest.approx(70)
    assert test['threshold'] == 0.75
    assert test['mIoU'] == pytest.approx(100 * (1 + 2 * 36 / 144) / 3)
    assert test['PeakIoU'] == pytest.approx(100 * (36 / 144 + 2) / 3)
    assert test['PeakIoU_threshold'] == 0.25  # >= .5 is the same set, .25 comes first
    assert val['PeakPooledIoU'] == pytest.approx(100 * 396 / 720)
    assert val['PeakPooledIoU_threshold'] == 0.25
    assert 'GTKnownLoc' not in test and 'MaxBoxAcc' not in test
    low, high = test['intervals']['PxAP']
    assert [line.split() for line in summary(metrics).split('\n')[1:4:2]] == [
        ['method', 'layer', 'threshold', 'PxAP', '95', '%', 'mIoU', 'PeakIoU*', 'pooled', 'IoU*'],
        # Pooled: 36 + 144 + 144 of 3 * 144 pixels.
        [
            'dgl',
            'a',
            '0.75',
            f'{test["PxAP"]:.1f}',
            f'{low:.0f}-{high:.0f}',
            '50.0',
            '75.0',
            '75.0',
        ],
    ]


def test_more_processes_change_nothing(scored, tmp_path):
    metrics, workdir, sources = scored
    (tmp_path / 'maps').symlink_to(workdir / 'maps')
    config = replace(CONFIG, evaluate=replace(CONFIG.evaluate, processes=2))
    assert evaluate(config, sources, tmp_path) == metrics
    for name in ('curves.csv', 'boxes/val.csv', 'boxes/test.csv'):
        assert (tmp_path / name).read_bytes() == (workdir / name).read_bytes()


def test_curves_file(scored):
    _, workdir, _ = scored
    rows = read_csv(workdir / 'curves.csv')
    assert [(r['split'], r['layer'], r['threshold']) for r in rows] == [
        (split, layer, t)
        for split in ('val', 'test')
        for layer in ('a', 'b')
        for t in ('0', '0.25', '0.5', '0.75')
    ]
    # On val three of four are INNER, which layer a's box is from .5 on; 49 / 169 is below .3.
    assert [r['largest_50'] for r in rows[:4]] == ['25', '25', '75', '75']
    assert [r['all_30'] for r in rows[:4]] == ['25', '25', '75', '75']
    assert {r['mIoU'] + r['PooledIoU'] for r in rows} == {''}


def test_curves_of_masks(tmp_path):
    source = masked_split(tmp_path, 'val', [(NESTED, filled(INNER)), (NESTED, filled(OUTER))])
    metrics = evaluate(CONFIG, {'val': source}, tmp_path)
    rows = read_csv(tmp_path / 'curves.csv')
    # Foreground of 256, 144, 144 and 36 pixels (grey 128 / 255 reaches .5), masks of 36 and 144.
    pixels = (256, 144, 144, 36)
    pooled = [100 * (36 + min(n, 144)) / (2 * n + max(0, 144 - n)) for n in pixels]
    mean = [50 * (36 / n + min(n, 144) / max(n, 144)) for n in pixels]
    assert [float(r['PooledIoU']) for r in rows] == pytest.approx(pooled, abs=1e-3)
    assert [float(r['mIoU']) for r in rows] == pytest.approx(mean, abs=1e-3)
    assert {r['largest_50'] for r in rows} == {''}
    # Foreground takes 36 / 256 = 14 % and 144 / 256 = 56 % of the image.
    sizes = [(r['size'], r['images'], r['mIoU']) for r in metrics['by_size']]
    at = (144, 36)[metrics['localization'][0]['threshold'] > 0.5]
    expected = [100 * 36 / at, 100 * at / 144]
    assert sizes == [
        ('10-30 %', 1, pytest.approx(expected[0])),
        ('50-100 %', 1, pytest.approx(expected[1])),
    ]


def test_intervals_stand_beside_scores_at_the_threshold(scored):
    metrics, *_ = scored
    for row in metrics['localization']:
        assert set(row['intervals']) == {'GTKnownLoc', 'Top1Loc', 'Top5Loc'}
        for name, (low, high) in row['intervals'].items():
            assert 0 <= low <= row[name] <= high <= 100
    rows = rows_of(metrics, 'test')
    # Three images, all right: no draw has another share. One right: none to all are.
    assert rows[B]['intervals']['GTKnownLoc'] == [100, 100]
    assert rows[B]['intervals']['Top1Loc'] == [0, 100]


def test_tables_by_class_and_by_size(tmp_path):
    # Shares of the image: 36 / 256 = 14 %, 144 / 256 = 56 %; the larger of two boxes counts.
    cases = [((INNER,), 0), ((INNER,), 0), ((OUTER,), 0), ((INNER, OUTER), 2), ((OUTER,), 2)]
    source = Listed([record(f'{i}.png', *b, label=k) for i, (b, k) in enumerate(cases)])
    write_store(tmp_path, 'val', source, {A: [NESTED] * 5, B: [ELSEWHERE] * 5})
    metrics = evaluate(CONFIG, {'val': source}, tmp_path)
    assert metrics['localization'][0]['threshold'] == 0  # OUTER: three of five are right
    facts = {'method': 'dgl', 'layer': 'a'}  # of the chosen layer alone
    third = pytest.approx(100 / 3)
    of_class = [
        {**facts, 'class': 0, 'name': 'a', 'images': 3, **same(third)},
        {**facts, 'class': 2, 'name': 'c', 'images': 2, **same(100)},
    ]
    assert metrics['by_class'] == of_class
    assert metrics['by_size'] == [
        {**facts, 'size': '10-30 %', 'images': 2, **same(0)},
        {**facts, 'size': '50-100 %', 'images': 3, **same(100)},
    ]


def same(value):
    return dict.fromkeys(('GTKnownLoc', 'Top1Loc', 'Top5Loc'), value)


def test_protocols_stand_beside_the_protocol(tmp_path):
    # Two places of the canvas a pixel: NESTED is 1 on INNER and .5 on OUTER. cvpr16 cuts at .2,
    # which gives OUTER; so does bas at .4, but means over classes. psol at .5 gives INNER.
    truths = [(OUTER, 0), (OUTER, 0), (INNER, 0), (INNER, 1)]
    source = Listed([record(f'{i}.png', t, label=k) for i, (t, k) in enumerate(truths)])
    top = [[0, 4, 5, 6, 7], [4, 0, 5, 6, 7], [0, 4, 5, 6, 7], [1, 4, 5, 6, 7]]
    write_store(tmp_path, 'val', source, {A: [NESTED] * 4}, top=top)
    names = ('cvpr16', 'bas:0.4', 'psol:0.5')
    config = replace(CONFIG, evaluate=replace(CONFIG.evaluate, protocols=names, processes=2))
    (row,) = evaluate(config, {'val': source}, tmp_path)['localization']
    third = pytest.approx(100 / 3)
    assert row['protocols'] == {
        'cvpr16': {'GTKnownLoc': 50, 'Top1Loc': 25, 'Top5Loc': 50},
        'bas:0.4': {'GTKnownLoc': third, 'Top1Loc': pytest.approx(50 / 3), 'Top5Loc': third},
        'psol:0.5': same(pytest.approx(200 / 3)),
    }


def test_masks_have_intervals_of_miou_and_pxap(tmp_path):
    cases = [(NESTED, filled(INNER)), (NESTED, filled(OUTER)), (ELSEWHERE, filled(OUTER))]
    cases += [(NESTED, np.zeros((SIDE, SIDE)))]  # no foreground: no IoU
    source = masked_split(tmp_path, 'val', cases)
    (row,) = evaluate(CONFIG, {'val': source}, tmp_path)['localization']
    assert set(row['intervals']) == {'mIoU', 'PxAP'}
    for name, (low, high) in row['intervals'].items():
        assert low < row[name] < high


def test_ignored_pixels_of_masks(tmp_path):
    upper = np.zeros((SIDE, SIDE))
    upper[:8] = 1
    source = Listed([record('v.png', masks=((png(filled(INNER)), png(1 - upper)),))])
    write_store(tmp_path, 'val', source, {A: [np.maximum(filled(INNER, 0.5), 1 - upper)]})
    row = rows_of(evaluate(CONFIG, {'val': source}, tmp_path), 'val')[A]
    assert row['PxAP'] == 100


def test_boxes_and_masks_together(tmp_path):
    source = Listed([record('v.png', INNER, masks=((png(filled(OUTER)), None),))])
    write_store(tmp_path, 'val', source, {A: [NESTED]})
    row = rows_of(evaluate(CONFIG, {'val': source}, tmp_path), 'val')[A]
    # Boxes choose the threshold: .5, where masks alone would choose .25.
    assert (row['threshold'], row['GTKnownLoc'], row['PxAP']) == (0.5, 100, 100)


def test_without_ground_truth_the_threshold_is_the_configs(tmp_path):
    source = Listed([record(f'{i}.png', label=None) for i in range(2)])
    write_store(tmp_path, 'val', source, {A: [NESTED] * 2}, target='top1')
    metrics = evaluate(CONFIG, {'val': source}, tmp_path)
    row = rows_of(metrics, 'val')[A]
    assert row == {
        'method': 'dgl',
        'layer': 'a',
        'split': 'val',
        'images': 0,
        'blank_maps': 0,
        'threshold': 0.2,
        'threshold_from': 'config',
    }
    assert metrics['classification'] == {}
    boxes = read_boxes(tmp_path, 'val')
    assert [r['threshold'] for r in boxes] == ['0.2', '0.2']
    assert [boxes[0][k] for k in ('x0', 'y0', 'x1', 'y1')] == ['4', '2', '28', '14']


def test_nothing_is_chosen_on_the_split_that_is_scored(tmp_path):
    source = val_source()
    write_store(tmp_path, 'test', source, {A: [NESTED] * 4})
    row = rows_of(evaluate(CONFIG, {'test': source}, tmp_path), 'test')[A]
    assert (row['threshold'], row['threshold_from']) == (0.2, 'config')
    assert (row['GTKnownLoc'], row['MaxBoxAcc']) == (25, 75)
    assert 'chosen' not in row


def test_choose_on_another_split(tmp_path):
    source = val_source()
    for split in ('val', 'test'):
        maps = {A: [NESTED if split == 'test' else filled(OUTER)] * 4}
        write_store(tmp_path, split, source, maps)
    config = replace(CONFIG, evaluate=replace(CONFIG.evaluate, choose_on='test'))
    metrics = evaluate(config, {'val': source, 'test': source}, tmp_path)
    for split in ('val', 'test'):
        row = rows_of(metrics, split)[A]
        assert (row['threshold'], row['threshold_from']) == (0.5, 'test')


def test_blank_maps_are_counted_also_where_the_relu_makes_them_so(tmp_path):
    source = Listed([record(f'{i}.png', INNER) for i in range(4)])
    bad = np.full((SIDE, SIDE), np.nan)
    maps = [NESTED, NESTED - 2, np.full((SIDE, SIDE), 3.0), bad]
    for relu, blank in ((False, 2), (True, 3)):
        workdir = tmp_path / str(relu)
        write_store(workdir, 'val', source, {A: maps}, relu=relu)
        row = rows_of(evaluate(CONFIG, {'val': source}, workdir), 'val')[A]
        assert (row['blank_maps'], row['images']) == (blank, 4)
        assert row['MaxBoxAcc'] == 100 - 25 * blank


def test_blank_maps_of_masks_and_of_images_without_ground_truth_are_counted_too(tmp_path):
    cases = [(NESTED, filled(INNER)), (np.zeros((SIDE, SIDE)), filled(INNER))]
    source = masked_split(tmp_path / 'masks', 'val', cases)
    (row,) = evaluate(CONFIG, {'val': source}, tmp_path / 'masks')['localization']
    assert (row['blank_maps'], row['images']) == (1, 2)
    source = Listed([record(f'{i}.png', label=None) for i in range(3)])
    write_store(tmp_path / 'none', 'val', source, {A: [NESTED] + 2 * [np.zeros((SIDE, SIDE))]})
    (row,) = evaluate(CONFIG, {'val': source}, tmp_path / 'none')['localization']
    assert (row['blank_maps'], row['images']) == (2, 0)


def test_a_threshold_off_the_grid_is_one_threshold_everywhere(tmp_path):
    # Where nothing is chosen: at .4 the box is OUTER, at the nearest of the grid, .5, INNER.
    source = Listed([record(f'{i}.png', t) for i, t in enumerate((INNER, INNER, INNER, OUTER))])
    write_store(tmp_path, 'test', source, {A: [NESTED] * 4})
    config = replace(CONFIG, evaluate=replace(CONFIG.evaluate, threshold=0.4))
    metrics = evaluate(config, {'test': source}, tmp_path)
    (row,) = metrics['localization']
    assert (row['threshold'], row['threshold_from']) == (0.4, 'config')
    assert row['GTKnownLoc'] == 25 == metrics['by_class'][0]['GTKnownLoc']
    low, high = row['intervals']['GTKnownLoc']
    assert low < 25 < high
    boxes = read_boxes(tmp_path, 'test')
    assert {(r['threshold'], r['x1']) for r in boxes} == {('0.4', str(OUTER[2] * 2))}


def test_images_are_those_that_a_score_is_of(tmp_path):
    mask = ((png(filled(OUTER)), None),)
    records = [record('0.png', INNER), record('1.png'), record('2.png', masks=mask)]
    write_store(tmp_path, 'val', Listed(records), {A: [NESTED] * 3})
    metrics = evaluate(CONFIG, {'val': Listed(records)}, tmp_path)
    assert metrics['localization'][0]['images'] == 2
    (row,) = metrics['by_class']
    assert row['images'] == 1 and (row['GTKnownLoc'], row['mIoU']) != (None, None)


@pytest.mark.parametrize('target', ['top1', 'top5'])
def test_without_labels_there_are_no_scores_of_classes(tmp_path, target):
    source = Listed([record(f'{i}.png', INNER, label=None) for i in range(3)])
    write_store(tmp_path, 'val', source, {A: [NESTED] * 3}, target=target)
    config = replace(CONFIG, evaluate=replace(CONFIG.evaluate, protocols=('cvpr16',)))
    metrics = evaluate(config, {'val': source}, tmp_path)
    (row,) = metrics['localization']
    assert row['MaxBoxAcc'] == 100
    assert not {'Top1Loc', 'Top5Loc', 'intervals', 'protocols'} & set(row)
    assert metrics['by_class'] == metrics['by_size'] == []


def test_without_val_the_tables_are_of_the_last_layer(tmp_path):
    source = val_source()
    write_store(tmp_path, 'test', source, {A: [NESTED] * 4, B: [ELSEWHERE] * 4})
    metrics = evaluate(CONFIG, {'test': source}, tmp_path)
    assert {row['layer'] for row in metrics['by_class']} == {'b'}


def test_a_protocol_says_whose_maps_it_is_not_for(tmp_path):
    source = val_source()
    write_store(tmp_path, 'val', source, {A: [5 * NESTED] * 4})
    config = replace(CONFIG, evaluate=replace(CONFIG.evaluate, protocols=('ornet',)))
    wrong = (
        r'config\.evaluate\.protocols: protocol ornet is for maps out of a sigmoid.*\(dgl at a\)'
    )
    with pytest.raises(ValueError, match=wrong):
        evaluate(config, {'val': source}, tmp_path)


def test_closing_joins_parts(tmp_path):
    gap = filled((2, 2, 14, 14))
    gap[:, 7:9] = 0
    source = Listed([record('0.png', OUTER)])
    for closing, expected in ((0, 0), (5, 100)):
        workdir = tmp_path / str(closing)
        write_store(workdir, 'val', source, {A: [gap]})
        config = replace(CONFIG, evaluate=replace(CONFIG.evaluate, closing=closing))
        row = rows_of(evaluate(config, {'val': source}, workdir), 'val')[A]
        assert row['GTKnownLoc'] == expected


def test_incomplete_maps_are_an_error(tmp_path):
    source = val_source()
    status = [DONE, PENDING, DONE, PENDING]
    write_store(tmp_path, 'val', source, {A: [NESTED] * 4}, status=status)
    with pytest.raises(DataError, match='results of 2 of the 4 images; run the stage localize'):
        evaluate(CONFIG, {'val': source}, tmp_path)
    assert not (tmp_path / 'metrics.json').exists()


def test_maps_of_other_images_are_an_error(tmp_path):
    source = val_source()
    write_store(tmp_path, 'val', source, {A: [NESTED] * 4})
    for records in (source.records[:3], source.records[::-1]):
        with pytest.raises(DataError, match='results of other images'):
            evaluate(CONFIG, {'val': Listed(records)}, tmp_path)


def test_no_maps_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match='run the stage localize first'):
        evaluate(CONFIG, {'val': val_source()}, tmp_path)


@pytest.mark.slow
def test_mobilenet_on_real_images(fully_optimized, tmp_path):
    """MaxBoxAcc of trained weights on 300 images of the ILSVRC validation set."""
    if 'WSOL_DATA' not in os.environ:
        pytest.skip('WSOL_DATA is not set: no real images and weights')
    data = Path(os.environ['WSOL_DATA'])
    parts = [WsolFolder(data / 'imagenette', s, class_index=True) for s in ('val', 'test')]
    source = Listed([part[i] for part in parts for i in range(len(part))], ())
    network = load_network('mobilenet_v1', data / 'weights/mobilenet_v1.safetensors')
    methods = ('cam', 'dgl', 'layer_cam', 'grad_cam')
    localize = LocalizeConfig(methods=methods, layers=('pw_10', 'pw_11'), batch_size=50)
    config = Config(localize=localize)
    localize_split(config, network, source, 'val', tmp_path)
    metrics = evaluate(config, {'val': source}, tmp_path)
    rows = rows_of(metrics, 'val')
    measured = {
        ('cam', 'pw_13'): 58.3,
        ('dgl', 'pw_10'): 69.3,
        ('layer_cam', 'pw_11'): 67.0,
        ('grad_cam', 'pw_10'): 39.0,
    }
    assert {row['images'] for row in rows.values()} == {300}
    for key, expected in measured.items():
        assert rows[key]['MaxBoxAcc'] == pytest.approx(expected, abs=1), key


@pytest.mark.slow
def test_faithfulness_of_the_chosen_layers(resnet, tmp_path):
    shapes = Shapes('val', 9, size=40)
    records = [shapes[i] for i in range(9)]
    records[0] = replace(records[0], image=b'not an image')
    source = Listed(records, 'abcdefg')
    config = Config(
        network=NetworkConfig(name='resnet10', input_size=32),
        localize=LocalizeConfig(
            methods=('dgl', 'grad_cam'), layers=('stage2', 'stage3'), batch_size=3
        ),
        evaluate=EvaluateConfig(size=32, threshold_step=0.1, faithfulness=4),
    )
    localize_split(config, resnet, source, 'val', tmp_path)
    rows = evaluate(config, {'val': source}, tmp_path, resnet)['localization']
    names = {'AverageDrop', 'Increase', 'Insertion', 'Deletion', 'ROAD'}
    assert [names <= set(row) for row in rows] == [row['chosen'] for row in rows]
    # Evenly spaced among the eight that could be read.
    seen = [records[i] for i in (1, 3, 6, 8)]
    pictures = np.stack([resize_image(decode_image(r), (32, 32)) for r in seen])
    labels = [r.labels[0] for r in seen]
    for row in rows:
        if row['chosen']:
            key = (row['method'],), (row['layer'],)
            maps = localize(resnet, pictures, *key, labels, resize=False).maps
            ((key, m),) = maps.items()
            m = np.maximum(m, 0) if row['method'] == 'grad_cam' else m
            scores = faithfulness(resnet, pictures, {key: m}, labels, resize=False)[key]
            expected = summarize(scores)
            for name, value in expected.items():
                assert row[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name


def test_several_labels_of_an_image_with_an_object_are_an_error(tmp_path):
    several = replace(record('b.png', INNER), labels=(0, 3))
    source = Listed([record('a.png', INNER), several])
    write_store(tmp_path, 'val', source, {A: [NESTED] * 2})
    with pytest.raises(DataError, match=r'^b\.png has 2 labels; scores of localization need one'):
        evaluate(CONFIG, {'val': source}, tmp_path)
    assert not (tmp_path / 'metrics.json').exists()


def test_several_labels_of_an_image_with_a_mask_are_an_error():
    several = replace(record('b.png', masks=((b'', None),)), labels=(0, 3))
    with pytest.raises(DataError, match=r'^b\.png has 2 labels; scores of localization need one'):
        label_of(several)


def test_several_labels_without_an_object_count_in_classification(tmp_path):
    labels = ((0, 3), (2,), (1, 4))
    source = Listed([replace(record(f'{i}.png'), labels=of) for i, of in enumerate(labels)])
    top = [[3, 5, 6, 7, 8], [0, 5, 2, 7, 8], [0, 5, 6, 7, 8]]
    maps = {A: [[NESTED, ELSEWHERE]] * 3}
    # The second image has one class: its second place is left over and has no box.
    write_store(tmp_path, 'val', source, maps, top=top, classes=[0, 3, 2, -1, 1, 4])
    metrics = evaluate(CONFIG, {'val': source}, tmp_path)
    expected = {'top1': pytest.approx(100 / 3), 'top5': pytest.approx(200 / 3)}
    assert metrics['classification'] == expected
    assert [r['class'] for r in read_boxes(tmp_path, 'val')] == ['0', '3', '2', '1', '4']

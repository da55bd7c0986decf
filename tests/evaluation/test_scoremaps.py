"""Maps of any framework: against the literal protocol, published values; every kind of error."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from wsol_jax.data import DataError
from wsol_jax.evaluation.__main__ import main
from wsol_jax.evaluation.scoremaps import (
    evaluate_scoremaps,
    read_scoremap,
    score_scoremaps,
    scoremap_metrics,
    scoremap_records,
    scoremap_rules,
)
from wsol_jax.evaluation.table import Scores

SIZE = 224
BOXES = {
    'smooth.jpg': (300, 200, [(33, 20, 210, 161)]),
    'a/plateaus.jpeg': (224, 224, [(20, 60, 150, 190), (0, 0, 60, 40)]),
    'a/b/blobs.png': (500, 333, [(0, 0, 130, 120), (370, 240, 500, 333)]),
    'holes.jpg': (100, 400, [(20, 80, 79, 310)]),
    'empty.jpg': (1000, 900, [(0, 0, 3, 3)]),
    'constant.jpg': (224, 224, [(0, 0, 224, 200)]),
    'dim.jpg': (640, 480, [(100, 100, 500, 400)]),
    'ties.jpg': (224, 224, [(10, 10, 40, 40)]),
    'noise.jpg': (60, 60, [(10, 10, 12, 13), (4, 4, 50, 44)]),
}


def score_maps():
    """A map for every name in BOXES, in [0, 1]."""
    rng = np.random.default_rng(7)
    low = cv2.resize(rng.random((6, 6)), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    smooth = (low - low.min()) / (low.max() - low.min())
    maps = dict.fromkeys(BOXES, np.zeros((SIZE, SIZE)))
    maps['smooth.jpg'] = smooth
    maps['a/plateaus.jpeg'] = np.floor(smooth * 4) / 4
    blobs = np.zeros((SIZE, SIZE))
    blobs[:60, :60], blobs[-70:, -64:], blobs[100:130, 90:140], blobs[:20, 200:] = 0.9, 1, 0.4, 0.6
    maps['a/b/blobs.png'] = blobs
    rows, columns = np.mgrid[:SIZE, :SIZE]
    rings = 0.5 + 0.5 * np.cos(np.hypot(rows - 110, columns - 100) / 9)
    maps['holes.jpg'] = rings.astype(np.float32)
    maps['constant.jpg'] = np.ones((SIZE, SIZE))
    maps['dim.jpg'] = 0.3 * smooth.T
    ties = np.zeros((SIZE, SIZE))
    ties[10:41, 10:41] = ties[60:91, 60:91] = ties[150:181, 9:40] = 0.5
    maps['ties.jpg'] = ties
    maps['noise.jpg'] = cv2.GaussianBlur(rng.random((SIZE, SIZE)), (0, 0), 3)
    return maps


def write_lines(file, lines):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('\n'.join(lines))


def write_maps(folder, maps):
    for name, scores in maps.items():
        file = folder / f'{name}.npy'
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, scores)


def write_boxes(folder, truth):
    write_lines(folder / 'image_ids.txt', truth)
    write_lines(folder / 'image_sizes.txt', [f'{n},{w},{h}' for n, (w, h, _) in truth.items()])
    lines = [f'{n},{",".join(map(str, b))}' for n, (_, _, boxes) in truth.items() for b in boxes]
    write_lines(folder / 'localization.txt', lines)


@pytest.fixture
def data(tmp_path):
    """A folder with maps/ and metadata/ of BOXES."""
    write_maps(tmp_path / 'maps', score_maps())
    write_boxes(tmp_path / 'metadata', BOXES)
    return tmp_path


def naive_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    overlap = max(0, width) * max(0, height)
    areas = [(x[2] - x[0] + 1) * (x[3] - x[1] + 1) for x in (a, b)]
    return overlap / (sum(areas) - overlap)


def naive_boxes(scores, threshold):
    """The box of the largest contour, and those of all."""
    grey = (scores.astype(np.float64) * 255).astype(np.uint8)
    _, binary = cv2.threshold(grey, int(threshold * grey.max()), 255, cv2.THRESH_BINARY)
    contours, _ = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return (0, 0, 0, 0), [(0, 0, 0, 0)]

    def box(contour):
        x, y, w, h = cv2.boundingRect(contour)
        return x, y, min(x + w, SIZE - 1), min(y + h, SIZE - 1)

    return box(max(contours, key=cv2.contourArea)), [box(c) for c in contours]


def naive_curves(maps, truth, thresholds):
    """{'largest' or 'all': {IoU: percentage at every threshold}}, one threshold after another."""
    curves = {kind: {d: np.zeros(len(thresholds)) for d in (30, 50, 70)} for kind in KINDS}
    for name, (width, height, boxes) in truth.items():
        scale = [SIZE / width, SIZE / height] * 2
        real = [[int(v * s + 1e-9) for v, s in zip(b, scale, strict=True)] for b in boxes]
        for k, threshold in enumerate(thresholds):
            largest, every = naive_boxes(maps[name], threshold)
            for kind, found in zip(KINDS, ([largest], every), strict=True):
                best = max(naive_iou(a, b) for a in found for b in real)
                for delta, curve in curves[kind].items():
                    curve[k] += best >= delta / 100
    return {
        kind: {str(d): 100 * c / len(truth) for d, c in by_iou.items()}
        for kind, by_iou in curves.items()
    }


KINDS = ('largest', 'all')


@pytest.mark.slow
@pytest.mark.parametrize('interval', [0.01, 0.037])
def test_curves_are_those_of_the_literal_loop(data, interval):
    metrics = evaluate_scoremaps(data / 'maps', data / 'metadata', interval=interval)
    thresholds = np.arange(0, 1, interval)
    assert metrics['thresholds'] == thresholds.tolist()
    assert metrics['images'] == len(BOXES)
    expected = naive_curves(score_maps(), BOXES, thresholds)
    for kind in KINDS:
        for delta in ('30', '50', '70'):
            np.testing.assert_array_equal(metrics['curves'][kind][delta], expected[kind][delta])
    assert metrics['MaxBoxAcc'] == max(expected['largest']['50'])
    maxima = [max(curve) for curve in expected['all'].values()]
    assert metrics['MaxBoxAccV2'] == pytest.approx(np.mean(maxima), abs=1e-12)
    # The maps tell the two apart, and neither is trivial.
    assert 0 < metrics['MaxBoxAcc'] < 100
    assert metrics['curves']['largest'] != metrics['curves']['all']


def test_by_hand(tmp_path):
    """Rows and columns 50..149: box 50..150; with truth 50..149 IoU is 100^2 / 101^2."""
    scores = np.zeros((SIZE, SIZE))
    scores[50:150, 50:150] = 0.8
    scores[90:110, 90:110] = 1.0  # box 90..110: 21^2 pixels, IoU below 0.3
    write_maps(tmp_path / 'maps', {'x.jpg': scores})
    write_boxes(tmp_path / 'metadata', {'x.jpg': (448, 224, [(100, 50, 298, 149)])})
    metrics = evaluate_scoremaps(tmp_path / 'maps', tmp_path / 'metadata', interval=0.1)
    # 0.8 becomes 204: above int(t * 255) up to t = 0.7, and no longer at 0.8.
    expected = [100.0] * 8 + [0.0] * 2
    assert metrics['curves']['largest'] == dict.fromkeys(['30', '50', '70'], expected)
    assert metrics['MaxBoxAcc'] == metrics['MaxBoxAccV2'] == 100
    assert 'PxAP' not in metrics


@pytest.mark.slow
def test_protocols_score_boxes_as_older_tables_did(tmp_path, capsys):
    # Above .2 of the maximum the wide box, above .6 the narrow one.
    scores = np.zeros((SIZE, SIZE))
    scores[40:120, 40:200], scores[40:120, 40:80] = 0.5, 1
    truth = {f'{i}.jpg': (SIZE, SIZE, [(40, 40, (200, 80)[i > 2], 120)]) for i in range(4)}
    write_boxes(tmp_path / 'metadata', truth)
    write_maps(tmp_path / 'maps', dict.fromkeys(truth, scores))
    chosen = ['--protocols', 'cvpr16', 'bas:0.6']
    with pytest.raises(SystemExit):
        main(arguments(tmp_path, *chosen))
    assert 'class_labels.txt: no such file; protocol' in capsys.readouterr().err
    labels = [f'{name},{i // 2}' for i, name in enumerate(truth)]
    write_lines(tmp_path / 'metadata' / 'class_labels.txt', labels)
    assert main(arguments(tmp_path, *chosen, '--processes', '2')) == 0
    metrics = json.loads((tmp_path / 'out' / 'metrics.json').read_text())
    # Images 0 to 2 have the wide box; of classes {0, 1} and {2, 3} none and half have the other.
    assert metrics['protocols'] == {'cvpr16': 75, 'bas:0.6': 25}
    assert 'bas:0.6 25.00' in capsys.readouterr().out


def test_a_misspelt_protocol_and_protocols_of_masks(data, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(arguments(data, '--protocols', 'cvpr17'))
    assert "did you mean 'cvpr16'" in capsys.readouterr().err
    other = tmp_path / 'other'
    other.mkdir()
    write_masks(other, {'x': [(first_pixels(0, 9), None)]})
    write_maps(other / 'maps', {'x': np.ones((SIZE, SIZE))})
    with pytest.raises(SystemExit):
        main(arguments(other, '--masks', str(other / 'masks'), '--protocols', 'cvpr16'))
    assert 'localization.txt: no boxes, and' in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_count_what_one_does(data, tmp_path):
    names = [f'{k}.jpg' for k in range(40)]
    maps = list(score_maps().values())
    write_maps(tmp_path / 'many', {n: maps[k % len(maps)] for k, n in enumerate(names)})
    truth = {n: (224, 224, [(k, 9, 120 + k, 150)]) for k, n in enumerate(names)}
    write_boxes(tmp_path / 'listed', truth)
    one, two = (
        evaluate_scoremaps(tmp_path / 'many', tmp_path / 'listed', interval=0.02, processes=n)
        for n in (1, 2)
    )
    assert one == two
    assert one['images'] == 40
    assert len(set(one['curves']['all']['50'])) > 3


def test_errors_of_other_processes_name_the_file(data):
    save(changed(np.nan))(data)
    with pytest.raises(DataError, match=r'plateaus\.jpeg\.npy: holds NaN'):
        evaluate_scoremaps(data / 'maps', data / 'metadata', interval=0.2, processes=2)


def test_counts_of_parts_add_up(data):
    records = scoremap_records(data / 'maps', data / 'metadata')
    thresholds = np.arange(0, 1, 0.05)
    rules = scoremap_rules(thresholds)
    parts = [score_scoremaps(some, rules) for some in (records[:4], records[4:])]
    merged = scoremap_metrics(Scores.joined(parts))
    whole = evaluate_scoremaps(data / 'maps', data / 'metadata', interval=0.05)
    assert merged == {name: whole[name] for name in merged}


def test_what_is_kept_of_an_image_does_not_grow_with_the_thresholds(tmp_path):
    write_maps(tmp_path / 'maps', {'x': np.ones((SIZE, SIZE))})
    write_masks(tmp_path, {'x': [(first_pixels(0, 9), None)]})
    records = scoremap_records(tmp_path / 'maps', tmp_path / 'metadata', tmp_path / 'masks')
    table = score_scoremaps(records, scoremap_rules(np.arange(0, 1, 0.001))).table
    assert sum(column.nbytes for column in vars(table).values()) < 100


def write_masks(root, masks):
    """Masks by image: a list of (mask, ignore or None) per image, as PNGs and metadata."""
    (root / 'masks').mkdir(exist_ok=True)
    lines = []
    for name, instances in masks.items():
        for k, pair in enumerate(instances):
            files = [f'{name}_{k}_{kind}.png' for kind in ('mask', 'ignore')]
            for file, mask in zip(files, pair, strict=True):
                if mask is not None:
                    cv2.imwrite(str(root / 'masks' / file), mask.astype(np.uint8))
            lines.append(f'{name},{files[0]},{files[1] if pair[1] is not None else ""}')
    write_lines(root / 'metadata' / 'image_ids.txt', masks)
    write_lines(root / 'metadata' / 'localization.txt', lines)


def first_pixels(start, stop):
    mask = np.zeros(SIZE * SIZE)
    mask[start:stop] = 255
    return mask.reshape(SIZE, SIZE)


# Foreground and counted pixels of three images of wsolevaluation's test data, and PxAP there.
@pytest.mark.parametrize('constant', [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ('foreground', 'counted', 'published'),
    [(43031, 50176, 85.7601), (833, 50175, 1.66016), (347, 14256, 2.43389)],
)
def test_pxap_of_a_constant_map_is_the_share_of_foreground(
    tmp_path, constant, foreground, counted, published
):
    # Where a pixel is both foreground and to be ignored it is foreground.
    ignore = first_pixels(counted, SIZE * SIZE) + first_pixels(0, 5)
    write_masks(tmp_path, {'x': [(first_pixels(0, foreground), ignore)]})
    write_maps(tmp_path / 'maps', {'x': np.full((SIZE, SIZE), constant)})
    metrics = evaluate_scoremaps(tmp_path / 'maps', tmp_path / 'metadata', tmp_path / 'masks')
    assert metrics['PxAP'] == pytest.approx(published, abs=1e-3)
    assert 'MaxBoxAcc' not in metrics and set(metrics['curves']) == {'mIoU', 'PooledIoU'}


@pytest.mark.parametrize('ignored_score', [0.0, 1.0])
def test_pxap_unites_instances_and_skips_ignored_pixels(tmp_path, ignored_score):
    left, top = np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE))
    left[:, :40], top[:30] = 1, 200
    ignore = np.zeros((SIZE, SIZE))
    ignore[100:, 20:100] = 255
    write_masks(tmp_path, {'a': [(left, None), (top, ignore)], 'b': [(top, None)]})
    perfect = ((left + top) > 0).astype(float)
    perfect[(ignore > 0) & (perfect == 0)] = ignored_score
    write_maps(tmp_path / 'maps', {'a': perfect, 'b': (top > 0).astype(float)})
    folders = (tmp_path / 'maps', tmp_path / 'metadata', tmp_path / 'masks')
    assert evaluate_scoremaps(*folders)['PxAP'] == pytest.approx(100)


def naive_average_precision(scores, mask, thresholds):
    scores, truth = scores[mask != 255], mask[mask != 255] == 1
    total = recall = 0.0
    for t in [1.0, *sorted(thresholds, reverse=True)]:
        positive = scores >= t
        if positive.any():
            right = (positive & truth).sum()
            total += right / positive.sum() * (right / truth.sum() - recall)
            recall = right / truth.sum()
    return 100 * total


def test_pxap_is_that_of_a_literal_loop_over_all_pixels_together(tmp_path):
    rng = np.random.default_rng(3)
    maps = {name: score_maps()[name] for name in ('smooth.jpg', 'a/plateaus.jpeg', 'dim.jpg')}
    maps = {name.replace('/', '_'): scores for name, scores in maps.items()}
    truth = {name: rng.choice([0, 1, 255], (SIZE, SIZE), p=[0.6, 0.3, 0.1]) for name in maps}
    write_masks(tmp_path, {n: [((m == 1) * 3, (m == 255) * 255)] for n, m in truth.items()})
    write_maps(tmp_path / 'maps', maps)
    folders = (tmp_path / 'maps', tmp_path / 'metadata', tmp_path / 'masks')
    metrics = evaluate_scoremaps(*folders, interval=0.02)
    scores, masks = (np.stack([group[n] for n in maps]) for group in (maps, truth))
    expected = naive_average_precision(scores, masks, np.arange(0, 1, 0.02))
    assert metrics['PxAP'] == pytest.approx(expected, rel=1e-9)


def test_maps_of_another_size_are_resized_and_scaled(tmp_path):
    """Bicubic, then minimum and maximum to 0 and 1: one that is 224 x 224 counts as it is."""
    rng = np.random.default_rng(5)
    raw = {
        'square.jpg': 50 * rng.normal(size=(7, 7)),
        'wide.jpg': rng.normal(size=(12, 30)).astype(np.float16),
        'large.jpg': np.asfortranarray(cv2.GaussianBlur(rng.random((300, 500)), (0, 0), 20)),
        'constant.jpg': np.full((9, 9), 4.0),
    }
    maps = {}
    for name, scores in raw.items():
        large = cv2.resize(scores.astype(float), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
        scale = np.ptp(large) or 1
        maps[name] = (large - large.min()) / scale
    write_maps(tmp_path / 'raw', raw)
    write_maps(tmp_path / 'maps', maps)
    write_boxes(tmp_path / 'metadata', {n: (300, 200, [(33, 20, 210, 161)]) for n in raw})
    for name in raw:
        read = read_scoremap(tmp_path / 'raw' / f'{name}.npy')
        np.testing.assert_allclose(read, maps[name], atol=1e-12)
    one, other = (
        evaluate_scoremaps(tmp_path / folder, tmp_path / 'metadata', interval=0.05)
        for folder in ('raw', 'maps')
    )
    assert one == other and one['blank_maps'] == 1 and max(one['curves']['largest']['30']) > 0


@pytest.fixture
def splits(tmp_path):
    """Two splits of four images, each best at another threshold; the second has classes."""
    narrow, wide = (40, 40, 80, 120), (40, 40, 200, 120)
    scores = np.zeros((SIZE, SIZE))
    scores[40:120, 40:200], scores[40:120, 40:80] = 0.5, 1  # wide up to 0.5, narrow above
    truth = {'val': [narrow, narrow, narrow, wide], 'test': [wide, wide, wide, narrow]}
    for split, boxes in truth.items():
        listed = {f'{split}{i}.png': (SIZE, SIZE, [box]) for i, box in enumerate(boxes)}
        write_boxes(tmp_path / 'metadata' / split, listed)
        write_maps(tmp_path / f'maps_{split}', dict.fromkeys(listed, scores))
    labels = [f'test{i}.png,{i // 2}' for i in range(4)]
    write_lines(tmp_path / 'metadata/test/class_labels.txt', labels)
    write_lines(tmp_path / 'class_names.txt', ['auk', '<b>owl'])
    return tmp_path


def of_split(root, *more):
    folders = ['--scoremaps', str(root / 'maps_test'), '--metadata', str(root / 'metadata/test')]
    return [*folders, '--interval', '.1', '--out', str(root / 'm.json'), *more]


def elsewhere(root):
    folders = str(root / 'metadata/val'), str(root / 'maps_val')
    return ['--choose_on', folders[0], '--choose_on_scoremaps', folders[1]]


@pytest.mark.slow
@pytest.mark.parametrize('processes', ['1', '2'])
def test_the_threshold_of_another_split(splits, capsys, processes):
    assert main(of_split(splits, *elsewhere(splits), '--processes', processes)) == 0
    metrics = json.loads((splits / 'm.json').read_text())
    # Grey value 127 is above int(255 t) up to t = .4; val is best above, at .5 first.
    assert (metrics['threshold'], metrics['threshold_from']) == (0.5, 'val')
    assert (metrics['GTKnownLoc'], metrics['MaxBoxAcc'], metrics['MaxBoxAcc_threshold']) == (
        *(25, 75),
        0,
    )
    assert metrics['oracles'] == ['MaxBoxAcc', 'MaxBoxAccV2']
    assert metrics['by_class'] == [
        {'class': 0, 'name': 'auk', 'images': 2, 'GTKnownLoc': 0},
        {'class': 1, 'name': '<b>owl', 'images': 2, 'GTKnownLoc': 50},
    ]
    # 40 * 80 of 224 * 224 pixels are 6 %, 160 * 80 are 26 %.
    assert metrics['by_size'] == [
        {'size': '0-10 %', 'images': 1, 'GTKnownLoc': 100},
        {'size': '10-30 %', 'images': 3, 'GTKnownLoc': 0},
    ]
    # Binomial of 4 draws at 1/4: 0 of 4 has 32 %, 3 of 4 or more 5.1 %, 4 of 4 only .4 %.
    assert metrics['intervals'] == {'GTKnownLoc': [0, 75]}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'GTKnownLoc 25.00 (95 %: 0.0-75.0)'
    assert lines[-1] == 'Threshold 0.50, chosen on val.'


def test_the_best_threshold_of_the_images_themselves_is_an_oracle(splits, capsys):
    assert main(of_split(splits)) == 0
    metrics = json.loads((splits / 'm.json').read_text())
    assert (metrics['threshold'], metrics['threshold_from']) == (0, 'test')
    assert metrics['GTKnownLoc'] == metrics['MaxBoxAcc'] == 75
    assert metrics['oracles'] == ['MaxBoxAcc', 'MaxBoxAccV2', 'GTKnownLoc']
    assert [row['GTKnownLoc'] for row in metrics['by_class']] == [100, 50]
    assert 'scored images themselves' in capsys.readouterr().out.splitlines()[-1]


def test_masks_at_the_threshold_of_another_split(tmp_path):
    maps = {name: score_maps()[name] for name in ('smooth.jpg', 'dim.jpg', 'noise.jpg')}
    truth = {name: scores > 0.55 * scores.max() for name, scores in maps.items()}
    other = {name: (scores > 0.2 * scores.max()) for name, scores in maps.items()}
    for folder, masks in (('test', truth), ('val', other)):
        (tmp_path / folder).mkdir()
        write_masks(tmp_path / folder, {n: [(255 * m, None)] for n, m in masks.items()})
        for file in (tmp_path / folder / 'masks').iterdir():
            (tmp_path / 'masks').mkdir(exist_ok=True)
            file.rename(tmp_path / 'masks' / f'{folder}_{file.name}')
        listed = tmp_path / folder / 'metadata' / 'localization.txt'
        lines = listed.read_text().split('\n')
        write_lines(listed, [line.replace(',', f',{folder}_', 1) for line in lines])
    write_maps(tmp_path / 'maps', maps)
    given = tmp_path / 'maps', tmp_path / 'test/metadata', tmp_path / 'masks'
    metrics = evaluate_scoremaps(
        *given,
        interval=0.05,
        choose_on=tmp_path / 'val/metadata',
        choose_on_scoremaps=tmp_path / 'maps',
    )

    def mean_iou(masks, t):
        found = [maps[n] >= t for n in maps]
        return 100 * np.mean(
            [(f & masks[n]).sum() / (f | masks[n]).sum() for f, n in zip(found, maps, strict=True)]
        )

    thresholds = np.arange(0, 1, 0.05)
    best = thresholds[np.argmax([mean_iou(other, t) for t in thresholds])]
    assert metrics['threshold'] == best
    assert metrics['mIoU'] == pytest.approx(mean_iou(truth, best), rel=1e-12)
    assert metrics['mIoU'] < metrics['PeakIoU'] - 1
    assert metrics['oracles'] == ['PeakIoU', 'PeakPooledIoU']
    assert set(metrics['intervals']) == {'mIoU', 'PxAP'}
    for name, (low, high) in metrics['intervals'].items():
        assert low < metrics[name] < high
    itself = evaluate_scoremaps(*given, interval=0.05)
    assert itself['mIoU'] == pytest.approx(itself['PeakIoU'])
    assert itself['oracles'][-1] == 'mIoU'
    assert itself['intervals']['PxAP'] == metrics['intervals']['PxAP']


@pytest.mark.parametrize(
    ('more', 'reason'),
    [
        (['--choose_on', 'val'], 'choose_on and choose_on_scoremaps go together'),
        (['--choose_on_scoremaps', 'val'], 'choose_on and choose_on_scoremaps go together'),
        (['--images', 'photos'], '--images DIR is for the gallery of --report FILE.html'),
        (['--images', 'photos', '--report', 'p.html'], 'photos: no such folder of images'),
        (['--choose_on', 'val', '--choose_on_scoremaps', 'x'], 'image_ids.txt: no such file'),
    ],
)
def test_what_does_not_go_together_is_found_before_the_work(
    splits, capsys, monkeypatch, more, reason
):
    monkeypatch.chdir(splits)
    with pytest.raises(SystemExit):
        main(of_split(splits, *more))
    message = capsys.readouterr().err
    assert reason in message and message.count('\n') == 1
    assert not (splits / 'm.json').exists()


def test_a_split_to_choose_on_needs_the_same_kind_of_truth(splits, capsys):
    write_masks(splits, {'x': [(first_pixels(0, 9), None)]})
    write_maps(splits / 'maps', {'x': np.ones((SIZE, SIZE))})
    other = ['--choose_on', str(splits / 'metadata'), '--masks', str(splits / 'masks')]
    with pytest.raises(SystemExit):
        main(of_split(splits, *other, '--choose_on_scoremaps', str(splits / 'maps')))
    assert 'localization.txt: expected boxes, as the scored' in capsys.readouterr().err


def test_counting_needs_neither_jax_nor_what_draws_the_page():
    names = ('jax', 'flax', 'matplotlib', 'jinja2')
    code = f'import sys, wsol_jax.evaluation.__main__; print(*set(sys.modules) & set({names}))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout == '\n'


def arguments(root, *more):
    folders = ['--scoremaps', str(root / 'maps'), '--metadata', str(root / 'metadata')]
    return [*folders, '--out', str(root / 'out' / 'metrics.json'), *more]


def test_command_writes_what_the_function_returns(data, capsys):
    assert main(arguments(data, '--interval', '.1')) == 0
    written = json.loads((data / 'out' / 'metrics.json').read_text())
    assert written == evaluate_scoremaps(data / 'maps', data / 'metadata', interval=0.1)
    lines = capsys.readouterr().out.splitlines()
    oracle = 'oracle: best threshold on these images'
    assert f'MaxBoxAcc {written["MaxBoxAcc"]:.2f} ({oracle})' in lines
    low, high = written['intervals']['GTKnownLoc']
    told = f'95 %: {low:.1f}-{high:.1f}; {oracle}'
    assert lines[0] == f'GTKnownLoc {written["MaxBoxAcc"]:.2f} ({told})'


def changed(value):
    scores = np.zeros((SIZE, SIZE))
    scores[5, 6] = value
    return scores


def save(scores):
    return lambda root: np.save(root / 'maps' / 'a' / 'plateaus.jpeg.npy', scores)


def edit(name, lines):
    return lambda root: write_lines(root / 'metadata' / name, lines)


def remove(name):
    return lambda root: (root / name).unlink()


def drop(name):
    """Takes the lines of the last image out of a file of the metadata."""

    def lose(root):
        file = root / 'metadata' / name
        kept = [line for line in file.read_text().split('\n') if 'noise' not in line]
        write_lines(file, kept)

    return lose


MAP = 'maps/a/plateaus.jpeg.npy'
LISTED = 'metadata/localization.txt'
ERRORS = {
    'missing map': (remove(MAP), MAP, 'no such score map (1 of 9'),
    'no map': (save(np.zeros(SIZE)), MAP, '[224, 224], of at most 4096 * 4096, got [224]'),
    'without pixels': (save(np.zeros((0, SIZE))), MAP, 'got [0, 224]'),
    'too large': (save(np.zeros((4096, 4097), np.float16)), MAP, 'got [4096, 4097]'),
    'NaN elsewhere': (save(np.full((7, 7), np.nan)), MAP, 'holds NaN'),
    'infinite elsewhere': (save(np.array([[0, np.inf]])), MAP, '0..inf, must be finite'),
    'channels': (save(np.zeros((1, SIZE, SIZE))), MAP, '[1, 224, 224]'),
    'dtype': (save(np.zeros((SIZE, SIZE), np.uint8)), MAP, 'uint8'),
    'NaN': (save(changed(np.nan)), MAP, 'NaN'),
    'above 1': (save(changed(1.001)), MAP, '0..1.001'),
    'below 0': (save(changed(-0.5)), MAP, '-0.5..0'),
    'infinite': (save(changed(np.inf)), MAP, 'inf'),
    'no npy': (lambda root: (root / MAP).write_text('text'), MAP, 'not a .npy'),
    'blank file': (lambda root: (root / MAP).write_bytes(b''), MAP, 'not a .npy'),
    'no ids': (remove('metadata/image_ids.txt'), 'metadata/image_ids.txt', 'no such file'),
    'no boxes': (remove(LISTED), LISTED, 'boxes, or masks'),
    'no sizes': (remove('metadata/image_sizes.txt'), 'metadata/image_sizes.txt', 'no sizes'),
    'id without size': (drop('image_sizes.txt'), 'metadata/image_sizes.txt', "'noise.jpg'"),
    'id without box': (drop('localization.txt'), LISTED, "'noise.jpg'"),
    'size without id': (drop('image_ids.txt'), 'metadata/image_sizes.txt:9', "'noise.jpg'"),
    'reversed box': (edit('localization.txt', ['smooth.jpg,9,9,3,20']), f'{LISTED}:1', 'empty'),
    'masks without folder': (
        edit('localization.txt', [f'{name},m.png,' for name in BOXES]),
        LISTED,
        '--masks',
    ),
    'boxes and masks': (
        edit('localization.txt', ['smooth.jpg,1,1,9,9', *(f'{n},m.png,' for n in BOXES)]),
        LISTED,
        'boxes, or masks',
    ),
}


@pytest.mark.parametrize('kind', ERRORS)
def test_errors_are_one_line_that_names_the_file(data, capsys, kind):
    spoil, file, reason = ERRORS[kind]
    spoil(data)
    with pytest.raises(SystemExit) as stopped:
        main(arguments(data, '--interval', '.2'))
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.count('\n') == 1
    assert str(data / file) in message and reason in message
    assert not (data / 'out').exists()


@pytest.mark.parametrize(
    ('more', 'reason'),
    [
        (['--interval', '0'], 'interval must be at least 0.0001 and below 1, got 0.0'),
        (['--interval', '1'], 'interval must be at least 0.0001 and below 1, got 1.0'),
        (['--processes', '0'], 'processes must be at least 1'),
    ],
)
def test_options_out_of_range(data, capsys, more, reason):
    with pytest.raises(SystemExit) as stopped:
        main(arguments(data, *more))
    assert stopped.value.code == 2
    assert reason in capsys.readouterr().err
    assert not (data / 'out').exists()


def test_missing_and_empty_masks(tmp_path, capsys):
    write_masks(tmp_path, {'x': [(first_pixels(0, 0), None)]})
    write_maps(tmp_path / 'maps', {'x': np.ones((SIZE, SIZE))})
    for reason in ('localization.txt: all its masks are empty', 'x_0_mask.png: no such file'):
        with pytest.raises(SystemExit):
            main(arguments(tmp_path, '--masks', str(tmp_path / 'masks')))
        assert reason in capsys.readouterr().err
        (tmp_path / 'masks' / 'x_0_mask.png').unlink(missing_ok=True)
    assert not (tmp_path / 'out').exists()


def test_out_is_checked_before_the_work(data, capsys):
    (data / 'out' / 'metrics.json').mkdir(parents=True)
    (data / MAP).unlink()  # would be the error of the work
    with pytest.raises(SystemExit):
        main(arguments(data))
    assert 'is a folder' in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_found_before_the_work(data, capsys):
    (data / 'file').write_text('x')
    (data / MAP).unlink()  # would be the error of the work
    with pytest.raises(SystemExit):
        main([*arguments(data)[:4], '--out', str(data / 'file/x/metrics.json')])
    assert 'file is no folder that can be written to' in capsys.readouterr().err


def workers(parent):
    """Process ids of the counting processes of a command."""
    found = []
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            ppid = (folder / 'stat').read_text().rpartition(')')[2].split()[1]
            command = (folder / 'cmdline').read_bytes()
        except OSError:  # ended meanwhile
            continue
        if ppid == str(parent) and b'spawn_main' in command:
            found.append(int(folder.name))
    return found


def busy_seconds(process):
    fields = Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf('SC_CLK_TCK')


def counting(parent):
    """The workers of a command, once both have spent more time than imports take."""
    found = workers(parent)
    return found if len(found) == 2 and all(busy_seconds(w) > 1.7 for w in found) else None


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError('waited in vain')


def running(process):
    try:
        return Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='finds processes in /proc')
@pytest.mark.parametrize('victim', ['worker', 'command'])
def test_killed_in_the_middle(tmp_path, victim):
    truth = {f'{k}.jpg': (224, 224, [(9, 9, 99, 99)]) for k in range(1000)}
    write_boxes(tmp_path / 'metadata', truth)
    write_maps(tmp_path / 'maps', {'0.jpg': score_maps()['noise.jpg']})
    for name in list(truth)[1:]:
        (tmp_path / 'maps' / f'{name}.npy').symlink_to(tmp_path / 'maps' / '0.jpg.npy')
    command = [sys.executable, '-m', 'wsol_jax.evaluation']
    command += arguments(tmp_path, '--processes', '2')
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as started:
        both = wait_for(lambda: counting(started.pid), 60)
        os.kill(both[0] if victim == 'worker' else started.pid, signal.SIGKILL)
        _, message = started.communicate(timeout=20)
    if victim == 'worker':
        assert started.returncode == 2
        assert 'a process was killed' in message and message.count('\n') == 1
    wait_for(lambda: not any(running(process) for process in both))
    assert not (tmp_path / 'out').exists()

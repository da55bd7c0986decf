"""Figures of stores and scores written by hand: what is drawn, and what the pixels show."""

import base64
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
from conftest import Listed

from wsol_jax.config import Config, EvaluateConfig, ReportConfig
from wsol_jax.data import Record
from wsol_jax.evaluation.stage import evaluate
from wsol_jax.maps.columns import DONE, SKIPPED
from wsol_jax.maps.score import score_map
from wsol_jax.maps.store import MapStore, by_column
from wsol_jax.report import figures
from wsol_jax.report.figures import (
    comparison_figure,
    curve_figure,
    layer_figure,
    method_figure,
    score_figure,
)
from wsol_jax.report.overlay import blend
from wsol_jax.report.stage import report

CONFIG = Config(
    evaluate=EvaluateConfig(size=16, threshold_step=0.25), report=ReportConfig(images=8)
)
CELL = 1.6 * 150  # pixels


def png(array):
    return cv2.imencode('.png', np.asarray(array, np.uint8))[1].tobytes()


def records(count, **truth):
    image = png(np.full((16, 16, 3), 90))
    return Listed([Record(f'{k}.png', image, (), (16, 16), **truth) for k in range(count)])


def store_of(workdir, count, keys, skipped=()):
    shapes = dict.fromkeys(keys, (1, 4, 4))
    ids = [f'{k}.png' for k in range(count)]
    relu = dict.fromkeys(keys, False)
    store = MapStore.create(workdir / 'maps/val', count, 'top1', shapes, relu, 2)
    status = np.full(count, DONE)
    status[list(skipped)] = SKIPPED
    maps = np.zeros((count, 1, 4, 4), np.float32)
    maps[:, :, 1:3, 1:3] = 1
    facts = {
        'classes': np.zeros((count, 1), np.int32),
        'class_scores': np.ones((count, 1), np.float32),
        'top': np.tile(np.arange(2, dtype=np.int32), (count, 1)),
    }
    store.write(np.arange(count), ids, status, facts | by_column(dict.fromkeys(keys, maps)))
    return store


ONE = [('dgl', 'last')]
FOUR = [('dgl', 'first'), ('dgl', 'last'), ('dgl', 'first+last'), ('cam', 'last')]
MASK = np.zeros((16, 16))
MASK[4:12, 4:12] = 255
TRUTHS = {
    'boxes': {'boxes': ((4, 4, 12, 12),)},
    'masks': {'masks': ((png(MASK), None),)},
    'none': {},
}


@pytest.fixture
def drawn(monkeypatch):
    """Figures instead of files: the list they are put on."""
    figures_drawn = []
    monkeypatch.setattr(figures, '_save', lambda figure, path: figures_drawn.append(figure))
    return figures_drawn


def evaluated(tmp_path, count, keys, truth, config=CONFIG, skipped=()):
    source = records(count, **TRUTHS[truth])
    store = store_of(tmp_path, count, keys, skipped)
    return evaluate(config, {'val': source}, tmp_path), source, store


def size_of(path):
    image = cv2.imread(str(path))
    assert image is not None and image.std() > 1, path
    return image.shape[1], image.shape[0]


@pytest.mark.slow
@pytest.mark.parametrize('truth', TRUTHS)
@pytest.mark.parametrize(('count', 'keys'), [(1, ONE), (3, FOUR)])
def test_a_cell_for_every_image_and_map(tmp_path, count, keys, truth):
    run = evaluated(tmp_path, count, keys, truth)
    names = [m for m, _ in keys]
    method_figure(CONFIG, *run, tmp_path / 'methods.png')
    sizes = {'methods': len(set(names))}
    for method in set(names):
        layer_figure(CONFIG, *run, method, tmp_path / f'{method}.png')
        sizes[method] = names.count(method)
    for name, number in sizes.items():
        width, height = size_of(tmp_path / f'{name}.png')
        assert width == pytest.approx(CELL * (number + 1), abs=1)
        assert height == pytest.approx(CELL * count + 60, abs=1)
    assert not list(tmp_path.glob('.*'))  # no temporary file is left


@pytest.mark.slow
@pytest.mark.parametrize('truth', TRUTHS)
def test_a_stage_draws_what_there_is(tmp_path, truth):
    metrics, source, _ = evaluated(tmp_path, 3, FOUR, truth)
    report(CONFIG, metrics, source, tmp_path)
    names = {path.name for path in (tmp_path / 'figures').iterdir()}
    assert {'methods.png', 'layers_dgl.png', 'layers_cam.png'} <= names
    assert ('scores.png' in names) == (truth != 'none')


def test_no_overlays_where_none_are_wanted(tmp_path):
    config = replace(CONFIG, report=ReportConfig(images=0))
    metrics, source, _ = evaluated(tmp_path, 2, ONE, 'boxes', config)
    report(config, metrics, source, tmp_path)
    names = {path.stem for path in (tmp_path / 'figures').iterdir()}
    assert 'scores' in names and not names & {'methods', 'layers_dgl'}


def test_images_that_were_skipped_are_not_shown(tmp_path):
    run = evaluated(tmp_path, 3, ONE, 'boxes', skipped=(0, 2))
    method_figure(CONFIG, *run, tmp_path / 'f.png')
    assert size_of(tmp_path / 'f.png')[1] == pytest.approx(CELL + 60, abs=1)


def test_all_images_skipped_still_reports(tmp_path):
    metrics, source, store = evaluated(tmp_path, 2, ONE, 'boxes', skipped=(0, 1))
    method_figure(CONFIG, metrics, source, store, tmp_path / 'f.png')
    assert not (tmp_path / 'f.png').exists()
    assert '2 skipped' in report(CONFIG, metrics, source, tmp_path)


def test_the_box_is_drawn_in_its_colour(tmp_path):
    run = evaluated(tmp_path, 1, ONE, 'boxes')
    method_figure(CONFIG, *run, tmp_path / 'f.png')
    image = cv2.imread(str(tmp_path / 'f.png'))[:, :, ::-1].astype(int)
    orange = np.abs(image - [0xE6, 0x9F, 0x00]).max(axis=2) < 30
    width = image.shape[1]
    assert orange[:, width // 2 :].sum() > 100  # on the map
    assert orange[:, : width // 2].sum() == 0  # not on the image beside it


def test_overlays_are_those_of_the_chosen_layers(tmp_path, drawn):
    metrics, source, store = evaluated(tmp_path, 1, FOUR, 'boxes')
    for row in metrics['localization']:
        row['chosen'] = row['layer'] == 'first' and row['method'] == 'dgl'
        row['threshold'] = 0.0 if row['chosen'] else 0.9
    method_figure(CONFIG, metrics, source, store, None)
    layer_figure(CONFIG, metrics, source, store, 'dgl', None)
    methods, layers = ([axes.get_title() for axes in figure.axes] for figure in drawn)
    assert methods == ['image', 'dgl\nfirst', 'cam\nlast']  # cam: none is chosen, so the last one
    assert layers == ['image', 'dgl\nfirst', 'dgl\nlast', 'dgl\nfirst\nlast']
    # The box at a row's own threshold: at 0 it is larger than at 0.9.
    widths = [axes.patches[-1].get_width() for axes in drawn[1].axes[1:]]
    assert widths[0] > widths[1] == widths[2]


def test_the_overlap_is_that_of_the_boxes_drawn(tmp_path, drawn):
    method_figure(CONFIG, *evaluated(tmp_path, 1, ONE, 'boxes'), None)
    image, axes = drawn[0].axes
    x, y, width, height = axes.patches[-1].get_bbox().bounds
    inside = [
        min(start + size, 12) - max(start, 4) + 1 for start, size in ((x, width), (y, height))
    ]
    both, own, true = np.prod(inside), (width + 1) * (height + 1), 9 * 9
    assert axes.get_xlabel() == f'IoU {both / (own + true - both):.2f}' and not image.get_xlabel()


def row(method, layer, split='test', **scores):
    shared = {'threshold': 0.25, 'threshold_from': 'val', 'images': 9}
    return {'method': method, 'layer': layer, 'split': split, **shared, **scores}


def metrics_of(*rows, target='ground_truth'):
    return {'split': 'test', 'class': target, 'localization': list(rows)}


SCORED = metrics_of(
    row('cam', 'b', 'val', GTKnownLoc=99.0),
    row('cam', 'b', GTKnownLoc=40.0, MaxBoxAcc=45.0, intervals={'GTKnownLoc': [30.0, 55.0]}),
    row('dgl', 'a', GTKnownLoc=60.0, chosen=False, intervals={'GTKnownLoc': [50.0, 62.0]}),
    row('dgl', 'b', GTKnownLoc=70.0, chosen=True, intervals={'GTKnownLoc': [61.0, 75.0]}),
    row('dgl', 'c', GTKnownLoc=65.0, chosen=False),
    row('fem', 'b', GTKnownLoc=50.0, intervals={'mIoU': [1.0, 2.0]}),
)
MASKED = metrics_of(
    row('cam', 'b', PxAP=30.0, mIoU=25.0, intervals={'PxAP': [20.0, 35.0], 'mIoU': [24.0, 28.0]}),
    row('dgl', 'a', PxAP=50.0, mIoU=20.0),
)


def bars(axes):
    """[n,2,2] x, y of both ends of the intervals of each line, NaN where there is none."""
    return [np.array([p.vertices for p in c.lines[2][0].get_paths()]) for c in axes.containers]


def labels(axes):
    return [text.get_text() for text in axes.get_yticklabels()]


def test_scores_over_layers_with_intervals(drawn):
    score_figure(SCORED, None)
    (axes,) = drawn[0].axes
    assert axes.get_ylabel() == 'GT-known on test (%)'
    assert [text.get_text() for text in axes.get_xticklabels()] == ['a', 'b', 'c']
    lines = {c.get_label(): c.lines[0] for c in axes.containers}
    assert {k: list(line.get_ydata()) for k, line in lines.items()} == {
        'cam': [40.0],
        'dgl': [60.0, 70.0, 65.0],
        'fem': [50.0],
    }
    places = {k: line.get_xdata(orig=False) for k, line in lines.items()}
    assert list(np.round(places['dgl'])) == [0, 1, 2]
    places = [places['cam'][0], places['dgl'][1], places['fem'][0]]
    assert np.all(np.diff(places) > 0.1)  # beside each other at the same layer
    cam, dgl, fem = bars(axes)
    np.testing.assert_allclose(cam[0, :, 1], [30, 55])
    np.testing.assert_allclose(dgl[:2, :, 1], [[50, 62], [61, 75]])
    assert np.isnan(dgl[2, :, 1]).all() and np.isnan(fem[0, :, 1]).all()
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ['cam', 'dgl', 'fem']


@pytest.mark.parametrize(
    ('scores', 'title'),
    [
        ({'MaxBoxAcc': 50.0, 'Top1Loc': 40.0, 'PxAP': 3.0}, 'Top-1 Loc on test (%)'),
        ({'MaxBoxAcc': 50.0, 'PxAP': 3.0}, 'MaxBoxAcc* on test (%)'),
        ({'PxAP': 3.0, 'mIoU': 2.0}, 'PxAP on test (%)'),
    ],
)
def test_the_score_that_there_is(drawn, scores, title):
    score_figure(metrics_of(row('dgl', 'a', **scores)), None)
    comparison_figure(metrics_of(row('dgl', 'a', **scores)), None)
    assert drawn[0].axes[0].get_ylabel() == drawn[1].axes[0].get_xlabel() == title


def test_methods_are_told_apart_and_drawn_alike(drawn):
    names = [f'method{i}' for i in range(24)]
    metrics = metrics_of(*(row(n, 'a', GTKnownLoc=50.0) for n in names))
    curves = [curve(n, 'a', 0.0, largest_50=9) for n in names[3:]]
    score_figure(metrics, None)
    curve_figure(metrics, curves, None)
    over_layers = {c.get_label(): look(c.lines[0]) for c in drawn[0].axes[0].containers}
    over_thresholds = {line.get_label(): look(line) for line in drawn[1].axes[0].lines}
    assert len({style[:2] for style in over_layers.values()}) == len(names)
    assert over_thresholds == {f'{n} (a)': over_layers[n] for n in names[3:]}


def look(line):
    return line.get_color(), line.get_linestyle(), line.get_marker()


def curve(method, layer, threshold, split='test', **scores):
    """A row of curves.csv, as strings."""
    names = ('largest_30', 'largest_50', 'largest_70', 'all_30', 'all_50', 'all_70')
    values = dict.fromkeys((*names, 'mIoU', 'PooledIoU'), '') | {
        k: str(v) for k, v in scores.items()
    }
    shared = {'split': split, 'method': method, 'layer': layer, 'threshold': f'{threshold:g}'}
    return shared | values


CURVES = [
    curve(method, layer, t, split, largest_30=100, largest_50=height - 10 * t, all_50=99)
    for split, method, layer, height in [
        ('val', 'dgl', 'b', 90),
        ('test', 'dgl', 'a', 80),
        ('test', 'dgl', 'b', 70),
        ('test', 'cam', 'b', 60),
    ]
    for t in (0.0, 0.2, 0.4)
]


def test_accuracy_over_the_threshold_at_the_chosen_layer(drawn):
    curve_figure(SCORED, CURVES, None)
    (axes,) = drawn[0].axes
    assert axes.get_ylabel() == 'GT-known (%)' and 'threshold' in axes.get_xlabel()
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == ['cam (b)', 'dgl (b)']  # fem has no curve
    np.testing.assert_allclose(lines['dgl (b)'].get_xydata(), [[0, 70], [0.2, 68], [0.4, 66]])
    np.testing.assert_allclose(lines['cam (b)'].get_ydata(), [60, 58, 56])
    assert [line.get_markevery() for line in axes.lines] == [[1], [1]]  # 0.2 is nearest to 0.25
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == list(lines)
    assert legend.get_title().get_text() == 'on test; mark: threshold of val'


def test_scores_that_were_chosen_on_the_split_have_a_star(drawn):
    rows = [r | {'split': 'val', 'oracle': True} for r in SCORED['localization'][1:]]
    metrics = SCORED | {'split': 'val', 'localization': rows}
    score_figure(metrics, None)
    comparison_figure(metrics, None)
    curve_figure(metrics, [c | {'split': 'val'} for c in CURVES[3:]], None)
    over_layers, methods, thresholds = drawn
    assert over_layers.axes[0].get_ylabel() == 'GT-known* on val (%)'
    assert methods.axes[0].get_xlabel().startswith('GT-known* on val (%)')
    title = thresholds.legends[0].get_title().get_text()
    assert title == 'on val; mark: threshold of val itself (oracle)'


def test_the_mark_is_where_the_threshold_is(drawn):
    rows = [row('dgl', 'a') | {'threshold': t} for t in (0.0, 0.39)]
    curves = [curve('dgl', 'a', 0.1 * i, mIoU=i) for i in range(5)]
    for r in rows:
        curve_figure(metrics_of(r), curves, None)
    assert [f.axes[0].lines[0].get_markevery() for f in drawn] == [[0], [4]]


def test_boxes_of_predicted_classes_are_not_gt_known(drawn):
    curve_figure(SCORED | {'class': 'top1'}, CURVES, None)
    assert drawn[0].axes[0].get_ylabel() == 'images with box IoU ≥ 0.5 (%)'


def test_curves_of_masks(drawn):
    curves = [curve('cam', 'b', t, mIoU=10 * t, PooledIoU=20 * t) for t in (0.0, 0.5)]
    curve_figure(MASKED, curves, None)
    titles = [axes.get_ylabel() for axes in drawn[0].axes]
    assert titles == ['mIoU (%)', 'IoU over all pixels (%)']
    heights = [list(axes.lines[0].get_ydata()) for axes in drawn[0].axes]
    assert heights == [[0.0, 5.0], [0.0, 10.0]]


def test_methods_side_by_side(drawn):
    comparison_figure(SCORED, None)
    (axes,) = drawn[0].axes
    assert labels(axes) == ['dgl (b)', 'fem (b)', 'cam (b)']
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first one at the top
    line = axes.containers[0].lines[0]
    np.testing.assert_allclose(line.get_xydata(), [[70, 0], [50, 1], [40, 2]])
    assert [(t.get_position()[1], t.get_text()) for t in axes.texts] == [
        (0, '70.0'),
        (1, '50.0'),
        (2, '40.0'),
    ]
    (ends,) = bars(axes)
    np.testing.assert_allclose(ends[[0, 2], :, 0], [[61, 75], [30, 55]])
    assert np.isnan(ends[1, :, 0]).all()
    assert axes.get_xlabel() == 'GT-known on test (%), 95 % interval'


def test_masks_side_by_side(drawn):
    comparison_figure(MASKED, None)
    pixels, images = drawn[0].axes
    assert pixels.get_xlabel() == 'PxAP on test (%), 95 % interval'
    assert images.get_xlabel() == 'mIoU on test (%), 95 % interval'
    assert labels(pixels) == ['dgl (a)', 'cam (b)']  # by PxAP, the other way round by mIoU
    assert [text.get_text() for text in images.texts] == ['20.0', '25.0']
    np.testing.assert_allclose(bars(images)[0][1, :, 0], [24, 28])


def test_a_method_without_the_score_has_an_empty_line(drawn):
    comparison_figure(metrics_of(row('cam', 'a'), row('dgl', 'a', GTKnownLoc=0.0)), None)
    (axes,) = drawn[0].axes
    assert labels(axes) == ['dgl (a)', 'cam (a)']
    assert [text.get_text() for text in axes.texts] == ['0.0']
    assert axes.get_xlabel() == 'GT-known on test (%)'


def test_an_interval_beside_its_score_is_drawn(drawn):
    odd = row('dgl', 'a', GTKnownLoc=50.0, intervals={'GTKnownLoc': [51.0, 60.0]})
    comparison_figure(metrics_of(odd), None)
    np.testing.assert_allclose(bars(drawn[0].axes[0])[0][0, :, 0], [50, 60])


def test_no_score_no_figure(tmp_path):
    empty = metrics_of(row('dgl', 'a'))
    for metrics in (empty, metrics_of()):
        score_figure(metrics, tmp_path / 'f.png')
        comparison_figure(metrics, tmp_path / 'f.png')
        curve_figure(metrics, [], tmp_path / 'f.png')
        curve_figure(metrics, [curve('dgl', 'a', 0.5, 'val', mIoU=3)], tmp_path / 'f.png')
    assert not list(tmp_path.iterdir())


def test_svg_keeps_its_text_and_is_the_same_every_time(tmp_path):
    for name in ('one.svg', 'two.svg'):
        comparison_figure(SCORED, tmp_path / name)
    one, two = (tmp_path / name for name in ('one.svg', 'two.svg'))
    text = one.read_text(encoding='utf-8')
    assert {'dgl (b)', '70.0', 'GT-known on test (%), 95 % interval'} <= written(text)
    assert one.read_bytes() == two.read_bytes() and '<dc:date>' not in text
    assert sorted(tmp_path.iterdir()) == [one, two]


def test_images_in_svg_are_jpegs_of_the_overlays(tmp_path):
    metrics, source, store = evaluated(tmp_path, 1, ONE, 'none')
    method_figure(CONFIG, metrics, source, store, tmp_path / 'f.svg')
    text = (tmp_path / 'f.svg').read_text(encoding='utf-8')
    assert {'dgl', 'image'} <= written(text)
    found = re.findall('"data:image/([a-z]+);base64,([^"]+)"', text)
    assert [kind for kind, _ in found] == ['jpeg', 'jpeg']
    image, overlay = (pixels(base64.b64decode(data)) for _, data in found)
    grey = np.full((16, 16, 3), 90, np.uint8)
    scores = score_map(store.read(ONE[0], 0, 1)[0, 0], (16, 16))
    inner = np.s_[1:-1, 1:-1]  # the outermost pixels are cut
    np.testing.assert_allclose(image[inner], grey[inner], atol=2)
    np.testing.assert_allclose(overlay[inner], blend(grey, scores)[inner], atol=10)


def written(svg):
    return set(re.findall('<text[^>]*>([^<]*)</text>', svg))


def pixels(jpeg):
    """[16,16,3], as the canvas is."""
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert min(image.shape[:2]) > 160
    return cv2.resize(image, (16, 16), interpolation=cv2.INTER_AREA).astype(int)

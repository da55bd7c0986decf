"""report.html in a real browser: what it draws and counts is what the protocol says."""

import re
import shutil
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from conftest import Listed
from test_gallery import CONFIG, SIDE, A, B, mask_pair, record, smooth_maps, write_maps
from test_page import SCRIPT

from wsol_jax.config import ReportConfig
from wsol_jax.evaluation.boxes import box_iou
from wsol_jax.maps.boxes import threshold_boxes
from wsol_jax.maps.score import score_map
from wsol_jax.report.page import write_page
from wsol_jax.workdir import write_csv

api = pytest.importorskip('playwright.sync_api')
CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason='no chromium or google-chrome to run'),
]

COUNT = 24
MAPS = {A: smooth_maps(1, COUNT), B: smooth_maps(2, COUNT, 14)}
LABELS = [k % 3 for k in range(COUNT)]
DESKTOP = {'width': 1280, 'height': 900}
BOTH = [(split, *key) for split in ('val', 'test') for key in (A, B)]


def boxes_at(raw, threshold):
    return threshold_boxes(score_map(raw, (SIDE, SIDE)), [threshold])[0][0]


# Each true box is that of the map of A at some threshold: image k is hit around k / 30.
TRUTHS = [boxes_at(MAPS[A][k, 0], k / 30) for k in range(COUNT)]


def overlaps(key, threshold):
    found = [boxes_at(MAPS[key][k, 0], threshold) for k in range(COUNT)]
    return np.array([box_iou(f, t)[0, 0] for f, t in zip(found, TRUTHS, strict=True)])


def row(split, method, layer, **scores):
    shared = {'threshold': 0.3, 'threshold_from': 'val', 'images': COUNT}
    return {'method': method, 'layer': layer, 'split': split, **shared, **scores}


def metrics():
    scores = [30.0, 40.0, 9.0, 100.0]
    rows = [
        row(*place, GTKnownLoc=score, MaxBoxAcc=score + 1, chosen=place[1] == B[0])
        for place, score in zip(BOTH, scores, strict=True)
    ]
    rows.append(row('test', 'cam', 'pw_5'))  # without a score
    shared = {'method': B[0], 'layer': B[1]}
    numbers = [(0, 'a', 8, 50.0), (1, SCRIPT, 8, 5.5), (2, 'c', 10, 100.0)]
    return {
        'split': 'test',
        'class': 'ground_truth',
        'classification': {'top1': 50.0},
        'skipped': {},
        'localization': rows,
        'by_class': [
            {**shared, 'class': k, 'name': name, 'images': n, 'GTKnownLoc': score}
            for k, name, n, score in numbers
        ],
    }


def write_curves(workdir):
    lines = [
        (*place, f'{t:g}', 50, *([100 * (1 - abs(t - 0.4) - i / 10)] * 5), '', '')
        for i, place in enumerate(BOTH)
        for t in np.arange(0, 1, 0.01)
    ]
    names = [f'{kind}_{level}' for kind in ('largest', 'all') for level in (30, 50, 70)]
    header = ('split', 'method', 'layer', 'threshold', *names, 'mIoU', 'PooledIoU')
    write_csv(workdir / 'curves.csv', header, lines)


@pytest.fixture(scope='module')
def boxed(tmp_path_factory):
    """A page of images with boxes, curves, and two methods; one of them has an awkward name."""
    workdir = tmp_path_factory.mktemp('boxed')
    records = [
        record(f'{k}.png', (2 * t[0], t[1], 2 * t[2], t[3]), label=LABELS[k])
        for k, t in enumerate(TRUTHS)
    ]
    records[3] = replace(records[3], image_id=SCRIPT)
    source = Listed(records)
    write_curves(workdir)
    maps = MAPS | {('cam', 'pw_5'): MAPS[A]}
    write_page(CONFIG, metrics(), source, write_maps(workdir, source, maps), workdir)
    return workdir / 'report.html'


@pytest.fixture(scope='module')
def browser():
    with api.sync_playwright() as playwright:
        arguments = {'executable_path': CHROMIUM, 'args': ['--no-sandbox']}
        browser = playwright.chromium.launch(**arguments)
        yield browser
        browser.close()


@contextmanager
def opened(browser, path, viewport=DESKTOP, **options):
    """The page; in the end it must have asked for nothing else, and complained of nothing."""
    context = browser.new_context(viewport=viewport, reduced_motion='reduce', **options)
    page, problems = context.new_page(), []
    page.set_default_timeout(5000)
    page.on('console', lambda m: problems.extend([m.text] if m.type == 'error' else []))
    page.on('pageerror', lambda error: problems.append(str(error)))
    page.on('request', lambda r: problems.extend([] if is_local(r.url) else [r.url]))
    page.goto(path.as_uri())
    settle(page)
    yield page
    context.close()
    assert problems == []


def is_local(url):
    return url.startswith(('file://', 'data:'))


@pytest.fixture
def page(browser, boxed):
    with opened(browser, boxed) as page:
        yield page


def settle(page):
    api.expect(page.locator('#cards[aria-busy=true]')).to_have_count(0)
    page.evaluate('() => new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(r)))')


def choose(page, name, value):
    page.locator(f'#{name}').select_option(value)
    settle(page)


def move(page, threshold):
    page.locator('#threshold').fill(f'{threshold:g}')
    settle(page)


def card(page, index):
    return page.locator(f'#cards > li[data-index="{index}"]')


def seen(page, index):
    """A card in view: the others are not drawn."""
    card(page, index).scroll_into_view_if_needed()
    settle(page)
    return card(page, index)


def box_of(page, index):
    path = seen(page, index).locator('.box').get_attribute('d')
    x0, y0, x1, y1 = map(int, re.fullmatch(r'M(\d+),(\d+)H(\d+)V(\d+)H\1Z', path).groups())
    return [x0, y0, x1, y1]


def pixels(page, index):
    """[SIDE, SIDE, 4] what is drawn over the image."""
    data = seen(page, index).evaluate(
        """(li) => { const c = li.querySelector('canvas');
           return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; }"""
    )
    return np.reshape(data, (SIDE, SIDE, 4))


def mask_of(page, index):
    """bool [SIDE, SIDE]: what the view 'mask' leaves uncovered."""
    return pixels(page, index)[..., 3] == 0


def shown(page):
    lines = page.locator('#cards > li:not([hidden])')
    return [int(i) for i in lines.evaluate_all('(l) => l.map((li) => li.dataset.index)')]


def table(page, column, selector='#scores'):
    cells = page.locator(f'{selector} tbody tr:not([hidden]) > :nth-child({column})')
    return [text.strip() for text in cells.all_inner_texts()]


def expected_mask(raw, threshold):
    grey = (score_map(raw, (SIDE, SIDE)) * 255).astype(np.uint8)
    return grey > int(threshold * grey.max())


def differ(mask, other):
    return int((mask != other).sum())


def test_the_slider_moves_every_box_and_mask(page):
    choose(page, 'view', 'mask')
    before = [mask_of(page, k) for k in (0, 5, COUNT - 1)]  # of B
    choose(page, 'method', A[0])
    for threshold in (0.12, 0.29, 0.57):
        move(page, threshold)
        assert page.locator('#value').inner_text() == f'{threshold:.2f}'
        masks = [mask_of(page, k) for k in (0, 5, COUNT - 1)]
        for k, mask, last in zip((0, 5, COUNT - 1), masks, before, strict=True):
            raw = MAPS[A][k, 0]
            assert box_of(page, k) == boxes_at(raw, threshold).tolist()
            # Of 2304: the page has the map in 8 bits.
            assert differ(mask, expected_mask(raw, threshold)) <= 12
            assert differ(mask, last) > 50
        before = masks


def test_the_view_of_the_map_shows_its_colours(page):
    choose(page, 'method', A[0])
    scores = score_map(MAPS[A][0, 0], (SIDE, SIDE))
    *color, alpha = pixels(page, 0)[np.unravel_index(np.argmax(scores), scores.shape)]
    assert np.abs(np.array(color) - [253, 231, 36]).max() <= 4 and 100 < alpha < 255
    choose(page, 'view', 'image')
    assert not pixels(page, 0).any()


@pytest.mark.parametrize('threshold', [0.1, 0.45])
def test_the_slider_has_its_name(page, threshold):
    page.get_by_role('slider', name='Threshold').fill(f'{threshold:g}')
    assert page.locator('#value').inner_text() == f'{threshold:.2f}'


@pytest.mark.slow
@pytest.mark.parametrize('threshold', [0.1, 0.45])
def test_hits_are_counted_over_all_images(page, threshold):
    choose(page, 'method', A[0])
    move(page, threshold)
    ious = overlaps(A, threshold)
    hits = np.flatnonzero(ious >= 0.5)
    assert 0 < len(hits) < COUNT
    count = page.locator('#count')
    assert count.inner_text() == f'hit {len(hits)} of {COUNT} shown'
    for k, iou in enumerate(ious):
        mark, text = card(page, k).locator('.mark, .overlap').all_inner_texts()
        assert mark == ('✓ hit' if iou >= 0.5 else '✕ miss')
        assert text == f'IoU {np.floor(100 * iou + 1e-9) / 100:.2f}'
    choose(page, 'show', 'hit')
    assert shown(page) == hits.tolist()
    assert count.inner_text() == f'hit {len(hits)} of {COUNT} · {len(hits)} shown'
    choose(page, 'show', 'miss')
    assert shown(page) == np.flatnonzero(ious < 0.5).tolist()
    choose(page, 'show', 'worst')
    assert ious[shown(page)].tolist() == sorted(ious)
    choose(page, 'show', 'all')
    choose(page, 'label', '1')
    ones = np.flatnonzero(np.array(LABELS) == 1)
    assert shown(page) == ones.tolist()
    assert count.inner_text().startswith(f'hit {(ious[ones] >= 0.5).sum()} of {len(ones)}')


def test_filters_follow_the_slider(page):
    choose(page, 'method', A[0])
    choose(page, 'show', 'hit')
    for threshold in (0.05, 0.6):
        move(page, threshold)
        assert shown(page) == np.flatnonzero(overlaps(A, threshold) >= 0.5).tolist()


def test_columns_sort_by_number_both_ways(page):
    header = page.locator('#scores thead th:nth-child(5)')
    assert 'GT-known' in header.inner_text()
    header.locator('button').click()
    assert table(page, 5) == ['100.0', '9.0', '']
    assert header.get_attribute('aria-sort') == 'descending'
    header.locator('button').press('Enter')
    assert table(page, 5) == ['9.0', '100.0', '']  # what is undefined stays last
    assert header.get_attribute('aria-sort') == 'ascending'
    page.get_by_role('button', name='layer', exact=True).click()
    assert table(page, 3) == ['pw_5', 'pw_5', 'pw_10']  # 5 before 10
    assert page.locator('#scores [aria-sort]').count() == 1


def test_a_row_of_the_table_selects_and_the_split_changes_it(page):
    assert page.locator('#method').input_value() == B[0]  # the chosen one
    page.locator('#scores tbody tr:not([hidden])', has_text=A[0]).click()
    settle(page)
    assert page.locator('#layer').input_value() == A[1]
    assert box_of(page, 2) == boxes_at(MAPS[A][2, 0], 0.3).tolist()
    assert 'dgl at pw_5, test' in page.locator('#curves-title').inner_text()
    choose(page, 'split', 'val')
    assert table(page, 5) == ['40.0', '30.0']
    assert 'dgl at pw_5, val' in page.locator('#curves-title').inner_text()
    assert 'dgl at pw_5, test' in page.locator('#gallery-title').inner_text()
    page.locator('#scores tr.selected input').focus()
    page.keyboard.press('ArrowUp')
    settle(page)
    assert page.locator('#method').input_value() == B[0]
    assert box_of(page, 2) == boxes_at(MAPS[B][2, 0], 0.3).tolist()


def test_scores_by_class_of_the_selected_method(page):
    page.locator('.detail summary').click()
    assert table(page, 1, '.detail') == ['a', SCRIPT, 'c']
    page.locator('.detail th:nth-child(3) button').click()
    assert table(page, 3, '.detail') == ['100.0', '50.0', '5.5']
    choose(page, 'method', A[0])
    assert page.locator('.detail').is_hidden()  # it has none


def test_curves_follow_the_slider_the_split_and_the_pointer(page):
    figure = page.locator('#charts figure:visible')
    assert figure.count() == 1  # no masks: no IoU
    move(page, 0.5)
    values = figure.locator('.legend b').all_inner_texts()
    assert values == ['50.0'] + ['60.0'] * 5  # 100 (1 - .1 - .3): the fourth curve
    assert '0.50' in figure.locator('.values').inner_text()
    assert 'best* 0.40' in figure.locator('svg').first.text_content()
    assert 'val 0.30' in figure.locator('svg').first.text_content()
    plot = figure.locator('.plot').bounding_box()
    page.mouse.move(plot['x'] + 40 + 0.9 * (plot['width'] - 52), plot['y'] + 150)
    settle(page)
    assert figure.locator('.legend b').all_inner_texts()[1] == '20.0'
    page.mouse.down()
    page.mouse.up()
    settle(page)
    assert page.locator('#value').inner_text() == '0.90'
    page.mouse.move(0, 0)
    choose(page, 'split', 'val')
    move(page, 0.5)
    assert figure.locator('.legend b').all_inner_texts()[1] == '80.0'


def focused(page):
    return page.evaluate("() => document.activeElement.closest('li')?.dataset.index ?? null")


def test_keyboard(page):
    page.locator('#label').focus()
    page.keyboard.press('Tab')
    assert focused(page) == '0'
    for key, expected in (('ArrowRight', '1'), ('ArrowRight', '2'), ('ArrowLeft', '1')):
        page.keyboard.press(key)
        assert focused(page) == expected
    page.keyboard.press('ArrowDown')
    below, left = card(page, 1).bounding_box()['x'], card(page, focused(page)).bounding_box()['x']
    assert focused(page) != '1' and below == left
    page.keyboard.press('ArrowUp')
    page.keyboard.press('Enter')
    dialog = page.locator('#large')
    assert dialog.is_visible() and '1.png' in page.locator('#large-text').inner_text()
    page.keyboard.press('ArrowRight')
    page.keyboard.press('ArrowRight')
    settle(page)
    assert SCRIPT in page.locator('#large-text').inner_text()
    expected = boxes_at(MAPS[B][3, 0], 0.3)
    path = dialog.locator('.box').get_attribute('d')
    assert path == 'M{},{}H{}V{}H{}Z'.format(*expected, expected[0])
    page.keyboard.press('Escape')
    settle(page)
    assert dialog.is_hidden() and focused(page) == '3'
    page.keyboard.press('Tab')
    assert focused(page) is None  # one stop for all cards
    page.locator('#threshold').focus()
    page.keyboard.press('ArrowRight')
    assert page.locator('#value').inner_text() == '0.31'


def test_a_phone_scrolls_no_page_sideways(browser, boxed):
    with opened(browser, boxed, {'width': 360, 'height': 740}, has_touch=True) as page:
        assert page.evaluate('() => document.documentElement.scrollWidth') == 360
        for name in ('method', 'layer', 'threshold', 'view', 'show', 'split'):
            assert page.locator(f'#{name}').bounding_box()['height'] >= 40, name
        assert card(page, 0).bounding_box()['width'] > 150


def test_a_phone_shows_gt_known_without_scrolling(browser, boxed):
    with opened(browser, boxed, {'width': 390, 'height': 844}, has_touch=True) as page:
        score = page.locator('#scores tbody td', has_text='100.0').bounding_box()
        assert score['x'] + score['width'] <= 390
        assert page.locator('#scores .layer:visible').count() == 4


@pytest.mark.parametrize('viewport', [DESKTOP, {'width': 390, 'height': 844}])
def test_images_keep_their_shape_and_boxes_follow(browser, boxed, viewport):
    """Stored images are twice as wide as high; canvas and boxes are stretched with them."""
    with opened(browser, boxed, viewport) as page:
        seen(page, 8).locator('button').click()
        x0, y0, x1, y1 = TRUTHS[8] / SIDE
        for inside in ('#cards > li[data-index="8"]', '#large'):
            frame = page.locator(f'{inside} .frame').bounding_box()
            assert frame['width'] == pytest.approx(2 * frame['height'], abs=2)
            for part in ('img', 'canvas', 'svg'):
                assert page.locator(f'{inside} {part}').bounding_box() == frame
            drawn = page.locator(f'{inside} .truth').evaluate(
                '(p) => [p.getBBox().width * p.getCTM().a, p.getBBox().height * p.getCTM().d]'
            )
            true = [(x1 - x0) * frame['width'], (y1 - y0) * frame['height']]
            assert drawn == pytest.approx(true, abs=1)
        assert 'predicted' in page.locator('#large-text').inner_text()


def test_the_dark_scheme_is_dark(browser, boxed):
    shades = {}
    for scheme in ('light', 'dark'):
        with opened(browser, boxed, color_scheme=scheme) as page:
            shades[scheme] = page.evaluate(
                """() => ['backgroundColor', 'color'].map((name) =>
                   getComputedStyle(document.body)[name].match(/\\d+/g).slice(0, 3).map(Number))"""
            )
    for scheme, darker in (('light', 1), ('dark', 0)):
        assert np.sum(shades[scheme][darker]) < np.sum(shades[scheme][1 - darker]) - 400


def test_masks(browser, tmp_path):
    raw = smooth_maps(5, 7)
    source = Listed(
        [record(f'{k}.png', masks=(mask_pair(4, 44),)) for k in range(6)] + [record('6.png')]
    )
    true = np.zeros((SIDE, SIDE), bool)
    true[8:40, 4:44] = True
    rows = [row('test', *A, PxAP=50.0)]
    store = write_maps(tmp_path, source, {A: raw})
    write_page(CONFIG, {**metrics(), 'localization': rows}, source, store, tmp_path)
    with opened(browser, tmp_path / 'report.html') as page:
        choose(page, 'view', 'mask')
        move(page, 0.4)
        founds = [score_map(m[0], (SIDE, SIDE)) >= 0.4 for m in raw[:6]]
        ious = [(f & true).sum() / (f | true).sum() for f in founds]
        hits = sum(iou >= 0.5 for iou in ious)
        assert 0 < hits < 6
        # The one without ground truth is neither hit nor miss.
        assert page.locator('#count').inner_text() == f'hit {hits} of 6 · 7 shown'
        for k, iou in enumerate(ious):
            text = card(page, k).locator('.overlap').inner_text()
            assert text == f'IoU {int(100 * iou) / 100:.2f}'
            assert card(page, k).locator('.truth').get_attribute('d').startswith('M4,8')
            assert not card(page, k).locator('.box').get_attribute('d')
        drawn = pixels(page, 0)
        rim = (drawn == [0xE6, 0x9F, 0, 255]).all(axis=2)
        assert rim.any() and differ(rim | (drawn[..., 3] == 0), founds[0]) <= 5
        move(page, 0)
        assert (mask_of(page, 0)).all()  # a score of 0 reaches 0: the rule of masks, not of boxes


def test_maps_of_several_classes(browser, tmp_path):
    raw = smooth_maps(6, 4, classes=3)
    source = Listed([record(f'{k}.png', (8, 4, 80, 40)) for k in range(4)])
    store = write_maps(tmp_path, source, {A: raw}, classes=[[0, 1, 2], [3, 4, 5]] * 2)
    write_page(CONFIG, {**metrics(), 'localization': [row('test', *A)]}, source, store, tmp_path)
    with opened(browser, tmp_path / 'report.html') as page:
        move(page, 0.3)
        choose(page, 'view', 'mask')
        for rank in (0, 2):
            choose(page, 'rank', str(rank))
            assert differ(mask_of(page, 1), expected_mask(raw[1, rank], 0.3)) <= 12
            for k in range(4):
                assert box_of(page, k) == boxes_at(raw[k, rank], 0.3).tolist()
                name = 'abcdef'[3 * (k % 2) + rank]
                assert card(page, k).locator('.overlap').inner_text().endswith(f'map of {name}')


def test_maps_of_no_layer(browser, tmp_path):
    """Those of another framework: one method, whose name stands alone."""
    source, key = Listed([record('0.png', (8, 4, 80, 40))]), ('mine', '')
    rows = [row('test', *key, GTKnownLoc=50.0)]
    store = write_maps(tmp_path, source, {('mine', 'x'): MAPS[A][:1]})
    store.arrays = {key: store.arrays['mine', 'x']}
    store.relu, store.take = {key: False}, lambda _, index: MAPS[A][index]
    write_page(CONFIG, {**metrics(), 'localization': rows}, source, store, tmp_path)
    with opened(browser, tmp_path / 'report.html') as page:
        assert page.locator('#layer, #scores .layer').count() == 0
        assert page.locator('#gallery-title').inner_text() == 'Gallery mine, test'
        assert box_of(page, 0) == boxes_at(MAPS[A][0, 0], 0.3).tolist()


def test_images_without_ground_truth_are_neither_hit_nor_miss(browser, tmp_path):
    source = Listed([record(f'{k}.png') for k in range(3)])
    store = write_maps(tmp_path, source, {A: MAPS[A][:3]})
    write_page(CONFIG, {**metrics(), 'localization': [row('test', *A)]}, source, store, tmp_path)
    with opened(browser, tmp_path / 'report.html') as page:
        assert page.locator('#count').inner_text() == '3 shown'
        assert page.locator('.mark').all_inner_texts() == [''] * 3
        assert box_of(page, 1) == boxes_at(MAPS[A][1, 0], 0.3).tolist()
        assert page.locator('#show').count() == 0


def test_the_map_of_one_class_leaves_no_choice(page):
    assert page.locator('#rank').is_hidden()


def test_without_a_gallery(browser, tmp_path):
    config = replace(CONFIG, report=ReportConfig(gallery=0))
    source = Listed([record('0.png')])
    write_page(config, metrics(), source, write_maps(tmp_path, source, {A: MAPS[A][:1]}), tmp_path)
    with opened(browser, tmp_path / 'report.html') as page:
        page.locator('#scores thead th:nth-child(5) button').click()
        assert table(page, 5) == ['100.0', '9.0', '']
        assert page.locator('#cards, #charts, #bar').count() == 0

"""The page of label maps: its numbers, a bound on its size, the command; and in a real browser."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from test_browser import CHROMIUM, browser, choose, opened, settle, shown  # noqa: F401
from test_page import SCRIPT, Reader

from wsol_jax.data import DataError, Record
from wsol_jax.evaluation.__main__ import main
from wsol_jax.report import segmentation
from wsol_jax.report.segmentation import segmented_image, write_segmentation_page
from wsol_jax.segmentation import confusion, palette, write_label_map

NAMES = ['background', 'cat', SCRIPT, 'emu']
OPACITY = 0.6


def blocks(*values):
    """A label map of blocks of 6 x 8 pixels, the first row of blocks first."""
    return np.kron(np.reshape(values, (2, 2)), np.ones((6, 8), int)).astype(np.uint8)


PAIRS = {  # predicted, true
    'a': (blocks(0, 1, 0, 1), blocks(0, 1, 255, 0)),
    '<b>': (blocks(2, 0, 0, 0), blocks(2, 0, 3, 0)),
    'c': (blocks(0, 0, 0, 0), blocks(0, 0, 0, 0)),
}
MATRIX = sum(confusion(*pair, 5) for pair in PAIRS.values())
CURVES = {
    'threshold': [0.1, 0.4, 0.8],
    'mIoU': [10.0, 30.0, 20.0],
    'Precision': [5.0, 15.0, float('nan')],
    'Recall': [90.0, 50.0, 1.0],
}


def photo():
    stream = io.BytesIO()
    Image.new('RGB', (16, 12), 'grey').save(stream, 'PNG')
    return stream.getvalue()


def gallery():
    record = Record('a', photo(), (), (16, 12))
    return [segmented_image(name, record, *pair, 5) for name, pair in PAIRS.items()]


def written(folder, **more):
    path = folder / 'page.html'
    facts = {'method': '<b>seeds'}
    write_segmentation_page(path, 'A & B', facts, MATRIX, [*NAMES, 'gnu'], **more)
    return path


def test_scores_and_names_are_there_and_no_address(tmp_path):
    text = written(tmp_path, gallery=gallery()).read_text()
    reader = Reader(text)
    assert reader.rows == [
        ['mIoU', 'pixel accuracy', 'FP', 'FN', 'precision', 'recall'],
        # IoU: background 7 / 9 blocks, cat 1 / 2, SCRIPT 1, emu 0 / 1.
        ['56.9', '81.8', '16.7', '33.3', '75.0', '66.7'],
    ]
    assert '<b>seeds' not in text and SCRIPT not in text and '<b>a' not in text
    assert all(address.startswith('data:image/jpeg;base64,') for address in reader.addresses)
    data = json.loads(reader.scripts['data'])
    assert data['matrix']['names'] == NAMES  # without the gnu, which is nowhere
    assert np.array(data['matrix']['counts']).tolist() == MATRIX[:4, :4].tolist()
    assert '1 that occurs nowhere is left out' in text


def test_images_with_their_classes(tmp_path):
    a, b, c = gallery()
    assert a.size == (259, 194) and a.predicted.shape == (194, 259)
    assert (a.classes, b.classes, c.classes) == (((1,), (1,)), ((2,), (2, 3)), ((), ()))
    assert a.mean_iou == pytest.approx((1 / 2 + 1 / 2) / 2 * 100) and c.mean_iou == 100
    facts = json.loads(Reader(written(tmp_path, gallery=[a, b]).read_text()).scripts['gallery'])
    assert [image['truth'] for image in facts['images']] == [[1], [2, 3]]


def test_a_page_that_is_too_large_shows_fewer_images(tmp_path, monkeypatch):
    bare = len(written(tmp_path).read_bytes())
    full = len(written(tmp_path, gallery=gallery()).read_bytes())
    limit = full - 100
    monkeypatch.setattr(segmentation, 'LIMIT', limit)
    text = written(tmp_path, gallery=gallery()).read_text()
    assert bare < len(text.encode()) <= limit and 1 <= text.count('data-index=') < 3


def test_label_maps_of_other_sizes_are_refused():
    with pytest.raises(DataError, match='is 16x12, ground truth is 8x12'):
        segmented_image('a', None, PAIRS['a'][0], PAIRS['a'][1][:, :8], 5)


@pytest.fixture
def folders(tmp_path):
    for name, pair in zip(('a', 'b/c'), PAIRS.values(), strict=False):
        for folder, label_map in zip(('my maps', 'voc'), pair, strict=True):
            write_label_map(tmp_path / folder / f'{name}.png', label_map)
        (tmp_path / f'images/{name}.jpg').parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f'images/{name}.jpg').write_bytes(photo())
    given = {'segmentation': 'my maps', 'ground_truth': 'voc', 'out': 'm.json', 'report': 'p.html'}
    return [f'--{name}={tmp_path / value}' for name, value in given.items()]


def test_the_command_writes_the_page(folders, tmp_path, capsys):
    assert main([*folders, f'--images={tmp_path / "images"}']) == 0
    assert capsys.readouterr().out.endswith(f'\nPage: {tmp_path / "p.html"}\n')
    text = (tmp_path / 'p.html').read_text()
    assert '<h1>my maps on voc</h1>' in text and str(tmp_path) not in text
    assert text.count('data:image/jpeg') == 4 and text.count('<canvas') == 4


def test_label_maps_without_images_are_shown_alone(folders, tmp_path):
    write_label_map(tmp_path / 'voc/a.png', np.minimum(PAIRS['a'][1], 3))
    assert main([*folders, '--ignore=3']) == 0
    text = (tmp_path / 'p.html').read_text()
    assert '<img' not in text and text.count('<canvas') == 4
    facts = json.loads(Reader(text).scripts['gallery'])
    assert [image['truth'] for image in facts['images']] == [[1], [2]]


@pytest.mark.parametrize(
    ('spoil', 'reason'),
    [
        (lambda file: file.unlink(), 'images/b/c: no such image, of any ending'),
        (lambda file: Image.new('RGB', (9, 12)).save(file), 'c.jpg: is 9x12, its label map 16x12'),
    ],
)
def test_images_that_do_not_belong_to_the_label_maps(folders, tmp_path, capsys, spoil, reason):
    spoil(tmp_path / 'images/b/c.jpg')
    with pytest.raises(SystemExit) as stopped:
        main([*folders, f'--images={tmp_path / "images"}'])
    assert stopped.value.code == 2 and reason in capsys.readouterr().err
    assert (tmp_path / 'm.json').exists() and not (tmp_path / 'p.html').exists()


in_browser = pytest.mark.skipif(CHROMIUM is None, reason='no chromium or google-chrome to run')


@pytest.fixture(scope='module')
def tab(browser, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp('page')
    path = written(folder, gallery=gallery(), curves=CURVES, chosen={'val<b>': 0.1})
    with opened(browser, path) as page:
        yield page


@pytest.fixture
def page(tab):
    """The page as it opens."""
    tab.set_viewport_size({'width': 1280, 'height': 900})
    tab.reload()
    settle(tab)
    return tab


def colours(page, index, part):
    """RGBA in the middle of the four blocks of a label map of the gallery."""
    canvas = page.locator(f'#cards > li[data-index="{index}"] canvas').nth(part)
    canvas.scroll_into_view_if_needed()
    settle(page)
    data = canvas.evaluate(
        """(c) => [1, 3].flatMap((y) => [1, 3].map((x) => [...c.getContext('2d')
           .getImageData(x * c.width / 4, y * c.height / 4, 1, 1).data]))"""
    )
    return [tuple(pixel) for pixel in data]


def painted(k, opacity=OPACITY):
    return (*palette()[k].tolist(), round(255 * opacity))


def close(found, expected):
    """A canvas keeps colours multiplied by their alpha: they come back a little off."""
    return np.abs(np.subtract(found, expected)).max() <= 2


NOTHING, VEIL = (0, 0, 0, 0), (0, 0, 0, 150)


@pytest.mark.slow
@in_browser
def test_label_maps_are_painted_in_their_colours(page):
    assert close(colours(page, 0, 0), [NOTHING, painted(1), NOTHING, painted(1)])
    assert close(colours(page, 0, 1), [NOTHING, painted(1), painted(255), NOTHING])
    page.locator('#opacity').fill('0.2')
    settle(page)
    assert page.locator('#value').inner_text() == '20 %'
    assert close(colours(page, 0, 0), [NOTHING, painted(1, 0.2), NOTHING, painted(1, 0.2)])


@in_browser
def test_a_class_shows_its_images_and_regions_alone(page):
    assert shown(page) == [0, 1, 2]
    choose(page, 'only', '3')
    assert shown(page) == [1] and page.locator('#count').inner_text() == '1 of 3 shown'
    assert close(colours(page, 1, 1), [VEIL, VEIL, painted(3), VEIL])
    assert close(colours(page, 1, 0), [VEIL] * 4)
    assert page.locator('#only option').all_inner_texts()[1:] == sorted(NAMES[1:])


@in_browser
def test_order_and_marks_of_missed_classes(page):
    choose(page, 'order', 'worst')
    assert shown(page) == [0, 1, 2]
    choose(page, 'order', 'best')
    assert shown(page) == [2, 1, 0]
    chips = page.locator('#cards > li[data-index="1"] .chip').all_inner_texts()
    assert [chip.strip() for chip in chips] == [SCRIPT, 'emu missed']


@in_browser
def test_the_matrix_is_read_cell_by_cell(page):
    cell = page.locator('#heat tbody tr').nth(3).locator('td')
    assert cell.all_inner_texts() == ['100', '', '', '']
    cell.first.hover()
    assert page.locator('#pair').inner_text() == 'emu taken for background: 100.00 %, 48 pixels'


@in_browser
def test_a_pixel_in_the_large_view_is_named(page):
    page.locator('#cards > li[data-index="1"] .card').click()
    frame = page.locator('#large-picture .frame').first.bounding_box()
    page.mouse.move(frame['x'] + frame['width'] / 4, frame['y'] + 0.75 * frame['height'])
    assert page.locator('#large-text').inner_text() == 'predicted background · true emu'
    page.keyboard.press('ArrowRight')
    assert page.locator('#large-title').inner_text() == 'c'
    page.keyboard.press('Escape')
    settle(page)
    assert page.evaluate("document.activeElement.closest('li').dataset.index") == '2'


@in_browser
def test_curves_of_seeds_follow_the_pointer(page):
    figure = page.locator('#charts figure')
    marks = figure.locator('svg').first.text_content()
    assert 'val<b> 0.10' in marks and 'best* 0.40' in marks
    assert figure.locator('.legend b').all_inner_texts() == ['10.0', '5.0', '90.0']
    figure.scroll_into_view_if_needed()
    plot = figure.locator('.plot').bounding_box()
    page.mouse.move(plot['x'] + 40 + 0.8 * (plot['width'] - 52), plot['y'] + 150)
    settle(page)
    assert figure.locator('.legend b').all_inner_texts() == ['20.0', '–', '1.0']


@in_browser
@pytest.mark.parametrize('width', [360, 1280])
def test_nothing_is_wider_than_the_window(page, width):
    page.set_viewport_size({'width': width, 'height': 800})
    assert page.evaluate('document.documentElement.scrollWidth') <= width

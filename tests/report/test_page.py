import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from wsol_jax.report.page import write_page


def row(method, layer, split, **scores):
    shared = {'threshold': 0.1 + 0.2, 'threshold_from': 'val', 'images': 4}
    return {'method': method, 'layer': layer, 'split': split, **shared, **scores}


METRICS = {
    'split': 'te<st>',
    'classification': {'top1': 50.0},
    'skipped': {},
    'localization': [
        row('dgl', 'stage1', 'val', MaxBoxAcc=12.34, chosen=True),
        row('a<b>&"c', 'stage1', 'te<st>', MaxBoxAcc=0.0),
        row('dgl', 'stage1', 'te<st>', PxAP=33.33, chosen=True),
    ],
}


class Reader(HTMLParser):
    """Cells of the table by row, tags, and addresses."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.bold, self.open, self.addresses = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.addresses += [v for k, v in attributes if k in ('src', 'href')]
        if tag == 'tr':
            self.rows.append([])
            self.bold.append(('class', 'chosen') in attributes)
        if tag in ('td', 'th'):
            self.rows[-1].append('')

    def handle_data(self, data):
        if self.open and self.open[-1] in ('td', 'th'):
            self.rows[-1][-1] += data

    def handle_endtag(self, tag):
        self.open = self.open[: len(self.open) - 1 - self.open[::-1].index(tag)]


@pytest.fixture
def page(tmp_path):
    (tmp_path / 'figures').mkdir()
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'figures/layers_a&b.png'), image)
    write_page(METRICS, tmp_path)
    return tmp_path / 'report.html'


def test_every_row_is_there(page):
    reader = Reader(page.read_text(encoding='utf-8'))
    assert reader.rows == [
        ['split', 'method', 'layer', 'threshold', 'MaxBoxAcc*', 'PxAP'],
        ['val', 'dgl', 'stage1', '0.3', '12.3', ''],
        ['te<st>', 'a<b>&"c', 'stage1', '0.3', '0.0', ''],
        ['te<st>', 'dgl', 'stage1', '0.3', '', '33.3'],
    ]
    assert reader.bold == [False, True, False, True]


def test_names_are_escaped(page):
    text = page.read_text(encoding='utf-8')
    assert '<b>' not in text and '<st>' not in text
    assert '<h1>Localization on te&lt;st&gt;</h1>' in text
    assert 'layers_a&amp;b' in text and 'layers_a&b' not in text


def test_it_opens_without_a_network(page):
    text = page.read_text(encoding='utf-8')
    (address,) = Reader(text).addresses
    assert address.startswith('data:image/png;base64,')
    assert not re.search(r'https?:|//|@import|url\(', text.replace(address, ''))


def test_without_scores_and_figures(tmp_path):
    rows = [row('cam', 'a', 'test', threshold_from='config')]
    write_page({**METRICS, 'classification': {}, 'localization': rows}, tmp_path)
    reader = Reader((tmp_path / 'report.html').read_text(encoding='utf-8'))
    assert reader.rows == [['split', 'method', 'layer', 'threshold'], ['test', 'cam', 'a', '0.3']]
    assert reader.addresses == []

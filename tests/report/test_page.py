"""The page's text: every score, names escaped, nothing from a network, and a bound on its size."""

import base64
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import Listed
from test_gallery import CONFIG, A, named, record, smooth_maps, write_maps

from wsol_jax.config import Config, DataConfig, NetworkConfig, ReportConfig
from wsol_jax.maps.columns import SKIPPED
from wsol_jax.report import page
from wsol_jax.report.page import origin, write_page
from wsol_jax.workdir import write_csv, write_text

SCRIPT = '</script><script>alert(1)</script>'
NO_GALLERY = replace(CONFIG, report=ReportConfig(gallery=0))
CURVES = ('largest_30', 'largest_50', 'largest_70', 'all_30', 'all_50', 'all_70')


def row(method, layer, split, **scores):
    shared = {'threshold': 0.1 + 0.2, 'threshold_from': 'val', 'images': 4}
    return {'method': method, 'layer': layer, 'split': split, **shared, **scores}


METRICS = {
    'split': 'te<st>',
    'class': 'ground_truth',
    'classification': {'top1': 50.0},
    'skipped': {'te<st>': 3},
    'localization': [
        row('a<b>&"c', 'stage1', 'te<st>', MaxBoxAcc=0.0, chosen=False),
        row('dgl', 'stage1', 'val', MaxBoxAcc=12.34, chosen=True),
        row(
            *('dgl', 'stage1', 'te<st>'),
            **{'GTKnownLoc': 69.33, 'PxAP': 33.33, 'chosen': True},
            intervals={'GTKnownLoc': [61.4, 76.6]},
            protocols={'bas': {'GTKnownLoc': 55.55}, 'iou<2>': {'Top1Loc': 44.44}},
        ),
    ],
    'by_class': [
        {
            **{'method': 'dgl', 'layer': 'stage1', 'class': 3, 'name': SCRIPT},
            **{'images': 15, 'GTKnownLoc': 60.0},
        }
    ],
}


class Reader(HTMLParser):
    """Rows of the first table, which are bold or hidden, addresses, and scripts by id."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.marks, self.open, self.addresses = [], [], [], []
        self.scripts, self.tables, self.tags = {}, 0, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.open.append((tag, values.get('id')))
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ('src', 'href', 'action', 'srcset')]
        self.tables += tag == 'table'
        if self.tables == 1 and tag == 'tr':
            self.rows.append([])
            self.marks.append((values.get('class') == 'chosen', 'hidden' in values))
        if self.tables == 1 and tag in ('td', 'th'):
            self.rows[-1].append('')

    def handle_data(self, data):
        inside = [tag for tag, _ in self.open]
        if self.tables == 1 and ('td' in inside or 'th' in inside):
            self.rows[-1][-1] += data.strip()
        if inside and inside[-1] == 'script':
            name = self.open[-1][1]
            self.scripts[name] = self.scripts.get(name, '') + data

    def handle_endtag(self, tag):
        names = [name for name, _ in self.open]
        if tag in names:
            self.open = self.open[: len(names) - 1 - names[::-1].index(tag)]


def page_of(tmp_path, metrics=METRICS, config=NO_GALLERY, source=None, **facts):
    source = named(4) if source is None else source
    store = write_maps(tmp_path, source, {A: smooth_maps(1, len(source))}, **facts)
    write_page(config, metrics, source, store, tmp_path)
    return (tmp_path / 'report.html').read_text(encoding='utf-8')


def curve_of(reader, index):
    listed = json.loads(zlib.decompress(base64.b64decode(reader.scripts['curves'])))
    return listed[index]


def test_every_row_is_there(tmp_path):
    reader = Reader(page_of(tmp_path))
    scores = ['GT-known', 'MaxBoxAcc*', 'PxAP', 'GT-known bas', 'Top-1 Loc iou<2>']
    assert reader.rows == [
        ['chosen', 'method', 'layer', 'threshold', *scores],
        ['●', 'dgl', 'stage1', '0.30', '', '12.3', '', '', ''],
        ['●', 'dgl', 'stage1', '0.30', '69.361–77', '', '33.3', '55.5', '44.4'],
        ['', 'a<b>&"c', 'stage1', '0.30', '', '0.0', '', '', ''],
    ]
    assert reader.marks == [(False, False), (True, True), (True, False), (False, False)]
    data = json.loads(reader.scripts['data'])
    assert data['start'] == 1 and data['split'] == 'te<st>'
    assert [r['method'] for r in data['rows']] == ['dgl', 'dgl', 'a<b>&"c']
    assert data['details']['class']['rows'] == METRICS['by_class']
    assert data['details']['class']['columns'] == ['GTKnownLoc']


def test_oracles_have_a_star(tmp_path):
    rows = [
        row('dgl', 'a', 'val', GTKnownLoc=60.0, PxAP=30.0, chosen=True, oracle=True),
        row('dgl', 'b', 'val', GTKnownLoc=50.0, PxAP=20.0, chosen=False, oracle=True),
        row('dgl', 'a', 'test', GTKnownLoc=40.0, PxAP=10.0, chosen=True),
    ]
    metrics = {**METRICS, 'localization': rows, 'split': 'test'}
    reader = Reader(page_of(tmp_path / 'test', metrics))
    assert reader.rows == [
        ['chosen', 'method', 'layer', 'threshold', 'GT-known', 'PxAP'],
        ['●', 'dgl', 'a', '0.30', '60.0*', '30.0*'],
        ['●', 'dgl', 'a', '0.30', '40.0', '10.0'],
        ['', 'dgl', 'b', '0.30', '50.0*', '20.0'],
    ]
    data = json.loads(reader.scripts['data'])
    assert [r.get('oracle') for r in data['rows']] == [True, None, True]
    assert data['details']['class']['headings'] == ['GT-known']
    data = Reader(page_of(tmp_path / 'val', {**metrics, 'split': 'val'})).scripts['data']
    assert json.loads(data)['details']['class']['headings'] == ['GT-known*']


def test_images_without_an_object_are_counted(tmp_path):
    text = page_of(tmp_path, {**METRICS, 'without_object': {'te<st>': 2}})
    assert '<b>4</b> images' in text and '<b>2</b> of them without an object' in text


def test_summary_of_the_split(tmp_path):
    text = page_of(tmp_path, status=[1, SKIPPED, 1, 1])
    assert '<b>3</b> images' in text and '<b>3</b> skipped' in text
    assert 'top1 <b>50.0 %</b>' in text


def test_the_row_shown_first_is_the_best_chosen_one(tmp_path):
    names = [('a', 50.0, True), ('b', 60.0, True), ('c', 90.0, False), ('d', 55.0, True)]
    rows = [row(name, 'x', 'test', GTKnownLoc=s, chosen=c) for name, s, c in names]
    rows.append(row('e', 'x', 'val', GTKnownLoc=99.0, chosen=True))
    text = page_of(tmp_path, {**METRICS, 'split': 'test', 'localization': rows})
    data = json.loads(Reader(text).scripts['data'])
    assert data['rows'][data['start']]['method'] == 'b'


def test_names_are_escaped(tmp_path):
    source = Listed([record(SCRIPT, (4, 4, 40, 40), masks=())])
    text = page_of(tmp_path, config=CONFIG, source=source)
    assert '<st>' not in text and '<b>&"' not in text and 'alert(1)</script>' not in text
    assert '<h1>Localization on te&lt;st&gt;</h1>' in text
    reader = Reader(text)
    assert set(reader.scripts) == {'maps-0', 'boxes-0', 'gallery', 'data', None}
    assert json.loads(reader.scripts['data'])['details']['class']['rows'][0]['name'] == SCRIPT


def test_it_opens_without_a_network(tmp_path):
    curves(tmp_path)
    text = page_of(tmp_path, config=CONFIG)
    addresses = Reader(text).addresses
    assert len(addresses) == 4
    assert all(a.startswith('data:image/jpeg;base64,') for a in addresses)
    for address in addresses:
        text = text.replace(address, '')
    text = re.sub('<pre.*?</pre>', '', text, flags=re.DOTALL)  # the config file, which is shown
    assert not re.search(r'https?:|@import|url\(|\bimport\b|fetch\(|<link|<iframe', text)
    assert "default-src 'none'" in text


def curves(workdir):
    lines = [
        ('te<st>', 'dgl', 'stage1', f'{t:g}', *(f'{v:.6f}' for v in np.full(6, 100 * t)), '', '')
        for t in (0, 0.25, 0.5, 0.75)
    ]
    header = ('split', 'method', 'layer', 'threshold', *CURVES, 'mIoU', 'PooledIoU')
    write_csv(workdir / 'curves.csv', header, lines)


def test_curves_belong_to_their_rows(tmp_path):
    curves(tmp_path)
    reader = Reader(page_of(tmp_path))
    assert curve_of(reader, 0) is None and curve_of(reader, 2) is None
    curve = curve_of(reader, 1)
    assert curve['threshold'] == [0, 0.25, 0.5, 0.75]
    assert curve['largest_50'] == curve['all_70'] == [0, 25, 50, 75]
    assert curve['mIoU'] == [None] * 4
    assert 'id="charts"' in page_of(tmp_path)


def test_without_scores_curves_and_gallery(tmp_path):
    rows = [row('cam', 'a', 'test', threshold_from='config')]
    metrics = {'split': 'test', 'classification': {}, 'skipped': {}, 'localization': rows}
    reader = Reader(page_of(tmp_path, metrics))
    assert reader.rows == [['method', 'layer', 'threshold'], ['cam', 'a', '0.30']]
    assert reader.addresses == [] and set(reader.scripts) == {'data', None}
    text = page_of(tmp_path, metrics)
    assert '>Methods</h2>' in text and 'oracle' not in body(text) and 'percent' not in body(text)
    text = page_of(tmp_path, {**metrics, 'localization': []})
    assert '<table' not in text and '<h1>Localization on test</h1>' in text


def body(text):
    """What is read, without style and scripts."""
    return re.sub(r'<(style|script)\b.*?</\1>', '', text, flags=re.DOTALL)


def test_the_gallery_of_images_of_which_nothing_is_known_has_no_score(tmp_path):
    known, unknown = record('x', (4, 4, 40, 40)), replace(record('x'), labels=())
    for name, image in (('known', known), ('unknown', unknown)):
        source = Listed([image])
        text = body(page_of(tmp_path / name, config=CONFIG, source=source, classes=[[0]]))
        for part in ('id="show"', 'id="label"', 'ground truth', 'Hit:', '<b>✓</b> predicted'):
            assert (part in text) == (name == 'known'), part
        assert 'id="view"' in text and 'predicted' in text


def test_the_head_says_what_made_it(tmp_path):
    network = NetworkConfig('resnet10', str(tmp_path / 'secret' / 'w.safetensors'))
    data = DataConfig(source='class_folder', root=str(tmp_path / 'secret' / 'birds'))
    config = replace(NO_GALLERY, network=network, data=data)
    (tmp_path / 'secret').mkdir()
    (tmp_path / 'secret' / 'w.safetensors').touch()
    facts = origin(config, tmp_path / 'W')
    assert facts.pop('made')[:2] == '20'
    data = 'birds (class_folder), test'
    assert facts == {'model': 'resnet10', 'weights': 'w.safetensors', 'data': data}
    (tmp_path / 'W' / 'checkpoints').mkdir(parents=True)
    assert origin(config, tmp_path / 'W')['weights'] == 'trained in W, from w.safetensors'
    shapes = Config(data=DataConfig(source='shapes'))
    facts = origin(shapes, tmp_path / 'W')
    assert (facts['weights'], facts['data']) == ('trained in W', 'shapes, test')
    write_text(tmp_path / 'W' / 'config.json', '{"git": "abc"}')
    assert origin(shapes, tmp_path / 'W')['code'] == 'abc'
    text = page_of(tmp_path / 'W', config=config)
    assert '<span>weights <b>trained in W, from w.safetensors</b></span>' in text
    assert 'config.network.name = &#39;resnet10&#39;' in text


def test_a_gallery_of_no_image_is_none(tmp_path):
    text = page_of(tmp_path, config=CONFIG, status=[SKIPPED] * 4)
    assert 'id="cards"' not in text and 'id="scores"' in text


def size_and_gallery(tmp_path, limit, monkeypatch, source, store):
    monkeypatch.setattr(page, 'LIMIT', limit)
    write_page(CONFIG, METRICS, source, store, tmp_path)
    text = (tmp_path / 'report.html').read_text(encoding='utf-8')
    facts = json.loads(Reader(text).scripts.get('gallery', 'null'))
    return len(text.encode()), facts, text


def test_the_size_is_kept_first_by_coarser_maps_then_by_fewer_images(tmp_path, monkeypatch):
    source = named(40)
    store = write_maps(tmp_path, source, {A: smooth_maps(1, 40, 28)})
    size, facts, text = size_and_gallery(tmp_path, 10**7, monkeypatch, source, store)
    assert facts['keys'] == [[*A, 28, 28]] and 'at most 28 × 28 values' in text
    limit = size - 20_000
    size, facts, text = size_and_gallery(tmp_path, limit, monkeypatch, source, store)
    assert size <= limit and len(facts['images']) == 40
    side = facts['keys'][0][2]
    assert side in (20, 14) and f'at most {side} × {side} values' in text
    for limit in (90_000, 60_000):
        size, facts, text = size_and_gallery(tmp_path, limit, monkeypatch, source, store)
        assert size <= limit and 0 < len(facts['images']) < 40
        assert f'{len(facts["images"])} of 40 images' in text
        assert len(Reader(text).addresses) == len(facts['images'])
    _, facts, text = size_and_gallery(tmp_path, 1000, monkeypatch, source, store)
    assert facts is None and 'id="scores"' in text


@pytest.mark.parametrize('part', ['maps', 'boxes'])
def test_blobs_lie_in_the_page(tmp_path, part):
    reader = Reader(page_of(tmp_path, config=CONFIG))
    raw = zlib.decompress(base64.b64decode(reader.scripts[f'{part}-0']))
    assert len(raw) == {'maps': 4 * 49, 'boxes': 4 * 400}[part]
    facts = json.loads(reader.scripts['gallery'])
    assert (facts['size'], facts['steps'], facts['classes']) == (48, 100, 1)
    colors = np.frombuffer(base64.b64decode(facts['colors']), np.uint8).reshape(256, 3)
    assert colors[[0, 255]].tolist() == [[68, 1, 84], [253, 231, 36]]  # viridis, as published


def test_blank_maps_are_a_column_where_there_are_any(tmp_path):
    assert 'blank' not in Reader(page_of(tmp_path)).rows[0]
    counts = (0, 3, 0)
    rows = [
        {**row, 'blank_maps': n} for row, n in zip(METRICS['localization'], counts, strict=True)
    ]
    lines = Reader(page_of(tmp_path, {**METRICS, 'localization': rows})).rows
    assert lines[0][-1] == 'blank' and sorted(line[-1] for line in lines[1:]) == ['0', '0', '3']

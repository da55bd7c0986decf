"""The page of somebody's score maps: the page of a run, of what is known of them."""

import json

import cv2
import numpy as np
import pytest
from test_page import Reader, curve_of

from wsol_jax.evaluation.__main__ import main

SIZE = 224
NAMES = ['a.png', 'b.png']


@pytest.fixture
def scored(tmp_path):
    """Command of two images of 400 x 200 pixels; the box of the first one is found."""
    raw = np.zeros((SIZE, SIZE))
    raw[40:120, 40:200] = 1
    for folder in ('my maps', 'metadata/test', 'images'):
        (tmp_path / folder).mkdir(parents=True)
    for name in NAMES:
        np.save(tmp_path / 'my maps' / f'{name}.npy', raw)
        cv2.imwrite(str(tmp_path / 'images' / name), np.full((200, 400, 3), 90))
    boxes = ['71,35,357,107', '0,0,20,20']  # the first one of the map, in pixels of the image
    lines = {
        'image_ids': NAMES,
        'image_sizes': [f'{n},400,200' for n in NAMES],
        'class_labels': [f'{n},1' for n in NAMES],
        'localization': [f'{n},{b}' for n, b in zip(NAMES, boxes, strict=True)],
    }
    for name, values in lines.items():
        (tmp_path / f'metadata/test/{name}.txt').write_text('\n'.join(values))
    (tmp_path / 'class_names.txt').write_text('auk\n<b>owl')
    given = {'scoremaps': 'my maps', 'metadata': 'metadata/test', 'out': 'm.json'}
    given |= {'report': 'pages/p.html', 'interval': '.005'}
    return [f'--{k}={v if k == "interval" else tmp_path / v}' for k, v in given.items()]


def test_a_page_with_scores_curves_and_gallery(scored, tmp_path, capsys):
    page = tmp_path / 'pages/p.html'
    assert main([*scored, f'--images={tmp_path / "images"}', '--protocols=cvpr16']) == 0
    assert capsys.readouterr().out.endswith(f'\nPage: {page}\n')
    text = page.read_text()
    assert '<h1>my maps on test</h1>' in text and '<b>2</b> images' in text
    assert str(tmp_path) not in text and '<b>owl' not in text
    reader = Reader(text)
    head = ['method', 'threshold', 'GT-known', 'MaxBoxAcc*', 'MaxBoxAccV2*', 'GT-known cvpr16']
    assert reader.rows == [head, ['my maps', '0.00', '50.0*0–100', '50.0', '50.0', '50.0']]
    curve = curve_of(reader, 0)
    assert len(curve['threshold']) == 100 and curve['largest_50'] == [50] * 100
    facts = json.loads(reader.scripts['gallery'])
    assert facts['keys'] == [['my maps', '', 28, 28]] and facts['size'] == SIZE
    assert [image['boxes'][0] for image in facts['images']] == [[39, 39, 199, 119], [0, 0, 11, 22]]
    detail = json.loads(reader.scripts['data'])['details']['class']['rows']
    assert [row['name'] for row in detail] == ['<b>owl'] and detail[0]['GTKnownLoc'] == 50


def test_a_page_without_images_has_no_gallery(scored, tmp_path):
    assert main(scored) == 0
    text = (tmp_path / 'pages/p.html').read_text()
    assert 'id="charts"' in text and 'id="cards"' not in text and 'id="layer"' not in text


def test_an_image_that_is_missing_leaves_the_scores(scored, tmp_path, capsys):
    (tmp_path / 'images/b.png').unlink()
    with pytest.raises(SystemExit) as stopped:
        main([*scored, f'--images={tmp_path / "images"}'])
    assert stopped.value.code == 2 and 'b.png' in capsys.readouterr().err
    assert json.loads((tmp_path / 'm.json').read_text())['GTKnownLoc'] == 50
    assert not (tmp_path / 'pages').exists()

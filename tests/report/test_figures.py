"""Figures of stores written by hand: the sizes, and what the pixels show."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import Listed

from wsol_jax.config import Config, EvaluateConfig, ReportConfig
from wsol_jax.data import Record
from wsol_jax.evaluation.stage import evaluate
from wsol_jax.localization.store import DONE, SKIPPED, MapStore
from wsol_jax.report.figures import method_figure, score_figure
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
    store = MapStore.create(
        workdir / 'maps/val', ids, 'top1', shapes, dict.fromkeys(keys, False), 2, count
    )
    status = np.full(count, DONE)
    status[list(skipped)] = SKIPPED
    maps = np.zeros((count, 1, 4, 4), np.float32)
    maps[:, :, 1:3, 1:3] = 1
    facts = {
        'classes': np.zeros((count, 1), np.int32),
        'class_scores': np.ones((count, 1), np.float32),
        'top': np.tile(np.arange(2, dtype=np.int32), (count, 1)),
    }
    store.write(np.arange(count), status, facts, dict.fromkeys(keys, maps))
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


def whole(tmp_path, count, keys, truth, config=CONFIG, skipped=()):
    source = records(count, **TRUTHS[truth])
    store_of(tmp_path, count, keys, skipped)
    metrics = evaluate(config, {'val': source}, tmp_path)
    return metrics, report(config, metrics, source, tmp_path)


def size_of(path):
    image = cv2.imread(str(path))
    assert image is not None and image.std() > 1, path
    return image.shape[1], image.shape[0]


@pytest.mark.parametrize('truth', TRUTHS)
@pytest.mark.parametrize(('count', 'keys'), [(1, ONE), (3, FOUR)])
def test_a_cell_for_every_image_and_map(tmp_path, count, keys, truth):
    metrics, _ = whole(tmp_path, count, keys, truth)
    columns = {'methods': len({m for m, _ in keys})}
    columns |= {f'layers_{m}': [k[0] for k in keys].count(m) for m, _ in keys}
    for name, number in columns.items():
        width, height = size_of(tmp_path / f'figures/{name}.png')
        assert width == pytest.approx(CELL * (number + 1), abs=1)
        assert height == pytest.approx(CELL * count + 60, abs=1)
    scored = (tmp_path / 'figures/scores.png').exists()
    assert scored == (truth != 'none')
    if scored:
        width, height = size_of(tmp_path / 'figures/scores.png')
        assert 600 < width < 3000 and 400 < height < 1000
    names = {path.name for path in (tmp_path / 'figures').iterdir()}
    assert names == {f'{n}.png' for n in columns} | ({'scores.png'} if scored else set())
    page = (tmp_path / 'report.html').read_text(encoding='utf-8')
    assert page.count('<img') == len(names) and page.count('<tr') == 1 + len(keys)
    assert len(metrics['localization']) == len(keys)


def test_no_overlays_where_none_are_wanted(tmp_path):
    config = replace(CONFIG, report=ReportConfig(images=0))
    whole(tmp_path, 2, ONE, 'boxes', config)
    assert [p.name for p in (tmp_path / 'figures').iterdir()] == ['scores.png']


def test_images_that_were_skipped_are_not_shown(tmp_path):
    whole(tmp_path, 3, ONE, 'boxes', skipped=(0, 2))
    assert size_of(tmp_path / 'figures/methods.png')[1] == pytest.approx(CELL + 60, abs=1)


def test_all_images_skipped_still_reports(tmp_path):
    _, text = whole(tmp_path, 2, ONE, 'boxes', skipped=(0, 1))
    assert '2 skipped' in text and (tmp_path / 'report.html').exists()


def test_the_box_is_drawn_in_its_colour(tmp_path):
    source = records(1, **TRUTHS['boxes'])
    store = store_of(tmp_path, 1, ONE)
    metrics = evaluate(CONFIG, {'val': source}, tmp_path)
    method_figure(CONFIG, metrics, source, store, tmp_path / 'f.png')
    image = cv2.imread(str(tmp_path / 'f.png'))[:, :, ::-1].astype(int)
    orange = np.abs(image - [0xE6, 0x9F, 0x00]).max(axis=2) < 30
    width = image.shape[1]
    assert orange[:, width // 2 :].sum() > 100  # on the map
    assert orange[:, : width // 2].sum() == 0  # not on the image beside it


def test_no_score_no_figure(tmp_path):
    score_figure({'split': 'val', 'localization': []}, Path(tmp_path / 's.png'))
    assert not (tmp_path / 's.png').exists()

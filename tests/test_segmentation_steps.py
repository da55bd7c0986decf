"""The experiment that goes through the steps of segmentation: its scores by hand, its table."""

import numpy as np
import pytest
from conftest import Listed

from experiments.segmentation import Run, best_key, scores, table, write_seeds
from wsol_jax.data import Record
from wsol_jax.data.drawing import png
from wsol_jax.data.label_maps import MISSING, read_label_map
from wsol_jax.segmentation import write_label_map
from wsol_jax.workdir import write_text


def array(*rows):
    return np.array(rows, np.uint8)


def test_scores_count_what_stands_beside_a_class_and_take_gaps_for_background(tmp_path):
    truth, beside = array([2, 2, 0, 0], [1, 0, 0, 0]), array([0, 0, 2, 2], [0, 0, 2, 0])
    found = array([2, 2, 2, MISSING], [1, 0, 2, 0])
    extra = {'segmentation': png(truth), 'context': png(beside)}
    record = Record('a/b.png', png(np.zeros((2, 4, 3), np.uint8)), (0, 1), (4, 2), extra=extra)
    write_label_map(tmp_path / 'a/b.png.png', found)
    of_all = scores(Listed([record], ('cat', 'train')), tmp_path)
    assert of_all['beside'] == pytest.approx(100 * 2 / 3)
    # Background 3 of 5, cat 1 of 1, train 2 of 4.
    assert of_all['mIoU'] == pytest.approx(100 * (3 / 5 + 1 + 2 / 4) / 3)
    assert of_all['FP'] == pytest.approx(100 * (0 + 2 / 4) / 2) and of_all['FN'] == 0


def test_the_best_is_that_of_val(tmp_path):
    rows = [
        f'{{"method": "{m}", "layer": "x", "split": "{s}", "mIoU": {v}, "threshold": {t}}}'
        for m, s, v, t in (('a', 'val', 40, 0.2), ('b', 'val', 50, 0.3), ('a', 'test', 90, 0.2))
    ]
    write_text(tmp_path / 'metrics.json', f'{{"segmentation": [{", ".join(rows)}]}}')
    assert best_key(tmp_path) == (('b', 'x'), 0.3)


def test_a_row_is_the_mean_of_the_seeds_that_have_it():
    one = {'mIoU': 40.0, 'FP': 1.0, 'FN': 2.0, 'beside': 50.0}
    lines = table([{'seeds': one, 'x': one}, {'seeds': one | {'mIoU': 50.0}}]).splitlines()
    assert lines[2] == '| seeds | 2 | 45.0 ± 7.1 | 1.0 ± 0.0 | 2.0 ± 0.0 | 50.0 ± 0.0 |'
    assert lines[3] == '| x | 1 | 40.0 | 1.0 | 2.0 | 50.0 |'


def test_the_threshold_of_seeds_is_that_of_val(tmp_path):
    extra = {'segmentation': png(array([0, 0, 3, 3]))}
    records = {k: Record(k, b'', (2,), (4, 1), extra=extra) for k in ('val', 'test')}
    likely = {'val': (0.2, 0.6, 0.8, 1), 'test': (0.1, 0.7, 1, 0.9)}
    this = Run(tmp_path, None, {name: Listed([record]) for name, record in records.items()})

    def seeds_of(name):
        return [(records[name], (np.float32([[likely[name]]]), [2]))]

    write_seeds(this, tmp_path, seeds_of)
    found = {name: read_label_map(tmp_path / f'{name}.png').tolist() for name in records}
    assert found == {'val': [[0, 0, 3, 3]], 'test': [[0, 3, 3, 3]]}

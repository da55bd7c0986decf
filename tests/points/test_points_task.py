"""The task of 3D detection in full, at its smallest: teacher, its labels, student, scores, page."""

import json
from dataclasses import replace

import numpy as np
import pytest

from wsol_jax.config import ConfigError, read_config
from wsol_jax.configs import lidar_scenes_trained
from wsol_jax.maps.columns import Store
from wsol_jax.run import run
from wsol_jax.workdir import read_json


def small(variant, **options):
    config = lidar_scenes_trained.get_config(variant)
    config.data.shapes_counts, config.data.shapes_size = (8, 4, 4), 48
    config.data.labelled = 0.5
    config.network.input_size, config.network.options = 48, {'width': 4}
    tiny = {'pillar': 4.0, 'points': 512, 'widths': (8, 8), **options}
    if 'hidden' in config.train.options:
        tiny |= {'width': 12, 'heads_count': 2, 'samples': 2, 'side': 2, 'hidden': 8}
    config.train.options = {**config.train.options, **tiny}
    config.train.epochs, config.train.batch_size, config.localize.batch_size = 1, 4, 4
    return read_config(config)


@pytest.mark.slow
def test_a_teachers_labels_reach_its_student(tmp_path):
    teacher, student = tmp_path / 'teacher', tmp_path / 'student'
    run(small('teacher'), teacher)
    files = sorted((teacher / 'maps/train/pseudo_labels/train').glob('*.json'))
    assert len(files) == 8
    boxes = Store(teacher / 'maps' / 'train').fact('boxes')
    found = json.loads(files[0].read_text())
    np.testing.assert_allclose(found['boxes'], boxes[0, : len(found['boxes'])], atol=1e-3)
    row = read_json(teacher / 'metrics.json')['detection'][-1]
    assert row['split'] == 'test' and row['frames'] == 4 and 0 <= row['mAP'] <= 100
    assert sum(r['boxes'] for r in row['by_distance']) == sum(r['boxes'] for r in row['by_class'])
    assert 'data:image/jpeg' in (teacher / 'report.html').read_text()
    run(small('student', labels=str(teacher / 'maps/train/pseudo_labels')), student)
    assert read_json(student / 'metrics.json')['detection'][-1]['by_class']
    assert not (student / 'maps/train/pseudo_labels').exists()


def test_images_must_stay_whole(tmp_path):
    config = small('teacher')
    for changed in ({'flip': True}, {'crop': 'warp'}):
        wrong = replace(config, augment=replace(config.augment, **changed))
        with pytest.raises(ConfigError, match=r"needs config.augment.crop='whole' and config.augm"):
            run(wrong, tmp_path / 'x')
    assert not (tmp_path / 'x').exists()


def test_students_need_a_folder_that_is_there(tmp_path):
    config = small('student', labels=str(tmp_path / 'none'))
    with pytest.raises(ConfigError, match=r'^config.train.options.labels must be a folder of'):
        run(config, tmp_path / 'x')

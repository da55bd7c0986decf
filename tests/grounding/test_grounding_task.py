"""Grounding as a task: what it refuses, and a run of all stages, killed, and on eight devices."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wsol_jax.config import (
    AugmentConfig,
    Config,
    ConfigError,
    DataConfig,
    LocalizeConfig,
    NetworkConfig,
    TrainConfig,
)
from wsol_jax.maps.columns import Store
from wsol_jax.run import TASKS, run
from wsol_jax.training.loop import _Run
from wsol_jax.workdir import read_json

WHOLE = AugmentConfig(crop='whole', flip=False)
ROOT = Path(__file__).parents[2]


def experiment(**changes):
    parts = {
        'task': 'grounding',
        'data': DataConfig(source='relations', shapes_size=48, shapes_counts=(20, 6, 6)),
        'augment': WHOLE,
        'network': NetworkConfig('resnet10', input_size=48, options={'width': 4}),
        'train': TrainConfig(
            method='dtmr', options={'width': 8}, epochs=2, batch_size=8, optimizer='adamw'
        ),
        'localize': LocalizeConfig(batch_size=8),
        **changes,
    }
    return Config(**parts)


@pytest.mark.parametrize(
    'wrong', [AugmentConfig(), AugmentConfig(crop='whole'), AugmentConfig(flip=False)]
)
def test_only_whole_images_are_trained_on(wrong):
    TASKS['grounding'].check(experiment())
    with pytest.raises(ConfigError, match=r"crop must be 'whole' and .*flip False") as caught:
        TASKS['grounding'].check(experiment(augment=wrong))
    assert '\n' not in str(caught.value)


def test_another_method_is_refused():
    TASKS['grounding'].method(experiment())
    with pytest.raises(ConfigError, match=r"method must be 'dtmr' .*, got 'has'"):
        TASKS['grounding'].method(experiment(train=TrainConfig(method='has')))


def results_of(workdir):
    """{split: the columns}, and what metrics.json tells of the splits."""
    stores = {name: Store(workdir / 'maps' / name) for name in ('val', 'test')}
    columns = {n: {c: store.fact(c) for c in store.names} for n, store in stores.items()}
    return columns, read_json(workdir / 'metrics.json')['grounding']


@pytest.mark.slow
def test_a_run_that_is_stopped_ends_as_if_it_was_not(tmp_path, monkeypatch):
    run(experiment(), tmp_path / 'whole')
    columns, rows = results_of(tmp_path / 'whole')
    for name, row in zip(('val', 'test'), rows, strict=True):
        said = columns[name]['subject'] >= 0
        assert row['split'] == name and row['sentences'] == said.sum() and row['Best'] == 100
        best = np.argmax(columns[name]['scores'], axis=-1)
        known = columns[name]['scores'].max(axis=-1) > -1
        np.testing.assert_array_equal(best[said & known], columns[name]['subject'][said & known])
    assert 'the ' in (tmp_path / 'whole' / 'report.html').read_text()

    step, calls = _Run._one_step, []

    def stopped(self, *given):
        step(self, *given)
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(_Run, '_one_step', stopped)
    with pytest.raises(KeyboardInterrupt):
        run(experiment(), tmp_path / 'parts')
    run(experiment(), tmp_path / 'parts')
    again, rows_again = results_of(tmp_path / 'parts')
    assert rows_again == rows
    for name, of_split in columns.items():
        for column, values in of_split.items():
            np.testing.assert_array_equal(again[name][column], values)


@pytest.mark.slow
def test_eight_devices_find_the_same(tmp_path):
    run(experiment(), tmp_path / 'one')
    environment = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=8'}
    code = (
        f'import sys; sys.path[:0] = [{str(ROOT / "tests")!r}, {str(Path(__file__).parent)!r}]\n'
        'from pathlib import Path; from test_grounding_task import experiment, run\n'
        f'run(experiment(), Path({str(tmp_path / "eight")!r}))'
    )
    subprocess.run([sys.executable, '-c', code], env=environment, cwd=ROOT, check=True)
    (one, rows), (eight, others) = (results_of(tmp_path / n) for n in ('one', 'eight'))
    assert [row['sentences'] for row in rows] == [row['sentences'] for row in others]
    for name, columns in one.items():
        np.testing.assert_allclose(eight[name]['scores'], columns['scores'], atol=2e-3)

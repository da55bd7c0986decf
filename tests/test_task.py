"""A task that is not localization goes through training, resume, evaluation and the page."""

import json
from dataclasses import replace

import numpy as np
import pytest
from toy_task import WIDTHS, WidthRegression, width_of

from wsol_jax.config import read_config
from wsol_jax.data import DataError, Shapes, decode_image, training_batches
from wsol_jax.maps.columns import Store
from wsol_jax.run import load_classifier, run
from wsol_jax.training.checkpoints import Checkpoints
from wsol_jax.workdir import read_csv

CONFIG = read_config(
    {
        'data': {'shapes_size': 32, 'shapes_counts': (22, 5, 7)},
        'network': {'name': 'resnet10', 'options': {'width': 8}, 'input_size': 32},
        'train': {'epochs': 2, 'batch_size': 8, 'checkpoint_every': 2, 'log_every': 1},
        'localize': {'batch_size': 4},
    }
)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('task') / 'W'
    run(CONFIG, workdir, WIDTHS)
    return workdir


def rows_of(workdir, split):
    return [r for r in read_csv(workdir / 'progress.csv') if (r['stage'], r['split']) == split]


def test_the_best_epoch_is_the_one_of_the_least_error(finished):
    errors = [float(row['error']) for row in rows_of(finished, ('train', 'val'))]
    assert len(errors) == 2 and not rows_of(finished, ('train', 'val'))[0]['accuracy']
    with Checkpoints(finished, read_only=True) as checkpoints:
        assert checkpoints.best_value('error') == pytest.approx(min(errors), rel=1e-5)


@pytest.mark.slow
def test_scores_are_those_of_what_is_stored(finished):
    stored = Store(finished / 'maps/test').fact('width')
    source = Shapes('test', 7, size=32)
    true = np.array([width_of(source[i])['width'] for i in range(7)])
    metrics = json.loads((finished / 'metrics.json').read_text())
    assert metrics['error']['test'] == pytest.approx(np.abs(stored - true).mean(), rel=1e-6)
    assert (metrics['split'], metrics['skipped']) == ('test', {'val': 0, 'test': 0})
    network = load_classifier(CONFIG, finished, WIDTHS.method(CONFIG))
    image = decode_image(source[4])[None]
    np.testing.assert_allclose(network(image)[0][0, 0], stored[4], rtol=1e-4)


def test_the_page_has_the_scores(finished):
    text = (finished / 'report.html').read_text()
    error = json.loads((finished / 'metrics.json').read_text())['error']['test']
    assert '<h1>Widths</h1>' in text and f'<td class="number">{error:.4g}</td>' in text


@pytest.mark.slow
def test_a_stopped_run_ends_as_if_it_had_not_been(finished, tmp_path, monkeypatch):
    saved = Checkpoints.save

    def save(self, state, *rest):
        saved(self, state, *rest)
        if int(state.step) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, 'save', save)
        run(CONFIG, tmp_path / 'W', WIDTHS)
    run(CONFIG, tmp_path / 'W', WIDTHS)
    for name in ('metrics.json', 'report.html'):
        assert (tmp_path / 'W' / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.slow
def test_a_record_that_is_wrong_costs_no_step(finished, tmp_path):
    def targets(record):
        if record.image_id == late:
            raise DataError(f'{late}: no width')
        return width_of(record)

    class Picky(WidthRegression):
        def targets(self, source, required):
            return targets

    batches = training_batches(Shapes('train', 22, size=32), 32, 8, CONFIG.seed, range(3))
    late = list(batches)[2].image_ids[3]
    config = replace(CONFIG, train=replace(CONFIG.train, checkpoint_every=1000))
    with pytest.raises(DataError, match='no width'):
        run(config, tmp_path / 'W', replace(WIDTHS, method=lambda config: Picky()))
    with Checkpoints(tmp_path / 'W', read_only=True) as checkpoints:
        assert checkpoints.step() == 1
    late = ''
    run(config, tmp_path / 'W', replace(WIDTHS, method=lambda config: Picky()))
    metrics = (tmp_path / 'W/metrics.json').read_bytes()
    assert metrics == (finished / 'metrics.json').read_bytes()

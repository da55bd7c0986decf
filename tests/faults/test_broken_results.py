"""metrics.json and curves.csv that somebody damaged, and names that a browser would run."""

import copy
import json
import random

import pytest

from wsol_jax.config import ConfigError
from wsol_jax.evaluation.curves import CURVES
from wsol_jax.report.results import read_curves, read_metrics
from wsol_jax.report.table import summary
from wsol_jax.workdir import write_csv

pytestmark = pytest.mark.faults

ROW = {
    'method': 'dgl',
    'layer': 'stage1',
    'split': 'test',
    'images': 12,
    'MaxBoxAcc': 25.0,
    'MaxBoxAcc_threshold': 0.1,
    'GTKnownLoc': 20,
    'intervals': {'GTKnownLoc': [10.0, 30.5]},
    'protocols': {'bas': {'GTKnownLoc': 12.5}},
    'chosen': True,
    'blank_maps': 1,
    'threshold': 0.1,
    'threshold_from': 'val',
}
METRICS = {
    'split': 'test',
    'class': 'ground_truth',
    'classification': {'top1': 18.1, 'top5': 80.0},
    'skipped': {'val': 0, 'test': 1},
    'localization': [ROW, ROW | {'layer': 'stage2', 'chosen': False}],
    'by_class': [{'method': 'dgl', 'layer': 'stage1', 'images': 3, 'name': 'a', 'GTKnownLoc': 1}],
    'by_size': [{'method': 'dgl', 'layer': 'stage1', 'images': 3, 'size': '10-30 %'}],
}


def read(workdir, metrics):
    (workdir / 'metrics.json').write_text(json.dumps(metrics))
    return read_metrics(workdir, 'test')


def refused(workdir, metrics):
    with pytest.raises(ConfigError) as caught:
        read(workdir, metrics)
    text = str(caught.value)
    assert text.startswith(f'{workdir}/metrics.json: ') and '\n' not in text
    assert text.endswith('; delete it and run again')
    return text


def test_whole_metrics_are_read(tmp_path):
    assert read(tmp_path, METRICS) == METRICS and 'dgl' in summary(METRICS)


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        ({'localization': {}}, 'localization is no list of values'),
        ({'localization': [3]}, 'localization[0] is no group of values'),
        ({'localization': [{}]}, 'localization[0].method is missing'),
        ({'localization': [ROW | {'GTKnownLoc': 'x'}]}, "localization[0].GTKnownLoc is 'x', not a"),
        ({'localization': [ROW | {'chosen': 1}]}, 'localization[0].chosen is 1, not true or false'),
        ({'localization': [ROW | {'images': True}]}, 'localization[0].images is True, not a whole'),
        (
            {'localization': [ROW | {'intervals': {'PxAP': [1]}}]},
            'localization[0].intervals.PxAP is no list of 2',
        ),
        ({'classification': {'top1': None}}, 'classification.top1 is None, not a number'),
        ({'split': '../../elsewhere'}, "split is '../../elsewhere', not 'test'"),
        ({'by_size': [{}]}, 'by_size[0].method is missing'),
    ],
)
def test_what_is_wrong_is_named(tmp_path, changed, message):
    assert message in refused(tmp_path, METRICS | changed)


def test_empty_metrics(tmp_path):
    assert 'split is missing' in refused(tmp_path, {})


def places(value, path=()):
    """Paths of all values inside."""
    yield path
    inside = enumerate(value) if isinstance(value, list) else getattr(value, 'items', tuple)()
    for key, child in inside:
        yield from places(child, (*path, key))


def mutated(rng):
    """METRICS with one or two values replaced or left out."""
    metrics = copy.deepcopy(METRICS)
    for _ in range(rng.randint(1, 2)):
        *groups, key = rng.choice([path for path in places(metrics) if path])
        node = metrics
        for group in groups:
            node = node[group]
        if rng.random() < 0.3:
            del node[key]
        else:
            node[key] = rng.choice([None, {}, [], 'x', -1, 1e300, True, [[]], {'a': {}}, METRICS])
    return metrics


def test_mutated_metrics_are_shown_or_refused(tmp_path):
    rng, read_on = random.Random(2), 0
    for _ in range(400):
        metrics = mutated(rng)
        try:
            found = read(tmp_path, metrics)
        except ConfigError as error:
            assert '\n' not in str(error)
            continue
        assert isinstance(summary(found), str)
        read_on += 1
    assert 0 < read_on < 200


HEADER = ('split', 'method', 'layer', 'threshold', *CURVES)


def test_damaged_curves(tmp_path):
    good = ('test', 'dgl', 'stage1', 0.5, *(1.0 for _ in CURVES))
    write_csv(tmp_path / 'curves.csv', HEADER, [good])
    assert read_curves(tmp_path)[0]['threshold'] == '0.5'
    for place, value in ((3, 'half'), (4, 'nan'), (5, '1e999'), (6, '\0')):
        bad = [*good[:place], value, *good[place + 1 :]]
        write_csv(tmp_path / 'curves.csv', HEADER, [good, bad])
        with pytest.raises(ConfigError, match=f'row 3: {HEADER[place]} is .*; delete metrics.json'):
            read_curves(tmp_path)
    write_csv(tmp_path / 'curves.csv', HEADER[:-1], [good[:-1]])
    with pytest.raises(ConfigError, match="no column 'PooledIoU'"):
        read_curves(tmp_path)

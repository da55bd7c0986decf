"""The frame of the stage evaluate with a task whose result of an image is one number."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import Listed

from wsol_jax.config import EvaluateConfig
from wsol_jax.data import Record
from wsol_jax.evaluation.frame import _of_all, evaluate_splits
from wsol_jax.evaluation.split import SplitMaps
from wsol_jax.evaluation.table import Table
from wsol_jax.maps.columns import DONE, SKIPPED
from wsol_jax.maps.store import MapStore, by_column

KEY = ('dgl', 'a')


def peaks(part, *, setting, chosen):
    """The largest value of each map, on all but the split to choose on from what was chosen."""
    return part.maps[KEY].max(axis=(1, 2, 3)) - (0 if chosen is None else chosen)


def write_store(workdir, split, values):
    count = len(values)
    maps = {KEY: np.float32(values).reshape(count, 1, 1, 1) * np.ones((1, 1, 3, 3), np.float32)}
    folder = workdir / 'maps' / split
    store = MapStore.create(folder, count, 'top1', {KEY: (1, 3, 3)}, {KEY: False}, 1)
    zeros = np.zeros((count, 1), np.int32)
    facts = {'classes': zeros, 'class_scores': np.float32(zeros), 'top': zeros}
    status = np.where(np.isnan(values), SKIPPED, DONE)
    ids = [f'{split}{i}' for i in range(count)]
    store.write(np.arange(count), ids, status, facts | by_column(maps))
    source = Listed([Record(i, b'', (0,), (3, 3)) for i in ids])
    return SplitMaps(split, source, store)


class Logits:
    """Of a store nothing but those of its images, of two classes."""

    names = ('logits',)
    readable = np.arange(3)

    def __init__(self, logits):
        self.logits = np.array(logits)

    def fact(self, name):
        return {'logits': self.logits, 'top': np.argsort(-self.logits, axis=1)}[name]


@pytest.mark.parametrize(
    ('of_second', 'expected'),
    [
        ((1,), {'top1': 100 / 3, 'top5': 100, 'mAP': (50 + 100) / 2}),
        # The second comes before the last one that has class 1.
        ((), {'mAP': (50 + (100 + 200 / 3) / 2) / 2}),
    ],
)
def test_an_image_without_a_label_has_none_of_the_classes(of_second, expected):
    labels = [(1, 0), of_second, (1,)]
    source = Listed([Record(f'{i}', b'', own, (3, 3)) for i, own in enumerate(labels)], 'ab')
    logits = [[2, 3], [4, 1], [1, 0]]
    split = SimpleNamespace(store=Logits(logits), source=source, records=list(source))
    split.readable, split.top = Logits.readable, np.argsort(-np.array(logits), axis=1)
    split.average_precision = SplitMaps.average_precision.func(split)
    assert SplitMaps.classification.fget(split) == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_a_task_of_one_number_an_image(tmp_path, processes):
    # More images than a part has; val is scored first, though it stands last.
    numbers = {'test': np.arange(100.0), 'val': np.array([3.0, np.nan, 5.0])}
    splits = [write_store(tmp_path, split, values) for split, values in numbers.items()]
    setting = EvaluateConfig(choose_on='val', processes=processes)

    def rows(splits, scores, chosen):
        return {'rows': {s.name: scores[s.name].tolist() for s in splits}, 'chosen': chosen}

    metrics = evaluate_splits(
        setting,
        splits,
        tmp_path,
        score=peaks,
        join=lambda parts: np.concatenate(list(parts)),
        choose=lambda found: float(found.max()),
        summarize=rows,
    )
    assert metrics['chosen'] == 5
    assert metrics['rows'] == {'test': (np.arange(100.0) - 5).tolist(), 'val': [3, 5]}
    assert metrics['skipped'] == {'test': 0, 'val': 1}
    assert json.loads((tmp_path / 'metrics.json').read_text()) == metrics


def test_nothing_is_chosen_without_a_split_to_choose_on(tmp_path):
    seen = []
    evaluate_splits(
        EvaluateConfig(choose_on='val'),
        [write_store(tmp_path, 'test', np.array([1.0]))],
        tmp_path,
        score=lambda part, setting, chosen: chosen,
        join=list,
        choose=lambda found: seen.append(found) or 'nothing',
        summarize=lambda splits, scores, chosen: {'of': scores['test'], 'chosen': chosen},
    )
    assert seen == [None]
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert (metrics['of'], metrics['chosen']) == (['nothing'], 'nothing')


def test_scores_come_back_from_the_files_of_several_processes(tmp_path):
    table = Table.empty(2, 1, np.array([0.2, 0.4]), bins=3)
    own = {('dgl', 'a'): {'table': table, 'images': 3, 'mean': 0.5}}
    (found,) = _of_all(own, tmp_path, 'val')
    found = found['dgl', 'a']
    assert (found['images'], found['mean']) == (3, 0.5) and type(found['images']) is int
    for name, expected in vars(table).items():
        got = getattr(found['table'], name)
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)

"""Predicted label maps: what a network with heads gives, against its logits resized by hand."""

import json
import tracemalloc
from dataclasses import replace

import cv2
import jax
import numpy as np
import pytest
from flax import nnx

from wsol_jax.config import (
    Config,
    DataConfig,
    LocalizeConfig,
    NetworkConfig,
    ReportConfig,
    TrainConfig,
)
from wsol_jax.data import evaluation_batches
from wsol_jax.data.scenes import Scenes
from wsol_jax.models import as_network, build
from wsol_jax.run import run
from wsol_jax.segmentation import confusion, metrics_of, read_label_map, true_label_map
from wsol_jax.segmentation.predictions import predicted_label_map, segment_split
from wsol_jax.segmentation.task import SEGMENTATION, evaluate_predicted
from wsol_jax.training.methods import add_heads
from wsol_jax.training.methods.segmenter import Segmenter

CONFIG = Config(
    task='segmentation',
    network=NetworkConfig('resnet10', input_size=32),
    localize=LocalizeConfig(splits=('test',), flip=True, batch_size=2),
    report=ReportConfig(gallery=2),
)


def resized(logits, size):
    return np.stack([cv2.resize(m, size, interpolation=cv2.INTER_LINEAR) for m in logits])


def test_probabilities_as_the_logits_they_are_of():
    logits = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    found = predicted_label_map(np.asarray(jax.nn.softmax(logits, axis=0)), (20, 13))
    np.testing.assert_array_equal(found, resized(logits, (20, 13)).argmax(0))
    assert found.shape == (13, 20) and found.dtype == np.uint8


def test_of_equal_classes_the_first_and_no_more_memory_for_more_classes():
    rng = np.random.default_rng(1)
    probabilities = rng.choice(np.float32([0, 0.25, 0.5]), (21, 6, 7))  # many are equal
    logs = np.log(np.maximum(probabilities, 1e-30))
    peaks = []
    for count in (3, 21):
        tracemalloc.start()
        found = predicted_label_map(probabilities[:count], (210, 190))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        np.testing.assert_array_equal(found, np.argmax(resized(logs[:count], (210, 190)), axis=0))
    assert peaks[1] < 1.5 * peaks[0]


@pytest.fixture(scope='module')
def segmented(tmp_path_factory):
    module = build('resnet10', 6, nnx.Rngs(0), width=4, output_stride=8)
    add_heads('resnet10', module, Segmenter(head='v2', rates=(1, 2)), 0)
    for branch in module.heads.aspp.branches:
        branch.kernel[...] *= 10  # they begin near 0: no class would win clearly
    network = as_network('resnet10', module, input_size=32)
    source, workdir = Scenes('test', 3, size=40), tmp_path_factory.mktemp('predicted')
    store = segment_split(CONFIG, network, source, 'test', workdir)
    return network, source, workdir, store


@pytest.mark.slow
def test_what_is_written_is_the_mean_of_both_views(segmented):
    network, source, workdir, store = segmented
    heads = network.module().heads
    (batch,) = evaluation_batches(source, 32, 3)
    for i, image in enumerate(batch.images):
        views = []
        for flipped in (False, True):
            _, endpoints = network((image[:, ::-1] if flipped else image)[None])
            probabilities = np.asarray(jax.nn.softmax(heads.segmentation(endpoints)))[0]
            views.append(probabilities[:, ::-1] if flipped else probabilities)
        expected = np.log(np.mean(views, axis=0)).transpose(2, 0, 1)
        file = workdir / f'maps/test/label_maps/test/0000{i}.png.png'
        found = read_label_map(file)
        same = found == resized(expected, (40, 40)).argmax(0)
        assert same.mean() > 0.995  # all but where two are equal, to rounding
        classes = np.flatnonzero(store.fact('classes')[i])
        np.testing.assert_array_equal(classes, np.unique(found))
    assert len(np.unique(found)) > 1


def test_scores_and_page_look_at_no_label(segmented):
    _, source, workdir, _ = segmented
    unlabelled = replace(source[0], labels=())
    source._drawn[0] = unlabelled
    metrics = evaluate_predicted(CONFIG, {'test': source}, workdir)
    files = [workdir / f'maps/test/label_maps/test/0000{i}.png.png' for i in range(3)]
    pairs = [(read_label_map(f), true_label_map(source[i])) for i, f in enumerate(files)]
    expected = metrics_of(sum(confusion(*p, 7) for p in pairs), ['background', *source.class_names])
    (row,) = metrics['segmentation']
    assert {name: row[name] for name in expected} == expected
    facts = {'method': 'segmenter', 'layer': 'head', 'split': 'test', 'images': 3}
    assert facts.items() <= row.items() and 'threshold' not in row
    text = SEGMENTATION.report(CONFIG, source, workdir)
    assert f'{row["mIoU"]:.1f}' in text and 'PeakmIoU' not in text
    page = (workdir / 'report.html').read_text()
    assert 'test/00000.png' in page and 'test/00002.png' in page


@pytest.mark.slow
def test_a_segmenter_in_full(tmp_path):
    train = TrainConfig(
        epochs=2, batch_size=8, method='segmenter', options={'labels': 'truth', 'head': 'v2'}
    )
    config = replace(
        CONFIG,
        data=DataConfig(source='scenes', shapes_size=32, shapes_counts=(16, 6, 4)),
        network=NetworkConfig('resnet10', options={'width': 4, 'output_stride': 8}, input_size=32),
        train=train,
        localize=LocalizeConfig(splits=('val', 'test')),
    )
    run(config, tmp_path)
    rows = json.loads((tmp_path / 'metrics.json').read_text())['segmentation']
    assert [(row['split'], row['images']) for row in rows] == [('val', 6), ('test', 4)]
    # Scores of other settings are made anew of the same label maps.
    run(replace(config, evaluate=replace(config.evaluate, size=100)), tmp_path)
    assert json.loads((tmp_path / 'metrics.json').read_text())['segmentation'] == rows

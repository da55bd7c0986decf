"""Label maps that are completed in training: the weighted loss against a loop."""

from dataclasses import replace

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Listed
from test_segmenter import LEARNING, rectangles

from wsol_jax.config import ConfigError
from wsol_jax.data import Record, Scenes, evaluation_batches, training_batches
from wsol_jax.data.augment import AugmentConfig
from wsol_jax.data.label_maps import true_label_map
from wsol_jax.models.heads import Outputs
from wsol_jax.progress import read_progress
from wsol_jax.segmentation.label_maps import write_label_map
from wsol_jax.training.loop import train
from wsol_jax.training.method import Shard, Update
from wsol_jax.training.methods import mars as module
from wsol_jax.training.methods.mars import MARS
from wsol_jax.training.trained import trained_network

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, 3, 4, 5, 4))  # of background and three classes
LABEL_MAP = RNG.choice([0, 1, 2, 3, 254, 255], (3, 4, 5), p=[0.2, 0.1, 0.1, 0.1, 0.4, 0.1])
LABEL_MAP[1] = np.where(LABEL_MAP[1] == 254, 0, LABEL_MAP[1])
PADDING = RNG.choice([0, 255], LABEL_MAP.shape)
LABELS = np.array([[0, 2], [1, -1], [-1, -1]], np.int32)


def outputs(logits):
    return Outputs(None, {}, {'segmentation': jnp.asarray(logits, jnp.float32)})


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def loss_of(method, images=None, valid=(True, True, True)):
    targets = {'label_map': jnp.asarray(LABEL_MAP, jnp.uint8), 'labels': jnp.asarray(LABELS)}
    targets['padding_label_map'] = jnp.asarray(PADDING, jnp.uint8)
    batch = Shard(images, targets, jnp.asarray(valid), None)
    update = Update(0, lambda sums: sums, lambda: outputs(TEACHER))
    loss, values = jax.jit(lambda: method.loss(outputs(STUDENT), batch, update))()
    return float(loss), {name: np.asarray(value) for name, value in values.items()}


def expected(filled, valid=(True, True, True)):
    """Loss, accuracies and certainties, with these labels [3,4,5] of the teacher."""
    losses, right, certain = [], [[], [], []], [[0], [0], [0]]
    for b, i, j in np.ndindex(LABEL_MAP.shape):
        label, weight = LABEL_MAP[b, i, j], 1.0
        if label == 255:
            continue
        if label == 254:
            of_image = [k for k in LABELS[b] if k >= 0]
            weight = max([softmax(TEACHER[b, i, j])[1 + k] for k in of_image], default=0.0)
            label = filled[b, i, j]
            certain[b].append(weight)
        else:
            right[b].append(np.argmax(STUDENT[b, i, j]) == label)
        if valid[b]:
            losses.append(-weight * np.log(softmax(STUDENT[b, i, j])[label]))
    means = [np.sum(c) / max(len(c) - 1, 1) for c in certain]
    return np.mean(losses), [100 * np.mean(r) for r in right], means


@pytest.mark.parametrize('valid', [(True, True, True), (True, False, True)])
def test_the_loss_against_a_loop(valid):
    loss, values = loss_of(MARS(), valid=valid)
    mean, accuracy, certainty = expected(TEACHER.argmax(-1), valid)
    assert loss == pytest.approx(mean, rel=1e-5)
    np.testing.assert_allclose(values['pixel_accuracy'], accuracy, rtol=1e-5)
    np.testing.assert_allclose(values['certainty'], certainty, rtol=1e-5)
    assert certainty[0] > 0 and certainty[1] == certainty[2] == 0


def test_the_crf_refines_what_is_filled_in_but_no_weight(monkeypatch):
    images = RNG.integers(0, 256, (3, 4, 5, 3), np.uint8)

    def reversed_classes(given, probabilities, valid):
        np.testing.assert_array_equal(given, images)
        return jnp.where(valid[..., None], probabilities[..., ::-1], probabilities)

    monkeypatch.setattr(module, 'dense_crf', reversed_classes)
    loss, values = loss_of(MARS(crf=True), images)
    best = TEACHER.argmax(-1)
    mean, _, certainty = expected(np.where(PADDING == 0, 3 - best, best))
    assert loss == pytest.approx(mean, rel=1e-5)
    np.testing.assert_allclose(values['certainty'], certainty, rtol=1e-5)


def test_without_missing_labels_it_is_the_segmenter(monkeypatch):
    monkeypatch.setitem(globals(), 'LABEL_MAP', np.where(LABEL_MAP == 254, 2, LABEL_MAP))
    assert loss_of(MARS())[0] == pytest.approx(loss_of(module.Segmenter())[0], rel=1e-6)


def test_label_maps_have_missing_labels(tmp_path):
    source = Scenes('train', 1, size=40)
    path = tmp_path / f'{source[0].image_id}.png'
    path.parent.mkdir()
    label_map = true_label_map(source[0])
    label_map[:5] = 254
    write_label_map(path, label_map)
    found = MARS(labels=str(tmp_path)).targets(source, True)(source[0])
    np.testing.assert_array_equal(found['label_map'], label_map)


def test_the_crf_is_told_what_crops_pad(tmp_path):
    """A white photo in crops that are larger: padding is of another colour."""
    write_label_map(tmp_path / 'white.png', np.full((20, 32), 254, np.uint8))
    png = cv2.imencode('.png', np.full((20, 32, 3), 255, np.uint8))[1].tobytes()
    source = Listed([Record('white', png, (0,), (32, 20))], 'ab')
    targets = MARS(labels=str(tmp_path), crf=True).targets(source, True)
    setting = AugmentConfig(crop='scale', scale=(0.5, 1.0))
    for batch in training_batches(source, 64, 1, 0, range(4), setting=setting, targets=targets):
        padded = (batch.images != 255).any(-1)
        assert 0 < padded.sum() < 64 * 64
        np.testing.assert_array_equal(batch.targets['padding_label_map'] == 255, padded)
    whole = next(evaluation_batches(source, 64, 1, targets=targets))
    assert not whole.targets['padding_label_map'].any()


def test_wrong_settings_are_one_line():
    batch = Shard(None, {}, None, None)
    with pytest.raises(ConfigError, match=r'config.train.ema must be above 0 for mars'):
        MARS().loss(outputs(STUDENT), batch, Update(0, lambda sums: sums))
    with pytest.raises(ConfigError, match=r"options.crf needs resolution='full', got 'head'"):
        MARS(crf=True, resolution='head').num_logits(Scenes('train', 1))
    with pytest.raises(ConfigError, match=r'options.labels must be a folder of label maps'):
        MARS().targets(Scenes('train', 1), True)
    many = Listed([], map(str, range(254)))
    assert module.Segmenter().num_logits(many) == 254
    with pytest.raises(ConfigError, match='1 to 253 classes beside the background, found 254'):
        MARS().num_logits(many)


@pytest.mark.slow
def test_the_crf_is_part_of_the_compiled_step(tmp_path):
    """Of rectangles without labels on their lower rows; what was trained opens again."""
    sources = [Listed(rectangles(*some), 'ab') for some in ((16, 0), (8, 1))]
    for record in (record for source in sources for record in source):
        label_map = true_label_map(record)
        label_map[16:][label_map[16:] > 0] = 254
        write_label_map(tmp_path / f'{record.image_id}.png', label_map)
    options = {'labels': str(tmp_path), 'rates': (1, 2), 'width': 16, 'crf': True}
    setting = replace(LEARNING.train, method='mars', options=options, ema=0.8, epochs=3)
    config = replace(LEARNING, train=setting)
    train(config, *sources, tmp_path / 'run')
    rows = [row for row in read_progress(tmp_path / 'run') if row['split'] == 'val']
    assert float(rows[-1]['loss']) < float(rows[0]['loss'])
    assert all(0 < float(row['certainty']) < 1 for row in rows)
    network = trained_network(config, tmp_path / 'run')
    assert network.own_map.name == 'segmenter'

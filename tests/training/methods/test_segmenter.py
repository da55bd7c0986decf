"""The loss of pixels against a loop; label maps of files, and what is told of wrong ones."""

import io
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Listed
from flax import nnx
from PIL import Image

from wsol_jax.config import AugmentConfig, Config, ConfigError, NetworkConfig, TrainConfig
from wsol_jax.data import DataError, Record, Scenes, evaluation_batches
from wsol_jax.data.label_maps import read_label_map, resized_label_map, true_label_map
from wsol_jax.localization.localize import localize
from wsol_jax.models.heads import Outputs
from wsol_jax.progress import read_progress
from wsol_jax.segmentation.label_maps import write_label_map
from wsol_jax.training.loop import train
from wsol_jax.training.method import Shard, Update
from wsol_jax.training.methods import make_method
from wsol_jax.training.methods.segmenter import LabelMaps, Segmenter, low_layer
from wsol_jax.training.trained import trained_network

ALONE = Update(0, lambda sums: sums)
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 4, 5, 3)).astype(np.float32)
LABEL_MAP = RNG.choice([0, 1, 2, 255], (3, 4, 5)).astype(np.uint8)
LABEL_MAP[1] = 255
VALID = np.array([True, True, False])


def loss_of(logits, label_map, valid, **options):
    outputs = Outputs(None, {}, {'segmentation': jnp.asarray(logits)})
    batch = Shard(None, {'label_map': jnp.asarray(label_map)}, jnp.asarray(valid), None)
    loss, values = jax.jit(lambda: Segmenter(**options).loss(outputs, batch, ALONE))()
    return float(loss), {name: value.tolist() for name, value in values.items()}


def test_the_loss_is_a_mean_over_known_pixels_of_the_batch():
    losses, right = [], [{}, {}, {}]
    for b, i, j in np.ndindex(LABEL_MAP.shape):
        label, logits = LABEL_MAP[b, i, j], LOGITS[b, i, j].astype(float)
        if label == 255:
            continue
        right[b].setdefault(int(label), []).append(np.argmax(logits) == label)
        if VALID[b]:
            losses.append(np.log(np.exp(logits).sum()) - logits[label])
    loss, values = loss_of(LOGITS, LABEL_MAP, VALID)
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)
    pixels = [100 * np.mean(np.concatenate(list(r.values()) or [[0]])) for r in right]
    classes = [100 * np.mean([np.mean(some) for some in r.values()] or 0) for r in right]
    assert values == {
        'pixel_accuracy': pytest.approx(pixels, rel=1e-5),
        'class_accuracy': pytest.approx(classes, rel=1e-5),
    }
    assert pixels[1] == classes[1] == 0 and len(right[0]) == 3
    assert loss_of(LOGITS, LABEL_MAP, [False] * 3)[0] == 0


def test_the_loss_is_computed_at_either_resolution():
    """Twice as fine a label map: its lower right pixels, or logits at the middle of each place."""
    fine = np.full((3, 8, 10), 255, np.uint8)
    fine[:, 1::2, 1::2] = LABEL_MAP
    (loss, values), same = (
        loss_of(LOGITS, label_map, VALID, resolution=resolution)
        for label_map, resolution in ((fine, 'head'), (LABEL_MAP, 'full'))
    )
    assert loss == pytest.approx(same[0], rel=1e-5) and values == same[1]
    fine[:, 1::2, 1::2] = 255
    fine[:, 3, 4] = 1
    # Its centre lies at a quarter of the way between places 1 and 2, both ways.
    rows = 0.75 * LOGITS[:, 1] + 0.25 * LOGITS[:, 2]
    logits = (0.75 * rows[:, 2] + 0.25 * rows[:, 1]).astype(float)
    expected = np.log(np.exp(logits).sum(-1)) - logits[:, 1]
    assert loss_of(LOGITS, fine, VALID)[0] == pytest.approx(expected[:2].mean(), rel=1e-5)


@pytest.fixture(scope='module')
def scenes():
    return Scenes('train', 3, size=40)


@pytest.fixture
def folder(tmp_path, scenes):
    for record in scenes:
        path = tmp_path / f'{record.image_id}.png'
        path.parent.mkdir(exist_ok=True)
        write_label_map(path, true_label_map(record))
    return tmp_path


def test_label_maps_of_a_folder_and_of_the_data_set(folder, scenes):
    found = [
        next(
            evaluation_batches(
                scenes, 40, 3, targets=Segmenter(labels=labels).targets(scenes, True)
            )
        )
        for labels in (str(folder), 'truth')
    ]
    for name in ('label_map', 'labels'):
        np.testing.assert_array_equal(*(batch.targets[name] for batch in found))
    assert len(np.unique(found[0].targets['label_map'])) > 2
    assert found[0].targets['labels'].shape == (3, scenes.most_labels)


def colours(path):
    Image.new('RGB', (40, 40)).save(path)


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda path: path.unlink(), r'no such file'),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), r''),
        (lambda path: write_label_map(path, np.zeros((40, 39), np.uint8)), r'is 39x40, .* 40x40'),
        (lambda path: write_label_map(path, np.full((40, 40), 7, np.uint8)), r'index 7; .* 0..6'),
        (lambda path: write_label_map(path, np.full((40, 40), 254, np.uint8)), r'index 254; '),
        (colours, r'mode RGB; a label map is'),
    ],
)
def test_a_wrong_label_map_is_named(folder, scenes, spoil, message):
    path = folder / f'{scenes[1].image_id}.png'
    spoil(path)
    with pytest.raises(DataError, match=f'^label map {path}: .*{message}') as caught:
        list(evaluation_batches(scenes, 40, 3, targets=LabelMaps(str(folder), 6, 3)))
    assert '\n' not in str(caught.value)


def test_other_labels_are_allowed_where_they_mean_something(folder, scenes):
    path = folder / f'{scenes[1].image_id}.png'
    write_label_map(path, np.full((40, 40), 254, np.uint8))
    found = LabelMaps(str(folder), 6, 3, also=254)(scenes[1])['label_map']
    np.testing.assert_array_equal(found, read_label_map(path))


@pytest.mark.parametrize(
    ('labels', 'size'),
    [('truth', None), ('folder', None), ('no seed', None), ('no seed', (40, 40))],
)
def test_a_broken_image_is_passed_over(folder, scenes, labels, size):
    if labels == 'no seed':  # those that made the others could not read the image, either
        (folder / f'{scenes[1].image_id}.png').unlink()
    records = Listed(scenes, 'abcdef')
    records.records[1] = replace(scenes[1], image=b'no image', size=size)
    targets = LabelMaps(labels if labels == 'truth' else str(folder), 6, 3)
    (batch,) = evaluation_batches(records, 40, 3, targets=targets)
    assert batch.valid.tolist() == [True, False, True] and list(batch.errors) == [1]
    assert (batch.targets['label_map'][1] == 255).all()


def test_wrong_settings_are_one_line(scenes, resnet, toy):
    for labels in ('', '/no/such/folder'):
        with pytest.raises(ConfigError, match=r"labels must be a folder of .* 'truth', got '"):
            Segmenter(labels=labels).targets(scenes, True)
    with pytest.raises(ConfigError, match=r'config.train.label_smoothing: the loss of pixels has'):
        Segmenter(label_smoothing=0.1).num_logits(scenes)
    with pytest.raises(ConfigError, match=r'have 1 to 254 classes beside the background, found 0'):
        Segmenter().num_logits(Listed([], ()))
    assert Segmenter().num_logits(scenes) == 6 and Segmenter().num_logits(Listed([], 'a')) == 1
    with pytest.raises(ConfigError, match=r"unknown endpoint of resnet10 in config.*low 'stage0'"):
        Segmenter(low='stage0').heads(resnet, nnx.Rngs(0))
    with pytest.raises(ConfigError, match=r"no main endpoint of toy has a quarter of its input's"):
        Segmenter().heads(toy, nnx.Rngs(0))
    with pytest.raises(ConfigError, match=r"unknown value of config.train.options.head 'v3'"):
        make_method(TrainConfig(method='segmenter', options={'head': 'v3'}))


def test_the_decoder_reads_the_last_layer_at_a_quarter(resnet):
    assert low_layer(resnet, '') == 'stage1' and low_layer(resnet, 'stage2') == 'stage2'


def rectangles(count, seed):
    """Red and blue rectangles of classes 0 and 1 on grey, 32 x 32 pixels."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        (top, left), label = rng.integers(0, 16, 2), number % 2
        label_map = np.zeros((32, 32), np.uint8)
        label_map[top : top + 16, left : left + 16] = 1 + label
        image = np.full((32, 32, 3), 128, np.uint8)
        image[label_map > 0] = [(220, 20, 20), (20, 20, 220)][label]
        extra = {'segmentation': encoded(label_map)}
        yield Record(f'{seed}_{number}', encoded(image), (label,), (32, 32), extra=extra)


def encoded(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    return file.getvalue()


LEARNING = Config(
    augment=AugmentConfig(crop='scale', scale=(0.9, 1.2)),
    network=NetworkConfig('resnet10', options={'width': 8, 'output_stride': 8}, input_size=32),
    train=TrainConfig(
        method='segmenter',
        options={'labels': 'truth', 'rates': (1, 2), 'width': 16},
        epochs=10,
        batch_size=8,
        optimizer='adamw',
        learning_rate=1e-2,
        schedule='poly',
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize('head', ['v2', 'v3+'])
def test_it_learns_what_stands_where(head, tmp_path):
    """From random weights; the map of a class is high on it."""
    source, val = Listed(rectangles(32, 0), 'ab'), Listed(rectangles(12, 1), 'ab')
    setting = replace(LEARNING.train, options={**LEARNING.train.options, 'head': head})
    config = replace(LEARNING, train=setting)
    train(config, source, val, tmp_path)
    *_, last = (row for row in read_progress(tmp_path) if row['split'] == 'val')
    assert float(last['pixel_accuracy']) > 80  # 75 % are background
    network = trained_network(config, tmp_path)
    batch = next(evaluation_batches(val, 32, 12, targets=LabelMaps('truth', 2, 1)))
    labels = batch.targets['labels']
    maps = localize(network, batch.images, ('segmenter',), classes=labels).maps['segmenter', 'head']
    truth = resized_label_map(batch.targets['label_map'], maps.shape[2:])
    inside = truth == 1 + labels[..., None]
    assert maps[:, 0][inside].mean() > 0.5 > 2 * maps[:, 0][~inside].mean()

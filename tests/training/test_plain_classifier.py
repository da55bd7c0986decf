"""Training with settings of the plain classifier: balanced, and of several labels, in full."""

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from test_parallel import RECIPE, SIDE, saved

from wsol_jax.config import (
    Config,
    ConfigError,
    DataConfig,
    EvaluateConfig,
    LocalizeConfig,
    NetworkConfig,
    ReportConfig,
    TrainConfig,
)
from wsol_jax.data import DataError, Shapes
from wsol_jax.models import zoo
from wsol_jax.progress import ProgressLog
from wsol_jax.run import load_classifier, run
from wsol_jax.training.checkpoints import Checkpoints
from wsol_jax.training.loop import train
from wsol_jax.training.trained import load_network
from wsol_jax.workdir import read_csv

TRAIN = TrainConfig(epochs=2, batch_size=12, log_every=1, balanced=True)
CONFIG = Config(network=NetworkConfig('tiny', input_size=SIDE), train=TRAIN)


@pytest.fixture(scope='module', autouse=True)
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.RECIPES, 'tiny', RECIPE)
        yield


class Seen(Shapes):
    """Counts the labels of the images that are read, many of the class 0."""

    def __getitem__(self, index):
        record = super().__getitem__(index)
        return replace(record, labels=(0,)) if index >= 6 else record


@pytest.mark.slow
def test_a_balanced_training_ends_as_if_it_had_not_been_stopped(tmp_path):
    sources = Seen('train', 30, size=SIDE), Shapes('val', 14, size=SIDE)
    train(CONFIG, *sources, tmp_path / 'whole')
    with pytest.MonkeyPatch.context() as patch:
        row = ProgressLog.row

        def interrupted(log, stage, split, step, *others, **values):
            if step == 5:
                raise KeyboardInterrupt
            row(log, stage, split, step, *others, **values)

        patch.setattr(ProgressLog, 'row', interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(CONFIG, *sources, tmp_path / 'broken')
    assert len(read_csv(tmp_path / 'broken/progress.csv')) == 5  # four steps, and val
    train(CONFIG, *sources, tmp_path / 'broken')
    found, expected = (saved(tmp_path / name) for name in ('broken', 'whole'))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    plain = replace(CONFIG, train=replace(TRAIN, balanced=False))
    train(plain, *sources, tmp_path / 'plain')
    other = saved(tmp_path / 'plain')['params.fc.bias.value']
    assert np.abs(other - expected['params.fc.bias.value']).max() > 1e-4


COLOURS = {(0,): (200, 40, 40), (1,): (40, 200, 40), (0, 2): (40, 40, 200), (1, 2): (200, 200, 40)}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A data set of images of one colour, which tells their labels: one or two of three."""
    root = tmp_path_factory.mktemp('several')
    (root / 'images').mkdir()
    (root / 'class_names.txt').write_text('dog\ncat\nball\n')
    rng = np.random.default_rng(0)
    for split, count in (('train', 24), ('val', 8), ('test', 8)):
        metadata = root / 'metadata' / split
        metadata.mkdir(parents=True)
        lines = {'image_ids': [], 'class_labels': [], 'image_sizes': []}
        for k in range(count):
            labels, colour = list(COLOURS.items())[k % 4]
            name, noise = f'{split}{k}.png', rng.integers(-20, 20, (SIDE, SIDE, 3))
            image = np.uint8(np.array(colour) + noise)
            cv2.imwrite(str(root / 'images' / name), image[..., ::-1])
            lines['image_ids'].append(name)
            lines['class_labels'] += [f'{name},{label}' for label in labels]
            lines['image_sizes'].append(f'{name},{SIDE},{SIDE}')
        for file, of_split in lines.items():
            (metadata / f'{file}.txt').write_text('\n'.join(of_split) + '\n')
    return root


def config_of(folder, **setting):
    facts = {'epochs': 40, 'learning_rate': 0.1, 'keep': 'last', 'batch_size': 8, 'loss': 'sigmoid'}
    return Config(
        data=DataConfig(source='wsol_folder', root=str(folder)),
        network=NetworkConfig('tiny', input_size=SIDE),
        train=TrainConfig(**{**facts, **setting}),
        localize=LocalizeConfig(methods=('cam', 'dgl')),
        evaluate=EvaluateConfig(size=32, threshold_step=0.1),
        report=ReportConfig(images=1, gallery=2),
    )


@pytest.mark.slow
def test_images_of_several_labels_from_training_to_the_page(folder, tmp_path):
    config = config_of(folder, balanced=True, class_weights=(1.0, 1.0, 2.0))
    run(config, tmp_path)
    rows = [r for r in read_csv(tmp_path / 'progress.csv') if r['split'] == 'val' and r['loss']]
    assert float(rows[-1]['accuracy']) == 100 and float(rows[-1]['loss']) < 0.5
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert metrics['classification']['top1'] == metrics['classification']['mAP'] == 100
    assert metrics['average_precision'] == [
        {'class': k, 'name': name, 'images': 4, 'AP': 100.0}
        for k, name in enumerate(('dog', 'cat', 'ball'))
    ]
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.best_value('mAP') == float(rows[-1]['mAP']) == 100
    for network in (load_classifier(config, tmp_path), load_network('tiny', tmp_path)):
        assert network.probability == 'sigmoid'
    # Every class for itself: both classes of an image are likely, and no other.
    images = np.array([np.full((SIDE, SIDE, 3), c, np.uint8) for c in COLOURS.values()])
    likely = np.asarray(network.probabilities(network(images)[0])) > 0.5
    assert [tuple(np.flatnonzero(row)) for row in likely] == list(COLOURS)
    scores = read_csv(tmp_path / 'boxes/val.csv')
    assert len(scores) == 2 * (8 + 4)  # a box of each label and method
    softmax = replace(config, network=replace(config.network, probability='softmax'))
    assert load_classifier(softmax, tmp_path).probability == 'softmax'


def test_several_labels_that_cannot_be_trained_on(folder, tmp_path):
    with pytest.raises(
        DataError, match=r"one label an image, unless config\.train\.loss='sigmoid'"
    ):
        run(config_of(folder, loss='softmax'), tmp_path / 'a')
    options = {'method': 'acol', 'options': {'width': 4}}
    config = replace(config_of(folder, **options), stages=('train',))
    with pytest.raises(ValueError, match=r'^config\.train\.method: this one takes one label an '):
        run(config, tmp_path / 'b')
    with pytest.raises(ConfigError, match='a weight for each of the 3 classes, got 1'):
        run(config_of(folder, class_weights=(1.0,)), tmp_path / 'c')
    assert not (tmp_path / 'c/checkpoints').exists()


@pytest.mark.slow
def test_objects_of_images_of_several_labels_are_told_before_the_training(folder, tmp_path):
    """They cannot be scored; without that stage, they need not be."""
    root, config = tmp_path / 'data', config_of(tmp_path / 'data', epochs=1)
    shutil.copytree(folder, root)
    (root / 'metadata/val/localization.txt').write_text('val2.png,1,1,9,9\n')
    with pytest.raises(DataError, match=r'val2\.png has 2 labels; scores of localization need one'):
        run(config, tmp_path / 'a')
    assert not (tmp_path / 'a/checkpoints').exists()
    run(replace(config, stages=('train', 'localize')), tmp_path / 'a')
    assert (tmp_path / 'a/maps/test').exists()

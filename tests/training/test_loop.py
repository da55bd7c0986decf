"""The stage train: what it leaves, how it goes on, what it starts from, what stops it."""

import json
import logging
import re
import shutil
import signal
from dataclasses import dataclass, replace
from itertools import count
from typing import ClassVar

import cv2
import jax
import numpy as np
import pytest
from conftest import Listed
from flax import nnx
from safetensors.numpy import save_file
from test_parallel import RECIPE, SIDE, Tiny, saved

from wsol_jax.config import (
    Config,
    ConfigError,
    DataConfig,
    EvaluateConfig,
    LocalizeConfig,
    NetworkConfig,
    ReportConfig,
    TrainConfig,
    flatten,
)
from wsol_jax.data import (
    DataError,
    ImageFolder,
    Labels,
    Shapes,
    decode_image,
)
from wsol_jax.data.records import ReadError
from wsol_jax.localization.localize import localize
from wsol_jax.models import Preprocessing, build, layouts, zoo
from wsol_jax.models.weights import WeightsError
from wsol_jax.parallel import local_devices
from wsol_jax.progress import ProgressLog
from wsol_jax.run import run
from wsol_jax.training import loop
from wsol_jax.training.checkpoints import Checkpoints
from wsol_jax.training.loop import train
from wsol_jax.training.method import TrainedMethod
from wsol_jax.training.methods import make_method
from wsol_jax.training.trained import load_network, trained_network
from wsol_jax.workdir import read_csv

SLOW = pytest.mark.slow
# 30 images make 3 steps an epoch, the last one filled up.
TRAIN = TrainConfig(epochs=4, batch_size=12, learning_rate=0.1, ema=0.5, log_every=1)
CONFIG = Config(
    network=NetworkConfig('tiny', input_size=SIDE), data=DataConfig(shapes_size=SIDE), train=TRAIN
)


@pytest.fixture(scope='module', autouse=True)
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.RECIPES, 'tiny', RECIPE)
        yield


@pytest.fixture(scope='module')
def sources():
    return Shapes('train', 30, size=SIDE), Shapes('val', 14, size=SIDE)


@pytest.fixture(scope='module', autouse=True)
def programs():
    """Equal settings share one compiled program: most of the time here is compilation."""
    kept, make = {}, loop.make_program

    def shared(setting, method, module, *others):
        program = make(setting, method, module, *others)
        key = (setting, method, nnx.graphdef(module), *others)
        _, first = kept.setdefault(key, (module, program))
        return first._replace(initial=program.initial)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, 'make_program', shared)
        yield


class Keeping(Checkpoints):
    """Checkpoints that also keep every state as it was given."""

    states: tuple = ()

    def save(self, state, row):
        Keeping.states += (jax.device_get(state),)  # training goes on in the same memory
        super().save(state, row)


ACCURACIES = (50.0, 75.0, 75.0, 60.0)


@pytest.fixture(scope='module')
def trained(tmp_path_factory, sources):
    """A finished training that was best after its third epoch, and the state of every epoch."""
    workdir, accuracies = tmp_path_factory.mktemp('trained'), iter(ACCURACIES)
    states = []  # of this set-up: tests run in any order, and it may be made again
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, 'Checkpoints', Keeping)
        patch.setattr(Keeping, 'states', states)
        patch.setattr(loop, 'split_means', lambda *_: {'loss': 1.0, 'accuracy': next(accuracies)})
        train(CONFIG, *sources, workdir)
    return workdir, states


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, sources):
    """A finished training with real accuracies."""
    workdir = tmp_path_factory.mktemp('undisturbed')
    train(CONFIG, *sources, workdir)
    return workdir


def rows(workdir, split):
    return [row for row in read_csv(workdir / 'progress.csv') if row['split'] == split]


def steps(workdir):
    return [(r['split'], int(r['step'])) for r in read_csv(workdir / 'progress.csv')]


def pixels(source):
    return np.stack([decode_image(source[i]) for i in range(len(source))])


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def named(tree):
    flat = nnx.to_flat_state(tree)
    return {'.'.join(map(str, path)): np.asarray(leaf[...]) for path, leaf in flat}


def network_of(workdir, sources, config=CONFIG):
    return trained_network(config, workdir)


@pytest.mark.slow
def test_the_loss_falls_to_where_it_can(sources, tmp_path):
    def of_two_kinds(source):
        """Dark and bright images: what a tiny network can tell apart."""
        images = [np.full((SIDE, SIDE, 3), 40 + 150 * k, np.uint8) for k in (0, 1)]
        pngs = [cv2.imencode('.png', image)[1].tobytes() for image in images]
        records = [source[i] for i in range(len(source))]
        return Listed(replace(r, image=pngs[i % 2], labels=(i % 2,)) for i, r in enumerate(records))

    setting = replace(TRAIN, epochs=12, learning_rate=0.2)
    train(replace(CONFIG, train=setting), *map(of_two_kinds, sources), tmp_path)
    losses = [float(row['loss']) for row in rows(tmp_path, 'train')]
    assert losses[0] > 1.5 and max(losses[-3:]) < 0.3
    assert float(rows(tmp_path, 'val')[-1]['accuracy']) == 100.0


@pytest.mark.slow
def test_defaults_in_python_train(sources, tmp_path):
    setting = TrainConfig(epochs=1, batch_size=30)
    train(replace(CONFIG, train=setting), *sources, tmp_path)
    start = build('tiny', sources[0].num_classes, nnx.Rngs(CONFIG.seed))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        end = checkpoints.weights('last')
    moved = {n: np.abs(v - end[n]).max() for n, v in named(nnx.state(start, nnx.Param)).items()}
    assert min(moved.values()) > 1e-6


def test_every_step_is_logged(undisturbed):
    epoch = [[('train', 3 * k + i) for i in (1, 2, 3)] + [('val', 3 * k + 3)] for k in range(4)]
    assert steps(undisturbed) == [row for rows in epoch for row in rows]


def test_rows_are_means_over_the_images_since_the_last(undisturbed, sources, tmp_path):
    one = replace(CONFIG, train=replace(TRAIN, log_every=2))
    train(one, *sources, tmp_path)
    train_rows = rows(tmp_path, 'train')
    assert [int(r['step']) for r in train_rows] == [2, 3, 4, 6, 8, 9, 10, 12]
    # The images that fill an epoch's last batch up do not count: 12, 12 and 6.
    single = [float(r['loss']) for r in rows(undisturbed, 'train')]
    expected = [np.mean(single[:2]), single[2], single[3], (2 * single[4] + single[5]) / 3]
    found = [float(r['loss']) for r in train_rows[:4]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[3] != pytest.approx(np.mean(single[4:6]), rel=1e-3)
    shares = [float(r['accuracy']) * n / 100 for r, n in zip(train_rows, (24, 6), strict=False)]
    np.testing.assert_allclose(shares, np.round(shares), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize('stopped_after', [1, 2, 7])
def test_a_row_that_was_begun_goes_on(sources, tmp_path, stopped_after):
    """Whether or not its steps are of one process."""
    config = replace(CONFIG, train=replace(TRAIN, log_every=100, checkpoint_every=1))
    for name in ('whole', 'broken'):
        with pytest.MonkeyPatch.context() as patch:
            if name == 'broken':
                interrupt_saving('last', stopped_after + 1)(patch)
                with pytest.raises(SystemExit):
                    train(config, *sources, tmp_path / name)
        train(config, *sources, tmp_path / name)
    found, expected = (
        [(r['step'], r['loss'], r['accuracy']) for r in read_csv(tmp_path / name / 'progress.csv')]
        for name in ('broken', 'whole')
    )
    assert found == expected and len(found) == 8


@pytest.mark.slow
def test_every_network_comes_from_the_epoch_it_is_asked_from(trained, sources):
    workdir, states = trained
    assert [int(state.step) for state in states] == [3, 6, 9, 12]
    with Checkpoints(workdir) as checkpoints:
        # Of two equal ones the later.
        assert (checkpoints.step('best'), checkpoints.best_value('accuracy')) == (9, 75.0)
    last = replace(CONFIG, train=replace(TRAIN, keep='last'))
    for config, state in ((CONFIG, states[2]), (last, states[3])):
        found = network_of(workdir, sources, config)
        # The moving average is what is used.
        assert_same(named(found.state), named(nnx.State.merge(state.ema, state.stats)))
        assert not np.array_equal(
            found.state['fc']['kernel'][...], state.params['fc']['kernel'][...]
        )
    assert [float(row['accuracy']) for row in rows(workdir, 'val')] == list(ACCURACIES)


@pytest.mark.slow
def test_the_logged_accuracy_is_that_of_the_network(undisturbed, sources):
    last = replace(CONFIG, train=replace(TRAIN, keep='last'))
    network, labels = network_of(undisturbed, sources, last), [i % 6 for i in range(14)]
    assert labels == [sources[1][i].labels[0] for i in range(14)]
    right = np.argmax(np.asarray(network(pixels(sources[1]))[0]), -1) == labels
    logged = float(rows(undisturbed, 'val')[-1]['accuracy'])
    assert logged == pytest.approx(100 * right.mean(), abs=1e-3)
    # In evaluation the statistics of the batch have no part.
    images = pixels(sources[1])
    alone = [network(images[i : i + 1])[0][0] for i in range(3)]
    np.testing.assert_allclose(network(images)[0][:3], alone, rtol=1e-4, atol=1e-5)


def interrupt_row(split, at):
    """Ctrl-C where the row of a step is written."""

    def patch(monkeypatch):
        row = ProgressLog.row

        def interrupted(log, stage, name, step, *arguments, **values):
            if (name, step) == (split, at):
                signal.raise_signal(signal.SIGINT)
            row(log, stage, name, step, *arguments, **values)

        monkeypatch.setattr(ProgressLog, 'row', interrupted)

    return patch


def interrupt_evaluation(epoch):
    """Ctrl-C in the evaluation after an epoch."""

    def patch(monkeypatch):
        calls, means = count(1), loop.split_means

        def interrupted(*arguments):
            if next(calls) == epoch:
                signal.raise_signal(signal.SIGINT)
            return means(*arguments)

        monkeypatch.setattr(loop, 'split_means', interrupted)

    return patch


def interrupt_saving(kind, at):
    """The process is gone before a checkpoint is written."""

    def patch(monkeypatch):
        write = Checkpoints._write

        def interrupted(checkpoints, name, step, parts):
            if (name, step) == (kind, at):
                raise SystemExit
            write(checkpoints, name, step, parts)

        monkeypatch.setattr(Checkpoints, '_write', interrupted)

    return patch


@pytest.mark.slow
@pytest.mark.parametrize(
    ('every', 'stop', 'left'),
    [
        pytest.param(1000, interrupt_row('train', 1), 1, marks=SLOW),
        pytest.param(1000, interrupt_row('train', 5), 5, marks=SLOW),
        (2, interrupt_row('train', 3), 2),
        pytest.param(1000, interrupt_evaluation(2), 3, marks=SLOW),
        pytest.param(1, interrupt_evaluation(4), 11, marks=SLOW),
        pytest.param(1, interrupt_row('val', 12), 11, marks=SLOW),
        pytest.param(1, interrupt_saving('last', 8), 7, marks=SLOW),
        pytest.param(2, interrupt_saving('best', 12), 10, marks=SLOW),
        pytest.param(2, interrupt_saving('last', 12), 10, marks=SLOW),
    ],
)
def test_a_stopped_training_ends_as_if_it_had_not_been(
    undisturbed, sources, tmp_path, every, stop, left
):
    config = replace(CONFIG, train=replace(TRAIN, checkpoint_every=every))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        stop(patch)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            train(config, *sources, tmp_path)
    signal.signal(signal.SIGINT, before)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.step() == left
    train(config, *sources, tmp_path)
    for kind in ('last', 'best'):
        assert_same(saved(tmp_path, kind), saved(undisturbed, kind))
    assert steps(tmp_path) == steps(undisturbed)
    for split in ('train', 'val'):
        for key in ('loss', 'accuracy'):
            expected = [r[key] for r in rows(undisturbed, split)]
            assert [r[key] for r in rows(tmp_path, split)] == expected


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path, sources):
    # Step 1 sees good weights; its update ruins them.
    wild = replace(CONFIG, train=replace(TRAIN, learning_rate=1e38, warmup=0.0))
    with pytest.raises(FloatingPointError, match=r'(nan|inf) at step 2; lower config\.train'):
        train(wild, *sources, tmp_path)
    assert not any((tmp_path / 'checkpoints/last').iterdir())
    assert steps(tmp_path) == [('train', 1)]
    assert network_of(tmp_path, sources) is None


def test_weights_that_are_not_finite_are_not_saved(undisturbed, tmp_path, sources):
    shutil.copytree(undisturbed, tmp_path / 'W')
    steps_before = steps(tmp_path / 'W')
    wild = replace(
        TRAIN, epochs=6, learning_rate=1e38, warmup=0.0, log_every=100, checkpoint_every=1
    )
    message = r'the weights are not finite after step 1[34]; lower config\.train\.learning_rate'
    with pytest.raises(FloatingPointError, match=message) as caught:
        train(replace(CONFIG, train=wild), *sources, tmp_path / 'W')
    number = int(str(caught.value).split(';')[0].split()[-1])
    with Checkpoints(tmp_path / 'W') as checkpoints:
        assert checkpoints.step() == number - 1
        kept = checkpoints.weights('last')
    assert all(np.isfinite(value).all() for value in kept.values())
    assert steps(tmp_path / 'W') == steps_before


def test_no_best_comes_of_weights_that_are_not_finite(tmp_path, sources):
    # The last update ruins them: its epoch would end with an accuracy like any other.
    wild = replace(TRAIN, epochs=1, batch_size=30, learning_rate=1e39, warmup=0.0)
    with pytest.raises(FloatingPointError, match='the weights are not finite after step 1;'):
        train(replace(CONFIG, train=wild), *sources, tmp_path)
    assert not any((tmp_path / 'checkpoints/best').iterdir())


def test_batches_that_batch_norm_would_see_filled_up_are_refused(sources, tmp_path):
    setting = replace(TRAIN, accumulate=5)
    with pytest.raises(ConfigError, match=r'batch_size=12 must be a multiple of 5, devices x '):
        train(replace(CONFIG, train=setting), *sources, tmp_path)


def test_reading_a_training_writes_nothing(undisturbed, sources, tmp_path):
    shutil.copytree(undisturbed, tmp_path / 'W')
    shutil.rmtree(tmp_path / 'W/checkpoints/best')
    started(starting_from(tmp_path / 'W'))
    left = sorted(path.name for path in (tmp_path / 'W/checkpoints').iterdir())
    assert left == ['class_names.json', 'last', 'steps.json']


def test_training_that_is_done_is_not_done_again(undisturbed, sources):
    before = (undisturbed / 'progress.csv').read_text()
    train(CONFIG, *sources, undisturbed)
    assert (undisturbed / 'progress.csv').read_text() == before


@pytest.mark.slow
def test_an_unfinished_training_gives_no_network(sources, tmp_path):
    """In the command as in Python, by the steps noted where the training began."""
    config = replace(CONFIG, train=replace(TRAIN, checkpoint_every=1))
    assert trained_network(config, tmp_path) is None
    assert not any(tmp_path.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        interrupt_saving('last', 5)(patch)
        with pytest.raises(SystemExit):
            train(config, *sources, tmp_path)
    expected = (
        rf"{tmp_path / 'checkpoints'}: holds step 4 of 12; finish the training first, with 't"
    )
    for opened in (
        lambda: trained_network(config, tmp_path),
        lambda: load_network('tiny', tmp_path),
    ):
        with pytest.raises(WeightsError, match=expected):
            opened()
    (tmp_path / 'empty/checkpoints').mkdir(parents=True)
    assert trained_network(config, tmp_path / 'empty') is None


def started(config, classes=6):
    source = Shapes('train', 12, size=SIDE, num_classes=classes)
    module = loop._initial_module(config, make_method(config.train), source)
    return named(nnx.state(module, (nnx.Param, nnx.BatchStat)))


def starting_from(path, **network):
    options = replace(CONFIG.network, **network)
    return replace(CONFIG, network=options, train=replace(TRAIN, init_from=str(path)))


@pytest.mark.parametrize('classes', [6, 4])
def test_training_starts_from_another_workdir(trained, classes):
    workdir, states = trained
    found = started(starting_from(workdir), classes)
    expected = named(nnx.State.merge(states[2].ema, states[2].stats))  # the best
    fresh = named(nnx.state(build('tiny', classes, nnx.Rngs(0)), nnx.Param))
    for name in ('fc.kernel', 'fc.bias'):
        expected[name] = expected[name] if classes == 6 else fresh[name]
    assert_same(found, {name: expected[name] for name in found})


def test_training_starts_from_the_last_where_there_is_no_best(trained, tmp_path):
    shutil.copytree(trained[0] / 'checkpoints/last', tmp_path / 'checkpoints/last')
    found = started(starting_from(tmp_path))
    np.testing.assert_array_equal(found['fc.kernel'], trained[1][-1].ema['fc']['kernel'][...])


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    """Weights of the tiny network in torch's names and layout, and as they are here."""
    path = tmp_path_factory.mktemp('weights') / 'w.safetensors'
    values = named(nnx.state(Tiny(6, rngs=nnx.Rngs(5)), (nnx.Param, nnx.BatchStat)))
    leaves = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    tensors = {}
    for name, value in values.items():
        layer, _, leaf = name.rpartition('.')
        tensors[f'{layer}.{leaves.get(leaf, leaf)}'] = value.transpose(axes[value.ndim]).copy()
    save_file(tensors, path)
    return path, values


@pytest.mark.parametrize('classes', [6, 4])
@pytest.mark.parametrize('key', ['init_from', 'weights'])
def test_training_starts_from_a_weights_file(file, classes, key):
    path, values = file
    config = starting_from(path) if key == 'init_from' else starting_from('', weights=str(path))
    found = started(config, classes)
    for name, value in values.items():
        if classes == 6 or not name.startswith('fc'):
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert found['fc.bias'].shape == (classes,)
    assert not found['fc.bias'].any()


def test_a_weights_file_is_read_once(file, monkeypatch):
    read, reader = [], layouts.read_tensors
    monkeypatch.setattr(layouts, 'read_tensors', lambda path: read.append(path) or reader(path))
    started(starting_from(file[0]))
    assert read == [file[0]]


def test_init_from_comes_before_the_weights_of_the_network(file, trained):
    found = started(starting_from(trained[0], weights=str(file[0])))
    assert not np.array_equal(found['fc.kernel'], file[1]['fc.kernel'])


def test_wrong_starts_are_named(trained, tmp_path, sources):
    def message(path, **network):
        with pytest.raises((ConfigError, WeightsError)) as caught:
            train(starting_from(path, **network), *sources, tmp_path / 'new')
        return str(caught.value)

    absent = tmp_path / 'absent.safetensors'
    expected = f'config.train.init_from: {absent}: no such weights file or workdir'
    assert message(absent) == expected
    empty = tmp_path / 'empty'
    empty.mkdir()
    expected = f'{empty}: holds no checkpoints; give the workdir of a training, or a weights file'
    assert message(empty) == expected
    (empty / 'checkpoints').mkdir()
    assert message(empty) == f'{empty / "checkpoints"}: holds no finished checkpoint'
    other = message(trained[0], options={'norm': False}).splitlines()[0]
    assert other.startswith(f'{trained[0]} does not fit the network: 1 missing (conv1.bias); 4 ')
    assert not (tmp_path / 'new/progress.csv').exists()


def test_training_goes_on_from_what_it_starts_from(trained, sources, tmp_path):
    setting = replace(TRAIN, init_from=str(trained[0]), epochs=1, learning_rate=1e-30)
    config = replace(CONFIG, train=setting)
    train(config, *sources, tmp_path)
    found = network_of(tmp_path, sources, config)
    expected = named(trained[1][2].ema)
    kept = {name: value for name, value in named(found.state).items() if name in expected}
    for name, value in expected.items():
        np.testing.assert_allclose(kept[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_the_images_of_a_trained_network_go_through_what_those_of_training_did(sources, tmp_path):
    unit = Preprocessing((0.0,) * 3, (255.0,) * 3)
    setting = replace(TRAIN, batch_size=30, epochs=1)
    network = replace(CONFIG.network, preprocessing='unit')
    config = replace(CONFIG, network=network, train=setting)
    train(config, *sources, tmp_path / 'first')
    assert network_of(tmp_path / 'first', sources, config).preprocessing == unit
    # What starts from there goes on with it, too.
    setting = replace(setting, init_from=str(tmp_path / 'first'))
    config = replace(CONFIG, train=setting)
    train(config, *sources, tmp_path / 'second')
    assert network_of(tmp_path / 'second', sources, config).preprocessing == unit


@pytest.mark.slow
def test_the_head_is_faster(sources, tmp_path):
    """Without momentum and decay the first step of each parameter is rate times gradient."""
    plain = replace(
        TRAIN, epochs=1, batch_size=30, momentum=0.0, weight_decay=0.0, warmup=0.0, ema=0.0
    )
    before = started(CONFIG)
    moved = []
    for factor in (1.0, 5.0):
        config = replace(CONFIG, train=replace(plain, head=factor))
        train(config, *sources, tmp_path / str(factor))
        after = named(network_of(tmp_path / str(factor), sources, config).state)
        moved.append({name: after[name] - before[name] for name in before if 'mean' not in name})
    for name, move in moved[0].items():
        if not name.endswith('var'):
            factor = 5.0 if name.startswith('fc') else 1.0
            np.testing.assert_allclose(moved[1][name], factor * move, rtol=1e-3, atol=1e-6)
    assert np.abs(moved[0]['fc.kernel']).max() > 1e-4


@pytest.mark.slow
def test_a_network_at_chance_is_told(sources, tmp_path, caplog):
    for accuracy, told in ((100 / 6, 1), (90.0, 0)):
        caplog.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, 'split_means', lambda *_, a=accuracy: {'accuracy': a})
            train(CONFIG, *sources, tmp_path / str(told))
        lines = [r.getMessage() for r in caplog.records if 'by chance' in r.getMessage()]
        assert len(lines) == told
        if told:
            assert lines[0].startswith('accuracy on val is 16.7 % after the last epoch, as by chan')


@pytest.mark.parametrize(
    ('accuracy', 'images', 'classes', 'expected'),
    [
        # sqrt(1/3 * 2/3 / 45) = 7.03 %
        (33.3, 45, 3, True),
        (47.3, 45, 3, True),
        (47.5, 45, 3, False),
        (74.7, 45, 3, False),
        (0.3, 10_000, 1000, False),
    ],
)
def test_what_is_at_chance(accuracy, images, classes, expected):
    assert loop._at_chance(accuracy, images, classes) == expected


@pytest.fixture
def opened(undisturbed, tmp_path):
    """A copy of the finished training, with what the command records of its config."""
    workdir = tmp_path / 'W'
    shutil.copytree(undisturbed, workdir)
    network = replace(CONFIG.network, input_size=2 * SIDE)
    record = flatten(replace(CONFIG, network=network))
    (workdir / 'config.json').write_text(json.dumps({'config': record}))
    return workdir


def test_a_trained_network_knows_the_names_of_its_classes(opened, sources):
    assert load_network('tiny', opened).class_names == sources[0].class_names
    assert load_network('tiny', opened, 4).class_names is None


def test_load_network_opens_a_workdir(opened, sources):
    expected = network_of(opened, sources)
    for weights in (opened, str(opened)):
        network = load_network('tiny', weights)
        assert_same(named(network.state), named(expected.state))
    assert network.num_classes == expected.num_classes == 6
    assert network.input_size == 2 * SIDE  # as it was trained
    # A new head on the trunk, as from a weights file.
    other = named(load_network('tiny', opened, 4).state)
    np.testing.assert_array_equal(other['norm.bias'], named(expected.state)['norm.bias'])
    assert other['fc.bias'].shape == (4,)


def test_a_workdir_that_is_not_what_was_asked_for_is_one_line(opened, tmp_path):
    def message(weights, name='tiny'):
        with pytest.raises((WeightsError, ConfigError)) as caught:
            load_network(name, weights)
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    expected = f"{opened}: holds a training of 'tiny', not of 'resnet10'"
    assert message(opened, 'resnet10') == expected
    empty = tmp_path / 'empty'
    empty.mkdir()
    assert message(empty).startswith(
        f'{empty}: holds no checkpoints; give the workdir of a training'
    )
    (empty / 'checkpoints').mkdir()
    assert message(empty) == f'{empty / "checkpoints"}: holds no finished checkpoint'
    (opened / 'checkpoints/steps.json').write_text('{"steps": [12]}')
    expected = f'{opened / "checkpoints/steps.json"}: tells no number of steps; delete it'
    assert message(opened).startswith(expected)
    (opened / 'checkpoints/steps.json').unlink()  # older versions noted none
    record = json.loads((opened / 'config.json').read_text())
    record['config']['train.epochs'] = 5
    (opened / 'config.json').write_text(json.dumps(record))
    expected = f'{opened / "checkpoints"}: holds step 12 of 15; finish the training first, '
    expected += "with 'train' in config.stages"
    assert message(opened) == expected
    (opened / 'config.json').write_text('[' * 100_000)
    assert message(opened).startswith(f'{opened / "config.json"} is not valid JSON')


@pytest.mark.slow
def test_a_network_without_batch_norm_and_a_batch_larger_than_the_data(sources, tmp_path):
    network = replace(CONFIG.network, options={'norm': False})
    config = replace(
        CONFIG, network=network, train=replace(TRAIN, batch_size=40, epochs=2, ema=0.0)
    )
    (tmp_path / 'metrics.json').write_text('{}')
    train(config, *sources, tmp_path)
    assert not (tmp_path / 'metrics.json').exists()  # it told of another network
    assert steps(tmp_path) == [('train', 1), ('val', 1), ('train', 2), ('val', 2)]
    start = load_network('tiny', num_classes=6, norm=False)
    found = named(network_of(tmp_path, sources, config).state)
    assert not np.array_equal(found['fc.bias'], named(start.state)['fc.bias'])


def test_labels_that_cannot_be_trained_on(tmp_path, sources):
    indexed = replace(CONFIG, data=DataConfig(source='wsol_folder', class_index=True))
    with pytest.raises(ConfigError, match=r'set config\.data\.class_index=False'):
        train(indexed, *sources, tmp_path / 'a')
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images/a.png').write_bytes(sources[0][0].image)
    plain = ImageFolder(tmp_path / 'images')
    with pytest.raises(ConfigError, match='labels of at least 2 classes, found 0'):
        train(CONFIG, plain, plain, tmp_path / 'b')


class OfNoClass(TrainedMethod):
    """Learns from images alone."""

    best: ClassVar = ('loss', 'min')

    def num_logits(self, train):
        return 1

    def targets(self, source, required):
        return lambda record: {}

    def loss(self, outputs, batch, update):
        return outputs.logits[:, 0] ** 2, {}


def test_a_method_without_labels_needs_no_classes(sources, tmp_path):
    images = Listed([replace(sources[0][i], labels=()) for i in range(12)], '')
    config = replace(CONFIG, train=replace(TRAIN, epochs=1))
    train(config, images, images, tmp_path, OfNoClass())
    assert load_network('tiny', tmp_path).num_classes == 1
    assert [row['accuracy'] for row in rows(tmp_path, 'val')] == ['']


class Broken(Shapes):
    """Some images do not decode."""

    bad: tuple = ()

    def __getitem__(self, index):
        record = super().__getitem__(index)
        return replace(record, image=b'no image') if index in self.bad else record


def broken(split, count, bad):
    source = Broken(split, count, size=SIDE)
    source.bad = bad
    return source


@pytest.mark.slow
def test_a_broken_image_is_named_and_does_not_count(tmp_path, sources, caplog):
    config = replace(CONFIG, train=replace(TRAIN, log_every=3))
    with caplog.at_level(logging.WARNING):
        train(config, broken('train', 30, (20, 21)), broken('val', 14, range(4)), tmp_path)
    told = [r.getMessage() for r in caplog.records if 'passed over' in r.getMessage()]
    assert sorted(told) == [
        *(f'train, passed over: train/{k:05}.png: {NOT_DECODED}' for k in (20, 21)),
        *(f'val, passed over: val/{k:05}.png: {NOT_DECODED}' for k in range(4)),
    ]
    listed = [tuple(r.values()) for r in read_csv(tmp_path / 'skipped.csv')]
    assert listed[0] == ('train', 'train/00020.png', f'train/00020.png: {NOT_DECODED}')
    assert len(listed) == 6
    # 28 of 30 images: each epoch's row is a mean over that many.
    shares = [float(row['accuracy']) * 28 / 100 for row in rows(tmp_path, 'train')]
    np.testing.assert_allclose(shares, np.round(shares), atol=1e-3)
    before = (tmp_path / 'skipped.csv').read_bytes()
    caplog.clear()
    longer = replace(CONFIG, train=replace(TRAIN, log_every=3, epochs=5))
    train(longer, broken('train', 30, (20, 21)), broken('val', 14, range(4)), tmp_path)
    assert (tmp_path / 'skipped.csv').read_bytes() == before
    assert not [r for r in caplog.records if 'passed over' in r.getMessage()]


@pytest.mark.slow
def test_a_disk_that_fails_stops_with_a_checkpoint(undisturbed, sources, tmp_path):
    fails = iter([True])

    class Failing(Shapes):
        def __getitem__(self, index):
            if index == failing and next(fails, False):
                raise ReadError('disk: Input/output error')
            return super().__getitem__(index)

    failing = int(np.random.default_rng([0, 0]).permutation(30)[-1])  # of the third step
    late = Failing('train', 30, size=SIDE)
    with pytest.raises(ReadError, match='disk: Input/output error'):
        train(CONFIG, late, sources[1], tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.step() == 1
    train(CONFIG, late, sources[1], tmp_path)
    assert_same(saved(tmp_path), saved(undisturbed))


NOT_DECODED = 'not an image that can be decoded'


@pytest.mark.parametrize('split', ['train', 'val'])
def test_a_split_without_a_readable_image_stops(tmp_path, sources, split):
    bad = {name: range(30) if name == split else () for name in ('train', 'val')}
    with pytest.raises(DataError, match=rf'no image of {split} can be read; .*skipped\.csv'):
        train(CONFIG, broken('train', 30, bad['train']), broken('val', 14, bad['val']), tmp_path)
    assert len(read_csv(tmp_path / 'skipped.csv')) == {'train': 30, 'val': 14}[split]


def test_broken_images_and_padding_of_val_do_not_count(tmp_path):
    """14 images in batches of 12, where image 4 cannot be read: 10 images of padding."""

    def tells(state, shard):
        # Of every image 7, of those with label 4 100; labels are the positions modulo 6.
        labels = shard.targets['labels'][:, 0]
        return {'loss': jax.numpy.full(labels.shape, 7.0), 'is_four': 100.0 * (labels == 4)}

    program = loop.Program(None, None, tells)
    devices, skipped = local_devices('jit'), loop.SkipList(tmp_path)
    source = broken('val', 14, (4,))
    arguments = (program, devices, None, source, SIDE, CONFIG, Labels(), skipped)
    # Image 10 is the only four of 13 that is left.
    assert loop.split_means(*arguments) == {'loss': 7.0, 'is_four': pytest.approx(100 / 13)}


def test_the_logged_loss_of_val_is_that_of_the_network(undisturbed, sources):
    last = replace(CONFIG, train=replace(TRAIN, keep='last'))
    logits = np.asarray(network_of(undisturbed, sources, last)(pixels(sources[1]))[0], np.float64)
    labels = [sources[1][i].labels[0] for i in range(14)]
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(14), labels]
    assert float(rows(undisturbed, 'val')[-1]['loss']) == pytest.approx(losses.mean(), rel=1e-4)


@pytest.mark.parametrize(
    ('value', 'best', 'highest', 'lowest'),
    [
        (2.0, None, True, True),
        (2.0, 2.0, True, True),
        (3.0, 2.0, True, False),
        (1.0, 2.0, False, True),
        (np.nan, 2.0, False, False),
        (2.0, np.nan, True, True),
        (np.nan, None, True, True),
    ],
)
def test_what_is_best(value, best, highest, lowest):
    assert loop._is_best(value, best, 'max') == highest
    assert loop._is_best(value, best, 'min') == lowest


@dataclass(frozen=True, kw_only=True)
class OfMyOwn(TrainedMethod):
    """A loss of the whole batch, a value of its own, and the epoch whose value is lowest."""

    best: ClassVar = ('share', 'min')

    def loss(self, outputs, batch, update):
        losses, _ = super().loss(outputs, batch, update)
        mean = jax.numpy.sum(losses * batch.valid) / jax.numpy.maximum(batch.valid.sum(), 1)
        return mean, {'share': jax.nn.softmax(outputs.logits)[:, 0]}


@pytest.mark.slow
def test_a_loss_of_a_whole_batch_trains_the_same_and_logs_its_own(sources, undisturbed, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, 'make_method', lambda _: OfMyOwn())
        train(CONFIG, *sources, tmp_path)
    found, expected = saved(tmp_path), saved(undisturbed)
    for name in (name for name in expected if name.startswith('params')):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)
    logged = rows(tmp_path, 'val')
    assert {r['accuracy'] for r in logged} == {''}
    shares = [float(row['share']) for row in logged]
    assert all(0 < share < 1 for share in shares)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.step('best') == 3 * (1 + int(np.argmin(shares)))
        assert checkpoints.best_value('share') == pytest.approx(min(shares), rel=1e-4)
    assert 'accuracy,images_per_second,share' in (tmp_path / 'progress.csv').read_text()


@pytest.fixture(scope='module')
def by_acol(tmp_path_factory, sources):
    """A network of two heads, trained without a break, with its config on record."""
    workdir = tmp_path_factory.mktemp('acol')
    (workdir / 'config.json').write_text(json.dumps({'config': flatten(ACOL), 'contents': {}}))
    train(ACOL, *sources, workdir)
    return workdir


ACOL = replace(CONFIG, train=replace(TRAIN, method='acol', options={'width': 4, 'delta': 0.5}))


def own_maps(network, sources):
    images, labels = pixels(sources[1])[:3], [[0, 1], [2, 3], [4, 5]]
    return network, localize(network, images, ('acol',), classes=labels).maps['acol', 'head']


@pytest.mark.slow
def test_heads_are_trained_resumed_and_opened_again(by_acol, sources, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        interrupt_row('train', 5)(patch)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            train(ACOL, *sources, tmp_path)
        signal.signal(signal.SIGINT, before)
    train(ACOL, *sources, tmp_path)
    assert_same(saved(tmp_path), saved(by_acol))
    for column in ('accuracy', 'accuracy_b', 'erased', 'loss'):
        found, expected = ([r[column] for r in rows(w, 'val')] for w in (tmp_path, by_acol))
        assert found == expected and all(found)
    start = loop._initial_module(ACOL, make_method(ACOL.train), sources[0])
    moved = saved(by_acol)['params.heads.b.conv1.kernel.value']
    assert np.abs(moved - start.heads.b.conv1.kernel[...]).max() > 1e-4


@pytest.mark.slow
def test_the_network_of_heads_is_rebuilt_from_the_workdir(by_acol, sources):
    network, expected = own_maps(trained_network(ACOL, by_acol), sources)
    again, found = own_maps(load_network('tiny', by_acol), sources)
    np.testing.assert_array_equal(found, expected)
    assert network.own_map == again.own_map and network.num_classes == 6


def test_trainings_start_from_trunks_of_other_methods(by_acol, trained, sources, caplog):
    headed, plain = starting_from(trained[0]), starting_from(by_acol)
    headed = replace(headed, train=replace(headed.train, method='acol', options={'width': 4}))
    expected = named(nnx.State.merge(trained[1][2].ema, trained[1][2].stats))
    found = started(headed)
    assert {name for name in found if name not in expected} == {
        f'heads.{head}.{layer}.{leaf}'
        for head in 'ab'
        for layer in ('classifier', 'conv1', 'conv2')
        for leaf in ('bias', 'kernel')
    }
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    caplog.clear()
    assert sorted(started(plain)) == sorted(expected) and not caplog.records
    # And from heads of the same method with them.
    again = replace(ACOL, train=replace(ACOL.train, init_from=str(by_acol)))
    kept = named(load_network('tiny', by_acol).state)
    np.testing.assert_array_equal(
        started(again)['heads.a.conv2.kernel'], kept['heads.a.conv2.kernel']
    )


def test_the_factor_of_the_head_holds_for_what_a_method_adds():
    (head,) = loop._with_head(replace(ACOL, train=replace(ACOL.train, head=5.0))).multipliers
    assert head[1] == 5.0
    for name, hit in (('fc.bias', True), ('heads.a.conv1.bias', True), ('conv1.bias', False)):
        assert bool(re.search(head[0], name)) == hit


@pytest.mark.slow
def test_a_trained_head_goes_through_every_stage(tmp_path, capsys):
    config = replace(
        ACOL,
        data=DataConfig(shapes_size=SIDE, shapes_counts=(30, 14, 6)),
        localize=LocalizeConfig(methods=('acol', 'layer_cam'), batch_size=7),
        evaluate=EvaluateConfig(size=SIDE, threshold_step=0.1),
        report=ReportConfig(images=2),
    )
    run(config, tmp_path)
    with pytest.raises(ConfigError, match=r'checkpoints was made with train\.method='):
        run(replace(config, train=TRAIN), tmp_path)
    boxes = read_csv(tmp_path / 'boxes/test.csv')
    assert ('acol', 'head') in {(row['method'], row['layer']) for row in boxes}
    scores = json.loads((tmp_path / 'metrics.json').read_text())['localization']
    assert {row['layer'] for row in scores if row['method'] == 'acol'} == {'head'}
    assert 'acol' in capsys.readouterr().out
    assert '"acol"' in (tmp_path / 'report.html').read_text()

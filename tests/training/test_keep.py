"""Which checkpoint is kept and opened: that of the epoch that localizes best, beside the others."""

import json
import logging
import re
import shutil
import signal
from dataclasses import replace
from itertools import count

import jax
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
    flatten,
)
from wsol_jax.data import Shapes
from wsol_jax.localization.epoch import EpochScore
from wsol_jax.localization.stage import _compile
from wsol_jax.models import zoo
from wsol_jax.models.weights import WeightsError
from wsol_jax.run import run
from wsol_jax.training.checkpoints import Checkpoints
from wsol_jax.training.loop import train
from wsol_jax.training.trained import Training, trained_network
from wsol_jax.workdir import read_csv

TRAIN = TrainConfig(epochs=4, batch_size=12, learning_rate=0.1, ema=0.5, keep='best_localization')
CONFIG = Config(
    network=NetworkConfig('tiny', input_size=SIDE),
    data=DataConfig(shapes_size=SIDE, shapes_counts=(30, 14, 6)),
    train=TRAIN,
    localize=LocalizeConfig(methods=('cam',), splits=('val',)),
    evaluate=EvaluateConfig(size=32, threshold_step=0.05),
    report=ReportConfig(images=0, gallery=0),
)
LAST = replace(CONFIG, train=replace(TRAIN, keep='last'))


@pytest.fixture(scope='module', autouse=True)
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.RECIPES, 'tiny', RECIPE)
        yield


@pytest.fixture(scope='module')
def sources():
    return Shapes('train', 30, size=SIDE), Shapes('val', 14, size=SIDE)


def scoring(values, seen=None):
    """Scores the networks of the epochs one after the other."""
    values = iter(values)

    def epoch_score(config, network, source):
        assert source.class_names == Shapes('val', 1).class_names

        def score(network):
            if seen is not None:
                seen.append(np.asarray(network.state['fc']['kernel'][...]))
            return {'goodness': next(values), 'other': 0.0}

        return score

    return epoch_score


def column(workdir, name):
    rows = read_csv(workdir / 'progress.csv')
    return [float(r[name]) for r in rows if (r['stage'], r['split']) == ('train', 'val')]


@pytest.fixture(scope='module')
def trained(sources, tmp_path_factory):
    workdir, seen = tmp_path_factory.mktemp('trained'), []
    train(CONFIG, *sources, workdir, None, scoring((2.0, 7.0, 7.0, 3.0), seen))
    return workdir, seen


@pytest.mark.slow
def test_the_best_epoch_is_kept_and_opened(trained):
    """Of two equal ones the later; what was scored is what is evaluated, the moving average."""
    workdir, seen = trained
    assert column(workdir, 'goodness') == [2, 7, 7, 3] and column(workdir, 'other') == 4 * [0]
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.step('best_localization') == 9
        assert checkpoints.best_value('goodness', 'best_localization') == 7
        kinds = {kind: checkpoints.step(kind) for kind in ('last', 'best')}
        assert kinds['last'] == 12 and checkpoints.best_value('accuracy') is not None
    parts = [{k for k in saved(workdir, kind) if k[:5] != 'facts'} for kind in list(kinds)[1:]]
    assert parts[0] == {k for k in saved(workdir, 'best_localization') if k[:5] != 'facts'}
    found = np.asarray(trained_network(CONFIG, workdir).state['fc']['kernel'][...])
    np.testing.assert_array_equal(found, seen[2])
    start = Training(workdir, flatten(CONFIG)).start()  # as another training starts from it
    np.testing.assert_array_equal(start['fc.kernel'], seen[2])
    last = np.asarray(trained_network(LAST, workdir).state['fc']['kernel'][...])
    np.testing.assert_array_equal(last, seen[3])
    assert not np.array_equal(last, seen[2])


@pytest.mark.slow
@pytest.mark.parametrize('epoch', [2, 4])
@pytest.mark.parametrize('when', ['score', 'save'])
def test_a_stopped_training_keeps_the_same_epoch(trained, sources, tmp_path, epoch, when):
    values, write = [2.0, 7.0, 7.0, 3.0], Checkpoints._write

    def interrupted(config, network, source):
        score, calls = scoring(values)(config, network, source), count(1)

        def stop(network):
            if when == 'score' and next(calls) == epoch:
                signal.raise_signal(signal.SIGINT)
            return score(network)

        return stop

    def gone(checkpoints, kind, step, parts):
        if when == 'save' and (kind, step) == ('last', 3 * epoch):
            raise SystemExit
        write(checkpoints, kind, step, parts)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, '_write', gone)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            train(CONFIG, *sources, tmp_path, None, interrupted)
    signal.signal(signal.SIGINT, before)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        done = checkpoints.step() // 3
    assert done == epoch - 1
    train(CONFIG, *sources, tmp_path, None, scoring(values[done:]))
    assert column(tmp_path, 'goodness') == values
    for kind in ('last', 'best', 'best_localization'):
        found, expected = saved(tmp_path, kind), saved(trained[0], kind)
        assert list(found) == list(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.slow
def test_what_a_training_did_not_keep_is_told(sources, tmp_path):
    short = {'epochs': 2, 'batch_size': 30}
    last = replace(LAST, train=replace(LAST.train, **short))
    asked = replace(CONFIG, train=replace(TRAIN, **short))
    train(last, *sources, tmp_path, None, scoring(()))  # and scores nothing
    assert not (tmp_path / 'checkpoints/best_localization').exists()
    message = f"{tmp_path}/checkpoints: holds no 'best_localization', for the training began with "
    with pytest.raises(ConfigError, match=f'^{re.escape(message)}'):
        train(asked, *sources, tmp_path, None, scoring(()))
    with pytest.raises(WeightsError, match=f'^{re.escape(message)}'):
        trained_network(asked, tmp_path)
    with pytest.raises(ConfigError, match=r"train\.keep: this task keeps 'best' or 'last' alone"):
        train(asked, *sources, tmp_path / 'b')


@pytest.mark.slow
def test_an_unfinished_training_goes_on_as_it_began(sources, tmp_path):
    """Whatever the setting is meanwhile: no epoch is left out."""
    one = replace(CONFIG, train=replace(TRAIN, batch_size=30, epochs=3))
    last = replace(one, train=replace(one.train, keep='last'))

    def stopped(config, network, source):
        score = scoring((5.0,))(config, network, source)

        def until(network):
            try:
                return score(network)
            except StopIteration:
                raise KeyboardInterrupt from None

        return until

    with pytest.raises(KeyboardInterrupt):
        train(one, *sources, tmp_path, None, stopped)
    train(last, *sources, tmp_path, None, scoring((6.0, 4.0)))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.step('best_localization') == 2
    assert column(tmp_path, 'goodness') == [5, 6, 4]


@pytest.mark.slow
def test_the_whole_run(tmp_path):
    config = replace(CONFIG, train=replace(TRAIN, learning_rate=0.03))
    run(config, tmp_path)
    values = column(tmp_path, 'MaxBoxAccV2')
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        kept = checkpoints.step('best_localization') // 3
        best = checkpoints.best_value('MaxBoxAccV2', 'best_localization')
    assert kept < 4 and values[kept - 1] == max(values) > values[3]
    # What the stages give for the checkpoint that is opened.
    (row,) = json.loads((tmp_path / 'metrics.json').read_text())['localization']
    assert row['MaxBoxAccV2'] == best == pytest.approx(values[kept - 1], rel=1e-5)
    # Another one of its checkpoints needs no other training, but other maps.
    last = replace(config, train=replace(config.train, keep='last'))
    with pytest.raises(ConfigError, match=r'/maps was made with train\.keep='):
        run(last, tmp_path)
    shutil.rmtree(tmp_path / 'maps')
    run(last, tmp_path)
    (row,) = json.loads((tmp_path / 'metrics.json').read_text())['localization']
    assert row['MaxBoxAccV2'] == pytest.approx(values[3], rel=1e-5)


@pytest.mark.slow
def test_nothing_is_compiled_after_the_first_epoch(sources, tmp_path, caplog):
    _compile.cache_clear()
    counts = []

    def watched(config, network, source):
        score = EpochScore(config, network, source)

        def counted(network):
            caplog.clear()
            with jax.log_compiles(), caplog.at_level(logging.WARNING):
                found = score(network)
            counts.append(sum('ompil' in line for line in caplog.messages))
            return found

        return counted

    train(replace(CONFIG, train=replace(TRAIN, epochs=3)), *sources, tmp_path, None, watched)
    assert counts[0] > 0 and counts[1:] == [0, 0]

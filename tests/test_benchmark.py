"""The benchmarks on tiny networks: which rows there are, and the arithmetic of their ratios."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

import wsol_jax
from experiments.benchmark import __main__ as command
from experiments.benchmark import (
    evaluation,
    libraries,
    maps,
    memory,
    photo,
    pipeline,
    start,
    training,
)
from experiments.benchmark.turns import Row, rows, take_turns
from wsol_jax.config import ConfigError
from wsol_jax.progress import ProgressLog
from wsol_jax.workdir import write_csv


def test_cases_take_turns_and_the_first_turn_does_not_count():
    calls = []

    def clock(name):
        return lambda: calls.append(name) or float(len(calls))

    seconds = take_turns({'a': clock('a'), 'b': clock('b')}, 2)
    assert calls == ['a', 'b'] * 3
    assert {case: s.tolist() for case, s in seconds.items()} == {'a': [3, 5], 'b': [4, 6]}


def test_a_ratio_is_the_median_of_the_ratios_of_the_turns():
    seconds = {'base': np.array([1.0, 2.0, 4.0]), 'other': np.array([3.0, 2.0, 20.0])}
    assert rows(seconds, 'base', where='net: ') == [
        Row('net: base', 0.5, 'images/s'),
        Row('net: other', 1 / 3, 'images/s', 3.0, 'time of base', (1.0, 5.0)),
    ]
    other = rows(seconds, 'base', 's', of='speed')[1]
    assert other == Row('other', 3.0, 's', 1 / 3, 'speed of base', (0.2, 1.0))


def check_ratios(found, quantity='time'):
    """Of rows of one turn: each is against the first."""
    first, *others = found
    assert first.ratio is None and others
    for row in others:
        ratio = first.value / row.value if quantity == 'time' else row.value / first.value
        assert row.ratio == pytest.approx(ratio)
        assert row.of == f'{quantity} of {first.case.rpartition(": ")[2]}'


def test_maps_against_the_forward_pass(toy):
    found = maps.against_forward(toy, maps.random_images(toy, 3), 1, counts=(2, 10))
    asked = ['dgl', 'layer_cam', 'grad_cam', 'hires_cam', f'{len(maps.FAMILY)} methods']
    expected = ['forward', *(f'{name} at 2 endpoints' for name in asked)]
    assert [row.case for row in found] == [f'toy, batch 3: {case}' for case in expected]
    check_ratios(found)


def test_the_deepest_endpoints_of_a_residual_network_are_its_blocks(toy):
    names = ('stage1/stem', 'stage1/block1', 'stage1/block2', 'stage1', 'stage2/block1', 'stage2')
    residual = replace(toy, shapes=dict.fromkeys(names, (4, 4, 5)), last_layer='stage2')
    assert maps.deepest(residual, 2) == ('stage1/block2', 'stage2/block1')
    assert maps.deepest(toy, 1) == ('late',) and maps.deepest(toy) == ('early', 'late')


@pytest.mark.slow
def test_from_files_to_boxes(toy, tmp_path):
    pipeline.write_images(tmp_path, 4, toy.input_shape[:2], (40, 30))
    *found, waits = pipeline.end_to_end(toy, tmp_path, 2, 1, (40, 30))
    check_ratios(found)
    _, raw, files, _ = found
    assert waits.value == pytest.approx(100 * (1 - files.value / raw.value))
    assert waits.unit == '% of the time'


def test_training_steps(monkeypatch):
    steps = {
        'plain': training.Step(lambda: 2.0, lambda: 0.5, 4e9),
        'bas': training.Step(lambda: 3.0, lambda: 0.5, 10e9),
    }
    monkeypatch.setattr(training, 'step_of', lambda config: steps[config.train.method or 'plain'])
    plain = training.on_generated('resnet10', 4)
    bas = replace(plain, train=replace(plain.train, method='bas'))
    found = training.against_forward(plain, 1)
    check_ratios(found)
    assert found[1].ratio == 4
    found = training.against_plain({'plain': plain, 'bas': bas}, 'net', 1)
    check_ratios(found[:2])
    assert found[2:] == [
        Row('net: plain', 4.0, 'GFLOP an image', 1.0, 'plain'),
        Row('net: bas', 10.0, 'GFLOP an image', 2.5, 'plain'),
    ]


@pytest.mark.slow
def test_a_step_is_compiled_and_run():
    step = training.step_of(training.on_generated('resnet10', 2, 32, width=4))
    assert step.clock() > 0 and step.forward() > 0 and step.flops > 1e6


def test_variants_are_trained_on_generated_images_from_random_weights():
    found = training.variants_of('cub30_trained', 32)
    assert next(iter(found)) == 'plain' and found['acol'].train.method == 'acol'
    assert {(c.data.source, c.network.weights) for c in found.values()} == {('shapes', '')}


def test_the_loop_is_timed_without_its_first_epoch(monkeypatch):
    # 10 images in batches of 4: three steps an epoch.
    told = [(1, 99), (3, 99), (4, 99), (5, 4), (6, 1), (7, 4), (9, 3)]

    def train(config, train_source, val_source, workdir):
        del config, train_source, val_source
        lines = [['train', 'train', f'{step}', '0', '0', f'{speed}'] for step, speed in told]
        write_csv(workdir / 'progress.csv', ProgressLog.COLUMNS, lines)

    monkeypatch.setattr(training, 'train', train)
    config = training.on_generated('resnet10', 4)
    # From step 3 on: 4 images at 99/s, 4 at 4/s, the last 2 of an epoch at 1/s, then 4 and 6.
    expected = (4 / 99 + 4 / 4 + 2 / 1 + 4 / 4 + 6 / 3) / 20
    assert training.loop_seconds(config, range(10), range(1)) == pytest.approx(expected)


@pytest.mark.slow
def test_evaluation_against_the_loop():
    found = list(evaluation.section(1, 4, 3, (0.1,), (1,)))
    expected = ['loop', 'command, 1 processes']
    assert [r.case for r in found] == [f'10 thresholds, 4 maps: {case}' for case in expected]
    check_ratios(found, 'speed')


def test_first_maps(monkeypatch, toy):
    monkeypatch.setattr(wsol_jax, 'load_network', {'toy': toy}.get, raising=False)
    exec(start.FIRST_MAP.format(network='toy'), found := {})
    assert list(found['found'].maps) == [('dgl', 'early'), ('dgl', 'late')]


def test_imports(monkeypatch):
    monkeypatch.setattr(start, 'IMPORTS', {'python': 'pass', 'import wsol_jax': 'import wsol_jax'})
    first, second = start.section(1, networks=())
    assert (first.case, second.unit) == ('python', 's')
    assert second.ratio == pytest.approx(second.value / first.value)


def test_memory(toy):
    sizes = memory.measure(toy, maps.random_images(toy, 2), 1)
    floats = 2 * 4 * 4 * 5  # the late activations of two images
    assert 4 * floats < sizes['program'] < sizes['process']
    found = list(memory.table('net', {1: {'program': 2**20}, 3: {'program': 3 * 2**20}}))
    assert found == [
        Row('net, 1 endpoint: program', 1.0, 'MiB'),
        Row('net, 3 endpoints: program', 3.0, 'MiB', 3.0, '1 endpoint'),
    ]


ANSWERS = """
import json, sys
print(json.dumps(['torch 0', 'library 0']), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    print(json.dumps({'seconds': 2.0 + len(asked['layers']), 'file': 'maps'}), flush=True)
"""


def test_against_libraries(toy, tmp_path, monkeypatch):
    script, compared = tmp_path / 'answers.py', []
    script.write_text(ANSWERS)
    monkeypatch.setattr(libraries, 'check_same', lambda *both: compared.append(both))
    monkeypatch.setattr(np, 'load', lambda file: file)
    images = maps.random_images(toy, 3)
    with libraries.started(sys.prefix, script) as peer:
        found = list(libraries.against(peer, toy, images, 'inputs', 1))
    where = 'toy, batch 3: '
    assert found[0] == Row(f'{where}torch 0', 3 / 2, 'images/s')
    check_ratios(found[:2], 'speed')
    each, mean, ours = found[2:5]
    assert each == Row(f'{where}2 endpoints, library 0, a call each', 3 / 4, 'images/s')
    assert mean.ratio == 1.0 and ours.of == 'speed of library 0, a call each'
    assert ours.ratio == pytest.approx(ours.value / each.value)
    ours, theirs = compared[0]
    assert list(ours) == ['early', 'late'] and theirs == 'maps'
    assert ours['late'].shape == (3, 8, 8) and ours['late'].max() == 1


def test_an_environment_that_lacks_a_library_is_named(tmp_path):
    script = tmp_path / 'broken.py'
    script.write_text('import no_such_library')
    with (
        pytest.raises(ConfigError, match=r"--torch.*grad-cam.*named 'no_such_library'"),
        libraries.started(sys.prefix, script),
    ):
        pass
    with pytest.raises(ConfigError, match='no such file'), libraries.started('nowhere', script):
        pass


def test_maps_that_differ_are_not_compared():
    same = {'stage4': np.ones((2, 4, 4))}
    libraries.check_same(same, [np.full((2, 4, 4), 0.999)])
    with pytest.raises(ValueError, match=r'stage4: maps differ by 0\.5'):
        libraries.check_same(same, [np.full((2, 4, 4), 0.5)])
    assert libraries.torch_name('stage3/block2') == 'layer3.1'
    assert libraries.torch_name('stage4') == 'layer4'


DRAWS = """
import sys, time
for name in ('imports', 'nothing', 'methods', 'layers', 'classes')[: int(sys.argv[2])]:
    time.sleep(0.01)
    print(name, flush=True)
"""


def test_from_a_photo_to_pictures(tmp_path):
    scripts = {'theirs': tmp_path / 'a.py', 'ours': tmp_path / 'b.py'}
    for script in scripts.values():
        script.write_text('"""What it does."""\n' + DRAWS)
    pythons = dict.fromkeys(scripts, sys.executable)
    found = list(photo.against(scripts, pythons, '5', 1))
    kinds = ('imports', 'first picture', 'last picture')
    assert [r.case for r in found[:6]] == [f'{k}: {name}' for k in kinds for name in scripts]
    for theirs, ours in zip(found[:6:2], found[1:6:2], strict=True):
        assert ours.of == 'time of theirs' and ours.ratio == pytest.approx(
            ours.value / theirs.value
        )
    assert found[0].value < found[2].value < found[4].value
    assert found[6:] == [Row(f'code: {name}', 4, 'lines') for name in scripts]
    with pytest.raises(ConfigError, match=r'a\.py: ended .* before its last picture'):
        list(photo.against(scripts, pythons, '4', 1))


def test_sections_by_name():
    assert list(command.asked([], '')) == list(command.SECTIONS)
    assert list(command.asked(['memory', 'libraries'], 'venv')) == ['memory', 'libraries']
    with pytest.raises(ConfigError, match='needs --torch'):
        command.asked(['libraries'], '')
    with pytest.raises(ConfigError, match="'evaluation'"):
        command.asked(['evaluaton'], '')


def test_one_json_and_one_table(tmp_path, capsys):
    one = [Row('slow', 2.0, 'images/s'), Row('fast', 8.0, 'images/s', 4.0, 'speed of slow', (3, 5))]
    command.run(tmp_path, {'one': lambda repeats: one}, 3)
    command.run(tmp_path, {'two': lambda repeats: [Row('turns', repeats, 's')]}, 3)
    results = json.loads((tmp_path / 'benchmark.json').read_text('utf-8'))
    assert list(results) == ['one', 'two']
    assert results['one']['rows'][1]['ratio'] == 4 and results['two']['rows'][0]['value'] == 3
    assert {'processor', 'cores', 'versions', 'git'} <= results['one']['machine'].keys()
    text = (tmp_path / 'benchmark.md').read_text('utf-8')
    assert text.startswith('one, two: ')
    assert '| one | fast | 8 images/s | 4.00 | 3.00 to 5.00 | speed of slow |' in text
    assert 'one | fast | 8 images/s' in capsys.readouterr().out

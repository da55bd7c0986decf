"""Anybody's label maps on disk: what the command prints and writes, and every kind of error."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from wsol_jax.evaluation.__main__ import main
from wsol_jax.segmentation import confusion, write_label_map

NAMES = ['a', 'b/c', 'd']
RNG = np.random.default_rng(3)
TRUTHS = {name: RNG.choice([0, 1, 2, 255], (6, 9)).astype(np.uint8) for name in NAMES}
FOUND = {name: RNG.integers(0, 3, (6, 9)).astype(np.uint8) for name in NAMES}


@pytest.fixture
def data(tmp_path):
    """Folders found/ and true/, lists, and names of four classes."""
    for folder, maps in (('found', FOUND), ('true', TRUTHS)):
        for name, label_map in maps.items():
            write_label_map(tmp_path / f'{folder}/{name}.png', label_map)
    (tmp_path / 'classes.txt').write_text('background\ncat\n<b>dog\nemu\n')
    (tmp_path / 'list.txt').write_text('b/c\n\nd\n')
    return tmp_path


def arguments(data, *more):
    folders = ['--segmentation', data / 'found', '--ground_truth', data / 'true']
    return [str(part) for part in (*folders, '--out', data / 'out/m.json', *more)]


def scored(data, *more):
    assert main(arguments(data, *more)) == 0
    return json.loads((data / 'out/m.json').read_text())


def expected(names, count):
    return sum(confusion(FOUND[name], TRUTHS[name], count) for name in names)


@pytest.mark.parametrize('processes', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_all_names_with_classes(data, capsys, processes):
    metrics = scored(data, '--classes', data / 'classes.txt', '--processes', processes)
    matrix = expected(NAMES, 4)
    assert metrics['confusion'] == matrix.tolist() and metrics['images'] == 3
    hits, either = np.diag(matrix), matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    ious = 100 * hits[:3] / either[:3]
    assert metrics['mIoU'] == pytest.approx(ious.mean()) and metrics['absent_classes'] == 1
    rows = metrics['by_class']
    assert [row['name'] for row in rows] == ['background', 'cat', '<b>dog', 'emu']
    assert [row.get('IoU') for row in rows] == pytest.approx([*ious, None])
    assert sum(row['pixels'] for row in rows) == matrix.sum()
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == [f'mIoU {ious.mean():.2f}', f'PixelAccuracy {metrics["PixelAccuracy"]:.2f}']
    assert [line.split()[:3] for line in out[-4:-1]] == [
        [str(k), row['name'], f'{row["IoU"]:.2f}'] for k, row in enumerate(rows[:3])
    ]
    assert out[-1] == 'In percent; 1 classes that occur nowhere are left out.'


def test_listed_names_without_classes(data):
    (data / 'found/a.png').unlink()
    metrics = scored(data, '--list', data / 'list.txt')
    assert metrics['confusion'] == expected(NAMES[1:], 3).tolist() and metrics['images'] == 2
    assert [row['name'] for row in metrics['by_class']] == ['0', '1', '2']


def test_another_index_is_ignored(data):
    for name in NAMES:
        truth = np.where(TRUTHS[name] == 255, 3, TRUTHS[name]).astype(np.uint8)
        write_label_map(data / f'true/{name}.png', truth)
    assert scored(data, '--ignore', '3')['confusion'] == expected(NAMES, 3).tolist()


def cut(file):
    file.write_bytes(file.read_bytes()[:-40])


def colours(file):
    Image.new('RGB', (9, 6)).save(file)


def label_map(value, size=(6, 9)):
    return lambda file: write_label_map(file, np.full(size, value, np.uint8))


ERRORS = {
    'missing prediction': ('found/d.png', lambda f: f.unlink(), 'no such label map (1 of 3'),
    'missing truth': ('true/d.png', lambda f: f.unlink(), 'no such label map (1 of 3'),
    'another size': ('found/a.png', label_map(0, (9, 6)), 'is 6x9, {true}/a.png is 9x6'),
    'no class': ('found/a.png', label_map(4), 'has index 4; the classes are 0..3'),
    'undecided': ('found/a.png', label_map(255), 'has index 255; the classes are 0..3'),
    'no true class': ('true/a.png', label_map(7), 'has index 7; the classes are 0..3, 255 is'),
    'truncated': ('found/a.png', cut, ''),
    'colours': ('true/a.png', colours, 'a label map is a PNG with a palette'),
    'no folder': ('found', shutil.rmtree, 'no such folder of label maps'),
    'no classes': ('classes.txt', lambda f: f.unlink(), 'no such file'),
    'empty classes': ('classes.txt', lambda f: f.write_text(''), 'names no class'),
}


@pytest.mark.parametrize('kind', ERRORS)
def test_errors_are_one_line_that_names_the_file(data, capsys, kind):
    name, spoil, reason = ERRORS[kind]
    spoil(data / name)
    with pytest.raises(SystemExit) as stopped:
        main(arguments(data, '--classes', str(data / 'classes.txt')))
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and message.count('\n') == 1
    assert str(data / name) in message and reason.format(true=data / 'true') in message
    assert not (data / 'out').exists()


@pytest.mark.parametrize(
    ('line', 'reason'),
    [
        ('x', 'x.png: no such label map (1 of 1 are missing)'),
        ('../a', "list.txt:1: '../a' leaves its folder"),
        ('a\na', "list.txt:2: 'a' is listed twice"),
        ('', 'list.txt: lists no image'),
    ],
)
def test_lists_that_cannot_be_scored(data, capsys, line, reason):
    (data / 'list.txt').write_text(line)
    with pytest.raises(SystemExit):
        main(arguments(data, '--list', str(data / 'list.txt')))
    assert reason in capsys.readouterr().err


def test_nothing_to_score(data, capsys):
    for name in NAMES:
        label_map(255)(data / f'true/{name}.png')
    with pytest.raises(SystemExit):
        main(arguments(data))
    assert 'true: no pixel to score, all are 255' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('given', 'reason'),
    [
        ([], 'one of the arguments --scoremaps --segmentation is required'),
        (['--segmentation=a', '--scoremaps=b'], 'not allowed with argument'),
        (['--segmentation=a'], 'required: --ground_truth'),
        (['--segmentation=a', '--ground_truth=b', '--interval=.1'], '--interval: goes with --sco'),
        (['--scoremaps=a', '--metadata=b', '--ignore=0'], '--ignore: goes with --segmentation'),
        (['--segmentation=a', '--ground_truth=b', '--ignore=256'], 'ignore must lie in 0..255'),
        (['--segmentation=a', '--ground_truth=b', '--processes=0'], 'processes must'),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, capsys, given, reason):
    with pytest.raises(SystemExit) as stopped:
        main([*given, '--out', str(tmp_path / 'm.json')])
    assert stopped.value.code == 2 and reason in capsys.readouterr().err

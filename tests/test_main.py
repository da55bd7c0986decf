"""The command as a user meets it: in a process of its own, judged by exit code and output."""

import csv
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import wsol_jax.main
import wsol_jax.offline
import wsol_jax.run
import wsol_jax.training.loop
from wsol_jax.config import Config, ConfigError, read_config
from wsol_jax.data import Shapes
from wsol_jax.data.files import MARKER
from wsol_jax.localization.task import LOCALIZATION
from wsol_jax.models import build
from wsol_jax.models.weights import WeightsError
from wsol_jax.workdir import locked, write_text

# Processes forked from one that has imported everything but started nothing: no wait for imports.
FORKS = multiprocessing.get_context('forkserver')
FORKS.set_forkserver_preload(['wsol_jax.main'])
CACHE = tempfile.TemporaryDirectory()  # of compiled programs, which most of these runs share

TINY = """from wsol_jax.config import default_config


def get_config():
    config = default_config()
    config.data.shapes_size = 32
    config.data.shapes_counts = (24, 12, 12)
    config.network.name = 'resnet10'
    config.network.options = {'width': 8, 'output_stride': 8}
    config.network.input_size = 32
    config.train.epochs = 2
    config.train.batch_size = 8
    config.train.log_every = 2
    config.localize.batch_size = 4
    config.evaluate.size = 32
    config.evaluate.threshold_step = 0.1
    config.report.images = 2
    return config
"""


class Result(NamedTuple):
    code: int
    out: str
    err: str


def run_main(arguments, folder, cache, failure):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # however the test run was started
    for number, name in ((1, 'out'), (2, 'err')):
        os.dup2(os.open(f'{folder}/{name}', os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (open(number, 'w', closefd=False) for number in (1, 2))  # noqa: SIM115
    os.chdir(folder)
    sys.argv = ['wsol', *arguments]
    jax.config.update('jax_compilation_cache_dir', cache)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    if failure:

        def fail(*_):
            raise failure

        wsol_jax.main.run = fail
    wsol_jax.main.main()


# Where a process can be sent a signal: after so many batches, or so many steps.
WORK = {
    'maps': (wsol_jax.offline, '_add'),
    'steps': (wsol_jax.training.loop._Run, '_one_step'),
}


def signal_at(place, count, number):
    """This process signals itself before the work behind `count` others, however fast it is."""
    owner, name = WORK[place]
    work, left = getattr(owner, name), iter(range(count))

    def work_until_then(*arguments):
        if next(left, None) is None:
            os.kill(os.getpid(), number)
        return work(*arguments)

    setattr(owner, name, work_until_then)


def run_told(arguments, folder, cache, failure, told):
    if told:
        signal_at(*told)
    run_main(arguments, folder, cache, failure)


def start(folder, *arguments, failure=None, told=None):
    """Starts the command in a folder, `told` where to signal itself; `finish` waits for it."""
    facts = arguments, folder, CACHE.name, failure, told
    process = FORKS.Process(target=run_told, args=facts)
    process.start()
    return process


def finish(process, folder):
    process.join(timeout=120)
    assert process.exitcode is not None, 'the command hangs'
    where = f'{folder.resolve()}/'  # messages name the workdir whole
    texts = [(folder / name).read_text().replace(where, '') for name in ('out', 'err')]
    return Result(process.exitcode, *texts)


def command(folder, *arguments, failure=None):
    return finish(start(folder, *arguments, failure=failure), folder)


def tiny(folder, *arguments, workdir='W'):
    (folder / 'tiny.py').write_text(TINY)
    return command(folder, '--config', 'tiny.py', '--workdir', workdir, *arguments)


def files(*folders):
    """{path: (content, time of writing)} of all results below; each run signs the marker."""
    found = (path for folder in folders for path in [folder, *folder.rglob('*')])
    found = (path for path in found if path.name != MARKER)
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in found if p.is_file()}


def kept(workdir):
    return files(*(workdir / n for n in ('checkpoints', 'maps', 'boxes', 'metrics.json')))


def torch_name(path):
    """torchvision's name of a parameter of our residual network."""
    name = re.sub(r'conv(\d)\.bn', r'bn\1', re.sub(r'conv(\d)\.conv', r'conv\1', path))
    name = name.replace('downsample.conv', 'downsample.0').replace('downsample.bn', 'downsample.1')
    stem, _, leaf = name.rpartition('.')
    leaves = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
    return f'{stem}.{leaves.get(leaf, leaf)}'


def write_weights(path, more=None):
    """A safetensors file of the tiny network, with more tensors if given."""
    module = build('resnet10', 6, nnx.Rngs(7), width=8)
    state = nnx.to_flat_state(nnx.state(module, (nnx.Param, nnx.BatchStat)))
    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    arrays = {'.'.join(map(str, keys)): np.asarray(leaf[...]) for keys, leaf in state}
    tensors = {torch_name(k): a.transpose(axes[a.ndim]).copy() for k, a in arrays.items()}
    save_file(tensors | (more or {}), path)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A folder with one whole run in `W`."""
    folder = tmp_path_factory.mktemp('finished')
    result = tiny(folder)
    assert result.code == 0, result.err
    return folder, result


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished[0] / 'W', tmp_path / 'W')
    return tmp_path


def changed(text, old, new):
    assert old in text
    return text.replace(old, new)


CONFIGS = {
    'syntax.py': 'def get_config(:\n    pass\n',
    'raises.py': changed(TINY, 'return config', 'return undefined'),
    'value.py': changed(TINY, 'return config', "raise ValueError('no such\\nthing')"),
    'opens.py': changed(TINY, 'return config', "open('nothing.txt')"),
    'imports.py': 'import nothing_such\n',
    'group.py': changed(TINY, 'config.train.epochs', 'config.trian.epochs'),
    'key.py': changed(TINY, 'config.train.epochs', 'config.train.epoch'),
    'empty.py': 'x = 1\n',
    'none.py': 'def get_config():\n    pass\n',
}
NOT_FOUND = "FileNotFoundError: [Errno 2] No such file or directory: 'nothing.txt'"


@pytest.mark.parametrize(
    ('file', 'message'),
    [
        ('absent.py', 'absent.py: no such config file'),
        ('syntax.py', 'syntax.py:1: invalid syntax'),
        ('raises.py', "raises.py:18: NameError: name 'undefined' is not defined"),
        ('value.py', 'value.py:18: ValueError: no such thing'),
        ('opens.py', f'opens.py:18: {NOT_FOUND}'),
        ('imports.py', "imports.py:1: ModuleNotFoundError: No module named 'nothing_such'"),
        ('group.py', 'group.py:11: AttributeError: .*Did you mean "train" instead of "trian"'),
        ('key.py', "unknown key in config.train 'epoch'; did you mean 'epochs'?"),
        ('empty.py', "empty.py: AttributeError: .* has no attribute 'get_config'"),
        ('none.py', 'get_config() must return a ConfigDict, got None'),
        ('tiny.py:large', r'tiny.py: TypeError: get_config() takes 0 positional arguments'),
    ],
)
def test_wrong_config_files(tmp_path, file, message):
    for name, text in {**CONFIGS, 'tiny.py': TINY}.items():
        (tmp_path / name).write_text(text)
    code, out, err = command(tmp_path, '--config', file, '--workdir', 'W')
    *warnings, line = err.splitlines()
    pattern = re.escape(f'error: {message}').replace(r'\.\*', '.*')
    assert (code, out) == (2, '') and re.match(pattern, line)
    assert not warnings or file == 'none.py'  # where ml_collections has a say, too
    assert not (tmp_path / 'W').exists()


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        (
            'trian.epochs=3',
            "unknown key in config 'trian'; did you mean 'train'? "
            'known: augment, data, evaluate, localize, network, parallel, report, seed, '
            'segmentation, stages, ',
        ),
        (
            'train.epoch=3',
            "unknown key in config.train 'epoch'; did you mean 'epochs'? known: accumulate, bal",
        ),
        ('seed.x=3', 'config.seed is a single setting, not a group: no config.seed.x'),
        (
            'train.epochs=abc',
            "flag --config.train.epochs=abc: invalid literal for int() with base 10: 'abc'",
        ),
        ('train.epochs=0', 'config.train.epochs must be at least 1, got 0'),
        ('train.epochs', 'Missing value for flag --config.train.epochs'),
        ('train=3', "flag --config.train=3: Failed to parse '3' as a ConfigDict: "),
        (
            'network.options.padding=same',
            "tiny.py sets no 'padding' that could be overridden; "
            'give all of them: --config.network.options="{...}"',
        ),
        (
            'train.options.dleta=0.7',
            "tiny.py sets no 'dleta' that could be overridden; "
            'give all of them: --config.train.options="{...}"',
        ),
        ('localize.scales=a', "config.localize.scales[0] must be of type float, got 'a'"),
        ('localize.splits=()', 'config.localize.splits must name at least one, and none twice'),
        (
            'train.optimizer=adam',
            "unknown value of config.train.optimizer 'adam'; did you mean 'adamw'? "
            'known: sgd, adamw',
        ),
        (
            'train.schedule=consine',
            "unknown value of config.train.schedule 'consine'; did you mean 'cosine'? "
            'known: cosine, poly, step, constant',
        ),
        (
            'augment.crop=wrap',
            "unknown value of config.augment.crop 'wrap'; did you mean 'warp'? "
            'known: warp, short_side, resized, scale',
        ),
        ('parallel=pmpa', "unknown value of config.parallel 'pmpa'; did you mean 'pmap'?"),
        (
            'train.multipliers=(("^fc","x"),)',
            "config.train.multipliers[0][1] must be of type float, got 'x'",
        ),
        (
            'stages=evalute',
            "unknown stage in config.stages 'evalute'; did you mean 'evaluate'? "
            'known: train, localize, evaluate, report',
        ),
    ],
)
def test_wrong_overrides(tmp_path, argument, message):
    code, out, err = tiny(tmp_path, f'--config.{argument}')
    assert (code, out) == (2, '')
    assert err.startswith(f'error: {message}') and err.count('\n') == 1
    assert not (tmp_path / 'W').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'both are needed: --config CONFIG and --workdir DIR; see --help'),
        (['--config', 'tiny.py'], 'both are needed: --config CONFIG and --workdir DIR; see --help'),
        (['--workdir', 'W'], 'both are needed: --config CONFIG and --workdir DIR; see --help'),
        (['--config'], 'Missing value for flag --config'),
        (
            ['--config', 'tiny.py', '--workdir', 'W', 'stray'],
            "unexpected argument 'stray'; write --config.key=value",
        ),
        (
            ['--confg', 'tiny.py', '--workdir', 'W'],
            "Unknown command line flag 'confg'. Did you mean: config ?",
        ),
    ],
)
def test_wrong_arguments(tmp_path, arguments, message):
    (tmp_path / 'tiny.py').write_text(TINY)
    assert command(tmp_path, *arguments) == (2, '', f'error: {message}\n')
    assert not (tmp_path / 'W').exists()


NETWORKS = 'inception_v3, resnet10, resnet18, resnet34, resnet50, resnet101'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            ['stages=("localize","evaluate")', 'evaluate.protocols=cvpr17'],
            "unknown protocol 'cvpr17'; did you mean 'cvpr16'?",
        ),
        (['localize.methods=dlg'], "unknown localization method 'dlg'; did you mean 'dgl'?"),
        (['localize.layers=stage5'], "unknown layer of resnet10 'stage5'; did you mean 'stage4'?"),
        (['localize.fusion=meen'], "unknown fusion 'meen'; did you mean 'mean'?"),
        (
            ['localize.classes="6"'],
            "config.localize.classes must be 'ground_truth', 'top1', 'top5' or a class index below",
        ),
        (['localize.splits=tset'], "shapes has the splits ('train', 'val', 'test')"),
        (
            ['network.name=resnet19'],
            f"unknown network 'resnet19'; did you mean 'resnet18'? known: {NETWORKS}",
        ),
        (
            ['network.options={"wdth": 8}'],
            "unknown option of resnet10 'wdth'; did you mean 'width'?",
        ),
        (['data.source=shape'], "unknown data source 'shape'; did you mean 'shapes'?"),
        (
            ['data.source=wsol_folder', 'data.root=nodata'],
            'nodata: no such folder (expected images/ and metadata/ in nodata)',
        ),
        (
            ['data.source=class_folder'],
            "config.data.source='class_folder' needs config.data.root, its folder",
        ),
        (
            ['train.schedule=step'],
            "config.train.schedule='step' needs step_epochs, where the rate drops",
        ),
        (
            ['data.class_index=True'],
            'training numbers the classes itself; set config.data.class_index=False',
        ),
        (
            ['data.source=image_folder', 'data.root=.', 'data.class_index=True'],
            "config.data.class_index=True has no effect on source 'image_folder', only on ",
        ),
        (['network.weights=w.safetensors'], 'w.safetensors: no such weights file'),
        (
            ['network.weights=tiny.py'],
            'tiny.py: weights must be a .safetensors, .pth, .pt or .bin file',
        ),
        (['network.weights=bad.safetensors'], 'bad.safetensors: not a readable safetensors file'),
        (
            ['network.weights=other.safetensors'],
            'other.safetensors does not fit the network: 1 left over (conv9.weight)',
        ),
        (
            ['stages=localize'],
            'no classifier to localize with: W holds no checkpoint and config.network.weights is '
            "empty; add 'train' to config.stages or give weights",
        ),
        (
            ['train.freeze=("fcc",)'],
            "config.train.freeze: 'fcc' finds no parameter; they start with conv1, fc, layer1, ",
        ),
        (
            ['train.multipliers=(("(",2.0),)'],
            'config.train.multipliers[0][0] must be a regex (missing ), unterminated subpattern',
        ),
        (['train.freeze=("",)'], 'config.train.freeze leaves no parameter to train'),
        (
            ['train.init_from=nowhere.safetensors'],
            'config.train.init_from: nowhere.safetensors: no such weights file or workdir',
        ),
        (
            ['train.method=acol', "train.options={'dleta': 0.7}"],
            "unknown option of acol in config.train.options 'dleta'; did you mean 'delta'? known: ",
        ),
        (['train.method=acl'], "unknown method in config.train.method 'acl'; did you mean 'acol'?"),
        (['localize.methods=("acol",)'], "unknown localization method 'acol'; "),
        (
            ['train.method=acol', 'localize.methods=("acol","cam")'],
            'config.localize.methods: cam reads the weights of a linear layer, and acol trains ',
        ),
        (['train.init_from=D'], 'D: holds no checkpoints; give the workdir of a training'),
        (['stages=evaluate'], 'no results in W/maps/val; run the stage localize first'),
        (['network.probability=sigmiod'], "unknown probability 'sigmiod'; did you mean 'sigmoid'?"),
        (['stages=report'], 'W/metrics.json is missing; run the stage evaluate before report'),
    ],
)
def test_wrong_names_and_files_stop_before_training(tmp_path, arguments, message):
    (tmp_path / 'D').mkdir()
    (tmp_path / 'bad.safetensors').write_text('no tensors')
    write_weights(tmp_path / 'other.safetensors', {'conv9.weight': np.zeros(3, np.float32)})
    code, out, err = tiny(tmp_path, *(f'--config.{a}' for a in arguments))
    assert (code, out) == (2, '')
    assert err.startswith(f'error: {message}') and err.count('\n') == 1
    assert not (tmp_path / 'W/progress.csv').exists()


@pytest.mark.parametrize('wrong', ['train.method=acl', 'network.name=resnet19'])
def test_what_went_wrong_is_not_in_the_way_of_the_corrected_command(tmp_path, wrong):
    assert tiny(tmp_path, f'--config.{wrong}').code == 2
    assert tiny(tmp_path, '--config.stages=report', '--config.seed=5').err.endswith(
        'W/metrics.json is missing; run the stage evaluate before report\n'
    )


FOLDER = {
    'class_names.txt': 'ant\nbee',
    'metadata/train/image_ids.txt': 'a.png\nb.png',
    'metadata/train/class_labels.txt': 'a.png,0\nb.png,1',
    'metadata/val/image_ids.txt': 'c.png\nd.png',
    'metadata/val/class_labels.txt': 'c.png,0\nd.png,1',
    'metadata/val/image_sizes.txt': 'c.png,32,32\nd.png,32,32',
    'metadata/val/localization.txt': 'c.png,0,0,9,9\nd.png,1,2,30,32',
}


IDS, LABELS = 'metadata/train/image_ids.txt', 'metadata/train/class_labels.txt'
BOXES = 'metadata/val/localization.txt'
GAPS = 'labels must be 0..n-1 without gaps'


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({LABELS: 'a.png,0\nb.png,2'}, f'D/{LABELS}:2: label 2 outside 0..1'),
        (
            {BOXES: 'c.png,0,0,9,9\nd.png,1,2,33,32'},
            f'D/{BOXES}:2: box (1, 2, 33, 32) lies outside the image of 32x32',
        ),
        (
            {BOXES: 'c.png,0,0,9,9\nd.png,5,2,5,32'},
            f'D/{BOXES}:2: box (5, 2, 5, 32) is empty; x0 < x1 and y0 < y1 are needed',
        ),
        ({LABELS: 'a.png,0\nb.png,0'}, f"class 1 'bee' has no training image; {GAPS}"),
        (
            {'class_names.txt': 'ant\nbee\ncat', LABELS: 'a.png,0\nb.png,2'},
            f"class 1 'bee' has no training image; {GAPS}",
        ),
        (
            {IDS: 'a.png\nb.png\nc.png', LABELS: 'a.png,0\nb.png,1\nc.png,1'},
            "'c.png' is in both train and val (1 such images); take them out of one split",
        ),
        ({'metadata/tset.txt': ''}, "D/metadata/test: no split 'test'; available: train, val"),
    ],
)
def test_wrong_data(tmp_path, changes, message):
    assert on_folder(tmp_path, changes) == (2, '', f'error: {message}\n')


@pytest.mark.slow
def test_training_passes_over_a_broken_image(tmp_path):
    code, _, err = on_folder(tmp_path, {'images/b.png': 'no image'})
    assert code == 0 and 'D/images/b.png: not an image that can be decoded' in err


def on_folder(tmp_path, changes):
    """A run on `FOLDER` with some files replaced."""
    for folder in ('images', 'metadata/train', 'metadata/val'):
        (tmp_path / 'D' / folder).mkdir(parents=True)
    for name, record in zip('abcd', Shapes('val', 4, size=32), strict=True):
        (tmp_path / f'D/images/{name}.png').write_bytes(record.image)
    for name, content in {**FOLDER, **changes}.items():
        (tmp_path / 'D' / name).write_text(content)
    splits = '("val","test")' if 'metadata/tset.txt' in changes else 'val'
    options = ['data.source=wsol_folder', 'data.root=D', f'localize.splits={splits}']
    arguments = [f'--config.{option}' for option in (*options, 'train.batch_size=2')]
    return tiny(tmp_path, *arguments)


def test_the_data_are_no_workdir(tmp_path):
    (tmp_path / 'W').mkdir()
    found = tiny(tmp_path, '--config.data.source=image_folder', '--config.data.root=W')
    assert found.code == 2 and 'results need a --workdir of their own' in found.err
    assert not list((tmp_path / 'W').iterdir())


def test_unwritable_workdir(tmp_path):
    (tmp_path / 'file').write_text('x')
    for name, reason in {'file': 'File exists', 'file/x': 'Not a directory'}.items():
        expected = f'error: workdir {name}: cannot make this folder: {reason}\n'
        assert tiny(tmp_path, workdir=name) == (2, '', expected)
    assert (tmp_path / 'file').read_text() == 'x'


@pytest.mark.parametrize('failure', [RuntimeError, KeyError, TypeError, AttributeError, IndexError])
def test_an_error_of_the_program_shows_where_it_was_raised(tmp_path, failure):
    (tmp_path / 'tiny.py').write_text(TINY)
    code, _, err = command(
        tmp_path, '--config', 'tiny.py', '--workdir', 'W', failure=failure('a bug')
    )
    assert code == 1 and 'Traceback' in err and failure.__name__ in err.splitlines()[-1]


def test_a_whole_run_leaves_what_the_contract_names(finished):
    folder, result = finished
    workdir = folder / 'W'
    names = {path.name for path in workdir.iterdir()}
    assert names == {
        *(MARKER, 'config.json', 'checkpoints', 'progress.csv', 'maps', 'boxes'),
        *('metrics.json', 'curves.csv', 'report.html', 'figures'),
    }
    found = {path.name for path in (workdir / 'checkpoints').iterdir()}
    assert found == {'best', 'last', 'made_from.json', 'steps.json', 'class_names.json'}
    record = json.loads((workdir / 'config.json').read_text())
    assert record['config']['train.epochs'] == 2 and 'jax' in record['versions']
    with (workdir / 'boxes/test.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 * 5  # images; DGL at four layers, CAM at one
    assert all(
        0 <= int(r['x0']) < int(r['x1']) <= 32 and 0 <= int(r['y0']) < int(r['y1']) <= 32
        for r in rows
    )
    assert result.out.startswith('test: 12 images, top1 ')
    assert result.out.endswith('\nPage: W/report.html\n')
    with (workdir / 'progress.csv').open() as file:
        train = [r for r in csv.DictReader(file) if r['stage'] == 'train']
    # 24 images make 3 steps an epoch: a row at steps 2, 4, 6, at each epoch's end, and for val.
    assert [(r['split'], r['step']) for r in train] == [
        *(('train', '2'), ('train', '3'), ('val', '3')),
        *(('train', '4'), ('train', '6'), ('val', '6')),
    ]


@pytest.mark.slow
def test_what_is_done_is_not_done_again(finished, copy):
    before = kept(copy / 'W'), (copy / 'W/progress.csv').read_text()
    result = tiny(copy, '--config.localize.batch_size=12', '--config.report.images=1')
    assert (result.code, result.out) == (0, finished[1].out)
    assert (kept(copy / 'W'), (copy / 'W/progress.csv').read_text()) == before


@pytest.mark.slow
def test_other_evaluation_redoes_scores_only(copy):
    before = files(copy / 'W/checkpoints', copy / 'W/maps')
    old = (copy / 'W/metrics.json').read_bytes()
    assert tiny(copy, '--config.evaluate.size=16').code == 0
    assert files(copy / 'W/checkpoints', copy / 'W/maps') == before
    assert (copy / 'W/metrics.json').read_bytes() != old
    assert tiny(copy, '--config.evaluate.size=32').code == 0
    assert (copy / 'W/metrics.json').read_bytes() == old


def test_a_misspelt_protocol_costs_no_scores(copy):
    before = files(copy / 'W')
    result = tiny(copy, '--config.evaluate.protocols=cvpr17')
    assert result.code == 2 and "did you mean 'cvpr16'?" in result.err
    assert files(copy / 'W') == before


@pytest.mark.slow
def test_a_workdir_of_an_older_version_keeps_its_scores(copy):
    record = json.loads((copy / 'W/config.json').read_text())
    del record['config']['evaluate.protocols']
    (copy / 'W/config.json').write_text(json.dumps(record))
    before = (copy / 'W/metrics.json').stat().st_mtime_ns
    assert tiny(copy).code == 0
    assert (copy / 'W/metrics.json').stat().st_mtime_ns == before


@pytest.mark.slow
def test_figures_of_another_format_do_not_stay(copy):
    assert tiny(copy, '--config.report.format=svg').code == 0
    assert {path.suffix for path in (copy / 'W/figures').iterdir()} == {'.svg'}


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('localize.alpha=5', 'W/maps was made with localize.alpha=10.0, now it is 5.0'),
        ('train.epochs=3', 'W/checkpoints was made with train.epochs=2, now it is 3'),
        ('seed=1', 'W/checkpoints was made with seed=0, now it is 1'),
    ],
)
def test_other_settings_are_refused(copy, argument, message):
    before = files(copy / 'W')
    result = tiny(copy, f'--config.{argument}')
    hint = 'choose another --workdir or delete that folder'
    assert result == (2, '', f'error: {message}: {hint}\n')
    assert files(copy / 'W') == before


def test_a_deleted_record_lets_no_old_result_pass(copy):
    (copy / 'W/config.json').unlink()
    (copy / 'W/metrics.json').unlink()
    before = files(copy / 'W')
    result = tiny(copy, '--config.train.learning_rate=0.5')
    assert (result.code, result.out) == (2, '')
    assert result.err.startswith('error: W/checkpoints was made with train.learning_rate=0.01, now')
    assert files(copy / 'W') == before


@pytest.mark.slow
def test_maps_of_a_network_that_was_trained_anew_are_refused(copy):
    """The same settings, other bits: as another version of a library may give."""
    origin = json.loads((copy / 'W/maps/val/made_from.json').read_text())
    (copy / 'W/maps/val/made_from.json').write_text(json.dumps(origin | {'network': 'another'}))
    (copy / 'W/metrics.json').unlink()
    for stages in ('("localize","evaluate")', 'evaluate'):
        code, out, err = tiny(copy, f'--config.stages={stages}')
        assert (code, out) == (2, '')
        assert err.startswith('error: W/maps/val was made with another network (another, now ')
        assert not (copy / 'W/metrics.json').exists()


@pytest.mark.slow
def test_maps_that_are_computed_anew_are_scored_anew(copy):
    shutil.rmtree(copy / 'W/maps/test')
    (copy / 'W/metrics.json').write_text('{}')
    assert tiny(copy, '--config.stages=localize').code == 0
    assert not (copy / 'W/metrics.json').exists() and (copy / 'W/maps/val').exists()


def test_a_config_file_imports_its_neighbours_from_anywhere(tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'mine/base.py').write_text(TINY)
    (tmp_path / 'mine/bad.py').write_text(
        'from mine import base\n\n\ndef get_config():\n    config = base.get_config()\n'
        "    config.localize.methods = ('dlg',)\n    return config\n"
    )
    file = str(tmp_path / 'mine/bad.py')
    result = command(tmp_path / 'elsewhere', '--config', file, '--workdir', 'W')
    assert result.code == 2 and "'dlg'; did you mean 'dgl'?" in result.err


def test_data_of_our_configs_that_is_nowhere_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv('WSOL_DATA', raising=False)
    for key in ('data.root=data/cub30', 'network.weights=data/w.safetensors'):
        with pytest.raises(
            ConfigError, match=rf'^{key.split("=")[1]}: not there; set WSOL_DATA to'
        ):
            wsol_jax.run.run(other_config(key), tmp_path / 'W')
    assert not (tmp_path / 'W').exists()


def other_config(override):
    key, value = override.split('=')
    group, name = key.split('.')
    return read_config({group: {name: value}})


@pytest.mark.slow
def test_two_runs_in_one_workdir(copy):
    with locked(copy / 'W'):
        code, out, err = tiny(copy, '--config.train.learning_rate=0.5')
    assert (code, out, err.count('\n')) == (2, '', 1)
    assert err.startswith(f'error: workdir W is in use by process {os.getpid()} on ')
    assert tiny(copy).code == 0


@pytest.mark.slow
@pytest.mark.parametrize('workdir', ['../W', 'ä b/%20 #?', 'link/W', 'file/W', 'file'])
def test_any_path_can_be_a_workdir(tmp_path, workdir):
    folder = tmp_path / 'sub'
    (folder / 'target').mkdir(parents=True)
    (folder / 'link').symlink_to('target')
    (folder / 'file').write_text('x')
    options = ('stages=("train","localize")', 'train.epochs=1', 'localize.splits=val')
    code, out, err = tiny(folder, *(f'--config.{o}' for o in options), workdir=workdir)
    if workdir.startswith('file'):
        assert (code, err.count('\n')) == (2, 1) and 'cannot make this folder' in err
    else:
        assert (code, out) == (0, ''), err
        assert (folder / workdir / 'maps/val/index.json').exists()


@pytest.mark.slow
def test_corrupted_files_are_named(copy):
    (copy / 'W/metrics.json').write_text('{"split"')
    before = files(copy / 'W/maps')
    code, _, err = tiny(copy)
    assert code == 2 and err.startswith('error: W/metrics.json is not valid JSON')
    (copy / 'W/config.json').write_text('{')
    code, _, err = tiny(copy)
    assert code == 2 and err.startswith('error: W/config.json is not valid JSON')
    assert err.endswith('; delete it and run again\n') and err.count('\n') == 1
    assert files(copy / 'W/maps') == before


def test_every_split_is_opened_once(tmp_path, monkeypatch):
    opened = []

    def open_split(config, split):
        opened.append(split)
        return Shapes(split, 1, size=32)

    def evaluate(config, sources, workdir, network):
        assert network is None  # nothing asks for it
        assert sorted(sources) == ['test', 'val']
        write_text(workdir / 'metrics.json', '{}')

    nothing = lambda *_: None  # noqa: E731
    stages = {'open_split': open_split, 'train': nothing, 'load_classifier': nothing}
    for name, stage in stages.items():
        monkeypatch.setattr(wsol_jax.run, name, stage)
    task = replace(LOCALIZATION, compute=nothing, evaluate=evaluate, report=nothing)
    wsol_jax.run.run(Config(), tmp_path, task)
    assert sorted(opened) == ['test', 'train', 'val']


@pytest.mark.slow
def test_stages_one_by_one_give_the_same(finished, tmp_path):
    for stage in ('train', 'localize', 'evaluate', 'report'):
        assert tiny(tmp_path, f'--config.stages={stage}').code == 0
    for name in ('metrics.json', 'boxes/test.csv', 'boxes/val.csv'):
        assert (tmp_path / 'W' / name).read_bytes() == (finished[0] / 'W' / name).read_bytes()


@pytest.fixture
def by_name(tmp_path, hub):
    """Settings that localize in a folder of images with weights of the hub, and what these hold."""
    (tmp_path / 'images').mkdir()
    for k, record in enumerate(Shapes('test', 3, size=32)):
        (tmp_path / f'images/{k}.png').write_bytes(record.image)
    write_weights(file := tmp_path / 'w.safetensors')
    facts = {'mean': [0.5] * 3, 'std': [0.5] * 3, 'input_size': [3, 32, 32]}
    names = [f'thing {i}' for i in range(6)]
    hub.add('timm/tiny', file.read_bytes(), {'label_names': names, 'pretrained_cfg': facts})
    network = {'name': 'resnet10', 'weights': 'timm/tiny', 'options': {'width': 8}}
    settings = {
        'data': {'source': 'image_folder', 'root': str(tmp_path / 'images')},
        'network': network,
        'localize': {'splits': ('test',), 'classes': 'top1', 'layers': ('stage4',)},
        'evaluate': {'size': 32},
        'report': {'images': 0},
    }
    return settings, file.read_bytes()


@pytest.mark.slow
def test_weights_by_name(by_name, tmp_path, hub):
    settings, content = by_name
    config = read_config({**settings, 'stages': ('localize', 'evaluate', 'report')})
    for _ in range(2):
        wsol_jax.run.run(config, tmp_path / 'W')
    assert len([path for path, _ in hub.asked if path.startswith('/cdn/')]) == 1
    # What they are is recorded once they are there.
    recorded = json.loads((tmp_path / 'W/config.json').read_text())['contents']
    assert recorded == {'network.weights': hashlib.sha256(content).hexdigest()}
    page = (tmp_path / 'W/report.html').read_text()
    assert 'thing ' in page and 'label_names' not in page


def test_training_fetches_its_weights_before_anything_else(by_name, tmp_path, hub):
    settings, _ = by_name
    settings = {**settings, 'stages': ('train',), 'data': {'shapes_counts': (8, 4, 4)}}
    settings['network'] = settings['network'] | {'weights': 'timm/tyni'}
    with pytest.raises(WeightsError, match=r'timm/tyni: .* holds neither'):
        wsol_jax.run.run(read_config(settings), tmp_path / 'W')
    assert not (tmp_path / 'W').exists()


@pytest.mark.slow
def test_plain_folder_with_an_image_that_does_not_decode(tmp_path):
    (tmp_path / 'images/deep').mkdir(parents=True)
    for k, record in enumerate(Shapes('test', 5, size=32)):
        (tmp_path / f'images/deep/{k}.png').write_bytes(record.image)
    (tmp_path / 'images/broken.jpg').write_text('no image')
    write_weights(tmp_path / 'w.safetensors')
    options = [
        *('data.source=image_folder', 'data.root=images', 'network.weights=w.safetensors'),
        *('stages=("localize","evaluate","report")', 'localize.splits=test'),
    ]
    arguments = [f'--config.{option}' for option in options]
    refused = tiny(tmp_path, *arguments)
    assert refused.code == 2 and refused.err.endswith(
        "has no label, which config.localize.classes='ground_truth' needs; use 'top1'\n"
    )
    code, out, err = tiny(tmp_path, *arguments, '--config.localize.classes=top1')
    assert (code, err.count('error')) == (0, 0)
    assert out.splitlines()[0].endswith('1 skipped')
    skipped = (tmp_path / 'W/maps/test/skipped.csv').read_text().splitlines()
    assert skipped == [
        'image_id,reason',
        'broken.jpg,images/broken.jpg: not an image that can be decoded',
    ]
    with (tmp_path / 'W/boxes/test.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [r['image_id'] for r in rows] == [f'deep/{k}.png' for k in range(5)] * 5
    assert {float(r['threshold']) for r in rows} == {0.2}
    figures = {path.name for path in (tmp_path / 'W/figures').iterdir()}
    assert figures == {'methods.png', 'layers_dgl.png', 'layers_cam.png'}

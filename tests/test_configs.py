"""Every file in configs/ is a whole experiment that the command takes, in every variant."""

import ast
import json
import re
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from absl import flags
from flax import nnx
from ml_collections import config_flags

from wsol_jax.config import ConfigError, read_config
from wsol_jax.localization.localize import make_plan
from wsol_jax.models import as_network
from wsol_jax.run import TASKS, open_splits
from wsol_jax.training.methods import make_method, make_module
from wsol_jax.training.optimizer import check_patterns, is_frozen, make_schedule, parameter_name

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / 'configs').glob('[!_]*.py'))
VARIANTS = ('inception_v3', 'resnet50', 'vgg16')
OF_VARIANTS = ('ilsvrc', 'cub', 'openimages30k')
CASES = [f'{stem}:{name}' for stem in OF_VARIANTS for name in VARIANTS]
CASES += [file.stem for file in FILES]
# Those of training methods tell their variants.
TRAINED = {f.stem: tuple(runpy.run_path(str(f)).get('VARIANTS', ())) for f in FILES}
CASES += [f'{stem}:{name}' for stem, names in TRAINED.items() for name in names]


def load(case, *overrides):
    stem, *variant = case.split(':')
    file = ':'.join([f'{ROOT}/configs/{stem}.py', *variant])
    arguments = ['wsol', f'--config={file}', *overrides]
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=arguments)
    values(arguments)
    return read_config(config.value)


@cache
def built(name, options, method):
    """(the network without weights, names of its parameters)"""
    module = nnx.eval_shape(lambda: make_module(name, None, 10, method, 0, dict(options)))
    names = [parameter_name(p) for p, _ in nnx.to_flat_state(nnx.state(module, nnx.Param))]
    return as_network(name, module), names


def built_of(config):
    options = tuple(config.network.options.items())
    return built(config.network.name, options, make_method(config.train))


@pytest.mark.parametrize('case', CASES)
def test_it_loads_and_can_be_changed(case):
    config = load(case, '--config.report.images=3', '--config.localize.splits=val')
    assert config.report.images == 3 and config.localize.splits == ('val',)


@pytest.mark.slow  # all networks, with the heads of all methods
@pytest.mark.parametrize('case', CASES)
def test_it_names_what_exists(case):
    config = load(case)
    network, parameters = built_of(config)
    assert make_plan(network, config.localize.methods, config.localize.layers).keys
    check_patterns(config.train, parameters)


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_its_docstring_names_the_run_line(file):
    text = ast.get_docstring(ast.parse(file.read_text()))
    line = rf'python -m wsol_jax.main --config configs/{file.name}(:\w+)? --workdir DIR'
    assert re.search(line, ' '.join(text.replace('\\\n', ' ').split()))


def test_there_are_some():
    assert {'shapes_resnet', 'imagenette_mobilenet_v1', *OF_VARIANTS} <= {f.stem for f in FILES}


@pytest.mark.parametrize('stem', OF_VARIANTS)
def test_a_variant_is_its_network(stem):
    assert [load(f'{stem}:{name}').network.name for name in VARIANTS] == list(VARIANTS)
    assert load(stem).network.name in VARIANTS


@pytest.mark.slow
def test_a_wrong_variant_is_one_line_with_the_right_ones(tmp_path):
    command = [sys.executable, '-m', 'wsol_jax.main', '--config', 'configs/cub.py:resnet5']
    run = subprocess.run(
        [*command, '--workdir', str(tmp_path / 'x')], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 2 and len(run.stderr.strip().splitlines()) == 1
    assert "unknown variant 'resnet5'; did you mean 'resnet50'?" in run.stderr
    assert run.stderr.strip().endswith(', '.join(VARIANTS)) and not (tmp_path / 'x').exists()


@pytest.mark.parametrize('stem', [stem for stem, names in TRAINED.items() if names])
def test_a_wrong_training_method_is_named(stem):
    module = runpy.run_path(str(ROOT / f'configs/{stem}.py'))
    with pytest.raises(ConfigError, match=r"^unknown variant 'bass'"):
        module['get_config']('bass')
    starts = module.get('STARTS', {})
    assert {*starts, *starts.values()} <= {*TRAINED[stem]}


@pytest.fixture(scope='module')
def coco_root(tmp_path_factory):
    """The layout of MS COCO 2014, with one image a split."""
    root = tmp_path_factory.mktemp('coco')
    (root / 'annotations').mkdir()
    for split in ('train2014', 'val2014'):
        (root / split).mkdir()
        images = [{'id': 1, 'file_name': f'COCO_{split}_1.jpg', 'width': 4, 'height': 4}]
        lists = {'images': images, 'annotations': [], 'categories': [{'id': 1, 'name': 'person'}]}
        (root / f'annotations/instances_{split}.json').write_text(json.dumps(lists))
    return root


@pytest.mark.parametrize('variant', TRAINED['coco2014'])
def test_the_splits_of_coco_are_there(coco_root, variant):
    config = load(f'coco2014:{variant}', f'--config.data.root={coco_root}')
    splits = open_splits(config)
    assert splits(config.train.split)[0].image_id == 'COCO_train2014_1.jpg'
    names = [splits(split)[0].image_id for split in config.localize.splits]
    assert names == ['COCO_train2014_1.jpg', 'COCO_val2014_1.jpg']
    assert config.evaluate.choose_on in config.localize.splits


@pytest.mark.parametrize('stem', ['voc2012', 'coco2014', 'scenes_trained'])
def test_maps_of_classes_walk_to_the_boundaries_of_irn(stem):
    for variant in TRAINED[stem]:
        config = load(f'{stem}:{variant}')
        TASKS['segmentation'].check(config)
        walks = variant == 'irn'
        assert bool(config.segmentation.walk) == walks
        assert not walks or 'cam' in config.localize.methods
    assert load('voc2012:bas_wsss').localize.methods == ('bas_wsss',)


@pytest.mark.parametrize(
    ('case', 'images', 'steps'), [('ilsvrc', 1_281_167, 240_000), ('cub', 5_994, 30_000)]
)
def test_the_recipe_of_the_dgl_release(case, images, steps):
    setting = load(f'{case}:inception_v3').train
    epoch_steps = -(-images // setting.batch_size)
    total = setting.epochs * epoch_steps
    assert total == pytest.approx(steps, rel=0.005)
    rate = make_schedule(setting, total, epoch_steps)
    parts = [rate(round(steps * third / 6)) for third in (0, 1, 3, 5)]
    assert parts == pytest.approx([0.002, 0.002, 0.0002, 0.00002])


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'factors'),
    [
        (
            'inception_v3',
            {
                **{'Mixed_6e.branch1x1.conv.kernel': 1, 'Mixed_6e.branch1x1.bn.bias': 2},
                **{'Mixed_6f.kernel': 10, 'Mixed_6g.bias': 20, 'fc.kernel': 10, 'fc.bias': 20},
            },
        ),
        ('resnet50', {'layer1.0.conv1.conv.kernel': 1, 'layer1.0.conv1.bn.bias': 2, 'fc.bias': 2}),
        ('vgg16', {'conv5_3.kernel': 1, 'conv5_3.bias': 2, 'conv6.kernel': 10, 'fc.bias': 20}),
    ],
)
def test_rates_by_parameter_multiply(name, factors):
    config = load(f'ilsvrc:{name}')
    assert set(factors) <= set(built_of(config)[1])
    for parameter, expected in factors.items():
        factor = 1.0
        for pattern, times in config.train.multipliers:
            factor *= times if re.search(pattern, parameter) else 1
        assert factor == expected, parameter


@pytest.mark.slow
@pytest.mark.parametrize(
    'variant', [v for v in TRAINED['ilsvrc_trained'] if v[:3] in ('aco', 'spg')]
)
def test_what_no_logit_depends_on_is_frozen(variant):
    config = load(f'ilsvrc_trained:{variant}')
    network, parameters = built_of(config)
    assert network.last_layer == config.localize.layers[-1]
    for name in parameters:
        unread = name.split('.')[0] in (*network.unread, 'fc')
        assert is_frozen(name, config.train.freeze) == unread, name


def test_the_recipes_of_acol_and_spg_are_those_of_their_code():
    acol, spg = (load(f'ilsvrc_trained:{v}') for v in ('acol_vgg16', 'spg_inception_v3'))
    for config, rate, epochs in ((acol, 1e-4, 6), (spg, 1e-3, 5)):
        setting = config.train
        assert (setting.learning_rate, setting.epochs, setting.batch_size) == (rate, epochs, 20)
        schedule = make_schedule(setting, 100 * epochs, 100)
        assert [float(schedule(step)) for step in (0, 100 * epochs - 1)] == pytest.approx(
            [rate] * 2
        )
        assert setting.weight_decay == 5e-4 and config.augment.crop == 'short_side'
    assert acol.train.options['delta'] == 0.6 and load('cub_trained:acol_vgg16').train.epochs == 60
    assert spg.network.input_size + spg.augment.margin == 356


def test_lid_is_at_324_pixels():
    config = load('lid')
    size, margin = config.network.input_size, config.augment.margin
    assert (size, size + margin, config.evaluate.size) == (324, 356, 324)
    network, _ = built_of(config)
    (layer,) = config.localize.layers
    shapes = network.endpoints(size)
    assert [shapes[part] for part in layer.split('+')] == [(41, 41, 192)] * 2

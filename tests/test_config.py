import dataclasses
import json
from itertools import product

import ml_collections
import pytest

from wsol_jax.config import (
    STAGES,
    Config,
    ConfigError,
    NetworkConfig,
    TrainConfig,
    check_key,
    config_source,
    default_config,
    flatten,
    read_config,
)


def with_value(path, value):
    tree = default_config().to_dict()
    *groups, key = path.split('.')
    node = tree
    for group in groups:
        node = node[group]
    node[key] = value
    return tree


def test_the_default_tree_reads_back_as_the_defaults():
    assert read_config(default_config()) == read_config({}) == Config()
    assert read_config(default_config().to_dict()) == Config()
    assert Config().stages == STAGES == ('train', 'localize', 'evaluate', 'report')


@pytest.mark.parametrize(
    ('splits', 'expected'), [({}, ('test',)), ({'splits': ('a', 'b')}, ('b',))]
)
def test_a_plain_folder_is_localized_once(splits, expected):
    config = read_config({'data': {'source': 'image_folder', 'root': 'x'}, 'localize': splits})
    assert config.localize.splits == expected


@pytest.mark.parametrize(
    ('train', 'expected'),
    [
        ({}, ('adamw', 2e-4, (), 5.0)),
        ({'head': 2.0}, ('adamw', 2e-4, (), 2.0)),
        ({'optimizer': 'sgd'}, ('sgd', 0.01, (), 1.0)),
        ({'learning_rate': 0.002}, ('sgd', 0.002, (), 1.0)),
        ({'optimizer': 'adamw', 'learning_rate': 5e-4}, ('adamw', 5e-4, (), 1.0)),
        ({'multipliers': (('^fc', 10.0),)}, ('sgd', 0.01, (('^fc', 10.0),), 1.0)),
    ],
)
@pytest.mark.parametrize('start', ['weights', 'init_from', ''])
def test_training_from_weights_has_a_recipe_of_its_own(train, expected, start):
    tree = {'train': dict(train), 'network': {}}
    if start:
        tree['train' if start == 'init_from' else 'network'][start] = 'w.safetensors'
    found = read_config(tree).train
    if not start and not train.keys() & {'optimizer', 'learning_rate', 'multipliers'}:
        expected = ('sgd', 0.01, (), train.get('head', 1.0))
    assert (found.optimizer, found.learning_rate, found.multipliers, found.head) == expected
    again = read_config(dataclasses.asdict(read_config(tree)))
    assert again.train == found  # what is recorded reads back as itself
    in_python = Config(network=NetworkConfig(**tree['network']), train=TrainConfig(**tree['train']))
    assert in_python.train == found


@pytest.mark.parametrize('path', sorted(flatten(Config())))
def test_every_setting_can_be_set_and_is_kept(path):
    default = flatten(read_config({}))[path]
    other = {
        'stages': ['report'],
        'data.shapes_counts': [6, 7, 8],
        'localize.scales': [0.5, 2.0],
        'localize.store': 'gs://bucket/run',
        'evaluate.closing': 5,
        'task': 'segmentation',
        'parallel': 'pmap',
        'data.orientation': 'stored',
        'augment.crop': 'resized',
        'augment.jitter': 0.4,
        'augment.scale': [0.7, 1.2],
        'train.optimizer': 'adamw',
        'train.schedule': 'poly',
        'train.step_epochs': [2.5, 4.0],
        'train.multipliers': [['^fc', 10.0], ['bias$', 2.0]],
        'train.loss': 'sigmoid',
        'train.class_weights': [1.0, 2.5],
        'train.dtype': 'bfloat16',
        'train.keep': 'last',
        'train.clip': 1.5,
        'train.label_smoothing': 0.1,
        'train.ema': 0.99,
        'report.format': 'svg',
        'evaluate.choose_on': 'test',
    }
    kinds = {
        str: lambda: f'{default}x',
        bool: lambda: not default,
        int: lambda: default + 1,
        float: lambda: 0.5 * default,
        list: lambda: [*default, 'more'],
    }
    value = other.get(path) or kinds[type(default)]()
    config = read_config(with_value(path, value))
    expected = {**flatten(read_config({})), path: value}
    if path in ('network.weights', 'train.init_from'):
        recipe = {'train.optimizer': 'adamw', 'train.learning_rate': 2e-4, 'train.head': 5.0}
        expected |= recipe
    assert flatten(config) == expected
    assert check_key(path) is None


@pytest.mark.parametrize(
    ('path', 'value', 'read'),
    [
        ('train.learning_rate', 1, 1.0),
        ('localize.layers', ['a', 'b+c'], ('a', 'b+c')),
        ('localize.scales', (1, 2.0), (1.0, 2.0)),
        ('localize.layers', (), ()),
        ('network.options', {'width': 8}, {'width': 8}),
        ('data.shapes_counts', [1, 2, 3], (1, 2, 3)),
        ('train.step_epochs', [1, 2.5], (1.0, 2.5)),
        ('train.multipliers', [['^fc', 10], ('bias$', 2.0)], (('^fc', 10.0), ('bias$', 2.0))),
        ('train.multipliers', (), ()),
        ('train.freeze', ['conv1'], ('conv1',)),
    ],
)
def test_values_are_converted(path, value, read):
    group, key = path.split('.')
    found = getattr(getattr(read_config(with_value(path, value)), group), key)
    assert found == read and type(found) is type(read)
    if isinstance(read, tuple):
        assert list(map(type, found)) == list(map(type, read))


@pytest.mark.parametrize(
    ('path', 'value', 'message'),
    [
        ('train.epochs', 'three', "config.train.epochs must be of type int, got 'three'"),
        ('train.epochs', 2.0, 'config.train.epochs must be of type int, got 2.0'),
        ('train.epochs', True, 'config.train.epochs must be of type int, got True'),
        ('train.step_factor', -1.0, 'config.train.step_factor must be above 0, got -1.0'),
        ('train.learning_rate', True, 'config.train.learning_rate must be of type float, got True'),
        ('localize.flip', 1, 'config.localize.flip must be of type bool, got 1'),
        ('data.root', None, 'config.data.root must be of type str, got None'),
        (
            'localize.methods',
            'dgl',
            "config.localize.methods must be of type tuple, got 'dgl'; write ('dgl',)",
        ),
        ('localize.methods', ('dgl', 3), 'config.localize.methods[1] must be of type str, got 3'),
        ('localize.scales', [1, 'b'], "config.localize.scales[1] must be of type float, got 'b'"),
        ('data.shapes_counts', (1, 2.5), 'config.data.shapes_counts[1] must be of type int'),
        ('network.options', 3, 'config.network.options must be of type Mapping, got 3'),
        ('train', 3, 'config.train is a group of settings, got 3'),
        ('trian', {}, "unknown key in config 'trian'; did you mean 'train'? known: stages, task,"),
        ('train.epoch', 3, "unknown key in config.train 'epoch'; did you mean 'epochs'? known: "),
        ('stages', ('train', 'test'), "unknown stage in config.stages 'test'; "),
        ('stages', ('train', 'train'), 'config.stages must name at least one, and none twice'),
        ('localize.splits', (), 'config.localize.splits must name at least one, and none twice'),
        (
            'localize.splits',
            ('a', 'a'),
            "config.localize.splits must name at least one, and none twice, got ('a', 'a')",
        ),
        ('seed', -1, 'config.seed must be at least 0, got -1'),
        ('train.batch_size', 0, 'config.train.batch_size must be at least 1, got 0'),
        ('train.epochs', 0, 'config.train.epochs must be at least 1, got 0'),
        ('train.log_every', 0, 'config.train.log_every must be at least 1, got 0'),
        ('localize.batch_size', 0, 'config.localize.batch_size must be at least 1, got 0'),
        ('evaluate.size', 1, 'config.evaluate.size must be at least 2, got 1'),
        ('evaluate.closing', -1, 'config.evaluate.closing must be at least 0, got -1'),
        ('evaluate.closing', 4, 'config.evaluate.closing must be odd (or 0), got 4'),
        ('evaluate.threshold', 1.0, 'config.evaluate.threshold must lie between 0 and 1, got 1.0'),
        (
            'evaluate.threshold_step',
            0,
            'config.evaluate.threshold_step must be at least 0.0001 and below 1',
        ),
        ('report.images', -1, 'config.report.images must be at least 0, got -1'),
        ('data.workers', -1, 'config.data.workers must be at least 0, got -1'),
        ('train.accumulate', 0, 'config.train.accumulate must be at least 1, got 0'),
        ('train.checkpoint_every', 0, 'config.train.checkpoint_every must be at least 1, got 0'),
        ('train.clip', -1.0, 'config.train.clip must be at least 0, got -1.0'),
        ('augment.margin', -1, 'config.augment.margin must be at least 0, got -1'),
        ('augment.jitter', 1.0, 'config.augment.jitter must be at least 0 and below 1, got 1.0'),
        (
            'augment.scale',
            (1.5, 0.5),
            'config.augment.scale must be (least, greatest), got (1.5, 0.5',
        ),
        ('augment.scale', (0, 1), 'config.augment.scale[0] must be at least 0.01, got 0'),
        ('train.ema', 1.0, 'config.train.ema must be at least 0 and below 1, got 1.0'),
        ('train.label_smoothing', -0.1, 'config.train.label_smoothing must be at least 0 and'),
        (
            'train.optimizer',
            'adamv',
            "unknown value of config.train.optimizer 'adamv'; did you mean 'adamw'? "
            'known: sgd, adamw',
        ),
        (
            'train.schedule',
            'cosin',
            "unknown value of config.train.schedule 'cosin'; did you mean 'cosine'? "
            'known: cosine, poly, step, constant',
        ),
        ('train.dtype', 'float16', "unknown value of config.train.dtype 'float16'; did you mean"),
        (
            'train.step_epochs',
            (2.0, 2.0),
            'config.train.step_epochs must increase from above 0, got (2.0, 2.0)',
        ),
        ('train.step_epochs', (3.0, 1.0), 'config.train.step_epochs must increase from above 0'),
        ('train.step_epochs', (0.0, 1.0), 'config.train.step_epochs must increase from above 0'),
        ('train.schedule', 'step', "config.train.schedule='step' needs step_epochs, where the"),
        ('train.power', 0.0, 'config.train.power must be above 0, got 0.0'),
        ('train.warmup', 1.0, 'config.train.warmup must be at least 0 and below 1, got 1.0'),
        ('train.momentum', -0.5, 'config.train.momentum must be at least 0 and below 1, got -0.5'),
        (
            'evaluate.choose_on',
            'vall',
            "unknown split in config.evaluate.choose_on 'vall'; did",
        ),
        ('train.keep', 'lst', "unknown value of config.train.keep 'lst'; did you mean 'last'?"),
        (
            'augment.crop',
            'resize',
            "unknown value of config.augment.crop 'resize'; did you mean 'resized'? "
            'known: warp, short_side, resized, scale',
        ),
        ('parallel', 'pamp', "unknown value of config.parallel 'pamp'; did you mean 'pmap'?"),
        (
            'train.multipliers',
            (('^fc', 'ten'),),
            "config.train.multipliers[0][1] must be of type float, got 'ten'",
        ),
        (
            'train.multipliers',
            ('^fc', 10.0),
            "config.train.multipliers[0] must be 2 values in parentheses, got '^fc'",
        ),
        ('train.multipliers', (('^fc',),), 'config.train.multipliers[0] must be 2 values in paren'),
        ('train.freeze', 'conv1', "config.train.freeze must be of type tuple, got 'conv1'; write"),
    ],
)
def test_wrong_values_are_named_with_the_whole_key(path, value, message):
    with pytest.raises(ConfigError) as caught:
        read_config(with_value(path, value))
    assert str(caught.value).startswith(message) and '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('trian.epochs', "unknown key in config 'trian'; did you mean 'train'?"),
        ('train.epoch', "unknown key in config.train 'epoch'; did you mean 'epochs'?"),
        ('train.epochs.x', 'config.train.epochs is a single setting, not a group'),
    ],
)
def test_keys_are_checked_without_a_value(path, message):
    with pytest.raises(ConfigError) as caught:
        check_key(path)
    assert str(caught.value).startswith(message)


def test_names_of_network_options_are_free():
    assert check_key('network.options') is check_key('network.options.anything') is None


def test_flatten_gives_one_plain_value_a_key():
    tree = ml_collections.ConfigDict(with_value('network.options', {'width': 8, 'deep': {'x': 1}}))
    flat = flatten(read_config(tree))
    assert flat['network.options.width'] == 8 and flat['network.options.deep.x'] == 1
    assert flat['seed'] == 0 and flat['localize.methods'] == ['dgl', 'cam']
    assert json.loads(json.dumps(flat)) == flat
    # As read again from config.json, pairs and all, so that a run can go on.
    pairs = flatten(read_config(with_value('train.multipliers', [('^fc', 10.0), ('b', 2.0)])))
    assert json.loads(json.dumps(pairs)) == pairs
    assert not any(a != b and b.startswith(f'{a}.') for a, b in product(flat, flat))


@pytest.mark.parametrize(
    'settings',
    [
        {},
        {'network.weights': 'w.safetensors'},
        {'network.weights': "o'neill.pth", 'train.learning_rate': 0.1},
        {'network.options': {'width': 16}, 'localize.methods': ('cam', 'dgl'), 'seed': 3},
        {'train.optimizer': 'adamw', 'train.multipliers': (('head', 2.0),), 'augment.flip': False},
    ],
)
def test_a_config_file_makes_the_config_again(settings):
    tree = default_config()
    for path, value in settings.items():
        group, _, key = path.rpartition('.')
        (tree[group] if group else tree)[key] = value
    config, space = read_config(tree), {}
    text = config_source(config)
    exec(text, space)
    assert read_config(space['get_config']()) == config
    names = {line.split(' = ')[0].strip() for line in text.splitlines() if 'config.' in line}
    assert {f'config.{path}' for path in settings} <= names and 'config.data.root' not in names

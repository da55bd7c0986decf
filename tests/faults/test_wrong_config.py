"""Every setting with every nasty value: read as something sensible, or refused in one line."""

import json
import math
import sys

import pytest
from absl import flags

from wsol_jax.command_line import CONFIG, parse_flags
from wsol_jax.config import Config, ConfigError, flatten, read_config
from wsol_jax.fields import Range

pytestmark = pytest.mark.faults

FILE = 'from wsol_jax.config import default_config as get_config\n'
HUGE = ('inf', '-inf', 'nan', str(2**63), str(10**12), f'-{10**12}', '1e400', '9' * 400, '9' * 5000)
NASTY = (
    *HUGE,
    *(
        '',
        ' ',
        '0',
        '-1',
        '1e-12',
        '0.5',
        'true',
        'None',
        '0x10',
        '1_000',
        '٣',
        '½',
        '1;2',
        '--',
        '=',
    ),
    *('()', '(())', '((((1,),),),)', '(1,2', '[' * 500, '(' * 5000, '{}', '{1:2}', '{"a":nan}'),
    *('("a\\0b",)', 'a\0b', '("../x",)', '("/tmp/x",)', '("(",)', '(("(",1.0),)', '(("a",1e999),)'),
    *(
        'é\udcff',
        'a\nb',
        'x' * 10_000,
        '<script>',
        "'",
        '"',
        '\\',
        '$(touch /tmp/no)',
        '{"a":{1,2}}',
    ),
)
PATHS = sorted(flatten(Config()))
NUMBERS = [p for p, v in flatten(Config()).items() if type(v) in (int, float)]


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp('config') / 'all.py'
    path.write_text(FILE)
    arguments = sys.argv
    yield path
    sys.argv = arguments


def read(file, path, text):
    """As the command does: ml_collections reads sys.argv, and defines a flag for every override."""
    sys.argv = ['wsol', f'--config={file}', f'--config.{path}={text}']
    try:
        parse_flags(sys.argv)
        return read_config(CONFIG.value)
    finally:
        for name in [name for name in flags.FLAGS if name.startswith('config.')]:
            delattr(flags.FLAGS, name)


def numbers(value):
    if isinstance(value, list):
        return [n for v in value for n in numbers(v)]
    return [value] if isinstance(value, int | float) else []


@pytest.mark.slow
@pytest.mark.parametrize('path', PATHS)
def test_a_nasty_value_is_sensible_or_one_line(file, path):
    for text in NASTY:
        try:
            config = read(file, path, text)
        except ConfigError as error:
            assert 0 < len(str(error)) < 1500 and '\n' not in str(error), text[:50]
            assert 'Unknown command line flag' not in str(error), text[:50]
            continue
        flat = flatten(config)
        assert all(math.isfinite(n) and abs(n) <= 2**32 for n in numbers(flat[path])), text[:50]
        assert '\0' not in json.dumps(flat) and json.loads(json.dumps(flat)) == flat


@pytest.mark.parametrize('path', NUMBERS)
def test_numbers_beyond_reason_are_refused_with_the_key(file, path):
    for text in HUGE:
        with pytest.raises(ConfigError, match=r'config\.|Exceeds the limit') as caught:
            read(file, path, text)
        assert path in str(caught.value) or 'digits' in str(caught.value)


def with_value(path, value):
    *groups, key = path.split('.')
    tree = {key: value}
    for group in reversed(groups):
        tree = {group: tree}
    return tree


SELF = []
SELF.append(SELF)


WRONG = [
    ('train.learning_rate', 10**400, 'config.train.learning_rate must be a finite number, got'),
    ('train.epochs', 10**5000, 'config.train.epochs must be at most 100,000, got int that is'),
    ('train.epochs', SELF, 'config.train.epochs must be of type int, got [[...]]'),
    ('evaluate.processes', 10**12, 'config.evaluate.processes must be at most 256, got 10000'),
    (
        'evaluate.threshold_step',
        1e-12,
        'config.evaluate.threshold_step must be at least 0.0001',
    ),
    ('evaluate.size', 10**9, 'config.evaluate.size must be at most 4,096, got 1000000000'),
    ('localize.scales', (1.0, math.nan), 'config.localize.scales[1] must be a finite number'),
    ('localize.scales', (1e3,), 'config.localize.scales[0] must be at most 16, got 1000.0'),
    (
        'localize.splits',
        ('/tmp/x',),
        'config.localize.splits[0] must be the plain name of a spl',
    ),
    ('localize.splits', ('..',), 'config.localize.splits[0] must be the plain name of a split'),
    ('localize.splits', ('a\0',), 'config.localize.splits[0] must hold no NUL character'),
    (
        'train.freeze',
        ('a', '('),
        'config.train.freeze[1] must be a regex (missing',
    ),
    (
        'train.multipliers',
        (('[', 1.0),),
        'config.train.multipliers[0][0] must be a regex (unterminated',
    ),
    (
        'train.multipliers',
        (('a', math.inf),),
        'config.train.multipliers[0][1] must be a finite number, got inf',
    ),
    (
        'network.options',
        {'width': 10**9},
        'config.network.options.width must be at most 1,000,',
    ),
    ('network.options', {1: 2}, 'config.network.options must have names as keys, got 1'),
    ('network.options', {'a': {3}}, 'config.network.options.a must be a number, a text or a'),
    ('x' * 10**6, 1, "unknown key in config 'xxx"),
]


def test_values_of_config_files():
    for path, value, message in WRONG:  # pytest could not print some of them
        with pytest.raises(ConfigError) as caught:
            read_config(with_value(path, value))
        assert str(caught.value).startswith(message) and len(str(caught.value)) < 600


def test_a_range_says_what_would_be_right():
    assert Range(1, 5).fault(1) == Range(1, 5).fault(5) == ''
    assert (
        Range(1, 5).fault(0) == 'be at least 1' and Range(1, 5000).fault(6000) == 'be at most 5,000'
    )
    assert Range(0, 1, '()').fault(0) == Range(0, 1, '()').fault(1) == 'lie between 0 and 1'
    assert Range(0, 1, '[)').fault(0) == '' and Range(0, 1, '(]').fault(1) == ''
    assert Range(0, 1, '[)').fault(1) == 'be at least 0 and below 1'
    assert Range(0, 1, '(]').fault(0) == 'be above 0'

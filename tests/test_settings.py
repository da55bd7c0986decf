"""What is declared beside each setting, and that everybody reads it there."""

import dataclasses
import json

import pytest

import wsol_jax
from wsol_jax.command_line import parse_flags
from wsol_jax.config import Config, DataConfig, LocalizeConfig, flatten, read_config
from wsol_jax.fields import ConfigError, documented, setting, settings_of
from wsol_jax.localization.plan import Options
from wsol_jax.presets import presets
from wsol_jax.settings import SETTINGS, MapOptions, check, invalidates
from wsol_jax.workdir import open_workdir

CONFIG = read_config({})
DEFAULTS = dataclasses.asdict(CONFIG)


def default(key):
    value = DEFAULTS
    for name in key.split('.'):
        value = value[name]
    return value


def numbers(value):
    if isinstance(value, list | tuple):
        return [n for v in value for n in numbers(v)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_every_setting_is_declared_with_its_meaning():
    assert {*SETTINGS} == {*flatten(CONFIG)} | {k for k in SETTINGS if default(k) == {}}
    for known in (*SETTINGS.values(), *settings_of(Options).values()):
        assert len(known.help) > 5 and not known.help.endswith('.') and '\n' not in known.help


def test_every_number_has_a_range_that_holds_its_default():
    ranged = {
        *('seed', 'augment.margin', 'augment.jitter', 'network.input_size', 'train.step_epochs'),
        *('train.class_weights', 'train.multipliers'),
        *('data.shapes_counts', 'localize.scales', 'localize.alpha'),
    }
    for key, known in SETTINGS.items():
        found = numbers(default(key))
        assert (known.range is not None) == bool(found or key in ranged), key
        assert not any(known.range.fault(n) for n in found), key
    assert settings_of(Options)['seed'].range == SETTINGS['seed'].range


TRAINED, MAPPED, SCORED = 'checkpoints/last/3/params', 'maps/val/status/0', 'metrics.json'
# As written down before the settings told it themselves.
FREE = {
    'stages',
    'parallel',
    'data.workers',
    'data.max_pixels',
    'localize.batch_size',
    'localize.chunk_size',
    'train.log_every',
    'train.checkpoint_every',
    'evaluate.processes',
    'report.images',
    'report.gallery',
    'report.format',
    'wandb',
}
OF_TRAINING = {'seed', 'data', 'augment', 'network', 'train'}


def bound(key):
    """The results that another value makes wrong."""
    if key in FREE:
        return set()
    group = key.split('.')[0]
    training = group in OF_TRAINING and key != 'train.keep'
    mapped = group in OF_TRAINING | {'localize', 'segmentation'}
    maps = mapped and key not in ('localize.splits', 'segmentation.crf')
    return {SCORED} | ({TRAINED} if training else set()) | ({MAPPED} if maps else set())


def opened(workdir, result, key):
    """Whether a workdir whose config.json has another value of one key keeps a result."""
    file = workdir / result
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('x')
    record = json.loads((workdir / 'config.json').read_text())
    changed = {**record, 'config': record['config'] | {key: 'another'}}
    (workdir / 'config.json').write_text(json.dumps(changed))
    try:
        open_workdir(workdir, CONFIG)
    except ConfigError as error:
        assert f'was made with {key}=' in str(error)
        (workdir / 'config.json').write_text(json.dumps(record))
        file.unlink()
        return False
    kept = file.exists()
    file.unlink(missing_ok=True)
    return kept


@pytest.mark.parametrize('result', [TRAINED, MAPPED, SCORED])
def test_a_workdir_removes_or_refuses_what_a_setting_invalidates(tmp_path, monkeypatch, result):
    monkeypatch.setattr('wsol_jax.workdir.environment', dict)
    open_workdir(tmp_path, CONFIG)
    keys = [*SETTINGS, 'network.options.width', 'train.gone', 'localize.gone', 'evaluate.gone']
    for key in keys:
        assert opened(tmp_path, result, key) == (result not in bound(key)), key
        kind = {TRAINED: 'checkpoints', MAPPED: 'maps', SCORED: 'scores'}[result]
        assert invalidates(key, kind) == (result in bound(key)), key


def test_the_options_of_maps_are_declared_once():
    shared = settings_of(MapOptions)
    for kind in (LocalizeConfig, Options):
        assert settings_of(kind).items() >= shared.items()
        assert not vars(kind)['__annotations__'].keys() & shared.keys()
    assert {f'localize.{name}' for name in shared} < {*SETTINGS}


def test_a_rule_holds_for_every_element_and_below_free_options():
    assert check('train.epochs', 0) == 'config.train.epochs must be at least 1, got 0'
    assert check('train.multipliers', (('a', 1.0), ('(', 1.0))).startswith(
        'config.train.multipliers[1][0] must be a regex ('
    )
    assert check('localize.splits', ('a', 'b/c')).startswith('config.localize.splits[1] must be th')
    assert 'at most 1,000,000' in check('network.options.deep.width', 10**9)


def test_a_docstring_goes_on_with_the_settings():
    @documented
    @dataclasses.dataclass(frozen=True)
    class Group:
        """About."""

        size: int = setting(3, 'how large', 'scores')
        names: dict[str, int] = setting({}, 'of things', 'nothing', choices=('a', 'b', 'c'))

    assert Group.__doc__ == (
        'About.\n\n    Attributes:\n        size: how large.\n        names: of things; a, b or c.'
    )
    assert Group().names is not Group().names
    assert 'max_pixels: larger images are refused;' in DataConfig.__doc__


def help_of(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        parse_flags(['wsol', *arguments])
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize('flag', ['--help', '-?', '--helpfull', '--helpshort'])
def test_help_lists_every_setting_whatever_else_is_wrong(capsys, monkeypatch, flag):
    monkeypatch.setenv('COLUMNS', '80')
    text = help_of(capsys, flag, '--config=none.py', '--config.train.epoch=3')
    lines = text[text.index('Settings:') :].splitlines()
    wide = [line for line in lines if len(line) > 80]
    assert all(line.startswith('  --config.') for line in wide), wide  # to be copied whole
    flags = [line.split('=')[0].strip() for line in lines if line.startswith('  --')]
    assert flags == [f'--config.{key}' for key in SETTINGS]
    at = lines.index('  --config.train.epochs=10')
    meaning = 'passes over the images of it; int, 1..100,000; changes checkpoints, maps, scores'
    assert ' '.join(line.strip() for line in lines[at + 1 : at + 3]) == meaning
    assert "  --config.localize.methods=\"('dgl', 'cam')\"" in lines
    assert "  --config.network.weights=''" in lines and 'report: The figures and the page.' in lines
    assert '--workdir: folder' in text and '--config: config file' in ' '.join(text.split())
    assert all(f'\n  {name} ' in text for name in presets())
    assert ('--verbosity:' in text) == (flag == '--helpfull')


def test_help_is_as_wide_as_the_terminal(capsys, monkeypatch):
    longest = {}
    for columns in ('40', '90', '500'):
        monkeypatch.setenv('COLUMNS', columns)
        lines = help_of(capsys, '--help').splitlines()
        longest[columns] = max(len(line) for line in lines if not line.startswith('  --config.'))
    assert 78 <= longest['40'] <= 80 and 85 < longest['90'] <= 90 and 95 < longest['500'] <= 100


def test_the_version(capsys):
    assert help_of(capsys, '--version') == f'wsol_jax {wsol_jax.__version__}\n'


def test_what_help_shows_as_defaults_are_defaults(capsys):
    shown = help_of(capsys, '--help')
    for key in ('localize.scales', 'train.momentum', 'data.max_pixels', 'network.options'):
        text = str(default(key))
        text = f'"{text}"' if text[0] in '({' else text
        assert f'--config.{key}={text}\n' in shown
    assert Config().seed == 0 and '--config.seed=0\n' in shown

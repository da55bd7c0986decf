"""The experiment's config: an ml_collections tree, read once into the dataclasses of `settings`.

A config file returns `default_config()` with what differs; the command line overrides single
values (`--config.train.epochs=3`). Behind `read_config` nothing sees a ConfigDict.
"""

import dataclasses
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from wsol_jax.data.augment import AugmentConfig
from wsol_jax.fields import ConfigError, converted, flatten
from wsol_jax.names import shown, unknown_name
from wsol_jax.settings import (
    SETTINGS,
    STAGES,
    Config,
    DataConfig,
    EvaluateConfig,
    LocalizeConfig,
    NetworkConfig,
    ReportConfig,
    SegmentationConfig,
    TrainConfig,
    check,
)

if TYPE_CHECKING:  # counting processes get settings, and no tree
    import ml_collections

__all__ = [
    'STAGES',
    'AugmentConfig',
    'Config',
    'ConfigError',
    'DataConfig',
    'EvaluateConfig',
    'LocalizeConfig',
    'NetworkConfig',
    'ReportConfig',
    'SegmentationConfig',
    'TrainConfig',
    'check_key',
    'config_source',
    'default_config',
    'flatten',
    'read_config',
]


def default_config() -> 'ml_collections.ConfigDict':
    """Every setting at its default, for config files to change."""
    import ml_collections

    tree = dataclasses.asdict(Config())
    tree['train'] = dataclasses.asdict(TrainConfig())  # its recipe hangs on what else is set
    return ml_collections.ConfigDict(tree)


def config_source(config: Config) -> str:
    """A config file that makes this experiment again; it names what is not at its default."""
    plain = [f.name for f in dataclasses.fields(Config)]
    usual = {name: getattr(Config(), name) for name in plain} | {'train': TrainConfig()}
    lines = [
        line for name in plain for line in _assignments(name, getattr(config, name), usual[name])
    ]
    body = '\n'.join(f'    {line}' for line in ['config = default_config()', *lines])
    head = 'from wsol_jax.config import default_config\n\n\ndef get_config():\n'
    return f'{head}{body}\n    return config\n'


def _assignments(path: str, value: Any, usual: Any) -> list[str]:
    """Python that sets what differs from the usual value."""
    if not dataclasses.is_dataclass(value):
        return [] if value == usual else [f'config.{path} = {value!r}']
    names = [f.name for f in dataclasses.fields(value)]
    pairs = [(f'{path}.{name}', getattr(value, name), getattr(usual, name)) for name in names]
    return [line for pair in pairs for line in _assignments(*pair)]


def read_config(tree: 'ml_collections.ConfigDict | Mapping[str, Any]') -> Config:
    """Reads a config tree into dataclasses.

    Raises:
        ConfigError: an unknown key (with the nearest right one), a wrong type or a wrong value.
    """
    import ml_collections

    try:
        plain = tree.to_dict() if isinstance(tree, ml_collections.ConfigDict) else tree
    except ml_collections.config_dict.RequiredValueError as error:
        raise ConfigError(f'a value that the config file requires is not set: {error}') from None
    if not isinstance(plain, Mapping):
        raise ConfigError(f'get_config() must return a ConfigDict, got {shown(plain)}')
    config = _read(Config, plain, 'config')
    _check(config)
    if config.data.source == 'image_folder':  # every split is the whole folder: once is enough
        once = dataclasses.replace(config.localize, splits=config.localize.splits[-1:])
        config = dataclasses.replace(config, localize=once)
    return config


def check_key(path: str) -> None:
    """Checks that 'train.epochs' is a setting; the names below options are free.

    Raises:
        ConfigError: it is not; names the nearest right key.
    """
    group, where = default_config().to_dict(), 'config'
    for key in path.split('.'):
        if not isinstance(group, Mapping):
            raise ConfigError(f'{where} is a single setting, not a group: no {where}.{key}')
        if key not in group:
            raise ConfigError(unknown_name(f'key in {where}', key, group))
        group, where = group[key], f'{where}.{key}'
        if where.removeprefix('config.') in SETTINGS and isinstance(group, Mapping):
            return


def _read(kind: type, values: Mapping[str, Any], path: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise ConfigError(unknown_name(f'key in {path}', key, fields))
    defaults = kind()
    read = {
        k: _value(getattr(defaults, k), fields[k].type, v, f'{path}.{k}') for k, v in values.items()
    }
    return kind(**read)


def _value(default: Any, kind: Any, value: Any, path: str) -> Any:
    if not dataclasses.is_dataclass(default):
        return converted(default, kind, value, path)
    if not isinstance(value, Mapping):
        raise ConfigError(f'{path} is a group of settings, got {shown(value)}')
    return _read(type(default), value, path)


def _check(config: Config) -> None:
    _check_names(config)
    for key, value in flatten(config).items():
        if fault := check(key, value):
            raise ConfigError(fault)
    least, greatest = config.augment.scale
    if least > greatest:
        raise ConfigError(
            f'config.augment.scale must be (least, greatest), got ({least}, {greatest})'
        )
    _check_drops(config.train)
    chosen_on, splits = config.evaluate.choose_on, config.localize.splits
    if chosen_on not in (*splits, EvaluateConfig.choose_on):
        raise ConfigError(unknown_name('split in config.evaluate.choose_on', chosen_on, splits))
    closing = config.evaluate.closing
    if closing and closing % 2 == 0:
        raise ConfigError(f'config.evaluate.closing must be odd (or 0), got {closing}')


def _check_names(config: Config) -> None:
    for stage in config.stages:
        if stage not in STAGES:
            raise ConfigError(unknown_name('stage in config.stages', stage, STAGES))
    for key, names in (('stages', config.stages), ('localize.splits', config.localize.splits)):
        if not names or len(set(names)) < len(names):
            raise ConfigError(f'config.{key} must name at least one, and none twice, got {names}')


def _check_drops(train: TrainConfig) -> None:
    if train.schedule == 'step' and not train.step_epochs:
        raise ConfigError("config.train.schedule='step' needs step_epochs, where the rate drops")
    if any(later <= epoch for epoch, later in pairwise((0.0, *train.step_epochs))):
        raise ConfigError(
            f'config.train.step_epochs must increase from above 0, got {train.step_epochs}'
        )

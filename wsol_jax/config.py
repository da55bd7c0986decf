"""The experiment's settings: small frozen dataclasses, read once from an ml_collections tree.

A config file returns `default_config()` with what differs; the command line overrides single
values (`--config.train.epochs=3`). Behind `read_config` nothing sees a ConfigDict.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import ml_collections

from wsol_jax.names import unknown_name

STAGES = ('train', 'localize', 'evaluate', 'report')


@dataclass(frozen=True)
class DataConfig:
    """Where images, labels, boxes and masks come from.

    Attributes:
        source: 'shapes' (generated), 'wsol_folder' or 'image_folder' (no labels).
        root: folder of the data set; unused by 'shapes'.
        class_index: labels are the second column of class_names.txt, the indices of a classifier
          with more classes than the data set has.
        shapes_size: side in pixels of generated images.
        shapes_counts: generated images in train, val and test.
        workers: processes that read images; 0 reads in threads.
    """

    source: str = 'shapes'
    root: str = ''
    class_index: bool = False
    shapes_size: int = 96
    shapes_counts: tuple[int, ...] = (1200, 150, 300)
    workers: int = 0


@dataclass(frozen=True)
class NetworkConfig:
    """The classifier.

    Attributes:
        name: a name of `python -m wsol_jax.models`.
        weights: safetensors file to start from; '' for random weights.
        input_size: side in pixels that images are resized to; 0 for the network's own.
        options: of that network, such as {'output_stride': 8}.
    """

    name: str = 'resnet18'
    weights: str = ''
    input_size: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainConfig:
    """SGD with Nesterov momentum on the cross-entropy of the image labels.

    Attributes:
        epochs: passes over the train split.
        batch_size: images per step, over all devices.
        learning_rate: peak of a one-cycle cosine schedule with linear warm-up.
        warmup: fraction of the steps spent warming up.
        momentum: of SGD.
        weight_decay: L2 on kernels, added to the gradient before momentum.
        log_every: steps between rows of progress.csv.
    """

    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 0.01
    warmup: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    log_every: int = 10


@dataclass(frozen=True)
class LocalizeConfig:
    """Which maps to compute.

    Attributes:
        methods: names of localization methods.
        layers: endpoints; 'a+b' fuses the maps at a and b; () for all main layers.
        classes: 'ground_truth', 'top1', 'top5', or a class index written as a string.
        splits: which splits of the data set.
        batch_size: images per step, over all devices; does not change the maps.
        alpha: class weight in DGL's loss gradient.
        fusion: 'mean', 'max' or 'product' over layers.
        scales: factors on the input size, averaged.
        flip: average with the mirrored image.
    """

    methods: tuple[str, ...] = ('dgl', 'cam')
    layers: tuple[str, ...] = ()
    classes: str = 'ground_truth'
    splits: tuple[str, ...] = ('val', 'test')
    batch_size: int = 32
    alpha: float = 10.0
    fusion: str = 'mean'
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False


@dataclass(frozen=True)
class EvaluateConfig:
    """How maps become boxes and scores.

    Attributes:
        choose_on: split on which layers and thresholds are chosen.
        size: side in pixels of the square canvas on which maps and boxes are compared.
        threshold_step: spacing of the thresholds in [0, 1).
        threshold: used where nothing can be chosen: data without boxes.
        closing: diameter in canvas pixels of the grey-scale closing of score maps; 0 for none.
    """

    choose_on: str = 'val'
    size: int = 224
    threshold_step: float = 0.01
    threshold: float = 0.2
    closing: int = 0


@dataclass(frozen=True)
class ReportConfig:
    """The figures.

    Attributes:
        images: how many images the overlay figures show.
    """

    images: int = 8


@dataclass(frozen=True)
class Config:
    """A whole experiment; `stages` run in the order of `STAGES`."""

    stages: tuple[str, ...] = STAGES
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    localize: LocalizeConfig = field(default_factory=LocalizeConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    report: ReportConfig = field(default_factory=ReportConfig)


class ConfigError(ValueError):
    """A setting that is misspelt, of the wrong type, or out of range."""


def default_config() -> ml_collections.ConfigDict:
    """Every setting at its default, for config files to change."""
    return ml_collections.ConfigDict(dataclasses.asdict(Config()))


def read_config(tree: ml_collections.ConfigDict | Mapping[str, Any]) -> Config:
    """Reads a config tree into dataclasses.

    Raises:
        ConfigError: an unknown key (with the nearest right one), a wrong type or a wrong value.
    """
    plain = tree.to_dict() if isinstance(tree, ml_collections.ConfigDict) else tree
    if not isinstance(plain, Mapping):
        raise ConfigError(f'get_config() must return a ConfigDict, got {plain!r}')
    config = _read(Config, plain, 'config')
    _check(config)
    return config


def check_key(path: str) -> None:
    """Checks that 'train.epochs' is a setting; the names below network.options are free.

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
        if where == 'config.network.options':
            return


def flatten(config: Config) -> dict[str, Any]:
    """{'train.epochs': 10, ...}, for comparing and storing; tuples become lists."""
    flat: dict[str, Any] = {}

    def walk(value, prefix):
        if isinstance(value, dict):
            for key, child in value.items():
                walk(child, f'{prefix}.{key}' if prefix else key)
        else:
            flat[prefix] = list(value) if isinstance(value, tuple) else value

    walk(dataclasses.asdict(config), '')
    return flat


def _read(kind: type, values: Mapping[str, Any], path: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise ConfigError(unknown_name(f'key in {path}', key, fields))
    defaults = kind()
    read = {
        k: _convert(getattr(defaults, k), fields[k].type, v, f'{path}.{k}')
        for k, v in values.items()
    }
    return kind(**read)


def _convert(default: Any, kind: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(default):
        if not isinstance(value, Mapping):
            raise ConfigError(f'{path} is a group of settings, got {value!r}')
        return _read(type(default), value, path)
    if isinstance(default, tuple):
        if not isinstance(value, tuple | list):
            hint = f'write ({value!r},)'
            raise ConfigError(f'{path} must be of type tuple, got {value!r}; {hint}')
        element = get_args(kind)[0]
        return tuple(_scalar(element, v, f'{path}[{i}]') for i, v in enumerate(value))
    return _scalar(Mapping if isinstance(default, dict) else kind, value, path)


def _scalar(kind: type, value: Any, path: str) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f'{path} must be of type {kind.__name__}, got {value!r}')
    return value


def _check(config: Config) -> None:
    for stage in config.stages:
        if stage not in STAGES:
            raise ConfigError(unknown_name('stage in config.stages', stage, STAGES))
    for key, names in {
        'config.stages': config.stages,
        'config.localize.splits': config.localize.splits,
    }.items():
        if not names or len(set(names)) < len(names):
            raise ConfigError(f'{key} must name at least one, and none twice, got {names}')
    limits = {
        'config.seed': (config.seed, 0),
        'config.network.input_size': (config.network.input_size, 0),
        'config.train.batch_size': (config.train.batch_size, 1),
        'config.train.epochs': (config.train.epochs, 1),
        'config.train.log_every': (config.train.log_every, 1),
        'config.localize.batch_size': (config.localize.batch_size, 1),
        'config.evaluate.size': (config.evaluate.size, 2),
        'config.evaluate.closing': (config.evaluate.closing, 0),
        'config.data.workers': (config.data.workers, 0),
        'config.report.images': (config.report.images, 0),
    }
    for key, (value, least) in limits.items():
        if value < least:
            raise ConfigError(f'{key} must be at least {least}, got {value}')
    closing = config.evaluate.closing
    if closing and closing % 2 == 0:
        raise ConfigError(f'config.evaluate.closing must be odd (or 0), got {closing}')
    for name in ('threshold_step', 'threshold'):
        value = getattr(config.evaluate, name)
        if not 0 < value < 1:
            raise ConfigError(f'config.evaluate.{name} must lie between 0 and 1, got {value}')

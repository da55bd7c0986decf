"""The experiment's settings: small frozen dataclasses, read once from an ml_collections tree.

A config file returns `default_config()` with what differs; the command line overrides single
values (`--config.train.epochs=3`). Behind `read_config` nothing sees a ConfigDict.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, get_args, get_origin

from wsol_jax.limits import check
from wsol_jax.names import shown, unknown_name

if TYPE_CHECKING:  # counting processes get settings, and no tree
    import ml_collections

_LARGEST = 10**300  # of the whole numbers that are read as floats
STAGES = ('train', 'localize', 'evaluate', 'report')


@dataclass(frozen=True)
class DataConfig:
    """Where images, labels, boxes and masks come from.

    Attributes:
        source: 'shapes' (generated), 'wsol_folder', 'class_folder' (class/image.jpg), 'tfds'
          (prepared by TensorFlow Datasets) or 'image_folder' (no labels).
        root: folder of the data set, or TFDS's data_dir; unused by 'shapes'.
        name: which TFDS data set, such as 'caltech_birds2011'; of no use to other sources.
        class_index: labels are the second column of class_names.txt (`name,index`), the indices of
          a classifier with more classes than the data set has; a 'class_folder' has it in its root.
        orientation: 'displayed' turns images as their EXIF orientation says, 'stored' does not;
          image_sizes.txt, boxes and masks are taken to be drawn that way. 'auto' is 'displayed' for
          'image_folder' and 'class_folder', else 'stored'.
        max_pixels: larger images are refused; one of them takes 4 bytes a pixel while it is read.
        shapes_size: side in pixels of generated images.
        shapes_counts: generated images in train, val and test.
        workers: processes that read images; 0 reads in threads.
    """

    source: str = 'shapes'
    root: str = ''
    name: str = ''
    class_index: bool = False
    orientation: str = 'auto'
    max_pixels: int = 500_000_000
    shapes_size: int = 96
    shapes_counts: tuple[int, ...] = (1200, 150, 300)
    workers: int = 0


@dataclass(frozen=True)
class NetworkConfig:
    """The classifier.

    Attributes:
        name: a name of `python -m wsol_jax.models`.
        weights: safetensors file, or workdir of a training, to start from; '' for random weights.
        input_size: side in pixels that images are resized to; 0 for the network's own.
        preprocessing: what the weights expect: 'imagenet' (torchvision), 'caffe', 'symmetric'
          (TensorFlow), 'unit' (RGB in [0, 1]), or JSON on the 0..255 scale, such as
          '{"mean": [104, 117, 123], "std": [1, 1, 1], "bgr": true}'; '' for what the weights file
          says, or else for that of the weights known by the network's name.
        probability: what the logits stand for: 'softmax', 'sigmoid' (every class for itself), or ''
          for 'sigmoid' where there is one logit and 'softmax' where there are more.
        options: of that network, such as {'output_stride': 8}.
    """

    name: str = 'resnet18'
    weights: str = ''
    input_size: int = 0
    preprocessing: str = ''
    probability: str = ''
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AugmentConfig:
    """What happens to a training image; the result has the network's input size s.

    Attributes:
        crop: 'warp' squashes the image to (s + margin)^2 and crops s x s at random (DGL);
          'short_side' resizes the short side to s + margin and crops s x s at random (SPG);
          'resized' crops a random part (8 to 100 % of the area, aspect 3/4 to 4/3) and squashes it
          to s x s (Inception).
        margin: pixels; 0 for s / 7, the published 256 / 224.
        flip: mirror with probability 1/2.
        jitter: largest relative change of brightness, contrast and saturation; 0 for none.
    """

    crop: str = 'warp'
    margin: int = 0
    flip: bool = True
    jitter: float = 0.0


@dataclass(frozen=True)
class TrainConfig:
    """Minimizing the cross-entropy of the image labels.

    Where none of optimizer, learning_rate and multipliers is set, the `Config` that this becomes
    part of sets a recipe: AdamW at 2e-4 with a head 5 times as fast where training starts from
    weights, else SGD at 0.01. Where one of them is set, the others are 'sgd', 0.01 and ().

    Attributes:
        init_from: what to start from: a weights file, or another workdir; '' for network.weights.
        epochs: passes over the train split.
        batch_size: images per step, over all devices.
        accumulate: parts in which a batch is computed one after the other, to save memory; batch
          statistics are those of a part.
        optimizer: 'sgd' (Nesterov) or 'adamw'; '' as said above.
        learning_rate: the peak of the schedule; 0 as said above.
        schedule: after a linear warm-up 'cosine' to 0, 'poly' to 0, 'step' or 'constant'.
        warmup: fraction of the steps spent warming up.
        step_epochs: when 'step' multiplies the rate by step_factor; in increasing order.
        step_factor: see step_epochs.
        power: of 'poly', rate = peak * (1 - progress)^power.
        multipliers: (regex, factor) pairs on the rate; a parameter takes every factor whose regex
          is found in its name, so (('^fc', 10.0), ('bias$', 2.0)) gives fc.bias 20.
        head: factor on the rate of the layers that depend on the number of classes.
        momentum: of SGD.
        weight_decay: on kernels; 'sgd' adds it to the gradient, 'adamw' applies it decoupled.
        clip: largest global norm of the gradient; 0 for any.
        label_smoothing: of the one-hot labels.
        freeze: regexes; parameters whose names start with one get no gradient. Batch normalisation
          whose scale is among them keeps and uses the statistics it has.
        dtype: 'float32' or 'bfloat16', of the computation; weights and statistics stay float32.
        ema: decay of a moving average of the weights, which is then what is evaluated; 0 for none.
        keep: the checkpoint to localize with: 'best' accuracy on val, or 'last'.
        checkpoint_every: steps between checkpoints within an epoch.
        log_every: steps between rows of progress.csv.
    """

    init_from: str = ''
    epochs: int = 10
    batch_size: int = 32
    accumulate: int = 1
    optimizer: str = ''
    learning_rate: float = 0.0
    schedule: str = 'cosine'
    warmup: float = 0.1
    step_epochs: tuple[float, ...] = ()
    step_factor: float = 0.1
    power: float = 0.9
    multipliers: tuple[tuple[str, float], ...] = ()
    head: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float = 0.0
    label_smoothing: float = 0.0
    freeze: tuple[str, ...] = ()
    dtype: str = 'float32'
    ema: float = 0.0
    keep: str = 'best'
    checkpoint_every: int = 1000
    log_every: int = 10


@dataclass(frozen=True)
class LocalizeConfig:
    """Which maps to compute.

    Attributes:
        methods: names of localization methods; 'a+b' fuses two.
        layers: endpoints; 'a+b' fuses the maps at a and b; () for all main layers.
        score: what is explained of a class: 'logit', 'softmax' or 'finer_cam'.
        classes: 'ground_truth' (all labels of each image), 'top1', 'top5', or a class index written
            as a string.
        splits: which splits of the data set; of an 'image_folder', which has none, the last name.
        batch_size: images per step, over all devices; does not change the maps.
        alpha: class weight in DGL's loss gradient.
        fusion: 'mean', 'max', 'product' or 'layer_cam' over layers and methods.
        scales: factors on the input size, averaged.
        flip: average with the mirrored image.
        aug_smooth: average over flips and inputs 10 % brighter and darker.
        eigen_smooth: first principal component of a map's terms instead of their sum.
        noise: average over this many noisy images, too.
        sigma: of the noise, in standard deviations of each input.
        chunk_size: copies of a batch that Score-CAM and its like run at once: batch_size times as
          many images.
    """

    methods: tuple[str, ...] = ('dgl', 'cam')
    layers: tuple[str, ...] = ()
    classes: str = 'ground_truth'
    splits: tuple[str, ...] = ('val', 'test')
    batch_size: int = 32
    score: str = 'logit'
    alpha: float = 10.0
    fusion: str = 'mean'
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    aug_smooth: bool = False
    eigen_smooth: bool = False
    noise: int = 0
    sigma: float = 0.3
    chunk_size: int = 16


@dataclass(frozen=True)
class EvaluateConfig:
    """How maps become boxes and scores.

    Attributes:
        choose_on: split on which layers and thresholds are chosen; its own scores are oracles.
        size: side in pixels of the square canvas on which maps and boxes are compared.
        threshold_step: spacing of the thresholds in [0, 1).
        threshold: used where nothing can be chosen: data without boxes.
        closing: diameter in canvas pixels of the grey-scale closing of score maps; 0 for none.
        protocols: of older tables, to quote them by: names of
          `wsol_jax.evaluation.protocols.PROTOCOLS`, or 'name:threshold', such as 'bas:0.15'.
        faithfulness: images of the last split on which average drop, insertion, deletion and ROAD
          of each method's chosen layer are computed, at 57 forward passes a map; 0 for none.
        processes: how many count at once; does not change the scores.
    """

    choose_on: str = 'val'
    size: int = 224
    threshold_step: float = 0.01
    threshold: float = 0.2
    closing: int = 0
    protocols: tuple[str, ...] = ()
    faithfulness: int = 0
    processes: int = 1


@dataclass(frozen=True)
class ReportConfig:
    """The figures and the page.

    Attributes:
        images: how many images the overlay figures show.
        gallery: how many images report.html shows.
        format: of the figures: 'png' or 'svg'.
    """

    images: int = 8
    gallery: int = 100
    format: str = 'png'


@dataclass(frozen=True)
class Config:
    """A whole experiment; when it is made the recipe of training is set, see `TrainConfig`.

    Attributes:
        stages: which of `STAGES`, run in that order.
        seed: of everything random.
        parallel: 'jit' or 'pmap': how the local devices share a batch; the numbers are the same.
    """

    stages: tuple[str, ...] = STAGES
    seed: int = 0
    parallel: str = 'jit'
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    localize: LocalizeConfig = field(default_factory=LocalizeConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        from_weights = bool(self.network.weights or self.train.init_from)
        object.__setattr__(self, 'train', _with_recipe(self.train, from_weights))


class ConfigError(ValueError):
    """A setting that is misspelt, of the wrong type, or out of range."""


def default_config() -> 'ml_collections.ConfigDict':
    """Every setting at its default, for config files to change."""
    import ml_collections

    tree = dataclasses.asdict(Config())
    tree['train'] = dataclasses.asdict(TrainConfig())  # its recipe hangs on what else is set
    return ml_collections.ConfigDict(tree)


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


def _with_recipe(train: TrainConfig, from_weights: bool) -> TrainConfig:
    """See `TrainConfig`. SGD at 0.01 leaves a fine-tuned network at chance for epochs."""
    is_set = bool(train.optimizer or train.learning_rate or train.multipliers)
    if from_weights and not is_set:
        head = 5.0 if train.head == TrainConfig.head else train.head
        return dataclasses.replace(train, optimizer='adamw', learning_rate=2e-4, head=head)
    return dataclasses.replace(
        train, optimizer=train.optimizer or 'sgd', learning_rate=train.learning_rate or 0.01
    )


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
    """{'train.epochs': 10, ...}, for comparing and storing; tuples become lists, as in JSON."""
    flat: dict[str, Any] = {}

    def walk(value, prefix):
        if isinstance(value, dict):
            for key, child in value.items():
                walk(child, f'{prefix}.{key}' if prefix else key)
        else:
            flat[prefix] = _lists(value)

    walk(dataclasses.asdict(config), '')
    return flat


def _lists(value: Any) -> Any:
    return [_lists(v) for v in value] if isinstance(value, tuple | list) else value


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
            raise ConfigError(f'{path} is a group of settings, got {shown(value)}')
        return _read(type(default), value, path)
    if isinstance(default, tuple):
        if not isinstance(value, tuple | list):
            hint = f'write ({shown(value)},)'
            raise ConfigError(f'{path} must be of type tuple, got {shown(value)}; {hint}')
        return _tuple(kind, value, path)
    return _options(value, path) if isinstance(default, dict) else _scalar(kind, value, path)


def _options(value: Any, path: str) -> Any:
    """Free settings: names with values that config.json can record."""
    _scalar(Mapping, value, path)
    for key, option in value.items():
        if not isinstance(key, str):
            raise ConfigError(f'{path} must have names as keys, got {shown(key)}')
        if isinstance(option, Mapping):
            _options(option, f'{path}.{key}')
        elif not _is_plain(option):
            raise ConfigError(
                f'{path}.{key} must be a number, a text or a tuple, got {shown(option)}'
            )
    return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)


def _tuple(kind: Any, value: Any, path: str) -> tuple:
    elements = get_args(kind)
    if elements[-1] is Ellipsis:
        elements = elements[:1] * len(value)
    if not isinstance(value, tuple | list) or len(value) != len(elements):
        raise ConfigError(
            f'{path} must be {len(elements)} values in parentheses, got {shown(value)}'
        )
    return tuple(
        (_tuple if get_origin(e) is tuple else _scalar)(e, v, f'{path}[{i}]')
        for i, (e, v) in enumerate(zip(elements, value, strict=True))
    )


def _scalar(kind: type, value: Any, path: str) -> Any:
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < _LARGEST else math.inf
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f'{path} must be of type {kind.__name__}, got {shown(value)}')
    return value


def _check(config: Config) -> None:
    _check_names(config)
    for key, value in flatten(config).items():
        if fault := check(key, value):
            raise ConfigError(fault)
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

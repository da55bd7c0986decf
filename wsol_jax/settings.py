"""The experiment's settings: small frozen dataclasses.

All that is known of a setting stands beside it: its default, its meaning, what a change of it
invalidates (and with it what follows: checkpoints, maps, scores), and which values are right.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wsol_jax.data.augment import AugmentConfig
from wsol_jax.data.records import MAX_PIXELS, ORIENTATIONS
from wsol_jax.fields import (
    ANY,
    KEPT,
    Kept,
    Range,
    Setting,
    documented,
    regex,
    setting,
    settings_of,
    split_name,
    store_url,
    value_fault,
)

STAGES = ('train', 'localize', 'evaluate', 'report')
_COUNT = Range(1, 65_536)
_EVERY = Range(1, 1_000_000_000)
_BELOW_ONE = Range(0, 1, '[)')
SEEDS = Range(0, 2**32 - 1)


@documented
@dataclass(frozen=True)
class DataConfig:
    """Where images, labels, boxes and masks come from."""

    source: str = setting(
        'shapes',
        "'shapes' (generated), 'scenes' (generated, of several objects, with label maps), "
        "'relations' (generated, shapes with expressions that refer to them), "
        "'lidar_scenes' (generated, LiDAR sweeps with 3D boxes), "
        "'kitti', 'nuscenes' (their layouts), "
        "'wsol_folder', 'class_folder' (class/image.jpg), 'voc' (PASCAL VOC's layout), 'coco' (MS "
        "COCO's), 'coco_expressions' (VOC's layout and boxes, of which expressions are made), "
        "'refcoco' (MS COCO with expressions that people said), 'tfds' (prepared by TensorFlow "
        "Datasets) or 'image_folder' (no labels)",
        'checkpoints',
    )
    root: str = setting(
        '', "folder of the data set, or TFDS's data_dir; generated images need none", 'checkpoints'
    )
    name: str = setting(
        '',
        "which TFDS data set, such as 'caltech_birds2011', or which folder of nuScenes' tables, "
        'where there are several; of no use to other sources',
        'checkpoints',
    )
    class_index: bool = setting(
        False,
        'labels are the second column of class_names.txt (`name,index`), the indices of a '
        "classifier with more classes than the data set has; a 'class_folder' has it in its root",
        'checkpoints',
    )
    orientation: str = setting(
        'auto',
        "'displayed' turns images as their EXIF orientation says, 'stored' does not; "
        "image_sizes.txt, boxes and masks are taken to be drawn that way. 'auto' is 'displayed' "
        "for 'image_folder' and 'class_folder', else 'stored'",
        'checkpoints',
        choices=ORIENTATIONS,
    )
    # Images that were too large are tried again, like all that could not be read.
    max_pixels: int = setting(
        MAX_PIXELS,
        'larger images are refused; one of them takes 4 bytes a pixel while it is read',
        'nothing',
        Range(1, 2**31 - 1),
    )
    shapes_size: int = setting(
        96, 'side in pixels of generated images', 'checkpoints', Range(1, 4096)
    )
    shapes_counts: tuple[int, ...] = setting(
        (1200, 150, 300),
        'generated images in train, val and test',
        'checkpoints',
        Range(1, 10_000_000),
    )
    labelled: float = setting(
        1.0,
        'share of the frames in train whose 3D boxes are known; of the others, the class of each '
        'object and a point on it',
        'checkpoints',
        Range(0, 1),
    )
    workers: int = setting(
        0, 'processes that read images; 0 reads in threads', 'nothing', Range(0, 256)
    )


@documented
@dataclass(frozen=True)
class NetworkConfig:
    """The classifier."""

    name: str = setting('resnet18', 'a name of `python -m wsol_jax.models`', 'checkpoints')
    weights: str = setting(
        '',
        'safetensors file, workdir of a training, or the name of public weights, such as '
        "'timm/resnet50.a1_in1k', to start from; '' for random weights",
        'checkpoints',
    )
    input_size: int = setting(
        0,
        "side in pixels that images are resized to; 0 for the network's own",
        'checkpoints',
        Range(0, 8192),
    )
    preprocessing: str = setting(
        '',
        "what the weights expect: 'imagenet' (torchvision), 'caffe', 'symmetric' (TensorFlow), "
        "'unit' (RGB in [0, 1]), or JSON on the 0..255 scale, such as "
        """'{"mean": [104, 117, 123], "std": [1, 1, 1], "bgr": true}'; '' for what the weights """
        "file says, or else for that of the weights known by the network's name",
        'checkpoints',
    )
    probability: str = setting(
        '',
        "what the logits stand for: 'softmax', 'sigmoid' (every class for itself), or '' for "
        "'sigmoid' where there is one logit or train.loss trained it so, else 'softmax'",
        'checkpoints',
    )
    options: Mapping[str, Any] = setting(
        {}, "of that network, such as {'output_stride': 8}", 'checkpoints'
    )


@documented
@dataclass(frozen=True)
class TrainConfig:
    """How the network is trained: by default on the cross-entropy of the image labels.

    Where none of optimizer, learning_rate and multipliers is set, the `Config` that this becomes
    part of sets a recipe: AdamW at 2e-4 with a head 5 times as fast where training starts from
    weights, else SGD at 0.01. Where one of them is set, the others are 'sgd', 0.01 and ().
    """

    init_from: str = setting(
        '',
        "what to start from: a weights file, or another workdir; '' for network.weights",
        'checkpoints',
    )
    split: str = setting(
        'train', "what is trained on, such as 'train_aug' of VOC, or 'trainval'", 'checkpoints'
    )
    epochs: int = setting(10, 'passes over the images of it', 'checkpoints', Range(1, 100_000))
    batch_size: int = setting(32, 'images per step, over all devices', 'checkpoints', _COUNT)
    accumulate: int = setting(
        1,
        'parts in which a batch is computed one after the other, to save memory; batch statistics '
        'are those of a part',
        'checkpoints',
        _COUNT,
    )
    optimizer: str = setting(
        '',
        "'sgd' is Nesterov's; '' for 'sgd', or for the recipe of training from weights",
        'checkpoints',
        choices=('sgd', 'adamw'),
    )
    learning_rate: float = setting(
        0.0,
        'the peak of the schedule; 0 for 0.01, or for the recipe of training from weights',
        'checkpoints',
        Range(0, 1000),
    )
    schedule: str = setting(
        'cosine',
        'of the rate after a linear warm-up; cosine and poly end at 0',
        'checkpoints',
        choices=('cosine', 'poly', 'step', 'constant'),
    )
    warmup: float = setting(
        0.1, 'fraction of the steps spent warming up', 'checkpoints', _BELOW_ONE
    )
    step_epochs: tuple[float, ...] = setting(
        (),
        "when 'step' multiplies the rate by step_factor; in increasing order",
        'checkpoints',
        Range(0, 100_000),
    )
    step_factor: float = setting(0.1, 'see step_epochs', 'checkpoints', Range(0, 1000, '(]'))
    power: float = setting(
        0.9, "of 'poly', rate = peak * (1 - progress)^power", 'checkpoints', Range(0, 1000, '(]')
    )
    multipliers: tuple[tuple[str, float], ...] = setting(
        (),
        '(regex, factor) pairs on the rate; a parameter takes every factor whose regex is found '
        "in its name, so (('^fc', 10.0), ('bias$', 2.0)) gives fc.bias 20",
        'checkpoints',
        Range(0, 1_000_000),
        rule=regex,
    )
    head: float = setting(
        1.0,
        'factor on the rate of the layers that depend on the number of classes',
        'checkpoints',
        Range(0, 1_000_000),
    )
    momentum: float = setting(0.9, 'of SGD', 'checkpoints', _BELOW_ONE)
    weight_decay: float = setting(
        5e-4,
        "on kernels; 'sgd' adds it to the gradient, 'adamw' applies it decoupled",
        'checkpoints',
        Range(0, 1000),
    )
    clip: float = setting(
        0.0,
        'largest global norm of the gradient; 0 for any',
        'checkpoints',
        Range(0, 1_000_000_000),
    )
    loss: str = setting(
        'softmax',
        "'softmax' is the cross-entropy of the one label of an image, 'sigmoid' that of every "
        'class for itself, averaged over the classes, which is the multi-label soft margin: for '
        'images of several labels',
        'checkpoints',
        choices=('softmax', 'sigmoid'),
    )
    label_smoothing: float = setting(0.0, 'of the one-hot labels', 'checkpoints', _BELOW_ONE)
    class_weights: tuple[float, ...] = setting(
        (),
        "factors on the loss, one for each class: 'softmax' takes that of the image's label, "
        "'sigmoid' has one on the term of every class; () for none",
        'checkpoints',
        Range(0, 1_000_000),
    )
    balanced: bool = setting(
        False,
        'draw the images of every class equally often, as many of all together as train has in an '
        'epoch; else every image once',
        'checkpoints',
    )
    freeze: tuple[str, ...] = setting(
        (),
        'regexes; parameters whose names start with one get no gradient. Batch normalisation '
        'whose scale is among them keeps and uses the statistics it has',
        'checkpoints',
        rule=regex,
    )
    dtype: str = setting(
        'float32',
        'of the computation; weights and statistics stay float32',
        'checkpoints',
        choices=('float32', 'bfloat16'),
    )
    ema: float = setting(
        0.0,
        'decay of a moving average of the weights, which is then what is evaluated; 0 for none',
        'checkpoints',
        _BELOW_ONE,
    )
    keep: str = setting(
        'best',
        "the checkpoint to localize with: 'best' on val (of accuracy, with several labels of mAP, "
        "unless the training method says otherwise), 'last', or 'best_localization', of the "
        "highest MaxBoxAccV2 on val of the method's own map, else of CAM; a training must begin "
        'with that, for it costs the maps and boxes of val in every epoch',
        'maps',
        choices=('best', 'last', 'best_localization'),
    )
    checkpoint_every: int = setting(
        1000, 'steps between checkpoints within an epoch', 'nothing', _EVERY
    )
    log_every: int = setting(10, 'steps between rows of progress.csv', 'nothing', _EVERY)
    method: str = setting(
        '',
        "of training, such as 'acol' or 'bas'; '' for the plain classifier",
        'checkpoints',
    )
    options: Mapping[str, Any] = setting(
        {}, "of that method, such as {'delta': 0.7}", 'checkpoints'
    )


@documented
@dataclass(frozen=True)
class MapOptions:
    """How maps are made, in the command as in `wsol_jax.localize`."""

    score: str | Callable[..., Any] = setting(
        'logit',
        "what is explained of a class: 'logit', 'softmax' or 'finer_cam'; in Python a function "
        '(logits [C], class) -> scalar, too',
        'maps',
    )
    alpha: float = setting(10.0, "class weight in DGL's loss gradient", 'maps', ANY)
    fusion: str = setting(
        'mean', "'mean', 'max', 'product' or 'layer_cam' over layers and methods", 'maps'
    )
    scales: tuple[float, ...] = setting(
        (1.0,), 'factors on the input size, averaged', 'maps', Range(0, 16, '(]')
    )
    flip: bool = setting(False, 'average with the mirrored image', 'maps')
    aug_smooth: bool = setting(
        False, 'average over flips and inputs 10 % brighter and darker', 'maps'
    )
    eigen_smooth: bool = setting(
        False, "first principal component of a map's terms instead of their sum", 'maps'
    )
    noise: int = setting(
        0, 'average over this many noisy images, too (SmoothGrad)', 'maps', Range(0, 10_000)
    )
    sigma: float = setting(
        0.3, 'of the noise, in standard deviations of each input', 'maps', Range(0, 100, '(]')
    )
    chunk_size: int = setting(
        16,
        'copies of a batch that Score-CAM and its like run at once: batch_size times as many '
        'images',
        'nothing',
        _COUNT,
    )


@documented
@dataclass(frozen=True)
class LocalizeConfig(MapOptions):
    """Which maps to compute."""

    methods: tuple[str, ...] = setting(
        ('dgl', 'cam'), "names of localization methods; 'a+b' fuses two", 'maps'
    )
    layers: tuple[str, ...] = setting(
        (), "endpoints; 'a+b' fuses the maps at a and b; () for all main layers", 'maps'
    )
    classes: str = setting(
        'ground_truth',
        "'ground_truth' (all labels of each image), 'top1', 'top5', or a class index written as a "
        'string',
        'maps',
    )
    # Changes which maps are scored, not what they are.
    splits: tuple[str, ...] = setting(
        ('val', 'test'),
        "which splits of the data set; of an 'image_folder', which has none, the last name",
        'scores',
        rule=split_name,
    )
    store: str = setting(
        '',
        "where the arrays of the maps lie: '' for the workdir, or a URL such as gs://BUCKET/RUN, "
        's3://BUCKET/RUN or file:///FOLDER, of this run alone',
        'maps',
        rule=store_url,
    )
    batch_size: int = setting(
        32, 'images per step, over all devices; does not change the maps', 'nothing', _COUNT
    )


@documented
@dataclass(frozen=True)
class EvaluateConfig:
    """How maps become boxes and scores."""

    choose_on: str = setting(
        'val',
        'split on which layers and thresholds are chosen; its own scores are oracles',
        'scores',
        rule=split_name,
    )
    size: int = setting(
        224,
        'side in pixels of the square canvas on which maps and boxes are compared',
        'scores',
        Range(2, 4096),
    )
    threshold_step: float = setting(
        0.01, 'spacing of the thresholds in [0, 1)', 'scores', Range(0.0001, 1, '[)')
    )
    threshold: float = setting(
        0.2, 'used where nothing can be chosen: data without boxes', 'scores', Range(0, 1, '()')
    )
    closing: int = setting(
        0,
        'diameter in canvas pixels of the grey-scale closing of score maps; odd, or 0 for none',
        'scores',
        Range(0, 4095),
    )
    protocols: tuple[str, ...] = setting(
        (),
        'of older tables, to quote them by: names of '
        "`wsol_jax.evaluation.protocols.PROTOCOLS`, or 'name:threshold', such as 'bas:0.15'",
        'scores',
    )
    faithfulness: int = setting(
        0,
        'images of the last split on which average drop, insertion, deletion and ROAD of each '
        "method's chosen layer are computed, at 57 forward passes a map; 0 for none",
        'scores',
        Range(0, 1_000_000_000),
    )
    processes: int = setting(
        1, 'processes that score at once; does not change the scores', 'nothing', Range(1, 256)
    )


@documented
@dataclass(frozen=True)
class SegmentationConfig:
    """What is done on the way from maps to label maps, with task='segmentation'."""

    walk: int = setting(
        0,
        'a random walk of 2^walk steps carries maps to the boundaries that a network trained by '
        "'irn' finds; 0 for none",
        'maps',
        Range(0, 16),
    )
    crf: bool = setting(
        False,
        'label maps of seeds follow the edges of their images (dense CRF, setting of IRN) after '
        'their threshold is chosen; what is scored are these; slow',
        'scores',
    )


@documented
@dataclass(frozen=True)
class ReportConfig:
    """The figures and the page."""

    images: int = setting(8, 'how many images the overlay figures show', 'nothing', Range(0, 1000))
    gallery: int = setting(100, 'how many images report.html shows', 'nothing', Range(0, 100_000))
    format: str = setting('png', 'of the figures', 'nothing', choices=('png', 'svg'))


@documented
@dataclass(frozen=True)
class Config:
    """A whole experiment; when it is made the recipe of training is set, see `TrainConfig`."""

    stages: tuple[str, ...] = setting(STAGES, 'which stages to run, in this order', 'nothing')
    task: str = setting(
        'localization',
        "what is computed of each image: 'localization' (maps and boxes), 'segmentation' (label "
        "maps from image labels), 'points' (boxes in 3D from points) or 'grounding' (the box that "
        'a sentence means)',
        'scores',
        choices=('localization', 'segmentation', 'points', 'grounding'),
    )
    seed: int = setting(0, 'of everything random', 'checkpoints', SEEDS)
    parallel: str = setting(
        'jit',
        'how the local devices share a batch; the numbers are the same',
        'nothing',
        choices=('jit', 'pmap'),
    )
    wandb: str = setting(
        '',
        "project of Weights & Biases that gets the rows of progress.csv, too; '' for none",
        'nothing',
    )
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    localize: LocalizeConfig = field(default_factory=LocalizeConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        from_weights = bool(self.network.weights or self.train.init_from)
        object.__setattr__(self, 'train', _with_recipe(self.train, from_weights))


def _with_recipe(train: TrainConfig, from_weights: bool) -> TrainConfig:
    """See `TrainConfig`. SGD at 0.01 leaves a fine-tuned network at chance for epochs."""
    is_set = bool(train.optimizer or train.learning_rate or train.multipliers)
    if from_weights and not is_set:
        head = 5.0 if train.head == TrainConfig.head else train.head
        return dataclasses.replace(train, optimizer='adamw', learning_rate=2e-4, head=head)
    return dataclasses.replace(
        train, optimizer=train.optimizer or 'sgd', learning_rate=train.learning_rate or 0.01
    )


SETTINGS = settings_of(Config)


def setting_at(key: str) -> Setting | None:
    """The setting of a key such as 'train.epochs'; of what is below free options, that of all."""
    parts = key.split('.')
    keys = ('.'.join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((SETTINGS[key] for key in keys if key in SETTINGS), None)


def check(key: str, value: Any) -> str:
    """What is wrong with the value of a setting, in one line; '' if nothing is.

    Args:
        key: such as 'train.epochs'.
        value: of the setting's type; of lists every element is checked.
    """
    known = setting_at(key)
    if known is None:
        raise KeyError(key)
    return value_fault(known, f'config.{key}', value)


def invalidates(key: str, kept: Kept) -> bool:
    """Whether another value of a setting makes kept results wrong.

    Of a key that other versions had, all that a setting of its group invalidates, scores at least.
    """
    known, group = setting_at(key), f'{key.split(".")[0]}.'
    alike = [known] if known else [s for k, s in SETTINGS.items() if k.startswith(group)]
    first = min((KEPT.index(s.invalidates) for s in alike), default=KEPT.index('scores'))
    return (first if known else min(first, KEPT.index('scores'))) <= KEPT.index(kept)

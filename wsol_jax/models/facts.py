"""What is published of weights beside their numbers: preprocessing, input size, class names."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from wsol_jax.models.preprocessing import Preprocessing, as_preprocessing
from wsol_jax.models.published import HUB_CONFIG, HUB_PREPROCESSOR, HUB_WEIGHTS, read_object
from wsol_jax.models.torchvision_weights import TORCHVISION
from wsol_jax.models.weights import WeightsError, read_metadata

IMAGENET_CLASSES = 1000
_RESAMPLING = {0: 'nearest', 1: 'lanczos', 2: 'bilinear', 3: 'bicubic'}  # PIL's numbers


@dataclass(frozen=True)
class Facts:
    """What is known of the weights in a file; what nothing tells is None or ''.

    Attributes:
        preprocessing: of their images.
        input_size: (height, width) in pixels of the images they were trained with.
        class_names: of their logits.
        resized: how images became that large where their accuracy was measured.
        told_by: the file, or whose table, that says so.
    """

    preprocessing: Preprocessing | None = None
    input_size: tuple[int, int] | None = None
    class_names: tuple[str, ...] | None = None
    resized: str = ''
    told_by: str = ''


@cache
def imagenet_classes() -> tuple[str, ...]:
    """Short names of the 1000 classes of ILSVRC 2012 (ImageNet-1k), as torchvision has them."""
    text = files('wsol_jax.models').joinpath('imagenet_classes.txt').read_text(encoding='utf-8')
    return tuple(text.splitlines())


def facts_of(path: Path) -> Facts:
    """What is known of a weights file: from its metadata, from what lies beside it, by its name.

    Args:
        path: its 'preprocessing' among the metadata of a .safetensors file comes first; then
            config.json and preprocessor_config.json beside a file that the hub names so, of timm or
            of transformers; then torchvision's table of its published files.

    Raises:
        WeightsError: one of these is damaged.
    """
    beside = path.with_name(HUB_CONFIG)
    try:
        if said := read_metadata(path).get('preprocessing'):
            told_by = f'{path}: its metadata'
            return Facts(as_preprocessing(said), told_by=told_by)
        told_by = str(beside)
        if path.name in HUB_WEIGHTS and beside.is_file():
            return _of_config(read_object(beside), beside)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f'{told_by}: {error}') from None
    return _of_torchvision(path.name)


def _of_torchvision(file: str) -> Facts:
    known = next((weights for weights in TORCHVISION if weights.file == file), None)
    if known is None:
        return Facts()
    # Its InceptionV3 maps ImageNet's mean and deviation back to those of TensorFlow.
    half = known.network == 'inception_v3'
    preprocessing = _scaled([0.5] * 3, [0.5] * 3) if half else as_preprocessing('imagenet')
    size = (known.crop, known.crop)
    resized = f'short side {known.resize}, centre crop {known.crop}, bilinear'
    return Facts(preprocessing, size, imagenet_classes(), resized, "torchvision's table")


def _of_config(config: Mapping[str, Any], path: Path) -> Facts:
    if 'model_type' in config:
        beside = path.with_name(HUB_PREPROCESSOR)
        return _of_transformers(config, read_object(beside) if beside.is_file() else {}, path)
    if 'pretrained_cfg' in config or 'mean' in config:
        return _of_timm(config, config.get('pretrained_cfg', config), path)
    return Facts()


def _of_timm(config: Mapping[str, Any], trained: Mapping[str, Any], path: Path) -> Facts:
    names = config.get('label_names') or trained.get('label_names') or trained.get('labels')
    classes = config.get('num_classes', trained.get('num_classes'))
    if not names and classes == IMAGENET_CLASSES:
        names = imagenet_classes()
    size = trained.get('input_size')
    resized = f'{trained["interpolation"]}, ' if 'interpolation' in trained else ''
    resized += f'centre {trained["crop_pct"]:.1%} of the image' if 'crop_pct' in trained else ''
    return Facts(
        _scaled(trained['mean'], trained['std']) if 'mean' in trained else None,
        (int(size[1]), int(size[2])) if size else None,
        tuple(map(str, names)) if names else None,
        resized.removesuffix(', '),
        str(path),
    )


def _of_transformers(config: Mapping[str, Any], images: Mapping[str, Any], path: Path) -> Facts:
    if config.get('downsample_in_bottleneck'):
        raise WeightsError(f'{path}: its ResNet has strides at 1x1 convolutions, ours at 3x3')
    size = _side(images.get('crop_size')) if images.get('do_center_crop') else None
    size = size or _side(images.get('size')) or _side(config.get('image_size'))
    resized = _RESAMPLING.get(images.get('resample', -1), '')
    if 'crop_pct' in images:
        resized += f', centre {images["crop_pct"]:.1%} of the image'
    return Facts(
        _of_images(images) if images else None,
        size,
        _labels(config.get('id2label') or {}),
        resized.removeprefix(', '),
        str(path),
    )


def _of_images(images: Mapping[str, Any]) -> Preprocessing | None:
    factor = images.get('rescale_factor', 1 / 255) if images.get('do_rescale', True) else 1.0
    if not images.get('do_normalize', True):
        return _scaled([0.0] * 3, [1.0] * 3, factor)
    if 'image_mean' not in images or 'image_std' not in images:
        return None
    return _scaled(images['image_mean'], images['image_std'], factor)


def _side(size: Any) -> tuple[int, int] | None:
    """(height, width) of a number, or of the mappings that transformers has for it."""
    if isinstance(size, Mapping):
        side = size.get('shortest_edge')
        size = size.get('height', side), size.get('width', side)
    both = size if isinstance(size, list | tuple) else (size, size)
    return (int(both[0]), int(both[1])) if all(both) else None


def _labels(labels: Mapping[str, str]) -> tuple[str, ...] | None:
    """The names in order; None for those that transformers makes up."""
    names = tuple(str(labels[key]) for key in sorted(labels, key=int))
    if not names or all(name == f'LABEL_{i}' for i, name in enumerate(names)):
        return None
    # ImageNet's own names are lists of synonyms.
    imagenet = len(names) == IMAGENET_CLASSES and names[0].startswith('tench')
    return imagenet_classes() if imagenet else names


def _scaled(mean: Any, std: Any, factor: float = 1 / 255) -> Preprocessing:
    """Of mean and deviation of pixels that were multiplied by a factor."""

    def on_bytes(values: Any) -> tuple[float, ...]:
        return tuple(round(value / factor, 6) for value in values)

    return Preprocessing(on_bytes(mean), on_bytes(std))

"""Where images, labels, boxes and masks come from: one record type, one loader for all sources."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsol_jax.data.class_folder import ClassFolder
from wsol_jax.data.decode import (
    decode_image,
    decode_mask,
    read_label_map,
    resize_image,
    stored_size,
)
from wsol_jax.data.folders import ImageFolder, WsolFolder
from wsol_jax.data.records import (
    BadImage,
    DataError,
    Decoding,
    Labels,
    Record,
    Source,
    evenly_spaced,
)
from wsol_jax.names import lazy, unknown_name

if TYPE_CHECKING:
    from wsol_jax.data.check import Report, check_folder, check_training
    from wsol_jax.data.coco import Coco
    from wsol_jax.data.coco_expressions import CocoExpressions
    from wsol_jax.data.expressions import Expression, generate_expressions
    from wsol_jax.data.kitti import Kitti
    from wsol_jax.data.lidar_scenes import LidarScenes
    from wsol_jax.data.loader import Batch, evaluation_batches, training_batches
    from wsol_jax.data.nuscenes import Nuscenes
    from wsol_jax.data.order import steps_per_epoch
    from wsol_jax.data.refcoco import RefCoco, convert_refs
    from wsol_jax.data.relations import Relations
    from wsol_jax.data.scenes import Scenes
    from wsol_jax.data.shapes import Shapes
    from wsol_jax.data.tfds import TfdsSource
    from wsol_jax.data.voc import Voc

__all__ = [
    'BadImage',
    'Batch',
    'ClassFolder',
    'Coco',
    'CocoExpressions',
    'DataError',
    'Decoding',
    'Expression',
    'ImageFolder',
    'Kitti',
    'Labels',
    'LidarScenes',
    'Nuscenes',
    'Record',
    'RefCoco',
    'Relations',
    'Report',
    'Scenes',
    'Shapes',
    'Source',
    'TfdsSource',
    'Voc',
    'WsolFolder',
    'check_folder',
    'check_training',
    'convert_refs',
    'decode_image',
    'decode_mask',
    'evaluation_batches',
    'evenly_spaced',
    'generate_expressions',
    'open_source',
    'read_label_map',
    'resize_image',
    'steps_per_epoch',
    'stored_size',
    'training_batches',
]

# Counting processes decode masks: they are small without grain, TensorFlow Datasets and the like.
__getattr__, __dir__ = lazy(
    __name__,
    {
        'Report': 'check',
        'check_folder': 'check',
        'check_training': 'check',
        'Coco': 'coco',
        'CocoExpressions': 'coco_expressions',
        'Expression': 'expressions',
        'generate_expressions': 'expressions',
        'Kitti': 'kitti',
        'LidarScenes': 'lidar_scenes',
        'Batch': 'loader',
        'evaluation_batches': 'loader',
        'Nuscenes': 'nuscenes',
        'steps_per_epoch': 'order',
        'training_batches': 'loader',
        'RefCoco': 'refcoco',
        'convert_refs': 'refcoco',
        'Relations': 'relations',
        'Scenes': 'scenes',
        'Shapes': 'shapes',
        'TfdsSource': 'tfds',
        'Voc': 'voc',
    },
)


def _late(name: str) -> Callable[..., Source]:
    """A source whose module is imported when it is opened."""
    return lambda *arguments, **options: __getattr__(name)(*arguments, **options)


def _drawn(name: str) -> Callable[..., Source]:
    """One that has no root."""
    return lambda root, split, **options: __getattr__(name)(split, **options)


def _tfds(root: str | Path, split: str, name: str = '', **options: Any) -> Source:
    return tfds_module().TfdsSource(name, root, split, **options)


def tfds_module() -> Any:
    """`wsol_jax.data.tfds`, for which TensorFlow Datasets must be installed.

    Raises:
        DataError: it is not.
    """
    try:
        return import_module('wsol_jax.data.tfds')
    except ModuleNotFoundError as error:
        if error.name != 'tensorflow_datasets':
            raise
        raise DataError("this needs TensorFlow Datasets: pip install 'wsol_jax[tfds]'") from error


_SOURCES: dict[str, Callable[..., Source]] = {
    'shapes': _drawn('Shapes'),
    'scenes': _drawn('Scenes'),
    'relations': _drawn('Relations'),
    'lidar_scenes': _drawn('LidarScenes'),
    'wsol_folder': WsolFolder,
    'class_folder': ClassFolder,
    'tfds': _tfds,
    'voc': _late('Voc'),
    'coco': _late('Coco'),
    'coco_expressions': _late('CocoExpressions'),
    'refcoco': _late('RefCoco'),
    'kitti': _late('Kitti'),
    'nuscenes': _late('Nuscenes'),
    'image_folder': lambda root, split, **options: ImageFolder(root, **options),
}


def open_source(name: str, root: str | Path, split: str, /, **options: Any) -> Source:
    """Open a data set by name.

    Args:
        name: 'shapes', 'scenes', 'relations' or 'lidar_scenes' (generated; take no root),
            'wsol_folder', 'class_folder', 'tfds', 'voc', 'coco', 'coco_expressions',
            'refcoco', 'kitti', 'nuscenes' or 'image_folder' (has no split).
        root: folder of the data set; for 'tfds' its data_dir.
        split: which part of it.
        **options: further arguments of `Shapes`, `Scenes`, `Relations`, `LidarScenes`,
            `WsolFolder`, `ClassFolder`, `TfdsSource`, `Voc`, `Coco`,
            `CocoExpressions`, `RefCoco`, `Kitti`, `Nuscenes` or `ImageFolder`.

    Raises:
        DataError: the name is unknown, or the data are wrong.
    """
    if name not in _SOURCES:
        raise DataError(unknown_name('data source', name, _SOURCES))
    return _SOURCES[name](root, split, **options)

"""TFDS builders of the data sets of wsolevaluation, prepared once from the folder on disk.

Importing this module registers them, so `tfds.builder('cub200_wsol')` finds them too. Nothing here
needs TensorFlow.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from wsol_jax.data.files import printable, read_file, reason
from wsol_jax.data.folders import WsolFolder, split_names
from wsol_jax.data.records import DataError, Encoded, Record

# A shard is held in memory while it is written, and an open one holds a file descriptor: 2000
# images keep ILSVRC at some 250 MB a shard, and below the usual limit of 1024 open files.
SHARD_IMAGES = 2000

_Examples = Iterator[tuple[int, dict[str, Any]]]


def wsol_features() -> tfds.features.FeaturesDict:
    """What a builder of this module stores of a `Record`; 0 x 0 stands for an unknown size."""
    text, whole = tfds.features.Text, tfds.features.Scalar
    encoded = partial(tfds.features.Tensor, shape=(), dtype=np.object_)
    return tfds.features.FeaturesDict(
        {
            'image': tfds.features.Image(),
            'image_id': text(),
            'labels': tfds.features.Sequence(tfds.features.ClassLabel()),
            'width': whole(np.int64),
            'height': whole(np.int64),
            'boxes': tfds.features.Tensor(shape=(None, 4), dtype=np.int64),
            'masks': tfds.features.Sequence({'mask': encoded(), 'ignore': encoded()}),
        }
    )


def example_of(record: Record) -> dict[str, Any]:
    """A record as `wsol_features` stores it: the bytes of its files, not decoded.

    Raises:
        DataError: its image or one of its masks cannot be read.
    """
    width, height = record.size or (0, 0)
    roots = record.decoding.roots
    return {
        'image': _stored(record.image, roots),
        'image_id': record.image_id,
        'labels': record.labels,
        'width': width,
        'height': height,
        'boxes': np.array(record.boxes, np.int64).reshape(-1, 4),
        'masks': [
            {
                'mask': _stored(mask, roots),
                'ignore': b'' if ignore is None else _stored(ignore, roots),
            }
            for mask, ignore in record.masks
        ],
    }


def record_of(example: dict[str, Any]) -> Record:
    """The record that `example_of` stored; its image and masks are the encoded bytes."""
    masks = example['masks']
    return Record(
        image_id=example['image_id'].decode(),
        image=example['image'],
        labels=tuple(map(int, example['labels'])),
        size=(example['width'], example['height']) if example['width'] else None,
        boxes=tuple(map(tuple, example['boxes'].tolist())),
        masks=tuple(
            (mask, ignore or None)
            for mask, ignore in zip(masks['mask'], masks['ignore'], strict=True)
        ),
    )


def open_folders(root: Path) -> dict[str, WsolFolder]:
    """Every split that a folder in the layout of wsolevaluation has.

    Raises:
        DataError: there is none, or its metadata are wrong.
    """
    splits = {name: WsolFolder(root, name) for name in split_names(root)}
    if not splits:
        raise DataError(f'{root / "metadata"}: holds no split (a folder train, val or test)')
    return splits


class WsolBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Stores every split below manual_dir, its images in the order of image_ids.txt.

    Shard by shard: the shuffling writer of GeneratorBasedBuilder needs TensorFlow beyond 1 GB.
    """

    description: str
    homepage: str
    citation: str
    VERSION = tfds.core.Version('1.0.0')
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'manual_dir: a folder in the layout of wsolevaluation, with images/, class_names.txt and '
        'metadata/<split>/{image_ids,class_labels,image_sizes,localization}.txt'
    )
    # TFDS looks here for a file of checksums, with a package that it does not require.
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=wsol_features(),
            disable_shuffling=True,
            description=self.description,
            homepage=self.homepage,
            citation=self.citation,
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Callable[[], _Examples]]]:
        root = Path(dl_manager.manual_dir)
        folders = open_folders(root)
        self.info.features['labels'].feature.names = _class_names(root, folders.values())
        return {split: _shards(folder) for split, folder in folders.items()}


class Cub200Wsol(WsolBuilder):
    """CUB-200-2011 with the boxes and the splits of wsolevaluation."""

    name = 'cub200_wsol'
    description = (
        'CUB-200-2011 as split by wsolevaluation: train with image labels only, val the '
        'additional images CUBV2 with boxes, test with boxes.'
    )
    homepage = 'https://www.vision.caltech.edu/datasets/cub_200_2011/'
    citation = (
        '@techreport{wah2011cub, author={Wah, C. and Branson, S. and Welinder, P. and '
        'Perona, P. and Belongie, S.}, title={The Caltech-UCSD Birds-200-2011 Dataset}, '
        'institution={California Institute of Technology}, number={CNS-TR-2011-001}, '
        'year={2011}}'
    )


class IlsvrcWsol(WsolBuilder):
    """ILSVRC 2012 with the boxes and the splits of wsolevaluation."""

    name = 'ilsvrc_wsol'
    description = (
        'ILSVRC 2012 as split by wsolevaluation: train with image labels only, val '
        'ImageNetV2 with boxes, test the validation images of ILSVRC with boxes.'
    )
    homepage = 'https://www.image-net.org/challenges/LSVRC/2012/'
    citation = (
        '@article{russakovsky2015imagenet, author={Russakovsky, Olga and others}, '
        'title={ImageNet Large Scale Visual Recognition Challenge}, '
        'journal={International Journal of Computer Vision}, volume={115}, year={2015}}'
    )


class OpenimagesWsol(WsolBuilder):
    """OpenImages30k with the masks and the splits of wsolevaluation."""

    name = 'openimages_wsol'
    description = (
        'The 100 classes of OpenImages V5 chosen by wsolevaluation: train with image '
        'labels only, val and test with instance masks and regions to ignore.'
    )
    homepage = 'https://github.com/clovaai/wsolevaluation'
    citation = (
        '@inproceedings{choe2020evaluating, author={Choe, Junsuk and Oh, Seong Joon and '
        'Lee, Seungho and Chun, Sanghyuk and Akata, Zeynep and Shim, Hyunjung}, '
        'title={Evaluating Weakly Supervised Object Localization Methods Right}, '
        'booktitle={CVPR}, year={2020}}'
    )


BUILDERS: dict[str, type[WsolBuilder]] = {
    builder.name: builder for builder in (Cub200Wsol, IlsvrcWsol, OpenimagesWsol)
}


def _class_names(root: Path, folders: Iterable[WsolFolder]) -> list[str]:
    """Names of the classes; numbers without class_names.txt, where each split counts its own."""
    largest = max(folders, key=lambda folder: folder.num_classes)
    names = largest.class_names or tuple(map(str, range(largest.num_classes)))
    for number, name in enumerate(names, 1):
        if name in names[: number - 1]:
            file = root / 'class_names.txt'
            raise DataError(f'{file}: {name!r} names two classes; TFDS needs distinct names')
    return list(names)


def _shards(folder: WsolFolder) -> list[Callable[[], _Examples]]:
    starts = range(0, len(folder), SHARD_IMAGES)
    return [partial(_examples, folder, start) for start in starts]


def _examples(folder: WsolFolder, start: int) -> _Examples:
    for index in range(start, min(start + SHARD_IMAGES, len(folder))):
        yield index, example_of(folder[index])


def _stored(encoded: Encoded, roots: Sequence[Path]) -> bytes:
    if isinstance(encoded, bytes):
        return encoded
    try:
        return read_file(encoded, roots)
    except OSError as error:
        raise DataError(f'{printable(str(encoded))}: {reason(error)}') from None

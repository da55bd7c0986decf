"""Data sets on disk: the folder layout of wsolevaluation, and a plain folder of images."""

import os
from pathlib import Path

from absl import logging

from wsol_jax.data.files import IMAGE_EXTENSIONS, UNUSABLE, Found, find_images, stays_below
from wsol_jax.data.metadata import (
    class_names,
    read_ids,
    read_labels,
    read_localization,
    read_sizes,
)
from wsol_jax.data.records import (
    MAX_PIXELS,
    DataError,
    Decoding,
    ListedRecords,
    Record,
    is_displayed,
)


class WsolFolder(ListedRecords):
    """A split of a folder in the layout of wsolevaluation.

    `images/` holds the images, `metadata/<split>/` the files image_ids.txt, class_labels.txt and,
    where known, image_sizes.txt and localization.txt (boxes or masks), `class_names.txt` one class
    a line. Every line is checked here; whether an image exists is found when it is decoded. An
    image without a line in the localization.txt of its split has no known object. Without
    class_names.txt there are as many classes as the largest label of the split says.

    Args:
        root: the folder. Links in it may not lead out of it, but for `images` itself.
        split: name of a folder in `metadata/`.
        class_index: give the labels of the classifier named in the second column of
            class_names.txt (`name,index`) instead of line numbers.
        orientation: the frame of sizes, boxes and masks: 'displayed' or 'stored', which 'auto' is;
            see `is_displayed`.
        max_pixels: see `Decoding`.

    Raises:
        DataError: a file is missing, a line is malformed, or the files disagree.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        class_index: bool = False,
        orientation: str = 'auto',
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        root = Path(root)
        folder = _split_folder(root, split)
        self.class_names, columns = class_names(root / 'class_names.txt', class_index)
        labels = read_labels(folder, read_ids(folder), len(self.class_names) or None)
        sizes = read_sizes(folder / 'image_sizes.txt', labels)
        boxes, masks = read_localization(folder / 'localization.txt', root, labels, sizes)
        self._unnamed = 0 if self.class_names else 1 + max(map(max, labels.values()))
        self.class_index = columns
        roots = (root.resolve(), (root / 'images').resolve())
        decoding = Decoding(is_displayed(orientation, 'stored'), max_pixels, roots)
        self._records = [
            Record(
                image_id=name,
                image=root / 'images' / name,
                labels=tuple(columns[k] for k in classes) if columns else classes,
                size=sizes.get(name),
                boxes=tuple(boxes.get(name, ())),
                masks=tuple(masks.get(name, ())),
                decoding=decoding,
            )
            for name, classes in labels.items()
        ]


class ImageFolder(ListedRecords):
    """Every image below a folder, sorted by path, without labels; ids are relative paths.

    Links are followed, each folder once. Hidden files and workdirs are passed over, see
    `find_images`.

    Args:
        root: the folder.
        orientation: 'displayed', which 'auto' is, or 'stored'; see `is_displayed`.
        max_pixels: see `Decoding`.

    Raises:
        DataError: the folder is missing or holds no image.
    """

    def __init__(
        self,
        root: str | Path,
        orientation: str = 'auto',
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        decoding = Decoding(is_displayed(orientation, 'displayed'), max_pixels)
        files = image_files(Path(root))
        self._records = [
            Record(name, file, (), None, decoding=decoding) for name, file in files.items()
        ]


def split_names(root: Path) -> list[str]:
    """The splits of a folder in the layout of wsolevaluation, sorted; hidden folders are none."""
    return sorted(path.name for path in (root / 'metadata').glob('[!.]*') if path.is_dir())


def image_files(root: Path) -> dict[str, Path]:
    """Every image below a folder, by its posix path relative to it, sorted.

    Raises:
        DataError: the folder is missing or holds no image.
    """
    if not root.is_dir():
        raise DataError(f'{root}: no such folder')
    found = find_images(root)
    _warn(root, found)
    if not found.images:
        endings = ', '.join(sorted(IMAGE_EXTENSIONS))
        raise DataError(f'{root}: holds no image (looked for {endings})')
    return found.images


def _warn(root: Path, found: Found) -> None:
    for kind in UNUSABLE:
        if some := [path for reason, path in found.passed if reason == kind]:
            first = ascii(os.fspath(some[0]))
            logging.warning('%s: %s (%d, such as %s)', root, kind, len(some), first)


def _split_folder(root: Path, split: str) -> Path:
    for folder in (root, root / 'images', root / 'metadata'):
        if not folder.is_dir():
            raise DataError(f'{folder}: no such folder (expected images/ and metadata/ in {root})')
    folder = root / 'metadata' / split
    if not split or not stays_below(split) or not folder.is_dir():
        found = ', '.join(split_names(root)) or 'none'
        raise DataError(f'{folder}: no split {split!r}; available: {found}')
    return folder

"""Plain folders `class/image.jpg`, with or without a folder for each split above them."""

from itertools import compress, count
from pathlib import Path

from wsol_jax.data.files import IMAGE_EXTENSIONS, is_workdir
from wsol_jax.data.folders import image_files
from wsol_jax.data.metadata import class_names
from wsol_jax.data.records import (
    MAX_PIXELS,
    DataError,
    Decoding,
    ListedRecords,
    Record,
    drawn,
    is_displayed,
)

_SPLITS = {
    'train': ('train', 'training'),
    'val': ('val', 'valid', 'validation'),
    'test': ('test', 'testing'),
}


class ClassFolder(ListedRecords):
    """A split of a folder whose class folders hold the images, at any depth; hidden ones are none.

    With `root/<split>/<class>/...`, the classes are the folders of train (of the split itself where
    there is no train); in any case, train may be called training, val valid or validation, and test
    testing. Without a folder for val, and with `root/<class>/...`, val is every tenth training
    image of a class, and at least one of two; train is the rest. Image ids are posix paths relative
    to root. Links are followed; workdirs are passed over.

    Args:
        root: the folder.
        split: 'train', 'val' or 'test'.
        class_index: give the labels of the classifier named in root/class_names.txt, one line
            `folder,index` for each class folder, instead of the place of the folder.
        orientation: 'displayed', which 'auto' is, or 'stored'; see `is_displayed`.
        max_pixels: see `Decoding`.

    Raises:
        DataError: no such folder or split, a class without images, or one that train lacks; or the
            folders look like splits of unknown names; or class_names.txt names other folders.
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
        folders = split_folders(root)
        if split not in folders:
            raise DataError(_no_split(root, split, folders))
        folder = folders[split]
        shared = list(folders.values()).count(folder) > 1
        self.class_names = tuple(_class_folders(folders.get('train', folder)))
        if class_index:
            self.class_index = _indices(root / 'class_names.txt', self.class_names)
        labels = dict(zip(self.class_names, self.class_index or count(), strict=False))
        decoding = Decoding(is_displayed(orientation, 'displayed'), max_pixels)
        self._records = []
        for name in _class_folders(folder):
            if name not in labels:
                raise DataError(f'{folder / name}: {folders["train"]} has no class {name!r}')
            files = list(image_files(folder / name).values())
            self._records += [
                Record(
                    file.relative_to(root).as_posix(), file, (labels[name],), None, (), (), decoding
                )
                for file in (compress(files, drawn(len(files), split)) if shared else files)
            ]


def _indices(file: Path, folders: tuple[str, ...]) -> tuple[int, ...]:
    names, columns = class_names(file, class_index=True)
    index_of = dict(zip(names, columns, strict=True))
    if len(index_of) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f'{file}: {twice!r} is listed twice')
    for name in folders:
        if name not in index_of:
            raise DataError(f'{file}: no line for the class folder {name!r}')
    for name in names:
        if name not in folders:
            raise DataError(f'{file}: there is no class folder {name!r}')
    return tuple(index_of[name] for name in folders)


def split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split; the same for train and val where they are to be drawn from it.

    Raises:
        DataError: the folder is missing, holds no folder, a split beside class folders, two folders
            for one split, or no class folder, but what looks like splits.
    """
    names = _class_folders(root)
    found = {name: split for name in names if (split := _split_of(name))}
    if len(found) < 2 and len(found) < len(names):
        _check_classes(root, names, found)
        return {'train': root, 'val': root}
    folders = {split: root / name for name, split in found.items()}
    if len(folders) < len(found):
        raise DataError(f'{root}: {", ".join(found)}: two folders for one split; keep one of them')
    if 'train' in folders:
        folders = {'train': folders['train'], 'val': folders['train'], **folders}
    return folders


def _split_of(name: str) -> str | None:
    return next((split for split, known in _SPLITS.items() if name.lower() in known), None)


def _check_classes(root: Path, names: list[str], found: dict[str, str]) -> None:
    for name, split in found.items():
        if split != 'train':  # which may well be a class: locomotives
            raise DataError(f'{root / name}: a split beside class folders; move them to train/')
    if all(_holds_folders_only(root / name) for name in names):
        known = ', '.join(name for same in _SPLITS.values() for name in same)
        raise DataError(
            f'{root}: its folders hold folders but no image (as {names[0]}), like splits; '
            f'rename them (known: {known}), or move class folders to train/'
        )


def _holds_folders_only(folder: Path) -> bool:
    shown = [path for path in folder.iterdir() if not path.name.startswith('.')]
    images = (path for path in shown if path.suffix.lower() in IMAGE_EXTENSIONS)
    return not any(path.is_file() for path in images) and any(path.is_dir() for path in shown)


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f'{folder}: no such folder')
    folders = (path for path in folder.iterdir() if path.is_dir() and path.name.isprintable())
    shown = sorted(
        path.name for path in folders if not path.name.startswith('.') and not is_workdir(path)
    )
    if not shown:
        raise DataError(f'{folder}: holds no class folder (expected {folder}/class/image.jpg)')
    return shown


def _no_split(root: Path, split: str, folders: dict[str, Path]) -> str:
    message = f'{root}: no split {split!r}; available: {", ".join(folders)}'
    if 'train' in folders and folders['train'] == folders.get('val'):
        message += (
            ', drawn from the class folders; make a folder for each split, '
            'or do without: `--config.localize.splits="(\'val\',)"`'
        )
    return message

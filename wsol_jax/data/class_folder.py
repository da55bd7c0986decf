"""Plain folders `class/image.jpg`, with or without a folder for each split above them."""

from pathlib import Path

from wsol_jax.data.folders import image_files
from wsol_jax.data.records import DataError, Record

_SPLITS = {'train': ('train',), 'val': ('val', 'valid', 'validation'), 'test': ('test',)}
_VAL_EVERY = 10


class ClassFolder:
    """A split of a folder whose class folders hold the images, at any depth; hidden ones are none.

    With `root/<split>/<class>/...`, the classes are the folders of train (of the split itself where
    there is no train). With `root/<class>/...`, val is every tenth image of a class, and at least
    one of two; train is the rest. Image ids are posix paths relative to root.

    Args:
        root: the folder.
        split: 'train', 'val' (folder val, valid or validation) or 'test'.

    Raises:
        DataError: no such folder or split, a class without images, or one that train lacks.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        root = Path(root)
        folders = split_folders(root)
        if split not in folders:
            raise DataError(_no_split(root, split, folders))
        folder = folders[split]
        self.class_names = tuple(_class_folders(folders.get('train', folder)))
        labels = {name: label for label, name in enumerate(self.class_names)}
        self._records = []
        for name in _class_folders(folder):
            if name not in labels:
                raise DataError(f'{folder / name}: {folders["train"]} has no class {name!r}')
            files = list(image_files(folder / name).values())
            self._records += [
                Record(file.relative_to(root).as_posix(), file, (labels[name],), None)
                for file in (_drawn(files, split) if folder == root else files)
            ]

    @property
    def num_classes(self) -> int:
        """How many classes the data set has."""
        return len(self.class_names)

    def class_name(self, label: int) -> str:
        """Name of a label: that of its folder."""
        return self.class_names[label]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]


def split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split; `root` itself for train and val where they are to be drawn.

    Raises:
        DataError: the folder is missing, holds no folder, or a split beside class folders.
    """
    names = _class_folders(root)
    found = [name for name in names if any(name in known for known in _SPLITS.values())]
    if len(found) < 2 and found != names:
        if found and found != ['train']:  # which may well be a class: locomotives
            raise DataError(f'{root / found[0]}: a split beside class folders; move them to train/')
        return {'train': root, 'val': root}
    return {
        split: root / name
        for split, known in _SPLITS.items()
        for name in reversed(known)
        if name in found
    }


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f'{folder}: no such folder')
    names = (path.name for path in folder.iterdir() if path.is_dir())
    if not (shown := sorted(name for name in names if not name.startswith('.'))):
        raise DataError(f'{folder}: holds no class folder (expected {folder}/class/image.jpg)')
    return shown


def _no_split(root: Path, split: str, folders: dict[str, Path]) -> str:
    message = f'{root}: no split {split!r}; available: {", ".join(folders)}'
    if root in folders.values():
        message += ', drawn from the class folders (for others make a folder for each split)'
    return message


def _drawn(files: list[Path], split: str) -> list[Path]:
    val = files[_VAL_EVERY - 1 :: _VAL_EVERY] or files[1:][-1:]
    return val if split == 'val' else sorted(set(files) - set(val))

"""Which files are opened: regular ones only, and those that text names only below their folder."""

import errno
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import BinaryIO

IMAGE_EXTENSIONS = frozenset(
    [
        *('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.gif', '.bmp', '.webp', '.tif', '.tiff'),
        *('.ppm', '.pgm', '.pbm', '.pnm', '.jp2', '.avif'),
    ]
)

# In every workdir: locked while a run works there, tells of the last one, and marks the folder as
# a workdir for whoever looks for images.
MARKER = '.wsol_jax_workdir'

HIDDEN = 'hidden files and folders, passed over'
ENDING = 'files whose ending is not that of an image, passed over'
NAMES = 'names with control characters, or that are not UTF-8, passed over; rename them'
SPECIAL = 'what cannot be opened: links that lead nowhere, pipes, devices; passed over'
AGAIN = 'links to folders that are read anyway, passed over'
WORKDIR = 'workdirs, passed over'
UNUSABLE = (NAMES, SPECIAL)
_LASTING = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV, errno.EINVAL),
}


@dataclass(frozen=True)
class Found:
    """What lies below a folder.

    Attributes:
        images: by their posix path relative to the folder, sorted.
        passed: (kind, path) of everything else but folders.
    """

    images: dict[str, Path] = field(default_factory=dict)
    passed: list[tuple[str, Path]] = field(default_factory=list)


def open_file(file: Path, roots: Sequence[Path] = ()) -> BinaryIO:
    """Opens a regular file; on a pipe or a device, opening or reading could last for ever.

    Args:
        file: what to open; links are followed.
        roots: real paths of folders, in one of which it must lie in the end; () for anywhere.

    Raises:
        OSError: it is missing, no regular file, or leads elsewhere.
    """
    if roots and not _lies_in(os.path.realpath(file), roots):
        raise OSError(f'a link that leaves the data set ({_named(roots[0])}); copy the file there')
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError('not a regular file')
    return file.open('rb')


def read_file(file: Path, roots: Sequence[Path] = ()) -> bytes:
    """The contents of a regular file, see `open_file`.

    Raises:
        OSError: it cannot be read.
    """
    with open_file(file, roots) as opened:
        return opened.read()


def stays_below(name: str) -> bool:
    """Whether a relative path names something below the folder it is relative to."""
    path = PurePath(name)
    return not (path.anchor or '..' in path.parts or '\0' in name)


def printable(text: str) -> str:
    """Text for one line of a terminal: escapes for line ends, control characters and the like."""
    return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def reason(error: Exception) -> str:
    """What is wrong, in one line, without the name of the file."""
    if isinstance(error, FileNotFoundError):
        return 'no such file'
    text = (error.strerror if isinstance(error, OSError) else '') or str(error)
    return printable(' '.join(text.split())) or type(error).__name__


def may_pass(error: Exception) -> bool:
    """Whether it is an error of the disk, the network or the process, not of the file."""
    return isinstance(error, OSError) and error.errno is not None and error.errno not in _LASTING


def find_images(root: Path) -> Found:
    """Every image below a folder, and what is none.

    Links to files and folders are followed, each folder once; hidden entries and workdirs are
    passed over.
    """
    found, seen = Found(), set[str]()
    folders, links = [root], list[Path]()
    while folders or links:  # links last: a folder keeps the path without links, if it has one
        folder = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(folder)
        if real in seen:
            found.passed.append((AGAIN, folder))
            continue
        seen.add(real)
        for path, kind in _entries(folder):
            if not kind:
                (links if path.is_symlink() else folders).append(path)
            elif kind == 'image':
                found.images[path.relative_to(root).as_posix()] = path
            else:
                found.passed.append((kind, path))
    return Found(dict(sorted(found.images.items())), sorted(found.passed))


def _entries(folder: Path) -> list[tuple[Path, str]]:
    try:
        return [(path, _kind(path)) for path in sorted(folder.iterdir())]
    except OSError:
        return [(folder, SPECIAL)]


def _kind(path: Path) -> str:
    """'' for a folder to look into, 'image', or why it is passed over."""
    if path.name.startswith('.'):
        return HIDDEN
    if not path.name.isprintable():
        return NAMES
    if path.is_dir():
        return WORKDIR if is_workdir(path) else ''
    if not path.is_file():
        return SPECIAL
    return 'image' if path.suffix.lower() in IMAGE_EXTENSIONS else ENDING


def is_workdir(folder: Path) -> bool:
    """Whether this is where a run of ours puts its results."""
    if (folder / MARKER).exists():
        return True
    try:  # older ones have no marker
        record = json.loads(read_file(folder / 'config.json'))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and {'config', 'versions'} <= record.keys()


def _lies_in(real: str, roots: Sequence[Path]) -> bool:
    return any(os.path.commonpath([real, root]) == os.fspath(root) for root in roots)


def _named(folder: Path) -> str:
    return printable(str(folder))

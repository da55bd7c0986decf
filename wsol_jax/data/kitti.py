"""KITTI's object detection: LiDAR sweeps, the left colour image, calibration, and 3D boxes."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsol_jax.data.boxes_3d import kitti_to_lidar
from wsol_jax.data.decode import stored_size
from wsol_jax.data.files import printable
from wsol_jax.data.frames import (
    Box3D,
    Camera,
    Frame,
    ListedFrames,
    as_box,
    as_matrix,
    check_box,
    frame_record,
    labelled_share,
)
from wsol_jax.data.metadata import read_lines, read_list
from wsol_jax.data.records import (
    MAX_PIXELS,
    DataError,
    Decoding,
    Record,
    is_displayed,
)
from wsol_jax.data.sweeps import Matrix, Sweep
from wsol_jax.names import shown, unknown_name

CLASSES = ('Car', 'Pedestrian', 'Cyclist')
UNUSED = ('Van', 'Truck', 'Person_sitting', 'Tram', 'Misc')  # labelled, and not detected
IGNORED = 'DontCare'
THREADS = 8
FOLDERS = ('velodyne', 'image_2', 'calib', 'label_2')
LABEL = 'type truncated occluded alpha x0 y0 x1 y1 height width length x y z rotation_y'
_SHAPES = {'P2': (3, 4), 'R0_rect': (3, 3), 'Tr_velo_to_cam': (3, 4)}
_Numbers = NDArray[np.float64]


class Label(NamedTuple):
    """A line of label_2.

    Attributes:
        name: of the class, `IGNORED` where objects are not labelled.
        truncated: how far the object leaves the image, 0 to 1.
        occluded: 0 fully visible, 1 partly, 2 largely occluded, 3 unknown.
        box_2d: (x0, y0, x1, y1) in pixels of the image.
        box: in the file height, width, length, x, y, z, rotation_y in the frame of the rectified
            camera; in records the box in the LiDAR frame.
    """

    name: str
    truncated: float
    occluded: int
    box_2d: tuple[float, float, float, float]
    box: Box3D


class Kitti(ListedFrames):
    """A split of KITTI's object detection, of the folder `training` and its files by frame.

    `velodyne/<id>.bin` (x, y, z, reflectance), `image_2/<id>.png`, `calib/<id>.txt` and
    `label_2/<id>.txt`. `ImageSets/<split>.txt`, beside `training` or in it, lists the frames;
    without that folder every split has all frames. Labels are of what the image shows, and so are
    the points: those outside of it are left out. Classes are car, pedestrian and cyclist; other
    objects are left out there; `extra['kitti']` of a record has all labels but DontCare. Every file
    but the sweeps is looked at when the split is opened.

    Args:
        root: the folder with `training`.
        split: such as 'train' or 'val'.
        orientation: 'displayed' or 'stored', which 'auto' is; see `is_displayed`.
        max_pixels: see `Decoding`.
        labelled: share of the frames whose boxes training knows, see `labelled_share`.
        seed: of the draw of these.

    Raises:
        DataError: a file is missing, or malformed, or has a class that there is not.
    """

    class_names = CLASSES

    def __init__(
        self,
        root: str | Path,
        split: str,
        orientation: str = 'auto',
        max_pixels: int = MAX_PIXELS,
        labelled: float = 1.0,
        seed: int = 0,
    ) -> None:
        folder = Path(root) / 'training'
        if not (folder / 'velodyne').is_dir():
            raise DataError(f'{root}: no folder training/velodyne in it, as KITTI has')
        ids = _ids(Path(root), split)
        known = dict(zip(ids, labelled_share(len(ids), labelled, seed).tolist(), strict=True))
        roots = tuple(dict.fromkeys((folder / name).resolve() for name in ('', *FOLDERS)))
        decoding = Decoding(is_displayed(orientation, 'stored'), max_pixels, roots)
        with ThreadPoolExecutor(THREADS) as pool:
            self._records = list(pool.map(_Reader(folder, known, decoding), ids))


def kitti_splits(root: Path) -> list[str]:
    """The splits of a folder, 'all' where none are listed; none where it has no sweeps."""
    if not (root / 'training' / 'velodyne').is_dir():
        return []
    sets = _sets(root)
    return sorted(file.stem for file in sets.glob('[!.]*.txt')) if sets else ['all']


def _sets(root: Path) -> Path | None:
    """The folder with the lists of splits, if there is one."""
    places = (root / 'ImageSets', root / 'training' / 'ImageSets')
    return next((place for place in places if place.is_dir()), None)


def _ids(root: Path, split: str) -> list[str]:
    if sets := _sets(root):
        return read_list(sets / f'{split}.txt')
    ids = sorted(file.stem for file in (root / 'training' / 'velodyne').glob('[!.]*.bin'))
    if not ids:
        raise DataError(f'{root}/training/velodyne: has no sweep (<id>.bin)')
    return ids


@dataclass(frozen=True)
class _Reader:
    """Makes the record of a frame."""

    folder: Path
    labelled: Mapping[str, bool]
    decoding: Decoding

    def __call__(self, name: str) -> Record:
        roots = self.decoding.roots
        files = {part: self.folder / part / f'{name}.txt' for part in ('calib', 'label_2')}
        projection, lidar_to_camera = read_calibration(files['calib'], roots)
        labels = read_kitti_labels(files['label_2'], roots)
        known = [label for label in labels if label.name != IGNORED]
        boxes = kitti_to_lidar([label.box for label in known], lidar_to_camera)
        known = [label._replace(box=as_box(b)) for label, b in zip(known, boxes, strict=True)]
        objects = [label for label in known if label.name in CLASSES]
        frame = Frame(
            sweeps=(Sweep(self.folder / 'velodyne' / f'{name}.bin'),),
            cameras=(self._camera(name, projection),),
            boxes=tuple(label.box for label in objects),
            classes=tuple(CLASSES.index(label.name) for label in objects),
            labelled=self.labelled[name],
            roots=roots,
            in_image=True,
        )
        record = frame_record(name, frame, self.decoding)
        return replace(record, extra={**record.extra, 'kitti': tuple(known)})

    def _camera(self, name: str, projection: Matrix) -> Camera:
        image = self.folder / 'image_2' / f'{name}.png'
        size = stored_size(Record(name, image, (), None, decoding=self.decoding))
        return Camera(image, projection, size)


def read_calibration(file: Path, roots: tuple[Path, ...] = ()) -> tuple[Matrix, _Numbers]:
    """The calibration of a frame.

    Args:
        file: of calib/, with the lines P2, R0_rect and Tr_velo_to_cam.
        roots: see `open_file`.

    Returns:
        [3, 4] from the LiDAR frame to pixels of the left colour image, and [4, 4] from the LiDAR
        frame to that of the rectified camera.

    Raises:
        DataError: it is missing, lacks a line or has another number of numbers in one.
    """
    found: dict[str, _Numbers] = {}
    for where, line in read_lines(file, roots):
        name, _, numbers = line.partition(':')
        if name in _SHAPES:
            found[name] = _matrix(numbers, _SHAPES[name], f'{where}: {name}')
    if missing := [name for name in _SHAPES if name not in found]:
        raise DataError(f'{printable(str(file))}: has no line {missing[0]}')
    rectified, moved = np.eye(4), np.eye(4)
    rectified[:3, :3], moved[:3] = found['R0_rect'], found['Tr_velo_to_cam']
    lidar_to_camera = rectified @ moved
    return as_matrix(found['P2'] @ lidar_to_camera), lidar_to_camera


def read_kitti_labels(file: Path, roots: tuple[Path, ...] = ()) -> list[Label]:
    """The objects of a frame, those among them that are not detected.

    Args:
        file: of label_2/.
        roots: see `open_file`.

    Raises:
        DataError: it is missing, or a line has another form, a class that KITTI has not, or a size
            that is not above 0.
    """
    return [_label(where, line) for where, line in read_lines(file, roots)]


def _label(where: str, line: str) -> Label:
    name, *rest = line.split()
    if name not in (*CLASSES, *UNUSED, IGNORED):
        raise DataError(f'{where}: {unknown_name("class", name, (*CLASSES, *UNUSED, IGNORED))}')
    values = _numbers(rest)
    if values.size not in (14, 15) or not np.isfinite(values).all():  # 15 with a score
        raise DataError(f'{where}: expected {LABEL!r}, got {shown(line)}')
    truncated, occluded, _, x0, y0, x1, y1, *box = values.tolist()[:14]
    if name != IGNORED:
        height, width, length, *place, turn = box
        check_box([*place, length, width, height, turn], where)
    return Label(name, truncated, int(occluded), (x0, y0, x1, y1), as_box(box))


def _numbers(words: Sequence[str]) -> _Numbers:
    """The numbers that words are; NaN where one is none."""
    try:
        return np.array(words, np.float64)
    except ValueError:
        return np.full(len(words), np.nan)


def _matrix(text: str, shape: tuple[int, int], where: str) -> _Numbers:
    values = _numbers(text.split())
    if values.size != shape[0] * shape[1] or not np.isfinite(values).all():
        raise DataError(
            f'{where}: expected {shape[0] * shape[1]} numbers, got {shown(text.strip())}'
        )
    return values.reshape(shape)

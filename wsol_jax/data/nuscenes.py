"""nuScenes: LiDAR sweeps, six cameras and 3D boxes, of its tables or of a list of single frames."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsol_jax.data.decode import stored_size
from wsol_jax.data.files import printable, stays_below
from wsol_jax.data.frames import (
    Camera,
    Frame,
    as_box,
    as_matrix,
    check_box,
    frame_record,
    labelled_share,
    origin_of,
)
from wsol_jax.data.metadata import read_json, read_list
from wsol_jax.data.nuscenes_frames import FULL, NEAR, NuscenesFrames
from wsol_jax.data.nuscenes_tables import (
    CAMERAS,
    TABLES,
    NuscenesTables,
    check_token,
    well_formed,
)
from wsol_jax.data.records import (
    MAX_PIXELS,
    DataError,
    Decoding,
    NamedClasses,
    Record,
    is_displayed,
)
from wsol_jax.data.sweeps import Sweep
from wsol_jax.names import shown, unknown_name

CLASSES = (
    *('car', 'truck', 'trailer', 'bus', 'construction_vehicle', 'bicycle', 'motorcycle'),
    *('pedestrian', 'traffic_cone', 'barrier'),
)
MINI = 'v1.0-mini'
MINI_VAL = ('scene-0103', 'scene-0916')  # of the devkit; its other scenes are train
SWEEPS = 10


class Nuscenes(NamedClasses):
    """A split of nuScenes, without its devkit.

    Either a folder with tables, such as `v1.0-trainval/scene.json`, and the files that they name:
    a frame is a sample, with ten sweeps up to it and six cameras. `splits/<split>.txt` lists the
    scenes of a split, one a line; v1.0-mini has 'train' and 'val' without. Or a folder with
    `info.json`, a list of frames of one sweep in the form of mmdetection3d, and the files beside
    it: every split has all of them. Boxes of other classes, and those that neither LiDAR nor radar
    has a point of, are left out; points on the vehicle itself, too.

    The LiDAR frame has x to the right and y ahead. Opening it reads the tables; a frame of them is
    built whenever it is asked for.

    Args:
        root: the folder with the tables' folder, or with info.json.
        split: such as 'train' or 'val'.
        orientation: 'displayed' or 'stored', which 'auto' is; see `is_displayed`.
        max_pixels: see `Decoding`.
        labelled: share of the scenes whose boxes training knows, see `labelled_share`.
        seed: of the draw of these.
        name: of the tables' folder; '' for the only one.

    Raises:
        DataError: a table is missing or malformed, refers to what there is not, or has a class
            that nuScenes has not.
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
        name: str = '',
    ) -> None:
        root = Path(root)
        decoding = Decoding(is_displayed(orientation, 'stored'), max_pixels, _roots(root))
        if (root / 'info.json').exists():
            found = _listed(root, decoding)
        else:
            found = _of_tables(root, split, _version(root, name), decoding.roots)
        self._where, self._decoding = printable(str(root)), decoding
        self._ids, self._frames, classes = found.ids, found.frames, found.frames.classes()
        self._most_boxes = max([1, *map(len, classes)])
        self._most_labels = max([1, *(len(set(own)) for own in classes)])
        scenes, of_frames = np.unique(found.scenes, return_inverse=True)
        self._labelled = labelled_share(len(scenes), labelled, seed)[of_frames]

    @property
    def most_boxes(self) -> int:
        """The most boxes that a frame has, at least 1; none is built to know it."""
        return self._most_boxes

    @property
    def most_labels(self) -> int:
        """The most labels that a frame has, at least 1; none is built to know it."""
        return self._most_labels

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Of which frames training knows the boxes, [len]; none is built to know it."""
        return self._labelled

    def image_id(self, index: int) -> str:
        """Name of a frame, which is not built for it."""
        return self._ids[index]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Record:
        image_id = self.image_id(index)
        with well_formed(f'{self._where}: frame {shown(image_id)}'):
            frame = self._frames.frame(index % len(self))
        frame = replace(frame, labelled=bool(self._labelled[index]))
        return frame_record(image_id, frame, self._decoding)


def nuscenes_splits(root: Path) -> list[str]:
    """The splits of a folder, 'all' of a list of frames; none where it has neither nor tables."""
    if _lists_frames(root / 'info.json'):
        return ['all']
    versions = {path.parent.name for path in root.glob('v1.0-*/scene.json')}
    listed = {file.stem for file in (root / 'splits').glob('[!.]*.txt')} if versions else set()
    return sorted(listed | ({'train', 'val'} if MINI in versions else set()))


def _lists_frames(file: Path) -> bool:
    """Whether a file is a list of frames, if a broken one: others may have its name."""
    if not file.is_file():
        return False
    with file.open('rb') as content:
        return b'"data_list"' in content.read(1 << 20)


@dataclass(frozen=True)
class _Frames:
    """Frames that are all there."""

    listed: tuple[Frame, ...]

    def classes(self) -> list[tuple[int, ...]]:
        return [frame.classes for frame in self.listed]

    def frame(self, index: int) -> Frame:
        return self.listed[index]


class _Split(NamedTuple):
    """The frames of a split, their names and scenes."""

    ids: list[str]
    scenes: list[str]
    frames: _Frames | NuscenesFrames


def _roots(root: Path) -> tuple[Path, ...]:
    parts = (root, root / 'samples', root / 'sweeps', *sorted(root.glob('v1.0-*')))
    return tuple(dict.fromkeys(part.resolve() for part in parts))


def _version(root: Path, name: str) -> str:
    found = sorted(path.parent.name for path in root.glob('v1.0-*/scene.json'))
    if (name and name not in found) or not found:
        wanted = name or 'v1.0-trainval or the like'
        raise DataError(f'{root}: no folder {wanted} with scene.json in it, nor info.json')
    if len(found) > 1 and not name:
        raise DataError(f'{root}: has {", ".join(found)}; name one by config.data.name')
    return name or found[0]


def _of_tables(root: Path, split: str, version: str, roots: tuple[Path, ...]) -> _Split:
    tables = _tables(root, version, roots, _written(root / version))
    samples = {name: tables.samples(name) for name in _scenes(root, split, version, tables.scenes)}
    ids = [token for tokens in samples.values() for token in tokens]
    scenes = [name for name, tokens in samples.items() for _ in tokens]
    with well_formed(printable(str(root / version))):
        return _Split(ids, scenes, tables.frames(ids, SWEEPS))


def _written(folder: Path) -> tuple[tuple[int, int], ...]:
    """When the tables were written, and how long each is."""
    files = [folder / f'{name}.json' for name in TABLES]
    facts = [file.stat() for file in files if file.is_file()]
    return tuple((fact.st_mtime_ns, fact.st_size) for fact in facts)


@lru_cache(maxsize=1)  # the splits of a run share them: those of trainval have millions of rows
def _tables(
    root: Path, version: str, roots: tuple[Path, ...], written: tuple[tuple[int, int], ...]
) -> NuscenesTables:
    """The tables as they stood there when they were written."""
    del written
    return NuscenesTables(root, version, CLASSES, roots)


def _scenes(root: Path, split: str, version: str, known: Sequence[str]) -> list[str]:
    """The scenes of a split."""
    file = root / 'splits' / f'{split}.txt'
    if file.exists():
        names = read_list(file)
        if unknown := [name for name in names if name not in known]:
            raise DataError(f'{file}: {unknown_name("scene", unknown[0], known)}')
        return names
    if version != MINI or split not in ('train', 'val'):
        raise DataError(f'{file}: no such file; it lists the scenes of {split!r}, one a line')
    return [name for name in known if (name in MINI_VAL) == (split == 'val')]


def _listed(root: Path, decoding: Decoding) -> _Split:
    """The frames of info.json, each a scene of its own."""
    file = root / 'info.json'
    content = read_json(file, roots=decoding.roots)
    with well_formed(printable(str(file))):
        names = {index: name for name, index in content['metainfo']['categories'].items()}
        rows = list(content['data_list'])
    ids = [_token(file, number, row) for number, row in enumerate(rows)]
    for token, count in Counter(ids).items():
        if count > 1:
            raise DataError(f'{printable(str(file))}: frame {shown(token)} is listed twice')
    frames: list[Frame] = []
    for token, row in zip(ids, rows, strict=True):
        where = f'{printable(str(file))}: frame {shown(token)}'
        with well_formed(where):
            frames.append(_of_info(file, where, row, names, decoding))
    return _Split(ids, ids, _Frames(tuple(frames)))


def _token(file: Path, number: int, row: Mapping[str, Any]) -> str:
    with well_formed(f'{printable(str(file))}: data_list[{number}]'):
        token = str(row['token'])
    check_token(file, token)
    return token


def _of_info(
    file: Path, where: str, row: Mapping[str, Any], names: Mapping[int, str], decoding: Decoding
) -> Frame:
    objects = [found for found in row['instances'] if _counts(found)]
    for found in objects:
        check_box(found['bbox_3d'], where)
        if names.get(found['bbox_label_3d']) not in CLASSES:
            raise DataError(f'{where}: unknown class {shown(found["bbox_label_3d"])}')
    return Frame(
        sweeps=(_sweep(file, row['lidar_points'], where),),
        cameras=tuple(_camera(file, row['images'][name], decoding) for name in CAMERAS),
        boxes=tuple(as_box(found['bbox_3d']) for found in objects),
        classes=tuple(CLASSES.index(names[found['bbox_label_3d']]) for found in objects),
        roots=decoding.roots,
        vehicle=origin_of(row['lidar_points'].get('lidar2ego', np.eye(4))),
    )


def _sweep(file: Path, row: Mapping[str, Any], where: str) -> Sweep:
    columns = row['num_pts_feats']
    if not isinstance(columns, int) or columns < 4:
        raise DataError(f'{where}: num_pts_feats is {shown(columns)}; a point has 4 or more')
    return Sweep(_beside(file, row['lidar_path']), columns, FULL, NEAR)


def _counts(found: Mapping[str, Any]) -> bool:
    """Whether an object is of a class that is detected, and has points."""
    points = found.get('num_lidar_pts', 1) + found.get('num_radar_pts', 0)
    return bool(found['bbox_label_3d'] >= 0 and points > 0)


def _camera(file: Path, row: Mapping[str, Any], decoding: Decoding) -> Camera:
    image = _beside(file, row['img_path'])
    projection = np.array(row['cam2img'], float) @ np.array(row['lidar2cam'], float)[:3]
    size = stored_size(Record(image.name, image, (), None, decoding=decoding))
    return Camera(image, as_matrix(projection), size)


def _beside(file: Path, name: str) -> Path:
    if not stays_below(name):
        raise DataError(f'{printable(str(file))}: {shown(name)} leads out of the data set')
    return file.parent / name

"""The tables of nuScenes (Caesar et al., CVPR 2020): JSON lists whose rows name each other."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from wsol_jax.data.files import printable, reason, stays_below
from wsol_jax.data.frames import check_box
from wsol_jax.data.metadata import read_json
from wsol_jax.data.nuscenes_frames import RACK_CLASS, Index, Mounts, NuscenesFrames, Objects, Shots
from wsol_jax.data.records import DataError
from wsol_jax.names import shown, unknown_name

TABLES = (
    *('scene', 'sample', 'sample_data', 'ego_pose', 'calibrated_sensor', 'sensor'),
    *('sample_annotation', 'instance', 'category'),
)
LIDAR = 'LIDAR_TOP'
CAMERAS = (
    *('CAM_FRONT', 'CAM_FRONT_RIGHT', 'CAM_BACK_RIGHT'),
    *('CAM_BACK', 'CAM_BACK_LEFT', 'CAM_FRONT_LEFT'),
)
# The classes of the detection task, by category.
CLASS_OF = {
    'movable_object.barrier': 'barrier',
    'movable_object.trafficcone': 'traffic_cone',
    'vehicle.bicycle': 'bicycle',
    'vehicle.bus.bendy': 'bus',
    'vehicle.bus.rigid': 'bus',
    'vehicle.car': 'car',
    'vehicle.construction': 'construction_vehicle',
    'vehicle.motorcycle': 'motorcycle',
    'vehicle.trailer': 'trailer',
    'vehicle.truck': 'truck',
    'human.pedestrian.adult': 'pedestrian',
    'human.pedestrian.child': 'pedestrian',
    'human.pedestrian.construction_worker': 'pedestrian',
    'human.pedestrian.police_officer': 'pedestrian',
}
BIKES = ('bicycle', 'motorcycle')
RACK = 'static_object.bicycle_rack'
UNUSED = (
    *('animal', 'human.pedestrian.personal_mobility', 'human.pedestrian.stroller', RACK),
    *('human.pedestrian.wheelchair', 'movable_object.debris', 'movable_object.pushable_pullable'),
    *('vehicle.emergency.ambulance', 'vehicle.emergency.police'),
)
_Row = Mapping[str, Any]
_T = TypeVar('_T')
_MALFORMED = (KeyError, AttributeError, TypeError, ValueError, IndexError, OverflowError)


class _Mount(NamedTuple):
    """A row of calibrated_sensor."""

    channel: str
    pose: list[float]
    intrinsics: list[list[float]]


class _Shot(NamedTuple):
    """A row of sample_data."""

    sample: str  # '' of what lies between the samples
    channel: str
    file: str
    time: float
    pose: str
    mount: str
    size: tuple[int, int]
    previous: str


class _Object(NamedTuple):
    """A row of sample_annotation."""

    sample: int
    pose: list[float]
    size: list[float]
    label: int


class NuscenesTables:
    """The tables of a version of nuScenes; what its frames need of them is kept as columns.

    Args:
        root: of the data set; files are named relative to it.
        version: the folder of the tables in it.
        class_names: the classes, in order.
        roots: see `Frame`.

    Raises:
        DataError: a table is missing, is no list of rows with tokens, has a malformed row, or lacks
            one that another names.
    """

    def __init__(
        self, root: Path, version: str, class_names: Sequence[str], roots: tuple[Path, ...]
    ) -> None:
        self._root, self._folder, self._roots = root, root / version, roots
        self._class_names = tuple(class_names)
        self._scenes = dict(self._read('scene', _first_sample).values())
        self._next = self._read('sample', lambda row: str(row['next']))
        self._number = {token: number for number, token in enumerate(self._next)}
        for token in self._next:
            check_token(self._folder / 'sample.json', token)
        mounts = self._mounts()
        shots = self._shots(mounts)
        self._tokens = tuple(shots)
        self._columns = self._as_columns(shots, mounts)
        self._mount_columns = Mounts(
            np.array([mount.pose for mount in mounts.values()], float).reshape(-1, 7),
            np.array([mount.intrinsics for mount in mounts.values()], float).reshape(-1, 3, 3),
        )
        rows = {token: row for row, token in enumerate(shots)}
        self._previous = [shot.previous for shot in shots.values()]
        self._earlier = np.array([rows.get(token, -1) for token in self._previous], int)
        self._keyframes: dict[str, dict[str, int]] = defaultdict(dict)
        for row, shot in enumerate(shots.values()):
            if shot.sample:
                self._keyframes[shot.sample][shot.channel] = row
        self._objects = self._annotated()

    @property
    def scenes(self) -> tuple[str, ...]:
        """Names of the scenes, in order."""
        return tuple(self._scenes)

    def samples(self, scene: str) -> list[str]:
        """Tokens of the samples of a scene, in the order of time.

        Raises:
            DataError: there is no row of one of them.
        """
        tokens: dict[str, None] = {}
        token, named_by, table = self._scenes[scene], scene, 'scene'
        while token and token not in tokens:
            tokens[token] = None
            following = self._found('sample', self._next, token, table, named_by)
            token, named_by, table = following, token, 'sample'
        return list(tokens)

    def frames(self, tokens: Sequence[str], sweeps: int) -> NuscenesFrames:
        """What some samples describe; no frame is built yet.

        Args:
            tokens: of the samples.
            sweeps: how many a frame has, as far as its scene has so many up to it.

        Raises:
            DataError: a sample lacks a sensor, or a sweep the one before it.
        """
        keyframes = np.array([self._of_sample(token) for token in tokens], int).reshape(-1, 7)
        used = np.column_stack([self._sweeps(keyframes[:, 0], sweeps), keyframes[:, 1:]])
        rows = np.unique(used[used >= 0])
        used = np.where(used >= 0, np.searchsorted(rows, used), -1)
        owners = np.array([self._number[token] for token in tokens], int)
        frames = NuscenesFrames(
            root=self._root,
            roots=self._roots,
            sweeps=used[:, :sweeps],
            cameras=used[:, sweeps:],
            shots=self._columns.some(rows),
            mounts=self._mount_columns,
            objects=self._objects.of_owners(owners),
        )
        return frames.without_bikes_in_racks([self._class_names.index(name) for name in BIKES])

    def _of_sample(self, token: str) -> list[int]:
        """Shots of a sample: of the LiDAR, then of the cameras."""
        own, channels = self._keyframes.get(token, {}), (LIDAR, *CAMERAS)
        if missing := [name for name in channels if name not in own]:
            raise DataError(f'{self._file("sample_data")}: sample {token} has no {missing[0]}')
        return [own[name] for name in channels]

    def _sweeps(self, now: Index, count: int) -> Index:
        """Shots [n, count]: given ones [n], then earlier ones, -1 for none."""
        found = [now]
        for _ in range(count - 1):
            rows, earlier = found[-1], self._earlier[found[-1]]
            for row in rows[(rows >= 0) & (earlier < 0)].tolist():
                if previous := self._previous[row]:
                    self._found('sample_data', {}, previous, 'sample_data', self._tokens[row])
            found.append(np.where(rows >= 0, earlier, -1))
        return np.stack(found, 1)

    def _mounts(self) -> dict[str, _Mount]:
        channels = self._read('sensor', lambda row: str(row['channel']))

        def mount(row: _Row) -> _Mount:
            table = 'calibrated_sensor'
            channel = self._found('sensor', channels, row['sensor_token'], table, row['token'])
            seen = row['camera_intrinsic'] if channel in CAMERAS else [[0.0] * 3] * 3
            return _Mount(channel, _pose(row), _three_by_three(seen))

        return self._read('calibrated_sensor', mount)

    def _shots(self, mounts: Mapping[str, _Mount]) -> dict[str, _Shot]:
        """Of the cameras those of samples, of the LiDAR all; of others none."""

        def shot(row: _Row) -> _Shot | None:
            mount, is_key = row['calibrated_sensor_token'], row['is_key_frame']
            table = 'calibrated_sensor'
            channel = self._found(table, mounts, mount, 'sample_data', row['token']).channel
            is_camera = channel in CAMERAS
            if channel != LIDAR and not (is_key and is_camera):
                return None
            return _Shot(
                sample=row['sample_token'] if is_key else '',
                channel=channel,
                file=self._checked(row['filename']),
                time=float(row['timestamp']),
                pose=row['ego_pose_token'],
                mount=mount,
                size=(int(row['width']), int(row['height'])) if is_camera else (0, 0),
                previous='' if is_camera else row['prev'],
            )

        return self._read('sample_data', shot)

    def _as_columns(self, shots: Mapping[str, _Shot], mounts: Mapping[str, _Mount]) -> Shots:
        wanted = {shot.pose for shot in shots.values()}
        poses = self._read('ego_pose', lambda row: _pose(row) if row['token'] in wanted else None)
        places = {token: place for place, token in enumerate(mounts)}
        placed = [
            self._found('ego_pose', poses, shot.pose, 'sample_data', token)
            for token, shot in shots.items()
        ]
        return Shots(
            files=tuple(shot.file for shot in shots.values()),
            times=np.array([shot.time for shot in shots.values()], float),
            poses=np.array(placed, float).reshape(-1, 7),
            mounts=np.array([places[shot.mount] for shot in shots.values()], int),
            sizes=np.array([shot.size for shot in shots.values()], int).reshape(-1, 2),
        )

    def _annotated(self) -> Objects:
        """Objects that are detected and have points, and bicycle racks; owners are samples."""
        names = self._read('category', lambda row: str(row['name']))
        categories = self._read('instance', lambda row: str(row['category_token']))

        def annotated(row: _Row) -> _Object | None:
            sample = self._number.get(row['sample_token'])
            if sample is None:
                return None
            instance, table = row['instance_token'], 'sample_annotation'
            category = self._found('instance', categories, instance, table, row['token'])
            name = self._found('category', names, category, 'instance', instance)
            label, size = self._label(name), self._size(row)
            if label is None or not (label == RACK_CLASS or _has_points(row)):
                return None
            return _Object(sample, _pose(row), size, label)

        found = self._read('sample_annotation', annotated).values()
        return Objects(
            owners=np.array([row.sample for row in found], int),
            poses=np.array([row.pose for row in found], float).reshape(-1, 7),
            sizes=np.array([row.size for row in found], float).reshape(-1, 3),
            classes=np.array([row.label for row in found], int),
        )

    def _label(self, category: str) -> int | None:
        """The class of a category, `RACK_CLASS`, or None of one that is not detected."""
        if category in CLASS_OF:
            return self._class_names.index(CLASS_OF[category])
        if category not in UNUSED:
            known = (*CLASS_OF, *UNUSED)
            raise DataError(f'{self._file("category")}: {unknown_name("class", category, known)}')
        return RACK_CLASS if category == RACK else None

    def _size(self, row: _Row) -> list[float]:
        """Length, width and height."""
        width, length, height = _numbers(row, 'size', 3)
        if min(width, length, height) <= 0:
            box = [*_numbers(row, 'translation', 3), length, width, height, 0]
            check_box(box, f'{self._file("sample_annotation")}: {row["token"]}')
        return [length, width, height]

    def _checked(self, name: str) -> str:
        if not stays_below(name):
            where = f'{self._file("sample_data")}: {shown(name)}'
            raise DataError(f'{where} leads out of the data set')
        return name

    def _found(
        self, table: str, rows: Mapping[str, _T], token: str, by_table: str, by_token: str
    ) -> _T:
        """What was read of a row that another one names."""
        if token not in rows:
            raise DataError(
                f'{self._file(table)}: has no row {shown(token)}, which row '
                f'{shown(by_token)} of {by_table}.json names'
            )
        return rows[token]

    def _file(self, table: str) -> str:
        return printable(str(self._folder / f'{table}.json'))

    def _read(self, table: str, read: Callable[[_Row], _T | None]) -> dict[str, _T]:
        """What is read of the rows of a table, by their tokens, where it is not None."""
        found: dict[str, _T] = {}

        def keep(row: _Row) -> _Row | None:
            if not isinstance(token := row.get('token'), str):
                return row
            try:
                if (value := read(row)) is not None:
                    found[token] = value
            except _MALFORMED as error:
                where = f'{self._file(table)}: row {shown(token)}'
                raise _malformed(where, error) from None
            return None

        # Row by row: all rows of sample_data at once would take gigabytes.
        rows = read_json(self._folder / f'{table}.json', keep, self._roots)
        if not isinstance(rows, list) or any(row is not None for row in rows):
            raise DataError(f'{self._file(table)}: is no list of rows with tokens')
        return found


@contextmanager
def well_formed(where: str) -> Iterator[None]:
    """Makes one line of what reading a value that is not there, or of another kind, raises.

    Raises:
        DataError: it did.
    """
    try:
        yield
    except _MALFORMED as error:
        raise _malformed(where, error) from None


def _malformed(where: str, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    if isinstance(error, KeyError):
        return DataError(f'{where}: has no {shown(error.args[0])}')
    return DataError(f'{where}: malformed ({reason(error)})')


def check_token(file: Path, token: str) -> None:
    """Refuses the token of a frame that cannot name a file of a folder.

    Raises:
        DataError: it leads out of it.
    """
    if not stays_below(token):
        raise DataError(
            f'{printable(str(file))}: token {shown(token)} leads out of the folder of the files '
            'that are named by it'
        )


def _first_sample(row: _Row) -> tuple[str, str]:
    return str(row['name']), str(row['first_sample_token'])


def _has_points(row: _Row) -> bool:
    return bool(row['num_lidar_pts'] + row['num_radar_pts'] > 0)


def _pose(row: _Row) -> list[float]:
    """[7], see `pose_matrix`."""
    rotation = _numbers(row, 'rotation', 4)
    if not sum(value * value for value in rotation) > 0:
        raise ValueError('a rotation of length 0')
    return _numbers(row, 'translation', 3) + rotation


def _three_by_three(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    matrix = [[float(value) for value in row] for row in rows]
    sizes, numbers = [len(row) for row in matrix], [value for row in matrix for value in row]
    if sizes != [3] * 3 or not all(map(isfinite, numbers)):
        raise ValueError(f'camera_intrinsic is {shown(rows)}; it is 3 rows of 3 numbers')
    return matrix


def _numbers(row: _Row, name: str, count: int) -> list[float]:
    values = [float(value) for value in row[name]]
    if len(values) != count or not all(map(isfinite, values)):
        raise ValueError(f'{name} is {shown(row[name])}; it is {count} numbers')
    return values

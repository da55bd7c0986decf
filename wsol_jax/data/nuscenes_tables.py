"""The tables of nuScenes (Caesar et al., CVPR 2020): JSON lists whose rows name each other."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsol_jax.data.boxes_3d import points_inside
from wsol_jax.data.files import printable, read_file, reason, stays_below
from wsol_jax.data.frames import (
    Box3D,
    Camera,
    Frame,
    Sweep,
    as_box,
    as_matrix,
    check_box,
    origin_of,
)
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
COLUMNS = 5  # of a point: x, y, z, intensity, ring
FULL = 255.0  # intensity of a full return
NEAR = 1.0  # metres: the vehicle itself
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
_Pose = NDArray[np.float64]  # [4, 4], from a frame to the one around it


class NuscenesTables:
    """The tables of a version of nuScenes, and the frames that they describe.

    Args:
        root: of the data set; files are named relative to it.
        version: the folder of the tables in it.
        class_names: the classes, in order.
        roots: see `Frame`.

    Raises:
        DataError: a table is missing, is no list of rows with tokens, or lacks a row that another
            names.
    """

    def __init__(
        self, root: Path, version: str, class_names: Sequence[str], roots: tuple[Path, ...]
    ) -> None:
        self._root, self._folder, self._roots = root, root / version, roots
        self._class_names = tuple(class_names)
        self._rows = {name: self._read(name) for name in TABLES}
        self._keyframes: dict[str, dict[str, _Row]] = defaultdict(dict)
        self._annotations: dict[str, list[_Row]] = defaultdict(list)
        with well_formed(printable(str(self._folder))):
            self._scenes = {row['name']: row for row in self._rows['scene'].values()}
            for row in self._rows['sample_data'].values():
                if row['is_key_frame']:
                    self._keyframes[row['sample_token']][self._channel(row)] = row
            for row in self._rows['sample_annotation'].values():
                self._annotations[row['sample_token']].append(row)

    @property
    def scenes(self) -> tuple[str, ...]:
        """Names of the scenes, in order."""
        return tuple(self._scenes)

    def samples(self, scene: str) -> list[str]:
        """Tokens of the samples of a scene, in the order of time."""
        row = self._scenes[scene]
        tokens: dict[str, None] = {}
        with well_formed(f'{printable(str(self._folder))}: {scene}'):
            token = row['first_sample_token']
            while token and token not in tokens:
                tokens[token] = None
                row = self._row('sample', token, row)
                token = row['next']
        return list(tokens)

    def frame(self, token: str, sweeps: int) -> Frame:
        """What a sample describes.

        Args:
            token: of the sample.
            sweeps: how many there are, as far as the scene has so many up to it.

        Raises:
            DataError: a table lacks a row or a value.
        """
        with well_formed(f'{printable(str(self._folder))}: sample {token}'):
            return self._frame(token, sweeps)

    def _frame(self, token: str, sweeps: int) -> Frame:
        keyframes = self._keyframes[token]
        if missing := [name for name in (LIDAR, *CAMERAS) if name not in keyframes]:
            raise DataError(f'{self._file("sample_data")}: sample {token} has no {missing[0]}')
        lidar = keyframes[LIDAR]
        world_to_lidar: _Pose = np.asarray(np.linalg.inv(self._to_world(lidar)), np.float64)
        objects = self._objects(token, world_to_lidar)
        return Frame(
            sweeps=tuple(islice(self._sweeps(lidar, world_to_lidar), sweeps)),
            cameras=tuple(self._camera(keyframes[name], world_to_lidar) for name in CAMERAS),
            boxes=tuple(box for box, _ in objects),
            classes=tuple(self._class_names.index(name) for _, name in objects),
            roots=self._roots,
            vehicle=origin_of(self._to_vehicle(lidar)),
        )

    def _sweeps(self, now: _Row, world_to_lidar: _Pose) -> Iterator[Sweep]:
        """The sweep of a moment, then earlier ones."""
        row = now
        while True:
            transform = () if row is now else as_matrix((world_to_lidar @ self._to_world(row))[:3])
            lag = 1e-6 * (now['timestamp'] - row['timestamp'])
            yield Sweep(self._path(row), COLUMNS, FULL, NEAR, lag, transform)
            if not row['prev']:
                return
            row = self._row('sample_data', row['prev'], row)

    def _camera(self, row: _Row, world_to_lidar: _Pose) -> Camera:
        sensor = self._row('calibrated_sensor', row['calibrated_sensor_token'], row)
        lidar_to_camera = np.linalg.inv(world_to_lidar @ self._to_world(row))
        projection = np.array(sensor['camera_intrinsic'], float) @ lidar_to_camera[:3]
        return Camera(self._path(row), as_matrix(projection), (row['width'], row['height']))

    def _objects(self, token: str, world_to_lidar: _Pose) -> list[tuple[Box3D, str]]:
        """Boxes and classes of what is detected; bikes in a rack are not."""
        found, racks = [], []
        for row in self._annotations[token]:
            name = self._category(row)
            box = self._box(row, world_to_lidar)
            if name == RACK:
                racks.append(box)
            elif name in CLASS_OF and row['num_lidar_pts'] + row['num_radar_pts'] > 0:
                found.append((box, CLASS_OF[name]))
        return [(box, name) for box, name in found if name not in BIKES or not _in_one(box, racks)]

    def _category(self, row: _Row) -> str:
        instance = self._row('instance', row['instance_token'], row)
        name = str(self._row('category', instance['category_token'], instance)['name'])
        if name not in CLASS_OF and name not in UNUSED:
            known = (*CLASS_OF, *UNUSED)
            raise DataError(f'{self._file("category")}: {unknown_name("class", name, known)}')
        return name

    def _box(self, row: _Row, world_to_lidar: _Pose) -> Box3D:
        pose = world_to_lidar @ _pose(row)
        width, length, height = row['size']
        box = [*pose[:3, 3], length, width, height, np.arctan2(pose[1, 0], pose[0, 0])]
        check_box(box, f'{self._file("sample_annotation")}: {row["token"]}')
        return as_box(box)

    def _to_world(self, row: _Row) -> _Pose:
        """[4, 4] from the frame of the sensor of a row of sample_data."""
        ego = self._row('ego_pose', row['ego_pose_token'], row)
        return _pose(ego) @ self._to_vehicle(row)

    def _to_vehicle(self, row: _Row) -> _Pose:
        """[4, 4] from the same frame to that of the vehicle."""
        return _pose(self._row('calibrated_sensor', row['calibrated_sensor_token'], row))

    def _channel(self, row: _Row) -> str:
        sensor = self._row('calibrated_sensor', row['calibrated_sensor_token'], row)
        return str(self._row('sensor', sensor['sensor_token'], sensor)['channel'])

    def _path(self, row: _Row) -> Path:
        if not stays_below(row['filename']):
            where = f'{self._file("sample_data")}: {shown(row["filename"])}'
            raise DataError(f'{where} leads out of the data set')
        return self._root / row['filename']

    def _row(self, table: str, token: str, named_by: _Row) -> _Row:
        if token not in self._rows[table]:
            raise DataError(
                f'{self._file(table)}: has no row {shown(token)}, which row '
                f'{shown(named_by["token"])} of another table names'
            )
        return self._rows[table][token]

    def _file(self, table: str) -> str:
        return printable(str(self._folder / f'{table}.json'))

    def _read(self, table: str) -> dict[str, _Row]:
        rows = read_json(self._folder / f'{table}.json', self._roots)
        try:
            return {row['token']: row for row in rows}
        except (KeyError, TypeError):
            raise DataError(f'{self._file(table)}: is no list of rows with tokens') from None


@contextmanager
def well_formed(where: str) -> Iterator[None]:
    """Makes one line of what reading a value that is not there, or of another kind, raises.

    Raises:
        DataError: it did.
    """
    try:
        yield
    except DataError:
        raise
    except KeyError as error:
        raise DataError(f'{where}: a row has no {shown(error.args[0])}') from None
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise DataError(f'{where}: malformed ({reason(error)})') from None


def read_json(file: Path, roots: tuple[Path, ...] = ()) -> Any:
    """What a JSON file holds.

    Raises:
        DataError: it is missing or malformed.
    """
    try:
        return json.loads(read_file(file, roots))
    except (OSError, ValueError) as error:
        raise DataError(f'{printable(str(file))}: {reason(error)}') from None


def _in_one(box: Box3D, others: Sequence[Box3D]) -> bool:
    return bool(points_inside([box[:3]], others).any())


def _pose(row: _Row) -> _Pose:
    """[4, 4] of a row with a translation and a rotation (a quaternion w, x, y, z)."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation_matrix(row['rotation']), row['translation']
    return pose


def rotation_matrix(quaternion: ArrayLike) -> NDArray[np.float64]:
    """[3, 3] of a quaternion (w, x, y, z) of any length.

    Raises:
        ValueError: it is not four numbers, or all are 0.
    """
    w, x, y, z = np.asarray(quaternion, np.float64)
    if not (length := w * w + x * x + y * y + z * z) > 0:
        raise ValueError('a rotation of length 0')
    vector = np.array([x, y, z])
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turned = (w * w - vector @ vector) * np.eye(3) + 2 * np.outer(vector, vector) + 2 * w * cross
    return np.asarray(turned / length)

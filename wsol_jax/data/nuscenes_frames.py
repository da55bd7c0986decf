"""Frames of nuScenes as columns of numbers, of which each is built when it is asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsol_jax.data.boxes_3d import points_inside
from wsol_jax.data.frames import Box3D, Camera, Frame, as_box, as_matrix, origin_of
from wsol_jax.data.sweeps import Sweep

COLUMNS = 5  # of a point: x, y, z, intensity, ring
FULL = 255.0  # intensity of a full return
NEAR = 1.0  # metres: the vehicle itself
RACK_CLASS = -1

Double = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Mounts:
    """How sensors are placed on the vehicle.

    Attributes:
        poses: [c, 7], see `pose_matrix`: from the frame of the sensor to that of the vehicle.
        intrinsics: [c, 3, 3] of cameras; zeros for others.
    """

    poses: Double
    intrinsics: Double


@dataclass(frozen=True)
class Shots:
    """What sensors took.

    Attributes:
        files: n of them, relative to the data set.
        times: [n] in microseconds.
        poses: [n, 7], see `pose_matrix`: from the frame of the vehicle to the world.
        mounts: [n], rows of `Mounts`.
        sizes: [n, 2] (width, height) of images.
    """

    files: tuple[str, ...]
    times: Double
    poses: Double
    mounts: Index
    sizes: Index

    def some(self, rows: Index) -> 'Shots':
        """Some of them."""
        return Shots(
            files=tuple(self.files[row] for row in rows.tolist()),
            times=self.times[rows],
            poses=self.poses[rows],
            mounts=self.mounts[rows],
            sizes=self.sizes[rows],
        )


@dataclass(frozen=True)
class Objects:
    """What is annotated, in the world.

    Attributes:
        owners: [m], the sample or frame that each belongs to.
        poses: [m, 7], see `pose_matrix`.
        sizes: [m, 3]: length, width, height.
        classes: [m], `RACK_CLASS` for bicycle racks.
    """

    owners: Index
    poses: Double
    sizes: Double
    classes: Index

    def some(self, rows: NDArray[np.bool_] | Index) -> 'Objects':
        """Some of them."""
        return Objects(
            owners=self.owners[rows],
            poses=self.poses[rows],
            sizes=self.sizes[rows],
            classes=self.classes[rows],
        )

    def of_owners(self, owners: Index) -> 'Objects':
        """Those of some owners, which are then 0, 1, 2 .., in their order."""
        places = np.full(np.concatenate([self.owners, owners]).max(initial=-1) + 1, -1)
        places[owners] = np.arange(len(owners))
        own = self.some(places[self.owners] >= 0)
        own = replace(own, owners=places[own.owners])
        return own.some(np.argsort(own.owners, kind='stable'))


@dataclass(frozen=True)
class NuscenesFrames:
    """The n frames of a split; what there is of them is pickled as few arrays.

    Attributes:
        root: of the data set.
        roots: see `Frame`.
        sweeps: [n, k], rows of `shots`: that of the moment, then earlier ones; -1 for none.
        cameras: [n, 6], rows of `shots`.
        shots: what is in these.
        mounts: of the sensors.
        objects: by frame, in order.
    """

    root: Path
    roots: tuple[Path, ...]
    sweeps: Index
    cameras: Index
    shots: Shots
    mounts: Mounts
    objects: Objects

    def __len__(self) -> int:
        return len(self.sweeps)

    def classes(self) -> list[tuple[int, ...]]:
        """Those of the boxes of each frame; none is built for it."""
        found = self.objects.classes.tolist()
        return [tuple(k for k in found[own] if k >= 0) for own in map(self._own, range(len(self)))]

    def without_bikes_in_racks(self, bikes: Sequence[int]) -> 'NuscenesFrames':
        """The same without those bikes whose centre lies in a bicycle rack.

        Args:
            bikes: classes of them.
        """
        racks, loose = self.objects.classes == RACK_CLASS, np.isin(self.objects.classes, bikes)
        in_rack = np.zeros(len(racks), bool)
        for index in np.intersect1d(self.objects.owners[racks], self.objects.owners[loose]):
            own = self._own(index)
            boxes = np.array(self._boxes(index, self._world_to_lidar(index)))
            in_rack[own] = loose[own] & points_inside(boxes, boxes[racks[own]]).any(0)
        return replace(self, objects=self.objects.some(~in_rack))

    def frame(self, index: int) -> Frame:
        """One of them.

        Raises:
            ValueError: a number of it is too large to reckon with.
        """
        world_to_lidar = self._world_to_lidar(index)
        classes = self.objects.classes[self._own(index)].tolist()
        boxes = self._boxes(index, world_to_lidar)
        mount = self.shots.mounts[self.sweeps[index, 0]]
        return Frame(
            sweeps=tuple(self._sweeps(index, world_to_lidar)),
            cameras=tuple(self._cameras(index, world_to_lidar)),
            boxes=tuple(box for box, k in zip(boxes, classes, strict=True) if k >= 0),
            classes=tuple(k for k in classes if k >= 0),
            roots=self.roots,
            vehicle=origin_of(pose_matrix(self.mounts.poses[mount])),
            racks=tuple(box for box, k in zip(boxes, classes, strict=True) if k == RACK_CLASS),
        )

    def _own(self, index: int) -> slice:
        """The objects of a frame."""
        return slice(*np.searchsorted(self.objects.owners, (index, index + 1)).tolist())

    def _world_to_lidar(self, index: int) -> Double:
        return np.asarray(np.linalg.inv(self._to_world(self.sweeps[index, 0])), np.float64)

    def _to_world(self, rows: Index) -> Double:
        """[..., 4, 4] from the frames of the sensors of some shots."""
        mounts = self.mounts.poses[self.shots.mounts[rows]]
        return pose_matrix(self.shots.poses[rows]) @ pose_matrix(mounts)

    def _sweeps(self, index: int, world_to_lidar: Double) -> Iterator[Sweep]:
        """The sweep of a moment, then earlier ones."""
        rows = self.sweeps[index]
        rows = rows[rows >= 0]
        moved = (world_to_lidar @ self._to_world(rows))[:, :3]
        lags = (1e-6 * (self.shots.times[rows[0]] - self.shots.times[rows])).tolist()
        for k, row in enumerate(rows.tolist()):
            file = self.root / self.shots.files[row]
            yield Sweep(file, COLUMNS, FULL, NEAR, lags[k], as_matrix(moved[k]) if k else ())

    def _cameras(self, index: int, world_to_lidar: Double) -> Iterator[Camera]:
        rows = self.cameras[index]
        lidar_to_camera = np.linalg.inv(world_to_lidar @ self._to_world(rows))
        intrinsics = self.mounts.intrinsics[self.shots.mounts[rows]]
        projections = intrinsics @ lidar_to_camera[:, :3]
        for row, projection in zip(rows.tolist(), projections, strict=True):
            width, height = self.shots.sizes[row].tolist()
            file = self.root / self.shots.files[row]
            yield Camera(file, as_matrix(projection), (width, height))

    def _boxes(self, index: int, world_to_lidar: Double) -> list[Box3D]:
        """Of all objects of a frame, racks among them."""
        own = self._own(index)
        poses = world_to_lidar @ pose_matrix(self.objects.poses[own])
        yaw = np.arctan2(poses[:, 1, 0], poses[:, 0, 0])
        rows = np.column_stack([poses[:, :3, 3], self.objects.sizes[own], yaw])
        return [as_box(row) for row in rows]


def pose_matrix(poses: ArrayLike) -> Double:
    """[..., 4, 4], from one frame to another, of poses [..., 7].

    A pose is a translation x, y, z and a rotation, see `rotation_matrix`.
    """
    poses = np.asarray(poses, np.float64)
    matrix = np.zeros((*poses.shape[:-1], 4, 4))
    matrix[..., :3, :3], matrix[..., :3, 3] = rotation_matrix(poses[..., 3:]), poses[..., :3]
    matrix[..., 3, 3] = 1
    return matrix


def rotation_matrix(quaternions: ArrayLike) -> Double:
    """[..., 3, 3] of quaternions [..., 4] (w, x, y, z) of any length but 0."""
    quaternions = np.asarray(quaternions, np.float64)[..., None]
    w, vector = quaternions[..., :1, :], quaternions[..., 1:, :]
    across = np.swapaxes(vector, -1, -2)
    length, own = (quaternions**2).sum(-2, keepdims=True), (vector**2).sum(-2, keepdims=True)
    turned = (w * w - own) * np.eye(3) + 2 * vector * across + 2 * w * np.cross(np.eye(3), across)
    return np.asarray(turned / length)

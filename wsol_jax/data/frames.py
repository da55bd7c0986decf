"""A LiDAR sweep, the cameras around it and the boxes in it: what `extra['frame']` of a record is.

The image of such a record is that of the first camera. Boxes and points are in the LiDAR frame of
the sweep, in metres; `wsol_jax.data.boxes_3d` says what the numbers of a box are.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple, Protocol
from zlib import crc32

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from wsol_jax.data.boxes_3d import NEAREST, Array, as_boxes, axes, in_region, project
from wsol_jax.data.decode import decode_image, resize_image
from wsol_jax.data.files import printable
from wsol_jax.data.records import (
    UNLABELLED,
    DataError,
    Decoding,
    Encoded,
    ListedRecords,
    Pixels,
    Record,
    Source,
    filled,
)
from wsol_jax.data.sweeps import Matrix, Sweep, read_sweep
from wsol_jax.names import shown

Box3D = tuple[float, float, float, float, float, float, float]
POINT_SIGMA = 0.3  # metres, of where a person clicks on an object
POINT_REACH = 1 / 3  # of the half dimensions of its box
_ANNOTATION, _SAMPLE = 1, 2  # streams of chance of a frame
_NORMAL = NormalDist(0, POINT_SIGMA)


class Camera(NamedTuple):
    """An image and where the world is in it.

    Attributes:
        image: file, or its bytes.
        projection: [3, 4] from the LiDAR frame to pixels of the stored image, homogeneous.
        size: (width, height) of the stored image.
    """

    image: Encoded
    projection: Matrix
    size: tuple[int, int]


@dataclass(frozen=True)
class Frame:
    """One moment: the sweeps up to it, what the cameras see, and the true boxes.

    Attributes:
        sweeps: that of the moment itself first.
        cameras: the one that looks ahead first.
        boxes: [x, y, z, l, w, h, yaw] of each object.
        classes: of each object.
        labelled: whether training knows the boxes; else a point and the class of each object.
        roots: real paths of folders, in one of which the files of the sweeps must lie; () for
            anywhere.
        vehicle: (x, y) of the vehicle's own origin, from where nuScenes measures distances.
        racks: boxes of bicycle racks, as nuScenes has them: what is in them is no object.
        in_image: whether objects are labelled in the image of the first camera alone, as KITTI's
            are; points outside of it are left out.
    """

    sweeps: tuple[Sweep, ...]
    cameras: tuple[Camera, ...]
    boxes: tuple[Box3D, ...] = ()
    classes: tuple[int, ...] = ()
    labelled: bool = True
    roots: tuple[Path, ...] = ()
    vehicle: tuple[float, float] = (0.0, 0.0)
    racks: tuple[Box3D, ...] = ()
    in_image: bool = False


class FrameSource(Source, Protocol):
    """A data set of frames."""

    @property
    def most_boxes(self) -> int:
        """The most boxes that a frame has, at least 1."""

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Of which frames training knows the boxes, [len]; no frame is drawn or read for it."""

    def image_id(self, index: int) -> str:
        """Name of a frame, which is neither drawn nor read for it."""


class ListedFrames(ListedRecords):
    """A `FrameSource` whose records are all there."""

    @property
    def most_boxes(self) -> int:
        """The most boxes that a frame has, at least 1."""
        return max([1, *(len(frame_of(record).boxes) for record in self._records)])

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Of which frames training knows the boxes, [len]."""
        return np.array([frame_of(record).labelled for record in self._records], bool)

    def image_id(self, index: int) -> str:
        """Name of a frame."""
        return self._records[index].image_id


def as_matrix(values: ArrayLike) -> Matrix:
    """A matrix [3, 4] as it stands in frames.

    Raises:
        ValueError: it has another shape, or holds what is no number.
    """
    matrix = np.asarray(values, np.float64)
    if matrix.shape != (3, 4) or not np.isfinite(matrix).all():
        raise ValueError(f'a matrix is {matrix.tolist()}; it is 3 rows of 4 numbers')
    return tuple(tuple(row) for row in matrix.tolist())


def origin_of(sensor_to_vehicle: ArrayLike) -> tuple[float, float]:
    """(x, y) of the vehicle's origin in the frame of a sensor that is placed by a [4, 4].

    Raises:
        ValueError: it is none, or cannot be undone.
    """
    matrix = [*as_matrix(np.asarray(sensor_to_vehicle)[:3]), (0.0, 0.0, 0.0, 1.0)]
    x, y = np.linalg.inv(matrix)[:2, 3].tolist()
    return x, y


def as_box(values: ArrayLike) -> Box3D:
    """A box [7] as it stands in frames: in float32, as it will be read."""
    x, y, z, length, width, height, yaw = np.asarray(values, np.float32).tolist()
    return x, y, z, length, width, height, yaw


@dataclass(frozen=True)
class SomeFrames:
    """A `FrameSource` of some frames of another one.

    Attributes:
        source: the other one.
        index: positions there.
    """

    source: FrameSource
    index: tuple[int, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Those of the other one."""
        return self.source.class_names

    @property
    def num_classes(self) -> int:
        """Of the other one."""
        return self.source.num_classes

    @property
    def most_labels(self) -> int:
        """The most labels that an image of the other one has."""
        return self.source.most_labels

    def class_name(self, label: int) -> str:
        """See `Source`."""
        return self.source.class_name(label)

    @property
    def most_boxes(self) -> int:
        """The most boxes that a frame of the other one has."""
        return self.source.most_boxes

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Of which of these frames training knows the boxes, [len]."""
        return self.source.labelled[list(self.index)]

    def image_id(self, index: int) -> str:
        """Name of a frame."""
        return self.source.image_id(self.index[index])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Record:
        return self.source[self.index[index]]


def frame_record(image_id: str, frame: Frame, decoding: Decoding) -> Record:
    """The record of a frame: the image of its first camera, and the classes in it."""
    return Record(
        image_id=image_id,
        image=frame.cameras[0].image,
        labels=tuple(sorted(set(frame.classes))),
        size=frame.cameras[0].size,
        decoding=decoding,
        extra={'frame': frame},
    )


def frame_of(record: Record) -> Frame:
    """The frame of a record.

    Raises:
        DataError: it has none.
    """
    frame = record.extra.get('frame')
    if isinstance(frame, Frame):
        return frame
    raise DataError(
        f'{printable(record.image_id)}: has no LiDAR sweep; the sources lidar_scenes, kitti and '
        'nuscenes have'
    )


def read_points(frame: Frame) -> Array:
    """The points of all sweeps of a frame, of `Frame.in_image` those in the image.

    Returns:
        float32 [P, 5]: x, y, z in the LiDAR frame, intensity (1 for a full return), and the time
        lag in seconds, 0 for the sweep of the moment itself.

    Raises:
        BadImage: a sweep is missing, of a wrong length, or holds what is no number.
        ReadError: the system failed to read it.
    """
    points = np.concatenate([read_sweep(sweep, frame.roots) for sweep in frame.sweeps])
    return points[_in_image(points, frame.cameras[0])] if frame.in_image else points


def _in_image(points: Array, camera: Camera) -> NDArray[np.bool_]:
    """Which points [P, 3+] a camera sees: [P]."""
    pixels, depth = project(points[:, :3], camera.projection)
    inside = ((pixels >= 0) & (pixels < camera.size)).all(1)
    return np.asarray(inside & (depth >= NEAREST))


def check_box(box: ArrayLike, where: str) -> None:
    """Refuses a box [x, y, z, l, w, h, yaw] that is none.

    Raises:
        DataError: one of its numbers is none, or a size is not above 0.
    """
    values = np.asarray(box, np.float64)
    if not np.isfinite(values).all() or (values[3:6] <= 0).any():
        sizes = ' x '.join(f'{value:g}' for value in values[3:6])
        raise DataError(
            f'{where}: a box of {sizes} m (length, width, height) at '
            f'{shown(values[:3].tolist())}; all must be numbers, and sizes above 0'
        )


def simulate_points(boxes: ArrayLike, rng: Generator) -> Array:
    """One point on each object, as a person would annotate it.

    The centre of the box plus normal noise of 0.3 m along each of its axes, truncated to a third of
    its half dimensions (Gao et al., "Point-DETR3D", AAAI 2024).

    Args:
        boxes: [N, 7].
        rng: where the noise comes from.

    Returns:
        [N, 3].
    """
    boxes = as_boxes(boxes)
    reach = boxes[:, 3:6] / 2 * POINT_REACH
    least = np.vectorize(_NORMAL.cdf, otypes=[float])(-reach)
    share = least + (1 - 2 * least) * rng.uniform(size=reach.shape)
    noise = np.vectorize(_NORMAL.inv_cdf, otypes=[float])(share)
    return (boxes[:, :3] + np.einsum('nij,nj->ni', axes(boxes[:, 6]), noise)).astype(np.float32)


def annotated_points(record: Record, seed: int = 0) -> Array:
    """The annotated points [N, 3] of a record's boxes; the same whenever they are asked for."""
    return simulate_points(frame_of(record).boxes, _chance(record, seed, _ANNOTATION))


def labelled_share(count: int, fraction: float, seed: int = 0) -> NDArray[np.bool_]:
    """Which of some frames or scenes [count] keep their boxes in training.

    At least one does. Those of a smaller fraction are among those of a larger one.

    Args:
        count: how many there are.
        fraction: of them, 0 to 1.
        seed: of the draw.

    Raises:
        DataError: the fraction is out of range.
    """
    if not 0 <= fraction <= 1:
        raise DataError(f'the labelled fraction is {fraction}; it is within 0..1')
    rank = np.random.default_rng([seed, count]).permutation(count)
    return np.asarray(rank < max(1, round(fraction * count)))


def _chance(record: Record, seed: int, stream: int) -> Generator:
    return np.random.default_rng([seed, crc32(record.image_id.encode()), stream])


@dataclass(frozen=True)
class FrameTargets:
    """What a batch carries of a frame; see `Targets`.

    Called with a record, it gives

    - 'points' float32 [P, 5], see `read_points`: those of the region, as many as there is room for,
      drawn evenly, then zeros; 'points_valid' bool [P].
    - 'boxes' float32 [N, 7] and 'box_classes' int32 [N] of the boxes whose centre lies in the
      region; padding is zeros, and class -1. 'annotated' float32 [N, 3]: their annotated points.
    - 'labelled' bool: whether training knows the boxes.
    - 'projections' float32 [K, 3, 4] and 'image_size' float32 [K, 2] (width, height) of cameras.
    - 'cameras' uint8 [K, h, w, 3], where there is more than one: their whole images, resized. One
      camera alone is the image of the record.

    Attributes:
        most_points: P.
        most_boxes: N, such as `FrameSource.most_boxes`.
        num_cameras: K, the first ones of a frame.
        camera_size: (h, w).
        region: (x0, y0, z0, x1, y1, z1) in metres, outside of which nothing is detected; () for no
            bound.
        seed: of the draws and of the annotated points.
    """

    most_points: int
    most_boxes: int
    num_cameras: int = 1
    camera_size: tuple[int, int] = (0, 0)
    region: tuple[float, ...] = ()
    seed: int = 0

    def __call__(self, record: Record) -> dict[str, NDArray[Any]]:
        """The targets of a record.

        Raises:
            DataError: it has no frame, more boxes or fewer cameras than these targets.
            BadImage: a sweep or an image of it is missing or damaged.
            ReadError: the system failed to read one.
        """
        frame = frame_of(record)
        cameras = self._cameras_of(record, frame)
        found = {
            **self._points(record, frame),
            **self._boxes(record, frame),
            'labelled': np.array(frame.labelled),
            'projections': np.array([camera.projection for camera in cameras], np.float32),
            'image_size': np.array([camera.size for camera in cameras], np.float32),
        }
        if self.num_cameras > 1:
            found['cameras'] = np.stack(list(self._images(record, cameras)))
        return found

    def _points(self, record: Record, frame: Frame) -> dict[str, NDArray[Any]]:
        points = read_points(frame)
        points = points[in_region(points, self.region)]
        if len(points) > self.most_points:
            rng = _chance(record, self.seed, _SAMPLE)
            kept = rng.choice(len(points), self.most_points, replace=False, shuffle=False)
            points = points[np.sort(kept)]
        valid = np.arange(self.most_points) < len(points)
        return {'points': filled(points, (self.most_points,)), 'points_valid': valid}

    def _boxes(self, record: Record, frame: Frame) -> dict[str, NDArray[Any]]:
        boxes = as_boxes(frame.boxes)
        kept = np.flatnonzero(in_region(boxes, self.region))
        if len(kept) > self.most_boxes:
            raise DataError(
                f'{printable(record.image_id)}: has {len(kept)} boxes, but can have '
                f'{self.most_boxes} here'
            )
        classes = np.array(frame.classes, np.int32)[kept]
        annotated = annotated_points(record, self.seed)[kept]
        return {
            'boxes': filled(boxes[kept], (self.most_boxes,)),
            'box_classes': filled(classes, (self.most_boxes,), UNLABELLED),
            'annotated': filled(annotated, (self.most_boxes,)),
        }

    def _cameras_of(self, record: Record, frame: Frame) -> tuple[Camera, ...]:
        if len(frame.cameras) < self.num_cameras:
            raise DataError(
                f'{printable(record.image_id)}: has {len(frame.cameras)} cameras; '
                f'{self.num_cameras} are asked for'
            )
        return frame.cameras[: self.num_cameras]

    def _images(self, record: Record, cameras: tuple[Camera, ...]) -> Iterator[Pixels]:
        height, width = self.camera_size
        for camera in cameras:
            one = replace(record, image=camera.image, size=camera.size)
            yield resize_image(decode_image(one, max(height, width)), (width, height))

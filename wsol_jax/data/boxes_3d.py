"""3D boxes: their corners, what lies in them, and where they are seen in an image.

A box is a float32 row [x, y, z, l, w, h, yaw] in the frame of a LiDAR sweep, in metres: its
centre, its length along the heading, width and height, and the heading in radians,
counter-clockwise from +x seen from above. z points up. The sensor says where x points: ahead in
KITTI, to the right in nuScenes, whose vehicles head for +y.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float32]
Double = NDArray[np.float64]
# Of the corners in half lengths, widths and heights: counter-clockwise from the front left, the
# bottom first.
SIGNS = np.array(
    [[x, y, z] for z in (-1, 1) for x, y in ((1, 1), (-1, 1), (-1, -1), (1, -1))], np.float32
)
EDGES = (
    *((0, 1), (1, 2), (2, 3), (3, 0)),
    *((4, 5), (5, 6), (6, 7), (7, 4)),
    *((0, 4), (1, 5), (2, 6), (3, 7)),
)
FACES = ((3, 0, 4, 7), (1, 2, 6, 5), (0, 1, 5, 4), (2, 3, 7, 6), (4, 5, 6, 7), (3, 2, 1, 0))
NEAREST = 0.01  # metres: what is nearer to the plane of a camera has no place in its image


def as_boxes(boxes: ArrayLike) -> Array:
    """Boxes as float32 [N, 7], also where there is none."""
    return np.asarray(boxes, np.float32).reshape(-1, 7)


def axes(yaw: ArrayLike) -> Double:
    """Rotation matrices [..., 3, 3] about z, whose columns are ahead, to the left and up."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    none, one = np.zeros_like(cos), np.ones_like(cos)
    rows = [[cos, -sin, none], [sin, cos, none], [none, none, one]]
    return np.moveaxis(np.array(rows, np.float64), (0, 1), (-2, -1))


def corners(boxes: ArrayLike) -> Array:
    """Corners [N, 8, 3] of boxes [N, 7].

    The first four are the bottom: front left, rear left, rear right, front right; the last four lie
    above them. `EDGES` and `FACES` (front, rear, left, right, top, bottom) index them.
    """
    boxes = as_boxes(boxes)
    offsets = SIGNS * boxes[:, None, 3:6] / 2
    turned = np.einsum('nij,nkj->nki', axes(boxes[:, 6]), offsets)
    return (boxes[:, None, :3] + turned).astype(np.float32)


def in_box_frame(points: ArrayLike, boxes: ArrayLike) -> Array:
    """Points [P, 3+] seen from each of the boxes [N, 7]: [N, P, 3] ahead, to the left, up."""
    boxes = as_boxes(boxes)
    offsets = np.asarray(points, np.float32)[None, :, :3] - boxes[:, None, :3]
    return np.einsum('nji,npj->npi', axes(boxes[:, 6]), offsets).astype(np.float32)


def points_inside(points: ArrayLike, boxes: ArrayLike) -> NDArray[np.bool_]:
    """Which points [P, 3+] lie in which boxes [N, 7], their surface included: [N, P]."""
    points, boxes = np.asarray(points, np.float32), as_boxes(boxes)
    inside = np.zeros((len(boxes), len(points)), bool)
    for own, box in zip(inside, boxes, strict=True):  # a sweep has many points, a box few of them
        near = _near(points, box)
        own[near] = (abs(in_box_frame(points[near], box)[0]) <= box[3:6] / 2).all(-1)
    return inside


def _near(points: Array, box: Array) -> NDArray[np.intp]:
    """Indices of the points that lie in a box, and of others around it, as seen from above."""
    reach = 1.001 * np.hypot(box[3], box[4]) / 2  # of the corners, with room for rounding
    ahead, aside = (abs(points[:, axis] - box[axis]) <= reach for axis in (0, 1))
    return np.flatnonzero(ahead & aside)


def project(points: ArrayLike, matrix: ArrayLike) -> tuple[Array, Array]:
    """Where a camera sees points.

    Args:
        points: [N, 3+] in the LiDAR frame.
        matrix: [3, 4] from the LiDAR frame to pixels, homogeneous.

    Returns:
        Pixels (x, y) [N, 2], which mean nothing where the depth is below `NEAREST`; and depths [N]
        in metres, negative behind the camera.
    """
    points, matrix = np.asarray(points, np.float64), np.asarray(matrix, np.float64)
    seen = points[:, :3] @ matrix[:, :3].T + matrix[:, 3]
    depth = seen[:, 2]
    pixels = seen[:, :2] / np.maximum(depth, NEAREST)[:, None]
    return pixels.astype(np.float32), depth.astype(np.float32)


def kitti_to_lidar(labels: ArrayLike, lidar_to_camera: ArrayLike) -> Array:
    """Boxes in the LiDAR frame of KITTI's labels.

    KITTI's boxes stand upright in the frame of the rectified camera (x right, y down, z ahead),
    which is tilted against the LiDAR by less than a degree; ours stand upright in that of the
    LiDAR, with the same centre and the heading seen from above.

    Args:
        labels: [N, 7] in the order of KITTI's files: height, width, length; x, y, z of the middle
            of the bottom; rotation_y about the camera's y.
        lidar_to_camera: [3, 4] or [4, 4], R0_rect * Tr_velo_to_cam.

    Returns:
        Boxes [N, 7].
    """
    labels = np.asarray(labels, np.float64).reshape(-1, 7)
    rotation, shift = _parts(lidar_to_camera)
    up = np.stack([0 * labels[:, 0], labels[:, 0] / 2, 0 * labels[:, 0]], 1)
    centres = (labels[:, 3:6] - up - shift) @ rotation
    heading = np.stack([np.cos(labels[:, 6]), -np.sin(labels[:, 6])], 1) @ _level(rotation)
    yaw = np.arctan2(heading[:, 1], heading[:, 0])
    return np.column_stack([centres, labels[:, [2, 1, 0]], yaw]).astype(np.float32)


def lidar_to_kitti(boxes: ArrayLike, lidar_to_camera: ArrayLike) -> Array:
    """KITTI's labels [N, 7] of boxes [N, 7] in the LiDAR frame; undoes `kitti_to_lidar`."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 7)
    rotation, shift = _parts(lidar_to_camera)
    bottoms = boxes[:, :3] @ rotation.T + shift
    bottoms[:, 1] += boxes[:, 5] / 2
    yaw = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])], 1)
    heading = yaw @ np.linalg.inv(_level(rotation))
    turn = np.arctan2(-heading[:, 1], heading[:, 0])
    return np.column_stack([boxes[:, [5, 4, 3]], bottoms, turn]).astype(np.float32)


def _parts(matrix: ArrayLike) -> tuple[Double, Double]:
    """Rotation [3, 3] and translation [3]."""
    matrix = np.asarray(matrix, np.float64)
    return matrix[:3, :3], matrix[:3, 3]


def _level(rotation: Double) -> Double:
    """[2, 2]: x and y in the LiDAR frame of the camera's x and z."""
    return rotation[[0, 2], :2]


def in_region(rows: Array, region: tuple[float, ...]) -> NDArray[np.bool_]:
    """Which rows [N, 3+], which begin with x, y, z, lie in a region: [N].

    Args:
        rows: points, or boxes by their centres, in metres.
        region: (x0, y0, z0, x1, y1, z1), whose upper ends are outside; () for no bound.
    """
    if not region:
        return np.ones(len(rows), bool)
    low, high = np.array(region, np.float32).reshape(2, 3)
    return np.asarray(((rows[:, :3] >= low) & (rows[:, :3] < high)).all(1))

"""Overlap of boxes that stand upright and are turned about the vertical: from above and in 3D.

NumPy alone, float64. A box is a row [x, y, z, l, w, h, yaw]: the centre and the sizes in metres,
l along the heading, yaw counter-clockwise from +x. Each box is clipped by the four sides of the
other (Sutherland and Hodgman, CACM 1974), in the other's own frame, for all pairs at once.
"""

import numpy as np

Array = np.ndarray


def bev_iou(boxes: Array, others: Array) -> Array:
    """Intersection over union of every pair as seen from above, of rotated rectangles.

    Args:
        boxes: [n, 7]; z and h do not count.
        others: [m, 7].

    Returns:
        [n, m] in [0, 1]; 0 where both areas are 0.

    Raises:
        ValueError: a number is not finite, or a size is below 0.

    Example:
        >>> bev_iou([[0, 0, 0, 4, 2, 1, 0]], [[0, 0, 0, 2, 4, 1, 0], [1, 0, 9, 4, 2, 1, np.pi]])
        array([[0.33333333, 0.6       ]])
    """
    a, b = _checked(boxes), _checked(others)
    areas = [x[:, 3] * x[:, 4] for x in (a, b)]
    return _over_union(_overlap_from_above(a, b), *areas)


def iou_3d(boxes: Array, others: Array) -> Array:
    """Intersection over union of the volumes of every pair.

    Args:
        boxes: [n, 7].
        others: [m, 7].

    Returns:
        [n, m] in [0, 1]; 0 where both volumes are 0.

    Raises:
        ValueError: a number is not finite, or a size is below 0.
    """
    a, b = _checked(boxes), _checked(others)
    low, high = ([x[:, 2] + side * x[:, 5] / 2 for x in (a, b)] for side in (-1, 1))
    height = np.minimum(high[0][:, None], high[1]) - np.maximum(low[0][:, None], low[1])
    overlap = _overlap_from_above(a, b) * np.clip(height, 0, None)
    return _over_union(overlap, *(x[:, 3:6].prod(axis=1) for x in (a, b)))


def _checked(boxes: Array) -> Array:
    boxes = np.asarray(boxes, float).reshape(-1, 7)
    wrong = ~np.isfinite(boxes).all(axis=1) | (boxes[:, 3:6] < 0).any(axis=1)
    if wrong.any():
        raise ValueError(f'box {boxes[wrong][0].tolist()}: finite numbers and sizes from 0 on only')
    return boxes


def _over_union(overlap: Array, sizes: Array, other_sizes: Array) -> Array:
    union = sizes[:, None] + other_sizes - overlap
    shares = np.divide(overlap, union, out=np.zeros_like(union), where=union > 0)
    return np.minimum(shares, 1)  # of equal boxes the last bit may be above


def _overlap_from_above(a: Array, b: Array) -> Array:
    """Area [n, m] that the rectangles of each pair share."""
    overlap = np.zeros((len(a), len(b)))
    reach = [np.hypot(x[:, 3], x[:, 4]) / 2 for x in (a, b)]
    apart = np.hypot(*(a[:, None, axis] - b[:, axis] for axis in (0, 1)))
    near = np.nonzero(apart < reach[0][:, None] + reach[1])  # of most pairs nothing is shared
    first, second = a[near[0]], b[near[1]]
    polygons = _corners_seen_from(first, second)
    for axis in (0, 1):
        half = second[:, 3 + axis, None] / 2
        for side in (-1, 1):
            polygons = _clip(polygons, half - side * polygons[..., axis])
    overlap[near] = _area(polygons)
    return overlap


def _corners_seen_from(boxes: Array, others: Array) -> Array:
    """Corners [p, 4, 2] of each box, counter-clockwise, in the frame of its partner."""
    yaw = boxes[:, 6] - others[:, 6]
    corners = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * boxes[:, None, 3:5] / 2
    centres = _turned((boxes - others)[:, None, :2], -others[:, 6])
    return centres + _turned(corners, yaw)


def _turned(points: Array, angles: Array) -> Array:
    """Points [p, k, 2], each row turned counter-clockwise by its angle [p]."""
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    x, y = points[..., 0], points[..., 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


def _clip(polygons: Array, inside_by: Array) -> Array:
    """What of convex polygons [p, k, 2] lies on one side of a line: [p, at most 2 k, 2].

    `inside_by` [p, k] is how far each corner is on that side. Rows with fewer corners than others
    repeat one; one with none is all 0.
    """
    inside = inside_by >= 0
    cut = inside != np.roll(inside, -1, axis=1)
    step = inside_by - np.roll(inside_by, -1, axis=1)
    share = np.divide(inside_by, step, out=np.zeros_like(step), where=cut)
    crossings = polygons + share[..., None] * (np.roll(polygons, -1, axis=1) - polygons)
    count, corners = inside.shape
    points = np.stack([polygons, crossings], axis=2).reshape(count, 2 * corners, 2)
    kept = np.stack([inside, cut], axis=2).reshape(count, 2 * corners)
    order = np.argsort(~kept, axis=1, kind='stable')[:, : kept.sum(axis=1).max(initial=1)]
    kept = np.take_along_axis(kept, order, axis=1)[..., None]
    points = np.take_along_axis(points, order[..., None], axis=1)
    return np.where(kept, points, np.where(kept[:, :1], points[:, :1], 0))


def _area(polygons: Array) -> Array:
    """Areas [p] of polygons [p, k, 2] whose corners go counter-clockwise."""
    x, y = polygons[..., 0], polygons[..., 1]
    following = np.roll(polygons, -1, axis=1)
    return np.clip((x * following[..., 1] - y * following[..., 0]).sum(axis=1) / 2, 0, None)

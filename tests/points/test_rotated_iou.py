"""Overlaps of rotated boxes: closed forms, counted points, and shapely where there is one."""

import numpy as np
import pytest

from wsol_jax.points.rotated_iou import bev_iou, iou_3d

TURN = np.pi / 4


def box(x=0.0, y=0.0, z=0.0, l=2.0, w=2.0, h=2.0, yaw=0.0):  # noqa: E741
    return [[x, y, z, l, w, h, yaw]]


def some(count, seed, spread=3.0):
    rng = np.random.default_rng(seed)
    centres = rng.uniform(-spread, spread, (count, 3)) * [1, 1, 0.3]
    yaws = rng.uniform(-4, 4, (count, 1))
    return np.hstack([centres, rng.uniform(0.3, 4, (count, 3)), yaws])


# Two squares of side 2 at 45 degrees share a regular octagon of inradius 1.
OCTAGON = 8 * np.tan(np.pi / 8)


@pytest.mark.parametrize(
    ('one', 'other', 'shared'),
    [
        (box(), box(), 4),
        (box(), box(yaw=np.pi / 2), 4),
        (box(), box(yaw=TURN), OCTAGON),
        (box(), box(l=2**0.5, w=2**0.5, yaw=TURN), 2),  # its corners touch the sides
        (box(l=9, w=9), box(x=1, y=-1, yaw=0.7), 4),  # within
        (box(), box(x=0.5, y=1), 1.5),
        (box(yaw=TURN), box(x=2**-0.5, y=2**-0.5, yaw=TURN), 2),  # half a side along the heading
        (box(l=6, w=2, yaw=np.pi / 2), box(y=3), 2),
        (box(), box(x=1.9, y=1.9), 0.01),
        (box(), box(x=2), 0),  # a side is shared
        (box(), box(x=2, y=2), 0),  # a corner is
        (box(), box(x=1 + 2**0.5, yaw=TURN), 0),
        (box(), box(x=1e4, y=3), 0),
        (box(l=4, w=0), box(), 0),
    ],
)
def test_closed_forms(one, other, shared):
    one, other = np.array(one), np.array(other)
    union = one[0, 3:5].prod() + other[0, 3:5].prod() - shared
    for shift in (0, 1e5):  # far from the origin too
        away = np.array([shift, -shift, 0, 0, 0, 0, 0])
        pair = one + away, other + away
        assert bev_iou(*pair)[0, 0] == pytest.approx(shared / union, abs=1e-9)
        assert bev_iou(*pair[::-1])[0, 0] == pytest.approx(shared / union, abs=1e-9)


def test_sizes_of_any_scale_give_the_same():
    for scale in (1e-9, 1e-3, 1e6):
        pair = [np.array(b) * [*[scale] * 6, 1] for b in (box(), box(x=0.5, y=1, z=0.5))]
        assert bev_iou(*pair)[0, 0] == pytest.approx(1.5 / 6.5)
        assert iou_3d(*pair)[0, 0] == pytest.approx(2.25 / (16 - 2.25))


def test_a_heading_turns_counter_clockwise():
    """A long box to the upper right meets a small one there, and none to the lower right."""
    long = box(l=10, w=1, yaw=TURN)
    assert bev_iou(long, box(x=3, y=3, l=0.5, w=0.5)) > 0
    assert bev_iou(long, box(x=3, y=-3, l=0.5, w=0.5)) == 0


@pytest.mark.parametrize(
    ('z', 'h', 'shared'),
    [(0, 2, 2), (1, 2, 1), (2, 2, 0), (5, 2, 0), (0, 1, 1), (0.5, 4, 2), (0, 0, 0)],
)
def test_heights_that_overlap(z, h, shared):
    other = box(z=z, h=h, yaw=TURN)
    union = 4 * 2 + 4 * h - OCTAGON * shared
    assert iou_3d(box(), other)[0, 0] == pytest.approx(OCTAGON * shared / union)


def test_a_box_with_itself_is_1_and_never_more():
    boxes = some(60, 0, 100)
    for iou in (bev_iou(boxes, boxes), iou_3d(boxes, boxes)):
        np.testing.assert_allclose(np.diagonal(iou), 1, rtol=1e-12)
        assert iou.max() <= 1 and iou.min() >= 0
    turned = boxes + np.array([0, 0, 0, 0, 0, 0, np.pi])
    np.testing.assert_allclose(np.diagonal(bev_iou(boxes, turned)), 1, rtol=1e-9)


def test_nearly_equal_boxes():
    """Sides that almost coincide, where a sloppy cut would lose a corner."""
    boxes = some(60, 1)
    rng = np.random.default_rng(2)
    for size in (1e-6, 1e-12, 1e-15):
        moved = boxes + rng.uniform(-size, size, boxes.shape)
        iou = bev_iou(boxes, moved)
        assert np.diagonal(iou).min() > 1 - 100 * size - 1e-12


def contains(boxes, points):
    """Whether [n, p] each point is in each rectangle, one box after the other."""
    inside = []
    for x, y, _, l, w, _, yaw in boxes:  # noqa: E741
        offset = points - [x, y]
        along = offset @ [np.cos(yaw), np.sin(yaw)]
        across = offset @ [-np.sin(yaw), np.cos(yaw)]
        inside.append((abs(along) <= l / 2) & (abs(across) <= w / 2))
    return np.array(inside)


def test_against_counted_points():
    one, other = some(12, 3, 1.5), some(9, 4, 1.5)
    axis = np.linspace(-5, 5, 400)
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    a, b = (contains(boxes, points).astype(np.float32) for boxes in (one, other))
    shared = a @ b.T
    counted = shared / (a.sum(1)[:, None] + b.sum(1) - shared)
    found = bev_iou(one, other)
    assert (found > 0.1).sum() > 20
    np.testing.assert_allclose(found, counted, atol=0.01)


def test_volumes_are_areas_times_heights():
    one, other = some(8, 5), some(9, 6)
    found = iou_3d(one, other)
    for i, j in np.ndindex(found.shape):
        a, b = one[i], other[j]
        flat = bev_iou(a, b)[0, 0]
        area = flat / (1 + flat) * (a[3] * a[4] + b[3] * b[4])
        height = min(a[2] + a[5] / 2, b[2] + b[5] / 2) - max(a[2] - a[5] / 2, b[2] - b[5] / 2)
        shared = area * max(height, 0)
        union = a[3:6].prod() + b[3:6].prod() - shared
        assert found[i, j] == pytest.approx(shared / union)


def test_against_shapely():
    shapely = pytest.importorskip('shapely')
    one, other = some(80, 7), some(80, 8)
    other[:20] = one[:20]  # coinciding sides
    other[20:40, :3] = one[20:40, :3]
    other[40:50, 6] = one[40:50, 6] + np.pi / 2

    def polygon(b):
        corners = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * b[3:5] / 2
        cos, sin = np.cos(b[6]), np.sin(b[6])
        return shapely.Polygon(corners @ [[cos, sin], [-sin, cos]] + b[:2])

    a, b = ([polygon(row) for row in boxes] for boxes in (one, other))
    shared = np.array([[p.intersection(q).area for q in b] for p in a])
    areas = [np.array([p.area for p in polygons]) for polygons in (a, b)]
    expected = shared / (areas[0][:, None] + areas[1] - shared)
    np.testing.assert_allclose(bev_iou(one, other), expected, atol=1e-9)


def test_no_boxes():
    assert bev_iou(np.zeros((0, 7)), some(3, 0)).shape == (0, 3)
    assert iou_3d(some(3, 0), np.zeros((0, 7))).shape == (3, 0)


@pytest.mark.parametrize('wrong', [box(l=-1), box(x=np.nan), box(yaw=np.inf)])
def test_what_is_no_box(wrong):
    with pytest.raises(ValueError, match='sizes from 0 on'):
        bev_iou(box(), wrong)

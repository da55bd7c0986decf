import math

import numpy as np

from wsol_jax.data.boxes_3d import (
    EDGES,
    FACES,
    corners,
    in_box_frame,
    kitti_to_lidar,
    lidar_to_kitti,
    points_inside,
    project,
)

BOX = [10.0, 2.0, 1.0, 4.0, 2.0, 1.5, math.pi / 2]  # heads for +y
# The axes of KITTI's rectified camera, without tilt: x right, y down, z ahead.
CAMERA = np.array([[0, -1, 0, 0.1], [0, 0, -1, -0.2], [1, 0, 0, -0.3]])


def tilted():
    """`CAMERA` turned by some degrees about its axes."""
    a, b = 0.03, -0.02
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    return about_x @ about_z @ CAMERA


def test_corners_go_round_from_the_front_left():
    found = corners([BOX, [0, 0, 0, 2, 2, 2, 0]])
    bottom = [[9, 4], [9, 0], [11, 0], [11, 4]]  # the front is at y = 4, its left at x = 9
    np.testing.assert_allclose(found[0, :4, :2], bottom, atol=1e-5)
    np.testing.assert_allclose(found[0, 4:, :2], bottom, atol=1e-5)
    np.testing.assert_allclose(found[0, :, 2], [0.25] * 4 + [1.75] * 4)
    assert found[1, 0].tolist() == [1, 1, -1] and found.dtype == np.float32
    assert corners([]).shape == (0, 8, 3)


def test_edges_and_faces_are_those_of_a_box():
    (found,) = corners([BOX])
    lengths = sorted(np.linalg.norm(found[a] - found[b]).round(4) for a, b in EDGES)
    assert lengths == [1.5] * 4 + [2.0] * 4 + [4.0] * 4
    middle = found.mean(0)
    for face, normal in zip(FACES, [(0, 1, 0), (0, -1, 0), (-1, 0, 0), (1, 0, 0)], strict=False):
        offset = found[list(face)].mean(0) - middle
        np.testing.assert_allclose(offset / np.linalg.norm(offset), normal, atol=1e-5)
        a, b, c = found[list(face[:3])]
        assert np.cross(b - a, c - b) @ offset > 0  # counter-clockwise seen from outside


def test_points_inside_turned_boxes():
    points = np.array([[10, 3.9, 1, 7], [11.1, 2, 1, 7], [10, 2, 1.76, 7], [10.9, 0.1, 0.3, 7]])
    assert points_inside(points, [BOX]).tolist() == [[True, False, False, True]]
    np.testing.assert_allclose(in_box_frame(points[:1], [BOX])[0, 0], [1.9, 0, 0], atol=1e-5)
    assert points_inside(points, []).shape == (0, 4)
    assert points_inside(np.zeros((0, 5)), [BOX]).shape == (1, 0)


def test_points_inside_are_those_of_all_points_turned_into_every_box():
    rng = np.random.default_rng(0)
    place, size = rng.uniform(-20, 20, (30, 3)), rng.uniform(0.3, 9, (30, 3))
    boxes = np.column_stack([place, size, rng.uniform(-9, 9, 30)]).astype(np.float32)
    middles = corners(boxes).reshape(-1, 2, 4, 3).mean(1)  # of upright edges: on the surface
    around = rng.uniform(-25, 25, (4000, 3))
    points = np.concatenate([around, boxes[:, :3], corners(boxes).reshape(-1, 3), *middles])
    turned = abs(in_box_frame(points, boxes))
    inside = (turned <= boxes[:, None, 3:6] / 2).all(-1)
    np.testing.assert_array_equal(points_inside(points, boxes), inside)
    assert inside.any(1).all() and 100 < inside[:, :4000].sum() < inside.size / 100
    surface = inside[:, 4030:].sum()
    assert 30 < surface < inside[:, 4030:].size  # rounding decides


def test_only_points_around_a_box_are_turned_into_it(monkeypatch):
    turned = []

    def counted(points, boxes):
        turned.append(len(points))
        return in_box_frame(points, boxes)

    monkeypatch.setattr('wsol_jax.data.boxes_3d.in_box_frame', counted)
    points = [[x + 0.5, y + 0.5, 1] for x in range(-50, 50) for y in range(-50, 50)]
    assert points_inside(points, [BOX, BOX]).sum() == 2 * 8  # 2 x 4
    assert turned == [16, 16]  # 2.2 m around: 4 x 4


def test_pixels_of_a_pinhole_camera():
    focal = np.array([[100, 0, 50], [0, 100, 40], [0, 0, 1]])
    pixels, depth = project([[10, 0, 0], [10, -1, 2], [-3, 0, 0]], focal @ np.eye(3) @ CAMERA)
    # Depth is x - 0.3, right is 0.1 - y, down is -z - 0.2.
    np.testing.assert_allclose(depth, [9.7, 9.7, -3.3], rtol=1e-6)
    expected = [[50 + 10 / 9.7, 40 - 20 / 9.7], [50 + 110 / 9.7, 40 - 220 / 9.7]]
    np.testing.assert_allclose(pixels[:2], expected, rtol=1e-5)
    assert np.isfinite(pixels).all()


def test_a_label_of_kitti_in_the_lidar_frame():
    # Twelve metres ahead, two to the right, on the ground 1.7 below; rotation_y 0 heads right.
    label = [1.5, 1.6, 4.0, 2.0, 1.7, 12.0, 0.0]
    np.testing.assert_allclose(
        kitti_to_lidar([label], CAMERA)[0],
        [12.3, -1.9, -1.7 + 0.75 - 0.2, 4.0, 1.6, 1.5, -math.pi / 2],
        rtol=1e-5,
    )
    away = kitti_to_lidar([[*label[:6], -math.pi / 2]], CAMERA)  # heads ahead
    assert abs(away[0, 6]) < 1e-6


def test_kitti_and_back():
    rng = np.random.default_rng(3)
    boxes = rng.uniform([0, -20, -2, 1, 1, 1, -3], [50, 20, 1, 5, 3, 3, 3], (20, 7))
    there = lidar_to_kitti(boxes, tilted())
    np.testing.assert_allclose(kitti_to_lidar(there, tilted()), boxes, atol=1e-4)
    # The tilt is small: the heading is nearly what it is without.
    plain = (-boxes[:, 6] - np.pi / 2 + np.pi) % (2 * np.pi) - np.pi
    off = (there[:, 6] - plain + np.pi) % (2 * np.pi) - np.pi
    assert abs(off).max() < 0.05

import numpy as np
import pytest

from wsol_jax.data import LidarScenes
from wsol_jax.data.frames import Camera
from wsol_jax.points.drawing import (
    ANNOTATED,
    FOUND,
    GROUND,
    TRUE,
    birds_eye,
    camera_view,
    frame_picture,
    view_direction,
)

REGION = (0, -20, -3, 30, 20, 1)  # 40 m across, 30 m ahead
BOX = [20.0, 5.0, 0.0, 8.0, 4.0, 2.0, 0.0]  # heads ahead, on the left
# Looks along x from the origin; the focal length is 100 pixels, the middle (100, 50).
PROJECTION = np.array([[100, -100, 0, 0], [50, 0, -100, 0], [1, 0, 0, 0]], float)


def is_like(picture, colour):
    """Which pixels have a colour, or one near to it: lines are smooth."""
    return abs(picture.astype(int) - colour).max(-1) < 90


def bounds(picture, colour):
    """(x0, y0, x1, y1) of the pixels of a colour."""
    y, x = np.nonzero(is_like(picture, colour))
    return [x.min(), y.min(), x.max(), y.max()]


def test_boxes_from_above():
    picture = birds_eye(np.zeros((0, 4)), REGION, [BOX], width=400)
    assert picture.shape == (300, 400, 3) and picture.dtype == np.uint8
    # Ten pixels a metre; x 16..24 is 60..140 from the top, y 3..7 is 130..170 from the left.
    np.testing.assert_allclose(bounds(picture, TRUE), [130, 60, 170, 140], atol=1.5)
    assert is_like(picture[70:95, 149:152], TRUE).any(1).all()  # a line to the front
    assert not is_like(picture[105:135, 140:160], TRUE).any()
    both = birds_eye(np.zeros((0, 4)), REGION, [], [BOX], width=400)
    np.testing.assert_allclose(bounds(both, FOUND), [130, 60, 170, 140], atol=1.5)


@pytest.mark.parametrize('turns', [1, 2, 3])
def test_the_vehicle_heads_up_whatever_its_frame(turns):
    """Points, boxes and region are turned with the frame: the picture stays."""
    rng = np.random.default_rng(0)
    points = rng.uniform(REGION[:3], REGION[3:], (200, 3))
    cos, sin = np.round([np.cos(turns * np.pi / 2), np.sin(turns * np.pi / 2)])
    turn = np.array([[cos, -sin], [sin, cos]])
    low, high = (turn @ REGION[k : k + 2] for k in (0, 3))
    region = (*np.minimum(low, high), -3, *np.maximum(low, high), 1)
    turned = np.column_stack([points[:, :2] @ turn.T, points[:, 2]])
    box = [*(turn @ BOX[:2]), *BOX[2:6], turns * np.pi / 2]
    picture = birds_eye(turned, region, [box], ahead=turn @ (1, 0.1), width=200)
    expected = birds_eye(points, REGION, [BOX], width=200)
    assert picture.shape == expected.shape == (150, 200, 3)
    assert is_like(picture, expected).mean() > 0.998  # but for the tones of smooth lines


def test_points_are_dots_where_they_are_and_the_highest_lie_on_top():
    points = [[10.05, 0.05, 1.0], [10.05, 0.05, -2.0], [25.05, 15.05, -2.0], [25.0, 25.0, 0.0]]
    picture = birds_eye(points, REGION, width=400)
    high, low = picture[199, 199], picture[49, 49]
    assert high.astype(int).sum() > low.astype(int).sum() > sum(GROUND)
    only = birds_eye(points[:1], REGION, width=400)
    np.testing.assert_array_equal(only[199, 199], high)


def test_boxes_in_a_camera():
    image = np.full((100, 200, 3), 90, np.uint8)
    picture = camera_view(image, PROJECTION, found=[[10, 1, 0, 2, 2, 2, np.pi]])
    # Its front is the nearest face: 9 m away, 0..2 m to the left, a metre up and down.
    box = [100 - 200 / 9, 50 - 100 / 9, 100, 50 + 100 / 9]
    np.testing.assert_allclose(bounds(picture, FOUND), box, atol=1.5)
    filled = picture[50, 95].astype(float)
    np.testing.assert_allclose(filled, 0.65 * 90 + 0.35 * np.array(FOUND), atol=1)
    np.testing.assert_array_equal(picture[10, 10], (90, 90, 90))
    assert (image == 90).all()


def test_what_lies_behind_a_camera_is_not_seen():
    image = np.full((100, 200, 3), 90, np.uint8)
    behind = [[-10, 1, 0, 2, 2, 2, 0.0]]
    assert (camera_view(image, PROJECTION, behind, behind, [[-5, 0, 0]]) == 90).all()
    beside = [[0, 2, 0, 8, 1, 1, 0.0]]  # its front alone lies before the camera, 4 m ahead
    seen = camera_view(image, PROJECTION, beside)
    x0, _, x1, _ = bounds(seen, TRUE)
    assert x0 <= 2 and x1 == pytest.approx(100 - 100 * 1.5 / 4, abs=1.5)


def test_annotated_points():
    image = np.full((240, 480, 3), 90, np.uint8)
    picture = camera_view(image, PROJECTION, annotated=[[10, -3, -4]])
    np.testing.assert_array_equal(picture[90, 130], ANNOTATED)
    above = birds_eye(np.zeros((0, 4)), REGION, annotated=[[20, 5, 0]], width=400)
    np.testing.assert_allclose(bounds(above[:200], ANNOTATED), [149, 99, 149, 99], atol=4)


def test_a_picture_of_a_frame():
    record = LidarScenes('val', 1, 48)[0]
    picture = frame_picture(record, (0, -24, -4, 40, 24, 2), width=480)
    assert picture.shape == (240 + 6 + 400, 480, 3) and picture.dtype == np.uint8
    assert is_like(picture[:240], TRUE).any() and is_like(picture[246:], TRUE).any()
    camera = Camera(b'', tuple(map(tuple, PROJECTION)), (200, 100))
    assert view_direction(camera).tolist() == [1, 0]

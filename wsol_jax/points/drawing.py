"""Pictures of frames: points and boxes seen from above, and boxes in the images of cameras."""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsol_jax.data.boxes_3d import EDGES, FACES, NEAREST, Array, as_boxes, corners
from wsol_jax.data.decode import decode_image, resize_image
from wsol_jax.data.frames import Camera, frame_of, read_points
from wsol_jax.data.records import Pixels, Record

# White, and two colours of Okabe and Ito: told apart with any colour vision.
TRUE, FOUND, ANNOTATED = (255, 255, 255), (230, 159, 0), (86, 180, 233)
GROUND, RING, OUTLINE = (16, 20, 28), (52, 60, 74), (0, 0, 0)
HEIGHTS = (-2.5, 1.5)  # metres above the LiDAR, from the first colour to the last
RING_EVERY = 10  # metres
WIDTH = 960  # pixels of a picture of a whole frame
GAP = 6  # pixels between its parts
_SHIFT = 4  # bits below a pixel that OpenCV draws at
_FRONT = 0.35  # how much of its colour the front face of a box is filled with
_Colour = tuple[int, int, int]


def frame_picture(
    record: Record,
    region: Sequence[float],
    found: ArrayLike = (),
    annotated: ArrayLike = (),
    width: int = WIDTH,
) -> Pixels:
    """All that a frame shows: the images of its cameras with boxes, and below the bird's-eye view.

    True boxes are white, those found orange; annotated points are blue.

    Args:
        record: of the frame.
        region: (x0, y0, z0, x1, y1, z1) that the bird's-eye view shows.
        found: boxes [n, 7] that were predicted.
        annotated: points [m, 3].
        width: of the picture in pixels.

    Returns:
        uint8 RGB [H, width, 3].

    Raises:
        DataError: the record has no frame, or a file of it cannot be read.
    """
    frame = frame_of(record)
    points, ahead = read_points(frame), view_direction(frame.cameras[0])
    above = birds_eye(points, region, frame.boxes, found, annotated, ahead=ahead, width=width)
    rows: list[Pixels] = []
    for cameras in _rows(frame.cameras):
        each = (width - GAP * (len(cameras) - 1)) // len(cameras)
        size = each, round(each * cameras[0].size[1] / cameras[0].size[0])
        images = [_resized(record, camera, size) for camera in cameras]
        views = [camera_view(*image, frame.boxes, found, annotated) for image in images]
        rows.append(_row(views, width))
    gap = np.full((GAP, width, 3), GROUND, np.uint8)
    return np.concatenate([part for row in (*rows, above) for part in (row, gap)][:-1])


def birds_eye(
    points: ArrayLike,
    region: Sequence[float],
    true: ArrayLike = (),
    found: ArrayLike = (),
    annotated: ArrayLike = (),
    *,
    ahead: ArrayLike = (1.0, 0.0),
    width: int = WIDTH,
) -> Pixels:
    """Points and boxes from above; a line from the middle of a box leads to its front.

    Points are coloured by their height; rings lie every ten metres around the LiDAR.

    Args:
        points: [P, 3+] in the LiDAR frame.
        region: (x0, y0, z0, x1, y1, z1) in metres, of which x and y are shown.
        true: boxes [n, 7], drawn in white.
        found: boxes [m, 7], drawn in orange.
        annotated: points [k, 3], drawn as blue crosses.
        ahead: direction (x, y) that the vehicle heads for; the axis nearest to it points up.
        width: of the picture in pixels.

    Returns:
        uint8 RGB [H, width, 3].
    """
    view = _View(region, ahead, width)
    picture = np.full((view.height, width, 3), GROUND, np.uint8)
    for radius in range(RING_EVERY, 200, RING_EVERY):
        turn = np.linspace(0, 2 * np.pi, 180)
        ring = radius * np.stack([np.cos(turn), np.sin(turn)], 1)
        _lines(picture, [view.pixels(ring)], RING, 1)
    _dots(picture, np.asarray(points, np.float32), view)
    nose = np.array([[2.0, 0], [-1.5, 1], [-1.5, -1], [2.0, 0]]) @ view.axes
    _lines(picture, [view.pixels(nose)], ANNOTATED, 2)
    thick = max(1, round(view.scale / 8))
    for boxes, colour in ((true, TRUE), (found, FOUND)):
        outlines = [view.pixels(outline) for outline in _outlines(as_boxes(boxes))]
        _lines(picture, outlines, colour, thick)
    for place in view.pixels(np.reshape(annotated, (-1, 3))[:, :2]):
        arms = place + 5 * thick * np.array([[[-1, 0], [1, 0]], [[0, -1], [0, 1]]]) / 2
        _lines(picture, list(arms), ANNOTATED, thick)
    return picture


def camera_view(
    image: Pixels,
    projection: ArrayLike,
    true: ArrayLike = (),
    found: ArrayLike = (),
    annotated: ArrayLike = (),
) -> Pixels:
    """The image of a camera with boxes, whose front faces are filled.

    Args:
        image: uint8 RGB [H, W, 3].
        projection: [3, 4] from the LiDAR frame to its pixels.
        true: boxes [n, 7], drawn in white.
        found: boxes [m, 7], drawn in orange.
        annotated: points [k, 3], drawn as blue dots.

    Returns:
        uint8 RGB [H, W, 3].
    """
    picture, matrix = image.copy(), np.asarray(projection, np.float64)
    thick = max(1, round(image.shape[1] / 640))
    for boxes, colour in ((true, TRUE), (found, FOUND)):
        seen = _homogeneous(corners(boxes), matrix)
        for box in seen[np.argsort(-seen[..., 2].mean(1))]:  # the nearest last
            _draw_box(picture, box, colour, thick)
    places = _homogeneous(np.reshape(annotated, (-1, 3)), matrix)
    places = places[places[:, 2] > NEAREST]
    for x, y in _fixed_point(places[:, :2] / places[:, 2:]).tolist():
        for radius, tone in ((1.5, OUTLINE), (1, ANNOTATED)):
            size = round(radius * image.shape[1] / 240 * (1 << _SHIFT))
            cv2.circle(picture, (x, y), size, tone, -1, cv2.LINE_AA, _SHIFT)
    return picture


def view_direction(camera: Camera) -> NDArray[np.float64]:
    """Where a camera looks, (x, y) in the LiDAR frame: where the depth grows."""
    return np.array(camera.projection[2][:2], np.float64)


class _View:
    """Where the bird's-eye view shows a place.

    Attributes:
        axes: [2, 2]: the direction that points up in the picture, and the one to the left.
        height: of the picture in pixels.
        scale: pixels of a metre.
    """

    def __init__(self, region: Sequence[float], ahead: ArrayLike, width: int) -> None:
        x, y = np.asarray(ahead, float)
        up = np.array([np.sign(x), 0.0] if abs(x) >= abs(y) else [0.0, np.sign(y)])
        self.axes = np.array([up, [-up[1], up[0]]])
        ends = np.array([region[:2], region[3:5]]) @ self.axes.T
        self._top, self._left = ends.max(0)
        length, breadth = np.ptp(ends, axis=0)
        self.scale = width / breadth
        self.height = round(length * self.scale)

    def pixels(self, places: ArrayLike) -> NDArray[np.float64]:
        """(x, y) [N, 2] in the picture of places [N, 2]."""
        ahead, aside = (np.asarray(places, float) @ self.axes.T).T
        return np.stack([self._left - aside, self._top - ahead], -1) * self.scale - 0.5


def _dots(picture: Pixels, points: Array, view: _View) -> None:
    """Draws points, the highest on top, in place."""
    points = points[np.argsort(points[:, 2])]
    low, high = HEIGHTS
    height = np.clip((points[:, 2] - low) / (high - low), 0, 1)
    greys = np.arange(256, dtype=np.uint8)[:, None]
    colours = cv2.applyColorMap(greys, cv2.COLORMAP_VIRIDIS)[:, 0, ::-1]
    shades = colours[(55 + 200 * height).astype(int)]
    places = np.rint(view.pixels(points[:, :2])).astype(int)
    side = max(1, round(view.scale / 6))
    for step in np.ndindex(side, side):
        x, y = (places + step).T
        inside = (x >= 0) & (y >= 0) & (x < picture.shape[1]) & (y < picture.shape[0])
        picture[y[inside], x[inside]] = shades[inside]


def _outlines(boxes: Array) -> list[Array]:
    """Of each box the rectangle from above and the line to its front."""
    flat = corners(boxes)[:, :4, :2]
    fronts = (flat[:, 0] + flat[:, 3]) / 2
    loops = [rectangle[[0, 1, 2, 3, 0]] for rectangle in flat]
    return [*loops, *(np.stack(ends) for ends in zip(boxes[:, :2], fronts, strict=True))]


def _homogeneous(places: ArrayLike, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """(x depth, y depth, depth) [..., 3] of places [..., 3]."""
    return np.asarray(places, np.float64) @ matrix[:, :3].T + matrix[:, 3]


def _draw_box(picture: Pixels, seen: NDArray[np.float64], colour: _Colour, thick: int) -> None:
    """Draws a box whose corners [8, 3] are homogeneous, as far as it lies before the camera."""
    lines = [line for a, b in EDGES if (line := _before(seen[a], seen[b])) is not None]
    front = seen[list(FACES[0])]
    if front[:, 2].min() > NEAREST:
        filled = picture.copy()
        face = _fixed_point(front[:, :2] / front[:, 2:])
        cv2.fillConvexPoly(filled, face, colour, cv2.LINE_AA, _SHIFT)
        cv2.addWeighted(filled, _FRONT, picture, 1 - _FRONT, 0, dst=picture)
    if thick > 1:  # in small images it would hide what is in the box
        _lines(picture, lines, OUTLINE, thick + 2)
    _lines(picture, lines, colour, thick)


def _before(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The pixels [2, 2] of the part of an edge that lies before the camera; None without any."""
    near, far = (a, b) if a[2] < b[2] else (b, a)
    if far[2] <= NEAREST:
        return None
    if near[2] < NEAREST:
        near = far + (near - far) * (far[2] - NEAREST) / (far[2] - near[2])
    ends = np.stack([near, far])
    return np.asarray(ends[:, :2] / ends[:, 2:])


def _lines(
    picture: Pixels, lines: Sequence[NDArray[np.floating]], colour: _Colour, thick: int
) -> None:
    """Draws lines [n, 2] in pixels, in place."""
    fixed = [_fixed_point(line) for line in lines]
    cv2.polylines(picture, fixed, False, colour, thick, cv2.LINE_AA, _SHIFT)


def _fixed_point(pixels: NDArray[np.floating]) -> NDArray[np.int32]:
    # Ends far outside would not fit; OpenCV clips what is left.
    return np.rint(np.clip(pixels, -1e5, 1e5) * (1 << _SHIFT)).astype(np.int32)


def _rows(cameras: Sequence[Camera]) -> list[list[Camera]]:
    """Cameras as they are arranged: from left to right, those that look ahead above the others."""
    up = _View((0, 0, 0, 1, 1, 1), view_direction(cameras[0]), 1).axes
    looks = np.array([view_direction(camera) for camera in cameras]) @ up.T
    order = np.argsort(-looks[:, 1], kind='stable')
    rows = [[cameras[k] for k in order if (looks[k, 0] > 0) == first] for first in (True, False)]
    return [row for row in rows if row]


def _resized(
    record: Record, camera: Camera, size: tuple[int, int]
) -> tuple[Pixels, NDArray[np.float64]]:
    """The image of a camera at (width, height), and its projection onto that."""
    one = replace(record, image=camera.image, size=camera.size)
    scale = np.array([size[0] / camera.size[0], size[1] / camera.size[1], 1])
    image = resize_image(decode_image(one, max(size)), size)
    return image, scale[:, None] * np.array(camera.projection)


def _row(images: Sequence[Pixels], width: int) -> Pixels:
    """Images of one height beside each other, with gaps that make up the width."""
    height = images[0].shape[0]
    row = np.full((height, width, 3), GROUND, np.uint8)
    for k, image in enumerate(images):
        left = k * (image.shape[1] + GAP)
        row[:, left : left + image.shape[1]] = image
    return row

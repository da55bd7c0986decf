"""The embedded data set of 3D detection: streets of boxes that a LiDAR and a camera see.

Cars, pedestrians and cyclists stand on nearly level ground, among poles and walls that are none.
Each is made of two or three boxes, so that its front differs from its rear. The LiDAR turns its
beams through a fixed pattern of rays, of which the nearest hit returns: far objects get few
returns, hidden ones none, as on a real street. A frame depends on (seed, split, index) and nothing
else, but for which ones are labelled.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from wsol_jax.data.boxes_3d import axes, corners, project
from wsol_jax.data.drawing import png
from wsol_jax.data.frames import (
    Box3D,
    Camera,
    Frame,
    as_box,
    as_matrix,
    frame_record,
    labelled_share,
)
from wsol_jax.data.generated import Generated
from wsol_jax.data.records import Decoding, Pixels, Record
from wsol_jax.data.sweeps import Matrix, Sweep

Array = NDArray[np.float32]
CLASSES = ('car', 'pedestrian', 'cyclist')
SHARES = (0.5, 0.25, 0.25)
SIZES = ((4.2, 1.8, 1.5), (0.7, 0.7, 1.75), (1.8, 0.7, 1.7))  # metres: length, width, height
VARIETY = 0.07  # standard deviation of sizes, relative to them
REGION = (0.0, -24.0, -4.0, 40.0, 24.0, 2.0)  # where objects stand, as `FrameTargets.region`
OBJECTS = (3, 10)
MOST = OBJECTS[1]
SEEN = 3  # returns of an object, at least, to be one
DISTANCES = (6.0, 38.0)
HALF_ANGLE = np.deg2rad(42.0)  # of where they stand, within the view of the camera
TRIES = 20  # of placing an object; there is one less where it finds no room
SPACE = 0.4  # metres between objects
SLOPE = 0.01  # of the ground, at most
MOUNT = 1.7  # metres of the LiDAR above the ground
BEAMS = np.deg2rad(np.linspace(-17.0, 2.0, 32))
AZIMUTHS = np.deg2rad(np.linspace(44.8, -44.8, 128))
REACH = 45.0  # metres, of the LiDAR
RANGE_NOISE = 0.02
LOST = 0.05  # of the returns
EYE = np.array([0.3, 0.0, -0.1])  # the camera in the LiDAR frame
HORIZON = 0.42  # of the height of an image
SAMPLES = 2  # per pixel and axis
SUN = np.array([-0.45, 0.35, 0.82])
SKY, HAZE = np.array([[0.45, 0.62, 0.86], [0.78, 0.83, 0.88]], np.float32)
# Parts of an object: where they lie, then how long, wide and high they are; along the length from
# -0.5 (rear) to 0.5, along the height from 0 to 1. Together they touch all sides of their box.
_Range = tuple[float, float]
_PARTS: tuple[tuple[tuple[_Range, float, _Range], ...], ...] = (
    (((-0.5, 0.5), 1.0, (0.0, 0.6)), ((-0.45, 0.15), 0.88, (0.6, 1.0))),
    (((-0.25, 0.2), 0.7, (0.0, 0.5)), ((-0.5, 0.2), 1.0, (0.45, 0.85)), ((0, 0.5), 0.4, (0.85, 1))),
    (((-0.5, 0.5), 0.25, (0.0, 0.55)), ((-0.3, 0.1), 1.0, (0.35, 0.85)), ((0, 0.3), 0.4, (0.8, 1))),
)
_GLASS, _SKIN, _SHADOW = (0.12, 0.16, 0.22), (0.8, 0.6, 0.48), (0.08, 0.08, 0.09)


class LidarScenes(Generated):
    """A split of the drawn streets; images are PNG bytes and sweeps bytes, made when asked for.

    Images are twice as wide as high. Boxes with fewer than three returns are left out.

    Args:
        split: 'train', 'val' or 'test'; no two share a frame.
        count: frames in the split.
        size: height of the images in pixels.
        seed: seed of the data set.
        labelled: share of the frames whose boxes training knows, see `labelled_share`.

    Raises:
        DataError: the split is unknown, or a number is out of range.
    """

    class_names = CLASSES
    most_boxes = MOST

    def __init__(
        self, split: str, count: int, size: int = 96, seed: int = 0, labelled: float = 1.0
    ) -> None:
        super().__init__('lidar_scenes', split, count, size, seed)
        self._labelled = labelled_share(count, labelled, seed)

    @property
    def most_labels(self) -> int:
        """The most labels that a frame has; nothing is drawn to know it."""
        return len(CLASSES)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Of which frames training knows the boxes, [len]; nothing is drawn to know it."""
        return self._labelled

    def _draw(self, index: int, rng: Generator) -> Record:
        frame = draw(rng, self.size, bool(self._labelled[index]))
        return frame_record(self.image_id(index), frame, Decoding())


class _Solid(NamedTuple):
    """A box that rays hit: the object it belongs to, -1 for none; RGB and reflectivity in 0..1."""

    box: Box3D
    owner: int
    colour: tuple[float, ...]
    reflectivity: float


class _Hits(NamedTuple):
    """What rays [..., 3] hit first: metres, inf for nothing; index of a solid; its normal there."""

    distance: Array
    solid: NDArray[np.int64]
    normal: Array


def draw(rng: Generator, size: int, labelled: bool = True) -> Frame:
    """Draw one street: what stands there, then what LiDAR and camera see of it."""
    slope = rng.uniform(-SLOPE, SLOPE, 2)
    classes, boxes = _placed(rng, slope)
    solids = [s for k, box in enumerate(boxes) for s in _built(rng, k, classes[k], box)]
    solids += _clutter(rng, slope, boxes)
    sweep, owners = _scanned(rng, solids, slope)
    seen = [k for k in range(len(boxes)) if (owners == k).sum() >= SEEN]
    image = png(_pictured(rng, solids, boxes, slope, size))
    camera = Camera(image, _projection(size), (2 * size, size))
    return Frame(
        sweeps=(Sweep(sweep.tobytes()),),
        cameras=(camera,),
        boxes=tuple(boxes[k] for k in seen),
        classes=tuple(classes[k] for k in seen),
        labelled=labelled,
    )


def _ground(place: ArrayLike, slope: NDArray[np.float64]) -> float:
    """Height of the ground at (x, y)."""
    return float(np.asarray(place) @ slope - MOUNT)


def _placed(rng: Generator, slope: NDArray[np.float64]) -> tuple[list[int], list[Box3D]]:
    """Classes and boxes of objects that stand clear of each other."""
    classes: list[int] = []
    boxes: list[Box3D] = []
    for kind in rng.choice(len(CLASSES), rng.integers(OBJECTS[0], MOST + 1), p=SHARES).tolist():
        size = np.array(SIZES[kind]) * np.clip(rng.normal(1, VARIETY, 3), 0.8, 1.2)
        for _ in range(TRIES):
            box = _standing(_place(rng), size, _heading(rng, kind), slope)
            if _clear(box, boxes):
                classes.append(kind)
                boxes.append(box)
                break
    return classes, boxes


def _place(rng: Generator) -> NDArray[np.float64]:
    """Somewhere ahead [2], as likely near as far."""
    angle, distance = rng.uniform(-HALF_ANGLE, HALF_ANGLE), rng.uniform(*DISTANCES)
    return distance * np.array([np.cos(angle), np.sin(angle)])


def _heading(rng: Generator, kind: int) -> float:
    """Most vehicles follow the street, in one direction or the other."""
    if CLASSES[kind] == 'pedestrian' or rng.random() < 0.35:
        return float(rng.uniform(-np.pi, np.pi))
    yaw = rng.integers(2) * np.pi + rng.normal(0, 0.15)
    return float((yaw + np.pi) % (2 * np.pi) - np.pi)


def _standing(
    place: NDArray[np.float64], size: NDArray[np.float64], yaw: float, slope: NDArray[np.float64]
) -> Box3D:
    z = _ground(place, slope) + size[2] / 2
    return as_box([*place, z, *size, yaw])


def _clear(box: Box3D, others: Sequence[Box3D]) -> bool:
    reach = [np.hypot(b[3], b[4]) / 2 for b in (box, *others)]
    gaps = [np.hypot(box[0] - b[0], box[1] - b[1]) - reach[0] for b in others]
    return all(gap > r + SPACE for gap, r in zip(gaps, reach[1:], strict=True))


def _built(rng: Generator, owner: int, kind: int, box: Box3D) -> Iterator[_Solid]:
    """The parts of an object."""
    paint = tuple(rng.uniform(0.15, 0.95, 3).tolist())
    tops = (_GLASS, _SKIN, _SKIN)
    reflectivity = float(rng.uniform(0.3, 0.8))
    for number, (along, wide, high) in enumerate(_PARTS[kind]):
        colour = tops[kind] if number == len(_PARTS[kind]) - 1 else paint
        yield _Solid(_part(box, along, wide, high), owner, colour, reflectivity)


def _part(box: Box3D, along: _Range, wide: float, high: _Range) -> Box3D:
    """A box within a box."""
    x, y, z, length, width, height, yaw = box
    ahead = length * sum(along) / 2
    up = height * (sum(high) - 1) / 2
    sizes = length * (along[1] - along[0]), width * wide, height * (high[1] - high[0])
    return (x + ahead * np.cos(yaw), y + ahead * np.sin(yaw), z + up, *sizes, yaw)


def _clutter(
    rng: Generator, slope: NDArray[np.float64], boxes: Sequence[Box3D]
) -> Iterator[_Solid]:
    """Poles and walls, where there is room for them."""
    for _ in range(int(rng.integers(3, 8))):
        if rng.random() < 0.5:
            size, colour = np.array([0.25, 0.25, rng.uniform(2.5, 4)]), (0.45, 0.45, 0.47)
        else:
            size = rng.uniform((2.0, 0.4, 0.8), (6.0, 1.0, 2.0))
            colour = ((0.5, 0.36, 0.3), (0.2, 0.36, 0.16))[rng.integers(2)]
        box = _standing(_place(rng), size, float(rng.uniform(-np.pi, np.pi)), slope)
        if _clear(box, boxes):
            yield _Solid(box, -1, colour, float(rng.uniform(0.1, 0.5)))


def _scanned(
    rng: Generator, solids: Sequence[_Solid], slope: NDArray[np.float64]
) -> tuple[Array, NDArray[np.int64]]:
    """The sweep [P, 4] (x, y, z, intensity), and the object that each point lies on, or -1 [P]."""
    level = np.cos(BEAMS)[:, None]
    rays = np.stack(
        np.broadcast_arrays(
            level * np.cos(AZIMUTHS), level * np.sin(AZIMUTHS), np.sin(BEAMS)[:, None]
        ),
        -1,
    )
    windows = [_columns(solid.box) for solid in solids]
    hits = _cast(np.zeros(3), rays.astype(np.float32), solids, slope, windows)
    distance = hits.distance + rng.normal(0, RANGE_NOISE, hits.distance.shape)
    facing = abs((hits.normal * rays).sum(-1))
    shine = np.array([*(s.reflectivity for s in solids), 0.25])[hits.solid] * (0.3 + 0.7 * facing)
    returned = (hits.distance < REACH) & (rng.random(distance.shape) >= LOST)
    points = np.column_stack([(distance[..., None] * rays)[returned], shine[returned]])
    owners = np.array([*(s.owner for s in solids), -1])[hits.solid]
    return points.astype(np.float32), owners[returned]


def _columns(box: Box3D) -> tuple[slice, slice]:
    """The rays of the LiDAR outside of which a box is not hit."""
    away, radius = np.hypot(box[0], box[1]), np.hypot(box[3], box[4]) / 2
    half = np.arcsin(min(1.0, radius / away))
    middle = np.arctan2(box[1], box[0])
    first, last = np.searchsorted(-AZIMUTHS, [-middle - half, half - middle])
    return slice(None), slice(int(first), int(last))


def _cast(
    origin: NDArray[np.float64],
    rays: Array,
    solids: Sequence[_Solid],
    slope: NDArray[np.float64],
    windows: Sequence[Any],
) -> _Hits:
    """What rays [H, W, 3] from a point hit first.

    Args:
        origin: [3].
        rays: their directions; distances are in units of their lengths.
        solids: K of them; the ground is solid -1.
        slope: of the ground.
        windows: of each solid, the part of [H, W] outside of which no ray hits it.
    """
    falling = slope.astype(np.float32) @ rays[..., :2, None] - rays[..., 2:]
    above = np.float32(origin[2] - _ground(origin[:2], slope))
    distance = np.where(falling > 0, above / np.maximum(falling, 1e-9), np.inf)[..., 0]
    which = np.full(distance.shape, -1)
    normal = np.zeros_like(rays)
    normal[..., 2] = 1
    for k, (solid, window) in enumerate(zip(solids, windows, strict=True)):
        hit, facing = _hit(origin, rays[window], solid.box)
        closer = hit < distance[window]
        distance[window][closer], which[window][closer] = hit[closer], k
        normal[window][closer] = facing[closer]
    return _Hits(distance, which, normal)


def _hit(origin: NDArray[np.float64], rays: Array, box: Box3D) -> tuple[Array, Array]:
    """Distances [H, W] at which rays enter a box, inf where they miss it, and normals [H, W, 3].

    A box is where three slabs meet: a ray is in it from the last one it enters to the first one it
    leaves.
    """
    turn = axes(box[6]).astype(np.float32)
    start, way = ((origin - np.array(box[:3])) @ turn).astype(np.float32), rays @ turn
    way = np.where(abs(way) < 1e-9, np.float32(1e-9), way)
    middle, reach = -start / way, np.array(box[3:6], np.float32) / 2 / abs(way)
    entered, left = middle - reach, middle + reach
    # Of three columns one by one: reductions along a short axis are slow.
    enter = np.maximum(np.maximum(entered[..., 0], entered[..., 1]), entered[..., 2])
    leave = np.minimum(np.minimum(left[..., 0], left[..., 1]), left[..., 2])
    hit = np.where((enter <= leave) & (enter > 0), enter, np.inf)
    facing = -np.sign(way) * (entered == enter[..., None])
    return hit, facing @ turn.T


def _projection(size: int) -> Matrix:
    """Of a camera that looks ahead, and sees 90 degrees across an image of 2 size x size."""
    calibration = np.array([[size, 0, size - 0.5], [0, size, HORIZON * size], [0, 0, 1]])
    turn = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
    return as_matrix(calibration @ np.column_stack([turn, -turn @ EYE]))


def _pictured(
    rng: Generator,
    solids: Sequence[_Solid],
    boxes: Sequence[Box3D],
    slope: NDArray[np.float64],
    size: int,
) -> Pixels:
    """The image BGR [size, 2 size, 3]."""
    # The rays are 1 long along x: distances are depths.
    wide, high = ((np.arange(k * size * SAMPLES) + 0.5) / SAMPLES - 0.5 for k in (2, 1))
    across, down = np.meshgrid(size - 0.5 - wide, HORIZON * size - high)
    rays = np.stack([np.ones_like(across), across / size, down / size], -1).astype(np.float32)
    solids = [*solids, *(_Solid(_shadow(box, slope), -1, _SHADOW, 0) for box in boxes)]
    windows = [_window(solid.box, size) for solid in solids]
    hits = _cast(EYE, rays, solids, slope, windows)
    street = rng.uniform(3, 7), rng.uniform(-2, 2), rng.uniform(0.25, 0.5)
    colour = _coloured(hits, rays, solids, street)
    pixels = colour.reshape(size, SAMPLES, 2 * size, SAMPLES, 3).mean((1, 3))
    pixels += rng.normal(0, 0.012, pixels.shape)
    return np.clip(255 * pixels[..., ::-1] + 0.5, 0, 255).astype(np.uint8)


def _shadow(box: Box3D, slope: NDArray[np.float64]) -> Box3D:
    """A film on the ground, a little larger than what stands on it."""
    x, y, _, length, width, _, yaw = box
    return x, y, _ground((x, y), slope), length + 0.3, width + 0.3, 0.04, yaw


def _window(box: Box3D, size: int) -> tuple[slice, slice]:
    """The samples of an image outside of which a box is not seen; all of them for a near one."""
    pixels, depth = project(corners([box])[0], _projection(size))
    if depth.min() < 0.5:
        return np.s_[:, :]
    low = np.floor((pixels.min(0) - 1) * SAMPLES).astype(int)
    high = np.ceil((pixels.max(0) + 2) * SAMPLES).astype(int)
    (x0, y0), (x1, y1) = np.maximum(low, 0), np.maximum(high, 0)
    return slice(y0, y1), slice(x0, x1)


def _coloured(
    hits: _Hits, rays: Array, solids: Sequence[_Solid], street: tuple[float, float, float]
) -> Array:
    """RGB in 0..1: lit by the sun, fading with the distance; the sky above."""
    far = ~np.isfinite(hits.distance)
    depth = np.where(far, 0, hits.distance)[..., None]
    colour = np.array([*(solid.colour for solid in solids), (0, 0, 0)], np.float32)[hits.solid]
    ground = (hits.solid < 0) & ~far
    colour[ground] = _asphalt(EYE + (depth * rays)[ground], street)
    light = 0.55 + 0.5 * np.clip(hits.normal @ SUN.astype(np.float32), -0.4, 1)
    clear = np.exp(-depth / 90)
    lit = clear * colour * light[..., None] + (1 - clear) * HAZE
    lit[far] = HAZE + np.clip(2.5 * rays[far][:, 2:], 0, 1) * (SKY - HAZE)
    return lit


def _asphalt(places: NDArray[np.float64], street: tuple[float, float, float]) -> NDArray[Any]:
    """RGB of places [n, 3] on the ground: a street along x with a dashed line between grass."""
    half, middle, grey = street
    aside = abs(places[:, 1] - middle)
    painted = (aside < 0.12) & (places[:, 0] % 4 < 2) | (abs(aside - half + 0.3) < 0.08)
    kind = np.where(aside < half, painted.astype(int), 2)
    return np.array([[grey] * 3, [0.85] * 3, [0.3, 0.42, 0.22]], np.float32)[kind]

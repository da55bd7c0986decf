"""The embedded data set: drawn objects whose class shows in one small part only.

Each image holds one textured body on cluttered ground. All classes share the bodies; the class is
told by a small patterned part at one end. A classifier looks at the part, so a class activation
map covers the part, while the box and the mask cover the whole object: the gap that weakly
supervised localization is about. An image depends on (seed, split, index) and nothing else.
"""

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from wsol_jax.data.records import DataError, NamedClasses, Pixels, Record

Array = NDArray[np.float32]
Colour = tuple[float, float, float]
Points = NDArray[np.float64]

SPLITS = {'train': 0, 'val': 1, 'test': 2}
MIN_SIZE = 32
BOX_AREA = (0.14, 0.54)  # of the image
ASPECT = (0.45, 2.2)  # width / height of the box
WIDTH = (0.36, 0.7)  # of the body, relative to its length
BEND = 2.2  # radians from end to end, for a thin body; a wide one would fold on itself
PART_LENGTH = (0.17, 0.22)  # of the body's length
OVERHANG = 0.02  # of the image, how far an object may leave it
DISTRACTORS = (6, 13)
DECOYS = (1, 3)  # parts of other classes, loose on the ground; fewer where there is no room
DECOY_TRIES = 8
COAT_HUES = (0.04, 0.13)  # of all bodies, and of some distractors
PART_HEIGHT = 2.4  # over ground 0.1..0.7 and bodies 1..2.5: what is higher casts the shadow
LIGHT = 0.3  # how much slopes differ from level ground
GRAIN = 0.012
SAMPLES = 3  # per pixel and axis, where the part is painted
_FAST_PNG = [
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
]


class Part(NamedTuple):
    """What tells a class: two colours (RGB in 0..1), a pattern over [-1, 1]^2, an outline."""

    name: str
    colours: tuple[Colour, Colour]
    pattern: Callable[[Points, Points], NDArray[np.bool_]]
    power: float  # of the outline |x|^p + |y|^p = 1: 2 disc, 1 diamond, 6 square


_RED, _WHITE, _BLUE = (0.88, 0.1, 0.12), (0.98, 0.97, 0.94), (0.1, 0.25, 0.9)
_BLACK, _GREEN, _MAGENTA = (0.04, 0.04, 0.06), (0.02, 0.62, 0.2), (0.93, 0.08, 0.75)
_VIOLET, _CYAN, _ORANGE = (0.2, 0.05, 0.3), (0.05, 0.85, 0.95), (0.95, 0.35, 0.02)
_YELLOW = (1.0, 0.88, 0.1)
PARTS = (
    Part('red stripes', (_RED, _WHITE), lambda x, y: np.sin(6 * x) > 0, 6),
    Part('blue target', (_BLUE, _YELLOW), lambda x, y: x * x + y * y > 0.3, 2),
    Part('black checks', (_BLACK, _WHITE), lambda x, y: x * y > 0, 6),
    Part('green cross', (_GREEN, _WHITE), lambda x, y: np.minimum(abs(x), abs(y)) < 0.3, 2),
    Part('magenta diamond', (_MAGENTA, _VIOLET), lambda x, y: y > 0, 1),
    Part('cyan ring', (_CYAN, _ORANGE), lambda x, y: abs(np.hypot(x, y) - 0.65) < 0.25, 2),
)


class Shapes(NamedClasses):
    """A split of the drawn data set; images and masks are PNG bytes, made when first asked for.

    Args:
        split: 'train', 'val' or 'test'; no two share an image.
        count: images in the split; their labels cycle through the classes.
        size: side of the images in pixels.
        num_classes: how many of the parts are used.
        seed: seed of the data set.

    Raises:
        DataError: the split is unknown, or a number is out of range.
    """

    def __init__(
        self, split: str, count: int, size: int = 96, num_classes: int = len(PARTS), seed: int = 0
    ) -> None:
        if split not in SPLITS:
            raise DataError(f'shapes has no split {split!r}; available: {", ".join(SPLITS)}')
        if count < 1 or size < MIN_SIZE or not 2 <= num_classes <= len(PARTS):
            raise DataError(
                f'shapes needs count >= 1, size >= {MIN_SIZE} and num_classes 2..{len(PARTS)}, '
                f'got count {count}, size {size}, num_classes {num_classes}'
            )
        self.class_names = tuple(part.name for part in PARTS[:num_classes])
        self._split, self._count, self._size, self._seed = split, count, size, seed
        self._drawn: dict[int, Record] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self._count:
            raise IndexError(f'image {index} of {self._count}')
        if index not in self._drawn:
            self._drawn[index] = self._draw(index)
        return self._drawn[index]

    def _draw(self, index: int) -> Record:
        label = index % self.num_classes
        rng = np.random.default_rng([self._seed, SPLITS[self._split], index])
        others = [part for part in PARTS[: self.num_classes] if part is not PARTS[label]]
        image, mask = draw(rng, PARTS[label], others, self._size)
        x, y, width, height = cv2.boundingRect(mask)
        return Record(
            image_id=f'{self._split}/{index:05d}.png',
            image=_png(image[..., ::-1]),
            labels=(label,),
            size=(self._size, self._size),
            boxes=((x, y, x + width, y + height),),
            masks=((_png(mask * np.uint8(255)), None),),
        )


def draw(rng: Generator, part: Part, others: Sequence[Part], size: int) -> tuple[Pixels, Pixels]:
    """Draw one image: a body with `part`, and some of `others` loose on the ground.

    Returns:
        uint8 RGB [size, size, 3] and the mask of the object, uint8 [size, size] in {0, 1}.
    """
    body = _place_body(rng, size)
    count = int(rng.integers(*DISTRACTORS))
    labels = _scatter(rng, size, count)
    covered = _fill(body.outline, size)
    labels[covered > 0] = count + 1
    colour = _colour(rng, labels, count, _ripples(rng, body, size))
    height = np.take(rng.uniform(0.1, 0.7, count + 2).astype(np.float32), labels)
    height = np.where(covered > 0, _dome(covered), height)
    on_part = _paint_part(colour, height, part, body.part_place)
    for place in _decoy_places(rng, covered | on_part, body.part_place.radius):
        _paint_part(colour, height, others[int(rng.integers(len(others)))], place)
    shaded = _shade(rng, colour, height)
    return shaded, covered | on_part


class _Place(NamedTuple):
    """Where a part is painted: pixels and radians."""

    centre: Points
    angle: float
    radius: float


@dataclass(frozen=True)
class _Body:
    """Where an object lies: points in pixels (x, y), angles in radians."""

    outline: Points
    angle: float
    length: float
    part_place: _Place


def _place_body(rng: Generator, size: int) -> _Body:
    """Scale and move a random body so that its box is neither too small nor cut off."""
    while True:
        body = _unit_body(rng)
        part = body.part_place
        reach = np.concatenate([body.outline, _disc(part.centre, part.radius)])
        low, extent = reach.min(0), np.ptp(reach, axis=0)
        if ASPECT[0] <= extent[0] / extent[1] <= ASPECT[1]:
            break
    scale = size * min(np.sqrt(rng.uniform(*BOX_AREA) / extent.prod()), 1 / extent.max())
    over = OVERHANG * size
    move = rng.uniform(-over, size - scale * extent + over) - scale * low
    return _Body(
        outline=scale * body.outline + move,
        angle=body.angle,
        length=scale * body.length,
        part_place=_Place(scale * part.centre + move, part.angle, scale * part.radius),
    )


def _unit_body(rng: Generator) -> _Body:
    """Outline of length 2: a superellipse, tapered, laid along a bent spine, then turned."""
    turn, radius = rng.uniform(0, 2 * np.pi), rng.uniform(*PART_LENGTH)
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    along, across = (np.sign(f(t)) * abs(f(t)) ** rng.uniform(0.45, 1.0) for f in (np.cos, np.sin))
    width = rng.uniform(*WIDTH)
    across *= width * (1 + rng.uniform(-0.4, 0.4) * along)
    across *= 1 + rng.uniform(0, 0.06) * np.sin(rng.integers(2, 6) * t + rng.uniform(0, 6))
    steps = np.linspace(-1, 1, 65)
    sharp = rng.uniform(0.6, 4)
    heading = rng.uniform(-BEND, BEND) * (1 - width) * (0.5 + 0.5 * np.tanh(sharp * steps))
    spine = np.cumsum(_direction(turn + heading), axis=0) * (steps[1] - steps[0])
    at = np.stack([np.interp(along, steps, axis) for axis in spine.T], -1)
    normal = _direction(turn + np.interp(along, steps, heading) + np.pi / 2)
    tip, end = spine[-1], turn + heading[-1]
    return _Body(
        outline=at + across[:, None] * normal,
        angle=float(np.arctan2(*(spine[-1] - spine[0])[::-1])),
        length=2.0,
        part_place=_Place(tip + 0.35 * radius * _direction(end), end, radius),
    )


def _direction(angle: Points | float) -> Points:
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def _disc(centre: Points, radius: float, points: int = 16) -> Points:
    return centre + radius * _direction(np.linspace(0, 2 * np.pi, points, endpoint=False))


def _fill(outline: Points, size: int) -> Pixels:
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [_fixed_point(outline)], 1, shift=4)
    return mask


def _fixed_point(points: Points) -> NDArray[np.int32]:
    # OpenCV draws at 1/16 pixel with shift=4.
    return np.rint(points * 16).astype(np.int32)


def _scatter(rng: Generator, size: int, count: int) -> Pixels:
    """Map of distractors: 0 the ground, 1..count blobs and twigs, later ones on top."""
    labels = np.zeros((size, size), np.uint8)
    for number in range(1, count + 1):
        centre, radius = rng.uniform(0, size, 2), size * rng.uniform(0.04, 0.2)
        if rng.random() < 0.3:
            heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.4, 8))
            twig = centre + np.cumsum(0.5 * radius * _direction(heading), axis=0)
            thick = max(1, round(size * rng.uniform(0.01, 0.035)))
            cv2.polylines(labels, [_fixed_point(twig)], False, number, thick, shift=4)
            continue
        blob = _disc(np.zeros(2), radius, int(rng.integers(4, 12))) * rng.uniform(0.5, 1.5, 2)
        blob += rng.normal(0, 0.12 * radius, blob.shape)
        cv2.fillPoly(labels, [_fixed_point(blob + centre)], number, shift=4)
    return labels


def _colour(rng: Generator, labels: Pixels, count: int, ripples: Array) -> Array:
    """Colour every label between two tones of its own by one of the texture fields."""
    size = labels.shape[0]
    fields = np.stack([*(texture(rng, size) for texture in _TEXTURES), ripples])
    kind = np.append(rng.integers(0, len(_TEXTURES), count + 1), len(_TEXTURES))
    coat = _tones(rng, rng.uniform(*COAT_HUES), (0.35, 0.6), (0.6, 0.9))
    tones = np.array([*_ground_tones(rng, count + 1), coat], np.float32)
    rows, columns = np.ogrid[:size, :size]
    mix = fields[kind[labels], rows, columns][..., None]
    dark, bright = (np.take(tones[:, k], labels, axis=0) for k in (0, 1))
    return dark + (bright - dark) * mix


def _ground_tones(rng: Generator, count: int) -> list[tuple[Colour, Colour]]:
    base = rng.uniform(0.05, 0.75)
    hues = (base + rng.normal(0, 0.13, count)) % 1
    # Some distractors wear the colours of the bodies: colour alone does not give the object away.
    hues = np.where(rng.random(count) < 0.3, rng.uniform(*COAT_HUES, count), hues)
    return [_tones(rng, hue, (0.1, 0.42), (0.35, 0.8)) for hue in hues]


def _tones(
    rng: Generator, hue: float, saturation: tuple[float, float], value: tuple[float, float]
) -> tuple[Colour, Colour]:
    s, v = rng.uniform(*saturation), rng.uniform(*value)
    dark = colorsys.hsv_to_rgb((hue + rng.normal(0, 0.02)) % 1, s, v * rng.uniform(0.5, 0.75))
    return dark, colorsys.hsv_to_rgb(hue, s * 0.85, v)


def _noise(rng: Generator, size: int, columns: int, rows: int) -> Array:
    """Smooth noise in 0..1 with about that many bumps across and down."""
    grid = rng.random((rows + 1, columns + 1), dtype=np.float32)
    return np.clip(cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1)


def _clouds(rng: Generator, size: int) -> Array:
    return 0.5 * _noise(rng, size, 4, 4) + 0.3 * _noise(rng, size, 11, 11) + _fine(rng, size)


def _fine(rng: Generator, size: int) -> Array:
    return np.float32(0.2) * _noise(rng, size, size // 3, size // 3)


def _grass(rng: Generator, size: int) -> Array:
    blades = _noise(rng, size, size // 3, 5)
    middle = (size / 2, size / 2)
    turn = cv2.getRotationMatrix2D(middle, rng.uniform(0, 180), 1.0)
    turned = cv2.warpAffine(blades, turn, (size, size), borderMode=cv2.BORDER_REFLECT)
    return np.asarray(turned, np.float32)


def _pebbles(rng: Generator, size: int) -> Array:
    cracks = abs(_noise(rng, size, 12, 12) - 0.5) + 0.5 * abs(_noise(rng, size, 20, 20) - 0.5)
    return np.clip(4 * cracks, 0, 1) * (0.7 + 0.3 * _noise(rng, size, 6, 6))


def _planks(rng: Generator, size: int) -> Array:
    grain = _noise(rng, size, 5, size // 2)
    return 0.65 * grain + 0.35 * cv2.resize(
        rng.random((7, 1), dtype=np.float32), (size, size), interpolation=cv2.INTER_NEAREST
    )


_TEXTURES = (_clouds, _grass, _pebbles, _planks)


def _ripples(rng: Generator, body: _Body, size: int) -> Array:
    """The coat all bodies wear: wavy bands across the body."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    along, across = np.float32(np.cos(body.angle)), np.float32(np.sin(body.angle))
    phase = (x * along + y * across) * np.float32(rng.uniform(9, 13) * np.pi / body.length)
    return 0.5 + 0.42 * np.sin(phase + 5 * _noise(rng, size, 6, 6)) + _fine(rng, size) - 0.1


def _dome(mask: Pixels) -> Array:
    depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    return 1 + 1.5 * np.sqrt(np.clip(depth / max(float(depth.max()), 1.0), 0, 1))


def _decoy_places(rng: Generator, taken: Pixels, radius: float) -> list[_Place]:
    """Places for loose parts, none of them touching the object."""
    room = cv2.distanceTransform(1 - taken, cv2.DIST_L2, 3)
    places = []
    for _ in range(rng.integers(*DECOYS, endpoint=True)):
        size = radius * rng.uniform(0.8, 1.2)
        low, high = size, taken.shape[0] - 1 - size
        tries = rng.uniform(low, high, (DECOY_TRIES, 2))
        free = [t for t in tries if room[int(t[1]), int(t[0])] > 2 * size]
        if free:
            places.append(_Place(free[0], float(rng.uniform(0, 2 * np.pi)), size))
    return places


def _paint_part(colour: Array, height: Array, part: Part, place: _Place) -> Pixels:
    """Paint the part over the image, smooth-edged, in place; return its mask in {0, 1}."""
    size, (x, y) = colour.shape[0], place.centre
    left, right = _span(x, 1.5 * place.radius, size)
    top, bottom = _span(y, 1.5 * place.radius, size)
    dx, dy = _samples(left, right) - x, _samples(top, bottom)[:, None] - y
    cos, sin = _direction(place.angle) / place.radius
    forward, side = dx * cos + dy * sin, dy * cos - dx * sin
    inside = abs(forward) ** part.power + abs(side) ** part.power <= 1
    lit = part.pattern(forward, side)
    shares = np.stack([_pixel_mean(inside & lit), _pixel_mean(inside & ~lit)], -1)
    cover = shares.sum(-1)
    window = np.s_[top:bottom, left:right]
    colour[window] *= 1 - cover[..., None]
    colour[window] += shares @ np.array(part.colours, np.float32)
    mask = np.zeros((size, size), np.uint8)
    mask[window] = cover >= 0.5
    height[mask > 0] = PART_HEIGHT
    return mask


def _span(centre: float, reach: float, size: int) -> tuple[int, int]:
    return max(int(centre - reach), 0), min(int(centre + reach) + 2, size)


def _samples(start: int, stop: int) -> Points:
    """Coordinates of the samples in pixels start..stop, pixel centres being whole numbers."""
    return (np.arange(SAMPLES * start, SAMPLES * stop) + 0.5) / SAMPLES - 0.5


def _pixel_mean(samples: NDArray[np.bool_]) -> Array:
    rows, columns = (side // SAMPLES for side in samples.shape)
    blocks = samples.reshape(rows, SAMPLES, columns, SAMPLES)
    return blocks.mean((1, 3), dtype=np.float32)


def _shade(rng: Generator, colour: Array, height: Array) -> Pixels:
    """Light the scene from above left: lit and dark flanks, soft shadows, a little grain."""
    size = height.shape[0]
    smooth = _blur(height, size / 80)
    flank = smooth - _shift(smooth, max(1, size // 48))
    far = _blur(height, size / 24)
    shadow = np.clip(_shift(far, size // 24) - height, 0, 1.2)
    slope = _noise(rng, size, 1, 1)
    light = (0.82 + 0.36 * slope) * np.clip(1 + LIGHT * flank, 0.5, 1.4) * (1 - 0.4 * shadow)
    image = _blur(colour * light[..., None], 0.5)
    image += np.float32(GRAIN) * rng.standard_normal(image.shape, np.float32)
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


def _blur(field: Array, sigma: float) -> Array:
    return np.asarray(cv2.GaussianBlur(field, (0, 0), sigma), np.float32)


def _shift(field: Array, pixels: int) -> Array:
    """Move a field right and down, repeating its border."""
    return np.pad(field, ((pixels, 0), (pixels, 0)), mode='edge')[:-pixels, :-pixels]


def _png(image: Pixels) -> bytes:
    return cv2.imencode('.png', image, _FAST_PNG)[1].tobytes()

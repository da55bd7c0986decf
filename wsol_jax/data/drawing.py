"""What generated images are drawn with: bodies, cluttered ground, textures, light."""

import colorsys
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from wsol_jax.data.records import Pixels

Array = NDArray[np.float32]
Colour = tuple[float, float, float]
Points = NDArray[np.float64]

WIDTH = (0.36, 0.7)  # of a body, relative to its length
BEND = 2.2  # radians from end to end, for a thin body; a wide one would fold on itself
OVERHANG = 0.02  # of the image, how far an object may leave it
LIGHT = 0.3  # how much slopes differ from level ground
GRAIN = 0.012
SAMPLES = 3  # per pixel and axis, where patterns are painted
_FAST_PNG = [
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
]


class Body(NamedTuple):
    """Where an object lies: points in pixels or units of its own (x, y), angles in radians.

    Attributes:
        outline: [n, 2].
        angle: from its tail to its tip.
        tip: where its spine ends, [2].
        end: direction of the spine there.
    """

    outline: Points
    angle: float
    tip: Points
    end: float


def bent_body(rng: Generator, turn: float) -> Body:
    """A superellipse of length 2, tapered, laid along a bent spine that is turned by `turn`."""
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    along, across = (np.sign(f(t)) * abs(f(t)) ** rng.uniform(0.45, 1.0) for f in (np.cos, np.sin))
    width = rng.uniform(*WIDTH)
    across *= width * (1 + rng.uniform(-0.4, 0.4) * along)
    across *= 1 + rng.uniform(0, 0.06) * np.sin(rng.integers(2, 6) * t + rng.uniform(0, 6))
    steps = np.linspace(-1, 1, 65)
    sharp = rng.uniform(0.6, 4)
    heading = rng.uniform(-BEND, BEND) * (1 - width) * (0.5 + 0.5 * np.tanh(sharp * steps))
    spine = np.cumsum(direction(turn + heading), axis=0) * (steps[1] - steps[0])
    at = np.stack([np.interp(along, steps, axis) for axis in spine.T], -1)
    normal = direction(turn + np.interp(along, steps, heading) + np.pi / 2)
    return Body(
        outline=at + across[:, None] * normal,
        angle=float(np.arctan2(*(spine[-1] - spine[0])[::-1])),
        tip=spine[-1],
        end=float(turn + heading[-1]),
    )


def fitted(rng: Generator, reach: Points, size: int, area: float) -> tuple[float, Points]:
    """(scale, move) that put points somewhere into an image, with a box of a share of its area.

    Args:
        rng: draws the place.
        reach: [n, 2].
        size: side of the image in pixels; the box may leave it by `OVERHANG` of that.
        area: less where the box would be longer than the image.
    """
    low, extent = reach.min(0), np.ptp(reach, axis=0)
    scale = size * min(np.sqrt(area / extent.prod()), 1 / extent.max())
    over = OVERHANG * size
    return scale, rng.uniform(-over, size - scale * extent + over) - scale * low


def woven(labels: Pixels, fields: Array, kind: NDArray[np.integer], pairs: Array) -> Array:
    """Colours [H, W, 3] of a map of labels: each between its two tones by one of the fields.

    Args:
        labels: uint8 [H, W], 0..n-1.
        fields: [k, H, W] in 0..1.
        kind: [n] in 0..k-1, the field of each label.
        pairs: [n, 2, 3], the dark and the bright tone of each.
    """
    rows, columns = np.ogrid[: labels.shape[0], : labels.shape[1]]
    mix = fields[kind[labels], rows, columns][..., None]
    dark, bright = (np.take(pairs[:, k], labels, axis=0) for k in (0, 1))
    return np.asarray(dark + (bright - dark) * mix)


def direction(angle: Points | float) -> Points:
    """Unit vectors [..., 2] of angles [...] in radians."""
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def disc(centre: Points, radius: float, points: int = 16) -> Points:
    """The corners [points, 2] of a regular polygon."""
    return centre + radius * direction(np.linspace(0, 2 * np.pi, points, endpoint=False))


def fill(outline: Points, size: int) -> Pixels:
    """Mask [size, size] in {0, 1} of a polygon."""
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [_fixed_point(outline)], 1, shift=4)
    return mask


def _fixed_point(points: Points) -> NDArray[np.int32]:
    # OpenCV draws at 1/16 pixel with shift=4.
    return np.rint(points * 16).astype(np.int32)


def scatter(rng: Generator, size: int, count: int) -> Pixels:
    """Map of distractors: 0 the ground, 1..count blobs and twigs, later ones on top."""
    labels = np.zeros((size, size), np.uint8)
    for number in range(1, count + 1):
        centre, radius = rng.uniform(0, size, 2), size * rng.uniform(0.04, 0.2)
        if rng.random() < 0.3:
            heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.4, 8))
            twig = centre + np.cumsum(0.5 * radius * direction(heading), axis=0)
            thick = max(1, round(size * rng.uniform(0.01, 0.035)))
            cv2.polylines(labels, [_fixed_point(twig)], False, number, thick, shift=4)
            continue
        blob = disc(np.zeros(2), radius, int(rng.integers(4, 12))) * rng.uniform(0.5, 1.5, 2)
        blob += rng.normal(0, 0.12 * radius, blob.shape)
        cv2.fillPoly(labels, [_fixed_point(blob + centre)], number, shift=4)
    return labels


def ground_tones(
    rng: Generator, count: int, worn: tuple[float, float]
) -> list[tuple[Colour, Colour]]:
    """A dark and a bright tone for the ground and each distractor.

    Args:
        rng: draws them.
        count: of pairs.
        worn: hues of the objects. Some distractors have them, too: colour alone does not give an
            object away.
    """
    base = rng.uniform(0.05, 0.75)
    hues = (base + rng.normal(0, 0.13, count)) % 1
    hues = np.where(rng.random(count) < 0.3, rng.uniform(*worn, count), hues)
    return [tones(rng, hue, (0.1, 0.42), (0.35, 0.8)) for hue in hues]


def tones(
    rng: Generator, hue: float, saturation: tuple[float, float], value: tuple[float, float]
) -> tuple[Colour, Colour]:
    """A dark and a bright tone of about one hue, RGB in 0..1, within ranges of HSV."""
    s, v = rng.uniform(*saturation), rng.uniform(*value)
    dark = colorsys.hsv_to_rgb((hue + rng.normal(0, 0.02)) % 1, s, v * rng.uniform(0.5, 0.75))
    return dark, colorsys.hsv_to_rgb(hue, s * 0.85, v)


def noise(rng: Generator, size: int, columns: int, rows: int) -> Array:
    """Smooth noise in 0..1 with about that many bumps across and down."""
    grid = rng.random((rows + 1, columns + 1), dtype=np.float32)
    return np.clip(cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1)


def _clouds(rng: Generator, size: int) -> Array:
    return 0.5 * noise(rng, size, 4, 4) + 0.3 * noise(rng, size, 11, 11) + fine(rng, size)


def fine(rng: Generator, size: int) -> Array:
    """Weak noise, in 0..0.2, of bumps of three pixels."""
    return np.float32(0.2) * noise(rng, size, size // 3, size // 3)


def _grass(rng: Generator, size: int) -> Array:
    blades = noise(rng, size, size // 3, 5)
    middle = (size / 2, size / 2)
    turn = cv2.getRotationMatrix2D(middle, rng.uniform(0, 180), 1.0)
    turned = cv2.warpAffine(blades, turn, (size, size), borderMode=cv2.BORDER_REFLECT)
    return np.asarray(turned, np.float32)


def _pebbles(rng: Generator, size: int) -> Array:
    cracks = abs(noise(rng, size, 12, 12) - 0.5) + 0.5 * abs(noise(rng, size, 20, 20) - 0.5)
    return np.clip(4 * cracks, 0, 1) * (0.7 + 0.3 * noise(rng, size, 6, 6))


def _planks(rng: Generator, size: int) -> Array:
    grain = noise(rng, size, 5, size // 2)
    return 0.65 * grain + 0.35 * cv2.resize(
        rng.random((7, 1), dtype=np.float32), (size, size), interpolation=cv2.INTER_NEAREST
    )


TEXTURES = (_clouds, _grass, _pebbles, _planks)


def ground(rng: Generator, size: int, distractors: int) -> tuple[Array, Array]:
    """Colours [size, size, 3] and heights [size, size], 0.1..0.7, of cluttered ground."""
    labels = scatter(rng, size, distractors)
    fields = np.stack([texture(rng, size) for texture in TEXTURES])
    kind = rng.integers(0, len(TEXTURES), distractors + 1)
    pairs = np.array(ground_tones(rng, distractors + 1, (0.0, 1.0)), np.float32)
    heights = rng.uniform(0.1, 0.7, distractors + 1).astype(np.float32)
    return woven(labels, fields, kind, pairs), np.take(heights, labels)


def dome(mask: Pixels) -> Array:
    """Heights of an object that bulges: 1 at its rim to 2.5 in its middle."""
    depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    return 1 + 1.5 * np.sqrt(np.clip(depth / max(float(depth.max()), 1.0), 0, 1))


def framed(
    centre: Points,
    angle: float,
    unit: float,
    columns: tuple[int, int],
    rows: tuple[int, int],
) -> tuple[Points, Points]:
    """How far along and across an object the samples of a window lie, each [H * s, W * s].

    Args:
        centre: of the object in pixels, (x, y).
        angle: of its length.
        unit: pixels that count as 1.
        columns: first of the window, and the one after its last.
        rows: likewise.
    """
    dx, dy = _samples(*columns) - centre[0], _samples(*rows)[:, None] - centre[1]
    cos, sin = direction(angle) / unit
    return dx * cos + dy * sin, dy * cos - dx * sin


def _samples(start: int, stop: int) -> Points:
    """Coordinates of the samples in pixels start..stop, pixel centres being whole numbers."""
    return (np.arange(SAMPLES * start, SAMPLES * stop) + 0.5) / SAMPLES - 0.5


def pixel_mean(samples: NDArray[np.bool_]) -> Array:
    """Share [H, W] of the `SAMPLES` x `SAMPLES` samples of each pixel."""
    rows, columns = (side // SAMPLES for side in samples.shape)
    blocks = samples.reshape(rows, SAMPLES, columns, SAMPLES)
    return blocks.mean((1, 3), dtype=np.float32)


def shade(rng: Generator, colour: Array, height: Array) -> Pixels:
    """Light the scene from above left: lit and dark flanks, soft shadows, a little grain."""
    size = height.shape[0]
    smooth = _blur(height, size / 80)
    flank = smooth - _shift(smooth, max(1, size // 48))
    far = _blur(height, size / 24)
    shadow = np.clip(_shift(far, size // 24) - height, 0, 1.2)
    slope = noise(rng, size, 1, 1)
    light = (0.82 + 0.36 * slope) * np.clip(1 + LIGHT * flank, 0.5, 1.4) * (1 - 0.4 * shadow)
    image = _blur(colour * light[..., None], 0.5)
    image += np.float32(GRAIN) * rng.standard_normal(image.shape, np.float32)
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


def _blur(field: Array, sigma: float) -> Array:
    return np.asarray(cv2.GaussianBlur(field, (0, 0), sigma), np.float32)


def _shift(field: Array, pixels: int) -> Array:
    """Move a field right and down, repeating its border."""
    return np.pad(field, ((pixels, 0), (pixels, 0)), mode='edge')[:-pixels, :-pixels]


def png(image: Pixels) -> bytes:
    """A PNG of grey [H, W] or BGR [H, W, 3], which is OpenCV's order."""
    return cv2.imencode('.png', image, _FAST_PNG)[1].tobytes()

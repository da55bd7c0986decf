"""Maps over images: figures for notebooks, and pictures."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from wsol_jax.data.decode import resize_image
from wsol_jax.data.images import listed, read_image
from wsol_jax.localization.methods import METHODS
from wsol_jax.maps import NO_CLASS, Key
from wsol_jax.maps.boxes import boxes_from_map
from wsol_jax.maps.result import Localization
from wsol_jax.maps.score import score_map
from wsol_jax.names import unknown_name
from wsol_jax.report.overlay import DPI, MAP_COLORS, OPACITY, Cell, blend, draw_grid, map_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 1024  # pixels of a picture: photos are drawn smaller, boxes stay those of the photo


def show(
    images: Any,
    result: Localization | Mapping[Key, Any],
    *,
    keys: Sequence[Key] | None = None,
    threshold: float | None = None,
    truth: Sequence[Any] | None = None,
    columns: int = 1,
) -> 'Figure':
    """Shows maps and boxes over their images: a line for every image, a column for every map.

    A notebook displays what a cell returns, so `wsol_jax.show(...)` in its last line is enough;
    `.savefig(path)` writes the figure to a file. Maps and boxes are those of
    `Localization.score_maps` and `Localization.boxes`. In a dictionary, maps of methods of your own
    that end in a ReLU, and those with eigen_smooth, must have it already (`rectify=True`).

    Args:
        images: B images in any of the forms that `localize` takes.
        result: what `localize` returned, or {(method, layer): maps [B,h,w] or [B,K,h,w]}. With K
          classes an image it has a line for each of its classes, in the order of
          `Localization.classes`; the name of the class, or its index, stands at the left.
        keys: the (method, layer) to show, in this order; None for all.
        threshold: fraction of a map's maximum, in [0, 1), for the box of its largest contour, drawn
          in orange; None for no boxes.
        truth: for each image its true boxes [m,4], x0, y0, x1, y1 in its pixels, drawn dashed and
          white; the best IoU with the box at `threshold` stands below.
        columns: how many lines stand side by side.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: shapes that disagree, something that is no image, an unknown key, or a threshold
          outside [0, 1).
    """
    from matplotlib import pyplot

    if columns < 1:
        raise ValueError(f'columns must be at least 1, got {columns}')
    pictures = _pictures(images)
    boxes = _true_boxes(truth, len(pictures))
    maps = _maps(result, keys, len(pictures))
    labels, wanted = _labels(result, next(iter(maps.values())).shape[:2])
    relu = _relu(result, maps)
    lines = [
        _line(
            pictures[i], boxes[i], label, {key: m[i, k] for key, m in maps.items()}, threshold, relu
        )
        for (i, k), label in np.ndenumerate(labels)
        if wanted[i, k]
    ]
    # Of pyplot, which tells a notebook how to display figures; left open it is displayed twice.
    figure = pyplot.figure(dpi=DPI, layout='constrained')
    pyplot.close(figure)
    wide = [list(chain(*lines[i : i + columns])) for i in range(0, len(lines), columns)]
    titles = ['image', *map(map_title, maps)]
    draw_grid(figure, titles * min(columns, len(lines)), wide)
    return figure


def overlay(
    image: Any,
    raw: Any,
    *,
    relu: bool = False,
    colors: str = MAP_COLORS,
    opacity: float = OPACITY,
) -> np.ndarray:
    """A map in colour over its image, in the image's own size.

    Args:
        image: one image in any of the forms that `localize` takes.
        raw: its map [h,w], at any resolution.
        relu: set negative values to zero first, for methods whose definition ends in a ReLU; the
          maps of `Localization.rectified` have it behind them.
        colors: the name of a colour map of Matplotlib.
        opacity: of the map, in [0, 1].

    Returns:
        [H,W,3] uint8, turned as the EXIF orientation of a file says.

    Raises:
        ValueError: not one image or not one map, one that cannot be read, or an opacity outside
          [0, 1].
        KeyError: Matplotlib has no such colour map.

    Example:
        >>> photo = np.zeros((60, 80, 3), np.uint8)
        >>> overlay(photo, np.eye(7)).shape
        (60, 80, 3)
    """
    given, raw = listed(image), np.asarray(raw)
    if len(given) != 1:
        raise ValueError(f'an overlay is of one image, got {len(given)}')
    if raw.ndim != 2:
        hint = '; of one image take maps[i]' if raw.ndim > 2 else ''
        raise ValueError(f'an overlay is of one map [h,w], got {list(raw.shape)}{hint}')
    if not 0 <= opacity <= 1:
        raise ValueError(f'opacity must be in [0, 1], got {opacity}')
    pixels, _ = _bytes(given[0])
    return blend(pixels, score_map(raw, pixels, relu=relu), colors, opacity)


def _pictures(images: Any) -> list[tuple[np.ndarray, tuple[int, int]]]:
    """[H,W,3] uint8 each, no larger than it is seen, and the (width, height) of the image."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_picture, listed(images)))


def _picture(item: Any) -> tuple[np.ndarray, tuple[int, int]]:
    image, (width, height) = _bytes(item)
    factor = min(1, SIDE / max(width, height))
    seen = max(1, round(factor * width)), max(1, round(factor * height))
    return resize_image(image, seen), (width, height)


def _bytes(item: Any) -> tuple[np.ndarray, tuple[int, int]]:
    image, size = read_image(item)
    return image if image.dtype == np.uint8 else (255 * image).round().astype(np.uint8), size


def _true_boxes(truth: Sequence[Any] | None, count: int) -> list[np.ndarray]:
    if truth is None:
        return [np.zeros((0, 4))] * count
    if len(truth) != count:
        raise ValueError(f'truth must hold boxes for {count} images, got {len(truth)}')
    found = [np.asarray(boxes) for boxes in truth]
    for i, boxes in enumerate(found):
        if boxes.size and (boxes.ndim != 2 or boxes.shape[1] != 4):
            raise ValueError(f'truth[{i}] must be boxes [m,4], got {list(boxes.shape)}')
    return [boxes.reshape(-1, 4) for boxes in found]


def _maps(result: Any, keys: Sequence[Key] | None, count: int) -> dict[Key, np.ndarray]:
    """Maps [B,K,h,w], K the same for all."""
    given = result.maps if isinstance(result, Localization) else result
    wanted = list(given) if keys is None else list(keys)
    known = list(map(str, given))
    for key in wanted:
        if str(key) not in known:
            raise ValueError(unknown_name('(method, layer)', str(key), known))
    maps = {key: np.asarray(given[key]) for key in wanted}
    if not maps:
        raise ValueError('there are no maps to show')
    first = next(iter(maps.values()))
    for key, m in maps.items():
        if m.ndim not in (3, 4) or len(m) != count or m.shape[:-2] != first.shape[:-2]:
            raise ValueError(
                f'maps of {key} must be [{count},h,w], or [{count},K,h,w] for K classes, for '
                f'{count} images, got {list(m.shape)}'
            )
    return {key: m.reshape(count, -1, *m.shape[-2:]) for key, m in maps.items()}


def _labels(result: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """What stands at the left [B,K], and which have a line: images may have less than K classes."""
    if not isinstance(result, Localization):
        return np.full(shape, ''), np.full(shape, True)
    known, names = np.asarray(result.classes).reshape(shape), np.reshape(result.names, shape)
    numbered = np.where(known == NO_CLASS, '', np.char.add('class ', names))
    return names if result.class_names else numbered, (known != NO_CLASS) | (
        np.ndim(result.classes) == 1
    )


def _line(
    picture: tuple[np.ndarray, tuple[int, int]],
    truth: np.ndarray,
    label: str,
    maps: Mapping[Key, np.ndarray],
    threshold: float | None,
    relu: Mapping[Key, bool],
) -> list[Cell]:
    image, size = picture
    cells = [Cell(image, truth, label=label, size=size)]
    for key, m in maps.items():
        scores, box = score_map(m, image, relu=relu[key]), None
        if threshold is not None:
            box = boxes_from_map(m, size, threshold, relu=relu[key])[0]
        cells.append(Cell(image, truth, scores, box, size=size))
    return cells


def _relu(result: Any, keys: Iterable[Key]) -> dict[Key, bool]:
    """The rule of `Localization.boxes`; of plain maps, that of the method of that name."""
    known = result.has_relu if isinstance(result, Localization) else _ends_in_relu
    return {key: known(key) for key in keys}


def _ends_in_relu(key: Key) -> bool:
    return key[0] in METHODS and METHODS[key[0]]().relu

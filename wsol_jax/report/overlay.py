"""Maps and boxes laid over images, in a grid."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wsol_jax.evaluation.boxes import box_iou

if TYPE_CHECKING:  # it takes a third as long as all else that `import wsol_jax` does
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# White, and an orange of Okabe and Ito: told apart, and from the map, with any colour vision.
TRUE_COLOR, BOX_COLOR = '#FFFFFF', '#E69F00'
DPI = 150
MAP_COLORS = 'viridis'
OPACITY = 0.6
_CELL, _HEAD = 1.6, 0.4  # inches


@dataclass(frozen=True)
class Cell:
    """One picture of a grid.

    Attributes:
        image: [H,W,3] uint8.
        truth: [m,4] true boxes, drawn dashed and white.
        scores: [H,W] in [0, 1], laid over the image; None for the image alone.
        box: [4], drawn in orange, with its best IoU with a true box written below; None for none.
        label: written at the left.
        size: (width, height) that boxes are in pixels of; None for those of the image.
    """

    image: np.ndarray
    truth: np.ndarray
    scores: np.ndarray | None = None
    box: np.ndarray | None = None
    label: str = ''
    size: tuple[int, int] | None = None


def draw_grid(figure: 'Figure', titles: Sequence[str], lines: Iterable[Sequence[Cell]]) -> None:
    """Draws lines of cells below their titles; the figure takes the size that they need.

    Args:
        figure: an empty one with a constrained layout.
        titles: of the columns.
        lines: from top to bottom; a line may be shorter than the titles.
    """
    lines = list(lines)
    width, height = _CELL * len(titles), _CELL * len(lines) + _HEAD
    figure.set_size_inches(width, height)
    grid = figure.subplots(len(lines), len(titles), squeeze=False)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=7)
    for places, cells in zip(grid, lines, strict=True):
        for axes, cell in zip(places, cells, strict=False):
            _draw_cell(axes, cell)
        for axes in places[len(cells) :]:
            axes.set_axis_off()


def map_title(key: tuple[str, str]) -> str:
    """The title of the maps of a (method, layer); each part of a fusion has its own line."""
    return '\n'.join((key[0], *key[1].split('+')))


def blend(
    image: np.ndarray, scores: np.ndarray, colors: str = MAP_COLORS, opacity: float = OPACITY
) -> np.ndarray:
    """A score map in colour over an image.

    Args:
        image: [H,W,3] uint8.
        scores: [H,W] in [0, 1].
        colors: a colour map of Matplotlib.
        opacity: of the map, in [0, 1].

    Returns:
        [H,W,3] uint8.
    """
    from matplotlib import colormaps

    # Looked up in float32: of a photo of 12 million pixels Matplotlib's own colours take 400 MB.
    table = 255 * colormaps[colors](np.linspace(0, 1, 256))[:, :3].astype(np.float32)
    shown = table[np.minimum(256 * scores, 255).astype(np.uint8)]
    return (opacity * shown + (1 - opacity) * image).round().astype(np.uint8)


def _draw_cell(axes: 'Axes', cell: Cell) -> None:
    # Blended here: one picture a cell, and the same one in every format of a figure.
    width, height = cell.size or cell.image.shape[1::-1]
    axes.imshow(
        cell.image if cell.scores is None else blend(cell.image, cell.scores),
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),  # those of imshow, for any resolution
    )
    axes.set(xticks=[], yticks=[])
    axes.set_ylabel(cell.label, fontsize=6, labelpad=1)
    axes.spines[:].set_visible(False)
    for true in cell.truth:
        _draw_box(axes, true, TRUE_COLOR, '--')
    if cell.box is None:
        return
    _draw_box(axes, cell.box, BOX_COLOR, '-')
    if len(cell.truth):
        overlap = box_iou(cell.box, cell.truth).max()
        axes.set_xlabel(f'IoU {overlap:.2f}', fontsize=6, labelpad=1)


def _draw_box(axes: 'Axes', box: np.ndarray, color: str, style: str) -> None:
    from matplotlib.patches import Rectangle

    x0, y0, x1, y1 = box
    corner, width, height = (x0, y0), x1 - x0, y1 - y0
    # A dark edge below keeps the line visible on any image.
    axes.add_patch(Rectangle(corner, width, height, fill=False, ec='black', lw=2.4, alpha=0.5))
    axes.add_patch(Rectangle(corner, width, height, fill=False, ec=color, lw=1.4, ls=style))

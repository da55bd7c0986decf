r"""Boxes of maps that a dense CRF refined by the image: do they hit more objects?

    WSOL_DATA=DATA python -m experiments.refined_boxes --workdir DIR \
        --config configs/imagenette_mobilenet_v1.py

DIR has the maps of DGL and LayerCAM on val and test, from the stage `localize`. Of each the layer
that is best on val is refined, and so is the mean of the two. A map becomes the probability
sigmoid(8 (map - threshold)) of the object, with the threshold that is best for the map on val, and
the field refines it at 64 x 64 pixels; scored is the refined probability, or its mean with the map.
Refinement and threshold are chosen on val. Prints the table and writes DIR/refined_boxes.md and,
with ten images of test, DIR/refined_boxes.jpg.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from matplotlib.figure import Figure

from wsol_jax.command_line import CONFIG, WORKDIR, run_command
from wsol_jax.config import Config, ConfigError, read_config
from wsol_jax.data import decode_image, evenly_spaced, resize_image
from wsol_jax.evaluation.box_metrics import RIGHT
from wsol_jax.evaluation.curves import Curves
from wsol_jax.evaluation.scoring import Rules, rules_of, score_image
from wsol_jax.evaluation.split import SplitMaps
from wsol_jax.evaluation.table import Scores
from wsol_jax.evaluation.truth import ground_truth
from wsol_jax.maps import Key
from wsol_jax.maps.fuse import fuse, min_max
from wsol_jax.maps.score import score_map
from wsol_jax.maps.store import MapStore
from wsol_jax.report.overlay import Cell, draw_grid
from wsol_jax.report.table import heading, markdown
from wsol_jax.run import open_split
from wsol_jax.segmentation.crf import DenseCRF, dense_crf
from wsol_jax.workdir import write_text

SIDE = 64  # pixels that images are refined at
BATCH = 25
METHODS = ('dgl', 'layer_cam')
TIGHT = 0.7  # the IoU that tells how well boxes fit
SHARPNESS = 8.0  # of the probability of the object
# Weight, width in pixels of a canvas of 224, width in grey levels; IRN's field first.
KERNELS = ((10, 50, 5), (3, 30, 13), (1, 30, 13), (1, 50, 20))


class Refinement(NamedTuple):
    """What is done with a map; neither field nor mean for the map as it is.

    Attributes:
        field: of the CRF.
        mean: whether the mean with the map is scored.
    """

    field: DenseCRF | None = None
    mean: bool = False

    def __str__(self) -> str:
        if not self.field:
            return 'none'
        width, grey = self.field.bilateral_xy * 224 / SIDE, self.field.bilateral_rgb
        kernel = f'{self.field.bilateral_weight:g}, {width:g} px, {grey:g} levels'
        return f'{kernel}{", mean" if self.mean else ""}'


def fields() -> list[DenseCRF]:
    """The fields that are tried, their widths in pixels of the small images."""
    scale = SIDE / 224
    return [DenseCRF(w, scale * xy, rgb, min(w, 3), scale * 3) for w, xy, rgb in KERNELS]


class Images:
    """A split with what refining and scoring need of it.

    Attributes:
        split: with the maps.
        small: uint8 [n,SIDE,SIDE,3].
        truths: boxes and mask of each image, on the canvas.
        rules: of scoring.
    """

    def __init__(self, config: Config, name: str, workdir: Path):
        source = open_split(config, name)
        self.split = SplitMaps(name, source, MapStore(workdir / 'maps' / name))
        if missing := set(METHODS) - {method for method, _ in self.split.store.arrays}:
            raise ConfigError(f'{self.split.store.folder} has no maps of {", ".join(missing)}')
        self.small = np.stack([self.image(i, (SIDE, SIDE)) for i in range(len(self))])
        self.rules: Rules = rules_of(config.evaluate)
        self.truths = [ground_truth(r, self.rules.canvas) for r in self.split.records]

    def __len__(self) -> int:
        """How many images could be read."""
        return len(self.split.readable)

    def image(self, i: int, size: tuple[int, int]) -> np.ndarray:
        """The pixels of an image at (width, height)."""
        return resize_image(decode_image(self.split.source[int(self.split.readable[i])]), size)

    def maps(self, keys: Sequence[Key]) -> np.ndarray:
        """[n,h,w] of one (method, layer), or of the mean of several."""
        maps = [self.split.rectified(key, self.split.readable) for key in keys]
        return np.asarray(fuse(list(map(jnp.asarray, maps)))) if len(maps) > 1 else maps[0]

    def scores(self, maps: np.ndarray, kept: Sequence[float] = ()) -> Scores:
        """Scores of maps, each image's at the thresholds that are kept."""
        parts = zip(maps, self.truths, strict=True)
        return Scores.joined(
            score_image([self.on_canvas(m)], truth, self.rules, kept, masked=False)
            for m, truth in parts
        )

    def on_canvas(self, raw: np.ndarray) -> np.ndarray:
        """The score map of a map."""
        return score_map(raw, self.rules.canvas, closing=self.rules.closing)


@jax.jit
def _small(maps: jax.Array) -> jax.Array:
    return min_max(jax.image.resize(maps, (*maps.shape[:-2], SIDE, SIDE), 'cubic'))


def refined(images: np.ndarray, maps: np.ndarray, threshold: float, field: DenseCRF) -> np.ndarray:
    """The probability of the object after the field, [n,SIDE,SIDE].

    Args:
        images: uint8 [n,SIDE,SIDE,3].
        maps: [n,h,w].
        threshold: fraction of their maximum where the probability is one half before.
        field: the CRF.
    """
    chance = 1 / (1 + np.exp(-SHARPNESS * (np.asarray(_small(maps)) - threshold)))
    probabilities = np.stack([1 - chance, chance], -1).astype(np.float32)
    # One shape, and so one program: the last batch is filled up.
    batches = np.arange(-(-len(maps) // BATCH) * BATCH).reshape(-1, BATCH) % len(maps)
    parts = [np.asarray(dense_crf(images[b], probabilities[b], field)) for b in batches]
    return np.concatenate(parts)[: len(maps), ..., 1]


def with_map(found: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """The mean of refined maps and the maps."""
    return (found + np.asarray(_small(maps))) / 2


class Recipe(NamedTuple):
    """A map, its refinement and its thresholds, as chosen on val.

    Attributes:
        keys: the map, or those that are fused.
        how: it is refined.
        centre: the threshold of the probability.
        val: scores over the threshold of the boxes.
    """

    keys: tuple[Key, ...]
    how: Refinement
    centre: float
    val: Curves

    def maps(self, images: Images) -> np.ndarray:
        """What is scored of a split."""
        maps = images.maps(self.keys)
        if not self.how.field:
            return maps
        found = refined(images.small, maps, self.centre, self.how.field)
        return with_map(found, maps) if self.how.mean else found


def raw_recipe(val: Images, *keys: Key) -> Recipe:
    """A map as it is."""
    curves = val.scores(val.maps(keys)).curves
    return Recipe(keys, Refinement(), curves.best_threshold or 0.0, curves)


def raw_recipes(val: Images) -> list[Recipe]:
    """The best layer of each method, and the mean of the two."""
    stored = val.split.store.arrays
    best = [_best(raw_recipe(val, key) for key in stored if key[0] == m) for m in METHODS]
    return [*best, raw_recipe(val, *(recipe.keys[0] for recipe in best))]


def _best(recipes: Iterable[Recipe]) -> Recipe:
    return max(recipes, key=lambda recipe: recipe.val.score or 0.0)


def refinements(val: Images, raw: Recipe) -> Iterator[Recipe]:
    """A map, refined in every way."""
    maps = val.maps(raw.keys)
    for field in fields():
        found = refined(val.small, maps, raw.centre, field)
        yield raw._replace(how=Refinement(field), val=val.scores(found).curves)
        curves = val.scores(with_map(found, maps)).curves
        yield raw._replace(how=Refinement(field, mean=True), val=curves)


def row(recipe: Recipe, test: Images, before: np.ndarray | None) -> tuple[list[str], np.ndarray]:
    """The cells of a recipe, and which images of test it is right on.

    Args:
        recipe: from val.
        test: what is scored.
        before: which images the map is right on without refinement; None for that map itself.
    """
    threshold = recipe.val.best_threshold
    scores = test.scores(recipe.maps(test), [threshold])
    overlap = scores.table.overlap[:, 0, 0]
    right = overlap >= RIGHT
    error = 100 * math.sqrt(right.mean() * (1 - right.mean()) / len(right))
    changed = '' if before is None else f'+{(right & ~before).sum()} −{(before & ~right).sum()}'
    shown = [f'{threshold:.2f}', f'{recipe.val.score:.1f}']
    shown += [f'{100 * right.mean():.1f} ± {error:.1f}', changed]
    shown += [f'{100 * (overlap >= TIGHT).mean():.1f}', f'{scores.curves.max_box_acc:.1f}']
    return [_named(recipe.keys), str(recipe.how), *shown], right


def _named(keys: Sequence[Key]) -> str:
    return ' + '.join(f'{method} @ {layer}' for method, layer in keys)


def table(val: Images, test: Images) -> tuple[list[list[str]], Recipe]:
    """Rows of the table, and the refined recipe that is best on val."""
    rows, chosen = [], []
    for raw in raw_recipes(val):
        chosen.append(_best(refinements(val, raw)))
        cells, before = row(raw, test, None)
        rows += [cells, row(chosen[-1], test, before)[0]]
    return rows, _best(chosen)


def draw(recipe: Recipe, test: Images, count: int = 10) -> Figure:
    """Evenly spaced images of test, with map and box before and after."""
    cuts = (recipe.centre, recipe.val.best_threshold)
    both = list(zip((test.maps(recipe.keys), recipe.maps(test)), cuts, strict=True))
    figure = Figure(layout='constrained')
    lines = [_line(test, i, both) for i in evenly_spaced(np.arange(len(test)), count).tolist()]
    draw_grid(figure, ['image', 'map', 'refined'], lines)
    return figure


def _line(test: Images, i: int, both: Sequence[tuple[np.ndarray, float]]) -> list[Cell]:
    image, truth = test.image(i, test.rules.canvas), test.truths[i]
    cells = [Cell(image, truth[0])]
    for maps, threshold in both:
        scores = test.on_canvas(maps[i])
        box = score_image([scores], truth, test.rules, [threshold], masked=False).table.boxes
        cells.append(Cell(image, truth[0], scores, box[0, 0, 0]))
    return cells


HEAD = ['map', 'refined by', 'threshold', 'val', heading('GTKnownLoc'), 'changed']
HEAD += [f'IoU {TIGHT}', heading('MaxBoxAcc')]
_NOTE = (
    'GT-known Loc in percent with its standard error. Layers, refinements and thresholds are '
    'chosen on val, where the best of {tried} refinements of a map is too good; best there of what '
    'is refined: {best}. Refined by: weight and widths of the kernel of colours, and whether the '
    'mean with the map is scored. Changed: images of test that refining gained and lost. IoU '
    f'{TIGHT}: the same where a box is right from there on. * best threshold on test (an oracle).'
)


def main(_: Sequence[str]) -> None:
    """Refines, prints the table and writes it with the figure."""
    logging.set_verbosity(logging.WARNING)
    config, folder = read_config(CONFIG.value), Path(WORKDIR.value)
    val, test = (Images(config, name, folder) for name in ('val', 'test'))
    rows, best = table(val, test)
    lines = markdown([HEAD, *rows])
    note = _NOTE.format(tried=2 * len(KERNELS), best=_named(best.keys))
    text = '\n\n'.join([f'{config.network.name}, test of {len(test)}', lines, note])
    write_text(folder / 'refined_boxes.md', text + '\n')
    draw(best, test).savefig(folder / 'refined_boxes.jpg', dpi=100)
    print(text)


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdir'])
    run_command(main)

"""The best recipe without training: method, layer, fusion, views and closing, all chosen on val.

    WSOL_DATA=DATA python -m experiments.recipe_search --workdir DIR \
        --config configs/imagenette_mobilenet_v1.py

Scores every method and layer (`--methods`, --config.localize.layers), fused ones included, under
every kind of view (`--views`) on val, then the kernel of the closing for the best. Test sees
the best recipe of each view and the winner alone, at val's threshold. Prints the table and writes
DIR/recipe_search.md.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags, logging

import wsol_jax
from experiments.dgl_ablation import best, count
from wsol_jax.command_line import CONFIG, WORKDIR, run_command
from wsol_jax.config import Config, read_config
from wsol_jax.evaluation.curves import Curves
from wsol_jax.evaluation.stage import choose
from wsol_jax.models import Network
from wsol_jax.report.table import heading, markdown
from wsol_jax.run import load_classifier, open_splits
from wsol_jax.workdir import write_text

SCALES = (0.75, 1.0, 1.25, 1.5)
VIEWS: Mapping[str, dict[str, Any]] = {
    'one': {},
    'flip': {'flip': True},
    'scales': {'scales': SCALES},
    'scales, flip': {'scales': SCALES, 'flip': True},
}
KERNELS = (0, 5, 11, 21)

_METHODS = flags.DEFINE_list(
    'methods', ['dgl', 'layer_cam', 'sgl_g1', 'dgl+layer_cam'], 'None may end in a ReLU.'
)
_VIEWS = flags.DEFINE_multi_enum('views', list(VIEWS), list(VIEWS), 'Kinds of views.')

Recipe = tuple[str, int]  # ('method @ layer', kernel of the closing in canvas pixels)


def recipe_maps(
    network: Network,
    layers: Sequence[str],
    options: Mapping[str, Any],
    images: np.ndarray,
    labels: np.ndarray,
) -> dict[str, jax.Array]:
    """{'method @ layer': [B,h,w]} under one kind of view."""
    maps = wsol_jax.localize(
        network, images, _METHODS.value, layers, labels, resize=False, **options
    ).maps
    return {f'{method} @ {layer}': m for (method, layer), m in maps.items()}


def search(config: Config, network: Network, splits) -> list[list[str]]:
    """Rows of the table: the best recipe of each kind of view, then the best one with a closing."""
    layers = config.localize.layers or network.layers()
    makers = {v: partial(recipe_maps, network, layers, VIEWS[v]) for v in _VIEWS.value}
    names = [f'{method} @ {layer}' for method in _METHODS.value for layer in layers]
    on_val: dict[str, dict[Recipe, Curves]] = {
        view: count(config, network, splits('val'), maps_of, [(name, 0) for name in names])
        for view, maps_of in makers.items()
    }
    winners = {view: best(counts) for view, counts in on_val.items()}
    top = max(winners, key=lambda view: on_val[view][winners[view]].score or 0.0)
    kernels = [(winners[top][0], kernel) for kernel in KERNELS]
    closed = count(config, network, splits('val'), makers[top], kernels)
    rows = [(view, winners[view], on_val[view]) for view in makers] + [(top, best(closed), closed)]
    return [_row(config, network, splits, view, makers[view], *found) for view, *found in rows]


def _row(config, network, splits, view, maps_of, recipe: Recipe, on_val) -> list[str]:
    threshold = choose(on_val)[recipe]
    on_test = count(config, network, splits('test'), maps_of, [recipe])[recipe]
    known = on_test.gt_known[on_test.nearest(threshold)]
    numbers = [on_val[recipe].score, known, on_test.max_box_acc]
    shown = [f'{number:.1f}' for number in numbers]
    closing = f'{recipe[1]} px'
    return [view, recipe[0], closing, f'{threshold:.2f}', *shown, str(len(on_val))]


def main(_: Sequence[str]) -> None:
    """Searches, prints the table and writes it."""
    logging.set_verbosity(logging.WARNING)
    config, folder = read_config(CONFIG.value), Path(WORKDIR.value)
    splits = open_splits(config)
    network = load_classifier(config, folder)
    head = ['views', 'best on val', 'closing', 'threshold', 'val', heading('GTKnownLoc')]
    rows = [[*head, heading('MaxBoxAcc'), 'tried'], *search(config, network, splits)]
    note = (
        'GT-known Loc in percent; recipe and threshold chosen on val, where the best of all that '
        'were tried is too good. * best threshold on test (an oracle). Last row: the closing '
        'chosen for the best recipe.'
    )
    text = '\n\n'.join([f'{network.name}, test of {len(splits("test"))}', markdown(rows), note])
    write_text(folder / 'recipe_search.md', text + '\n')
    print(text)


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdir'])
    run_command(main)

r"""The ablations of DGL on a trained classifier: scales, closing, alpha, enhanced map, branches.

    WSOL_DATA=DATA python -m experiments.dgl_ablation --workdir DIR \
        --config configs/imagenette_mobilenet_v1.py [--layer pw_10] [--images 40]

The classifier is the one trained in DIR, or that of config.network.weights; the maps are of the
true class. Thresholds, the kernel of the closing and, without --layer, the layer are chosen on val;
the scores are those of test. Prints the table and writes DIR/dgl_ablation.md and .png. One pass
over the images serves every alpha, the map without the enhanced branch and all branches of
Mixed_6e, where the network has them; a second one serves the scales.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from absl import flags, logging
from matplotlib.figure import Figure
from tqdm import tqdm

import wsol_jax
from wsol_jax.command_line import CONFIG, WORKDIR, run_command
from wsol_jax.config import Config, read_config
from wsol_jax.data import Labels, Record, Source, evaluation_batches, evenly_spaced
from wsol_jax.evaluation.curves import Curves
from wsol_jax.evaluation.scoring import rules_of, score_image
from wsol_jax.evaluation.stage import choose
from wsol_jax.evaluation.truth import ground_truth
from wsol_jax.localization.cam import hires_cam
from wsol_jax.localization.dgl import dgl
from wsol_jax.maps.fuse import fuse
from wsol_jax.maps.score import score_map
from wsol_jax.models import Network
from wsol_jax.report.table import columns, heading, markdown
from wsol_jax.run import Splits, load_classifier, open_splits
from wsol_jax.workdir import write_text

_LAYER = flags.DEFINE_string('layer', '', "Endpoint, or 'a+b'; by default the best one on val.")
_IMAGES = flags.DEFINE_integer('images', 0, 'Images of each split; 0 for all.', lower_bound=0)

SCALES = (0.75, 1.0, 1.25, 1.5)
KERNELS = (5, 11, 21, 31)
ALPHAS = (1.0, 2.0, 10.0, 100.0)
BLOCK = 'Mixed_6e'
PAIR = ('Branch_1', 'Branch_2')
FUSIONS = ('mean', 'max')

Maps = Mapping[str, jax.Array]  # [B,h,w] by name
Scored = tuple[str, int]  # (name of the maps, kernel of the closing in canvas pixels; 0 for none)
Row = tuple[str, str]  # (what is varied, its value)

_PLAIN, _NO_ENHANCED, _MULTI = 'alpha 10', 'sum g S', 'scales ' + ', '.join(map(str, SCALES))


def table_rows(branches: Collection[str]) -> dict[Row, Scored]:
    """What each row of the table is scored on.

    Args:
        branches: names of the branches of `BLOCK`; none where the network has no such block.
    """
    rows = {('scales', '1'): (_PLAIN, 0), ('scales', _MULTI.partition(' ')[2]): (_MULTI, 0)}
    rows |= {('closing', f'scales and {k} px'): (_MULTI, k) for k in KERNELS}
    rows |= {('alpha', f'{a:g}'): (f'alpha {a:g}', 0) for a in ALPHAS}
    rows |= {('enhanced map', 'with'): (_PLAIN, 0), ('enhanced map', 'without'): (_NO_ENHANCED, 0)}
    if branches:
        fused = [f'{"+".join(PAIR)} {how}' for how in FUSIONS]
        rows |= {(BLOCK, name): (name, 0) for name in [*branches, *fused]}
        rows[BLOCK, 'whole'] = (BLOCK, 0)
    return rows


def branches_of(network: Network) -> dict[str, str]:
    """{'Branch_0': 'Mixed_6e/Branch_0', ...}; empty where the network has no such block."""
    return {e.partition('/')[2]: e for e in network.shapes if e.startswith(f'{BLOCK}/')}


def ablation_maps(network: Network, layer: str, images: np.ndarray, labels: np.ndarray) -> Maps:
    """The maps that the rows are scored on.

    Args:
        network: the classifier.
        layer: where all but the maps of branches are taken.
        images: uint8 [B,H,W,3].
        labels: [B] the classes to localize.
    """
    branches = branches_of(network)
    layers = dict.fromkeys([layer, *branches.values(), *([BLOCK] if branches else [])])
    methods = [replace(dgl(a), name=f'alpha {a:g}') for a in ALPHAS]
    one = wsol_jax.localize(
        network, images, [*methods, hires_cam()], tuple(layers), labels, resize=False
    ).maps
    several = wsol_jax.localize(
        network, images, ('dgl',), (layer,), labels, resize=False, scales=SCALES
    ).maps
    maps = {method.name: one[method.name, layer] for method in methods}
    maps |= {_NO_ENHANCED: one['hires_cam', layer], _MULTI: several['dgl', layer]}
    if branches:
        maps |= {name: one[_PLAIN, endpoint] for name, endpoint in branches.items()}
        maps |= {f'{"+".join(PAIR)} {how}': fuse([maps[b] for b in PAIR], how) for how in FUSIONS}
        maps[BLOCK] = one[_PLAIN, BLOCK]
    return maps


def layer_maps(
    network: Network, layers: Sequence[str], images: np.ndarray, labels: np.ndarray
) -> Maps:
    """Maps of DGL at every layer, by its name."""
    maps = wsol_jax.localize(network, images, ('dgl',), layers, labels, resize=False).maps
    return {layer: maps['dgl', layer] for layer in layers}


def count(
    config: Config,
    network: Network,
    source: Source,
    maps_of: Callable[[np.ndarray, np.ndarray], Maps],
    wanted: Collection[Scored],
) -> dict[Scored, Curves]:
    """Boxes and masks of a split, scored.

    Args:
        config: the experiment.
        network: the classifier, which knows the size of its images.
        source: the images.
        maps_of: (images, labels) -> maps.
        wanted: which maps to score, with which closing.
    """
    rules = rules_of(config.evaluate)
    counts = {w: Curves.zero(rules.thresholds) for w in wanted}
    size = config.network.input_size or network.input_size
    for record, maps in _read(config, size, source, maps_of):
        truth = ground_truth(record, rules.canvas)
        for name, kernel in counts:
            scores = score_map(maps[name], rules.canvas, closing=kernel)
            counts[name, kernel] += score_image([scores], truth, rules).curves
    return counts


def _read(config, size, source, maps_of) -> Iterator[tuple[Record, dict[str, np.ndarray]]]:
    positions = evenly_spaced(np.arange(len(source)), _IMAGES.value or len(source)).tolist()
    images = len(positions)
    batch_size = min(config.localize.batch_size, images)
    with tqdm(total=images, unit='image', disable=None) as progress:
        workers = config.data.workers
        for batch in evaluation_batches(source, size, batch_size, positions, workers, Labels()):
            labels = np.maximum(batch.targets['labels'][:, 0], 0)
            maps = jax.device_get(maps_of(batch.images, labels))
            for i in np.flatnonzero(batch.valid):
                yield source[int(batch.index[i])], {name: m[i] for name, m in maps.items()}
                progress.update()


def best(counts: Mapping[Scored, Curves]) -> Scored:
    """The maps for which MaxBoxAcc, or PxAP, is highest."""
    return max(counts, key=lambda scored: counts[scored].score or 0.0)


def best_layer(config: Config, network: Network, val: Source) -> str:
    """The layer, among the configured ones, that DGL is best at on val."""
    layers = config.localize.layers or network.layers()
    maps_of, wanted = partial(layer_maps, network, layers), [(layer, 0) for layer in layers]
    return best(count(config, network, val, maps_of, wanted))[0]


def ablate(
    config: Config, network: Network, layer: str, splits: Splits
) -> tuple[dict[Row, dict], int]:
    """The scores of test at val's threshold for every row, and how many images test has.

    Args:
        config: the experiment.
        network: the classifier.
        layer: where maps are taken.
        splits: opens val and test.
    """
    val, test = splits('val'), splits('test')
    rows = table_rows(branches_of(network))
    maps_of = partial(ablation_maps, network, layer)
    on_val = count(config, network, val, maps_of, dict.fromkeys(rows.values()))
    closing = best({scored: c for scored, c in on_val.items() if scored[1]})
    rows = {row: scored for row, scored in rows.items() if scored[1] in (0, closing[1])}
    on_test = count(config, network, test, maps_of, dict.fromkeys(rows.values()))
    thresholds = choose(on_val)
    scores = {row: _scores(on_test[s], thresholds[s]) for row, s in rows.items()}
    return scores, next(iter(on_test.values())).images


def _scores(counts: Curves, threshold: float) -> dict[str, float]:
    name = 'GTKnownLoc' if counts.boxed else 'mIoU'
    score = float(counts.curve[counts.nearest(threshold)])
    return {'threshold': threshold, name: score, **counts.oracles()}


def shown(scores: Mapping[Row, dict]) -> list[str]:
    """GT-known and MaxBoxAcc, or mIoU and PxAP where there are no boxes."""
    known = columns(list(scores.values()))
    pair = ('GTKnownLoc', 'MaxBoxAcc') if 'MaxBoxAcc' in known else ('mIoU', 'PxAP')
    return list(pair)


def table(title: str, scores: Mapping[Row, dict]) -> str:
    """The table, in Markdown."""
    names = shown(scores)
    lines = [['ablation', 'value', 'threshold', *map(heading, names)]]
    for row, values in scores.items():
        lines.append([*row, f'{values["threshold"]:.2f}', *(f'{values[n]:.1f}' for n in names)])
    chosen = 'Thresholds and the kernel of the closing chosen on val.'
    return '\n\n'.join([title, markdown(lines), f'{_axis(names)}. {chosen}'])


def _axis(names: Sequence[str]) -> str:
    oracle = any('*' in heading(name) for name in names)
    return '% on test' + (', * best threshold there (an oracle)' if oracle else '')


def plot(title: str, scores: Mapping[Row, dict], file: Path) -> None:
    """Bars of the first score of the table, a mark at the second one."""
    first, second = shown(scores)
    groups = list(dict.fromkeys(row[0] for row in scores))
    places = [-i - groups.index(row[0]) for i, row in enumerate(scores)]
    figure = Figure(figsize=(7, 0.8 + 0.3 * (len(scores) + len(groups))), layout='constrained')
    axes = figure.subplots()
    numbers = [values[first] for values in scores.values()]
    bars = axes.barh(places, numbers, color='#56B4E9', label=heading(first))
    marks = [values[second] for values in scores.values()]
    axes.plot(marks, places, 'd', color='#D55E00', label=heading(second))
    axes.bar_label(bars, fmt='%.1f', label_type='center', fontsize=8)
    axes.set_yticks(places, [f'{what}: {value}' for what, value in scores])
    axes.set(xlabel=_axis([first, second]), xlim=(0, 100))
    axes.set_title(title, fontsize=9)
    axes.spines[['top', 'right']].set_visible(False)
    figure.legend(frameon=False, loc='outside lower center', ncols=2)
    figure.savefig(file, dpi=150)


def _title(network: Network, layer: str, scores: Mapping[Row, dict], images: int) -> str:
    share = scores['scales', '1'][shown(scores)[0]] / 100
    title = f'DGL, {network.name} at {layer}, {images} images'
    if 'MaxBoxAcc' not in shown(scores):
        return title
    return f'{title} (standard error {100 * math.sqrt(share * (1 - share) / images):.1f})'


def main(_: Sequence[str]) -> None:
    """Runs the ablations, prints the table, writes it and the figure."""
    logging.set_verbosity(logging.WARNING)
    config, folder = read_config(CONFIG.value), Path(WORKDIR.value)
    splits = open_splits(config)
    network = load_classifier(config, folder)
    layer = _LAYER.value or best_layer(config, network, splits('val'))
    scores, images = ablate(config, network, layer, splits)
    title = _title(network, layer, scores, images)
    text = table(title, scores)
    write_text(folder / 'dgl_ablation.md', text + '\n')
    plot(title, scores, folder / 'dgl_ablation.png')
    print(text)


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdir'])
    run_command(main)

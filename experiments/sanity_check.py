r"""Does a map change when the network's weights do? Sanity checks for localization maps.

    WSOL_DATA=DATA python -m experiments.sanity_check --config configs/imagenette_mobilenet_v1.py \
        --workdir DIR [--layers pw_10,pw_13] [--images 12]

The weights of config.network.weights, or of the training in DIR, are replaced by random ones (He
initialisation), part after part from the classifier down to the first convolution (Adebayo et al.,
"Sanity Checks for Saliency Maps", NeurIPS 2018, section 4.1). After each part the maps of the same
images for the same classes, those that the whole network predicts, are compared with the first ones
by Spearman's rank correlation, behind the ReLU where a method ends in one. Prints the table, and
writes it with a figure to DIR/sanity_check.md and .png.

On 12 ILSVRC images guided backpropagation fails: 0.99 with a random classifier, 0.87 with the last
five parts random, where the plain gradient is at 0.48 and 0.37 (experiments/figures).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from absl import flags, logging
from flax import nnx
from matplotlib.figure import Figure
from scipy.stats import rankdata

from wsol_jax import localize
from wsol_jax.command_line import CONFIG, WORKDIR, run_command
from wsol_jax.config import read_config
from wsol_jax.data import Source, decode_image, evenly_spaced
from wsol_jax.evaluation.intervals import mean_intervals
from wsol_jax.maps import Key
from wsol_jax.models import Network, as_network
from wsol_jax.models.zoo import load_module
from wsol_jax.report.overlay import map_title
from wsol_jax.report.table import markdown
from wsol_jax.run import load_classifier, open_splits
from wsol_jax.workdir import write_text

_LAYERS = flags.DEFINE_list('layers', ['pw_10', 'pw_13'], 'Endpoints of the CAM family.')
_IMAGES = flags.DEFINE_integer('images', 12, 'Images of test.', lower_bound=2)
METHODS = ('dgl', 'grad_cam', 'layer_cam', 'saliency', 'guided_backprop')


def parts_of(module: nnx.Module, state: nnx.State) -> list[list[str]]:
    """The parts with weights, from the last to the first: dw_3 and pw_3 go together."""
    found: dict[str, list[str]] = {}
    for name in vars(module):
        if name in state:
            found.setdefault(name.split('_')[-1], []).append(name)
    return list(found.values())[::-1]


def randomized(network: Network, other: Network, names: Sequence[str]) -> Network:
    """The network with the weights of another one in some of its parts."""
    state = nnx.State({k: (other if k in names else network).state[k] for k in network.state})
    return replace(network, state=state)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, of two maps; 0 where one is the same everywhere."""
    if not (np.ptp(a) and np.ptp(b)):
        return 0.0
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def measure(
    network: Network, other: Network, parts: Sequence[list[str]], images: list[np.ndarray]
) -> dict[Key, np.ndarray]:
    """{key: [images, parts]}, correlations with the maps of the network itself."""
    first = localize(network, images, METHODS, _LAYERS.value)
    before, classes = first.rectified(), np.asarray(first.classes)
    found: dict[Key, list[list[float]]] = {key: [] for key in before}
    names: list[str] = []
    for part in parts:
        names += part
        broken = randomized(network, other, names)
        after = localize(broken, images, METHODS, _LAYERS.value, classes).rectified()
        for key, maps in after.items():
            pairs = zip(np.asarray(before[key]), np.asarray(maps), strict=True)
            found[key].append([rank_correlation(a, b) for a, b in pairs])
    return {key: np.array(rows).T for key, rows in found.items()}


def table(parts: Sequence[str], values: Mapping[Key, np.ndarray]) -> str:
    """A row for each part: what is random from the end down to it, and the mean correlations."""
    rows = [['random down to', *(f'{m} ({n})' for m, n in values)]]
    for i, part in enumerate(parts):
        rows.append([part, *(f'{v[:, i].mean():.2f}' for v in values.values())])
    return markdown(rows)


def plot(title: str, parts: Sequence[str], values: Mapping[Key, np.ndarray], file: Path) -> None:
    """Means and 95 % intervals against what is random."""
    panels = Figure(figsize=(10, 3.6), layout='constrained')
    at = range(len(parts))
    for number, (axes, at_input) in enumerate(
        zip(panels.subplots(1, 2, sharey=True), (False, True), strict=True)
    ):
        for key, v in values.items():
            if (key[1] == 'input') == at_input:
                axes.plot(at, v.mean(axis=0), label=map_title(key).replace('\n', ', '))
                axes.fill_between(at, *mean_intervals(v).T, alpha=0.2)
        axes.axhline(0, color='#bbbbbb', lw=0.8, zorder=0)
        axes.set_xticks(at, parts, rotation=60, ha='right', fontsize=7)
        axes.set(ylim=(-0.6, 1), ylabel='' if number else 'rank correlation')
        axes.spines[['top', 'right']].set_visible(False)
        axes.legend(frameon=False, fontsize=7, loc='lower center', ncols=3)
    panels.suptitle(title, fontsize=9)
    panels.savefig(file, dpi=150)


def _images(source: Source) -> list[np.ndarray]:
    positions = evenly_spaced(np.arange(len(source)), _IMAGES.value)
    return [decode_image(source[int(i)]) for i in positions]


def main(_: Sequence[str]) -> None:
    """Measures, prints the table, writes it and the figure."""
    logging.set_verbosity(logging.WARNING)
    config, folder = read_config(CONFIG.value), Path(WORKDIR.value)
    network, images = load_classifier(config, folder), _images(open_splits(config)('test'))
    net = config.network
    module = load_module(net.name, None, network.num_classes, seed=1, **net.options)
    other, parts = as_network(net.name, module), parts_of(module, network.state)
    values = measure(network, other, parts, images)
    title = f'{network.name}, {len(images)} images: maps against those of the whole network'
    names = [part[-1] for part in parts]
    text = f'{title}\n\n{table(names, values)}'
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / 'sanity_check.md', text + '\n')
    plot(title, names, values, folder / 'sanity_check.png')
    print(text)


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdir'])
    run_command(main)

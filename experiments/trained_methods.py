"""Training methods against each other: one network, split and budget, several seeds.

    WSOL_DATA=DATA python -m experiments.trained_methods --workdir DIR \
        --configs configs/cub30_trained.py [--seeds 3] [--variants plain,acol]

A config file of several variants says in VARIANTS what they are called and in STARTS, where it has
one, which variant starts from the workdir of which other. Each runs in DIR/VARIANT/seed_0, ...;
what is finished is not run again. Prints the table, and writes it with a figure to
DIR/trained_methods.md and .png: layer and threshold are chosen on val, anew for each seed; the
checkpoint as the config says, on val too.
"""

import dataclasses
import runpy
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging
from matplotlib.figure import Figure

from experiments.seeds import SEEDS, chosen, scores_of, spread
from wsol_jax.command_line import WORKDIR, run_command
from wsol_jax.config import Config, ConfigError, read_config
from wsol_jax.presets import config_file
from wsol_jax.report.table import heading, markdown
from wsol_jax.workdir import write_text

_CONFIGS = flags.DEFINE_list('configs', None, 'Config files of several variants.')
_VARIANTS = flags.DEFINE_list('variants', [], 'Those to run; all by default.')
_SCORES = ('GTKnownLoc', 'MaxBoxAccV2', 'Top1Loc')
_COLOURS = ('#D55E00', '#56B4E9', '#009E73', '#0072B2', '#CC79A7', '#E69F00')

# Scores of the seeds of a variant: {map: {score: [one a seed]}}; its layers are under 'layer'.
Scores = Mapping[str, Mapping[str, Sequence[Any]]]


def experiments_of(files: Sequence[str]) -> dict[str, tuple[Config, str]]:
    """{variant: (its experiment, the variant that it starts from or '')} of config files.

    Raises:
        ConfigError: a file is missing, or has no variants.
    """
    found = {}
    for file in files:
        module = runpy.run_path(str(config_file(file)))
        if 'VARIANTS' not in module:
            raise ConfigError(f'--configs: {file} has no VARIANTS')
        starts = module.get('STARTS', {})
        for name in module['VARIANTS']:
            found[name] = (read_config(module['get_config'](name)), starts.get(name, ''))
    return found


def asked() -> dict[str, tuple[Config, str]]:
    """Those of `experiments_of` that --configs and --variants name.

    Raises:
        ConfigError: there is no such variant.
    """
    known = experiments_of(_CONFIGS.value)
    return {name: known[name] for name in chosen('variant in --variants', _VARIANTS.value, known)}


def config_of_seed(config: Config, start: str, folder: Path, seed: int) -> Config:
    """The experiment with a seed, starting from the same seed of another variant."""
    train = config.train
    if start:
        train = dataclasses.replace(train, init_from=str(folder / start / f'seed_{seed}'))
    return dataclasses.replace(config, seed=seed, train=train)


def scores_of_seeds(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """`Scores` of what metrics.json holds, one for each seed."""
    found: dict[str, dict[str, list[Any]]] = {}
    for run in runs:
        for row in run['localization']:
            if row['split'] == run['split'] and row.get('chosen'):
                values = found.setdefault(row['method'], {n: [] for n in ('layer', *_SCORES)})
                for name, all_of_it in values.items():
                    all_of_it.append(row[name])
    return found


def table(results: Mapping[str, tuple[Sequence[float], Scores]]) -> str:
    """Markdown: a row for each map of each variant.

    Args:
        results: {variant: (top-1 accuracy of each seed, its scores)}.
    """
    lines = [['training', 'seeds', 'top-1', 'map', 'layer', *map(heading, _SCORES)]]
    for variant, (accuracies, scores) in results.items():
        told = [variant, str(len(accuracies)), spread(accuracies)]
        for method, values in scores.items():
            layers = ', '.join(dict.fromkeys(values['layer']))
            lines.append([*told, method, layers, *(spread(values[s]) for s in _SCORES)])
            told = ['', '', '']
    return '\n\n'.join([markdown(lines), _NOTE])


_NOTE = (
    'Percent of test, mean ± sample standard deviation over the seeds. Checkpoint, layer and '
    'threshold chosen on val. * best threshold on this split (an oracle).'
)


def plot(results: Mapping[str, tuple[Sequence[float], Scores]], file: Path) -> None:
    """GT-known Loc of every map of every variant: mean and standard deviation."""
    own = {m for _, scores in results.values() for m, v in scores.items() if 'head' in v['layer']}
    maps = list(dict.fromkeys(m for _, scores in results.values() for m in scores))
    others = [m for m in maps if m not in own]
    names = list(results)
    figure = Figure(figsize=(7, 1.2 + 0.42 * len(names)), layout='constrained')
    axes = figure.subplots()
    for method, colour in zip(('its own map', *others), _COLOURS, strict=False):
        points = [
            (row, values['GTKnownLoc'])
            for row, (_, scores) in enumerate(results.values())
            for name, values in scores.items()
            if name == method or (method == 'its own map' and name in own)
        ]
        if points:
            rows, values = zip(*points, strict=True)
            means = [statistics.mean(v) for v in values]
            errors = [statistics.stdev(v) if len(v) > 1 else 0 for v in values]
            axes.errorbar(means, rows, xerr=errors, fmt='o', color=colour, label=method, capsize=3)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel='GT-known Loc on test (%), mean and standard deviation')
    axes.grid(axis='x', color='#dddddd')
    axes.spines[['top', 'right']].set_visible(False)
    figure.legend(loc='outside upper center', ncols=3, frameon=False)
    figure.savefig(file, dpi=150)


def main(_: Sequence[str]) -> None:
    """Runs what is missing, then prints and writes the table and the figure."""
    logging.set_verbosity(logging.WARNING)
    folder, results = Path(WORKDIR.value), {}
    for variant, (config, start) in asked().items():
        runs = [
            scores_of(config_of_seed(config, start, folder, k), folder / variant / f'seed_{k}')
            for k in range(SEEDS.value)
        ]
        accuracies = [run['classification']['top1'] for run in runs]
        results[variant] = accuracies, scores_of_seeds(runs)
    write_text(folder / 'trained_methods.md', (text := table(results)) + '\n')
    plot(results, folder / 'trained_methods.png')
    print(text)


if __name__ == '__main__':
    flags.mark_flags_as_required(['configs', 'workdir'])
    run_command(main)

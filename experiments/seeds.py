"""One experiment with several seeds: mean and standard deviation of its scores.

    python -m experiments.seeds --config configs/X.py --workdir DIR [--seeds 3] [--config.key=value]

Runs the experiment in DIR/seed_0, DIR/seed_1, ...; a seed that is finished is not run again. Prints
the table and writes it to DIR/seeds.md: every method with the layer and the threshold chosen on
val, anew for each seed. The seed also draws the generated images of the source 'shapes'.
"""

import dataclasses
import statistics
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging

from wsol_jax.command_line import CONFIG, WORKDIR, run_command
from wsol_jax.config import Config, ConfigError, read_config
from wsol_jax.names import unknown_name
from wsol_jax.report.table import columns, heading, markdown
from wsol_jax.run import run
from wsol_jax.workdir import locked, open_workdir, read_json, write_text

SEEDS = flags.DEFINE_integer('seeds', 3, 'How many seeds: 0, 1, ...', lower_bound=1)
_RESULTS = ('metrics.json', 'report.html')


def chosen(what: str, names: Sequence[str], known: Collection[str]) -> list[str]:
    """The names that a flag has, or all of the known ones.

    Args:
        what: these are called, with the flag.
        names: of the flag.
        known: those that there are.

    Raises:
        ConfigError: there is no such one.
    """
    for name in names:
        if name not in known:
            raise ConfigError(unknown_name(what, name, known))
    return list(names or known)


def scores_of(config: Config, workdir: Path) -> dict[str, Any]:
    """What metrics.json holds, after a run of the experiment where it is not finished yet."""
    with locked(workdir):
        open_workdir(workdir, config)  # refuses other settings, forgets scores of others
    if not all((workdir / name).exists() for name in _RESULTS):
        run(config, workdir)
    return read_json(workdir / 'metrics.json')


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row for each method, mean ± sample standard deviation over the runs.

    Args:
        runs: what metrics.json holds, one for each seed.
    """
    split = runs[0]['split']
    rows = [
        {r['method']: r for r in run['localization'] if r['split'] == split and r.get('chosen')}
        for run in runs
    ]
    if not rows[0]:
        raise ConfigError(f'{split}: no layer was chosen; is evaluate.choose_on among the splits?')
    scores = columns([row for seed in rows for row in seed.values()])
    lines = [['method', 'layer of each seed', *map(heading, scores)]]
    for method in rows[0]:
        layers = ', '.join(seed[method]['layer'] for seed in rows)
        numbers = [spread([seed[method][s] for seed in rows]) for s in scores]
        lines.append([method, layers, *numbers])
    return '\n\n'.join([_title(runs), markdown(lines), _NOTE])


_NOTE = (
    'Percent, mean ± sample standard deviation over the seeds. Layer and threshold chosen on val '
    'for each seed. * best threshold on this split (an oracle).'
)


def _title(runs: Sequence[dict[str, Any]]) -> str:
    accuracies = [run['classification'] for run in runs]
    parts = [f'{name} {spread([a[name] for a in accuracies])} %' for name in accuracies[0]]
    return ', '.join([f'{runs[0]["split"]}, {len(runs)} seeds', *parts])


def spread(values: Sequence[float]) -> str:
    """'mean ± sample standard deviation', the mean alone of a single value."""
    mean = f'{statistics.mean(values):.1f}'
    return f'{mean} ± {statistics.stdev(values):.1f}' if len(values) > 1 else mean


def main(_: Sequence[str]) -> None:
    """Runs what is missing, then prints and writes the table."""
    logging.set_verbosity(logging.WARNING)
    config, folder = read_config(CONFIG.value), Path(WORKDIR.value)
    runs = [
        scores_of(dataclasses.replace(config, seed=seed), folder / f'seed_{seed}')
        for seed in range(SEEDS.value)
    ]
    text = table(runs)
    write_text(folder / 'seeds.md', text + '\n')
    print(text)


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdir'])
    run_command(main)

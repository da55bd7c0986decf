"""The command: `python -m wsol_jax.main --config configs/X.py --workdir DIR`.

Runs the stages of the config in order; what the workdir holds already is not done again.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from wsol_jax.config import Config, ConfigError, read_config
from wsol_jax.data import Source, open_source
from wsol_jax.evaluation.stage import evaluate
from wsol_jax.localization.stage import localize_split
from wsol_jax.models import Network, load_network
from wsol_jax.report.stage import report
from wsol_jax.training.loop import train, trained_network
from wsol_jax.workdir import open_workdir, read_json

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Config file, as FILE.py[:variant].')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder for everything the run writes.')


def run(config: Config, workdir: Path) -> None:
    """Runs the stages of an experiment.

    Args:
        config: the experiment.
        workdir: where its results go, and where they are taken up again.
    """
    open_workdir(workdir, config)
    if 'train' in config.stages:
        train(config, open_split(config, 'train'), open_split(config, 'val'), workdir)
    if 'localize' in config.stages:
        network = load_classifier(config, workdir)
        for split in config.localize.splits:
            localize_split(config, network, open_split(config, split), split, workdir)
    if 'evaluate' in config.stages and not (workdir / 'metrics.json').exists():
        evaluate(config, {s: open_split(config, s) for s in config.localize.splits}, workdir)
    if 'report' in config.stages:
        metrics = workdir / 'metrics.json'
        if not metrics.exists():
            raise ConfigError(f'{metrics} is missing; run the stage evaluate before report')
        split = config.localize.splits[-1]
        print(report(config, read_json(metrics), open_split(config, split), workdir))


def open_split(config: Config, split: str) -> Source:
    """The images of one split of the experiment's data set."""
    data = config.data
    if data.source == 'shapes':
        names = ('train', 'val', 'test')
        if split not in names or len(data.shapes_counts) != len(names):
            raise ConfigError(f'shapes has the splits {names} and as many counts; no {split!r}')
        count = data.shapes_counts[names.index(split)]
        options = {'count': count, 'size': data.shapes_size, 'seed': config.seed}
        return open_source('shapes', '', split, **options)
    options = {'class_index': data.class_index} if data.source == 'wsol_folder' else {}
    return open_source(data.source, data.root, split, **options)


def load_classifier(config: Config, workdir: Path) -> Network:
    """The network trained in the workdir, or the one of `network.weights`.

    Raises:
        ConfigError: there is neither.
    """
    net = config.network
    if (workdir / 'checkpoints').exists():
        num_classes = open_split(config, 'train').num_classes
        if network := trained_network(config, num_classes, workdir):
            return network
    if not net.weights:
        raise ConfigError(
            f'no classifier to localize with: {workdir} holds no checkpoint and '
            "config.network.weights is empty; add 'train' to config.stages or give weights"
        )
    return load_network(net.name, net.weights, seed=config.seed, **net.options)


def _main(arguments: Sequence[str]) -> None:
    if len(arguments) > 1:
        raise app.UsageError(f'unexpected argument {arguments[1]!r}; write --config.key=value')
    if _CONFIG.value is None or _WORKDIR.value is None:
        raise app.UsageError('both --config and --workdir are required')
    logging.set_verbosity(logging.WARNING)  # orbax reports every file at INFO
    run(read_config(_CONFIG.value), Path(_WORKDIR.value))


def main() -> None:
    """Entry point: errors of the user become one line and exit code 2."""
    try:
        app.run(_main, flags_parser=lambda argv: flags.FLAGS(argv, known_only=False))
    except KeyboardInterrupt:
        print('interrupted; the same command goes on from here', file=sys.stderr)
        sys.exit(130)
    except (ValueError, AttributeError, TypeError, KeyError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)


if __name__ == '__main__':
    main()

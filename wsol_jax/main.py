"""Weakly supervised object localization: trains, localizes, scores and reports.

    wsol --config CONFIG[:VARIANT] --workdir DIR [--config.KEY=VALUE ...]
    wsol --help
    wsol --version

`python -m wsol_jax.main` is the same command. CONFIG is a file, or else the
name of a shipped config; values of single settings go behind it. Runs the
stages of the config in order; what DIR holds already is not done again.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import logging

from wsol_jax.command_line import (
    CONFIG,
    COORDINATOR,
    NUM_PROCESSES,
    PROCESS_ID,
    WORKDIR,
    run_command,
)
from wsol_jax.config import ConfigError, read_config
from wsol_jax.hosts import join
from wsol_jax.run import run


def _main(arguments: Sequence[str]) -> None:
    if len(arguments) > 1:
        raise ConfigError(f'unexpected argument {arguments[1]!r}; write --config.key=value')
    if not (CONFIG.present and WORKDIR.value):
        raise ConfigError('both are needed: --config CONFIG and --workdir DIR; see --help')
    logging.set_verbosity(logging.WARNING)  # orbax reports every file at INFO
    join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    run(read_config(CONFIG.value), Path(WORKDIR.value))


def main() -> None:
    """Entry point."""
    run_command(_main)


if __name__ == '__main__':
    main()

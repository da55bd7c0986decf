"""Every benchmark of the project: one command, one JSON, one table.

    python -m experiments.benchmark --workdir DIR [--only maps,evaluation] [--torch VENV]

Cases of a section take turns, so that a load of the machine hits all alike; values are medians over
the turns, and so are the ratios of each turn. DIR/benchmark.json and DIR/benchmark.md are written
after each section; sections that are there already stay unless they are run again.

--torch is a virtual environment with torch, torchvision, grad-cam and safetensors, which the
sections `libraries` and `photo` need.
"""

import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags, logging

from experiments.benchmark import (
    evaluation,
    libraries,
    maps,
    memory,
    photo,
    pipeline,
    start,
    training,
)
from experiments.benchmark.turns import Row
from wsol_jax.command_line import WORKDIR, run_command
from wsol_jax.config import ConfigError
from wsol_jax.names import unknown_name
from wsol_jax.report.table import markdown
from wsol_jax.workdir import environment, read_json, write_text

_ONLY = flags.DEFINE_list('only', [], 'Sections to run; all by default.')
_TORCH = flags.DEFINE_string('torch', '', 'Virtual environment with torch and grad-cam.')
_REPEATS = flags.DEFINE_integer('repeats', 3, 'Turns that are counted.', lower_bound=1)

# Turns -> rows.
Section = Callable[[int], Iterable[Row]]
SECTIONS: dict[str, Section] = {
    'maps': maps.section,
    'pipeline': pipeline.section,
    'training': training.section,
    'evaluation': evaluation.section,
    'start': start.section,
    'memory': memory.section,
}
WITH_TORCH = {'libraries': libraries.section, 'photo': photo.section}


def asked(only: Sequence[str], venv: str) -> dict[str, Section]:
    """The sections to run.

    Raises:
        ConfigError: there is no such section, or no environment for it.
    """
    known = SECTIONS | {name: partial(s, venv=venv) for name, s in WITH_TORCH.items()}
    for name in only:
        if name not in known:
            raise ConfigError(unknown_name('section in --only', name, known))
        if name in WITH_TORCH and not venv:
            raise ConfigError(f'--only={name} needs --torch, an environment with torch')
    return {name: known[name] for name in only or (known if venv else SECTIONS)}


def machine() -> dict[str, Any]:
    """What the numbers are of."""
    return {
        'processor': processor(),
        'cores': len(os.sched_getaffinity(0)),
        'memory_gib': round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30),
        'system': platform.platform(),
        **environment(),
    }


def processor() -> str:
    """The name of the processor, as Linux tells it."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text('utf-8').splitlines() if info.exists() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: what the numbers are of, and a row for each case.

    Args:
        results: {section: {'machine': .., 'rows': [..]}}.
    """
    told = {name: _told(result['machine']) for name, result in results.items()}
    lines = [
        f'{", ".join(name for name in told if told[name] == text)}: {text}'
        for text in dict.fromkeys(told.values())
    ]
    cells = [['section', 'case', 'median', 'ratio', 'lowest to highest', 'of']]
    for name, result in results.items():
        cells += [[name, *_cells(row)] for row in result['rows']]
    return '\n\n'.join([*lines, markdown(cells)])


def _told(facts: Mapping[str, Any]) -> str:
    versions = ', '.join(f'{name} {version}' for name, version in facts['versions'].items())
    where = f'{facts["processor"]}, {facts["cores"]} cores, {facts["memory_gib"]} GiB'
    return f'{where}, {", ".join(facts["devices"])}; {versions}, git {facts["git"]}.'


def _cells(row: Mapping[str, Any]) -> list[str]:
    ratio = '' if row['ratio'] is None else f'{row["ratio"]:.2f}'
    spread = ' to '.join(f'{end:.2f}' for end in row['spread'])
    return [row['case'], f'{row["value"]:.4g} {row["unit"]}', ratio, spread, row['of']]


def run(folder: Path, sections: Mapping[str, Section], repeats: int) -> None:
    """Runs sections, prints their rows as they come, and writes all that the folder has."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / 'benchmark.json'
    results = read_json(file) if file.exists() else {}
    for name, section in sections.items():
        found = []
        for row in map(asdict, section(repeats)):
            found.append(row)
            print(name, *filter(None, _cells(row)), sep=' | ', flush=True)
        results[name] = {'machine': machine(), 'rows': found}
        write_text(file, json.dumps(results, indent=2) + '\n')
        write_text(folder / 'benchmark.md', table(results) + '\n')


def main(_: Sequence[str]) -> None:
    """Runs what is asked for."""
    logging.set_verbosity(logging.WARNING)
    run(Path(WORKDIR.value), asked(_ONLY.value, _TORCH.value), _REPEATS.value)
    if not (_ONLY.value or _TORCH.value):
        print(f'{", ".join(WITH_TORCH)}: skipped, --torch names no environment with torch')


if __name__ == '__main__':
    flags.mark_flags_as_required(['workdir'])
    run_command(main)

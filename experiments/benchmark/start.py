"""How long it takes to import the package, and to the first map, in processes of their own."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

from experiments.benchmark.turns import Row, rows, take_turns, timed

NETWORKS = ('inception_v3', 'mobilenet_v1')
IMPORTS = {
    'python': 'pass',
    'import wsol_jax': 'import wsol_jax',
    'import localize and load_network': 'from wsol_jax import load_network, localize',
}
FIRST_MAP = """
import numpy as np
from wsol_jax import load_network, localize
network = load_network({network!r})
found = localize(network, np.zeros((1, *network.input_shape), np.uint8))
np.asarray(found.maps[next(iter(found.maps))])
"""
_CACHE = 'JAX_COMPILATION_CACHE_DIR'
# Small programs, too: there are many of them before the first map.
_ALL_OF_IT = {
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
}


def section(repeats: int, networks: Sequence[str] = NETWORKS) -> Iterator[Row]:
    """Rows of the imports and of DGL's first maps, of random weights."""
    plain = {k: v for k, v in os.environ.items() if k != _CACHE}
    imports = {case: timed(lambda c=code: run(c, plain)) for case, code in IMPORTS.items()}
    yield from rows(take_turns(imports, repeats), 'python', 's')
    for network in networks:
        code = FIRST_MAP.format(network=network)
        with tempfile.TemporaryDirectory() as cache:
            # The turn that is not counted fills it.
            cached = plain | _ALL_OF_IT | {_CACHE: cache}
            cases = {
                'first map': timed(lambda c=code: run(c, plain)),
                'first map, programs cached': timed(lambda c=code, e=cached: run(c, e)),
            }
            yield from rows(take_turns(cases, repeats), 'first map', 's', where=f'{network}: ')


def run(code: str, environment: dict[str, str]) -> None:
    """Runs Python code in a process of its own."""
    subprocess.run([sys.executable, '-c', code], check=True, env=environment)

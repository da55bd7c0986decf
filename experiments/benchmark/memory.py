"""Peak memory of maps, for each batch and number of endpoints.

    python -m experiments.benchmark.memory NETWORK BATCH ENDPOINTS

Computes DGL's maps once and prints, in JSON, what the compiled program says it needs, and the most
that the process had resident.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from experiments.benchmark.maps import BATCHES, COUNTS, deepest, random_images
from experiments.benchmark.turns import Row
from wsol_jax.localization.localize import compute_maps
from wsol_jax.localization.plan import make_plan
from wsol_jax.models import Network, load_network

NETWORKS = ('inception_v3', 'resnet50')
_MIB = 2**20


def section(
    repeats: int,
    networks: Sequence[str] = NETWORKS,
    batches: Sequence[int] = BATCHES,
    counts: Sequence[int] = COUNTS,
) -> Iterator[Row]:
    """Rows of every network, batch and count; the ratios are of the smallest count."""
    del repeats  # it is the same each time
    for name in networks:
        for batch in batches:
            found = {count: in_a_process(name, batch, count) for count in counts}
            yield from table(f'{name}, batch {batch}', found)


def table(where: str, found: dict[int, dict[str, int]]) -> Iterator[Row]:
    """Rows of what `measure` found for each number of endpoints."""
    first = min(found)
    for count, sizes in found.items():
        for what, size in sizes.items():
            case = f'{where}, {count} endpoint{"s" * (count > 1)}: {what}'
            ratio = (size / found[first][what], f'{first} endpoint') if count != first else ()
            yield Row(case, size / _MIB, 'MiB', *ratio)


def in_a_process(name: str, batch: int, count: int) -> dict[str, int]:
    """What `measure` finds in a process of its own."""
    command = [sys.executable, '-m', __name__, name, str(batch), str(count)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def measure(network: Network, images: jax.Array, count: int) -> dict[str, int]:
    """Bytes: intermediate values and results of the program, and the most the process had."""
    plan = make_plan(network, ('dgl',), deepest(network, count))
    arguments: tuple[Any, ...] = (network.state, images, 1)
    lowered = compute_maps.lower(network.apply, network.preprocessing, plan, *arguments)
    program = lowered.compile()
    sizes = program.memory_analysis()
    jax.block_until_ready(program(network.state, images))
    return {
        'program': sizes.temp_size_in_bytes + sizes.output_size_in_bytes,
        'process': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == '__main__':
    loaded = load_network(sys.argv[1])
    print(json.dumps(measure(loaded, random_images(loaded, int(sys.argv[2])), int(sys.argv[3]))))

"""What a localization map at every layer costs, as a multiple of one forward pass.

    python experiments/speed_layers.py [--network inception_v3] [--batch_size 4] [--repeats 10]

Prints the medians of one process: the forward pass alone, then forward plus pull-backs plus DGL
maps for a growing number of endpoints, counted from the last one back; then all methods that share
DGL's pull-backs at all endpoints, as a multiple of DGL alone.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

import wsol_jax
from wsol_jax.localization.localize import compute_maps
from wsol_jax.localization.plan import make_plan

_NETWORK = flags.DEFINE_string('network', 'inception_v3', 'Name of the network.')
_BATCH = flags.DEFINE_integer('batch_size', 4, 'Images in the batch.')
_SIZE = flags.DEFINE_integer('size', 224, 'Side of the images in pixels.')
_REPEATS = flags.DEFINE_integer('repeats', 10, 'Runs that the median is taken over.')

SHARED = (
    *('dgl', 'sgl_g1', 'sgl_g2', 'cam', 'grad_cam', 'grad_cam_pp', 'xgrad_cam', 'hires_cam'),
    *('grad_cam_elementwise', 'layer_cam'),
)


def seconds(functions: list[Callable[[], Any]], repeats: int) -> np.ndarray:
    """[functions] median seconds; the functions take turns, so that noise hits all alike."""
    times = np.zeros((repeats + 1, len(functions)))
    for turn in times:
        for i, function in enumerate(functions):
            start = time.perf_counter()
            jax.block_until_ready(function())
            turn[i] = time.perf_counter() - start
    return np.median(times[1:], axis=0)  # the first turn compiles


def main(_: list[str]) -> None:
    """Times and prints the table."""
    network = wsol_jax.load_network(_NETWORK.value)
    shape = (_BATCH.value, _SIZE.value, _SIZE.value, 3)
    images = jax.device_put(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8))
    forward = jax.jit(lambda state, x: network.apply(state, network.preprocessing(x))[0])
    layers = network.layers()
    counts = [n for n in (1, 2, 4, 6, 8) if n < len(layers)] + [len(layers)]

    def maps(count: int, methods: Sequence[str] = ('dgl',)) -> Callable[[], Any]:
        plan = make_plan(network, methods, layers[-count:])
        return lambda: compute_maps(
            network.apply, network.preprocessing, plan, network.state, images, 1
        )

    functions = [lambda: forward(network.state, images), *map(maps, counts)]
    functions.append(maps(len(layers), SHARED))
    forward_time, *map_times, shared_time = seconds(functions, _REPEATS.value)
    print(f'{network.name}, {jax.devices()[0].device_kind}, images {list(shape)}')
    print(f'forward {1e3 * forward_time:.0f} ms, {len(images) / forward_time:.1f} images/s')
    print('endpoints  earliest   ms      of a forward')
    for count, spent in zip(counts, map_times, strict=True):
        ratio = spent / forward_time
        print(f'{count:9d}  {layers[-count]:9s}  {1e3 * spent:6.0f}  {ratio:.2f}')
    ratio = shared_time / map_times[-1]
    print(f'{len(SHARED)} methods at {len(layers)} endpoints: {ratio:.2f} of DGL alone')


if __name__ == '__main__':
    app.run(main)

"""Localization maps at more and more endpoints, against one forward pass."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from experiments.benchmark.turns import Row, rows, take_turns, timed
from wsol_jax.localization.localize import compute_maps
from wsol_jax.localization.plan import make_plan
from wsol_jax.models import Network, load_network

NETWORKS = ('inception_v3', 'resnet50', 'mobilenet_v1')
BATCHES = (4, 32)
COUNTS = (1, 3, 10)
# Methods that share DGL's forward pass and pull-backs.
FAMILY = (
    *('dgl', 'sgl_g1', 'sgl_g2', 'grad_cam', 'grad_cam_pp', 'xgrad_cam', 'hires_cam'),
    *('grad_cam_elementwise', 'layer_cam'),
)
# At every count of endpoints, and at the largest alone.
METHODS = {'dgl': ('dgl',), 'layer_cam': ('layer_cam',)}
AT_MOST = {
    'grad_cam': ('grad_cam',),
    'hires_cam': ('hires_cam',),
    f'{len(FAMILY)} methods': FAMILY,
}


def section(
    repeats: int, networks: Sequence[str] = NETWORKS, batches: Sequence[int] = BATCHES
) -> Iterator[Row]:
    """Rows of every network and batch."""
    for name in networks:
        network = load_network(name)
        for batch in batches:
            yield from against_forward(network, random_images(network, batch), repeats)


def random_images(network: Network, count: int) -> jax.Array:
    """uint8 noise of the network's input size, on the device."""
    shape = (count, *network.input_shape)
    return jax.device_put(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


def against_forward(
    network: Network, images: jax.Array, repeats: int, counts: Sequence[int] = COUNTS
) -> list[Row]:
    """Rows of one network and batch; the ratios are of its forward pass."""
    where = f'{network.name}, batch {len(images)}: '
    counts = [n for n in counts if n <= len(deepest(network))]
    asked = [(name, methods, n) for name, methods in METHODS.items() for n in counts]
    asked += [(name, methods, counts[-1]) for name, methods in AT_MOST.items()]
    cases = {'forward': timed(forward(network, images), len(images))}
    for name, methods, n in asked:
        run = maps(network, images, methods, deepest(network, n))
        cases[f'{name} at {n} endpoint{"s" * (n > 1)}'] = timed(run, len(images))
    return rows(take_turns(cases, repeats), 'forward', where=where)


def forward(network: Network, images: jax.Array) -> Callable[[], Any]:
    """The logits, from images, as a compiled program."""
    program = jax.jit(lambda state, x: network.apply(state, network.preprocessing(x))[0])
    return lambda: program(network.state, images)


def maps(
    network: Network,
    images: jax.Array,
    methods: Sequence[str],
    layers: Sequence[str],
    **options: Any,
) -> Callable[[], Any]:
    """The maps of the class with the highest logit, as `localize` computes them."""
    plan = make_plan(network, methods, layers, **options)
    return lambda: compute_maps(
        network.apply, network.preprocessing, plan, network.state, images, 1
    )


def deepest(network: Network, count: int | None = None) -> tuple[str, ...]:
    """The last endpoints, from input to output; of a residual network its blocks.

    Args:
        network: the classifier.
        count: how many; None for all.
    """
    blocks = tuple(name for name in network.endpoints() if '/block' in name)
    return (blocks or network.layers())[-count if count else None :]

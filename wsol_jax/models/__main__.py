"""Lists the networks and their endpoints: `python -m wsol_jax.models [NAME] [--size 224]`."""

import argparse
from collections.abc import Sequence

from flax import nnx

from wsol_jax.interrupts import readers_may_leave
from wsol_jax.models.network import Network, sides
from wsol_jax.models.zoo import DEFAULT_CLASSES, NETWORKS, RECIPES, build

SMALLEST = 64


def describe(name: str, size: int | None = None) -> str:
    """A table of a network's endpoints, height, width and channels, from input to output.

    Args:
        name: one of NETWORKS.
        size: side of the input in pixels; None is the network's own.

    Raises:
        ValueError: an unknown name.
    """
    module = nnx.eval_shape(lambda: build(name, DEFAULT_CLASSES, nnx.Rngs(0)))
    recipe = RECIPES[name]
    network = Network.from_module(
        module, name=name, preprocessing=recipe.preprocessing, input_size=recipe.input_size
    )
    endpoints = network.endpoints(size)
    height, width = sides(size or network.input_size)
    longest = max(map(len, endpoints))
    rows = [f'  {key:{longest}}  {h:>4} x{w:>4} x{k:>5}' for key, (h, w, k) in endpoints.items()]
    return '\n'.join([f'{name}, input {height} x {width}, last layer {network.last_layer}', *rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one network, or every one; a wrong argument exits with code 2."""
    parser = argparse.ArgumentParser(prog='python -m wsol_jax.models', description=__doc__)
    parser.add_argument('name', nargs='?', metavar='NAME', help=', '.join(NETWORKS))
    parser.add_argument('--size', type=int, help='side of the input in pixels')
    chosen = parser.parse_args(arguments)
    if chosen.size is not None and chosen.size < SMALLEST:
        parser.error(f'--size {chosen.size}; it must be at least {SMALLEST}')
    try:
        names = [chosen.name] if chosen.name else NETWORKS
        with readers_may_leave():
            print('\n\n'.join(describe(name, chosen.size) for name in names))
    except ValueError as error:
        parser.error(str(error))


if __name__ == '__main__':
    main()

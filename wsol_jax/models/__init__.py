"""Networks that show their endpoints, and their weights."""

from wsol_jax.models.adapters import from_function, from_linen, from_nnx
from wsol_jax.models.network import Network, Preprocessing, sides
from wsol_jax.models.zoo import (
    NETWORKS,
    as_network,
    build,
    fill_module,
    load_module,
    load_network,
)

__all__ = [
    'NETWORKS',
    'Network',
    'Preprocessing',
    'as_network',
    'build',
    'fill_module',
    'from_function',
    'from_linen',
    'from_nnx',
    'load_module',
    'load_network',
    'sides',
]

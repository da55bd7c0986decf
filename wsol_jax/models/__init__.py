"""Networks that show their endpoints, and their weights."""

from wsol_jax.models.adapters import from_function, from_linen, from_nnx
from wsol_jax.models.network import Network, sides
from wsol_jax.models.preprocessing import PREPROCESSINGS, Preprocessing
from wsol_jax.models.published import cached_weights, local_weights
from wsol_jax.models.zoo import (
    NETWORKS,
    as_network,
    build,
    fill_module,
    find_preprocessing,
    load_module,
    load_network,
)

__all__ = [
    'NETWORKS',
    'PREPROCESSINGS',
    'Network',
    'Preprocessing',
    'as_network',
    'build',
    'cached_weights',
    'fill_module',
    'find_preprocessing',
    'from_function',
    'from_linen',
    'from_nnx',
    'load_module',
    'load_network',
    'local_weights',
    'sides',
]

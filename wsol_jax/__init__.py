"""Weakly supervised object localization in JAX/Flax: maps, boxes and scores from image labels."""

from wsol_jax.evaluation.boxes import boxes_from_map
from wsol_jax.localization.gradients import Method
from wsol_jax.localization.localize import Localization, localize
from wsol_jax.localization.maps import score_map
from wsol_jax.localization.methods import METHODS
from wsol_jax.models import NETWORKS, Network, Preprocessing, load_network

__all__ = [
    'METHODS',
    'NETWORKS',
    'Localization',
    'Method',
    'Network',
    'Preprocessing',
    'boxes_from_map',
    'load_network',
    'localize',
    'score_map',
]

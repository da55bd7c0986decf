"""Weakly supervised object localization in JAX/Flax: maps, boxes and scores from image labels."""

from wsol_jax.evaluation.boxes import boxes_from_map
from wsol_jax.evaluation.faithfulness import faithfulness
from wsol_jax.exported import export, load_exported
from wsol_jax.localization.gradients import Method, Run
from wsol_jax.localization.localize import Localization, localize
from wsol_jax.localization.maps import score_map
from wsol_jax.localization.methods import METHODS
from wsol_jax.localization.targets import SCORES, FinerCAM
from wsol_jax.models import (
    NETWORKS,
    Network,
    Preprocessing,
    from_function,
    from_linen,
    from_nnx,
    load_network,
)
from wsol_jax.report.show import show

__all__ = [
    'METHODS',
    'NETWORKS',
    'SCORES',
    'FinerCAM',
    'Localization',
    'Method',
    'Network',
    'Preprocessing',
    'Run',
    'boxes_from_map',
    'export',
    'faithfulness',
    'from_function',
    'from_linen',
    'from_nnx',
    'load_exported',
    'load_network',
    'localize',
    'score_map',
    'show',
]

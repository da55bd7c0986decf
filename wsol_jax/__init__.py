"""Weakly supervised object localization in JAX/Flax: maps, boxes and scores from image labels."""

from typing import TYPE_CHECKING

from wsol_jax.names import lazy

if TYPE_CHECKING:
    from wsol_jax.evaluation.faithfulness import faithfulness
    from wsol_jax.exported import export, load_exported
    from wsol_jax.localization.folder import localize_folder
    from wsol_jax.localization.localize import localize
    from wsol_jax.localization.method import Method, Run
    from wsol_jax.localization.methods import METHODS
    from wsol_jax.localization.targets import SCORES, FinerCAM, Region, Similarity
    from wsol_jax.maps.box_files import write_boxes, write_coco
    from wsol_jax.maps.boxes import boxes_from_map
    from wsol_jax.maps.result import Localization
    from wsol_jax.maps.score import score_map
    from wsol_jax.models import (
        NETWORKS,
        Network,
        Preprocessing,
        from_function,
        from_linen,
        from_nnx,
    )
    from wsol_jax.pictures import overlay, show
    from wsol_jax.training.trained import load_network

__version__ = '0.2.0'

__all__ = [
    'METHODS',
    'NETWORKS',
    'SCORES',
    'FinerCAM',
    'Localization',
    'Method',
    'Network',
    'Preprocessing',
    'Region',
    'Run',
    'Similarity',
    'boxes_from_map',
    'export',
    'faithfulness',
    'from_function',
    'from_linen',
    'from_nnx',
    'load_exported',
    'load_network',
    'localize',
    'localize_folder',
    'overlay',
    'score_map',
    'show',
    'write_boxes',
    'write_coco',
]

# Scores of maps on disk are counted in processes that need no JAX.
__getattr__, __dir__ = lazy(
    __name__,
    {
        'METHODS': 'localization.methods',
        'NETWORKS': 'models',
        'SCORES': 'localization.targets',
        'FinerCAM': 'localization.targets',
        'Localization': 'maps.result',
        'Method': 'localization.method',
        'Network': 'models',
        'Preprocessing': 'models',
        'Region': 'localization.targets',
        'Run': 'localization.method',
        'Similarity': 'localization.targets',
        'boxes_from_map': 'maps.boxes',
        'export': 'exported',
        'faithfulness': 'evaluation.faithfulness',
        'from_function': 'models',
        'from_linen': 'models',
        'from_nnx': 'models',
        'load_exported': 'exported',
        'load_network': 'training.trained',
        'localize': 'localization.localize',
        'localize_folder': 'localization.folder',
        'overlay': 'pictures',
        'score_map': 'maps.score',
        'show': 'pictures',
        'write_boxes': 'maps.box_files',
        'write_coco': 'maps.box_files',
        **dict.fromkeys(('data', 'evaluation', 'localization', 'maps', 'models', 'report'), ''),
    },
)

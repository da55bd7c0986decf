"""Semantic segmentation from image labels: label maps, seeds, their refinement, scores."""

from typing import TYPE_CHECKING

from wsol_jax.data.label_maps import (
    BACKGROUND,
    IGNORED,
    label_map_of,
    read_label_map,
    true_label_map,
)
from wsol_jax.names import lazy

if TYPE_CHECKING:
    from wsol_jax.segmentation.affinity import random_walk
    from wsol_jax.segmentation.crf import DenseCRF, dense_crf
    from wsol_jax.segmentation.folders import evaluate_segmentation
    from wsol_jax.segmentation.label_maps import palette, write_label_map
    from wsol_jax.segmentation.mars import remove_bias
    from wsol_jax.segmentation.score import (
        SeedCurves,
        class_scores,
        confusion,
        metrics_of,
        scores_of,
        seed_curves,
    )
    from wsol_jax.segmentation.seeds import (
        confident_label_map,
        crf_of_places,
        joined_probabilities,
        refined_label_map,
        seed_label_map,
        seed_probabilities,
    )

__all__ = [
    'BACKGROUND',
    'IGNORED',
    'DenseCRF',
    'SeedCurves',
    'class_scores',
    'confident_label_map',
    'confusion',
    'crf_of_places',
    'dense_crf',
    'evaluate_segmentation',
    'joined_probabilities',
    'label_map_of',
    'metrics_of',
    'palette',
    'random_walk',
    'read_label_map',
    'refined_label_map',
    'remove_bias',
    'scores_of',
    'seed_curves',
    'seed_label_map',
    'seed_probabilities',
    'true_label_map',
    'write_label_map',
]

# Scores are counted in processes that need no JAX.
__getattr__, __dir__ = lazy(
    __name__,
    {
        'DenseCRF': 'crf',
        'SeedCurves': 'score',
        'class_scores': 'score',
        'confident_label_map': 'seeds',
        'confusion': 'score',
        'crf_of_places': 'seeds',
        'dense_crf': 'crf',
        'evaluate_segmentation': 'folders',
        'joined_probabilities': 'seeds',
        'metrics_of': 'score',
        'palette': 'label_maps',
        'random_walk': 'affinity',
        'refined_label_map': 'seeds',
        'remove_bias': 'mars',
        'scores_of': 'score',
        'seed_curves': 'score',
        'seed_label_map': 'seeds',
        'seed_probabilities': 'seeds',
        'write_label_map': 'label_maps',
    },
)

r"""Every training method on 10 ImageNet classes, from ImageNet weights: 1,000 training images.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/imagenette_trained.py:bas --workdir DIR
    python -m experiments.trained_methods --configs configs/imagenette_trained.py --workdir DIR

As configs/cub30_trained.py, on DATA/imagenette.
"""

import os

from ml_collections import ConfigDict

from wsol_jax.configs import cub30_trained

VARIANTS = cub30_trained.VARIANTS


def get_config(variant: str = 'plain') -> ConfigDict:
    """The experiment with one of VARIANTS."""
    config = cub30_trained.get_config(variant)
    config.data.root = f'{os.environ.get("WSOL_DATA", "data")}/imagenette'
    return config

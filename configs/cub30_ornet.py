r"""ORNet with MobileNetV1 on 30 classes of CUB-200-2011: plain training, generator, refinement.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/cub30_ornet.py:plain --workdir DIR
    WSOL_DATA=DATA python -m wsol_jax.main --config configs/cub30_ornet.py:coarse --workdir DIR1 \
        --config.train.init_from=DIR
    WSOL_DATA=DATA python -m wsol_jax.main --config configs/cub30_ornet.py:refine --workdir DIR2 \
        --config.train.init_from=DIR1

or all at once: `python -m experiments.trained_methods --configs configs/cub30_ornet.py --seeds 1
--workdir DIR`. DATA as for configs/cub30_trained.py, whose plain training this starts with.
"""

from ml_collections import ConfigDict

from configs import cub30_trained
from wsol_jax.config import ConfigError
from wsol_jax.names import unknown_name

_LAYER = {'layer': 'pw_5', 'base': 16}
# Variant -> (epochs, options of the method)
_STAGES = {
    'plain': (8, {}),
    'coarse': (6, {'stage': 1, **_LAYER}),
    'refine': (5, {'stage': 2, **_LAYER}),
}
VARIANTS = tuple(_STAGES)
STARTS = {'coarse': 'plain', 'refine': 'coarse'}


def get_config(variant: str = 'plain') -> ConfigDict:
    """The experiment with one of VARIANTS."""
    if variant not in VARIANTS:
        raise ConfigError(unknown_name('variant', variant, VARIANTS))
    config = cub30_trained.get_config('plain')
    config.train.epochs, options = _STAGES[variant]
    if options:
        config.train.method, config.train.options = 'ornet', options
        config.train.batch_size = 16
        config.train.keep = 'best_localization'
        config.localize.methods = ('ornet', 'dgl', 'layer_cam')
    return config

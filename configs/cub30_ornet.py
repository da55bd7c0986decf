r"""ORNet with MobileNetV1 on 30 classes of CUB-200-2011: plain training, generator, refinement.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/cub30_ornet.py:plain --workdir DIR
    WSOL_DATA=DATA python -m wsol_jax.main --config configs/cub30_ornet.py:coarse --workdir DIR1 \
        --config.train.init_from=DIR
    WSOL_DATA=DATA python -m wsol_jax.main --config configs/cub30_ornet.py:refine --workdir DIR2 \
        --config.train.init_from=DIR1

or all at once: `python -m experiments.trained_methods --configs configs/cub30_ornet.py --seeds 1
--workdir DIR`. DATA as for configs/cub30_trained.py, whose plain training this starts with.

Published: nothing on these 30 classes. Measured on 801 test images (one seed; threshold and epoch
chosen on val; the three commands above, with `--config.localize.methods="('ornet',)"`), GT-known
Loc / MaxBoxAccV2 of 'ornet' in % (the plain training with `--config.train.keep=best`): coarse 55.8
/ 56.3, which is what a centred box reaches; refine
66.5 / 64.4 with the epoch that is best on val, the first of five, and 55.9 / 54.5 with the last
(`--config.train.keep=last`). CAM of the plain training has 28.8 / 41.7, LayerCAM 83.8 / 79.9: ORNet
does not come near it in these few epochs. After the coarse stage the side branch, which sees what
the generator makes alone, is right on 13 % of val. What refinement does
(`python -m experiments.ornet_refinement`, experiments/figures/cub30_ornet_refinement.md): places
with values from 0.3 to 0.7 fall from 57.6 to 45.8, then to 27.2 % after the last epoch; thresholds
on the raw map (of 19) within 2 points of the best one rise from 5 to 16 % by then only, of
wsolevaluation's within 5 points from 12 to 19 %. Entropy and area, not the boxes, get better to the
end.
"""

from ml_collections import ConfigDict

from wsol_jax.config import ConfigError
from wsol_jax.configs import cub30_trained
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

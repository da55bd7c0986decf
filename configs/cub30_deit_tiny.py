r"""DeiT-Tiny on 30 classes of CUB-200-2011: SAT, TS-CAM and the plain classifier.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/cub30_deit_tiny.py:sat --workdir DIR
    python -m experiments.trained_methods --configs configs/cub30_deit_tiny.py --workdir DIR

DATA holds `cub30/` in the layout of wsolevaluation and `weights/deit_tiny_patch16_224.safetensors`
under timm's names. The variant is a name of VARIANTS. The first six blocks keep their weights, so
that a run takes minutes on two CPU cores.

Published: nothing on these 30 classes. Measured on 801 test images, one seed, SAT alone (layer and
threshold chosen on val; `--config.localize.methods="('sat','dgl','layer_cam')"`
`--config.localize.layers="('block9','block10','block11')"`; the run was interrupted once and went
on), GT-known Loc in %: SAT 82.8, DGL 51.4 at block9, LayerCAM 24.3 at block11; MaxBoxAccV2 (best
thresholds on test) 77.2, 51.9, 31.1; top-1 72.8. TS-CAM and the plain classifier: not measured.
"""

import os

from ml_collections import ConfigDict

from wsol_jax.config import ConfigError, default_config
from wsol_jax.names import unknown_name

# Variant -> train.method.
VARIANTS = {'plain': '', 'ts_cam': 'ts_cam', 'sat': 'sat'}


def get_config(variant: str = 'sat') -> ConfigDict:
    """The experiment with one of VARIANTS."""
    if variant not in VARIANTS:
        raise ConfigError(unknown_name('variant', variant, VARIANTS))
    data = os.environ.get('WSOL_DATA', 'data')
    config = default_config()
    config.data.source = 'wsol_folder'
    config.data.root = f'{data}/cub30'
    config.network.name = 'deit_tiny'
    config.network.weights = f'{data}/weights/deit_tiny_patch16_224.safetensors'
    config.train.method = VARIANTS[variant]
    config.train.epochs = 5
    config.train.batch_size = 32
    config.train.optimizer = 'adamw'
    config.train.learning_rate = 2e-4
    config.train.schedule = 'constant'
    config.train.head = 5.0
    config.train.weight_decay = 0.05
    config.train.freeze = ('cls_token', 'pos_embed', 'patch_embed', r'blocks\.[0-5]\.')
    if variant == 'sat':  # a gradient to its token would go through all that is frozen
        config.train.freeze = (*config.train.freeze, 'spatial_')
    own = (variant,) if VARIANTS[variant] else ()
    config.localize.methods = (*own, 'dgl', 'layer_cam', 'rollout')
    config.localize.layers = ('block8', 'block9', 'block10', 'block11')
    return config

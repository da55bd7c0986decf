r"""DeiT-Tiny on 30 classes of CUB-200-2011: SAT, TS-CAM and the plain classifier.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/cub30_deit_tiny.py:sat --workdir DIR
    python -m experiments.trained_methods --configs configs/cub30_deit_tiny.py --workdir DIR

DATA holds `cub30/` in the layout of wsolevaluation and `weights/deit_tiny_patch16_224.safetensors`
under timm's names. The variant is a name of VARIANTS.

Published: nothing on these 30 classes; SAT on all 200 with DeiT-S: configs/cub_deit.py. Measured on
801 test images, one seed (epoch, layer and threshold chosen on val), in %: SAT GT-known Loc 92.0
(95 % interval 90 to 94), MaxBoxAccV2 (best thresholds on test) 87.2, Top-1 Loc 66.4, top-1 72.0; of
the same network rollout 80.0, DGL 61.0 at block9, LayerCAM 24.8 at block11. Six of the ten epochs:
SAT 88.9 (87 to 91). With the first six blocks and the spatial token frozen, a rate of 2e-4 and five
epochs: 82.8. TS-CAM and the plain classifier: not measured.
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
    config.train.epochs = 10
    config.train.batch_size = 32
    config.train.optimizer = 'adamw'
    config.train.learning_rate = 1e-4
    config.train.schedule = 'constant'
    config.train.head = 5.0
    config.train.weight_decay = 0.05
    config.train.freeze = ('cls_token', 'pos_embed', 'patch_embed')
    config.train.keep = 'best_localization'
    own = (variant,) if VARIANTS[variant] else ()
    config.localize.methods = (*own, 'dgl', 'layer_cam', 'rollout')
    config.localize.layers = ('block8', 'block9', 'block10', 'block11')
    return config

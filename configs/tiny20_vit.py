r"""A small vision transformer from scratch on 20 classes of Tiny-ImageNet: SAT, TS-CAM, plain.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/tiny20_vit.py:sat --workdir DIR

DATA/tiny20 as for configs/tiny20_resnet18.py: 6,000 images of 64 x 64 pixels. Patches of 8 pixels
make 64 tokens; six blocks of width 192. The variant is a name of VARIANTS.

Published: nothing on these 20 classes. Not measured here.
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
    config = default_config()
    config.data.source = 'wsol_folder'
    config.data.root = f'{os.environ.get("WSOL_DATA", "data")}/tiny20'
    config.network.name = 'vit_tiny'
    config.network.options = {'patch': 8, 'image_size': 64, 'depth': 6}
    config.train.method = VARIANTS[variant]
    config.train.epochs = 10
    config.train.batch_size = 64
    config.train.optimizer = 'adamw'
    config.train.learning_rate = 5e-4
    config.train.weight_decay = 0.05
    own = (variant,) if VARIANTS[variant] else ()
    config.localize.methods = (*own, 'dgl', 'layer_cam', 'rollout')
    config.localize.batch_size = 100
    config.evaluate.size = 64
    return config

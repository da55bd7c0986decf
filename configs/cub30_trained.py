r"""Every training method on one network, split and budget: 30 classes of CUB-200-2011.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/cub30_trained.py:bas --workdir DIR
    python -m experiments.trained_methods --configs configs/cub30_trained.py --workdir DIR

DATA holds `cub30/` in the layout of wsolevaluation and `weights/mobilenet_v1.safetensors`.
The variant is a name of VARIANTS. MobileNetV1 starts from its ImageNet weights; `conv_0` to block 6
keep them, so that a run takes minutes on two CPU cores.

Published: nothing on these 30 classes. Measured on 801 test images (seed 0; checkpoint, layer and
threshold chosen on val), GT-known Loc in % of its own map, DGL and LayerCAM: plain 32.3 (CAM), 82.5
(pw_9), 84.8 (pw_11); acol 43.4, 84.4 (pw_10), 85.3 (pw_11); bas 87.3, 77.9, 82.9 (both pw_10).
Top-1: 65.4, 71.5, 59.2. The others: not measured with these settings.
"""

import os

from ml_collections import ConfigDict

from wsol_jax.config import ConfigError, default_config
from wsol_jax.names import unknown_name

# Variant -> train.method and its options; widths are cut down to the number of images.
_METHODS = {
    'plain': ('', {}),
    'has': ('has', {}),
    'cutmix': ('cutmix', {}),
    'adl': ('adl', {}),
    'acol': ('acol', {'width': 256}),
    'spg': ('spg', {'width': 256, 'side_width': 128, 'lower': 'pw_9', 'upper': 'pw_11'}),
    'bas': ('bas', {'width': 256, 'beta': 1.0, 'top_k': 30}),
    'ornet_coarse': ('ornet', {'layer': 'pw_5', 'base': 16}),
    'ornet': ('ornet', {'layer': 'pw_5', 'base': 16, 'stage': 2}),
}
_MAPS = ('acol', 'spg', 'bas', 'ornet')  # of the methods that have one of their own
VARIANTS = tuple(_METHODS)
# ORNet's stages start from workdirs: --config.train.init_from=DIR where one is run alone.
STARTS = {'ornet_coarse': 'plain', 'ornet': 'ornet_coarse'}


def get_config(variant: str = 'plain') -> ConfigDict:
    """The experiment with one of VARIANTS."""
    if variant not in VARIANTS:
        raise ConfigError(unknown_name('variant', variant, VARIANTS))
    data = os.environ.get('WSOL_DATA', 'data')
    config = default_config()
    config.data.source = 'wsol_folder'
    config.data.root = f'{data}/cub30'
    config.network.name = 'mobilenet_v1'
    config.network.weights = f'{data}/weights/mobilenet_v1.safetensors'
    config.train.method, config.train.options = _METHODS[variant]
    config.train.epochs = 8
    config.train.batch_size = 32
    config.train.optimizer = 'adamw'
    config.train.learning_rate = 2e-4
    config.train.head = 5.0
    config.train.freeze = ('conv_0', r'dw_[1-6]\.', r'pw_[1-6]\.')
    config.train.keep = 'best_localization'
    own = config.train.method if config.train.method in _MAPS else 'cam'
    config.localize.methods = (own, 'dgl', 'layer_cam')
    config.localize.layers = ('pw_9', 'pw_10', 'pw_11', 'pw_13')
    return config

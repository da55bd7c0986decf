r"""Every training method on one network, split and budget: 30 classes of CUB-200-2011.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/cub30_trained.py:bas --workdir DIR
    python -m experiments.trained_methods --configs configs/cub30_trained.py --workdir DIR

DATA holds `cub30/` in the layout of wsolevaluation and `weights/mobilenet_v1.safetensors`.
The variant is a name of VARIANTS. MobileNetV1 starts from its ImageNet weights; `conv_0` to block 6
keep them, so that a run takes minutes on two CPU cores.

Published: nothing on these 30 classes. Measured on 801 test images (checkpoint, layer and threshold
chosen on val), GT-known Loc in % of CAM or its own map, DGL, LayerCAM, and top-1, mean and standard
deviation of three seeds: plain 37.3 ± 1.9, 81.1 ± 0.7 (pw_9), 83.7 ± 0.9 (pw_10), 64.2 ± 3.2; acol
45.8 ± 1.9, 82.4 ± 0.6 (pw_10), 82.7 ± 0.9 (pw_11), 67.3 ± 6.2; bas 86.4 ± 2.9, 77.2 ± 3.4, 81.1 ±
4.3, 68.8 ± 8.5; adl 38.4 ± 2.2, 82.6 ± 1.7 (pw_9), 84.9 ± 1.6 (pw_11), 62.0 ± 4.9; has 27.7 ± 4.1,
67.4 ± 10.4, 68.7 ± 7.0, 30.0 ± 10.6; cutmix 30.5 ± 3.4, 68.5 ± 14.1, 71.9 ± 10.3, 34.3 ± 9.7: eight
epochs are too few for what is hidden and mixed. With seed 0 alone spg 41.7, 81.3, 83.1 (both
pw_10), 58.1, with the rates of its paper; with those of the others it diverged in its second epoch
(loss 2.0, then 8.7; accuracy 60, then 3 %). Before B2 is sure of background its mask has foreground
alone, and AdamW, which takes small gradients for large ones, drives the logits of B1 and C on
without end (5 to 29 and 3 to 121 on val images after the third epoch, a loss of 5.5 for B1).

ORNet's stages start from each other: --config.train.init_from=WORKDIR of the one before, where one
is run alone. Measured with `--config.localize.methods="('ornet',)"` (the plain training that they
start from with `--config.train.keep=best`), GT-known Loc / MaxBoxAccV2: coarse 55.8 / 56.3, which
is what a centred box reaches; then 66.5 / 64.4 with the epoch that is best on val, the first of
five, and 55.9 / 54.5 with the last (`--config.train.keep=last`). After the coarse stage the side
branch, which sees what the generator makes alone, is right on 13 % of val. What refinement does
(`python -m experiments.ornet_refinement`, experiments/figures/cub30_ornet_refinement.md): places
with values from 0.3 to 0.7 fall from 57.6 to 45.8, then to 27.2 % after the last epoch; thresholds
on the raw map (of 19) within 2 points of the best one rise from 5 to 16 % by then only, of
wsolevaluation's within 5 points from 12 to 19 %. Entropy and area, not the boxes, get better to the
end.
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
# ORNet's stages have rounds of their own: variant -> epochs, of smaller batches.
_EPOCHS = {'ornet_coarse': 6, 'ornet': 5}
_MAPS = ('acol', 'spg', 'bas', 'ornet')  # of the methods that have one of their own
VARIANTS = tuple(_METHODS)
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
    config.train.epochs = _EPOCHS.get(variant, 8)
    config.train.batch_size = 16 if variant in _EPOCHS else 32
    config.train.optimizer, config.train.learning_rate, config.train.head = 'adamw', 2e-4, 5.0
    if variant == 'spg':  # as published: it diverges with AdamW
        config.train.optimizer, config.train.learning_rate, config.train.head = 'sgd', 1e-3, 10.0
    config.train.freeze = ('conv_0', r'dw_[1-6]\.', r'pw_[1-6]\.')
    config.train.keep = 'best_localization'
    own = config.train.method if config.train.method in _MAPS else 'cam'
    config.localize.methods = (own, 'dgl', 'layer_cam')
    config.localize.layers = ('pw_9', 'pw_10', 'pw_11', 'pw_13')
    return config

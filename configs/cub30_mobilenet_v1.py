r"""MobileNetV1 fine-tuned whole on 30 classes of CUB-200-2011: what a CPU can train properly.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/cub30_mobilenet_v1.py --workdir DIR

DATA holds `cub30/` in the layout of wsolevaluation and `weights/mobilenet_v1.safetensors`.

Published: nothing on these 30 classes.
Measured on 801 test images (layer and threshold chosen on val; mean ± sample standard deviation of
the seeds 0, 1 and 2), GT-known Loc in %: DGL 81.9 ± 2.1 and LayerCAM 83.9 ± 1.1, mostly at pw_10,
Grad-CAM 46.6 ± 1.5, CAM 36.2 ± 2.3; MaxBoxAccV2 74.6, 78.9, 48.6, 42.7; top-1 68.9 ± 0.9
(`python -m experiments.seeds --config configs/cub30_mobilenet_v1.py --workdir DIR`).
"""

import os

from ml_collections import ConfigDict

from wsol_jax.config import default_config


def get_config() -> ConfigDict:
    """The experiment."""
    data = os.environ.get('WSOL_DATA', 'data')
    config = default_config()
    config.data.source = 'wsol_folder'
    config.data.root = f'{data}/cub30'
    config.network.name = 'mobilenet_v1'
    config.network.weights = f'{data}/weights/mobilenet_v1.safetensors'
    config.train.epochs = 10
    config.train.batch_size = 32
    config.train.optimizer = 'adamw'
    config.train.learning_rate = 2e-4
    config.train.multipliers = (('^classifier', 5.0),)
    config.localize.methods = ('dgl', 'cam', 'grad_cam', 'layer_cam')
    config.localize.layers = ('pw_6', 'pw_7', 'pw_8', 'pw_9', 'pw_10', 'pw_11', 'pw_12', 'pw_13')
    return config

"""DeiT-Tiny on real ILSVRC validation images of 10 classes, no training.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/imagenette_deit_tiny.py --workdir DIR

DATA holds `imagenette/` in the layout of wsolevaluation, its class_names.txt naming the ImageNet
index of each class, and `weights/deit_tiny_patch16_224.safetensors` under timm's names.
"""

import os

from ml_collections import ConfigDict

from wsol_jax.config import default_config


def get_config() -> ConfigDict:
    """The experiment."""
    data = os.environ.get('WSOL_DATA', 'data')
    config = default_config()
    config.stages = ('localize', 'evaluate', 'report')
    config.data.source = 'wsol_folder'
    config.data.root = f'{data}/imagenette'
    config.data.class_index = True
    config.network.name = 'deit_tiny'
    config.network.weights = f'{data}/weights/deit_tiny_patch16_224.safetensors'
    config.localize.methods = ('dgl', 'grad_cam', 'layer_cam', 'rollout')
    config.localize.layers = ('block6', 'block7', 'block8', 'block9', 'block10', 'block11')
    return config

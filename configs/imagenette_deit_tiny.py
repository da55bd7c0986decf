"""DeiT-Tiny on real ILSVRC validation images of 10 classes, no training.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/imagenette_deit_tiny.py --workdir DIR

DATA holds `imagenette/` in the layout of wsolevaluation, its class_names.txt naming the ImageNet
index of each class, and `weights/deit_tiny_patch16_224.safetensors` under timm's names.
Measured on the 150 test images (layer and threshold chosen on val), GT-known Loc in %: DGL 53.3 at
block7, Grad-CAM 48.0 at block11, LayerCAM 39.3 at block8, rollout 44.7; top-1 69.3. MaxBoxAccV2
(thresholds that are best on test) in the same order: 56.9, 52.0, 44.0 and 51.3.
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

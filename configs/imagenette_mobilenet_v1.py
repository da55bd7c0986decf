"""MobileNetV1 on real ILSVRC validation images of 10 classes, no training.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/imagenette_mobilenet_v1.py --workdir DIR

DATA holds `imagenette/` in the layout of wsolevaluation, its class_names.txt naming the ImageNet
index of each class, and `weights/mobilenet_v1.safetensors`. Measured on the 150 test images (layer
and threshold chosen on val), GT-known Loc in %: DGL 69.3 at pw_10, CAM 58.7, LayerCAM 66.7 at
pw_12, Grad-CAM 51.3 at pw_12. With --config.localize.scales="(0.75,1.0,1.25,1.5)" DGL's MaxBoxAcc
(an oracle) rises from 69.3 to 72.0 at pw_10, its GT-known Loc at val's threshold is 68.7.
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
    config.network.name = 'mobilenet_v1'
    config.network.weights = f'{data}/weights/mobilenet_v1.safetensors'
    config.localize.methods = (
        'dgl',
        'cam',
        'grad_cam',
        'grad_cam_pp',
        'hires_cam',
        'xgrad_cam',
        'layer_cam',
    )
    return config

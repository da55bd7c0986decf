"""The demo: a small ResNet trained on generated shapes, then localized at every stage.

    python -m wsol_jax.main --config configs/shapes_resnet.py --workdir DIR

The class is told by a small part; the box is around the whole object. Measured on 2 CPU cores
(test, layer and threshold chosen on val), GT-known Loc in %: DGL 52.3 at stage3, CAM 23.3,
Grad-CAM 67.7 at stage1, LayerCAM 30.3 at stage3; MaxBoxAcc: DGL 55.3, CAM 27.3; top-1 85.7. One
seed; the same on another machine, which rounds differently (DGL 61.3, CAM 20.0), and a slightly
different training (DGL 79.3, CAM 22.0) show how much that leaves open.
"""

from ml_collections import ConfigDict

from wsol_jax.config import default_config


def get_config() -> ConfigDict:
    """The experiment."""
    config = default_config()
    config.data.source = 'shapes'
    config.data.shapes_size = 96
    config.network.name = 'resnet10'
    config.network.options = {'width': 16, 'output_stride': 8}
    config.network.input_size = 96
    config.train.epochs = 8
    config.train.batch_size = 32
    config.train.learning_rate = 0.1
    config.localize.methods = ('dgl', 'cam', 'grad_cam', 'layer_cam')
    config.localize.batch_size = 50
    config.evaluate.size = 96  # that of the images: nothing is gained from a larger canvas
    return config

"""A narrow ResNet18 trained from scratch on 20 classes of Tiny-ImageNet: for a CPU.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/tiny20_resnet18.py --workdir DIR

DATA/tiny20 is in the layout of wsolevaluation: images/ of 64 x 64 pixels, class_names.txt and
metadata/ with train (6,000 images, no boxes), val (500) and test (1,000).

Published: nothing on these 20 classes. Measured with three seeds (`python -m experiments.seeds
--config configs/tiny20_resnet18.py --workdir DIR`, about 5 minutes each on two CPU cores), in % of
test: top-1 47.4 ± 0.9; GT-known Loc DGL 32.3 ± 0.8 (stage2), LayerCAM 33.3 ± 2.9, CAM 28.1 ± 1.5,
Grad-CAM 27.6 ± 0.6.
"""

import os

from ml_collections import ConfigDict

from wsol_jax.config import default_config


def get_config() -> ConfigDict:
    """The experiment."""
    config = default_config()
    config.data.source = 'wsol_folder'
    config.data.root = f'{os.environ.get("WSOL_DATA", "data")}/tiny20'
    config.network.name = 'resnet18'
    config.network.options = {'width': 32, 'output_stride': 8}
    config.network.input_size = 64
    config.train.epochs = 6
    config.train.batch_size = 64
    config.train.learning_rate = 0.1
    config.localize.methods = ('dgl', 'cam', 'grad_cam', 'layer_cam')
    config.localize.batch_size = 100
    config.evaluate.size = 64  # that of the images: nothing is gained from a larger canvas
    return config

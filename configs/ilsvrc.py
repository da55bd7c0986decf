r"""Classifiers of ILSVRC 2012, fine-tuned as DGL's release does, then localized.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/ilsvrc.py:inception_v3 --workdir DIR

Variants: inception_v3 (SPG-plain, the default), resnet50, vgg16. From TFDS instead, once
`python -m wsol_jax.data prepare ilsvrc_wsol DATA/ilsvrc TFDS_DIR` has stored it:

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/ilsvrc.py:resnet50 --workdir DIR \
        --config.data.source=tfds --config.data.name=ilsvrc_wsol --config.data.root=TFDS_DIR

DATA/ilsvrc is in the layout of wsolevaluation: images/, class_names.txt and metadata/ with train
(1,281,167 images, no boxes), val (ImageNetV2, 10,000) and test (the 50,000 validation images).
DATA/weights/{inception_v3,resnet50,vgg16}.safetensors is yours to supply: ImageNet weights under
torchvision's names; of InceptionV3 only the trunk to Mixed_6e is read.

The recipe: 240,000 steps of 32 images = 6 epochs, the rate divided by 10 at 1/3 and 2/3, new layers
10 times as fast (ResNet50 has none), biases twice (new ones 20 times); images warped to 256 x 256,
cropped at random.
The InceptionV3 of the release differs: its weight decay is declared but not in its loss, its batch
norm has no scale and takes its statistics over 16 images, and images have ImageNet's mean and std
taken off, where ours are scaled to [-1, 1]. It validates on centre crops, we on whole images.

Published: no box score of DGL on ILSVRC is in any source we read. Top-1 / Top-5 / GT-known Loc of
CAM (table of BAS, CVPR 2022): InceptionV3 46.29 / 58.19 / 62.68, ResNet50 38.99 / 49.47 / 51.86,
VGG16 42.80 / 54.86 / 59.00. MaxBoxAccV2 of CAM (wsolevaluation, which trains otherwise):
InceptionV3 63.4, ResNet50 63.7, VGG16 60.0.
Not measured here: anything; the training is too large for the machine this was written on.
"""

import os

from ml_collections import ConfigDict

from wsol_jax.config import ConfigError, default_config
from wsol_jax.names import unknown_name

# name: (options, factors on the rate, layers to localize at)
_NETWORKS = {
    'inception_v3': (
        {},
        ((r'^(Mixed_6[fg]|fc)\.', 10.0), ('bias$', 2.0)),
        ('Mixed_6d', 'Mixed_6e', 'Mixed_6e/Branch_1+Mixed_6e/Branch_2', 'Mixed_6f', 'Mixed_6g'),
    ),
    'resnet50': (
        {'output_stride': 8},
        (('bias$', 2.0),),
        ('stage3', 'stage4/block1', 'stage4/block2', 'stage4'),
    ),
    'vgg16': (
        {},
        ((r'^(conv6|fc)\.', 10.0), ('bias$', 2.0)),
        ('pool4', 'conv5_1', 'conv5_2', 'conv5_3', 'conv6'),
    ),
}


def get_config(variant: str = 'inception_v3') -> ConfigDict:
    """The experiment with one of the networks."""
    if variant not in _NETWORKS:
        raise ConfigError(unknown_name('variant', variant, _NETWORKS))
    options, multipliers, layers = _NETWORKS[variant]
    data = os.environ.get('WSOL_DATA', 'data')
    config = default_config()
    config.data.source = 'wsol_folder'
    config.data.root = f'{data}/ilsvrc'
    config.network.name = variant
    config.network.weights = f'{data}/weights/{variant}.safetensors'
    config.network.options = options
    config.augment.margin = 32
    config.train.epochs = 6
    config.train.batch_size = 32
    config.train.learning_rate = 0.002
    config.train.schedule = 'step'
    config.train.warmup = 0.0
    config.train.step_epochs = (2.0, 4.0)
    config.train.multipliers = multipliers
    config.train.log_every = 100
    config.localize.methods = ('dgl', 'cam', 'grad_cam', 'layer_cam')
    config.localize.layers = layers
    return config

r"""Classifiers of OpenImages30k, trained as wsolevaluation does, scored against masks.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/openimages30k.py:vgg16 --workdir DIR

Variants: inception_v3, resnet50, vgg16 (the default). From TFDS instead, once
`python -m wsol_jax.data prepare openimages_wsol DATA/openimages30k TFDS_DIR` has stored it:

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/openimages30k.py:vgg16 --workdir DIR \
        --config.data.source=tfds --config.data.name=openimages_wsol --config.data.root=TFDS_DIR

DATA/openimages30k is in the layout of wsolevaluation: images/, class_names.txt, the PNGs of masks
and of regions to ignore, and metadata/ with train (29,819 images), val (2,500) and test (5,000),
the latter two with a localization.txt that names the PNGs. Weights as for configs/ilsvrc.py.

The recipe is the command that wsolevaluation prints for VGG16: rate 0.00228 divided by 10 every 3
of 10 epochs, weight decay 5e-4, batch 32, the last checkpoint; new layers 10 times as fast, for
ResNet50 also its last stage. The rates it found by random search for the other two we do not know.
Its thresholds are 0.001 apart, and its val is 5 images a class of the 25.

Published PxAP of CAM: VGG16 58.3, InceptionV3 63.2, ResNet50 58.5 (wsolevaluation).
Not measured here: anything; the training is too large for the machine this was written on.
"""

import os

from ml_collections import ConfigDict

from wsol_jax.configs import ilsvrc

_FASTER = {
    'inception_v3': r'^(Mixed_6[fg]|fc)\.',
    'resnet50': r'^(layer4|fc)\.',
    'vgg16': r'^(conv6|fc)\.',
}


def get_config(variant: str = 'vgg16') -> ConfigDict:
    """The experiment with one of the networks."""
    config = ilsvrc.get_config(variant)
    config.data.root = f'{os.environ.get("WSOL_DATA", "data")}/openimages30k'
    config.train.epochs = 10
    config.train.learning_rate = 0.00227913316
    config.train.step_epochs = (3.0, 6.0, 9.0)
    config.train.multipliers = ((_FASTER[variant], 10.0),)
    config.train.keep = 'last'
    config.evaluate.threshold_step = 0.001
    return config

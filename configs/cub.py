r"""Classifiers of CUB-200-2011, fine-tuned as DGL's release does, then localized.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/cub.py:inception_v3 --workdir DIR

Variants: inception_v3 (SPG-plain, the default), resnet50, vgg16. From TFDS instead, once
`python -m wsol_jax.data prepare cub200_wsol DATA/cub TFDS_DIR` has stored it:

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/cub.py:resnet50 --workdir DIR \
        --config.data.source=tfds --config.data.name=cub200_wsol --config.data.root=TFDS_DIR

DATA/cub is in the layout of wsolevaluation: images/, class_names.txt and metadata/ with train
(5,994 images, no boxes), val (CUBV2, 1,000) and test (5,794). Weights as for configs/ilsvrc.py,
under torchvision's names and yours to supply; `--config.train.init_from=WORKDIR` starts from the
network of such a run instead, its added layers trained (what the release did is not known).

The recipe: that of configs/ilsvrc.py for 30,000 steps = 160 epochs, the rate divided by 10 at 1/3
and 2/3. No CUB command was published; the steps follow from constants of the code. Users could not
train InceptionV3 on CUB with rates like these (issues SPG#2, wsolevaluation#38): watch val.

Published: no box score of DGL on CUB is in any source we read. Top-1 / Top-5 / GT-known Loc of CAM:
ResNet50 46.71 / 54.44 / 57.35 (table of BAS, CVPR 2022), VGG16 44.2 / 52.2 / 56.0 (gyguo's list of
WSOL results); of InceptionV3 we know none for certain. MaxBoxAccV2 of CAM (wsolevaluation, which
trains otherwise): InceptionV3 56.7, ResNet50 63.0, VGG16 63.7.
Not measured here: anything on all 200 classes; 30 of them: configs/cub30_mobilenet_v1.py.
"""

import os

from ml_collections import ConfigDict

from wsol_jax.configs import ilsvrc


def get_config(variant: str = 'inception_v3') -> ConfigDict:
    """The experiment with one of the networks."""
    config = ilsvrc.get_config(variant)
    config.data.root = f'{os.environ.get("WSOL_DATA", "data")}/cub'
    config.train.epochs = 160
    config.train.step_epochs = (160 / 3, 320 / 3)
    return config

r"""HaS, CutMix, ADL, ACoL and SPG on CUB-200-2011, trained as wsolevaluation does.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/cub_trained.py:acol_vgg16 --workdir DIR

Variants, weights and the recipe as in configs/ilsvrc_trained.py, DATA/cub as for configs/cub.py.
Here it is 50 epochs, the rate divided by 10 every 15 (a command in wsolevaluation's issue 60). ACoL
on VGG16 takes 60 epochs as in its code; of SPG no recipe for CUB is published, so InceptionV3
has the 50 epochs. The author of ADL gives for VGG16 rate 0.01, batches of 128 and threshold 0.8
(ADL's issue 8), in another framework.

Published, not reproduced here. Top-1 / Top-5 / GT-known Loc, in brackets the source: ACoL VGG16
45.92 / 56.51 / - (BAS, CVPR 2022); SPG VGG16 48.9 / 57.9 / 58.9, InceptionV3 46.6 / 57.7 / -
(gyguo's list); ADL VGG16 52.4 / - / 75.4, InceptionV3 53.0 Top-1; CutMix VGG16 52.5, ResNet50 54.81
Top-1 (gyguo's list). MaxBoxAccV2 minus that of CAM, of VGG16, InceptionV3, ResNet50
(wsolevaluation): ACoL -6.3, -0.5, 3.5; SPG -7.4, -0.8, -2.6. Of HaS we know none for certain.
Not measured here: anything on all 200 classes; 30 of them: configs/cub30_trained.py.
"""

import os

from ml_collections import ConfigDict

from wsol_jax.configs import ilsvrc_trained

VARIANTS = ilsvrc_trained.VARIANTS


def get_config(variant: str = 'acol_vgg16') -> ConfigDict:
    """The experiment with one of VARIANTS."""
    config = ilsvrc_trained.get_config(variant)
    config.data.root = f'{os.environ.get("WSOL_DATA", "data")}/cub'
    config.train.epochs = 60 if variant == 'acol_vgg16' else 50
    config.train.step_epochs = (15.0, 30.0, 45.0)
    config.train.log_every = 10
    return config

r"""Weakly supervised grounding (DTMR) on RefCOCO, with the recipe of the paper.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/refcoco.py --workdir DIR \
        --config.network.weights=FILE --config.train.options.vectors=glove.6B.300d.txt

DATA/refcoco holds instances.json, images/ and refs.json, see `wsol_jax.data.refcoco`; FILE has
torchvision's ResNet-101. RefCOCO+ and RefCOCOg differ in their folder and splits alone.

One image and all its sentences a step, 9 epochs of 16,994 images, nearly 150,000 steps; Adam at
1.26e-5, clipped at 0.1; from step 30,000 on the rate falls to a tenth in 150,000 steps, here in
steps of an epoch. Other than published: features of ImageNet's ResNet-101 in place of Mask R-CNN's,
a decoupled weight decay, and 0.9 for Adam's first moment in place of 0.8.

Published accuracy at IoU .5 with the annotated boxes as proposals, not reproduced here: RefCOCO val
39.21, testA 41.14, testB 37.72; RefCOCO+ val 39.18; RefCOCOg 43.24 (Sun et al., arXiv 2106.04053).
Not measured here.
"""

import os

from ml_collections import ConfigDict

from wsol_jax.config import default_config


def get_config() -> ConfigDict:
    """The experiment."""
    config = default_config()
    config.task = 'grounding'
    config.data.source = 'refcoco'
    config.data.root = f'{os.environ.get("WSOL_DATA", "data")}/refcoco'
    config.augment.crop = 'whole'
    config.augment.flip = False
    config.network.name = 'resnet101'
    config.network.input_size = 448
    config.train.method = 'dtmr'
    config.train.options = {'vectors': ''}
    config.train.epochs = 9
    config.train.batch_size = 1
    config.train.optimizer = 'adamw'
    config.train.learning_rate = 1.26e-5
    config.train.warmup = 0.0
    config.train.schedule = 'step'
    config.train.step_epochs = (2, 3, 4, 5, 6, 7, 8)
    config.train.step_factor = 0.1 ** (16_994 / 150_000)
    config.train.clip = 0.1
    config.localize.splits = ('val', 'testA', 'testB')
    config.localize.batch_size = 8
    return config

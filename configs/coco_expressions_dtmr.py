r"""Weakly supervised grounding (DTMR) on 250 COCO images with sentences made from their boxes.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/coco_expressions_dtmr.py --workdir DIR

DATA holds `weights/mobilenet_v1.safetensors` and `coco_seg/`. Nobody said the sentences: they are
made by rule from the annotated boxes, which are the proposals, too. MobileNetV1 keeps its ImageNet
weights. Scores weigh as shares, see configs/relations_dtmr.py.

Published: nothing on these images. Measured on test (50 images, 280 sentences), mean and standard
deviation of three seeds: accuracy 25.5 ± 1.4 %, where chance gives 21.6, the largest box 25.7, and
guessing in the subject's class 54.5; where the class has one box 40.4 ± 5.3 (chance 30.0). Little
is learnt from 146 images and 797 sentences, whose subjects are of 74 classes.
"""

import os

from ml_collections import ConfigDict

from wsol_jax.config import default_config


def get_config() -> ConfigDict:
    """The experiment."""
    data = os.environ.get('WSOL_DATA', 'data')
    config = default_config()
    config.task = 'grounding'
    config.data.source = 'coco_expressions'
    config.data.root = f'{data}/coco_seg'
    config.augment.crop = 'whole'
    config.augment.flip = False
    config.network.name = 'mobilenet_v1'
    config.network.weights = f'{data}/weights/mobilenet_v1.safetensors'
    config.network.input_size = 320
    config.train.method = 'dtmr'
    config.train.options = {'layer': 'pw_11', 'width': 128, 'attention': 'softmax'}
    config.train.epochs = 20
    config.train.batch_size = 10
    config.train.optimizer = 'adamw'
    config.train.learning_rate = 1e-3
    config.localize.batch_size = 10
    return config

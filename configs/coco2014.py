r"""Segmentation from image labels on MS COCO 2014, with the recipes of the literature.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/coco2014.py:plain --workdir DIR

DATA/coco holds train2014/, val2014/ and annotations/; the extra `coco` reads them. Variants,
weights and recipes as in configs/voc2012.py.

Published mIoU on val, not reproduced here: ESOL, DeepLabV2, 42.6 (table of LPCAM, CVPR 2023); MARS,
DeepLabV3+, 49.4 (its abstract).
Not measured here.
"""

import os

from ml_collections import ConfigDict

from wsol_jax.configs import voc2012

VARIANTS = voc2012.VARIANTS


def get_config(variant: str = 'plain') -> ConfigDict:
    """The experiment with one of VARIANTS."""
    config = voc2012.get_config(variant)
    config.data.source = 'coco'
    config.data.root = f'{os.environ.get("WSOL_DATA", "data")}/coco'
    config.train.split = 'train'
    config.localize.splits = ('train', 'val')
    return config

r"""Every training method on 10 ImageNet classes, from ImageNet weights: 1,000 training images.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/imagenette_trained.py:bas --workdir DIR
    python -m experiments.trained_methods --configs configs/imagenette_trained.py --workdir DIR

As configs/cub30_trained.py, on DATA/imagenette; BAS has the map of one class, as on ILSVRC: a mean
over ten that have nothing in common is a worse map.

Published: nothing on these 10 classes. Measured on 150 test images (seed 0; checkpoint, layer and
threshold chosen on val), GT-known Loc in % (MaxBoxAccV2), intervals of some 7 either way: plain CAM
59.3 (54.0), DGL 68.0 (67.1, pw_9), LayerCAM 68.0 (67.1, pw_11), top-1 92.0. bas 64.0 (64.9) where
checkpoints were chosen by its mean over all classes, which has 60.0 (66.0); DGL of that network
66.0, LayerCAM 66.7, top-1 98.7. A third of the weight of the area, beta=0.3, was worse on val:
MaxBoxAccV2 48.4 after three epochs for 61.3. The others: not measured.
"""

import os

from ml_collections import ConfigDict

from wsol_jax.configs import cub30_trained

VARIANTS = cub30_trained.VARIANTS


def get_config(variant: str = 'plain') -> ConfigDict:
    """The experiment with one of VARIANTS."""
    config = cub30_trained.get_config(variant)
    if variant == 'bas':
        config.train.options = {**config.train.options, 'top_k': 1}
    config.data.root = f'{os.environ.get("WSOL_DATA", "data")}/imagenette'
    return config

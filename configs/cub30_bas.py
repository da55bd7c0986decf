r"""BAS on 30 classes of CUB-200-2011, from ImageNet weights: minutes on two CPU cores.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/cub30_bas.py --workdir DIR

DATA, network and what is frozen as in configs/cub30_trained.py, whose variant `bas` this is with
larger images and half the epochs, at the same cost: 20 x 20 positions for the map in place of 14.

Published: nothing on these 30 classes; MobileNetV1 on all 200: configs/cub_bas.py.
Measured with `--config.localize.methods="('bas',)"` (seed 0; checkpoint and threshold chosen on
val), on 801 test images in %: GT-known Loc 86.5 (95 % interval 84 to 89), MaxBoxAccV2 81.6, top-1
69.0; the variant of 224 pixels and 8 epochs 86.1 (84 to 88), 75.2, 60.8. On val the mean over the
maps of all 30 classes has 88.7 where that of the true class alone has 40.7 (4 epochs at 224
pixels on features that were stored beforehand): a class has 25 images to learn its map from.
"""

from ml_collections import ConfigDict

from wsol_jax.configs import cub30_trained


def get_config() -> ConfigDict:
    """The experiment."""
    config = cub30_trained.get_config('bas')
    config.network.input_size = 320
    config.train.epochs = 4
    return config

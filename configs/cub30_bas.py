r"""BAS on 30 classes of CUB-200-2011, from ImageNet weights: minutes on two CPU cores.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/cub30_bas.py --workdir DIR

DATA, network, epochs and what is frozen as in configs/cub30_trained.py, whose variant `bas` this is
with larger images: 20 x 20 positions for the map in place of 14, at twice the cost.

Published: nothing on these 30 classes; MobileNetV1 on all 200: configs/cub_bas.py.
Measured with `--config.localize.methods="('bas',)"` (seed 0; checkpoint and threshold chosen on
val), on 801 test images in %: GT-known Loc 89.6 (95 % interval 88 to 92), MaxBoxAccV2 83.0, top-1
70.0; with `--config.localize.flip=True` 89.6 and 83.4. Half the epochs: 86.5, 81.6, 69.0; the
variant of 224 pixels: 87.3 (85 to 90), 76.2, 59.2. On val the mean over the maps of all 30 classes
has 88.7 where that of the true class alone has 40.7 (4 epochs at 224 pixels on features that were
stored beforehand): a class has 25 images to learn its map from.
"""

from ml_collections import ConfigDict

from wsol_jax.configs import cub30_trained


def get_config() -> ConfigDict:
    """The experiment."""
    config = cub30_trained.get_config('bas')
    config.network.input_size = 320
    return config

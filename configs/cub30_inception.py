r"""SPG-plain (InceptionV3) on 30 classes of CUB-200-2011, from an ImageNet trunk.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/cub30_inception.py --workdir DIR

DATA holds `cub30/` in the layout of wsolevaluation and `weights/inception_v3_trunk.safetensors`.
The trunk is frozen; the two added convolutions and the classifier are trained.
`configs/cub30_inception.py:full` trains everything with the rates of the published recipe and wants
an accelerator.

Published: nothing on these 30 classes.
Measured with the frozen trunk (seed 0; layer and threshold chosen on val), GT-known Loc on 801 test
images in %: DGL 76.5 at Mixed_6e, LayerCAM 75.2 at Mixed_6g, CAM 43.6; top-1 55.6; accuracy on val
59.3 after the fifth and the sixth epoch. DGL at Mixed_5b ... 6g: 50.1, 62.7, 65.5, 67.8, 67.5,
70.5, 70.0, 76.5, 57.4, 43.6; LayerCAM: 58.7, 65.0, 68.0, 71.0, 70.0, 72.5, 69.4, 67.5, 71.3, 75.2.
Not measured here: the variant `full`.
"""

import os

from ml_collections import ConfigDict

from wsol_jax.config import ConfigError, default_config
from wsol_jax.names import unknown_name

_VARIANTS = ('frozen', 'full')
_TRUNK = ('Conv2d_', 'Mixed_5', 'Mixed_6[a-e]')


def get_config(variant: str = 'frozen') -> ConfigDict:
    """The experiment; `variant` is 'frozen' or 'full'."""
    if variant not in _VARIANTS:
        raise ConfigError(unknown_name('variant', variant, _VARIANTS))
    data = os.environ.get('WSOL_DATA', 'data')
    config = default_config()
    config.data.source = 'wsol_folder'
    config.data.root = f'{data}/cub30'
    config.network.name = 'inception_v3'
    config.network.weights = f'{data}/weights/inception_v3_trunk.safetensors'
    # From Glorot's start SGD stays at chance for epochs: the pooled features are small.
    config.network.options = {'added': 'identity'}
    config.train.batch_size = 32
    config.localize.methods = ('dgl', 'cam', 'layer_cam')
    config.localize.batch_size = 16
    if variant == 'frozen':
        config.train.freeze = _TRUNK
        config.train.optimizer = 'adamw'
        config.train.learning_rate = 5e-4
        config.train.epochs = 6
    else:
        # The trunk's batch norm was folded into its weights: its statistics are placeholders.
        config.train.freeze = (r'.*bn\.scale',)
        config.train.multipliers = ((r'^(Mixed_6[fg]|fc)\.', 10.0), ('bias$', 2.0))
        config.train.learning_rate = 0.002
        config.train.epochs = 60
    return config

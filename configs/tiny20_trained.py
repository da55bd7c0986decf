r"""Every training method on a narrow ResNet18 from scratch: 20 classes of Tiny-ImageNet, for a CPU.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/tiny20_trained.py:acol --workdir DIR
    WSOL_DATA=DATA python -m experiments.trained_methods --workdir DIR \
        --configs configs/tiny20_trained.py

The variant is a name of VARIANTS; network, split and budget are those of
configs/tiny20_resnet18.py. ORNet's stages start from the workdirs of STARTS:
`--config.train.init_from=DIR` where one is run alone.

Published: nothing on these 20 classes.
Not measured here: anything.
"""

from ml_collections import ConfigDict

from wsol_jax.config import ConfigError
from wsol_jax.configs import tiny20_resnet18
from wsol_jax.names import unknown_name

# Variant -> train.method, its options, and the maps beside DGL and LayerCAM.
_METHODS = {
    'plain': ('', {}, 'cam'),
    'has': ('has', {}, 'cam'),
    'cutmix': ('cutmix', {}, 'cam'),
    'adl': ('adl', {}, 'cam'),
    'acol': ('acol', {'width': 128}, 'acol'),
    'spg': ('spg', {'width': 128, 'side_width': 64}, 'spg'),
    'bas': ('bas', {'width': 128}, 'bas'),
    'ornet_1': ('ornet', {'base': 8}, 'ornet'),
    'ornet': ('ornet', {'base': 8, 'stage': 2}, 'ornet'),
}
VARIANTS = tuple(_METHODS)
STARTS = {'ornet_1': 'plain', 'ornet': 'ornet_1'}


def get_config(variant: str = 'plain') -> ConfigDict:
    """The experiment with one of VARIANTS."""
    if variant not in VARIANTS:
        raise ConfigError(unknown_name('variant', variant, VARIANTS))
    config = tiny20_resnet18.get_config()
    config.train.method, config.train.options, own = _METHODS[variant]
    config.localize.methods = (own, 'dgl', 'layer_cam')
    return config

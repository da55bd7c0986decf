r"""ORNet on CUB-200-2011: a plain ResNet50, the generator beside it, and its refinement.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/cub_ornet.py:plain --workdir DIR
    WSOL_DATA=DATA python -m wsol_jax.main --config configs/cub_ornet.py:coarse --workdir DIR1 \
        --config.train.init_from=DIR
    WSOL_DATA=DATA python -m wsol_jax.main --config configs/cub_ornet.py:refine --workdir DIR2 \
        --config.train.init_from=DIR1

DATA/cub as for configs/cub.py, DATA/weights/resnet50.safetensors is yours to supply.

The recipe (Xie et al., ICCV 2021, arXiv 2110.05741; constants of its released code): batches of 16;
200 epochs of the plain network, which is the evaluator then, and 70 of the generator beside it by
SGD at 0.001; 30 of the refinement by Adam at 0.0001; cosine rates; images warped to 256 x 256,
cropped at random. The generator reads the stem, 56 x 56. The trainer of the generator is not
published: that its rate falls by a cosine is our choice, as is Nesterov momentum. The evaluator of
the paper is a VGG16, and classes are those that it finds; see `ORNet` for what else departs.

Published, Top-1 / Top-5 / GT-known Loc (README of BAS; the rows there are under VGG16), not
reproduced here: 67.73 / 80.77 / 86.20; the threshold was chosen on the test images.
Not measured here: anything on all 200 classes; 30 of them: configs/cub30_trained.py.
"""

import os

from ml_collections import ConfigDict

from wsol_jax.config import ConfigError, default_config
from wsol_jax.names import unknown_name

# Variant -> (epochs, optimizer, rate, weight decay, options of the method)
_STAGES = {
    'plain': (200, 'sgd', 1e-3, 5e-4, {}),
    'coarse': (70, 'sgd', 1e-3, 5e-4, {'stage': 1, 'layer': 'stage1/stem'}),
    'refine': (30, 'adamw', 1e-4, 0.0, {'stage': 2, 'layer': 'stage1/stem'}),
}
VARIANTS = tuple(_STAGES)
STARTS = {'coarse': 'plain', 'refine': 'coarse'}


def get_config(variant: str = 'plain') -> ConfigDict:
    """The experiment with one of VARIANTS."""
    if variant not in VARIANTS:
        raise ConfigError(unknown_name('variant', variant, VARIANTS))
    epochs, optimizer, rate, decay, options = _STAGES[variant]
    data = os.environ.get('WSOL_DATA', 'data')
    config = default_config()
    config.data.source = 'wsol_folder'
    config.data.root = f'{data}/cub'
    config.network.name = 'resnet50'
    config.network.weights = f'{data}/weights/resnet50.safetensors'
    config.augment.margin = 32
    config.train.method = 'ornet' if options else ''
    config.train.options = options
    config.train.epochs = epochs
    config.train.batch_size = 16
    config.train.optimizer = optimizer
    config.train.learning_rate = rate
    config.train.weight_decay = decay
    config.train.warmup = 0.0
    config.train.head = 1.0
    config.train.keep = 'best' if variant == 'plain' else 'best_localization'
    config.localize.methods = ('ornet',) if options else ('cam', 'layer_cam')
    config.evaluate.protocols = ('ornet:0.5',) if options else ()
    return config

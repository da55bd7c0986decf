r"""ORNet on ILSVRC 2012: a plain ResNet50, the generator beside it, and its refinement.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/ilsvrc_ornet.py:plain --workdir DIR
    WSOL_DATA=DATA python -m wsol_jax.main --config configs/ilsvrc_ornet.py:coarse --workdir DIR1 \
        --config.train.init_from=DIR
    WSOL_DATA=DATA python -m wsol_jax.main --config configs/ilsvrc_ornet.py:refine --workdir DIR2 \
        --config.train.init_from=DIR1

DATA as for configs/ilsvrc.py. The recipe is that of configs/cub_ornet.py, whose constants are all
that is published; how long each stage took on ILSVRC is not (its trainer never appeared), so the
epochs here are a choice. The release started the last stage and the classifier of the network
anew; here they go on from the plain training.

Published, Top-1 / Top-5 / GT-known Loc (README of BAS; the rows there are under VGG16), not
reproduced here: 52.05 / 63.94 / 68.27; the threshold was chosen on the test images.
Not measured here: anything; the training is too large for the machine this was written on.
"""

import os

from ml_collections import ConfigDict

from wsol_jax.configs import cub_ornet

VARIANTS, STARTS = cub_ornet.VARIANTS, cub_ornet.STARTS
_EPOCHS = {'plain': 2, 'coarse': 6, 'refine': 2}


def get_config(variant: str = 'plain') -> ConfigDict:
    """The experiment with one of VARIANTS."""
    config = cub_ornet.get_config(variant)
    config.data.root = f'{os.environ.get("WSOL_DATA", "data")}/ilsvrc'
    config.train.epochs = _EPOCHS[variant]
    config.train.log_every = 100
    return config

r"""Weakly supervised grounding (DTMR) on generated scenes of coloured shapes.

    python -m wsol_jax.main --config configs/relations_dtmr.py --workdir DIR

Up to eight shapes of two or three classes; a sentence tells one of them by its class, a superlative
or how it stands to another. The network is random and frozen: colours and edges are all that it
has to see. Scores weigh as shares ('softmax'), not raw as in the paper.

Measured (seed 0, test, 300 images, 1749 sentences): accuracy 45.6 %, where chance gives 17.5, the
largest box 18.0, and guessing in the subject's class 41.7. The class is found (85.5 where it has
one box), the relation is not: nothing tells which box of a pair is the subject. With a relation to
another class 36.5 (guessing in the class: 36.6), among boxes of one class 43.4 (36.7). With
--config.train.options.attention=raw 7.1: the sign of raw scores is free.
"""

from ml_collections import ConfigDict

from wsol_jax.config import default_config


def get_config() -> ConfigDict:
    """The experiment."""
    config = default_config()
    config.task = 'grounding'
    config.data.source = 'relations'
    config.data.shapes_size = 96
    config.data.shapes_counts = (600, 150, 300)
    config.augment.crop = 'whole'
    config.augment.flip = False
    config.network.name = 'resnet10'
    config.network.options = {'width': 16, 'output_stride': 8}
    config.network.input_size = 96
    config.train.method = 'dtmr'
    config.train.options = {'width': 128, 'attention': 'softmax'}
    config.train.epochs = 10
    config.train.batch_size = 32
    config.train.optimizer = 'adamw'
    config.train.learning_rate = 1e-3
    config.localize.batch_size = 50
    return config

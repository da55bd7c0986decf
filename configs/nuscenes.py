r"""Point-DETR3D's recipe on nuScenes: boxes of a share of the frames, of the others points.

    python -m wsol_jax.main --config configs/nuscenes.py:teacher --workdir DIR
    python -m wsol_jax.main --config configs/nuscenes.py:student --workdir DIR2 \
        --config.train.options.labels=DIR/maps/train/pseudo_labels

`config.data.root` is a folder of nuScenes, which is not fetched. Range, classes, points, decoder,
losses, six cameras and epochs are those of the paper. Its LiDAR backbone takes voxels of 0.1 m and
starts from a detector trained on the labelled share; here points go through pillars of 0.4 m,
nothing in 3D is trained before, and images have less than half of their sides. There backbones have
a tenth of the rate, and the student draws frames balanced by class under a cyclic schedule; here
neither is done.
Mean sizes of the classes, which the paper encodes, too, are not known here: give them as
`config.train.options.sizes`.

Published (abstract): with 5 % of the labels, more than 90 % of full supervision. Not measured here.
"""

import os

from ml_collections import ConfigDict

from wsol_jax.config import ConfigError, default_config
from wsol_jax.names import unknown_name

VARIANTS = ('teacher', 'student')
_SCENE = {
    'limits': (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0),
    'pillar': 0.4,
    'points': 200_000,
    'widths': (64, 128, 256, 256),
}
_METHODS = {
    'teacher': ('point_detr3d', {**_SCENE, 'cameras': 6}),
    'student': ('center_point', {**_SCENE, 'labels': ''}),
}


def get_config(variant: str = 'teacher') -> ConfigDict:
    """The experiment with one of VARIANTS."""
    if variant not in VARIANTS:
        raise ConfigError(unknown_name('variant', variant, VARIANTS))
    config = default_config()
    config.task = 'points'
    config.data.source = 'nuscenes'
    config.data.root = f'{os.environ.get("WSOL_DATA", "data")}/nuscenes'
    config.data.labelled = 0.05
    config.augment.crop = 'whole'
    config.augment.flip = False
    config.network.name = 'resnet50'
    config.network.input_size = 448
    config.train.method, config.train.options = _METHODS[variant]
    config.train.epochs = 20
    config.train.batch_size = 8
    config.train.optimizer = 'adamw'
    config.train.learning_rate = 2e-4
    config.train.weight_decay = 0.01
    config.train.clip = 35.0
    config.localize.splits = ('train', 'val')
    config.localize.batch_size = 8
    return config

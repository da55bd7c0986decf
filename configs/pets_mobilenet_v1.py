"""MobileNetV1 fine-tuned whole on 3 breeds of Oxford-IIIT Pet, scored against masks.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/pets_mobilenet_v1.py --workdir DIR

DATA holds `weights/mobilenet_v1.safetensors` and `pets/` in the layout of wsolevaluation: images/,
masks/, ignore/ (the border of the trimaps), class_names.txt and metadata/ with train (255 images,
no masks), val (45) and test (298), the latter two with a localization.txt that names the PNGs.

Published: nothing on these 3 breeds.
Not measured here: the whole training.
"""

import os

from ml_collections import ConfigDict

from configs import cub30_mobilenet_v1


def get_config() -> ConfigDict:
    """The experiment."""
    config = cub30_mobilenet_v1.get_config()
    config.data.root = f'{os.environ.get("WSOL_DATA", "data")}/pets'
    config.train.epochs = 8
    return config

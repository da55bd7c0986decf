"""MobileNetV1 fine-tuned whole on 3 breeds of Oxford-IIIT Pet, scored against masks.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/pets_mobilenet_v1.py --workdir DIR

DATA holds `weights/mobilenet_v1.safetensors` and `pets/` in the layout of wsolevaluation: images/,
masks/, ignore/ (the border of the trimaps), class_names.txt and metadata/ with train (255 images,
no masks), val (45) and test (298), the latter two with a localization.txt that names the PNGs.

Published: nothing on these 3 breeds.
Measured on 298 test images (seed 0; layer chosen on val by PxAP, threshold by mIoU), PxAP / mIoU in
%: DGL 91.2 / 71.9 at pw_8, LayerCAM 92.4 / 74.3 at pw_11, Grad-CAM 81.9 / 58.4, CAM 68.6 / 50.2;
top-1 96.3.
"""

import os

from ml_collections import ConfigDict

from wsol_jax.configs import cub30_mobilenet_v1


def get_config() -> ConfigDict:
    """The experiment."""
    config = cub30_mobilenet_v1.get_config()
    config.data.root = f'{os.environ.get("WSOL_DATA", "data")}/pets'
    config.train.epochs = 8
    return config

r"""Seeds of every training-free method for 3 breeds of Oxford-IIIT Pet, one object an image.

    python -m experiments.voc_folder --source wsol_folder --root DATA/pets --out DATA/pets_voc
    WSOL_DATA=DATA python -m wsol_jax.main --config configs/pets_seg_mobilenet_v1.py --workdir DIR
    WSOL_DATA=DATA python -m experiments.seed_table --workdir DIR \
        --config configs/pets_seg_mobilenet_v1.py

DATA holds `weights/mobilenet_v1.safetensors` and `pets/`, as for configs/pets_mobilenet_v1.py. The
border of the trimaps does not count. Network and methods are those of coco_seg_mobilenet_v1.py.

Published: nothing on these 3 breeds.
Measured on 298 test images (seed 0; layer and threshold chosen on val), mIoU in %: LayerCAM 78.2 at
pw_11, DGL 77.7 at pw_9, FullGrad 77.9, KPCA-CAM 76.3, CAM 56.8; top-1 95.6. RandomCAM has 28.3.
"""

import os

from ml_collections import ConfigDict

from wsol_jax.configs import coco_seg_mobilenet_v1


def get_config() -> ConfigDict:
    """The experiment."""
    config = coco_seg_mobilenet_v1.get_config()
    config.data.root = f'{os.environ.get("WSOL_DATA", "data")}/pets_voc'
    config.network.input_size = 224
    config.train.loss = 'softmax'
    config.train.epochs = 8
    config.train.batch_size = 32
    config.localize.batch_size = 25
    return config

r"""Seeds of every training-free method for the 8 most frequent classes of 250 COCO images.

    python -m experiments.voc_folder --source voc --root DATA/coco_seg --classes 8 --out DATA/coco8
    WSOL_DATA=DATA python -m wsol_jax.main --config configs/coco_seg_mobilenet_v1.py --workdir DIR
    WSOL_DATA=DATA python -m experiments.seed_table --workdir DIR \
        --config configs/coco_seg_mobilenet_v1.py

DATA holds `weights/mobilenet_v1.safetensors` and `coco_seg/`, COCO in the layout of VOC.
MobileNetV1 starts from its ImageNet weights and learns which classes are in an image, of several
labels each; `conv_0` to block 6 keep their weights. Methods that run the network hundreds of times
an image are left out: Score-, SS-, IS- and Ablation-CAM, SmoothGrad, Integrated Gradients.

Published: nothing on these images.
Not measured here.
"""

import os

from ml_collections import ConfigDict

from wsol_jax.config import default_config

METHODS = (
    *('cam', 'dgl', 'sgl_g1', 'grad_cam', 'grad_cam_pp', 'smooth_grad_cam_pp', 'xgrad_cam'),
    *('hires_cam', 'grad_cam_elementwise', 'layer_cam', 'shapley_cam', 'eigen_grad_cam'),
    *('refine_cam', 'full_grad', 'eigen_cam', 'kpca_cam', 'fem', 'dff', 'saliency'),
    *('guided_backprop', 'random_cam'),
)


def get_config() -> ConfigDict:
    """The experiment."""
    data = os.environ.get('WSOL_DATA', 'data')
    config = default_config()
    config.task = 'segmentation'
    config.data.source = 'voc'
    config.data.root = f'{data}/coco8'
    config.network.name = 'mobilenet_v1'
    config.network.weights = f'{data}/weights/mobilenet_v1.safetensors'
    config.network.input_size = 320
    config.train.loss = 'sigmoid'
    config.train.epochs = 20
    config.train.batch_size = 16
    config.train.optimizer = 'adamw'
    config.train.learning_rate = 2e-4
    config.train.head = 5.0
    config.train.freeze = ('conv_0', r'dw_[1-6]\.', r'pw_[1-6]\.')
    config.localize.methods = METHODS
    config.localize.layers = ('pw_9', 'pw_11', 'pw_13')
    config.localize.batch_size = 10
    config.evaluate.threshold_step = 0.02
    return config

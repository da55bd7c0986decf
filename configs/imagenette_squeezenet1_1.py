r"""SqueezeNet 1.1 on real ILSVRC validation images of 10 classes, no training.

    WSOL_DATA=DATA python -m wsol_jax.main \
        --config configs/imagenette_squeezenet1_1.py --workdir DIR

DATA as for configs/imagenette_mobilenet_v1.py, with `weights/squeezenet1_1.safetensors`.
Measured on the 150 test images (layer and threshold chosen on val), GT-known Loc in %: DGL and CAM
55.3 (DGL at conv10, where it is CAM), LayerCAM 53.3 at fire9.
"""

from ml_collections import ConfigDict

from wsol_jax.configs import imagenette_mobilenet_v1


def get_config() -> ConfigDict:
    """The experiment."""
    config = imagenette_mobilenet_v1.get_config()
    config.network.name = 'squeezenet1_1'
    config.network.weights = config.network.weights.replace('mobilenet_v1', 'squeezenet1_1')
    config.network.preprocessing = 'caffe'
    return config

"""The demo: a small ResNet trained on generated shapes."""

from wsol_jax.config import default_config


def get_config(variant: str = ''):
    """The experiment."""
    config = default_config()
    config.data.source = 'shapes'
    config.network.name = 'resnet10'
    config.network.options = {'width': 16, 'output_stride': 8}
    config.network.input_size = 64
    config.data.shapes_size = 64
    config.train.epochs = 6
    config.train.batch_size = 32
    config.train.learning_rate = 0.05
    config.localize.methods = ('dgl', 'cam', 'grad_cam', 'layer_cam')
    config.localize.batch_size = 50
    config.evaluate.size = 64
    return config

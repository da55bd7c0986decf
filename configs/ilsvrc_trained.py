r"""HaS, CutMix, ADL, ACoL and SPG on ILSVRC 2012, trained as wsolevaluation does.

    WSOL_DATA=DATA python -m wsol_jax.main --config configs/ilsvrc_trained.py:acol_vgg16 \
        --workdir DIR

Variants: {has,cutmix,adl,acol,spg}_{vgg16,inception_v3,resnet50}. DATA and weights as for
configs/ilsvrc.py.

The recipe of wsolevaluation (Choe et al., CVPR 2020): Nesterov's SGD in batches of 32, 10 epochs,
the rate divided by 10 every 3, new layers 10 times as fast (ResNet50: its last stage, too), the
last checkpoint. Rates and options of its table were searched on val and are in no source we read:
rate and weight decay are those of the one command that it prints (VGG16 on OpenImages), options its
defaults, HaS's patches 32 pixels, which are among the paper's; its own grid of 4 counts pixels.
Two variants follow their papers' code instead. acol_vgg16: rate 0.0001, batches of 20, 6 epochs,
threshold 0.6, biases twice as fast. spg_inception_v3: rate 0.001, batches of 20, 5 epochs, crops of
321 from 356 pixels, background below 0.05, biases twice as fast, new layers no faster.
Networks differ a little: VGG16 has no extra pooling before ACoL's classifiers, InceptionV3's maps
are 28 x 28 as in SPG's code, SPG's classifier on ResNet50 has two convolutions where wsolevaluation
has none, and CutMix and ADL draw for every image where both draw once for a batch.

Published, not reproduced here. Top-1 / Top-5 / GT-known Loc, in brackets the source: ACoL VGG16
45.83 / 59.43 / 62.96 (BAS, CVPR 2022); SPG InceptionV3 48.60 / 60.00 / 64.69 (BAS); ADL VGG16 44.9
and InceptionV3 48.7 Top-1, CutMix ResNet50 47.25 (gyguo's list). MaxBoxAccV2 minus that of CAM, of
VGG16, InceptionV3, ResNet50 (wsolevaluation): ACoL -2.6, 0.3, -1.4; SPG -0.1, -0.1, -0.4. Of HaS on
these networks we know none for certain.
Not measured here: anything; the training is too large for the machine this was written on.
"""

from typing import Any

from ml_collections import ConfigDict

from wsol_jax.config import ConfigError
from wsol_jax.configs import ilsvrc
from wsol_jax.names import unknown_name

_NETWORKS = ('vgg16', 'inception_v3', 'resnet50')
_METHODS = ('has', 'cutmix', 'adl', 'acol', 'spg')
VARIANTS = tuple(f'{method}_{network}' for method in _METHODS for network in _NETWORKS)

_FASTER = {'vgg16': 'conv6|fc', 'inception_v3': 'Mixed_6[fg]|fc', 'resnet50': 'layer4|fc'}
# Of the plain network: behind what the classifiers of ACoL and SPG read.
_UNREAD = {'vgg16': 'conv6|fc', 'inception_v3': 'Mixed_6[fg]|fc', 'resnet50': 'fc'}
_READ = {'vgg16': 'conv5_3', 'inception_v3': 'Mixed_6e', 'resnet50': 'stage4'}
_DROPPED = {
    'vgg16': ('pool3', 'conv4_3', 'conv5_3'),
    'inception_v3': ('Mixed_5d', 'Mixed_6e', 'Mixed_6g'),
    'resnet50': ('stage3/block1', 'stage4/block1', 'stage4'),
}
_SIDES = {
    'vgg16': {'lower': 'conv4_3', 'upper': 'conv5_3', 'width': 512},
    'inception_v3': {},
    'resnet50': {'lower': 'stage3/block1', 'upper': 'stage3', 'side_width': 1024},
}


def get_config(variant: str = 'acol_vgg16') -> ConfigDict:
    """The experiment with one of VARIANTS."""
    if variant not in VARIANTS:
        raise ConfigError(unknown_name('variant', variant, VARIANTS))
    method, network = variant.split('_', 1)
    config = ilsvrc.get_config(network)
    if network == 'resnet50':
        config.network.options = {'output_stride': 16}
    config.train.method = method
    config.train.options = _options(method, network)
    config.train.epochs = 10
    config.train.learning_rate = 0.00227913316
    config.train.step_epochs = (3.0, 6.0, 9.0)
    config.train.multipliers = ((rf'^({_FASTER[network]}|heads)\.', 10.0),)
    config.train.keep = 'last'
    if method in ('acol', 'spg'):
        config.train.freeze = (rf'({_UNREAD[network]})\.',)
        config.localize.methods = (method, 'dgl', 'layer_cam')
        config.localize.layers = _up_to(_READ[network], config.localize.layers)
    if variant in _OWN:
        _OWN[variant](config)
    return config


def _options(method: str, network: str) -> dict[str, Any]:
    options: dict[str, dict[str, Any]] = {
        'has': {'grid': 7},
        'cutmix': {},
        'adl': {'layers': _DROPPED[network]},
        'acol': {'delta': 0.7, 'layer': _READ[network]},
        'spg': {'attention': (0.7, 0.01), 'layer': _READ[network], **_SIDES[network]},
    }
    return options[method]


def _up_to(last: str, layers: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(layers[: list(layers).index(last) + 1])


def _acol(config: ConfigDict) -> None:
    """As in the code of ACoL."""
    config.train.options.delta = 0.6
    config.train.batch_size = 20
    config.train.epochs = 6
    config.train.learning_rate = 1e-4
    config.train.schedule = 'constant'
    config.train.multipliers = (('^heads', 10.0), ('bias$', 2.0))
    config.augment.crop = 'short_side'


def _spg(config: ConfigDict) -> None:
    """As in the code of SPG."""
    config.train.options.attention = (0.7, 0.05)
    config.network.input_size = 321
    config.augment.crop = 'short_side'
    config.augment.margin = 35
    config.train.batch_size = 20
    config.train.epochs = 5
    config.train.learning_rate = 1e-3
    config.train.schedule = 'constant'
    config.train.multipliers = (('bias$', 2.0),)


_OWN = {'acol_vgg16': _acol, 'spg_inception_v3': _spg}

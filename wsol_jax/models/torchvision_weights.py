"""What torchvision publishes of its weights, for the networks that are ours, too.

The facts are those of its documentation and of `torchvision.models.*_Weights`.
"""

import re
from dataclasses import dataclass

from wsol_jax.models.weights import WeightsError
from wsol_jax.names import unknown_name

ADDRESS = 'https://download.pytorch.org/models/'


@dataclass(frozen=True)
class TorchvisionWeights:
    """One published file.

    Attributes:
        network: torchvision's name, which is ours.
        name: such as 'IMAGENET1K_V1'.
        file: below `ADDRESS`.
        resize: the short side in pixels before the crop, bilinear.
        crop: the side of the centre crop, which is the network's input.
    """

    network: str
    name: str
    file: str
    resize: int = 256
    crop: int = 224

    @property
    def sha256(self) -> str:
        """The first eight digits of its SHA-256, with which its name ends."""
        return re.split('[-.]', self.file)[-2]


_V1, _V2 = 'IMAGENET1K_V1', 'IMAGENET1K_V2'
TORCHVISION = (
    TorchvisionWeights('resnet18', _V1, 'resnet18-f37072fd.pth'),
    TorchvisionWeights('resnet34', _V1, 'resnet34-b627a593.pth'),
    TorchvisionWeights('resnet50', _V1, 'resnet50-0676ba61.pth'),
    TorchvisionWeights('resnet50', _V2, 'resnet50-11ad3fa6.pth', 232),
    TorchvisionWeights('resnet101', _V1, 'resnet101-63fe2227.pth'),
    TorchvisionWeights('resnet101', _V2, 'resnet101-cd907fc2.pth', 232),
    TorchvisionWeights('vgg16', _V1, 'vgg16-397923af.pth'),
    TorchvisionWeights('squeezenet1_1', _V1, 'squeezenet1_1-b8a52dc0.pth'),
    TorchvisionWeights('inception_v3', _V1, 'inception_v3_google-0cc3c7bd.pth', 342, 299),
)


def of_name(name: str) -> TorchvisionWeights:
    """The weights of 'resnet50.IMAGENET1K_V1', or the newest ones of 'resnet50'.

    Raises:
        WeightsError: there are none of this name.
    """
    known = {f'{weights.network}.{weights.name}': weights for weights in TORCHVISION}
    newest = {weights.network: weights for weights in TORCHVISION}
    if found := (newest | known).get(name):
        return found
    raise WeightsError(unknown_name('torchvision weights', name, [*newest, *known]))

"""VGG16 (Simonyan & Zisserman 2014, arXiv 1409.1556) with a CAM head instead of the MLP."""

import jax
from flax import nnx

from wsol_jax.models.layers import (
    Endpoints,
    Perturbations,
    conv,
    global_average_pool,
    glorot_uniform,
    max_pool,
)

# (convolutions, features) of the groups 1 to 5; a 2x2 max-pool after all but the last.
GROUPS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
ADDED = 1024

# torchvision's `features` counts convolutions, ReLUs and pools alike.
_INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_NAMES = [f'conv{g}_{i}' for g, (n, _) in enumerate(GROUPS, 1) for i in range(1, n + 1)]
WEIGHT_NAMES = tuple(
    (rf'^features\.{index}\.', f'{name}.') for index, name in zip(_INDICES, _NAMES, strict=True)
)
HEAD = r'^(classifier|pre_logits|head|conv6|fc)\b'


class VGG16(nnx.Module):
    """VGG16 without pool5, plus a 3x3 convolution, global average pooling and classifier.

    Endpoints, after ReLU: conv1_1, conv1_2, pool1, conv2_1 ... conv5_3, conv6.
    """

    def __init__(self, num_classes: int, *, rngs: nnx.Rngs):
        width = 3
        for group, (count, features) in enumerate(GROUPS, start=1):
            for number in range(1, count + 1):
                setattr(self, f'conv{group}_{number}', conv(width, features, 3, rngs=rngs))
                width = features
        self.conv6 = conv(width, ADDED, 3, kernel_init=glorot_uniform, rngs=rngs)
        self.fc = nnx.Linear(ADDED, num_classes, kernel_init=glorot_uniform, rngs=rngs)

    def __call__(
        self, inputs: jax.Array, perturb: Perturbations | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """[B,H,W,3] -> (logits [B,C], endpoints)."""
        endpoints = Endpoints(perturb)
        x = inputs
        for group, (count, _) in enumerate(GROUPS, start=1):
            for number in range(1, count + 1):
                name = f'conv{group}_{number}'
                x = endpoints.tap(name, nnx.relu(getattr(self, name)(x)))
            if group < len(GROUPS):
                x = endpoints.tap(f'pool{group}', max_pool(x, 2, 2, 'VALID'))
        x = endpoints.tap('conv6', nnx.relu(self.conv6(x)))
        return self.fc(global_average_pool(x)), endpoints.finish()

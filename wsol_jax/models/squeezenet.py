"""SqueezeNet 1.1 (Iandola et al. 2016, arXiv 1602.07360), in torchvision's layout."""

import jax
import jax.numpy as jnp
from flax import nnx

from wsol_jax.models.layers import (
    Dropout,
    Endpoints,
    Perturbations,
    conv,
    global_average_pool,
    max_pool,
    torch_pads,
)

STEM = 64
DROPOUT = 0.5
# name -> (index in torchvision's `features`, squeeze, expand, max-pool before it)
FIRES = {
    'fire2': (3, 16, 64, True),
    'fire3': (4, 16, 64, False),
    'fire4': (6, 32, 128, True),
    'fire5': (7, 32, 128, False),
    'fire6': (9, 48, 192, True),
    'fire7': (10, 48, 192, False),
    'fire8': (11, 64, 256, False),
    'fire9': (12, 64, 256, False),
}

WEIGHT_NAMES = (
    (r'^features\.0\.', 'conv1.'),
    *((rf'^features\.{row[0]}\.', f'{name}.') for name, row in FIRES.items()),
    (r'^classifier\.1\.', 'conv10.'),
)
HEAD = r'^(classifier|conv10)\b'


class Fire(nnx.Module):
    """A 1x1 squeeze, then 1x1 and 3x3 expansions side by side."""

    def __init__(self, in_features: int, squeeze: int, expand: int, *, rngs: nnx.Rngs):
        self.squeeze = conv(in_features, squeeze, 1, rngs=rngs)
        self.expand1x1 = conv(squeeze, expand, 1, rngs=rngs)
        self.expand3x3 = conv(squeeze, expand, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B,H,W,in_features] -> [B,H,W,2*expand]."""
        x = nnx.relu(self.squeeze(x))
        return nnx.relu(jnp.concatenate([self.expand1x1(x), self.expand3x3(x)], axis=-1))


class SqueezeNet(nnx.Module):
    """SqueezeNet 1.1: the logits are the global average of conv10's C activations.

    Endpoints: fire2 ... fire9, conv10 (after its ReLU). Dropout before conv10 in training.
    """

    def __init__(self, num_classes: int, *, rngs: nnx.Rngs):
        self.conv1 = conv(3, STEM, 3, strides=2, padding='VALID', rngs=rngs)
        width = STEM
        for name, (_, squeeze, expand, _) in FIRES.items():
            setattr(self, name, Fire(width, squeeze, expand, rngs=rngs))
            width = 2 * expand
        self.dropout = Dropout(DROPOUT, rngs=rngs)
        self.conv10 = conv(width, num_classes, 1, rngs=rngs)

    def __call__(
        self, inputs: jax.Array, perturb: Perturbations | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """[B,H,W,3] -> (logits [B,C], endpoints)."""
        endpoints = Endpoints(perturb)
        x = nnx.relu(self.conv1(inputs))
        for name, (_, _, _, pooled) in FIRES.items():
            if pooled:
                x = max_pool(x, 3, 2, torch_pads(x.shape[1:3], 3, 2, 0, ceil_mode=True))
            x = endpoints.tap(name, getattr(self, name)(x))
        x = endpoints.tap('conv10', nnx.relu(self.conv10(self.dropout(x))))
        return global_average_pool(x), endpoints.finish()

"""MobileNetV1 1.0 with folded batch normalisation (Howard et al. 2017, arXiv 1704.04861)."""

import jax
import jax.numpy as jnp
from flax import nnx

from wsol_jax.models.layers import (
    PADDINGS,
    Endpoints,
    Pads,
    Perturbations,
    conv,
    depthwise_conv,
    global_average_pool,
    glorot_uniform,
    he_normal,
)
from wsol_jax.names import unknown_name

STEM = 32
# Of the pointwise convolutions, blocks 1 to 13.
FEATURES = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)

# output stride -> the blocks at whose depthwise convolution the sides are halved.
HALVED = {32: (2, 4, 6, 12), 16: (2, 4, 12)}

WEIGHT_NAMES = ()
HEAD = r'^classifier\b'


class DepthwiseConv(nnx.Module):
    """A 3x3 convolution of every channel by itself, with a bias."""

    def __init__(self, features: int, stride: int, pads: Pads, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(he_normal(rngs.params(), (3, 3, 1, features)))
        self.bias = nnx.Param(jnp.zeros(features))
        self.stride = stride
        self.pads = nnx.static(pads)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B,H,W,K] -> [B,H',W',K]."""
        kernel, bias = self.kernel[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        return depthwise_conv(x, kernel, self.stride, self.pads) + bias


class MobileNetV1(nnx.Module):
    """Depthwise separable convolutions with biases and ReLU6.

    `padding` is 'same' (TensorFlow's) or 'torchvision' (a pixel on each side, as weights of timm
    have it): they differ where the stride is 2.

    At `output_stride` 16 pw_6 ... pw_11 are as fine as pw_5, as in BAS (Wu et al., CVPR 2022).

    Endpoints: pw_1 ... pw_13.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        output_stride: int = 32,
        padding: str = 'same',
        rngs: nnx.Rngs,
    ):
        if output_stride not in HALVED:
            raise ValueError(f'output_stride {output_stride}; it must be one of {list(HALVED)}')
        if padding not in PADDINGS:
            raise ValueError(unknown_name('padding', padding, PADDINGS))
        pads: Pads = 'SAME' if padding == 'same' else ((1, 1), (1, 1))
        self.conv_0 = conv(3, STEM, 3, strides=2, padding=pads, rngs=rngs)
        width = STEM
        for number, features in enumerate(FEATURES, start=1):
            stride = 2 if number in HALVED[output_stride] else 1
            setattr(self, f'dw_{number}', DepthwiseConv(width, stride, pads, rngs=rngs))
            setattr(self, f'pw_{number}', conv(width, features, 1, rngs=rngs))
            width = features
        self.classifier = nnx.Linear(width, num_classes, kernel_init=glorot_uniform, rngs=rngs)

    def __call__(
        self, inputs: jax.Array, perturb: Perturbations | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """[B,H,W,3] -> (logits [B,C], endpoints)."""
        endpoints = Endpoints(perturb)
        x = nnx.relu6(self.conv_0(inputs))
        for number in range(1, len(FEATURES) + 1):
            x = nnx.relu6(getattr(self, f'dw_{number}')(x))
            x = endpoints.tap(f'pw_{number}', nnx.relu6(getattr(self, f'pw_{number}')(x)))
        return self.classifier(global_average_pool(x)), endpoints.finish()

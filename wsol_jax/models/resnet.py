"""ResNet (He et al. 2015, arXiv 1512.03385) in torchvision's layout."""

from collections.abc import Sequence

import jax
from flax import nnx

from wsol_jax.models.layers import (
    ConvNorm,
    Endpoints,
    Perturbations,
    global_average_pool,
    glorot_uniform,
    max_pool,
    torch_pads,
)
from wsol_jax.names import shown

# depth -> (blocks of the four stages, bottleneck); 10 is for tests and demonstrations.
STAGES = {
    10: ((1, 1, 1, 1), False),
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}
# output stride -> strides of the four stages.
STRIDES = {32: (1, 2, 2, 2), 16: (1, 2, 2, 1), 8: (1, 2, 1, 1)}
EXPANSION = 4

WEIGHT_NAMES = (
    (r'\bconv(\d)\.', r'conv\1.conv.'),
    (r'\bbn(\d)\.', r'conv\1.bn.'),
    (r'\bdownsample\.0\.', 'downsample.conv.'),
    (r'\bdownsample\.1\.', 'downsample.bn.'),
)
HEAD = r'^fc\b'


def _same(kernel: int, dilation: int = 1) -> tuple[tuple[int, int], tuple[int, int]]:
    """Torch's padding; TensorFlow's SAME differs from it where the stride is 2."""
    pad = (kernel // 2 * dilation,) * 2
    return pad, pad


def _checked(strides: Sequence[int]) -> tuple[int, ...]:
    right = isinstance(strides, tuple | list) and len(strides) in (0, 4)
    if not right or any(stride not in (1, 2) for stride in strides):
        raise ValueError(
            f'strides must be four numbers, 1 or 2, such as (1, 2, 1, 2), got {shown(strides)}'
        )
    return tuple(strides)


class Block(nnx.Module):
    """A residual block: two 3x3 convolutions, or the 1x1, 3x3, 1x1 bottleneck.

    The stride is on the (first) 3x3 convolution; `dilations` are of that and of one after it.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        stride: int,
        bottleneck: bool,
        dilations: tuple[int, int] = (1, 1),
        *,
        rngs: nnx.Rngs,
    ):
        features = width * EXPANSION if bottleneck else width
        first, second = dilations
        # (kernel, features, stride, dilation) of the convolutions, in order.
        plan = (
            ((1, width, 1, 1), (3, width, stride, first), (1, features, 1, 1))
            if bottleneck
            else ((3, width, stride, first), (3, width, 1, second))
        )
        previous = in_features
        for number, (kernel, out, step, apart) in enumerate(plan, start=1):
            layer = ConvNorm(
                previous,
                out,
                kernel,
                strides=step,
                padding=_same(kernel, apart),
                dilation=apart,
                relu=number < len(plan),
                rngs=rngs,
            )
            setattr(self, f'conv{number}', layer)
            previous = out
        self.depth = len(plan)
        self.downsample = (
            ConvNorm(in_features, features, 1, strides=stride, relu=False, rngs=rngs)
            if stride > 1 or in_features != features
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B,H,W,in_features] -> [B,H',W',features], after ReLU."""
        shortcut = x if self.downsample is None else self.downsample(x)
        for number in range(1, self.depth + 1):
            x = getattr(self, f'conv{number}')(x)
        return nnx.relu(x + shortcut)


class ResNet(nnx.Module):
    """ResNet v1 with its stride on the 3x3 convolution of a bottleneck.

    `strides` are those of the four stages, where they are not to be as `output_stride` has them:
    at (1, 2, 1, 2) stage3 is as fine as stage2. `dilated` lets 3x3 convolutions behind a stride
    that is left out look as far as if it were there (DeepLab, as torchvision has it).

    Endpoints, after ReLU: stage1/stem, which its first block sees, stage1/block1, ..., stage1,
    stage2/block1, ..., stage4.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int,
        *,
        width: int = 64,
        output_stride: int = 32,
        strides: Sequence[int] = (),
        dilated: bool = False,
        rngs: nnx.Rngs,
    ):
        if output_stride not in STRIDES:
            raise ValueError(f'output_stride {output_stride}; it must be one of {list(STRIDES)}')
        strides = _checked(strides) or STRIDES[output_stride]
        blocks, bottleneck = STAGES[depth]
        self.conv1 = ConvNorm(3, width, 7, strides=2, padding=_same(7), rngs=rngs)
        features, apart = width, 1
        for stage, (count, stride) in enumerate(zip(blocks, strides, strict=True)):
            layer, before = [], apart
            if dilated and stride < STRIDES[32][stage]:
                apart *= 2
            for number in range(count):
                step, dilations = (1, (apart, apart)) if number else (stride, (before, apart))
                block = Block(features, width << stage, step, bottleneck, dilations, rngs=rngs)
                layer.append(block)
                features = (width << stage) * (EXPANSION if bottleneck else 1)
            setattr(self, f'layer{stage + 1}', nnx.List(layer))
        self.fc = nnx.Linear(features, num_classes, kernel_init=glorot_uniform, rngs=rngs)

    def __call__(
        self, inputs: jax.Array, perturb: Perturbations | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """[B,H,W,3] -> (logits [B,C], endpoints)."""
        endpoints = Endpoints(perturb)
        x = self.conv1(inputs)
        x = endpoints.tap('stage1/stem', max_pool(x, 3, 2, torch_pads(x.shape[1:3], 3, 2, 1)))
        for stage in range(1, 5):
            for number, block in enumerate(getattr(self, f'layer{stage}'), start=1):
                x = endpoints.tap(f'stage{stage}/block{number}', block(x))
            x = endpoints.tap(f'stage{stage}', x)
        return self.fc(global_average_pool(x)), endpoints.finish()

"""InceptionV3 for localization, "SPG-plain" (Szegedy et al. 2015, arXiv 1512.00567; Zhang et
al. 2018, arXiv 1807.08902): the trunk to Mixed_6e at output stride 8, two added convolutions.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from wsol_jax.models.layers import (
    PADDINGS,
    ConvNorm,
    Dropout,
    Endpoints,
    Pads,
    Perturbations,
    avg_pool,
    conv,
    global_average_pool,
    glorot_uniform,
    max_pool,
    near_identity,
    torch_pads,
)
from wsol_jax.names import unknown_name

EPSILON = 1e-3
MOMENTUM = 0.999
DROPOUT = 0.5
ADDED = 1024
ADDED_INITS = {'glorot': glorot_uniform, 'identity': near_identity}

# (name, features, kernel side, stride, torchvision's padding); a max-pool is a name alone.
STEM: tuple[tuple, ...] = (
    ('Conv2d_1a_3x3', 32, 3, 2, 1),
    ('Conv2d_2a_3x3', 32, 3, 1, 0),
    ('Conv2d_2b_3x3', 64, 3, 1, 1),
    ('MaxPool_3a_3x3',),
    ('Conv2d_3b_1x1', 80, 1, 1, 0),
    ('Conv2d_4a_3x3', 192, 3, 1, 0),
    ('MaxPool_5a_3x3',),
)

# A branch is a chain of (name, features, kernel), with 'avg' or 'max' for a 3x3 pool.
Branch = tuple[str | tuple[str, int, tuple[int, int]], ...]


def _block_a(pool_features: int) -> tuple[Branch, ...]:
    return (
        (('branch1x1', 64, (1, 1)),),
        (('branch5x5_1', 48, (1, 1)), ('branch5x5_2', 64, (5, 5))),
        (
            ('branch3x3dbl_1', 64, (1, 1)),
            ('branch3x3dbl_2', 96, (3, 3)),
            ('branch3x3dbl_3', 96, (3, 3)),
        ),
        ('avg', ('branch_pool', pool_features, (1, 1))),
    )


_BLOCK_B: tuple[Branch, ...] = (
    (('branch3x3', 384, (3, 3)),),
    (
        ('branch3x3dbl_1', 64, (1, 1)),
        ('branch3x3dbl_2', 96, (3, 3)),
        ('branch3x3dbl_3', 96, (3, 3)),
    ),
    ('max',),
)


def _block_c(width: int) -> tuple[Branch, ...]:
    return (
        (('branch1x1', 192, (1, 1)),),
        (
            ('branch7x7_1', width, (1, 1)),
            ('branch7x7_2', width, (1, 7)),
            ('branch7x7_3', 192, (7, 1)),
        ),
        (
            ('branch7x7dbl_1', width, (1, 1)),
            ('branch7x7dbl_2', width, (7, 1)),
            ('branch7x7dbl_3', width, (1, 7)),
            ('branch7x7dbl_4', width, (7, 1)),
            ('branch7x7dbl_5', 192, (1, 7)),
        ),
        ('avg', ('branch_pool', 192, (1, 1))),
    )


BLOCKS: dict[str, tuple[Branch, ...]] = {
    'Mixed_5b': _block_a(32),
    'Mixed_5c': _block_a(64),
    'Mixed_5d': _block_a(64),
    'Mixed_6a': _BLOCK_B,
    'Mixed_6b': _block_c(128),
    'Mixed_6c': _block_c(160),
    'Mixed_6d': _block_c(160),
    'Mixed_6e': _block_c(192),
}

WEIGHT_NAMES = ()
HEAD = r'^(Mixed_6[fg]|Mixed_7|AuxLogits|fc)'


class Mixed(nnx.Module):
    """Branches side by side, concatenated in their order; all at stride 1."""

    def __init__(
        self, in_features: int, branches: Sequence[Branch], count_padding: bool, *, rngs: nnx.Rngs
    ):
        self.branches = nnx.static(tuple(branches))
        self.count_padding = count_padding
        self.features = 0
        for branch in branches:
            width = in_features
            for op in branch:
                if not isinstance(op, str):
                    name, features, kernel = op
                    setattr(self, name, _trunk_conv(width, features, kernel, rngs=rngs))
                    width = features
            self.features += width

    def __call__(self, x: jax.Array, name: str, endpoints: Endpoints) -> jax.Array:
        """[B,H,W,in_features] -> [B,H,W,features]; taps `name/Branch_i`, then `name`."""
        outputs = []
        for number, branch in enumerate(self.branches):
            y = x
            for op in branch:
                y = self._step(op, y)
            outputs.append(endpoints.tap(f'{name}/Branch_{number}', y))
        return endpoints.tap(name, jnp.concatenate(outputs, axis=-1))

    def _step(self, op: str | tuple[str, int, tuple[int, int]], x: jax.Array) -> jax.Array:
        if op == 'avg':
            return avg_pool(x, 3, self.count_padding)
        if op == 'max':
            return max_pool(x, 3, 1, 'SAME')
        return getattr(self, op[0])(x)


class InceptionV3(nnx.Module):
    """InceptionV3 to Mixed_6e with Mixed_6a at stride 1, then Mixed_6f and Mixed_6g.

    `padding` is 'same' (TensorFlow's everywhere, average pools leave the padding out) or
    'torchvision' (that of the PyTorch SPG: no padding at Conv2d_2a and 4a, max-pools padded
    and rounded up, average pools count the padding). Dropout 0.5 before each added
    convolution and after the global average pool, in training only. `added` says how the kernels
    of the added convolutions start: 'glorot' as published, or near the 'identity', from which
    little data and few steps are enough.

    Endpoints: Mixed_5b/Branch_0, ..., Mixed_5b, ..., Mixed_6e, Mixed_6f, Mixed_6g.
    """

    def __init__(
        self, num_classes: int, *, padding: str = 'same', added: str = 'glorot', rngs: nnx.Rngs
    ):
        if padding not in PADDINGS:
            raise ValueError(unknown_name('padding', padding, PADDINGS))
        if added not in ADDED_INITS:
            raise ValueError(unknown_name('value of added', added, ADDED_INITS))
        self.same = padding == 'same'
        width = 3
        for row in STEM:
            if len(row) > 1:
                name, features, kernel, stride, pad = row
                pads: Pads = 'SAME' if self.same else ((pad, pad), (pad, pad))
                layer = _trunk_conv(width, features, kernel, stride, pads, rngs=rngs)
                setattr(self, name, layer)
                width = features
        for name, branches in BLOCKS.items():
            block = Mixed(width, branches, count_padding=not self.same, rngs=rngs)
            setattr(self, name, block)
            width = block.features
        self.Mixed_6f = conv(width, ADDED, 3, kernel_init=ADDED_INITS[added], rngs=rngs)
        self.Mixed_6g = conv(ADDED, ADDED, 3, kernel_init=ADDED_INITS[added], rngs=rngs)
        self.fc = nnx.Linear(ADDED, num_classes, kernel_init=glorot_uniform, rngs=rngs)
        self.dropout_6e = Dropout(DROPOUT, rngs=rngs)
        self.dropout_6f = Dropout(DROPOUT, rngs=rngs)
        self.dropout_pool = Dropout(DROPOUT, rngs=rngs)

    def __call__(
        self, inputs: jax.Array, perturb: Perturbations | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """[B,H,W,3] -> (logits [B,C], endpoints)."""
        endpoints = Endpoints(perturb)
        x = self._stem(inputs)
        for name in BLOCKS:
            x = getattr(self, name)(x, name, endpoints)
        x = endpoints.tap('Mixed_6f', nnx.relu(self.Mixed_6f(self.dropout_6e(x))))
        x = endpoints.tap('Mixed_6g', nnx.relu(self.Mixed_6g(self.dropout_6f(x))))
        return self.fc(self.dropout_pool(global_average_pool(x))), endpoints.finish()

    def _stem(self, x: jax.Array) -> jax.Array:
        for name, *conv_row in STEM:
            if conv_row:
                x = getattr(self, name)(x)
            else:
                pads = 'SAME' if self.same else torch_pads(x.shape[1:3], 3, 2, 1, ceil_mode=True)
                x = max_pool(x, 3, 2, pads)
        return x


def _trunk_conv(
    in_features: int,
    features: int,
    kernel: int | tuple[int, int],
    strides: int = 1,
    padding: Pads = 'SAME',
    *,
    rngs: nnx.Rngs,
) -> ConvNorm:
    return ConvNorm(
        in_features,
        features,
        kernel,
        strides=strides,
        padding=padding,
        epsilon=EPSILON,
        momentum=MOMENTUM,
        rngs=rngs,
    )

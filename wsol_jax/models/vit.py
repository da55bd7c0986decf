"""Vision transformers (Dosovitskiy et al. 2020, arXiv 2010.11929) under timm's names.

DeiT without distillation (Touvron et al. 2020, arXiv 2012.12877), DINO (Caron et al. 2021, arXiv
2104.14294) and AugReg (Steiner et al. 2021, arXiv 2106.10270) are the same networks.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from wsol_jax.models.layers import DropPath, Endpoints, Pads, Perturbations

WEIGHT_NAMES = ()  # the file's names are ours
HEAD = r'^(head\b|spatial_)'
EPSILON = 1e-6  # of the layer normalisations

_small_normal = nnx.initializers.truncated_normal(0.02)


class ViT(nnx.Module):
    """A vision transformer whose classifier reads the class token.

    Endpoints: the patches behind each block, block1 ... block12, and behind the last layer
    normalisation, norm; the class token is no part of them, perturbations are added on the patches
    alone. The class scores depend on block12 and norm only through heads that read them.

    The position embeddings are those of images of `image_size` pixels; for others they are resized
    as timm does: bicubic (Keys 1981 with a = -0.5), low-pass filtered where the grid gets smaller.

    Attributes:
        image_size: side in pixels of the images that it is made for.
        unread: endpoints that no logit depends on.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        width: int,
        heads: int,
        depth: int = 12,
        patch: int = 16,
        image_size: int = 224,
        drop_path: float = 0.0,
        rngs: nnx.Rngs,
    ):
        """The arguments are the options of the network.

        Args:
            num_classes: length of the logits.
            width: of a token.
            heads: of each attention.
            depth: number of blocks.
            patch: side of a patch in pixels.
            image_size: see the attributes.
            drop_path: probability in training that an image passes the last block by (stochastic
                depth, Huang et al. 2016, arXiv 1603.09382); it rises linearly from 0 at the first.
            rngs: for the initial weights and for stochastic depth.
        """
        _check(width, heads, patch, image_size, drop_path)
        self.image_size, self.patch = image_size, patch
        self.unread = (f'block{depth}', 'norm')
        count = (image_size // patch) ** 2
        self.patch_embed = PatchEmbed(patch, width, rngs=rngs)
        self.cls_token = nnx.Param(_small_normal(rngs.params(), (1, 1, width)))
        self.pos_embed = nnx.Param(_small_normal(rngs.params(), (1, 1 + count, width)))
        rates = np.linspace(0, drop_path, depth).tolist()
        self.blocks = nnx.List([Block(width, heads, rate, rngs=rngs) for rate in rates])
        self.norm = _layer_norm(width, rngs)
        self.head = _linear(width, num_classes, rngs)

    def __call__(
        self, inputs: jax.Array, perturb: Perturbations | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """[B,H,W,3] -> (logits [B,C], endpoints).

        Raises:
            ValueError: H or W is no multiple of the side of a patch.
        """
        endpoints = Endpoints(perturb)
        _check_sides(inputs.shape[1:3], self.patch)
        patches = self.patch_embed.proj(inputs)
        height, width = patches.shape[1:3]
        grid, x = (height, width), self._tokens(patches)
        for number, block in enumerate(self.blocks, start=1):
            x = _tapped(endpoints, f'block{number}', block(x), grid)
        x = _tapped(endpoints, 'norm', self.norm(x), grid)
        return self.head(x[:, 0]), endpoints.finish()

    def _tokens(self, patches: jax.Array) -> jax.Array:
        """Patches [B,h,w,D] -> the class token and the patches, with their positions [B,1+hw,D]."""
        batch, height, width, features = patches.shape
        first, grid = self.pos_embed[...][:, :1], self.pos_embed[...][:, 1:]
        positions = resized_positions(grid, (height, width)).astype(patches.dtype)
        class_token = (self.cls_token[...] + first).astype(patches.dtype)
        return jnp.concatenate(
            [
                jnp.broadcast_to(class_token, (batch, 1, features)),
                patches.reshape(batch, -1, features) + positions,
            ],
            axis=1,
        )


class PatchEmbed(nnx.Module):
    """The patches of an image as tokens: one linear layer, held as a convolution."""

    def __init__(self, patch: int, width: int, *, rngs: nnx.Rngs):
        self.proj = nnx.Conv(
            3,
            width,
            (patch, patch),
            strides=patch,
            padding='VALID',
            conv_general_dilated=_of_patches,
            rngs=rngs,
        )


class Block(nnx.Module):
    """Attention and a two-layer perceptron, each behind a layer normalisation and residual."""

    def __init__(self, width: int, heads: int, drop_path: float, *, rngs: nnx.Rngs):
        self.norm1 = _layer_norm(width, rngs)
        self.attn = Attention(width, heads, rngs=rngs)
        self.norm2 = _layer_norm(width, rngs)
        self.mlp = MLP(width, rngs=rngs)
        # Two, because each branch is dropped for itself.
        self.drop_path1 = DropPath(drop_path, rngs=rngs) if drop_path else None
        self.drop_path2 = DropPath(drop_path, rngs=rngs) if drop_path else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B,N,D] -> [B,N,D]."""
        attended = self.attn(self.norm1(x))
        x = x + (self.drop_path1(attended) if self.drop_path1 else attended)
        y = self.mlp(self.norm2(x))
        return x + (self.drop_path2(y) if self.drop_path2 else y)


class Attention(nnx.Module):
    """Self-attention of several heads (Vaswani et al. 2017, arXiv 1706.03762)."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.qkv = _linear(width, 3 * width, rngs)
        self.proj = _linear(width, width, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B,N,D] -> [B,N,D]."""
        batch, count, width = x.shape
        each = (batch, count, 3, self.heads, width // self.heads)
        # Heads in front: twice as fast on a CPU as products over axes in between.
        queries, keys, values = self.qkv(x).reshape(each).transpose(2, 0, 3, 1, 4)
        scores = (queries * each[-1] ** -0.5) @ keys.swapaxes(-1, -2)
        weights = jax.nn.softmax(scores.astype(jnp.float32)).astype(values.dtype)
        return self.proj((weights @ values).swapaxes(1, 2).reshape(x.shape))


class MLP(nnx.Module):
    """Two linear layers, the exact GELU between them."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.fc1 = _linear(width, 4 * width, rngs)
        self.fc2 = _linear(4 * width, width, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B,N,D] -> [B,N,D]."""
        return self.fc2(nnx.gelu(self.fc1(x), approximate=False))


def resized_positions(positions: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Position embeddings of a square of patches for another grid.

    Args:
        positions: [1,n,D], row by row.
        grid: (h, w).

    Returns:
        [1,h*w,D].
    """
    side, width = round(positions.shape[1] ** 0.5), positions.shape[2]
    if grid == (side, side):
        return positions
    square = positions.reshape(1, side, side, width)
    return jax.image.resize(square, (1, *grid, width), 'bicubic').reshape(1, -1, width)


def _tapped(endpoints: Endpoints, name: str, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Tokens [B,N,D] whose patches, behind the class token, went through an endpoint."""
    count, width = grid[0] * grid[1], x.shape[-1]
    patches = endpoints.tap(name, x[:, 1 : 1 + count].reshape(-1, *grid, width))
    patches = patches.reshape(-1, count, width)
    return jnp.concatenate([x[:, :1], patches, x[:, 1 + count :]], axis=1)


def _of_patches(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Pads, **how: Any
) -> jax.Array:
    """The convolution of patches that do not overlap, as one matrix product.

    Its weight gradient is one, too; as a convolution it is many times slower on a CPU.
    """
    del strides, padding, how
    batch, height, width, channels = x.shape
    side = kernel.shape[0]
    h, w = height // side, width // side
    x = x.reshape(batch, h, side, w, side, channels).swapaxes(2, 3)
    return x.reshape(batch, h, w, -1) @ kernel.reshape(-1, kernel.shape[-1])


def _layer_norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=EPSILON, rngs=rngs)


def _linear(before: int, after: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(before, after, kernel_init=_small_normal, rngs=rngs)


def _check(width: int, heads: int, patch: int, image_size: int, drop_path: float) -> None:
    if width % heads:
        raise ValueError(f'width {width} must be a multiple of heads, {heads}')
    if image_size % patch:
        raise ValueError(f'image_size {image_size} must be a multiple of patch, {patch}')
    if not 0 <= drop_path < 1:
        raise ValueError(f'drop_path {drop_path} must be in [0, 1)')


def _check_sides(shape: Sequence[int], patch: int) -> None:
    if any(side % patch for side in shape):
        fit = ' x '.join(str(max(round(side / patch), 1) * patch) for side in shape)
        raise ValueError(
            f'inputs of {" x ".join(map(str, shape))} pixels: both sides must be multiples of '
            f'{patch}, the side of a patch; {fit} would be'
        )

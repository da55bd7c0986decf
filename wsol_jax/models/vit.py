"""Vision transformers (Dosovitskiy et al. 2020, arXiv 2010.11929) under timm's names.

DeiT without distillation (Touvron et al. 2020, arXiv 2012.12877), DINO (Caron et al. 2021, arXiv
2104.14294) and AugReg (Steiner et al. 2021, arXiv 2106.10270) are the same networks.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from wsol_jax.models.layers import DropPath, Endpoints, Pads, Perturbations

WEIGHT_NAMES = ()  # the file's names are ours
HEAD = r'^(head\b|spatial_)'
EPSILON = 1e-6  # of the layer normalisations
MASKED = 3  # blocks that a spatial token masks, the last ones

_small_normal = nnx.initializers.truncated_normal(0.02)


class ViT(nnx.Module):
    """A vision transformer whose classifier reads the class token.

    Endpoints: the patches behind each block, block1 ... block12, and behind the last layer
    normalisation, norm; the class token is no part of them, perturbations are added on the patches
    alone. The class scores depend on block12 and norm only through heads that read them.

    block1/attention ... can be read: the attention weights behind the softmax and before a mask,
    the mean of the heads; its positions are the patches as keys, its channels are all tokens as
    queries, the class token first. What a query does not pay to patches it pays to the class token,
    and to the spatial token if there is one.

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
        spatial_token: bool = False,
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
            spatial_token: a token more, the last one, that masks the attention of the last three
                blocks, see `Attention`; the masks of the patches can be read at block10/mask ...
                block12/mask, [B,h,w,1].
            rngs: for the initial weights and for stochastic depth.
        """
        _check(width, heads, patch, image_size, drop_path, spatial_token)
        self.image_size, self.patch = image_size, patch
        self.unread = (f'block{depth}', 'norm')
        count = (image_size // patch) ** 2
        self.patch_embed = PatchEmbed(patch, width, rngs=rngs)
        self.cls_token = nnx.Param(_small_normal(rngs.params(), (1, 1, width)))
        self.pos_embed = nnx.Param(_small_normal(rngs.params(), (1, 1 + count, width)))
        if spatial_token:
            self.spatial_token = nnx.Param(_small_normal(rngs.params(), (1, 1, width)))
            self.spatial_embed = nnx.Param(_small_normal(rngs.params(), (1, 1, width)))
        masked = [spatial_token and block >= depth - MASKED for block in range(depth)]
        rates = np.linspace(0, drop_path, depth).tolist()
        each = zip(masked, rates, strict=True)
        self.blocks = nnx.List([Block(width, heads, *facts, rngs=rngs) for facts in each])
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
            x, seen = block(x)
            _show(endpoints, f'block{number}', seen, grid)
            x = _tapped(endpoints, f'block{number}', x, grid)
        x = _tapped(endpoints, 'norm', self.norm(x), grid)
        return self.head(x[:, 0]), endpoints.finish()

    def _tokens(self, patches: jax.Array) -> jax.Array:
        """Patches [B,h,w,D] -> class token, patches, spatial token, with positions: [B,N,D]."""
        batch, height, width, features = patches.shape
        first, grid = self.pos_embed[...][:, :1], self.pos_embed[...][:, 1:]
        positions = resized_positions(grid, (height, width)).astype(patches.dtype)

        def shared(token: jax.Array) -> jax.Array:
            return jnp.broadcast_to(token.astype(patches.dtype), (batch, 1, features))

        tokens = [
            shared(self.cls_token[...] + first),
            patches.reshape(batch, -1, features) + positions,
        ]
        if hasattr(self, 'spatial_token'):
            tokens.append(shared(self.spatial_token[...] + self.spatial_embed[...]))
        return jnp.concatenate(tokens, axis=1)


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


class Seen(NamedTuple):
    """What can be read of the attention of N tokens.

    Attributes:
        weights: queries by keys [B,N,N], behind the softmax and before a mask; mean of the heads.
        mask: of the keys [B,N], if there is one.
    """

    weights: jax.Array
    mask: jax.Array | None


class Block(nnx.Module):
    """Attention and a two-layer perceptron, each behind a layer normalisation and residual."""

    def __init__(self, width: int, heads: int, masked: bool, drop_path: float, *, rngs: nnx.Rngs):
        self.norm1 = _layer_norm(width, rngs)
        self.attn = Attention(width, heads, masked, rngs=rngs)
        self.norm2 = _layer_norm(width, rngs)
        self.mlp = MLP(width, rngs=rngs)
        # Two, because each branch is dropped for itself.
        self.drop_path1 = DropPath(drop_path, rngs=rngs) if drop_path else None
        self.drop_path2 = DropPath(drop_path, rngs=rngs) if drop_path else None

    def __call__(self, x: jax.Array) -> tuple[jax.Array, Seen]:
        """[B,N,D] -> ([B,N,D], what can be read of the attention)."""
        y, seen = self.attn(self.norm1(x))
        x = x + (self.drop_path1(y) if self.drop_path1 else y)
        y = self.mlp(self.norm2(x))
        return x + (self.drop_path2(y) if self.drop_path2 else y), seen


class Attention(nnx.Module):
    """Self-attention of several heads (Vaswani et al. 2017, arXiv 1706.03762).

    Where it is masked, the last token says what may be attended to (Wu et al., "Spatial-Aware Token
    for Weakly Supervised Object Localization", ICCV 2023): the weights of each key are multiplied
    by the sigmoid of the last token's score for it, the mean of the heads. They do not sum to 1
    then.
    """

    def __init__(self, width: int, heads: int, masked: bool = False, *, rngs: nnx.Rngs):
        self.heads, self.masked = heads, masked
        self.qkv = _linear(width, 3 * width, rngs)
        self.proj = _linear(width, width, rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, Seen]:
        """[B,N,D] -> ([B,N,D], what can be read)."""
        batch, count, width = x.shape
        each = (batch, count, 3, self.heads, width // self.heads)
        # Heads in front: twice as fast on a CPU as products over axes in between.
        queries, keys, values = self.qkv(x).reshape(each).transpose(2, 0, 3, 1, 4)
        scores = ((queries * each[-1] ** -0.5) @ keys.swapaxes(-1, -2)).astype(jnp.float32)
        weights = jax.nn.softmax(scores)
        mask = nnx.sigmoid(scores[:, :, -1].mean(axis=1)) if self.masked else None
        used = weights if mask is None else weights * mask[:, None, None]
        y = (used.astype(values.dtype) @ values).swapaxes(1, 2).reshape(x.shape)
        return self.proj(y), Seen(weights.mean(axis=1), mask)


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


def _show(endpoints: Endpoints, name: str, seen: Seen, grid: tuple[int, int]) -> None:
    """Attention and mask of the patches, behind the class token, as maps."""
    patches = slice(1, 1 + grid[0] * grid[1])
    of_patches = seen.weights[:, :, patches].swapaxes(1, 2)
    endpoints.show(f'{name}/attention', of_patches.reshape(-1, *grid, seen.weights.shape[1]))
    if seen.mask is not None:
        endpoints.show(f'{name}/mask', seen.mask[:, patches].reshape(-1, *grid, 1))


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


def _check(
    width: int, heads: int, patch: int, image_size: int, drop_path: float, spatial_token: bool
) -> None:
    if width % heads:
        raise ValueError(f'width {width} must be a multiple of heads, {heads}')
    if image_size % patch:
        raise ValueError(f'image_size {image_size} must be a multiple of patch, {patch}')
    if not 0 <= drop_path < 1:
        raise ValueError(f'drop_path {drop_path} must be in [0, 1)')
    if not isinstance(spatial_token, bool):
        raise ValueError(f'spatial_token must be True or False, got {spatial_token!r}')


def _check_sides(shape: Sequence[int], patch: int) -> None:
    if any(side % patch for side in shape):
        fit = ' x '.join(str(max(round(side / patch), 1) * patch) for side in shape)
        raise ValueError(
            f'inputs of {" x ".join(map(str, shape))} pixels: both sides must be multiples of '
            f'{patch}, the side of a patch; {fit} would be'
        )

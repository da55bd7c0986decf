"""Inter-pixel relations (Ahn, Cho and Kwak, CVPR 2019, arXiv 1904.05044).

After the authors' code (github.com/jiwoon-ahn/irn), whose weights of the losses it takes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from wsol_jax.config import ConfigError
from wsol_jax.data.label_maps import IGNORED, resized_label_map
from wsol_jax.data.records import Source, Targets
from wsol_jax.fields import Range, documented, setting
from wsol_jax.maps.paths import framed, moved, path_affinity, straight_paths
from wsol_jax.models import Network
from wsol_jax.models.heads import Heads, Outputs, Trunk, of_each_class
from wsol_jax.models.layers import conv
from wsol_jax.training.method import (
    ALL_BUT_HEADS,
    Shard,
    TrainedMethod,
    Update,
    known_endpoint,
)
from wsol_jax.training.methods.segmenter import Segmenter

BOUNDARY = 'irn'  # the name of the map
_EPSILON = 1e-5
_KINDS = ('foreground', 'background', 'different')


@documented
@dataclass(frozen=True, kw_only=True)
class IRN(TrainedMethod):
    """Branches on a frozen network find the boundaries between classes, from seeds alone.

    Seeds are label maps of the training images: classes, background, and 255 where uncertain. Of
    each pair of certain positions nearer than the radius it is known whether both are of one class;
    that no boundary lies between them where they are, and one does where they are not, is what the
    first branch learns. The second one learns displacements to the centre of the object. A random
    walk then carries class maps to the boundaries: `segmentation.walk`, or in Python
    `wsol_jax.segmentation.random_walk`.

    The map, 'irn', is the probability of a boundary, the same for all classes; logits are those of
    the plain network. Pairs count in all of the image, where the authors' code leaves out those of
    a frame; the mean of the displacements, which matters for instances alone, is not taken away.

    Weak where seeds are wrong near the edges of objects: their edges are what it learns.
    """

    best: ClassVar[tuple[str, Literal['max', 'min']]] = ('loss', 'min')
    labels: str = setting(
        '',
        "folder of the seeds of train and val, IMAGE_ID.png; 'truth' for the label maps of the "
        'data set',
        'checkpoints',
    )
    radius: int = setting(
        10,
        'pairs of positions that are nearer than this are looked at, at the resolution of the '
        'finest layer',
        'checkpoints',
        Range(2, 100),
    )
    layers: tuple[str, ...] = setting(
        (),
        'endpoints that the branches read; empty for all main ones of at most a quarter of the '
        "image's resolution (the paper adds the stem: 'stage1/stem' of a ResNet)",
        'checkpoints',
    )
    width: int = setting(
        32,
        'channels of each layer in the branch of boundaries; two to eight times as many in the '
        'other one',
        'checkpoints',
        Range(1, 65_536),
    )

    @property
    def freeze(self) -> tuple[str, ...]:
        """All but the branches."""
        return (ALL_BUT_HEADS,)

    def heads(self, network: Network, rngs: nnx.Rngs) -> Heads:
        """Both branches.

        Raises:
            ConfigError: there is no such layer.
        """
        return _Heads(network, _layers(network, self.layers), self.width, rngs)

    def targets(self, source: Source, required: bool) -> Targets:
        """'label_map', the seeds, and 'labels'; see `Segmenter.targets`."""
        return Segmenter(labels=self.labels).targets(source, required)

    def loss(
        self, outputs: Outputs, batch: Shard, update: Update
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The losses of affinities and displacements, each a mean over all pairs of the batch.

        Logged beside it: both for each image. See `TrainedMethod.loss`.
        """
        found = outputs.extras
        _, height, width = found['boundary'].shape
        labels = resized_label_map(batch.targets['label_map'], (height, width))
        pairs = pair_losses(found['boundary'], found['displacement'], labels, self.radius)
        valid = jax.tree.map(lambda x: jnp.sum(jnp.where(batch.valid, x, 0)), pairs)
        affinity, displacement = _means(*update.total(valid))
        of_each = _means(*pairs)
        return affinity + displacement, {'affinity': of_each[0], 'displacement': of_each[1]}


def pair_losses(
    boundary: jax.Array, displacement: jax.Array, labels: jax.Array, radius: int
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Sums over the pairs of positions i, j of each image that are nearer than a radius.

    Of those of one class, 'foreground' or 'background', -log a_ij, where they are of 'different'
    ones -log(1 - a_ij), with a_ij of `path_affinity`; and of displacements D the mean over both
    axes of |D_i - D_j - (j - i)|, 'foreground displacement', or of |D_i - D_j|, 'background
    displacement'.

    Args:
        boundary: [B,h,w], in (0, 1).
        displacement: (down, right) in positions, [B,h,w,2].
        labels: [B,h,w], 0 for background and 255 for uncertain: pairs with such do not count.
        radius: in positions.

    Returns:
        The sums [B] by name, and the numbers of pairs, float32 [B], of 'foreground', 'background'
        and 'different'.
    """
    reach, paths = radius - 1, straight_paths(radius)
    walls, classes = framed(boundary, reach, 1.0), framed(labels, reach, IGNORED)
    field = jnp.moveaxis(displacement, -1, 0)
    fields = framed(field, reach, 0.0)

    # Pairs of one offset after the other, computed again for the gradient.
    @jax.checkpoint
    def add(carried: Any, pair: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        offset, way = pair
        kinds = _kinds(labels, moved(classes, offset, reach))
        affinity = path_affinity(walls, way, reach)
        difference = field - moved(fields, offset, reach)
        towards = jnp.abs(difference - offset[:, None, None, None])
        terms = {
            'foreground': -jnp.log(affinity + _EPSILON),
            'background': -jnp.log(affinity + _EPSILON),
            'different': -jnp.log(1 + _EPSILON - affinity),
            'foreground displacement': jnp.mean(towards, axis=0),
            'background displacement': jnp.mean(jnp.abs(difference), axis=0),
        }
        sums = {n: jnp.sum(jnp.where(kinds[n.split()[0]], x, 0), (1, 2)) for n, x in terms.items()}
        counts = {n: jnp.sum(kind, (1, 2), dtype=jnp.float32) for n, kind in kinds.items()}
        return jax.tree.map(jnp.add, carried, (sums, counts)), None

    nothing = jnp.zeros(len(labels))
    names = (*_KINDS, 'foreground displacement', 'background displacement')
    start = dict.fromkeys(names, nothing), dict.fromkeys(_KINDS, nothing)
    return jax.lax.scan(add, start, tuple(map(jnp.asarray, paths)))[0]


def _kinds(first: jax.Array, second: jax.Array) -> dict[str, jax.Array]:
    """Of which of `_KINDS` pairs are, bool [B,h,w] each; of none where one is uncertain."""
    certain, same = (first != IGNORED) & (second != IGNORED), first == second
    return {
        'foreground': certain & same & (first > 0),
        'background': certain & same & (first == 0),
        'different': certain & ~same,
    }


def _means(
    sums: Mapping[str, jax.Array], counts: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """The losses of affinities and of displacements; 0 where there are no pairs."""
    mean = {n: total / (counts[n.split()[0]] + _EPSILON) for n, total in sums.items()}
    alike = (mean['foreground'] + mean['background']) / 2
    displacements = mean['foreground displacement'] + mean['background displacement']
    return (alike + mean['different']) / 2, displacements / 2


def _layers(network: Network, asked: tuple[str, ...]) -> tuple[str, ...]:
    if asked:
        return tuple(known_endpoint(network, 'layers', name) for name in asked)
    height = network.input_shape[0]
    found = [name for name in network.layers() if network.shapes[name][0] <= math.ceil(height / 4)]
    if not found:
        raise ConfigError(
            f'no main endpoint of {network.name} has at most a quarter of its resolution: name '
            f'some in config.train.options.layers; known: {", ".join(network.shapes)}'
        )
    return tuple(found)


class _Heads(Heads):
    map_name = BOUNDARY
    classifies = False

    def __init__(self, network: Network, layers: tuple[str, ...], width: int, rngs: nnx.Rngs):
        self.reads = layers
        shapes = [network.shapes[name] for name in layers]
        self.boundary = _Boundary([shape[2] for shape in shapes], width, rngs=rngs)
        self.displacement = _Displacement(shapes, width, rngs=rngs)

    def __call__(
        self, endpoints: Mapping[str, jax.Array], classes: jax.Array | None, trunk: Trunk
    ) -> dict[str, jax.Array]:
        """'boundary' [B,h,w] in (0, 1), 'displacement' [B,h,w,2] at the finest resolution."""
        del classes, trunk
        read = [endpoints[name] for name in self.reads]
        displacement = self.displacement(read).astype(jnp.float32)
        return {'boundary': self.boundary(read), 'displacement': displacement}

    def map(self, endpoints: Mapping[str, jax.Array], classes: jax.Array) -> jax.Array:
        """The boundary, for each class; see `Heads.map`."""
        return of_each_class(self.boundary([endpoints[name] for name in self.reads]), classes)


class _Level(nnx.Module):
    """A 1x1 convolution, group norm, a bilinear resize and ReLU."""

    def __init__(self, in_features: int, features: int, *, rngs: nnx.Rngs):
        self.conv = conv(in_features, features, 1, use_bias=False, rngs=rngs)
        # Groups of 8 channels, at most 16, as in the authors' code.
        groups = math.gcd(features, min(16, max(1, features // 8)))
        self.norm = nnx.GroupNorm(features, num_groups=groups, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: jax.Array, size: Sequence[int]) -> jax.Array:
        """[B,h,w,in_features] -> [B,*size,features]."""
        x = self.norm(self.conv(x))
        return nnx.relu(jax.image.resize(x, (len(x), *size, x.shape[-1]), 'linear'))


class _Boundary(nnx.Module):
    def __init__(self, features: Sequence[int], width: int, *, rngs: nnx.Rngs):
        self.levels = nnx.List([_Level(count, width, rngs=rngs) for count in features])
        self.last = conv(len(features) * width, 1, 1, rngs=rngs)

    def __call__(self, read: Sequence[jax.Array]) -> jax.Array:
        """L x [B,h_l,w_l,K_l] -> [B,h,w], float32."""
        size = _finest(read)
        levels = [level(x, size) for level, x in zip(self.levels, read, strict=True)]
        joined = self.last(jnp.concatenate(levels, axis=-1))
        return nnx.sigmoid(joined[..., 0].astype(jnp.float32))


class _Displacement(nnx.Module):
    """Coarse levels are joined at the finest of their resolutions, before the others are."""

    def __init__(self, shapes: Sequence[tuple[int, int, int]], width: int, *, rngs: nnx.Rngs):
        widths = [min(max(shape[2] // 2, 2 * width), 8 * width) for shape in shapes]
        finest = max(shape[:2] for shape in shapes)
        coarse = [shape[:2] != finest for shape in shapes]
        self.coarse = tuple(coarse)
        levels = zip(shapes, widths, strict=True)
        self.levels = nnx.List([_Level(shape[2], w, rngs=rngs) for shape, w in levels])
        low = sum(w for w, is_coarse in zip(widths, coarse, strict=True) if is_coarse)
        self.joined = _Level(low, 8 * width, rngs=rngs) if low else None
        fine = sum(widths) - low + (8 * width if low else 0)
        self.mixed = _Level(fine, 8 * width, rngs=rngs)
        self.last = conv(8 * width, 2, 1, use_bias=False, rngs=rngs)

    def __call__(self, read: Sequence[jax.Array]) -> jax.Array:
        """L x [B,h_l,w_l,K_l] -> [B,h,w,2]."""
        size = _finest(read)
        fine = self._levels(read, coarse=False)
        if self.joined is not None:
            low = jnp.concatenate(self._levels(read, coarse=True), axis=-1)
            fine = [*fine, self.joined(low, size)]
        return self.last(self.mixed(jnp.concatenate(fine, axis=-1), size))

    def _levels(self, read: Sequence[jax.Array], coarse: bool) -> list[jax.Array]:
        """The levels of one kind, at the finest of their resolutions."""
        chosen = [k for k, is_coarse in enumerate(self.coarse) if is_coarse == coarse]
        size = _finest([read[k] for k in chosen])
        return [self.levels[k](read[k], size) for k in chosen]


def _finest(read: Sequence[jax.Array]) -> tuple[int, int]:
    height, width = max(x.shape[1:3] for x in read)
    return height, width

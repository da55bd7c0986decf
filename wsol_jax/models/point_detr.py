"""Point-DETR3D's teacher (Gao et al., AAAI 2024, arXiv 2403.15317): one query an annotated point.

A bird's-eye view of LiDAR points and, where it is asked for, the features of the network on the
images of cameras are looked at by D-RoI attention. Here the points go through pillars in place of
voxels, and the pyramids are as large as the settings say; the published ones have 4 levels of 256
channels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from wsol_jax.models.box_codes import SIZE, boxes_of, footprint_grid
from wsol_jax.models.droi import DRoIAttention, hull_grid, projected
from wsol_jax.models.heads import Heads, Trunk
from wsol_jax.models.layers import ConvNorm, conv
from wsol_jax.models.network import Network
from wsol_jax.models.pillars import Grid, PillarEncoder, Pyramid, merged_levels

FIRST_ROI = (5.0, 5.0, 4.0)  # metres: l, w, h of the first region of interest
_RARE = 0.01  # probability of a class that the heads start with
_EDGE = 1e-5  # of a share: its logit is finite
_TEMPERATURE = 10_000.0
_ZEROS = nnx.initializers.zeros_init()


class Decoder(NamedTuple):
    """How large the decoder is.

    Attributes:
        width: channels of queries and levels.
        layers: of the decoder.
        heads: of the attention.
        points: deformable samples of each head and level.
        side: of the grid on the region of interest.
        hidden: channels of the feed-forward layers.
    """

    width: int = 256
    layers: int = 1
    heads: int = 8
    points: int = 16
    side: int = 7
    hidden: int = 512


class Scene(NamedTuple):
    """What queries look at; of K cameras those of the first frame come first.

    Attributes:
        bev: levels [B,h,w,width] of the bird's-eye view.
        image: levels [B*K,h,w,width] of the images; () without a camera.
        projection: [B*K,3,4] from metres to pixels.
        size: [B*K,2], width and height of the image that the projection is for.
    """

    bev: Sequence[jax.Array]
    image: Sequence[jax.Array]
    projection: jax.Array
    size: jax.Array


def sine_encoding(values: jax.Array, width: int) -> jax.Array:
    """Sines and cosines of values, then zeros (Vaswani et al. 2017, arXiv 1706.03762).

    Args:
        values: [...,D], such as shares between 0 and 1.
        width: of the encoding; D (width // 2D) angles have a sine and a cosine.

    Returns:
        [...,width]: of the first value all sines, then all cosines, then those of the next one.
    """
    count = width // (2 * values.shape[-1])
    periods = _TEMPERATURE ** (jnp.arange(count) / max(count, 1))
    angles = 2 * jnp.pi * values[..., None] / periods
    found = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    found = found.reshape(*values.shape[:-1], -1)
    return jnp.pad(found, [(0, 0)] * (found.ndim - 1) + [(0, width - found.shape[-1])])


def classes_within(targets: Mapping[str, jax.Array], grid: Grid) -> jax.Array:
    """The classes of objects whose annotated points lie in the grid, -1 for others: int [B,N]."""
    inside = grid.inside(targets['annotated'])
    return jnp.where(inside, targets['box_classes'], -1)


class PointQueries(nnx.Module):
    """Queries at annotated points: what is learnt of a class, where the point is, how large."""

    def __init__(
        self,
        grid: Grid,
        width: int,
        num_classes: int,
        sizes: Sequence[Sequence[float]],
        rngs: nnx.Rngs,
    ):
        self.grid, self.width, self.sizes = grid, width, tuple(map(tuple, sizes))
        self.embedding = nnx.Embed(num_classes, width, rngs=rngs)

    def __call__(
        self, targets: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Contents, positions [B,N,width], references [B,N,3] and which are valid, bool [B,N]."""
        classes = classes_within(targets, self.grid)
        known = jnp.maximum(classes, 0)
        references = self.grid.share(targets['annotated'])
        positions = sine_encoding(references, self.width)
        if self.sizes:
            extent = jnp.array(self.grid.high) - jnp.array(self.grid.low)
            positions += sine_encoding(jnp.array(self.sizes)[known] / extent, self.width)
        return self.embedding(known), positions, references, classes >= 0


class LearntQueries(nnx.Module):
    """As many queries as there are to be, wherever training puts them: those of DETR3D."""

    def __init__(self, count: int, width: int, rngs: nnx.Rngs):
        self.contents = nnx.Param(jax.random.normal(rngs.params(), (count, width)))
        self.references = nnx.Param(jax.random.uniform(rngs.params(), (count, 3)))
        self.width = width

    def __call__(
        self, targets: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """As of `PointQueries`; no annotation is looked at."""
        references = jnp.clip(self.references[...], 0, 1)
        positions = sine_encoding(references, self.width)
        parts = self.contents[...], positions, references
        batch = len(targets['points'])
        found = [jnp.broadcast_to(part, (batch, *part.shape)) for part in parts]
        return found[0], found[1], found[2], jnp.ones(found[0].shape[:2], bool)


class Layer(nnx.Module):
    """A layer of the decoder: cross-attention, norm, feed-forward, norm; and its predictions.

    Args:
        grid: of the bird's-eye view.
        decoder: sizes.
        levels: of the bird's-eye view, and of an image.
        cameras: K; of several, what a query sees in each is weighed by it and added.
        num_classes: of the predictions.
        talk: attention among the queries comes first, which keeps learnt ones apart; those at
            points need none.
        rngs: for the initial weights.
    """

    def __init__(
        self,
        grid: Grid,
        decoder: Decoder,
        levels: tuple[int, int],
        cameras: int,
        num_classes: int,
        talk: bool,
        rngs: nnx.Rngs,
    ):
        width, heads, points, side = decoder.width, decoder.heads, decoder.points, decoder.side
        self.grid, self.side, self.cameras = grid, side, cameras
        self.talk = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs) if talk else None
        self.talk_norm = nnx.LayerNorm(width, rngs=rngs) if talk else None
        self.bev = DRoIAttention(width, levels[0], heads, points, side, 2, rngs)
        self.image = (
            DRoIAttention(width, levels[1], heads, points, side, 3, rngs) if cameras else None
        )
        self.trust = nnx.Linear(width, cameras, rngs=rngs) if cameras > 1 else None
        self.fusion = _mlp(width * (2 if cameras else 1), width, width, rngs)
        self.norm1, self.norm2 = (nnx.LayerNorm(width, rngs=rngs) for _ in range(2))
        self.feed = _mlp(width, decoder.hidden, width, rngs)
        self.classes, self.boxes = (_mlp(width, width, width, rngs) for _ in range(2))
        rare = nnx.initializers.constant(math.log(_RARE / (1 - _RARE)))
        self.logits = nnx.Linear(width, num_classes, bias_init=rare, rngs=rngs)
        # Boxes start at the references.
        self.codes = nnx.Linear(width, SIZE, kernel_init=_ZEROS, rngs=rngs)

    def __call__(
        self,
        contents: jax.Array,
        positions: jax.Array,
        references: jax.Array,
        roi: jax.Array,
        scene: Scene,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """New contents [B,N,width], class logits [B,N,C] and codes of boxes [B,N,8].

        Args:
            contents: [B,N,width].
            positions: [B,N,width].
            references: [B,N,3], shares of the grid.
            roi: boxes [B,N,7], the regions of interest.
            scene: what is looked at.
        """
        if self.talk is not None and self.talk_norm is not None:
            asked = contents + positions
            contents = self.talk_norm(contents + self.talk(asked, asked, contents))
        queries = contents + positions
        seen = [self._from_above(queries, references, roi, scene)]
        if self.image is not None:
            seen.insert(0, self._in_images(self.image, queries, references, roi, scene))
        contents = self.norm1(contents + self.fusion(jnp.concatenate(seen, axis=-1)))
        contents = self.norm2(contents + self.feed(contents))
        change = self.codes(nnx.relu(self.boxes(contents)))
        shares = nnx.sigmoid(_logit(references) + change[..., :3])
        codes = jnp.concatenate([self.grid.metres(shares), change[..., 3:]], axis=-1)
        return contents, self.logits(nnx.relu(self.classes(contents))), codes

    def _from_above(
        self, queries: jax.Array, references: jax.Array, roi: jax.Array, scene: Scene
    ) -> jax.Array:
        sizes = jnp.array([level.shape[2:0:-1] for level in scene.bev])[:, None]
        low, high = jnp.array(self.grid.low[:2]), jnp.array(self.grid.high[:2])
        grid = (footprint_grid(roi, self.side) - low) / (high - low)

        def place(offsets: jax.Array) -> tuple[jax.Array, jax.Array]:
            places = references[:, :, None, None, None, :2] + offsets / sizes
            return places, jnp.ones(places.shape[:-1], bool)

        return self.bev(queries, scene.bev, place, grid, jnp.ones(grid.shape[:-1], bool))

    def _in_images(
        self,
        attention: DRoIAttention,
        queries: jax.Array,
        references: jax.Array,
        roi: jax.Array,
        scene: Scene,
    ) -> jax.Array:
        """What the cameras see, added up."""
        many = [jnp.repeat(x, self.cameras, axis=0) for x in (queries, references, roi)]
        seen = self._in_image(attention, many[0], many[1], many[2], scene)
        if self.trust is None:
            return seen
        seen = seen.reshape(len(queries), self.cameras, *seen.shape[1:])
        return jnp.einsum('bknd,bnk->bnd', seen, nnx.sigmoid(self.trust(queries)))

    def _in_image(
        self,
        attention: DRoIAttention,
        queries: jax.Array,
        references: jax.Array,
        roi: jax.Array,
        scene: Scene,
    ) -> jax.Array:
        """What each camera sees: as many queries [B*K,N,width] as images -> [B*K,N,width]."""
        metres = self.grid.metres(references)[:, :, None, None, None]
        grid, seen = hull_grid(roi, scene.projection, scene.size, self.side)

        def place(offsets: jax.Array) -> tuple[jax.Array, jax.Array]:
            return projected(metres + offsets, scene.projection, scene.size)

        return attention(queries, scene.image, place, grid, seen)


class PointDETR(Heads):
    """Boxes in 3D from annotated points, LiDAR and cameras.

    Args:
        network: whose features of the images are looked at.
        grid: of the bird's-eye view.
        decoder: sizes.
        widths: channels of the stages of the bird's-eye view.
        layers: endpoints of an image, the finest first; () without a camera.
        cameras: how many are looked at: one is the image of the record, several are 'cameras'
            [B,K,h,w,3] of what is given beside it.
        sizes: mean (l, w, h) of each class in metres, or ().
        queries: how many learnt ones take the place of those at points; 0 for none.
        rngs: for the initial weights.
    """

    def __init__(
        self,
        network: Network,
        grid: Grid,
        decoder: Decoder,
        widths: Sequence[int],
        layers: Sequence[str],
        cameras: int,
        sizes: Sequence[Sequence[float]],
        queries: int,
        rngs: nnx.Rngs,
    ):
        width, count = decoder.width, network.num_classes
        self.grid, self.reads, self.cameras = grid, tuple(layers), cameras
        self.preprocessing = network.preprocessing
        self.pillars = PillarEncoder(grid, widths[0], rngs=rngs)
        self.pyramid = Pyramid(widths[0], widths, width, rngs=rngs)
        features = [network.shapes[name][-1] for name in layers]
        self.sides = nnx.List(conv(f, width, 1, rngs=rngs) for f in features)
        self.outputs = nnx.List(ConvNorm(width, width, 3, rngs=rngs) for _ in features)
        self.queries = (
            LearntQueries(queries, width, rngs)
            if queries
            else PointQueries(grid, width, count, sizes, rngs)
        )
        levels = len(widths), len(features)
        self.decoder = nnx.List(
            Layer(grid, decoder, levels, cameras, count, queries > 0, rngs)
            for _ in range(decoder.layers)
        )

    def __call__(
        self, endpoints: Mapping[str, jax.Array], classes: jax.Array | None, trunk: Trunk
    ) -> dict[str, jax.Array]:
        """What each layer predicts of each query; nothing where no points are given.

        Returns:
            'class_logits' [B,layers,N,C], 'codes' [B,layers,N,8] of boxes, see `box_codes`, and
            'queries' bool [B,N], which are valid.
        """
        del classes
        if 'points' not in trunk.targets:
            return {}
        scene = self._scene(endpoints, trunk)
        contents, positions, references, valid = self.queries(trunk.targets)
        roi = _around(self.grid.metres(references))
        found = []
        for layer in self.decoder:
            contents, logits, codes = layer(contents, positions, references, roi, scene)
            found.append((logits, codes))
            references = jax.lax.stop_gradient(self.grid.share(codes[..., :3]))
            roi = jax.lax.stop_gradient(boxes_of(codes))
        logits, codes = (jnp.stack(part, axis=1) for part in zip(*found, strict=True))
        return {'class_logits': logits, 'codes': codes, 'queries': valid}

    def _scene(self, endpoints: Mapping[str, jax.Array], trunk: Trunk) -> Scene:
        targets = trunk.targets
        bev = self.pyramid(self.pillars(targets['points'], targets['points_valid']))
        if self.cameras > 1:
            endpoints = self._seen(trunk)
        stages = [endpoints[name] for name in self.reads]
        image = merged_levels(stages, self.sides, self.outputs)
        projection = targets['projections'].reshape(-1, 3, 4)
        size = targets['image_size'].reshape(-1, 2).astype(jnp.float32)
        return Scene(bev, image, projection, size)

    def _seen(self, trunk: Trunk) -> Mapping[str, jax.Array]:
        """The endpoints of all cameras [B*K,h,w,.]; those of the record's image are not needed."""
        images = trunk.targets['cameras']
        inputs = self.preprocessing(images.reshape(-1, *images.shape[2:]))
        return trunk.module(inputs.astype(trunk.inputs.dtype))[1]


def _around(places: jax.Array) -> jax.Array:
    """The first regions of interest: boxes [...,7] around places [...,3]."""
    shape = (*places.shape[:-1], 4)
    return jnp.concatenate([places, jnp.broadcast_to(jnp.array([*FIRST_ROI, 0.0]), shape)], axis=-1)


def _mlp(ins: int, hidden: int, outs: int, rngs: nnx.Rngs) -> nnx.Sequential:
    return nnx.Sequential(
        nnx.Linear(ins, hidden, rngs=rngs), nnx.relu, nnx.Linear(hidden, outs, rngs=rngs)
    )


def _logit(shares: jax.Array) -> jax.Array:
    shares = jnp.clip(shares, _EDGE, 1 - _EDGE)
    return jnp.log(shares) - jnp.log1p(-shares)

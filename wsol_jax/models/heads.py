"""Heads that a training method adds to a network, and what a network with heads gives."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from wsol_jax.models.layers import Perturbations, conv, glorot_uniform


class Outputs(NamedTuple):
    """What a network gives for a batch of B images.

    Attributes:
        logits: [B,C]; those of the heads where they have some.
        endpoints: {name: [B,H,W,K]}.
        extras: whatever else the heads give, by name.
    """

    logits: jax.Array
    endpoints: Mapping[str, jax.Array]
    extras: Mapping[str, jax.Array]


@dataclass(frozen=True)
class Trunk:
    """The network below the heads, for one batch of B images.

    Attributes:
        module: `module(inputs, perturb) -> (logits, endpoints)`, in its mode of now.
        inputs: [B,H,W,3], preprocessed.
        targets: what the batch carries of each image beside it, {name: [B,...]}, for heads that
            look at more than pixels; empty where nothing is given.
    """

    module: Any
    inputs: jax.Array
    targets: Mapping[str, jax.Array] = field(default_factory=dict)

    def again(self, changes: Perturbations) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Runs the network as a frozen evaluator of what `changes` put in; see `frozen`.

        Where a function replaces an endpoint, only what follows it is computed.

        Args:
            changes: see `Endpoints`.

        Returns:
            (logits [B,C], endpoints).
        """
        return frozen(self.module)(self.inputs, changes)


def frozen(module: Any) -> Any:
    """A copy that changes nothing: gradients reach its inputs, but no weight.

    In training mode it uses the statistics of its batch, and what it makes of the moving ones is
    lost with it; it draws what the module itself draws next.
    """
    parts: tuple[Any, ...] = nnx.split(module, nnx.Param, ...)
    graph, weights, others = parts
    return nnx.merge(graph, jax.tree.map(jax.lax.stop_gradient, weights), others, copy=True)


class Heads(nnx.Module):
    """What is attached to a network's module as its attribute `heads`: the base class.

    The names of the network's own weights stay as they are; those of the heads start with 'heads.'.

    Attributes:
        reads: the endpoints that the heads read.
        map_name: what localization calls the map of the heads; '' if they have none.
        last: the endpoint that their logits are made of; '' if that is the network's last layer.
        classifies: their logits take the place of the network's.
    """

    reads: tuple[str, ...] = ()
    map_name: str = ''
    last: str = ''
    classifies: bool = True

    def changes(self) -> Perturbations:
        """What is done at endpoints of the network on its way, see `Endpoints`; here nothing."""
        return {}

    def __call__(
        self, endpoints: Mapping[str, jax.Array], classes: jax.Array | None, trunk: Trunk
    ) -> dict[str, jax.Array]:
        """Extras by name; 'logits' among them takes the place of the network's. Here none.

        Args:
            endpoints: of the network, {name: [B,H,W,K]}.
            classes: [B], the first label of each image, -1 where it has none; None where logits
                alone are wanted.
            trunk: the network itself, to run again, and what else is given of the images.
        """
        del endpoints, classes, trunk
        return {}

    def map(self, endpoints: Mapping[str, jax.Array], classes: jax.Array) -> jax.Array:
        """Localization maps of given classes, without a gradient.

        Args:
            endpoints: at least those of `reads`, {name: [B,H,W,K]}.
            classes: [B,K].

        Returns:
            [B,K,h,w].
        """
        raise NotImplementedError


class ConvHead(nnx.Module):
    """Two 3x3 convolutions with ReLU and a 1x1 convolution: a map for each class.

    The logits are the means of the maps over all positions, so that the map of a class is what
    CAM would be there.
    """

    def __init__(self, features: int, width: int, num_classes: int, *, rngs: nnx.Rngs):
        init = glorot_uniform
        self.conv1 = conv(features, width, 3, kernel_init=init, rngs=rngs)
        self.conv2 = conv(width, width, 3, kernel_init=init, rngs=rngs)
        self.classifier = conv(width, num_classes, 1, kernel_init=init, rngs=rngs)

    def features(self, x: jax.Array) -> jax.Array:
        """What the maps are made of, by both 3x3 convolutions: [B,H,W,K] -> [B,H,W,width]."""
        return nnx.relu(self.conv2(nnx.relu(self.conv1(x))))

    def maps(self, features: jax.Array) -> jax.Array:
        """[B,H,W,width] -> [B,H,W,C], float32."""
        return self.classifier(features).astype(jnp.float32)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B,H,W,K] -> [B,H,W,C], float32."""
        return self.maps(self.features(x))


class ClassMaps(nnx.Module):
    """One convolution: a map for each class, from what is a classifier's feature already."""

    def __init__(
        self,
        features: int,
        num_classes: int,
        kernel: int = 3,
        *,
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        init = glorot_uniform
        self.conv = conv(
            features, num_classes, kernel, use_bias=use_bias, kernel_init=init, rngs=rngs
        )

    def __call__(self, features: jax.Array) -> jax.Array:
        """[B,H,W,K] -> [B,H,W,C], float32."""
        return self.conv(features).astype(jnp.float32)


class MapGenerator(nnx.Module):
    """A 3x3 convolution and a sigmoid: maps in (0, 1) of features from the middle of a network."""

    def __init__(self, features: int, num_maps: int, *, use_bias: bool = True, rngs: nnx.Rngs):
        init = glorot_uniform
        self.conv = conv(features, num_maps, 3, use_bias=use_bias, kernel_init=init, rngs=rngs)

    def __call__(self, features: jax.Array) -> jax.Array:
        """[B,H,W,K] -> [B,H,W,num_maps], float32."""
        return nnx.sigmoid(self.conv(features).astype(jnp.float32))

    def of_class(self, features: jax.Array, classes: jax.Array) -> jax.Array:
        """One map of each image, as of `class_map`, without the others: their number costs nothing.

        Args:
            features: [B,H,W,K].
            classes: [B].

        Returns:
            [B,H,W], float32.
        """
        kernels = jnp.take(self.conv.kernel[...], classes, axis=-1).astype(features.dtype)
        # What each position of the kernel sees is multiplied first, and moved where it counts then.
        parts = jnp.einsum('bhwk,ijkb->ijbhw', features, kernels)
        height, width = features.shape[1:3]
        parts = jnp.pad(parts, ((0, 0),) * 3 + ((1, 1),) * 2)
        moved = [parts[i, j, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        if self.conv.bias is not None:
            moved.append(jnp.take(self.conv.bias[...], classes)[:, None, None])
        return nnx.sigmoid(jnp.asarray(sum(moved)).astype(jnp.float32))


def class_map(maps: jax.Array, classes: jax.Array) -> jax.Array:
    """The map of one class of each image: [B,H,W,C], [B] -> [B,H,W]."""
    return jnp.take_along_axis(maps, classes[:, None, None, None], axis=-1)[..., 0]


def class_maps(maps: jax.Array, classes: jax.Array) -> jax.Array:
    """The maps of several classes of each image: [B,H,W,C], [B,K] -> [B,K,H,W]."""
    return jax.vmap(class_map, (None, 1), 1)(maps, classes)


def of_each_class(maps: jax.Array, classes: jax.Array) -> jax.Array:
    """A map that is the same whichever class is asked for: [B,H,W], [B,K] -> [B,K,H,W]."""
    return jnp.broadcast_to(maps[:, None], (*classes.shape, *maps.shape[1:]))


def side_by_side(fine: jax.Array, coarse: jax.Array) -> jax.Array:
    """Features side by side, the coarse ones resized: [B,h,w,K], [B,h',w',K'] -> [B,h,w,K + K']."""
    shape = (*fine.shape[:3], coarse.shape[-1])
    return jnp.concatenate([fine, jax.image.resize(coarse, shape, 'linear')], axis=-1)


def erased(features: jax.Array, where: jax.Array) -> jax.Array:
    """Features [B,H,W,K] with zeros where `where`, bool [B,H,W], is set; no gradient there."""
    return jnp.where(where[..., None], 0, features)


def area(maps: jax.Array) -> jax.Array:
    """The share of the image that a map covers, its mean: [B,H,W] -> [B]."""
    return jnp.mean(maps, axis=(1, 2))


def outputs_of(
    module: nnx.Module,
    inputs: jax.Array,
    perturb: Perturbations | None = None,
    classes: jax.Array | None = None,
    targets: Mapping[str, jax.Array] = MappingProxyType({}),
) -> Outputs:
    """Runs a module `module(inputs, perturb) -> (logits, endpoints)`, then its heads if it has any.

    Args:
        module: with or without `Heads` as its attribute `heads`.
        inputs: [B,H,W,3], preprocessed.
        perturb: added at endpoints; the heads see it, too.
        classes: for the heads, see `Heads`.
        targets: for the heads, see `Trunk`.
    """
    heads = getattr(module, 'heads', None)
    if not isinstance(heads, Heads):
        logits, endpoints = module(inputs, perturb)
        return Outputs(logits, endpoints, {})
    logits, endpoints = module(inputs, _joined(perturb or {}, heads.changes()))
    extras = heads(endpoints, classes, Trunk(module, inputs, targets))
    return Outputs(extras.pop('logits', logits), endpoints, extras)


def _joined(perturb: Perturbations, changes: Perturbations) -> Perturbations:
    """What is added from outside, then what the heads do there."""
    both: Any = {n: (perturb[n], changes[n]) for n in perturb.keys() & changes.keys()}
    return {**perturb, **changes, **both}

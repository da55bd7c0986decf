"""Heads that a training method adds to a network, and what a network with heads gives."""

from collections.abc import Mapping
from typing import NamedTuple

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


class Heads(nnx.Module):
    """What is attached to a network's module as its attribute `heads`: the base class.

    The names of the network's own weights stay as they are; those of the heads start with 'heads.'.

    Attributes:
        reads: the endpoints that the heads read.
        map_name: what localization calls the map of the heads; '' if they have none.
    """

    reads: tuple[str, ...] = ()
    map_name: str = ''

    def __call__(
        self, endpoints: Mapping[str, jax.Array], classes: jax.Array | None
    ) -> dict[str, jax.Array]:
        """Extras by name; 'logits' among them takes the place of the network's.

        Args:
            endpoints: of the network, {name: [B,H,W,K]}.
            classes: [B], the label of each image; None where logits alone are wanted.
        """
        raise NotImplementedError

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

    def __call__(self, features: jax.Array) -> jax.Array:
        """[B,H,W,K] -> [B,H,W,C], float32."""
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(features))))
        return self.classifier(x).astype(jnp.float32)


def class_map(maps: jax.Array, classes: jax.Array) -> jax.Array:
    """The map of one class of each image: [B,H,W,C], [B] -> [B,H,W]."""
    return jnp.take_along_axis(maps, classes[:, None, None, None], axis=-1)[..., 0]


def outputs_of(
    module: nnx.Module,
    inputs: jax.Array,
    perturb: Perturbations | None = None,
    classes: jax.Array | None = None,
) -> Outputs:
    """Runs a module `module(inputs, perturb) -> (logits, endpoints)`, then its heads if it has any.

    Args:
        module: with or without `Heads` as its attribute `heads`.
        inputs: [B,H,W,3], preprocessed.
        perturb: added at endpoints; the heads see it, too.
        classes: for the heads, see `Heads`.
    """
    logits, endpoints = module(inputs, perturb)
    heads = getattr(module, 'heads', None)
    if not isinstance(heads, Heads):
        return Outputs(logits, endpoints, {})
    extras = heads(endpoints, classes)
    return Outputs(extras.pop('logits', logits), endpoints, extras)

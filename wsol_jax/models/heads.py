"""Heads that a training method adds to a network, and what a network with heads gives."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
from flax import nnx

from wsol_jax.models.layers import Perturbations


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
    """

    def __call__(
        self, endpoints: Mapping[str, jax.Array], classes: jax.Array | None
    ) -> dict[str, jax.Array]:
        """Extras by name; 'logits' among them takes the place of the network's.

        Args:
            endpoints: of the network, {name: [B,H,W,K]}.
            classes: [B], the label of each image; None where logits alone are wanted.
        """
        raise NotImplementedError


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

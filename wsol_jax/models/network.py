"""A trained network as the rest of the library sees it: pure functions and names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from wsol_jax.models.layers import Perturbations


@dataclass(frozen=True)
class Preprocessing:
    """From RGB images to what a network eats.

    Attributes:
        mean: subtracted, on the 0..255 scale, in the network's channel order.
        std: divided by, on the same scale and in the same order.
        bgr: the network eats blue first.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bgr: bool = False

    def __call__(self, images: Any) -> jax.Array:
        """RGB [B,H,W,3], uint8 in 0..255 or float in [0,1] -> float32 network input.

        Raises:
            ValueError: another shape or number type.
        """
        images = jnp.asarray(images)
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f'images have shape {images.shape}, not [B,H,W,3]')
        if jnp.issubdtype(images.dtype, jnp.floating):
            pixels = images.astype(jnp.float32) * 255.0
        elif images.dtype == jnp.uint8:
            pixels = images.astype(jnp.float32)
        else:
            raise ValueError(f'images are {images.dtype}, not uint8 (0..255) or float ([0,1])')
        if self.bgr:
            pixels = pixels[..., ::-1]
        return (pixels - jnp.array(self.mean)) / jnp.array(self.std)


@dataclass(frozen=True, eq=False)
class Network:
    """A classifier in inference mode that shows its endpoints.

    Attributes:
        name: for messages and reports.
        apply: pure `apply(state, inputs, perturb=None) -> (logits [B,C], endpoints)` on
            preprocessed inputs; `perturb[name]` is added at the endpoint `name`, every
            endpoint is [B,H,W,K]. `jax.jit` sorts the endpoints by name: take their order
            from `endpoints()`.
        state: the pytree of weights and batch statistics that `apply` takes.
        preprocessing: from images to inputs.
        input_size: the side in pixels the network was made for.
        num_classes: the length of the logits.
        last_layer: the endpoint directly before global average pooling and classifier.
        shapes: (H,W,K) of every endpoint at `input_size`, from input to output.
    """

    name: str
    apply: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    state: Any
    preprocessing: Preprocessing
    input_size: int
    num_classes: int
    last_layer: str
    shapes: dict[str, tuple[int, int, int]]

    @classmethod
    def from_module(
        cls, module: nnx.Module, *, name: str, preprocessing: Preprocessing, input_size: int
    ) -> 'Network':
        """Freezes a module whose call is `module(inputs, perturb=None) -> (logits, endpoints)`.

        The module itself keeps its mode; the network holds its values of now.
        """
        shared: tuple[Any, ...] = nnx.split(module)
        # The copy has variables of its own: training the module must not reach it.
        frozen = nnx.merge(*jax.tree.map(lambda leaf: leaf, shared))
        frozen.eval()
        graph, *parts = nnx.split(frozen, nnx.RngState, ...)
        rng_state, state = parts  # Dropout's keys are dead in inference: no part of the state.

        def apply(state: Any, inputs: jax.Array, perturb: Perturbations | None = None):
            return nnx.merge(graph, rng_state, state)(inputs, perturb)

        num_classes, shapes = _shapes(apply, state, input_size)
        last_layer = _main_endpoints(shapes)[-1]
        return cls(name, apply, state, preprocessing, input_size, num_classes, last_layer, shapes)

    def __call__(
        self, images: Any, perturb: Perturbations | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """RGB images, uint8 or float in [0,1], [B,H,W,3] -> (logits [B,C], endpoints)."""
        return self.apply(self.state, self.preprocessing(images), perturb)

    def endpoints(self, size: int | None = None) -> dict[str, tuple[int, int, int]]:
        """Every endpoint and its (H,W,K) for square inputs, from input to output.

        Args:
            size: side of the input in pixels; None is the network's own.
        """
        if size in (None, self.input_size):
            return dict(self.shapes)
        return _shapes(self.apply, self.state, size)[1]

    def layers(self) -> tuple[str, ...]:
        """The main endpoints: those that are no part (branch, block) of another."""
        return _main_endpoints(self.shapes)


def _main_endpoints(names: dict[str, tuple[int, int, int]]) -> tuple[str, ...]:
    return tuple(name for name in names if '/' not in name)


def _shapes(apply: Callable, state: Any, size: int) -> tuple[int, dict[str, tuple[int, int, int]]]:
    """The number of classes and every endpoint's shape, without computing anything."""
    names: list[str] = []

    def ordered(state: Any, inputs: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        logits, endpoints = apply(state, inputs)
        # A dict would come back from the trace sorted by name; the list keeps the order.
        names.extend(endpoints)
        return logits, list(endpoints.values())

    inputs = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    logits, arrays = jax.eval_shape(ordered, state, inputs)
    return logits.shape[-1], {n: a.shape[1:] for n, a in zip(names, arrays, strict=True)}

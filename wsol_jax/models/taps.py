"""Endpoints of modules that know nothing of endpoints: what their submodules return."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax.errors import FlaxError
from flax.nnx.tracers import TraceState

from wsol_jax.models.layers import Endpoints, Perturbations
from wsol_jax.names import unknown_name

# ((H, W) of the patches, number of class and register tokens in front of them)
Tokens = tuple[tuple[int, int], int]
# (path of a submodule, arguments of its call, what it returned) -> what it shall return
See = Callable[[str, tuple, Any], Any]
# (state, inputs [B,H,W,C], recorder) -> logits [B,C]: a model whose submodules are called through
# the recorder
Forward = Callable[[Any, jax.Array, 'Recorder'], jax.Array]


class ModelError(ValueError):
    """A model that cannot be run as a classifier of images in inference mode."""


class Recorder:
    """Shows what every submodule returns in one forward pass.

    Attributes:
        hidden: submodules called inside a transformation of the model's own (scan, remat, jit):
            values from there cannot be handed out.
    """

    def __init__(self, see: See):
        self.hidden: set[str] = set()
        self._see = see
        self._running: set[str] = set()
        self._trace = TraceState()

    def call(self, name: str, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Calls a submodule; '' is the model itself, which is no endpoint."""
        # Within its own call: super().__call__, or the copy that a transformation runs.
        if not name or name in self._running:
            return function(*args, **kwargs)
        self._running.add(name)
        try:
            output = function(*args, **kwargs)
        finally:
            self._running.discard(name)
        if self._trace.is_valid():
            return self._see(name, args, output)
        self.hidden.add(name)
        return output


def add_taps(
    forward: Forward,
    state: Any,
    layers: Sequence[str] | None,
    shape: tuple[int, int, int],
    tokens: Tokens | None,
) -> tuple[Callable[..., tuple[jax.Array, dict[str, jax.Array]]], tuple[str, ...], bool]:
    """The `apply` of a `Network`, with an endpoint at the output of every chosen submodule.

    Args:
        forward: the model.
        state: its state.
        layers: paths of the submodules; None: every one that is called once and returns
            [B,H,W,K] or the tokens of a grid, of more than one position.
        shape: (H,W,C) of the inputs.
        tokens: how tokens [B,N,K] form a grid; None: by themselves, N or N - 1 is a square.

    Returns:
        apply; the chosen layers in the order of execution; and whether tokens stand in front of the
        patches at one of them.

    Raises:
        ValueError: an unknown layer or one without such an output, naming it and what to do.
    """
    _check_tokens(tokens)
    if isinstance(layers, str):
        raise ValueError(f'layers must be a sequence such as ({layers!r},), got the string')
    calls, hidden, inputs = _survey(forward, state, shape)
    chosen = _choose(calls, hidden, inputs, layers, tokens)
    layouts = [_layout(calls[name][0][1], inputs, tokens) for name in chosen]
    return _Tapped(forward, chosen, tokens), chosen, any(x and x[1] for x in layouts)


@dataclass(frozen=True)
class _Tapped:
    """The `apply` that `add_taps` makes; equal where model, layers and tokens are equal."""

    forward: Forward
    chosen: tuple[str, ...]
    tokens: Tokens | None

    def __call__(
        self, state: Any, inputs: jax.Array, perturb: Perturbations | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        endpoints = Endpoints(perturb)

        def see(name: str, args: tuple, output: Any) -> Any:
            if name not in self.chosen:
                return output
            return _tap(endpoints, name, output, inputs.shape, self.tokens)

        logits = self.forward(state, inputs, Recorder(see))
        return logits, endpoints.finish()


# Of each call of a submodule: dimensions of its first argument, shape of what it returned.
Calls = dict[str, list[tuple[int, tuple[int, ...]]]]
# Two images: what has no batch axis does not pass for a batch of one.
SURVEYED = 2


def _survey(
    forward: Forward, state: Any, shape: tuple[int, int, int]
) -> tuple[Calls, set[str], tuple[int, ...]]:
    """Every call of every submodule in order of execution, without computing anything."""
    calls: Calls = {}
    hidden: set[str] = set()

    def see(name: str, args: tuple, output: Any) -> Any:
        dimensions = jnp.ndim(args[0]) if args and isinstance(args[0], jax.Array) else 0
        array = _first_array(output)
        calls.setdefault(name, []).append((dimensions, () if array is None else array.shape))
        return output

    def run(state: Any, inputs: jax.Array) -> jax.Array:
        recorder = Recorder(see)
        logits = forward(state, inputs, recorder)
        hidden.update(recorder.hidden)
        return logits

    inputs = (SURVEYED, *shape)
    try:
        jax.eval_shape(run, state, jax.ShapeDtypeStruct(inputs, jnp.float32))
    except ModelError:
        raise
    except (TypeError, ValueError, FlaxError) as error:
        raise ModelError(
            f'the model fails on inputs {["B", *shape]}, which input_size and the length of '
            f'preprocessing.mean say that it takes: {error}'
        ) from error
    return calls, hidden, inputs


def _choose(
    calls: Calls,
    hidden: set[str],
    inputs: tuple[int, ...],
    layers: Sequence[str] | None,
    tokens: Tokens | None,
) -> tuple[str, ...]:
    if layers:
        for name in layers:
            _check_layer(name, calls, hidden, inputs, tokens)
        return tuple(name for name in calls if name in layers)
    found = tuple(n for n, seen in calls.items() if _is_map(seen, inputs, tokens))
    if not found:
        raise ValueError(_nothing_found(calls, hidden))
    return found


def _nothing_found(calls: Calls, hidden: set[str]) -> str:
    outputs = {name: list(shape) for name, ((_, shape), *_) in calls.items()}
    sequences = ', '.join(f'{name} {shape}' for name, shape in outputs.items() if len(shape) == 3)
    parts = ['no submodule returns [B,H,W,K] or the tokens of a square grid']
    if sequences:
        parts.append(f'pass tokens=((H, W), tokens in front) for {sequences}')
    if hidden:
        parts.append(
            f'inside a transformation (scan, remat, jit, vmap): {", ".join(sorted(hidden))}'
        )
    return '; '.join(parts)


def _is_map(
    seen: list[tuple[int, tuple[int, ...]]], inputs: tuple[int, ...], tokens: Tokens | None
) -> bool:
    (dimensions, shape), *again = seen
    layout = _layout(shape, inputs, tokens)
    if again or layout is None or math.prod(layout[0]) == 1:
        return False
    # [B,N,K] -> [B,N,heads,K'] inside of an attention is no map.
    return not 0 < dimensions < len(shape)


def _check_layer(
    name: str, calls: Calls, hidden: set[str], inputs: tuple[int, ...], tokens: Tokens | None
) -> None:
    if name not in calls and name in hidden:
        raise ValueError(
            f'layer {name!r} is called inside a transformation (scan, remat, jit, vmap) of the '
            'model, which shows no values; turn that off, or name a submodule around it'
        )
    if name not in calls:
        raise ValueError(unknown_name('layer', name, calls))
    if len(calls[name]) > 1:
        raise ValueError(
            f'layer {name!r} is called {len(calls[name])} times in one forward pass, so its output '
            'is not one; name a submodule that is called once'
        )
    _require_layout(name, calls[name][0][1], inputs, tokens)


def _first_array(output: Any) -> jax.Array | None:
    """The output, or the first of a tuple such as (features, attention weights)."""
    first = output[0] if type(output) is tuple and output else output
    is_float = isinstance(first, jax.Array) and jnp.issubdtype(first.dtype, jnp.floating)
    return first if is_float else None


def _tap(
    endpoints: Endpoints, name: str, output: Any, inputs: tuple[int, ...], tokens: Tokens | None
) -> Any:
    x = _first_array(output)
    (grid, prefix) = _require_layout(name, () if x is None else x.shape, inputs, tokens)
    assert x is not None
    patches = x if x.ndim == 4 else x[:, prefix:].reshape(x.shape[0], *grid, x.shape[-1])
    # float32 for maps, also of a model that computes in bfloat16.
    tapped = endpoints.tap(name, patches.astype(jnp.float32)).astype(x.dtype)
    if x.ndim == 3:
        tokens_of = tapped.reshape(x.shape[0], -1, x.shape[-1])
        tapped = jnp.concatenate([x[:, :prefix], tokens_of], axis=1)
    return (tapped, *output[1:]) if type(output) is tuple else tapped


def _layout(
    shape: tuple[int, ...], inputs: tuple[int, ...], tokens: Tokens | None
) -> Tokens | None:
    """Grid and number of tokens in front of an output of this shape; None if it is no map."""
    if len(shape) not in (3, 4) or shape[0] != inputs[0]:
        return None
    if len(shape) == 4:
        return (shape[1], shape[2]), 0
    count = shape[1]
    if tokens:
        grid, prefix = tokens
        # Before the class token is added, as behind the embedding, there is none in front.
        fitting = [p for p in (prefix, 0) if count == math.prod(grid) + p]
        return (grid, fitting[0]) if fitting else None
    squares = [p for p in (0, 1) if count > p and math.isqrt(count - p) ** 2 == count - p]
    if not squares or inputs[1] != inputs[2]:
        return None
    side = math.isqrt(count - squares[0])
    return (side, side), squares[0]


def _require_layout(
    name: str, shape: tuple[int, ...], inputs: tuple[int, ...], tokens: Tokens | None
) -> Tokens:
    layout = _layout(shape, inputs, tokens)
    if layout:
        return layout
    if len(shape) != 3 or shape[0] != inputs[0]:
        raise ValueError(
            f'layer {name!r} returns {list(shape) if shape else "no array"} for images '
            f'{list(inputs)}; an endpoint is [B,H,W,K], or tokens [B,N,K]'
        )
    side = math.isqrt(shape[1])
    expected = (
        f'{math.prod(tokens[0])} + {tokens[1]} as tokens={tokens} says'
        if tokens
        else 'a square, with or without one class token, of square images'
    )
    raise ValueError(
        f'layer {name!r} returns {list(shape)}: {shape[1]} tokens are not {expected}; pass '
        f'tokens=((H, W), tokens in front), e.g. tokens=(({side}, {side}), {shape[1] - side**2})'
    )


def _check_tokens(tokens: Tokens | None) -> None:
    match tokens:
        case None | ((int(), int()), int()):
            return
    raise ValueError(f'tokens must be ((H, W), number of tokens in front), got {tokens!r}')

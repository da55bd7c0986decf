"""Other people's Flax classifiers, unchanged, as a `Network`."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from functools import cache, partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.errors import InvalidRngError, ModifyScopeVariableError

from wsol_jax.models.layers import Perturbations
from wsol_jax.models.network import (
    Network,
    Preprocessing,
    Probability,
    Size,
    Thaw,
    by_identity_unless_hashable,
    flat,
    freeze,
    sides,
)
from wsol_jax.models.taps import Forward, ModelError, Recorder, Tokens, add_taps
from wsol_jax.models.unread import layers_read
from wsol_jax.names import unknown_name

CallOptions = tuple[tuple[str, Any], ...]

# What the flags by which models are told to run in inference mode must be.
INFERENCE = {
    'train': False,
    'training': False,
    'is_training': False,
    'deterministic': True,
    'use_running_average': True,
}


def from_linen(
    module: linen.Module,
    variables: Mapping[str, Any],
    layers: Sequence[str] | None = None,
    *,
    input_size: Size,
    preprocessing: Preprocessing,
    name: str | None = None,
    tokens: Tokens | None = None,
    call_options: Mapping[str, Any] | None = None,
    output: Callable[[Any], jax.Array] | None = None,
    last_layer: str | None = None,
    probability: Probability | None = None,
) -> Network:
    """A Flax Linen classifier as a `Network`.

    An endpoint is what a submodule returns ([B,H,W,K], tokens [B,N,K] of patches, or a tuple that
    starts with one), under the submodule's path: 'encoder/block_2'. What the model computes without
    a submodule, such as `relu(self.bn(x))`, comes after the endpoint. Submodules inside a
    transformation of the model's own (scan, remat, jit, vmap) have none. The model is called as
    `module.apply(variables, inputs, ...)` in inference mode: flags of its `__call__` named
    train, training, is_training, deterministic or use_running_average are set accordingly.

    Args:
        module: the model; it eats [B,H,W,C] of C = len(preprocessing.mean) channels.
        variables: all of its collections, e.g. {'params': ..., 'batch_stats': ...}.
        layers: the paths to show; all are main endpoints. None: every submodule that is called
            once and returns a map; the main endpoints are those that are no part of another.
        input_size: side in pixels of the square images the model was made for, or (height, width).
        preprocessing: what the model was trained with. `Preprocessing((0,) * 3, (255,) * 3)`
            hands on RGB in [0, 1], `Preprocessing((0,), (255,))` grey.
        name: for messages; None: the class of the model.
        tokens: ((H, W), number of class and register tokens in front) of a transformer; None
            takes N or N - 1 tokens as a square. Maps and gradients are those of the patches.
        call_options: more keywords for the call, or other values for the flags.
        output: takes the logits [B,C] from what the model returns, or other outputs [B,...] that
            are to be explained, which are flattened; None: it returns logits, or an object with
            `.logits`.
        last_layer: the endpoint directly before global average pooling, where CAM is defined;
            None: the last main endpoint.
        probability: what the logits stand for: 'softmax', 'sigmoid' or a function; None: 'sigmoid'
            for one logit, else 'softmax'. See `Network`.

    Raises:
        ValueError: an unknown layer, one that gives no map, no logits, an unknown keyword,
            missing collections, or a model that still runs in training mode.
    """
    if 'params' not in variables:
        raise ValueError(
            "variables must be the collections, {'params': ..., 'batch_stats': ...}, got "
            f'{list(variables)}'
        )
    options = _call_options(module, call_options)
    return _network(
        _LinenForward(module, options, output, _as_tuples((module, options))),
        variables,
        layers,
        tokens,
        name=name or type(module).__name__,
        input_size=input_size,
        preprocessing=preprocessing,
        last_layer=last_layer,
        probability=probability,
    )


def from_nnx(
    module: nnx.Module,
    layers: Sequence[str] | None = None,
    *,
    input_size: Size,
    preprocessing: Preprocessing,
    name: str | None = None,
    tokens: Tokens | None = None,
    call_options: Mapping[str, Any] | None = None,
    output: Callable[[Any], jax.Array] | None = None,
    last_layer: str | None = None,
    probability: Probability | None = None,
) -> Network:
    """A Flax NNX classifier as a `Network`.

    The module itself is left as it is: the network holds a copy of its values of now, in
    inference mode (`eval()`). Endpoints and arguments are those of `from_linen`, a submodule's
    path is that of its attributes: 'layers/3/conv'.

    Args:
        module: the model; it eats [B,H,W,C] of C = len(preprocessing.mean) channels.
        layers: see `from_linen`.
        input_size: see `from_linen`.
        preprocessing: see `from_linen`.
        name: see `from_linen`.
        tokens: see `from_linen`.
        call_options: see `from_linen`.
        output: see `from_linen`.
        last_layer: see `from_linen`.
        probability: see `from_linen`.

    Raises:
        ValueError: as `from_linen`.
    """
    thaw, state = freeze(module)
    options = _call_options(module, call_options)
    return _network(
        _NnxForward(thaw, options, output),
        state,
        layers,
        tokens,
        name=name or type(module).__name__,
        input_size=input_size,
        preprocessing=preprocessing,
        last_layer=last_layer,
        probability=probability,
    )


def from_function(
    apply: Callable[[jax.Array, Perturbations | None], tuple[jax.Array, dict[str, jax.Array]]],
    *,
    input_size: Size,
    preprocessing: Preprocessing,
    name: str = 'function',
    last_layer: str | None = None,
    probability: Probability | None = None,
) -> Network:
    """A function that shows its endpoints itself, as a `Network`.

    Its weights are constants of every compiled program; `Network.from_apply` takes them as an
    argument, which is better for large ones.

    Args:
        apply: pure `(inputs [B,H,W,C], perturb) -> (logits [B,C], endpoints {name: [B,H,W,K]})`,
            endpoints from input to output; `perturb`, a mapping or None, holds what is to be
            added at endpoints. `wsol_jax.models.layers.Endpoints` does both.
        input_size: side in pixels of the square images it was made for, or (height, width).
        preprocessing: what makes its inputs from images.
        name: for messages.
        last_layer: the endpoint directly before global average pooling; None: the last main one.
        probability: see `from_linen`.

    Raises:
        ValueError: logits or an endpoint of another shape, no endpoint, or an unknown
            `last_layer`.
    """

    return Network.from_apply(
        by_identity_unless_hashable(_WithoutState(apply)),
        {},
        name=name,
        preprocessing=preprocessing,
        input_size=input_size,
        last_layer=last_layer,
        probability=probability,
    )


def _network(
    forward: Forward,
    state: Any,
    layers: Sequence[str] | None,
    tokens: Tokens | None,
    *,
    name: str,
    input_size: Size,
    preprocessing: Preprocessing,
    last_layer: str | None,
    probability: Probability | None,
) -> Network:
    shape = (*sides(input_size), preprocessing.channels)
    try:
        tapped, chosen, in_front = add_taps(forward, state, layers, shape, tokens)
    except ValueError as error:
        raise ValueError(f'{name}: {error}') from error
    apply = by_identity_unless_hashable(tapped)
    main = chosen if layers else None
    if in_front and not layers:
        main = layers_read(name, apply, state, chosen, shape)
    return Network.from_apply(
        apply,
        state,
        name=name,
        preprocessing=preprocessing,
        input_size=input_size,
        main=main,
        last_layer=last_layer,
        probability=probability,
    )


@dataclass(frozen=True)
class _LinenForward:
    """`Forward` of a Linen module; compared by `made_of` and `output`."""

    module: linen.Module = field(compare=False)
    options: CallOptions = field(compare=False)
    output: Callable[[Any], jax.Array] | None
    made_of: Any

    def __call__(self, state: Any, inputs: jax.Array, recorder: Recorder) -> jax.Array:
        def intercept(
            function: Callable[..., Any],
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            context: linen.module.InterceptorContext,
        ) -> Any:
            if context.method_name != '__call__':
                return function(*args, **kwargs)
            return recorder.call('/'.join(context.module.path), function, args, kwargs)

        options = dict(self.options)
        try:
            with linen.intercept_methods(intercept):
                result = self.module.apply(state, inputs, **options)
        except (InvalidRngError, ModifyScopeVariableError) as error:
            raise _training(str(error).split(' (http')[0], options) from error
        return _logits(result, self.output, inputs.shape[0])


def _as_tuples(value: Any) -> Any:
    """The attributes of Linen modules, lists and dictionaries as tuples, which can be hashed."""
    if isinstance(value, linen.Module):
        names = [f.name for f in fields(value) if f.name != 'parent']
        value = {name: getattr(value, name) for name in names} | {'': type(value)}
    if isinstance(value, Mapping):
        return ('{}', *((key, _as_tuples(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return (type(value), *map(_as_tuples, value))
    return value


@dataclass(frozen=True)
class _NnxForward:
    """`Forward` of an NNX module."""

    thaw: Thaw
    options: CallOptions
    output: Callable[[Any], jax.Array] | None

    def __call__(self, state: Any, inputs: jax.Array, recorder: Recorder) -> jax.Array:
        copy = self.thaw(state)
        for path, part in list(nnx.iter_modules(copy)):
            if callable(part):
                _show(part, '/'.join(map(str, path)))
        options = dict(self.options)
        previous = _recorder.set(recorder)
        try:
            result = copy(inputs, **options)
        except _TrainingError as error:
            raise _training(str(error), options) from error
        finally:
            _recorder.reset(previous)
        return _logits(result, self.output, inputs.shape[0])


@dataclass(frozen=True)
class _WithoutState:
    """`apply` of a function that holds its weights itself."""

    function: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]

    def __call__(self, state: Any, inputs: jax.Array, perturb: Perturbations | None = None) -> Any:
        return self.function(inputs, perturb)


def _call_options(module: Any, given: Mapping[str, Any] | None) -> CallOptions:
    """The inference flags that the module's call takes, and what the user gives."""
    parameters = inspect.signature(module.__call__).parameters
    kinds = {p.kind for p in parameters.values()}
    for name in given or {}:
        if name not in parameters and inspect.Parameter.VAR_KEYWORD not in kinds:
            raise ValueError(unknown_name('call option', name, list(parameters)[1:]))
    flags = {name: value for name, value in INFERENCE.items() if name in parameters}
    return tuple((flags | dict(given or {})).items())


def _logits(result: Any, output: Callable | None, batch: int) -> jax.Array:
    logits = output(result) if output else getattr(result, 'logits', result)
    if output and getattr(logits, 'ndim', 0) > 2:  # told that these are meant
        logits = flat(logits, batch)
    if not isinstance(logits, jax.Array) or logits.ndim != 2 or logits.shape[0] != batch:
        shapes = [list(jnp.shape(x)) for x in jax.tree.leaves(logits) if hasattr(x, 'shape')]
        raise ModelError(
            f'the output is {type(logits).__name__} with arrays {shapes}, not logits [{batch},C]; '
            'pass output=..., a function from what the model returns to its logits, or to other '
            'outputs [B,...] that are to be explained'
        )
    return logits.astype(jnp.float32)


def _training(what: str, options: Mapping[str, Any]) -> ModelError:
    return ModelError(
        f'the model runs dropout or batch normalization in training mode: {what} Its call got '
        f'{dict(options)}; pass what turns training off, e.g. call_options={{"train": False}}'
    )


# NNX has no interceptor of calls. The submodules of a private copy become instances of a subclass
# whose call goes through the recorder of the running forward pass; the instance holds no more than
# its path, so whatever JAX caches of it keeps no value of that pass alive.
_recorder: ContextVar[Recorder | None] = ContextVar('recorder', default=None)


class _TrainingError(Exception):
    """A submodule changed what only training changes."""


class _Registered:
    """In front of the user's classes: no `__init_subclass__` of theirs hears of the subclass."""

    # Else an instance could not become one of the subclass.
    __slots__ = ()

    def __init_subclass__(cls: Any):
        super(nnx.Module, cls).__init_subclass__(pytree=cls._pytree__is_pytree)  # type: ignore[misc]


def _show(part: nnx.Module, path: str) -> None:
    object.__setattr__(part, '_shown_path', path)
    object.__setattr__(part, '__class__', _shown_class(type(part)))


# Once for each class, because Flax and JAX never forget a class they have registered.
@cache
def _shown_class(cls: type[nnx.Module]) -> type[nnx.Module]:
    @wraps(cls.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = _recorder.get()
        if recorder is None:  # a backward rule of the model's own, behind the forward pass
            return cls.__call__(self, *args, **kwargs)
        before = _training_state(self)
        function = partial(cls.__call__, self)
        output = recorder.call(self._shown_path, function, args, kwargs)
        for what, value in _training_state(self).items():
            if value is not before.get(what):
                raise _TrainingError(f'{self._shown_path} changes its {what}.')
        return output

    class Shown(type(cls)):  # type: ignore[misc]
        # A second base would change the layout of the instances.
        def mro(self) -> list[type]:
            first, *others = super().mro()
            return [first, _Registered, *others]

    names = {k: getattr(cls, k) for k in ('__module__', '__qualname__', '__doc__')}
    return Shown(cls.__name__, (cls,), names | {'__call__': __call__})


def _training_state(part: nnx.Module) -> dict[str, Any]:
    """The module's own batch statistics and random number generators."""
    own = {k: v for k, v in vars(part).items() if isinstance(v, nnx.BatchStat)}
    for key, value in vars(part).items():
        if isinstance(value, nnx.Rngs | nnx.RngStream):
            inside = nnx.iter_graph(value)
            own |= {f'{key}/{"/".join(map(str, path))}': v for path, v in inside}
    return {k: v.get_raw_value() for k, v in own.items() if isinstance(v, nnx.Variable)}

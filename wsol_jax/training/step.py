"""One step of training, compiled: loss, gradient, update."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from wsol_jax.config import TrainConfig
from wsol_jax.models import Preprocessing
from wsol_jax.models.heads import Outputs, outputs_of
from wsol_jax.models.layers import Random
from wsol_jax.models.network import Thaw, freeze
from wsol_jax.names import unknown_name
from wsol_jax.parallel import Devices
from wsol_jax.training.checkpoints import TrainState
from wsol_jax.training.method import Shard, TrainedMethod, Update
from wsol_jax.training.optimizer import (
    check_patterns,
    is_frozen,
    make_optimizer,
    parameter_name,
)

_OWN = 0x0E7  # sets the keys that a method draws with apart from those of dropout
# Columns of progress.csv that are no values of a loss; and what older checkpoints have of a row.
RESERVED = ('loss', 'images', 'images_per_second', 'stage', 'split', 'step', 'right', 'mAP')


class Measured(NamedTuple):
    """What a step reports.

    Attributes:
        mean_loss: over the valid images.
        sums: of the values that the method's loss names, over the same images.
        images: how many there are.
    """

    mean_loss: jax.Array
    sums: dict[str, jax.Array]
    images: jax.Array


class Program(NamedTuple):
    """The compiled steps of one network.

    Attributes:
        initial: the state before the first step.
        step: (state, shard) -> (state, measured); the old state is given up for the new one.
        evaluate: (state, shard) -> {name: values [B]}, 'loss' among them, in inference mode. Where
            images have several labels also 'logits' [B,C] and 'labels' [B,L], for the mAP of val.
    """

    initial: TrainState
    step: Callable[[TrainState, Shard], tuple[TrainState, Measured]]
    evaluate: Callable[[TrainState, Shard], dict[str, jax.Array]]


def make_program(
    setting: TrainConfig,
    method: TrainedMethod,
    module: nnx.Module,
    preprocessing: Preprocessing,
    devices: Devices,
    steps: int,
    epoch_steps: int,
    seed: int = 0,
) -> Program:
    """Compiles training and evaluation.

    Args:
        setting: of the training.
        method: what it does to a batch, and its loss.
        module: the network in training mode, as it starts; its modes are changed.
        preprocessing: from images to its inputs.
        devices: what the steps run on.
        steps: of the whole training.
        epoch_steps: of one epoch.
        seed: of what the method draws.

    Raises:
        ConfigError: a regex of the settings is wrong.
    """
    names = [parameter_name(path) for path, _ in nnx.to_flat_state(nnx.state(module, nnx.Param))]
    check_patterns(setting, names)
    setting = replace(setting, freeze=(*setting.freeze, *method.freeze))
    thaw, _ = freeze(module)
    _set_modes(module, setting, devices.axis)
    graph, params, stats, keys = split_module(module)
    names = [name for name in names if not is_frozen(name, setting.freeze)]
    optimizer = make_optimizer(setting, names, steps, epoch_steps)
    trainable, _ = _split_frozen(params, setting.freeze)
    ema = params if setting.ema else None
    state = TrainState(jnp.int32(0), params, stats, optimizer.init(trainable), ema)
    loss = partial(_loss, method, seed, graph, keys, thaw, preprocessing, devices)
    step = partial(_step, setting, loss, optimizer, devices)
    evaluate = partial(_evaluate, method, thaw, preprocessing)
    return Program(state, devices.step(step), devices.per_image(evaluate))


def split_module(module: nnx.Module) -> tuple[Any, Any, Any, Any]:
    """(graph, weights, batch statistics, dropout keys)."""
    parts: tuple[Any, ...] = nnx.split(module, nnx.Param, nnx.BatchStat, nnx.RngState)
    graph, params, stats, keys = parts
    return graph, params, stats, keys


def _set_modes(module: nnx.Module, setting: TrainConfig, axis: str | None) -> None:
    for path, part in nnx.iter_modules(module):
        if hasattr(part, 'dtype') and setting.dtype != 'float32':
            part.dtype = jnp.dtype(setting.dtype)
        if isinstance(part, nnx.BatchNorm):
            part.axis_name = axis
            frozen = is_frozen(parameter_name((*path, 'scale')), setting.freeze)
            part.use_running_average = frozen
        if isinstance(part, Random):
            part.deterministic = is_frozen(parameter_name((*path, 'key')), setting.freeze)


def _split_frozen(params: Any, freeze: Sequence[str]) -> tuple[Any, Any]:
    """(trainable, frozen): no gradient is computed for the frozen ones."""

    def trains(path: Sequence[Any], _: Any) -> bool:
        return not is_frozen(parameter_name(path), freeze)

    trainable, frozen = nnx.split_state(params, trains, ...)
    return trainable, frozen


def _loss(
    method: TrainedMethod,
    seed: int,
    graph: Any,
    keys: Any,
    thaw: Thaw,
    preprocessing: Preprocessing,
    devices: Devices,
    trainable: Any,
    fixed: Any,
    stats: Any,
    ema: Any,
    step: jax.Array,
    shard: Shard,
    count: jax.Array,
) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
    """(sum of the losses / count, (batch statistics, sums of the named values))."""
    keys = jax.tree.map(lambda key: _image_keys(key, step, shard.index), keys)
    # A copy: the batch statistics it updates belong to this trace.
    module = nnx.merge(graph, nnx.merge_state(trainable, fixed), stats, keys, copy=True)
    own_keys = _image_keys(jax.random.fold_in(jax.random.key(seed), _OWN), step, shard.index)
    inputs, shard = method.augment(preprocessing(shard.images), shard, own_keys)
    average = (
        partial(_outputs, thaw, nnx.State.merge(ema, stats), inputs, shard.targets) if ema else None
    )
    update = Update(step, devices.total, average, devices.alone)
    _, losses, values = _measured(method, module, inputs, shard, update)
    sums = {n: jnp.sum(jnp.where(shard.valid, v, 0)) for n, v in values.items()}
    return jnp.sum(losses * shard.valid) / count, (split_module(module)[2], sums)


def _measured(
    method: TrainedMethod, module: nnx.Module, inputs: jax.Array, shard: Shard, update: Update
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """The logits [B,C], the losses [B] or their mean, and the named values [B]."""
    labels = shard.targets.get('labels')
    classes = None if labels is None else labels[:, 0]
    found = _in_float32(outputs_of(module, inputs, None, classes, shard.targets))
    given = method.loss(found, shard, update)
    if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], dict)):
        kind = type(method).__name__
        raise ValueError(f'the loss of {kind} must return the losses and a dict of named values')
    losses, values = given
    _check_values(method, values, jnp.shape(losses), shard.valid.shape)
    return found.logits, losses, values


def _outputs(thaw: Thaw, state: Any, inputs: jax.Array, targets: Any) -> Outputs:
    """In inference mode."""
    return _in_float32(outputs_of(thaw(state), inputs, None, None, targets))


def _in_float32(found: Outputs) -> Outputs:
    """With logits and extras in float32, where they are no whole numbers."""
    logits, extras = jax.tree.map(_single, (found.logits, found.extras))
    return Outputs(logits, found.endpoints, extras)


def _single(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _check_values(
    method: TrainedMethod,
    values: dict[str, jax.Array],
    losses: tuple[int, ...],
    images: tuple[int, ...],
) -> None:
    """Refuses what a loss must not give, while it is compiled."""
    kind = type(method).__name__
    if losses not in ((), images):
        raise ValueError(f'the loss of {kind} must be [B] or a number, got {list(losses)}')
    for name, value in values.items():
        if name in RESERVED:
            raise ValueError(f'the loss of {kind} names a value {name!r}, which is taken')
        if jnp.shape(value) != images:
            raise ValueError(f'{name!r} of {kind} must be [B], got {list(jnp.shape(value))}')
    name, direction = method.criterion
    if direction not in ('max', 'min'):
        raise ValueError(f"best of {kind} must be the 'max' or the 'min', got {direction!r}")
    known = ('loss', *values, *(('mAP',) if method.several else ()))
    if name not in known:
        fault = unknown_name('value', name, known)
        raise ValueError(f'the best epoch of {kind} is told by an {fault}')


def _image_keys(key: jax.Array, step: jax.Array, index: jax.Array) -> jax.Array:
    """A dropout key for every image: of (seed, step, image) alone, so that a run can go on."""
    key = jax.random.fold_in(key, step)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def _step(
    setting: TrainConfig,
    loss_of: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    devices: Devices,
    state: TrainState,
    shard: Shard,
) -> tuple[TrainState, Measured]:
    count = devices.total(jnp.sum(shard.valid))
    trainable, fixed = _split_frozen(state.params, setting.freeze)
    gradients, stats, loss, sums = _accumulated(
        setting.accumulate, loss_of, trainable, fixed, state, shard, jnp.maximum(count, 1)
    )
    gradients, loss, sums = devices.total((gradients, loss, sums))
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, trainable)
    params = nnx.merge_state(optax.apply_updates(trainable, updates), fixed)
    ema = _moved(state.ema, params, setting.ema) if setting.ema else None
    state = TrainState(state.step + 1, params, stats, optimizer_state, ema)
    return state, Measured(loss, sums, count)


def _accumulated(
    parts: int,
    loss_of: Callable[..., Any],
    trainable: Any,
    fixed: Any,
    state: TrainState,
    shard: Shard,
    count: jax.Array,
) -> tuple[Any, Any, jax.Array, dict[str, jax.Array]]:
    """(gradients, batch statistics, loss, sums) of a batch computed in parts."""
    differentiate = jax.value_and_grad(loss_of, has_aux=True)

    def add(carry: tuple[Any, Any, jax.Array], part: Shard) -> tuple[Any, dict[str, jax.Array]]:
        gradients, stats, loss = carry
        (more_loss, (stats, sums)), more = differentiate(
            trainable, fixed, stats, state.ema, state.step, part, count
        )
        gradients = jax.tree.map(jnp.add, gradients, more)
        return (gradients, stats, loss + more_loss), sums

    start = (jax.tree.map(jnp.zeros_like, trainable), state.stats, jnp.float32(0))
    if parts == 1:
        (gradients, stats, loss), sums = add(start, shard)
        return gradients, stats, loss, sums
    # Every parts-th image makes a part: each device keeps its own.
    shards = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), shard)
    (gradients, stats, loss), sums = jax.lax.scan(add, start, shards)
    return gradients, stats, loss, jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)


def _moved(average: Any, params: Any, decay: float) -> Any:
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)


def _evaluate(
    method: TrainedMethod,
    thaw: Thaw,
    preprocessing: Preprocessing,
    state: TrainState,
    shard: Shard,
) -> dict[str, jax.Array]:
    network, inputs = state.network(), preprocessing(shard.images)
    average = partial(_outputs, thaw, network, inputs, shard.targets) if state.ema else None
    # Each device looks at its own images.
    update = Update(state.step, lambda sums: sums, average)
    logits, losses, values = _measured(method, thaw(network), inputs, shard, update)
    ranked = {'logits': logits, 'labels': shard.targets['labels']} if method.several else {}
    return {'loss': jnp.broadcast_to(losses, shard.valid.shape), **values, **ranked}

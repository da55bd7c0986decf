"""One step of training, compiled: loss, gradient, update."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from wsol_jax.config import TrainConfig
from wsol_jax.models import Network
from wsol_jax.parallel import Devices
from wsol_jax.training.checkpoints import TrainState
from wsol_jax.training.optimizer import (
    check_patterns,
    is_frozen,
    make_optimizer,
    parameter_name,
)


class Shard(NamedTuple):
    """What a step takes of a batch of B images.

    Attributes:
        images: uint8 RGB [B,s,s,3].
        targets: of `Batch`: 'labels' int32 [B,1].
        valid: bool [B]; the others count neither in the loss nor in the accuracy.
        index: int32 [B], positions in the source: each image has dropout keys of its own.
    """

    images: Any
    targets: Any
    valid: Any
    index: Any


class Sums(NamedTuple):
    """What a step reports.

    Attributes:
        loss: mean over the valid images.
        right: how many of them were classified right.
        images: how many there are.
    """

    loss: jax.Array
    right: jax.Array
    images: jax.Array


class Program(NamedTuple):
    """The compiled steps of one network.

    Attributes:
        initial: the state before the first step.
        step: (state, shard) -> (state, sums); the old state is given up for the new one.
        predict: (state, images) -> classes [B].
    """

    initial: TrainState
    step: Callable[[TrainState, Shard], tuple[TrainState, Sums]]
    predict: Callable[[TrainState, Any], jax.Array]


def make_program(
    setting: TrainConfig,
    module: nnx.Module,
    network: Network,
    devices: Devices,
    steps: int,
    epoch_steps: int,
) -> Program:
    """Compiles training and prediction.

    Args:
        setting: of the training.
        module: the network in training mode, as it starts; its modes are changed.
        network: the same network in inference mode.
        devices: what the steps run on.
        steps: of the whole training.
        epoch_steps: of one epoch.

    Raises:
        ConfigError: a regex of the settings is wrong.
    """
    names = [parameter_name(path) for path, _ in nnx.to_flat_state(nnx.state(module, nnx.Param))]
    check_patterns(setting, names)
    _set_modes(module, setting, devices.axis)
    graph, params, stats, keys = split_module(module)
    names = [name for name in names if not is_frozen(name, setting.freeze)]
    optimizer = make_optimizer(setting, names, steps, epoch_steps)
    trainable, _ = _split_frozen(params, setting.freeze)
    ema = params if setting.ema else None
    state = TrainState(jnp.int32(0), params, stats, optimizer.init(trainable), ema)
    loss = partial(_loss, graph, keys, network.preprocessing, setting.label_smoothing)
    step = partial(_step, setting, loss, optimizer, devices)
    return Program(state, devices.step(step), devices.per_image(partial(_predict, network)))


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


def _split_frozen(params: Any, freeze: Sequence[str]) -> tuple[Any, Any]:
    """(trainable, frozen): no gradient is computed for the frozen ones."""

    def trains(path: Sequence[Any], _: Any) -> bool:
        return not is_frozen(parameter_name(path), freeze)

    trainable, frozen = nnx.split_state(params, trains, ...)
    return trainable, frozen


def _loss(graph, keys, preprocessing, smoothing, trainable, fixed, stats, step, shard, count):
    """(sum of the losses / count, (batch statistics, number classified right))."""
    keys = jax.tree.map(lambda key: _image_keys(key, step, shard.index), keys)
    # A copy: the batch statistics it updates belong to this trace.
    module = nnx.merge(graph, nnx.merge_state(trainable, fixed), stats, keys, copy=True)
    logits = module(preprocessing(shard.images))[0].astype(jnp.float32)
    labels = jnp.squeeze(shard.targets['labels'], axis=1)  # an error where there are several
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    losses = optax.softmax_cross_entropy(logits, targets)
    right = jnp.sum((jnp.argmax(logits, axis=-1) == labels) & shard.valid)
    return jnp.sum(losses * shard.valid) / count, (split_module(module)[2], right)


def _image_keys(key: jax.Array, step: jax.Array, index: jax.Array) -> jax.Array:
    """A dropout key for every image: of (seed, step, image) alone, so that a run can go on."""
    key = jax.random.fold_in(key, step)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def _step(setting: TrainConfig, loss_of, optimizer, devices: Devices, state: TrainState, shard):
    count = devices.total(jnp.sum(shard.valid))
    trainable, fixed = _split_frozen(state.params, setting.freeze)
    gradients, stats, loss, right = _accumulated(
        setting.accumulate, loss_of, trainable, fixed, state, shard, jnp.maximum(count, 1)
    )
    gradients, loss, right = devices.total((gradients, loss, right))
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, trainable)
    params = nnx.merge_state(optax.apply_updates(trainable, updates), fixed)
    ema = _moved(state.ema, params, setting.ema) if setting.ema else None
    state = TrainState(state.step + 1, params, stats, optimizer_state, ema)
    return state, Sums(loss, right, count)


def _accumulated(parts: int, loss_of, trainable, fixed, state: TrainState, shard, count):
    """(gradients, batch statistics, loss, right) of a batch computed in parts."""
    differentiate = jax.value_and_grad(loss_of, has_aux=True)

    def add(carry, part):
        gradients, stats, loss, right = carry
        (more_loss, (stats, more_right)), more = differentiate(
            trainable, fixed, stats, state.step, part, count
        )
        gradients = jax.tree.map(jnp.add, gradients, more)
        return (gradients, stats, loss + more_loss, right + more_right), None

    start = (jax.tree.map(jnp.zeros_like, trainable), state.stats, jnp.float32(0), jnp.int32(0))
    if parts == 1:
        return add(start, shard)[0]
    # Every parts-th image makes a part: each device keeps its own.
    shards = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), shard)
    return jax.lax.scan(add, start, shards)[0]


def _moved(average: Any, params: Any, decay: float) -> Any:
    return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)


def _predict(network: Network, state: TrainState, images: jax.Array) -> jax.Array:
    merged = nnx.State.merge(state.evaluated().params, state.stats)
    logits, _ = network.apply(merged, network.preprocessing(images), None)
    return jnp.argmax(logits, axis=-1)

"""The stage `train`: one loop, a checkpoint an epoch, resumable at epochs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from wsol_jax.config import Config, ConfigError
from wsol_jax.data import Source, evaluation_batches, training_batches
from wsol_jax.models import Network, as_network, build, load_module
from wsol_jax.parallel import data_mesh, replicate, round_up, shard_batch
from wsol_jax.training.checkpoints import Checkpoints, TrainState
from wsol_jax.training.optimizer import make_optimizer
from wsol_jax.workdir import ProgressLog


class _Program(NamedTuple):
    """The compiled steps of one network."""

    step: Callable[..., tuple[TrainState, Any, jax.Array, jax.Array]]
    predict: Callable[..., jax.Array]


def train(config: Config, train_source: Source, val_source: Source, workdir: Path) -> None:
    """Trains from the newest checkpoint, or from the start, to the last epoch.

    Args:
        config: the experiment.
        train_source: labelled images.
        val_source: labelled images, for the accuracy after each epoch.
        workdir: for checkpoints and progress.csv.

    Raises:
        ConfigError: the labels do not fit the network.
        FloatingPointError: the loss is not finite; the last checkpoint stays.
        DataError: an image cannot be read, or there are fewer than a batch.
    """
    checkpoints = Checkpoints(workdir)
    done, setting = checkpoints.epoch(), config.train
    if done >= setting.epochs:
        return
    mesh = data_mesh()
    batch_size = round_up(setting.batch_size, mesh)
    steps = len(train_source) // batch_size
    module = _initial_module(config, train_source)
    graph, params, stats, rng = _split(module)
    optimizer = make_optimizer(setting, setting.epochs * max(steps, 1))
    state = TrainState(params, stats, optimizer.init(params))
    state = replicate(checkpoints.restore(state) if done else state, mesh)
    network = as_network(config.network.name, module)
    size = config.network.input_size or network.input_size
    program = _compile(graph, optimizer, network)
    log = ProgressLog(workdir)
    total = setting.epochs * steps
    with tqdm(total=total, initial=done * steps, desc='train', disable=None) as bar:
        for epoch in range(done, setting.epochs):
            keys = replicate(_epoch_keys(rng, epoch), mesh)
            batches = training_batches(
                train_source, size, batch_size, config.seed, epoch, config.data.workers
            )
            losses, rights = [], []
            for step, batch in enumerate(batches, epoch * steps + 1):
                images, labels = shard_batch((batch.images, batch.labels), mesh)
                state, keys, loss, right = program.step(state, keys, images, labels)
                losses.append(loss)
                rights.append(right)
                bar.update()
                if step % setting.log_every == 0 or step == (epoch + 1) * steps:
                    _log(log, bar, step, batch_size, losses, rights)
                    losses, rights = [], []
            accuracy = _accuracy(program, state, val_source, size, batch_size)
            log.row('train', 'val', (epoch + 1) * steps, len(val_source), accuracy=accuracy)
            checkpoints.save(epoch + 1, state)


def _initial_module(config: Config, source: Source) -> nnx.Module:
    if config.data.class_index:
        raise ConfigError('training numbers the classes itself; set config.data.class_index=False')
    if source.num_classes < 2:
        raise ConfigError(
            f'training needs labels of at least 2 classes, found {source.num_classes}'
        )
    net = config.network
    return load_module(
        net.name, net.weights or None, source.num_classes, seed=config.seed, **net.options
    )


def _split(module: nnx.Module) -> tuple[Any, Any, Any, Any]:
    """(graph, weights, batch statistics, dropout keys)."""
    parts: tuple[Any, ...] = nnx.split(module, nnx.Param, nnx.BatchStat, nnx.RngState)
    graph, params, stats, keys = parts
    return graph, params, stats, keys


def _compile(graph, optimizer: optax.GradientTransformation, network: Network) -> _Program:
    def loss_of(params, stats, keys, images, labels):
        # A copy: the batch statistics it updates belong to this trace.
        module = nnx.merge(graph, params, stats, keys, copy=True)
        logits, _ = module(network.preprocessing(images))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        _, _, stats, keys = _split(module)
        return losses.mean(), (stats, keys, jnp.sum(jnp.argmax(logits, axis=-1) == labels))

    @jax.jit
    def step(state: TrainState, keys, images, labels):
        differentiate = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (stats, keys, right)), gradients = differentiate(
            state.params, state.stats, keys, images, labels
        )
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, stats, optimizer_state), keys, loss, right

    @jax.jit
    def predict(state: TrainState, images):
        merged = nnx.State.merge(state.params, state.stats)
        logits, _ = network.apply(merged, network.preprocessing(images), None)
        return jnp.argmax(logits, axis=-1)

    return _Program(step, predict)


def _epoch_keys(rng: Any, epoch: int) -> Any:
    """Dropout keys that depend on the epoch alone, so that a resumed run draws the same."""

    def renew(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.fold_in(leaf, epoch)
        return jnp.zeros_like(leaf)  # the count of keys drawn

    return jax.tree.map(renew, rng)


def _log(log: ProgressLog, bar: tqdm, step: int, batch_size: int, losses, rights) -> None:
    losses = np.array(jax.device_get(losses))
    if len(wrong := np.flatnonzero(~np.isfinite(losses))):
        first = step - len(losses) + 1 + wrong[0]
        raise FloatingPointError(
            f'the training loss is {losses[wrong[0]]} at step {first}; '
            'lower config.train.learning_rate'
        )
    loss, images = float(losses.mean()), batch_size * len(losses)
    accuracy = 100.0 * float(np.sum(jax.device_get(rights))) / images
    log.row('train', 'train', step, images, loss=loss, accuracy=accuracy)
    bar.set_postfix(loss=f'{loss:.3f}', accuracy=f'{accuracy:.1f}')


def _accuracy(program: _Program, state: TrainState, source: Source, size: int, batch_size: int):
    """Top-1 accuracy in percent."""
    right = total = 0
    for batch in evaluation_batches(source, size, batch_size):
        predicted = np.asarray(program.predict(state, batch.images))
        right += int(np.sum((predicted == batch.labels) & batch.valid))
        total += int(batch.valid.sum())
    return 100.0 * right / max(total, 1)


def trained_network(config: Config, num_classes: int, workdir: Path) -> Network | None:
    """The network that training left in the workdir; None if nothing was trained there.

    Raises:
        ConfigError: training there is not finished.
    """
    if not (workdir / 'checkpoints').exists():
        return None
    checkpoints = Checkpoints(workdir)
    done = checkpoints.epoch()
    if not done:
        return None
    if done < config.train.epochs:
        raise ConfigError(
            f'{workdir / "checkpoints"} holds epoch {done} of {config.train.epochs}; '
            "finish with 'train' in config.stages"
        )
    net = config.network
    module = build(net.name, num_classes, nnx.Rngs(config.seed), **net.options)
    _, params, stats, _ = _split(module)
    state = checkpoints.restore(TrainState(params, stats, None))
    nnx.update(module, state.params, state.stats)
    return as_network(net.name, module)

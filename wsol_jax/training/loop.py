"""The stage `train`: one loop, resumable at any checkpoint with the same end."""

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from tqdm import tqdm

from wsol_jax.config import Config, ConfigError, TrainConfig, flatten
from wsol_jax.data import (
    Batch,
    DataError,
    Source,
    steps_per_epoch,
    training_batches,
)
from wsol_jax.data.loader import ReaderKilled
from wsol_jax.data.records import Targets
from wsol_jax.hosts import barrier, gathered, is_first
from wsol_jax.interrupts import uninterrupted
from wsol_jax.models import (
    Network,
    Preprocessing,
    as_network,
    fill_module,
    find_preprocessing,
    local_weights,
)
from wsol_jax.models.zoo import RECIPES
from wsol_jax.parallel import Devices, all_devices, one_ahead
from wsol_jax.progress import ProgressLog
from wsol_jax.training.checkpoints import (
    BEST_LOCALIZATION,
    NOT_KEPT,
    CheckpointError,
    Checkpoints,
    Row,
    TrainState,
)
from wsol_jax.training.method import EpochScores, Shard, TrainedMethod
from wsol_jax.training.methods import make_method, make_module
from wsol_jax.training.skipped import SkipList
from wsol_jax.training.split_means import on_devices, split_means
from wsol_jax.training.step import Measured, Program, make_program
from wsol_jax.training.trained import (
    open_training,
    probability_of,
    record_training,
    recorded_preprocessing,
)
from wsol_jax.workdir import record_origin, remove_scores

_Score = Callable[[TrainState], Mapping[str, float]]


def train(
    config: Config,
    train_source: Source,
    val_source: Source,
    workdir: Path,
    method: TrainedMethod | None = None,
    epoch_score: EpochScores | None = None,
) -> None:
    """Trains from the last checkpoint, or from the start, to the last epoch.

    Several processes train together, on the devices of all of them: each reads its rows of every
    batch and its share of val, and the first writes checkpoints and progress.csv.

    Interrupted, it goes on from its last checkpoint: order, augmentation and dropout of the images
    depend on the seed and the step only, so it ends as if it had not been interrupted.

    Args:
        config: the experiment.
        train_source: images with the targets that the method takes, such as labels.
        val_source: likewise; its images tell the best epoch.
        workdir: for checkpoints and progress.csv.
        method: how it is trained; None for the one that the config names.
        epoch_score: what `train.keep='best_localization'` keeps the best epoch of.

    Raises:
        ConfigError: the labels do not fit the network, or a setting the parameters.
        FloatingPointError: the loss or a weight is not finite; the last checkpoint stays.
        DataError: an image has no label or several, no image of an epoch can be read, or the disk
            or network fails again and again.
        CheckpointError: a checkpoint cannot be written, or none can be read.
    """
    method = method or make_method(config.train)
    train_source = method.learns_from(train_source)
    epoch_steps = steps_per_epoch(len(train_source), config.train.batch_size)
    total = config.train.epochs * epoch_steps
    devices = all_devices(config.parallel)
    with (
        devices.stopping_together() as stop,
        Checkpoints(workdir, read_only=not is_first()) as checkpoints,
    ):
        _check_kept(config, checkpoints, workdir)
        if checkpoints.step() >= total:
            return
        again = checkpoints.step() > 0
        preprocessing = _preprocessing(config, workdir, again)
        module = _initial_module(config, method, train_source, preprocessing, again)
        size, probability = config.network.input_size or None, probability_of(flatten(config))
        network = as_network(config.network.name, module, preprocessing, probability, size)
        _check_shares(config.train, module, devices.size)
        score = _score_of(config, network, val_source, checkpoints, epoch_score)
        if is_first():
            record_origin(workdir, workdir / 'checkpoints')
            remove_scores(workdir)  # they tell of another network
            record_training(workdir, total, preprocessing, train_source.class_names)
        setting = _with_head(config)
        program = make_program(
            setting,
            method,
            module,
            network.preprocessing,
            devices,
            total,
            epoch_steps,
            config.seed,
        )
        run = _Run(config, method, devices, program, checkpoints, workdir, epoch_steps, score)
        run.to_the_end(train_source, val_source, network.input_shape[0], stop)


def _check_kept(config: Config, checkpoints: Checkpoints, workdir: Path) -> None:
    """Refuses to look for the best epoch where earlier ones were not looked at."""
    asked = config.train.keep == BEST_LOCALIZATION
    if asked and checkpoints.step() and not checkpoints.keeps(BEST_LOCALIZATION):
        raise ConfigError(f'{workdir / "checkpoints"}: {NOT_KEPT}')


def _score_of(
    config: Config,
    network: Network,
    val_source: Source,
    checkpoints: Checkpoints,
    epoch_score: EpochScores | None,
) -> _Score:
    """What is looked at after each epoch: nothing, unless the training began with that."""
    if not checkpoints.keeps(BEST_LOCALIZATION) and config.train.keep != BEST_LOCALIZATION:
        return lambda state: {}
    if epoch_score is None:
        raise ConfigError("config.train.keep: this task keeps 'best' or 'last' alone")
    score = epoch_score(config, network, val_source)
    checkpoints.begin(BEST_LOCALIZATION)
    return lambda state: score(replace(network, state=state.network()))


def _with_head(config: Config) -> TrainConfig:
    """The settings with `train.head` among the factors by name."""
    setting = config.train
    if setting.head == 1:
        return setting
    head = (rf'{RECIPES[config.network.name].head}|^heads\.', setting.head)
    return replace(setting, multipliers=(*setting.multipliers, head))


def _check_shares(setting: TrainConfig, module: nnx.Module, devices: int) -> None:
    """Batch normalisation would see the images that fill up what does not divide."""
    parts = devices * setting.accumulate
    norms = any(isinstance(part, nnx.BatchNorm) for _, part in nnx.iter_modules(module))
    if norms and setting.batch_size % parts:
        raise ConfigError(
            f'config.train.batch_size={setting.batch_size} must be a multiple of {parts}, devices '
            'x train.accumulate, because the network has batch normalisation'
        )


class _Run:
    """The state of a training and where it is kept."""

    def __init__(
        self,
        config: Config,
        method: TrainedMethod,
        devices: Devices,
        program: Program,
        checkpoints: Checkpoints,
        workdir: Path,
        epoch_steps: int,
        score: _Score,
    ):
        self._config = config
        self._method = method
        self._devices = devices
        self._program = program
        self._checkpoints = checkpoints
        self._epoch_steps = epoch_steps
        self._score = score
        start, self._row = program.initial, Row()
        if checkpoints.step():
            start, self._row = checkpoints.restore(start)
        self._step = int(start.step)
        self._measured: list[Measured] = []  # of the steps that the row does not hold yet
        self._earlier = self._row.images  # of the row, by another process
        self._readable = self._step % epoch_steps > 0  # whether the epoch has an image
        if len(set(gathered(self._step))) > 1:
            raise CheckpointError(f'{workdir}: not every process sees the same newest checkpoint')
        self._state = devices.replicate(start, donated=True)
        self._log = ProgressLog(workdir, config.wandb) if is_first() else None
        if self._log:
            self._log.forget('train', after=self._step)
        self._skipped = SkipList(workdir)

    def to_the_end(
        self, train_source: Source, val_source: Source, size: int, stop: Callable[[], None]
    ) -> None:
        """Runs every step that is left, with a checkpoint on the way and after each epoch."""
        setting = self._config.train
        total, batch_size = setting.epochs * self._epoch_steps, setting.batch_size
        val_targets = self._method.targets(val_source, required=False)  # once: they may look at all
        bar = {'total': total * batch_size, 'initial': self._step * batch_size, 'unit': 'image'}
        try:
            shards = self._shards(train_source, size, range(self._step, total))
            with tqdm(**bar, desc='train', disable=None) as progress, closing(shards):
                for shard in shards:
                    with uninterrupted():
                        self._one_step(shard, progress)
                    if self._step % self._epoch_steps == 0:
                        self._end_epoch(val_source, val_targets, size, last=self._step == total)
                    stop()
        except (KeyboardInterrupt, DataError, ReaderKilled):
            # Not where an epoch ends: going on from there would leave its evaluation out.
            if self._step % self._epoch_steps:
                self._save()
            raise

    def _shards(self, source: Source, size: int, steps: range) -> Generator[Shard]:
        """The batches of these steps, each on the devices before the one before it is done."""
        config, setting = self._config, self._config.train
        # Filled up with images that do not count where it does not divide.
        whole = self._devices.round_up(setting.batch_size, setting.accumulate)
        batches = training_batches(
            source,
            size,
            setting.batch_size,
            config.seed,
            steps,
            config.data.workers,
            config.augment,
            self._method.targets(source, required=True),
            setting.balanced,
            self._devices.own_rows(whole),
        )
        with closing(batches):
            yield from one_ahead(map(partial(on_devices, self._devices), map(self._note, batches)))

    def _note(self, batch: Batch) -> Batch:
        self._skipped.note('train', batch)
        return batch

    def _one_step(self, shard: Shard, progress: tqdm) -> None:
        setting = self._config.train
        self._state, measured = self._program.step(self._state, shard)
        self._step += 1
        self._measured.append(measured)
        progress.update(setting.batch_size)
        ends = self._step % self._epoch_steps == 0
        if ends or self._step % setting.log_every == 0:
            self._report(progress)
        if self._step % setting.checkpoint_every == 0 and not ends:
            self._save()

    def _end_epoch(self, source: Source, targets: Targets, size: int, last: bool) -> None:
        if not self._readable:
            raise DataError(f'no image of train can be read; {self._skipped.path} tells why')
        self._readable = False
        self._check_finite()
        means = split_means(
            self._program,
            self._devices,
            self._state,
            source,
            size,
            self._config,
            targets,
            self._skipped,
        )
        scores = self._score(self._devices.one(self._state))
        if self._log:
            self._log.row('train', 'val', self._step, len(source), **means, **scores)
            if last:
                _tell_of_chance(means, source)
            name, direction = self._method.criterion
            self._keep_best('best', name, means[name], direction)
            for name in list(scores)[:1]:
                self._keep_best(BEST_LOCALIZATION, name, scores[name], 'max')
        self._save()
        barrier('epoch')  # a checkpoint takes longer than a step is waited for

    def _keep_best(self, kind: str, name: str, value: float, direction: str) -> None:
        if _is_best(value, self._checkpoints.best_value(name, kind), direction):
            self._checkpoints.save_best(self._devices.one(self._state), name, value, kind)

    def _save(self) -> None:
        """Writes the last checkpoint, unless a weight is not finite."""
        self._check_finite()
        self._add_up()
        if is_first():
            self._checkpoints.save(self._devices.one(self._state), self._row)

    def _check_finite(self) -> None:
        state = self._devices.one(self._state)
        if not all(jax.tree.leaves(_finite((state.params, state.stats)))):
            raise FloatingPointError(
                f'the weights are not finite after step {self._step}; {_LOWER_RATE}'
            )

    def _add_up(self) -> None:
        """Adds the steps since the last call to the row, one by one: resumed or not, the same."""
        values = jax.device_get([self._devices.one(m) for m in self._measured])
        self._measured.clear()
        for step, measured in enumerate(values, self._step - len(values) + 1):
            if not np.isfinite(measured.mean_loss):
                raise FloatingPointError(
                    f'the training loss is {measured.mean_loss} at step {step}; {_LOWER_RATE}'
                )
            images = int(measured.images)
            sums = {'loss': float(measured.mean_loss) * images} | jax.tree.map(float, measured.sums)
            self._row = self._row.plus(images, sums)

    def _report(self, progress: tqdm) -> None:
        """A row of progress.csv on the images since the last one."""
        self._add_up()
        row, here = self._row, int(self._row.images - self._earlier)
        self._row, self._earlier = Row(), 0.0
        self._readable |= row.images > 0
        means = row.means()
        if self._log:
            self._log.row('train', 'train', self._step, here, **means)
        progress.set_postfix({key: f'{value:.3f}' for key, value in means.items()})


_AT_CHANCE = (
    'accuracy on val is %.1f %% after the last epoch, as by chance with %d classes; try AdamW '
    '(config.train.optimizer=adamw, learning_rate=2e-4), more epochs, or weights to start from '
    '(config.network.weights)'
)
_LOWER_RATE = 'lower config.train.learning_rate'
_finite = jax.jit(partial(jax.tree.map, lambda x: jnp.all(jnp.isfinite(x))))


def _tell_of_chance(means: Mapping[str, float], source: Source) -> None:
    accuracy = means.get('accuracy')
    classes = source.num_classes
    if accuracy is not None and classes and _at_chance(accuracy, len(source), classes):
        logging.warning(_AT_CHANCE, accuracy, classes)


def _at_chance(accuracy: float, images: int, classes: int) -> bool:
    """Whether guessing would be within two standard deviations of an accuracy in percent."""
    chance = 1 / classes
    return accuracy / 100 <= chance + 2 * np.sqrt(chance * (1 - chance) / images)


def _is_best(value: float, best: float | None, direction: str) -> bool:
    """Whether a value is as good as the best one, or there is none; NaN is worse than any."""
    if best is None or np.isnan(best):
        return True
    return value >= best if direction == 'max' else value <= best


def _initial_module(
    config: Config,
    method: TrainedMethod,
    source: Source,
    preprocessing: Preprocessing | None = None,
    again: bool = False,
) -> nnx.Module:
    """The network as training starts; with `again` a checkpoint will fill it."""
    if config.data.class_index:
        raise ConfigError('training numbers the classes itself; set config.data.class_index=False')
    net, start = config.network, None if again else _start(config)
    other = open_training(start, net.name) if start and start.is_dir() else None
    weights = None if other else start
    classes = method.num_logits(source)
    facts = (method, config.seed, net.options, preprocessing)
    module = make_module(net.name, weights, classes, *facts)
    if other:
        values = other.start()
        fill_module(net.name, module, values, other.workdir, strict=False)
    if not again:
        method.begin(module, other)
    return module


def _preprocessing(config: Config, workdir: Path, again: bool) -> Preprocessing | None:
    """That of what training starts from, or of the checkpoints there; None for the usual one."""
    if again:
        return recorded_preprocessing(workdir)
    net, start = config.network, _start(config)
    if start and start.is_dir() and not net.preprocessing:
        return recorded_preprocessing(start)
    weights = None if start and start.is_dir() else start
    found = find_preprocessing(net.name, weights, net.preprocessing)
    return None if found == find_preprocessing(net.name) else found


def _start(config: Config) -> Path | None:
    """The weights file, or the workdir of another run, to start from."""
    asked = config.train.init_from
    weights = asked or config.network.weights
    start = local_weights(weights) if weights else None
    if asked and start and not start.exists():
        raise ConfigError(f'config.train.init_from: {asked}: no such weights file or workdir')
    return start

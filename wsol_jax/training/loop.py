"""The stage `train`: one loop, resumable at any checkpoint with the same end."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from tqdm import tqdm

from wsol_jax.config import Config, ConfigError, TrainConfig
from wsol_jax.data import (
    Batch,
    DataError,
    Source,
    evaluation_batches,
    steps_per_epoch,
    training_batches,
)
from wsol_jax.data.loader import ReaderKilled
from wsol_jax.data.records import Targets
from wsol_jax.interrupts import uninterrupted
from wsol_jax.models import (
    Preprocessing,
    as_network,
    fill_module,
    find_preprocessing,
)
from wsol_jax.models.zoo import RECIPES
from wsol_jax.parallel import Devices, local_devices, one_ahead
from wsol_jax.progress import ProgressLog
from wsol_jax.training.checkpoints import Checkpoints, Row
from wsol_jax.training.method import Shard, TrainedMethod
from wsol_jax.training.methods import make_method, make_module
from wsol_jax.training.step import Measured, Program, make_program
from wsol_jax.training.trained import open_training, record_training, recorded_preprocessing
from wsol_jax.workdir import read_csv, record_origin, remove_scores, write_csv


def train(
    config: Config,
    train_source: Source,
    val_source: Source,
    workdir: Path,
    method: TrainedMethod | None = None,
) -> None:
    """Trains from the last checkpoint, or from the start, to the last epoch.

    Interrupted, it goes on from its last checkpoint: order, augmentation and dropout of the images
    depend on the seed and the step only, so it ends as if it had not been interrupted.

    Args:
        config: the experiment.
        train_source: images with the targets that the method takes, such as labels.
        val_source: likewise; its images tell the best epoch.
        workdir: for checkpoints and progress.csv.
        method: how it is trained; None for the one that the config names.

    Raises:
        ConfigError: the labels do not fit the network, or a setting the parameters.
        FloatingPointError: the loss or a weight is not finite; the last checkpoint stays.
        DataError: an image has no label or several, no image of an epoch can be read, or the disk
            or network fails again and again.
        CheckpointError: a checkpoint cannot be written, or none can be read.
    """
    epoch_steps = steps_per_epoch(len(train_source), config.train.batch_size)
    total = config.train.epochs * epoch_steps
    method = method or make_method(config.train)
    with Checkpoints(workdir) as checkpoints:
        if checkpoints.step() >= total:
            return
        module = _initial_module(config, method, train_source, again=checkpoints.step() > 0)
        preprocessing = _preprocessing(config, workdir, again=checkpoints.step() > 0)
        network = as_network(config.network.name, module, preprocessing)
        devices = local_devices(config.parallel)
        _check_shares(config.train, module, devices.size)
        record_origin(workdir, workdir / 'checkpoints')
        remove_scores(workdir)  # they tell of another network
        record_training(workdir, total, preprocessing)
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
        run = _Run(config, method, devices, program, checkpoints, workdir, epoch_steps)
        run.to_the_end(
            train_source, val_source, config.network.input_size or network.input_shape[0]
        )


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
    ):
        self._config = config
        self._method = method
        self._devices = devices
        self._program = program
        self._checkpoints = checkpoints
        self._epoch_steps = epoch_steps
        start, self._row = program.initial, Row()
        if checkpoints.step():
            start, self._row = checkpoints.restore(start)
        self._step = int(start.step)
        self._measured: list[Measured] = []  # of the steps that the row does not hold yet
        self._earlier = self._row.images  # of the row, by another process
        self._readable = self._step % epoch_steps > 0  # whether the epoch has an image
        self._state = devices.replicate(start, donated=True)
        self._log = ProgressLog(workdir)
        self._log.forget('train', after=self._step)
        self._skipped = SkipList(workdir)

    def to_the_end(self, train_source: Source, val_source: Source, size: int) -> None:
        """Runs every step that is left, with a checkpoint on the way and after each epoch."""
        setting = self._config.train
        total, batch_size = setting.epochs * self._epoch_steps, setting.batch_size
        bar = {'total': total * batch_size, 'initial': self._step * batch_size, 'unit': 'image'}
        try:
            shards = self._shards(train_source, size, range(self._step, total))
            with tqdm(**bar, desc='train', disable=None) as progress, closing(shards):
                for shard in shards:
                    with uninterrupted():
                        self._one_step(shard, progress)
                    if self._step % self._epoch_steps == 0:
                        self._end_epoch(val_source, size, last=self._step == total)
        except (KeyboardInterrupt, DataError, ReaderKilled):
            # Not where an epoch ends: going on from there would leave its evaluation out.
            if self._step % self._epoch_steps:
                self._save()
            raise

    def _shards(self, source: Source, size: int, steps: range) -> Generator[Shard]:
        """The batches of these steps, each on the devices before the one before it is done."""
        config, setting = self._config, self._config.train
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
        )
        with closing(batches):
            noted = map(self._note, batches)
            yield from one_ahead(map(partial(_shard, self._devices, setting.accumulate), noted))

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

    def _end_epoch(self, source: Source, size: int, last: bool) -> None:
        if not self._readable:
            raise DataError(f'no image of train can be read; {self._skipped.path} tells why')
        self._readable = False
        self._check_finite()
        means = _means(
            self._program,
            self._devices,
            self._state,
            source,
            size,
            self._config,
            self._method.targets(source, required=False),
            self._skipped,
        )
        self._log.row('train', 'val', self._step, len(source), **means)
        if last:
            _tell_of_chance(means, source)
        name, direction = self._method.best
        if _is_best(means[name], self._checkpoints.best_value(name), direction):
            self._checkpoints.save_best(self._devices.one(self._state), name, means[name])
        self._save()

    def _save(self) -> None:
        """Writes the last checkpoint, unless a weight is not finite."""
        self._check_finite()
        self._add_up()
        self._checkpoints.save(self._devices.one(self._state), self._row)

    def _check_finite(self) -> None:
        if not all(jax.tree.leaves(_finite(self._devices.one(self._state).params))):
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
        self._log.row('train', 'train', self._step, here, **means)
        progress.set_postfix({key: f'{value:.3f}' for key, value in means.items()})


_AT_CHANCE = (
    'accuracy on val is %.1f %% after the last epoch, as by chance with %d classes; try AdamW '
    '(config.train.optimizer=adamw, learning_rate=2e-4), more epochs, or weights to start from '
    '(config.network.weights)'
)
_TOLD = 10  # images that are named on the terminal
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


def _shard(devices: Devices, parts: int, batch: Batch) -> Shard:
    """A batch on the devices, filled up with images that do not count where it does not divide."""
    shard = Shard(batch.images, batch.targets, batch.valid, batch.index.astype(np.int32))
    count = len(batch.index)
    if (whole := devices.round_up(count, parts)) > count:
        rows = np.arange(whole)
        shard = jax.tree.map(lambda part: part[rows % count], shard)
        shard = shard._replace(valid=shard.valid & (rows < count))
    return devices.shard(shard)


def _means(
    program: Program,
    devices: Devices,
    state: Any,
    source: Source,
    size: int,
    config: Config,
    targets: Targets,
    skipped: 'SkipList',
) -> dict[str, float]:
    """Means over the images of a split that can be read: of the loss, and of what it names."""
    row = Row()
    batch_size = devices.round_up(config.train.batch_size)

    def launch(batch: Batch) -> tuple[Batch, dict[str, jax.Array]]:
        return batch, program.evaluate(state, _shard(devices, 1, batch))

    # In threads: worker processes would start anew after every epoch, beside those of the training.
    batches = evaluation_batches(source, size, batch_size, targets=targets)
    results: Iterator[tuple[Batch, dict[str, jax.Array]]] = one_ahead(map(launch, batches))
    for batch, values in results:
        found = devices.gather(values)
        sums = {n: float(np.sum(v[batch.valid], dtype=np.float64)) for n, v in found.items()}
        row = row.plus(int(batch.valid.sum()), sums)
        skipped.note('val', batch)
    if not row.images:
        raise DataError(f'no image of val can be read; {skipped.path} tells why')
    return row.means()


class SkipList:
    """Images that cannot be read and are passed over: told once each, listed in skipped.csv.

    Attributes:
        path: of skipped.csv.
    """

    def __init__(self, workdir: Path):
        self.path = workdir / 'skipped.csv'
        self._reasons = {(r['split'], r['image_id']): r['reason'] for r in read_csv(self.path)}

    def note(self, split: str, batch: Batch) -> None:
        """Adds the images of a batch of a split that did not decode."""
        names = dict(zip(batch.index.tolist(), batch.image_ids, strict=True))
        found = {(split, names[i]): reason for i, reason in batch.errors.items()}
        new = {key: reason for key, reason in found.items() if key not in self._reasons}
        for count, reason in enumerate(new.values(), len(self._reasons) + 1):
            if count <= _TOLD:
                logging.warning('%s, passed over: %s', split, reason)
            elif count == _TOLD + 1:
                logging.warning('more are passed over; %s lists all of them', self.path)
        if new:
            self._reasons |= new
            rows = sorted((*key, reason) for key, reason in self._reasons.items())
            write_csv(self.path, ('split', 'image_id', 'reason'), rows)


def _initial_module(
    config: Config, method: TrainedMethod, source: Source, again: bool = False
) -> nnx.Module:
    """The network as training starts; with `again` a checkpoint will fill it."""
    if config.data.class_index:
        raise ConfigError('training numbers the classes itself; set config.data.class_index=False')
    net, start = config.network, None if again else _start(config)
    other = open_training(start, net.name) if start and start.is_dir() else None
    weights = None if other else start
    classes = method.num_logits(source)
    module = make_module(net.name, weights, classes, method, config.seed, net.options)
    if other:
        values = other.weights('best', 'last')
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
    start = config.train.init_from
    if start and not Path(start).exists():
        raise ConfigError(f'config.train.init_from: {start}: no such weights file or workdir')
    start = start or config.network.weights
    return Path(start) if start else None

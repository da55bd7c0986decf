"""Training steps against the forward pass and each other, and the loop against its step.

Steps run on one batch of generated images that stays on the device.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax

from experiments.benchmark.maps import NETWORKS, forward
from experiments.benchmark.turns import Clock, Row, rows, take_turns, timed
from experiments.trained_methods import experiments_of
from wsol_jax.config import Config, DataConfig, NetworkConfig, TrainConfig
from wsol_jax.data import Labels, Source, steps_per_epoch, training_batches
from wsol_jax.models import as_network
from wsol_jax.parallel import local_devices
from wsol_jax.run import open_split
from wsol_jax.training.loop import train
from wsol_jax.training.method import Shard
from wsol_jax.training.methods import make_method, make_module
from wsol_jax.training.step import make_program
from wsol_jax.workdir import read_csv

BATCH = 16
CONFIGS = ('cub30_trained', 'cub30_deit_tiny')  # their variants, of which 'plain' is one
WORKERS = (0, 1)
STEPS = 2  # in a turn


class Step(NamedTuple):
    """A compiled step, and the forward pass alone, on a batch on the device.

    Attributes:
        clock: of the step, for one image.
        forward: the same in inference mode.
        flops: floating-point operations of a step for one image.
    """

    clock: Clock
    forward: Clock
    flops: float


def section(repeats: int) -> Iterator[Row]:
    """Rows of the networks, of the variants of the configs, and of the loop."""
    for name in NETWORKS:
        yield from against_forward(on_generated(name, BATCH), repeats)
    for name in CONFIGS:
        yield from against_plain(variants_of(name), name, repeats)
    yield from against_step(
        on_generated('resnet10', 32, 96, width=16, output_stride=8), WORKERS, repeats
    )


def on_generated(name: str, batch: int, size: int = 224, **options: int) -> Config:
    """A training of a network on generated images."""
    return Config(
        data=DataConfig(source='shapes', shapes_size=size),
        network=NetworkConfig(name=name, input_size=size, options=options),
        train=TrainConfig(batch_size=batch),
    )


def variants_of(name: str, size: int = 224) -> dict[str, Config]:
    """The variants of a config file, on generated images and from random weights."""
    data = DataConfig(source='shapes', shapes_size=size)
    return {
        variant: replace(config, data=data, network=replace(config.network, weights=''))
        for variant, (config, _) in experiments_of([name]).items()
    }


def against_forward(config: Config, repeats: int) -> list[Row]:
    """Rows of one network; the ratio is of its forward pass."""
    step = step_of(config)
    cases = {'forward': step.forward, 'step': step.clock}
    where = f'{config.network.name}, batch {config.train.batch_size}: '
    return rows(take_turns(cases, repeats), 'forward', where=where)


def against_plain(configs: Mapping[str, Config], name: str, repeats: int) -> list[Row]:
    """Rows of the variants of a config; the ratios are of the plain classifier's step."""
    steps = {variant: step_of(config) for variant, config in configs.items()}
    seconds = take_turns({variant: step.clock for variant, step in steps.items()}, repeats)
    plain = steps['plain'].flops
    operations = [
        Row(f'{name}: {variant}', step.flops / 1e9, 'GFLOP an image', step.flops / plain, 'plain')
        for variant, step in steps.items()
    ]
    return rows(seconds, 'plain', where=f'{name}: ') + operations


def against_step(config: Config, workers: Sequence[int], repeats: int) -> list[Row]:
    """Rows of the loop with its loader; the ratios are of the speed of the step alone."""
    # A checkpoint within an epoch would be timed, too.
    setting = replace(config.train, epochs=2, checkpoint_every=10**9)
    config = replace(config, train=setting)
    sources = open_split(config, 'train'), open_split(config, 'val')
    cases = {'step alone': step_of(config, sources[0]).clock}
    for count in workers:
        with_workers = replace(config, data=replace(config.data, workers=count))
        cases[f'loop, {count} workers'] = lambda c=with_workers: loop_seconds(c, *sources)
    where = f'{config.network.name}, batch {setting.batch_size}: '
    return rows(take_turns(cases, repeats), 'step alone', of='speed', where=where)


def step_of(config: Config, source: Source | None = None) -> Step:
    """The compiled step of a training from its first weights."""
    source = source or open_split(config, 'train')
    net, setting = config.network, config.train
    method, devices = make_method(setting), local_devices(config.parallel)
    classes = method.num_logits(source)
    module = make_module(net.name, None, classes, method, config.seed, net.options)
    network = as_network(net.name, module)
    epoch_steps = steps_per_epoch(len(source), setting.batch_size)
    facts = (network.preprocessing, devices, setting.epochs * epoch_steps, epoch_steps)
    program = make_program(setting, method, module, *facts)
    batch = first_batch(config, source, net.input_size or network.input_shape[0])
    shard, images = devices.shard(batch), jax.device_put(batch.images)
    state = devices.replicate(program.initial, donated=True)
    step = program.step.lower(state, shard).compile()

    def some_steps() -> object:
        nonlocal state
        for _ in range(STEPS):
            state, _ = step(state, shard)
        return state

    return Step(
        timed(some_steps, STEPS * setting.batch_size),
        timed(forward(network, images), setting.batch_size),
        step.cost_analysis()['flops'] / setting.batch_size,
    )


def first_batch(config: Config, source: Source, size: int) -> Shard:
    """The first one of a training."""
    arguments = (source, size, config.train.batch_size, config.seed, range(1))
    with closing(training_batches(*arguments, targets=Labels(required=True))) as batches:
        batch = next(batches)
    return Shard(batch.images, batch.targets, batch.valid, batch.index.astype('int32'))


def loop_seconds(config: Config, train_source: Source, val_source: Source) -> float:
    """Seconds for an image of a training, over all epochs but the first.

    That is of the rows of progress.csv: reading, checkpoints and the start of the workers count,
    the accuracy on val does not.
    """
    with tempfile.TemporaryDirectory() as folder:
        train(config, train_source, val_source, Path(folder))
        told = [r for r in read_csv(Path(folder) / 'progress.csv') if r['split'] == 'train']
    images, batch = len(train_source), config.train.batch_size
    epoch_steps = steps_per_epoch(images, batch)

    def seen(step: int) -> int:
        return step // epoch_steps * images + step % epoch_steps * batch

    steps = [int(row['step']) for row in told]
    parts = [
        (seen(b) - seen(a), float(row['images_per_second']))
        for a, b, row in zip(steps, steps[1:], told[1:], strict=False)
        if a >= epoch_steps
    ]
    return sum(n / speed for n, speed in parts) / sum(n for n, _ in parts)

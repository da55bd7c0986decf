r"""Images per second of the training loop with its loader, against the compiled step alone.

    python -m experiments.speed_training --config configs/shapes_resnet.py \
        [--workers 0,1,2] [--train_epochs 4]
    python -m experiments.speed_training --configs configs/cub30_trained.py [--variants plain,acol]

One process: whole trainings in a temporary folder, one for each number of data.workers, and before
and after each the compiled step on one batch that stays on the device, for the load of the machine
changes. The loop's figure is over all epochs but the first, without the accuracy on val: images by
seconds of progress.csv; reading, checkpoints and the start of the workers count. Resident memory is
that of the process and its workers at the end of each epoch.

With --configs the compiled steps of their variants against each other, such as of every training
method on one network: in turns, so that all of them meet the same load; a row for each with its
images per second, and its time and its floating-point operations as multiples of the first one's.
"""

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import psutil
from absl import flags, logging

from experiments.trained_methods import asked
from wsol_jax.command_line import CONFIG, run_command
from wsol_jax.config import Config, ConfigError, read_config
from wsol_jax.data import Labels, Source, steps_per_epoch, training_batches
from wsol_jax.models import as_network
from wsol_jax.parallel import local_devices
from wsol_jax.run import open_split
from wsol_jax.training.loop import train
from wsol_jax.training.method import Shard
from wsol_jax.training.methods import make_method, make_module
from wsol_jax.training.step import make_program
from wsol_jax.workdir import read_csv

_WORKERS = flags.DEFINE_list('workers', ['0', '1', '2'], 'Values of data.workers to try.')
_EPOCHS = flags.DEFINE_integer('train_epochs', 4, 'Epochs of each training.', lower_bound=2)
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Timings of each of several steps.', lower_bound=1)
_REPEATS = flags.DEFINE_integer('repeats', 30, 'Steps on one batch in a timing.', lower_bound=1)
_MIB = 2**20


class Step(NamedTuple):
    """A compiled step on a batch on the device.

    Attributes:
        speed: times it, in images per second.
        flops: floating-point operations of a device for one image.
    """

    speed: Callable[[], float]
    flops: float


def step_on_one_batch(config: Config, source: Source) -> Step:
    """The compiled step of a training from its first weights, on a batch on the device."""
    net, setting = config.network, config.train
    method, devices = make_method(setting), local_devices(config.parallel)
    weights = Path(net.weights) if net.weights else None
    classes = method.num_logits(source)
    module = make_module(net.name, weights, classes, method, config.seed, net.options)
    network = as_network(net.name, module)
    epoch_steps = steps_per_epoch(len(source), setting.batch_size)
    facts = (network.preprocessing, devices, setting.epochs * epoch_steps, epoch_steps)
    program = make_program(setting, method, module, *facts)
    shard = devices.shard(_batch(config, source, net.input_size or network.input_shape[0]))
    state = devices.replicate(program.initial, donated=True)
    step = program.step.lower(state, shard).compile()
    state, _ = step(state, shard)

    def speed() -> float:
        nonlocal state
        jax.block_until_ready(state)
        start = time.perf_counter()
        for _ in range(_REPEATS.value):
            state, _ = step(state, shard)
        jax.block_until_ready(state)
        return _REPEATS.value * setting.batch_size / (time.perf_counter() - start)

    return Step(speed, step.cost_analysis()['flops'] / setting.batch_size)


def _batch(config: Config, source: Source, size: int) -> Shard:
    """The first one of a training."""
    arguments = (source, size, config.train.batch_size, config.seed, range(1))
    with closing(training_batches(*arguments, targets=Labels(required=True))) as batches:
        batch = next(batches)
    return Shard(batch.images, batch.targets, batch.valid, batch.index.astype(np.int32))


def compare() -> None:
    """Prints the table of the variants of --configs."""
    configs = {variant: config for variant, (config, _) in asked().items()}
    steps = {v: step_on_one_batch(c, open_split(c, 'train')) for v, c in configs.items()}
    times = {variant: [] for variant in steps}
    for _ in range(_ROUNDS.value):
        for variant, step in steps.items():
            times[variant].append(1 / step.speed())
    first, *_ = steps
    for variant, step in steps.items():
        ratios = [t / u for t, u in zip(times[variant], times[first], strict=True)]
        print(
            f'{variant}: {1 / statistics.median(times[variant]):.1f} images/s, time '
            f'{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}), operations '
            f'{step.flops / steps[first].flops:.2f}',
            flush=True,
        )


def loop_speed(config: Config, train_source: Source, val_source: Source) -> tuple[float, list[int]]:
    """Images per second of a training, and the resident memory in MiB after each epoch."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder)
        with _memory_of_epochs(workdir / 'progress.csv') as memory:
            train(config, train_source, val_source, workdir)
        rows = [r for r in read_csv(workdir / 'progress.csv') if r['split'] == 'train']
    images = len(train_source)
    epoch_steps = steps_per_epoch(images, config.train.batch_size)

    def seen(step: int) -> int:
        return step // epoch_steps * images + step % epoch_steps * config.train.batch_size

    steps = [int(row['step']) for row in rows]
    pairs = zip(steps, steps[1:], rows[1:], strict=False)
    parts = [
        (seen(b) - seen(a), float(r['images_per_second'])) for a, b, r in pairs if a >= epoch_steps
    ]
    return sum(n for n, _ in parts) / sum(n / speed for n, speed in parts), memory


@contextmanager
def _memory_of_epochs(progress: Path) -> Iterator[list[int]]:
    """A list that grows by the resident memory, in MiB, whenever an epoch ends."""
    memory: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            look()

    def look() -> None:
        if sum(row['split'] == 'val' for row in read_csv(progress)) > len(memory):
            memory.append(_resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield memory
    finally:
        over.set()
        thread.join()
        look()


def _resident() -> int:
    process = psutil.Process()
    total = process.memory_info().rss
    for child in process.children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total // _MIB


def main(_: Sequence[str]) -> None:
    """Times and prints the table."""
    logging.set_verbosity(logging.WARNING)
    if flags.FLAGS.configs:
        compare()
        return
    if CONFIG.value is None:
        raise ConfigError('--config or --configs must name what is timed')
    config = read_config(CONFIG.value)
    # A checkpoint within an epoch would be timed, too.
    setting = replace(config.train, epochs=_EPOCHS.value, checkpoint_every=10**9)
    config = replace(config, train=setting)
    train_source, val_source = open_split(config, 'train'), open_split(config, 'val')
    print(
        f'{config.network.name}, {jax.devices()[0].device_kind}, batch of {setting.batch_size}, '
        f'{len(train_source)} images an epoch; images/s, MiB after each epoch'
    )
    step = step_on_one_batch(config, train_source)
    before = step.speed()
    for workers in map(int, _WORKERS.value):
        data = replace(config.data, workers=workers)
        loop, memory = loop_speed(replace(config, data=data), train_source, val_source)
        after = step.speed()
        share = 200 * loop / (before + after)
        print(
            f'{workers} workers: loop {loop:.1f}, step alone {before:.1f} before and {after:.1f} '
            f'after it, so {share:.0f} %; memory {memory}',
            flush=True,
        )
        before = after


if __name__ == '__main__':
    run_command(main)

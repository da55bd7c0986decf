"""A second task in full: how wide is the object, as a share of its image?"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import nnx

from wsol_jax.data.decode import stored_size
from wsol_jax.evaluation.frame import evaluate_splits
from wsol_jax.evaluation.split import StoredSplit
from wsol_jax.maps.columns import Column, Store
from wsol_jax.models.heads import Heads
from wsol_jax.offline import Pass, check_origin, fill_store
from wsol_jax.parallel import local_devices
from wsol_jax.report.frame import write_tables
from wsol_jax.task import Task
from wsol_jax.training.method import TrainedMethod
from wsol_jax.workdir import read_json


def width_of(record):
    (x0, _, x1, _), *_ = record.boxes
    return {'width': np.float32((x1 - x0) / stored_size(record)[0])}


class WidthHead(Heads):
    def __init__(self, network, rngs):
        self.reads = (network.last_layer,)
        self.linear = nnx.Linear(network.shapes[network.last_layer][-1], 1, rngs=rngs)

    def __call__(self, endpoints, classes, trunk):
        return {'logits': self.linear(jnp.mean(endpoints[self.reads[0]], axis=(1, 2)))}


@dataclass(frozen=True, kw_only=True)
class WidthRegression(TrainedMethod):
    best = ('error', 'min')

    def targets(self, source, required):
        return width_of

    def heads(self, network, rngs):
        return WidthHead(network, rngs)

    def loss(self, outputs, batch, update):
        error = outputs.logits[:, 0] - batch.targets['width']
        return error**2, {'error': jnp.abs(error)}


def compute(config, network, source, split, workdir):
    folder, devices = workdir / 'maps' / split, local_devices(config.parallel)
    store = Store.prepare(folder, len(source), {'width': Column((), 'float32')}, {})
    check_origin(network, folder, workdir)
    program = devices.per_image(lambda s, x: network.apply(s, network.preprocessing(x))[0][:, 0])
    state = devices.replicate(network.state)
    launch = lambda batch: program(state, devices.shard(batch.images))  # noqa: E731
    work = Pass(network.input_size, width_of, launch, lambda batch, found, step: {'width': found})
    fill_store(config, source, split, store, work, workdir)
    return store


def errors(part, setting, chosen):
    true = [width_of(record)['width'] for record in part.records]
    return np.abs(part.columns['width'] - np.array(true))


def summarize(splits, errors, choice):
    return {'error': {name: float(e.mean()) for name, e in errors.items()}}


def evaluate(config, sources, workdir, network):
    join = lambda parts: np.concatenate(list(parts))  # noqa: E731
    splits = [StoredSplit(n, s, Store(workdir / 'maps' / n)) for n, s in sources.items()]
    tell = {'score': errors, 'join': join, 'choose': lambda _: {}, 'summarize': summarize}
    return evaluate_splits(config.evaluate, splits, workdir, **tell)


def report(config, source, workdir):
    error = read_json(workdir / 'metrics.json')['error']
    write_tables(workdir, 'Widths', {'images': str(len(source))}, {'Mean error': [error]})
    return f'Mean error: {error}'


WIDTHS = Task(lambda config: WidthRegression(), compute, evaluate, report)

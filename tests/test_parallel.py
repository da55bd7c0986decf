"""Sharing of batches, here and on eight devices forced from one CPU."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType

from wsol_jax.config import TrainConfig
from wsol_jax.models import Network, Preprocessing
from wsol_jax.parallel import data_mesh, replicate, round_up, shard_batch
from wsol_jax.training import loop
from wsol_jax.training.checkpoints import TrainState
from wsol_jax.training.optimizer import make_optimizer

ON_EIGHT = """
import sys
import jax, numpy as np
from pathlib import Path
from test_parallel import tiny_training
from wsol_jax.parallel import data_mesh, replicate, round_up, shard_batch

if __name__ == '__main__':
    mesh = data_mesh()
    assert mesh.size == 8 and mesh.axis_names == ('data',)
    assert [round_up(n, mesh) for n in (1, 7, 8, 9, 16, 20)] == [8, 8, 8, 16, 16, 24]
    rows = np.arange(48).reshape(16, 3)
    one, two = shard_batch((rows, rows[:, 0]), mesh)
    for array, whole in ((one, rows), (two, rows[:, 0])):
        shards = {s.device.id: np.asarray(s.data) for s in array.addressable_shards}
        assert sorted(shards) == list(range(8))
        for k, part in shards.items():
            np.testing.assert_array_equal(part, whole[2 * k : 2 * k + 2])
        np.testing.assert_array_equal(jax.device_get(array), whole)
    copies = replicate({'w': rows}, mesh)['w'].addressable_shards
    assert len(copies) == 8 and all((np.asarray(s.data) == rows).all() for s in copies)
    assert float(jax.jit(lambda x: x.mean())(two)) == rows[:, 0].mean()
    try:
        shard_batch(rows[:9], mesh)
    except ValueError:
        pass
    else:
        raise AssertionError('9 rows cannot be shared by 8 devices')
    tiny_training(Path(sys.argv[1]))
"""


class Tiny(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.25, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, inputs, perturb=None):
        x = nnx.relu(self.norm(self.conv(inputs)))
        return self.head(self.dropout(x).mean((1, 2))), {'x': x}


def tiny_training(file):
    """Writes what three steps on all devices leave."""
    mesh, module = data_mesh(), Tiny(nnx.Rngs(0))
    graph, params, stats, keys = loop._split(module)
    network = Network.from_module(
        module, name='tiny', preprocessing=Preprocessing((128.0,) * 3, (64.0,) * 3), input_size=6
    )
    optimizer = make_optimizer(TrainConfig(learning_rate=0.5, warmup=0.0), 4)
    state = replicate(TrainState(params, stats, optimizer.init(params)), mesh)
    step, rng, losses = loop._compile(graph, optimizer, network).step, np.random.default_rng(0), []
    for _ in range(3):
        images = rng.integers(0, 256, (16, 6, 6, 3), np.uint8)
        batch = shard_batch((images, np.arange(16) % 3), mesh)
        state, keys, loss, _ = step(state, replicate(keys, mesh), *batch)
        losses.append(loss)
    np.savez(file, *map(np.asarray, (*losses, *jax.tree.leaves(state))))


def test_eight_devices_share_batches_and_train_as_one(tmp_path):
    flags = '--xla_force_host_platform_device_count=8'
    environment = {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
    environment['PYTHONPATH'] = str(Path(__file__).parent)
    command = [sys.executable, '-c', ON_EIGHT, str(tmp_path / 'eight.npz')]
    subprocess.run(command, env=environment, check=True, timeout=200)
    tiny_training(tmp_path / 'one.npz')
    one, eight = np.load(tmp_path / 'one.npz'), np.load(tmp_path / 'eight.npz')
    assert len(one.files) == len(eight.files) > 12
    for name in one.files:
        np.testing.assert_allclose(one[name], eight[name], rtol=1e-4, atol=1e-5)


def test_on_the_devices_there_are():
    mesh = data_mesh()
    assert mesh.size == len(jax.local_devices()) and mesh.axis_types == (AxisType.Auto,)
    rows = np.arange(6.0 * mesh.size).reshape(-1, 2)
    assert round_up(len(rows), mesh) % mesh.size == 0
    tree = {'a': shard_batch(rows, mesh), 'b': replicate(rows, mesh)}
    for value in jax.device_get(tree).values():
        assert isinstance(value, np.ndarray)
        np.testing.assert_array_equal(value, rows)

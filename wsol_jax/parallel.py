"""Devices: one mesh axis `data`, batches split over it, everything else on all of it."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_mesh() -> Mesh:
    """A mesh of all local devices with the single axis 'data'."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), ('data',), axis_types=(AxisType.Auto,), devices=devices)


def round_up(batch_size: int, mesh: Mesh) -> int:
    """The smallest batch size not below this one that the devices can share evenly."""
    return -(-batch_size // mesh.size) * mesh.size


def shard_batch(arrays: Any, mesh: Mesh) -> Any:
    """Splits the leading axis of every array over the devices."""
    return jax.device_put(arrays, NamedSharding(mesh, PartitionSpec('data')))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of every array on all devices."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))

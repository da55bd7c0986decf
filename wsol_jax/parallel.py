"""Devices: a batch is split over all local ones, everything else lies on each of them.

`jit` over a mesh with the one axis `data`, or `pmap`: the same steps and the same numbers. This is
the only module that knows which.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

AXIS = 'data'


class Devices(ABC):
    """All local devices, and how steps run on them.

    Attributes:
        axis: the axis that steps must sum over by name; None where sums are over the whole batch
            anyway.
    """

    axis: str | None = None

    def __init__(self) -> None:
        devices = jax.local_devices()
        axis_types = (AxisType.Auto,)
        self._mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=axis_types, devices=devices)

    @property
    def size(self) -> int:
        """How many devices there are."""
        return self._mesh.size

    def round_up(self, batch_size: int, parts: int = 1) -> int:
        """The smallest batch size not below this one that the devices can share evenly.

        Args:
            batch_size: images of a batch.
            parts: in how many equal parts each device computes its share.
        """
        multiple = self.size * parts
        return -(-batch_size // multiple) * multiple

    @abstractmethod
    def compile(self, step: Callable) -> Callable:
        """A program of `step`, for arguments from `shard` and `replicate`."""

    @abstractmethod
    def shard(self, tree: Any) -> Any:
        """Splits the leading axis of every array over the devices."""

    @abstractmethod
    def replicate(self, tree: Any) -> Any:
        """Puts a copy of every array on each device."""

    @abstractmethod
    def one(self, tree: Any) -> Any:
        """What every device holds the same of, as it was before `replicate`."""

    @abstractmethod
    def gather(self, tree: Any) -> Any:
        """Split arrays as whole NumPy arrays."""

    def total(self, tree: Any) -> Any:
        """Inside a step: sums over the batch become sums over all devices."""
        return jax.lax.psum(tree, self.axis) if self.axis else tree

    def _put(self, tree: Any, spec: PartitionSpec) -> Any:
        return jax.device_put(tree, NamedSharding(self._mesh, spec))


class _Jit(Devices):
    def compile(self, step: Callable) -> Callable:
        return jax.jit(step)

    def shard(self, tree: Any) -> Any:
        return self._put(tree, PartitionSpec(AXIS))

    def replicate(self, tree: Any) -> Any:
        return self._put(tree, PartitionSpec())

    def one(self, tree: Any) -> Any:
        return tree

    def gather(self, tree: Any) -> Any:
        return jax.device_get(tree)


class _Pmap(Devices):
    """Every array has a leading axis of devices."""

    axis = AXIS

    def compile(self, step: Callable) -> Callable:
        return jax.pmap(step, axis_name=AXIS, devices=list(self._mesh.devices))

    def shard(self, tree: Any) -> Any:
        def split(x: Any) -> Any:
            return x.reshape(self.size, -1, *x.shape[1:])

        return self._put(jax.tree.map(split, tree), PartitionSpec(AXIS))

    def replicate(self, tree: Any) -> Any:
        def copies(x: Any) -> Any:
            return np.broadcast_to(jax.device_get(x), (self.size, *np.shape(x)))

        return self._put(jax.tree.map(copies, tree), PartitionSpec(AXIS))

    def one(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: x[0], tree)

    def gather(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)


@cache
def local_devices(parallel: str) -> Devices:
    """All local devices.

    Args:
        parallel: 'jit' or 'pmap'.
    """
    return {'jit': _Jit, 'pmap': _Pmap}[parallel]()


def in_parts(count: int, most: int) -> np.ndarray:
    """Indices 0 ... count-1 in parts of one length, at most `most`: [parts, length].

    As even as can be; the last index fills up the last part, which would else be compiled anew.
    """
    parts = -(-count // most)
    length = -(-count // parts)
    return np.minimum(np.arange(parts * length), count - 1).reshape(parts, length)


def one_ahead(results: Iterator) -> Iterator:
    """Yields each result with the next already launched: devices and host work side by side."""
    previous = next(results, None)
    for current in results:
        yield previous
        previous = current
    if previous is not None:
        yield previous

"""Devices: a batch is split over all local ones, everything else lies on each of them.

What is computed for each image alone (maps, predictions, faithfulness) runs on every device with
its own images, without communication; a training step sums over all of them. `jit` over a mesh with
the one axis `data`, or `pmap`: the same numbers. This is the only module that knows which.

Of several processes, see `wsol_jax.hosts`, each has batches of its own for its local devices; only
training takes the devices of all of them for one.
"""

import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from wsol_jax.fields import ConfigError
from wsol_jax.hosts import barrier, processes
from wsol_jax.interrupts import Terminated, uninterrupted

AXIS = 'data'
BATCH = 16  # images of a list that are computed at once


class Devices(ABC):
    """All local devices, or those of all processes, and how steps run on them.

    Attributes:
        axis: the axis that steps must sum over by name; None where sums are over the whole batch
            anyway.
    """

    axis: str | None = None

    def __init__(self, devices: Sequence[jax.Device]) -> None:
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

    def own_rows(self, batch_size: int) -> np.ndarray:
        """Which rows of a batch this process has, which `shard` takes of it."""
        return np.arange(batch_size)

    @contextmanager
    def stopping_together(self) -> Iterator[Callable[[], None]]:
        """Within, Ctrl-C and SIGTERM in one process stop all of them, behind the same step.

        Yields:
            What all processes call after each step; it raises where they are to stop.
        """
        yield lambda: None

    @abstractmethod
    def per_image(self, function: Callable) -> Callable:
        """A program of (shared, *batches) -> results that treats every image alone.

        Args:
            function: its first argument is from `replicate`, the others from `shard`; every array
                it returns has the images as leading axis. It must not mix images: each device runs
                it with its own ones.
        """

    @abstractmethod
    def step(self, step: Callable) -> Callable:
        """A program of a training step (state, shard) -> (state, values).

        The old state is given up for the new one: it is read no more afterwards.

        Args:
            step: the state is from `replicate` with `donated`, the shard from `shard`.
        """

    @abstractmethod
    def shard(self, tree: Any) -> Any:
        """Splits the leading axis of every array over the devices."""

    @abstractmethod
    def replicate(self, tree: Any, *, donated: bool = False) -> Any:
        """Puts every array on each device.

        Args:
            tree: arrays.
            donated: they will be given up to a step, so they must be copies of their own.
        """

    @abstractmethod
    def one(self, tree: Any) -> Any:
        """What every device holds the same of, as it was before `replicate`."""

    @abstractmethod
    def gather(self, tree: Any) -> Any:
        """Split arrays as whole NumPy arrays."""

    def total(self, tree: Any) -> Any:
        """Inside a step: sums over the batch become sums over all devices."""
        return jax.lax.psum(tree, self.axis) if self.axis else tree

    def alone(self, function: Callable) -> Callable:
        """Inside a step: a function of arrays [B, ...] that each device calls with its own images.

        A loop over the images of a batch needs it: all devices would go through all of them.
        """
        return function

    def _put(self, tree: Any, spec: PartitionSpec, *, donated: bool = False) -> Any:
        if donated:  # one array under two names, as a moving average starts, cannot be given twice
            tree = jax.tree.map(np.array, jax.device_get(tree))
        sharding = NamedSharding(self._mesh, spec)
        return jax.device_put(tree, sharding, may_alias=False if donated else None)


class _Jit(Devices):
    def per_image(self, function: Callable) -> Callable:
        # Not left to the partitioner: a `vmap` over cotangents or channels merges into the batch
        # of a convolution, and it would gather all images on every device.
        # check_vma: zeros made inside would count as shared, and their gradient be summed.
        alone = jax.shard_map(
            lambda shared, batches: function(shared, *batches),
            mesh=self._mesh,
            in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
            out_specs=PartitionSpec(AXIS),
            check_vma=False,
        )
        return jax.jit(lambda shared, *batches: alone(shared, batches))

    def step(self, step: Callable) -> Callable:
        return jax.jit(step, donate_argnums=0)

    def alone(self, function: Callable) -> Callable:
        split = PartitionSpec(AXIS)
        return jax.shard_map(
            function, mesh=self._mesh, in_specs=split, out_specs=split, check_vma=False
        )

    def shard(self, tree: Any) -> Any:
        return self._put(tree, PartitionSpec(AXIS))

    def replicate(self, tree: Any, *, donated: bool = False) -> Any:
        return self._put(tree, PartitionSpec(), donated=donated)

    def one(self, tree: Any) -> Any:
        return tree

    def gather(self, tree: Any) -> Any:
        return jax.device_get(tree)


class _Pmap(Devices):
    """Every array has a leading axis of devices."""

    axis = AXIS

    def per_image(self, function: Callable) -> Callable:
        return self._pmap(function)

    def step(self, step: Callable) -> Callable:
        return self._pmap(step, donate_argnums=0)

    def _pmap(self, function: Callable, **options: Any) -> Callable:
        return jax.pmap(function, axis_name=AXIS, devices=list(self._mesh.devices), **options)

    def shard(self, tree: Any) -> Any:
        def split(x: Any) -> Any:
            return x.reshape(self.size, -1, *x.shape[1:])

        return self._put(jax.tree.map(split, tree), PartitionSpec(AXIS))

    def replicate(self, tree: Any, *, donated: bool = False) -> Any:
        def copies(x: Any) -> Any:
            return np.broadcast_to(jax.device_get(x), (self.size, *np.shape(x)))

        return self._put(jax.tree.map(copies, tree), PartitionSpec(AXIS), donated=donated)

    def one(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: x[0], tree)

    def gather(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)


class _OfAll(_Jit):
    """The devices of several processes; what is put on them, each process puts on its own."""

    def __init__(self, devices: Sequence[jax.Device]) -> None:
        super().__init__(devices)
        self._split = NamedSharding(self._mesh, PartitionSpec(AXIS))
        self._shared = NamedSharding(self._mesh, PartitionSpec())
        self._largest = jax.jit(jnp.max, out_shardings=self._shared)

    def per_image(self, function: Callable) -> Callable:
        """For the local devices alone: nobody waits for another."""
        return local_devices('jit').per_image(function)

    def step(self, step: Callable) -> Callable:
        program = jax.jit(step, donate_argnums=0, out_shardings=self._shared)

        compiled: list[Callable] = []

        def run(state: Any, shard: Any) -> Any:
            if not compiled:
                compiled.append(program.lower(state, shard).compile())
                barrier('compiled')  # who is late would be waited for some seconds only
            return compiled[0](state, shard)

        return run

    def own_rows(self, batch_size: int) -> np.ndarray:
        places = self._split.addressable_devices_indices_map((batch_size,)).values()
        return np.sort(np.concatenate([np.arange(batch_size)[place] for place in places]))

    def shard(self, tree: Any) -> Any:
        return jax.tree.map(self._split_rows, tree)

    def _split_rows(self, own: Any) -> jax.Array:
        """Rows of this process as those of the whole batch that they are."""
        count = len(own) * self.size // jax.local_device_count()
        rows = self.own_rows(count)

        def rows_of(index: Any) -> Any:
            start = int(np.searchsorted(rows, index[0].start or 0))
            return own[start : start + count // self.size]

        return jax.make_array_from_callback((count, *own.shape[1:]), self._split, rows_of)

    def replicate(self, tree: Any, *, donated: bool = False) -> Any:
        def copies(x: Any) -> jax.Array:
            return jax.make_array_from_callback(x.shape, self._shared, lambda _: np.array(x))

        return jax.tree.map(copies, jax.tree.map(np.asarray, jax.device_get(tree)))

    def one(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: x.addressable_data(0), tree)

    @contextmanager
    def stopping_together(self) -> Iterator[Callable[[], None]]:
        asked: list[jax.Array] = []

        def stop() -> None:
            # Known one step later: nobody waits for a step that is not done.
            told = np.array([max(caught, default=0)], np.int32)
            own = np.repeat(told, jax.local_device_count())
            asked.append(self._largest(self._split_rows(own)))
            number = int(asked.pop(0)) if len(asked) > 1 else 0
            if number:
                raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

        with uninterrupted() as caught:
            try:
                yield stop
            except KeyboardInterrupt:
                barrier('stopped')  # until the first has saved
                raise


_KINDS = {'jit': _Jit, 'pmap': _Pmap}


@cache
def local_devices(parallel: str) -> Devices:
    """All local devices.

    Args:
        parallel: 'jit' or 'pmap'.
    """
    return _KINDS[parallel](jax.local_devices())


@cache
def all_devices(parallel: str) -> Devices:
    """The devices of all processes of the run, which train together.

    Args:
        parallel: as for `local_devices`.

    Raises:
        ConfigError: 'pmap' is asked for, and there are several processes.
    """
    if processes() == 1:
        return local_devices(parallel)
    if parallel == 'pmap':
        raise ConfigError("config.parallel='pmap' trains in one process alone; take 'jit'")
    return _OfAll(jax.devices())


def in_parts(count: int, most: int) -> np.ndarray:
    """Indices 0 ... count-1 in parts of one length, at most `most`: [parts, length].

    As even as can be; the last index fills up the last part, which would else be compiled anew.
    """
    parts = -(-count // most)
    length = -(-count // parts)
    return np.minimum(np.arange(parts * length), count - 1).reshape(parts, length)


def in_batches(
    program: Callable[..., Any],
    batches: Iterable[tuple[Any, list[tuple[int, int]]]],
    given: Any,
) -> tuple[Any, list[tuple[int, int]]]:
    """Runs a program on batches, and joins what it returns without the padding.

    Args:
        program: (images [b,H,W,C], what is given of them) -> arrays with b leading.
        batches: of `wsol_jax.data.images`.
        given: arrays of all images, with B leading, such as their classes; None for nothing.

    Returns:
        Arrays with B leading, and the (width, height) of every image.
    """
    parts: list[Any] = []
    sizes: list[tuple[int, int]] = []
    for images, some in batches:
        rows = jax.tree.map(partial(_rows, start=len(sizes), count=len(images)), given)
        sizes += some
        found = program(images, rows)
        parts.append(found if len(some) == len(images) else _first(len(some), found))
    joined = parts[0] if len(parts) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    return joined, sizes


def _first(count: int, tree: Any) -> Any:
    return jax.tree.map(lambda x: x[:count], tree)


def _rows(array: Any, start: int, count: int) -> Any:
    """Some rows; the last one stands for images that are padding."""
    if start == 0 and len(array) == count:
        return array
    return array[np.minimum(np.arange(start, start + count), len(array) - 1)]


def one_ahead(results: Iterator) -> Iterator:
    """Yields each result with the next already launched: devices and host work side by side."""
    previous = next(results, None)
    for current in results:
        yield previous
        previous = current
    if previous is not None:
        yield previous

"""Devices and processes: who computes what.

A batch is split over all local devices, everything else lies on each of them.

What is computed for each image alone (maps, predictions, faithfulness) runs on every device with
its own images, without communication; a training step sums over all of them. `jit` over a mesh with
the one axis `data`, or `pmap`: the same numbers. This is the only module that knows which.

A run may have several processes, on as many hosts, which share a workdir. Each computes its share;
the first writes what there is one of. They meet at barriers of JAX's coordination service, which
knows of no device: who waits there may wait for hours.
"""

import faulthandler
import os
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from wsol_jax.fields import ConfigError

AXIS = 'data'
BATCH = 16  # images of a list that are computed at once
_SILENCE = 30  # seconds after which a process that is not heard of is dead
_PATIENCE = 30 * 24 * 3600 * 1000  # milliseconds: who lives is waited for
_JOB = ('--coordinator', '--num_processes', '--process_id')
_Result = TypeVar('_Result')


class ProcessDied(OSError):
    """Another process of the run has ended before its time; the message says what to do."""


def join(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Makes this process one of several of a run, before anything is computed.

    Args:
        coordinator: HOST:PORT where the first process listens.
        count: how many processes there are.
        index: which one this is. All three are None where the environment tells, as on a TPU pod,
            under Slurm or Kubernetes; where it does not either, the process is alone.

    Raises:
        ConfigError: some of the three are missing or wrong, or the others do not come.
    """
    given = [coordinator, count, index]
    if None in given and given != [None] * 3:
        missing = [name for name, value in zip(_JOB, given, strict=True) if value is None]
        raise ConfigError(f'{", ".join(_JOB)} go together; {" and ".join(missing)} missing')
    if coordinator is not None and count is not None and index is not None:
        _check_job(coordinator, count, index)
        _initialize(
            coordinator_address=coordinator,
            num_processes=count,
            process_id=index,
            cluster_detection_method='deactivate',
        )
    elif is_in_a_job(os.environ):
        _initialize()


def _check_job(coordinator: str, count: int, index: int) -> None:
    host, _, port = coordinator.rpartition(':')
    if not (host and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(f'--coordinator={coordinator}: must be HOST:PORT of the first process')
    if not 0 <= index < count:
        raise ConfigError(f'--process_id={index} must be in 0..{count - 1}, see --num_processes')


def is_in_a_job(environment: Mapping[str, str]) -> bool:
    """Whether JAX is to look in the environment for the other processes of a run.

    Not for a single task, which would be left one device of its host, nor in a pod of Kubernetes
    without a number, which is in no indexed job. On the machine of a TPU, JAX notes where it is.
    """
    for name in ('SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE'):
        if name in environment:
            return environment[name] != '1'
    numbered = {'KUBERNETES_SERVICE_HOST', 'JOB_COMPLETION_INDEX'} <= environment.keys()
    return numbered or 'TPU_ML_PLATFORM' in environment


def _initialize(**told: Any) -> None:
    # Its handler of SIGTERM would take the place of ours.
    jax.config.update('jax_enable_preemption_service', False)
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=_SILENCE, **told)
    except ValueError:  # JAX found no others
        if told:
            raise
        return
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f'the processes of this run did not find each other: {reason}') from None
    faulthandler.disable()  # where another dies, JAX's line on that shall be the last one


def processes() -> int:
    """How many processes the run has."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def process() -> int:
    """Which of them this is."""
    return jax.process_index() if processes() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that writes what there is one of: lock, config, scores, page."""
    return process() == 0


def barrier(name: str) -> None:
    """Waits until every process of the run is here; Ctrl-C and SIGTERM end the waiting.

    Args:
        name: of the place, the same for all.

    Raises:
        ProcessDied: one of them is dead.
    """
    if processes() == 1:
        return
    failed: list[Exception] = []
    waiting = threading.Thread(target=_wait, args=(name, failed), daemon=True)
    waiting.start()
    waiting.join()
    if failed:
        raise ProcessDied(
            'another process of this run has ended, see what it says; the same commands go on from '
            'here'
        )


def _wait(name: str, failed: list[Exception]) -> None:
    from orbax.checkpoint.multihost import get_barrier_sync_fn  # late: it takes long

    try:
        get_barrier_sync_fn()(key=name, timeout_ms=_PATIENCE)
    except Exception as error:
        failed.append(error)


def first_of_all(
    name: str, make: Callable[[], _Result], open_made: Callable[[], _Result]
) -> _Result:
    """What the first process makes while the others wait, and they open once it is there.

    Args:
        name: of the barrier.
        make: called by the first process alone.
        open_made: called by the others.
    """
    if is_first():
        made = make()
        barrier(name)
        return made
    barrier(name)
    return open_made()


def own_share(positions: np.ndarray, chunk: int) -> slice:
    """Which of some images this process computes: whole chunks, which it alone writes or reads.

    Args:
        positions: [n], increasing; the same for all processes.
        chunk: how many images are stored together.
    """
    chunks, number = np.unique(positions // chunk, return_inverse=True)
    ends = (len(chunks) * (process() + np.arange(2))) // processes()
    return slice(*np.searchsorted(number, ends).tolist())


@contextmanager
def leaving_others() -> Iterator[None]:
    """Whatever goes wrong within ends this process at once; the others learn of it by its silence.

    JAX would wait at its end until all of them have ended, and they might wait for it.
    """
    try:
        yield
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else 1
        if processes() == 1 or not code:
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


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

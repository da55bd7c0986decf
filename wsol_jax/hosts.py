"""Processes: a run may have several, on as many hosts, which share its workdir.

Each computes its share; the first writes what there is one of. They meet at barriers of JAX's
coordination service, which knows of no device: who waits there may wait for hours.
"""

import faulthandler
import json
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np

from wsol_jax.fields import ConfigError
from wsol_jax.peers import ANOTHER, finish, watch

_SILENCE = 50  # seconds after which JAX takes a process for dead; `watch` is to be faster
_PATIENCE = 30 * 24 * 3600 * 1000  # milliseconds: who lives is waited for
_JOB = ('--coordinator', '--num_processes', '--process_id')
_OF_OTHERS = re.compile('[A-Z_]+: .*(Gloo|NCCL|peer|coordination service)', re.DOTALL)
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
    faulthandler.disable()  # where another dies, the line on that shall be the last one
    watch()


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
        raise ProcessDied(ANOTHER)


def _wait(name: str, failed: list[Exception]) -> None:
    from orbax.checkpoint.multihost import get_barrier_sync_fn  # late: it takes long

    try:
        get_barrier_sync_fn()(key=name, timeout_ms=_PATIENCE)
    except Exception as error:
        failed.append(error)


def end_together() -> None:
    """Waits at the end of the run until all are done; from now on none of them is missed.

    Raises:
        ProcessDied: one of them is dead.
    """
    barrier('end')
    finish()


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
    ends = -(-len(chunks) * (process() + np.arange(2)) // processes())  # rounded up
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
        if isinstance(error, Exception) and reason_of(error) == ANOTHER:
            print(f'error: {ANOTHER}', file=sys.stderr)
            code = 2
        elif not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def reason_of(error: Exception) -> str:
    """What an error says; where a collective failed, that it is another process that did."""
    return ANOTHER if processes() > 1 and _OF_OTHERS.match(str(error)) else str(error)


def gathered(value: Any) -> list[Any]:
    """What every process has of something small, in their order, on each of them.

    Args:
        value: of JSON's types.
    """
    if processes() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    barrier('all have it')  # who is late would be waited for some seconds only
    sizes = np.ravel(process_allgather(np.int32(len(data))))
    rows = process_allgather(np.resize(data, sizes.max()))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]

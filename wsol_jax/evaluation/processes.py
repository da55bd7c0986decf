"""Counting in several processes at once."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any

AT_ONCE = 16  # images that a process counts before it hands its counts over


class ProcessKilled(OSError):
    """A process ended without a word, as it does when the system runs out of memory."""


@contextmanager
def mapper(processes: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """A function like `map`: results in order, items drawn as they are needed.

    Args:
        processes: how many; 1 works here. More need functions, items and results that can be
            pickled.

    Raises:
        ProcessKilled: while results are drawn, if a process was killed.
    """
    if processes == 1:
        yield map
        return
    # JAX has threads: a forked process could hang in a lock that one of them held.
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(processes, spawn, initializer=_start_worker) as pool:
        try:
            yield partial(_results, pool, 2 * processes)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _results(
    pool: ProcessPoolExecutor,
    ahead: int,
    function: Callable[[Any], Any],
    items: Iterable[Any],
) -> Iterator[Any]:
    """Keeps only some items on their way: all of them might not fit into memory."""
    pending: deque[Future[Any]] = deque()
    try:
        for item in items:
            pending.append(_submit(pool, function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise ProcessKilled('a process was killed (memory?); no scores were written') from None


def _submit(pool: ProcessPoolExecutor, function: Callable[[Any], Any], item: Any) -> Future[Any]:
    """Ctrl-C reaches all processes of a terminal; those started here never see it, and are ended
    by this one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(function, item)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when its parent is gone: the pool would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

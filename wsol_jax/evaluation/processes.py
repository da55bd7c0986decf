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
from multiprocessing import resource_tracker
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
    resource_tracker.ensure_running()  # now: started later it would unblock Ctrl-C
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
            with _ctrl_c_put_off():
                pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise ProcessKilled('a process was killed (memory?); no scores were written') from None


@contextmanager
def _ctrl_c_put_off() -> Iterator[None]:
    """Ctrl-C goes to all processes of a terminal: those that start here never see it.

    They inherit that it is blocked. Here it waits, so that no process is left half started.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if seen and callable(handler):
        handler(signal.SIGINT, None)


def _start_worker() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when its parent is gone: the pool would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

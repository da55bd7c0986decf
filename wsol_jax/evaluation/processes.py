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
from typing import TypeVar

Item = TypeVar('Item')
Result = TypeVar('Result')


class ProcessKilled(OSError):
    """A process ended without a word, as it does when the system runs out of memory."""


@contextmanager
def mapped(
    function: Callable[[Item], Result], items: Iterable[Item], processes: int
) -> Iterator[Iterator[Result]]:
    """Results of a function, in order; the items are drawn as they are needed.

    Args:
        function: that can be pickled.
        items: its arguments, which can be pickled, too.
        processes: how many; 1 runs it here.

    Raises:
        ProcessKilled: while results are drawn, if a process was killed.
    """
    if processes == 1:
        yield map(function, items)
        return
    # JAX has threads: a forked process could hang in a lock that one of them held.
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(processes, spawn, initializer=_start_worker) as pool:
        try:
            yield _results(pool, function, items, 2 * processes)
        except BrokenProcessPool:
            raise ProcessKilled('a process was killed (memory?); no scores were written') from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _results(pool, function, items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """Keeps only some items on their way: all of them might not fit into memory."""
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends the pool
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when its parent is gone: the pool would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

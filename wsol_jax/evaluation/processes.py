"""Counting in several processes at once."""

import multiprocessing
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from types import ModuleType
from typing import Any

from tqdm import tqdm

from wsol_jax.interrupts import deaf_children

AT_ONCE = 16  # images that a process counts before it hands its counts over


class ProcessKilled(OSError):
    """A process ended without a word, as it does when the system runs out of memory."""


@contextmanager
def mapper(processes: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """A function like `map`: results in order, items drawn as they are needed.

    Each process has a pipe of its own: the shared queue of a ProcessPoolExecutor stays locked for
    ever when a process is killed while it writes.

    Args:
        processes: how many; 1 works here. More need functions, items and results that can be
            pickled.

    Raises:
        ProcessKilled: while results are drawn, if a process was killed.
    """
    if processes == 1:
        yield map
        return
    with deaf_children():
        workers = [_start() for _ in range(processes)]
    idle: SimpleQueue[Connection] = SimpleQueue()
    for _, connection in workers:
        idle.put(connection)
    with ThreadPoolExecutor(processes) as threads:
        try:
            yield partial(_results, threads, idle, 2 * processes)
        finally:
            for process, _ in workers:
                process.terminate()
            threads.shutdown(wait=False, cancel_futures=True)


def in_parts(
    function: Callable[[Sequence[Any]], Any], items: Sequence[Any], processes: int
) -> Iterator[Any]:
    """Results of a function for all items, `AT_ONCE` at a time, in order, with a progress bar.

    Args:
        function: takes some of the items.
        items: one for each image.
        processes: how many work, see `mapper`.
    """
    parts = [items[i : i + AT_ONCE] for i in range(0, len(items), AT_ONCE)]
    bar = tqdm(total=len(items), desc='evaluate', unit='image', disable=None)
    with bar, mapper(processes) as over:
        for part, result in zip(parts, over(function, parts), strict=True):
            yield result
            bar.update(len(part))


def _results(
    threads: ThreadPoolExecutor,
    idle: 'SimpleQueue[Connection]',
    ahead: int,
    function: Callable[[Any], Any],
    items: Iterable[Any],
) -> Iterator[Any]:
    """Keeps only some items on their way: all of them might not fit into memory."""
    pending: deque[Future[Any]] = deque()
    for item in items:
        pending.append(threads.submit(_ask, idle, function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _ask(idle: 'SimpleQueue[Connection]', function: Callable[[Any], Any], item: Any) -> Any:
    """Has an idle process work; there are as many threads as processes, so there is one."""
    connection = idle.get()
    try:
        connection.send((function, item))
        done, result = connection.recv()
    except (EOFError, ConnectionError):
        raise ProcessKilled('a process was killed (memory?); no scores were written') from None
    finally:
        idle.put(connection)
    if done:
        return result
    raise result


def _start() -> tuple[BaseProcess, Connection]:
    # JAX has threads: a forked process could hang in a lock that one of them held.
    spawn = multiprocessing.get_context('spawn')
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_work, args=(theirs,), daemon=True)
    with _main_left_alone():
        process.start()
    theirs.close()  # the process alone has it now: it is closed when the process is killed
    return process, ours


def _work(connection: Connection) -> None:
    """What a process does, until the one that started it closes the pipe, or ends."""
    while True:
        try:
            function, item = connection.recv()
        except EOFError:
            return
        try:
            answer = True, function(item)
        except Exception as error:
            error.add_note(traceback.format_exc())  # where it was raised does not travel with it
            answer = False, error
        try:
            connection.send(answer)
        except ConnectionError:
            return


@contextmanager
def _main_left_alone() -> Iterator[None]:
    """A process that starts here does not run the script again, which would import JAX there.

    What it is sent lies in modules that it imports by name; scripts need no `__main__` guard.
    """
    main = sys.modules['__main__']
    sys.modules['__main__'] = ModuleType('__main__')
    try:
        yield
    finally:
        sys.modules['__main__'] = main

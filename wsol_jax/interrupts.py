"""Ctrl-C, and the signals of schedulers and closed terminals, which are handled like it."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP came; what holds for Ctrl-C holds for it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def exit_code(stop: KeyboardInterrupt) -> int:
    """What a shell calls a command that a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (stop.number if isinstance(stop, Terminated) else signal.SIGINT)


@contextmanager
def readers_may_leave() -> Iterator[None]:
    """What is printed within goes nowhere once its reader, such as `head`, has seen enough."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stop_like_ctrl_c() -> None:
    """From now on SIGTERM and SIGHUP raise `Terminated`; one that is ignored (nohup) stays so."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _terminate)


def _terminate(number: int, _: FrameType | None) -> None:
    raise Terminated(number)


@contextmanager
def uninterrupted() -> Iterator[list[int]]:
    """Signals take effect afterwards: within, they would leave a step or a file half done.

    Yields:
        The numbers of those that came so far.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {n: signal.getsignal(n) for n in _STOPPING}
    handled = [n for n, handler in before.items() if callable(handler)]
    for number in handled:
        signal.signal(number, lambda number, _: caught.append(number))
    try:
        yield caught
    finally:
        for number in handled:
            signal.signal(number, before[number])
    if caught:
        signal.raise_signal(caught[0])


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that start here never see Ctrl-C, which goes to all processes of a terminal.

    They inherit that it is blocked. Here it waits, so that no process is left half started.
    """
    resource_tracker.ensure_running()  # now: started later it would unblock Ctrl-C
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with uninterrupted():
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def end_with_parent() -> None:
    """In a process of multiprocessing: it ends when the one that started it has ended or died."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)

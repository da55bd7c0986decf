"""Signals end a run in order; its processes end with it, however it ends."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from wsol_jax.interrupts import Terminated, exit_code, stop_like_ctrl_c, uninterrupted


@pytest.fixture
def handlers():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {n: signal.getsignal(n) for n in numbers}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_waits_for_what_must_be_whole(handlers, number, code):
    stop_like_ctrl_c()
    done = []
    with pytest.raises(KeyboardInterrupt) as caught, uninterrupted():
        signal.raise_signal(number)
        done.append(1)
    assert done and exit_code(caught.value) == code
    assert isinstance(caught.value, Terminated) == (number != signal.SIGINT)


def test_what_nohup_ignores_stays_ignored(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop_like_ctrl_c()
    signal.raise_signal(signal.SIGHUP)
    with uninterrupted():
        signal.raise_signal(signal.SIGHUP)


READ = """import os, signal, sys, time
from contextlib import closing
from dataclasses import replace
from wsol_jax.data import Labels, Shapes, training_batches
from wsol_jax.interrupts import exit_code, stop_like_ctrl_c
from wsol_jax.data.loader import ReaderKilled

class Source(Shapes):
    def __getitem__(self, index):
        return replace(super().__getitem__(index), labels=(os.getpid(),))

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    stop_like_ctrl_c()
    try:
        source, steps = Source('train', 64, size=48), range(10**6)
        batches = training_batches(source, 48, 8, 0, steps, workers=2, targets=Labels())
        with closing(batches):
            seen = set()
            while len(seen) < 2:  # on a busy machine one may read whole batches
                seen |= {int(k) for k in next(batches).targets['labels'][:, 0]}
            print(*seen, flush=True)
            for _ in batches:
                time.sleep(0.01)
    except KeyboardInterrupt as stop:
        sys.exit(exit_code(stop))
    except ReaderKilled as error:
        sys.exit(f'error: {error}')
"""


def alive(pid):
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='looks for processes in /proc')
@pytest.mark.slow
@pytest.mark.parametrize(
    ('number', 'whom', 'code'),
    [
        (signal.SIGINT, 'group', 130),
        (signal.SIGTERM, 'main', 143),
        (signal.SIGKILL, 'main', -9),
        (signal.SIGKILL, 'reader', 1),
    ],
)
def test_processes_that_read_end_with_the_run(tmp_path, number, whom, code):
    (tmp_path / 'read.py').write_text(READ)
    command = [sys.executable, str(tmp_path / 'read.py')]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as main:
        limit = threading.Timer(120, main.kill)  # a fault must not wait for ever
        limit.start()
        readers = [int(pid) for pid in main.stdout.readline().split()]
        assert len(readers) == 2 and all(map(alive, readers)) and main.pid not in readers
        if whom == 'group':
            os.killpg(main.pid, number)
        else:
            os.kill(main.pid if whom == 'main' else readers[0], number)
        _, err = main.communicate(timeout=60)
        limit.cancel()
    assert main.returncode == code
    deadline = time.monotonic() + 30
    while any(map(alive, readers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, readers))
    if whom == 'reader':
        assert err == (
            'error: a process that reads images was killed (memory?); '
            'lower config.data.workers and go on\n'
        )
    elif number != signal.SIGKILL:  # else Python's own tracker of resources has something to say
        assert err == ''

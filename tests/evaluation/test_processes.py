"""Order, bounded work on its way, and what becomes of errors and killed processes."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from wsol_jax.evaluation.processes import ProcessKilled, mapper


def square(number):
    return number * number


def inverse(number):
    return 1 / number


def end(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def end_while_answering(number):
    """A large answer is still on its way when the process is killed."""
    if number == 3:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return bytes(200_000_000)


@pytest.mark.parametrize('processes', [1, 2])
def test_results_come_in_order_and_items_are_drawn_as_needed(processes):
    drawn = []

    def items():
        for i in range(40):
            drawn.append(i)
            yield i

    with mapper(processes) as over:
        results = over(square, items())
        assert next(results) == 0
        assert len(drawn) <= 2 * processes + 1
        assert list(results) == [i * i for i in range(1, 40)]
        assert list(over(square, [7])) == [49]  # more work for the same processes


@pytest.mark.parametrize('processes', [1, 2])
def test_errors_reach_the_caller(processes):
    with pytest.raises(ZeroDivisionError), mapper(processes) as over:
        list(over(inverse, [1, 0, 2]))


@pytest.mark.slow
@pytest.mark.parametrize('function', [end, end_while_answering])
def test_a_killed_process_is_an_error_of_one_line(function):
    killed = pytest.raises(ProcessKilled, match='a process was killed')
    with killed, mapper(2) as over:
        for _ in over(function, range(9)):
            pass


def test_an_error_says_where_it_was_raised():
    with pytest.raises(ZeroDivisionError) as raised, mapper(2) as over:
        list(over(inverse, [0]))
    assert 'return 1 / number' in raised.value.__notes__[0]


def test_ctrl_c_while_processes_start_is_one_line(tmp_path):
    (tmp_path / 'program.py').write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / 'program.py')]
    for delay in (0, 0.3):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
        ) as started:
            assert started.stdout.readline() == 'start\n'
            time.sleep(delay)
            os.killpg(started.pid, signal.SIGINT)  # as a terminal does: to all processes
            assert started.communicate(timeout=30)[1] == 'interrupted\n'


PROGRAM = """
import signal, sys, time
from wsol_jax.evaluation.processes import mapper

def main():
    print('start', flush=True)
    with mapper(2) as over:
        list(over(time.sleep, [0.2] * 60))

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('interrupted')
"""

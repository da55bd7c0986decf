"""Order, bounded work on its way, and what becomes of errors and killed processes."""

import os
import signal

import pytest

from wsol_jax.evaluation.processes import ProcessKilled, mapped


def square(number):
    return number * number


def inverse(number):
    return 1 / number


def end(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize('processes', [1, 2])
def test_results_come_in_order_and_items_are_drawn_as_needed(processes):
    drawn = []

    def items():
        for i in range(40):
            drawn.append(i)
            yield i

    with mapped(square, items(), processes) as results:
        assert next(results) == 0
        assert len(drawn) <= 2 * processes + 1
        assert list(results) == [i * i for i in range(1, 40)]


@pytest.mark.parametrize('processes', [1, 2])
def test_errors_reach_the_caller(processes):
    with pytest.raises(ZeroDivisionError), mapped(inverse, [1, 0, 2], processes) as results:
        list(results)


def test_a_killed_process_is_an_error_of_one_line():
    killed = pytest.raises(ProcessKilled, match='a process was killed')
    with killed, mapped(end, range(9), 2) as results:
        list(results)

"""Cases that take turns, and the rows of the table that their times amount to."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

# Runs a case once; returns its seconds, for one image where speeds are meant, or those of several
# moments of it.
Clock = Callable[[], float | Sequence[float]]
IMAGES = 'images/s'


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        case: what was measured.
        value: the median over the turns.
        unit: of it, such as 'images/s'.
        ratio: to another case, the median of the ratios of each turn; None for none.
        of: what the ratio is a multiple of, such as 'time of forward'.
        spread: the lowest and the highest of these ratios; () for one that does not vary.
    """

    case: str
    value: float
    unit: str
    ratio: float | None = None
    of: str = ''
    spread: tuple[float, ...] = ()


def timed(function: Callable[[], Any], images: int = 1) -> Clock:
    """The clock of a function, whose results are waited for.

    Args:
        function: what is timed.
        images: that it computes.
    """

    def clock() -> float:
        start = time.perf_counter()
        jax.block_until_ready(function())
        return (time.perf_counter() - start) / images

    return clock


def take_turns(cases: Mapping[str, Clock], repeats: int) -> dict[str, np.ndarray]:
    """{case: seconds [repeats, ...]}; a load of the machine hits all alike.

    Args:
        cases: in each turn every one runs once. The first turn compiles and is not counted.
        repeats: turns that are counted.
    """
    turns = [{case: clock() for case, clock in cases.items()} for _ in range(repeats + 1)]
    return {case: np.array([turn[case] for turn in turns[1:]]) for case in cases}


def rows(
    seconds: Mapping[str, np.ndarray],
    against: str,
    unit: str = IMAGES,
    of: str = 'time',
    where: str = '',
) -> list[Row]:
    """The rows of cases that took turns.

    Args:
        seconds: from `take_turns`.
        against: the case that the ratios are to.
        unit: IMAGES, or 's'.
        of: 'time', or 'speed': how many times as fast a case is.
        where: what all of them have in common; it comes before their names.
    """
    base = seconds[against]
    found = []
    for case, spent in seconds.items():
        median = float(np.median(spent))
        row = Row(where + case, 1 / median if unit == IMAGES else median, unit)
        if case != against:
            ratios = spent / base if of == 'time' else base / spent
            row = Row(row.case, row.value, unit, *multiple(ratios, f'{of} of {against}'))
        found.append(row)
    return found


def multiple(ratios: np.ndarray, of: str) -> tuple[float, str, tuple[float, float]]:
    """The last three attributes of a row: of the ratios of its turns."""
    return float(np.median(ratios)), of, (float(ratios.min()), float(ratios.max()))

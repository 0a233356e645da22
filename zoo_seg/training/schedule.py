"""How the learning rate changes on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from zoo_seg.errors import OptionError
from zoo_seg.training.callables import blaming, name_of

Schedule: TypeAlias = Callable[[float], float]
"""The share of the steps that are done, 0 to 1 -> the factor of the learning rate."""

SCHEDULES: Mapping[str, Schedule] = {
    "poly": lambda done: 0.99 * (1 - done) ** 0.9 + 0.01,
    "cosine": lambda done: 0.99 * (1 + math.cos(math.pi * done)) / 2 + 0.01,
    "constant": lambda done: 1.0,
}


def checked(schedule: Schedule) -> Schedule:
    """One that is somebody's own.

    Raises:
        TrainingError: when called, and it fails.
        OptionError: when called, and the factor is not a number of at least 0.
    """
    name = name_of(schedule)

    def factor(done: float) -> float:
        with blaming(f"the schedule {name}"):
            value: Any = schedule(done)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number < math.inf:
            raise OptionError(f"the schedule {name} returned {value!r} for {done:g}; expected a factor of at least 0")
        return number

    return factor

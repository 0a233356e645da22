from __future__ import annotations

import math
from typing import Any

import pytest

from zoo_seg.errors import OptionError, TrainingError
from zoo_seg.training.schedule import SCHEDULES, checked


def test_the_schedules_begin_at_1_and_fall_as_they_say() -> None:
    assert [each(0.0) for each in SCHEDULES.values()] == pytest.approx([1, 1, 1])
    assert [each(1.0) for each in SCHEDULES.values()] == pytest.approx([0.01, 0.01, 1])
    assert SCHEDULES["poly"](0.5) == pytest.approx(0.01 + 0.99 * 0.5**0.9)
    assert SCHEDULES["cosine"](0.25) == pytest.approx(0.01 + 0.99 * (1 + math.sqrt(0.5)) / 2)


def broken(done: float) -> float:
    raise IndexError(done)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, None, "much"])
def test_a_factor_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(OptionError, match=r"returned .* for 0\.5; expected a factor of at least 0"):
        checked(lambda done: value)(0.5)


def test_one_of_ones_own_is_called_and_named_when_it_fails() -> None:
    assert checked(lambda done: 1 - done)(0.25) == 0.75
    with pytest.raises(TrainingError, match=r"the schedule test_schedule\.broken raised IndexError: 0\.5"):
        checked(broken)(0.5)

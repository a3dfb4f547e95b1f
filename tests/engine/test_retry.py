"""How a target that fails for a while is asked again."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest
from tenacity import RetryCallState

from replicator.engine.retry import RetryPolicy


class Exactly(random.Random):
    """Gives the least or the most of what it may."""

    def __init__(self, give: Callable[[float, float], float]) -> None:
        super().__init__()
        self._give = give

    def uniform(self, a: float, b: float) -> float:
        return self._give(a, b)


def waits(give: Callable[[float, float], float]) -> list[float]:
    policy = RetryPolicy(threading.Event(), lambda reason: None, lambda: 0.0, Exactly(give))
    found = []
    for attempt in range(1, 40):
        state = RetryCallState(policy._retrying, None, (), {})
        state.attempt_number = attempt
        found.append(policy._wait(state))
    return found


def test_waits_double_from_fractions_of_a_second_to_a_quarter_of_a_minute() -> None:
    longest = waits(max)
    assert longest[:7] == pytest.approx([0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 15.0])
    assert set(longest[6:]) == {15.0}


def test_a_wait_is_at_least_half_of_the_longest_so_that_nothing_is_asked_without_a_pause() -> None:
    assert waits(min) == pytest.approx([wait / 2 for wait in waits(max)])

"""Waits between retries."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest
from tenacity import RetryCallState

from replicator.engine.retry import RetryPolicy


class Exactly(random.Random):
    """Returns the minimum or the maximum of the range."""

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


def test_waits_double_up_to_15_seconds() -> None:
    longest = waits(max)
    assert longest[:7] == pytest.approx([0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 15.0])
    assert set(longest[6:]) == {15.0}


def test_a_wait_is_at_least_half_of_its_ceiling() -> None:
    assert waits(min) == pytest.approx([wait / 2 for wait in waits(max)])

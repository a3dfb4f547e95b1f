"""Retries transient failures with exponential backoff until they succeed or the run must stop."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, RetryError, Retrying, retry_if_exception_type, stop_when_event_set
from tenacity.nap import sleep_using_event

from replicator.backoff import backoff
from replicator.engine.measurements import Cause
from replicator.errors import Postponed, TransientError

T = TypeVar("T")

BASE_WAIT, LONGEST_WAIT = 0.2, 15.0  # seconds
POSTPONED = 15.0  # seconds after which work that was postponed is tried again


class Stopped(Exception):
    """The run was asked to stop during a retry. The pending operation is not stored; nothing is lost."""


class RetryPolicy:
    """Calls a function until it raises no ``TransientError``. Raises ``Stopped`` once ``stop`` is set.

    ``report`` receives the reason before each wait, and None when the function succeeds after a wait. ``retried``
    receives what the function asks, as the caller says.
    """

    def __init__(
        self,
        stop: threading.Event,
        report: Callable[[str | None], None],
        now: Callable[[], float],
        random: random.Random,
        retried: Callable[[Cause], None] = lambda cause: None,
    ) -> None:
        self._random = random
        self._report = report
        self._now = now
        self._retried = retried
        self._cause: Cause = "target"
        self._failing_since: float | None = None
        self._retrying = Retrying(
            retry=retry_if_exception_type(TransientError),
            wait=self._wait,
            stop=stop_when_event_set(stop),
            sleep=sleep_using_event(stop),
            before_sleep=self._before_sleep,
        )

    def __call__(self, function: Callable[[], T], *, asks: Cause = "target") -> T:
        self._cause = asks
        try:
            result = function()
        except TransientError as e:
            result = self._again(function, e)
        if self._failing_since is not None:
            self._failing_since = None
            self._report(None)
        return result

    def _again(self, function: Callable[[], T], error: TransientError) -> T:
        """After the first attempt, which needs no state of tenacity's: most calls are no more than that."""
        failed = [error]

        def attempt() -> T:
            if failed:
                raise failed.pop()
            return function()

        try:
            return self._retrying(attempt)
        except RetryError as e:
            raise Stopped from e

    def _wait(self, state: RetryCallState) -> float:
        return backoff(state.attempt_number, self._random, base=BASE_WAIT, limit=LONGEST_WAIT)

    def _before_sleep(self, state: RetryCallState) -> None:
        self._failing_since = self._failing_since or self._now()
        error = state.outcome.exception() if state.outcome is not None else None
        wait = state.next_action.sleep if state.next_action is not None else 0.0
        elapsed = self._now() - self._failing_since
        self._retried(self._cause)
        self._report(f"{error} (failing for {elapsed:.0f} s, next attempt in {wait:.1f} s)")


def unless_postponed(retrying: Callable[[Callable[[], T]], T], function: Callable[[], T]) -> T:
    """The result of a function that is retried, unless it raises ``Postponed``: that is raised at once."""
    postponed: list[Postponed] = []

    def attempt() -> T | None:
        try:
            return function()
        except Postponed as e:
            postponed.append(e)
            return None

    result = retrying(attempt)  # type: ignore[arg-type]
    if postponed:
        raise postponed[0]
    return result

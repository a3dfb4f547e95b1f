"""The one place that retries: with growing waits, until it works or the run must stop."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, repeat
from typing import NoReturn, TypeVar

from tenacity import RetryCallState, RetryError, Retrying, retry_if_exception_type, stop_when_event_set
from tenacity.nap import sleep_using_event

from replicator.errors import TransientError

T = TypeVar("T")


SHORTEST_WAIT, LONGEST_WAIT = 0.2, 15.0  # seconds


class Stopped(Exception):
    """The run was asked to stop while it waited; whatever it waited for is not stored, and nothing is lost."""


class RetryPolicy:
    """Repeats what fails for a time, with growing waits, until it works or the run is to stop."""

    def __init__(
        self,
        stop: threading.Event,
        report: Callable[[str | None], None],
        now: Callable[[], float],
        random: random.Random,
    ) -> None:
        self._random = random
        self._report = report
        self._now = now
        self._since: float | None = None
        self._retrying = Retrying(
            retry=retry_if_exception_type(TransientError),
            wait=self._backoff,
            stop=stop_when_event_set(stop),
            sleep=sleep_using_event(stop),
            before_sleep=self._waits,
        )

    def __call__(self, work: Callable[[], T]) -> T:
        try:
            found = work()
        except TransientError as e:
            found = self._again(work, e)
        if self._since is not None:
            self._since = None
            self._report(None)
        return found

    def _again(self, work: Callable[[], T], failed: TransientError) -> T:
        """Go on after a first try that failed: a retry loop costs more than most of what succeeds at once."""
        tries: Iterator[Callable[[], T]] = chain([partial(_fail, failed)], repeat(work))
        try:
            found: T = self._retrying(lambda: next(tries)())
            return found
        except RetryError as e:
            raise Stopped from e

    def _backoff(self, state: RetryCallState) -> float:
        longest = min(LONGEST_WAIT, SHORTEST_WAIT * 2 ** min(state.attempt_number, 10))
        return self._random.uniform(longest / 2, longest)

    def _waits(self, state: RetryCallState) -> None:
        self._since = self._since or self._now()
        error = state.outcome.exception() if state.outcome is not None else None
        wait = state.next_action.sleep if state.next_action is not None else 0.0
        lasting = self._now() - self._since
        self._report(f"{error} (for {lasting:.0f} s now, next try in {wait:.1f} s)")


def _fail(error: TransientError) -> NoReturn:
    raise error

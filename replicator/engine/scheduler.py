"""Runs many generators concurrently in one thread: a thousand shard readers, with their HTTP requests in flight.

A generator yields ``Call``s, each of which is answered through ``send`` (or ``throw``) once its response arrives, and
other values, each of which ends a step and becomes a ``StepResult``. The next step starts when ``again`` says so.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

import msgspec

from replicator.aws.client import AT_ONCE, Call, Calls


class StepResult(msgspec.Struct, frozen=True):
    """The outcome of one step of the generator ``name``: a value, its end, or an error."""

    name: str
    value: Any = None
    ended: bool = False
    error: Exception | None = None


class Scheduler:
    """Advances generators when they are due. All work happens inside ``get`` and ``begin``.

    No step starts while ``full`` returns True. Steps already in flight still complete, so results not yet taken never
    exceed what ``full`` allows plus ``at_once`` values.
    """

    full: Callable[[], bool]

    def __init__(self, calls: Calls, at_once: int = AT_ONCE) -> None:
        self._calls = calls
        self._at_once = at_once
        self._in_flight = 0
        self._due: list[tuple[float, int, str, Iterator[Any]]] = []
        self._generators: dict[str, Iterator[Any]] = {}
        self._order = itertools.count()
        self._results: deque[StepResult] = deque()
        self.full = lambda: False

    def add(self, name: str, generator: Iterator[Any], rest: float = 0.0) -> None:
        """Register ``generator`` and start its first step in ``rest`` seconds."""
        self._generators[name] = generator
        self.again(name, rest)

    def again(self, name: str, rest: float = 0.0) -> None:
        """Start the generator's next step in ``rest`` seconds."""
        heapq.heappush(self._due, (time.monotonic() + rest, next(self._order), name, self._generators[name]))

    def has(self, name: str) -> bool:
        return name in self._generators

    @property
    def in_flight(self) -> int:
        """Requests without a response yet."""
        return self._in_flight

    def clear(self) -> None:
        """Drop all generators and results; responses to requests in flight are discarded."""
        self._due.clear()
        self._generators.clear()
        self._results.clear()

    def get(self, timeout: float) -> StepResult | None:
        """The next result; None if there is none within ``timeout`` seconds."""
        until = time.monotonic() + timeout
        while True:
            self.begin()
            if self._results:
                return self._results.popleft()
            now = time.monotonic()
            response = self._calls.next(max(0.0, min(until, self._next_due()) - now))
            if response is not None:
                self._answered(*response)
            elif now >= until:
                return None

    def close(self) -> None:
        self.clear()
        self._calls.close()

    @property
    def _has_room(self) -> bool:
        return self._in_flight + len(self._results) < self._at_once and not self.full()

    def begin(self) -> None:
        """Start the steps that are due, so that their requests are in flight while the caller works."""
        now = time.monotonic()
        while self._due and self._due[0][0] <= now and self._has_room:
            _, _, name, generator = heapq.heappop(self._due)
            self._resume(name, generator, partial(next, generator))

    def _next_due(self) -> float:
        """When the next step may start."""
        return self._due[0][0] if self._due and self._has_room else math.inf

    def _answered(self, caller: tuple[str, Generator[Any, Any, Any]], response: Any) -> None:
        self._in_flight -= 1
        name, generator = caller
        if self._generators.get(name) is generator:
            resume = generator.throw if isinstance(response, Exception) else generator.send
            self._resume(name, generator, partial(resume, response))

    def _resume(self, name: str, generator: Iterator[Any], resume: Callable[[], Any]) -> None:
        try:
            value = resume()
        except StopIteration:
            self._results.append(self._finished(name, ended=True))
        except Exception as e:  # for the caller of get() to handle
            self._results.append(self._finished(name, error=e))
        else:
            if isinstance(value, Call):
                self._in_flight += 1
                self._calls.begin((name, generator), value)
            else:
                self._results.append(StepResult(name, value))

    def _finished(self, name: str, **outcome: Any) -> StepResult:
        del self._generators[name]
        return StepResult(name, **outcome)

"""Runs generators step by step, each when it is due, with many calls under way: a thousand shards, and one thread.

A step begins with ``next``. If the generator then yields a ``Call``, its answer is waited for while others have their
turn, and is sent to it; any other value ends the step. No step begins before somebody says when the next one is due.
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
    """What a step of the generator called ``name`` gave: a value, its end, or an error."""

    name: str
    value: Any = None
    ended: bool = False
    error: Exception | None = None


class Scheduler:
    """A clock, the calls under way, and the generators they are for. All of it happens inside ``get``.

    ``full`` is asked before each step whether what earlier ones gave leaves no room for one more. Steps under way end
    all the same: what is held never weighs more than what ``full`` allows and ``at_once`` values.
    """

    full: Callable[[], bool]

    def __init__(self, calls: Calls, at_once: int = AT_ONCE) -> None:
        self._calls = calls
        self._at_once = at_once
        self._in_flight = 0
        self._due: list[tuple[float, int, str, Iterator[Any]]] = []
        self._generators: dict[str, Iterator[Any]] = {}
        self._order = itertools.count()
        self._found: deque[StepResult] = deque()
        self.full = lambda: False

    def add(self, name: str, generator: Iterator[Any], rest: float = 0.0) -> None:
        """Advance ``generator`` by a step, in ``rest`` seconds."""
        self._generators[name] = generator
        self.again(name, rest)

    def again(self, name: str, rest: float = 0.0) -> None:
        """Advance the generator by one more step, in ``rest`` seconds."""
        heapq.heappush(self._due, (time.monotonic() + rest, next(self._order), name, self._generators[name]))

    def has(self, name: str) -> bool:
        return name in self._generators

    def clear(self) -> None:
        """Forget all generators; a step under way gives nothing any more."""
        self._due.clear()
        self._generators.clear()
        self._found.clear()

    def get(self, timeout: float) -> StepResult | None:
        """The next step that was made; None when there was none for ``timeout`` seconds."""
        until = time.monotonic() + timeout
        while True:
            self.begin()
            if self._found:
                return self._found.popleft()
            now = time.monotonic()
            answer = self._calls.next(max(0.0, min(until, self._soonest()) - now))
            if answer is not None:
                self._answered(*answer)
            elif now >= until:
                return None

    def close(self) -> None:
        self.clear()
        self._calls.close()

    @property
    def _room(self) -> bool:
        return self._in_flight + len(self._found) < self._at_once and not self.full()

    def begin(self) -> None:
        """Begin the steps that are due: their calls are under way while somebody does something else."""
        now = time.monotonic()
        while self._due and self._due[0][0] <= now and self._room:
            _, _, name, generator = heapq.heappop(self._due)
            self._resume(name, generator, partial(next, generator))

    def _soonest(self) -> float:
        """When a step may begin next."""
        return self._due[0][0] if self._due and self._room else math.inf

    def _answered(self, asked: tuple[str, Generator[Any, Any, Any]], answer: bytes | Exception) -> None:
        self._in_flight -= 1
        name, generator = asked
        if self._generators.get(name) is generator:
            resume = generator.send if isinstance(answer, bytes) else generator.throw
            self._resume(name, generator, partial(resume, answer))

    def _resume(self, name: str, generator: Iterator[Any], resume: Callable[[], Any]) -> None:
        try:
            found = resume()
        except StopIteration:
            self._found.append(self._gone(name, ended=True))
        except Exception as e:  # for whoever asks for the steps, who decides
            self._found.append(self._gone(name, error=e))
        else:
            if isinstance(found, Call):
                self._in_flight += 1
                self._calls.begin((name, generator), found)
            else:
                self._found.append(StepResult(name, found))

    def _gone(self, name: str, **how: Any) -> StepResult:
        del self._generators[name]
        return StepResult(name, **how)

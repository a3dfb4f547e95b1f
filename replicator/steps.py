"""Runs generators step by step on a few threads, each when it is due: a thousand shards do not need a thousand threads.

A generator is never run by two threads, and not again before somebody says when its next step is due.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any


@dataclass(frozen=True, slots=True)
class Stepped:
    """What a step of the generator called ``name`` gave: a value, its end, or an error."""

    name: str
    value: Any = None
    ended: bool = False
    error: BaseException | None = None


class Steps:
    """A clock, a few threads, and the generators they advance."""

    def __init__(self, threads: int) -> None:
        self._due: list[tuple[float, int, str, Iterator[Any]]] = []
        self._generators: dict[str, Iterator[Any]] = {}
        self._order = itertools.count()
        self._wake = threading.Condition()
        self._found: SimpleQueue[tuple[Iterator[Any] | None, Stepped | None]] = SimpleQueue()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name=f"steps-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def add(self, name: str, generator: Iterator[Any], rest: float = 0.0) -> None:
        """Advance ``generator`` once, in ``rest`` seconds."""
        self._generators[name] = generator
        self.again(name, rest)

    def again(self, name: str, rest: float = 0.0) -> None:
        """Advance the generator once more, in ``rest`` seconds."""
        with self._wake:
            due = time.monotonic() + rest
            heapq.heappush(self._due, (due, next(self._order), name, self._generators[name]))
            self._wake.notify()

    def has(self, name: str) -> bool:
        return name in self._generators

    def clear(self) -> None:
        """Forget all generators; a step under way gives nothing any more."""
        with self._wake:
            self._due.clear()
            self._generators.clear()

    def interrupt(self) -> None:
        """Let a waiting ``get`` return at once."""
        self._found.put((None, None))

    def get(self, timeout: float) -> Stepped | None:
        """The next step that was made; None when there was none for ``timeout`` seconds, or after ``interrupt``."""
        try:
            generator, stepped = self._found.get(timeout=timeout) if timeout > 0 else self._found.get_nowait()
        except Empty:
            return None
        if stepped is None or self._generators.get(stepped.name) is not generator:
            return None
        if stepped.ended or stepped.error is not None:
            del self._generators[stepped.name]
        return stepped

    def close(self) -> None:
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            name, generator = job
            self._found.put((generator, _step(name, generator)))

    def _next(self) -> tuple[str, Iterator[Any]] | None:
        with self._wake:
            while not self._closed:
                wait = self._due[0][0] - time.monotonic() if self._due else None
                if wait is not None and wait <= 0:
                    _, _, name, generator = heapq.heappop(self._due)
                    return name, generator
                self._wake.wait(wait)
            return None


def _step(name: str, generator: Iterator[Any]) -> Stepped:
    try:
        return Stepped(name, next(generator))
    except StopIteration:
        return Stepped(name, ended=True)
    except BaseException as e:  # handed to the thread that drives, which decides
        return Stepped(name, error=e)

"""Runs generators step by step on a few threads, each when it is due: a thousand shards do not need a thousand threads.

A generator is never run by two threads, and not again before somebody says when its next step is due. What steps found
takes memory until somebody looks at it: ``full`` is asked before each step whether that, and what it knows of itself,
leaves room for one more.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterator
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

    @property
    def size(self) -> int:
        """Bytes that the value holds, if it says so."""
        found: int = getattr(self.value, "size", 0)
        return found


class Steps:
    """A clock, a few threads, and the generators they advance.

    ``full``, given the bytes that steps found and nobody looked at, says whether no step may begin. Steps under way
    end all the same: what is held never weighs more than what ``full`` allows and one value a thread.
    """

    full: Callable[[int], bool]

    def __init__(self, threads: int) -> None:
        self._due: list[tuple[float, int, str, Iterator[Any]]] = []
        self._generators: dict[str, Iterator[Any]] = {}
        self._order = itertools.count()
        self._wake = threading.Condition()
        self._found: SimpleQueue[tuple[Iterator[Any] | None, Stepped | None]] = SimpleQueue()
        self._closed = False
        self.full = lambda unseen: False
        self._unseen = self._looked_at = 0
        self._held_back = False
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
        """The next step that was made; None when there was none for ``timeout`` seconds, or after ``interrupt``.

        Whoever asks for the next one has made what ``full`` knows of include the last one.
        """
        self._look_on()
        try:
            generator, stepped = self._found.get(timeout=timeout) if timeout > 0 else self._found.get_nowait()
        except Empty:
            return None
        self._looked_at = 0 if stepped is None else stepped.size
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

    def _look_on(self) -> None:
        with self._wake:
            self._unseen -= self._looked_at
            self._looked_at = 0
            if self._held_back:
                self._held_back = False
                self._wake.notify_all()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            self._put(job[1], _step(*job))

    def _put(self, generator: Iterator[Any], stepped: Stepped) -> None:
        with self._wake:
            self._unseen += stepped.size
        self._found.put((generator, stepped))

    def _next(self) -> tuple[str, Iterator[Any]] | None:
        with self._wake:
            while not self._closed:
                wait = self._due[0][0] - time.monotonic() if self._due else None
                if wait is not None and wait <= 0:
                    if not self.full(self._unseen):
                        _, _, name, generator = heapq.heappop(self._due)
                        return name, generator
                    self._held_back, wait = True, None  # until somebody looks on
                self._wake.wait(wait)
            return None


def _step(name: str, generator: Iterator[Any]) -> Stepped:
    try:
        return Stepped(name, next(generator))
    except StopIteration:
        return Stepped(name, ended=True)
    except BaseException as e:  # handed to the thread that drives, which decides
        return Stepped(name, error=e)

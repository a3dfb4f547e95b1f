"""Limits how long building one batch may take: mostly the hook's time. The run does nothing else meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from replicator.engine.heartbeat import HEARTBEAT_INTERVAL
from replicator.pipeline.batching import TAKE_SECONDS, GivenUp, gives_up

LOOK_EVERY = 0.02  # seconds; a quick hook is called 100,000 times in one


@dataclass(slots=True)
class Making:
    """One batch that is made. Called before each call of the hook; GivenUp to leave pages for the next batch.

    ``still_at_it``: is called every HEARTBEAT_INTERVAL. ``is_late``: pages were left because the batch took long.
    """

    monotonic: Callable[[], float]
    stopping: Callable[[], bool]
    still_at_it: Callable[[], None]
    is_late: bool = False
    _calls: int = 0
    _began: float = field(init=False)
    _beat_at: float = field(init=False)
    _look_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._began = self._beat_at = self._look_at = self.monotonic()

    def __call__(self, divisible: bool) -> None:
        now = self.monotonic()
        if now < self._look_at:
            self._calls += 1
            return
        self._look_at, stopping = now + LOOK_EVERY, self.stopping()
        if gives_up(now - self._began, divisible=divisible, stopping=stopping):
            self.is_late = not stopping
            raise GivenUp(None if stopping else self._fits(now))
        if now - self._beat_at >= HEARTBEAT_INTERVAL:
            self._beat_at = now
            self.still_at_it()
        self._calls += 1

    @property
    def seconds(self) -> float:
        """Since it began."""
        return self.monotonic() - self._began

    def _fits(self, now: float) -> int:
        return max(1, int(self._calls * TAKE_SECONDS / (now - self._began)))

"""Time in the simulation: it advances as the seed decides, without real waiting."""

from __future__ import annotations

from dataclasses import dataclass

TOLERATED = 300.0  # seconds that a clock may be wrong before AWS refuses what is signed with it
PATIENT = 20  # requests that are refused before somebody sets the clock


@dataclass(slots=True)
class Clock:
    """True time. ``skew``: how wrong the clock of the machine is on which runs are made."""

    now: float = 1_700_000_000.0
    skew: float = 0.0
    _refused: int = 0

    def __call__(self) -> float:
        return self.now

    def wall(self) -> float:
        """What the machine's clock shows."""
        return self.now + self.skew

    def refuses(self) -> bool:
        """Whether AWS refuses a request signed now. After some of them the clock is set right."""
        if abs(self.skew) <= TOLERATED:
            return False
        self._refused += 1
        if self._refused >= PATIENT:
            self.skew, self._refused = 0.0, 0
        return True


class VirtualStop:
    """``threading.Event`` on the virtual clock: waiting moves time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def is_set(self) -> bool:
        return False

    def wait(self, timeout: float | None = None) -> bool:
        self._clock.now += timeout or 0.0
        return False

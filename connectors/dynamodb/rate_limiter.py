"""How much may be sent just now: fewer requests at once while the table throttles, and a budget of write units."""

from __future__ import annotations

from dataclasses import dataclass

SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 2.0  # seconds
_CALM = 0.1  # seconds in which several throttled requests are one event


@dataclass(slots=True)
class Pace:
    """``most``: requests at once; ``write_units``: capacity units a second, None without limit. Times: the loop's."""

    most: int
    write_units: float | None = None
    at_once: float = 0.0
    since_throttled: float | None = None
    _slowed: float = 0.0
    _pause: float = SHORTEST_PAUSE
    _resume: float = 0.0
    _paid: float = 0.0

    def __post_init__(self) -> None:
        self.at_once = float(self.most)

    def wait(self, in_flight: int, now: float) -> float | None:
        """Seconds until another request may be sent; None if one of those under way has to end first."""
        if in_flight >= int(self.at_once):
            return None
        return max(self._resume - now, self._paid - now, 0.0)

    def sent(self, units: float, now: float) -> None:
        if self.write_units is not None:
            self._paid = max(self._paid, now) + units / self.write_units

    def consumed(self, more: float) -> None:
        """A request cost so many units more than it was taken for."""
        if self.write_units is not None:
            self._paid += more / self.write_units

    def answered(self) -> None:
        """A request was carried out: slowly more of them."""
        if self.at_once < self.most:
            self.at_once = min(self.most, self.at_once + 1 / self.at_once)
            self._pause = SHORTEST_PAUSE
        self.since_throttled = None

    def throttled(self, now: float) -> None:
        """The table refused a request because it has too many: fewer, after a pause that grows while nothing passes."""
        if self.since_throttled is None:
            self.since_throttled = now
        if now - self._slowed < _CALM:
            return
        self._slowed = now
        self.at_once = max(1.0, self.at_once * 0.7)
        self._resume = now + self._pause
        self._pause = min(LONGEST_PAUSE, self._pause * 2)

"""A circuit breaker: after some failures in a row, nothing is sent for a while, and then one request as a probe."""

from __future__ import annotations

import math
from dataclasses import dataclass

THRESHOLD = 5  # failures in a row that open the circuit
PAUSE, LONGEST_PAUSE = 15.0, 60.0  # seconds for which it stays open: at first, and at most
LONGEST_WISH = 3600.0  # seconds of a Retry-After that are honored


@dataclass(frozen=True, slots=True)
class Breaker:
    """The state of a circuit. ``failures``: in a row. ``until``: open until then, in monotonic seconds.

    Once that time has passed, the next request decides: if it fails, the circuit opens again, for longer.
    """

    failures: int = 0
    until: float = -math.inf

    def failed(self, now: float, retry_after: float = 0.0) -> Breaker:
        """After another failure. ``retry_after``: seconds for which the receiver wants no request."""
        failures = self.failures + 1
        pause = PAUSE * 2.0 ** min(failures - THRESHOLD, 10) if failures >= THRESHOLD else 0.0
        wait = max(min(pause, LONGEST_PAUSE), min(retry_after, LONGEST_WISH))
        return Breaker(failures, now + wait)

    def left(self, now: float) -> float:
        """Seconds for which nothing may be sent."""
        return max(0.0, self.until - now)


CLOSED = Breaker()

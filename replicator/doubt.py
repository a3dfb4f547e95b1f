"""Whether a request that nobody waits for any more may still be carried out.

A target without transactions cannot call a request back: one that timed out, or that a killed run had sent, may be
carried out minutes later, behind newer ones. The guard turns it away as long as the document, or a tombstone of it, is
there. So while there is doubt every delete leaves a tombstone, and none is forgotten.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

LINGER = 300.0  # seconds after which a request that was given up has been carried out, or never will be


@dataclass(slots=True)
class Doubt:
    """The time in which earlier requests may still be carried out; true while it lasts.

    ``over``: it has passed, and tombstones that were kept because of it can be forgotten. ``swept``: what it may have
    brought back since the last resync was looked for. ``begun``: how often one began.
    """

    now: Callable[[], float] = time.monotonic
    swept: bool = False
    begun: int = 0
    _until: float | None = None

    def __bool__(self) -> bool:
        return self._until is not None and self.now() < self._until

    def begin(self, seconds: float = math.inf) -> None:
        """A response was lost just now, or a run began where an earlier one left requests that may still arrive."""
        until = self.now() + min(seconds, LINGER)
        self._until, self.swept = max(until, self._until or 0.0), False
        self.begun += 1

    @property
    def left(self) -> float | None:
        """Seconds that it still lasts, 0.0 where tombstones are left of it; None where nothing is."""
        return None if self._until is None else max(0.0, self._until - self.now())

    @property
    def over(self) -> bool:
        return self._until is not None and not self

    def settle(self) -> None:
        """Nothing is left of it."""
        self._until = None

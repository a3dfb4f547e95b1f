"""Tracks in-doubt writes: timed out, or sent by a killed run, but possibly still to be applied.

A target without transactions may apply such a request minutes later, after newer ones. The version guard rejects it as
long as the document or its tombstone exists. So during the in-doubt window every delete leaves a tombstone, and no
tombstone is purged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from replicator.state import LONGEST_IN_DOUBT

WINDOW = LONGEST_IN_DOUBT
TRUSTED = 10.0  # seconds for which a batch may be sent before the run must confirm its ownership again
TOO_LATE = "the batch takes long; confirming that no other run took over before continuing"


def is_late(began: float, now: float) -> bool:
    """Whether the run must confirm its ownership before it sends more of a batch that ``began`` then.

    A run that is suspended during a batch and resumes after the next run's in-doubt window would restore deleted
    items; so would one whose target takes minutes for a batch. Both times are wall-clock times, because that clock
    continues while a machine sleeps.
    """
    return not 0 <= now - began <= TRUSTED  # the clock may be set back


@dataclass(slots=True)
class InDoubtWindow:
    """The time during which in-doubt writes may still be applied. True while the window is open.

    ``over``: the window has closed, and the tombstones kept during it can be purged. ``begun``: how often it was opened
    or extended; ``begun_earlier``: how often for writes of an earlier epoch. ``swept``: a sweep has removed what such
    writes may have restored.
    """

    now: Callable[[], float] = time.monotonic
    swept: bool = False
    begun: int = 0
    begun_earlier: int = 0
    _until: float | None = None
    _until_earlier: float | None = None

    def __bool__(self) -> bool:
        return self._until is not None and self.now() < self._until

    def begin(self, seconds: float = math.inf, *, earlier: bool = False) -> None:
        """Open or extend the window: a response was lost, or an earlier run left the window open for ``seconds``.

        ``earlier``: the write may be of an earlier epoch, from a previous run or a command.
        """
        until = self.now() + min(seconds, WINDOW)
        self._until = max(until, self._until or 0.0)
        if earlier:
            self._until_earlier, self.swept = max(until, self._until_earlier or 0.0), False
            self.begun_earlier += 1
        self.begun += 1

    def limit(self, seconds: float) -> None:
        """Close the window after so many seconds, if it is open for longer: by a clock that stood still meanwhile."""
        if self._until is not None:
            self._until = min(self._until, self.now() + seconds)

    @property
    def owes_sweep(self) -> bool:
        """Whether a sweep is due because writes of earlier epochs may have been applied since the last one.

        True once they can no longer be applied. Lost responses of the current epoch do not matter: sweeps only remove
        documents of earlier epochs.
        """
        return self.left_earlier == 0.0

    @property
    def left_earlier(self) -> float | None:
        """Seconds for which a write of an earlier epoch may still be applied; 0.0 if a sweep is due, None after it."""
        return None if self._until_earlier is None or self.swept else max(0.0, self._until_earlier - self.now())

    @property
    def sweep_round(self) -> int:
        """A number that changes when writes of earlier epochs become possible, and when they no longer are.

        They may restore documents behind a sweep in progress: only a sweep started afterwards finds all of them.
        """
        return 2 * self.begun_earlier + self.owes_sweep

    @property
    def left(self) -> float | None:
        """Seconds until the window closes; 0.0 if its tombstones are left to purge, None if nothing is."""
        return None if self._until is None else max(0.0, self._until - self.now())

    @property
    def over(self) -> bool:
        return self._until is not None and not self

    def settle(self) -> None:
        """The tombstones of the window are purged."""
        self._until = None

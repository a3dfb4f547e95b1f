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

from replicator.state import LONGEST_IN_DOUBT

WINDOW = LONGEST_IN_DOUBT
TRUSTED = 10.0  # seconds after its start in which a batch is still sent before the run asks whether it was replaced
TOO_LATE = "the batch takes long; asking whether another run took over, then going on"


def is_late(began: float, now: float) -> bool:
    """Whether the run has to ask who owns the pipeline before it sends more of a batch that ``began`` then.

    A run that is stopped amid a batch, and woken when the next one's doubt is over, would bring deleted items back; so
    would one whose target takes minutes for a batch.
    Both are of the clock that people go by, because it runs on while a machine sleeps.
    """
    return not 0 <= now - began <= TRUSTED  # clocks are set back, too


@dataclass(slots=True)
class InDoubtWindow:
    """The time in which earlier requests may still be carried out; true while it lasts.

    ``over``: it has passed, and tombstones that were kept because of it can be forgotten. ``begun``: how often one
    began; ``begun_earlier``: how often because of requests that may be of an earlier epoch. ``swept``: what those may
    have brought back since the last resync was looked for.
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
        """A response was lost just now, or this run is told that one was.

        ``earlier``: the request may be of an earlier epoch. A run before this one left it, or a command.
        """
        until = self.now() + min(seconds, WINDOW)
        self._until = max(until, self._until or 0.0)
        if earlier:
            self._until_earlier, self.swept = max(until, self._until_earlier or 0.0), False
            self.begun_earlier += 1
        self.begun += 1

    @property
    def owes_sweep(self) -> bool:
        """Whether all requests of earlier epochs have arrived, or never will, and no sweep came after that.

        However often a run of this epoch loses a response: what it sends is of its own, which no sweep is about.
        """
        return self.left_earlier == 0.0

    @property
    def left_earlier(self) -> float | None:
        """Seconds in which a request of an earlier epoch may still arrive, 0.0 where a sweep is due since then; None
        where that came."""
        return None if self._until_earlier is None or self.swept else max(0.0, self._until_earlier - self.now())

    @property
    def sweep_round(self) -> int:
        """Another number as requests of earlier epochs begin to linger, and once all have arrived.

        What they bring back may be behind a sweep that goes on: only one that begins after that finds all of it.
        """
        return 2 * self.begun_earlier + self.owes_sweep

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

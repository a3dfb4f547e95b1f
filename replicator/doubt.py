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
class Doubt:
    """The time in which earlier requests may still be carried out; true while it lasts.

    ``over``: it has passed, and tombstones that were kept because of it can be forgotten. ``begun``: how often one
    began; ``begun_of_others``: how often because of what others than this run had sent. ``swept``: what those may have
    brought back since the last resync was looked for.
    """

    now: Callable[[], float] = time.monotonic
    swept: bool = False
    begun: int = 0
    begun_of_others: int = 0
    _until: float | None = None
    _until_of_others: float | None = None

    def __bool__(self) -> bool:
        return self._until is not None and self.now() < self._until

    def begin(self, seconds: float = math.inf, *, of_others: bool = False) -> None:
        """A response was lost just now.

        ``of_others``: an earlier run, or a command, left requests that may still arrive, perhaps of an earlier epoch.
        """
        until = self.now() + min(seconds, LINGER)
        self._until = max(until, self._until or 0.0)
        if of_others:
            self._until_of_others, self.swept = max(until, self._until_of_others or 0.0), False
            self.begun_of_others += 1
        self.begun += 1

    @property
    def owes_sweep(self) -> bool:
        """Whether all requests of others have arrived, or never will, and no sweep came after that.

        However often this run loses a response: what it sends is of its own epoch, which no sweep is about.
        """
        return self._until_of_others is not None and not self.swept and self.now() >= self._until_of_others

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

"""What this run was told about a batch, and how often the engine had no room for a document alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from connectors.search.encode import Entry
from replicator.target import acks
from replicator.target.acks import AckTracker, Place, place

STRIKES = 5  # attempts of a document alone that the engine was too busy for, while it took others


@dataclass
class Progress(AckTracker):
    """``strikes``: how often the engine had no room for this document alone."""

    strikes: dict[Place, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anything was said about the batch under way in an earlier attempt."""
        return bool(self.stored or self.stale or self.strikes)

    def struck(self, entry: Entry) -> bool:
        """Note that there was no room for this document alone; whether that is enough to give up on it."""
        at = place(entry.write)
        self.strikes[at] = self.strikes.get(at, 0) + 1
        return self.strikes[at] >= STRIKES

    def forget(self, entries: Iterable[acks.Entry]) -> None:
        super().forget(entries)
        self.strikes.clear()

"""What this run was told about a batch, and how often the engine had no room for a document alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from connectors.search.encode import Entry
from replicator import acknowledged
from replicator.acknowledged import Acknowledged, Place, place

STRIKES = 5  # attempts of a document alone that the engine was too busy for, while it took others


@dataclass
class Progress(Acknowledged):
    """``strikes``: how often the engine had no room for this document alone."""

    strikes: dict[Place, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anything has been said about a batch that is not wholly stored."""
        return bool(self.stored or self.stale or self.lost or self.strikes)

    def struck(self, entry: Entry) -> bool:
        """Note that there was no room for this document alone; whether that is enough to give up on it."""
        at = place(entry.write)
        self.strikes[at] = self.strikes.get(at, 0) + 1
        return self.strikes[at] >= STRIKES

    def forget(self, entries: Sequence[acknowledged.Entry]) -> None:
        super().forget(entries)
        for entry in entries if self.strikes else ():
            self.strikes.pop(place(entry.write), None)

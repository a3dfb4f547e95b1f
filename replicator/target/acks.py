"""What this run was told about the writes of a batch that is not wholly stored yet, for targets without transactions.

A batch may need several attempts: only what is unfinished is sent again, and a write that this run had carried out in
an earlier attempt is counted as applied, though the target then finds it stored already.

A batch that is refused in part comes back, and its changes go out again in other batches, perhaps behind older ones of
their items. Then nothing of it counts as stored any more: an older write may come first, and where a delete left no
tombstone the target would not turn it away.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from replicator.batch import DocumentId, Write

Place = tuple[str, DocumentId, int]
"""Table, document, version: one write, in whichever batch it comes again."""


class Entry(Protocol):
    """A write in a target's own form. ``source``: the part of the batch that it came from.

    ``plain``: for a delete, the form that leaves no tombstone behind; None for everything else.
    """

    @property
    def write(self) -> Write: ...
    @property
    def source(self) -> str: ...
    @property
    def plain(self) -> Any: ...


E = TypeVar("E", bound=Entry)


def place(write: Write) -> Place:
    return write.table, write.id, write.version


@dataclass
class AckTracker:
    """``stored``: carried out by this run, and whether a tombstone (or the document itself) is there to prove it.

    ``stale``: the target had that version or a newer one from elsewhere. ``lost``: sent, perhaps carried out: there
    was no answer, or its batch was refused in part.
    """

    stored: dict[Place, bool] = field(default_factory=dict)
    stale: set[Place] = field(default_factory=set)
    lost: set[Place] = field(default_factory=set)

    def unfinished(self, entries: Sequence[E], *, tombstones: bool) -> Sequence[E]:
        """The entries that have to be sent (again)."""
        if not (self.stored or self.stale):
            return entries
        return [entry for entry in entries if not self._finished(entry, tombstones)]

    def _finished(self, entry: Entry, tombstones: bool) -> bool:
        at = place(entry.write)
        proven = self.stored.get(at)
        return at in self.stale or (proven is not None and (proven or not tombstones))

    def was_stored(self, entry: Entry, *, tombstones: bool) -> None:
        self.stored[place(entry.write)] = entry.plain is None or tombstones

    def stale_by_source(self, entries: Iterable[Entry]) -> dict[str, int]:
        """How many changes (by weight) the target already knew, for each source that had any."""
        found: dict[str, int] = {}
        for entry in entries if self.stale else ():
            if entry.write.weight and place(entry.write) in self.stale:
                found[entry.source] = found.get(entry.source, 0) + entry.write.weight
        return found

    def came_back(self, entries: Iterable[Entry]) -> None:
        """The batch of these entries was refused in part: as if no answer had come, all of it is sent again."""
        sent = {place(entry.write) for entry in entries}
        self.lost = sent & (self.stored.keys() | self.lost)
        self.stored.clear()
        self.stale.clear()

    def forget(self, entries: Iterable[Entry]) -> None:
        """The batch of these entries is stored as a whole."""
        self.stored.clear()
        self.stale.clear()
        if self.lost:
            self.lost.difference_update([place(entry.write) for entry in entries])

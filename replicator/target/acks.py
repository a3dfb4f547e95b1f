"""Tracks acknowledged writes of a batch over several attempts, for targets without transactions.

Only unfinished writes are sent again, and a write that this run applied in an earlier attempt counts as applied even
though the target then reports it as already stored.

A batch that is refused in part returns to the pipeline, and its changes come again in other batches, possibly behind
older ones of their items. From then on none of its writes counts as stored: an older write may come first, and if a
delete left no tombstone the target would accept it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from replicator.batch import DocumentId, Write

Place = tuple[str, DocumentId, int]
"""Table, document, version: identifies a write across batches."""


class Entry(Protocol):
    """A write in the target's encoding. ``source``: the part of the batch it belongs to.

    ``plain``: for a delete, the encoding that leaves no tombstone; None otherwise.
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
    """``stored``: writes applied by this run, and whether a tombstone or document in the target proves it.

    ``superseded``: writes for which the target already had that version or a newer one. ``lost``: writes that may have
    been applied: the response was lost, or the batch was refused in part.
    """

    stored: dict[Place, bool] = field(default_factory=dict)
    superseded: set[Place] = field(default_factory=set)
    lost: set[Place] = field(default_factory=set)

    def unfinished(self, entries: Sequence[E], *, tombstones: bool) -> Sequence[E]:
        """The entries that must be sent (again)."""
        if not (self.stored or self.superseded):
            return entries
        return [entry for entry in entries if not self._finished(entry, tombstones)]

    def _finished(self, entry: Entry, tombstones: bool) -> bool:
        at = place(entry.write)
        proven = self.stored.get(at)
        return at in self.superseded or (proven is not None and (proven or not tombstones))

    def was_stored(self, entry: Entry, *, tombstones: bool) -> None:
        self.stored[place(entry.write)] = entry.plain is None or tombstones

    def superseded_by_source(self, entries: Iterable[Entry]) -> dict[str, int]:
        """The number of changes (by weight) that the target already had, for each source that had any."""
        counts: dict[str, int] = {}
        for entry in entries if self.superseded else ():
            if entry.write.weight and place(entry.write) in self.superseded:
                counts[entry.source] = counts.get(entry.source, 0) + entry.write.weight
        return counts

    def came_back(self, entries: Iterable[Entry]) -> None:
        """The batch of these entries was refused in part. All of it is sent again, as if the responses were lost."""
        sent = {place(entry.write) for entry in entries}
        self.lost = sent & (self.stored.keys() | self.lost)
        self.stored.clear()
        self.superseded.clear()

    def doubt(self) -> None:
        """The server may have lost what it acknowledged of this batch: send it again, as if the responses were lost."""
        self.lost |= self.stored.keys()
        self.stored.clear()
        self.superseded.clear()

    def forget(self, entries: Iterable[Entry]) -> None:
        """The batch of these entries is fully stored."""
        self.stored.clear()
        self.superseded.clear()
        if self.lost:
            self.lost.difference_update([place(entry.write) for entry in entries])

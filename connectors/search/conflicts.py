"""Acknowledgments of a batch's writes, and lookups that explain version conflicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from connectors.search.connection import Connection
from connectors.search.encode import Entry
from connectors.search.layout import Layout
from connectors.search.searches import versions
from replicator.errors import ConfigError
from replicator.target import acks
from replicator.target.acks import AckTracker, Place, place
from replicator.version import epoch_of

STRIKES = 5  # failed attempts of a single document, while the engine accepts others


@dataclass
class Progress(AckTracker):
    """Tracks the batch in flight. ``strikes``: how often the engine failed on a document while it accepted others."""

    strikes: dict[Place, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether an earlier attempt of the batch in flight had results."""
        return bool(self.stored or self.superseded or self.strikes)

    def struck(self, entry: Entry) -> bool:
        """Count a strike against this document; return whether to give up on it."""
        at = place(entry.write)
        self.strikes[at] = self.strikes.get(at, 0) + 1
        return self.strikes[at] >= STRIKES

    def forget(self, entries: Iterable[acks.Entry]) -> None:
        super().forget(entries)
        self.strikes.clear()


_LOOKED_UP = 20  # conflicts per batch that are looked up to detect other writers


class Conflicts:
    """Looks up what is stored where the engine reports a version conflict.

    In a replay (after a restart, or where scan and stream overlap) any write may meet itself or a newer one. A version
    of a later epoch than this run's comes from another writer: that is an error, and not counted as superseded.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.epoch = 0

    def ours(self, entries: Sequence[Entry], progress: Progress, layouts: Mapping[str, Layout]) -> set[Place]:
        """Those of the conflicting writes that this run applied itself, in an earlier attempt."""
        ours = {place(e.write) for e in entries if place(e.write) in progress.stored}
        unexplained = [e for e in entries if place(e.write) not in ours]
        lost = [e for e in unexplained if place(e.write) in progress.lost]
        others = [e for e in unexplained if place(e.write) not in progress.lost]
        looked_up = [*lost, *others][: max(len(lost), _LOOKED_UP)]
        known = max((epoch_of(e.write.version) for e in looked_up), default=0)
        for table in {e.write.table for e in looked_up}:
            wanted = [e for e in looked_up if e.write.table == table]
            there = self._versions(layouts[table], wanted)
            for entry, version in zip(wanted, there, strict=True):
                self._explain(entry, version, layouts[table], max(known, self.epoch))
                if place(entry.write) in progress.lost and _is_stored(entry, version):
                    ours.add(place(entry.write))
        return ours

    def remembered(self, entries: Sequence[Entry], layouts: Mapping[str, Layout]) -> list[Entry]:
        """Those of the conflicting tombstones with no document stored: the engine remembers a delete for a minute."""
        remembered: list[Entry] = []
        for table in {e.write.table for e in entries}:
            wanted = [e for e in entries if e.write.table == table]
            there = self._versions(layouts[table], wanted)
            remembered += [entry for entry, version in zip(wanted, there, strict=True) if version is None]
        return remembered

    def _versions(self, layout: Layout, entries: Sequence[Entry]) -> list[int | None]:
        """The stored version of each document; None where it is absent."""
        return versions(self._connection, layout, [(e.id, _routing(layout, e)) for e in entries])

    def _explain(self, entry: Entry, version: int | None, layout: Layout, epoch: int) -> None:
        if version is None or layout.adopt or epoch_of(version) <= epoch:
            return
        raise ConfigError(
            f"{self._connection.server}: document {entry.id} in {layout.index} has version {version}, higher than any "
            f"that this copy writes (its epoch is {epoch}): another tool, or a later run, writes to the index. "
            "Let only one write there; adopt: true accepts that such documents stay as they are"
        )


def _is_stored(entry: Entry, version: int | None) -> bool:
    """Whether this very write is what is stored there; for a delete without a tombstone, whether nothing is."""
    return version == entry.write.version or (version is None and entry.plain is not None)


def _routing(layout: Layout, entry: Entry) -> str | None:
    return layout.routing(entry.write.id)

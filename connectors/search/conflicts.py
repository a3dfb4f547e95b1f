"""What this run knows about the writes of a batch: acknowledgments, strikes, and the cause of each conflict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import orjson

from connectors.search.connection import Connection, filtered
from connectors.search.encode import Entry
from connectors.search.layout import Layout
from replicator.errors import ConfigError
from replicator.target import acks
from replicator.target.acks import AckTracker, Place, place
from replicator.version import epoch_of

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


_LOOKED_AT = 20  # conflicts of a batch that are looked up to see whether they can be ours


class Conflicts:
    """Looks at what is stored where the engine reports a conflict.

    In a replay (after a restart, or where scan and stream overlap) every write may find itself or a newer one there. A
    version of a later epoch than this run's cannot come from it: that is reported instead of being counted as stale.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.epoch = 0

    def ours(self, entries: Sequence[Entry], progress: Progress, layouts: Mapping[str, Layout]) -> set[Place]:
        """The conflicting writes that this run had carried out itself."""
        found = {place(e.write) for e in entries if place(e.write) in progress.stored}
        strange = [e for e in entries if place(e.write) not in found]
        lost = [e for e in strange if place(e.write) in progress.lost]
        looked_at = [*lost, *(e for e in strange if place(e.write) not in progress.lost)][: max(len(lost), _LOOKED_AT)]
        known = max((epoch_of(e.write.version) for e in looked_at), default=0)
        for table in {e.write.table for e in looked_at}:
            wanted = [e for e in looked_at if e.write.table == table]
            there = self._versions(layouts[table], wanted)
            for entry, version in zip(wanted, there, strict=True):
                self._explain(entry, version, layouts[table], max(known, self.epoch))
                if place(entry.write) in progress.lost and _is_it(entry, version):
                    found.add(place(entry.write))
        return found

    def remembered(self, entries: Sequence[Entry], layouts: Mapping[str, Layout]) -> list[Entry]:
        """The conflicting tombstones where nothing is stored: the engine itself remembers a delete, for a minute."""
        found: list[Entry] = []
        for table in {e.write.table for e in entries}:
            wanted = [e for e in entries if e.write.table == table]
            there = self._versions(layouts[table], wanted)
            found += [entry for entry, version in zip(wanted, there, strict=True) if version is None]
        return found

    def _versions(self, layout: Layout, entries: Sequence[Entry]) -> list[int | None]:
        """The stored version of each document, None where there is none."""
        return versions(self._connection, layout, [(e.id, _routing(layout, e)) for e in entries])

    def _explain(self, entry: Entry, version: int | None, layout: Layout, epoch: int) -> None:
        if version is None or layout.adopt or epoch_of(version) <= epoch:
            return
        raise ConfigError(
            f"{self._connection.server}: document {entry.id} in {layout.index} has version {version}, higher than any "
            f"that this copy writes (its epoch is {epoch}): another tool, or a later run, writes to the index. "
            "Let only one write there; adopt: true accepts that such documents stay as they are"
        )


def _is_it(entry: Entry, version: int | None) -> bool:
    """Whether the write is what is stored; a delete without a tombstone is where nothing is."""
    return version == entry.write.version or (version is None and entry.plain is not None)


def _routing(layout: Layout, entry: Entry) -> str | None:
    return None if layout.routed_by is None else entry.write.id[layout.routed_by]

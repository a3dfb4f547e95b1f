"""A target whose transactions overlap, as those of several sessions of Postgres do at READ COMMITTED.

What a statement sees of other rows was committed before it began; a row that it changes itself is looked at again as it
is by then. So a scanned page may not see the tombstone of a delete that does not see the page's row. Batches that leave
or heed tombstones take a common lock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replicator.batch import Batch, Delete, DocumentId, Outcome, Write
from replicator.errors import TransientError
from tests.simulation.targets import (
    Unreliable,
    UnreliableIndex,
    UnreliableOverlapping,
    UnreliableOverlappingIndex,
)

if TYPE_CHECKING:
    from tests.simulation.scenario import Scenario
    from tests.simulation.workers import Swarm

LONGEST_IDLE = 60.0  # seconds after which the server ends a transaction whose client says nothing
TRIES = 30  # looks at a lock until a session gives up waiting for it


@dataclass(frozen=True)
class Snapshot:
    """What a statement sees besides the rows that it changes: ids of rows, and tombstones, by table."""

    rows: Mapping[str, frozenset[DocumentId]]
    tombstones: Mapping[str, Mapping[DocumentId, int]]


class Lock:
    """Held by one transaction at a time, until it ends."""

    def __init__(self) -> None:
        self._holder: object | None = None
        self._since = 0.0

    def is_free(self, now: float) -> bool:
        return self._holder is None or now - self._since > LONGEST_IDLE

    def take(self, holder: object, now: float) -> None:
        self._holder, self._since = holder, now

    def release(self, holder: object) -> None:
        if self._holder is holder:
            self._holder = None


class Overlapping(Unreliable):
    """A target with transactions in which others move between a statement's snapshot and its changes."""

    _universe: Swarm
    _seen: Snapshot | None = None

    def _transaction(self, batch: Batch) -> Outcome:
        universe = self._universe
        with self._locked(batch):
            began = universe.clock.now
            self._seen = self._snapshot()
            universe.begun_to_write(batch)
            try:
                universe.effect("statement")
                if universe.clock.now - began > LONGEST_IDLE:
                    raise TransientError("the server has ended the transaction, which was idle; nothing was stored")
                return super()._transaction(batch)
            finally:
                self._seen = None

    def _late(self, batch: Batch) -> None:
        """Waits for the lock like any other."""
        universe = self._universe
        if batch.tombstones and not universe.transactions.is_free(universe.clock.now):
            universe.later("target", lambda: self._late(batch))
            return
        seen, self._seen = self._seen, None
        try:
            super()._late(batch)
        finally:
            self._seen = seen

    @contextlib.contextmanager
    def _locked(self, batch: Batch) -> Iterator[None]:
        """The lock that all batches take which leave tombstones, or heed them."""
        if not batch.tombstones:
            yield
            return
        universe, holder = self._universe, object()
        for _ in range(TRIES):
            if universe.transactions.is_free(universe.clock.now):
                break
            universe.effect("lock")
        else:
            raise TransientError("another session holds a lock")
        universe.transactions.take(holder, universe.clock.now)
        try:
            yield
        finally:
            universe.transactions.release(holder)

    def _snapshot(self) -> Snapshot:
        rows, tombstones = self._database.rows, self._database.tombstones
        return Snapshot({t: frozenset(of) for t, of in rows.items()}, {t: dict(of) for t, of in tombstones.items()})

    def _apply(self, write: Write, *, keep: bool, same: bool = False) -> bool:
        """A DELETE does not find a row that was inserted since it began; its tombstone is stored all the same."""
        rows = self._database.rows[write.table]
        unseen = self._seen is not None and write.id in rows and write.id not in self._seen.rows.get(write.table, ())
        if not unseen or not isinstance(write, Delete):
            return super()._apply(write, keep=keep, same=same)
        hidden = rows.pop(write.id)
        try:
            return super()._apply(write, keep=keep, same=same)
        finally:
            rows[write.id] = hidden

    def _is_newer(self, write: Write, *, keep: bool, same: bool) -> bool:
        """Tombstones are those that were there when the statement began, the row is that of now."""
        if self._seen is None or not keep or isinstance(write, Delete):
            return super()._is_newer(write, keep=keep, same=same)
        row = self._database.rows[write.table].get(write.id, (-1, b""))[0]
        tombstone = self._seen.tombstones.get(write.table, {}).get(write.id, -1)
        return write.version > max(row, tombstone, self._marked(write.table, write.id))


class OverlappingAhead(UnreliableOverlapping, Overlapping):
    """It also stores a batch while the next one is encoded."""

    _universe: Swarm

    def write(self, batch: Batch) -> Outcome:
        self.check_free()
        return Overlapping.write(self, batch)


def target_of(scenario: Scenario) -> type[Unreliable | UnreliableIndex]:
    if scenario.index:
        return UnreliableOverlappingIndex if scenario.overlaps else UnreliableIndex
    return OverlappingAhead if scenario.overlaps else Overlapping

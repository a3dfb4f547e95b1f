"""Rules 5 and 6: the guard remembers deletes; write, then checkpoint, as the one owner."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from connectors.dynamodb.cleanup import ScanCleanup
from replicator.batch import Batch, Delete, DocumentId, Outcome, Write
from replicator.engine import startup
from replicator.engine.binding import Binding
from replicator.engine.cleanup import Cleanup
from replicator.engine.delivery import Delivery
from replicator.engine.local import Driver
from replicator.pipeline import stages
from replicator.pipeline.parked import ParkedItems, Retries
from replicator.target import in_doubt
from replicator.target.contract import Table
from replicator.target.in_doubt import InDoubtWindow
from replicator.testing import memory
from replicator.testing.memory import MemoryRows, MemoryTarget, body
from replicator.testing.memory_index import MemoryIndex, Request
from replicator.version import version
from tests.simulation.mutants.mutant import Patch, mutant
from tests.simulation.mutants.scenarios import (
    added_columns,
    clean_stops_after_losses,
    disturbed_cleanup,
    lost_requests,
    nothing_parked,
    rarely_written_item,
    resyncs_with_losses,
    retries_beside_a_run,
    runs_that_lose_a_response,
    runs_that_lose_a_response_beside_retries,
    slow_batches,
    slow_scan,
    takeovers,
    two_tables,
    with_transactions,
    without_transactions,
)
from tests.simulation.targets import Searches, Unreliable, UnreliableIndex


@mutant("the target has no guard", 5, with_transactions)
def no_guard(patch: Patch) -> None:
    patch.setattr(MemoryTarget, "_apply", _whatever_comes)


@mutant("a target without transactions has no guard", 5, without_transactions)
def no_guard_in_an_index(patch: Patch) -> None:
    patch.setattr(MemoryIndex, "_apply", _whatever_comes)


def _whatever_comes(self: MemoryRows, write: Write, *, keep: bool, same: bool = False) -> bool:
    rows = self._database.rows[write.table]
    if isinstance(write, Delete):
        rows.pop(write.id, None)
    else:
        rows[write.id] = (write.version, body(write.body))
    return True


@mutant("deletes leave no tombstones while the scan runs", 5, shape=slow_scan)
def no_tombstones(patch: Patch) -> None:
    patch.setattr(stages, "remembers_deletes", lambda _: False)


@mutant("positions are stored before the rows", 6, with_transactions)
def positions_before_rows(patch: Patch) -> None:
    def early(self: Unreliable, batch: Batch) -> Outcome:
        self.checkpoints.save(batch.saves)
        self._universe.effect("between positions and rows")
        return MemoryTarget.write(self, Batch(batch.parts, (), batch.tombstones))

    patch.setattr(Unreliable, "write", early)


@mutant("an earlier run is not fenced off", 6)
def no_fence(patch: Patch) -> None:
    patch.setattr(memory, "saved_already", lambda saves, found, owner, mine: False)


@mutant("a lost request is assumed never to be applied", 5, without_transactions, 10_000)
def lost_is_never(patch: Patch) -> None:
    patch.setattr(UnreliableIndex, "requests", _keeps_in_batches_only)


@mutant("tombstones are purged while lost requests may still be applied", 5, shape=lost_requests)
def purged_too_soon(patch: Patch) -> None:
    def at_once(self: Cleanup, epoch: int) -> bool:
        purge = partial(self.target.purge, below=version(epoch + 1, 0))
        return any([self._retrying(partial(purge, table)) for table in self.tables])

    patch.setattr(Cleanup, "_purge", at_once)


@mutant("the requests of a killed run are not in doubt", 5, without_transactions, 10_000)
def killed_runs_are_forgotten(patch: Patch) -> None:
    patch.setattr(Driver, "_open_window", lambda self, *_, **__: None)


@mutant("positions are stored before the documents", 6, without_transactions)
def positions_before_documents(patch: Patch) -> None:
    right = Delivery._written

    def early(self: Delivery, batch: Batch) -> Outcome:
        self._checkpoints.save(batch.saves)
        return right(self, Batch(batch.parts, (), batch.tombstones))

    patch.setattr(Delivery, "_written", early)


@mutant("a run that was suspended does not check whether it was replaced", 6, shape=takeovers)
def sleeper_does_not_ask(patch: Patch) -> None:
    patch.setattr(Delivery, "confirm", lambda self, *, afresh=False: None)


def _keeps_in_batches_only(self: MemoryIndex, batch: Batch) -> Sequence[Request]:
    requests = [Request(write, part.source, batch.tombstones) for part in batch.parts for write in part.writes]
    return self.acknowledged.unfinished(requests, tombstones=batch.tombstones)


@mutant("tombstones expire during the scan", 5, shape=slow_scan)
def tombstones_expire(patch: Patch) -> None:
    right = Unreliable.write

    def forgets_first(self: Unreliable, batch: Batch) -> Outcome:
        for tombstones in self._universe.database.tombstones.values():
            tombstones.clear()
        return right(self, batch)

    patch.setattr(Unreliable, "write", forgets_first)


@mutant("a run does not notice the writes of a command", 5, shape=retries_beside_a_run)
def commands_go_unnoticed(patch: Patch) -> None:
    right = ParkedItems.of
    patch.setattr(ParkedItems, "of", lambda entries, dropped=(), retries=None: right(entries, dropped))


@mutant("a batch is sent completely, however long it takes", 6, shape=slow_batches)
def never_asks_in_the_middle(patch: Patch) -> None:
    patch.setattr(in_doubt, "TRUSTED", math.inf)


@mutant("a purge leaves the version that follows the tombstone's", 5, shape=rarely_written_item)
def purged_at_the_next_version(patch: Patch) -> None:
    right = MemoryIndex.forget

    def deletes(self: MemoryIndex, table: Table, id: DocumentId, version: int) -> int:
        done = right(self, table, id, version)
        self._database.volatile[table.name, id] = version + 1, math.inf
        return done

    patch.setattr(MemoryIndex, "forget", deletes)


@mutant("the in-doubt window closes before lost requests are applied", 5, shape=lost_requests)
def short_doubt(patch: Patch) -> None:
    patch.setattr(in_doubt, "WINDOW", 20.0)


@mutant("tables are scanned again until all scans finish together", 9, shape=two_tables)
def passes_begin_again(patch: Patch) -> None:
    def every_table(self: Cleanup, what: str, below: int, do: Callable[[Table], int]) -> bool:
        return any([self._retrying(partial(do, table)) for table in self.tables])

    patch.setattr(Cleanup, "_piece", every_table)


@mutant("a clean stop leaves no in-doubt window, whatever was lost", 5, shape=clean_stops_after_losses)
def stops_without_doubt(patch: Patch) -> None:
    patch.setattr(InDoubtWindow, "left", None)


@mutant("a run hands over its own lost responses as those of an earlier epoch", 9, shape=runs_that_lose_a_response)
def own_doubt_is_handed_on_as_earlier(patch: Patch) -> None:
    right = Driver._open_window
    patch.setattr(Driver, "_open_window", lambda self, seconds=math.inf, *, earlier=True: right(self, seconds))


@mutant("a run does not hand over in-doubt writes of an earlier epoch", 9, shape=runs_that_lose_a_response)
def earlier_doubt_is_not_handed_on(patch: Patch) -> None:
    patch.setattr(InDoubtWindow, "left_earlier", property(lambda self: None))


@mutant(
    "the retries of a command count as writes of an earlier epoch", 9, shape=runs_that_lose_a_response_beside_retries
)
def retries_count_as_earlier(patch: Patch) -> None:
    patch.setattr(Retries, "before", lambda self, epoch: self.all)


@mutant("a purge removes what it found after the ownership check", 6, shape=disturbed_cleanup)
def purges_what_it_finds(patch: Patch) -> None:
    def at_once(self: Searches, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        found = self._index.buried(table, below)[: self._most]
        self._index.each([partial(self._index.remove_buried, table, id, version) for id, version in found])
        return len(found)

    patch.setattr(Searches, "purge", at_once)
    patch.setattr(ScanCleanup, "next_piece", ScanCleanup.piece)


@mutant("a purge also removes what has replaced the tombstone", 5, shape=disturbed_cleanup)
def removes_whatever_is_there(patch: Patch) -> None:
    def removed(self: MemoryIndex, table: Table, id: DocumentId, version: int) -> int:
        rows, tombstones = self._database.rows[table.name], self._database.tombstones[table.name]
        return int(any([rows.pop(id, None), tombstones.pop(id, None)]))

    patch.setattr(UnreliableIndex, "forget", removed)


@mutant("a sweep's tombstone replaces whatever is stored by then", 5, shape=resyncs_with_losses)
def buries_whatever_is_there(patch: Patch) -> None:
    def buried(self: MemoryIndex, table: Table, ids: Sequence[DocumentId], below: int) -> int:
        for id in ids:
            self._database.rows[table.name].pop(id, None)
            self._database.tombstones[table.name][id] = below
        return len(ids)

    patch.setattr(UnreliableIndex, "bury", buried)


@mutant("an added column is not filled", 14, nothing_parked, shape=added_columns)
def added_columns_stay_empty(patch: Patch) -> None:
    right, opened = startup.start_mode, Binding.open

    def resumes(found: startup.StartupState, allowed: startup.Allowed) -> startup.StartMode:
        course = right(found, allowed)
        return startup.StartMode.RESUME if found.changes and not allowed.resync else course

    def extends_first(self: Binding, found: startup.StartupState) -> None:
        if found.additions is not None:
            self.extend(found)
        opened(self, found)

    patch.setattr(startup, "start_mode", resumes)
    patch.setattr(Binding, "open", extends_first)


@mutant("table definitions are not compared", 14, nothing_parked, shape=added_columns)
def definitions_are_not_compared(patch: Patch) -> None:
    patch.setattr(startup.StartupState, "changes", property(lambda self: []))


@mutant("a config with another source or target is accepted", 14, seeds=200)
def identities_are_not_compared(patch: Patch) -> None:
    patch.setattr(startup, "check_identity", lambda found: None)

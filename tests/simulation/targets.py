"""The simulation's targets and its store: they fail before or after the fact, and the process may die in them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import orjson

from connectors.dynamodb.cleanup import Page, ScanCleanup
from connectors.dynamodb.writer import Writer
from replicator import version as versions
from replicator.aws.client import Client
from replicator.batch import Batch, Delete, DocumentId, Outcome, Upsert, Write
from replicator.checkpoints.contract import NO_COUNTS, Claimed
from replicator.errors import ConfigError, Fenced, GapFound, TransientError, Unfinished
from replicator.identity import Change, Parts
from replicator.state import APPLIED_WITHIN, Counts, Entry, Owner, Parked, PipelineState, Save
from replicator.target import in_doubt
from replicator.target.acks import place
from replicator.target.contract import Table
from replicator.target.verification import CHANGED
from replicator.testing.memory import MemoryCheckpoints, MemoryDatabase, MemoryRows, MemoryTarget, body, unspared
from replicator.testing.memory_index import MemoryIndex, Request
from tests.simulation import truth

if TYPE_CHECKING:
    from tests.simulation.scenario import Scenario
    from tests.simulation.world import Universe

W = TypeVar("W", Upsert, Delete)
LATEST = APPLIED_WITHIN  # seconds after which a lost request is carried out at the latest


class Killed(BaseException):
    """The process is gone: nothing after this point happened."""


@dataclass(frozen=True)
class Late:
    """A request that was given up, and when it will be applied."""

    at: float
    to: str  # target or store
    carry_out: Callable[[], object]


class Watched(MemoryRows):
    """Rows whose versions never decrease. A refused write is reported to a run only once."""

    _told: set[tuple[str, DocumentId, int, bytes]]
    _universe: Universe

    def tells(self, outcome: Outcome) -> Outcome:
        refused = {(r.write.table, r.write.id, r.write.version, self._image(r.write)) for r in outcome.rejections}
        assert not (again := refused & self._told), f"refused before, and sent again: {again}"
        self._told |= refused
        return outcome

    def _image(self, write: Write) -> bytes:
        """What tells two writes of the same version apart: those of one item in several exports of a gap's repair, and
        those of two records, where listings had old shards mistaken for new ones until that is found to be a gap.

        A refused one is looked up after them, and may be sent once more. What a lookup finds is newer each time.
        """
        scanned = write.version == versions.version(versions.epoch_of(write.version), 0)
        looks_up = self._universe.scenario.view == "KEYS_ONLY"
        repaired = self._universe.scenario.repairs_gaps and scanned
        if not isinstance(write, Upsert) or (scanned and not repaired) or (looks_up and not repaired):
            return b""
        state = truth.pipeline_of(self._universe.database.entries)
        looked_up = repaired and state is not None and state.repair is not None and state.repair.looking_up
        return body(write.body) + (b" looked up" if looked_up else b"")

    def _apply(self, write: Write, *, keep: bool, same: bool = False) -> bool:
        before = self._known(write)
        applied = super()._apply(write, keep=keep, same=same)
        try:
            truth.check_version(write, before, applied=applied, same=same)
        except AssertionError:
            if not self._universe.records.told_later(self._universe):
                raise
        self._hold(write)
        return applied

    def _hold(self, write: Write) -> None:
        lives, here = self._universe.lives, self._database is self._universe.database
        if here and self._universe.scenario.marks and write.id in self._database.rows[write.table]:
            lives.held.add((write.table, write.id))

    def _replaced(self, table: Table, write: Upsert) -> str:
        before = self._known(write)
        reason = super()._replaced(table, write)
        truth.check_repaired(write, before, self._known(write))
        self._hold(write)
        return reason

    def _removed(self, table: Table, write: Delete) -> str:
        before = self._known(write)
        reason = super()._removed(table, write)
        truth.check_repaired(write, before, self._known(write))
        return reason


class Columned(Watched):
    """Tables that store some fields of each document, where their options name them; a table can get more."""

    _universe: Universe
    _fields: Mapping[str, Sequence[str]] = {}

    def parts(self, table: Table) -> Parts:
        if "fields" in table.options:
            return {f"fields.{name}": "text" for name in table.options["fields"]}
        return {"options": orjson.dumps(dict(table.options)).decode()}

    def additions(self, tables: Sequence[Table], changes: Sequence[Change]) -> Sequence[str] | None:
        return [str(change) for change in changes]

    def extend(self, tables: Sequence[Table], changes: Sequence[Change]) -> None:
        for table in tables:
            self._universe.effect("extend")
            if table.name in self._universe.columns:
                self._universe.columns[table.name] = len(table.options["fields"])

    def open(self, tables: Sequence[Table], epoch: int) -> None:
        columns = self._universe.columns
        for table in tables:
            if "fields" in table.options:
                wanted = len(table.options["fields"])
                if columns.setdefault(table.name, wanted) < wanted:
                    raise ConfigError(f"{table.name} lacks a column")
        super().open(tables, epoch)
        self._fields = {table.name: table.options["fields"] for table in tables if "fields" in table.options}
        self._universe.effect("opened")

    def _apply(self, write: Write, *, keep: bool, same: bool = False) -> bool:
        applied = super()._apply(write, keep=keep, same=same)
        if applied and isinstance(write, Upsert) and write.table in self._fields:
            version, whole = self._database.rows[write.table][write.id]
            self._database.rows[write.table][write.id] = version, projected(whole, self._fields[write.table])
        return applied


def projected(document: bytes, fields: Sequence[str]) -> bytes:
    """What a table with these columns stores of a document."""
    return body({name: value for name, value in orjson.loads(document).items() if name in fields})


class Unreliable(Columned, MemoryTarget):
    """A target with transactions: one may be lost, be stored without an answer, or be stored minutes later."""

    _universe: Universe

    def __init__(self, universe: Universe) -> None:
        super().__init__(universe.database, universe.refuse, at_commit=universe.scenario.at_commit)
        self._told = set()
        self._universe = universe

    def purge(self, table: Table, below: int, spare: Sequence[DocumentId] = ()) -> int:
        spared = self._universe.spared
        spared.passes(table.name, below, spare)
        done = super().purge(table, below, spare)
        if done == 0:
            spared.passed(table.name, below)
        return done

    def write(self, batch: Batch) -> Outcome:
        universe = self._universe
        universe.sees(batch)
        universe.effect("write")
        if universe.take("lost"):
            raise TransientError("the target did not answer; nothing was stored")
        if universe.take("late"):
            universe.later("target", lambda: self._late(batch))
            raise TransientError("the target did not answer; it stores it all the same")
        outcome = self.tells(self._transaction(batch))
        universe.effect("stored")
        if batch.saves and not outcome.rejections and universe.take("unanswered"):
            raise TransientError("the target stored it, but the answer was lost")
        return outcome

    def _transaction(self, batch: Batch) -> Outcome:
        entries = self._universe.database.entries
        before = truth.places(entries, batch.saves)
        outcome = MemoryTarget.write(self, batch)
        truth.check_saved(before, entries)
        assert not outcome.rejections or before == truth.places(entries, batch.saves)
        return outcome

    def _late(self, batch: Batch) -> None:
        with suppress(Fenced):
            MemoryTarget.write(self, batch)

    def replace(self, table: Table, writes: Sequence[Upsert]) -> Sequence[str]:
        return self._repaired(partial(super().replace, table, writes))

    def remove(self, table: Table, writes: Sequence[Delete]) -> Sequence[str]:
        return self._repaired(partial(super().remove, table, writes))

    def _repaired(self, statement: Callable[[], Sequence[str]]) -> Sequence[str]:
        universe = self._universe
        universe.effect("repair")
        if universe.take("lost"):
            raise TransientError("the target did not answer; nothing was repaired")
        if universe.take("late"):
            universe.later("target", partial(self._late_repair, statement))
            raise TransientError("the target did not answer; it repairs it all the same")
        done = statement()
        if universe.take("unanswered"):
            raise TransientError("the target repaired it, but the answer was lost")
        return done

    def _late_repair(self, statement: Callable[[], Sequence[str]]) -> None:
        """Perhaps after the command, and the purge that follows it: then its tombstones stay until the next epoch."""
        universe, tombstones = self._universe, self._universe.database.tombstones
        before = {(table, id) for table, ids in tombstones.items() for id in ids}
        statement()
        universe.late_tombstones |= {(table, id) for table, ids in tombstones.items() for id in ids} - before


class Overlaps:
    """Makes a target one that stores a batch while the next is encoded: what was sent is carried out when collected."""

    _universe: Universe
    _sent: Batch | None = None
    _at: float = 0.0

    def encode(self, batch: Batch) -> Batch:
        return batch

    def send(self, encoded: Batch) -> None:
        assert self._sent is None, "at most one batch is under way"
        if self._universe.take("lost"):
            raise TransientError("the connection broke; nothing was sent")
        self._sent, self._at = encoded, self._universe.clock()

    def ready(self) -> bool:
        return self._universe.answers.random() < self._universe.scenario.hasty

    def collect(self) -> Outcome:
        """A request that was sent so long ago that no server has it any more comes to nothing."""
        sent, self._sent = self._sent, None
        assert sent is not None, "nothing was sent"
        if self._universe.clock() > self._at + LATEST:
            raise TransientError("the connection timed out long ago; nothing was stored")
        return self.write(sent)

    def write(self, batch: Batch) -> Outcome:
        raise NotImplementedError


class UnreliableIndex(Columned, MemoryIndex):
    """A target without transactions: requests may fail individually, or be applied minutes later."""

    _universe: Universe

    def __init__(self, universe: Universe) -> None:
        super().__init__(universe.database, universe.refuse, universe.clock)
        self._told = set()
        self._universe = universe
        self._made: Mapping[str, int] = {}  # how often each table was, by the time it was opened
        self._pieces = Passes(self) if universe.scenario.forgetful else Searches(self)

    def open(self, tables: Sequence[Table], epoch: int) -> None:
        super().open(tables, epoch)
        self._made = {table.name: self._database.made.get(table.name, 1) for table in tables}

    def _require_same(self) -> None:
        """GapFound if a table is another one than was opened, in a world where writes tell that."""
        made = self._database.made
        if "remove" in self._universe.scenario.rates and any(made.get(t, 1) != n for t, n in self._made.items()):
            raise GapFound("a table was removed or replaced while this run wrote to it")

    def lead(self, database: MemoryDatabase, place: str) -> None:
        """Be the target of another cluster."""
        self._database, self._place = database, f" in {place}"

    def carry_out(self, request: Request) -> bool:
        if self._universe.scenario.forgetful:
            self._universe.database.volatile.clear()
        return super().carry_out(request)

    def write(self, batch: Batch) -> Outcome:
        universe = self._universe
        self._require_same()
        universe.sees(batch)
        sent = [r for r in self.requests(batch) if not self._reason(r.write)]
        universe.random.shuffle(sent)
        if universe.fatal_items and any(request.write.item in universe.fatal_items for request in sent):
            universe.perish()
            self._float(sent)
            raise Killed
        lost, late = False, False
        began = universe.clock()
        for n, request in enumerate(sent):
            if n > 0:
                universe.dawdle()
                late = universe.clock() >= began + in_doubt.TRUSTED
            if late:
                break
            if universe.dies_here("request"):
                self._float(sent[n:])
                raise Killed
            if self._is_lost(request):
                lost = True
                self.acknowledged.lost.add(place(request.write))
            else:
                self.answered(request, applied=self.carry_out(request))
        universe.effect("stored")
        if lost:
            self.in_doubt.begin()
        if lost and not self.refused(batch):
            raise TransientError("some answers were lost")
        if late and not self.refused(batch):
            raise Unfinished("the batch takes long")
        return self.tells(self.outcome(batch))

    def _is_lost(self, request: Request) -> bool:
        """Whether the request gets no response. Perhaps it is applied, now or later."""
        universe = self._universe
        if request.source.startswith("segment:") and universe.take("page"):
            universe.holds(request.write.item[0], partial(self.carry_out, request))
            return True
        lost = universe.take("lost") or universe.take("late") or universe.take("leak")
        if lost:
            self._float([request])
        return lost

    def replace(self, table: Table, writes: Sequence[Upsert]) -> Sequence[str]:
        return self._repaired(table, writes, super()._replaced)

    def remove(self, table: Table, writes: Sequence[Delete]) -> Sequence[str]:
        return self._repaired(table, writes, super()._removed)

    def _repaired(self, table: Table, writes: Sequence[W], conditional: Callable[[Table, W], str]) -> Sequence[str]:
        """As in DynamoDB, on condition of the version; or as in a search engine, which refuses only what is older."""
        forgetful, there = self._universe.scenario.forgetful, self.versions(table, [write.id for write in writes])
        self._universe.effect("repair")
        done = [CHANGED] * len(writes)
        for n, (write, version) in enumerate(zip(writes, there, strict=True)):
            if version != write.version and not forgetful:
                continue
            request = partial(conditional, table, write) if forgetful else partial(self._insisted, write)
            if self._universe.take("lost") or self._universe.take("late"):
                self._drift([request])
                raise TransientError("some answers to repairs were lost")
            done[n] = request()
        return done

    def _insisted(self, write: Write) -> str:
        return "" if self.carry_out(Request(write, "verify", keep=True, same=True)) else CHANGED

    @property
    def piece(self) -> int:
        """How many documents are looked at at once."""
        return self._universe.scenario.piece

    def ids(self, table: Table) -> list[DocumentId]:
        """Where there is something, a document or a tombstone."""
        there = (self._database.rows, self._database.tombstones, self._database.marked)
        return sorted({id for ids in there for id in ids.get(table.name, ())})

    def _float(self, requests: Sequence[Request]) -> None:
        self._drift([partial(self.carry_out, request) for request in requests])

    def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        return self._unreliably(self._pieces.sweep(table, below, spare))

    def purge(self, table: Table, below: int, spare: Sequence[DocumentId] = ()) -> int:
        spared = self._universe.spared
        spared.passes(table.name, below, spare)
        self._universe.doze()
        done = self._pieces.purge(table, below, spare)
        if done == 0:
            spared.passed(table.name, below)
        return self._unreliably(done)

    def each(self, requests: Sequence[Callable[[], int]]) -> int:
        """Carry out the requests of a piece: some may be late, and other runs may take over meanwhile.

        How many changed something. TransientError where a response was lost, Unfinished where it takes long.
        """
        universe, done, lost = self._universe, 0, False
        began = universe.clock()
        for n, request in enumerate(requests):
            universe.overtake()
            if universe.clock() >= began + in_doubt.TRUSTED:
                raise Unfinished("the piece takes long")
            if universe.take("cut short"):
                self._drift(requests[n:])
                raise Killed
            if universe.take("straggle"):
                lost = True
                self._drift([request])
            else:
                done += request()
        if lost:
            self.in_doubt.begin()
            raise TransientError("some answers to a piece were lost")
        return done

    def _drift(self, requests: Sequence[Callable[[], object]]) -> None:
        """Requests without a response: they are lost, or applied now or later."""
        for request in requests:
            fate = self._universe.random.choice(["never", "now", "late", "late"])
            if fate == "now":
                request()
            elif fate == "late":
                self._universe.later("target", request)

    def _unreliably(self, done: int) -> int:
        self._universe.effect("chore")
        if self._universe.take("unanswered"):
            self.in_doubt.begin()
            raise TransientError("the answer was lost")
        return done


class Searches:
    """Sweeps and purges as in a search engine: each piece finds some of what is still there."""

    def __init__(self, index: UnreliableIndex) -> None:
        self._index = index
        self._most = index.piece
        self._found: dict[tuple[str, int], Sequence[tuple[DocumentId, int]]] = {}
        self._window_of = 0

    def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        found = self._index.older(table, below, spare)[: self._most]
        self._index.each([partial(self._index.bury, table, [id], below) for id in found])
        return len(found)

    def purge(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        if self._index.in_doubt.begun != self._window_of:
            self._found, self._window_of = {}, self._index.in_doubt.begun
        place = table.name, below
        tombstones = self._found.pop(place, ())  # found again, less what is gone, if the piece takes long
        self._index.each([partial(self._index.remove_buried, table, id, version) for id, version in tombstones])
        self._found[place] = unspared(self._index.buried(table, below), spare)[: self._most]
        return len(self._found[place])


class Passes:
    """Sweeps and purges as in DynamoDB: each piece goes on where the last one ended, in the production code.

    ``write_all`` and ``_pages`` stand for the table's.
    """

    def __init__(self, index: UnreliableIndex) -> None:
        self._index = index
        self._seconds = itertools.count(step=3)
        self._cleanup = ScanCleanup(cast(Client, None), cast(Writer, self), lambda: next(self._seconds))

    def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        def older(ids: Sequence[DocumentId]) -> Sequence[DocumentId]:
            those = set(self._index.older(table, below, spare))
            return [id for id in ids if id in those]

        def bury(found: Sequence[Any]) -> list[Any]:
            return [partial(self._index.bury, table, [id], below) for id in found]

        return self._cleanup.piece(("sweep", table.name, below), partial(self._pages, table, older), bury)

    def purge(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        def buried(ids: Sequence[DocumentId]) -> Sequence[tuple[DocumentId, int]]:
            those = dict(unspared(self._index.buried(table, below), spare))
            return [(id, those[id]) for id in ids if id in those]

        def forget(found: Sequence[Any]) -> list[Any]:
            return [partial(self._index.forget, table, id, version) for id, version in found]

        return self._cleanup.next_piece(("purge", table.name, below), partial(self._pages, table, buried), forget)

    @property
    def in_doubt_windows(self) -> Mapping[str, int]:
        return {"purge": self._index.in_doubt.begun, "sweep": self._index.in_doubt.sweep_round}

    def write_all(self, requests: Sequence[Any]) -> int:
        return self._index.each(requests)

    def _pages(self, table: Table, wanted: Callable[[Any], Any], *, after: Any) -> Iterator[Page]:
        while True:
            ids = [id for id in self._index.ids(table) if after is None or id > after]
            page = ids[: self._index.piece]
            after = page[-1] if len(ids) > len(page) else None
            yield Page(wanted(page), after)
            if after is None:
                return


class UnreliableOverlapping(Overlaps, Unreliable):
    """With its checkpoints over one connection, as in Postgres: a batch that was sent has it until it is collected."""

    def __init__(self, universe: Universe) -> None:
        super().__init__(universe)
        self.checkpoints = CheckpointsOfConnection(universe.database, self)

    def check_free(self) -> None:
        assert self._sent is None, "a batch is in flight: collect it first"

    def open(self, tables: Sequence[Table], epoch: int) -> None:
        self.check_free()
        super().open(tables, epoch)

    def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        self.check_free()
        return super().sweep(table, below, spare)

    def purge(self, table: Table, below: int, spare: Sequence[DocumentId] = ()) -> int:
        self.check_free()
        return super().purge(table, below, spare)

    def write(self, batch: Batch) -> Outcome:
        self.check_free()
        return Unreliable.write(self, batch)

    def _late(self, batch: Batch) -> None:
        """Of a connection that was given up; this one has its own batch in flight."""
        sent, self._sent = self._sent, None
        super()._late(batch)
        self._sent = sent


class CheckpointsOfConnection(MemoryCheckpoints):
    """Only heartbeats go beside a batch in flight, whose response waits until it is taken."""

    def __init__(self, database: MemoryDatabase, target: UnreliableOverlapping) -> None:
        super().__init__(database)
        self._target = target

    def _claim(self, owner: Owner, slot: str) -> int:
        self._target.check_free()
        return super()._claim(owner, slot)

    def read(self) -> Claimed:
        self._target.check_free()
        return super().read()

    def pipeline(self) -> PipelineState | None:
        self._target.check_free()
        return super().pipeline()

    def request(self) -> Entry | None:
        self._target.check_free()
        return super().request()

    def parked(self, prefix: str = "", ids: Collection[str] | None = None) -> Iterator[tuple[str, Parked]]:
        self._target.check_free()
        return super().parked(prefix, ids)

    def save(self, saves: Sequence[Save], counts: Mapping[str, Counts] = NO_COUNTS) -> None:
        if not saves or any(save.kind != "pulse" or save.expected is not None for save in saves):
            self._target.check_free()
        super().save(saves, counts)


class UnreliableOverlappingIndex(Overlaps, UnreliableIndex):
    def write(self, batch: Batch) -> Outcome:
        return UnreliableIndex.write(self, batch)


class UnreliableStore(MemoryCheckpoints):
    """Checkpoints in a place of their own: a save may be lost, or only its answer, or be made minutes later."""

    def __init__(self, universe: Universe) -> None:
        super().__init__(universe.database)
        self._universe = universe

    def save(self, saves: Sequence[Save], counts: Mapping[str, Counts] = NO_COUNTS) -> None:
        universe = self._universe
        universe.effect("save")
        if universe.take("lost"):
            raise TransientError("the store did not answer; nothing was stored")
        if saves and universe.take("late"):
            universe.later("store", lambda: self._late(saves, counts))
            raise TransientError("the store did not answer; it stores it all the same")
        before = truth.places(universe.database.entries, saves)
        super().save(saves, counts)
        truth.check_saved(before, universe.database.entries)
        universe.effect("saved")
        if universe.take("unanswered"):
            raise TransientError("the store has it, but the answer was lost")

    def _late(self, saves: Sequence[Save], counts: Mapping[str, Counts]) -> None:
        with suppress(Fenced):
            super().save(saves, counts)


def target_of(scenario: Scenario) -> type[Unreliable | UnreliableIndex]:
    if scenario.index:
        return UnreliableOverlappingIndex if scenario.overlaps else UnreliableIndex
    return UnreliableOverlapping if scenario.overlaps else Unreliable

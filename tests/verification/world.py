"""A source, a stream and a target on a virtual clock, and a run in a few lines that follows the stream.

Around each call that the code under test makes, a few things happen, as a seed says: writes, and what the run does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from replicator.batch import Batch, Delete, DocumentId, Outcome, Part, Upsert, Write
from replicator.hooks.hook import DocumentMapping
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.key import Key, KeyAttribute, KeySchema
from replicator.operations.repair import Repairs
from replicator.pipeline.parked import ParkedItems
from replicator.state import Heartbeat, Save, encode
from replicator.target.contract import Table
from replicator.target.verification import Comparison, Walked
from replicator.testing.memory import MemoryCheckpoints, MemoryDatabase, MemoryRows, MemoryTarget
from replicator.testing.memory_index import MemoryIndex
from replicator.verification.differences import Finding, Positions
from replicator.verification.examiner import Examiner, Floor, Image
from replicator.verification.verifier import Result, Verifier
from replicator.version import FIRST_EPOCH, version

NAME = "t"
TABLE = Table(NAME, KeySchema((KeyAttribute("pk", "S"),)))
FLOOR = version(FIRST_EPOCH, 0)
Record = tuple[float, Key, bytes | None]


@dataclass
class World:
    """``items``: the source. ``backlog``: records that are not applied. ``pauses``: nothing happens by itself."""

    seed: int = 0
    transactional: bool = True
    keys: int = 6
    leaves_tombstones: bool = True
    items: dict[str, bytes] = field(default_factory=dict)
    backlog: list[Record] = field(default_factory=list)
    now: float = 1000.0
    ordinal: int = 0
    pauses: bool = False
    running: bool = True
    results: list[Result] = field(default_factory=list)
    repaired: list[tuple[Finding, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.busy = self.random.choice((0.02, 0.1, 0.4))  # share of writes in what happens
        self.database = MemoryDatabase()
        self.target: MemoryRows = MemoryTarget(self.database) if self.transactional else MemoryIndex(self.database)
        self.target.open([TABLE], FIRST_EPOCH)
        self.checkpoints = MemoryCheckpoints(self.database)
        self.noticed = ParkedItems()
        self.heartbeat: Heartbeat | None = None

    # What happens

    def put(self, pk: str, **attributes: object) -> None:
        self.items[pk] = image({"pk": pk, **attributes})
        self.backlog.append((self.now, (pk,), self.items[pk]))

    def delete(self, pk: str) -> None:
        if self.items.pop(pk, None) is not None:
            self.backlog.append((self.now, (pk,), None))

    def apply(self) -> None:
        """The run applies the next record."""
        if self.backlog:
            _, key, new = self.backlog.pop(0)
            self.ordinal += 1
            at = version(FIRST_EPOCH, self.ordinal)
            write: Write = Delete(NAME, key, at, key) if new is None else Upsert(NAME, key, Item(new), at, key)
            keep = self.leaves_tombstones and self.noticed.repairing != ""
            cast(Any, self.target).write(Batch([Part("shard:1", [write])], tombstones=keep))

    def notice(self) -> None:
        """The run reads the entries of commands again, and its heartbeat shows that it did."""
        self.noticed = ParkedItems.among(self.checkpoints.read().entries)
        if self.noticed.repair is not None and self.noticed.repair[0].ended:
            self.checkpoints.save([Save("repair", "", None, None)])
            self.noticed.repair = None
            self.database.tombstones[NAME].clear()
        beat = Heartbeat(self.now, "live", repair=self.noticed.repairing)
        self.checkpoints.save([Save("pulse", "", None, encode(beat))])

    def happens(self) -> None:
        """A few things at random."""
        if self.pauses:
            return
        for _ in range(self.random.choice((0, 0, 1, 2, 3, 15))):
            self.now += 1.0
            act = self.random.random()
            pk = f"k{self.random.randrange(self.keys)}"
            if act < self.busy / 2:
                self.put(pk, n=self.random.randrange(3))
            elif act < self.busy:
                self.delete(pk)
            elif act < self.busy + 0.1:
                self.notice()
            else:
                self.apply()

    def catch_up(self) -> None:
        while self.backlog:
            self.apply()

    @property
    def positions(self) -> Positions:
        if not self.running:
            return Positions(blocked_by="no run")
        return Positions(self.backlog[0][0] if self.backlog else self.now)

    # What is looked at

    @property
    def documents(self) -> dict[DocumentId, Any]:
        return self.database.documents(NAME)

    @property
    def wanted(self) -> dict[DocumentId, Any]:
        """What the target must have once everything is applied."""
        other = MemoryDatabase()
        expected = MemoryTarget(other)
        expected.open([TABLE], FIRST_EPOCH)
        writes = [Upsert(NAME, (pk,), Item(new), FLOOR, (pk,)) for pk, new in self.items.items()]
        expected.write(Batch([Part("", writes)]))
        return other.documents(NAME)

    # What the code under test uses

    def read(self, keys: Collection[Key]) -> Mapping[Key, Image]:
        self.happens()
        return {key: self.items[key[0]] for key in keys if key[0] in self.items}

    def verifier(self, **more: Any) -> Verifier:
        comparing = cast(Any, self.watched)
        examiner = Examiner(DocumentMapping(None, (NAME,)), {NAME: TABLE}, comparing, Floor(FLOOR, FIRST_EPOCH))
        return Verifier(examiner, self.read, self.read, lambda: self.now, lambda: self.now, **more)

    @property
    def watched(self) -> Watched:
        return (WatchedTransactional if self.transactional else Watched)(self)

    def repairs(self) -> Repairs:
        target = self.watched
        both = SimpleNamespace(
            target=target,
            comparing=target,
            tables={NAME: TABLE},
            state=SimpleNamespace(epoch=FIRST_EPOCH, complete=FIRST_EPOCH),
            checkpoints=self.checkpoints,
        )
        return Repairs(cast(Any, both), self, wanted=True)

    def repair(self, finding: Finding, reason: str) -> None:
        self.repaired.append((finding, reason))

    def waiting(self, reason: str | None) -> None:
        pass

    def scanned(self) -> list[tuple[Key, bytes]]:
        return [((pk,), new) for pk, new in sorted(self.items.items())]

    def verified(self, verifier: Verifier, repairs: Repairs | None = None, rounds: int = 500) -> None:
        """A pass, as ``replicator verify`` makes it. Everything found is in ``results``."""
        self._take(verifier.scanned(self.scanned(), self.now, "segment:0"), repairs)
        self._take(verifier.walked(NAME, sorted(self.database.rows[NAME]), "table:t"), repairs)
        for _ in range(rounds):
            if not verifier.pending and (repairs is None or not repairs.pending):
                return
            self.happens()
            if repairs is None or not repairs.waits or self.positions.blocked_by:
                self._take(verifier.settle(self.positions), repairs)
            if repairs is not None:
                repairs.flush(verifier)
        raise AssertionError(f"{verifier.pending} candidates after {rounds} rounds")

    def verified_until_offered(self, verifier: Verifier, repairs: Repairs) -> None:
        """The same until something was found to repair."""
        self._take(verifier.scanned(self.scanned(), self.now, "segment:0"), repairs)
        while not repairs.pending:
            self.now += 10
            self._take(verifier.settle(self.positions), repairs)

    def _take(self, results: Any, repairs: Repairs | None) -> None:
        for result in results:
            self.results.append(result)
            if repairs is not None and result.outcome == "difference":
                repairs.offer(result)

    def found(self, outcome: str = "difference") -> dict[str, str]:
        """The kinds of what was found, by key."""
        return {r.finding.id[0]: r.finding.kind for r in self.results if r.outcome == outcome}


class Watched:
    """The target, around whose calls things happen."""

    unrepairable = ""

    def __init__(self, world: World) -> None:
        self._world, self._target = world, world.target

    def open(self, tables: Sequence[Table], epoch: int) -> None:
        pass

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self._world.happens()
        result = function(*arguments)
        self._world.happens()
        return result

    def compare(self, table: Table, expected: Sequence[Upsert]) -> Sequence[Comparison]:
        return self._call(self._target.compare, table, expected)  # type: ignore[no-any-return]

    def versions(self, table: Table, ids: Sequence[DocumentId]) -> Sequence[int | None]:
        return self._call(self._target.versions, table, ids)  # type: ignore[no-any-return]

    def walk(self, table: Table, cursor: str | None, within: DocumentId = ()) -> Walked:
        return self._call(self._target.walk, table, cursor, within)  # type: ignore[no-any-return]

    def replace(self, table: Table, writes: Sequence[Upsert]) -> Sequence[str]:
        return self._call(self._target.replace, table, writes)  # type: ignore[no-any-return]

    def remove(self, table: Table, writes: Sequence[Delete]) -> Sequence[str]:
        return self._call(self._target.remove, table, writes)  # type: ignore[no-any-return]

    def write(self, batch: Batch) -> Outcome:
        return self._call(cast(Any, self._target).write, batch)  # type: ignore[no-any-return]


class WatchedTransactional(Watched):
    """The same with checkpoints in the transactions of the rows."""

    @property
    def checkpoints(self) -> Any:
        return self._world.checkpoints

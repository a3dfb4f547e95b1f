"""Wrong designs: each breaks one rule in the production code, and the simulation has to notice.

A mutant is a patch that a test applies and takes back. ``rule`` is the rule of the design that it breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec
import pytest

from replicator import backfill, compaction, lineage, passing, reader
from replicator.batch import Batch, Delete, Outcome, Upsert, Write
from replicator.change import Change, Page, Record
from replicator.checkpoints import ShardState
from replicator.chores import Chores
from replicator.compaction import Circumstances, Compacted, Filing
from replicator.delivery import Delivery
from replicator.driver import Driver
from replicator.errors import GapFound
from replicator.position import version
from replicator.stream import Records, Stream
from replicator.testing.memory import MemoryCheckpoints, MemoryIndex, MemoryTarget, Request
from tests.simulation import hooks
from tests.simulation.targets import Unreliable, UnreliableIndex
from tests.simulation.world import Scenario

Patch = pytest.MonkeyPatch
PLAIN = Scenario()
FILTER = Scenario(hooks.kept)
REKEY = Scenario(hooks.rekeyed)
FAN = Scenario(hooks.fanned)
POISON = Scenario(hooks.poisoned)
POISON_FAN = Scenario(hooks.poisoned_fan)
TRIMMED = Scenario(trims=True)
LONG_SCAN = Scenario(keys=25)
INDEX = Scenario(index=True)
REFUSING = Scenario(hooks.kept, index=True, refuses=True)
LOSSY = Scenario(index=True, keys=12, rates={**INDEX.rates, "lost": 0.15, "pause": 0.004, "die": 0.003})
RESYNCED = Scenario(
    index=True, steps=60, keys=15, rates={**INDEX.rates, "write": 1.0, "lost": 0.15, "die": 0.04, "resync": 0.7}
)
REPLACED = Scenario(index=True, rates={**INDEX.rates, "takeover": 0.03, "pause": 0.15, "die": 0.0})


@dataclass(frozen=True)
class Mutant:
    """``seeds``: how many the simulation may need at most."""

    name: str
    rule: int
    apply: Callable[[Patch], None]
    scenario: Scenario = PLAIN
    seeds: int = 200


MUTANTS: list[Mutant] = []


def mutant(name: str, rule: int, scenario: Scenario = PLAIN, seeds: int = 200) -> Callable[[Any], Any]:
    def register(apply: Callable[[Patch], None]) -> Callable[[Patch], None]:
        MUTANTS.append(Mutant(name, rule, apply, scenario, seeds))
        return apply

    return register


@mutant("positions are where the stream is when a reader opens", 1)
def _(patch: Patch) -> None:
    right = reader._place

    def latest(at: Any) -> dict[str, Any]:
        return {"ShardIteratorType": "LATEST"} if at.untouched and not at.state.whole else right(at)

    patch.setattr(reader, "_place", latest)


@mutant("the resume probe is skipped", 2, TRIMMED, 400)
def _(patch: Patch) -> None:
    def open_at_what_is_left(at: Any) -> dict[str, Any]:
        at.expected = None
        return {"ShardIteratorType": "TRIM_HORIZON"}

    patch.setattr(reader, "_place", open_at_what_is_left)
    patch.setattr(reader, "_require_young", lambda *_: None)
    right = reader._following

    def only_newer(at: Any, records: Sequence[Record]) -> Sequence[Record]:
        last = int(at.last or 0)
        return right(at, [r for r in records if int(r.sequence) > last])

    patch.setattr(reader, "_following", only_newer)


@mutant("a late shard is opened at what is left of it, however old", 2, TRIMMED, 400)
def _(patch: Patch) -> None:
    patch.setattr(reader, "_require_young", lambda *_: None)
    right = reader._place
    patch.setattr(
        reader,
        "_place",
        lambda at: right(at) if at.expected is not None else {"ShardIteratorType": "TRIM_HORIZON"},
    )


@mutant("children open before their parents' end is stored", 3)
def _(patch: Patch) -> None:
    def all_unfinished(known: Mapping[str, Any]) -> set[str]:
        return {id for id, shard in known.items() if not shard.ended}

    patch.setattr(lineage, "readable", all_unfinished)


@mutant("an empty page is taken for the end of its shard", 3)
def _(patch: Patch) -> None:
    right = reader._passed

    def ends_at_nothing(stream: Stream, at: Any, answer: Records, started: float) -> Iterator[Page]:
        if not answer.records:
            answer, at.expected = replace(answer, next=None), None
        return right(stream, at, answer, started)

    patch.setattr(reader, "_passed", ends_at_nothing)


@mutant("the records of a closed shard's last page are dropped", 3)
def _(patch: Patch) -> None:
    right = reader._passed

    def forgets_the_last(stream: Stream, at: Any, answer: Records, started: float) -> Iterator[Page]:
        if answer.next is None:
            answer, at.expected = replace(answer, records=()), None
        return right(stream, at, answer, started)

    patch.setattr(reader, "_passed", forgets_the_last)


@mutant("an expired iterator is replaced one record too far", 3)
def _(patch: Patch) -> None:
    right = reader._following

    def skips_one(at: Any, records: Sequence[Record]) -> Sequence[Record]:
        resumed = at.expected is not None and at.expected == at.last
        found = right(at, records)
        return found[1:] if resumed else found

    patch.setattr(reader, "_following", skips_one)


@mutant("a child's ordinals begin at nothing again", 4)
def _(patch: Patch) -> None:
    patch.setattr(backfill, "start", lambda state, known: state)


@mutant("only records that the hook keeps are counted", 4, FILTER)
def _(patch: Patch) -> None:
    right = passing.moved

    def kept_only(state: ShardState, pages: Sequence[Page], records: Sequence[Record]) -> ShardState:
        kept = len({r.key for r in records})
        return replace(right(state, pages, records), ordinal=state.ordinal + kept)

    patch.setattr(passing, "moved", kept_only)


@mutant("the target has no guard", 5, LONG_SCAN)
def _(patch: Patch) -> None:
    def whatever_comes(self: MemoryTarget, write: Write, *, keep: bool) -> bool:
        rows = self._database.rows[write.table]
        if isinstance(write, Delete):
            rows.pop(write.id, None)
        else:
            from replicator.testing.memory import body

            rows[write.id] = (write.version, body(write.body))
        return True

    patch.setattr(MemoryTarget, "_apply", whatever_comes)


@mutant("deletes leave no tombstones while the scan runs", 5, LONG_SCAN)
def _(patch: Patch) -> None:
    patch.setattr(backfill, "remembers_deletes", lambda _: False)


@mutant("positions are stored before the rows", 6)
def _(patch: Patch) -> None:
    def early(self: Unreliable, batch: Batch) -> Outcome:
        self.checkpoints.save(batch.saves)
        self._universe.may_die()
        return MemoryTarget.write(self, Batch(batch.parts, (), batch.tombstones))

    patch.setattr(Unreliable, "write", early)


@mutant("nothing fences off an earlier run", 6, seeds=600)
def _(patch: Patch) -> None:
    patch.setattr(MemoryCheckpoints, "check", lambda self, saves: None)


@mutant("an item that leaves the filter is skipped", 7, FILTER)
def _(patch: Patch) -> None:
    right = compaction.compact_latest

    def skips(changes: Iterable[tuple[Change, int]], filing: Filing, at: Circumstances) -> Compacted:
        found = right(changes, filing, at)
        found.writes = [w for w in found.writes if isinstance(w, Upsert) or w.weight]
        return found

    patch.setattr(passing, "compact_latest", skips)


@mutant("documents are deleted only when their item is removed", 7, REKEY)
def _(patch: Patch) -> None:
    _with_writes(patch, lambda run, writes: [w for w in writes if isinstance(w, Upsert) or run[-1].new is None])


@mutant("a poison change is skipped, and its item goes on", 8, POISON)
def _(patch: Patch) -> None:
    def forgets(found: Compacted, change: Change, weight: int, *_: Any, **__: Any) -> None:
        found.parked += weight

    patch.setattr(compaction, "_park", forgets)


@mutant("an item's later changes do not queue behind its parked one", 8, POISON_FAN, 600)
def _(patch: Patch) -> None:
    patch.setattr(compaction.ParkedItems, "queued", lambda self, text, epoch: False)


@mutant("a gap is logged and ignored", 9, TRIMMED)
def _(patch: Patch) -> None:
    def goes_on(self: Driver, found: GapFound) -> None:
        state = self.pipeline.ledger.shards.get(found.shard or "")
        if state is None:
            raise found
        self.pipeline._pending.append(("shard", found.shard or "", replace(state, ended=True)))

    patch.setattr(Driver, "_gap", goes_on)


@mutant("a rescan is not followed by a sweep", 9, TRIMMED)
def _(patch: Patch) -> None:
    patch.setattr(MemoryTarget, "sweep", lambda self, table, below, spare: 0)


@mutant("the sweep asks which items are gone, not which documents were confirmed", 9, Scenario(hooks.kept, trims=True))
def _(patch: Patch) -> None:
    right = MemoryTarget.sweep

    def absent_only(self: Any, table: Any, below: int, spare: Sequence[Any]) -> int:
        there = [(str(i["pk"]),) for i in self._universe.source.items("orders")]
        return right(self, table, below, [*spare, *there])

    patch.setattr(MemoryTarget, "sweep", absent_only)


@mutant("a batch keeps the first old and the last new image only", 12, FAN)
def _(patch: Patch) -> None:
    right = compaction.run_writes

    def ends_only(run: Sequence[Change], filing: Filing) -> list[Write]:
        return right([msgspec.structs.replace(run[-1], old=run[0].old)], filing)

    patch.setattr(compaction, "run_writes", ends_only)


@mutant("changes that are compacted away are not counted", 13)
def _(patch: Patch) -> None:
    right = Compacted.part

    def miscounts(self: Compacted, source: str) -> Any:
        part = right(self, source)
        return replace(part, counts=replace(part.counts, read=len(self.writes)))

    patch.setattr(Compacted, "part", miscounts)


@mutant("a lost request is taken for one that was never carried out", 5, INDEX, 1000)
def _(patch: Patch) -> None:
    patch.setattr(UnreliableIndex, "requests", _keeps_in_batches_only)


@mutant("tombstones are purged while lost requests may still be carried out", 5, LOSSY, 1000)
def _(patch: Patch) -> None:
    def at_once(self: Chores, epoch: int) -> bool:
        purge = partial(self.target.purge, below=version(epoch + 1, 0))
        return any([self._patiently(partial(purge, table)) for table in self.tables])

    patch.setattr(Chores, "_purge", at_once)


@mutant("what arrives behind a sweep stays", 9, RESYNCED, 1000)
def _(patch: Patch) -> None:
    right = Chores._after_doubt
    patch.setattr(Chores, "_after_doubt", lambda self, state: right(self, replace(state, resync=False)))


@mutant("what a killed run had sent is forgotten", 5, INDEX, 1000)
def _(patch: Patch) -> None:
    patch.setattr(Driver, "_begin_doubt", lambda self: None)


@mutant("positions are stored before the documents", 6, INDEX)
def _(patch: Patch) -> None:
    right = Delivery._written

    def early(self: Delivery, batch: Batch) -> Outcome:
        self._checkpoints.save(batch.saves)
        return right(self, Batch(batch.parts, (), batch.tombstones))

    patch.setattr(Delivery, "_written", early)


@mutant(
    "the positions of a batch are stored though some of it was refused",
    8,
    REFUSING,
)
def _(patch: Patch) -> None:
    right = Delivery._finish

    def whatever(self: Delivery, batch: Batch, outcome: Outcome) -> bool:
        return right(self, batch, Outcome((), outcome.stale))

    patch.setattr(Delivery, "_finish", whatever)


@mutant("a store takes its own lost save for another run's", 6, INDEX)
def _(patch: Patch) -> None:
    patch.setattr(MemoryCheckpoints, "saved_already", lambda self, saves: False)


@mutant("a run that was stopped for long does not ask whether it was replaced", 6, REPLACED, 1000)
def _(patch: Patch) -> None:
    patch.setattr(Delivery, "confirm", lambda self: None)


def _keeps_in_batches_only(self: MemoryIndex, batch: Batch) -> list[Request]:
    return [Request(write, batch.tombstones) for part in batch.parts for write in part.writes]


def _with_writes(patch: Patch, change: Callable[[Sequence[Change], list[Write]], list[Write]]) -> None:
    right = compaction.run_writes
    patch.setattr(compaction, "run_writes", lambda run, filing: change(run, right(run, filing)))


__all__ = ["MUTANTS", "Mutant"]

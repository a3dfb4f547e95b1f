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
from tests.simulation.scenario import RATES, Scenario
from tests.simulation.targets import Unreliable, UnreliableIndex

Patch = pytest.MonkeyPatch
Where = Callable[[Scenario], bool]


def anywhere(_: Scenario) -> bool:
    return True


def hooked(*names: str) -> Where:
    return lambda s: s.hook in names


def trimmed(s: Scenario) -> bool:
    return s.trims


def index(s: Scenario) -> bool:
    return s.index


def transacted(s: Scenario) -> bool:
    return not s.index


def refusing(s: Scenario) -> bool:
    return s.index and s.refuses


Shape = Callable[[Scenario], Scenario]


def as_drawn(drawn: Scenario) -> Scenario:
    return drawn


def long_scan(drawn: Scenario) -> Scenario:
    """Many items, a page each, beside many deletes; answers are long on their way."""
    rates = {"write": 1.0, "die": 0.003}
    return replace(drawn, index=False, keys=25, steps=150, items_a_page=1, records_a_page=7, slow=0.3, rates=rates)


def days(drawn: Scenario) -> Scenario:
    """Time passes in jumps of hours, shards come and go, and runs end."""
    rates = {**RATES, "jump": 0.04, "split": 0.06, "roll": 0.06, "trim": 0.0, "die": 0.05}
    return replace(drawn, trims=True, steps=200, records_a_page=3, rates=rates)


def lossy_resyncs(drawn: Scenario) -> Scenario:
    """Requests are lost, runs die, and people resync."""
    rates = {**RATES, "write": 1.0, "lost": 0.1, "late": 0.1, "die": 0.04, "resync": 0.05}
    return replace(drawn, index=True, keys=15, steps=60, rates=rates)


def lossy(drawn: Scenario) -> Scenario:
    """Many requests are lost, of one run that nothing else disturbs for long, to an engine that forgets."""
    rates = {"write": 0.8, "lost": 0.15, "die": 0.003, "pause": 0.004, "unanswered": 0.02, "restart": 0.05}
    return replace(drawn, index=True, forgetful=True, keys=12, steps=180, pace=0.3, rates=rates)


def replaced(drawn: Scenario) -> Scenario:
    """Runs are stopped for minutes, and others take over meanwhile."""
    rates = {"write": 0.8, "takeover": 0.03, "pause": 0.15, "lost": 0.02, "unanswered": 0.02, "restart": 0.03}
    return replace(drawn, index=True, forgetful=True, steps=180, rates=rates)


@dataclass(frozen=True)
class Mutant:
    """``where``: the only scenarios that can show it. ``seeds``: how many it may take at most, all counted.

    ``shape``: for what shows too rarely otherwise, scenarios in which it shows more often.
    """

    name: str
    rule: int
    apply: Callable[[Patch], None]
    where: Where = anywhere
    seeds: int = 2000
    shape: Shape = as_drawn


MUTANTS: list[Mutant] = []


def mutant(
    name: str, rule: int, where: Where = anywhere, seeds: int = 2000, shape: Shape = as_drawn
) -> Callable[[Any], Any]:
    def register(apply: Callable[[Patch], None]) -> Callable[[Patch], None]:
        MUTANTS.append(Mutant(name, rule, apply, where, seeds, shape))
        return apply

    return register


@mutant("positions are where the stream is when a reader opens", 1)
def _(patch: Patch) -> None:
    right = reader._place

    def latest(at: Any) -> dict[str, Any]:
        return {"ShardIteratorType": "LATEST"} if at.untouched and not at.state.whole else right(at)

    patch.setattr(reader, "_place", latest)


@mutant("the resume probe is skipped", 2, trimmed, 10_000)
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


@mutant("a late shard is opened at what is left of it, however old", 2, shape=days)
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


@mutant("only records that the hook keeps are counted", 4, hooked("kept"))
def _(patch: Patch) -> None:
    right = passing.moved

    def kept_only(state: ShardState, pages: Sequence[Page], records: Sequence[Record]) -> ShardState:
        kept = len({r.key for r in records})
        return replace(right(state, pages, records), ordinal=state.ordinal + kept)

    patch.setattr(passing, "moved", kept_only)


@mutant("the target has no guard", 5)
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


@mutant("deletes leave no tombstones while the scan runs", 5, shape=long_scan)
def _(patch: Patch) -> None:
    patch.setattr(backfill, "remembers_deletes", lambda _: False)


@mutant("positions are stored before the rows", 6, transacted)
def _(patch: Patch) -> None:
    def early(self: Unreliable, batch: Batch) -> Outcome:
        self.checkpoints.save(batch.saves)
        self._universe.effect("between positions and rows")
        return MemoryTarget.write(self, Batch(batch.parts, (), batch.tombstones))

    patch.setattr(Unreliable, "write", early)


@mutant("nothing fences off an earlier run", 6)
def _(patch: Patch) -> None:
    patch.setattr(MemoryCheckpoints, "check", lambda self, saves: None)


@mutant("an item that leaves the filter is skipped", 7, hooked("kept"))
def _(patch: Patch) -> None:
    right = compaction.compact_latest

    def skips(changes: Iterable[tuple[Change, int]], filing: Filing, at: Circumstances) -> Compacted:
        found = right(changes, filing, at)
        found.writes = [w for w in found.writes if isinstance(w, Upsert) or w.weight]
        return found

    patch.setattr(passing, "compact_latest", skips)


@mutant("documents are deleted only when their item is removed", 7, hooked("rekeyed"))
def _(patch: Patch) -> None:
    _with_writes(patch, lambda run, writes: [w for w in writes if isinstance(w, Upsert) or run[-1].new is None])


@mutant("a poison change is skipped, and its item goes on", 8, hooked("poisoned"))
def _(patch: Patch) -> None:
    def forgets(found: Compacted, change: Change, weight: int, *_: Any, **__: Any) -> None:
        found.parked += weight

    patch.setattr(compaction, "_park", forgets)


@mutant("an item's later changes do not queue behind its parked one", 8, hooked("poisoned fan"))
def _(patch: Patch) -> None:
    patch.setattr(compaction.ParkedItems, "queued", lambda self, text, epoch: False)


@mutant("a gap is logged and ignored", 9, trimmed)
def _(patch: Patch) -> None:
    def goes_on(self: Driver, found: GapFound) -> None:
        state = self.pipeline.ledger.shards.get(found.shard or "")
        if state is None:
            raise found
        self.pipeline._pending.append(("shard", found.shard or "", replace(state, ended=True)))

    patch.setattr(Driver, "_gap", goes_on)


@mutant("a rescan is not followed by a sweep", 9, trimmed)
def _(patch: Patch) -> None:
    patch.setattr(MemoryTarget, "sweep", lambda self, table, below, spare: 0)


@mutant("the sweep asks which items are gone, not which documents were confirmed", 9, hooked("kept"), shape=days)
def _(patch: Patch) -> None:
    right = MemoryTarget.sweep

    def absent_only(self: Any, table: Any, below: int, spare: Sequence[Any]) -> int:
        there = [(str(i["pk"]),) for i in self._universe.source.items("orders")]
        return right(self, table, below, [*spare, *there])

    patch.setattr(MemoryTarget, "sweep", absent_only)


@mutant("a batch keeps the first old and the last new image only", 12, hooked("fanned"))
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


@mutant("a lost request is taken for one that was never carried out", 5, index, 10_000)
def _(patch: Patch) -> None:
    patch.setattr(UnreliableIndex, "requests", _keeps_in_batches_only)


@mutant("tombstones are purged while lost requests may still be carried out", 5, shape=lossy)
def _(patch: Patch) -> None:
    def at_once(self: Chores, epoch: int) -> bool:
        purge = partial(self.target.purge, below=version(epoch + 1, 0))
        return any([self._patiently(partial(purge, table)) for table in self.tables])

    patch.setattr(Chores, "_purge", at_once)


@mutant("what arrives behind a sweep stays", 9, shape=lossy_resyncs)
def _(patch: Patch) -> None:
    right = Chores._after_doubt
    patch.setattr(Chores, "_after_doubt", lambda self, state: right(self, replace(state, resync=False)))


@mutant("what a killed run had sent is forgotten", 5, index, 10_000)
def _(patch: Patch) -> None:
    patch.setattr(Driver, "_begin_doubt", lambda self: None)


@mutant("positions are stored before the documents", 6, index)
def _(patch: Patch) -> None:
    right = Delivery._written

    def early(self: Delivery, batch: Batch) -> Outcome:
        self._checkpoints.save(batch.saves)
        return right(self, Batch(batch.parts, (), batch.tombstones))

    patch.setattr(Delivery, "_written", early)


@mutant(
    "the positions of a batch are stored though some of it was refused",
    8,
    refusing,
)
def _(patch: Patch) -> None:
    right = Delivery._finish

    def whatever(self: Delivery, batch: Batch, outcome: Outcome) -> bool:
        return right(self, batch, Outcome((), outcome.stale))

    patch.setattr(Delivery, "_finish", whatever)


@mutant("a store takes its own lost save for another run's", 6, index)
def _(patch: Patch) -> None:
    patch.setattr(MemoryCheckpoints, "saved_already", lambda self, saves: False)


@mutant("a run that was stopped for long does not ask whether it was replaced", 6, shape=replaced)
def _(patch: Patch) -> None:
    patch.setattr(Delivery, "confirm", lambda self: None)


def _keeps_in_batches_only(self: MemoryIndex, batch: Batch) -> list[Request]:
    return [Request(write, batch.tombstones) for part in batch.parts for write in part.writes]


def _with_writes(patch: Patch, change: Callable[[Sequence[Change], list[Write]], list[Write]]) -> None:
    right = compaction.run_writes
    patch.setattr(compaction, "run_writes", lambda run, filing: change(run, right(run, filing)))


__all__ = ["MUTANTS", "Mutant"]

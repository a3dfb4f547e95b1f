"""A verification pass on a virtual clock: it is resumed where it was, and what it found is never lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from replicator.batch import DocumentId
from replicator.checkpoints.contract import NO_COUNTS
from replicator.config.settings import load
from replicator.engine.context import Environment
from replicator.engine.retry import Stopped
from replicator.errors import ConfigError, Fenced, TransientError
from replicator.hooks.hook import Hook
from replicator.marks import Marks, mark_of
from replicator.operations import verify as operation
from replicator.operations.cutover import standing
from replicator.operations.parked import void_verified
from replicator.operations.pass_record import Part, PassRecord, Voided
from replicator.operations.verify import Paused, Request, Source, Watch, looked_up_at_once, opened
from replicator.pipeline.coordination import COORDINATOR
from replicator.pipeline.progress import passes_of
from replicator.state import (
    FULL,
    SAMPLE,
    UNFINISHED,
    Entry,
    Heartbeat,
    Repair,
    Save,
    ShardState,
    Slot,
    Verified,
    decode,
    encode,
)
from replicator.target.contract import Table
from replicator.target.verification import CursorExpired, Walked
from replicator.testing import memory
from replicator.testing.memory import MemoryCheckpoints, MemoryDatabase, MemoryTarget
from replicator.verification import verifier
from replicator.verification.compared_ids import ComparedIds
from replicator.verification.differences import Positions
from replicator.verification.verifier import Verifier
from tests.faults.world import TABLE, World
from tests.faults.world import faults as faults
from tests.operations.passes import Passes, Report
from tests.operations.passes import forgetful as forgetful
from tests.operations.passes import passes as passes
from tests.operations.passes import patched as patched


class WithoutWorker(Passes):
    """The coordinator is up and has noticed a repair; the worker that reads the shards is gone."""

    def _beat(self) -> None:
        clock, entries = self.world.clock, self.world.database.entries
        announced = entries.get(("repair", ""))
        repair = None if announced is None else decode("repair", "", announced[1])
        token = repair.token if isinstance(repair, Repair) else ""
        entries["pulse", ""] = (1, encode(Heartbeat(clock(), "live", repair=token)))
        clock.plan(1.0, self._beat)


SO_FAR = Verified(1.0, 2.0, 1024, "full", 4)


def test_a_stopped_pass_goes_on_behind_what_it_had_walked_through(passes: Passes) -> None:
    passes.make(Request(read_units=5), seconds=80)
    left = passes.recorded[UNFINISHED[FULL]]
    assert (left.items, left.ended, 0.5 < left.done < 0.95) == (450, None, True)
    before = passes.requested_keys()
    report = Report()
    tally = passes.make(Request(read_units=5, resume=True), report)
    after = passes.requested_keys()[len(before) :]
    assert 100 < len(before) < 450
    assert len(after) <= 450 - len(before) // 100 * 100, "at most one piece of 100 is read again"
    assert set(before) | set(after) == {f"k{n}" for n in range(450)}
    assert (tally.exit_code, tally.items, tally.documents) == (0, 450, 450)
    assert report.shares == sorted(report.shares)
    assert passes.recorded[FULL].ended is not None
    assert UNFINISHED[FULL] not in passes.recorded


def test_a_pass_that_is_stopped_again_and_again_ends_however_few_read_units_it_has(
    passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time after a portion or two of a piece that takes a minute and a half."""
    monkeypatch.setattr(memory, "_PIECE", 10_000)
    passes.make(Request(read_units=5), seconds=60)
    for _ in range(20):
        if UNFINISHED[FULL] not in passes.recorded:
            break
        passes.make(Request(read_units=5, resume=True), seconds=15)
    assert (passes.recorded[FULL].items, passes.recorded[FULL].documents) == (450, 450)
    assert set(passes.requested_keys()) == {f"k{n}" for n in range(450)}


def test_no_more_candidates_are_kept_than_the_limit_and_those_of_one_portion(
    faults: World, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of what the scan reads differs, and half of what the walk reads is extra."""
    for module, name, value in ((verifier, "MOST_PENDING", 60), (operation, "ITEMS", 20), (operation, "KEYS", 20)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(memory, "_PIECE", 10_000)
    rows = faults.database.rows[TABLE]
    rows |= {(f"x{n}",): rows["k0",] for n in range(450)}
    rows |= {(f"k{n}",): (rows["k0",][0], b'{"id": "other"}') for n in range(1, 450)}
    most = 0

    def added(self: Verifier, *arguments: Any) -> Any:
        nonlocal most
        yield from add(self, *arguments)
        most = max(most, self.pending)

    add = Verifier._add
    monkeypatch.setattr(Verifier, "_add", added)
    tally = passes.make(Request())
    assert (tally.different, tally.extra) == (449, 450)
    assert 60 <= most < 60 + 20


def test_a_stopped_pass_goes_on_within_a_segment(faults: World, patched: None) -> None:
    faults.fill(50)
    faults.put(*(f"big{n}" for n in range(40)), text="x" * 150_000)
    passes = Passes(faults)
    passes.make(Request(read_units=20), seconds=30)
    left = passes.recorded[UNFINISHED[FULL]]
    assert any(name.startswith("segment:") for name in left.cursors), left
    reads = len(faults.client.times("Scan"))
    tally = passes.make(Request(resume=True))
    assert tally.items == tally.documents == passes.recorded[FULL].items == 90
    with_cursor = [request for _, name, request in faults.client.asked if name == "Scan"][reads:]
    assert "ExclusiveStartKey" in with_cursor[0]


class Failing(MemoryTarget):
    """Cannot respond to the call of ``compare`` with this number, once."""

    calls, fails_at = 0, -1

    def compare(self, table: Table, expected: Sequence[Any]) -> Sequence[Any]:
        Failing.calls += 1
        if Failing.calls == Failing.fails_at:
            raise TransientError("the target is restarting")
        return super().compare(table, expected)


def test_differences_that_were_confirmed_before_a_failure_are_reported(
    faults: World, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.target = lambda: Failing(faults.database)
    for n in range(300):
        version, _ = faults.database.rows[TABLE][(f"k{n}",)]
        faults.database.rows[TABLE][(f"k{n}",)] = (version, b'{"id": "other"}')
    first = passes.make(Request())
    calls = Failing.calls
    monkeypatch.setattr(Failing, "calls", 0)
    monkeypatch.setattr(Failing, "fails_at", calls)  # the last item of the last piece is looked at again
    report = Report()
    assert passes.make(Request(), report).different == first.different == 300
    assert len({r.finding.id for r in report.results}) == 300


def test_the_last_result_is_kept_while_the_next_pass_is_in_progress(passes: Passes) -> None:
    passes.make(Request())
    result = passes.recorded[FULL]
    passes.make(Request(read_units=5), seconds=30)
    assert passes.recorded[FULL] == result
    assert passes.recorded[UNFINISHED[FULL]].started > result.started


def test_a_pass_that_another_one_takes_over_ends(passes: Passes) -> None:
    begun: list[float] = []

    def another() -> None:
        if not begun:
            begun.append(passes.world.clock())
            PassRecord(MemoryCheckpoints(passes.world.database), FULL).save(replace(SO_FAR, started=9.0))

    with pytest.raises(Fenced, match="another `replicator verify` of this pipeline has taken over"):
        passes.make(Request(read_units=5), Report(another))
    assert passes.recorded[UNFINISHED[FULL]].started == 9.0


def test_a_pass_during_which_changes_were_discarded_says_so_and_is_not_recorded(passes: Passes) -> None:
    class Told(Watch):
        told = 0

        def voided(self) -> None:
            self.told += 1

    watch = Told()
    void = lambda: void_verified(MemoryCheckpoints(passes.world.database))  # noqa: E731
    assert passes.make(Request(read_units=5), Report(void), watch=watch).items == 450
    assert (watch.told, passes.recorded) == (1, {})


def test_a_pass_that_must_not_go_on_records_what_it_did(passes: Passes) -> None:
    class Impatient(Watch):
        def looked(self, entries: Sequence[Entry], current: Positions) -> None:
            if passes.world.clock() > begun + 60:
                raise Paused

    begun = passes.world.clock()
    with pytest.raises(Paused):
        passes.make(Request(read_units=5), watch=Impatient())
    assert passes.recorded[UNFINISHED[FULL]].updated == passes.world.clock()


def test_an_interrupted_pass_counts_as_in_progress_again_once_it_is_resumed(passes: Passes) -> None:
    world = passes.world

    def in_progress() -> bool:
        claimed = MemoryCheckpoints(world.database).read()
        return standing(claimed, world.clock()).progress.verifying is not None

    seen: list[bool] = []
    passes.make(Request(read_units=5), Report(lambda: seen.append(in_progress())), seconds=60)
    assert (set(seen), in_progress()) == ({True}, False)
    seen.clear()
    passes.make(Request(read_units=5, resume=True), Report(lambda: seen.append(in_progress())))
    assert (set(seen), in_progress()) == ({True}, False)


def test_a_stopped_pass_does_not_read_what_it_has_no_units_for(passes: Passes) -> None:
    world = passes.world
    world.stop.until = world.clock()
    environment = Environment(world.stop, lambda _: None, monotonic=world.clock)  # type: ignore[arg-type]
    with opened(load(world.folder / "orders.yaml"), None) as both:
        source = Source(both, 1, environment)
        assert len(source.read([("k1",)])) == 1
        with pytest.raises(Stopped):
            source.read([("k2",)])
        source.close()
    assert passes.requested_keys() == ["k1"]


def test_as_many_items_are_looked_up_at_once_as_fit_in_memory_and_can_be_read_in_a_few_seconds() -> None:
    hook, largest = Hook("hook", dict, "", declared=False), 400 << 10
    assert [looked_up_at_once(hook, units) * largest <= 64 << 20 for units in (None, 50, 10_000)] == [True] * 3
    assert [looked_up_at_once(hook, units) for units in (0.01, 5)] == [1, 50]
    assert looked_up_at_once(None, None) > looked_up_at_once(None, 50) == 500


def test_items_are_compared_as_soon_as_they_are_read(passes: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    """An item that changes often would never be found equal if a wait for read units came in between."""
    compared: list[float] = []
    real = Verifier.walked

    def walked(self: Verifier, name: str, ids: Sequence[DocumentId], origin: str) -> Any:
        yield from real(self, name, ids, origin)
        compared.append(passes.world.clock())

    monkeypatch.setattr(Verifier, "walked", walked)
    passes.make(Request(read_units=5))
    assert compared == passes.world.client.times("BatchGetItem")


def test_items_that_must_be_looked_up_are_looked_up_together(
    faults: World, patched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 200 documents in two pieces, all but two of the first one are known to be compared."""
    faults.fill(200)
    add = ComparedIds.add

    def added(self: ComparedIds, table: str, ids: Sequence[DocumentId]) -> None:
        add(self, table, [id for id in ids if id not in {("k1",), ("k18",)}])

    monkeypatch.setattr(operation, "KEYS", 20)
    monkeypatch.setattr(ComparedIds, "add", added)
    passes = Passes(faults)
    assert passes.make(Request()).exit_code == 0
    assert sorted(passes.requested_keys()) == ["k1", "k18"]
    assert len(faults.client.times("BatchGetItem")) == 1


def test_a_document_is_extra_whose_item_is_a_tombstone_of_the_opposite_pipeline(faults: World, passes: Passes) -> None:
    class Looping(MemoryTarget):
        marks = Marks("version", "deleted", "mark")

    faults.target = lambda: Looping(faults.database)
    faults.put("k7", version=1 << 58, deleted=True, mark=mark_of(("k7",)))
    report = Report()
    assert passes.make(Request(), report).extra == 1
    assert [result.finding.id for result in report.results] == [("k7",)]
    (wanted, *_) = [
        request["RequestItems"][TABLE] for _, name, request in faults.client.asked if "RequestItems" in request
    ]
    assert set(wanted["ExpressionAttributeNames"].values()) == {"id", "deleted"}


def test_a_walk_whose_cursor_has_expired_starts_over(
    faults: World, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(MemoryTarget):
        def walk(self, table: Table, cursor: str | None, within: DocumentId = ()) -> Walked:
            if cursor is not None and not expired:
                expired.append(cursor)
                raise CursorExpired
            return super().walk(table, cursor, within)

    expired: list[str] = []
    faults.target = lambda: Forgetful(faults.database)
    assert passes.make(Request()).exit_code == 0
    assert len(passes.requested_keys()) == 550


@pytest.mark.parametrize("lost", [1, 2])
def test_a_lost_response_to_a_save_does_not_end_the_pass(lost: int) -> None:
    class Losing(MemoryCheckpoints):
        saves = 0

        def save(self, saves: Sequence[Save], counts: Any = NO_COUNTS) -> None:
            super().save(saves, counts)
            Losing.saves += 1
            if Losing.saves == lost:
                raise TransientError("no response")

    record = PassRecord(Losing(MemoryDatabase()), FULL)
    later = replace(SO_FAR, updated=3.0)
    acts: list[Callable[[], None]] = [partial(record.save, SO_FAR), partial(record.save, later)]
    acts.append(partial(record.end, later))
    for act in acts:
        try:
            act()
        except TransientError:
            act()
    assert passes_of(record.checkpoints.read().entries) == {FULL: later}


def test_a_lost_response_to_the_end_does_not_make_it_void() -> None:
    class Losing(MemoryCheckpoints):
        def save(self, saves: Sequence[Save], counts: Any = NO_COUNTS) -> None:
            super().save(saves, counts)
            if len(saves) > 1:
                raise TransientError("no response")

    record = PassRecord(Losing(MemoryDatabase()), FULL)
    record.save(SO_FAR)
    with pytest.raises(TransientError):
        record.end(replace(SO_FAR, ended=5.0))
    record.end(replace(SO_FAR, ended=5.0))
    assert [v.ended for v in passes_of(record.checkpoints.read().entries).values()] == [5.0]


def test_passes_of_different_kinds_do_not_see_each_other() -> None:
    checkpoints = MemoryCheckpoints(MemoryDatabase())
    records = {id: PassRecord(checkpoints, id) for id in UNFINISHED}
    for n, record in enumerate(records.values()):
        record.save(replace(SO_FAR, started=float(n)))
    records[SAMPLE].end(replace(SO_FAR, ended=5.0))
    records[FULL].save(SO_FAR)
    assert set(passes_of(checkpoints.read().entries)) == {"pass", "sample", "run pass"}


def test_a_record_that_was_removed_is_void_also_while_it_is_saved() -> None:
    class Racing(MemoryCheckpoints):
        def save(self, saves: Sequence[Save], counts: Any = NO_COUNTS) -> None:
            if len(seen) == 1:
                self._database.entries.clear()
            seen.append(saves)
            super().save(saves, counts)

    seen: list[Any] = []
    record = PassRecord(Racing(MemoryDatabase()), FULL)
    record.save(SO_FAR)
    with pytest.raises(Voided):
        record.save(replace(SO_FAR, updated=3.0))


def test_a_piece_is_done_when_those_before_it_are() -> None:
    part = Part("table:t")
    origins = []
    for n in range(3):
        origins.append(part.next_origin)
        part.read(None if n == 2 else f"c{n}", items=10)
    assert part.take_done({origins[1]})[0].items == 10
    assert (part.cursor, part.done) == ("c0", False)
    assert len(part.take_done(())) == 2
    assert part.done


def test_a_pass_of_another_epoch_is_not_resumed(passes: Passes) -> None:
    PassRecord(MemoryCheckpoints(passes.world.database), FULL).save(replace(SO_FAR, epoch=3))
    with pytest.raises(ConfigError, match="--resume: there is no unfinished pass of this epoch"):
        passes.make(Request(resume=True))


@pytest.mark.parametrize("repair", [False, True])
def test_without_the_worker_that_reads_its_shards_a_difference_is_unconfirmed_after_two_minutes(
    faults: World, patched: None, repair: bool
) -> None:
    faults.fill(20)
    passes = WithoutWorker(faults)
    entries = faults.database.entries
    run = next(e.revision for e in MemoryCheckpoints(faults.database).read().entries if (e.kind, e.id) == ("owner", ""))
    entries["slot", COORDINATOR] = (1, encode(Slot(0, "", lingers=None, begun=run)))
    for place in [place for place in entries if place[0] == "shard"]:
        state = decode(*place, entries[place][1])
        assert isinstance(state, ShardState)
        entries[place] = (entries[place][0], encode(replace(state, slot="1")))
    entries["pulse", "1"] = (1, encode(Heartbeat(faults.clock() - 3600, "live")))
    rows = faults.database.rows[TABLE]
    rows["k1",] = (rows["k1",][0], b'{"id": "other"}')
    report, begun = Report(), faults.clock()
    passes.make(Request(repair=repair), report, seconds=3600)
    (result,) = report.results
    assert (result.outcome, result.reason) == ("unconfirmed", "the run makes no progress")
    assert faults.clock() - begun < 180

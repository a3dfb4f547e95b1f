"""The in-doubt window across runs, for targets without transactions."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any, cast

import pytest

from connectors.dynamodb.cleanup import Page, ScanCleanup
from connectors.dynamodb.writer import Writer
from replicator.aws.client import Client
from replicator.batch import Batch, Delete, DocumentId, Part, Upsert
from replicator.change import Listing
from replicator.engine.cleanup import Cleanup
from replicator.engine.delivery import Delivery
from replicator.engine.retry import RetryPolicy
from replicator.errors import Fenced, SweepRefused
from replicator.hooks.hook import DocumentMapping
from replicator.pipeline import stages
from replicator.pipeline.pipeline import Pipeline
from replicator.state import PipelineState, Retried, Save, Spared, decode, encode
from replicator.target.contract import Table
from replicator.target.in_doubt import InDoubtWindow
from replicator.testing.contract.kit import PK, exhaust, owner
from replicator.testing.memory import MemoryCheckpoints, MemoryDatabase
from replicator.testing.memory_index import MemoryIndex
from replicator.version import FIRST_EPOCH, version
from tests.simulation import runs
from tests.simulation.scenario import Scenario
from tests.simulation.world import Universe

LONGEST = 360.0  # seconds: what the engines' own limits for a request come to, and 45 until it is sent, rounded up


@pytest.fixture
def universe() -> Universe:
    """A pipeline after one run, without random faults."""
    universe = Universe(0, Scenario(index=True, forgetful=True, rates={}, steps=1_000_000, pace=2.0, keys=3))
    universe.write("a", removes=False)
    universe.write("b", removes=False)
    universe.clock.now += 1.0
    runs.go(universe, 5000)
    return universe


def remove_a(universe: Universe) -> None:
    universe.write("a", removes=True)
    universe.clock.now += 1.0


def tombstones(universe: Universe) -> set[DocumentId]:
    return set(universe.database.tombstones[universe.TABLE])


def state(universe: Universe) -> PipelineState:
    found = decode("pipeline", "", universe.database.entries["pipeline", ""][1])
    assert isinstance(found, PipelineState)
    return found


def test_a_clean_stop_leaves_no_in_doubt_window(universe: Universe) -> None:
    remove_a(universe)
    runs.go(universe, 5000)
    assert state(universe).lingers is None
    assert tombstones(universe) == set()
    assert ("a",) not in universe.database.rows[universe.TABLE]


def test_a_killed_run_leaves_the_longest_window(universe: Universe) -> None:
    runs.go(universe, 20, until=None)  # killed
    assert state(universe).lingers == LONGEST
    remove_a(universe)
    runs.go(universe, 5000)
    assert tombstones(universe) == {("a",)}


def test_checkpoints_of_earlier_versions_leave_the_longest_window() -> None:
    assert PipelineState(FIRST_EPOCH, "s", "t", "i", stages.FOLLOWING).lingers == LONGEST


def test_a_window_continues_over_short_runs_until_its_tombstones_are_purged(universe: Universe) -> None:
    runs.go(universe, 20, until=None)  # killed
    remove_a(universe)
    left = []
    while (lingers := state(universe).lingers) is not None:
        left.append(lingers)
        before = universe.clock()
        runs.go(universe, 5000)
        assert universe.clock() - before < LONGEST, "no run waits for the end of a doubt"
        universe.clock.now += LONGEST  # while no run is there, what was sent may be held up too
    assert len(left) > 2
    assert left == sorted(left, reverse=True)
    assert tombstones(universe) == set()


def test_a_retry_command_opens_the_next_runs_window(universe: Universe) -> None:
    """Its write may have been sent twice and have left tombstones."""
    notes_retry(universe.database, FIRST_EPOCH)
    remove_a(universe)
    runs.go(universe, 5000)
    assert tombstones(universe) == {("a",)}
    assert state(universe).retried == 1


def test_reopening_a_window_never_shortens_it() -> None:
    time = [0.0]
    in_doubt = InDoubtWindow(lambda: time[0])
    in_doubt.begin()
    in_doubt.begin(5.0)
    assert in_doubt.left == LONGEST
    time[0] = LONGEST
    assert in_doubt.left == 0.0
    assert in_doubt.over
    in_doubt.settle()
    assert in_doubt.left is None
    assert not in_doubt.over


class Slow(MemoryIndex):
    """Each search for tombstones takes three seconds and is not finished."""

    def __init__(self, database: MemoryDatabase, time: list[float]) -> None:
        super().__init__(database, now=lambda: time[0])
        self._time = time
        self.asked: list[str] = []
        self.left = {"few": 2, "many": 5}

    def purge(self, table: Table, below: int, spare: Sequence[DocumentId] = ()) -> int:
        self._time[0] += 3.0
        self.asked.append(table.name)
        self.left[table.name] -= 1
        return max(0, self.left[table.name])


def test_a_tombstone_is_kept_for_resent_writes_regardless_of_its_age() -> None:
    """A delete was stored but not its position: the item's changes are sent again, and one response is lost."""
    time = [0.0]
    target = MemoryIndex(MemoryDatabase(), now=lambda: time[0])
    target.open([Table("few", PK)], FIRST_EPOCH)
    found = cleanup(target, [Table("few", PK)], lambda: time[0])
    found.pipeline.change(PipelineState(FIRST_EPOCH, "s", "t", "i", stages.FOLLOWING))
    found.delivery.flush()
    item, of = ("a",), version(FIRST_EPOCH, 0)
    older, newer = Upsert("few", item, {}, of + 5, item), Delete("few", item, of + 6, item)
    target.write(Batch([Part("shard:s", [newer])], tombstones=True))
    target.in_doubt.begin()
    time[0] += LONGEST - 10
    target.in_doubt.begin()
    time[0] += 20  # whatever was on its way when the tombstone was stored has arrived
    target.in_doubt.begin()  # the older change is sent again, and carried out late
    target.write(Batch([Part("shard:s", [older])]))
    target.write(Batch([Part("shard:s", [newer])]))
    time[0] += LONGEST - 5
    while found.do(idle=True):
        pass
    target.write(Batch([Part("shard:s", [older])]))
    assert target._database.documents("few") == {}
    time[0] += 10
    while found.do(idle=True):
        pass
    assert target._database.tombstones["few"] == {}


def test_short_runs_that_each_lose_a_response_sweep_once_nothing_of_an_earlier_epoch_can_arrive(
    universe: Universe,
) -> None:
    universe.order_resync()
    runs.go(universe, 5000)
    assert state(universe).resync
    lasted = []
    while (left := state(universe).lingers_earlier) is not None:
        lasted.append(left)
        _leaks(universe)
    assert len(lasted) > 2
    assert lasted == sorted(lasted, reverse=True)
    _leaks(universe)
    assert state(universe).lingers_earlier is None, "it is not swept again"


def _leaks(universe: Universe) -> None:
    """A run that loses a response and stops cleanly."""
    universe.armed["leak"] = 1
    universe.write("b", removes=False)
    universe.clock.now += 1.0
    runs.go(universe, 5000)
    lingers = state(universe).lingers
    assert lingers is not None
    assert lingers > LONGEST / 2


@pytest.mark.parametrize("epoch", [None, FIRST_EPOCH, FIRST_EPOCH + 1])
def test_a_retry_puts_the_sweep_off_where_it_may_have_sent_something_of_an_earlier_epoch(
    universe: Universe, epoch: int | None
) -> None:
    """Notes of earlier versions do not say of which."""
    universe.order_resync()
    runs.go(universe, 5000)
    while state(universe).lingers_earlier is not None:
        runs.go(universe, 5000)
    notes_retry(universe.database, epoch)
    runs.go(universe, 5000)
    assert (state(universe).lingers_earlier is None) == (epoch == FIRST_EPOCH + 1)
    assert state(universe).lingers is not None, "it may have left tombstones"


def notes_retry(database: MemoryDatabase, epoch: int | None) -> None:
    """What every retry notes; of an earlier version of replicator where ``epoch`` is None."""
    note = Retried(version(epoch or FIRST_EPOCH, 7))
    MemoryCheckpoints(database).save([Save("retried", str(epoch or ""), None, encode(note))])


class Swept(Slow):
    """Sweeps in several pieces."""

    def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        self.asked.append(f"sweep {table.name}")
        return 0


def test_the_sweep_after_a_resync_comes_however_often_this_run_loses_responses() -> None:
    """Its writes are of its own epoch; an earlier run's write was applied behind the first sweep."""
    time = [0.0]
    target = MemoryIndex(MemoryDatabase(), now=lambda: time[0])
    target.open([Table("few", PK)], FIRST_EPOCH + 1)
    found = cleanup(target, [Table("few", PK)], lambda: time[0])
    found.pipeline.change(PipelineState(FIRST_EPOCH + 1, "s", "t", "i", stages.FOLLOWING, resync=True))
    found.delivery.flush()
    target.in_doubt.begin(earlier=True)
    late = Upsert("few", ("a",), {}, version(FIRST_EPOCH, 5), ("a",))
    target.write(Batch([Part("shard:s", [late])]))
    while time[0] < LONGEST:
        assert not found.do(idle=True)
        time[0] += LONGEST / 4
        target.in_doubt.begin()
    while found.do(idle=True):
        pass
    assert target._database.documents("few") == {}
    assert not target.in_doubt.owes_sweep

    target.in_doubt.begin(earlier=True)
    time[0] += LONGEST
    assert target.in_doubt.owes_sweep


def test_what_is_owed_after_parking_is_swept_once_however_long_the_purge_takes() -> None:
    time = [0.0]
    target = Swept(MemoryDatabase(), time)
    found = cleanup(target, [Table("few", PK), Table("many", PK)], lambda: time[0])
    found.pipeline.view.put("spared", "x", Spared(FIRST_EPOCH))
    assert found.pipeline.owes_sweep
    while not found.pipeline._pending:  # the note that nothing is owed any more
        assert found.do(idle=True)
    assert target.asked == ["sweep few", "sweep many"] + ["few"] * 2 + ["many"] * 5


def holding(needs: Mapping[str, str]) -> tuple[MemoryDatabase, Cleanup, list[str]]:
    """A sweep of tables with one old document each, none of which can go while the table that it ``needs`` has its own.
    The list tells which tables were asked."""
    database, asked = MemoryDatabase(), list[str]()
    database.keeps = lambda table, id: f"{needs[table]} refers to it" if database.rows.get(needs[table]) else None

    class AccessProfile(MemoryIndex):
        def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
            asked.append(table.name)
            return super().sweep(table, below, spare)

    target = AccessProfile(database)
    tables = [Table(name, PK) for name in needs]
    target.open(tables, FIRST_EPOCH)
    target.write(Batch([Part("", [Upsert(name, ("a",), {}, version(FIRST_EPOCH, 5), ("a",)) for name in needs])]))
    found = cleanup(target, tables, lambda: 0.0)
    state = PipelineState(FIRST_EPOCH + 1, "s", "t", "i", stages.SWEEPING, resync=True)
    found.pipeline.change(state)
    found.delivery.flush()
    return database, found, asked


def test_a_sweep_goes_through_the_other_tables_before_it_asks_again_for_what_was_refused() -> None:
    """Documents blocked by another table are deleted once that table's are, whatever the order of tables."""
    database, found, asked = holding({"orders": "lines", "lines": "parts", "parts": ""})
    while any(database.rows.values()):
        assert found.do(idle=True)
    assert asked == ["orders", "lines", "parts", "parts", "orders", "lines", "lines", "orders"]


def test_documents_that_every_table_refuses_to_delete_end_the_sweep_with_all_reasons() -> None:
    database, found, asked = holding({"orders": "lines", "free": "", "lines": "orders"})
    with pytest.raises(SweepRefused) as refused:
        exhaust(lambda: int(found.do(idle=True)))
    assert list(refused.value.problems) == [
        "orders: 1 documents cannot be deleted: lines refers to it",
        "lines: 1 documents cannot be deleted: orders refers to it",
    ]
    assert [name for name, rows in database.rows.items() if rows] == ["orders", "lines"]
    assert len(asked) < 10


def cleanup(target: MemoryIndex, tables: Sequence[Table], now: Callable[[], float]) -> Cleanup:
    store = MemoryCheckpoints(MemoryDatabase())
    pipeline = Pipeline(DocumentMapping(None, tuple(t.name for t in tables)), store.claim(owner("mine")))
    policy = RetryPolicy(threading.Event(), lambda _: None, now, Random(1))
    delivery = Delivery(target, store, pipeline, policy, now)
    stage = PipelineState(FIRST_EPOCH, "s", "t", "i", stages.FOLLOWING)
    pipeline.begin(replace(stage), Listing((), True, "ENABLED", 0.0), {})
    delivery.flush()
    return Cleanup(target, store, tables, pipeline, delivery, policy, now, now, target.in_doubt)


def test_each_table_is_scanned_once_per_pass() -> None:
    time = [0.0]
    target = Slow(MemoryDatabase(), time)
    found = cleanup(target, [Table("few", PK), Table("many", PK)], lambda: time[0])
    target.in_doubt.begin()
    time[0] += LONGEST
    while found.do(idle=True):
        pass
    assert target.asked == ["few"] * 2 + ["many"] * 5
    assert target.in_doubt.left is None


def test_a_window_opened_during_a_purge_restarts_the_pass() -> None:
    time = [0.0]
    target = Slow(MemoryDatabase(), time)
    found = cleanup(target, [Table("few", PK), Table("many", PK)], lambda: time[0])
    target.in_doubt.begin()
    time[0] += LONGEST
    for _ in range(3):
        found.do(idle=True)
    target.in_doubt.begin()
    assert not found.do(idle=True), "while it lasts nothing is forgotten"
    time[0] += LONGEST
    target.asked.clear()
    target.left = {"few": 2, "many": 5}
    while found.do(idle=True):
        pass
    assert target.asked == ["few"] * 2 + ["many"] * 5


class Paged(MemoryIndex):
    """Sweeps as DynamoDB does: one pass through the table, a page of two at a time."""

    def __init__(self, database: MemoryDatabase, *, now: Callable[[], float]) -> None:
        super().__init__(database, now=now)
        late = itertools.count(step=3)
        self._cleanup = ScanCleanup(cast(Client, None), cast(Writer, self), lambda: next(late))

    @property
    def in_doubt_windows(self) -> Mapping[str, int]:
        return {"purge": self.in_doubt.begun, "sweep": self.in_doubt.sweep_round}

    def write_all(self, requests: Sequence[Callable[[], int]]) -> int:
        return sum(request() for request in requests)

    def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        def pages(*, after: Any) -> Iterator[Page]:
            there = sorted({*self._database.rows[table.name], *self._database.tombstones[table.name]})
            left = [id for id in there if after is None or id > after]
            older = set(self.older(table, below, spare))
            for at in range(0, max(len(left), 1), 2):
                page = left[at : at + 2]
                last = page[-1] if left[at + 2 :] else None
                yield Page(cast(Any, [id for id in page if id in older]), cast(Any, last))

        def burials(ids: Any) -> Any:
            return [partial(self.bury, table, [id], below) for id in ids]

        return self._cleanup.piece(("sweep", table.name, below), pages, burials)


class Searched(MemoryIndex):
    """Sweeps as search engines do, each piece finding what is left; the table ``large`` takes several."""

    _pieces = 6

    def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        if table.name == "large" and self._pieces:
            self._pieces -= 1
            return 1
        return super().sweep(table, below, spare)


@pytest.mark.parametrize(("kind", "names"), [(Paged, ["t"]), (Searched, ["small", "large"])])
def test_a_sweep_that_started_before_all_writes_arrived_is_not_the_one_due_afterwards(
    kind: type[Paged | Searched], names: Sequence[str]
) -> None:
    time, epoch = [0.0], FIRST_EPOCH + 1
    database = MemoryDatabase()
    target, tables = kind(database, now=lambda: time[0]), [Table(name, PK) for name in names]
    target.open(tables, epoch)
    found = cleanup(target, tables, lambda: time[0])
    rows = [Upsert(names[0], (key,), {}, version(epoch, 1), (key,)) for key in "bcdefghij"]
    target.write(Batch([Part("s", rows)]))
    found.pipeline.change(PipelineState(epoch, "s", "t", "i", stages.FOLLOWING, resync=True))
    found.delivery.flush()
    target.in_doubt.begin(earlier=True)
    found.pipeline._pending.append(("spared", "x", Spared(epoch)))  # and is not parked any more
    found.delivery.flush()
    time[0] = LONGEST - 100
    for _ in range(3):
        found.do()
    ghost = Upsert(names[0], ("a",), {}, version(epoch - 1, 5), ("a",))
    target.write(Batch([Part("s", [ghost])]))
    time[0] = LONGEST + 1
    for _ in range(100):
        found.do()
        found.delivery.flush()
    assert target.in_doubt.left_earlier is None
    assert set(database.documents(names[0])) == {(key,) for key in "bcdefghij"}


@pytest.mark.parametrize("epoch", [FIRST_EPOCH, FIRST_EPOCH + 1])
def test_retries_of_the_current_epoch_postpone_no_sweep_however_frequent(epoch: int) -> None:
    """A pass takes longer than the time between two retries."""
    time = [0.0]
    target, tables = Paged(MemoryDatabase(), now=lambda: time[0]), [Table("t", PK)]
    target.open(tables, FIRST_EPOCH + 1)
    found = cleanup(target, tables, lambda: time[0])
    rows = [Upsert("t", (key,), {}, version(FIRST_EPOCH + 1, 1), (key,)) for key in "abcdefghijklmnop"]
    target.write(Batch([Part("s", rows)]))
    found.pipeline.change(PipelineState(FIRST_EPOCH + 1, "s", "t", "i", stages.SWEEPING, resync=True))
    found.delivery.flush()
    target.in_doubt.begin(earlier=True)
    time[0] = LONGEST + 1
    for n in range(40):
        found.do()
        found.delivery.flush()
        time[0] += 60.0
        if n % 4 == 3:
            notes_retry(cast(MemoryCheckpoints, found.checkpoints)._database, epoch)
            found.delivery.know_parked()
            assert target.in_doubt
    assert found.pipeline.state is not None
    assert (found.pipeline.state.stage == stages.SWEEPING) == (epoch == FIRST_EPOCH)


def test_a_replaced_run_purges_no_tombstone_of_its_successor() -> None:
    """Its successor lost a response and deleted the document since: only its tombstone rejects the late write."""
    database, time = MemoryDatabase(), [LONGEST]
    target = MemoryIndex(database, now=lambda: time[0])
    table = Table("few", PK)
    target.open([table], FIRST_EPOCH)
    found = cleanup(target, [table], lambda: time[0])
    target.in_doubt.begin(-LONGEST)
    found.delivery.confirm()

    another = MemoryCheckpoints(found.checkpoints._database)  # type: ignore[attr-defined]
    another.claim(owner("another"))
    following = MemoryIndex(database, now=lambda: time[0])
    following.in_doubt.begin()
    following.write(Batch([Part("shard:s", [Delete("few", ("a",), version(FIRST_EPOCH, 8), ("a",))])]))
    with pytest.raises(Fenced):
        found.do(idle=True)
    following.write(Batch([Part("shard:s", [Upsert("few", ("a",), {}, version(FIRST_EPOCH, 7), ("a",))])]))
    assert database.documents("few") == {}


def test_cleanup_gets_a_fifth_of_the_time_while_changes_wait() -> None:
    time = [0.0]
    target = Slow(MemoryDatabase(), time)
    target.left = {"many": 1_000_000}
    found = cleanup(target, [Table("many", PK)], lambda: time[0])
    target.in_doubt.begin()
    time[0] = began = LONGEST
    while time[0] < began + 1000.0:
        if not found.do(idle=False):
            time[0] += 0.1
    assert 3.0 * len(target.asked) == pytest.approx(200.0, rel=0.05)

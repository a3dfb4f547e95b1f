"""A target that finds out as a batch is written that its table is gone: a gap, whatever was in flight."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from connectors.delta.options import DeltaOptions
from connectors.delta.target import Delta
from replicator.batch import Batch, Outcome
from replicator.engine import fetcher as fetching
from replicator.engine import local
from replicator.engine import worker as working
from replicator.engine.delivery import Delivery
from replicator.engine.fetcher import Fetcher
from replicator.engine.function import IDLE
from replicator.errors import ConfigError, GapFound
from replicator.state import ShardState, decode
from replicator.target.contract import Table
from replicator.testing.memory import MemoryDatabase, MemoryRows, MemoryTarget
from replicator.testing.memory_index import MemoryIndex
from replicator.version import FIRST_EPOCH
from tests.connectors.delta.delta_kit import rows
from tests.engine.cluster import Cluster
from tests.engine.function_stack import Stack
from tests.faults.world import HOUR, TABLE, World

REMOVED = "the table was removed while this run wrote to it"


def remove_table(database: MemoryDatabase) -> None:
    del database.rows[TABLE], database.epochs[TABLE]
    database.made[TABLE] = database.made.get(TABLE, 1) + 1  # another one, if it is created again


class Removable(MemoryRows):
    """Notices that its table was removed, and does not create it. ``tried``: batches with writes, in vain;
    ``written``: changes in the others.
    """

    tried = written = 0

    def require(self, batch: Batch) -> None:
        if TABLE not in self._database.rows:
            self.tried += bool(batch.parts)
            raise GapFound(REMOVED)

    def count(self, batch: Batch) -> None:
        self.written += sum(part.counts.read for part in batch.parts)


class Rows(Removable, MemoryTarget):
    def write(self, batch: Batch) -> Outcome:
        if batch.parts:
            self.require(batch)
        self.count(batch)
        return super().write(batch)


class Index(Removable, MemoryIndex):
    def write(self, batch: Batch) -> Outcome:
        self.require(batch)
        self.count(batch)
        return super().write(batch)


class SentAhead(Index):
    """Encodes a batch while the one before is in flight."""

    _sent: Batch

    def encode(self, batch: Batch) -> Batch:
        return batch

    def send(self, encoded: Batch) -> None:
        self._sent = encoded

    def ready(self) -> bool:
        return False

    def collect(self) -> Outcome:
        return self.write(self._sent)


class NoticedAsSent(SentAhead):
    def send(self, encoded: Batch) -> None:
        self.require(encoded)
        super().send(encoded)


_LAKE = """\
pipeline: orders
source: {{table: orders, region: us-east-1}}
target: {{type: delta, path: {lake}, table: orders}}
"""

TARGETS = [Rows, Index, SentAhead, NoticedAsSent]


def removed_in_a_run(faults: World, kind: Callable[..., Any], before: Callable[[], None] = lambda: None) -> Any:
    """A copy whose table is removed 20 seconds into the next run, while items change all the time."""
    faults.fill(items=6, shards=3)
    target = kind(faults.database)
    faults.target = lambda: target
    faults.copied()

    def remove() -> None:
        before()
        remove_table(faults.database)

    for n in range(200):
        faults.clock.plan(10 + n / 10, partial(faults.put, f"k{n % 6}", f"new{n}", n=n))
    faults.clock.plan(20, remove)
    return target


@pytest.mark.parametrize("kind", TARGETS)
def test_a_run_that_cannot_write_to_its_target_any_more_records_a_gap_and_ends(faults: World, kind: Any) -> None:
    target = removed_in_a_run(faults, kind)
    ended = faults.run(seconds=60)
    assert ended.code == 3, ended.err
    assert REMOVED in ended.err
    assert "replicator resync" in ended.err
    assert [gap.reason for gap in faults.gaps] == [REMOVED]
    assert faults.counts.read == target.written, "no position says that anything else was stored"
    assert target.tried == (2 if kind is NoticedAsSent else 1), "nothing else is written there"
    assert faults.run(seconds=60).code == 3
    assert faults.run(name="resync", seconds=60).code == 0
    assert not faults.gaps
    faults.assert_equal()


@pytest.mark.parametrize("kind", TARGETS)
def test_a_target_that_has_lost_its_table_is_filled_again_where_the_config_says_so(faults: World, kind: Any) -> None:
    faults.configure(on_gap="resync")
    removed_in_a_run(faults, kind)
    ended = faults.run(seconds=60)
    assert ended.code == 0, ended.err
    assert ended.event("gap")["reason"] == REMOVED
    assert faults.states("pipeline")[""].epoch == FIRST_EPOCH + 1
    assert not faults.gaps
    faults.assert_equal()


class LostRows(Rows):
    """Has lost rows, which nothing tells but the next write; until a later epoch fills it again."""

    lost = False

    def write(self, batch: Batch) -> Outcome:
        if self.lost and batch.parts:
            raise GapFound("it has lost rows")
        return super().write(batch)

    def open(self, tables: Sequence[Table], epoch: int) -> None:
        self.lost = self.lost and epoch == FIRST_EPOCH
        super().open(tables, epoch)


def test_exports_of_what_changed_do_not_repair_a_target_that_has_lost_rows(faults: World) -> None:
    faults.fill()
    faults.db.exports.enable(TABLE)
    faults.clock.move(faults.clock() + HOUR)
    faults.configure(on_gap="export", backfill={"bucket": "exports"})
    target = LostRows(faults.database)
    faults.target = lambda: target
    faults.copied()
    faults.put("k1", n=1)
    target.lost = True
    ended = faults.run(seconds=60)
    assert ended.code == 3, ended.err
    assert (
        "it has lost rows. on_gap: export cannot repair that: it is not known since when changes are lost" in ended.err
    )
    assert not faults.db.exports.known


@pytest.mark.parametrize("kind", TARGETS)
def test_a_gap_of_the_stream_is_recorded_although_the_target_has_lost_its_table(faults: World, kind: Any) -> None:
    def trim() -> None:
        faults.put("k1", n=-1)
        for shard in faults.db.open_shards(TABLE):
            faults.db.trim(TABLE, shard, 1000)

    removed_in_a_run(faults, kind, trim)
    ended = faults.run(seconds=60)
    assert ended.code == 3, ended.err
    assert faults.gaps
    assert faults.run(name="resync", seconds=60).code == 0
    assert not faults.gaps
    faults.assert_equal()


class LostSent(SentAhead):
    """Has lost rows, which the response to a batch says; until a later epoch fills it again."""

    lost, by_hand = False, False

    def write(self, batch: Batch) -> Outcome:
        if self.lost and batch.parts:
            raise GapFound("it has lost rows", by_hand=self.by_hand)
        return super().write(batch)

    def open(self, tables: Sequence[Table], epoch: int) -> None:
        self.lost = self.lost and epoch == FIRST_EPOCH
        super().open(tables, epoch)


def after_receiving(monkeypatch: pytest.MonkeyPatch, module: Any, then: Callable[[Delivery], None]) -> None:
    """Call this after each time that an engine has received what it reads."""

    def receive(fetcher: Fetcher, delivery: Delivery, *, sent: bool, busy: bool) -> None:
        fetching.receive(fetcher, delivery, sent=sent, busy=busy)
        then(delivery)

    monkeypatch.setattr(module, "receive", receive)


def trimmed(target: Any) -> Callable[[Delivery], None]:
    """A gap of the stream, once, while records wait for a target that has lost rows."""
    found: list[GapFound] = []

    def find(delivery: Delivery) -> None:
        if target.lost and delivery._pipeline.pages and not found:
            found.append(GapFound("records are trimmed"))
            raise found[0]

    return find


BOTH = ["records are trimmed", "it has lost rows"]


@pytest.mark.parametrize("kind", [LostRows, LostSent])
@pytest.mark.parametrize("on_gap", ["stop", "resync", "export"])
def test_what_the_target_turns_out_to_have_lost_as_a_gap_is_recorded_decides_how_that_is_repaired(
    faults: World, monkeypatch: pytest.MonkeyPatch, kind: Any, on_gap: str
) -> None:
    """An export of what changed since the stream's gap would leave the target without what it has lost."""
    faults.fill()
    faults.db.exports.enable(TABLE)
    faults.clock.move(faults.clock() + HOUR)
    faults.configure(on_gap=on_gap, backfill={"bucket": "exports"} if on_gap == "export" else {})
    target = kind(faults.database)
    faults.target = lambda: target
    faults.copied()
    faults.put("k1", n=1)
    target.lost = True
    after_receiving(monkeypatch, local, trimmed(target))
    ended = faults.run(seconds=60)
    assert [gap.reason for gap in faults.states("gap").values()][:2] == BOTH
    assert [event["reason"] for event in ended.events if event["event"] == "gap"][:2] == BOTH
    if on_gap == "resync":
        assert ended.code == 0
        faults.assert_equal()
        return
    assert (ended.code, "it has lost rows" in ended.err) == (3, True), ended.err
    assert ("on_gap: export cannot repair that" in ended.err) == (on_gap == "export")
    assert not faults.db.exports.known
    assert faults.run(seconds=60).code == 3
    assert not faults.db.exports.known


def test_a_run_that_finds_another_ones_writes_as_it_records_a_gap_repairs_neither(
    faults: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.configure(on_gap="resync")
    faults.fill()
    target = LostSent(faults.database)
    faults.target = lambda: target
    faults.copied()
    faults.put("k1", n=1)
    target.lost = target.by_hand = True
    after_receiving(monkeypatch, local, trimmed(target))
    for _ in range(2):
        assert faults.run(seconds=60).code == 3
    assert faults.states("pipeline")[""].epoch == FIRST_EPOCH
    assert [(gap.reason, gap.by_hand) for gap in faults.gaps] == [(BOTH[0], False), (BOTH[1], True)]


def test_a_gap_is_recorded_although_something_must_be_changed_before_its_target_stores_anything(
    faults: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(LostSent):
        def write(self, batch: Batch) -> Outcome:
            if self.lost and batch.parts:
                raise ConfigError("the index takes no writes")
            return super().write(batch)

    faults.fill()
    target = Refusing(faults.database)
    faults.target = lambda: target
    faults.copied()
    faults.put("k1", n=1)
    target.lost = True
    after_receiving(monkeypatch, local, trimmed(target))
    ended = faults.run(seconds=60)
    assert (ended.code, "the index takes no writes" in ended.err) == (2, True), ended.err
    assert [gap.reason for gap in faults.gaps] == ["records are trimmed"]
    target.lost = False
    ended = faults.run(seconds=60)
    assert (ended.code, "records are trimmed" in ended.err) == (3, True), ended.err


@pytest.mark.parametrize("on_gap", ["stop", "resync"])
def test_what_a_run_finds_lost_as_it_ends_is_recorded_for_the_next(
    faults: World, monkeypatch: pytest.MonkeyPatch, on_gap: str
) -> None:
    """The batch that was in flight when the run was asked to end."""
    faults.configure(on_gap=on_gap)
    faults.fill()
    target = LostSent(faults.database)
    faults.target = lambda: target
    faults.copied()
    faults.put("k1", n=1)
    target.lost = True

    def stop(delivery: Delivery) -> None:
        if delivery._in_flight is not None and delivery._in_flight.parts:
            faults.stop.until = faults.clock()

    with monkeypatch.context() as patched:
        after_receiving(patched, local, stop)
        ended = faults.run(seconds=60)
    assert (ended.code, ended.event("gap")["reason"]) == (3, "it has lost rows"), ended
    assert [gap.reason for gap in faults.gaps] == ["it has lost rows"]
    assert faults.counts.read == faults.counts.applied
    target.lost = False
    ended = faults.run(seconds=60)
    assert ended.code == (3 if on_gap == "stop" else 0), ended
    if on_gap == "resync":
        faults.assert_equal()


def coordinate(cluster: Cluster) -> None:
    """Turns of the coordinator, which tells workers what is new. They do nothing else."""
    for _ in range(3000):
        cluster.clock.now += 0.05
        cluster.running.step()
        for slot, entries in cluster.running.news().items():
            cluster.workers[slot].learn(entries)
    raise AssertionError("the run did not end")


@pytest.mark.parametrize("how", ["told of a shard", "ending"])
def test_what_a_worker_finds_lost_outside_of_a_step_is_recorded_and_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    cluster = Cluster(slots=1, index=True, shards=2, on_gap="stop")
    made: list[LostSent] = []

    def target(database: MemoryDatabase, **more: Any) -> LostSent:
        made.append(LostSent(database, **more))
        return made[-1]

    cluster.index_type = target  # type: ignore[assignment]
    cluster.start()
    cluster.write("k1", 0)
    cluster.settle()
    cluster.outlive_doubt()
    (only,) = cluster.workers.values()
    before = {shard.id: shard.last for shard in cluster.source.shards(TABLE)}
    cluster.write("k1", 1)
    (other,) = (shard.id for shard in cluster.source.shards(TABLE) if shard.last == before[shard.id])
    cluster.source.roll(TABLE, other)
    for _ in range(300):
        cluster.clock.now += 0.05
        only.step()
    cluster.write("k1", 2)
    for one in made:
        one.lost = True
    busy: list[bool] = []
    after_receiving(monkeypatch, working, lambda delivery: busy.append(bool(delivery.in_flight)))
    for _ in range(1000):
        cluster.clock.now += 0.05
        only.step()
        if busy and busy[-1]:
            break
    assert busy[-1]
    if how == "ending":
        with pytest.raises(GapFound, match="it has lost rows"):
            cluster.stop()
    else:
        with pytest.raises(GapFound, match="it has lost rows"):
            coordinate(cluster)
    assert [gap.reason for gap in cluster.gaps] == ["it has lost rows"]


class ReplacedAsItIsOpened(MemoryIndex):
    replaced = False

    def open(self, tables: Sequence[Table], epoch: int) -> None:
        if self.replaced:
            raise GapFound("the index was replaced", of_target=True)
        super().open(tables, epoch)


def test_what_a_worker_finds_lost_as_it_opens_its_tables_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(slots=1, index=True, on_gap="stop")
    cluster.index_type = ReplacedAsItIsOpened
    cluster.start()
    cluster.write("k1", 0)
    cluster.settle()
    cluster.outlive_doubt()
    cluster.restart_workers()
    monkeypatch.setattr(ReplacedAsItIsOpened, "replaced", True)
    with pytest.raises(GapFound, match="the index was replaced"):
        cluster.rounds(100)
    assert [gap.reason for gap in cluster.gaps] == ["the index was replaced"]


@pytest.mark.parametrize("kind", [Rows, Index, SentAhead])
def test_a_worker_that_cannot_write_to_its_target_any_more_records_a_gap_for_all(kind: Any) -> None:
    cluster = Cluster(index=kind is not Rows)
    cluster.index_type = cluster.target_type = kind
    cluster.start()
    cluster.write("k0", 0)
    cluster.settle()
    cluster.outlive_doubt()  # no slot is taken away for another stage
    epoch = cluster.running.pipeline.epoch
    for n in range(20):
        cluster.write(f"k{n}", n)
    remove_table(cluster.database)
    cluster.rounds(300)
    cluster.settle()
    assert cluster.running.pipeline.epoch == epoch + 1
    assert cluster.stored == cluster.wanted
    assert {gap.reason for gap in cluster.gaps} == {REMOVED}
    assert all(gap.repaired is not None for gap in cluster.gaps)


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("on_gap", ["resync", "stop"])
def test_a_worker_that_begins_does_not_create_a_table_that_is_gone(index: bool, on_gap: str) -> None:
    cluster = Cluster(index=index, on_gap=on_gap)
    cluster.start()
    for n in range(20):
        cluster.write(f"k{n}", n)
    cluster.settle()
    cluster.outlive_doubt()
    epoch = cluster.running.pipeline.epoch
    remove_table(cluster.database)
    cluster.write("k1", 100)
    cluster.restart_workers()
    if on_gap == "stop":
        with pytest.raises(GapFound, match="orders is gone from the target since the last run"):
            cluster.rounds(300)
        assert TABLE not in cluster.database.rows
        return
    cluster.rounds(300)
    cluster.settle()
    assert cluster.running.pipeline.epoch == epoch + 1
    assert cluster.stored == cluster.wanted


@pytest.mark.parametrize("index", [False, True])
def test_a_table_that_the_run_has_emptied_is_not_lost_to_a_worker_that_begins(index: bool) -> None:
    """Since the last run, which said that it stopped and had documents. This one's coordinator has said nothing yet."""
    cluster = Cluster(index=index)
    cluster.start()
    cluster.write("k0", 0)
    cluster.settle()
    cluster.outlive_doubt()
    cluster.stop()
    cluster.delete("k0")
    cluster.start()
    for turn in range(300):
        if turn == 290:
            assert not cluster.stored
            cluster.restart_workers()
        cluster.clock.now += 0.05
        for worker in cluster.workers.values():
            worker.step()
    assert not cluster.gaps


class RemovedAsItIsWritten(Rows):
    """After the invocation has looked at it."""

    def write(self, batch: Batch) -> Outcome:
        if batch.parts and TABLE in self._database.rows:
            remove_table(self._database)
        return super().write(batch)


def followed() -> Stack:
    """A copy that invocations follow, with a shard of which records are stored; then its table is removed."""
    stack = Stack(shards=1)
    stack.target_type = Rows
    stack.backfill()
    stack.write("k1", 1)
    stack.deliver(stack.container())
    stack.write("k2", 2)
    stack.target_type = RemovedAsItIsWritten
    return stack


def test_an_invocation_that_cannot_write_to_its_target_any_more_records_a_gap() -> None:
    stack = followed()
    with pytest.raises(GapFound, match=f"{REMOVED}. Nothing is stored before a rescan: replicator resync CONFIG"):
        stack.deliver(stack.container())
    (gap,) = stack.gaps
    assert (gap.reason, gap.shard) == (REMOVED, None)
    with pytest.raises(GapFound, match=r"is gone from the target since the last run\. Nothing is stored before a"):
        stack.deliver(stack.container())
    assert len(stack.gaps) == 1
    assert TABLE not in stack.database.rows


def test_an_invocation_that_cannot_write_behind_a_gap_of_the_stream_records_both_gaps() -> None:
    stack = followed()
    (shard,) = stack.mapping.ready()
    given_up = stack.mapping.event(shard)
    assert given_up is not None
    stack.mapping.drop(shard, given_up)
    stack.trim_all()
    stack.write("k3", 3)
    with pytest.raises(GapFound, match=f"{REMOVED}. Nothing is stored before a rescan: replicator resync CONFIG"):
        stack.deliver(stack.container())
    assert {gap.shard for gap in stack.gaps} == {shard, None}
    assert [gap.reason for gap in stack.gaps if gap.shard is None] == [REMOVED]


def test_an_invocation_whose_batch_in_flight_shows_a_loss_as_it_records_a_gap_of_the_stream_records_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stack = Stack(shards=1, index=True)
    stack.index_type = LostSent
    stack.backfill()
    stack.write("k1", 1)
    stack.deliver(stack.container())
    (shard,) = stack.mapping.ready() or stack.mapping.shards
    stack.write("k2", 2)
    given_up = stack.mapping.event(shard)
    assert given_up is not None
    stack.mapping.drop(shard, given_up)
    stack.write("k3", 3)
    found: list[GapFound] = []

    def find(delivery: Delivery) -> None:
        if delivery.in_flight and not found:
            found.append(GapFound("records are trimmed", shard))
            raise found[0]

    after_receiving(monkeypatch, working, find)
    monkeypatch.setattr(LostSent, "lost", True)
    with pytest.raises(GapFound, match=r"it has lost rows\. Nothing is stored before a rescan: replicator resync"):
        stack.deliver(stack.container())
    assert [(gap.reason, gap.shard) for gap in stack.gaps] == [("records are trimmed", shard), (BOTH[1], None)]


class OpensNothing(MemoryIndex):
    def open(self, tables: Sequence[Table], epoch: int) -> None:
        raise GapFound("the index was replaced", of_target=True)


def test_an_invocation_that_finds_a_loss_as_it_opens_its_tables_records_it() -> None:
    stack = Stack(shards=1, index=True)
    stack.backfill()
    stack.write("k1", 1)
    stack.index_type = OpensNothing
    with pytest.raises(GapFound, match=r"the index was replaced\. Nothing is stored before a rescan"):
        stack.deliver(stack.container())
    assert [gap.reason for gap in stack.gaps] == ["the index was replaced"]


def test_a_scheduled_invocation_that_cannot_write_to_its_target_any_more_records_a_gap() -> None:
    stack = followed()
    stack.clock.now += IDLE + 1
    stack.until_over()
    with pytest.raises(GapFound, match=f"{REMOVED}. Nothing is stored before a rescan"):
        stack.container().keep_up()
    assert [gap.reason for gap in stack.gaps] == [REMOVED]


def test_a_shard_is_not_at_its_end_because_its_records_could_not_be_stored() -> None:
    """Where an invocation reads the parent of its shard to the end, which Lambda has given up."""
    stack = followed()
    (parent,) = stack.mapping.shards
    stack.source.roll_all(TABLE)
    given_up = stack.mapping.event(parent)
    assert given_up is not None
    stack.mapping.drop(parent, given_up)
    stack.write("k3", 3)
    with pytest.raises(GapFound, match=f"{REMOVED}. Nothing is stored before a rescan"):
        stack.deliver(stack.container())
    state = decode("shard", parent, stack.database.entries["shard", parent][1])
    assert isinstance(state, ShardState)
    assert not state.ended


@pytest.fixture
def lake(faults: World, tmp_path: Path) -> Path:
    """A copy in a lake, and changes for a minute; for the next run."""
    lake = tmp_path / "lake"
    (faults.folder / "orders.yaml").write_text(_LAKE.format(lake=lake))
    faults.target = lambda: Delta(DeltaOptions(path=str(lake)), "orders")
    faults.fill()
    ended = faults.run()
    assert ended.code == 0, ended
    for n in range(200):
        faults.clock.plan(10 + n / 5, partial(faults.put, f"k{n % 6}", f"new{n}", n=n))
    return lake


def in_lake(lake: Path) -> dict[str, int | None]:
    return {row["id"]: json.loads(row["document"]).get("n") for row in rows(str(lake / TABLE))}


@pytest.mark.parametrize("part", [f"{TABLE}/_tombstones", TABLE])
def test_what_is_removed_from_a_lake_is_a_gap_that_ends_the_run(faults: World, lake: Path, part: str) -> None:
    faults.clock.plan(20, lambda: shutil.rmtree(lake / part))
    ended = faults.run(seconds=60)
    assert ended.code == 3, ended.err
    assert f"{part} was removed or replaced while this run wrote to it" in ended.err
    assert "replicator resync" in ended.err
    assert len(faults.gaps) == 1
    assert not (lake / part).exists()
    assert faults.run(seconds=60).code == 3
    assert faults.run(name="resync", seconds=60).code == 0
    assert in_lake(lake) == {item["id"]: int(item["n"]) if "n" in item else None for item in faults.db.items(TABLE)}

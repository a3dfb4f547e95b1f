"""A target that finds out as a batch is written that its table is gone: a gap, whatever was in flight."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from connectors.delta.options import DeltaOptions
from connectors.delta.target import Delta
from replicator.batch import Batch, Outcome
from replicator.engine.function import IDLE
from replicator.errors import GapFound
from replicator.state import ShardState, decode
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
    """Has lost rows, which nothing tells but the next write."""

    lost = False

    def write(self, batch: Batch) -> Outcome:
        if self.lost and batch.parts:
            raise GapFound("it has lost rows")
        return super().write(batch)


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

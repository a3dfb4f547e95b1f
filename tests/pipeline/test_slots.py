"""A pipeline over a part of the shards and segments: the slot that one worker of a run has claimed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from replicator.batch import Batch, Outcome
from replicator.change import Page, Record, ScanPage
from replicator.errors import Fenced, GapFound
from replicator.hooks.hook import DocumentMapping
from replicator.items.attributes import image
from replicator.pipeline import stages
from replicator.pipeline.pipeline import Pipeline
from replicator.state import (
    Entry,
    Gap,
    Heartbeat,
    Owner,
    PipelineState,
    Save,
    SegmentState,
    ShardState,
    Slot,
    decode,
    encode,
)
from replicator.testing.memory import MemoryCheckpoints, MemoryDatabase
from replicator.version import FIRST_EPOCH, version

NOW = 1_700_000_000.0
MAPPING = DocumentMapping(None, ("t",))
WORKER = Owner("worker", "host", 1, NOW)
OPEN = ShardState(None, None, whole=True, since=NOW)


def database(
    shards: Mapping[str, ShardState], segments: Mapping[str, SegmentState] | None = None, stage: str = stages.SCANNING
) -> MemoryDatabase:
    """What a coordinator has stored: shards and segments with their slots."""
    found = MemoryDatabase()
    run = MemoryCheckpoints(found)
    run.claim(Owner("run", "host", 1, NOW))
    state = PipelineState(FIRST_EPOCH, "stream", "table", "id", stage)
    saves = [Save("pipeline", "", 0, encode(state))]
    saves += [Save("shard", id, 0, encode(shard)) for id, shard in shards.items()]
    saves += [Save("segment", id, 0, encode(segment)) for id, segment in (segments or {}).items()]
    run.save(saves)
    return found


class Worker:
    """A worker of a slot, which stores what its pipeline has."""

    def __init__(self, stored: MemoryDatabase, slot: str) -> None:
        self.checkpoints = MemoryCheckpoints(stored)
        self.pipeline = Pipeline(MAPPING, self.checkpoints.claim_slot(WORKER, slot, 1), slot=slot)
        self.pipeline.acknowledge()

    def store(self) -> list[Batch]:
        batches = []
        while (batch := self.pipeline.take(NOW)) is not None:
            self.checkpoints.save(batch.saves)
            self.pipeline.stored(batch, Outcome(), NOW)
            batches.append(batch)
        return batches

    @property
    def opened(self) -> dict[str, ShardState]:
        return dict(self.pipeline.openings())


def page(shard: str, *sequences: int, ended: bool = False) -> Page:
    records = [Record((f"{shard}{n}",), f"{n:021d}", NOW, image({"pk": f"{shard}{n}"})) for n in sequences]
    return Page(shard, records, ended, through=NOW, size=100)


def entry(stored: MemoryDatabase, id: str) -> Entry:
    return Entry("shard", id, *stored.entries["shard", id])


def test_a_worker_reads_the_shards_and_segments_of_its_slot_and_a_single_run_reads_all() -> None:
    shards = {"a": replace(OPEN, slot="0"), "b": replace(OPEN, slot="1"), "c": OPEN}
    stored = database(shards, {"0": SegmentState(2, slot="0"), "1": SegmentState(2, slot="1")})
    worker = Worker(stored, "1")
    worker.store()
    assert list(worker.opened) == ["b"]
    assert [n for n, _ in worker.pipeline.scans()] == [1]

    single = Pipeline(MAPPING, MemoryCheckpoints(stored).claim(WORKER))
    assert [id for id, _ in single.openings()] == ["a", "b", "c"]
    assert [n for n, _ in single.scans()] == [0, 1]


def test_a_child_of_another_slots_shard_opens_with_its_parents_ordinals_once_the_stored_parent_has_ended() -> None:
    stored = database({"p": replace(OPEN, slot="0"), "c": ShardState("p", "5", whole=True, since=NOW, slot="1")})
    early, late = Worker(stored, "0"), Worker(stored, "1")
    assert list(early.opened) == ["p"]
    early.pipeline.accept(page("p", 1, 2, 3))
    early.store()
    late.pipeline.learn([entry(stored, "p")])
    assert late.opened == {}, "the parent is not stored to its end"
    early.pipeline.accept(page("p", 4, ended=True))
    early.store()
    assert late.opened == {}, "it has not been told"
    late.pipeline.learn([entry(stored, "p")])
    assert late.opened["c"].ordinal == 4
    late.pipeline.accept(page("c", 5))
    batches = late.store()
    assert [w.version for b in batches for part in b.parts for w in part.writes] == [version(FIRST_EPOCH, 5)]


def test_a_shard_that_a_worker_is_given_is_read_and_what_it_owns_is_not_learnt_again() -> None:
    stored = database({"a": replace(OPEN, slot="0")}, stage=stages.FOLLOWING)
    worker = Worker(stored, "0")
    before = entry(stored, "a")
    assert list(worker.opened) == ["a"]
    worker.pipeline.accept(page("a", 1, 2))
    worker.store()
    stored.entries["shard", "b"] = (1, encode(replace(OPEN, slot="0")))
    worker.pipeline.learn([before, entry(stored, "b")])
    assert list(worker.opened) == ["b"]
    worker.pipeline.accept(page("a", 3))
    worker.store()
    assert worker.pipeline.shards["a"].ordinal == 3


def test_every_batch_of_a_worker_moves_the_fence_of_its_slot_and_not_the_pipelines_entry() -> None:
    stored = database({"a": replace(OPEN, slot="0"), "b": replace(OPEN, slot="1")}, stage=stages.FOLLOWING)
    workers = {"a": Worker(stored, "0"), "b": Worker(stored, "1")}
    for round in range(3):
        for shard, worker in workers.items():
            list(worker.opened)
            worker.pipeline.accept(page(shard, round + 1))
            moved = [{(s.kind, s.id) for s in batch.saves} for batch in worker.store()]
            assert moved
            assert all(("slot", worker.pipeline.slot) in places for places in moved)
            assert all(("pipeline", "") not in places for places in moved)
    assert stored.entries["pipeline", ""][0] == 1
    assert [worker.pipeline.shards[shard].ordinal for shard, worker in workers.items()] == [3, 3]


def test_a_batch_of_a_worker_that_was_given_up_and_is_applied_late_finds_the_fence_moved() -> None:
    """Even if what it adds was removed again by then, as a command does."""
    worker = Worker(database({"a": replace(OPEN, slot="0")}), "0")
    worker.store()
    worker.pipeline.gap(GapFound("records are lost", "a"), NOW)
    (stored,) = worker.store()
    (gap,) = (save for save in stored.saves if save.kind == "gap")
    worker.checkpoints.save([Save("gap", gap.id, 1, None)])
    worker.pipeline.gap(GapFound("records are lost", "a"), NOW + 1)
    worker.store()
    with pytest.raises(Fenced):
        worker.checkpoints.save(stored.saves)


def test_a_worker_whose_slot_was_taken_away_stores_nothing_more() -> None:
    stored = database({"a": replace(OPEN, slot="0")})
    worker = Worker(stored, "0")
    worker.store()
    list(worker.opened)
    worker.pipeline.accept(page("a", 1))
    Worker(stored, "0")
    with pytest.raises(Fenced):
        worker.store()
    assert decode("shard", "a", stored.entries["shard", "a"][1]) == replace(OPEN, slot="0")


def test_a_worker_that_has_scanned_its_part_moves_no_stage() -> None:
    stored = database({}, {"0": SegmentState(2, slot="0"), "1": SegmentState(2, ended=True, slot="1")})
    worker = Worker(stored, "0")
    list(worker.pipeline.scans())
    worker.pipeline.accept_scan(ScanPage(0, [(("k",), image({"pk": "k"}))], None))
    worker.store()
    assert worker.pipeline.segments["0"].ended
    assert stored.entries["pipeline", ""][0] == 1


def test_a_worker_tells_which_epoch_and_stage_it_knows() -> None:
    stored = database({}, stage=stages.PURGING)
    Worker(stored, "0").store()
    assert decode("slot", "0", stored.entries["slot", "0"][1]) == Slot(FIRST_EPOCH, stages.PURGING)


def test_gaps_and_heartbeats_of_two_workers_at_one_time_are_two() -> None:
    stored = database({"a": replace(OPEN, slot="0"), "b": replace(OPEN, slot="1")})
    for slot, shard in (("0", "a"), ("1", "b")):
        worker = Worker(stored, slot)
        worker.pipeline.gap(GapFound("records are lost", shard), NOW)
        worker.pipeline.heartbeat(Heartbeat(NOW, "live"))
        worker.store()
    assert sorted(id for kind, id in stored.entries if kind == "pulse") == ["0", "1"]
    gaps = [decode(kind, id, text) for (kind, id), (_, text) in stored.entries.items() if kind == "gap"]
    assert sorted(gap.shard or "" for gap in gaps if isinstance(gap, Gap)) == ["a", "b"]


def test_nothing_is_written_before_the_worker_has_acknowledged_the_stage() -> None:
    worker = Worker(database({"a": replace(OPEN, slot="0", anchor=f"{1:021d}")}), "0")
    list(worker.opened)
    worker.pipeline.accept(page("a", 1))
    first, second = worker.store()
    assert (len(first.parts), len(second.parts)) == (0, 1)

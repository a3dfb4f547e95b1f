"""How long a run makes a batch: a slow hook delays neither its heartbeats nor its end, and nothing is lost by that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from threading import Event
from typing import Any

import pytest

from replicator import Document
from replicator.batch import Batch, BatchSize
from replicator.change import Listing, Page, Record, ScanPage, Shard
from replicator.engine.delivery import Delivery
from replicator.engine.heartbeat import HEARTBEAT_INTERVAL
from replicator.engine.retry import RetryPolicy
from replicator.hooks.hook import DocumentMapping, Hook
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.key import KeyAttribute, KeySchema
from replicator.pipeline import stages
from replicator.pipeline.batching import MOST_SECONDS, TAKE_SECONDS, PageBuffer, gives_up
from replicator.pipeline.pipeline import Pipeline
from replicator.pipeline.progress import HEARTBEAT_TIMEOUT
from replicator.state import PipelineState
from replicator.target.contract import Table
from replicator.testing.contract.kit import owner
from replicator.testing.memory import MemoryCheckpoints, MemoryDatabase
from replicator.testing.memory_index import MemoryIndex
from replicator.version import FIRST_EPOCH

GATHERING = BatchSize(rows=20_000, seconds=5.0)
EACH = pytest.mark.parametrize("size", [GATHERING, None], ids=["a target that gathers", "another one"])


@pytest.mark.parametrize(
    ("seconds", "divisible", "stopping", "given_up"),
    [
        (MOST_SECONDS - 0.1, True, False, False),
        (MOST_SECONDS, True, False, True),
        (10 * MOST_SECONDS, False, False, False),
        (0.0, True, True, True),
        (0.0, False, True, True),
    ],
)
def test_pages_are_left_for_the_next_batch_if_it_takes_long_or_the_run_ends(
    seconds: float, divisible: bool, stopping: bool, given_up: bool
) -> None:
    assert gives_up(seconds, divisible=divisible, stopping=stopping) is given_up


def test_a_batch_is_closed_long_before_the_heartbeat_is_missed() -> None:
    assert MOST_SECONDS + TAKE_SECONDS + HEARTBEAT_INTERVAL < HEARTBEAT_TIMEOUT * 0.6


@dataclass
class Work:
    """A run with a hook that takes time by the clock: ``each()`` seconds for an item."""

    size: BatchSize | None
    each: Callable[[], float]
    own_ids: bool = False
    clock: float = 0.0
    calls: int = 0
    beats: list[float] = field(default_factory=list)
    stop: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        database = MemoryDatabase()
        checkpoints = MemoryCheckpoints(database)
        mapping = DocumentMapping(Hook("slow", self.hook, "", self.own_ids), ("orders",))
        self.pipeline = Pipeline(mapping, checkpoints.claim(owner("run")), pages=PageBuffer(self.size))
        policy = RetryPolicy(self.stop, lambda _: None, lambda: self.clock, Random(1))
        target = MemoryIndex(database)
        target.open([Table("orders", KeySchema((KeyAttribute("pk", "S"),)))], FIRST_EPOCH)
        self.delivery = Delivery(
            target,
            checkpoints,
            self.pipeline,
            policy,
            lambda: self.clock,
            still_at_it=lambda: self.beats.append(self.clock),
            monotonic=lambda: self.clock,
            stopping=self.stop.is_set,
        )
        state = PipelineState(FIRST_EPOCH, "stream", "table", "id", stages.SCANNING)
        self.pipeline.begin(state, Listing((Shard("s"),), True, "ENABLED", 0.0), stages.segments(2))
        self.delivery.flush()
        list(self.pipeline.openings())
        list(self.pipeline.scans())

    def hook(self, item: Item) -> Any:
        self.clock += self.each()
        self.calls += 1
        return [Document("1", dict(item))] if self.own_ids else dict(item)

    def read(self, pages: int, rows: int) -> None:
        """As many pages of the shard, and of each of two segments. All items differ."""
        for n in range(pages):
            numbers = range(n * rows, (n + 1) * rows)
            records = [Record((f"s{i}",), f"{i + 1:021d}", 1.0, image({"pk": f"s{i}"})) for i in numbers]
            self.pipeline.accept(Page("s", records, through=1.0, size=100))
            for segment in range(2):
                items = [((f"{segment}-{i}",), image({"pk": f"{segment}-{i}"})) for i in numbers]
                self.pipeline.accept_scan(ScanPage(segment, items, {"pk": {"S": f"{n}"}}, size=100))

    def batches(self) -> Iterator[tuple[float, Batch]]:
        """Each batch until nothing is left, with the seconds that it took to make."""
        began = self.clock
        while (batch := self.delivery.taken()) is not None:
            yield self.clock - began, batch
            self.delivery.offer(batch)
            self.delivery.settle()
            began = self.clock


def ids(batches: Sequence[Batch]) -> list[Any]:
    return [write.item[0] for batch in batches for part in batch.parts for write in part.writes]


def all_ids(rows: int) -> set[str]:
    return {f"{start}{i}" for start in ("s", "0-", "1-") for i in range(rows)}


@EACH
@pytest.mark.parametrize("own_ids", [False, True], ids=["plain", "own ids"])
def test_a_hook_that_becomes_slow_in_the_middle_of_a_batch_does_not_make_it_late(
    size: BatchSize | None, own_ids: bool
) -> None:
    work = Work(size, lambda: 0.0 if work.calls < 8000 else 0.01, own_ids)
    work.read(pages=64, rows=100)
    made = list(work.batches())
    assert max(seconds for seconds, _ in made) <= MOST_SECONDS + TAKE_SECONDS + 0.1
    stored = ids([batch for _, batch in made])
    assert len(stored) == len(set(stored))
    assert set(stored) == all_ids(6400)


@EACH
def test_batches_are_smaller_while_the_hook_is_slow_and_large_again_once_it_is_not(size: BatchSize | None) -> None:
    work = Work(size, lambda: 0.01 if work.calls < 3000 else 0.0)
    work.read(pages=32, rows=100)
    made = [(seconds, len(ids([batch]))) for seconds, batch in work.batches()]
    slow = [rows for seconds, rows in made if seconds > TAKE_SECONDS / 2]
    assert len(slow) >= 10
    assert max(slow) <= 400
    assert max(rows for _, rows in made[-3:]) >= 2000


@EACH
def test_whatever_a_hook_costs_each_change_is_stored_once_and_in_order(size: BatchSize | None) -> None:
    for seed in range(60):
        chance = Random(seed)
        costs = [chance.choice([0.0, 0.0001, 0.01, 0.3, 2.5]) for _ in range(30)]
        work = Work(size, lambda costs=costs, chance=chance: chance.choice(costs))  # type: ignore[misc]
        work.read(pages=chance.randrange(1, 12), rows=chance.randrange(1, 9))
        found = []
        for seconds, batch in work.batches():
            pages = {part.source: part.counts.read for part in batch.parts}
            assert seconds < MOST_SECONDS + 8 * 2.5 * 2 or len(pages) == 1
            found.append(batch)
        assert len(ids(found)) == len(set(ids(found))) == work.pipeline.total.read
        assert not work.pipeline.pages
        for start in ("s", "0-", "1-"):
            order = [int(id.removeprefix(start)) for id in ids(found) if id.startswith(start)]
            assert order == sorted(order)


@EACH
def test_a_run_that_is_asked_to_end_calls_the_hook_for_no_further_item(size: BatchSize | None) -> None:
    work = Work(size, lambda: 0.01)

    def each() -> float:
        if work.calls == 150:
            work.stop.set()
        return 0.01

    work.each = each
    work.read(pages=4, rows=1000)
    list(work.batches())
    assert work.calls == 151
    assert work.pipeline.total.read == 0
    work.delivery.settle()
    work.pipeline.drop_ahead()
    work.delivery.flush()
    assert work.calls == 151


@EACH
def test_what_is_left_when_a_run_ends_is_not_passed_over_by_what_needs_no_hook(size: BatchSize | None) -> None:
    """The positions stay in front of it, whatever is stored before the run ends."""
    work = Work(size, lambda: 0.01)
    work.pipeline.accept(Page("s", [Record(("a",), f"{1:021d}", 1.0, image({"pk": "a"}))], through=1.0, size=100))
    work.pipeline.accept(Page("s", [Record(("b",), f"{2:021d}", 1.0, None)], through=1.0, size=100))
    work.stop.set()
    assert ids([batch for _, batch in work.batches()]) == []
    assert work.pipeline.shards["s"].sequence is None
    work.stop.clear()
    assert ids([batch for _, batch in work.batches()]) == ["a", "b"]


@EACH
def test_a_returned_batch_is_made_again_as_a_whole_and_left_as_a_whole(size: BatchSize | None) -> None:
    work = Work(size, lambda: 0.0)
    work.read(pages=4, rows=100)
    work.delivery.save()  # the anchor
    batch = work.delivery.taken()
    assert batch is not None
    work.pipeline.give_back()
    work.each = lambda: 1.0
    work.stop.set()
    assert ids([left for _, left in work.batches()]) == []
    work.stop.clear()
    again = work.delivery.taken()
    assert again is not None
    assert ids([again]) == ids([batch])


@EACH
def test_a_page_that_takes_long_is_finished_and_heartbeats_are_saved_meanwhile(size: BatchSize | None) -> None:
    work = Work(size, lambda: 0.1)
    work.read(pages=1, rows=300)
    made = [seconds for seconds, _ in work.batches()]
    assert max(made) == pytest.approx(30, abs=0.2)
    assert max(b - a for a, b in zip(work.beats, work.beats[1:], strict=False)) < HEARTBEAT_INTERVAL + MOST_SECONDS
    assert len(work.beats) > 30

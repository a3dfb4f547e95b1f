"""The memory bound for pages read ahead, regardless of the number of shards and the speed of the target.

All sizes are scaled down by 16: 400 KB items, 1 MB pages, and the buffers for them.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import pytest

from replicator.aws.client import AT_ONCE, Client, answered
from replicator.batch import Batch, BatchSize, Outcome
from replicator.config.settings import Backfill, Config, Source
from replicator.config.target import Destination
from replicator.engine.context import Environment, RunContext
from replicator.engine.local import Driver
from replicator.engine.scheduler import StepResult
from replicator.pipeline import batching
from replicator.pipeline.batching import BATCH_BYTES, BUFFER_BYTES, LARGE
from replicator.source import keys_only
from replicator.source.decoding import RecordsDecoder
from replicator.source.shard_reader import read
from replicator.source.stream import Stream
from replicator.source.table import describe_table
from replicator.state import Owner, ShardState
from replicator.target.contract import Table
from replicator.testing.dynamodb import DynamoDB, shards
from replicator.testing.memory import MemoryDatabase, MemoryTarget
from tests.engine.virtual_scheduler import VirtualSteps

SCALE = 16
PAGE = (1 << 20) // SCALE
ITEM = 400_000 // SCALE
BUFFER, BATCH = BUFFER_BYTES // SCALE, BATCH_BYTES // SCALE
MOST = BUFFER + AT_ONCE * PAGE + 2 * (BATCH + PAGE)  # read ahead; under way; one batch stored, one encoded


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "PAGE_BYTES", PAGE)
    monkeypatch.setattr(keys_only, "PAGE_BYTES", PAGE, raising=False)
    monkeypatch.setattr(batching, "BUFFER_BYTES", BUFFER)
    monkeypatch.setattr(batching, "BATCH_BYTES", BATCH)


def filled(count: int, items: int, view: str = "NEW_IMAGE") -> DynamoDB:
    source = DynamoDB(now=time.time, random=random.Random(1), shards=count)
    source.create_table("orders", keys={"pk": "S"}, view=view)
    for n in range(items):
        source.put("orders", {"pk": str(n), "filler": "x" * ITEM})
    return source


class Weighing:
    """A client that counts the images it returned."""

    def __init__(self, source: DynamoDB) -> None:
        self._source = source
        self._lock = threading.Lock()
        self.images = 0

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        body = self._source.call(operation, request)
        with self._lock:
            self.images += body.count(b'"filler":')
        return body

    def rest(self) -> None:
        """Wait until nothing was returned for a while."""
        before = -1
        while before != self.images:
            before = self.images
            threading.Event().wait(0.03)


class Overlaps(MemoryTarget):
    """Stores at once and stops the run after ``expected`` changes. ``most``: the most read but not stored."""

    def __init__(self, client: Weighing, expected: int, stop: threading.Event) -> None:
        super().__init__(MemoryDatabase())
        self._client, self._expected, self._stop = client, expected, stop
        self._sent = Batch()
        self.stored = self.most = 0

    def encode(self, batch: Batch) -> Batch:
        return batch

    def send(self, encoded: Batch) -> None:
        self._sent = encoded

    def ready(self) -> bool:
        return True

    def collect(self) -> Outcome:
        return self.write(self._sent)

    def write(self, batch: Batch) -> Outcome:
        self.most = max(self.most, self._client.images - self.stored)
        self.stored += sum(part.counts.read for part in batch.parts)
        if self.stored >= self._expected:
            self._stop.set()
        return super().write(batch)


class Slow(Overlaps):
    """Not ready the first 160 times, during which all responses in flight arrive."""

    _not_yet = 160

    def ready(self) -> bool:
        if self._not_yet:
            self._not_yet -= 1
            self._client.rest()
        return not self._not_yet


class Gathers(Overlaps):
    """Wants large batches. ``sizes``: of those it got."""

    def __init__(self, client: Weighing, expected: int, stop: threading.Event, size: BatchSize) -> None:
        super().__init__(client, expected, stop)
        self.batch_size = size
        self.sizes: list[int] = []

    def write(self, batch: Batch) -> Outcome:
        if batch.parts:
            self.sizes.append(sum(part.counts.read for part in batch.parts))
        return super().write(batch)


class InTurn(VirtualSteps):
    """Answers each call at once. Resting generators advance only when no other can and the caller may wait."""

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self._turns: deque[str] = deque()
        self._resting: deque[str] = deque()

    def again(self, name: str, rest: float = 0.0) -> None:
        (self._resting if rest else self._turns).append(name)

    def get(self, timeout: float) -> StepResult | None:
        queue = self._turns or (self._resting if timeout else ())
        return self._step(queue.popleft()) if queue and not self.full() else None


def run(client: Weighing, target: Overlaps, stop: threading.Event, **more: Any) -> None:
    table = describe_table(client, "orders")
    config = Config(
        "memory",
        Source(table="orders"),
        Destination("memory", None, None, {"orders": {}}),  # type: ignore[arg-type]
        backfill=Backfill(enabled=False),
    )
    copy = RunContext(config, client, target, target.checkpoints, None, table, (Table("orders", table.keys),))
    world = Environment(stop, lambda _: None, **more)
    Driver(copy, Owner("run", "here", 1, 0.0), world).run(until=None)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("view", "count", "more"),
    [
        ("NEW_IMAGE", 200, {}),
        ("KEYS_ONLY", 200, {}),
        ("KEYS_ONLY", 4, {"steps": InTurn}),  # else a run waits for the target where a look-up needs two responses
    ],
)
def test_memory_of_unstored_pages_is_bounded_regardless_of_the_number_of_shards(
    view: str, count: int, more: Mapping[str, Any]
) -> None:
    client, stop = Weighing(filled(count, 500, view)), threading.Event()
    target = Slow(client, 500, stop)
    run(client, target, stop, **more)
    assert target.stored == 500
    assert BUFFER <= target.most * ITEM <= MOST


@pytest.mark.usefixtures("small")
def test_a_full_batch_does_not_wait_for_further_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "BATCH_ROWS", 10)
    client, stop = Weighing(filled(200, 300)), threading.Event()
    target = Overlaps(client, 300, stop)
    run(client, target, stop, steps=InTurn)
    assert target.stored == 300
    assert target.most <= 3 * (10 + PAGE // ITEM + 1)  # one is stored, the next waits, and one is not whole


def test_a_target_that_wants_large_batches_gets_them_while_there_are_changes_enough() -> None:
    client, stop = Weighing(filled(4, 400)), threading.Event()
    target = Gathers(client, 400, stop, BatchSize(rows=200, seconds=5.0))
    run(client, target, stop, steps=InTurn, monotonic=Clock())
    assert sum(target.sizes) == 400
    assert 200 <= target.sizes[0] <= 250
    assert len(target.sizes) <= 3


def test_what_there_is_is_stored_after_the_time_for_which_a_target_waits() -> None:
    client, stop, clock = Weighing(filled(4, 100)), threading.Event(), Clock()
    target = Gathers(client, 100, stop, BatchSize(rows=1000, seconds=5.0))
    run(client, target, stop, steps=InTurn, monotonic=clock)
    assert target.sizes == [100]
    assert 5.0 <= clock.at < 20.0


@pytest.mark.usefixtures("small")
def test_memory_of_unstored_pages_is_bounded_for_large_batches_too() -> None:
    client, stop = Weighing(filled(200, 500)), threading.Event()
    target = Gathers(client, 500, stop, BatchSize(rows=1_000_000, seconds=0.05))
    run(client, target, stop)
    assert target.stored == 500
    assert target.most * ITEM <= MOST + 2 * (LARGE - 1) * BATCH


class Clock:
    """A monotonic clock that goes on by itself, whenever it is looked at."""

    at = 0.0

    def __call__(self) -> float:
        self.at += 0.01
        return self.at


class Remembering:
    """A client that keeps its last response."""

    def __init__(self, source: DynamoDB) -> None:
        self._source = source
        self.last = b""

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        self.last = self._source.call(operation, request)
        return self.last


@pytest.mark.usefixtures("small")
def test_a_resting_reader_does_not_retain_its_page() -> None:
    source = filled(1, 4)
    client, table = Remembering(source), describe_table(source, "orders")
    arn = table.stream_arn or ""
    stream = Stream(arn, "orders", table.keys, RecordsDecoder(table.keys), time.time, random.Random(1))
    (shard,) = source.open_shards("orders")
    reader = answered(client, read(stream, shard, ShardState(None, None, whole=True, since=time.time())))
    page = next(page for page in reader if page.records)
    while_held = sys.getrefcount(client.last)
    del page
    afterwards = sys.getrefcount(client.last)
    assert (while_held > 2, afterwards) == (True, 2)  # the client's, and that of the call

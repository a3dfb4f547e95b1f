"""The history against a plain model: random changes, scans, epochs, batches and replays, on a real Postgres.

At every time that is kept, the history has the state that the source had then.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from connectors.postgres import Postgres
from replicator.batch import Batch
from replicator.change import Page, Record, ScanPage
from replicator.hooks.hook import DocumentMapping
from replicator.items.attributes import image
from replicator.pipeline.advance import scanned, streamed
from replicator.pipeline.compaction import BatchContext
from replicator.pipeline.parked import ParkedItems
from replicator.state import HistorySpan, Save, SegmentState, ShardState, encode
from replicator.target.contract import Table
from replicator.target.past import Extent, Period
from replicator.version import FIRST_EPOCH, version
from tests.connectors.postgres.postgres_kit import PK, opened, rows
from tests.servers.postgres_fixtures import Database

pytestmark = pytest.mark.postgres

DAY = 86_400.0
KEYS = [(letter,) for letter in "abcdefgh"]
Event = tuple[float, tuple[str, ...], int | None]


@dataclass
class Source:
    """A table and its stream: whole seconds, one change each, over six days."""

    random: random.Random
    began: float
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        times = sorted({self.began + self.random.randrange(int(6 * DAY)) for _ in range(60)})
        state: dict[tuple[str, ...], int] = {}
        for n, at in enumerate(times):
            key = self.random.choice(KEYS)
            value = None if key in state and self.random.random() < 0.3 else n
            self.events.append((float(at), key, value))
            state = self.state(at)

    def state(self, at: float) -> dict[tuple[str, ...], int]:
        found: dict[tuple[str, ...], int] = {}
        for time_, key, value in self.events:
            if time_ <= at:
                found.pop(key, None)
                if value is not None:
                    found[key] = value
        return found

    def records(self, since: float, until: float) -> Iterator[Record]:
        for n, (at, key, value) in enumerate(self.events, start=1):
            if since <= at < until:
                old = self.state(at - 1).get(key)
                yield Record(key, f"{n:021d}", at, _image(key, value), _image(key, old))


def _image(key: tuple[str, ...], value: int | None) -> bytes | None:
    return None if value is None else image({"pk": key[0], "v": value})


@dataclass
class Copy:
    """Epochs of a pipeline that copies the source."""

    source: Source
    target: Postgres
    table: Table
    random: random.Random

    @property
    def mapping(self) -> DocumentMapping:
        return DocumentMapping(None, (self.table.name,), histories=frozenset({self.table.name}))

    def epoch(self, number: int, began: float, until: float, *, trimmed: bool = False) -> None:
        """Read the stream from up to a day before the epoch, or from its beginning if the records before are trimmed.

        Meanwhile scan each item at some time since; then sweep.
        """
        self.target.open([self.table], number)
        span = HistorySpan(began, began)
        self.target.checkpoints.save([Save("history", str(number), 0, encode(span))])
        records = list(self.source.records(began if trimmed else began - DAY, until))
        found = {key: self.scanned(key, began, until) for key in KEYS}
        scans = [ScanPage(0, [(key, body)]) for key, body in found.items() if body is not None]
        at = BatchContext({}, ParkedItems(), number, "shard:s", 0.0, began=began)
        shard = ShardState(None, None, whole=False, since=began)
        while records or scans:
            if scans and (not records or self.random.random() < 0.3):
                _, compacted = scanned(SegmentState(1), [scans.pop()], self.mapping, at)
            else:
                size = self.random.randint(1, 12)
                page, records = records[:size], records[size:]
                shard, compacted = streamed(shard, [Page("s", page)], self.mapping, at, ignore_expired=False)
            batch = Batch([compacted.part("shard:s")], tombstones=True)
            for _ in range(self.random.choice([1, 1, 2])):  # a batch whose response was lost comes again
                self.target.write(batch)
        while self.target.sweep(self.table, version(number, 0), ()):
            pass

    def scanned(self, key: tuple[str, ...], began: float, until: float) -> bytes | None:
        return _image(key, self.source.state(self.random.uniform(began, until - 1)).get(key))


def as_of(copy: Copy, at: float, epochs: tuple[int, int]) -> dict[tuple[str, ...], int]:
    found = copy.target.history_as_of(copy.table, None, at, epochs)
    return {(s.key["pk"],): json.loads(s.document or "null")["v"] for s in found}


@pytest.mark.parametrize("seed", range(12))
def test_the_state_at_any_time_is_that_of_the_source(one_postgres: Database, seed: int) -> None:
    chance = random.Random(seed)
    start = time.time() // 1 - 7 * DAY
    source = Source(chance, start)
    table = Table("contract", PK, {"history": {}})
    copy = Copy(source, opened(one_postgres, table), table, chance)
    first, second, end = start + DAY, start + chance.uniform(2, 4) * DAY, start + 7 * DAY
    copy.epoch(FIRST_EPOCH, first, second)
    copy.epoch(FIRST_EPOCH + 1, second, end)
    kept = rows(one_postgres, "contract_history")
    streamed_rows = [row["_sequence"] for row in kept if row["_sequence"]]
    assert len(streamed_rows) == len(set(streamed_rows)) == len(list(source.records(start, end)))
    for at in [*(event[0] for event in source.events), *(chance.uniform(first, end) for _ in range(20))]:
        if at >= first:
            epochs = (FIRST_EPOCH, FIRST_EPOCH + 1) if at < second else (FIRST_EPOCH + 1, FIRST_EPOCH + 2)
            assert as_of(copy, at, epochs) == source.state(at), at
    for key in KEYS:
        shown = copy.target.history_changes(table, json.dumps({"pk": key[0]}), Period())
        values = [json.loads(c.new)["v"] if c.new else None for c in shown if c.sequence]
        assert values == [value for _, k, value in source.events if k == key]


@pytest.mark.parametrize("seed", range(12))
def test_before_and_after_a_gap_the_state_is_that_of_the_source(one_postgres: Database, seed: int) -> None:
    chance = random.Random(seed)
    start = time.time() // 1 - 7 * DAY
    source = Source(chance, start)
    table = Table("contract", PK, {"history": {}})
    copy = Copy(source, opened(one_postgres, table), table, chance)
    first, lost, second, end = start + DAY, start + 3 * DAY, start + 4 * DAY, start + 7 * DAY
    copy.epoch(FIRST_EPOCH, first, lost, trimmed=True)
    copy.epoch(FIRST_EPOCH + 1, second, end, trimmed=True)
    for at in [first, lost - 1, second, *(event[0] for event in source.events)]:
        if first <= at < lost or at >= second:
            epochs = (FIRST_EPOCH, FIRST_EPOCH + 1) if at < second else (FIRST_EPOCH + 1, FIRST_EPOCH + 2)
            assert as_of(copy, at, epochs) == source.state(at), at


@pytest.mark.parametrize("seed", range(4))
def test_what_is_older_than_is_kept_is_removed_and_the_state_since_then_stays(
    one_postgres: Database, seed: int
) -> None:
    chance = random.Random(seed)
    start = time.time() // 1 - 7 * DAY
    source = Source(chance, start)
    table = Table("contract", PK, {"history": {"keep": f"{2 + seed % 2}d"}})
    copy = Copy(source, opened(one_postgres, table), table, chance)
    copy.epoch(FIRST_EPOCH, start + DAY, start + 7 * DAY)
    assert copy.target.history_extent(table) == Extent(FIRST_EPOCH)
    while copy.target.retain([table]):
        pass
    extent = copy.target.history_extent(table)
    assert extent is not None
    assert extent.since is not None
    assert 0 <= time.time() - (2 + seed % 2) * DAY - extent.since < DAY
    times = [row["_changed_at"].timestamp() for row in rows(one_postgres, "contract_history")]
    assert all(at >= extent.since for at in times)
    assert all(row["_new"] is not None for row in rows(one_postgres, "contract_history_base"))
    for at in [extent.since, *(chance.uniform(extent.since, time.time()) for _ in range(20))]:
        assert as_of(copy, at, (FIRST_EPOCH, FIRST_EPOCH + 1)) == source.state(at), at
    copy.epoch(FIRST_EPOCH + 1, time.time(), time.time() + 1)  # a scan finds nothing that is new
    assert not [row for row in rows(one_postgres, "contract_history") if row["_version"] >> 48 > FIRST_EPOCH]

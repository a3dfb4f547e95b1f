"""The history against a plain model: random changes, scans, epochs, batches and replays, on a real Postgres.

At every time that is kept, the history has the state that the source had then.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from connectors.postgres import Postgres
from replicator.batch import Batch, Upsert
from replicator.change import Page, Record, ScanPage
from replicator.errors import ConfigError
from replicator.hooks.hook import DocumentMapping, Hook
from replicator.items.attributes import image
from replicator.operations.history import Known
from replicator.operations.history import epochs as chosen_epochs
from replicator.pipeline.advance import scanned, streamed
from replicator.pipeline.compaction import BatchContext
from replicator.pipeline.parked import ParkedItems
from replicator.pipeline.past import known_before
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


def compared(target: Postgres, table: Table, state: Mapping[tuple[str, ...], int]) -> set[tuple[str, ...]]:
    """What differs from the expected documents, in the rows or in the history, as ``verify`` tells it."""
    writes = [Upsert(table.name, key, {"pk": key[0], "v": value}, 0, key, 0) for key, value in state.items()]
    found = target.compare(table, writes)
    assert all(comparison.version is not None for comparison in found)
    return {comparison.fields for comparison in found if comparison.fields}


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
    assert compared(copy.target, table, source.state(time.time())) == set()
    assert not [row for row in rows(one_postgres, "contract_history") if row["_version"] >> 48 > FIRST_EPOCH]


@dataclass(frozen=True)
class Plan:
    """An epoch of a story. ``began``: the time of its positions; ``stop``: up to when it reads. ``whole``: its scan is
    done. ``first``: from when on the stream still has records. ``hook``: the number of the hook."""

    epoch: int
    began: float
    stop: float
    first: float
    hook: int
    whole: bool = True


def _hooked(hook: int, value: int | None) -> int | None:
    """The document's value: hook 0 keeps everything, 1 and 2 filter, 3 changes the values."""
    if value is None or (hook in (1, 2) and value % 2 == hook % 2):
        return None
    return value + 1000 if hook == 3 else value


@dataclass
class Story:
    """A pipeline with resyncs: under another hook, after gaps, killed in the scan, from exports of earlier times."""

    source: Source
    target: Postgres
    table: Table
    random: random.Random
    plans: list[Plan] = field(default_factory=list)
    spans: dict[int, HistorySpan] = field(default_factory=dict)
    settled: bool = True
    through: float | None = None

    def plan(self, end: float) -> Iterator[Plan]:
        """Random epochs from a day after the source's beginning until ``end``."""
        chance, now, hook = self.random, self.source.began + DAY, self.random.randrange(4)
        first = now - DAY
        for epoch in range(FIRST_EPOCH, FIRST_EPOCH + 5):
            whole = chance.random() < 0.7 or epoch == FIRST_EPOCH + 4
            stop = end if epoch == FIRST_EPOCH + 4 else min(end, now + chance.uniform(0.2, 1.5) * DAY)
            exported = epoch > FIRST_EPOCH and chance.random() < 0.25 and self.plans[-1].whole
            if not exported and chance.random() < 0.5:
                hook = chance.randrange(4)
            yield Plan(epoch, (now - chance.uniform(0.1, 0.8) * DAY) if exported else now, stop, first, hook, whole)
            gap = chance.choice([0.0, 0.0, 1.0, 2000.0, DAY / 2])
            now = min(end - 1, stop + gap)
            first = now if chance.random() < 0.5 else now - DAY

    def run(self, plan: Plan) -> Iterator[None]:
        """Read what the plan says; stops now and then in between."""
        number, began, chance = plan.epoch, plan.began, self.random
        known = None
        if self.plans:
            earlier = self.spans[self.plans[-1].epoch]
            known = known_before(earlier, self.through, None if self.settled else -math.inf)
        self.plans.append(plan)
        self.spans[number] = HistorySpan(began, known, (self.table.name,))
        self.settled, self.through = False, began
        self.target.open([self.table], number)
        self.target.checkpoints.save([Save("history", str(number), 0, encode(self.spans[number]))])
        hook = Hook("hook", lambda item: _document(plan.hook, item), str(plan.hook), declared=False)
        mapping = DocumentMapping(hook, (self.table.name,), histories=frozenset({self.table.name}))
        since = min(plan.first, began)
        records = list(self.source.records(since if since == plan.first else began, plan.stop))
        scans = [ScanPage(0, [(key, body)]) for key in KEYS if (body := self.scanned(key, plan)) is not None]
        if not plan.whole:
            del scans[: chance.randint(1, len(KEYS))]
        at = BatchContext({}, ParkedItems(), number, "shard:s", 0.0, began=began)
        shard = ShardState(None, None, whole=False, since=began)
        while records or scans:
            if scans and (not records or chance.random() < 0.3):
                _, compacted = scanned(SegmentState(1), [scans.pop()], mapping, at)
            else:
                size = chance.randint(1, 8)
                page, records = records[:size], records[size:]
                shard, compacted = streamed(shard, [Page("s", page)], mapping, at, ignore_expired=False)
                self.through = max(began, records[0].created if records else plan.stop)
            for _ in range(chance.choice([1, 1, 2])):
                self.target.write(Batch([compacted.part("shard:s")], tombstones=True))
            yield
        self.through = plan.stop
        if plan.whole:
            while self.target.sweep(self.table, version(number, 0), ()):
                pass
            self.settled = True
            assert compared(self.target, self.table, self.expected(plan.hook, plan.stop - 1)) == set(), self.plans
        yield

    def scanned(self, key: tuple[str, ...], plan: Plan) -> bytes | None:
        """An export has the items as of its time, a scan as of some time since."""
        now = max(plan.began, self.plans[-2].stop) if len(self.plans) > 1 else plan.began
        exported = plan.began < now
        at = plan.began if exported else self.random.uniform(plan.began, plan.stop - 1)
        return _image(key, self.source.state(at).get(key))

    def expected(self, hook: int, at: float) -> dict[tuple[str, ...], int]:
        return {k: h for k, v in self.source.state(at).items() if (h := _hooked(hook, v)) is not None}

    def agrees(self, at: float) -> bool | None:
        """Whether the state as of a time is that of the source; None: the time is refused."""
        known = Known(self.spans, self.through, None, None if self.settled else -math.inf)
        extent = self.target.history_extent(self.table)
        assert extent is not None
        try:
            epochs = chosen_epochs(known, self.table.name, extent, at)
        except ConfigError:
            return None
        expected = self.expected(next(plan.hook for plan in self.plans if plan.epoch == epochs[0]), at)
        found = {(s.key["pk"],): s for s in self.target.history_as_of(self.table, None, at, epochs)}
        assert {k: json.loads(s.document or "null")["v"] for k, s in found.items()} == expected, (
            at,
            epochs,
            self.plans,
        )
        return True


def _document(hook: int, item: Mapping[str, object]) -> dict[str, object] | None:
    value = _hooked(hook, int(str(item["v"])))
    return None if value is None else {"pk": item["pk"], "v": value}


@pytest.mark.parametrize("seed", range(30))
def test_after_resyncs_gaps_other_hooks_and_killed_scans_a_time_is_right_or_refused(
    one_postgres: Database, seed: int
) -> None:
    """At times during every epoch, and after it, for all times that are read by then."""
    chance = random.Random(seed)
    start = time.time() // 1 - 7 * DAY
    source = Source(chance, start)
    table = Table("contract", PK, {"history": {}})
    story = Story(source, opened(one_postgres, table), table, chance)
    times = [*(event[0] for event in source.events), *(chance.uniform(start, start + 7 * DAY) for _ in range(20))]
    right = 0
    for plan in story.plan(start + 7 * DAY):
        for _ in story.run(plan):
            read = [at for at in times if at < (story.through or 0.0)]
            if read and chance.random() < 0.2:
                story.agrees(chance.choice(read))
        right = sum(story.agrees(at) or False for at in times if at < plan.stop)
        right += sum(story.agrees(one.began) or False for one in story.plans)
    assert right > 5

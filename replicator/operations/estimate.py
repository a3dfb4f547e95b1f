"""What a copy costs and how long it takes, as ranges: from the table's size, its open shards and a sample of items.

``calculated`` is pure; ``estimate`` reads the facts. Nothing is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from replicator.aws import boto
from replicator.aws.client import Client, completed
from replicator.aws.errors import AwsError, decoded, failure
from replicator.aws.prices import Prices
from replicator.batch import Upsert
from replicator.change import Shard
from replicator.config.engine import Lambda
from replicator.hooks import loading
from replicator.hooks.hook import DocumentMapping
from replicator.hooks.time_limit import HookLimit
from replicator.operations.preview import preview
from replicator.source import sample
from replicator.source.decoding import KeyReader
from replicator.source.stream import describe_stream
from replicator.source.table import SourceTable, describe_table
from replicator.target.contract import history_days, keeps_history

if TYPE_CHECKING:
    from replicator.config.settings import Config
    from replicator.config.verification import Verify

SAMPLED = 100  # items
_HOUR = 3600.0  # seconds
_DAY = 86_400.0
_MONTH = 30 * _DAY
_READ_UNIT, _WRITE_UNIT, _PAGE, _GB = 4096, 1024, 1 << 20, 1 << 30  # bytes
_STALE = 0.1  # a table's statistics are up to six hours old: how much it may have grown since, as a guess
_BATCH, _SCHEDULE = 1000, 900  # records of a batch on AWS Lambda, and seconds between its schedule's invocations
_READS = 5  # requests for a shard without changes in one of these, at most
_IDLE_POLL = (0.95, 1.1)  # seconds between the requests of an idle shard, with the time a response takes
_SPEEDS = {
    "postgres": (5_000, 80_000),
    "elasticsearch": (2_000, 40_000),
    "opensearch": (2_000, 40_000),
    "delta": (2_000, 40_000),
    "redis": (2_000, 40_000),
    "webhook": (100, 20_000),  # what the receiver does with an event decides
}
_SPEED = (500, 5_000)  # items per second to other targets, which answer each write
_WITH_HISTORY = (0.25, 0.8)  # of the speed without one
_EVENT = 250  # bytes of an event besides its document
_OWN_BYTES = 40  # what replicator adds to an item in DynamoDB
_HISTORY_ROW = (150, 500)  # bytes of a row of a history and of its entry in the index, without documents
_AS_JSON = (0.25, 1.3)  # of the bytes of an item: types are not named, names are, and long documents are compressed
_PARTITION = 0.25, 1  # of the days that are kept, and days: how much longer a partition may stay, at most


@dataclass(frozen=True, slots=True)
class Range:
    """From the lowest to the highest value that is plausible."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"a range from {self.low} to {self.high}")

    def times(self, low: float, high: float | None = None) -> Range:
        return Range(self.low * low, self.high * (low if high is None else high))

    def plus(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the estimate is made from.

    ``items``, ``bytes``: of the table, up to six hours old. ``shards``: open ones; 0 if the stream is off.
    ``per_item``: documents per sampled item. ``document_bytes``: of an average sampled document, roughly.
    ``on_demand``: whether reads are charged one by one. ``changes``: per second.
    """

    items: int
    bytes: int
    shards: int
    per_item: float
    document_bytes: float
    region: str | None
    on_demand: bool
    keys_only: bool
    changes: Range


@dataclass(frozen=True, slots=True)
class History:
    """``days``: for how many changes are kept; None: for good. ``all_tables``: whether all of the target's do."""

    days: int | None
    all_tables: bool = True


@dataclass(frozen=True, slots=True)
class Limits:
    """What the config limits. ``poll_interval``: seconds between the requests of an idle shard, if it is configured.

    ``events``, ``event_bytes``: of a request to a webhook, at most. ``history``: what tables keep of every change, if
    any does. ``verify``: of the run's own verification passes, if it makes any. ``exports``: the backfill reads an
    export, and ``export_exists`` already. ``gap_exports``: gaps are repaired from exports. ``function``: AWS Lambda
    follows the stream. ``backfill``: whether there is one.
    """

    target: str
    segments: int
    read_units: float | None = None
    write_units: float | None = None
    poll_interval: float | None = None
    verify: Verify | None = None
    exports: bool = False
    export_exists: bool = False
    gap_exports: bool = False
    history: History | None = None
    events: int | None = None
    event_bytes: int | None = None
    function: bool = False
    backfill: bool = True


@dataclass(frozen=True, slots=True)
class Estimate:
    """``backfill``: once; ``month``: 30 days of following changes. Money is in US dollars; None: nothing is charged.

    ``export``: what DynamoDB charges for one, by the table's size. ``gap_hour``: for the exports that repair an hour's
    gap, by the size of its changes. ``history``: bytes that the histories of tables have after the backfill;
    ``history_thousand``, ``month_history``: that a thousand changes, and those of a month, add; ``history_most``: that
    all changes have that are kept for ``history_days``. None: there is no history, or it is kept for good. ``posts``,
    ``month_posts``: requests to a webhook. ``backfill``: whether there is one; else its ranges are 0.
    """

    facts: Facts
    read_units: Range
    scan_requests: Range
    documents: Range
    write_units: Range | None
    seconds: Range
    backfill_reads: Range | None
    backfill_writes: Range | None
    month_requests: Range
    month_stream: Range
    month_reads: Range | None
    month_writes: Range | None
    month_verify_units: Range | None
    month_verify: Range | None
    limited_by: str
    export: Range | None = None
    gap_hour: Range | None = None
    history: Range | None = None
    history_thousand: Range | None = None
    month_history: Range | None = None
    history_most: Range | None = None
    history_days: int | None = None
    posts: Range | None = None
    month_posts: Range | None = None
    backfill: bool = True


def calculated(facts: Facts, limits: Limits, prices: Prices) -> Estimate:
    growth = Range(1.0, 1.0 + _STALE)
    items = growth.times(facts.items)
    pages = growth.times(facts.bytes / _PAGE).plus(Range(limits.segments, limits.segments))
    units = growth.times(facts.bytes / _READ_UNIT).plus(Range(0, pages.high))
    exported = None
    if limits.exports:
        charged = 0 if limits.export_exists else facts.bytes
        exported = growth.times(charged / _GB * prices.exports).times(*prices.of("exports", facts.region))
        pages = units = Range(0, 0)
    if not limits.backfill:
        items = pages = units = Range(0, 0)
        exported = None
    gap_hour = None
    if limits.gap_exports:
        changed = facts.changes.times(_HOUR * facts.bytes / max(1, facts.items) / _GB)
        gap_hour = changed.times(1, 2).times(prices.exports).times(*prices.of("exports", facts.region))
    documents = items.times(facts.per_item)
    writes = _write_units(documents, facts, limits)
    seconds, limited_by = _duration(items, units, writes, limits)
    requests = _stream_requests(facts, limits)
    read, write, stream = (prices.of(name, facts.region) for name in ("reads", "writes", "stream_reads"))
    lookups = _lookups(facts)
    verified = None if limits.verify is None else _verify_units(facts, limits.verify)
    month_writes = _write_units(facts.changes.times(_MONTH * facts.per_item), facts, limits)
    return Estimate(
        facts=facts,
        read_units=units,
        scan_requests=pages,
        documents=documents,
        write_units=writes,
        seconds=seconds,
        backfill_reads=units.times(prices.reads / 1e6).times(*read) if facts.on_demand else None,
        backfill_writes=None if writes is None else writes.times(prices.writes / 1e6).times(*write),
        month_requests=requests,
        month_stream=_beyond(requests, prices.free_stream_reads).times(prices.stream_reads / 1e6).times(*stream),
        month_reads=None if lookups is None else lookups.times(prices.reads / 1e6).times(*read),
        month_writes=None if month_writes is None else month_writes.times(prices.writes / 1e6).times(*write),
        month_verify_units=verified,
        month_verify=None
        if verified is None or not facts.on_demand
        else verified.times(prices.reads / 1e6).times(*read),
        limited_by=limited_by,
        export=exported,
        gap_hour=gap_hour,
        posts=_posts(documents, facts, limits),
        month_posts=_posts(facts.changes.times(_MONTH * facts.per_item), facts, limits),
        backfill=limits.backfill,
        **_history(documents, facts, limits.history),
    )


def _posts(documents: Range, facts: Facts, limits: Limits) -> Range | None:
    """Requests to a webhook: full ones at best, and one for each event at worst, as when changes come one by one."""
    if limits.events is None:
        return None
    most = limits.events
    if limits.event_bytes is not None:
        most = max(1, min(most, limits.event_bytes // int(facts.document_bytes * _AS_JSON[0] + _EVENT)))
    return Range(documents.low / most, documents.high)


def _history(documents: Range, facts: Facts, history: History | None) -> dict[str, Any]:
    """The fields of histories: a row for each document of the scan, and for each change one with up to two of them."""
    if history is None:
        return {}
    row = Range(*_HISTORY_ROW).plus(Range(facts.document_bytes, facts.document_bytes).times(*_AS_JSON))
    change = Range(row.low, row.high + facts.document_bytes * _AS_JSON[1]).times(facts.per_item)
    share = 1.0 if history.all_tables else 0.0
    most = None
    if history.days is not None:
        more, least = _PARTITION
        kept = Range(history.days, history.days * (1 + more) + least).times(_DAY)
        most = Range(facts.changes.low * kept.low * change.low * share, facts.changes.high * kept.high * change.high)
    return {
        "history": Range(documents.low * row.low * share, documents.high * row.high),
        "history_thousand": change.times(1000 * share, 1000),
        "month_history": Range(
            facts.changes.low * _MONTH * change.low * share, facts.changes.high * _MONTH * change.high
        ),
        "history_most": most,
        "history_days": history.days,
    }


def _write_units(documents: Range, facts: Facts, limits: Limits) -> Range | None:
    """Of a DynamoDB target: each write is rounded up to 1 KB; indexes come on top."""
    if limits.target != "dynamodb":
        return None
    each = math.ceil((facts.document_bytes + _OWN_BYTES) / _WRITE_UNIT)
    return Range(documents.low * max(1, each - 1), documents.high * (each + 1))


def _lookups(facts: Facts) -> Range | None:
    """Read units a month for the items that a stream of keys leads to; None if none is charged."""
    if not (facts.keys_only and facts.on_demand):
        return None
    each = max(1, math.ceil(facts.bytes / max(1, facts.items) / _READ_UNIT))
    return facts.changes.times(_MONTH).times(each, each + 1)


def pass_units(items: int, bytes: int) -> Range:
    """Read units of a verification pass: of the scan, and of each item once more, for which 4 KB are a unit, too.

    At least those of the scan: items of which the hook keeps nothing are not looked up.
    """
    scan, each = bytes / _READ_UNIT, math.ceil(bytes / max(1, items) / _READ_UNIT)
    return Range(scan, (1.0 + _STALE) * (scan + bytes / _PAGE + items * (each + 1)))


def _verify_units(facts: Facts, verify: Verify) -> Range:
    """Of a month: passes do not overlap, and keep to their read units."""
    units, passes = pass_units(facts.items, facts.bytes), _MONTH / verify.every
    most = verify.read_units * _MONTH
    return Range(min(most, units.low * passes), min(most, units.high * passes))


def _duration(items: Range, units: Range, writes: Range | None, limits: Limits) -> tuple[Range, str]:
    """Of the backfill: by the measured speed of such targets, unless a configured limit makes it longer."""
    share = (1.0, 1.0) if limits.history is None else _WITH_HISTORY
    slow, fast = (speed * s for speed, s in zip(_SPEEDS.get(limits.target, _SPEED), share, strict=True))
    candidates = [(Range(items.low / fast, items.high / slow), "the speed of reading and of the target")]
    if limits.read_units is not None:
        candidates.append((units.times(1 / limits.read_units), "backfill.read_units"))
    if limits.write_units is not None and writes is not None:
        candidates.append((writes.times(1 / limits.write_units), "target.write_units"))
    if not limits.backfill:
        return Range(0, 0), "backfill.enabled: false"
    longest = Range(max(c.low for c, _ in candidates), max(c.high for c, _ in candidates))
    return longest, max(candidates, key=lambda c: c[0].high)[1]


def idle_requests(poll_interval: float | None, seconds: float = _DAY) -> Range:
    """Requests that a shard without changes takes: each one is charged, like those that return records."""
    quick, slow = _IDLE_POLL if poll_interval is None else (poll_interval, poll_interval + 0.1)
    return Range(seconds / slow, seconds / quick)


def _stream_requests(facts: Facts, limits: Limits) -> Range:
    """Of a month. A change costs a request more at most: the next one follows its page at once."""
    if limits.function:
        return _function_requests(facts)
    idle = idle_requests(limits.poll_interval, _MONTH).times(facts.shards)
    changes = facts.changes.times(_MONTH)
    return Range(idle.low, idle.high + changes.high) if facts.shards else Range(0, 0)


def _function_requests(facts: Facts) -> Range:
    """Of a month, of a function: to see that each batch continues what is stored, and of its schedule, which reads
    shards without changes. What Lambda itself requests is not charged.
    """
    batches = facts.changes.times(_MONTH / _BATCH)
    most = min(facts.changes.high * _MONTH, facts.shards * _MONTH + batches.high)  # with a window of a second
    scheduled = facts.shards * _MONTH / _SCHEDULE * _READS
    return Range(batches.low, 2 * most + scheduled) if facts.shards else Range(0, 0)


def _beyond(requests: Range, free: int) -> Range:
    """What is charged: nothing, if others in the account use none of the free requests, or all of it, if they do."""
    return Range(max(0.0, requests.low - free), requests.high)


class _Billing(msgspec.Struct):
    BillingMode: str | None = None


class _Billed(msgspec.Struct):
    BillingModeSummary: _Billing | None = None


class _Description(msgspec.Struct):
    Table: _Billed


def estimate_each(configs: Sequence[Config], changes: Range, prices: Prices) -> Sequence[Estimate]:
    """An estimate of each target. The stream's requests are of the first one: a run of all targets reads it once.

    On AWS Lambda each function reads for itself.
    """
    if any(isinstance(config.engine, Lambda) for config in configs):
        return [estimate(config, changes, prices) for config in configs]
    first, *others = (estimate(config, changes, prices) for config in configs)
    nothing = Range(0, 0)
    return [first, *(replace(other, month_requests=nothing, month_stream=nothing) for other in others)]


def estimate(config: Config, changes: Range, prices: Prices) -> Estimate:
    """Read the facts, and calculate. ``changes``: per second."""
    hook = None if config.transform is None else loading.load(config.transform, config.base)
    client = boto.connect(config.source)
    table = describe_table(client, config.source.table)
    images = list(sample.spread(client, config.source.table, table.items, SAMPLED))
    mapping = DocumentMapping(hook, tuple(config.target.tables))
    documents = _documents(images, table, mapping, config.hook_timeout)
    facts = Facts(
        items=max(table.items, len(images)),
        bytes=max(table.bytes, sum(map(len, images))),
        shards=_open_shards(client, table),
        per_item=len(documents) / len(images) if images else 1.0,
        document_bytes=sum(documents) / len(documents) if documents else 0.0,
        region=boto.region_and_partition(config.source)[0],
        on_demand=_is_on_demand(client, config.source.table),
        keys_only=table.view == "KEYS_ONLY",
        changes=changes,
    )
    return calculated(facts, limits_of(config), prices)


def limits_of(config: Config) -> Limits:
    return Limits(
        target=config.target.type,
        segments=config.backfill.segments,
        read_units=config.backfill.read_units,
        write_units=getattr(config.target.options, "write_units", None),
        poll_interval=config.source.poll_interval,
        verify=config.verify,
        exports=config.backfill.source == "export",
        export_exists=config.backfill.export is not None,
        gap_exports=config.on_gap == "export",
        history=_kept_history(config.target.tables),
        events=getattr(config.target.options, "max_events", None),
        event_bytes=getattr(config.target.options, "max_bytes", None),
        function=isinstance(config.engine, Lambda),
        backfill=config.backfill.enabled,
    )


def _kept_history(tables: Mapping[str, Mapping[str, Any]]) -> History | None:
    kept = [history_days(options) for options in tables.values() if keeps_history(options)]
    if not kept:
        return None
    days = None if None in kept else max(day for day in kept if day is not None)
    return History(days, all_tables=len(kept) == len(tables))


def _documents(
    images: Sequence[bytes], table: SourceTable, mapping: DocumentMapping, timeout: float | None
) -> list[int]:
    """The sizes of the sampled items' documents: that of the item for each, as if the hook kept everything."""
    reader, sizes = KeyReader(table.keys), list[int]()
    for image in images:
        with HookLimit(timeout):
            result = preview(reader.of(image), image, mapping)
        writes = [write for write in result.writes if isinstance(write, Upsert)]
        sizes += [len(image) // max(1, len(writes)) if mapping.own_ids else len(image)] * len(writes)
    return sizes


def _open_shards(client: Client, table: SourceTable) -> int:
    if table.stream_arn is None or not table.streaming:
        return 0
    shards: list[Shard] = []
    after: str | None = None
    while True:
        page = completed(client, describe_stream(table.stream_arn, after=after))
        shards += page.shards
        after = page.LastEvaluatedShardId
        if after is None:
            return sum(shard.open for shard in shards)


def _is_on_demand(client: Client, name: str) -> bool:
    try:
        body = client.call("DescribeTable", {"TableName": name})
    except AwsError as e:
        raise failure(e, "DescribeTable", name) from e
    summary = decoded(body, _Description, "DescribeTable").Table.BillingModeSummary
    return summary is not None and summary.BillingMode == "PAY_PER_REQUEST"

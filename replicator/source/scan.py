"""Reads one segment of a consistent parallel Scan; each step makes one call."""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import orjson

from replicator.aws.client import Call
from replicator.aws.errors import AwsError, decoded, failure
from replicator.backoff import backoff
from replicator.change import ScanPage
from replicator.errors import TransientError
from replicator.key import KeySchema
from replicator.source.decoding import KeyReader
from replicator.state import SegmentState

LONGEST_BACKOFF = 20.0
QUICKEST_BACKOFF = 0.25


class _Consumed(msgspec.Struct):
    CapacityUnits: float | None = None


class _Scanned(msgspec.Struct):
    """Items must be there: without it anything in JSON would say that a segment is empty."""

    Items: list[msgspec.Raw] | None
    LastEvaluatedKey: dict[str, Any] | None = None
    ConsumedCapacity: _Consumed | None = None


@dataclass(frozen=True, slots=True)
class Scanned:
    """The table that is scanned."""

    table: str
    keys: KeySchema
    random: random.Random


def scan(table: Scanned, segment: int, state: SegmentState) -> Generator[Call | ScanPage, Any, None]:
    """Pages of a segment from its stored cursor on. A throttled step yields a page that says so.

    Reads are consistent: an item's scanned image is at least as new as every record before the stored positions.
    """
    cursor: Mapping[str, Any] | None = orjson.loads(state.cursor) if state.cursor is not None else None
    reader = KeyReader(table.keys)
    failures = 0
    while True:
        try:
            page, size = yield from _page(table, segment, state.total, cursor)
            items = reader.keyed(page.Items or (), "Scan")
        except TransientError as e:
            failures += 1
            rest = backoff(failures, table.random, base=QUICKEST_BACKOFF, limit=LONGEST_BACKOFF)
            yield ScanPage(segment, cursor=cursor, rest=rest, waiting_for=str(e))
            continue
        failures, cursor = 0, page.LastEvaluatedKey
        units = (page.ConsumedCapacity or _Consumed()).CapacityUnits or 0.0
        yield ScanPage(segment, items, cursor, read_units=units, size=size)
        if cursor is None:
            return


def _page(
    table: Scanned, segment: int, total: int, cursor: Mapping[str, Any] | None
) -> Generator[Call, bytes, tuple[_Scanned, int]]:
    request: dict[str, Any] = {
        "TableName": table.table,
        "ConsistentRead": True,
        "ReturnConsumedCapacity": "TOTAL",
        "Segment": segment,
        "TotalSegments": total,
    }
    if cursor is not None:
        request["ExclusiveStartKey"] = cursor
    try:
        body = yield Call("Scan", request)
    except AwsError as e:
        raise failure(e, "Scan", table.table) from e
    return decoded(body, _Scanned, "Scan"), len(body)


@dataclass(slots=True)
class ReadBudget:
    """Keeps a scan under so many read capacity units a second, over all its segments, by what DynamoDB says it took.

    Units that a page took beyond the budget are waited for before the next page of any segment.
    """

    per_second: float | None
    free_at: float = field(default=0.0)

    def spend(self, units: float, now: float) -> float:
        """Note what a page took at ``now``; seconds until the next page may be asked for."""
        if self.per_second is None:
            return 0.0
        self.free_at = max(self.free_at, now) + units / self.per_second
        return self.free_at - now

"""Reads one segment of a consistent parallel Scan, one call per step."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator, Mapping
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
from replicator.source import condition
from replicator.source.decoding import KeyReader
from replicator.source.table import check_same
from replicator.state import SegmentState

LONGEST_BACKOFF = 20.0
QUICKEST_BACKOFF = 0.25
CHECK_INTERVAL = 1.0  # seconds between checks that the table is still the same: AWS throttles DescribeTable


class _Consumed(msgspec.Struct):
    CapacityUnits: float | None = None


class _Scanned(msgspec.Struct):
    """``Items`` is required: otherwise any JSON object would look like an empty segment."""

    Items: list[msgspec.Raw] | None
    LastEvaluatedKey: dict[str, Any] | None = None
    ConsumedCapacity: _Consumed | None = None


@dataclass(slots=True)
class _Checks:
    """When it was last checked that the table is still the same: ``began`` of the last check, ``passed`` of the last
    one that succeeded, which began then."""

    began: float = -math.inf
    passed: float = -math.inf

    def due(self, now: float) -> bool:
        """Segments share them: the others do not wait for one in flight, for another interval at most."""
        age = now - self.passed
        return age >= 2 * CHECK_INTERVAL or (age >= CHECK_INTERVAL and now - self.began >= CHECK_INTERVAL)


@dataclass(frozen=True, slots=True)
class Scanned:
    """A table to scan; randomness (for backoff) and a monotonic clock are injected. ``identity``: see ``Stream``."""

    table: str
    keys: KeySchema
    random: random.Random
    now: Callable[[], float]
    identity: str = ""
    _checks: _Checks = field(default_factory=_Checks)

    @property
    def check_due(self) -> bool:
        """Whether items that were read now may be used only after another check."""
        return bool(self.identity) and self._checks.due(self.now())

    def check_same(self, *, answers: bool = False) -> Generator[Call, bytes, None]:
        """GapFound or ConfigError if another table has this one's name by now, or none.

        Otherwise all that was read before belongs to this table: a deleted one never comes back. ``answers``: see
        ``table.check_same``.
        """
        if self.identity:
            began = self._checks.began = self.now()
            yield from check_same(self.table, self.identity, "all of its items were read", answers=answers)
            self._checks.passed = max(self._checks.passed, began)


def scan(
    table: Scanned, segment: int, state: SegmentState, *, check_end: bool = True
) -> Generator[Call | ScanPage, Any, None]:
    """Yields calls and pages of a segment, from its stored cursor on. A failed step yields a page with ``waiting_for``.

    Reads are consistent: an item's scanned image is at least as new as every record before the stored positions.

    ``check_end``: the page that ends the segment comes after a check that the table is still the same, so no sweep
    follows on pages of another table that got its name. In between it is checked once a second.
    """
    cursor: Mapping[str, Any] | None = orjson.loads(state.cursor) if state.cursor is not None else None
    reader = KeyReader(table.keys)
    failures = 0
    while True:
        units = 0.0
        try:
            page, size = yield from _page(table, segment, state, cursor)
            units = (page.ConsumedCapacity or _Consumed()).CapacityUnits or 0.0
            items = reader.keyed(page.Items or (), "Scan")
            if (check_end and page.LastEvaluatedKey is None) or table.check_due:
                yield from table.check_same(answers=True)
        except TransientError as e:
            failures += 1
            rest = backoff(failures, table.random, base=QUICKEST_BACKOFF, limit=LONGEST_BACKOFF)
            yield ScanPage(segment, cursor=cursor, read_units=units, rest=rest, waiting_for=str(e))
            continue
        failures, cursor = 0, page.LastEvaluatedKey
        yield ScanPage(segment, items, cursor, read_units=units, size=size)
        if cursor is None:
            return


def _page(
    table: Scanned, segment: int, state: SegmentState, cursor: Mapping[str, Any] | None
) -> Generator[Call, bytes, tuple[_Scanned, int]]:
    request: dict[str, Any] = {
        "TableName": table.table,
        "ConsistentRead": True,
        "ReturnConsumedCapacity": "TOTAL",
        "Segment": segment if state.number is None else state.number,
        "TotalSegments": state.total,
    }
    if state.where:
        request |= condition.parse(state.where).filter
    if cursor is not None:
        request["ExclusiveStartKey"] = cursor
    try:
        body = yield Call("Scan", request)
    except AwsError as e:
        if e.code != "ResourceNotFoundException" or not table.identity:
            raise failure(e, "Scan", table.table) from e
        yield from table.check_same()
        raise TransientError(f"Scan on {table.table}: {e}") from e  # it is being created, or restored
    return decoded(body, _Scanned, "Scan"), len(body)


@dataclass(slots=True)
class ReadBudget:
    """Limits a scan to ``per_second`` read capacity units (None: no limit) over all its segments.

    DynamoDB reports what a page consumed afterwards, so the wait for those units comes before the next page of any
    segment.
    """

    per_second: float | None
    free_at: float = field(default=0.0)

    def spend(self, units: float, now: float) -> float:
        """Account for a page read at ``now``; returns the seconds until the next page may be requested."""
        if self.per_second is None:
            return 0.0
        self.free_at = max(self.free_at, now) + units / self.per_second
        return self.free_at - now

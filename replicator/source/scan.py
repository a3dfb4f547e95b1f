"""Reads one segment of a consistent parallel Scan, one call per step."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import orjson

from replicator.aws.client import Call
from replicator.aws.errors import AwsError, decoded, failure
from replicator.backoff import backoff
from replicator.change import ScanPage
from replicator.errors import TransientError
from replicator.key import Key, KeySchema
from replicator.source import condition
from replicator.source.decoding import KeyReader
from replicator.source.table import NotListed, check_same
from replicator.state import SegmentState

LONGEST_BACKOFF = 20.0
QUICKEST_BACKOFF = 0.25
CHECK_INTERVAL = 1.0  # seconds between checks that the table is still the same: AWS throttles DescribeTable
KEPT_BYTES = 8 << 20  # of pages that wait for one


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
    one that succeeded, which began then. ``kept``: bytes of pages that wait for one.
    """

    began: float = -math.inf
    passed: float = -math.inf
    kept: int = 0

    def due(self, now: float) -> bool:
        """Segments share them: the others do not wait for one in flight, for another interval at most."""
        age = now - self.passed
        return age >= 2 * CHECK_INTERVAL or (age >= CHECK_INTERVAL and now - self.began >= CHECK_INTERVAL)

    @contextlib.contextmanager
    def keeping(self, size: int) -> Iterator[None]:
        self.kept += size
        try:
            yield
        finally:
            self.kept -= size


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

    def is_proven(self, page: _Page, *, last: bool) -> bool:
        """Whether a page may be used without another check. ``last``: only if one began after the page was read."""
        if not self.identity or self._checks.passed > page.read:
            return True
        return not last and not self.check_due

    def can_keep(self, page: _Page) -> bool:
        return self._checks.kept == 0 or self._checks.kept + page.size <= KEPT_BYTES

    def keeping(self, page: _Page) -> AbstractContextManager[None]:
        """While a page waits for a check."""
        return self._checks.keeping(page.size)


@dataclass(frozen=True, slots=True)
class _Page:
    """What a Scan returned, and when. ``cursor``: as in ``ScanPage``. ``size``: of the response, in bytes."""

    items: Sequence[tuple[Key, msgspec.Raw]]
    cursor: Mapping[str, Any] | None
    size: int
    read: float


@dataclass(slots=True)
class _Reader:
    """Where the reader of a segment is. ``failures``: failed steps in a row. ``units``: that are still to be reported.
    ``check_first``: a page was given up because its check failed, so that the next is read after one that succeeds.
    """

    segment: int
    cursor: Mapping[str, Any] | None
    keys: KeyReader
    failures: int = 0
    units: float = 0.0
    check_first: bool = False
    ended: bool = False

    def waiting(self, table: Scanned, reason: str) -> ScanPage:
        self.failures += 1
        rest = backoff(self.failures, table.random, base=QUICKEST_BACKOFF, limit=LONGEST_BACKOFF)
        return ScanPage(self.segment, cursor=self.cursor, read_units=self._spent(), rest=rest, waiting_for=reason)

    def used(self, page: _Page) -> ScanPage:
        self.failures, self.cursor, self.ended = 0, page.cursor, page.cursor is None
        return ScanPage(self.segment, page.items, page.cursor, read_units=self._spent(), size=page.size)

    def _spent(self) -> float:
        units, self.units = self.units, 0.0
        return units


def scan(
    table: Scanned, segment: int, state: SegmentState, *, check_end: bool = True
) -> Generator[Call | ScanPage, Any, None]:
    """Yields calls and pages of a segment, from its stored cursor on. A failed step yields a page with ``waiting_for``.

    Reads are consistent: an item's scanned image is at least as new as every record before the stored positions.

    ``check_end``: the page that ends the segment comes after a check that the table is still the same, so no sweep
    follows on pages of another table that got its name. In between it is checked once a second.

    A page whose check fails for now is kept, and the check is made again, so that its units are not spent twice. All
    segments together keep KEPT_BYTES, which come on top of the buffer's limit, or one page. Further ones are given up,
    and read again after a check that succeeds: each such check costs a segment one page at most. A page is given up,
    too, if DescribeTable does not find the table: only another Scan tells whether it was deleted.
    """
    cursor: Mapping[str, Any] | None = orjson.loads(state.cursor) if state.cursor is not None else None
    at = _Reader(segment, cursor, KeyReader(table.keys))
    while not at.ended:
        yield (yield from _step(table, at, state, check_end=check_end))  # not kept in a variable: it may wait for long


def _step(
    table: Scanned, at: _Reader, state: SegmentState, *, check_end: bool
) -> Generator[Call | ScanPage, Any, ScanPage]:
    """The next page; those between its calls say what is waited for."""
    while True:
        if at.check_first and (reason := (yield from _check(table, at))) is not None and at.check_first:
            yield at.waiting(table, reason)
            continue
        try:
            page = yield from _page(table, at, state)
        except TransientError as e:
            reason = str(e)
        else:
            reason = yield from _unproven(table, at, page, last=check_end and page.cursor is None)
            if reason is None:
                return at.used(page)
            del page  # not kept while the reader waits
        yield at.waiting(table, reason)


def _unproven(table: Scanned, at: _Reader, page: _Page, *, last: bool) -> Generator[Call | ScanPage, Any, str | None]:
    """None once the page may be used; otherwise why it is given up."""
    while not table.is_proven(page, last=last):
        reason = yield from _check(table, at)
        if reason is None:
            break
        if not at.check_first or not table.can_keep(page):
            return reason
        with table.keeping(page):
            yield at.waiting(table, reason)
    at.check_first = False
    return None


def _check(table: Scanned, at: _Reader) -> Generator[Call, bytes, str | None]:
    """None if the table is still the same; otherwise why that is not known for now."""
    at.check_first = False
    try:
        yield from table.check_same(answers=True)
    except NotListed as e:
        return str(e)
    except TransientError as e:
        at.check_first = True
        return str(e)
    return None


def _page(table: Scanned, at: _Reader, state: SegmentState) -> Generator[Call, bytes, _Page]:
    request: dict[str, Any] = {
        "TableName": table.table,
        "ConsistentRead": True,
        "ReturnConsumedCapacity": "TOTAL",
        "Segment": at.segment if state.number is None else state.number,
        "TotalSegments": state.total,
    }
    if state.where:
        request |= condition.parse(state.where).filter
    if at.cursor is not None:
        request["ExclusiveStartKey"] = at.cursor
    try:
        body = yield Call("Scan", request)
    except AwsError as e:
        if e.code != "ResourceNotFoundException" or not table.identity:
            raise failure(e, "Scan", table.table) from e
        yield from table.check_same()
        raise TransientError(f"Scan on {table.table}: {e}") from e  # it is being created, or restored
    scanned = decoded(body, _Scanned, "Scan")
    at.units = (scanned.ConsumedCapacity or _Consumed()).CapacityUnits or 0.0
    return _Page(at.keys.keyed(scanned.Items or (), "Scan"), scanned.LastEvaluatedKey, len(body), table.now())


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

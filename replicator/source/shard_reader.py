"""Reads one shard, in order and without holes. Each step makes at most one call to AWS.

A reader is a generator of calls and pages; its driver decides when the next step runs. It ends at the shard's end, and
raises ``GapFound`` if records can no longer be read. It handles expired iterators, throttling and the resume probe: an
iterator opens AT the last record, whose reappearance proves that none after it is missing.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from replicator.aws.client import Call
from replicator.aws.errors import AwsError, decoded, failure
from replicator.backoff import backoff
from replicator.change import Page, Record
from replicator.errors import GapFound, OutOfOrder, TransientError
from replicator.retention import SAFE_AGE, complete
from replicator.source.decoding import Records
from replicator.source.keys_only import FIRST_KEYS, keys_for, looked_up, portion, weight
from replicator.source.sharing import FellBehind
from replicator.source.stream import Stream
from replicator.state import ShardState

OVERLAP = 600.0  # seconds by which AT_TIMESTAMP precedes the epoch: two clocks may each be five minutes off
IDLE_PAGES = 3  # consecutive empty pages after which a shard counts as read up to now
PROOF_PAGES = 600  # consecutive empty pages that pass all there was at the first: ten minutes of an idle reader
IDLE_SECONDS, PROOF_SECONDS = 0.75, 600.0  # what those pages take, however short ``poll_interval`` is
SLOWEST_POLL = 1.0
QUICKEST_POLL = 0.25
LONGEST_BACKOFF = 20.0
_SILENT = ("TRIM_HORIZON", "AT_TIMESTAMP")  # iterator types that silently skip trimmed records

_Step = Generator[Call | Page, Any, Page]


class OpenedIterator(msgspec.Struct):
    """A GetShardIterator response."""

    ShardIterator: str


@dataclass(slots=True)
class _Cursor:
    """A reader's position: its only mutable state.

    ``last``: sequence number of the last record returned. ``expected``: the record that the iterator was opened at,
    until it reappears. ``since``, ``through``: as in ``Page``. ``created``: the time of ``last``. ``silent``:
    consecutive empty pages since ``began``, each of which passes a part of the shard. ``horizon``: opened at the oldest
    remaining record. ``keys``: how many to look up at once. ``poll``: the configured seconds between idle polls.
    """

    shard: str
    state: ShardState
    closed: bool
    last: str | None
    expected: str | None
    since: float
    created: float | None
    horizon: bool = False
    failures: int = 0
    idle: int = 0
    silent: int = 0
    began: float = 0.0
    through: float | None = None
    iterator: str | None = None
    ended: bool = False
    keys: int = FIRST_KEYS
    poll: float | None = None

    @property
    def untouched(self) -> bool:
        """Whether nothing of the shard was read yet: then trimmed records may all precede what is needed."""
        return self.last is None and self.expected is None


def read(stream: Stream, shard: str, state: ShardState, *, closed: bool = False) -> Generator[Call | Page, Any, None]:
    """Yields calls and pages of a shard, from its stored position on. A failed step yields a page with ``waiting_for``.

    ``closed``: the shard is known to end, so empty pages cause no delay and prove nothing.
    Raises GapFound, OutOfOrder, NotPermitted, and ReplicatorError for a request that is refused.
    """
    expected = state.sequence or state.anchor
    since = max(state.since, state.created or 0.0)
    at = _Cursor(shard, state, closed, state.sequence, expected, since, state.created, through=state.through)
    at.poll = stream.poll_interval
    while not at.ended:
        yield (yield from _step(stream, at))  # not kept in a variable: many readers wait for long


def _step(stream: Stream, at: _Cursor) -> _Step:
    """The page of the next call; with look-ups it may yield others first."""
    started = stream.now()
    try:
        if at.iterator is None:
            at.iterator = yield from _open(stream, at)
            at.silent = 0  # it restarts at the last record, perhaps far back
            return _nothing(at)
        request = {"ShardIterator": at.iterator, "Limit": 1000}
        response = stream.decode((yield Call("GetRecords", request, decode=stream.decode)))
    except AwsError as e:
        return _on_error(stream, at, e, started)
    except TransientError as e:
        return _pause(stream, at, str(e))
    return (yield from _advance(stream, at, response, started))


def _advance(stream: Stream, at: _Cursor, response: Records, started: float) -> _Step:
    """The page of a response; the cursor moves to its end."""
    at.failures, at.iterator, started = 0, response.next, min(started, response.requested)
    records = _new_records(stream, at, response.records)
    if at.iterator is None and at.expected is not None:
        _pass_trimmed(stream, at, "the shard ended before the last stored record: that record has been trimmed")
    if stream.keys_only and records:
        removed = {i - len(response.records) + len(records) for i in response.removals}
        while (count := portion(records, removed, at.keys)) < len(records):
            yield (yield from _looked_up(stream, at, records[:count], removed, started))  # not kept
            records, removed = records[count:], {i - count for i in removed}
        return (yield from _looked_up(stream, at, records, removed, started, last=True))
    at.ended = at.iterator is None
    return _page(at, records, response.size, started)


def _looked_up(
    stream: Stream, at: _Cursor, records: Sequence[Record], removed: Set[int], started: float, *, last: bool = False
) -> _Step:
    """The page of records with their images. Its size is theirs, not that of the GetRecords response."""
    complete = yield from looked_up(stream, records, removed, partial(_look_up_page, stream, at))
    at.failures, at.keys = 0, keys_for(complete, at.keys)
    at.ended = last and at.iterator is None
    return _page(at, complete, weight(complete), started)


def _look_up_page(stream: Stream, at: _Cursor, waiting_for: str, progress: bool) -> Page:
    """The page between two calls of a look-up."""
    at.failures = 0 if progress else at.failures
    return _pause(stream, at, waiting_for) if waiting_for else _nothing(at)


def _on_error(stream: Stream, at: _Cursor, error: AwsError, started: float) -> Page:
    """The page of a step that failed. GapFound, NotPermitted where retrying cannot help."""
    if error.code == "ExpiredIteratorException":
        at.iterator, at.expected, at.idle = None, at.last or at.expected, 0
        if isinstance(error, FellBehind):
            return _nothing(at)
        return _nothing(at, waiting_for="the iterator expired; getting a new one at the same position")
    if error.code == "TrimmedDataAccessException":
        if at.untouched:
            _require_young(stream, at, error)
        else:
            _pass_trimmed(stream, at, "records after the stored position have been trimmed", error)
        at.iterator, at.horizon = None, True
        return msgspec.structs.replace(_page(at, (), 0, started), rest=SLOWEST_POLL)
    return _failed(stream, at, error)


def _open(stream: Stream, at: _Cursor) -> Generator[Call, bytes, str]:
    """An iterator at the cursor: AT the last record, never after it, because its reappearance proves completeness."""
    place = _place(at)
    try:
        opened = yield from _iterator(stream, at.shard, place)
    except AwsError as e:
        if not at.untouched or at.horizon or not _unsupported(e, at):
            raise
        _require_young(stream, at, e)
        at.horizon = True
        return (yield from _iterator(stream, at.shard, {"ShardIteratorType": "TRIM_HORIZON"}))
    if place["ShardIteratorType"] in _SILENT:
        _require_young(stream, at, None)  # checked now, as AWS has just accepted our clock
    return opened


def _place(at: _Cursor) -> dict[str, Any]:
    if at.expected is not None:
        return {"ShardIteratorType": "AT_SEQUENCE_NUMBER", "SequenceNumber": at.expected}
    if at.horizon or (at.state.whole and at.state.first is None):
        return {"ShardIteratorType": "TRIM_HORIZON"}
    if at.state.whole:
        return {"ShardIteratorType": "AT_SEQUENCE_NUMBER", "SequenceNumber": at.state.first}
    return {"ShardIteratorType": "AT_TIMESTAMP", "Timestamp": at.since - OVERLAP}


def _iterator(stream: Stream, shard: str, place: Mapping[str, Any]) -> Generator[Call, bytes, str]:
    request = {"StreamArn": stream.arn, "ShardId": shard, **place}
    return decoded((yield Call("GetShardIterator", request)), OpenedIterator, "GetShardIterator").ShardIterator


def _unsupported(error: AwsError, at: _Cursor) -> bool:
    """Whether the endpoint does not support this position: AT_TIMESTAMP, or a number that belongs to no record."""
    if at.state.whole:
        return error.code == "ValidationException"  # `_on_error` handles trimmed positions
    return error.code in ("ValidationException", "InternalFailure", "SerializationException")


def _require_young(stream: Stream, at: _Cursor, error: AwsError | None) -> None:
    """GapFound if needed records may have been trimmed: then a shard must not be opened at its oldest remaining one."""
    if not _complete(stream, at):
        age = stream.now() - at.since
        why = "" if error is None else f" ({error.code})"
        raise GapFound(
            f"the start of the shard may have been trimmed{why}: none of it is stored, "
            f"and the records needed from it are up to {age / 3600:.0f} hours old",
            at.shard,
            at.state.first,
        ) from error


def _complete(stream: Stream, at: _Cursor) -> bool:
    """Whether all unread records of the shard can still be read, being too young to be trimmed."""
    return complete(at.since, at.through, stream.now())


def _pass_trimmed(stream: Stream, at: _Cursor, reason: str, error: AwsError | None = None) -> None:
    """The last record cannot reappear. GapFound, unless its age explains that, and nothing after it can be trimmed."""
    due = at.last is not None and at.created is not None and stream.now() - at.created >= SAFE_AGE
    if not due or not _complete(stream, at):
        raise GapFound(reason, at.shard, at.last or at.expected) from error
    at.expected, at.horizon = None, True


def _failed(stream: Stream, at: _Cursor, error: AwsError) -> Page:
    """The page of a failed step; raises the error if retrying cannot help."""
    if error.code == "ResourceNotFoundException":
        if _complete(stream, at):
            return msgspec.structs.replace(
                _pause(stream, at, "shard not found; waiting for listings to show whether it ended"),
                missing=True,
            )
        reason = "the shard no longer exists, and it was not read to its end"
        raise GapFound(reason, at.shard, at.last, gone=True) from error
    if error.code == "LimitExceededException":
        return _pause(stream, at, "throttled: another consumer is attached (at most two may read a shard)")
    translated = failure(error, "GetRecords", stream.arn)
    if isinstance(translated, TransientError):
        return _pause(stream, at, str(translated))
    raise translated from error


def _pause(stream: Stream, at: _Cursor, waiting_for: str) -> Page:
    at.failures += 1
    rest = backoff(at.failures, stream.random, base=QUICKEST_POLL, limit=LONGEST_BACKOFF)
    return _nothing(at, rest=rest, waiting_for=waiting_for)


def _nothing(at: _Cursor, rest: float = 0.0, waiting_for: str | None = None) -> Page:
    """The page of a step that read nothing."""
    return Page(at.shard, (), False, at.through, rest, waiting_for, since=at.since)


def _new_records(stream: Stream, at: _Cursor, records: Sequence[Record]) -> Sequence[Record]:
    """The records after the cursor, which moves to their end. OutOfOrder if sequence numbers do not increase."""
    if not records:
        return records
    records = _probed(stream, at, records)
    previous = int(at.last) if at.last is not None else -1
    for r in records:
        number = int(r.sequence)
        if number <= previous:
            raise OutOfOrder(
                f"shard {at.shard} returned record {r.sequence} after record {previous}: "
                "sequence numbers within a shard must increase. Nothing after it was stored"
            )
        previous = number
    at.last = records[-1].sequence if records else at.last
    return records


def _probed(stream: Stream, at: _Cursor, records: Sequence[Record]) -> Sequence[Record]:
    """The resume probe: the records without those read before.

    GapFound if the first one is not the expected one, unless that was trimmed for its age.
    """
    if at.expected is not None:
        if int(records[0].sequence) == int(at.expected):
            resumed = at.expected == at.last
            at.expected, at.last, at.idle = None, records[0].sequence if resumed else None, 0
            return records[1:] if resumed else records
        reason = f"the stream continues at {records[0].sequence} instead of the stored position"
        if int(records[0].sequence) < int(at.expected):
            raise GapFound(reason, at.shard, at.expected)
        _pass_trimmed(stream, at, reason)
    if not at.horizon or at.last is None:
        return records
    passed = int(at.last)
    left = [r for r in records if int(r.sequence) > passed]
    at.horizon = not left
    return left


def _page(at: _Cursor, records: Sequence[Record], size: int, started: float) -> Page:
    """The page of a successful step. The next one is due at once while there are records, else at growing intervals."""
    if records:
        created = min(records[-1].created, started)  # the source's clock may be ahead
        # A first record from before the epoch reverts the scan's write of its item until the records after it are read.
        at.since = created if at.created is None else max(at.since, created)
        at.idle, at.silent, at.created = 0, 0, created
        at.through = started if at.ended else max(at.through or 0.0, created)
        return Page(at.shard, records, at.ended, at.through, 0.0, None, size, at.since)
    _count_empty(at, started)
    rest = 0.0 if at.ended or at.closed else _idle_rest(at)
    return Page(at.shard, records, at.ended, at.through, rest, since=at.since)


def _idle_rest(at: _Cursor) -> float:
    """Seconds until an open shard without new records is polled again."""
    return min(SLOWEST_POLL, QUICKEST_POLL * 2 ** min(at.idle - 1, 4)) if at.poll is None else at.poll


def _enough(pages: int, seconds: float, at: _Cursor) -> int:
    """How many consecutive empty pages prove what ``pages`` do that take ``seconds``: quicker ones prove less."""
    return pages if at.poll is None else max(pages, math.ceil(seconds / at.poll) + 1)


def _count_empty(at: _Cursor, started: float) -> None:
    """Update the cursor for an empty page. A single one proves nothing; of a closed shard only its end does.

    Until the expected record reappears, the iterator is still before it, and no number of empty pages proves anything.
    """
    at.idle += 1
    if at.expected is not None:
        return
    if at.ended or (at.idle >= _enough(IDLE_PAGES, IDLE_SECONDS, at) and not at.closed):
        at.through = started
    if at.silent == 0:
        at.began = started
    at.silent += 1
    if at.silent > _enough(PROOF_PAGES, PROOF_SECONDS, at):
        at.since, at.silent = max(at.since, at.began), 0

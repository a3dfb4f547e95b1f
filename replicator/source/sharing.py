"""One reader for several pipelines: what one of them reads of a shard, the others get without a request of their own.

Pipelines of one process that follow the same stream share its latest pages. To each of them the pages look like the
stream itself: iterators lead to positions in them, and each reader gets every record behind its position. So readers
know nothing of each other, and need no rules besides those that they have for the stream. No pipeline reads in advance:
the one that asks for what comes behind the last page makes the request, and all get the page.

A pipeline that falls behind the pages that are kept is told that its iterator has expired. It opens one of its own at
its position, reads alone, and is led back to the shared pages once what it read ends at one of their records.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import count, pairwise
from typing import Any

import msgspec

from replicator.aws.errors import THROTTLED, AwsError
from replicator.source.decoding import Records

KEPT_BYTES = 8 << 20  # of GetRecords responses that are kept, of all shards together
TAKEN_OVER = 1.0  # seconds after which a request of a pipeline that does not come back for its response is made again
OVERDUE = 5.0  # seconds after which it is made again although its pipeline waits for the response
ABANDONED = 10.0  # seconds after which pages that no reader asked for give way to those of another reader
UNUSED = 900.0  # seconds after which no pipeline asks for them any more: AWS's iterators would have expired, too
QUIET = 3  # empty responses that show that a shard has no records, see ``shard_reader.IDLE_PAGES``
EXPIRED = "ExpiredIteratorException"
_LEAST = 1000  # bytes that a page counts at least
_MARK = "shared"


class FellBehind(AwsError):
    """The shared pages at an iterator are no longer kept. No failure: its reader goes on alone."""

    def __init__(self) -> None:
        super().__init__(EXPIRED, "the shared pages at this position are no longer kept", 400)


Place = Mapping[str, Any]
"""The part of a GetShardIterator request that says where in the shard: ShardIteratorType and what belongs to it."""


class _Page(msgspec.Struct, frozen=True):
    """``first``: how many records of the shard came before. ``poll``: the number of the request that returned it."""

    first: int
    poll: int
    records: Records

    @property
    def end(self) -> int:
        return self.first + len(self.records.records)

    @property
    def size(self) -> int:
        return max(_LEAST, self.records.size)


@dataclass(slots=True, eq=False)
class _Shard:
    """The pages of one shard, without a hole. Positions count records from where its first iterator was opened.

    ``origin``: where that was, if every record behind it is here. ``start``, ``end``: positions of the first record
    that is kept, and behind the last one. ``last``: the sequence number of the record before ``end``. ``iterator``: of
    AWS, at ``end``; None at the shard's end. ``polls``: how many requests were answered; ``polled``: when the last one
    was sent, in seconds since 1970. ``asker``, ``asked``: who sent the one in flight, and when, ``used``: when a reader
    last came, both monotonic.
    """

    number: int
    key: tuple[str, str]
    origin: Place | None
    iterator: str | None
    used: float
    last: str | None = None
    pages: deque[_Page] = field(default_factory=deque)
    start: int = 0
    end: int = 0
    polls: int = 0
    polled: float = 0.0
    asker: object | None = None
    asked: float = 0.0

    def token(self, position: int, poll: int) -> str:
        return f"{_MARK} {self.number} {position} {poll}"

    def behind(self, sequence: str) -> str | None:
        """The iterator behind this record; None if it is not here."""
        if sequence == self.last:
            return self.token(self.end, self.polls)
        found = self._position(sequence)
        return None if found is None else self._at(found + 1)

    def opened(self, place: Place) -> str | None:
        """The iterator for a request of GetShardIterator; None if the pages do not begin there."""
        kind = place["ShardIteratorType"]
        if kind == "AT_SEQUENCE_NUMBER":
            found = self._position(place["SequenceNumber"])
            return None if found is None else self._at(found)
        from_oldest = self.origin is not None and self.origin["ShardIteratorType"] == "TRIM_HORIZON"
        if kind == "TRIM_HORIZON":
            return self._at(0) if from_oldest else None
        # Without a record, all that lies behind an earlier time lies behind a later one too. But records from long
        # before it may still come after the first empty responses, and a reader that has read one must read on.
        earlier = from_oldest or (self.origin or {}).get("Timestamp", math.inf) <= place["Timestamp"]
        return self._at(0) if earlier and self.end == 0 and self.polls >= QUIET else None

    def page_at(self, position: int) -> _Page:
        return next(page for page in reversed(self.pages) if page.first <= position)

    def add(self, records: Records, polled: float) -> None:
        self.polls, self.polled = self.polls + 1, polled
        self.iterator, self.asker = records.next, None
        if records.records:
            self.pages.append(_Page(self.end, self.polls, records))
            self.end, self.last = self.end + len(records.records), records.records[-1].sequence

    def _position(self, sequence: str) -> int | None:
        number = int(sequence)
        for page in reversed(self.pages):
            if int(page.records.records[0].sequence) <= number:
                found = (n for n, record in enumerate(page.records.records) if record.sequence == sequence)
                at = next(found, None)
                return None if at is None else page.first + at
        return None

    def _at(self, position: int) -> str:
        return self.token(position, self.polls)


@dataclass(slots=True)
class _Turn:
    """Whose turn it is to read a shard alone, and since when. ``waiting``: who asked in vain, first come first served.
    Without them, the one that reads would go on until it has met the others.
    """

    reader: object | None = None
    since: float = 0.0
    waiting: list[object] = field(default_factory=list)

    def taken(self, who: object, now: float, is_here: Callable[[object], bool]) -> bool:
        """Whether ``who`` may read. ``is_here``: whether a pipeline comes back for what it asked for."""
        self.waiting = [each for each in self.waiting if is_here(each)]
        free = self.reader in (None, who) or not is_here(self.reader) or now - self.since >= OVERDUE
        if free and self.waiting[:1] in ([], [who]):
            self.waiting = self.waiting[1:]
            self.reader, self.since = who, now
            return True
        if who not in self.waiting:
            self.waiting.append(who)
        return False


@dataclass(frozen=True, slots=True)
class Fetch:
    """A request to make for all: GetRecords with this ``iterator``, as the shard's request number ``poll``."""

    iterator: str
    poll: int


class SharedPages:
    """The latest pages of the shards that several pipelines of one process read. Thread-safe; makes no requests."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._shards: dict[tuple[str, str], _Shard] = {}
        self._by_number: dict[int, _Shard] = {}
        self._kept: deque[tuple[_Shard, _Page]] = deque()
        self._bytes = 0
        self._turns: dict[tuple[str, str], _Turn] = {}
        self._seen: dict[object, float] = {}  # the pipelines that read, and when each last came

    def here(self, who: object, now: float) -> None:
        """``who`` reads, and would have taken a response by now. ``now``: monotonic."""
        with self._lock:
            self._seen[who] = now

    def left(self, who: object) -> None:
        """``who`` reads no more, and its responses are no longer waited for."""
        with self._lock:
            self._seen.pop(who, None)
            self._forget_surplus()

    def opened(self, stream: str, shard: str, place: Place) -> str | None:
        """An iterator of the shared pages at ``place``; None if it must be opened at AWS."""
        with self._lock:
            found = self._shards.get((stream, shard))
            return None if found is None else found.opened(place)

    def ask(self, iterator: str, who: object, now: float) -> Records | Fetch | None:
        """What is at a shared iterator: records, or a request to make, or None: another pipeline is making it.

        FellBehind, as of an iterator that has expired, if the pages there are no longer kept. ``now``: monotonic.
        """
        with self._lock:
            shard, position, seen = self._of(iterator)
            self._seen[who] = shard.used = now
            if position < shard.end:
                page = shard.page_at(position)
                return _rest(page, position, shard.token(page.end, page.poll), shard.polled)
            if shard.iterator is None:
                return Records((), frozenset(), None, 0)
            if seen < shard.polls:
                return Records((), frozenset(), shard.token(position, shard.polls), 0, shard.polled)
            if shard.asker is not None and self._is_here(shard.asker, now) and now - shard.asked < OVERDUE:
                return None
            shard.asker, shard.asked = who, now
            return Fetch(shard.iterator, shard.polls)

    def answered(self, iterator: str, fetch: Fetch, response: Records | Exception, polled: float) -> bool:
        """Add the response to a request, sent at ``polled``. False if it was of no use: ask again."""
        with self._lock:
            shard = self._by_number.get(int(iterator.split()[1]))
            if shard is None or shard.polls != fetch.poll:
                return False
            if isinstance(response, Exception):
                shard.asker = None
                if isinstance(response, AwsError) and response.status == 400 and response.code not in THROTTLED:
                    self._drop(shard)  # its iterator is of no use any more
            elif not _follows(response, shard.last):
                self._drop(shard)  # each reader finds out by itself what is wrong
                return False
            else:
                self._add(shard, response, polled)
            return True

    def may_read_alone(self, stream: str, shard: str, who: object, now: float) -> bool:
        """Whether a pipeline may use an iterator of its own: besides the shared one, a shard has one reader at a time.

        Those that are told no take turns. One that may must say ``read_alone`` afterwards.
        """
        with self._lock:
            self._seen[who] = now
            turn = self._turns.setdefault((stream, shard), _Turn())
            return turn.taken(who, now, partial(self._is_here, now=now))

    def read_alone(self, stream: str, shard: str, who: object) -> None:
        with self._lock:
            turn = self._turns.get((stream, shard))
            if turn is not None and turn.reader == who:
                turn.reader = None
                if not turn.waiting:
                    del self._turns[stream, shard]

    def joined(
        self, stream: str, shard: str, place: Place, before: str | None, records: Records, polled: float, now: float
    ) -> str | None:
        """The shared iterator that goes on where a response to an iterator of a pipeline's own ends; None if none does.

        ``place``: where that was opened; ``before``: the last record that it had returned before. Where there are no
        pages yet, or none that are read, the response becomes the first one.
        """
        if records.next is None or not _follows(records, before):
            return None
        with self._lock:
            found = self._shards.get((stream, shard))
            if found is None or now - found.used >= ABANDONED:
                return self._begun((stream, shard), place, before, records, polled, now)
            last = records.records[-1].sequence if records.records else before
            token = found.opened(place) if last is None else found.behind(last)
            if token is None and (newer := _behind(records, found.last)) is not None:
                self._add(found, newer, polled)
                return found.token(found.end, found.polls)
            return token

    def _begun(
        self, key: tuple[str, str], place: Place, before: str | None, records: Records, polled: float, now: float
    ) -> str:
        for old in [s for s in self._shards.values() if s.key == key or now - s.used >= UNUSED]:
            self._drop(old)
        origin = place if before is None else None
        shard = _Shard(next(self._numbers), key, origin, records.next, now, before)
        self._shards[key] = self._by_number[shard.number] = shard
        self._add(shard, records, polled)
        return shard.token(shard.end, shard.polls)

    def _of(self, iterator: str) -> tuple[_Shard, int, int]:
        number, position, poll = map(int, iterator.split()[1:])
        shard = self._by_number.get(number)
        if shard is None or position < shard.start:
            raise FellBehind
        return shard, position, poll

    def _add(self, shard: _Shard, records: Records, polled: float) -> None:
        shard.add(records, polled)
        if records.records:
            page = shard.pages[-1]
            self._kept.append((shard, page))
            self._bytes += page.size
        self._forget_surplus()

    def _is_here(self, who: object, now: float) -> bool:
        return now - self._seen.get(who, -math.inf) < TAKEN_OVER

    def _forget_surplus(self) -> None:
        """Keep pages for those who have not read them yet: for none if only one pipeline reads."""
        most = self._kept_bytes if len(self._seen) > 1 else 0
        while self._bytes > most and len(self._kept) > 1:
            self._forget(*self._kept.popleft())

    def _forget(self, shard: _Shard, page: _Page) -> None:
        self._bytes -= page.size
        if not shard.pages or shard.pages[0] is not page:
            return  # it was dropped
        shard.pages.popleft()
        shard.start, shard.origin = page.end, None
        if shard.iterator is None and not shard.pages:
            self._drop(shard)

    def _drop(self, shard: _Shard) -> None:
        shard.pages.clear()
        self._by_number.pop(shard.number, None)
        if self._shards.get(shard.key) is shard:
            del self._shards[shard.key]


def is_shared(iterator: str) -> bool:
    return iterator.startswith(f"{_MARK} ")


def _follows(records: Records, last: str | None) -> bool:
    """Whether sequence numbers rise, as they must."""
    numbers = [int(last or -1), *(int(record.sequence) for record in records.records)]
    return all(one < other for one, other in pairwise(numbers))


def _rest(page: _Page, position: int, following: str, polled: float) -> Records:
    """A page from ``position`` on."""
    whole, skipped = page.records, position - page.first
    following_or_end = None if whole.next is None else following
    if not skipped:
        return Records(whole.records, whole.removals, following_or_end, whole.size, polled)
    left = whole.records[skipped:]
    removals = frozenset(n - skipped for n in whole.removals if n >= skipped)
    return Records(left, removals, following_or_end, whole.size * len(left) // len(whole.records), polled)


def _behind(records: Records, last: str | None) -> Records | None:
    """What of ``records`` is behind the record ``last``; None if that is not among them."""
    found = (n for n, record in enumerate(records.records) if record.sequence == last)
    at = next(found, None)
    if at is None:
        return None
    left = records.records[at + 1 :]
    removals = frozenset(n - at - 1 for n in records.removals if n > at)
    return Records(left, removals, records.next, records.size * len(left) // len(records.records))

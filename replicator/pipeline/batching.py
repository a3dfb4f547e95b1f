"""Cuts batches from pages that were read ahead, which it buffers per source and in order.

The fetcher starts a request only while the buffer is not ``full``. This bounds what is read but not stored, whatever
the number of shards: BUFFER_BYTES, plus one page per request in flight, plus BATCH_BYTES and one page per batch that is
encoded or in flight. With KEYS_ONLY streams, keys that are still to be looked up, and what a throttled lookup has
returned so far, come on top; so do the KEPT_BYTES of pages of scans that wait for a check whose they are. For targets
that want large batches, BATCH_BYTES count LARGE times.

Such a target gets a batch of shards, or of segments, once those have a full one, or were waited for long enough. In
turns, as for others, every second batch of a backfill would have only the few changes that were made meanwhile.

How long a batch takes to make is mostly the hook's time, which is not known before. So batches get smaller where the
last one took long, and one that takes much longer than those is closed with what it has by then: a run that makes a
batch stores nothing else, and must end soon if it is asked to.

Behind AWS Lambda a lane has the time of an invocation, and what it has not stored by then is made again by the next
one. So its pages are divided: each has one change. The first batch has one page, and later ones have what fits. That
stores something if there is time for one change, however slow the hook is.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from replicator.batch import BatchSize
from replicator.change import Page, ScanPage
from replicator.state import ShardState

BATCH_ROWS = 2000  # changes; larger batches are not faster, but for some targets
BATCH_BYTES = 8 << 20
BUFFER_BYTES = 24 << 20  # of pages read ahead, in total
SOURCE_PAGES = 4  # pages read ahead per shard or segment
LARGE = 2  # times BATCH_BYTES, for targets that say how many changes they want; less than BUFFER_BYTES
FIRST_ROWS = 2000  # changes in their first batch: how long the hook takes is not known yet
TAKE_SECONDS = 2.0  # for making a batch, by how long the last one took
MOST_SECONDS = 4.0  # after which it is closed all the same; other runs and status wait 15 seconds for a heartbeat
DIVIDED = 1000  # pages at most that one is divided into
LARGE_PAGES = 64  # the same of SOURCE_PAGES: a page of a quiet shard has few changes


Pages = Sequence[tuple[str, list[Page | ScanPage]]]
"""The pages of one batch, by source."""


class GivenUp(Exception):
    """The pages of a source are left for the next batch, since it takes too long to make writes of them, or the run is
    about to end.

    ``fits``: the changes for which there is time in the next batch; None if there will be none.
    """

    def __init__(self, fits: int | None) -> None:
        super().__init__()
        self.fits = fits


def gives_up(seconds: float, *, divisible: bool, stopping: bool) -> bool:
    """Whether a source's pages are left for the next batch.

    ``seconds``: since the making of the batch began. ``divisible``: a smaller batch can be made instead, or it has
    other pages already. ``stopping``: the run was asked to end; it reads no more, and stores what is in flight.
    """
    return stopping or (divisible and seconds >= MOST_SECONDS)


@dataclass(slots=True)
class _Held:
    """What the queues of one kind of source have. ``since``: when the next batch began to wait; None if it does not."""

    pages: int = 0
    rows: int = 0
    size: int = 0
    since: float | None = None
    is_late: bool = False

    def add(self, page: Page | ScanPage, sign: int) -> None:
        self.pages += sign
        self.rows += sign * _rows(page)
        self.size += sign * page.size


class PageBuffer:
    """One queue of pages per source, named ``shard:ID`` or ``segment:N``. ``size``: see ``contract.Gathering``."""

    def __init__(self, size: BatchSize | None = None) -> None:
        self._wanted = size
        self._queues: dict[str, deque[Page | ScanPage]] = {}
        self._returned: deque[Pages] = deque()
        self._rows = self._size = 0
        self._held = {"shard": _Held(), "segment": _Held()}
        self._most: float = math.inf if size is None else min(size.rows, FIRST_ROWS)
        self._taken = 0  # changes in the last batch
        self._rest: deque[tuple[str, list[Page | ScanPage]]] | None = None  # of a returned batch that is taken again
        self._scan_turn = True
        self.is_divided = False  # whether each page of a shard has one record

    def __bool__(self) -> bool:
        return bool(self._queues or self._returned)

    def __contains__(self, source: str) -> bool:
        return source in self._queues or any(name == source for pages in self._returned for name, _ in pages)

    def add(self, source: str, page: Page | ScanPage) -> None:
        self._queues.setdefault(source, deque()).append(page)
        self._rows += _rows(page)
        self._size += page.size
        self._held[_kind(source)].add(page, 1)

    def divide(self) -> None:
        """From now on pages come divided (``divided``): batches begin with one change, and get as large as fits."""
        self.is_divided, self._most = True, 1

    def room(self, source: str) -> bool:
        """Whether one more page of ``source`` may be fetched."""
        most = SOURCE_PAGES if self._wanted is None else LARGE_PAGES
        most *= DIVIDED if self.is_divided else 1
        return self._size < BUFFER_BYTES and len(self._queues.get(source, ())) < most

    @property
    def is_gathering(self) -> bool:
        """Whether the target wants large batches."""
        return self._wanted is not None

    def gathers(self, now: float) -> bool:
        """Whether the next batch should wait for more changes: none is full, and none has waited long enough."""
        if self._wanted is None:
            return False
        for held in self._held.values():
            held.since = None if not held.pages else now if held.since is None else held.since
            held.is_late = held.since is not None and now - held.since >= self._wanted.seconds
        is_due = self.has_batch or any(held.is_late for held in self._held.values())
        return self._rows > 0 and not is_due

    def took(self, seconds: float) -> None:
        """How long the last batch took to make: the next ones are as large as fits ``TAKE_SECONDS``."""
        if seconds > TAKE_SECONDS:
            self._most = max(1, int(self._taken * TAKE_SECONDS / seconds))
        elif self._taken >= self._most:
            fits = self._taken * TAKE_SECONDS / max(seconds, 0.001)
            self._most = min(self._largest, max(self._most, int(fits)))

    @property
    def _largest(self) -> int:
        return BATCH_ROWS if self._wanted is None else self._wanted.rows

    def _fills(self, rows: int, size: int) -> bool:
        """Whether that makes a full batch."""
        most = BATCH_BYTES if self._wanted is None else LARGE * BATCH_BYTES
        return rows >= min(self._most, self._largest) or size >= most

    def _is_ready(self, kind: str) -> bool:
        held = self._held[kind]
        return held.is_late or self._fills(held.rows, held.size)

    @property
    def rows(self) -> int:
        """Changes in the buffer."""
        return self._rows

    @property
    def full(self) -> bool:
        """Whether no page of any source may be fetched."""
        return self._size >= BUFFER_BYTES

    @property
    def has_batch(self) -> bool:
        """Whether there are enough pages for a full batch."""
        if self._wanted is None:
            return self._fills(self._rows, self._size)
        return bool(self._returned) or self.full or any(self._fills(h.rows, h.size) for h in self._held.values())

    def heads(self) -> list[Page | ScanPage]:
        """The oldest page of each source."""
        oldest = {source: pages[0] for source, pages in self._queues.items()}
        oldest |= {source: pages[0] for returned in reversed(self._returned) for source, pages in returned}
        return list(oldest.values())

    def next(self) -> Iterator[tuple[str, list[Page | ScanPage]]]:
        """Pages for one batch, by source. Returned batches come first; then shards and segments take turns.

        For a target that wants large batches, those come first that are ready.
        """
        self._taken = 0
        self._rest = deque(self._returned.popleft()) if self._returned else None
        if self._rest is not None:
            return self._again(self._rest)
        self._scan_turn = not self._scan_turn
        kinds = ["segment", "shard"] if self._scan_turn else ["shard", "segment"]
        if self._wanted is not None:
            kinds.sort(key=self._is_ready, reverse=True)  # keeps the turns of equals
        for kind in kinds:
            sources = [s for s in self._queues if s.startswith(kind)]
            if sources:
                self._held[kind].since, self._held[kind].is_late = None, False
                return self._of(sources)
        return iter(())

    def _of(self, sources: Iterable[str]) -> Iterator[tuple[str, list[Page | ScanPage]]]:
        rows, size = 0, 0
        for source in sources:
            if self._fills(rows, size):
                return
            pages: list[Page | ScanPage] = []
            queue = self._queues.pop(source)
            while queue and not self._fills(rows, size):
                page = queue.popleft()
                pages.append(page)
                rows += _rows(page)
                size += page.size
                self._rows -= _rows(page)
                self._size -= page.size
                self._held[_kind(source)].add(page, -1)
            self._taken += sum(map(_rows, pages))
            if queue:
                self._queues[source] = queue  # at the end, so that other sources come first next time
            yield source, pages

    def _again(self, rest: deque[tuple[str, list[Page | ScanPage]]]) -> Iterator[tuple[str, list[Page | ScanPage]]]:
        while rest:
            source, pages = rest.popleft()
            self._weigh(pages, -1)
            self._taken += sum(map(_rows, pages))
            yield source, pages

    def divisible(self, pages: Sequence[Page | ScanPage], *, has_others: bool) -> bool:
        """Whether a batch can be made without all of these pages. ``has_others``: with pages that are in it already.

        A batch that was returned comes again as it was: a target may have stored some of it.
        """
        return self._rest is None and (has_others or len(pages) > 1)

    def leave(self, source: str, pages: list[Page | ScanPage], fits: int | None) -> None:
        """Put back the pages that ``next`` gave last: its batch is closed without them. ``fits``: see ``GivenUp``."""
        self._taken -= sum(map(_rows, pages))
        if fits is not None:
            self._most = fits
        if self._rest is not None:
            self._returned.appendleft([(source, pages), *self._rest])
            self._weigh(pages, 1)
            return
        later = self._queues.pop(source, ())
        self._queues = {source: deque([*pages, *later]), **self._queues}
        held = self._held[_kind(source)]
        held.since = -math.inf  # they have waited
        for page in pages:
            self._rows += _rows(page)
            self._size += page.size
            held.add(page, 1)

    def give_back(self, pages: Pages) -> None:
        """Return the pages of a batch. They come first, and as the same batch."""
        if pages:
            self._returned.appendleft(pages)
            for _, source_pages in pages:
                self._weigh(source_pages, 1)

    def _weigh(self, pages: Iterable[Page | ScanPage], sign: int) -> None:
        for page in pages:
            self._rows += sign * _rows(page)
            self._size += sign * page.size

    def clear(self) -> None:
        self._queues.clear()
        self._returned.clear()
        self._rows = self._size = 0
        self._held = {kind: _Held() for kind in self._held}


def _kind(source: str) -> str:
    return source.partition(":")[0]


def _rows(page: Page | ScanPage) -> int:
    return len(page.records) if isinstance(page, Page) else len(page.items)


def divided(page: Page, state: ShardState) -> Iterator[Page]:
    """A page for each record, in order. The last one is the page's end in every respect.

    ``state``: the shard's before them. What one of them proves is not more than its record does.
    """
    most, size = page.through or 0.0, page.size // max(1, len(page.records))
    for record in page.records[:-1]:
        through = max(state.through or 0.0, min(record.created, most)) or None
        since = min(record.created, page.since) or state.since
        yield Page(page.shard, (record,), through=through, size=size, since=since)
    yield msgspec.structs.replace(page, records=page.records[-1:], size=size)

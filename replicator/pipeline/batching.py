"""Cuts batches from pages that were read ahead, which it buffers per source and in order.

The fetcher starts a request only while the buffer is not ``full``. This bounds what is read but not stored, whatever
the number of shards: BUFFER_BYTES, plus one page per request in flight, plus BATCH_BYTES and one page per batch that is
encoded or in flight. With KEYS_ONLY streams, keys that are still to be looked up, and what a throttled lookup has
returned so far, come on top. For targets that want large batches, BATCH_BYTES count LARGE times.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from replicator.batch import BatchSize
from replicator.change import Page, ScanPage

BATCH_ROWS = 2000  # changes; larger batches are not faster, but for some targets
BATCH_BYTES = 8 << 20
BUFFER_BYTES = 24 << 20  # of pages read ahead, in total
SOURCE_PAGES = 4  # pages read ahead per shard or segment
LARGE = 2  # times BATCH_BYTES, for targets that say how many changes they want; less than BUFFER_BYTES
LARGE_PAGES = 64  # the same of SOURCE_PAGES: a page of a quiet shard has few changes


Pages = Sequence[tuple[str, list[Page | ScanPage]]]
"""The pages of one batch, by source."""


class PageBuffer:
    """One queue of pages per source, named ``shard:ID`` or ``segment:N``. ``size``: see ``contract.Gathering``."""

    def __init__(self, size: BatchSize | None = None) -> None:
        self._wanted = size
        self._queues: dict[str, deque[Page | ScanPage]] = {}
        self._returned: deque[Pages] = deque()
        self._rows = self._size = 0
        self._scan_turn = True

    def __bool__(self) -> bool:
        return bool(self._queues or self._returned)

    def __contains__(self, source: str) -> bool:
        return source in self._queues or any(name == source for pages in self._returned for name, _ in pages)

    def add(self, source: str, page: Page | ScanPage) -> None:
        self._queues.setdefault(source, deque()).append(page)
        self._rows += _rows(page)
        self._size += page.size

    def room(self, source: str) -> bool:
        """Whether one more page of ``source`` may be fetched."""
        most = SOURCE_PAGES if self._wanted is None else LARGE_PAGES
        return self._size < BUFFER_BYTES and len(self._queues.get(source, ())) < most

    @property
    def seconds(self) -> float:
        """For how long to wait for a full batch."""
        return 0.0 if self._wanted is None else self._wanted.seconds

    def _fills(self, rows: int, size: int) -> bool:
        """Whether that makes a full batch."""
        if self._wanted is None:
            return rows >= BATCH_ROWS or size >= BATCH_BYTES
        return rows >= self._wanted.rows or size >= LARGE * BATCH_BYTES

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
        return self._fills(self._rows, self._size)

    def heads(self) -> list[Page | ScanPage]:
        """The oldest page of each source."""
        oldest = {source: pages[0] for source, pages in self._queues.items()}
        oldest |= {source: pages[0] for returned in reversed(self._returned) for source, pages in returned}
        return list(oldest.values())

    def next(self) -> Iterator[tuple[str, list[Page | ScanPage]]]:
        """Pages for one batch, by source. Returned batches come first; then shards and segments take turns."""
        if self._returned:
            return self._again(self._returned.popleft())
        self._scan_turn = not self._scan_turn
        for kind in ("segment", "shard") if self._scan_turn else ("shard", "segment"):
            sources = [s for s in self._queues if s.startswith(kind)]
            if sources:
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
            if queue:
                self._queues[source] = queue  # at the end, so that other sources come first next time
            yield source, pages

    def _again(self, returned: Pages) -> Iterator[tuple[str, list[Page | ScanPage]]]:
        for source, pages in returned:
            self._weigh(pages, -1)
            yield source, pages

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


def _rows(page: Page | ScanPage) -> int:
    return len(page.records) if isinstance(page, Page) else len(page.items)

"""Sends documents as bulk requests, several in flight, and splits requests that are too large."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import quote

from connectors.search.connection import NDJSON, Connection, filtered
from connectors.search.encode import cut
from connectors.search.errors import WRITING, Response, ResponseLost, failure
from connectors.search.layout import Layout
from connectors.search.responses import STORED, Verdict, all_stored, busy, failed, refused, verdicts
from replicator.errors import ReplicatorError, Unfinished
from replicator.target.in_doubt import TOO_LATE, is_late

SMALLEST = 1 << 16  # bytes; an overloaded server makes bulk requests no smaller than this
_FIELDS = ("status", "error.type", "error.reason", "error.caused_by.reason")
_ITEMS = ("errors", *(f"items.*.{name}" for name in _FIELDS), "items.*._index", "items.*.result")
_FILTER = filtered(*_ITEMS)


@dataclass(slots=True)
class Size:
    """Current limits of a bulk request. ``largest`` (bytes) drops for good when a server or proxy rejects more."""

    largest: int
    documents: int
    bytes: int = 0

    def __post_init__(self) -> None:
        self.bytes = self.largest

    def shrink(self) -> None:
        self.bytes = max(SMALLEST, self.bytes // 2)

    def grow(self) -> None:
        self.bytes = min(self.largest, self.bytes * 2)

    def too_large(self, size: int) -> None:
        self.largest = min(self.largest, max(SMALLEST, size // 2))
        self.bytes = min(self.bytes, self.largest)


Sent = list[tuple[slice, Future[list[Verdict]]]]


class Bulk:
    """Sends bulk requests to the indices of one cluster. Its threads start on demand and end with ``close``."""

    def __init__(self, connection: Connection, size: Size, in_flight: int) -> None:
        self._connection = connection
        self._in_flight = in_flight
        self._threads: ThreadPoolExecutor | None = None
        self.size = size

    def start(self, layout: Layout, lines: Sequence[bytes]) -> Sent:
        """Start sending lines (each an action and its document, as NDJSON) to the index of ``layout``."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._in_flight, thread_name_prefix="bulk")
        pieces = cut(list(map(len, lines)), self.size.bytes, self.size.documents)
        began = time.time()
        return [(piece, self._threads.submit(self._deliver, layout, lines[piece], began)) for piece in pieces]

    def store(self, layout: Layout, lines: Sequence[bytes]) -> list[Verdict]:
        """Send lines and wait; return a verdict for each."""
        return [verdict for _, done in self.start(layout, lines) for verdict in done.result()]

    def together(self, layout: Layout, lines: Sequence[bytes]) -> list[Verdict]:
        """Like ``store``, but in a single request, in this order."""
        return self._deliver(layout, lines, time.time())

    def close(self) -> None:
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(cancel_futures=True)

    def _deliver(self, layout: Layout, lines: Sequence[bytes], began: float) -> list[Verdict]:
        if is_late(began, time.time()):
            return [failed(Unfinished(f"{self._connection.server}: {TOO_LATE}"))] * len(lines)
        body = b"".join(lines)
        # Only through an alias: a write must not recreate a missing index with an inferred (dynamic) mapping.
        path = f"/{quote(layout.writer, safe='')}/_bulk?require_alias=true&pipeline=_none&timeout=30s&{_FILTER}"
        try:
            response = self._connection.request("POST", path, body, form=NDJSON)
        except ReplicatorError as e:
            return [failed(e)] * len(lines)
        if response.status == 200 and all_stored(response.body, len(lines), layout.index):
            return [STORED] * len(lines)
        value = response.json
        items = value.get("items") if isinstance(value, dict) else None
        if response.status == 200 and isinstance(items, list) and len(items) == len(lines):
            return verdicts(items, self._connection.server, layout.index)
        return self._refused(layout, lines, response, began)

    def _refused(self, layout: Layout, lines: Sequence[bytes], response: Response, began: float) -> list[Verdict]:
        """Retry a rejected request in halves, down to the one document that is to blame."""
        server = self._connection.server
        size = sum(map(len, lines))
        if response.status == 413:
            self.size.too_large(size)
        elif response.status == 429:
            return [busy(server)] * len(lines)
        elif response.status == 200:
            incomplete = ResponseLost(f"{server} returned an incomplete response to a bulk request")
            error = failure(response, server, "sending a bulk request") if response.json is None else incomplete
            return [failed(error)] * len(lines)
        elif response.status != 400 or not response.cause[0]:
            return [failed(failure(response, server, WRITING))] * len(lines)
        if len(lines) > 1:
            half = len(lines) // 2
            return [*self._deliver(layout, lines[:half], began), *self._deliver(layout, lines[half:], began)]
        return [refused(_alone(response, size))]


def _alone(response: Response, size: int) -> str:
    if response.status == 413:
        return f"the document has {size} bytes, more than the server (or a proxy in front of it) accepts in one request"
    return f"the engine refuses a request that contains only this document: {response.cause[0]}"

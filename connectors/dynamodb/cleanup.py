"""Sweep and purge by scanning the table, one piece per call.

A sweep turns documents below a version into tombstones; a purge removes tombstones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import orjson

from connectors.dynamodb.catalog import ask
from connectors.dynamodb.documents import Layout
from connectors.dynamodb.encode import Encoder, Request
from connectors.dynamodb.writer import Writer
from replicator.aws.client import Client
from replicator.batch import DocumentId
from replicator.errors import Unfinished

_LONGEST = 1.0  # seconds of scanning in one piece

Items = Sequence[Mapping[str, Any]]
Pass = tuple[str, str, int]
"""One pass through a table: ``sweep`` or ``purge``, the table's name, and the version that is the limit."""


@dataclass(slots=True)
class Page:
    """Items of a scanned page that must be changed. ``after``: the key to resume behind, None at the table's end."""

    items: Items
    after: Mapping[str, Any] | None


class Pages(Protocol):
    def __call__(self, *, after: Mapping[str, Any] | None) -> Iterator[Page]: ...


class ScanCleanup:
    """Passes through tables. A pass sees every item that existed when it began, so one pass is enough."""

    def __init__(self, client: Client, writer: Writer, now: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._writer = writer
        self._now = now
        self._reached: dict[Pass, Mapping[str, Any] | None] = {}
        self._pending: dict[Pass, Page] = {}  # what the next piece of a purge removes
        self._windows: Mapping[str, int] = {}

    def sweep(self, layout: Layout, below: int, spare: Sequence[DocumentId]) -> int:
        spared = frozenset(spare)
        pages = partial(_scan, self._client, layout, below, "attribute_not_exists(#d) AND #v < :b")
        return self.piece(("sweep", layout.name, below), pages, lambda i: tombstone_puts(layout, i, below, spared))

    def purge(self, layout: Layout, below: int, spare: Sequence[DocumentId] = ()) -> int:
        spared = frozenset(spare)
        pages = partial(_scan, self._client, layout, below, "attribute_exists(#d) AND #v < :b")
        return self.next_piece(("purge", layout.name, below), pages, lambda i: tombstone_deletes(layout, i, spared))

    def piece(self, of: Pass, pages: Pages, requests: Callable[[Items], list[Request]]) -> int:
        """Scan until there is something to change, and change it. A page is scanned again unless all of it was done.

        After a second without a match it returns 1, so that the stream does not wait for the end of a long scan.
        Starts over when an in-doubt window that concerns the pass has begun or ended: a late write may have changed
        items that the pass is already past.
        """
        self._start_over()
        if self._is_through(of):
            return 0
        until = self._now() + _LONGEST
        for page in pages(after=self._reached.get(of)):
            try:
                done = self._writer.write_all(requests(page.items))
            except Unfinished:
                return 1  # the next call scans the same page again
            self._reached[of] = page.after
            if done or self._now() > until:
                return max(done, 1)
        del self._reached[of]
        return 0

    def next_piece(self, of: Pass, pages: Pages, requests: Callable[[Items], list[Request]]) -> int:
        """Change what the last call found, and find what the next one will change.

        Between two calls the run checks that it still owns the pipeline. So it never removes a tombstone of the run
        that replaced it, however long it is suspended in between.
        """
        self._start_over()
        if (pending := self._pending.get(of)) is not None:
            try:
                self._writer.write_all(requests(pending.items))
            except Unfinished:  # the page is scanned again: a next attempt would spend its time on what is gone already
                del self._pending[of]
                return 1
            del self._pending[of]
            self._reached[of] = pending.after
        if self._is_through(of):
            return 0
        until = self._now() + _LONGEST
        for page in pages(after=self._reached.get(of)):
            if page.items:
                self._pending[of] = page
                return len(page.items)
            self._reached[of] = page.after
            if self._now() > until:
                return 1
        del self._reached[of]
        return 0

    def _start_over(self) -> None:
        """Forget the progress of passes whose in-doubt window has begun or ended since the last call."""
        windows = self._writer.in_doubt_windows
        unchanged = {kind for kind in windows if windows[kind] == self._windows.get(kind)}
        self._reached = {of: at for of, at in self._reached.items() if of[0] in unchanged}
        self._pending = {of: page for of, page in self._pending.items() if of[0] in unchanged}
        self._windows = windows

    def _is_through(self, of: Pass) -> bool:
        """Whether a pass has reached the table's end; the next one then starts from the beginning."""
        through = of in self._reached and self._reached[of] is None
        if through:
            del self._reached[of]
        return through


def _scan(
    client: Client, layout: Layout, below: int, condition: str, *, after: Mapping[str, Any] | None
) -> Iterator[Page]:
    """Keys and versions of the items that meet the condition, page by page."""
    names = {f"#k{at}": name for at, name in enumerate(layout.keys.names)}
    request: dict[str, Any] = {
        "TableName": layout.name,
        "ConsistentRead": True,
        "FilterExpression": condition,
        "ProjectionExpression": ", ".join([*names, "#v"]),
        "ExpressionAttributeNames": {**names, "#v": layout.version, "#d": layout.deleted},
        "ExpressionAttributeValues": {":b": {"N": str(below)}},
    }
    while True:
        start = {} if after is None else {"ExclusiveStartKey": after}
        response = ask(client, "Scan", {**request, **start}, layout.name)
        after = response.get("LastEvaluatedKey")
        yield Page(response["Items"], after)
        if after is None:
            return


def tombstone_puts(layout: Layout, items: Items, below: int, spare: frozenset[DocumentId]) -> list[Request]:
    """Requests that replace older documents by tombstones of version ``below``, except for spared ones."""
    encoder = Encoder(layout)
    ids = [id for id in map(layout.keys.key, items) if not _is_spared(id, spare)]
    return [Request("PutItem", layout.name, encoder.tombstone(id, below) + b"}") for id in ids]


def tombstone_deletes(layout: Layout, items: Items, spare: frozenset[DocumentId]) -> list[Request]:
    """Requests that remove tombstones, unless they have changed since or are spared."""
    unneeded = [item for item in items if not _is_spared(layout.keys.key(item), spare)]
    return [Request("DeleteItem", layout.name, orjson.dumps(_delete(layout, item))) for item in unneeded]


def _is_spared(id: DocumentId, spare: frozenset[DocumentId]) -> bool:
    """Whether the id, or a beginning of it, is among the spared ones."""
    return any(id[:length] in spare for length in range(1, len(id) + 1))


def _delete(layout: Layout, item: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "TableName": layout.name,
        "Key": {name: item[name] for name in layout.keys.names},
        "ConditionExpression": "attribute_exists(#d) AND #v = :v",
        "ExpressionAttributeNames": {"#d": layout.deleted, "#v": layout.version},
        "ExpressionAttributeValues": {":v": item[layout.version]},
    }

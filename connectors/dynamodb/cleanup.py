"""What a sweep removes and a purge forgets: one scan of the table each, a piece at a time."""

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

_LONGEST = 1.0  # seconds

Items = Sequence[Mapping[str, Any]]
Place = tuple[str, str, int]
"""One pass through a table: sweep or purge, its name, the version that is the limit."""


@dataclass(slots=True)
class Found:
    """Some items that are to be changed, and where to go on behind them (None: that was the table's end)."""

    items: Sequence[Mapping[str, Any]]
    after: Mapping[str, Any] | None


class ScanCleanup:
    """Passes through tables. One pass sees whatever was there when it began, so it is done when it is through."""

    def __init__(self, client: Client, writing: Writer, now: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._writing = writing
        self._now = now
        self._reached: dict[Place, Mapping[str, Any] | None] = {}
        self._found: dict[Place, Found] = {}  # what the next piece removes
        self._window_of: Mapping[str, int] = {}

    def sweep(self, layout: Layout, below: int, spare: Sequence[DocumentId]) -> int:
        spared = frozenset(spare)
        pages = partial(_scanned, self._client, layout, below, "attribute_not_exists(#d) AND #v < :b")
        return self.piece(("sweep", layout.name, below), pages, lambda i: burials(layout, i, below, spared))

    def purge(self, layout: Layout, below: int, spare: Sequence[DocumentId] = ()) -> int:
        spared = frozenset(spare)
        pages = partial(_scanned, self._client, layout, below, "attribute_exists(#d) AND #v < :b")
        return self.next_piece(("purge", layout.name, below), pages, lambda items: removals(layout, items, spared))

    def piece(self, place: Place, pages: Pages, requests: Callable[[Items], list[Request]]) -> int:
        """Scan until something is to be done, and do it; what is not done for sure is scanned again.

        A long search that finds nothing counts as something done: what the stream brings must not wait for its end.
        What a pass is behind of may have changed where a doubt began since that concerns it: then it starts over.
        """
        self._start_over()
        if self._is_through(place):
            return 0
        until = self._now() + _LONGEST
        for found in pages(after=self._reached.get(place)):
            try:
                done = self._writing.write_all(requests(found.items))
            except Unfinished:
                return 1  # the rest is found when the same page is looked at again
            self._reached[place] = found.after
            if done or self._now() > until:
                return max(done, 1)
        del self._reached[place]
        return 0

    def next_piece(self, place: Place, pages: Pages, requests: Callable[[Items], list[Request]]) -> int:
        """Do what the last call found, and find what the next one is to do.

        Between the two the run asks whether another one took over. So what that one leaves is never among it, however
        long this run is stopped in between.
        """
        self._start_over()
        if (found := self._found.get(place)) is not None:
            try:
                self._writing.write_all(requests(found.items))
            except Unfinished:
                return 1
            del self._found[place]
            self._reached[place] = found.after
        if self._is_through(place):
            return 0
        until = self._now() + _LONGEST
        for found in pages(after=self._reached.get(place)):
            if found.items:
                self._found[place] = found
                return len(found.items)
            self._reached[place] = found.after
            if self._now() > until:
                return 1
        del self._reached[place]
        return 0

    def _start_over(self) -> None:
        """Forget how far the passes are that a doubt, or its end, concerns."""
        in_doubt_windows = self._writing.in_doubt_windows
        of_now = {what for what in in_doubt_windows if in_doubt_windows[what] == self._window_of.get(what)}
        self._reached = {place: at for place, at in self._reached.items() if place[0] in of_now}
        self._found = {place: found for place, found in self._found.items() if place[0] in of_now}
        self._window_of = in_doubt_windows

    def _is_through(self, place: Place) -> bool:
        """Whether a pass has reached the table's end; the next one begins anew."""
        through = place in self._reached and self._reached[place] is None
        if through:
            del self._reached[place]
        return through


class Pages(Protocol):
    def __call__(self, *, after: Mapping[str, Any] | None) -> Iterator[Found]: ...


def _scanned(
    client: Client, layout: Layout, below: int, condition: str, *, after: Mapping[str, Any] | None
) -> Iterator[Found]:
    """What fits the condition, page by page."""
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
        page = ask(client, "Scan", {**request, **start}, layout.name)
        after = page.get("LastEvaluatedKey")
        yield Found(page["Items"], after)
        if after is None:
            return


def burials(
    layout: Layout, items: Sequence[Mapping[str, Any]], below: int, spare: frozenset[DocumentId]
) -> list[Request]:
    """Requests that put tombstones of version ``below`` where older documents are, but for those that are spared."""
    encoder = Encoder(layout)
    ids = [id for id in map(layout.keys.key, items) if not _is_among(id, spare)]
    return [Request("PutItem", layout.name, encoder.tombstone(id, below) + b"}") for id in ids]


def removals(layout: Layout, items: Sequence[Mapping[str, Any]], spare: frozenset[DocumentId]) -> list[Request]:
    """Requests that remove tombstones, each only as long as it is that tombstone, but for those that are spared."""
    gone = [item for item in items if not _is_among(layout.keys.key(item), spare)]
    return [Request("DeleteItem", layout.name, orjson.dumps(_removal(layout, item))) for item in gone]


def _is_among(id: DocumentId, spare: frozenset[DocumentId]) -> bool:
    """Whether the id begins with one that is spared."""
    return any(id[:length] in spare for length in range(1, len(id) + 1))


def _removal(layout: Layout, item: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "TableName": layout.name,
        "Key": {name: item[name] for name in layout.keys.names},
        "ConditionExpression": "attribute_exists(#d) AND #v = :v",
        "ExpressionAttributeNames": {"#d": layout.deleted, "#v": layout.version},
        "ExpressionAttributeValues": {":v": item[layout.version]},
    }

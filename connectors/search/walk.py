"""Walks through the ids of an index, by the parts of the ids, which are sorted.

Any process can go on behind those of a cursor, at any time, and nothing is kept open in the engine. Documents without
these parts are not replicator's, as in an adopted index.

The engine sorts whatever matches to find the next ids, so a search for all that are left would make a walk quadratic.
A random sample of the ids tells how to divide the index into ranges of about as many documents as a search returns.
They only decide how much a search has to sort, never what is found: it is of no harm if they are old.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any
from urllib.parse import quote

import orjson

from connectors.search import searches
from connectors.search.connection import Connection, filtered
from connectors.search.errors import Response, failure
from connectors.search.layout import LIVE, MARKED, Layout
from connectors.search.mappings import OURS
from replicator.batch import DocumentId
from replicator.errors import TransientError
from replicator.target.verification import CursorExpired, Walked

WALK_PIECE = 10_000  # ids
_FOUND = filtered("hits.hits.sort", "hits.total.value", "_shards.failed", "error", "status")
_EXPENSIVE = "search.allow_expensive_queries"  # if this setting is false, the engine searches for no ranges of keywords


@dataclass(slots=True)
class Walk:
    """A walk through one index. ``bounds``: ids that divide it into ranges; None if they are not known yet."""

    connection: Connection
    layout: Layout
    bounds: Sequence[DocumentId] | None = None

    def walk(self, cursor: str | None, within: DocumentId) -> Walked:
        if cursor is None:
            searches.refresh(self.connection, self.layout)
            self.bounds = None
        given = searches.settings(self.connection, self.layout)
        size = min(WALK_PIECE, int(given.get("max_result_window", WALK_PIECE)))
        after = None if cursor is None else _id(cursor)
        if after is not None and not within and self.bounds is None:
            self.bounds = self._sampled(given, size)
        end, range = next_range(self._parts, () if within or after is None else self.bounds or (), after)
        filters = [{"term": {name: text}} for name, text in zip(self._parts, within, strict=False)]
        behind = {} if after is None else {"search_after": after}
        response = self._search(given, {"size": size, "sort": self._parts, **behind}, [*filters, *range])
        if response.status == 400 and _EXPENSIVE.encode() in response.body and range:
            self.bounds = ()
            return self.walk(cursor, within)
        ids = [tuple(hit["sort"]) for hit in self._hits(response)["hits"]]
        if len(ids) == size:
            end = ids[-1]
        elif end is not None and ids:
            end = max(end, ids[-1])
        return Walked(ids, None if end is None else _cursor(end), lambda n: _cursor(ids[n]))

    @property
    def _parts(self) -> list[str]:
        return [f"{OURS}.{part}" for part in self.layout.parts]

    def _sampled(self, given: Mapping[str, str], size: int) -> Sequence[DocumentId]:
        """Ids between which there are somewhat fewer than ``size`` documents, so that most ranges take one search."""
        wanted = {"size": size, "sort": ["_score", *self._parts], "track_total_hits": True}
        found = self._hits(self._search(given, wanted, [], score={"random_score": {}, "boost_mode": "replace"}))
        return divided(
            [tuple(hit["sort"][1:]) for hit in found["hits"]], found.get("total", {}).get("value", 0), size * 0.8
        )

    def _search(
        self,
        given: Mapping[str, str],
        wanted: Mapping[str, Any],
        filters: Sequence[Any],
        score: Mapping[str, Any] | None = None,
    ) -> Response:
        """The response to a search for live documents of replicator. Nothing but the sort values is fetched."""
        ours = [{"exists": {"field": name}} for name in (f"{OURS}.version", *self._parts)]
        marked = [MARKED] if self.layout.marks else []
        query: dict[str, Any] = {"bool": {"filter": [LIVE, *ours, *filters], "must_not": marked}}
        if score is not None:
            query = {"function_score": {"query": query, **score}}
        plain = searches.undisturbed(self.connection, given)
        path = f"/{quote(self.layout.index, safe='')}/_search?{searches.WHOLE}&{_FOUND}{plain}"
        body = {"query": query, "stored_fields": "_none_", "track_total_hits": False, **wanted}
        return self.connection.request("POST", path, orjson.dumps(body))

    def _hits(self, response: Response) -> Mapping[str, Any]:
        found = response.json
        if response.status >= 300 or not isinstance(found, dict):
            raise failure(response, self.connection.server, "walking through the index")
        if found.get("_shards", {}).get("failed", 0):
            raise TransientError(f"{self.connection.server}: a shard of {self.layout.index} fails the walk through it")
        return {"hits": (), **found.get("hits", {})}


def divided(sample: Sequence[DocumentId], total: int, size: float) -> Sequence[DocumentId]:
    """Those of a random sample of ``total`` ids between which there are about ``size``, in order."""
    step = max(1, round(len(sample) * size / max(total, 1)))
    return sorted(sample)[step - 1 :: step]


def next_range(
    parts: Sequence[str], bounds: Sequence[DocumentId], after: DocumentId | None
) -> tuple[DocumentId | None, Sequence[Mapping[str, Any]]]:
    """The first of the ``bounds`` that is behind ``after``, and filters that match every id up to it, and few others.

    None, and no filter, if the walk goes through all the rest. A range of ids is one of their first parts: that the
    engine finds quickly. Only if very many have the same first part is it also one of their second parts, because for
    that the engine looks at those of the whole index.
    """
    if after is None or not bounds:
        return None, []
    at = bisect_right(bounds, after)
    if at == len(bounds):
        return None, [{"range": {parts[0]: {"gte": after[0]}}}]
    end = bounds[at]
    if end[0] != after[0]:
        return end, [{"range": {parts[0]: {"gte": after[0], "lte": end[0]}}}]
    alike = bisect_right(bounds, end[0], key=_first) - bisect_left(bounds, end[0], key=_first)
    if len(end) > 1 and alike**2 > len(bounds):
        return end, [{"term": {parts[0]: end[0]}}, {"range": {parts[1]: {"gte": after[1], "lte": end[1]}}}]
    return end, [{"term": {parts[0]: end[0]}}]


_first = itemgetter(0)


def _cursor(id: DocumentId) -> str:
    return orjson.dumps(id).decode()


def _id(cursor: str) -> DocumentId:
    try:
        return tuple(orjson.loads(cursor))
    except orjson.JSONDecodeError as e:  # of an earlier release, which walked by the scroll API
        raise CursorExpired from e

"""What a sweep removes and a purge forgets, a piece at a time.

A search sees only what was refreshed, so each piece begins with the one refresh that replicator asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import orjson

from connectors.search.connection import Connection, filtered
from connectors.search.ids import index_id
from connectors.search.layout import OURS, Layout
from replicator.batch import DocumentId

PIECE = 2000  # documents
_TERMS = 10_000  # in one clause; the engine's default limit is 65,536
_HITS = filtered("hits.hits._id", "hits.hits._version", "hits.hits._routing", "hits.hits._source")
_WHOLE = "allow_partial_search_results=false"  # a shard that does not answer is no shard without hits


def swept(connection: Connection, layout: Layout, below: int, spare: Sequence[DocumentId]) -> list[bytes]:
    """Lines that put tombstones of version ``below`` where older documents are."""
    query = {"filter": [_older(below)], "must_not": [{"term": {f"{OURS}.deleted": True}}, *_spared(layout, spare)]}
    hits = _found(connection, layout, query, [f"{OURS}.{part}" for part in layout.parts])
    return [_tombstone(layout, hit, below) for hit in hits]


def forgotten(connection: Connection, layout: Layout, below: int) -> list[bytes]:
    """Lines that remove older tombstones, each only as long as it is that tombstone."""
    query = {"filter": [_older(below), {"term": {f"{OURS}.deleted": True}}]}
    return [_removal(hit) for hit in _found(connection, layout, query, False)]


def _older(below: int) -> dict[str, Any]:
    return {"range": {f"{OURS}.version": {"lt": below}}}


def _spared(layout: Layout, spare: Sequence[DocumentId]) -> Iterator[dict[str, Any]]:
    """Clauses that match the documents whose ids begin with one of ``spare``."""
    whole = [index_id(id) for id in spare if len(id) == len(layout.parts)]
    firsts = [id[0] for id in spare if len(id) < len(layout.parts)]
    for start in range(0, max(len(whole), len(firsts)), _TERMS):
        yield {"ids": {"values": whole[start : start + _TERMS]}}
        yield {"terms": {f"{OURS}.{layout.parts[0]}": firsts[start : start + _TERMS]}}


def _found(connection: Connection, layout: Layout, query: Mapping[str, Any], source: Any) -> Sequence[Any]:
    index = quote(layout.index, safe="")
    connection.ask("POST", f"/{index}/_refresh", doing="refreshing the index")
    wanted = {"size": PIECE, "version": True, "_source": source, "sort": ["_doc"], "query": {"bool": query}}
    path = f"/{index}/_search?{_WHOLE}&{_HITS}"
    found = connection.ask("POST", path, orjson.dumps(wanted), doing="searching for documents to remove")
    hits: Sequence[Any] = found.get("hits", {}).get("hits", ())
    return hits


def _tombstone(layout: Layout, hit: Any, below: int) -> bytes:
    own = {"version": below, **hit["_source"][OURS], "deleted": True}
    action = {"_id": hit["_id"], "version": below, "version_type": "external", **_routing(hit)}
    return orjson.dumps({"index": action}) + b"\n" + orjson.dumps({OURS: own}) + b"\n"


def _removal(hit: Any) -> bytes:
    # At its own version, not above it: the item's next change may be just one higher.
    action = {"_id": hit["_id"], "version": hit["_version"], "version_type": "external_gte", **_routing(hit)}
    return orjson.dumps({"delete": action}) + b"\n"


def _routing(hit: Any) -> Mapping[str, str]:
    return {"routing": hit["_routing"]} if "_routing" in hit else {}

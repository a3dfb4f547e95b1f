"""Searches that must see the whole index (the newest version, what a sweep or purge removes), and lookups by id.

A search sees only what was refreshed, so each of these starts with a refresh, the only ones that replicator requests.
It may still miss documents, because a replica shard lags behind or something filters the search. So the end of a sweep
or purge is confirmed by an aggregation over doc values, and what was removed must not show up in the next search.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson

from connectors.search import catalog, mappings
from connectors.search.connection import Connection, filtered
from connectors.search.errors import READING, engine_failure
from connectors.search.layout import MARKED, Layout, index_id
from connectors.search.mappings import OURS, own_fields
from replicator.batch import DocumentId
from replicator.errors import ReplicatorError, TransientError

WHOLE = "allow_partial_search_results=false"  # a shard that does not respond is an error, not a shard without hits
_NEWEST: Mapping[str, Any] = {
    "size": 1,
    "_source": False,
    "sort": [{f"{OURS}.version": {"order": "desc", "unmapped_type": "long"}}],
}
_ANY: Mapping[str, Any] = {"size": 0, "terminate_after": 1, "track_total_hits": 1}


def settings(connection: Connection, layout: Layout) -> Mapping[str, str]:
    """The index's settings by full name; empty where the index is gone."""
    (state,) = catalog.states(connection, [layout])
    return {} if state.index is None else mappings.flatten_settings(state.index.settings)


def undisturbed(connection: Connection, settings: Mapping[str, str]) -> str:
    """Parameters that keep a search complete: no search pipeline, and on OpenSearch no replicas, which may lag."""
    none = "&search_pipeline=_none" if "search.default_pipeline" in settings else ""
    return none + ("&preference=_primary" if connection.product == "OpenSearch" else "")


def refresh(connection: Connection, layout: Layout) -> None:
    """Make everything stored so far visible to searches."""
    connection.ask("POST", f"/{quote(layout.index, safe='')}/_refresh", doing="refreshing the index")


def newest(connection: Connection, layout: Layout) -> int:
    """The highest version of any document or tombstone; 0 if there is none. Exact: sort values keep every digit."""
    refresh(connection, layout)
    hits = _hits(connection, layout, _NEWEST, "searching for the newest version")["hits"]
    version = hits[0]["sort"][0] if hits else None
    return max(version, 0) if isinstance(version, int) else 0  # null: a document of another tool


def is_empty(connection: Connection, layout: Layout) -> bool:
    """Whether there is neither a document nor a tombstone."""
    refresh(connection, layout)
    return not _hits(connection, layout, _ANY, "searching for any document")["total"]["value"]


def versions(connection: Connection, layout: Layout, ids: Sequence[tuple[str, str | None]]) -> list[int | None]:
    """The stored version of each document, whatever a search shows; None where it is absent. ``ids``: with routings.

    Raises TransientError if a shard fails: the engine then responds 200, with an error in place of each document.
    """
    wanted = [{"_id": id, **({} if routing is None else {"routing": routing})} for id, routing in ids]
    path = f"/{quote(layout.index, safe='')}/_mget?_source=false&{_VERSIONS}"
    docs = connection.ask("POST", path, orjson.dumps({"docs": wanted}), doing=READING).get("docs", ())
    if error := next((doc["error"] for doc in docs if "error" in doc), None):
        raise _unread(connection, layout, str(error.get("type", "an error without a type")))
    if len(docs) != len(wanted):
        raise _unread(connection, layout, f"{len(docs)} of {len(wanted)} documents in the response")
    return [doc.get("_version") if doc.get("found") else None for doc in docs]


def _unread(connection: Connection, layout: Layout, reason: str) -> ReplicatorError:
    known = engine_failure(200, reason, "", connection.server)
    return known or TransientError(f"{connection.server}: a shard of {layout.index} fails {READING} ({reason})")


_VERSIONS = filtered("docs._version", "docs.found", "docs.error.type")  # every element has one of them, so none is cut


def _hits(connection: Connection, layout: Layout, wanted: Mapping[str, Any], doing: str) -> Any:
    """Search the index itself: the alias would hide tombstones."""
    plain = undisturbed(connection, settings(connection, layout))
    path = f"/{quote(layout.index, safe='')}/_search?{WHOLE}&request_cache=false{plain}"
    return connection.ask("POST", path, orjson.dumps(wanted), doing=doing)["hits"]


PIECE = 2000  # documents
_TERMS = 10_000  # in one clause; the engine's default limit is 65,536
_HITS = filtered("hits.hits._id", "hits.hits._version", "hits.hits._routing", "hits.hits._source")


Document = tuple[str, int, str | None]
"""A document's id, version and routing."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Documents, and the NDJSON lines that remove them. ``addresses``: id and routing of each line's document."""

    documents: frozenset[Document]
    lines: Sequence[bytes]
    addresses: Sequence[tuple[str, str | None]] = ()


def swept(connection: Connection, layout: Layout, below: int, spare: Sequence[DocumentId]) -> Piece:
    """The next documents older than ``below``, with lines that replace them by tombstones of that version."""
    spared = [*_spared(layout, spare), *([MARKED] if layout.marks else ())]
    query = {"filter": [_older(below)], "must_not": [{"term": {f"{OURS}.deleted": True}}, *spared]}
    hits = _search(connection, layout, query, [OURS])
    if not hits:
        _confirm(connection, layout, {"must_not": spared}, "live", below)
    return _piece(hits, [_tombstone(hit, below) for hit in hits])


def forgotten(connection: Connection, layout: Layout, below: int, spare: Sequence[DocumentId] = ()) -> Piece:
    """The next tombstones older than ``below``, with lines that remove each unless something newer replaces it first.

    Without those of ``spare``: a retry may store a document with the very version of its tombstone, and the removal
    could not tell the two apart.
    """
    spared = list(_spared(layout, spare))
    query = {"filter": [_older(below), {"term": {f"{OURS}.deleted": True}}], "must_not": spared}
    hits = _search(connection, layout, query, False)
    if not hits:
        _confirm(connection, layout, {"must_not": spared}, "deleted", below)
    return _piece(hits, [_removal(hit) for hit in hits])


def stored(connection: Connection, layout: Layout, documents: Iterable[Document]) -> frozenset[Document]:
    """Those of the documents that are really stored, whatever a search shows: one may have been written again."""
    looked_up = sorted(documents, key=repr)
    there = versions(connection, layout, [(id, routing) for id, _, routing in looked_up])
    return frozenset(one for one, version in zip(looked_up, there, strict=True) if version == one[1])


def _piece(hits: Sequence[Any], lines: Sequence[bytes]) -> Piece:
    addresses = [(hit["_id"], hit.get("_routing")) for hit in hits]
    documents = ((id, hit["_version"], routing) for (id, routing), hit in zip(addresses, hits, strict=True))
    return Piece(frozenset(documents), lines, addresses)


def _older(below: int) -> dict[str, Any]:
    return {"range": {f"{OURS}.version": {"lt": below}}}


def _spared(layout: Layout, spare: Sequence[DocumentId]) -> Iterator[dict[str, Any]]:
    """Query clauses that match the documents whose ids start with one of ``spare``."""
    texts = [id for id in spare if _is_text(id)]  # no other id can be stored
    whole = [index_id(id) for id in texts if len(id) == len(layout.parts)]
    firsts = [id[0] for id in texts if len(id) < len(layout.parts)]
    for start in range(0, max(len(whole), len(firsts)), _TERMS):
        yield {"ids": {"values": whole[start : start + _TERMS]}}
        yield {"terms": {f"{OURS}.{layout.parts[0]}": firsts[start : start + _TERMS]}}


def _is_text(id: DocumentId) -> bool:
    try:
        return all(part.encode() is not None for part in id)
    except UnicodeEncodeError:
        return False


def _search(connection: Connection, layout: Layout, query: Mapping[str, Any], source: Any) -> Sequence[Any]:
    index = quote(layout.index, safe="")
    refresh(connection, layout)
    given = settings(connection, layout)
    size = min(PIECE, int(given.get("max_result_window", PIECE)))
    wanted = {"size": size, "version": True, "_source": source, "sort": ["_doc"], "query": {"bool": query}}
    path = f"/{index}/_search?{WHOLE}&{_HITS}{undisturbed(connection, given)}"
    response = connection.ask("POST", path, orjson.dumps(wanted), doing="searching for documents to remove")
    hits: Sequence[Any] = response.get("hits", {}).get("hits", ())
    return hits


def _confirm(connection: Connection, layout: Layout, query: Mapping[str, Any], kind: str, below: int) -> None:
    """Raise TransientError if a document or tombstone older than ``below`` exists that the search did not find."""
    oldest = {"oldest": {"min": {"field": f"{OURS}.version"}}}
    deleted = {"field": f"{OURS}.deleted"}
    by = {"missing": deleted} if kind == "live" else {"terms": deleted}
    wanted = {"size": 0, "query": {"bool": query}, "aggs": {"of": {**by, "aggs": oldest}}}
    plain = undisturbed(connection, settings(connection, layout))
    path = f"/{quote(layout.index, safe='')}/_search?{WHOLE}&request_cache=false&{_OLDEST}{plain}"
    response = connection.ask("POST", path, orjson.dumps(wanted), doing="confirming that nothing is left to remove")
    of = response.get("aggregations", {}).get("of", {})
    values = [group.get("oldest", {}).get("value") for group in (of, *of.get("buckets", ()))]
    if any(value is not None and value < below for value in values):  # a double, precise enough to tell epochs apart
        raise TransientError(
            f"{connection.server}: searches in {layout.index} do not find all {kind} documents that must be removed; "
            "looking again (is a replica shard lagging, or is the index searched through a pipeline?)"
        )


_OLDEST = filtered("aggregations.of.oldest.value", "aggregations.of.buckets.oldest.value")


def _tombstone(hit: Any, below: int) -> bytes:
    own = {**own_fields(hit.get("_source", {}).get(OURS)), "version": below, "deleted": True}
    action = {"_id": hit["_id"], "version": below, "version_type": "external", **_routing(hit)}
    return orjson.dumps({"index": action}) + b"\n" + orjson.dumps({OURS: own}) + b"\n"


def _removal(hit: Any) -> bytes:
    # At its own version, not above it: the item's next change may be only one higher.
    action = {"_id": hit["_id"], "version": hit["_version"], "version_type": "external_gte", **_routing(hit)}
    return orjson.dumps({"delete": action}) + b"\n"


def _routing(hit: Any) -> Mapping[str, str]:
    return {"routing": hit["_routing"]} if "_routing" in hit else {}

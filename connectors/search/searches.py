"""Searches that see the whole index: its newest version, whether it is empty, what a sweep or a purge removes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson

from connectors.search import catalog, mappings
from connectors.search.connection import Connection, filtered
from connectors.search.errors import READING
from connectors.search.layout import Layout, index_id
from connectors.search.mappings import OURS
from replicator.batch import DocumentId
from replicator.errors import TransientError

WHOLE = "allow_partial_search_results=false"  # a shard that does not answer is no shard without hits
_NEWEST: Mapping[str, Any] = {
    "size": 1,
    "_source": False,
    "sort": [{f"{OURS}.version": {"order": "desc", "unmapped_type": "long"}}],
}
_ANY: Mapping[str, Any] = {"size": 0, "terminate_after": 1, "track_total_hits": 1}


def settings(connection: Connection, layout: Layout) -> Mapping[str, str]:
    """The index's settings, each under its full name; none where it is gone."""
    (state,) = catalog.states(connection, [layout])
    return {} if state.index is None else mappings.flatten_settings(state.index.settings)


def undisturbed(connection: Connection, settings: Mapping[str, str]) -> str:
    """Parameters that keep a search whole: no pipeline, and no replicas where they may lag (OpenSearch)."""
    none = "&search_pipeline=_none" if "search.default_pipeline" in settings else ""
    return none + ("&preference=_primary" if connection.product == "OpenSearch" else "")


def refresh(connection: Connection, layout: Layout) -> None:
    """Let searches see what was stored up to now."""
    connection.ask("POST", f"/{quote(layout.index, safe='')}/_refresh", doing="refreshing the index")


def newest(connection: Connection, layout: Layout) -> int:
    """The highest version of a document or tombstone, 0 without one. Exact: a sort keeps every digit."""
    refresh(connection, layout)
    hits = _hits(connection, layout, _NEWEST, "searching for the newest version")["hits"]
    found = hits[0]["sort"][0] if hits else None
    return max(found, 0) if isinstance(found, int) else 0  # a document of another tool has none


def is_empty(connection: Connection, layout: Layout) -> bool:
    """Whether there is neither a document nor a tombstone. Without a refresh it would be as it was a while ago."""
    refresh(connection, layout)
    return not _hits(connection, layout, _ANY, "searching for any document")["total"]["value"]


def _hits(connection: Connection, layout: Layout, wanted: Mapping[str, Any], doing: str) -> Any:
    """In the index itself, where the alias's filter hides no tombstone."""
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
    """Some documents, and the lines that remove them."""

    documents: frozenset[Document]
    lines: Sequence[bytes]


def swept(connection: Connection, layout: Layout, below: int, spare: Sequence[DocumentId]) -> Piece:
    """Puts tombstones of version ``below`` where older documents are."""
    spared = list(_spared(layout, spare))
    query = {"filter": [_older(below)], "must_not": [{"term": {f"{OURS}.deleted": True}}, *spared]}
    hits = _found(connection, layout, query, [OURS])
    if not hits:
        _confirm(connection, layout, {"must_not": spared}, "live", below)
    return _piece(hits, [_tombstone(hit, below) for hit in hits])


def forgotten(connection: Connection, layout: Layout, below: int, spare: Sequence[DocumentId] = ()) -> Piece:
    """Removes older tombstones, each only as long as nothing is there that is newer.

    Not those of ``spare``: a retry may put a document in the place of a tombstone at its very version, and the removal
    would take it for that tombstone.
    """
    spared = list(_spared(layout, spare))
    query = {"filter": [_older(below), {"term": {f"{OURS}.deleted": True}}], "must_not": spared}
    hits = _found(connection, layout, query, False)
    if not hits:
        _confirm(connection, layout, {"must_not": spared}, "deleted", below)
    return _piece(hits, [_removal(hit) for hit in hits])


def stored(connection: Connection, layout: Layout, documents: Iterable[Document]) -> frozenset[Document]:
    """Those that are really there, whatever a search shows: what was removed may have been written once more."""
    asked = sorted(documents, key=repr)
    there = versions(connection, layout, [(id, routing) for id, _, routing in asked])
    return frozenset(one for one, version in zip(asked, there, strict=True) if version == one[1])


def _piece(hits: Sequence[Any], lines: Sequence[bytes]) -> Piece:
    return Piece(frozenset((hit["_id"], hit["_version"], hit.get("_routing")) for hit in hits), lines)


def _older(below: int) -> dict[str, Any]:
    return {"range": {f"{OURS}.version": {"lt": below}}}


def _spared(layout: Layout, spare: Sequence[DocumentId]) -> Iterator[dict[str, Any]]:
    """Clauses that match the documents whose ids begin with one of ``spare``."""
    texts = [id for id in spare if _is_text(id)]  # no document has another id
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


def _found(connection: Connection, layout: Layout, query: Mapping[str, Any], source: Any) -> Sequence[Any]:
    index = quote(layout.index, safe="")
    refresh(connection, layout)
    there = settings(connection, layout)
    size = min(PIECE, int(there.get("max_result_window", PIECE)))
    wanted = {"size": size, "version": True, "_source": source, "sort": ["_doc"], "query": {"bool": query}}
    path = f"/{index}/_search?{WHOLE}&{_HITS}{undisturbed(connection, there)}"
    found = connection.ask("POST", path, orjson.dumps(wanted), doing="searching for documents to remove")
    hits: Sequence[Any] = found.get("hits", {}).get("hits", ())
    return hits


def _confirm(connection: Connection, layout: Layout, query: Mapping[str, Any], kind: str, below: int) -> None:
    """TransientError if a document, or tombstone, older than ``below`` is there though no search finds it."""
    oldest = {"oldest": {"min": {"field": f"{OURS}.version"}}}
    deleted = {"field": f"{OURS}.deleted"}
    by = {"missing": deleted} if kind == "live" else {"terms": deleted}
    wanted = {"size": 0, "query": {"bool": query}, "aggs": {"of": {**by, "aggs": oldest}}}
    plain = undisturbed(connection, settings(connection, layout))
    path = f"/{quote(layout.index, safe='')}/_search?{WHOLE}&request_cache=false&{_OLDEST}{plain}"
    found = connection.ask("POST", path, orjson.dumps(wanted), doing="confirming that nothing is left to remove")
    of = found.get("aggregations", {}).get("of", {})
    values = [group.get("oldest", {}).get("value") for group in (of, *of.get("buckets", ()))]
    if any(value is not None and value < below for value in values):  # a double: exact enough between two epochs
        raise TransientError(
            f"{connection.server}: searches in {layout.index} do not find all {kind} documents that must be removed; "
            "looking again (is a replica shard lagging, or is the index searched through a pipeline?)"
        )


_OLDEST = filtered("aggregations.of.oldest.value", "aggregations.of.buckets.oldest.value")


def _tombstone(hit: Any, below: int) -> bytes:
    own = {**hit.get("_source", {}).get(OURS, {}), "version": below, "deleted": True}
    action = {"_id": hit["_id"], "version": below, "version_type": "external", **_routing(hit)}
    return orjson.dumps({"index": action}) + b"\n" + orjson.dumps({OURS: own}) + b"\n"


def _removal(hit: Any) -> bytes:
    # At its own version, not above it: the item's next change may be just one higher.
    action = {"_id": hit["_id"], "version": hit["_version"], "version_type": "external_gte", **_routing(hit)}
    return orjson.dumps({"delete": action}) + b"\n"


def _routing(hit: Any) -> Mapping[str, str]:
    return {"routing": hit["_routing"]} if "_routing" in hit else {}

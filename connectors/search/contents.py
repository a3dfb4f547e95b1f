"""What an index holds: by searches that see all of it (refreshed, of whole shards, undisturbed), and by ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import orjson

from connectors.search import catalog, hazards
from connectors.search.connection import Connection, filtered
from connectors.search.errors import READING, engine_failure
from connectors.search.layout import Layout
from connectors.search.names import OURS
from replicator.errors import ReplicatorError, TransientError

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
    return {} if state.index is None else hazards.flat(state.index.settings)


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


def versions(connection: Connection, layout: Layout, ids: Sequence[tuple[str, str | None]]) -> list[int | None]:
    """The stored version of each document, whatever searches show; None where there is none. ``ids``: with routings.

    TransientError if a shard cannot say: then the engine answers 200, with an error in the place of each document.
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


_VERSIONS = filtered("docs._version", "docs.found", "docs.error.type")  # one of them is in each, so none is left out


def _hits(connection: Connection, layout: Layout, wanted: Mapping[str, Any], doing: str) -> Any:
    """In the index itself, where the alias's filter hides no tombstone."""
    plain = undisturbed(connection, settings(connection, layout))
    path = f"/{quote(layout.index, safe='')}/_search?{WHOLE}&request_cache=false{plain}"
    return connection.ask("POST", path, orjson.dumps(wanted), doing=doing)["hits"]

"""An in-memory search engine: versions, remembered deletes, and the queries that replicator sends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from connectors.search.connection import Connection
from connectors.search.errors import Response, ResponseLost

Place = tuple[str, str | None]
"""A document's id and routing: the same id with another routing is a different document, in another shard."""


@dataclass(frozen=True)
class Stored:
    version: int
    source: Mapping[str, Any]

    def value(self, path: str) -> Any:
        found: Any = self.source
        for name in path.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        return found


@dataclass
class Engine(Connection):
    """One index. ``remembered``: versions of deletes, which a real engine forgets. ``failing``: status and error type
    returned for a document instead of storing it. ``unread``: error type returned by a lookup in place of a document,
    as an engine whose shard fails does, with status 200. ``lost``: bulk requests are applied but their responses are
    lost. ``searchable``: what searches see instead of ``documents``.
    """

    index: str = "contract-1"
    product: str = "Elasticsearch"
    server: str = "the engine"
    documents: dict[Place, Stored] = field(default_factory=dict)
    remembered: dict[Place, int] = field(default_factory=dict)
    failing: dict[str, tuple[int, str]] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    lost: bool = False
    searchable: dict[Place, Stored] | None = None
    asked: list[str] = field(default_factory=list)

    def request(self, method: str, path: str, body: bytes | None = None, *, form: str = "") -> Response:
        self.asked.append(path)
        told = self._told(path.partition("?")[0], body or b"{}")
        if self.lost and "/_bulk" in path:
            raise ResponseLost("the response was lost")
        return Response(200, json.dumps(asked_for(told, path)).encode())

    def ids(self) -> dict[str, int | None]:
        """The version of each document; None for a tombstone."""
        return {id: None if s.value("replicator.deleted") else s.version for (id, _), s in self.documents.items()}

    def _told(self, path: str, body: bytes) -> Any:
        if path.endswith("/_bulk"):
            items = list(self._bulk(body))
            return {
                "errors": any(outcome["status"] > 399 for item in items for outcome in item.values()),
                "items": items,
            }
        if path.endswith("/_mget"):
            return {"docs": [self._got(wanted) for wanted in json.loads(body)["docs"]]}
        if path.endswith("/_search"):
            return self._searched(json.loads(body))
        return {self.index: {"settings": {"index": {}}, "aliases": {}}}

    def _bulk(self, body: bytes) -> Iterator[Any]:
        lines = iter(body.splitlines())
        for line in lines:
            ((kind, action),) = json.loads(line).items()
            source = json.loads(next(lines)) if kind == "index" else None
            yield {kind: {"_index": self.index, **self._written(action, source)}}

    def _written(self, action: Mapping[str, Any], source: Any) -> Mapping[str, Any]:
        if (failing := self.failing.get(action["_id"])) is not None:
            return {"status": failing[0], "error": {"type": failing[1], "reason": "it fails"}}
        at, version = (action["_id"], action.get("routing")), action["version"]
        there = self.documents.get(at)
        known = there.version if there is not None else self.remembered.get(at, -1)
        if version < known or (version == known and action["version_type"] == "external"):
            return {"status": 409, "error": {"type": "version_conflict_engine_exception", "reason": "conflict"}}
        if source is not None:
            self.remembered.pop(at, None)
            self.documents[at] = Stored(version, source)
            return {"status": 200, "result": "created" if there is None else "updated"}
        self.documents.pop(at, None)
        self.remembered[at] = version
        return {"status": 200 if there else 404, "result": "deleted" if there else "not_found"}

    def _got(self, wanted: Mapping[str, Any]) -> Any:
        if (error := self.unread.get(wanted["_id"])) is not None:
            return {"_index": self.index, "_id": wanted["_id"], "error": {"type": error, "reason": "it fails"}}
        there = self.documents.get((wanted["_id"], wanted.get("routing")))
        return {"found": False} if there is None else {"found": True, "_version": there.version}

    def _searched(self, wanted: Mapping[str, Any]) -> Any:
        seen = self.documents if self.searchable is None else self.searchable
        hits = [(at, stored) for at, stored in seen.items() if _matches(at[0], stored, wanted["query"])]
        if "aggs" in wanted:
            return {"aggregations": {"of": _grouped([stored for _, stored in hits], wanted["aggs"]["of"])}}
        return {"hits": {"hits": [_hit(at, stored, wanted) for at, stored in hits[: wanted["size"]]]}}


def asked_for(told: Any, path: str) -> Any:
    """The part of a response that ``filter_path`` selects, as engines filter it."""
    wanted = parse_qs(path.partition("?")[2]).get("filter_path")
    return told if wanted is None else _cut(told, [name.split(".") for name in wanted[0].split(",")]) or {}


def _cut(told: Any, paths: Sequence[Sequence[str]]) -> Any:
    """None if nothing is left: engines omit empty values, in lists too."""
    if any(not path for path in paths):
        return told
    if isinstance(told, list):
        return [left for each in told if (left := _cut(each, paths)) is not None] or None
    if not isinstance(told, dict):
        return None
    inner = {name: [path[1:] for path in paths if path[0] in ("*", name)] for name in told}
    return {name: left for name in told if inner[name] and (left := _cut(told[name], inner[name])) is not None} or None


def _hit(at: Place, stored: Stored, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    more = {"_version": stored.version} if wanted.get("version") else {}
    routing = {} if at[1] is None else {"_routing": at[1]}
    names = wanted["_source"] or ()
    return {"_id": at[0], **more, **routing, "_source": {name: stored.source[name] for name in names}}


def _matches(id: str, stored: Stored, query: Mapping[str, Any]) -> bool:
    ((kind, asked),) = query.items()
    known: Mapping[str, Callable[[], bool]] = {
        "bool": lambda: (
            all(_matches(id, stored, inner) for inner in asked.get("filter", ()))
            and not any(_matches(id, stored, inner) for inner in asked.get("must_not", ()))
        ),
        "ids": lambda: id in asked["values"],
        "term": lambda: all(stored.value(path) == value for path, value in asked.items()),
        "terms": lambda: all(stored.value(path) in values for path, values in asked.items()),
        "range": lambda: all(stored.value(path) < limit["lt"] for path, limit in asked.items()),
    }
    return known[kind]()


def _grouped(found: list[Stored], by: Mapping[str, Any]) -> Any:
    field = (by.get("missing") or by["terms"])["field"]
    versions = [s.value("replicator.version") for s in found if (s.value(field) is None) == ("missing" in by)]
    oldest = {"oldest": {"value": float(min(versions)) if versions else None}}
    return oldest if "missing" in by else {"buckets": [oldest] if versions else []}

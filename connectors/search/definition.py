"""The identity of each index, the epoch that last wrote to it, and the definition that its documents depend on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import orjson

from connectors.search import catalog, searches
from connectors.search.connection import Connection, filtered
from connectors.search.errors import Response, failure
from connectors.search.layout import Layout
from connectors.search.mappings import OURS, canonical
from replicator.identity import Change, Identity, Parts
from replicator.version import FIRST_EPOCH, epoch_of

_FIELD = "mapping."  # prefix of the parts that are fields
_DELETES = "deletes"
_OUTSIDE = ("properties", "_meta", "_routing")  # mapping keys that are parts of their own or none
_CLUSTER_INFO = ("/", f"/_cluster/state/version?{filtered('cluster_uuid')}")  # some services do not serve /


def identities(connection: Connection, wanted: Mapping[str, Layout]) -> dict[str, Identity]:
    """Each index by its unique id, or by its name and its cluster's UUID while it is absent."""
    cluster = _cluster(connection)
    there = catalog.states(connection, list(wanted.values()))
    return {
        name: Identity(
            f"the index {layout.index} of {connection.server}",
            state.index.id if state.index is not None else "",
            at=f"{layout.index} in the cluster {cluster}" if cluster else "",
        )
        for (name, layout), state in zip(wanted.items(), there, strict=True)
    }


def _cluster(connection: Connection) -> str:
    """The cluster's UUID; "" if it is not available (a service without one, a login without the privilege)."""
    return next(filter(None, (_uuid(connection, path) for path in _CLUSTER_INFO)), "")


def _uuid(connection: Connection, path: str) -> str:
    response = connection.request("GET", path)
    if _is_transient(response):
        raise failure(response, connection.server, "reading the cluster's UUID")
    info = response.json if response.status == 200 else None
    uuid = info.get("cluster_uuid") if isinstance(info, dict) else None
    return uuid if isinstance(uuid, str) and uuid != "_na_" else ""


def _is_transient(response: Response) -> bool:
    return response.status >= 500 or response.status == 429 or response.throttled


def epoch(connection: Connection, layout: Layout, index: catalog.Index) -> int:
    """The highest epoch that wrote to the index, from its notes or else from its newest version.

    ``_reindex`` copies documents with their versions but not the notes, and notes copied from another index say little
    about this one. Versions below the first epoch come from other tools and are overwritten.
    """
    if (index.epoch and not index.replaced) or _version_type(index) != "long":
        return index.epoch
    newest = epoch_of(searches.newest(connection, layout))
    return max(index.epoch, newest if newest >= FIRST_EPOCH else 0)


def _version_type(index: catalog.Index) -> str:
    fields = index.mapping.get("properties", {}).get(OURS, {}).get("properties", {})
    return str(fields.get("version", {}).get("type", ""))


def parts(layout: Layout) -> Parts:
    """What stored documents depend on: each field with its parameters, the mapping's other parameters, the routing,
    the name of the ingest pipeline (its definition is noted in the index, see ``ingest``).

    Settings, replicas and ``adopt`` are not included: changing them leaves stored documents valid.
    """
    around = canonical({name: value for name, value in layout.mapping.items() if name not in _OUTSIDE})
    outside = {name: _text(value) for name, value in around.items()}
    fields = {f"{_FIELD}{path}": _text(field) for path, field in _fields(layout.mapping["properties"])}
    routing = {} if layout.routing_noted is None else {"routing": layout.routing_noted}
    ingest = {} if layout.ingest is None else {"ingest_pipeline": layout.ingest}
    return {**outside, **fields, **routing, **ingest, **({_DELETES: "mark"} if layout.marks else {})}


def _fields(properties: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field by its full path, without its subfields."""
    for name, field in properties.items():
        if prefix == "" and name == OURS:
            continue
        path = f"{prefix}{name}"
        yield path, {key: value for key, value in field.items() if key not in ("properties", "fields")}
        for inner in ("properties", "fields"):
            yield from _fields(field.get(inner, {}), f"{path}.")


def additions(layouts: Mapping[str, Layout], changes: Sequence[Change]) -> list[tuple[str, dict[str, Any]]] | None:
    """The path and body of each request that adds fields; None if anything other than a field was added."""
    marking = {name for name, layout in layouts.items() if layout.marks}
    if not all(c.part.startswith(_FIELD) or (c.part == _DELETES and c.table in marking) for c in changes):
        return None
    return [
        (f"/{quote(layouts[name].index, safe='')}/_mapping", {"properties": _added(layouts[name], changes)})
        for name in dict.fromkeys(change.table for change in changes)
    ]


def _added(layout: Layout, changes: Sequence[Change]) -> dict[str, Any]:
    """The top-level fields that contain the added ones; the engine leaves their existing parts unchanged."""
    marks = any(change.part == _DELETES and change.table == layout.alias for change in changes)
    paths = [change.part.removeprefix(_FIELD) for change in changes if change.table == layout.alias]
    properties: Mapping[str, Any] = layout.mapping["properties"]
    return {
        name: field
        for name, field in sorted(properties.items())
        if any(path == name or path.startswith(f"{name}.") for path in paths) or (marks and name == OURS)
    }


def _text(value: object) -> str:
    return orjson.dumps(canonical(value), option=orjson.OPT_SORT_KEYS).decode()

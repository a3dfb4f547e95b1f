"""What tells one index from another, which epoch wrote to it, and what decides the documents in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import orjson

from connectors.search import catalog, searches
from connectors.search.connection import Connection, filtered
from connectors.search.errors import Answer, failure
from connectors.search.layout import Layout
from connectors.search.mappings import OURS, canonical
from replicator.identity import Change, Identity, Parts
from replicator.version import FIRST_EPOCH, epoch_of

_FIELD = "mapping."  # how a part that is a field begins
_OUTSIDE = ("properties", "_meta", "_routing")  # of a mapping: fields, notes, and what the part routing says
_SAYING = ("/", f"/_cluster/state/version?{filtered('cluster_uuid')}")  # some builds have no page at /


def identities(connection: Connection, wanted: Mapping[str, Layout]) -> dict[str, Identity]:
    """Each index by its id, which no other has, and by its name and its cluster's UUID while it is absent."""
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
    """The cluster's UUID; "" where the cluster does not tell (a service without it, a login without the right)."""
    return next(filter(None, (_uuid(connection, path) for path in _SAYING)), "")


def _uuid(connection: Connection, path: str) -> str:
    answer = connection.request("GET", path)
    if _may_tell_later(answer):
        raise failure(answer, connection.server, "reading the cluster's UUID")
    told = answer.json if answer.status == 200 else None
    uuid = told.get("cluster_uuid") if isinstance(told, dict) else None
    return uuid if isinstance(uuid, str) and uuid != "_na_" else ""


def _may_tell_later(answer: Answer) -> bool:
    return answer.status >= 500 or answer.status == 429 or answer.throttled


def epoch(connection: Connection, layout: Layout, found: catalog.Found) -> int:
    """The highest epoch that wrote to the index: as noted in it, else as the newest version shows.

    Documents come with their versions, but perhaps without the note, where an index was filled by ``_reindex``; and a
    note that another index brought along says little about this one. Versions below those of the first epoch are of
    other tools, and are written over.
    """
    if (found.epoch and not found.replaced) or _version_type(found) != "long":
        return found.epoch
    newest = epoch_of(searches.newest(connection, layout))
    return max(found.epoch, newest if newest >= FIRST_EPOCH else 0)


def _version_type(found: catalog.Found) -> str:
    fields = found.mapping.get("properties", {}).get(OURS, {}).get("properties", {})
    return str(fields.get("version", {}).get("type", ""))


def parts(layout: Layout) -> Parts:
    """Each field of the mapping with its parameters, what becomes of others, and where documents are routed to.

    Settings, replicas and ``adopt`` are none of them: they leave right what is stored.
    """
    around = canonical({name: value for name, value in layout.mapping.items() if name not in _OUTSIDE})
    outside = {name: _text(value) for name, value in around.items()}
    fields = {f"{_FIELD}{path}": _text(field) for path, field in _fields(layout.mapping["properties"])}
    routing = {} if layout.routed_by is None else {"routing": layout.parts[layout.routed_by]}
    return {**outside, **fields, **routing}


def _fields(properties: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field by the path that a query knows it by, without the fields in it."""
    for name, field in properties.items():
        if prefix == "" and name == OURS:
            continue
        path = f"{prefix}{name}"
        yield path, {key: value for key, value in field.items() if key not in ("properties", "fields")}
        for inner in ("properties", "fields"):
            yield from _fields(field.get(inner, {}), f"{path}.")


def additions(layouts: Mapping[str, Layout], changes: Sequence[Change]) -> list[tuple[str, dict[str, Any]]] | None:
    """The path and the body of each request that adds fields; None where something else than a field was added."""
    if not all(change.part.startswith(_FIELD) for change in changes):
        return None
    return [
        (f"/{quote(layouts[name].index, safe='')}/_mapping", {"properties": _added(layouts[name], changes)})
        for name in dict.fromkeys(change.table for change in changes)
    ]


def _added(layout: Layout, changes: Sequence[Change]) -> dict[str, Any]:
    """The outermost fields that hold what was added: what of them the engine has already stays as it is."""
    paths = [change.part.removeprefix(_FIELD) for change in changes if change.table == layout.alias]
    properties: Mapping[str, Any] = layout.mapping["properties"]
    return {
        name: field
        for name, field in sorted(properties.items())
        if any(path == name or path.startswith(f"{name}.") for path in paths)
    }


def _text(value: object) -> str:
    return orjson.dumps(canonical(value), option=orjson.OPT_SORT_KEYS).decode()

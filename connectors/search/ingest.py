"""Ingest pipelines that documents go through before they are sent to an index.

The engine is asked what its pipeline makes of the documents (its simulate API), and the result is stored like any other
document: under the id, version and routing of its item, with replicator's own fields. So a pipeline can neither move a
document nor lose one, whatever its scripts do, and a bulk request takes no longer than without it.

A pipeline is part of what a document becomes, as a hook is, but the cluster has it, and others may change it: so its
definition is noted in the index, and compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import msgspec
import orjson
from msgspec import structs

from connectors.search.connection import Connection
from connectors.search.encode import Encoded, Entry, cut
from connectors.search.errors import failure
from connectors.search.layout import Layout
from connectors.search.mappings import OURS, is_ours
from replicator.batch import Rejection
from replicator.errors import TransientError

NOTE = "ingest_pipeline"  # in the index's notes
DROPPED = "its ingest pipeline drops the document; leave its item out in a transform hook instead"
UNHELD = "it has a whole number beyond 64 bits, which cannot go through an ingest pipeline"
TOO_LARGE = "the document is larger than the server accepts in one request to its ingest pipeline"
_DEEPEST = 8  # pipelines that call others
_AT_ONCE, _BYTES = 300, 8 << 20  # of documents in one request
_NO_ROOM = "circuit_breaking_exception"
_UNHELD = "java.math.BigInteger"
_LOOK = "looking up the ingest pipeline (needs the cluster privilege read_pipeline)"
_TRY = "asking what the ingest pipeline makes of documents (needs the cluster privilege read_pipeline)"


def problems(connection: Connection, layout: Layout) -> Iterator[str]:
    """Why documents cannot go through the layout's pipeline."""
    if layout.ingest is not None:
        for name, definition in _definitions(connection, layout.ingest).items():
            if definition is None:
                yield f"the ingest pipeline {name} does not exist; create it, or leave out ingest_pipeline"


def digest(connection: Connection, layout: Layout) -> Mapping[str, str]:
    """The note of the pipeline, and those that it calls, as they are now; empty without one."""
    if layout.ingest is None:
        return {}
    text = orjson.dumps(_definitions(connection, layout.ingest), option=orjson.OPT_SORT_KEYS)
    return {NOTE: f"{layout.ingest} {hashlib.sha256(text).hexdigest()[:16]}"}


def changed(connection: Connection, layout: Layout, notes: Mapping[str, Any]) -> Iterator[str]:
    """Whether the pipeline is another one than when the epoch of ``notes`` began."""
    if layout.ingest is not None and NOTE in notes and notes[NOTE] != digest(connection, layout)[NOTE]:
        yield (
            f"{layout.index}: the ingest pipeline {layout.ingest} has changed since documents went through it, so "
            "that some would be of the old one and some of the new one. Put it back, and repair what has gone through "
            "the other one with: replicator verify CONFIG --repair. Or copy everything again with: "
            "replicator resync CONFIG"
        )


def through(connection: Connection, layouts: Mapping[str, Layout], encoded: Encoded) -> Encoded:
    """The batch with what the tables' pipelines make of its documents; with rejections, there is nothing to send."""
    if not any(layouts[table].ingest for table in encoded.tables):
        return encoded
    tables, rejections = {}, list(encoded.rejections)
    for table, entries in encoded.tables.items():
        tables[table], refused = made(connection, layouts[table], entries)
        rejections += refused
    return replace(encoded, tables={} if rejections else tables, rejections=rejections)


def made(connection: Connection, layout: Layout, entries: Sequence[Entry]) -> tuple[list[Entry], list[Rejection]]:
    """The entries with what the pipeline makes of their documents, and why it makes nothing of others."""
    if layout.ingest is None:
        return list(entries), []
    given = [entry for entry in entries if _has_document(entry)]
    pieces = cut([len(entry.lines) for entry in given], _BYTES, _AT_ONCE)
    simulated = iter([one for piece in pieces for one in _simulated(connection, layout, given[piece])])
    passing, rejections = list[Entry](), list[Rejection]()
    for entry in entries:
        one = next(simulated) if _has_document(entry) else entry.lines
        if isinstance(one, str):
            rejections.append(Rejection(entry.write, one))
        else:
            passing.append(structs.replace(entry, lines=one))
    return passing, rejections


def _has_document(entry: Entry) -> bool:
    """Tombstones have none. A mark with the document that the index has gets it later, as it was stored."""
    return entry.plain is None


class _Document(msgspec.Struct):
    source: msgspec.Raw = msgspec.field(name="_source", default=msgspec.Raw(b"{}"))


class _Error(msgspec.Struct):
    type: str = ""
    reason: str = ""


class _Simulated(msgspec.Struct):
    doc: _Document | None = None
    error: _Error | None = None


class _Simulation(msgspec.Struct):
    docs: list[_Simulated | None]


_decode = msgspec.json.Decoder(_Simulation)  # sources as they are: decoding would write numbers in another way
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _simulated(connection: Connection, layout: Layout, entries: Sequence[Entry]) -> list[bytes | str]:
    """For each entry its lines with what the pipeline makes of the document, or why it makes nothing of it."""
    body = b'{"docs":[%b]}' % b",".join(_document(layout, entry) for entry in entries)
    response = connection.request("POST", f"{_path(layout.ingest or '')}/_simulate", body)
    if len(entries) > 1 and response.status == 429 and response.cause[0] == _NO_ROOM:
        return _in_halves(connection, layout, entries)  # the same request may never find room; one document waits
    if response.status == 413 or (response.status == 400 and "does not exist" not in response.cause[1]):
        if len(entries) == 1:
            return [UNHELD if response.status == 400 else TOO_LARGE]
        return _in_halves(connection, layout, entries)  # too large for one request, or OpenSearch refuses all for one
    if response.status != 200:
        raise failure(response, connection.server, _TRY)
    try:
        documents = _decode.decode(response.body).docs
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise TransientError(f"{connection.server}: the response to {_TRY} is not complete") from e
    return [_lines(entry, one) for entry, one in zip(entries, documents, strict=True)]


def _in_halves(connection: Connection, layout: Layout, entries: Sequence[Entry]) -> list[bytes | str]:
    half = len(entries) // 2
    return [*_simulated(connection, layout, entries[:half]), *_simulated(connection, layout, entries[half:])]


def _document(layout: Layout, entry: Entry) -> bytes:
    """The document without replicator's own fields, as the pipeline sees it."""
    action, fields = _parsed(entry)
    fields.pop(OURS)
    place = {"_index": layout.index, "_id": action["_id"], **_routing(action)}
    return orjson.dumps(place)[:-1] + b',"_source":%b}' % msgspec.json.encode(fields)


def _routing(action: Mapping[str, Any]) -> Mapping[str, str]:
    return {"_routing": action["routing"]} if "routing" in action else {}


def _lines(entry: Entry, simulated: _Simulated | None) -> bytes | str:
    if simulated is None or (simulated.doc is None and simulated.error is None):
        return DROPPED
    if simulated.doc is None or simulated.error is not None:
        error = simulated.error or _Error()
        return UNHELD if _UNHELD in error.reason else f"its ingest pipeline fails on the document: {error.type}"
    fields = _fields.decode(simulated.doc.source)
    if any(is_ours(name) for name in fields):
        return f"its ingest pipeline adds a field named {OURS} or {OURS}.…, where replicator keeps version and key"
    action, _, _ = entry.lines.partition(b"\n")
    own = _parsed(entry)[1][OURS]
    return b"%b\n%b\n" % (action, msgspec.json.encode({OURS: own, **fields}))


def _parsed(entry: Entry) -> tuple[Mapping[str, Any], dict[str, msgspec.Raw]]:
    action, _, source = entry.lines.partition(b"\n")
    ((_, options),) = orjson.loads(action).items()
    return options, _fields.decode(source)


def _path(name: str) -> str:
    return f"/_ingest/pipeline/{quote(name, safe='')}"


def _definitions(connection: Connection, name: str) -> dict[str, Any]:
    """The pipeline and all that it calls, by name; None for one that does not exist."""
    found: dict[str, Any] = {}
    wanted = [name]
    for _ in range(_DEEPEST):
        for one in wanted:
            found[one] = _definition(connection, one)
        called = (inner for one in wanted if found[one] is not None for inner in _called(found[one]))
        wanted = [inner for inner in dict.fromkeys(called) if inner not in found]
    return found


def _definition(connection: Connection, name: str) -> Any:
    response = connection.request("GET", _path(name))
    if response.status == 404:
        return None
    value = response.json
    if response.status != 200 or not isinstance(value, dict) or name not in value:
        raise failure(response, connection.server, _LOOK)
    return {key: value[name][key] for key in ("processors", "on_failure") if key in value[name]}


def _called(definition: Any) -> Iterator[str]:
    """The pipelines that processors name, those inside of others too."""
    if isinstance(definition, list):
        for one in definition:
            yield from _called(one)
    elif isinstance(definition, dict):
        for kind, options in definition.items():
            name = options.get("name") if isinstance(options, dict) else None
            if kind == "pipeline" and isinstance(name, str) and "{{" not in name:
                yield name
            yield from _called(options)

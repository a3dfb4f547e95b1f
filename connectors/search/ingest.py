"""Ingest pipelines that documents go through on their way into an index.

A pipeline is part of what a document becomes, as a hook is, but the cluster has it and anybody may change it: so its
definition is noted in the index, and compared. It may do whatever it likes with a document's fields, but must neither
move documents nor touch replicator's own fields.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import msgspec
import orjson

from connectors.search.connection import Connection
from connectors.search.errors import failure
from connectors.search.layout import Layout
from connectors.search.mappings import OURS
from replicator.errors import TransientError

NOTE = "ingest_pipeline"  # in the index's notes
_DEEPEST = 8  # pipelines that call others
_MOVING = ("_id", "_index", "_routing", "_version", "_version_type", "_if_seq_no", "_if_primary_term", "_op_type")
_FATAL: Mapping[str, str] = {
    "drop": "drops documents, which leaves older ones in place; leave items out in a transform hook instead",
    "reroute": "sends documents to another index",
    "date_index_name": "sends documents to another index",
}
_TARGETS = ("field", "target_field", "fields", "add_to_root")  # options that name what a processor writes or removes
FAILS = "its ingest pipeline fails on the document, drops it, or cannot be tried with a whole number beyond 64 bits"
CHANGES = f"its ingest pipeline changes the field {OURS}, where replicator keeps version and key"
_LOOK = "looking up the ingest pipeline (needs the cluster privilege read_pipeline)"
_TRY = "trying the ingest pipeline (needs the cluster privilege read_pipeline)"


def problems(connection: Connection, layout: Layout) -> Iterator[str]:
    """Why documents must not go through the layout's pipeline, one sentence each."""
    if layout.ingest is None:
        return
    definitions = _definitions(connection, layout.ingest)
    for name, definition in definitions.items():
        if definition is None:
            yield f"the ingest pipeline {name} does not exist; create it, or leave out ingest_pipeline"
        else:
            yield from (f"the ingest pipeline {name} {text}" for text in dict.fromkeys(_hazards(definition)))
    if all(definition is not None for definition in definitions.values()):
        yield from _trial(connection, layout)


def digest(connection: Connection, layout: Layout) -> Mapping[str, str]:
    """The note of the pipeline, and those that it calls, as they are now; empty without one."""
    if layout.ingest is None:
        return {}
    text = orjson.dumps(_definitions(connection, layout.ingest), option=orjson.OPT_SORT_KEYS)
    return {NOTE: f"{layout.ingest} {hashlib.sha256(text).hexdigest()[:16]}"}


def changed(layout: Layout, notes: Mapping[str, Any], now: Mapping[str, str]) -> Iterator[str]:
    """Whether the pipeline is another one than when the epoch of ``notes`` began."""
    if layout.ingest is not None and NOTE in notes and notes[NOTE] != now.get(NOTE):
        yield (
            f"{layout.index}: the ingest pipeline {layout.ingest} has changed since documents went through it, so "
            "that some would be of the old one and some of the new one. Put it back, and repair what has gone through "
            "the other one with: replicator verify --repair. Or copy everything again with: replicator resync"
        )


def simulated(connection: Connection, layout: Layout, sources: Mapping[str, bytes]) -> dict[str, bytes | None]:
    """What the pipeline makes of each source, by the document's id; None where it fails.

    Numbers come back as the engine parses them for a pipeline: fractions as doubles.
    """
    ids = list(sources)
    documents = b",".join(
        b'{"_index":%b,"_id":%b,"_source":%b}' % (orjson.dumps(layout.writer), orjson.dumps(id), sources[id])
        for id in ids
    )
    response = connection.request("POST", f"{_path(layout.ingest or '')}/_simulate", b'{"docs":[%b]}' % documents)
    if response.status in (400, 413) and len(ids) > 1:
        # One that the simulation cannot hold fails all of them on OpenSearch; or they are too large for one request.
        half = len(ids) // 2
        return {
            **simulated(connection, layout, {id: sources[id] for id in ids[:half]}),
            **simulated(connection, layout, {id: sources[id] for id in ids[half:]}),
        }
    if response.status in (400, 413):
        return dict.fromkeys(ids)
    if response.status != 200:
        raise failure(response, connection.server, _TRY)
    try:
        made = _decode.decode(response.body).docs
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise TransientError(f"{connection.server}: the response to {_TRY} is not complete") from e
    return {id: _source(one) for id, one in zip(ids, made, strict=True)}


class _Document(msgspec.Struct):
    source: msgspec.Raw = msgspec.field(name="_source", default=msgspec.Raw(b"{}"))


class _Simulated(msgspec.Struct):
    doc: _Document | None = None


class _Simulation(msgspec.Struct):
    docs: list[_Simulated | None]


_decode = msgspec.json.Decoder(_Simulation)  # sources as they are: decoding would write numbers in another way


def _source(simulated: _Simulated | None) -> bytes | None:
    """None if the pipeline fails on the document, or drops it."""
    return None if simulated is None or simulated.doc is None else bytes(simulated.doc.source)


class _Own(msgspec.Struct):
    own: Any = msgspec.field(name=OURS, default=None)


_decode_own = msgspec.json.Decoder(_Own)


def keeps_own(sent: bytes, made: bytes) -> bool:
    """Whether a document has replicator's own fields as they were sent: without them, no sweep would find it."""
    return bool(_decode_own.decode(sent).own == _decode_own.decode(made).own)


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
    processors = ("processors", "on_failure")
    return {key: value[name][key] for key in processors if key in value[name]}


def _called(definition: Any) -> Iterator[str]:
    for kind, options in _processors(definition):
        name = options.get("name")
        if kind == "pipeline" and isinstance(name, str) and "{{" not in name:
            yield name


def _processors(definition: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every processor with its options, those inside of others too."""
    if isinstance(definition, list):
        for one in definition:
            yield from _processors(one)
    elif isinstance(definition, dict):
        for kind, options in definition.items():
            if isinstance(options, dict):
                yield kind, options
            yield from _processors(options)


def _hazards(definition: Any) -> Iterator[str]:
    for kind, options in _processors(definition):
        if kind in _FATAL:
            yield _FATAL[kind]
        if "keep" in options and OURS not in _texts(options["keep"]):
            yield f"removes every field but some; {OURS} must be one of those that it keeps"
        for text in (text for name in _TARGETS for text in _texts(options.get(name))):
            if text in _MOVING or text.removeprefix("_ingest.").removeprefix("_source.").partition(".")[0] == OURS:
                yield f"changes {text}, which replicator needs as it was sent"


def _texts(value: Any) -> list[str]:
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


def _trial(connection: Connection, layout: Layout) -> Iterator[str]:
    """Whether a document without fields keeps replicator's own ones: scripts do not show what they touch."""
    own = {"version": 1, **dict.fromkeys(layout.parts, "replicator")}
    try_out = simulated(connection, layout, {"replicator": orjson.dumps({OURS: own})})["replicator"]
    if try_out is not None and orjson.loads(try_out).get(OURS) != own:
        yield (
            f"the ingest pipeline {layout.ingest} changes the field {OURS}, where replicator keeps version and key; "
            "take that out of it"
        )

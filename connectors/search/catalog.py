"""What is there: indices and aliases as the cluster has them, compared with their layouts; how absent ones are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson

from connectors.search.compare import differences, roundings, settings_differences
from connectors.search.connection import Connection
from connectors.search.failures import failure
from connectors.search.layout import FORMAT, LIVE, OURS, Layout, own_fields


@dataclass(frozen=True, slots=True)
class Found:
    """An index as the cluster has it. ``notes``: what replicator left in its mapping; empty if it never wrote there."""

    index: str
    mapping: Mapping[str, Any]
    settings: Mapping[str, Any]
    aliases: Mapping[str, Any]

    @property
    def notes(self) -> Mapping[str, Any]:
        found = self.mapping.get("_meta", {}).get(OURS, {})
        return found if isinstance(found, dict) else {}

    @property
    def epoch(self) -> int:
        return int(self.notes.get("epoch", 0))


@dataclass(frozen=True, slots=True)
class State:
    """What is under a layout's two names: the index, None if it is absent, and where the alias leads."""

    index: Found | None
    leads_to: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return self.index is not None and bool(self.leads_to)


def state(connection: Connection, layout: Layout) -> State:
    index = _get(connection, layout.index).get(layout.index)
    return State(index, tuple(sorted(_get(connection, layout.alias))))


def _get(connection: Connection, name: str) -> dict[str, Found]:
    answer = connection.request("GET", f"/{quote(name, safe='')}")
    if answer.status == 404 and answer.cause[0] == "index_not_found_exception":
        return {}
    found = answer.json
    if answer.status != 200 or not isinstance(found, dict):
        raise failure(answer, connection.server, f"reading what {name} is (view_index_metadata)")
    return {index: _found(index, told) for index, told in found.items()}


def _found(index: str, told: Mapping[str, Any]) -> Found:
    settings = told.get("settings", {}).get("index", {})
    return Found(index, told.get("mappings", {}), settings, told.get("aliases", {}))


def mismatches(layout: Layout, found: State, pipeline: str) -> Iterator[str]:
    """Everything in which what is there differs from what is wanted, a sentence each."""
    if layout.alias in found.leads_to:
        yield (
            f"{layout.alias} is an index; replicator writes to an index {layout.index} behind an alias {layout.alias}, "
            "which hides what is deleted. Give the table another name, or rename or remove that index"
        )
        return
    strangers = [name for name in found.leads_to if name != layout.index]
    if strangers:
        yield f"the alias {layout.alias} leads to {', '.join(strangers)}; it is to lead to {layout.index} only"
    if found.index is not None:
        yield from (f"{layout.index}: {text}" for text in _of_index(layout, found.index, pipeline))


def taken(layout: Layout, found: Found, pipeline: str) -> Iterator[str]:
    """Whose index it is, if it is another pipeline's."""
    if found.notes and not layout.adopt and found.notes.get("pipeline") != pipeline:
        yield (
            f"pipeline {found.notes.get('pipeline')} writes to this index; choose another one with index: NAME, or "
            "take it over with adopt: true if that pipeline is gone"
        )


def _of_index(layout: Layout, found: Found, pipeline: str) -> Iterator[str]:
    if not layout.adopt:
        if not found.notes:
            yield (
                "this index was not made by replicator (an index that is written to before it exists is made up with a "
                "dynamic mapping). Remove it, choose another one with index: NAME, or take it over with adopt: true"
            )
            return
        yield from taken(layout, found, pipeline)
    if int(found.notes.get("format", 0)) > FORMAT:
        yield f"it is of format {found.notes['format']}, this replicator knows up to {FORMAT}: use the newer one"
    missing = layout.adopt and OURS not in found.mapping.get("properties", {})
    wanted = _without_ours(layout.mapping) if missing else layout.mapping
    yield from differences(wanted, found.mapping)
    yield from settings_differences(layout.settings, found.settings)
    alias = found.aliases.get(layout.alias)
    if alias is not None and alias.get("filter") != LIVE:
        yield f"the alias {layout.alias} does not hide tombstones; its filter is to be {orjson.dumps(LIVE).decode()}"
    if not _routed_alike(layout, found):
        yield "its documents are routed otherwise than routing says, so they would be there twice; make a new index"


def _without_ours(mapping: Mapping[str, Any]) -> dict[str, Any]:
    properties = {name: field for name, field in mapping["properties"].items() if name != OURS}
    return {**mapping, "properties": properties}


def _routed_alike(layout: Layout, found: Found) -> bool:
    by = None if layout.routed_by is None else layout.parts[layout.routed_by]
    required = str(found.mapping.get("_routing", {}).get("required", "")).lower() == "true"
    return required == (by is not None) and (layout.adopt or found.notes.get("routing") == by)


def plan(layout: Layout, found: State) -> Iterator[str]:
    """The requests that make what is absent, as a console takes them, with what numbers lose in the index."""
    if found.index is None:
        notes = "".join(f"# {text}\n" for text in roundings(layout.mapping["properties"]) if OURS not in text[:11])
        body = orjson.dumps(_creation(layout, {}), option=orjson.OPT_INDENT_2).decode()
        yield f"{notes}PUT /{layout.index}\n{body}"
    elif not found.leads_to:
        yield f"POST /_aliases\n{orjson.dumps(_alias(layout), option=orjson.OPT_INDENT_2).decode()}"


def make(connection: Connection, layout: Layout, found: State, notes: Mapping[str, Any]) -> None:
    """Make what is absent, and note whose index it is."""
    index = quote(layout.index, safe="")
    if found.index is None:
        body = orjson.dumps(_creation(layout, notes))
        connection.ask("PUT", f"/{index}", body, doing=f"making the index {layout.index} (create_index)")
        return
    if dict(found.index.notes) != dict(notes):
        meta = {**found.index.mapping.get("_meta", {}), OURS: notes}
        mapping = {"_meta": meta, "properties": {OURS: {"properties": own_fields(layout.parts)}}}
        connection.ask(
            "PUT", f"/{index}/_mapping", orjson.dumps(mapping), doing=f"changing the mapping of {layout.index} (manage)"
        )
    if not found.leads_to:
        connection.ask("POST", "/_aliases", orjson.dumps(_alias(layout)), doing=f"making the alias {layout.alias}")


def _creation(layout: Layout, notes: Mapping[str, Any]) -> dict[str, Any]:
    meta = {**layout.mapping.get("_meta", {}), **({OURS: notes} if notes else {})}
    mapping = {**layout.mapping, **({"_meta": meta} if meta else {})}
    return {"settings": layout.settings, "mappings": mapping, "aliases": {layout.alias: {"filter": LIVE}}}


def _alias(layout: Layout) -> dict[str, Any]:
    return {"actions": [{"add": {"index": layout.index, "alias": layout.alias, "filter": LIVE}}]}


def notes(layout: Layout, pipeline: str, epoch: int) -> dict[str, Any]:
    """What is left in the mapping of an index that replicator writes to."""
    routing = {} if layout.routed_by is None else {"routing": layout.parts[layout.routed_by]}
    return {"pipeline": pipeline, "epoch": epoch, "format": FORMAT, **routing}

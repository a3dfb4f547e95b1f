"""Indices and aliases as the cluster has them: reading them, comparing them with their layouts, creating them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson

from connectors.search import mappings
from connectors.search.connection import Connection, filtered
from connectors.search.errors import failure
from connectors.search.layout import DELETED_AT, FORMAT, LIVE, Layout
from connectors.search.mappings import OURS, differences, own_differences, roundings, settings_differences


@dataclass(frozen=True, slots=True)
class Index:
    """An index as the cluster has it. ``notes``: what replicator keeps in its mapping; empty if it never did."""

    name: str
    mapping: Mapping[str, Any]
    settings: Mapping[str, Any]
    aliases: Mapping[str, Any]

    @property
    def notes(self) -> Mapping[str, Any]:
        notes = self.mapping.get("_meta", {}).get(OURS, {})
        return notes if isinstance(notes, dict) else {}

    @property
    def epoch(self) -> int:
        return int(self.notes.get("epoch", 0))

    @property
    def id(self) -> str:
        """Unique to this index since its last restore from a snapshot.

        An index that is closed and restored over itself keeps its UUID and notes but gets a new history UUID.
        """
        history = self.settings.get("history", {}).get("uuid", "")
        return "/".join(filter(None, (self.settings.get("uuid", ""), history)))

    @property
    def replaced(self) -> bool:
        """Whether this is another index than the one whose notes it carries."""
        return str(self.notes.get("uuid", self.id)) != self.id


@dataclass(frozen=True, slots=True)
class State:
    """What a layout's three names stand for: the index, None if it is absent, and the targets of the two aliases.

    ``instead``: the indices that the index's own name points to, where it has become an alias.
    """

    index: Index | None
    searched: tuple[str, ...]
    written: tuple[str, ...]
    instead: tuple[str, ...] = ()

    def replaced(self, epoch: int) -> bool:
        """Whether a run that continues in ``epoch`` would write to another index than before."""
        return self.index is not None and self.index.replaced and self.index.epoch == epoch

    @property
    def complete(self) -> bool:
        return self.index is not None and bool(self.searched) and bool(self.written)


def state(connection: Connection, layout: Layout) -> State:
    named = _get(connection, layout.index)
    alias, writer = (tuple(sorted(_get(connection, name))) for name in (layout.alias, layout.writer))
    return State(named.get(layout.index), alias, writer, _others(layout, named))


def _others(layout: Layout, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in names if name != layout.index))


def states(connection: Connection, layouts: Sequence[Layout]) -> list[State]:
    """The state of several layouts, in one request. Of mappings it has only the notes."""
    if not layouts:
        return []
    names = [name for layout in layouts for name in (layout.index, layout.alias, layout.writer)]
    path = f"/{quote(','.join(names), safe='')}?ignore_unavailable=true&{_SETTINGS}"
    indices = connection.ask("GET", path, doing=f"looking up {', '.join(names)} (needs view_index_metadata)")
    known = {name: _index(name, body) for name, body in indices.items()}
    return [_state(layout, known) for layout in layouts]


_SETTINGS = filtered("*.settings.index", "*.aliases", "*.mappings._meta")


def _state(layout: Layout, known: Mapping[str, Index]) -> State:
    def targets(name: str) -> tuple[str, ...]:
        return tuple(sorted(index.name for index in known.values() if name == index.name or name in index.aliases))

    instead = _others(layout, targets(layout.index))
    return State(known.get(layout.index), targets(layout.alias), targets(layout.writer), instead)


def _get(connection: Connection, name: str) -> dict[str, Index]:
    response = connection.request("GET", f"/{quote(name, safe='')}")
    if response.status == 404 and response.cause[0] == "index_not_found_exception":
        return {}
    indices = response.json
    if response.status != 200 or not isinstance(indices, dict):
        raise failure(response, connection.server, f"looking up {name} (needs view_index_metadata)")
    return {name: _index(name, body) for name, body in indices.items()}


def _index(name: str, body: Mapping[str, Any]) -> Index:
    settings = body.get("settings", {}).get("index", {})
    return Index(name, body.get("mappings", {}), settings, body.get("aliases", {}))


def mismatches(layout: Layout, state: State, pipeline: str) -> Iterator[str]:
    """Every difference between the cluster and the layout, one sentence each."""
    if layout.alias in state.searched:
        yield (
            f"{layout.alias} is an index; replicator writes to an index {layout.index} behind an alias {layout.alias}, "
            "which hides deleted documents. Give the table another name, or rename or remove that index"
        )
        return
    if state.instead:
        yield from renamed(layout, state)
        return
    yield from _foreign_targets(layout, state)
    yield from _unseen(layout, state)
    if state.index is not None:
        yield from (f"{layout.index}: {text}" for text in _of_index(layout, state.index, pipeline))


def renamed(layout: Layout, state: State) -> Iterator[str]:
    """Whether the index's name has become an alias of another index, which may hold its documents."""
    if state.instead:
        other = ", ".join(state.instead)
        yield (
            f"{layout.index} is no longer an index but an alias of {other}: something replaced the index, as ILM's "
            f"shrink does. Keep {other}, perhaps the only copy. To continue in it, set index: {state.instead[0]} under "
            "the table, take that index out of ILM (index.lifecycle.name: null), and run: replicator resync CONFIG "
            "--accept-identity-change"
        )


_MOVED = (
    ". To build a new index beside the one that readers see, and switch at once: replicator rebuild start CONFIG. If a "
    "rebuild has switched to it, use the new config; to go back: replicator rebuild rollback NEW_CONFIG"
)


def _foreign_targets(layout: Layout, state: State) -> Iterator[str]:
    searched = tuple(name for name in state.searched if name != layout.beside)
    either = f"{layout.index} or {layout.beside}" if layout.beside else layout.index
    for alias, targets, goal in (
        (layout.alias, searched, either),
        (layout.writer, state.written, layout.index),
    ):
        if others := _others(layout, targets):
            yield (
                f"the alias {alias} points to {', '.join(others)}; it must point to {goal} only (rollover, ILM and "
                "reindexing scripts move aliases: keep them off this one)" + ("" if layout.beside else _MOVED)
            )
    if layout.index in searched and layout.beside in state.searched:
        yield (
            f"the alias {layout.alias} points to both {layout.index} and {layout.beside}, so searches find documents "
            "twice; remove it from the copy that is not verified"
        )


def _unseen(layout: Layout, state: State) -> Iterator[str]:
    """Whether no index has the alias while there are two that might; neither run creates it then."""
    if layout.beside and not state.searched:
        yield (
            f"the alias {layout.alias} is gone, so searches find nothing. To put it on the old copy again: replicator "
            "rebuild rollback CONFIG --unchecked"
        )


def changed(layout: Layout, state: State, id: str) -> Iterator[str]:
    """What changed since the index was opened as ``id``, as far as a run cannot continue with it."""
    if state.instead:
        yield from renamed(layout, state)
    elif state.index is None:
        yield (
            f"the index {layout.index} is gone. If its documents are lost, copy everything again: "
            "replicator resync CONFIG"
        )
    elif state.index.id != id:
        yield replaced(layout)
    else:
        yield from _foreign_targets(layout, state)
        yield from _unseen(layout, state)
        if not state.searched and not layout.beside:
            yield f"the alias {layout.alias} is gone, so searches find nothing; the next run recreates it"
        yield from (f"{layout.index}: {text}" for text in broken_guarantees(layout, state.index))


def replaced(layout: Layout) -> str:
    return (
        f"{layout.index} is not the index that replicator wrote to: it was deleted and recreated, restored from a "
        "snapshot, or replaced in some other way. What it lacks may be gone from the stream; copy everything again "
        "with: replicator resync CONFIG"
    )


def overtaken(layout: Layout, state: State, epoch: int) -> Iterator[str]:
    """Why a run of ``epoch`` must not start writing to the index."""
    if state.index is not None and state.index.epoch > epoch:
        yield (
            f"{layout.index} was written by epoch {state.index.epoch}, later than this run's {epoch}: its documents "
            "would count as newer. Choose another index with index: NAME, or restore the newer checkpoints"
        )


def taken(layout: Layout, index: Index, pipeline: str) -> Iterator[str]:
    """Whether the index belongs to another pipeline."""
    if index.notes and not layout.adopt and index.notes.get("pipeline") != pipeline:
        yield (
            f"pipeline {index.notes.get('pipeline')} writes to this index; choose another one with index: NAME, or "
            "take it over with adopt: true if that pipeline is gone"
        )


def taken_over(layout: Layout, state: State, notes: Mapping[str, Any]) -> Iterator[str]:
    """The pipeline that took the index over since this one left ``notes`` there, if any did."""
    pipeline = notes["pipeline"] if state.index is None else state.index.notes.get("pipeline", notes["pipeline"])
    if pipeline != notes["pipeline"]:
        yield (
            f"pipeline {pipeline} has taken over the index {layout.index}: stop this one for good, or give it its own "
            "index with index: NAME"
        )


def _of_index(layout: Layout, index: Index, pipeline: str) -> Iterator[str]:
    if not layout.adopt:
        if not index.notes:
            yield (
                "this index was not created by replicator (a write to an index that does not exist creates it with a "
                "dynamic mapping). Remove it, choose another one with index: NAME, or take it over with adopt: true"
            )
            return
        yield from taken(layout, index, pipeline)
    if int(index.notes.get("format", 0)) > FORMAT:
        yield (
            f"it has format {index.notes['format']}, and this version of replicator supports up to {FORMAT}: "
            "use a newer one"
        )
    yield from differences(_without_ours(layout.mapping), index.mapping, mappings.ANEW[layout.generation])
    own = index.mapping.get("properties", {}).get(OURS)
    yield from own_differences(layout.own, own)
    if not layout.marks and own is not None and DELETED_AT in own.get("properties", {}):
        yield (
            f"it was written with deletes: mark, and its field {OURS}.{DELETED_AT} tells which documents are deleted. "
            f"Set deletes: mark again; or {mappings.ANEW[layout.generation]}"
        )
    yield from settings_differences(layout.settings, index.settings)
    yield from mappings.mapping_hazards(index.mapping)
    yield from broken_guarantees(layout, index)
    if not _routed_alike(layout, index):
        yield (
            "its documents are routed differently than routing says, so they would be stored twice; create a new index"
        )


def broken_guarantees(layout: Layout, index: Index) -> Iterator[str]:
    """What breaks a guarantee among the settings and aliases, which can change at any time."""
    yield from mappings.settings_hazards(index.settings)
    yield from alias_hazards(layout, index)


def alias_hazards(layout: Layout, index: Index) -> Iterator[str]:
    searched = index.aliases.get(layout.alias)
    if searched is not None and searched.get("filter") != LIVE:
        yield f"the alias {layout.alias} does not hide tombstones; its filter must be {orjson.dumps(LIVE).decode()}"
    for name in (layout.alias, layout.writer):
        alias = index.aliases.get(name, {})
        if any(kind in alias for kind in ("index_routing", "search_routing")):
            yield (
                f"the alias {name} has a routing, so documents would be stored twice or not be found; "
                "recreate the alias without it (and set routing: ATTRIBUTE under the table instead)"
            )
    if str(index.aliases.get(layout.writer, {}).get("is_write_index", True)).lower() == "false":
        yield (
            f"the alias {layout.writer} does not accept writes (is_write_index: false); remove it, and run recreates it"
        )


def _without_ours(mapping: Mapping[str, Any]) -> dict[str, Any]:
    properties = {name: field for name, field in mapping["properties"].items() if name != OURS}
    return {**mapping, "properties": properties}


def _routed_alike(layout: Layout, index: Index) -> bool:
    by = layout.routing_noted
    required = str(index.mapping.get("_routing", {}).get("required", "")).lower() == "true"
    return required == (by is not None) and (layout.adopt or index.notes.get("routing") == by)


def plan(layout: Layout, state: State) -> Iterator[str]:
    """The requests that create what is absent, as Kibana's console takes them, with notes on numeric precision."""
    if state.index is None:
        notes = "".join(f"# {text}\n" for text in roundings(layout.mapping["properties"]) if OURS not in text[:11])
        body = orjson.dumps(_creation(layout, {}), option=orjson.OPT_INDENT_2).decode()
        yield f"{notes}PUT /{layout.index}\n{body}"
    elif not state.complete:
        yield f"POST /_aliases\n{orjson.dumps(_actions(layout, state), option=orjson.OPT_INDENT_2).decode()}"


def create(connection: Connection, layout: Layout, state: State, notes: Mapping[str, Any]) -> None:
    """Create what is absent. ``notes``: see the function ``notes``."""
    if state.index is None:
        body = orjson.dumps(_creation(layout, notes))
        path = f"/{quote(layout.index, safe='')}"
        connection.ask("PUT", path, body, doing=f"creating the index {layout.index} (needs create_index)")
    elif not state.complete:
        body = orjson.dumps(_actions(layout, state))
        connection.ask("POST", "/_aliases", body, doing=f"creating the aliases of {layout.index}")


def note(connection: Connection, layout: Layout, index: Index, notes: Mapping[str, Any]) -> None:
    """Store ``notes`` in the mapping of an existing index, together with the index's id."""
    noted = {**notes, **({"uuid": index.id} if index.id else {})}
    own, fields = index.mapping.get("properties", {}).get(OURS, {}), layout.own
    if dict(index.notes) == noted and fields.keys() <= own.get("properties", {}).keys():
        return
    meta = {**index.mapping.get("_meta", {}), OURS: noted}
    mapping = {"_meta": meta, "properties": {OURS: {"properties": fields}}}
    path = f"/{quote(layout.index, safe='')}/_mapping"
    connection.ask("PUT", path, orjson.dumps(mapping), doing=f"changing the mapping of {layout.index} (needs manage)")


def _creation(layout: Layout, notes: Mapping[str, Any]) -> dict[str, Any]:
    meta = {**layout.mapping.get("_meta", {}), **({OURS: notes} if notes else {})}
    mapping = {**layout.mapping, **({"_meta": meta} if meta else {})}
    return {"settings": layout.settings, "mappings": mapping, "aliases": _aliases(layout)}


def _aliases(layout: Layout) -> dict[str, Any]:
    """The public alias, for searches, and the one for writes. Both hide tombstones.

    During a rebuild the public one exists, and only ``rebuild`` moves it.
    """
    searched = {} if layout.beside else {layout.alias: {"filter": LIVE}}
    return {**searched, layout.writer: {"filter": LIVE, "is_hidden": True}}


def _actions(layout: Layout, state: State) -> dict[str, Any]:
    absent = {layout.alias: not state.searched, layout.writer: not state.written}
    created = {name: body for name, body in _aliases(layout).items() if absent[name]}
    return {"actions": [{"add": {"index": layout.index, "alias": name, **body}} for name, body in created.items()]}


def notes(layout: Layout, pipeline: str, epoch: int) -> dict[str, Any]:
    """The metadata that replicator keeps in the mapping of an index it writes to."""
    routing = {} if layout.routing_noted is None else {"routing": layout.routing_noted}
    return {"pipeline": pipeline, "epoch": epoch, "format": FORMAT, **routing}

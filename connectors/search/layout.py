"""The layout of an index: its names, its mapping, the ids of its documents.

Replicator's own fields are in one object, ``replicator``: the version, the parts of the key, whether it is a tombstone,
and when its item was deleted, if documents are marked. Its name has no leading underscore, because the engines reserve
such names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from connectors.search.mappings import OURS, WRITER, is_ours
from connectors.search.options import LONGEST_NAME, SearchTable, index_name, index_of, routing_of
from replicator.batch import DocumentId
from replicator.errors import ConfigError
from replicator.key import KeySchema
from replicator.target.contract import OWN_IDS, UNKNOWN_KEYS, Generation, Table

WHOLE = "document"  # the field with the whole item, in an index without a mapping
FORMAT = 1  # version of this layout; newer ones are rejected
LIVE = {"bool": {"must_not": {"term": {f"{OURS}.deleted": True}}}}  # the alias's filter: hides tombstones
DELETED_AT = "deleted_at"  # in ``replicator``, of a document that is marked
MARKED: Mapping[str, Any] = {"exists": {"field": f"{OURS}.{DELETED_AT}"}}
_OWN_PARTS = ("item", "id")
LONGEST_TERM = 8191  # characters of up to 4 bytes that fit a keyword


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of one index.

    ``parts``: the names, inside ``replicator``, of the parts of a document's id. ``whole``: an item is kept as one
    object that is not searchable; otherwise its attributes are fields. ``routed_by``: the position in ``parts`` of the
    routing value, which ends before ``routed_before`` if that is given. ``added``: the key that each document must
    contain, as its hook may have left it out. ``marks``: documents whose item is gone stay, and are marked. ``beside``:
    during a rebuild, the index of the other generation, to which the alias may point as well. ``ingest``: the ingest
    pipeline that documents go through. ``generation``: which copy of a rebuild it is, for messages.
    """

    alias: str
    index: str
    parts: tuple[str, ...]
    whole: bool
    mapping: Mapping[str, Any]
    settings: Mapping[str, Any]
    shards: int | None = None
    routed_by: int | None = None
    adopt: bool = False
    added: KeySchema | None = None
    marks: bool = False
    beside: str = ""
    ingest: str | None = None
    routed_before: str = ""
    generation: Generation = Generation.ONLY

    def routing(self, id: DocumentId) -> str | None:
        """What decides the shard of a document; None: its id."""
        return None if self.routed_by is None else self.shortened(id[self.routed_by])

    def shortened(self, part: str) -> str:
        """The routing, of the part of an id that it is taken from. Never empty, which no engine accepts."""
        return (part.partition(self.routed_before)[0] or part) if self.routed_before else part

    @property
    def routing_noted(self) -> str | None:
        """How documents are routed, as it is noted in the index."""
        if self.routed_by is None:
            return None
        part = self.parts[self.routed_by]
        return f"before({part}, '{self.routed_before}')" if self.routed_before else part

    @property
    def own_ids(self) -> bool:
        """Whether the hook chooses the ids of the documents."""
        return self.parts == _OWN_PARTS

    @property
    def own(self) -> dict[str, Any]:
        """The mapping of the fields under ``replicator``."""
        return own_fields(self.parts, marks=self.marks)

    @property
    def writer(self) -> str:
        """The alias for writes. It is replicator's own, so moving ``alias`` redirects no writes."""
        return f"{self.index}{WRITER}"


def layouts(tables: Sequence[Table]) -> dict[str, Layout]:
    """The layout of each table, by name. Raises ConfigError naming every problem."""
    problems: list[str] = []
    layouts: dict[str, Layout] = {}
    for table in tables:
        try:
            layouts[table.name] = _layout(table)
        except ConfigError as e:
            problems += e.problems
    problems += _shared(list(layouts.values()))
    if problems:
        raise ConfigError(*problems)
    return layouts


def _shared(layouts: Sequence[Layout]) -> list[str]:
    names = [layout.index for layout in layouts] + [layout.alias for layout in layouts]
    return [f"target: the name {name} is used twice" for name in sorted(names) if names.count(name) > 1][:1]


def _layout(table: Table) -> Layout:
    options = SearchTable.model_validate(dict(table.options))
    name = _index_of(table)
    for candidate in (table.name.lower(), name):
        try:
            index_name(candidate)
        except ValueError as e:
            raise ConfigError(f"{table.name}: {candidate} {e}") from e
    if len(f"{name}{WRITER}".encode()) > LONGEST_NAME:
        raise ConfigError(
            f"{table.name}: the index name {name} is too long: with the suffix {WRITER} of replicator's own alias, it "
            f"may have at most {LONGEST_NAME} bytes; choose a shorter one with index: NAME"
        )
    if name == table.name:
        raise ConfigError(f"{name}: the alias and the index behind it need different names; leave out index")
    beside = "" if table.beside is None else _index_of(table.beside)
    if name == beside:
        raise ConfigError(
            f"{table.name}: both copies would have the index {name}: give the new one another name with index: NAME "
            "under the table, in the new config"
        )
    attribute, routed_before = routing_of(options.routing)
    routed_by = _routing(table, attribute, shortened=routed_before != "")
    parts = _parts(table)
    whole = options.mapping is None
    keys = _key_fields(table, whole=whole) if options.keys else {}
    marks = options.deletes == "mark"
    mapping = _mapping(options.mapping, own_fields(parts, marks=marks), keys, routed=routed_by is not None)
    settings = _settings(options)
    added = table.keys if keys and not whole else None
    return Layout(
        table.name,
        name,
        parts,
        whole,
        mapping,
        settings,
        shards=options.shards,
        routed_by=routed_by,
        adopt=options.adopt,
        added=added,
        marks=marks,
        beside=beside,
        ingest=options.ingest_pipeline,
        routed_before=routed_before,
        generation=table.generation,
    )


def indices(tables: Sequence[Table]) -> Sequence[str]:
    """The names of their indices; during a rebuild, those of both generations."""
    both = (one for table in tables for one in (table, table.beside) if one is not None)
    return list(dict.fromkeys(_index_of(table) for table in both))


def _index_of(table: Table) -> str:
    return index_of(table.name, table.options)


def _parts(table: Table) -> tuple[str, ...]:
    return _OWN_PARTS if table.keys == OWN_IDS else ("partition", "sort")[: len(table.keys.names)]


def _routing(table: Table, name: str | None, *, shortened: bool) -> int | None:
    if name is None:
        return None
    if table.keys == UNKNOWN_KEYS:
        return 0
    if name not in table.keys.names:
        known = ", ".join(table.keys.names)
        raise ConfigError(f"{table.name}: routing must be an attribute of the key ({known}), and {name} is not")
    at = table.keys.names.index(name)
    if shortened and table.keys.attributes[at].kind != "S":
        raise ConfigError(f"{table.name}: routing: before(…) needs a text, and {name} is of another type")
    return at


def _key_fields(table: Table, *, whole: bool) -> dict[str, Any]:
    """The mapping of the key attributes. Where the item is kept as a whole, they are other names of replicator's own
    fields; otherwise each document has them.
    """
    if table.keys == OWN_IDS:
        raise ConfigError(
            f"{table.name}: keys cannot be true if the hook chooses the documents' ids; it may return the key "
            "attributes itself"
        )
    if table.keys == UNKNOWN_KEYS:
        return {}
    for name in table.keys.names:
        if is_ours(name) or name.startswith("_") or "." in name or not name.strip() or (whole and name == WHOLE):
            raise ConfigError(f"{table.name}: keys cannot be true, because no field can be called {name} like the key")
    if whole:
        pairs = zip(table.keys.names, _parts(table), strict=True)
        return {name: {"type": "alias", "path": f"{OURS}.{part}"} for name, part in pairs}
    return {name: {"type": "keyword", "ignore_above": LONGEST_TERM} for name in table.keys.names}


def _mapping(
    given: Mapping[str, Any] | None, own: Mapping[str, Any], keys: Mapping[str, Any], *, routed: bool
) -> dict[str, Any]:
    fields = {} if given is None else given["properties"]
    whole = {WHOLE: {"type": "object", "enabled": False}} if given is None else {}
    return {
        "dynamic": "strict",
        **(given or {}),
        **({"_routing": {"required": True}} if routed else {}),
        "properties": {OURS: {"properties": own}, **whole, **keys, **fields},
    }


def own_fields(parts: Sequence[str], *, marks: bool) -> dict[str, Any]:
    key = {"type": "keyword", "ignore_above": LONGEST_TERM}
    marked = {DELETED_AT: {"type": "date"}} if marks else {}
    return {"version": {"type": "long"}, "deleted": {"type": "boolean"}, **marked, **{part: key for part in parts}}


def _settings(options: SearchTable) -> dict[str, Any]:
    counts = {"number_of_shards": options.shards, "number_of_replicas": options.replicas}
    return {**options.settings, **{name: n for name, n in counts.items() if n is not None}}


LONGEST_ID = 512  # bytes; with a longer one the engine rejects the whole request
_HASHED = "sha256:"


def index_id(id: DocumentId) -> str:
    """A document's id inside its index: readable, at most 512 bytes, unique per key.

    It is the key itself. Two parts are joined by ``|``, and inside them ``|`` is escaped as %7C and ``%`` as %25. A key
    that is too long is hashed, and so is one that looks like such a hash, so that the two cannot collide. Raises
    UnicodeEncodeError for half of a surrogate pair.
    """
    text = "|".join(id)
    if len(id) > 1 and ("%" in text or text.count("|") >= len(id)):
        text = "|".join(part.replace("%", "%25").replace("|", "%7C") for part in id)
    if len(text) * 4 <= LONGEST_ID and not text.startswith(_HASHED) and text.isascii():
        return text
    encoded = text.encode()
    if len(encoded) <= LONGEST_ID and not text.startswith(_HASHED):
        return text
    return _HASHED + hashlib.sha256(encoded).hexdigest()


def index_ids(ids: Sequence[DocumentId]) -> Sequence[str]:
    """``index_id`` of each, in a quarter of the time if all are short and none needs escaping."""
    texts = list(map("|".join, ids))
    joined = "".join(texts)
    bars = sum(map(len, ids)) - len(ids)  # the joining ones
    longest = max(map(len, texts), default=0) * 4
    if longest > LONGEST_ID or joined.count("|") != bars or "%" in joined or _HASHED in joined:
        return list(map(index_id, ids))
    return texts

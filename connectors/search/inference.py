"""Proposes a mapping from what sampled documents contain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from connectors.search.mappings import is_ours
from replicator.target.contract import Table
from replicator.target.observed import Field, Proposal

ENOUGH = 100  # values from which on a narrower type than the safe one is proposed
_MOST_FIELDS = 900  # an index allows 1,000 by default
_MOST_INSIDE = 50  # fields of one map: more are probably data, not names
_DEEPEST = 12  # levels; an index allows 20 by default
_LONGEST_KEYWORD = 256  # bytes
_RESERVED = frozenset({"_id", "_index", "_source", "_type", "_routing", "_field_names", "_ignored", "_seq_no"})
_RESERVED |= {"_version", "_tier", "_doc_count", "_nested_path", "_feature", "_primary_term", "_size"}
_KEPT = {"type": "object", "enabled": False}  # kept in the document, not searchable


@dataclass(slots=True)
class _Mapping:
    """A mapping in the making. ``room``: how many more fields it may have."""

    room: int = _MOST_FIELDS
    about: dict[tuple[str, ...], Field] = field(default_factory=dict)
    omitted: list[str] = field(default_factory=list)

    def properties(self, fields: Sequence[Field], path: tuple[str, ...], depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for one in _nested(fields):
            if reason := self._unusable(one.name, depth):
                self.omitted.append(f"the field {one.name!r} {reason}")
            elif self.room > 0:
                self.room -= 1
                place = (*path, one.name)
                self.about[place] = one
                result[one.name] = self._field(one, place, depth)
        return result

    @staticmethod
    def _unusable(name: str, depth: int) -> str:
        if depth == 0 and (is_ours(name) or name in _RESERVED):
            return "has a name that the engine or replicator uses; a hook can rename it"
        if not name.strip() or any(not part.strip() for part in name.split(".")):
            return "has a name that the engine does not accept; a hook can rename it"
        return ""

    def _field(self, one: Field, path: tuple[str, ...], depth: int) -> dict[str, Any]:
        if one.members is not None and one.only("list", "set", "set of texts", "set of numbers", "set of binaries"):
            return self._field(one.members, path, depth)  # engines have no arrays: a field may have several values
        if one.fields and one.only("map"):
            if depth >= _DEEPEST or len(one.fields) > _MOST_INSIDE:
                return dict(_KEPT)
            inner = self.properties(one.fields, (*path, "properties"), depth + 1)
            return {"properties": inner} if inner else dict(_KEPT)
        return _scalar(one)


def proposal(table: Table, fields: Sequence[Field]) -> Proposal:
    """A field for each field of the documents. Fields of other documents are kept, but cannot be searched."""
    making = _Mapping()
    properties = making.properties(fields, ("mapping", "properties"), 0)
    if making.room == 0:
        making.omitted.append(f"only the {_MOST_FIELDS} most frequent fields can be searched: an index allows 1,000")
    return Proposal({"mapping": {"dynamic": False, "properties": properties}}, making.about, making.omitted)


def _scalar(one: Field) -> dict[str, Any]:
    if one.only("boolean"):
        return {"type": "boolean"}
    if one.only("number"):
        return {"type": "long" if one.whole and one.count >= ENOUGH else "double"}
    if one.only("text") and one.dates and one.count >= ENOUGH:
        return {"type": "date"}
    if one.only("time", "date"):
        return {"type": "date"}
    if one.only("binary"):
        return {"type": "binary"}
    if one.only("text", "number", "boolean", "date", "time"):
        long = one.longest > _LONGEST_KEYWORD
        subfield = {"fields": {"keyword": {"type": "keyword", "ignore_above": _LONGEST_KEYWORD}}}
        return {"type": "text", **subfield} if long else {"type": "keyword", "ignore_above": 8191}
    return dict(_KEPT)


def _nested(fields: Sequence[Field]) -> Iterator[Field]:
    """The fields, with a.b as b inside of a, as the engines read dots. Where both occur, they are not searchable."""
    heads: dict[str, list[Field]] = {}
    for one in fields:
        head, dot, rest = one.name.partition(".")
        usable = bool(dot) and bool(head.strip()) and bool(rest.strip())
        heads.setdefault(head if usable else one.name, []).append(replace(one, name=rest) if usable else one)
    for head, group in heads.items():
        if len(group) == 1 and group[0].name == head:
            yield group[0]
        elif any(one.name == head for one in group):
            yield Field(head, max(one.count for one in group), kinds={"other": 1})
        else:
            yield Field(head, max(one.count for one in group), kinds={"map": 1}, fields=tuple(group))

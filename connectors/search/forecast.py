"""Predicts which documents an engine would refuse, from the config's mapping: unknown fields, simple types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from connectors.search.encode import TableEncoder
from connectors.search.layout import Layout
from connectors.search.mappings import OURS
from replicator.batch import Rejection, Upsert, Write

_WHOLE = {"byte": 7, "short": 15, "integer": 31, "long": 63, "unsigned_long": 64}  # bits
_FRACTIONS = frozenset({"double", "float", "half_float", "scaled_float"})
_TEXTS = frozenset({"text", "keyword", "constant_keyword", "wildcard", "search_as_you_type", "match_only_text", "ip"})
_TRUTHS = ("true", "false", "")
_LONGEST_TERM = 32_766  # bytes
_OPEN = ("true", True, "runtime", "false", False)  # values of ``dynamic`` other than strict


def refusals(writes: Sequence[Write], layouts: Mapping[str, Layout]) -> Iterator[Rejection]:
    encoders = {name: TableEncoder(layout) for name, layout in layouts.items()}
    for write in writes:
        rejections: list[Rejection] = []
        entries = list(encoders[write.table].entries([write], "", rejections))
        yield from rejections
        layout = layouts[write.table]
        if not rejections and isinstance(write, Upsert) and not layout.whole and layout.ingest is None:
            document = orjson.loads(entries[0].lines.splitlines()[1])
            document.pop(OURS, None)
            for reason in _object("", document, layout.mapping, "strict"):
                yield Rejection(write, reason)
                break


def _object(path: str, given: Mapping[str, Any], mapping: Mapping[str, Any], dynamic: object) -> Iterator[str]:
    dynamic = mapping.get("dynamic", dynamic)
    for name, value in given.items():
        head, _, rest = name.partition(".")  # the engines read a.b as b inside of a
        yield from _field(f"{path}{head}", {rest: value} if rest else value, mapping, head, dynamic)


def _field(path: str, value: Any, mapping: Mapping[str, Any], name: str, dynamic: object) -> Iterator[str]:
    field = mapping.get("properties", {}).get(name)
    if field is None:
        if dynamic not in _OPEN:
            yield (
                f"the field {path} is not in the mapping, which is strict (add the field to it, or set dynamic: false "
                "there)"
            )
        return
    for one in value if isinstance(value, list) else [value]:
        if one is None:
            continue
        if "properties" in field or field.get("type", "object") in ("object", "nested"):
            yield from _inner(path, one, field, dynamic)
        else:
            yield from _plain(path, one, field)


def _inner(path: str, value: Any, field: Mapping[str, Any], dynamic: object) -> Iterator[str]:
    if field.get("enabled") in (False, "false"):
        return
    if isinstance(value, dict):
        yield from _object(f"{path}.", value, field, dynamic)
    else:
        yield f"the field {path} is an object in the mapping, but the value is not"


def _plain(path: str, value: Any, field: Mapping[str, Any]) -> Iterator[str]:
    kind = field["type"]
    if field.get("ignore_malformed") in (True, "true"):
        return
    if _fits(kind, value):
        long = kind == "keyword" and "ignore_above" not in field and len(str(value).encode()) > _LONGEST_TERM
        if long and field.get("index", True) in (True, "true"):
            yield (
                f"the text in the field {path} is longer than the 32,766 bytes that a keyword can index (ignore_above "
                "in its mapping avoids this)"
            )
        return
    yield f"the field {path} is of type {kind} and cannot hold the value"


def _fits(kind: str, value: Any) -> bool:
    """Whether the type takes the value; True where only the engine can tell, as for dates and points."""
    if kind in _WHOLE or kind in _FRACTIONS:
        return _is_number(value) and (kind in _FRACTIONS or _in_range(float(value), kind))
    if kind == "boolean":
        return isinstance(value, bool) or (isinstance(value, str) and value in _TRUTHS)
    return not (kind in _TEXTS and isinstance(value, dict | list))


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


def _in_range(number: float, kind: str) -> bool:
    bits = _WHOLE[kind]
    return -(2.0**bits if kind != "unsigned_long" else 0.0) <= number <= 2.0**bits

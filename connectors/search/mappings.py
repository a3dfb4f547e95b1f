"""Mappings and settings: names reserved for replicator, hazards, differences from the config. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from replicator.items.line_template import is_within
from replicator.target.contract import Generation

OURS = "replicator"
"""The object in each document that holds replicator's own fields."""

WRITER = "-Replicator"
"""Suffix of an index's name that gives the name of replicator's own alias, for writes.

The capital letter makes it safe: index names cannot contain one, so if the alias is gone, the engine cannot auto-create
an index of that name. ``require_alias`` alone is not enough, because deletes ignore it.
"""


def is_ours(name: object) -> bool:
    """Whether a field of this name is replicator's own object or inside it: engines read dots as nesting."""
    return is_within(name, OURS)


def own_fields(found: object) -> Mapping[str, Any]:
    """The content of that object; nothing where another tool's document has something else in its place."""
    return found if isinstance(found, dict) else {}


_SYNTHETIC = "documents are reassembled when they are read, and lose digits, order and duplicates"


def flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings by full name without the prefix ``index.``, however they are nested."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= flatten_settings(value, f"{path}.")
        else:
            flat[path.removeprefix("index.")] = _text(value)
    return flat


def _text(value: Any) -> str:
    """A value as the engine shows it; empty for null, which cancels a template's value."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def settings_hazards(settings: Mapping[str, Any]) -> Iterator[str]:
    """Settings with which the engine loses or changes what it has acknowledged, one sentence each.

    They come from index templates as often as from a config, so the existing index is checked too.
    """
    given = {name: value for name, value in flatten_settings(settings).items() if value}
    if given.get("translog.durability", "").lower() == "async":
        yield (
            "translog.durability is async: an engine that crashes loses documents that it has confirmed. "
            "Set index.translog.durability to request"
        )
    if given.get("final_pipeline", "_none") != "_none":
        yield (
            f"the ingest pipeline {given['final_pipeline']} is its final_pipeline, which may drop or change documents "
            "without replicator noticing. Remove the setting (use a transform hook instead, which is counted); if "
            "documents were written in the meantime, copy everything again with: replicator resync CONFIG"
        )
    if policy := given.get("lifecycle.name"):
        yield (
            f"the ILM policy {policy} manages it, which may roll it over, shrink it, block writes to it or delete it. "
            'Take it out of ILM: PUT INDEX/_settings {"index.lifecycle.name": null}; if the index does '
            "not exist yet, set settings: {lifecycle.name: null} under its table"
        )
    yield from _source_settings(given)


def _source_settings(given: Mapping[str, str]) -> Iterator[str]:
    mode = given.get("mapping.source.mode", "stored").lower()
    if mode != "stored":
        yield f"mapping.source.mode is {mode}: {_lost(mode)}. Create a new index with index.mapping.source.mode: stored"
    if given.get("mode", "standard").lower() not in ("standard", "lookup"):
        yield f"its mode is {given['mode']}: {_SYNTHETIC}. Create a new index with index.mode: standard"
    for name, value in given.items():
        if "derived_source.enabled" in name and value.lower() == "true":
            yield f"{name} is true: {_SYNTHETIC}. Create a new index with {name}: false"


def _lost(mode: str) -> str:
    return "documents are not kept" if mode == "disabled" else _SYNTHETIC


def mapping_hazards(mapping: Mapping[str, Any]) -> Iterator[str]:
    """The same for a mapping."""
    yield from _source(mapping.get("_source", {}))
    if any(is_ours(name) for name in mapping.get("runtime", {})):
        yield f"it has a runtime field named {OURS}, which hides replicator's own; remove it (PUT _mapping with null)"
    for path in copied_to_ours(mapping.get("properties", {})):
        yield (
            f"field {path} is copied to {OURS}, where replicator keeps version and key; create a new index without that"
        )


def _source(given: Mapping[str, Any]) -> Iterator[str]:
    mode = _text(given.get("mode", "stored")).lower()
    if _text(given.get("enabled", True)).lower() == "false" or mode == "disabled":
        yield "_source is disabled: documents are not kept. Create a new index with _source"
    elif mode != "stored":
        yield f"_source has mode {mode}: {_SYNTHETIC}. Create a new index without that"
    for name in ("includes", "excludes"):
        if given.get(name):
            yield f"_source has {name}, so part of each document is not kept. Create a new index without that"


def copied_to_ours(properties: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Paths of the fields with a ``copy_to`` into replicator's own object."""
    for name, field in properties.items():
        goals = field.get("copy_to", ())
        if any(is_ours(goal) for goal in ([goals] if isinstance(goals, str) else goals)):
            yield f"{prefix}{name}"
        yield from copied_to_ours(field.get("properties", {}), f"{prefix}{name}.")


# Engines do not show parameters that have their default value.
_DEFAULTS: Mapping[str, Any] = {
    "index": True, "doc_values": True, "store": False, "enabled": True, "coerce": True, "ignore_malformed": False,
    "eager_global_ordinals": False, "similarity": "BM25", "analyzer": "default", "boost": 1.0, "fielddata": False,
    "index_phrases": False, "split_queries_on_whitespace": False, "required": False, "numeric_detection": False,
    "date_detection": True, "position_increment_gap": 100, "ignore_z_value": True, "type": "object",
    "null_value": None, "meta": {}, "fields": {}, "properties": {},
}  # fmt: skip
_ROUNDED = {
    "double": "keeps 15 to 17 digits", "float": "keeps 6 to 9 digits", "half_float": "keeps 3 digits",
    "scaled_float": "keeps as many decimals as its scaling_factor allows",
    "long": "cuts off fractions, and refuses more than 64 bits",
    "integer": "cuts off fractions, and refuses more than 32 bits",
    "short": "cuts off fractions, and refuses more than 16 bits",
    "byte": "cuts off fractions, and refuses more than 8 bits",
    "unsigned_long": "refuses fractions and negative numbers", "rank_feature": "keeps 3 digits",
}  # fmt: skip

ANEW: Mapping[Generation, str] = {
    Generation.ONLY: "create a new index: set index: NAME under the table, and run: replicator resync CONFIG "
    "--accept-identity-change; or build it beside this one: replicator rebuild start CONFIG",
    Generation.NEW: "start the new copy over, while it is not live: replicator rebuild cancel CONFIG, then replicator "
    "rebuild start CONFIG",
    Generation.OLD: "put the new mapping in the new config only: the old copy of a rebuild keeps the one that it was "
    "made with",
}
"""What to do about an index that cannot be changed, for each of the copies that a rebuild keeps."""


def differences(wanted: Mapping[str, Any], actual: Mapping[str, Any], remedy: str) -> Iterator[str]:
    """Every difference between the wanted and the existing mapping. Additional fields are fine.

    ``remedy``: of ``ANEW``.
    """
    for name, value in wanted.items():
        if name not in ("properties", "_meta", "_routing"):
            yield from _parameter("the mapping", name, value, actual)
    yield from _fields(wanted.get("properties", {}), actual.get("properties", {}), "", remedy)


def own_differences(wanted: Mapping[str, Any], actual: Mapping[str, Any] | None) -> Iterator[str]:
    """Differences in replicator's own fields. ``open`` adds those that are missing."""
    if actual is None:
        return
    yield from _parameters(OURS, {"type": "object", "dynamic": None}, actual)
    for name, field in actual.get("properties", {}).items():
        if name in wanted:
            yield from _parameters(f"{OURS}.{name}", wanted[name], field)


def _parameters(path: str, wanted: Mapping[str, Any], actual: Mapping[str, Any]) -> Iterator[str]:
    """Compares added parameters too, because sweeps and purges search these fields."""
    for name in sorted(({*wanted, *actual}) - {"properties", "dynamic"}):
        expected, present = (_plain(field.get(name, _DEFAULTS.get(name))) for field in (wanted, actual))
        if expected != present:
            yield f"field {path} must have {name}: {expected}, but has {present} (create a new index)"


def _fields(wanted: Mapping[str, Any], actual: Mapping[str, Any], prefix: str, remedy: str) -> Iterator[str]:
    for name, field in wanted.items():
        path = f"{prefix}{name}"
        if name not in actual:
            yield (
                f"field {path} is missing (type {field.get('type', 'object')}; if fields were only added to mapping, "
                f"replicator run --apply-schema-changes adds it; otherwise {remedy})"
            )
            continue
        yield from _field(path, field, actual[name], remedy)


def _field(path: str, wanted: Mapping[str, Any], actual: Mapping[str, Any], remedy: str) -> Iterator[str]:
    type, present = wanted.get("type", "object"), actual.get("type", "object")
    if type != present:
        yield f"field {path} must be {type}, but is {present} (a type cannot be changed: {remedy})"
        return
    for name, value in wanted.items():
        if name not in ("type", "properties", "fields"):
            yield from _parameter(f"field {path}", name, value, actual)
    for inner in ("properties", "fields"):
        yield from _fields(wanted.get(inner, {}), actual.get(inner, {}), f"{path}.", remedy)


def _parameter(where: str, name: str, wanted: Any, actual: Mapping[str, Any]) -> Iterator[str]:
    if name in actual:
        if _plain(wanted) != _plain(actual[name]):
            yield f"{where} must have {name}: {_plain(wanted)}, but has {_plain(actual[name])}"
    elif _plain(wanted) != _plain(_DEFAULTS.get(name, _ABSENT.get(name))) and not _depends_on_type(name, wanted):
        yield f"{where} must have {name}: {_plain(wanted)}, but has none"


_ABSENT: Mapping[str, Any] = {"dynamic": "true"}


def _depends_on_type(name: str, wanted: Any) -> bool:
    """Whether the parameter's default depends on the field's type: the engine shows only other values."""
    return name in ("norms", "index_options", "precision_step", "orientation", "format") and wanted is not None


def canonical(value: Any) -> Any:
    """A mapping, or a value in one, in canonical spelling and without defaults."""
    if not isinstance(value, Mapping):
        return _plain(value)
    return {name: _plain(v) for name, v in value.items() if _plain(v) != _plain(_DEFAULTS.get(name))}


def _plain(value: Any) -> Any:
    """Canonical spelling: engines treat true, "true" and True alike."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return str(value).lower() if isinstance(value, bool) else str(value)


def roundings(properties: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """How searches see numeric fields rounded or limited. The documents themselves keep every digit."""
    for name, field in properties.items():
        kind = field.get("type", "object")
        if kind in _ROUNDED:
            yield f"{prefix}{name}: {kind} {_ROUNDED[kind]}; the document itself keeps all of them"
        for inner in ("properties", "fields"):
            yield from roundings(field.get(inner, {}), f"{prefix}{name}.")


def settings_differences(wanted: Mapping[str, Any], actual: Mapping[str, Any]) -> Sequence[str]:
    """Compares only the number of shards: operators may change the other settings of a live index."""
    shards, present = wanted.get("number_of_shards"), actual.get("number_of_shards")
    if shards is None or str(shards) == str(present):
        return []
    return [f"it must have {shards} primary shards, but has {present} (this cannot be changed: create a new index)"]

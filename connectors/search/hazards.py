"""Settings and mappings of an index under which the engine does not keep what it confirmed, or changes it. Pure.

They come from an index template as often as from a config, so the index as it is has the last word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from connectors.search.names import OURS, is_ours

_SYNTHETIC = "documents are put together anew when they are read, and lose digits, order and duplicates"


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings by their full names, without ``index.`` in front, however they are nested."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        path = f"{prefix}{name}"
        found |= flat(value, f"{path}.") if isinstance(value, Mapping) else {path.removeprefix("index."): _text(value)}
    return found


def _text(value: Any) -> str:
    """As the engine shows it; empty for null, which takes a template's value back."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def of_settings(settings: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with settings, a sentence each."""
    given = {name: value for name, value in flat(settings).items() if value}
    if given.get("translog.durability", "").lower() == "async":
        yield (
            "translog.durability is async: an engine that crashes loses documents that it has confirmed. "
            "Set index.translog.durability to request"
        )
    if given.get("final_pipeline", "_none") != "_none":
        yield (
            f"the ingest pipeline {given['final_pipeline']} is its final_pipeline, which may drop or change documents "
            "behind replicator's back. Remove the setting (a transform hook can do the same, and is counted); if "
            "documents were written meanwhile, copy everything again with: replicator resync"
        )
    if policy := given.get("lifecycle.name"):
        yield (
            f"the ILM policy {policy} manages it, which may roll it over, shrink it, block writes to it or delete it. "
            'Take it out of ILM: PUT INDEX/_settings {"index.lifecycle.name": null}; where the index is still '
            "to be made, write settings: {lifecycle.name: null} under its table"
        )
    yield from _source_settings(given)


def _source_settings(given: Mapping[str, str]) -> Iterator[str]:
    mode = given.get("mapping.source.mode", "stored").lower()
    if mode != "stored":
        yield f"mapping.source.mode is {mode}: {_lost(mode)}. Make a new index with index.mapping.source.mode: stored"
    if given.get("mode", "standard").lower() not in ("standard", "lookup"):
        yield f"its mode is {given['mode']}: {_SYNTHETIC}. Make a new index with index.mode: standard"
    for name, value in given.items():
        if "derived_source.enabled" in name and value.lower() == "true":
            yield f"{name} is true: {_SYNTHETIC}. Make a new index with {name}: false"


def _lost(mode: str) -> str:
    return "documents are not kept" if mode == "disabled" else _SYNTHETIC


def of_mapping(mapping: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a mapping, a sentence each."""
    yield from _source(mapping.get("_source", {}))
    if any(is_ours(name) for name in mapping.get("runtime", {})):
        yield f"it has a runtime field named {OURS}, which hides replicator's own; remove it (PUT _mapping with null)"
    for path in copied(mapping.get("properties", {})):
        yield f"field {path} is copied to {OURS}, where replicator keeps version and key; make a new index without that"


def _source(given: Mapping[str, Any]) -> Iterator[str]:
    mode = _text(given.get("mode", "stored")).lower()
    if _text(given.get("enabled", True)).lower() == "false" or mode == "disabled":
        yield "_source is disabled: documents are not kept. Make a new index with _source"
    elif mode != "stored":
        yield f"_source has mode {mode}: {_SYNTHETIC}. Make a new index without that"
    for name in ("includes", "excludes"):
        if given.get(name):
            yield f"_source has {name}, so part of each document is not kept. Make a new index without that"


def copied(properties: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The fields that are copied to replicator's own."""
    for name, field in properties.items():
        goals = field.get("copy_to", ())
        if any(is_ours(goal) for goal in ([goals] if isinstance(goals, str) else goals)):
            yield f"{prefix}{name}"
        yield from copied(field.get("properties", {}), f"{prefix}{name}.")

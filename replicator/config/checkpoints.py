"""The config's section ``checkpoints``: finds the store and validates its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from replicator.checkpoints.contract import Store
from replicator.config.target import with_placeholders
from replicator.config.validation import suggestion, validated
from replicator.config.yaml_file import Problem
from replicator.errors import install

GROUP = "replicator.checkpoints"
DEFAULT = "sqlite"
KEPT_BY_TARGET = (
    "this target stores checkpoints itself, in the transaction that stores the rows; leave this section out"
)


@dataclass(frozen=True, slots=True)
class Keeping:
    """The checkpoints section: a store and its validated options."""

    type: str
    store: Any
    options: BaseModel

    def build(self, pipeline: str, base: Path) -> Store:
        """The store, not yet connected; paths are relative to ``base``."""
        store: Store = self.store(self.options, pipeline, base)
        return store


def default() -> Keeping:
    """A file next to the config."""
    store, problems = keeping({"type": DEFAULT})
    assert store is not None, problems
    return store


def keeping(given: object) -> tuple[Keeping | None, list[Problem]]:
    """The store that the section describes, or all that is wrong with it; neither if there is no section."""
    if given is None or not isinstance(given, Mapping):
        return None, []  # reported by the model of the sections if it is not a mapping
    kind = given.get("type", DEFAULT)
    store, problems = _store(kind)
    if store is None:
        return None, problems
    rest = {name: value for name, value in given.items() if name != "type"}
    options, problems = validated(store.Options, rest, ("checkpoints",))
    return (None, problems) if options is None else (Keeping(str(kind), store, options), [])


def _store(kind: object) -> tuple[Any, list[Problem]]:
    known = {point.name: point for point in entry_points(group=GROUP)}
    place = ("checkpoints", "type")
    if not isinstance(kind, str) or kind not in known:
        return None, [Problem(place, f"unknown checkpoint store; {suggestion(kind, sorted(known))}")]
    try:
        return known[kind].load(), []
    except ImportError as e:
        return None, [Problem(place, f"{kind} cannot be loaded: {e}; try: {install(kind)}")]


def with_checkpoints(schema: dict[str, Any]) -> dict[str, Any]:
    """``schema``, the JSON Schema of a config, with the options of each installed store."""
    choices, definitions = [], dict(schema["$defs"])
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        try:
            options = point.load().Options.model_json_schema()
        except ImportError:
            continue
        definitions |= with_placeholders(options.pop("$defs", {}))
        choices.append(_choice(point.name, options))
    properties = {**schema["properties"], "checkpoints": with_placeholders({"oneOf": choices})}
    return {**schema, "properties": properties, "$defs": definitions}


def _choice(name: str, options: dict[str, Any]) -> dict[str, Any]:
    return {
        **options,
        "properties": {"type": {"const": name}, **options.get("properties", {})},
        "required": [*([] if name == DEFAULT else ["type"]), *options.get("required", [])],
    }

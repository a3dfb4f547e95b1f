"""The config's section ``engine``: what runs the pipeline, and its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from replicator.config.target import with_placeholders
from replicator.config.validation import suggestion, validated
from replicator.config.yaml_file import Problem
from replicator.options import Options

DEFAULT = "local"


class Local(Options):
    """One process, which reads, transforms and writes everything."""


Engine = Local
"""The validated options of any engine."""

ENGINES: Mapping[str, type[Engine]] = {"local": Local}


def engine(given: object) -> tuple[Engine, list[Problem]]:
    """The engine that the section describes, or all that is wrong with it; the default if there is no section."""
    if not isinstance(given, Mapping):
        return Local(), []  # reported by the model of the sections if it is not a mapping
    kind = given.get("type", DEFAULT)
    if not isinstance(kind, str) or kind not in ENGINES:
        return Local(), [Problem(("engine", "type"), f"unknown engine; {suggestion(kind, sorted(ENGINES))}")]
    rest = {name: value for name, value in given.items() if name != "type"}
    options, problems = validated(ENGINES[kind], rest, ("engine",))
    return options or Local(), problems


def with_engines(schema: dict[str, Any]) -> dict[str, Any]:
    """``schema``, the JSON Schema of a config, with the options of each engine."""
    choices = [_choice(name, model.model_json_schema()) for name, model in ENGINES.items()]
    properties = {**schema["properties"], "engine": with_placeholders({"oneOf": choices})}
    return {**schema, "properties": properties}


def _choice(name: str, options: dict[str, Any]) -> dict[str, Any]:
    return {
        **options,
        "properties": {"type": {"const": name}, **options.get("properties", {})},
        "required": [*([] if name == DEFAULT else ["type"]), *options.get("required", [])],
    }

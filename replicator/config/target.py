"""The target's part of a config: which connector, and what its own models make of the rest.

A connector is a class found by its name in the entry point group ``replicator.targets``. It has two pydantic models:
``Options`` for what stands under ``target``, and ``TableOptions`` for what stands under one of its tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from replicator.config.validation import suggestion, validated
from replicator.config.yaml_file import Problem
from replicator.key import KeySchema
from replicator.target.contract import OWN_IDS, Table, Target

GROUP = "replicator.targets"
_OURS = ("type", "table", "tables")  # the names under ``target`` that every connector shares


@dataclass(frozen=True, slots=True)
class Destination:
    """Where documents go: a connector, its checked options, and its tables with theirs (as written, checked)."""

    type: str
    connector: Any
    options: BaseModel
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def build(self, pipeline: str) -> Target:
        """The target, connected to nothing yet; what it keeps for itself is filed under ``pipeline``."""
        target: Target = self.connector(self.options, pipeline)
        return target

    def wanted(self, keys: KeySchema, *, own_ids: bool) -> tuple[Table, ...]:
        """The tables as the pipeline wants them: under the item's ``keys``, or under ids of the hook's own."""
        keys = OWN_IDS if own_ids else keys
        return tuple(Table(name, keys, options) for name, options in self.tables.items())


def destination(given: object) -> tuple[Destination | None, list[Problem]]:
    """The destination that the target's part of a config describes, or everything that is wrong with it."""
    if not isinstance(given, Mapping):
        return None, []  # the sections' model has already said so
    connector, problems = _connector(given)
    if connector is None:
        return None, problems
    rest = {name: value for name, value in given.items() if name not in _OURS}
    options, wrong = validated(connector.Options, rest, ("target",))
    tables, wrong_tables = _tables(connector, given)
    problems = [*(_renamed(p) for p in wrong), *wrong_tables]
    if problems or options is None:
        return None, problems
    return Destination(str(given["type"]), connector, options, tables), []


def _renamed(problem: Problem) -> Problem:
    """A misspelt ``table`` is among the names that the connector's model does not know."""
    if "is not known here" in problem.text and len(problem.path) == 2:
        close = suggestion(problem.path[1], _OURS)
        if close.startswith("did you mean"):
            return Problem(problem.path, f"is not known here; {close}")
    return problem


def _connector(given: Mapping[str, Any]) -> tuple[Any, list[Problem]]:
    kind = given.get("type")
    known = {point.name: point for point in entry_points(group=GROUP)}
    if kind is None:
        return None, [Problem(("target", "type"), f"is missing; known: {', '.join(sorted(known))}")]
    if not isinstance(kind, str) or kind not in known:
        return None, [Problem(("target", "type"), f"is no kind of target; {suggestion(kind, sorted(known))}")]
    try:
        return known[kind].load(), []
    except ImportError as e:
        hint = f"pip install 'replicator[{kind}]'"
        return None, [Problem(("target", "type"), f"{kind} cannot be used: {e}; try: {hint}")]


def _tables(connector: Any, given: Mapping[str, Any]) -> tuple[dict[str, Mapping[str, Any]], list[Problem]]:
    if ("table" in given) == ("tables" in given):
        text = "has both table and tables; keep one" if "table" in given else "needs table: NAME (or tables: {NAME: …})"
        return {}, [Problem(("target",), text)]
    if "table" in given:
        name = given["table"]
        if not isinstance(name, str) or not name:
            return {}, [Problem(("target", "table"), "is to be the name of a table")]
        return {name: {}}, []
    tables = given["tables"]
    if not isinstance(tables, Mapping) or not tables:
        return {}, [Problem(("target", "tables"), "is to be a mapping from table names to their options")]
    return _table_options(connector, tables)


def _table_options(connector: Any, tables: Mapping[str, Any]) -> tuple[dict[str, Mapping[str, Any]], list[Problem]]:
    found: dict[str, Mapping[str, Any]] = {}
    problems: list[Problem] = []
    for name, given in tables.items():
        model, wrong = validated(connector.TableOptions, {} if given is None else given, ("target", "tables", name))
        problems += wrong
        if model is not None:
            found[name] = model.model_dump(exclude_unset=True)
    return found, problems


def target_schema(sections: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a whole config: ``sections`` with each installed connector's target in it."""
    connectors = {point.name: _loaded(point) for point in sorted(entry_points(group=GROUP), key=lambda p: p.name)}
    usable = {name: connector for name, connector in connectors.items() if connector is not None}
    models = [m for c in usable.values() for m in (c.Options, c.TableOptions)]
    wanted: list[Any] = [(m, "validation") for m in dict.fromkeys([sections, *models])]
    refs, definitions = models_json_schema(wanted)
    found: dict[str, Any] = definitions["$defs"]

    def resolved(model: type[BaseModel]) -> dict[str, Any]:
        return dict(found[refs[model, "validation"]["$ref"].rpartition("/")[2]])

    whole = resolved(sections)
    choices = [_target(n, resolved(c.Options), refs[c.TableOptions, "validation"]) for n, c in usable.items()]
    whole["properties"] = {**whole["properties"], "target": {"oneOf": choices}}
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "replicator config", **whole}
    schema["title"] = "replicator config"
    return {**with_placeholders(schema), "$defs": with_placeholders(found)}


def _loaded(point: EntryPoint) -> Any:
    try:
        return point.load()
    except ImportError:
        return None


def _target(name: str, options: dict[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    ours = {
        "type": {"const": name},
        "table": {"type": "string", "minLength": 1, "description": "the one table's name"},
        "tables": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {"anyOf": [table, {"type": "null"}]},
            "description": "several tables, each with its options",
        },
    }
    return {
        **options,
        "properties": {**ours, **options.get("properties", {})},
        "required": ["type", *options.get("required", [])],
        "oneOf": [{"required": ["table"]}, {"required": ["tables"]}],
    }


_PLACEHOLDER = {"type": "string", "pattern": r"\$\{.+\}"}
_NARROW = ("integer", "number", "boolean")


def with_placeholders(schema: Any) -> Any:
    """``schema`` where ``${VAR}`` may also stand for a number, a truth value or one of a few words."""
    if isinstance(schema, list):
        return [with_placeholders(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: with_placeholders(part) for name, part in schema.items()}
    narrow = schema.get("type") in _NARROW or ("enum" in schema and "properties" not in schema)
    return {"anyOf": [inner, _PLACEHOLDER]} if narrow else inner

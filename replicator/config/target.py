"""The config's section ``target``: finds the connector and validates its options.

A connector is a class registered in the entry point group ``replicator.targets``. It has two pydantic models:
``Options`` for the keys under ``target``, and ``TableOptions`` for those of one table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from replicator.config.validation import suggestion, validated
from replicator.config.yaml_file import Problem
from replicator.errors import install
from replicator.key import KeySchema
from replicator.target.contract import OWN_IDS, Generation, Table, Target

GROUP = "replicator.targets"
_OURS = ("type", "table", "tables")  # keys under ``target`` that all connectors share


@dataclass(frozen=True, slots=True)
class Destination:
    """The target section: a connector, its validated options, and its tables with their options as written."""

    type: str
    connector: Any
    options: BaseModel
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    suffix: str = ""  # during a rebuild, of the tables' names in the destination
    beside: Destination | None = None  # during a rebuild of tables with an alias: that of the other generation
    generation: Generation = Generation.ONLY

    def build(self, pipeline: str) -> Target:
        """The target, not yet connected; its own state is stored under ``pipeline``."""
        target: Target = self.connector(self.options, pipeline)
        return target

    def places(self) -> Mapping[str, Sequence[object]]:
        """Where each table is, by name: each way of saying it. What two targets share, both would write to.

        A place may have ``overlap(other)``: why it shares some documents with a place that is not equal, or "".

        A connector's ``Options`` may have ``places(table, options)``, which knows the spellings of an address. Without
        it, tables are in the same place if they have the same name and all options are the same.
        """
        places = getattr(self.options, "places", None)
        if places is None:
            return {name: [(self.type, self.options, name)] for name in self.tables}
        return {name: places(name, options) for name, options in self.tables.items()}

    def wanted(self, keys: KeySchema, *, own_ids: bool) -> tuple[Table, ...]:
        """The tables as configured, keyed by the item's ``keys`` or by the hook's own document ids."""
        keys = OWN_IDS if own_ids else keys
        stored_as = {name: name + self.suffix if self.suffix else "" for name in self.tables}
        others = {} if self.beside is None else {table.name: table for table in self.beside.wanted(keys, own_ids=False)}
        return tuple(
            Table(name, keys, options, stored_as[name], others.get(name), self.generation)
            for name, options in self.tables.items()
        )


def destination(given: object, base: Path | None = None) -> tuple[Destination | None, list[Problem]]:
    """The destination that the target section describes, or all that is wrong with it. ``base``: see ``validated``."""
    if not isinstance(given, Mapping):
        return None, []  # reported by the model of the sections
    connector, problems = _connector(given)
    if connector is None:
        return None, problems
    rest = {name: value for name, value in given.items() if name not in _OURS}
    options, wrong = validated(connector.Options, rest, ("target",), base)
    tables, wrong_tables = _tables(connector, given)
    problems = [*(_renamed(p) for p in wrong), *wrong_tables]
    if problems or options is None:
        return None, problems
    return Destination(str(given["type"]), connector, options, tables), []


def _renamed(problem: Problem) -> Problem:
    """Suggest ``type``, ``table`` and ``tables``, too: the connector's model does not know them."""
    if problem.text.startswith("unknown key") and len(problem.path) == 2:
        close = suggestion(problem.path[1], _OURS)
        if close.startswith("did you mean"):
            return Problem(problem.path, f"unknown key; {close}")
    return problem


def _connector(given: Mapping[str, Any]) -> tuple[Any, list[Problem]]:
    kind = given.get("type")
    known = {point.name: point for point in entry_points(group=GROUP)}
    if kind is None:
        return None, [Problem(("target", "type"), f"is missing; expected one of: {', '.join(sorted(known))}")]
    if not isinstance(kind, str) or kind not in known:
        return None, [Problem(("target", "type"), f"unknown target type; {suggestion(kind, sorted(known))}")]
    try:
        return known[kind].load(), []
    except ImportError as e:
        return None, [Problem(("target", "type"), f"{kind} cannot be loaded: {e}; try: {install(kind)}")]


def _tables(connector: Any, given: Mapping[str, Any]) -> tuple[dict[str, Mapping[str, Any]], list[Problem]]:
    if ("table" in given) == ("tables" in given):
        text = "has both table and tables; keep one" if "table" in given else "needs table: NAME (or tables: {NAME: …})"
        return {}, [Problem(("target",), text)]
    if "table" in given:
        name = given["table"]
        if not isinstance(name, str) or not name:
            return {}, [Problem(("target", "table"), "must be the name of a table")]
        return {name: {}}, []
    tables = given["tables"]
    if not isinstance(tables, Mapping) or not tables:
        return {}, [Problem(("target", "tables"), "must be a mapping from table names to their options")]
    return _table_options(connector, tables)


def _table_options(connector: Any, tables: Mapping[str, Any]) -> tuple[dict[str, Mapping[str, Any]], list[Problem]]:
    valid: dict[str, Mapping[str, Any]] = {}
    problems: list[Problem] = []
    for name, given in tables.items():
        model, wrong = validated(connector.TableOptions, {} if given is None else given, ("target", "tables", name))
        problems += wrong
        if model is not None:
            valid[name] = model.model_dump(exclude_unset=True)
    return valid, problems


def target_schema(sections: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of a config: ``sections``, with the target section of each installed connector."""
    connectors = {point.name: _loaded(point) for point in sorted(entry_points(group=GROUP), key=lambda p: p.name)}
    usable = {name: connector for name, connector in connectors.items() if connector is not None}
    models = [m for c in usable.values() for m in (c.Options, c.TableOptions)]
    wanted: list[Any] = [(m, "validation") for m in dict.fromkeys([sections, *models])]
    refs, definitions = models_json_schema(wanted)
    schemas: dict[str, Any] = definitions["$defs"]

    def resolved(model: type[BaseModel]) -> dict[str, Any]:
        return dict(schemas[refs[model, "validation"]["$ref"].rpartition("/")[2]])

    whole = resolved(sections)
    choices = [_target(n, resolved(c.Options), refs[c.TableOptions, "validation"]) for n, c in usable.items()]
    whole["properties"] = {**whole["properties"], "target": {"oneOf": choices}}
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "replicator config", **whole}
    schema["title"] = "replicator config"
    return {**with_placeholders(schema), "$defs": with_placeholders(schemas)}


def _loaded(point: EntryPoint) -> Any:
    try:
        return point.load()
    except ImportError:
        return None


def _target(name: str, options: dict[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    ours = {
        "type": {"const": name},
        "table": {"type": "string", "minLength": 1, "description": "name of the table, if there is one"},
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
    """``schema``, but numbers, booleans and enumerations may also be placeholders such as ``${VAR}``."""
    if isinstance(schema, list):
        return [with_placeholders(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: with_placeholders(part) for name, part in schema.items()}
    narrow = schema.get("type") in _NARROW or ("enum" in schema and "properties" not in schema)
    return {"anyOf": [inner, _PLACEHOLDER]} if narrow else inner

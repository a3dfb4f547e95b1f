"""The configuration reference: Markdown made from the config models, so that it cannot differ from them.

``python -m replicator.config.reference`` prints it, with the options of every installed target and checkpoint store.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import BaseModel

from replicator.config import checkpoints, engine, target, targets
from replicator.config.settings import Sections

_INTRO = """\
# Configuration

<!-- Generated from the config models by `make docs`. Do not edit: change the descriptions in the models instead. -->

A pipeline is configured by one YAML file:

```yaml
pipeline: orders
source:
  table: orders
  region: eu-west-1
transform: hooks.py:order
target:
  type: postgres
  url: ${POSTGRES_URL}
  table: orders
backfill:
  segments: 8
```

- `${VARIABLE}` inserts an environment variable, `${file:path}` the contents of a file. Each is substituted once; what
  it inserts is not searched for further placeholders.
- Relative paths are relative to the config file.
- Unknown keys are errors, and the message suggests the nearest known key. All errors of the file are reported at once,
  each with its line; those of what it names (a hook's file, the target) once the file is right.
- `replicator schema` prints the JSON Schema of this file, for completion and validation in editors.
- `replicator check` verifies that the config works, without changing anything.

[When the config changes](operations.md#when-the-config-changes) says which changes take effect at the next start, and
which need a rescan."""

_OWN = ", ".join(f"`{key}`" for key in targets.OF_A_TARGET)

_TARGETS = f"""\
Several targets by name, in place of `target`. Each is copied by a pipeline of its own; one run runs all of them, and
reads the stream once. [Several targets](several-targets.md) explains how to use them.

```yaml
pipeline: orders
source:
  table: orders
  region: eu-west-1
targets:
  search:
    type: elasticsearch
    url: https://search:9200
    table: orders
    transform: hooks.py:order
    ttl_deletes: ignore
  warehouse:
    type: postgres
    url: ${{POSTGRES_URL}}
    table: orders
backfill:
  segments: 8
```

- A name has 1 to 32 letters, digits, `_` or `-`. The pipeline of a target is named after both: `orders.search`.
- Each target has the keys of [`target`](#target). In addition, it may have its own {_OWN}. Such a
  section replaces the one at the top level as a whole; what a target does not set for itself is as at the top level.
- `source` and `engine` are the same for all of them. `checkpoints` at the top level are for the targets that do not
  store them themselves.
- `pipeline` in a target names its pipeline, so that a copy that exists already
  [is kept](several-targets.md#from-target-to-targets)."""

_TARGET = """\
`type` selects the target, and the other keys depend on it. `table` names one table (or index alias); `tables` maps
several names to the options of each. Give one of the two. [Targets](targets/README.md) explains how
each target stores documents."""

_CHECKPOINTS = """\
Where positions, scan cursors, gaps and parked changes are stored. Leave the section out for Postgres targets, which
store them in the transaction that stores the rows. For other targets the default is a SQLite file next to the config.
[Where checkpoints are kept](operations.md#where-checkpoints-are-kept) helps you choose."""

_ENGINE = """\
What runs the pipeline. Checkpoints and the guarantee are the same for every engine, so it can be changed between two
runs."""

_FIRST = ("pipeline", "url", "cloud_id", "table", "api_key", "username", "password", "aws")  # what most configs set
_TYPES = {"string": "string", "integer": "integer", "number": "number", "boolean": "boolean", "object": "mapping"}


def reference() -> str:
    """The whole reference."""
    return "\n\n".join(_parts()) + "\n"


def _parts() -> Iterator[str]:
    whole = Sections.model_json_schema()
    yield _INTRO
    yield "## Top level"
    yield _table(whole)
    yield "## source"
    yield from _model(whole["$defs"]["Source"])
    yield "## targets"
    yield _TARGETS
    yield "## target"
    yield _TARGET
    for name, connector in _installed(target.GROUP):
        yield f"### {name}"
        yield from _described(connector.Options)
        if connector.TableOptions.model_fields:
            yield f"Options of each table under `target.tables` (`type: {name}`):"
            yield from _described(connector.TableOptions)
    yield "## checkpoints"
    yield _CHECKPOINTS
    for name, store in _installed(checkpoints.GROUP):
        yield f"### checkpoints: {name}"
        yield from _described(store.Options)
    yield "## backfill"
    yield from _model(whole["$defs"]["Backfill"])
    yield "## monitoring"
    yield from _model(whole["$defs"]["Monitoring"])
    yield "## verify"
    yield from _model(whole["$defs"]["Verify"])
    yield "## engine"
    yield _ENGINE
    for name, model in engine.ENGINES.items():
        yield f"### engine: {name}"
        schema = model.model_json_schema()
        yield from _model(schema) if model.model_fields else [_sentence(schema)]


def _installed(group: str) -> list[tuple[str, Any]]:
    def loaded(point: EntryPoint) -> Any:
        try:
            return point.load()
        except ImportError:
            return None

    points = sorted(entry_points(group=group), key=lambda p: p.name)
    return [(point.name, plugin) for point in points if (plugin := loaded(point)) is not None]


def _described(model: type[BaseModel]) -> Iterator[str]:
    """The table of a model, followed by those of the models that it contains."""
    schema = model.model_json_schema()
    yield _table(schema)
    for name, inner in schema.get("$defs", {}).items():
        yield f"`{name}`: {_sentence(inner)}"
        yield _table(inner)


def _model(schema: Mapping[str, Any]) -> Iterator[str]:
    yield _sentence(schema)
    yield _table(schema)


def _sentence(schema: Mapping[str, Any]) -> str:
    """A model's docstring on one line; references to code lose their double backticks."""
    return " ".join(str(schema.get("description", "")).split()).replace("``", "`")


def _table(schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    properties = sorted(
        schema["properties"].items(), key=lambda p: _FIRST.index(p[0]) if p[0] in _FIRST else len(_FIRST)
    )
    rows = [_row(name, given, name in required) for name, given in properties]
    return "\n".join(["| key | type | default | description |", "|---|---|---|---|", *rows])


def _row(name: str, given: Mapping[str, Any], required: bool) -> str:
    default = "required" if required else _default(given)
    cells = (f"`{name}`", _type(given), default, _sentence(given))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(given: Mapping[str, Any]) -> str:
    value = given.get("default")
    if "$ref" in given:
        return "see below"
    if value in (None, {}):
        return "none"
    return (
        f"`{value}`"
        if isinstance(value, str)
        else f"`{value:g}`"
        if isinstance(value, float)
        else f"`{json.dumps(value)}`"
    )


def _type(given: Mapping[str, Any]) -> str:
    if "anyOf" in given:
        kinds = [kind for kind in given["anyOf"] if kind.get("type") != "null"]
        if "$ref" in kinds[0] and "enum" in kinds[-1]:  # a column, or only its type
            return f"{_type(kinds[0])}, or just its type"
        return " or ".join(dict.fromkeys(_type(kind) for kind in kinds))
    if "$ref" in given:
        return _reference(str(given["$ref"]).rpartition("/")[2])
    if "enum" in given:
        *most, last = (f"`{value}`" for value in given["enum"])
        return f"{', '.join(most)} or {last}"
    if given.get("type") == "array":
        return f"list of {_type(given['items'])}s" if "items" in given else "list"
    if isinstance(given.get("additionalProperties"), Mapping):
        return f"mapping of name to {_type(given['additionalProperties'])}"
    if given.get("format") == "password":
        return "string (secret)"
    return _TYPES.get(str(given.get("type")), "any") + _limits(given)


def _limits(given: Mapping[str, Any]) -> str:
    low, high = given.get("minimum"), given.get("maximum")
    if low is None or high is None:
        return "" if low is None else f", at least {low:g}"
    return f", {_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"


def _reference(name: str) -> str:
    return {
        "Source": "[section](#source)",
        "Backfill": "[section](#backfill)",
        "Monitoring": "[section](#monitoring)",
        "Verify": "[section](#verify)",
    }.get(name, f"`{name}`")


if __name__ == "__main__":
    print(reference(), end="")

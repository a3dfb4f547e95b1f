"""Dataclasses and pydantic models that hooks return, as dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any


def fields_of(result: object) -> dict[str, Any] | None:
    """The fields of a dataclass or a pydantic model, by name (or alias, if the model is serialized by it), with the
    models inside it as dictionaries, too; None for anything else. Runs the class's own code, which may raise.
    """
    kind = type(result)
    if is_dataclass(kind):
        return {field.name: _plain(getattr(result, field.name)) for field in fields(kind)}
    dump = getattr(kind, "model_dump", None)
    if callable(dump) and hasattr(kind, "model_fields"):
        dumped = dump(result)
        return {str(name): _plain(value) for name, value in dumped.items()}
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    inside = fields_of(value)
    return value if inside is None else inside

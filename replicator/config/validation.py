"""Validates parts of a config, and turns pydantic's errors into readable sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from replicator.config.yaml_file import PathInFile, Problem

M = TypeVar("M", bound=BaseModel)


def validated(
    model: type[M], values: object, prefix: PathInFile, base: Path | None = None
) -> tuple[M | None, list[Problem]]:
    """The validated model, or all problems with ``values``, which are at ``prefix`` in the file.

    ``base``: the directory that file names are relative to; by default the working directory.
    """
    try:
        return model.model_validate(values, context={"base": base or Path()}), []
    except ValidationError as e:
        errors = [(_in_file(e["loc"], values, e["type"]), e) for e in e.errors(include_url=False)]
        problems: dict[PathInFile, str] = {}
        for path, error in _likely(errors):
            text = _sentence(model, path, error)
            seen = problems.get(path)
            problems[path] = text if seen is None else f"{seen}, or {text}"
        return None, [Problem((*prefix, *path), text) for path, text in problems.items()]


def _likely(errors: Sequence[tuple[PathInFile, Any]]) -> Iterator[tuple[PathInFile, Any]]:
    """For a value of a union type, only the errors of the member that the value resembles."""
    for path, error in errors:
        mapping = isinstance(error["input"], Mapping)
        rivals = [other for place, other in errors if other is not error and place[: len(path)] == path]
        unlikely = error["type"] in (_SCALAR_TYPES if mapping else _MAPPING_TYPES)
        if not (unlikely and rivals):
            yield path, error


_MAPPING_TYPES = frozenset({"model_type", "model_attributes_type", "dict_type", "mapping_type"})
_SCALAR_TYPES = frozenset({"literal_error", "enum", "string_type"})


def suggestion(given: object, known: Sequence[str]) -> str:
    """The end of a sentence about an unknown name: the closest known one, or all of them."""
    close = get_close_matches(str(given), known, 1, 0.6)
    return f"did you mean {close[0]}?" if close else f"expected one of: {', '.join(known)}"


def _in_file(location: tuple[str | int, ...], values: object, kind: str) -> PathInFile:
    """pydantic's location without the parts that are not in the file, such as names of union members."""
    path: PathInFile = ()
    for at, part in enumerate(location):
        if part in (values if isinstance(values, Mapping) else range(len(values)) if isinstance(values, list) else ()):
            values = values[part]  # type: ignore[index]
        elif kind != "missing" or at != len(location) - 1:
            continue
        path = (*path, part)
    return path


def _sentence(model: type[BaseModel], path: PathInFile, error: Any) -> str:
    context = error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key; {suggestion(path[-1], _names(model, path[:-1]))}"
        case "literal_error" | "enum":
            return _choice(str(context["expected"]), error["input"])
        case "value_error" | "assertion_error":
            return str(context["error"])
    template = _SENTENCES.get(error["type"])
    return error["msg"][:1].lower() + error["msg"][1:] if template is None else template.format(**context)


_SENTENCES = {
    "missing": "is missing",
    "string_type": "must be text; put it in quotes",
    "string_too_short": "is empty",
    "string_unicode": "cannot be encoded as UTF-8",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "model_type": "must be a mapping (name: value, one per line)",
    "model_attributes_type": "must be a mapping (name: value, one per line)",
    "dict_type": "must be a mapping (name: value, one per line)",
    "mapping_type": "must be a mapping (name: value, one per line)",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
}


def _choice(expected: str, given: object) -> str:
    known = [word.strip(" '") for word in expected.replace(" or ", ",").split(",")]
    close = get_close_matches(str(given), known, 1, 0.6)
    return f"must be one of {', '.join(known)}{f'; did you mean {close[0]}?' if close else ''}"


def _names(model: type[BaseModel], path: PathInFile) -> list[str]:
    """The keys that are allowed at ``path`` of a model."""
    types: list[Any] = [model]
    for part in path:
        types = [inner for type in types for inner in _within(type, part)]
    models = [m for type in types for m in _models(type)]
    return [field.alias or name for m in models for name, field in m.model_fields.items()]


def _within(kind: Any, part: str | int) -> Iterator[Any]:
    """The types of the value under the key ``part`` of a value of type ``kind``."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = next((f for n, f in kind.model_fields.items() if part in (n, f.alias)), None)
        if field is not None:
            yield field.annotation
        return
    for inner in get_args(kind):
        models = list(_models(inner))
        named = [m for m in models if part in m.model_fields]
        yield from (t for m in named for t in _within(m, part))
        if not named:
            yield from models


def _models(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for inner in get_args(kind):
        yield from _models(inner)

"""Writes parts of a config as YAML, with comments, and puts them into the text of a config file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from replicator.errors import ConfigError

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*( ?\[\])?", re.ASCII)
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})  # which YAML reads as something else
_COLUMN = 44  # where comments start, unless a line is longer

Path = tuple[str, ...]


def scalar(value: object) -> str:
    """A value on one line; text is quoted unless that changes nothing."""
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and "[" not in value and value.lower() not in _WORDS:
            return value
        return _quoted(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(name)}: {scalar(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(scalar, value)) + "]"
    return json.dumps(value)


def _quoted(text: str) -> str:
    """Text in double quotes, in ASCII: whatever is in it cannot end the line or start a comment."""
    quoted: str = yaml.dump(text, default_style='"', width=1 << 20, allow_unicode=False)
    return quoted.strip()


def block(values: Mapping[str, Any], comments: Mapping[Path, str], indent: int = 0, path: Path = ()) -> Iterator[str]:
    """The lines of a mapping. A value with no comments inside it is on one line. ``comments``: by the value's path."""
    for name, value in values.items():
        place = (*path, name)
        comment = comments.get(place, "")
        if isinstance(value, Mapping) and value and any(p[: len(place)] == place and p != place for p in comments):
            yield _line(f"{' ' * indent}{scalar(name)}:", comment)
            yield from block(value, comments, indent + 2, place)
        else:
            yield _line(f"{' ' * indent}{scalar(name)}: {scalar(value)}", comment)


def _line(text: str, comment: str) -> str:
    return f"{text.ljust(_COLUMN)}  # {comment}" if comment else text


def with_tables(text: str, tables: Mapping[str, Any], comments: Mapping[Path, str], section: Path = ("target",)) -> str:
    """A config's ``text`` with other ``tables`` under target, in place of its ``table`` or ``tables``. ``section``: the
    path of that target.

    Everything else stays as it is written, comments and placeholders included.
    """
    target = yaml.compose(text, yaml.SafeLoader)
    for key in section:
        target = _value(target, key)
    assert isinstance(target, yaml.MappingNode)
    for name, value in target.value:
        if name.value in ("table", "tables"):
            start, end = name.start_mark.index, _end(value)
            if target.flow_style:
                return f"{text[:start]}tables: {scalar(tables)}{text[end:]}"
            lines = list(block({"tables": tables}, {("tables", *path): text for path, text in comments.items()}))
            line, newline, rest = text[end:].partition("\n")
            if name.value == "table":  # a comment behind it, which belongs to the whole
                lines[0] += line
            indent = "\n" + " " * name.start_mark.column
            return f"{text[:start]}{indent.join(lines)}{newline}{rest}"
    raise ConfigError(f"{'.'.join(section)} has neither table nor tables")


def _end(node: yaml.Node) -> int:
    """Where a value's text ends. The mark of a block collection is at what follows it, after comments."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _value(node: yaml.Node | None, key: str) -> yaml.MappingNode:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value == key and isinstance(value, yaml.MappingNode):
                return value
    raise ConfigError(f"{key} is missing")

"""A condition on items as users write it, turned into a DynamoDB filter expression.

    status = 'open' AND total >= 100 AND NOT attribute_exists(archived)

The syntax is that of DynamoDB's filter expressions, with literals in the place of placeholders: text in single quotes
(a quote in it is doubled), numbers, ``true``, ``false`` and ``null``. Attribute names may be reserved words; names with
other characters than letters, digits and ``_`` are in double quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from replicator.errors import ConfigError

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<text>'(?:[^']|'')*')
    | (?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
    | (?P<quoted>"[^"]+")
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<sign><>|<=|>=|[=<>(),.\[\]])
    )""",
    re.VERBOSE,
)
_OPERATORS = {"and", "or", "not", "between", "in"}
_FUNCTIONS = {"attribute_exists", "attribute_not_exists", "attribute_type", "begins_with", "contains", "size"}
_LITERALS: dict[str, dict[str, Any]] = {"true": {"BOOL": True}, "false": {"BOOL": False}, "null": {"NULL": True}}


@dataclass(frozen=True, slots=True)
class Condition:
    """``filter``: the parts of a Scan request."""

    expression: str
    names: dict[str, str] = field(default_factory=dict)
    values: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def filter(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"FilterExpression": self.expression}
        if self.names:
            parts["ExpressionAttributeNames"] = self.names
        if self.values:
            parts["ExpressionAttributeValues"] = self.values
        return parts


def parse(text: str) -> Condition:
    """The condition in ``text``; ConfigError if a part of it is none. DynamoDB checks the rest of the syntax."""
    names: dict[str, str] = {}
    values: dict[str, dict[str, Any]] = {}
    tokens = list(_tokens(text))
    parts = []
    for i, (kind, token) in enumerate(tokens):
        after = tokens[i + 1][1] if i + 1 < len(tokens) else ""
        within = i > 0 and tokens[i - 1][1] == "["
        if kind == "sign" or (kind == "number" and within):
            parts.append(token)
        elif kind == "word" and token.lower() in _OPERATORS:
            parts.append(f" {token.upper()} ")
        elif kind == "word" and token in _FUNCTIONS and after == "(":
            parts.append(token)
        elif (value := _value(kind, token)) is not None:
            values[f":v{len(values)}"] = value
            parts.append(f":v{len(values) - 1}")
        else:
            name = token.strip('"')
            parts.append(next((p for p, known in names.items() if known == name), f"#n{len(names)}"))
            names.setdefault(parts[-1], name)
    return Condition("".join(parts).strip(), names, values)


def _value(kind: str, token: str) -> dict[str, Any] | None:
    """A literal in typed JSON; None if the token is none."""
    if kind == "text":
        return {"S": token[1:-1].replace("''", "'")}
    if kind == "number":
        return {"N": token}
    return _LITERALS.get(token.lower()) if kind == "word" else None


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at, end = 0, len(text.rstrip())
    if end == 0:
        raise ConfigError("--where: the condition is empty; an example: --where \"status = 'open'\"")
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise ConfigError(
                f"--where: unexpected {text[at:end].lstrip()[:20]!r} at character {at + 1}. Text is in single quotes, "
                "names are plain words or in double quotes, as in: status = 'open' AND total >= 100"
            )
        yield match.lastgroup, match[match.lastgroup]
        at = match.end()

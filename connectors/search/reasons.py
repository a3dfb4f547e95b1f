"""Why the engine refuses a document, in words that quote nothing of what is in it."""

from __future__ import annotations

import re
from collections.abc import Callable

Say = Callable[[re.Match[str]], str]


def _immense(found: re.Match[str]) -> str:
    return (
        f"the text in the field {found['field']} is longer than the 32,766 bytes that a keyword can index "
        "(ignore_above in its mapping avoids this)"
    )


# From here on a reason quotes the document; what looks like the engine's words there is somebody's text.
_QUOTE = re.compile(r" in document with id '|Preview of field's value|For input string: ")
_KNOWN: tuple[tuple[str, Say], ...] = (
    (
        r"dynamic introduction of \[(?P<field>.*?)\] within \[(?P<where>.*?)\] is not allowed",
        lambda m: (
            f"the mapping does not know the field {_path(m['where'], m['field'])} and is strict "
            "(add the field to it, or say dynamic: false there)"
        ),
    ),
    (
        r"failed to parse (?:date )?field \[(?P<field>.*?)\] of type \[(?P<type>\w+)\]",
        lambda m: _cannot_hold(m["field"], m["type"]),
    ),
    (
        r"object mapping for \[(?P<field>.*?)\] tried to parse field \[.*?\] as object",
        lambda m: f"the field {m['field']} is an object in the mapping, and the value is none",
    ),
    (
        r'immense term in field="(?P<field>.*?)"',
        _immense,
    ),
    (
        r"Limit of (?P<what>[a-z ]+) \[(?P<limit>\d+)\].* has been exceeded",
        lambda m: f"the index is limited to {m['limit']} {m['what']}",
    ),
    (
        r"is a metadata field and cannot be added",
        lambda _: "a field has a name that the engine keeps to itself",
    ),
    (
        r"field name cannot be|[Ff]ield name \[.*?\] |contains only whitespace|starts or ends with a",
        lambda _: "it has a field whose name is empty, or has a dot where the engine allows none",
    ),
)


def refusal(type: str, reason: str) -> str:
    """A sentence for a refused document. The engine's own words are used only where they surely quote no value."""
    own = _QUOTE.split(reason)[0]
    for pattern, say in _KNOWN:
        found = re.search(pattern, reason if say is _immense else own, re.DOTALL)
        if found is not None:
            return f"{say(found)}: {type}"
    return f"the engine refuses the document: {type}"


def _cannot_hold(field: str, type: str) -> str:
    if field == type:
        return f"the engine keeps the name {field} to itself"
    hint = " (of more than 32,766 bytes? ignore_above in its mapping avoids this)" if type == "keyword" else ""
    return f"the field {field} is of type {type} and cannot hold the value{hint}"


def _path(where: str, field: str) -> str:
    return field if where == "_doc" else f"{where}.{field}"

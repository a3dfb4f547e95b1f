"""Why the engine refuses a document, in words that quote nothing of what is in it.

A reason may be as long as the document and may repeat what somebody made up to be read here. So it is cut, and looked
through from left to right, once: no pattern is ever tried again from another place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

LONGEST = 4096  # characters of a reason that are looked at
_SHOWN = 255  # characters of a name that are shown

Say = Callable[[Sequence[str]], str]
_IMMENSE = ('immense term in field="', '"')
_FIELD = ("[", "] of type [", "]")

# From here on a reason quotes the document; what looks like the engine's words there is the document's text.
_QUOTES = (" in document with id '", "Preview of field's value", "For input string: ")
_NO_NAME = ("field name cannot be", "ield name [", "contains only whitespace", "starts or ends with a")


def refusal(type: str, reason: str) -> str:
    """A sentence for a refused document. The engine's own words are used only where they surely quote no value."""
    reason = reason[:LONGEST]
    own = reason[: min((at for quote in _QUOTES if (at := reason.find(quote)) >= 0), default=LONGEST)]
    for marks, say in _KNOWN:
        found = between(reason if marks is _IMMENSE else own, marks)
        if found is not None and (said := say([text[:_SHOWN] for text in found])):
            return f"{said}: {type}"
    return f"the engine refuses the document: {type}"


def between(text: str, marks: Sequence[str]) -> list[str] | None:
    """What stands between the first of each of these marks, one behind the other; None unless all are there."""
    first, *rest = marks
    found, at = [], text.find(first)
    for mark in rest if at >= 0 else ():
        at += len(first)
        first, end = mark, text.find(mark, at)
        if end < 0:
            return None
        found.append(text[at:end])
        at = end
    return found if at >= 0 else None


def _limit(found: Sequence[str]) -> str:
    what, limit, _ = found
    return f"the index is limited to {limit} {what}" if limit.isdecimal() and what.replace(" ", "").isalpha() else ""


def _cannot_hold(found: Sequence[str]) -> str:
    field, type = found
    if field == type:
        return f"the engine keeps the name {field} to itself"
    hint = " (of more than 32,766 bytes? ignore_above in its mapping avoids this)" if type == "keyword" else ""
    return f"the field {field} is of type {type} and cannot hold the value{hint}" if type.isidentifier() else ""


def _path(where: str, field: str) -> str:
    return field if where == "_doc" else f"{where}.{field}"


_KNOWN: tuple[tuple[Sequence[str], Say], ...] = (
    (
        ("dynamic introduction of [", "] within [", "] is not allowed"),
        lambda found: (
            f"the mapping does not know the field {_path(found[1], found[0])} and is strict "
            "(add the field to it, or say dynamic: false there)"
        ),
    ),
    (("failed to parse field ", *_FIELD), lambda found: _cannot_hold(found[1:])),
    (("failed to parse date field ", *_FIELD), lambda found: _cannot_hold(found[1:])),
    (
        ("object mapping for [", "] tried to parse field [", "] as object"),
        lambda found: f"the field {found[0]} is an object in the mapping, and the value is none",
    ),
    (
        _IMMENSE,
        lambda found: (
            f"the text in the field {found[0]} is longer than the 32,766 bytes that a keyword can index "
            "(ignore_above in its mapping avoids this)"
        ),
    ),
    (("Limit of ", " [", "]", " has been exceeded"), _limit),
    (
        ("is a metadata field and cannot be added",),
        lambda _: "a field has a name that the engine keeps to itself",
    ),
    (
        ("ield name [", "] is longer than the limit of [", "]"),
        lambda found: (
            "it has a field whose name is longer than the index's limit (index.mapping.field_name_length.limit)"
        ),
    ),
    *(
        ((mark,), lambda _: "it has a field whose name is empty, or has a dot where the engine allows none")
        for mark in _NO_NAME
    ),
)

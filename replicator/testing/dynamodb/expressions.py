"""Condition, filter and key expressions: comparisons and a few functions on top-level attributes, with AND, OR, NOT."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from replicator.items.attributes import Typed, Typeds
from replicator.testing.dynamodb.refusals import invalid
from replicator.testing.dynamodb.values import stored_form

Test = Callable[[Typeds], bool]
"""Evaluates an expression for an item; an absent item is evaluated as one without attributes."""

_TOKEN = re.compile(r"\s*(?:(<>|<=|>=|[=<>(),])|([#:]?[A-Za-z_][\w.-]*|[#:]\w+))")
_FUNCTIONS = ("attribute_exists", "attribute_not_exists", "begins_with")
_ORDERED: Mapping[str, Callable[[Any], Any]] = {"S": str.encode, "N": Decimal, "B": base64.b64decode}
_COMPARED: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: bool(a < b),
    "<=": lambda a, b: bool(a <= b),
    ">": lambda a, b: bool(a > b),
    ">=": lambda a, b: bool(a >= b),
}


class Terms:
    """The names and values that a request's expressions may use. All of them must be used."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._names: Mapping[str, str] = request.get("ExpressionAttributeNames", {})
        self._values = stored_form(request.get("ExpressionAttributeValues", {}))
        self._used: set[str] = set()

    def name(self, token: str) -> str:
        if not token.startswith("#"):
            return token
        self._used.add(token)
        if token not in self._names:
            raise invalid(f"An expression attribute name used in the document path is not defined: {token}")
        return self._names[token]

    def value(self, token: str) -> Typed:
        self._used.add(token)
        if token not in self._values:
            raise invalid(f"An expression attribute value used in expression is not defined: {token}")
        return self._values[token]

    def check_used(self) -> None:
        unused = (self._names.keys() | self._values.keys()) - self._used
        if unused:
            raise invalid(f"Value provided in expression attribute names or values unused: {', '.join(sorted(unused))}")


def always(_: Typeds) -> bool:
    return True


def parsed(text: str | None, terms: Terms) -> Test:
    """The parsed expression; always true if ``text`` is empty."""
    return always if text is None else _Parser(text, terms).whole()


def equalities(text: str, terms: Terms) -> dict[str, Typed]:
    """The attributes that ``text`` compares with ``=``, for key conditions; no OR or NOT in them."""
    tokens = _tokens(text)
    if {t.upper() for t in tokens} & {"OR", "NOT"}:
        raise invalid("Invalid operator used in KeyConditionExpression: OR, NOT")
    found = [(tokens[at - 1], tokens[at + 1]) for at, t in enumerate(tokens[:-1]) if t == "=" and at]
    return {terms.name(name): terms.value(value) for name, value in found}


def projected(request: Mapping[str, Any], terms: Terms) -> Callable[[Typeds], Typeds] | None:
    """A function that keeps the attributes in a ProjectionExpression; None without one."""
    text = request.get("ProjectionExpression")
    if text is None:
        return None
    names = {terms.name(token.strip()) for token in text.split(",")}
    return lambda item: {name: v for name, v in item.items() if name in names}


def _tokens(text: str) -> list[str]:
    found, at, text = [], 0, text.strip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise invalid(f"Invalid expression: Syntax error near {text[at : at + 20]!r}")
        found.append(match[1] or match[2])
        at = match.end()
    return found


class _Parser:
    """A recursive-descent parser: OR binds weaker than AND, AND weaker than NOT."""

    def __init__(self, text: str, terms: Terms) -> None:
        self._tokens = _tokens(text)
        self._terms = terms

    def whole(self) -> Test:
        found = self._either()
        if self._tokens:
            raise invalid(f"Invalid expression: Syntax error near {self._tokens[0]!r}")
        return found

    def _either(self) -> Test:
        tests = [self._both()]
        while self._passed("OR"):
            tests.append(self._both())
        return tests[0] if len(tests) == 1 else lambda item: any(test(item) for test in tests)

    def _both(self) -> Test:
        tests = [self._one()]
        while self._passed("AND"):
            tests.append(self._one())
        return tests[0] if len(tests) == 1 else lambda item: all(test(item) for test in tests)

    def _one(self) -> Test:
        if self._passed("NOT"):
            inner = self._one()
            return lambda item: not inner(item)
        if self._passed("("):
            inner = self._either()
            self._expect(")")
            return inner
        return self._function() if self._next() in _FUNCTIONS else self._comparison()

    def _function(self) -> Test:
        name = self._take()
        self._expect("(")
        attribute = self._terms.name(self._take())
        if name == "begins_with":
            self._expect(",")
            prefix = self._terms.value(self._take())
            self._expect(")")
            return lambda item: _begins(item.get(attribute), prefix)
        self._expect(")")
        wanted = name == "attribute_exists"
        return lambda item: (attribute in item) is wanted

    def _comparison(self) -> Test:
        attribute, operator = self._terms.name(self._take()), self._take()
        value = self._terms.value(self._take())
        if operator == "=":
            return lambda item: item.get(attribute) == value
        if operator == "<>":
            return lambda item: item.get(attribute) != value
        if operator not in _COMPARED:
            raise invalid(f"Invalid expression: Syntax error near {operator!r}")
        return lambda item: _compared(operator, item.get(attribute), value)

    def _next(self) -> str:
        return self._tokens[0] if self._tokens else ""

    def _take(self) -> str:
        if not self._tokens:
            raise invalid("Invalid expression: Syntax error at its end")
        return self._tokens.pop(0)

    def _passed(self, token: str) -> bool:
        if self._next().upper() != token:
            return False
        self._tokens.pop(0)
        return True

    def _expect(self, token: str) -> None:
        if not self._passed(token):
            raise invalid(f"Invalid expression: Syntax error near {self._next()!r}, expected {token!r}")


def _compared(operator: str, found: Typed | None, wanted: Typed) -> bool:
    """Values of different types, and absent values, are unordered."""
    ((kind, inner),) = wanted.items()
    if kind not in _ORDERED:
        raise invalid(f"Incorrect operand type for operator or function; operator: {operator}, operand type: {kind}")
    if found is None or kind not in found:
        return False
    ordered = _ORDERED[kind]
    return _COMPARED[operator](ordered(found[kind]), ordered(inner))


def _begins(found: Typed | None, prefix: Typed) -> bool:
    ((kind, inner),) = prefix.items()
    if kind not in ("S", "B"):
        raise invalid("Incorrect operand type for operator or function; operator or function: begins_with")
    ordered = _ORDERED[kind]
    return found is not None and kind in found and ordered(found[kind]).startswith(ordered(inner))

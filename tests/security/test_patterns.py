"""No foreign text keeps a regular expression busy: a matcher that counts steps tries every pattern of the product.

The matcher backtracks as Python's does, so its steps grow as Python's time does; a clock is not needed.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from connectors.dynamodb.responses import _REASONS, LONGEST, refusal
from replicator.aws.errors import AwsError
from replicator.items.extraction import LEAF_OF_KIND

parser: Any = re._parser  # type: ignore[attr-defined]

ROOT = Path(__file__).parents[2]
METHODS = {"compile", "match", "search", "fullmatch", "sub", "split", "findall", "finditer"}
SHORT, LONG = 24, 48  # pieces of an attack
GROWTH = 2.6  # of steps where the text is twice as long: 2 is linear, 4 is quadratic
MOST = 300_000  # steps after which a pattern is given up
Next = Callable[[int], bool]


class TooMany(Exception):
    """More steps than any pattern may take."""


class Scheduler:
    """Matches a parsed pattern at each position of a text, as ``search`` does, and counts the steps."""

    def __init__(self, text: str) -> None:
        self.text, self.count = text, 0

    def search(self, nodes: Sequence[Any], *, anchored: bool) -> None:
        for at in range(1 if anchored else len(self.text) + 1):
            if self.sequence(nodes, 0, at, lambda end: not anchored or end == len(self.text)):
                return

    def sequence(self, nodes: Sequence[Any], i: int, at: int, then: Next) -> bool:
        if i == len(nodes):
            return then(at)
        return self.node(nodes[i], at, lambda end: self.sequence(nodes, i + 1, end, then))

    def node(self, node: Any, at: int, then: Next) -> bool:
        self.count += 1
        if self.count > MOST:
            raise TooMany
        kind, value = str(node[0]), node[1]
        match kind:
            case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
                return at < len(self.text) and one(kind, value, self.text[at]) and then(at + 1)
            case "BRANCH":
                return any(self.sequence(list(branch), 0, at, then) for branch in value[1])
            case "SUBPATTERN":
                return self.sequence(list(value[3]), 0, at, then)
            case "ATOMIC_GROUP":
                ends: list[int] = []

                def noted(end: int) -> bool:
                    ends.append(end)
                    return True

                return self.sequence(list(value), 0, at, noted) and then(ends[0])
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                return self.repeat(kind, value, at, then)
            case "ASSERT" | "ASSERT_NOT":
                inside, start = list(value[1]), at if value[0] > 0 else at - len(value[1])
                found = start >= 0 and self.sequence(inside, 0, start, lambda end: True)
                return found is (kind == "ASSERT") and then(at)
            case "AT":
                where = {"AT_BEGINNING": at == 0, "AT_END": at == len(self.text), "AT_END_STRING": at == len(self.text)}
                return where.get(str(value), True) and then(at)
        raise AssertionError(f"the matcher does not know {kind}: teach it")

    def repeat(self, kind: str, value: Any, at: int, then: Next) -> bool:
        least, most, inside = value[0], int(value[1]), list(value[2])
        if len(inside) == 1 and str(inside[0][0]) in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            return self.run(kind, least, most, inside[0], at, then)

        def again(times: int, here: int) -> bool:
            def further(end: int) -> bool:
                return end > here and again(times + 1, end)

            more = times < most and (kind != "MIN_REPEAT" or times < least)
            if more and self.sequence(inside, 0, here, further):
                return True
            if times >= least and then(here):
                return True
            return kind == "MIN_REPEAT" and least <= times < most and self.sequence(inside, 0, here, further)

        return again(0, at)

    def run(self, kind: str, least: int, most: int, node: Any, at: int, then: Next) -> bool:
        """Repetition of a single character, without recursion."""
        end = at
        while end < len(self.text) and end - at < most and one(str(node[0]), node[1], self.text[end]):
            end += 1
            self.count += 1
        ends = range(at + least, end + 1)
        tried = ends if kind == "MIN_REPEAT" else reversed(ends)
        if kind == "POSSESSIVE_REPEAT":
            tried = iter([end] if end - at >= least else [])
        for here in tried:
            self.count += 1
            if then(here):
                return True
        return False


def one(kind: str, value: Any, char: str) -> bool:
    code = ord(char)
    match kind:
        case "LITERAL":
            return bool(code == value)
        case "NOT_LITERAL":
            return bool(code != value)
        case "ANY":
            return True
    inside = any(among(item, char) for item in value if str(item[0]) != "NEGATE")
    return inside is not any(str(item[0]) == "NEGATE" for item in value)


def among(item: Any, char: str) -> bool:
    kind, value = str(item[0]), item[1]
    if kind == "CATEGORY":
        name = str(value).removeprefix("CATEGORY_")
        found = {"SPACE": char.isspace(), "DIGIT": char.isdecimal(), "WORD": char.isalnum() or char == "_"}
        return not found[name.removeprefix("NOT_")] if name.startswith("NOT_") else found[name]
    return bool(value[0] <= ord(char) <= value[1]) if kind == "RANGE" else one("LITERAL", value, char)


def pieces(nodes: Any) -> Iterator[str]:
    """The building blocks of a pattern: its literals, and one character of each class."""
    literal = ""
    for node in nodes:
        kind, value = str(node[0]), node[1]
        if kind == "LITERAL":
            literal += chr(value)
            continue
        if literal:
            yield literal
        literal = ""
        if kind == "IN":
            yield next((c for c in "a0. ,/'\\A-" if one("IN", value, c)), "~")
        for inner in inside(kind, value):
            yield from pieces(inner)
    if literal:
        yield literal


def inside(kind: str, value: Any) -> Sequence[Any]:
    """The patterns in a syntax node."""
    if "REPEAT" in kind:
        return [value[2]]
    match kind:
        case "BRANCH":
            return list(value[1])
        case "SUBPATTERN":
            return [value[3]]
        case "ASSERT" | "ASSERT_NOT":
            return [value[1]]
    return []


def attacks(parsed: Any) -> Iterator[tuple[str, str]]:
    """Texts of a length and of twice that length, made of repeated building blocks of the pattern."""
    known = list(dict.fromkeys([*pieces(parsed), "a"]))[:8]
    for first, second in product(known, repeat=2):
        for end in ("", "\0"):
            yield first * SHORT + second * SHORT + end, first * LONG + second * LONG + end
            yield (first + second) * SHORT + end, (first + second) * LONG + end


def growth(pattern: str | bytes, *, anchored: bool) -> float:
    """The worst factor by which the steps grow when a text doubles in length."""
    text = pattern.decode("latin-1") if isinstance(pattern, bytes) else pattern
    parsed, worst = parser.parse(text, re.DOTALL), 0.0
    for short, long in attacks(parsed):
        counts = []
        for attack in (short, long):
            steps = Scheduler(attack)
            try:
                steps.search(list(parsed), anchored=anchored)
            except TooMany:
                return float("inf")
            counts.append(steps.count + len(attack))
        worst = max(worst, counts[1] / counts[0])
    return worst


def compiled() -> dict[str, tuple[str | bytes, bool]]:
    """Each named pattern, and whether it is only matched at the beginning of a text."""
    found: dict[str, tuple[str | bytes, bool]] = {}
    for path in sources():
        tree = ast.parse(path.read_text())
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for name in names(tree):
            pattern = getattr(importlib.import_module(module), name)
            used = {
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
            }
            found[f"{module}.{name}"] = pattern.pattern, bool(used) and used <= {"match", "fullmatch"}
    return found


def sources() -> list[Path]:
    paths = sorted(path for folder in ("replicator", "connectors") for path in (ROOT / folder).rglob("*.py"))
    return [path for path in paths if "testing" not in path.parts]


def names(tree: ast.Module) -> Iterator[str]:
    """The module-level names that are patterns."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and is_re(node.value, {"compile"}):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def is_re(call: ast.Call, methods: set[str]) -> bool:
    function = call.func
    named = isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "re"
    return named and isinstance(function, ast.Attribute) and function.attr in methods


def elsewhere() -> Iterator[str]:
    """The functions that use an unnamed pattern."""
    for path in sources():
        tree = ast.parse(path.read_text())
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and is_re(n, METHODS)]
        top = [n.value for n in tree.body if isinstance(n, ast.Assign)]
        if any(call not in top for call in calls):
            yield str(path.relative_to(ROOT))


def test_every_pattern_of_the_product_is_tested() -> None:
    assert set(elsewhere()) == {
        "connectors/dynamodb/responses.py",  # _REASONS, below
        "replicator/items/json_templates.py",  # built from LEAF_OF_KIND, below
        "replicator/source/decoding.py",  # one character
        "replicator/checkpoints/dynamodb/table.py",  # below
        "replicator/items/extraction.py",  # the same
    }
    assert len(compiled()) >= 15


@pytest.mark.parametrize("name", compiled())
def test_a_pattern_takes_linear_time(name: str) -> None:
    pattern, anchored = compiled()[name]
    assert growth(pattern, anchored=anchored) < GROWTH


def test_dynamodb_messages_are_read_up_to_a_bound() -> None:
    """Some of its patterns are not linear, but their input is limited."""
    assert refusal(AwsError("ValidationException", "x" * LONGEST + "significant digits", 400)).endswith(
        "(ValidationException)"
    )


@pytest.mark.parametrize("pattern", [r"dynamodb:(\w+)", *(p for p, _ in _REASONS if ".*" not in p)])
def test_an_unnamed_pattern_takes_linear_time(pattern: str) -> None:
    assert growth(pattern, anchored=False) < GROWTH


@pytest.mark.parametrize("kind", LEAF_OF_KIND)
def test_the_patterns_of_leaves_take_linear_time(kind: bytes) -> None:
    assert growth(LEAF_OF_KIND[kind], anchored=True) < GROWTH


@pytest.mark.parametrize(
    "pattern", [r"dynamic introduction of \[(.*?)\] within \[(.*?)\] is", r"(a+)+b", r"a.*b", r"\s+$"]
)
def test_a_nonlinear_pattern_is_detected(pattern: str) -> None:
    assert growth(pattern, anchored=False) > GROWTH

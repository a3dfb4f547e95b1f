"""docs/faults.md: every test that it names exists, and what it quotes is in the code.

So do the tests that docs/guarantees.md names for its promises.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.end_to_end.kill_steps import steps

ROOT = Path(__file__).parent.parent
QUOTED = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Row:
    """A row of one of the tables; one without a number goes on with the fault before it."""

    number: str
    fault: str
    does: str
    message: str
    code: str
    tests: str


def rows() -> list[Row]:
    lines = (ROOT / "docs" / "faults.md").read_text().splitlines()
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [Row(*cells) for cells in found if cells[1] != "fault" and not cells[0].startswith("---")]


def name(row: Row) -> str:
    return f"{row.number} {row.fault[:30]}"


@cache
def said() -> list[str]:
    """Every text in the code but for docstrings, with … for what is filled in."""
    sources = [path for folder in ("replicator", "connectors") for path in (ROOT / folder).rglob("*.py")]
    return [text for path in sources if "testing" not in path.parts for text in _texts(path)]


def _texts(path: Path) -> Iterator[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if node in docstrings:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)


def test_the_faults_are_numbered_without_holes() -> None:
    numbers = [int(row.number) for row in rows() if row.number]
    assert len(numbers) >= 70
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("row", rows(), ids=name)
def test_a_row_says_what_happens_and_how_a_run_ends(row: Row) -> None:
    codes = re.findall(r"^\| (\d) \|", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)

    assert codes == ["0", "1", "2", "3", "4", "5", "6", "7", "8"]
    assert row.code in codes
    assert row.fault
    assert row.does


@pytest.mark.parametrize("row", rows(), ids=name)
def test_a_rows_tests_exist(row: Row) -> None:
    named = QUOTED.findall(row.tests)

    assert named or "the simulation" in row.tests
    for test in named:
        assert is_there(test), test


def is_there(test: str) -> bool:
    """A file of tests, or one of its functions or classes."""
    path, _, function = test.partition("::")
    text = (ROOT / path).read_text()
    return (
        re.search(rf"^\s*(def|class) {function}\b" if function else r"^\s*(def test_|class Test)", text, re.MULTILINE)
        is not None
    )


def promises() -> list[tuple[str, str]]:
    """Each promise of docs/guarantees.md, and what proves it."""
    text = (ROOT / "docs" / "guarantees.md").read_text()
    lines = text[text.index("| promise |") :].partition("\n\n")[0].splitlines()[2:]
    return [(promise, proof) for promise, proof in (line.strip("| ").split(" | ") for line in lines)]


@pytest.mark.parametrize(("promise", "proof"), promises())
def test_the_tests_of_a_promise_exist(promise: str, proof: str) -> None:
    named = QUOTED.findall(proof)

    assert promise
    assert named
    for test in named:
        assert is_there(test), test


@pytest.mark.parametrize("row", rows(), ids=name)
def test_the_steps_that_a_row_names_exist(row: Row) -> None:
    known = {
        step
        for ends in (("postgres", "target"), ("search", "sqlite"), ("dynamodb", "dynamodb"))
        for step in steps(*ends)
    }

    assert set(re.findall(r'step "([^"]+)"', row.tests)) <= known


@pytest.mark.parametrize("row", rows(), ids=name)
def test_what_a_row_quotes_is_in_the_code(row: Row) -> None:
    for message in QUOTED.findall(row.message):
        assert is_said(message), message


def is_said(message: str) -> bool:
    """Whether a text in the code has the form of ``message``."""
    form = re.compile(".*".join(re.escape(part) for part in message.split("…")), re.DOTALL)
    return any(form.search(text) for text in said())


def test_every_probe_belongs_to_a_row_that_points_to_it() -> None:
    text = (ROOT / "docs" / "faults.md").read_text()

    probed = re.findall(r"^\*\*(\d+), ", text, re.MULTILINE)
    pointing = [row.number for row in rows() if "(#what-needs-real-servers)" in row.tests]
    assert probed == pointing != []

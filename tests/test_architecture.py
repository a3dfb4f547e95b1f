"""The arrows between modules, and their sizes: what the code must not grow into."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LONGEST_FILE = 300
LONGEST_BODY = 25

FILES = sorted(p for top in ("replicator", "connectors") for p in (ROOT / top).rglob("*.py"))
NAMES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}
CORE = {name for name in NAMES if name.startswith("replicator") and not name.startswith("replicator.testing")}

# These are long for a reason that splitting would hide.
LONG_FILES = {
    "connectors.search.catalog": "what an index is and what is wrong with it: a subject",
    "replicator.aws.boto": "all that is known of boto3's ways, which nothing else may know",
    "replicator.checkpoints": "every durable entry, in one place",
    "replicator.testing.checkpoints_contract": "every promise of a store of checkpoints, in one place",
    "replicator.engine.local": "one run, from its claim to its end",
    "replicator.operations.parked": "retry and drop, and all that keeps them safe beside a run",
    "replicator.pipeline.pipeline": "the passive heart: what may be read, what comes in, what goes out, over one state",
}
LONG_FUNCTIONS = {
    "replicator.pipeline.compaction.compact_latest": "the loop that every change goes through: a call costs more than a line",
}

PASSIVE: tuple[str, ...] = (
    "acknowledged",
    "attributes",
    "backfill",
    "batch",
    "change",
    "checkpoints",
    "compaction",
    "discovery",
    "errors",
)
PASSIVE += ("fetched", "ledger", "lineage", "pipeline", "position", "progress", "target", "transform", "wire")


SHARED = {"elasticsearch": ("search",), "opensearch": ("search",)}
"""Code that connectors share: two products, one engine."""


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it, as full names (of ``from a import b`` both a and a.b)."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def importers(*packages: str) -> set[str]:
    """The modules that import one of ``packages`` or something in them."""
    return {
        name
        for name, path in NAMES.items()
        if any(found == p or found.startswith(f"{p}.") for found in imports(path) for p in packages)
    }


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """(name, lines of the body without its docstring) of every function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            yield node.name, (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_there_is_something_to_look_at() -> None:
    assert {"replicator.pipeline.pipeline", "replicator.cli.run", "connectors.postgres.target"} <= set(NAMES)
    assert "replicator.errors" in imports(NAMES["replicator.pipeline.pipeline"])


def test_nothing_in_replicator_imports_a_connector() -> None:
    """Connectors are found by name, through entry points; others can ship theirs."""
    assert {name for name in importers("connectors") if name.startswith("replicator")} == set()


def test_a_connector_imports_no_other_connector() -> None:
    own = {name: name.split(".")[1] for name in NAMES if name.count(".") >= 1 and name.startswith("connectors.")}
    for name, connector in own.items():
        for found in imports(NAMES[name]):
            if found.startswith("connectors."):
                assert found.split(".")[1] in (connector, *SHARED.get(connector, ())), f"{name} imports {found}"


def test_a_connector_needs_nothing_that_is_for_tests() -> None:
    assert {name for name in importers("replicator.testing") if name.startswith("connectors")} == set()


def test_only_the_demo_uses_what_is_for_tests() -> None:
    assert importers("replicator.testing") & CORE <= {"replicator.cli.demo"}


def test_one_module_talks_to_aws_and_one_signs_for_others() -> None:
    assert importers("boto3", "botocore") & CORE == {"replicator.aws.boto", "replicator.aws.request_signer"}
    assert {name for name in importers("boto3", "botocore") if name.startswith("connectors")} == set()


def test_only_what_puts_a_run_together_connects_and_others_get_a_wire() -> None:
    found = {name for name in importers("replicator.aws.boto") & CORE if not name.startswith("replicator.cli.")}
    assert found <= {f"replicator.{m}" for m in ("start", "run", "preflight", "signing", "stores.dynamodb")}


@pytest.mark.parametrize("name", PASSIVE)
def test_what_decides_looks_at_no_clock_and_starts_nothing(name: str) -> None:
    """Time and randomness are arguments."""
    active = {
        "time",
        "random",
        "threading",
        "socket",
        "asyncio",
        "subprocess",
        "queue",
        "concurrent",
        "boto3",
        "tenacity",
    }
    assert {found.split(".")[0] for found in imports(NAMES[f"replicator.{name}"])} & active == set()


def test_the_core_does_not_know_its_command_line() -> None:
    outside = {name for name in importers("replicator.cli", "click", "rich") if not name.startswith("replicator.cli")}
    assert outside <= {"replicator.__main__", "replicator.operations.demo"}


def test_no_module_is_named_after_nothing() -> None:
    """A name says what a module is about."""
    nothing = {"util", "utils", "common", "base", "helper", "helpers", "manager", "misc"}
    assert {name for name in NAMES if set(name.split(".")[-1].split("_")) & nothing} == set()


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_short(name: str) -> None:
    lines = len(NAMES[name].read_text().splitlines())
    assert lines <= LONGEST_FILE or name in LONG_FILES, f"{name} has {lines} lines"


@pytest.mark.parametrize("name", NAMES)
def test_its_functions_are_short(name: str) -> None:
    long = {f"{name}.{function}": lines for function, lines in functions(NAMES[name]) if lines > LONGEST_BODY}
    assert {where: lines for where, lines in long.items() if where not in LONG_FUNCTIONS} == {}


def test_the_lists_of_exceptions_are_not_longer_than_they_need_to_be() -> None:
    files = {name for name, path in NAMES.items() if len(path.read_text().splitlines()) > LONGEST_FILE}
    long = {f"{name}.{f}" for name, path in NAMES.items() for f, lines in functions(path) if lines > LONGEST_BODY}
    assert (set(LONG_FILES) - files, set(LONG_FUNCTIONS) - long) == (set(), set())

"""docs/architecture.md names only what exists: tests, modules, functions, wrong designs; and the layers as enforced.

Other pages for contributors name only paths that exist.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.simulation.mutants import MUTANTS
from tests.test_architecture import LAYERS
from tests.test_faults_table import QUOTED, is_there

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "architecture.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    """The text without its code blocks, whose fences would pair up with inline backticks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


PROSE = prose(TEXT)
NAMED = sorted({" ".join(quoted.split()) for quoted in QUOTED.findall(PROSE)})
DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)+")


@cache
def words() -> frozenset[str]:
    """Every word in the code and the Makefile."""
    files = [p for top in ("replicator", "connectors", "tests") for p in (ROOT / top).rglob("*.py")]
    files = [*files, ROOT / "Makefile"]
    return frozenset(word for path in files if path != Path(__file__) for word in re.findall(r"\w+", path.read_text()))


def resolves(name: str) -> bool:
    """Whether ``pipeline.lineage.readable`` is a module, or something in one."""
    parts = name.split(".")
    for top in ("replicator.", ""):
        for length in range(len(parts), 0, -1):
            try:
                found: object = importlib.import_module(top + ".".join(parts[:length]))
            except ModuleNotFoundError:
                continue
            return all(hasattr(found, part) and (found := getattr(found, part)) is not None for part in parts[length:])
    return False


def exists(name: str) -> bool:
    if "::" in name:
        return is_there(name)
    if "/" in name:
        return (ROOT / name).exists()
    if DOTTED.fullmatch(name):
        return resolves(name)
    return set(re.findall(r"\w+", name)) <= words()


@pytest.mark.parametrize("name", NAMED)
def test_what_is_named_exists(name: str) -> None:
    assert exists(name), name


@pytest.mark.parametrize(
    "name",
    [
        "replicator/engine/chores.py",
        "tests/test_docs.py::test_nothing",
        "pipeline.lineage.gone_for_good",
        "pipeline.ledger.Ledger",
        "No" + "SuchClass",
    ],
)
def test_what_does_not_exist_is_noticed(name: str) -> None:
    assert not exists(name)


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "benchmarks/README.md", "docs/guarantees.md"])
def test_paths_in_other_pages_exist(document: str) -> None:
    named = QUOTED.findall(prose((ROOT / document).read_text()))
    paths = [name for name in named if re.fullmatch(r"[\w./]+/[\w./]*", name)]
    assert paths
    for path in paths:
        assert (ROOT / path).exists(), path


def italics() -> Iterator[str]:
    plain = re.sub(r"\*\*.*?\*\*|`[^`]*`", "", PROSE, flags=re.DOTALL)
    plain = re.sub(r"^\* ", "", plain, flags=re.MULTILINE)
    return (" ".join(text.split()) for text in re.findall(r"\*([^*\n][^*]*?)\*", plain))


def test_every_wrong_design_exists() -> None:
    named = set(italics()) - {"at"}
    assert len(named) > 40
    assert named <= {mutant.name for mutant in MUTANTS}


def test_every_rule_is_broken_by_something() -> None:
    assert {int(n) for n in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)} == set(range(1, 15))
    assert [int(n) for n in re.findall(r"^(\d+)\. \*\*", TEXT, re.MULTILINE)] == list(range(1, 15))


def test_the_layers_are_those_that_are_enforced() -> None:
    layers = tuple(tuple(line.split()) for line in BLOCKS[1].splitlines())
    assert layers == LAYERS


def test_the_flow_shows_packages_and_modules() -> None:
    for package in re.findall(r"\b(\w+)/", BLOCKS[0]):
        assert (ROOT / "replicator" / package).is_dir() or (ROOT / package).is_dir(), package
    for module in ("source/shard_reader", "source/scan", "pipeline/batching", "pipeline/advance", "engine/fetcher"):
        assert module.rpartition("/")[2] in BLOCKS[0]
        assert (ROOT / "replicator" / f"{module}.py").exists()

"""Imports go downwards only. `docs/architecture.md` shows the layers."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(p for top in ("replicator", "connectors") for p in (ROOT / top).rglob("*.py"))
NAMES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}

LAYERS: tuple[tuple[str, ...], ...] = (
    ("items", "errors", "version", "options", "escape", "files", "response_limits", "retention", "backoff", "duration"),
    ("log", "key", "identity"),
    ("hooks",),
    ("state", "marks"),
    ("batch", "change"),
    ("aws",),
    ("source", "checkpoints"),
    ("target", "pipeline"),
    ("verification",),
    ("config",),
    ("engine", "monitoring"),
    ("operations",),
    ("cli",),
)
"""The packages and shared modules of ``replicator``, lowest first. Each imports only itself and lower layers."""

FOR_CONNECTORS = {"items", "target", "aws", "errors", "version", "options", "escape", "files", "response_limits"}
FOR_CONNECTORS |= {"retention", "log", "key", "identity", "state", "marks", "batch", "change"}
SINGLE_MODULES_FOR_CONNECTORS = {"replicator.checkpoints.contract", "replicator.source.table", "replicator.__version__"}
SHARED = {"elasticsearch": ("search",), "opensearch": ("search",)}
"""Code that connectors share: two products, one engine."""

OUTSIDE_WORLD = {"time", "random", "threading", "socket", "asyncio", "subprocess", "queue", "concurrent"}
OUTSIDE_WORLD |= {"boto3", "tenacity"}


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports (for ``from a import b``, both a and a.b)."""
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


def packages() -> Mapping[str, int]:
    """The layer of each package of ``replicator``, except ``testing`` and ``__main__``."""
    return {package: number for number, layer in enumerate(LAYERS) for package in layer}


def upwards(name: str) -> Iterator[str]:
    """What a module imports from other packages of its layer, or from higher layers."""
    layers, package = packages(), name.split(".")[1]
    for found in imports(NAMES[name]):
        parts = found.split(".")
        if parts[0] != "replicator" or len(parts) < 2 or parts[1] == package or parts[1] not in layers:
            continue
        if layers[parts[1]] >= layers[package]:
            yield found


def modules(package: str) -> list[str]:
    return [name for name in NAMES if name == package or name.startswith(f"{package}.")]


def test_the_modules_are_found() -> None:
    assert {"replicator.pipeline.pipeline", "replicator.cli.run", "connectors.postgres.target"} <= set(NAMES)
    assert "replicator.errors" in imports(NAMES["replicator.pipeline.pipeline"])


def test_every_package_has_its_layer() -> None:
    own = {name.split(".")[1] for name in NAMES if name.startswith("replicator.")}
    assert own - {"testing", "__main__"} == set(packages())


@pytest.mark.parametrize("package", packages())
def test_a_package_imports_only_lower_ones(package: str) -> None:
    assert {name: sorted(found) for name in modules(f"replicator.{package}") if (found := list(upwards(name)))} == {}


def test_pure_modules_import_no_clock_and_no_threads() -> None:
    """Time and randomness are arguments."""
    pure = [name for package in ("items", "pipeline") for name in modules(f"replicator.{package}")]
    pure += [f"replicator.{name}" for name in ("batch", "change", "key", "marks", "state", "version", "retention")]
    used = {name: {found.split(".")[0] for found in imports(NAMES[name])} & OUTSIDE_WORLD for name in pure}
    assert {name: found for name, found in used.items() if found} == {}


def test_the_pipeline_knows_no_transport() -> None:
    known = {"replicator.checkpoints.contract", "replicator.checkpoints"}
    for name in modules("replicator.pipeline"):
        own = {found for found in imports(NAMES[name]) if found.startswith("replicator.")}
        assert not {f for f in own if f.split(".")[1] in ("aws", "source", "target")}, name
        stores = {f for f in own if f.startswith("replicator.checkpoints")}
        assert all(any(f == k or f.startswith("replicator.checkpoints.contract.") for k in known) for f in stores), name


def test_nothing_in_replicator_imports_a_connector() -> None:
    """Connectors are found by name, through entry points; others can ship theirs."""
    assert {name for name in importers("connectors") if name.startswith("replicator")} == set()


def test_a_connector_imports_no_other_connector() -> None:
    own = {name: name.split(".")[1] for name in NAMES if name.count(".") >= 1 and name.startswith("connectors.")}
    for name, connector in own.items():
        for found in imports(NAMES[name]):
            if found.startswith("connectors."):
                assert found.split(".")[1] in (connector, *SHARED.get(connector, ())), f"{name} imports {found}"


def test_a_connector_imports_only_contracts_and_shared_types() -> None:
    """Shared types, items, the contracts of targets and stores, and AWS; nothing of pipelines, engines or configs."""
    for name in modules("connectors"):
        for found in imports(NAMES[name]):
            parts = found.split(".")
            if parts[0] == "replicator" and len(parts) > 1 and parts[1] not in FOR_CONNECTORS:
                allowed = any(found == m or found.startswith(f"{m}.") for m in SINGLE_MODULES_FOR_CONNECTORS)
                assert allowed or found in ("replicator.checkpoints", "replicator.source"), f"{name} imports {found}"


def test_only_the_demo_imports_testing() -> None:
    used = importers("replicator.testing") - set(modules("replicator.testing"))
    assert used == {"replicator.operations.demo"}


def test_one_module_talks_to_aws_and_one_signs_for_others() -> None:
    outside = importers("boto3", "botocore") - set(modules("replicator.testing")) - {"replicator.operations.demo"}
    assert outside == {"replicator.aws.boto", "replicator.aws.request_signer"}


def test_only_the_command_line_imports_its_libraries() -> None:
    outside = {name for name in importers("replicator.cli", "click", "rich") if not name.startswith("replicator.cli")}
    assert outside <= {"replicator.__main__", "replicator.operations.demo"}


def test_no_module_is_named_after_nothing() -> None:
    """A name says what a module is about."""
    nothing = {"util", "utils", "common", "base", "helper", "helpers", "manager", "misc"}
    assert {name for name in NAMES if set(name.split(".")[-1].split("_")) & nothing} == set()

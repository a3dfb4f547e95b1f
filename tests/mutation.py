"""``python -m tests.mutation``: breaks the core in one place at a time, and lists the mutants that no test notices.

Not for CI: a mutant takes from a second to a minute. Each is made in a copy of the tree. The tests of its module run
first, then the fast ones, then seeds of the simulation. A survivor is a missing test, an equivalent mutant, or a
constant that only sets a pace: inspect each.
"""

from __future__ import annotations

import argparse
import ast
import copy
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORE = [
    "pipeline/advance",
    "pipeline/checkpoint_view",
    "pipeline/compaction",
    "pipeline/discovery",
    "pipeline/lineage",
    "pipeline/batching",
    "pipeline/parked",
    "pipeline/pipeline",
    "pipeline/stages",
    "source/keys_only",
    "source/scan",
    "source/shard_reader",
    "source/stream",
    "target/acks",
    "target/guarded_writes",
    "target/in_doubt",
    "engine/cleanup",
    "engine/delivery",
    "engine/heartbeat",
    "engine/startup",
    "hooks/hook",
    "state",
    "batch",
    "change",
]
FAST = [
    "tests/pipeline/test_pipeline.py",
    "tests/source/test_shard_reader.py",
    "tests/pipeline/test_lineage.py",
    "tests/pipeline/test_discovery.py",
    "tests/pipeline/test_compaction.py",
    "tests/engine/test_startup.py",
    "tests/pipeline/test_stages.py",
    "tests/operations/test_parked.py",
    "tests/pipeline/test_progress.py",
    "tests/source/test_scan.py",
    "tests/source/test_keys_only.py",
    "tests/test_change.py",
    "tests/test_version.py",
    "tests/hooks/test_hook.py",
    "tests/engine/test_late_writes.py",
    "tests/faults",
]
LIMIT = 240  # seconds for the tests of one mutant; one that hangs is noticed

_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_COMPUTED: dict[type[ast.operator], type[ast.operator]] = {ast.Add: ast.Sub, ast.Sub: ast.Add}
_FLAGS = ("frozen", "slots", "gc")  # of a class: a mutant means the same
_CALLED = {"any": "all", "all": "any", "min": "max", "max": "min"}


@dataclass(frozen=True)
class Mutant:
    """One breakage: which node of a file's tree, what it was, and the source that the file has then."""

    path: Path
    line: int
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.before}  ->  {self.after}"


def mutants(path: Path) -> Iterator[Mutant]:
    tree = ast.parse(path.read_text())
    flags = {id(k.value) for k in ast.walk(tree) if isinstance(k, ast.keyword) and k.arg in _FLAGS}
    for at, node in enumerate(ast.walk(tree)):
        if id(node) in flags or (changed := _changed(node)) is None:
            continue
        broken = copy.deepcopy(tree)
        place = next(n for i, n in enumerate(ast.walk(broken)) if i == at)
        source = ast.unparse(ast.fix_missing_locations(_Replaced(place, changed).visit(broken)))
        yield Mutant(path, getattr(node, "lineno", 0), _short(node), _short(changed), source)


class _Replaced(ast.NodeTransformer):
    def __init__(self, place: ast.AST, changed: ast.AST) -> None:
        self._place, self._changed = place, changed

    def visit(self, node: ast.AST) -> ast.AST:
        found: ast.AST = self._changed if node is self._place else self.generic_visit(node)
        return found


def _changed(node: ast.AST) -> ast.AST | None:
    """The node broken, if there is a way to."""
    new = copy.deepcopy(node)
    match new:
        case ast.Compare(ops=[op]) if type(op) in _COMPARED:
            new.ops = [_COMPARED[type(op)]()]
        case ast.BinOp(op=op) if type(op) in _COMPUTED:
            new.op = _COMPUTED[type(op)]()
        case ast.BoolOp(op=op):
            new.op = ast.Or() if isinstance(op, ast.And) else ast.And()
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return operand
        case ast.Constant(value=bool() as value):
            new.value = not value
        case ast.Constant(value=int() as value):
            new.value = value + 1
        case ast.Call(func=ast.Name(id=name)) if name in _CALLED:
            new.func = ast.Name(_CALLED[name], ast.Load())
        case ast.Continue():
            return ast.Break()
        case ast.Expr(value=ast.Call()) | ast.Delete() | ast.AugAssign():
            return ast.Pass()
        case _:
            return None
    return new


def _short(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())[:70]


def noticed(mutant: Mutant, folder: Path, seeds: int) -> str:
    """By what: a test's file, the simulation; empty if by nothing."""
    place = folder / mutant.path.relative_to(ROOT)
    kept = place.read_text()
    place.write_text(mutant.source)
    try:
        for name, command in _tests(mutant.path, seeds):
            try:
                done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, timeout=LIMIT)
            except subprocess.TimeoutExpired:
                return f"{name} (hangs)"
            if done.returncode != 0:
                return name
    finally:
        place.write_text(kept)
    return ""


def _tests(path: Path, seeds: int) -> Iterator[tuple[str, list[str]]]:
    pytest = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout", "60"]
    own = str(Path("tests") / path.parent.relative_to(ROOT / "replicator") / f"test_{path.stem}.py")
    if (ROOT / own).exists():
        yield own, [*pytest, own]
    yield "the fast tests", [*pytest, *FAST]
    yield "the simulation", ["-m", "tests.simulation", "--seeds", str(seeds)]


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    arguments.add_argument("--mutants", type=int, default=50, help="how many")
    arguments.add_argument("--seed", type=int, default=1, help="which ones")
    arguments.add_argument(
        "--seeds", type=int, default=1000, help="of the simulation, for each that the tests let pass"
    )
    asked = arguments.parse_args()
    every = [m for name in CORE for m in mutants(ROOT / f"replicator/{name}.py")]
    drawn = random.Random(asked.seed).sample(every, min(asked.mutants, len(every)))
    survivors = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        folder = Path(place)
        for name in ("replicator", "connectors", "tests", "docs", "configs"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, folder / name)
        for number, mutant in enumerate(drawn, 1):
            by = noticed(mutant, folder, asked.seeds)
            print(f"{number}/{len(drawn)}  {mutant}  {f'noticed by {by}' if by else 'SURVIVED'}", flush=True)
            if not by:
                survivors.append(mutant)
    print(f"{len(every):,} possible, {len(drawn)} drawn with seed {asked.seed}, {len(survivors)} survived")
    return 0


if __name__ == "__main__":
    sys.exit(main())

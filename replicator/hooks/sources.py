"""The source files that a hook's file imports from beside it: they decide what the hook returns, so they count too.

Found by reading import statements, also those inside functions, without importing anything. Pure but for reading files.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

INSTALLED = frozenset({"site-packages", "dist-packages"})


def imported(path: Path, root: Path) -> list[Path]:
    """The files under ``root`` that ``path`` imports, directly or not, sorted; without ``path`` itself.

    Files of installed packages do not count, even if they are under ``root``.
    """
    seen = {path}
    left = [path]
    while left:
        for file in _imports(left.pop(), root):
            if file not in seen:
                seen.add(file)
                left.append(file)
    return sorted(seen - {path})


def imported_late(path: Path, root: Path) -> list[Path]:
    """The files under ``root`` that are imported when a function is called, not when the hook is loaded; sorted."""
    called = {late for file in (path, *imported(path, root)) for late in _imports_of_functions(file, root)}
    return sorted({*called, *(file for late in called for file in imported(late, root))})


def _imports(path: Path, root: Path) -> Iterator[Path]:
    if (tree := _parsed(path)) is not None:
        yield from _named_in(tree, path, root)


def _imports_of_functions(path: Path, root: Path) -> Iterator[Path]:
    if (tree := _parsed(path)) is not None:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _named_in(node, path, root)


def _parsed(path: Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # importing it fails too, with a better message
        return None


def _named_in(tree: ast.AST, path: Path, root: Path) -> Iterator[Path]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(root, alias.name.split("."), root)
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1] if 0 < node.level <= len(path.parents) else root
            names = node.module.split(".") if node.module else []
            yield from _files(base, names, root)
            for alias in node.names:  # of a package, each may be a module
                yield from _files(base, [*names, alias.name], root)


def _files(base: Path, names: list[str], root: Path) -> Iterator[Path]:
    """The files that importing a dotted name from ``base`` runs: of each package on the way, and of the module."""
    for end in range(len(names) + 1):
        place = base.joinpath(*names[:end])
        for file in (place / "__init__.py", place.with_name(f"{place.name}.py") if end else place):
            if file.is_relative_to(root) and not INSTALLED & set(file.parts) and file.is_file():
                yield file

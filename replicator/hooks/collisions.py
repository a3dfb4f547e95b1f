"""Files that hooks of one process import under the same name, of which Python would give all of them the same one.

What a hook's file imports as it is loaded is its own (``loading``). What a function imports when it is called is looked
up by its name alone, and so is everything that a hook named ``package.module:function`` imports. Nothing is imported
here; files are only read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path

from replicator.hooks.sources import imported, imported_late


@dataclass(frozen=True, slots=True)
class HookFile:
    """The file of a config's hook, and what it imports from files under ``root``, where names begin.

    ``late``: those of ``imports`` that functions import. ``by_path``: the hook is named by its path, not as a module.
    """

    config: str
    path: Path
    root: Path
    imports: Sequence[Path]
    late: Sequence[Path]
    by_path: bool


def hook_file(config: str, spec: str, base: Path) -> HookFile | None:
    """The file that ``spec`` names, as ``loading.load`` finds it; None if it is not under ``base``."""
    place = spec.partition(":")[0]
    by_path = place.endswith(".py")
    path = (base / place).resolve() if by_path else _module(base.resolve().joinpath(*place.split(".")))
    if path is None:
        return None
    root = path.parent if by_path else base.resolve()
    return HookFile(config, path, root, imported(path, root), imported_late(path, root), by_path)


def _module(place: Path) -> Path | None:
    paths = (place.with_name(f"{place.name}.py"), place / "__init__.py")
    return next((path for path in paths if path.is_file()), None)


def collision(hooks: Sequence[HookFile], beside: Sequence[HookFile] = ()) -> str:
    """Why these hooks cannot be in one process with each other and those ``beside``; empty if they can."""
    pairs = [*permutations(hooks, 2), *product(hooks, beside), *product(beside, hooks)]
    return next((text for one, other in pairs for text in _between(one, other)), "")


def _between(one: HookFile, other: HookFile) -> Iterator[str]:
    """A sentence for each file of one hook in whose place Python may take one of the other's."""
    for file in _looked_up(one, other) if one.root != other.root else ():
        if (twin := _twin(file, one.root, other.root)) is not None:
            yield (
                f"transform: {file}, which the hook of {one.config} imports, and {twin}, beside that of "
                f"{other.config}, are different files of one name, and Python has one module of a name in a "
                f"process. {_advice(one, other)}"
            )


def _looked_up(hook: HookFile, beside: HookFile) -> Sequence[Path]:
    """The files of a hook that are found by their names in a process with the other one."""
    if hook.by_path:
        return hook.late if beside.by_path else hook.imports
    return [hook.path, *hook.imports]


def _twin(file: Path, root: Path, other: Path) -> Path | None:
    """The file under ``other`` that Python may take for ``file`` under ``root``, unless their contents are equal."""
    name = file.relative_to(root)
    top = name.parts[0].removesuffix(".py")
    if top in sys.stdlib_module_names:
        return None  # both hooks get that of the standard library
    same = other / name
    if same.is_file():
        return None if same.read_bytes() == file.read_bytes() else same
    return _module(other / top)


def _advice(one: HookFile, other: HookFile) -> str:
    late = "move the import from the function to the top of the file, " if one.by_path and other.by_path else ""
    return f"Rename one of them, {late}or run each pipeline in a process of its own"

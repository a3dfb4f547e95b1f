"""Each hook imports its own copy of the files beside it, whatever other hooks of the process have of those names.

Python has one module of a name per process, so ``helpers`` of one folder would be ``helpers`` of every other. Modules
of a hook are therefore stored in ``sys.modules`` under a prefix of their own, and their import statements, also those
inside functions, look for the prefixed module first: Python calls the ``__import__`` among a module's ``__builtins__``
for each of them. No lock is shared: a file whose import hangs holds up no other hook.
"""

from __future__ import annotations

import builtins
import importlib.util
import itertools
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from replicator.hooks.sources import INSTALLED
from replicator.hooks.time_limit import HookLimit

PREFIX = "replicator_hook_"
_OURS = frozenset({"replicator", "connectors"})
_numbers = itertools.count()


class Namespace:
    """The modules of one hook. ``hides_installed``: its files come before installed packages of the same name."""

    def __init__(self, folder: Path, *, hides_installed: bool) -> None:
        self.folder = folder
        self.prefix = f"{PREFIX}{next(_numbers)}"
        self._hides_installed = hides_installed
        self._own: dict[str, bool] = {}
        self._import = builtins.__import__
        self.builtins: Mapping[str, Any] = {**vars(builtins), "__import__": self._imported}
        package = ModuleSpec(self.prefix, None, is_package=True)
        package.submodule_search_locations = [str(folder)]
        sys.modules[self.prefix] = importlib.util.module_from_spec(package)
        importlib.invalidate_caches()  # a file may be newer than what was listed
        _register(self)

    def file(self, path: Path) -> ModuleType:
        """Execute a file as a module. It is not the one that the files beside it import under its name."""
        name = f"{self.prefix}_file"
        loader = _Loader(name, str(path), self.builtins)
        spec = importlib.util.spec_from_file_location(name, path, loader=loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickle look it up there
        loader.exec_module(module)
        return module

    def module(self, name: str) -> ModuleType:
        """Import a module by its name, from the folder or from Python's path."""
        return self._imported(name, fromlist=("__name__",))

    def plain(self, text: str) -> str:
        """A message without the prefix, which is nothing that a user has written."""
        return text.replace(f"{self.prefix}.", "")

    def _imported(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        top = name.partition(".")[0]
        try:
            if level or not self._owns(top):
                return self._import(name, globals, locals, fromlist or (), level)
            module = self._import(f"{self.prefix}.{name}", globals, locals, fromlist or ("__name__",), 0)
            return module if fromlist else sys.modules[f"{self.prefix}.{top}"]
        except ModuleNotFoundError as e:
            if e.name is not None and e.name.startswith(self.prefix):
                e.name = self.plain(e.name)
                e.msg = self.plain(e.msg)
            raise

    def _owns(self, name: str) -> bool:
        if (own := self._own.get(name)) is None:
            own = self._own[name] = self._is_own(name)
        return own

    def _is_own(self, name: str) -> bool:
        if name in sys.stdlib_module_names or name in _OURS:
            return False
        spec = PathFinder.find_spec(name, [str(self.folder)])
        if spec is None:
            return False
        only_a_folder = spec.origin is None  # which any installed module of its name precedes, as everywhere in Python
        return not _is_installed(name) if only_a_folder or not self._hides_installed else True


def _is_installed(name: str) -> bool:
    spec = PathFinder.find_spec(name)
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
    return any(place is not None and INSTALLED & set(Path(place).parts) for place in places)


class _Loader(SourceFileLoader):
    """Executes a module with the builtins of its hook."""

    def __init__(self, name: str, path: str, builtins: Mapping[str, Any]) -> None:
        super().__init__(name, path)
        self._builtins = builtins

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = self._builtins
        super().exec_module(module)


class _Prefixed:
    """Finds the modules of hooks under their prefixes."""

    def __init__(self) -> None:
        self.namespaces: dict[str, Namespace] = {}

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        namespace = self.namespaces.get(name.partition(".")[0])
        if namespace is None:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.origin is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(name, spec.origin, namespace.builtins)
        return spec


class _Plain:
    """Finds files beside hooks by their plain names, for what imports without a statement (``importlib``, ``pickle``).

    Such a name does not tell which hook it is for, so one that several folders have is refused.
    """

    def __init__(self) -> None:
        self._folders: list[str] = []
        self._names: set[str] = set()

    def add(self, folder: str) -> None:
        if folder in self._folders:
            return
        for name in [name for name in self._names if PathFinder.find_spec(name, [folder]) is not None]:
            for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
                sys.modules.pop(module, None)  # the next import is refused
        self._folders.append(folder)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if path is not None:
            return None
        specs = {f: spec for f in self._folders if (spec := PathFinder.find_spec(name, [f])) is not None}
        if len(specs) > 1:
            raise ImportError(
                f"{name} is in the folders of several hooks of this process, {' and '.join(specs)}: import it with an "
                "import statement, which takes the file beside the hook",
                name=name,
            )
        self._names.update([name] if specs else ())
        return next(iter(specs.values()), None)


_prefixed, _plain = _Prefixed(), _Plain()


HookLimit.passed |= {
    function.__code__
    for function in (Namespace._imported, Namespace._owns, Namespace._is_own, _is_installed, _Loader.exec_module)
}


def _register(namespace: Namespace) -> None:
    if _prefixed not in sys.meta_path:
        sys.meta_path[:] = [_prefixed, *sys.meta_path, _plain]  # plain names: only what nothing else finds
    _prefixed.namespaces[namespace.prefix] = namespace
    _plain.add(str(namespace.folder))

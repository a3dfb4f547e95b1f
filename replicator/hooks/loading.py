"""Loads the transform hook that a config names."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import inspect
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from decimal import getcontext
from pathlib import Path
from types import ModuleType

from replicator.errors import ConfigError
from replicator.hooks.hook import DIGITS, Hook, is_declared
from replicator.hooks.redaction import safe_message
from replicator.hooks.sources import imported
from replicator.log import silence_libraries

_HIDDEN = "(message hidden: it may contain a secret)"


def load(spec: str, base: Path) -> Hook:
    """The hook that ``spec`` names: ``file.py:function``, relative to ``base``, or ``package.module:function``.

    ConfigError names the file and line at fault. Side effect: decimal arithmetic in this thread gets a precision of
    ``DIGITS``, so that DynamoDB numbers stay exact in runs, previews and retries alike.
    """
    use_exact_decimals()
    place, _, name = spec.partition(":")
    if not place or not name:
        raise ConfigError(f"transform: {spec!r} must have the form hooks.py:function or package.module:function")
    module, path = _from_file(place, base) if place.endswith(".py") else _from_package(place, base)
    above = 0 if place.endswith(".py") else place.count(".") + (path.name == "__init__.py")
    silence_libraries()  # undo what the module may have configured
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(_missing(name, path))
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"transform: {name} in {path} is async; a hook must be a plain function")
    _require_one_argument(function, name, path)
    return Hook(
        name=name,
        function=function,
        fingerprint=_fingerprint(path, name, path.parents[above]),
        declared=is_declared(function),
    )


def _require_one_argument(function: Callable[..., object], name: str, path: Path) -> None:
    try:
        parameters = inspect.signature(function)
    except (TypeError, ValueError):  # not every callable has one
        return
    try:
        parameters.bind(object())
    except TypeError as e:
        names = ", ".join(parameters.parameters) or "no argument"
        raise ConfigError(f"transform: {name} in {path} takes {names}; a hook takes one argument, the item") from e


def use_exact_decimals() -> None:
    """Let this thread call hooks; see ``load``."""
    getcontext().prec = DIGITS


def _fingerprint(path: Path, name: str, root: Path) -> str:
    """Changes with the hook's file and with every file beside it that it imports."""
    digest = hashlib.sha256(path.read_bytes() + b"\0" + name.encode())
    for file in imported(path, root):
        digest.update(b"\0" + str(file.relative_to(root)).encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """Modules in ``folder`` can be imported, then and later, but none of an installed package's name.

    Modules that the hooks of other folders imported are forgotten first: each folder has its own of a name.
    """
    for name in _of_hooks:
        sys.modules.pop(name, None)
    _of_hooks.clear()
    before, place = set(sys.modules), str(folder)
    others = [path for path in sys.path if path in _folders and path != place]
    sys.path[:] = [path for path in sys.path if path not in (*others, place)] + [place]
    importlib.invalidate_caches()  # a file may be newer than what was listed
    try:
        yield
    finally:
        sys.path[:] = [*sys.path, *others]
        _folders.add(place)
        loaded = [(name, getattr(sys.modules[name], "__file__", None)) for name in set(sys.modules) - before]
        _of_hooks.update(name for name, file in loaded if file is not None and Path(file).is_relative_to(folder))


_loading = threading.RLock()  # pipelines of one process may load at the same time
_folders: set[str] = set()
_of_hooks: set[str] = set()
"""Folders whose modules hooks import, and the names of those modules. A hook keeps what it imported."""


def _from_file(place: str, base: Path) -> tuple[ModuleType, Path]:
    path = (base / place).resolve()
    if not path.is_file():
        raise ConfigError(f"transform: no such file: {path}")
    name = f"replicator_hook_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look it up there
    try:
        with _loading, _beside(path.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as e:
        raise _unimportable(place, path, e) from e
    return module, path


def _from_package(place: str, base: Path) -> tuple[ModuleType, Path]:
    if str(base) not in sys.path:
        sys.path.insert(0, str(base))
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as e:
        if e.name is not None and (place == e.name or place.startswith(e.name + ".")):
            raise ConfigError(f"transform: no module named {place} (searched {base} and Python's path)") from e
        raise _unimportable(place, base, e) from e
    except (Exception, SystemExit) as e:
        raise _unimportable(place, base, e) from e
    if getattr(module, "__file__", None) is None:
        raise ConfigError(f"transform: {place} has no source file; name a module that has one")
    return module, Path(str(module.__file__))


def _unimportable(place: str, path: Path, error: BaseException) -> ConfigError:
    if isinstance(error, SyntaxError) and error.filename is not None:
        where = f"{error.filename}, line {error.lineno}"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        imported = [f for f in frames if "importlib" not in f.filename and f.filename != __file__]
        own = [f for f in imported if Path(f.filename) == path] or imported
        where = f"{own[-1].filename}, line {own[-1].lineno}" if own else str(path)
    safe = str(error) if isinstance(error, ImportError | NameError) else safe_message(error)
    if isinstance(error, SyntaxError):
        safe = error.msg  # str(error) would repeat the place
    message = f": {safe}" if safe else f" {_HIDDEN}"  # other messages may quote the environment
    return ConfigError(f"transform: {place} cannot be imported: {type(error).__name__}{message} ({where})")


def _missing(name: str, path: Path) -> str:
    if path.suffix != ".py":
        return f"transform: {path} has no function {name}"
    tree = ast.parse(path.read_bytes())
    functions = [
        f"{n.name} (line {n.lineno})" for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return f"transform: {path} has no function {name}; it has {', '.join(functions) or 'none'}"

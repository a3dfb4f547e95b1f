"""Loads the transform hook that a config names."""

from __future__ import annotations

import ast
import hashlib
import inspect
import traceback
from decimal import getcontext
from pathlib import Path
from types import ModuleType

from replicator.errors import ConfigError
from replicator.hooks import namespace
from replicator.hooks.hook import DIGITS, Hook, is_declared
from replicator.hooks.namespace import Namespace
from replicator.hooks.redaction import safe_message
from replicator.hooks.sources import imported
from replicator.log import silence_libraries

_OURS = {__file__, namespace.__file__}
_HIDDEN = "(message hidden: it may contain a secret)"


def load(spec: str, base: Path) -> Hook:
    """The hook that ``spec`` names: ``file.py:function``, relative to ``base``, or ``package.module:function``.

    ConfigError names the file and line at fault. Side effect: decimal arithmetic in this thread gets a precision of
    ``DIGITS``, so that DynamoDB numbers stay exact in runs, previews and retries alike.
    """
    getcontext().prec = DIGITS
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
    return Hook(
        name=name,
        function=function,
        fingerprint=_fingerprint(path, name, path.parents[above]),
        declared=is_declared(function),
    )


def _fingerprint(path: Path, name: str, root: Path) -> str:
    """Changes with the hook's file and with every file beside it that it imports."""
    digest = hashlib.sha256(path.read_bytes() + b"\0" + name.encode())
    for file in imported(path, root):
        digest.update(b"\0" + str(file.relative_to(root)).encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _from_file(place: str, base: Path) -> tuple[ModuleType, Path]:
    path = (base / place).resolve()
    if not path.is_file():
        raise ConfigError(f"transform: no such file: {path}")
    modules = Namespace(path.parent, hides_installed=False)
    try:
        return modules.file(path), path
    except (Exception, SystemExit) as e:
        raise _unimportable(place, path, e, modules) from e


def _from_package(place: str, base: Path) -> tuple[ModuleType, Path]:
    modules = Namespace(base, hides_installed=True)
    try:
        module = modules.module(place)
    except ModuleNotFoundError as e:
        if e.name is not None and (place == e.name or place.startswith(e.name + ".")):
            raise ConfigError(f"transform: no module named {place} (searched {base} and Python's path)") from e
        raise _unimportable(place, base, e, modules) from e
    except (Exception, SystemExit) as e:
        raise _unimportable(place, base, e, modules) from e
    if getattr(module, "__file__", None) is None:
        raise ConfigError(f"transform: {place} has no source file; name a module that has one")
    return module, Path(str(module.__file__))


def _unimportable(place: str, path: Path, error: BaseException, modules: Namespace) -> ConfigError:
    if isinstance(error, SyntaxError) and error.filename is not None:
        where = f"{error.filename}, line {error.lineno}"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        imported = [f for f in frames if "importlib" not in f.filename and f.filename not in _OURS]
        own = [f for f in imported if Path(f.filename) == path] or imported
        where = f"{own[-1].filename}, line {own[-1].lineno}" if own else str(path)
    safe = str(error) if isinstance(error, ImportError | NameError) else safe_message(error)
    if isinstance(error, SyntaxError):
        safe = error.msg  # str(error) would repeat the place
    safe = modules.plain(safe)
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

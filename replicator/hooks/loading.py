"""Finds and loads the user's transform hook."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
import traceback
from decimal import getcontext
from pathlib import Path
from types import ModuleType

from replicator.errors import ConfigError
from replicator.hooks.hook import _UNSAID, DIGITS, Hook, is_declared
from replicator.hooks.redaction import said
from replicator.log import silence_libraries


def load(spec: str, base: Path) -> Hook:
    """The hook that ``spec`` names: ``file.py:function``, relative to ``base``, or ``package.module:function``.

    ConfigError says which file and line to look at. From then on decimal arithmetic in this thread keeps all the digits
    that DynamoDB numbers can have, in a run, a preview and a retry alike.
    """
    getcontext().prec = DIGITS
    place, _, name = spec.partition(":")
    if not place or not name:
        raise ConfigError(f"transform: {spec!r} must have the form hooks.py:function or package.module:function")
    module, path = _from_file(place, base) if place.endswith(".py") else _from_package(place, base)
    silence_libraries()  # whatever it made of logging
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(_missing(name, path))
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"transform: {name} in {path} is async; a hook must be a plain function")
    return Hook(
        name=name,
        function=function,
        fingerprint=hashlib.sha256(path.read_bytes() + b"\0" + name.encode()).hexdigest(),
        declared=is_declared(function),
    )


def _from_file(place: str, base: Path) -> tuple[ModuleType, Path]:
    path = (base / place).resolve()
    if not path.is_file():
        raise ConfigError(f"transform: no such file: {path}")
    name = f"replicator_hook_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    try:
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
        theirs = [f for f in frames if "importlib" not in f.filename and f.filename != __file__]
        own = [f for f in theirs if Path(f.filename) == path] or theirs
        where = f"{own[-1].filename}, line {own[-1].lineno}" if own else str(path)
    plain = isinstance(error, ImportError | SyntaxError | NameError)  # of names; others may quote the environment
    words = f": {error}" if plain else f": {said(error)}" if said(error) else f" {_UNSAID}"
    return ConfigError(f"transform: {place} cannot be imported: {type(error).__name__}{words} ({where})")


def _missing(name: str, path: Path) -> str:
    if path.suffix != ".py":
        return f"transform: {path} has no function {name}"
    tree = ast.parse(path.read_bytes())
    there = [f"{n.name} (line {n.lineno})" for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return f"transform: {path} has no function {name}; it has {', '.join(there) or 'none'}"

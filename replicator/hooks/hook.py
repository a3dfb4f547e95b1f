"""Hooks: from an item's images to the documents they stand for.

There are two kinds. A plain function returns one mapping or None: the document is filed under the item's key, so only
the newest image matters. A declared one (``@documents``) returns documents with ids of their own: it also sees old
images, so that documents which only an old image yields are deleted.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import getcontext
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from replicator.errors import ConfigError
from replicator.hooks.redaction import Trace, said, storable, trace
from replicator.hooks.time_limit import HookLimit, HookTimeout
from replicator.items.item import Amended, Item
from replicator.items.projection import Asked
from replicator.log import hush

DIGITS = 76  # twice the 38 of a DynamoDB number: also its products are exact
F = TypeVar("F", bound=Callable[..., Any])
NO_TRACE = Trace()
_UNSAID = "(its words may quote a secret, and are not shown)"
_DECLARED = "__replicator_documents__"
_USUAL = {dict, Amended}  # asking whether something is a Mapping takes as long as a simple hook


@dataclass(frozen=True, slots=True)
class Document:
    """One document with an id of its own, which has to be unique among the documents of one item.

    ``table`` names the target table; it may be left out where the target has only one.
    """

    id: str | int
    body: Mapping[str, object]
    table: str | None = None


def documents(hook: F) -> F:
    """Declare that a hook returns ``Document``s, any number of them. It must be pure: same image, same documents."""
    setattr(hook, _DECLARED, True)
    return hook


def is_declared(hook: Callable[..., Any]) -> bool:
    """Whether ``documents`` declares it."""
    return bool(getattr(hook, _DECLARED, False))


class Poison(Exception):
    """A hook failed on an image, or returned something that is no document.

    ``reason`` quotes no value; ``trace`` has the rest of the parking, and what only those see who ask for values.
    """

    def __init__(self, reason: str, trace: Trace = NO_TRACE) -> None:
        self.reason = storable(reason)
        super().__init__(self.reason)
        self.trace = Trace(trace.stack, storable(trace.words))


@dataclass(frozen=True, slots=True)
class Hook:
    """A loaded hook. ``fingerprint`` changes when the source of its module changes.

    ``asked``: what it asks items for; not a part of what it is.
    """

    name: str
    function: Callable[[Item], Any]
    fingerprint: str
    declared: bool
    asked: Asked = field(default_factory=Asked, compare=False, repr=False)

    def one(self, item: Item) -> Mapping[str, object] | None:
        """The document of a plain hook for an item."""
        try:
            found = self.function(item)
            if found is None or type(found) in _USUAL or isinstance(found, Item):
                return found  # type: ignore[no-any-return]
            if isinstance(found, Mapping):
                return dict(found)  # here, because reading it may raise
        except BaseException as e:  # whatever a user's code does, it parks one item and stops nothing else
            raise _poison(self, e) from e
        raise Poison(f"hook {self.name} returned {_a(found)}; a plain hook returns a mapping or None")

    def many(self, item: Item, tables: Sequence[str]) -> dict[tuple[str, str], Mapping[str, object]]:
        """The documents of a declared hook for an item, by (table, id)."""
        try:
            found = self.function(item)
        except BaseException as e:
            raise _poison(self, e) from e
        if found is None:
            return {}
        if isinstance(found, Mapping | str | bytes | Document) or not isinstance(found, Iterable):
            raise Poison(f"hook {self.name} returned {_a(found)}; a declared hook returns an iterable of Document")
        placed: dict[tuple[str, str], Mapping[str, object]] = {}
        for document in _listed(self, found):
            table, id, body = self._place(document, tables)
            if type(body) not in _USUAL and not isinstance(body, Item):
                body = _read(self, body)
            if (table, id) in placed:
                raise Poison(f"hook {self.name} gave two documents of one item the same id in {table}", Trace("", id))
            placed[table, id] = body
        return placed

    def _place(self, document: object, tables: Sequence[str]) -> tuple[str, str, Mapping[str, object]]:
        if not isinstance(document, Document):
            raise Poison(f"hook {self.name} yielded {_a(document)} instead of a Document")
        if not isinstance(document.id, str | int) or isinstance(document.id, bool):
            raise Poison(f"hook {self.name} gave a document {_a(document.id)} as its id; ids are str or int")
        if not isinstance(document.body, Mapping):
            raise Poison(f"hook {self.name} gave a document {_a(document.body)} as its body; bodies are mappings")
        if document.table is None and len(tables) > 1:
            raise Poison(f"hook {self.name} named no table for a document; the target has {', '.join(tables)}")
        table = tables[0] if document.table is None else document.table
        if table not in tables:
            reason = f"hook {self.name} named a table that is none of the target's: {', '.join(tables)}"
            raise Poison(reason, Trace("", str(table)))
        return table, _id(self, document.id), document.body


def _id(hook: Hook, given: str | int) -> str:
    """A document's id as every target and store takes it."""
    id = str(given)
    if not id.isascii() and storable(id) != id:
        raise Poison(f"hook {hook.name} gave a document an id with half of a surrogate pair, which is no text")
    return id


def _a(found: object) -> str:
    return f"a {type(found).__name__}"


def _listed(hook: Hook, found: Iterable[object]) -> list[object]:
    try:
        return list(found)
    except BaseException as e:  # a generator runs its body here
        raise _poison(hook, e) from e


def _read(hook: Hook, body: Mapping[str, object]) -> Mapping[str, object]:
    """A mapping of the hook's own kind as a dict: reading it may raise."""
    try:
        return dict(body)
    except BaseException as e:
        raise _poison(hook, e) from e


HookLimit.calls |= {Hook.one.__code__, Hook.many.__code__, _listed.__code__, _read.__code__}


def _poison(hook: Hook, error: BaseException) -> Poison:
    if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        raise error  # Ctrl-C; in a run, which handles that signal itself, only a hook raises it
    frames = traceback.extract_tb(error.__traceback__)
    own = getattr(getattr(hook.function, "__code__", None), "co_filename", None)  # its line, not ours
    last = next((f for f in reversed(frames) if f.filename == own), frames[-1])
    where = f"{Path(last.filename).name}:{last.lineno}"
    if isinstance(error, HookTimeout):
        reason = f"hook {hook.name} took longer than {error.seconds:g} s (hook_timeout), and was interrupted at {where}"
        return Poison(reason, trace(error))
    words = said(error)
    text = f"no attribute {words!r}" if words and isinstance(error, KeyError) else words
    return Poison(f"hook {hook.name} raised {type(error).__name__} at {where}{text and ': '}{text}", trace(error))


def load(spec: str, base: Path) -> Hook:
    """The hook that ``spec`` names: ``file.py:function``, relative to ``base``, or ``package.module:function``.

    ConfigError says which file and line to look at. From then on decimal arithmetic in this thread keeps all the digits
    that DynamoDB numbers can have, in a run, a preview and a retry alike.
    """
    getcontext().prec = DIGITS
    place, _, name = spec.partition(":")
    if not place or not name:
        raise ConfigError(f"transform: {spec!r} is not of the form hooks.py:function or package.module:function")
    module, path = _from_file(place, base) if place.endswith(".py") else _from_package(place, base)
    hush()  # whatever it made of logging
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(_missing(name, path))
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"transform: {name} in {path} is async; a hook is a plain function")
    return Hook(
        name=name,
        function=function,
        fingerprint=hashlib.sha256(path.read_bytes() + b"\0" + name.encode()).hexdigest(),
        declared=is_declared(function),
    )


def _from_file(place: str, base: Path) -> tuple[ModuleType, Path]:
    path = (base / place).resolve()
    if not path.is_file():
        raise ConfigError(f"transform: there is no file {path}")
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
            raise ConfigError(f"transform: there is no module {place} (looked in {base} and in Python's path)") from e
        raise _unimportable(place, base, e) from e
    except (Exception, SystemExit) as e:
        raise _unimportable(place, base, e) from e
    if getattr(module, "__file__", None) is None:
        raise ConfigError(f"transform: {place} is a package without a file of its own; name the module")
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

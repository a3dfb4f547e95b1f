"""Hooks: from an item's images to the documents they stand for.

There are two kinds. A plain function returns one mapping or None: the document is filed under the item's key, so only
the newest image matters. A declared one (``@documents``) returns documents with ids of their own: it also sees old
images, so that documents which only an old image yields are deleted.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from replicator.hooks.redaction import Trace, said, storable, trace
from replicator.hooks.time_limit import HookLimit, HookTimeout
from replicator.items.item import Amended, Item
from replicator.items.projection import AccessProfile

DIGITS = 76  # twice the 38 of a DynamoDB number: also its products are exact
F = TypeVar("F", bound=Callable[..., Any])
NO_TRACE = Trace()
_UNSAID = "(message hidden: it may contain a secret)"
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

    ``profile``: the attributes it has accessed; not part of its identity.
    """

    name: str
    function: Callable[[Item], Any]
    fingerprint: str
    declared: bool
    profile: AccessProfile = field(default_factory=AccessProfile, compare=False, repr=False)

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
        raise Poison(f"hook {self.name} returned {_a(found)}; a plain hook must return a mapping or None")

    def many(self, item: Item, tables: Sequence[str]) -> dict[tuple[str, str], Mapping[str, object]]:
        """The documents of a declared hook for an item, by (table, id)."""
        try:
            found = self.function(item)
        except BaseException as e:
            raise _poison(self, e) from e
        if found is None:
            return {}
        if isinstance(found, Mapping | str | bytes | Document) or not isinstance(found, Iterable):
            raise Poison(f"hook {self.name} returned {_a(found)}; a @documents hook must return Documents")
        placed: dict[tuple[str, str], Mapping[str, object]] = {}
        for document in _listed(self, found):
            table, id, body = self._place(document, tables)
            if type(body) not in _USUAL and not isinstance(body, Item):
                body = _read(self, body)
            if (table, id) in placed:
                raise Poison(f"hook {self.name} returned two documents with the same id in {table}", Trace("", id))
            placed[table, id] = body
        return placed

    def _place(self, document: object, tables: Sequence[str]) -> tuple[str, str, Mapping[str, object]]:
        if not isinstance(document, Document):
            raise Poison(f"hook {self.name} yielded {_a(document)} instead of a Document")
        if not isinstance(document.id, str | int) or isinstance(document.id, bool):
            raise Poison(f"hook {self.name} returned a document whose id is {_a(document.id)}, not a str or int")
        if not isinstance(document.body, Mapping):
            raise Poison(f"hook {self.name} returned a document whose body is {_a(document.body)}, not a mapping")
        if document.table is None and len(tables) > 1:
            raise Poison(f"hook {self.name} returned a document without a table; the target has {', '.join(tables)}")
        table = tables[0] if document.table is None else document.table
        if table not in tables:
            reason = f"hook {self.name} returned a document for an unknown table; the target has {', '.join(tables)}"
            raise Poison(reason, Trace("", str(table)))
        return table, _id(self, document.id), document.body


def _id(hook: Hook, given: str | int) -> str:
    """A document's id as every target and store takes it."""
    id = str(given)
    if not id.isascii() and storable(id) != id:
        raise Poison(f"hook {hook.name} returned a document id with half of a surrogate pair, which is not valid text")
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
        reason = f"hook {hook.name} took longer than {error.seconds:g} s (hook_timeout) and was interrupted at {where}"
        return Poison(reason, trace(error))
    words = said(error)
    text = f"no attribute {words!r}" if words and isinstance(error, KeyError) else words
    return Poison(f"hook {hook.name} raised {type(error).__name__} at {where}{text and ': '}{text}", trace(error))


@dataclass(frozen=True, slots=True)
class DocumentMapping:
    """How items become documents: by which hook (None: as they are), in which tables."""

    hook: Hook | None
    tables: tuple[str, ...]

    @property
    def own_ids(self) -> bool:
        return self.hook is not None and self.hook.declared

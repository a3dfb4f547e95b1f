"""Transform hooks: user functions from an item to the documents stored for it.

There are two kinds. A plain hook returns one mapping or None: the document is stored under the item's key, so only the
newest image matters. A declared hook (``@documents``) returns documents with ids that it chooses: it also receives old
images, so that documents which only the old image produced can be deleted.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from replicator.hooks.models import fields_of
from replicator.hooks.redaction import Trace, safe_message, storable, trace
from replicator.hooks.time_limit import HookInterrupted, HookLimit, HookTimeout
from replicator.items.item import Amended, Item
from replicator.items.projection import AccessProfile

DIGITS = 76  # decimal precision in hooks: twice the 38 digits of a DynamoDB number, so that products are exact too
F = TypeVar("F", bound=Callable[..., Any])
NO_TRACE = Trace()
_DECLARED = "__replicator_documents__"
_USUAL = {dict, Amended}  # checked first, because isinstance(x, Mapping) takes as long as a simple hook


@dataclass(frozen=True, slots=True)
class Document:
    """A document with its own id, which must be unique among the documents of one item and table.

    ``body``: a mapping, a dataclass or a pydantic model. ``table``: the target table; optional if the target has only
    one.
    """

    id: str | int
    body: Any
    table: str | None = None


def documents(hook: F) -> F:
    """Decorator: the hook returns any number of ``Document``s. It must be pure: the same image, the same documents."""
    setattr(hook, _DECLARED, True)
    return hook


def is_declared(hook: Callable[..., Any]) -> bool:
    return bool(getattr(hook, _DECLARED, False))


class Poison(Exception):
    """A hook failed on an item, or returned something that is not a document. The item is parked.

    ``reason`` contains no item data; ``trace`` has the details, some of which are only shown with --show-values.
    ``may_succeed``: at another time, on the same item, because it ran out of time or memory.
    """

    def __init__(self, reason: str, trace: Trace = NO_TRACE, *, may_succeed: bool = False) -> None:
        self.reason = storable(reason)
        super().__init__(self.reason)
        self.trace = Trace(trace.stack, storable(trace.words))
        self.may_succeed = may_succeed


@dataclass(frozen=True, slots=True)
class Hook:
    """A loaded hook. ``fingerprint`` changes with the source of its module.

    ``profile``: the attributes it has accessed; not part of its identity.
    """

    name: str
    function: Callable[[Item], Any]
    fingerprint: str
    declared: bool
    profile: AccessProfile = field(default_factory=AccessProfile, compare=False, repr=False)

    def one(self, item: Item) -> Mapping[str, object] | None:
        """The document that a plain hook returns for an item. Poison if it fails."""
        try:
            result = self.function(item)
            if result is None or type(result) in _USUAL or isinstance(result, Item):
                return result  # type: ignore[no-any-return]
            if isinstance(result, Mapping):
                return dict(result)  # here, because reading it may raise
            if type(result) is not Document and (fields := fields_of(result)) is not None:
                return fields
        except BaseException as e:  # whatever user code does parks one item and affects nothing else
            raise _poison(self, e) from e
        raise Poison(f"hook {self.name} returned {_a(result)}; a plain hook must return a mapping or None")

    def many(self, item: Item, tables: Sequence[str]) -> dict[tuple[str, str], Mapping[str, object]]:
        """The documents that a declared hook returns for an item, by (table, id). Poison if it fails."""
        try:
            result = self.function(item)
        except BaseException as e:
            raise _poison(self, e) from e
        if result is None:
            return {}
        if isinstance(result, Mapping | str | bytes | Document) or not isinstance(result, Iterable):
            raise Poison(f"hook {self.name} returned {_a(result)}; a @documents hook must return Documents")
        placed: dict[tuple[str, str], Mapping[str, object]] = {}
        for document in _as_list(self, result):
            table, id, body = self._place(document, tables)
            if type(body) not in _USUAL and not isinstance(body, Item):
                body = _as_dict(self, body)
            if (table, id) in placed:
                raise Poison(f"hook {self.name} returned two documents with the same id in {table}", Trace("", id))
            placed[table, id] = body
        return placed

    def _place(self, document: object, tables: Sequence[str]) -> tuple[str, str, Mapping[str, object]]:
        if not isinstance(document, Document):
            raise Poison(f"hook {self.name} yielded {_a(document)} instead of a Document")
        if not isinstance(document.id, str | int) or isinstance(document.id, bool):
            raise Poison(f"hook {self.name} returned a document whose id is {_a(document.id)}, not a str or int")
        body = document.body if isinstance(document.body, Mapping) else _as_fields(self, document.body)
        if body is None:
            raise Poison(f"hook {self.name} returned a document whose body is {_a(document.body)}, not a mapping")
        if document.table is None and len(tables) > 1:
            raise Poison(f"hook {self.name} returned a document without a table; the target has {', '.join(tables)}")
        table = tables[0] if document.table is None else document.table
        if table not in tables:
            reason = f"hook {self.name} returned a document for an unknown table; the target has {', '.join(tables)}"
            raise Poison(reason, Trace("", str(table)))
        return table, _id(self, document.id), body


def _id(hook: Hook, value: str | int) -> str:
    """A document's id as text that every target and checkpoint store accepts."""
    id = str(value)
    if not id.isascii() and storable(id) != id:
        raise Poison(f"hook {hook.name} returned a document id with half of a surrogate pair, which is not valid text")
    return id


def _a(value: object) -> str:
    return f"a {type(value).__name__}"


def _as_list(hook: Hook, result: Iterable[object]) -> list[object]:
    try:
        return list(result)
    except BaseException as e:  # a generator runs its body here
        raise _poison(hook, e) from e


def _as_fields(hook: Hook, body: object) -> Mapping[str, object] | None:
    """A dataclass or pydantic model as a dict; None for anything else."""
    try:
        return fields_of(body)
    except BaseException as e:
        raise _poison(hook, e) from e


def _as_dict(hook: Hook, body: Mapping[str, object]) -> Mapping[str, object]:
    """A mapping of some class of the user's as a dict: reading it may raise."""
    try:
        return dict(body)
    except BaseException as e:
        raise _poison(hook, e) from e


HookLimit.calls |= {Hook.one.__code__, Hook.many.__code__, _as_list.__code__, _as_dict.__code__, _as_fields.__code__}


def _poison(hook: Hook, error: BaseException) -> Poison:
    if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        raise error  # Ctrl-C; a run handles that signal itself, so there only a hook raises this
    if isinstance(error, HookInterrupted):
        raise error
    frames = traceback.extract_tb(error.__traceback__)
    own = getattr(getattr(hook.function, "__code__", None), "co_filename", None)  # a line of the hook, not of ours
    last = next((f for f in reversed(frames) if f.filename == own), frames[-1])
    where = f"{Path(last.filename).name}:{last.lineno}"
    if isinstance(error, HookTimeout):
        reason = f"hook {hook.name} took longer than {error.seconds:g} s (hook_timeout) and was interrupted at {where}"
        return Poison(reason, trace(error), may_succeed=True)
    message = safe_message(error)
    text = f"no attribute {message!r}" if message and isinstance(error, KeyError) else message
    reason = f"hook {hook.name} raised {type(error).__name__} at {where}{text and ': '}{text}"
    return Poison(reason, trace(error), may_succeed=isinstance(error, MemoryError))


@dataclass(frozen=True, slots=True)
class DocumentMapping:
    """How items become documents: by which hook (None: unchanged), in which target tables.

    ``marks``: the tables that mark documents instead of removing them. ``histories``: those that keep every change.
    ``before``: is called before each call of the hook, and may raise to give up what the documents are made for.
    """

    hook: Hook | None
    tables: tuple[str, ...]
    marks: frozenset[str] = frozenset()
    histories: frozenset[str] = frozenset()
    before: Callable[[], None] = field(default=lambda: None, compare=False, repr=False)

    @property
    def own_ids(self) -> bool:
        return self.hook is not None and self.hook.declared

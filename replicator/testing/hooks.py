"""Test kit for transform hooks: takes items as plain Python values, returns the documents and writes a run would make.

    from replicator.testing import hook_test

    def test_drafts_are_not_stored():
        hook_test(order).drops({"id": "1", "status": "draft"})

Numbers of an item are int or Decimal (a hook sees Decimal), sets are frozensets, binary is bytes. Every method raises
an AssertionError that describes the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from replicator.batch import Upsert
from replicator.change import Change
from replicator.hooks.hook import Document, DocumentMapping, Hook, is_declared
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.pipeline.compaction import BatchContext, Compacted, compact_latest, compact_runs
from replicator.pipeline.parked import ParkedItems
from replicator.state import Parked, decode
from replicator.version import FIRST_EPOCH, version

GivenItem = Mapping[str, object]
Body = Mapping[str, object]
Id = str | None
"""A document's own id; None for a plain hook, whose document is stored under the item's key."""

Written = tuple[str, str, Id, Body] | tuple[str, str, Id]
"""("upsert", table, id, body) or ("delete", table, id)"""

_KEY = ("item",)  # any key will do: hooks do not influence it


def hook_test(hook: Callable[[Item], Any], *, tables: Sequence[str] = ("documents",)) -> HookTest:
    """The kit for ``hook``, plain or declared. ``tables``: names of the target's tables."""
    name = getattr(hook, "__name__", type(hook).__name__)
    return HookTest(DocumentMapping(Hook(name, hook, "", is_declared(hook)), tuple(tables)), name)


@dataclass(frozen=True, slots=True)
class HookTest:
    """Assertions about a hook."""

    mapping: DocumentMapping
    name: str

    def gives(self, item: GivenItem, *expected: Body | Document) -> None:
        """The hook returns exactly ``expected`` for ``item``: one mapping, or ``Document``s if it is declared."""
        documents = self._placed(item)
        wanted = dict(self._place(e) for e in expected)
        if documents != wanted:
            raise AssertionError(
                f"hook {self.name} returned something else for {dict(item)}:\n{_differences(wanted, documents)}"
            )

    def drops(self, item: GivenItem) -> None:
        """The hook drops ``item``: nothing is stored."""
        documents = self._placed(item)
        if documents:
            raise AssertionError(
                f"hook {self.name} should drop {dict(item)}, but returned:\n{_differences({}, documents)}"
            )

    def parks(self, item: GivenItem, reason: str = "") -> None:
        """``item`` is parked: the hook raises or returns no valid document. ``reason``: part of the expected reason."""
        parked = _parked(self._compacted(None, item))
        if parked is None:
            raise AssertionError(f"hook {self.name} should fail for {dict(item)}, but did not")
        actual = f"{parked.reason} ({parked.words})"
        if reason not in actual:
            raise AssertionError(f"hook {self.name} failed for {dict(item)} with another reason: {actual}")

    def writes(self, old: GivenItem | None = None, new: GivenItem | None = None) -> list[Written]:
        """The writes when ``old`` (None: no item before) becomes ``new`` (None: deleted)."""
        result = self._compacted(old, new)
        parked = _parked(result)
        if parked is not None:
            raise AssertionError(f"the item is parked: {parked.reason}\n{parked.traceback}{parked.words}")
        return [
            ("upsert", w.table, self._id(w.id), dict(w.body))
            if isinstance(w, Upsert)
            else ("delete", w.table, self._id(w.id))
            for w in result.writes
        ]

    def is_pure_on(self, items: Iterable[GivenItem]) -> None:
        """The hook is deterministic: each item gives the same documents twice, also after others were processed."""
        given = list(items)
        first = [self._placed(item) for item in given]
        for item, before in zip(given, first, strict=True):
            again = self._placed(item)
            if again != before:
                raise AssertionError(
                    f"hook {self.name} is not deterministic: two calls differ for {dict(item)}:\n"
                    + _differences(before, again)
                )

    def _compacted(self, old: GivenItem | None, new: GivenItem | None) -> Compacted:
        change = Change(_KEY, version(FIRST_EPOCH, 1), _image(new), _image(old), "1")
        at = BatchContext(refused={}, parked=ParkedItems(), epoch=FIRST_EPOCH, source="test", now=0.0)
        if self.mapping.own_ids:
            return compact_runs({_KEY: [change]}, self.mapping, at)
        return compact_latest([(change, change.version, 1)], self.mapping, at)

    def _placed(self, item: GivenItem) -> dict[tuple[str, Id], Body]:
        return {(w[1], w[2]): w[3] for w in self.writes(new=item) if len(w) == 4}

    def _id(self, id: Sequence[str]) -> Id:
        return id[1] if self.mapping.own_ids else None

    def _place(self, expected: Body | Document) -> tuple[tuple[str, Id], Body]:
        if isinstance(expected, Document) != self.mapping.own_ids:
            kind = (
                "Documents, because the hook is declared"
                if self.mapping.own_ids
                else "one mapping, because the hook is plain"
            )
            raise TypeError(f"hook {self.name}: expected must be {kind}")
        if isinstance(expected, Document):
            return (expected.table or self.mapping.tables[0], str(expected.id)), dict(expected.body)
        return (self.mapping.tables[0], None), dict(expected)


def _image(item: GivenItem | None) -> bytes | None:
    return None if item is None else image(item)


def _parked(result: Compacted) -> Parked | None:
    if not result.parked:
        return None
    (save,) = result.saves
    value = decode("parked", save.id, save.text or "")
    assert isinstance(value, Parked)
    return value


def _differences(wanted: Mapping[Any, Body], found: Mapping[Any, Body]) -> str:
    """One line for each document or attribute that differs."""
    lines = []
    for place in [*wanted, *(p for p in found if p not in wanted)]:
        table, id = place
        name = table if id is None else f"{table} {id!r}"
        if place not in found:
            lines.append(f"  {name}: is missing, expected {wanted[place]}")
        elif place not in wanted:
            lines.append(f"  {name}: was not expected: {found[place]}")
        else:
            lines += [f"  {name}: {line}" for line in _unlike(wanted[place], found[place])]
    return "\n".join(lines)


def _unlike(wanted: Body, found: Body) -> list[str]:
    lines = [f"{n} is missing, expected {v!r}" for n, v in wanted.items() if n not in found]
    lines += [f"{n} is {found[n]!r}, expected {v!r}" for n, v in wanted.items() if n in found and found[n] != v]
    lines += [f"{n} was not expected: {v!r}" for n, v in found.items() if n not in wanted]
    return lines

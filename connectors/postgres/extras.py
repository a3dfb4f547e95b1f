"""Fields of a hook's documents that no column takes: a misspelt name must not end as a column that stays null."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from connectors.postgres.table_schema import TableSchema
from replicator.items.item import Amended, Item
from replicator.target.contract import OWN_IDS

_LONGEST = 63  # characters of a name that are shown: no column's is longer
_MOST = 8  # columns that are named


class UnknownColumns:
    """What documents for one table may be made of: what its columns are made from, and the item's key.

    Whole items may hold anything: of those a table takes what it has columns for.
    """

    def __init__(self, shape: TableSchema) -> None:
        keys = () if shape.keys_are(OWN_IDS) else tuple(key.name for key in shape.keys)
        self._refused = shape.extra == "reject"
        self._label = shape.name
        self._names = tuple(dict.fromkeys(c.attribute for c in shape.columns if c.attribute is not None))
        self._known = frozenset((*self._names, *keys))

    def reject(self, bodies: Sequence[Any], kinds: set[type], reasons: dict[int, str]) -> None:
        """A reason for each document with a field that no column takes."""
        if not self._refused or kinds == {Item}:
            return
        given: Sequence[Iterable[Any]] = bodies if kinds == {dict} else [_names(body) for body in bodies]
        if self._known.issuperset(set().union(*given)):  # of all at once: many times quicker than of each
            return
        for index, names in enumerate(given):
            for name in names:
                if name not in self._known:
                    reasons.setdefault(index, self._reason(name))

    def _reason(self, name: object) -> str:
        shown = name[:_LONGEST] if isinstance(name, str) else f"of type {type(name).__name__}"
        return (
            f"the hook returned a field {shown}, which no column of {self._label} is made from; "
            f"{_nearest(str(shown), self._names)} (extra: ignore leaves such fields out)"
        )


def _names(body: Mapping[Any, object]) -> Iterable[Any]:
    """What a hook says itself, not what it took over with an item."""
    if type(body) is Item:
        return ()
    return body.changes if type(body) is Amended else body


@lru_cache(maxsize=128)
def _nearest(name: str, known: tuple[str, ...]) -> str:
    close = get_close_matches(name, known, 1, 0.6)
    if close:
        return f"did you mean {close[0]}?"
    return f"known: {', '.join(known[:_MOST])}{', …' if len(known) > _MOST else ''}"

"""Parked changes, as a run tracks them: a dead-letter queue that preserves per-item order.

An item has at most one parked entry, for its newest refused change. If the hook chooses document ids, the entry also
lists the documents that the item may have in the target, so that a later change or a retry removes them. A discarded
change leaves an entry of kind ``dropped`` for the same reason, as does a retry that wrote late; an item may have
several of them, also beside its parked entry. Commands change these entries too, so every change of
one compares its revision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import orjson

from replicator.checkpoints.contract import Checkpoints
from replicator.errors import ConfigError
from replicator.key import Key, key_text
from replicator.state import Dropped, Entry, Parked, Place, Repair, Save, decode_dropped, decode_repair, encode
from replicator.version import epoch_of

PARKED, DROPPED, RETRIED, REPAIR = "parked", "dropped", "retried", "repair"


@dataclass(frozen=True, slots=True)
class Held:
    """An entry without its images. ``since``: when the item was first parked; None if only the id was read.

    ``reason``: why, without item values; "" if it was not read. ``discarded``: a person discarded the change.

    See ``Parked`` for the other fields.
    """

    id: str
    revision: int = 1
    leaves: frozenset[Place] = frozenset()
    base: str | None = None
    changes: Mapping[str, int] = field(default_factory=dict)
    since: float | None = None
    reason: str = ""
    discarded: bool = False

    @property
    def version(self) -> int:
        return version_in(self.id)

    @property
    def read(self) -> bool:
        """Whether the entry was read, not just its id."""
        return self.since is not None


def held(id: str, revision: int, value: Parked | Dropped | None) -> Held:
    """``Held`` of a stored entry; ``value`` is None if it was not read."""
    if value is None:
        return Held(id, revision)
    leaves, since = frozenset(value.leaves or ()), value.parked if isinstance(value, Parked) else None
    changes, reason = (value.changes, value.reason) if isinstance(value, Parked) else ({}, "")
    discarded = isinstance(value, Dropped) and bool(value.discarded)
    return Held(id, revision, leaves, value.base, changes, since, reason, discarded)


@dataclass(frozen=True, slots=True)
class Retries:
    """How many notes commands made of what they retried, by its epoch: the revisions of the entries ``retried``."""

    noted: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, revisions: Iterable[tuple[str, int]]) -> Retries:
        """``revisions`` by the entries' ids. Earlier versions had a single one, without an epoch: that may be any."""
        return cls({int(id or 0): revision for id, revision in revisions})

    @property
    def all(self) -> int:
        return sum(self.noted.values())

    def before(self, epoch: int) -> int:
        """Those of changes of earlier epochs than that."""
        return sum(n for noted, n in self.noted.items() if noted < epoch)


@dataclass(frozen=True, slots=True)
class Move:
    """A change of one item's entry of ``kind`` (parked or dropped). None stands for no entry."""

    kind: str
    before: Held | None
    after: Held | None = None
    value: Parked | Dropped | None = None

    @property
    def item(self) -> str:
        one = self.after or self.before
        assert one is not None
        return item_of(one.id)

    @property
    def saves(self) -> list[Save]:
        before, after = self.before, self.after
        same = before is not None and after is not None and before.id == after.id
        saves = []
        if before is not None and not same:
            saves.append(Save(self.kind, before.id, before.revision, None))
        if after is not None:
            saves.append(Save(self.kind, after.id, before.revision if same and before else 0, encode(self.value)))
        return saves


NO_RETRIES = Retries()


class ParkedItems:
    """The parked and dropped entries, by key text of their items.

    ``retries``: what commands had noted when these were read. ``repair``: the entry of the
    command that repairs documents, if there is one, and its revision.
    """

    repair: tuple[Repair, int] | None = None

    def __init__(self, retries: Retries = NO_RETRIES) -> None:
        self._parked: dict[str, Held] = {}
        self._dropped: dict[str, dict[str, Held]] = {}  # by item and id
        self.retries = retries
        self._counts: Counter[int] = Counter()  # of parked entries, by the epochs of their changes
        self._leaves: Counter[int] = Counter()  # the most documents of one item, by the same epochs

    @classmethod
    def among(cls, entries: Iterable[Entry], known: Mapping[str, Held] = MappingProxyType({})) -> ParkedItems:
        """From checkpoint entries. ``known``: parked entries that were read already, by id."""
        by_kind = {kind: [e for e in entries if e.kind == kind] for kind in (PARKED, DROPPED, RETRIED)}
        dropped = [held(e.id, e.revision, decode_dropped(e.id, e.text)) for e in by_kind[DROPPED]]
        parked = [known.get(e.id) or held(e.id, e.revision, None) for e in by_kind[PARKED]]
        items = cls.of(parked, dropped, Retries.of((e.id, e.revision) for e in by_kind[RETRIED]))
        for entry in entries:
            if entry.kind == REPAIR:
                items.repair = decode_repair(entry.text), entry.revision
        return items

    @property
    def repairing(self) -> str:
        """The token of the command that repairs documents at present; "" if there is none."""
        return self.repair[0].token if self.repair is not None and not self.repair[0].ended else ""

    @classmethod
    def of(cls, entries: Iterable[Held], dropped: Iterable[Held] = (), retries: Retries = NO_RETRIES) -> ParkedItems:
        items = cls(retries)
        for kind, of_kind in ((PARKED, entries), (DROPPED, dropped)):
            for entry in of_kind:
                items._replace(kind, None, entry)
        return items

    def __len__(self) -> int:
        return len(self._parked)

    def __bool__(self) -> bool:
        return bool(self._parked or self._dropped)

    def number_since(self, epoch: int) -> int:
        """How many items were parked in this epoch or later. Earlier ones are void once a scan of all items begins."""
        return sum(count for of, count in self._counts.items() if of >= epoch)

    def most_leaves_since(self, epoch: int) -> int:
        """The most documents that a single item which was parked in this epoch or later may have in the target."""
        return max((leaves for of, leaves in self._leaves.items() if of >= epoch), default=0)

    @property
    def ids(self) -> list[str]:
        """Ids of the parked entries."""
        return [held.id for held in self._parked.values()]

    @property
    def all_parked(self) -> Collection[Held]:
        return self._parked.values()

    def parked(self, item: str) -> Held | None:
        return self._parked.get(item)

    def dropped(self, item: str) -> list[Held]:
        return list(self._dropped.get(item, {}).values())

    def entry(self, kind: str, id: str) -> Held | None:
        """The parked or dropped entry with this id."""
        if kind == DROPPED:
            return self._dropped.get(item_of(id), {}).get(id)
        parked = self.parked(item_of(id))
        return parked if parked is not None and parked.id == id else None

    def left(self, item: str, epoch: int) -> tuple[Held | None, list[Held]]:
        """The item's parked and dropped entries of this epoch."""
        parked, dropped = self.parked(item), self.dropped(item)
        current = parked if parked is not None and epoch_of(parked.version) >= epoch else None
        return current, [d for d in dropped if epoch_of(d.version) >= epoch]

    @property
    def any_dropped(self) -> bool:
        return bool(self._dropped)

    def is_discarded(self, item: str) -> bool:
        """Whether a person discarded the item's change, and it has not changed since."""
        return any(held.discarded for held in self.dropped(item))

    def all_dropped(self) -> list[Held]:
        return [held for of_item in self._dropped.values() for held in of_item.values()]

    def apply(self, move: Move) -> None:
        self._replace(move.kind, move.before, move.after)

    def undo(self, move: Move) -> None:
        self._replace(move.kind, move.after, move.before)

    def _replace(self, kind: str, before: Held | None, after: Held | None) -> None:
        if before is not None:
            self._remove(kind, before.id)
        if after is None:
            return
        epoch = epoch_of(after.version)
        self._leaves[epoch] = max(self._leaves[epoch], len(after.leaves))
        if kind == PARKED:
            self._remove(PARKED, after.id)
            self._parked[item_of(after.id)] = after
            self._counts[epoch] += 1
        else:
            self._dropped.setdefault(item_of(after.id), {})[after.id] = after

    def _remove(self, kind: str, id: str) -> None:
        item = item_of(id)
        if kind == PARKED:
            if (held := self._parked.pop(item, None)) is not None:
                self._counts[epoch_of(held.version)] -= 1
        elif (of_item := self._dropped.get(item)) is not None:
            of_item.pop(id, None)
            if not of_item:
                del self._dropped[item]


def settled(spared: Iterable[str], parked: ParkedItems) -> list[str]:
    """Those of the items that a sweep ``spared`` which are neither parked nor discarded any more."""
    return [item for item in spared if parked.parked(item) is None and not parked.is_discarded(item)]


def key_in(id: str) -> Key | None:
    """The item's key, from a parked entry's id; None if the id only has its hash."""
    item = item_of(id)
    return tuple(orjson.loads(item)) if item.startswith("[") else None


def version_in(id: str) -> int:
    """The version of the parked change, from its entry's id."""
    return int(id.rpartition("@")[2])


def parked_id(key: Key, version: int) -> str:
    """The id of an item's parked entry. Any change of the item with a higher version makes it obsolete."""
    return f"{key_text(key)}@{version:019d}"


def item_of(id: str) -> str:
    head, at, tail = id.rpartition("@")
    return head if at and len(tail) == 19 and tail.isdigit() else id


def known(
    checkpoints: Checkpoints, before: ParkedItems | None = None, entries: Iterable[Entry] | None = None
) -> ParkedItems:
    """Read the parked items, with their numbers of changes and, if the hook chooses ids, their documents.

    Revisions are read before the entries, so a change in between only makes the run's next save of the entry fail.
    Entries whose revision is the same as ``before`` are not read again. Images are not kept in memory, except those
    needed to determine documents in the target (``base``). ``entries``: of the checkpoints, if they were just read.
    """
    entries = checkpoints.read().entries if entries is None else entries
    revisions = _single({e.id: e.revision for e in entries if e.kind == PARKED}, checkpoints)
    found = {id: old for id in revisions if (old := _unchanged(before, id, revisions[id])) is not None}
    changed = revisions.keys() - found.keys()
    if changed:
        found |= {id: held(id, revisions[id], p) for id, p in checkpoints.parked(ids=changed)}
    return ParkedItems.among(entries, found)


def _unchanged(before: ParkedItems | None, id: str, revision: int) -> Held | None:
    """The entry as known before, if it was read and has the same id and revision."""
    old = before.parked(item_of(id)) if before is not None else None
    return old if old is not None and old.read and (old.id, old.revision) == (id, revision) else None


def parked_keys(checkpoints: Checkpoints, before: Mapping[str, Key] = MappingProxyType({})) -> dict[str, Key]:
    """Ids and keys of the parked entries. Reads an entry only if its key is neither in its id nor known ``before``."""
    return _parked_keys(checkpoints, checkpoints.read().entries, before)


def kept_keys(
    checkpoints: Checkpoints, before: Mapping[str, Key] = MappingProxyType({}), *, reads: int = 1
) -> tuple[dict[str, Key], dict[str, Key]]:
    """The same, and ids and keys of the discarded entries: those of any of so many ``reads``.

    Where others save all the time, a read may show parked entries as of one save and discarded ones as of another: an
    item whose one entry replaces the other in between has neither then, but has one in the next read.
    """
    parked, discarded = dict[str, Key](), dict[str, Key]()
    for _ in range(reads):
        more = _kept_keys(checkpoints, {**before, **parked})
        parked, discarded = {**parked, **more[0]}, {**discarded, **more[1]}
    return parked, discarded


def _kept_keys(checkpoints: Checkpoints, before: Mapping[str, Key]) -> tuple[dict[str, Key], dict[str, Key]]:
    entries = checkpoints.read().entries
    dropped = {e.id: decode_dropped(e.id, e.text) for e in entries if e.kind == DROPPED}
    discarded = {id: value.discarded for id, value in dropped.items() if value.discarded}
    return _parked_keys(checkpoints, entries, before), discarded


def _parked_keys(checkpoints: Checkpoints, entries: Iterable[Entry], before: Mapping[str, Key]) -> dict[str, Key]:
    ids = [e.id for e in entries if e.kind == PARKED]
    found = {id: key for id in ids if (key := before.get(id) or key_in(id)) is not None}
    if unknown := [id for id in ids if id not in found]:
        found |= {id: parked.key for id, parked in checkpoints.parked(ids=unknown)}
    return found


def _single(revisions: Mapping[str, int], checkpoints: Checkpoints) -> Mapping[str, int]:
    """Without entries that others replaced while the checkpoints were read page by page, which then show both.

    ConfigError if an item has several entries: using only one would lose the documents listed in the others.
    """
    if not (doubles := _doubles(revisions)):
        return revisions
    there = {id for id, _ in checkpoints.parked(ids=doubles)}
    left = {id: revision for id, revision in revisions.items() if id in there or id not in doubles}
    several = sorted({item_of(id) for id in _doubles(left)})
    if several:
        raise ConfigError(
            f"checkpoints: {several[0]} has several parked entries ({len(several)} item(s) in all), stored by an "
            "earlier version of replicator; this version expects one per item. Nothing was changed. Apply them with: "
            "replicator parked retry CONFIG --all; or discard them and rebuild the target: replicator parked drop "
            "CONFIG --all, then replicator resync CONFIG"
        )
    return left


def _doubles(ids: Iterable[str]) -> set[str]:
    """Ids of those entries whose item has several."""
    ids = list(ids)
    number = Counter(map(item_of, ids))
    return {id for id in ids if number[item_of(id)] > 1}

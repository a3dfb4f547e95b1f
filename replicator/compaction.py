"""From the changes of one source to writes: the last state of each item, its documents, and what they replace.

With one document an item the last image is enough. With ids of their own, every id that any image of the run had is
deleted unless the last image has it: a replay with other page boundaries, or a scan, may have stored it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from replicator import position
from replicator.attributes import Malformed
from replicator.batch import Counts, Delete, Part, Upsert, Write
from replicator.change import Change, Key, Record, key_text
from replicator.checkpoints import Parked, Save, encode
from replicator.item import Item
from replicator.position import epoch_of
from replicator.traces import Trace
from replicator.transform import NO_TRACE, Hook, Poison

QUEUED = "queued behind an earlier parked change of the same item"


@dataclass(frozen=True, slots=True)
class Filing:
    """How items become documents: by which hook (None: as they are), in which tables."""

    hook: Hook | None
    tables: tuple[str, ...]

    @property
    def own_ids(self) -> bool:
        return self.hook is not None and self.hook.declared


@dataclass(slots=True)
class ParkedItems:
    """Which items have parked changes, by key text; each with the ids of its parked entries."""

    ids: dict[str, set[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, ids: Iterable[str]) -> ParkedItems:
        found = cls()
        for id in ids:
            found.add(id)
        return found

    def add(self, id: str) -> None:
        self.ids.setdefault(item_of(id), set()).add(id)

    def remove(self, id: str) -> None:
        ids = self.ids.get(item_of(id), set())
        ids.discard(id)
        if not ids:
            self.ids.pop(item_of(id), None)

    def __len__(self) -> int:
        return len(self.ids)

    def of_item(self, text: str) -> Sequence[str]:
        return sorted(self.ids.get(text, ()))

    def queued(self, text: str, epoch: int) -> bool:
        """Whether changes of ``epoch`` must queue: those parked in earlier epochs are obsolete."""
        return any(epoch_of(_version_of(id)) >= epoch for id in self.ids.get(text, ()))


def parked_id(change: Change) -> str:
    """One entry a change; its version says what it is obsolete for."""
    return f"{key_text(change.key)}@{change.version:019d}"


def item_of(id: str) -> str:
    head, at, tail = id.rpartition("@")
    return head if at and len(tail) == 19 and tail.isdigit() else id


def _version_of(id: str) -> int:
    return int(id.rpartition("@")[2])


@dataclass(slots=True)
class Compacted:
    """What a run of changes comes to: writes, and the entries that park or heal items with them."""

    read: int = 0
    dropped: int = 0
    parked: int = 0
    writes: list[Write] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)

    def part(self, source: str) -> Part:
        return Part(source, self.writes, Counts(read=self.read, dropped=self.dropped, parked=self.parked))


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What besides the changes decides: refusals by (key, version), parked items, the epoch, and the time."""

    refused: Mapping[tuple[Key, int], str]
    parked: ParkedItems
    epoch: int
    source: str
    now: float


Latest = tuple[Record | Change, int, int]
"""An item's last change, its version, and how many changes it stands for."""


def latest(numbered: Iterable[tuple[int, Record]], epoch: int) -> Iterator[Latest]:
    """Each item's last change. ``numbered``: records with their ordinals."""
    found: dict[Key, tuple[int, Record]] = {}
    weights: dict[Key, int] = {}  # of items that changed more than once
    for each in numbered:
        key = each[1].key
        if key in found:
            weights[key] = weights.get(key, 1) + 1
        found[key] = each
    first = position.version(epoch, 0)
    for ordinal, record in found.values():
        yield record, first + ordinal, weights.get(record.key, 1) if weights else 1


def runs(numbered: Iterable[tuple[int, Record]], epoch: int) -> dict[Key, list[Change]]:
    """Each item's changes, in order."""
    found: dict[Key, list[Change]] = {}
    for ordinal, record in numbered:
        found.setdefault(record.key, []).append(_change(record, position.version(epoch, ordinal)))
    return found


def _change(r: Record | Change, version: int) -> Change:
    return Change(r.key, version, r.new, r.old, r.sequence, r.created, r.expired)


def compact_latest(changes: Iterable[Latest], filing: Filing, at: Circumstances) -> Compacted:
    """One document an item."""
    found = Compacted()
    table, hook = filing.tables[0], filing.hook
    writes, healing = found.writes, len(at.parked) > 0
    for change, version, weight in changes:
        key = change.key
        found.read += weight
        if at.refused and (reason := at.refused.get((key, version))) is not None:
            _park_latest(found, _change(change, version), weight, reason, NO_TRACE, at)
            continue
        if change.new is None:
            writes.append(Delete(table, key, version, key, weight))
        elif hook is None:
            writes.append(Upsert(table, key, Item(change.new), version, key, weight))
        else:
            try:
                body = hook.one(Item(change.new, hook.asked))
            except (Poison, Malformed) as e:
                trace = getattr(e, "trace", NO_TRACE)
                _park_latest(found, _change(change, version), weight, str(e), trace, at)
                continue
            if body is not None:
                writes.append(Upsert(table, key, body, version, key, weight))
            else:
                found.dropped += weight
                if change.sequence is not None:  # what a scan does not confirm is swept, where there is something
                    writes.append(Delete(table, key, version, key, 0))
        if healing:
            _heal(found, _change(change, version), at)
    return found


def compact_runs(items: Mapping[Key, Sequence[Change]], filing: Filing, at: Circumstances) -> Compacted:
    """Ids of their own: all changes of each item, in order."""
    found = Compacted()
    for key, run in items.items():
        found.read += len(run)
        text = key_text(key)
        if at.parked.queued(text, at.epoch):
            _park_all(found, run, QUEUED, NO_TRACE, at)
            continue
        reason = next((at.refused[key, c.version] for c in run if (key, c.version) in at.refused), None)
        if reason is not None:
            _park_all(found, run, reason, NO_TRACE, at)
            continue
        try:
            writes = run_writes(run, filing)
        except (Poison, Malformed) as e:
            _park_all(found, run, str(e), getattr(e, "trace", NO_TRACE), at)
            continue
        found.writes += writes
        if not writes:
            found.dropped += len(run)
        _heal(found, run[-1], at)
    return found


def run_writes(run: Sequence[Change], filing: Filing) -> list[Write]:
    """The writes for an item's run of changes, all at the last one's version. Poison if any image is."""
    hook, last = filing.hook, run[-1]
    assert hook is not None
    text = key_text(last.key)
    images = [run[0].old, *(c.new for c in run)]
    placed = [hook.many(Item(i, hook.asked), filing.tables) if i is not None else {} for i in images]
    now, before = placed[-1], {place for documents in placed[:-1] for place in documents}
    writes: list[Write] = [
        Upsert(table, (text, id), body, last.version, last.key, 0) for (table, id), body in now.items()
    ]
    writes += [Delete(table, (text, id), last.version, last.key, 0) for table, id in sorted(before - now.keys())]
    if writes:  # one write answers for the item in the counts
        first = writes[0]
        writes[0] = type(first)(
            **{f: getattr(first, f) for f in first.__struct_fields__ if f != "weight"}, weight=len(run)
        )
    return writes


def _park_all(found: Compacted, run: Sequence[Change], reason: str, trace: Trace, at: Circumstances) -> None:
    for i, change in enumerate(run):
        _park(found, change, 1, reason if i == 0 else QUEUED, trace if i == 0 else NO_TRACE, at)
    _unpark(found, run[0].key, lambda version: epoch_of(version) < at.epoch, at)


def _park_latest(found: Compacted, change: Change, weight: int, reason: str, trace: Trace, at: Circumstances) -> None:
    """Park an item's newest change in the place of its earlier ones."""
    if any(_version_of(id) > change.version for id in at.parked.of_item(key_text(change.key))):
        found.parked += weight  # a scanned image that a parked change of the stream has replaced
        return
    _unpark(found, change.key, lambda version: version < change.version, at)
    _park(found, change, weight, reason, trace, at)


def _park(found: Compacted, change: Change, weight: int, reason: str, trace: Trace, at: Circumstances) -> None:
    found.parked += weight
    parked = Parked(
        key=change.key,
        version=change.version,
        reason=reason,
        parked=at.now,
        new=_text(change.new),
        old=_text(change.old),
        traceback=trace.stack,
        words=trace.words,
        source=at.source,
        sequence=change.sequence,
    )
    found.saves.append(Save("parked", parked_id(change), None, encode(parked)))


def _heal(found: Compacted, change: Change, at: Circumstances) -> None:
    """A good change makes the item's parked ones obsolete, but not those after it: a scanned image may be older."""
    _unpark(found, change.key, lambda version: version <= change.version, at)


def _unpark(found: Compacted, key: Key, obsolete: Callable[[int], bool], at: Circumstances) -> None:
    ids = at.parked.of_item(key_text(key))
    found.saves += [Save("parked", id, None, None) for id in ids if obsolete(_version_of(id))]


def _text(image: object) -> str | None:
    return None if image is None else bytes(image).decode(errors="replace")  # type: ignore[call-overload]

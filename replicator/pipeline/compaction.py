"""Compacts the changes of one source into writes: one final state per item.

With one document per item, the last image is enough. If the hook chooses document ids, every document that any image
of the run had, or that a parked change may have left, is deleted unless the last image has it too: a replay with other
page boundaries, or a scan, may have stored it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import msgspec

from replicator import version as versions
from replicator.batch import Delete, Part, Past, Upsert, Write
from replicator.change import Change, OwnWrite, Record
from replicator.hooks.hook import NO_TRACE, DocumentMapping, Poison
from replicator.items.attributes import Malformed
from replicator.items.item import Item
from replicator.key import Key, key_text
from replicator.pipeline.parked import DROPPED, PARKED, Held, Move, ParkedItems, held, item_of, parked_id
from replicator.state import Counts, Dropped, Parked, Place, Save
from replicator.version import epoch_of

Image = msgspec.Raw | bytes | None
Documents = Mapping[Place, Mapping[str, object]]
Failed = Poison | Malformed
Failure = tuple[Image, Failed]
Last = tuple[Mapping[str, object], float | None]
"""A document as it was last, and the time of the change after which it was gone; None: the run's last change."""
NOTHING: Mapping[Place, Last] = {}
MOST_IMAGES = 3  # that an item's entries keep since the hook took too long for them
Refused = tuple[Key, int]
"""An item's change that the target refuses: its key and version."""


@dataclass(slots=True)
class Compacted:
    """The result: writes, counts, and the changes of parked entries that go with them.

    ``refused``: changes that the target refused before, and that are parked now.
    """

    read: int = 0
    filtered: int = 0
    parked: int = 0
    writes: list[Write] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    history: list[Past] = field(default_factory=list)

    @property
    def saves(self) -> list[Save]:
        return [save for move in self.moves for save in move.saves]

    def part(self, source: str) -> Part:
        counts = Counts(read=self.read, filtered=self.filtered, parked=self.parked)
        return Part(source, self.writes, counts, self.history)


@dataclass(frozen=True, slots=True)
class BatchContext:
    """What compaction depends on besides the changes.

    ``refused``: reasons of refused changes. ``now``: seconds since 1970. ``mixed``: the target may have documents of
    this epoch from another hook. ``full``: in a partial resync, the last epoch that scanned the whole table, else 0.
    ``unmarkable``: changes whose deletes the target refuses to mark with the last document: they go without one.
    ``began``: when the epoch began, for what a scan adds to a history; seconds since 1970. ``keeps_times``: parked
    changes keep their times, which a history needs when they are retried.
    ``newest_first``: of the images of an item without a record, which have the same version, the first one is valid,
    but for those that are ``looked_up`` after all others: they also replace one that is parked.
    """

    refused: Mapping[Refused, str]
    parked: ParkedItems
    epoch: int
    source: str
    now: float
    mixed: bool = False
    full: int = 0
    unmarkable: Collection[Refused] = frozenset()
    began: float = 0.0
    keeps_times: bool = False
    newest_first: bool = False
    looked_up: bool = False

    @property
    def complete(self) -> int:
        """Parked entries of this epoch and later ones are still valid: no scan of the whole table came since."""
        return self.full or self.epoch


Latest = tuple[Record | Change, int, int]
"""An item's last change, its version, and the number of changes it stands for."""


def latest(numbered: Iterable[tuple[int, Record]], epoch: int) -> Iterator[Latest]:
    """Each item's last change. ``numbered``: records with their ordinals."""
    last: dict[Key, tuple[int, Record]] = {}
    weights: dict[Key, int] = {}  # of items that changed more than once
    for entry in numbered:
        key = entry[1].key
        if key in last:
            weights[key] = weights.get(key, 1) + 1
        last[key] = entry
    first = versions.version(epoch, 0)
    for ordinal, record in last.values():
        yield record, first + ordinal, weights.get(record.key, 1) if weights else 1


def runs(numbered: Iterable[tuple[int, Record]], epoch: int) -> dict[Key, list[Change]]:
    """Each item's changes, in order."""
    changes: dict[Key, list[Change]] = {}
    for ordinal, record in numbered:
        changes.setdefault(record.key, []).append(_change(record, versions.version(epoch, ordinal)))
    return changes


def newest(items: Mapping[Key, Sequence[Change]]) -> Iterator[Latest]:
    """The last change of each run."""
    for run in items.values():
        yield run[-1], run[-1].version, len(run)


def _change(r: Record | Change, version: int) -> Change:
    return Change(r.key, version, r.new, r.old, r.sequence, r.created, r.expired)


def compact_latest(
    changes: Iterable[Latest],
    mapping: DocumentMapping,
    at: BatchContext,
    items: Mapping[Key, Sequence[Change]] | None = None,
) -> Compacted:
    """Writes for pipelines with one document per item. ``items``: all changes of each item, where deletes only mark."""
    result = Compacted()
    table, hook = mapping.tables[0], mapping.hook
    writes, healing = result.writes, bool(at.parked)
    vanished = partial(_vanished, result, mapping, at, items)
    held = at.parked.any_dropped or (at.newest_first and bool(at.parked))
    for change, version, weight in _current(result, changes, at) if held else changes:
        key = change.key
        result.read += weight
        if at.refused and (reason := at.refused.get((key, version))) is not None:
            result.refused.append((key, version))
            _park_latest(result, _change(change, version), weight, Poison(reason), at)
            continue
        if change.new is None:
            if type(change) is OwnWrite:
                result.filtered += weight
            else:
                writes.append(Delete(table, key, version, key, weight, *vanished(change, version)))
        elif hook is None:
            writes.append(Upsert(table, key, Item(change.new), version, key, weight))
        else:
            mapping.before()
            try:
                body = hook.one(Item(change.new, hook.profile))
            except (Poison, Malformed) as e:
                _park_latest(result, _change(change, version), weight, e, at)
                continue
            if body is not None:
                writes.append(Upsert(table, key, body, version, key, weight))
            else:
                result.filtered += weight
                if change.sequence is not None or at.full:  # after a full scan, the sweep removes an existing document
                    writes.append(Delete(table, key, version, key, 0, *vanished(change, version)))
        if healing:
            _heal(result, _change(change, version), at)
    return result


def _vanished(
    result: Compacted,
    mapping: DocumentMapping,
    at: BatchContext,
    items: Mapping[Key, Sequence[Change]] | None,
    change: Record | Change,
    version: int,
) -> tuple[float | None, Mapping[str, object] | None]:
    """When an item's only document vanished, and what it was last."""
    if items is None:
        return change.created, None
    if (change.key, version) in at.unmarkable:
        result.refused.append((change.key, version))
        return change.created, None
    run = items[change.key]
    last = next(iter(_last(run, mapping, []).values()), None)
    return _deletion(last, change.created) if last is not None else (_gone_since(run, mapping), None)


def _gone_since(run: Sequence[Change], mapping: DocumentMapping) -> float | None:
    """The time of the first change of a run from which on there was no document, whatever batch would end there."""
    since = run[-1].created
    for change in reversed(run[:-1]):
        there, failed = _document(change.new, mapping)
        if there:
            break
        if failed is None:
            since = change.created
    return since


def _current(result: Compacted, changes: Iterable[Latest], at: BatchContext) -> Iterator[Latest]:
    """The changes without images that a later, discarded or parked one has replaced: scanned images, which a change of
    the stream has replaced, or (``newest_first``) those of an older export."""
    for change in changes:
        record, version, weight = change
        parked, dropped = at.parked.left(key_text(record.key), at.complete)
        replaced = version - at.newest_first if record.sequence is None else version
        if any(one.version > replaced for one in dropped):
            result.read += weight
            result.filtered += weight
        elif at.newest_first and not at.looked_up and parked is not None and parked.version > replaced:
            result.read += weight
            result.parked += weight
        else:
            yield change


def compact_runs(items: Mapping[Key, Sequence[Change]], mapping: DocumentMapping, at: BatchContext) -> Compacted:
    """Writes for hooks that choose document ids. ``items``: all changes of each item, in order."""
    result = Compacted()
    for key, run in items.items():
        result.read += len(run)
        text = key_text(key)
        parked, dropped = at.parked.left(text, at.complete) if at.parked else (None, [])
        if parked is not None and parked.version > run[-1].version:
            result.parked += len(run)  # a scanned image that a parked change of the stream has replaced
        elif any(d.version > run[-1].version for d in dropped):
            result.filtered += len(run)
        else:
            _compact_run(result, text, run, parked, dropped, mapping, at)
    return result


def _compact_run(
    result: Compacted,
    text: str,
    run: Sequence[Change],
    parked: Held | None,
    dropped: Sequence[Held],
    mapping: DocumentMapping,
    at: BatchContext,
) -> None:
    newest = run[-1]
    now, failed = _documents(newest.new, mapping)
    of_run: list[Failure] = []
    last = _last(run, mapping, of_run) if mapping.marks else {}
    leaves = set(last) if mapping.marks else _places(earlier(run), mapping, of_run)
    entries = [*dropped] if parked is None else [parked, *dropped]
    unsure = next((one for one in (failed, *(one for _, one in of_run)) if _may_succeed(one)), None)
    places, of_entries = _places_kept(entries, mapping, unsure)
    leaves |= places
    of_others = [known.base for known in entries] or [_text(run[0].old)]
    unknown = _unknown([*of_entries, *of_run], of_others if at.mixed else [])
    base = next(iter(unknown), None)
    in_question = next(
        (image for image in unknown if parked is not None or not _given_up(image, unknown, dropped)), None
    )
    refusal = at.refused.get((newest.key, newest.version))
    if refusal is not None:
        result.refused.append((newest.key, newest.version))
        failed = Poison(refusal)
    if failed is None and in_question is not None:
        failed, base = unknown[in_question], in_question
    if failed is not None:
        value = replace(_parked(newest, failed, at), leaves=tuple(sorted(leaves | now.keys())), base=base)
        _park(result, value, len(run), at, unknown)
        staying = [one for one in dropped if one.base in unknown and one.base != base]
        held_already = {base, *(one.base for one in staying)}
        result.moves += _bases_beside([one for one in unknown if one not in held_already], run, entries, staying)
        return
    if (newest.key, newest.version) in at.unmarkable:
        result.refused.append((newest.key, newest.version))
        last = {}
    writes = _writes(text, now, leaves, newest, len(run), {p: one for p, one in last.items() if p[0] in mapping.marks})
    result.writes += writes
    if not writes:
        result.filtered += len(run)
    _heal(result, newest, at)


def _unknown(failures: Iterable[Failure], of_others: Collection[str | None]) -> dict[str, Poison]:
    """Images on which the hook fails although documents of them may be stored, and the reason to park the item.

    ``of_others``: those of which another hook may have stored documents: of the item's entries or, if there are none,
    the old image. (That of an item with an entry was parked or discarded itself.) Of the other images this hook may
    have, if it only took too long now, or had too little memory.
    """
    unknown = {}
    for image, failed in failures:
        base = _text(image)
        if base is not None and (base in of_others or _may_succeed(failed)):
            reason = f"the hook fails on an earlier image of the item, whose documents must be removed: {failed}"
            unknown[base] = Poison(reason, getattr(failed, "trace", NO_TRACE), may_succeed=_may_succeed(failed))
    return unknown


def _given_up(image: str, unknown: Mapping[str, Poison], dropped: Sequence[Held]) -> bool:
    """Whether a person has discarded a change of the item knowing that the hook fails on this image.

    Of one on which it only took too long they know once an entry that kept it is discarded: a scan may have stored it.
    """
    known = any(one.discarded and one.base == image for one in dropped)
    return bool(dropped) and (known or not unknown[image].may_succeed)


def _may_succeed(failed: Failed | None) -> bool:
    return isinstance(failed, Poison) and failed.may_succeed


def _places_kept(
    entries: Sequence[Held], mapping: DocumentMapping, unsure: Failed | None
) -> tuple[set[Place], list[Failure]]:
    """The documents that the item's entries name, or keep an image of, and the images on which the hook fails.

    ``unsure``: a failure that says nothing of an image. The item is parked then, and the images that are kept are not
    tried: each may take as long again.
    """
    found, failures = set[Place](), list[Failure]()
    for known in entries:
        found |= known.leaves
        if known.base is not None and unsure is not None:
            failures.append((_image(known.base), unsure))
        elif known.base is not None:
            found |= _places([_image(known.base)], mapping, failures)
            unsure = next((failed for _, failed in failures if _may_succeed(failed)), None)
    return found, failures


def _bases_beside(
    bases: Sequence[str], run: Sequence[Change], entries: Sequence[Held], staying: Sequence[Held]
) -> list[Move]:
    """Entries for further images of which documents may be stored: a parked entry holds only one of them.

    Each has the version of the image, or of the entry that held it; so none has the id of the parked entry. There are
    only so many: the hook may take too long each time, and then none of them has documents. ``staying``: the dropped
    entries that the parked one does not replace.
    """
    before = max((one.version for one in entries), default=run[0].version - 1)
    versions_of = {_text(run[0].old): before} | {one.base: one.version for one in entries}
    versions_of |= {_text(change.new): change.version for change in run[:-1]}
    values = {parked_id(run[-1].key, versions_of[base]): Dropped((), base) for base in bases}
    free = [id for id in values if all(id != one.id for one in staying)]
    room = MOST_IMAGES - 1 - len(staying)  # besides that of the parked entry
    return [Move(DROPPED, None, held(id, 1, values[id]), values[id]) for id in free[: max(0, room)]]


def run_writes(run: Sequence[Change], mapping: DocumentMapping, leaves: Iterable[Place] = ()) -> list[Write]:
    """The writes for an item's run of changes, all with the last change's version. Poison if the hook fails on it, or
    on an earlier image in a way that tells nothing of that one's documents.

    ``leaves``: documents that the item may have in addition to those of these images.
    """
    now, failed = _documents(run[-1].new, mapping)
    failures: list[Failure] = []
    there = _places(earlier(run), mapping, failures)
    failed = failed or next(iter(_unknown(failures, []).values()), None)
    if failed is not None:
        raise failed
    return _writes(key_text(run[-1].key), now, there.union(leaves), run[-1], len(run))


def earlier(run: Sequence[Change]) -> list[Image]:
    """Every image of a run except the last. (The new image of each change is the old image of the next.)"""
    return [run[0].old, *(c.new for c in run[:-1])]


def _documents(image: Image, mapping: DocumentMapping) -> tuple[Documents, Poison | Malformed | None]:
    """The documents of an image, or the hook's failure."""
    hook = mapping.hook
    assert hook is not None
    mapping.before()
    try:
        return ({} if image is None else hook.many(Item(image, hook.profile), mapping.tables)), None
    except (Poison, Malformed) as e:
        return {}, e


def _document(image: Image, mapping: DocumentMapping) -> tuple[Documents, Poison | Malformed | None]:
    """The same of a pipeline with one document per item, whose id is its key."""
    place, hook = (mapping.tables[0], ""), mapping.hook
    mapping.before()
    try:
        item = None if image is None else Item(image, hook.profile) if hook is not None else Item(image)
        body = item if hook is None or item is None else hook.one(item)
    except (Poison, Malformed) as e:
        return {}, e
    return ({} if body is None else {place: body}), None


def documents_at(image: Image, mapping: DocumentMapping) -> tuple[Documents, Poison | Malformed | None]:
    """The documents of an image, or the hook's failure. With one document per item, its id is ""."""
    return (_documents if mapping.own_ids else _document)(image, mapping)


def _last(run: Sequence[Change], mapping: DocumentMapping, failures: list[Failure]) -> dict[Place, Last]:
    """The documents of a run's images but the last one: what each was last, and when it vanished.

    An image on which the hook fails is parked, and leaves the documents as they are; it is added to ``failures``.
    """
    found: dict[Place, Last] = {}
    for n, image in enumerate(earlier(run)):
        there, failed = documents_at(image, mapping)
        if failed is not None:
            failures.append((image, failed))
        if n > 0 and failed is None:
            gone = [place for place, (_, at) in found.items() if at is None and place not in there]
            found |= {place: (found[place][0], run[n - 1].created) for place in gone}
        found |= {place: (body, None) for place, body in there.items()}
    return found


def _deletion(last: Last | None, created: float | None) -> tuple[float | None, Mapping[str, object] | None]:
    """The time and the last document of a delete. ``created``: the time of the run's last change."""
    if last is None or created is None:
        return created, None
    body, at = last
    return (created if at is None else at), body


def _places(images: Iterable[Image], mapping: DocumentMapping, failures: list[Failure]) -> set[Place]:
    """The ids of all documents of these images. Those on which the hook fails are added to ``failures``: they have no
    documents in the target if it always does.
    """
    found: set[Place] = set()
    for image in images:
        if image is None:
            continue
        there, failed = _documents(image, mapping)
        found |= there.keys()
        if failed is not None:
            failures.append((image, failed))
    return found


def _writes(
    text: str,
    now: Documents,
    leaves: set[Place],
    newest: Change,
    weight: int,
    last: Mapping[Place, Last] = NOTHING,
) -> list[Write]:
    version, key = newest.version, newest.key
    writes: list[Write] = [Upsert(table, (text, id), body, version, key, 0) for (table, id), body in now.items()]
    gone = sorted(leaves - now.keys())
    for table, id in gone:
        at, body = _deletion(last.get((table, id)), newest.created)
        writes.append(Delete(table, (text, id), version, key, 0, at, body))
    if writes:  # one write answers for the item in the counts
        writes[0] = msgspec.structs.replace(writes[0], weight=weight)
    return writes


def _park_latest(result: Compacted, change: Change, weight: int, failed: Failed, at: BatchContext) -> None:
    """Park an item's newest change; it replaces earlier parked ones."""
    before = at.parked.parked(key_text(change.key))
    if before is not None and before.version > change.version:
        result.parked += weight  # a scanned image that a parked change of the stream has replaced
        return
    _park(result, _parked(change, failed, at), weight, at)


def _parked(change: Change, failed: Failed, at: BatchContext) -> Parked:
    trace = getattr(failed, "trace", NO_TRACE)
    return Parked(
        key=change.key,
        version=change.version,
        reason=str(failed),
        parked=at.now,
        new=_text(change.new),
        old=_text(change.old),
        traceback=trace.stack,
        words=trace.words,
        source=at.source,
        sequence=change.sequence,
        created=None if not at.keeps_times else at.began if change.created is None else change.created,
    )


def _park(
    result: Compacted, value: Parked, weight: int, at: BatchContext, unknown: Collection[str] = frozenset()
) -> None:
    """Park a change. Its entry replaces the item's earlier parked and dropped entries.

    Dropped entries with an ``unknown`` image stay, unless the entry has the same: an entry holds only one.
    """
    result.parked += weight
    id = parked_id(value.key, value.version)
    text = item_of(id)
    before, dropped = at.parked.parked(text), at.parked.dropped(text)
    current = before is not None and epoch_of(before.version) >= at.complete
    changes = {**(before.changes if before is not None and current else {})}
    changes[value.source] = changes.get(value.source, 0) + weight
    since = before.since if before is not None and before.since is not None and current else value.parked
    value = replace(value, changes=changes, parked=since)
    revision = before.revision + 1 if before is not None and before.id == id else 1
    result.moves.append(Move(PARKED, before, held(id, revision, value), value))
    result.moves += [Move(DROPPED, one) for one in dropped if one.base == value.base or one.base not in unknown]


def _heal(result: Compacted, change: Change, at: BatchContext) -> None:
    """Remove the item's parked and dropped entries up to this change. A scanned image may be older than they are."""
    if at.parked:
        text = key_text(change.key)
        parked = at.parked.parked(text)
        both = [(PARKED, parked)] if parked is not None else []
        both += [(DROPPED, one) for one in at.parked.dropped(text)]
        result.moves += [Move(kind, held) for kind, held in both if held.version <= change.version]


def _image(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _text(image: object) -> str | None:
    return None if image is None else bytes(image).decode(errors="replace")  # type: ignore[call-overload]

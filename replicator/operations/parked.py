"""Lists, retries and discards parked items. A retry keeps the change's version, so the guard protects newer ones.

A concurrent run changes the same entries. Both compare revisions: a command that loses reports it, a run that loses
reads the entries again.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

from msgspec import structs

from replicator.batch import Batch, Delete, Outcome, Part, Upsert, Write, outcome_counts
from replicator.change import Change
from replicator.checkpoints.contract import Checkpoints
from replicator.errors import ConfigError, Fenced, Unfinished
from replicator.hooks.hook import DocumentMapping, Poison
from replicator.items.attributes import Malformed
from replicator.items.item import Item
from replicator.key import Key
from replicator.operations.scanned import SourceItems, is_scanned, is_superseded
from replicator.pipeline.compaction import run_writes
from replicator.pipeline.parked import DROPPED, PARKED, RETRIED, Held, held, item_of
from replicator.pipeline.past import history
from replicator.pipeline.progress import HEARTBEAT_TIMEOUT
from replicator.pipeline.stages import FOLLOWING, SCANNING
from replicator.state import (
    Counts,
    Dropped,
    Entry,
    Heartbeat,
    Owner,
    Parked,
    PipelineState,
    Place,
    Retried,
    Save,
    decode,
    decode_dropped,
    encode,
)
from replicator.target.contract import AppliesLate, Target, Transactional, Unguarded
from replicator.target.in_doubt import is_late
from replicator.version import epoch_of, version

TRIES = 5  # for an item that a run keeps changing
FEW = 100  # up to this many items are read one by one instead of by reading all
CHANGED = "a run has changed it in the meantime; look at it again"
CHECK_INTERVAL = 5.0  # seconds for which a retry trusts that no run is alive
BUSY = "a run keeps changing it; try again"
OVERTAKEN = (
    "a run changed it while this command was suspended, so the parked change may have been stored after the newer one: "
    "compare the item in the target with its source; its next change replaces it"
)
GONE = "a run stored a later change of it, or another command retried or dropped it; this command changed nothing"
SUPERSEDED = "it has changed in the source since, and what the stream brings of it is newer"


@dataclass(frozen=True, slots=True)
class ParkedItem:
    """An item's parked entry, as read. ``dropped``: the item's entries of that kind when it was listed."""

    item: str
    id: str
    revision: int
    entry: Parked
    dropped: tuple[Held, ...] = ()

    @property
    def changes(self) -> Mapping[str, int]:
        """The number of parked changes, by the source that counts them."""
        return self.entry.changes or {self.entry.source: 1}

    @property
    def removal(self) -> Save:
        """The save that removes the entry, unless it changed since it was read."""
        return Save(PARKED, self.id, self.revision, None)

    @property
    def leaves(self) -> tuple[Place, ...] | None:
        """The documents that the item may have by any of its entries; None for one document per item."""
        known = self.entry.leaves
        if known is None and not self.dropped:
            return None
        return tuple(sorted({*(known or ()), *(place for one in self.dropped for place in one.leaves)}))

    @property
    def bases(self) -> list[str]:
        """The images that the item's entries keep, because documents of them may exist."""
        return [base for base in (self.entry.base, *(one.base for one in self.dropped)) if base is not None]

    def discarded(self, pipeline: PipelineState | None) -> Batch:
        """The batch that discards the parked changes, which then count as filtered.

        It leaves an entry where the item may have documents of which only that tells, or where a scanned page or a
        sweep may follow in this epoch: these leave the item's documents as they are.
        """
        parts = [Part(source, (), Counts(parked=-n, filtered=n)) for source, n in self.changes.items()]
        left = self.leaves
        settled = pipeline is not None and pipeline.stage == FOLLOWING and not pipeline.resync
        saves = [] if left is None and settled else self.beside(left or (), discarded=self.entry.key)
        return Batch(parts, [self.removal, *saves])

    def superseded(self) -> Batch:
        """The batch that takes the entry away because the stream has something newer, which counts in its place."""
        parts = [Part(source, (), Counts(parked=-n)) for source, n in self.changes.items()]
        left = self.leaves or ()
        return Batch(parts, [self.removal, *(self.beside(left) if left or self.entry.base is not None else [])])

    def beside(self, leaves: Sequence[Place], discarded: Key = ()) -> list[Save]:
        """The saves that list these in one dropped entry, with the parked one's image. Others that have one stay: an
        entry holds only one.
        """
        left = self.left(leaves, self.entry.base, discarded)
        return distinct([*(gone(one) for one in self.dropped if one.base is None), left])

    def left(self, leaves: Sequence[Place], base: str | None = None, discarded: Key = ()) -> Save:
        """The save that lists what the item's next change must delete besides the documents of its old image."""
        return Save(DROPPED, self.id, None, encode(Dropped(tuple(leaves), base, discarded)))


def gone(dropped: Held) -> Save:
    """The save that removes a dropped entry, unless it changed since it was read."""
    return Save(DROPPED, dropped.id, dropped.revision, None)


def distinct(saves: Sequence[Save]) -> list[Save]:
    """The last save of each entry: a batch saves an entry once."""
    return list({(save.kind, save.id): save for save in saves}.values())


class ListedItems:
    """The items parked at construction: all, or those whose key texts are ``items``.

    Iteration reads them with their images, a few in memory at a time. Revisions are those at construction, so an entry
    that changes before its turn cannot be modified by mistake. An item that was parked again meanwhile is returned in
    its new state; one that was first parked later is not returned. Afterwards ``unread`` has the items that changed
    before each attempt to read them, and ``gone`` those that were not parked any more.
    """

    def __init__(self, checkpoints: Checkpoints, items: Collection[str] | None = None) -> None:
        self._checkpoints = checkpoints
        self._listing = _Listing(checkpoints, items)
        self._all = items is None
        self.unread: set[str] = set()
        self.gone: set[str] = set()

    def __len__(self) -> int:
        return len(self._listing.items)

    def __contains__(self, item: object) -> bool:
        return item in self._listing.items

    def __iter__(self) -> Iterator[ParkedItem]:
        listing, self.unread = self._listing, set(self._listing.items)
        for attempt in range(TRIES):
            if attempt > 0 and self.unread:
                listing = _Listing(self._checkpoints, self.unread)
                self.gone |= self.unread - listing.items  # healed, retried or discarded
                self.unread &= listing.items
            if not self.unread:
                return
            yield from self._read(listing, everything=self._all and attempt == 0)

    def _read(self, listing: _Listing, *, everything: bool) -> Iterator[ParkedItem]:
        for id, entry in self._entries(everything=everything):
            item = item_of(id)
            if id in listing.revisions or item in self.unread:
                self.unread.discard(item)
                revision = listing.revisions.get(id, 1)  # parked again since: an entry with a new id
                yield ParkedItem(item, id, revision, entry, tuple(listing.dropped.get(item, ())))

    def _entries(self, *, everything: bool) -> Iterator[tuple[str, Parked]]:
        if everything or len(self.unread) > FEW:
            yield from self._checkpoints.parked()
        else:
            for item in sorted(self.unread):
                yield from self._checkpoints.parked(item)


class _Listing:
    """The parked entries of these ``items`` (None: of all), without their images, and the dropped ones beside them."""

    def __init__(self, checkpoints: Checkpoints, items: Collection[str] | None) -> None:
        wanted = [e for e in checkpoints.read().entries if items is None or item_of(e.id) in items]
        self.revisions = {e.id: e.revision for e in wanted if e.kind == PARKED}
        self.items = set(map(item_of, self.revisions))
        self.dropped: dict[str, list[Held]] = {}
        for e in wanted:
            if e.kind == DROPPED and item_of(e.id) in self.items:
                one = held(e.id, e.revision, decode_dropped(e.id, e.text))
                self.dropped.setdefault(item_of(e.id), []).append(one)


def parked_items(checkpoints: Checkpoints, item: str | None = None) -> Iterator[ParkedItem]:
    """Iterate over all parked items, or the one whose key text is ``item``. Listed now, read lazily."""
    return iter(ListedItems(checkpoints, None if item is None else [item]))


def pipeline_of(checkpoints: Checkpoints) -> PipelineState:
    """The pipeline's state; ConfigError if it has never run."""
    state = checkpoints.pipeline()
    if state is None:
        raise ConfigError("this pipeline has not started yet, so nothing is parked")
    return state


def _read_again(changed: int, pipeline: PipelineState) -> str:
    """Why a change of this version is not retried: a scan or an export brings the item; empty if none does."""
    if epoch_of(changed) < pipeline.complete:
        if pipeline.stage == SCANNING and not pipeline.partial:
            return "a resync is in progress, which reads the item again: nothing is left to do"
        return "parked before the last resync, which has rescanned the item; drop it"
    repair = pipeline.repair
    if repair is not None and not repair.done and changed == version(pipeline.epoch, 0):
        return "a gap is being repaired from exports, which may have a newer change of the item: retry it afterwards"
    return ""


def retry(
    parked: ParkedItem,
    mapping: DocumentMapping,
    target: Target,
    checkpoints: Checkpoints,
    now: Callable[[], float] = time.time,
    source: SourceItems | None = None,
) -> str:
    """Retry an item's parked changes. Returns "" if they were stored, otherwise why not.

    Rejected changes stay parked unchanged. ``now``: wall clock. The pipeline's state is read for each item: while a
    command goes through thousands, another epoch may begin, or another hook be accepted. ``source``: asked about
    changes that a scan found, where documents have their own ids, and about all where the target compares no versions.
    """
    pipeline = pipeline_of(checkpoints)
    if reason := _read_again(parked.entry.version, pipeline):
        return reason
    try:
        if is_unguarded(target) or (mapping.own_ids and is_scanned(parked.entry)):
            assert source is not None, "only the source can tell whether what a scan found is still the newest"
            if is_superseded(parked.entry, source):
                return _unless_changed(partial(_superseded, parked, checkpoints)) or SUPERSEDED
    except Malformed as e:
        return str(e)
    if isinstance(target, AppliesLate):
        target.in_doubt.begin()  # a run's request may still be applied: deletes must leave tombstones
    try:
        batch = retried(parked, mapping, pipeline)
    except (Poison, Malformed) as e:
        return str(e) if _is_current(parked, checkpoints) else CHANGED
    if any(isinstance(write, Delete) for part in batch.parts for write in part.writes):  # possibly of the last document
        batch = replace(batch, saves=[*batch.saves, _told(parked)])
    if isinstance(target, Transactional):
        return _unless_changed(partial(target.write, batch))
    return _unless_changed(partial(_in_two_places, parked, batch, target, checkpoints, now))


def _is_current(parked: ParkedItem, checkpoints: Checkpoints) -> bool:
    """Whether the entry is as it was read: a run may have settled the item while the hook was called."""
    return any(entry == parked.entry for _, entry in checkpoints.parked(parked.id, {parked.id}))


def is_unguarded(target: Target) -> bool:
    """Whether a retry would replace whatever the target has."""
    return isinstance(target, Unguarded) and target.unguarded


class NoRun:
    """Checks that no run is alive, before each retry into a target where the last write wins.

    A run that did not stop cleanly is given HEARTBEAT_TIMEOUT to change its heartbeat; clocks are not compared. At most
    one check per CHECK_INTERVAL, because it reads all entries, and a command may retry thousands of items.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        wait: Callable[[float], object] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._checkpoints, self._wait, self._monotonic = checkpoints, wait, monotonic
        self._seen: Mapping[str, Entry] | None = None
        self._checked_at = -math.inf

    def check(self) -> None:
        """ConfigError if a run is alive."""
        if self._monotonic() - self._checked_at < CHECK_INTERVAL:
            return
        now = self._signs()
        if self._seen is None and not _ended(now):
            self._seen = now
            self._wait(HEARTBEAT_TIMEOUT)
            now = self._signs()
        if self._seen not in (None, now):
            raise ConfigError(
                "a run of this pipeline is up, and this target compares no versions, so a retry could replace what the "
                "run stores. The remaining items were not changed. Stop the run, retry, and start it again"
            )
        self._seen, self._checked_at = now, self._monotonic()

    def _signs(self) -> Mapping[str, Entry]:
        """The entries that change as long as a run is alive."""
        return {e.kind: e for e in self._checkpoints.read().entries if e.kind in ("pulse", "owner") and not e.id}


def _ended(signs: Mapping[str, Entry]) -> bool:
    """Whether the last run stopped cleanly, or there was none."""
    found = {kind: decode(e.kind, e.id, e.text) for kind, e in signs.items()}
    heartbeat, owner = found.get("pulse"), found.get("owner")
    if not isinstance(owner, Owner):
        return True
    return isinstance(heartbeat, Heartbeat) and heartbeat.phase == "stopped" and heartbeat.who == owner.who


def void_verified(checkpoints: Checkpoints) -> None:
    """Forget all verify passes: they prove nothing of items whose changes are about to be discarded.

    A pass that is in progress notices, and notes itself no more.
    """
    if passes := [e.id for e in checkpoints.read().entries if e.kind == "verified"]:
        checkpoints.save([Save("verified", id, None, None) for id in passes])


def drop(parked: ParkedItem, checkpoints: Checkpoints) -> str:
    """Discard an item's parked changes. Returns "" if they are gone, otherwise why not."""
    batch = parked.discarded(checkpoints.pipeline())
    return _unless_changed(partial(_saved, checkpoints, batch, Outcome()))


def _superseded(parked: ParkedItem, checkpoints: Checkpoints) -> Outcome:
    return _saved(checkpoints, parked.superseded(), Outcome(superseded=parked.changes))


def _unless_changed(act: Callable[[], Outcome]) -> str:
    try:
        refusals = act().rejections
    except Fenced as e:  # the entry changed: a run parked a newer change, or healed the item
        return OVERTAKEN if isinstance(e, Overtaken) else CHANGED
    return "; ".join(dict.fromkeys(r.reason for r in refusals))


class Overtaken(Fenced):
    """A run changed the item, and the retry wrote so late that no tombstone may have rejected it."""


def _in_two_places(
    parked: ParkedItem, batch: Batch, target: Target, checkpoints: Checkpoints, now: Callable[[], float]
) -> Outcome:
    """Store a retry when entries and documents are in different stores: first record which documents will exist.

    A run that changes the item meanwhile then knows what to delete, and so does the next retry if this one is killed.
    The next run learns that a write may be in doubt, and that deletes may have left tombstones.
    """
    written = {(w.table, w.id[-1]) for part in batch.parts for w in part.writes}
    note, outcome = _Note(parked, written, checkpoints, now), None
    while outcome is None:
        note.save()
        if not note.is_late:
            with contextlib.suppress(Unfinished):  # took so long that a run may have changed the item
                outcome = note.beside(partial(target.write, batch))
    return outcome if outcome.rejections else note.end(batch, outcome)


class _Note:
    """Tells runs, before each write of a retry, that the item may get the ``written`` documents.

    Runs keep tombstones for a limited time after the note. If the command is delayed after saving it (SIGSTOP, a
    suspended machine), the note is saved again: Overtaken if a run changed the item meanwhile and a write was sent.
    """

    def __init__(
        self, parked: ParkedItem, written: Collection[Place], checkpoints: Checkpoints, now: Callable[[], float]
    ) -> None:
        known = parked.leaves
        self._parked, self._checkpoints, self._now = parked, checkpoints, now
        self._leaves = None if known is None else tuple(sorted({*written, *known}))
        self._revision, self._saved_at, self._sent = parked.revision, 0.0, False

    @property
    def is_late(self) -> bool:
        return is_late(self._saved_at, self._now())

    def save(self) -> None:
        came_late, self._saved_at = self._sent and self.is_late, self._now()
        noted = encode(replace(self._parked.entry, leaves=self._leaves))
        try:
            self._checkpoints.save([Save(PARKED, self._parked.id, self._revision, noted), _told(self._parked)])
        except Fenced:
            if came_late:
                self._overtaken()
            raise
        self._revision += 1

    def beside(self, write: Callable[[], Outcome]) -> Outcome:
        """Write. If that was late and incomplete, check that the entry still exists."""
        self._sent = True
        try:
            outcome = write()
        except Unfinished:
            raise
        except Exception:
            if self.is_late:
                self.save()
            raise
        except BaseException:  # Ctrl-C: it ends all the same
            if self.is_late:
                with contextlib.suppress(Fenced):
                    self.save()
            raise
        if outcome.rejections and self.is_late:
            self.save()
        return outcome

    def end(self, batch: Batch, outcome: Outcome) -> Outcome:
        """Remove the entry: everything is stored."""
        late, removal = self.is_late, structs.replace(self._parked.removal, expected=self._revision)
        others = batch.saves[1:]
        if late and self._leaves is not None and all(save.kind != DROPPED or save.text is None for save in others):
            left = self._parked.left(self._leaves)  # another hook may have been accepted meanwhile
            others = distinct([*others, left])
        try:
            return _saved(self._checkpoints, replace(batch, saves=[removal, *others]), outcome)
        except Fenced:
            if late:
                self._overtaken()
            self._checkpoints.save([_told(self._parked)])  # a run may have seen the note long before the write
            raise

    def _overtaken(self) -> NoReturn:
        """Reopen the runs' in-doubt window, and let the item's next change delete what was written."""
        left = [] if self._leaves is None else [self._parked.left(self._leaves)]
        self._checkpoints.save([_told(self._parked), *left])
        raise Overtaken from None


def _told(parked: ParkedItem) -> Save:
    """The save that tells runs of which epoch a command wrote to the target; its revision increases each time."""
    version = parked.entry.version
    return Save(RETRIED, str(epoch_of(version)), None, encode(Retried(version)))


def _saved(checkpoints: Checkpoints, batch: Batch, outcome: Outcome) -> Outcome:
    checkpoints.save(batch.saves, outcome_counts(batch, outcome))
    return outcome


def retried(parked: ParkedItem, mapping: DocumentMapping, pipeline: PipelineState) -> Batch:
    """The batch that stores the parked changes; its first save removes the entry. Poison if the hook still fails.

    A hook other than the pipeline's may produce documents that the pipeline's hook does not: they are recorded. And the
    images of which the pipeline's hook may have stored others are kept.
    """
    p = parked.entry
    change = Change(p.key, p.version, _bytes(p.new), _bytes(p.old), p.sequence, p.created)
    writes = _own(change, parked, mapping) if mapping.own_ids else list(_latest(change, mapping))
    saves = [parked.removal, *map(gone, parked.dropped)]
    if mapping.own_ids and mapping.hook is not None and mapping.hook.fingerprint != pipeline.hook:
        saves = [parked.removal, *parked.beside([(w.table, w.id[-1]) for w in writes if isinstance(w, Upsert)])]
    # A scanned item may have been deleted before the retry: then its tombstone must be respected.
    keeps = is_scanned(p) or pipeline.stage != FOLLOWING
    parts = list(_parts(parked, writes))
    if mapping.histories and p.created is not None:
        parts.append(Part(p.source, history=list(history([change], mapping, p.created))))
    return Batch(parts, distinct(saves), tombstones=keeps, replaces_same=True)


def _own(change: Change, parked: ParkedItem, mapping: DocumentMapping) -> list[Write]:
    """The item's documents, and deletes of all it may have had. Poison if the hook fails on an earlier image."""
    bases = [Change(change.key, 0, _bytes(base)) for base in parked.bases]
    for base in bases:
        run_writes([base], mapping)
    return run_writes([*bases, change], mapping, parked.leaves or ())


def _latest(change: Change, mapping: DocumentMapping) -> Iterator[Write]:
    table, hook = mapping.tables[0], mapping.hook
    item = None if change.new is None else Item(bytes(change.new))
    body: Mapping[str, object] | None = item if hook is None or item is None else hook.one(item)
    if body is None:
        yield Delete(table, change.key, change.version, change.key)
    else:
        yield Upsert(table, change.key, body, change.version, change.key)


def _parts(parked: ParkedItem, writes: Sequence[Write]) -> Iterator[Part]:
    """Moves the changes out of their sources' parked counts. The first write carries the weight of the newest."""
    for source, n in parked.changes.items():
        if source == parked.entry.source and writes:
            first = structs.replace(writes[0], weight=n)
            yield Part(source, [first, *writes[1:]], Counts(parked=-n))
        else:
            yield Part(source, (), Counts(parked=-n, applied=n) if writes else Counts(parked=-n, filtered=n))


def _bytes(image: str | None) -> bytes | None:
    return None if image is None else image.encode()

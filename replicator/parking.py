"""Parked changes, and how one is tried again: at its own version, so the target's guard keeps it safe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import msgspec

from replicator.attributes import Malformed
from replicator.batch import Batch, Counts, Delete, Outcome, Part, Upsert, Write, outcome_counts
from replicator.change import Change
from replicator.checkpoints import Checkpoints, Parked, PipelineState, Save, decode
from replicator.compaction import Filing, item_of, run_writes
from replicator.errors import ConfigError, Fenced
from replicator.item import Item
from replicator.position import epoch_of
from replicator.target import Lingering, Target, Transactional
from replicator.transform import Poison

_CHANGED = "a run has changed it meanwhile; look at it again"


@dataclass(frozen=True, slots=True)
class ParkedItem:
    """All parked changes of one item, oldest first, each with its entry's id and revision."""

    item: str
    entries: Sequence[tuple[str, int, Parked]]

    @property
    def first(self) -> Parked:
        return self.entries[0][2]

    def removals(self) -> list[Save]:
        """What takes the entries away, unless one changed since it was read."""
        return [Save("parked", id, revision, None) for id, revision, _ in self.entries]

    def discarded(self) -> Batch:
        """The batch that gives the item's parked changes up: they count as dropped from then on."""
        return Batch([Part(p.source, (), Counts(parked=-1, dropped=1)) for _, _, p in self.entries], self.removals())


def parked_items(checkpoints: Checkpoints, item: str = "") -> list[ParkedItem]:
    """The parked items with their images, all of them or the one whose key text is ``item``."""
    revisions = {e.id: e.revision for e in checkpoints.read().entries if e.kind == "parked"}
    found = [(id, revisions[id], p) for id, p in checkpoints.parked(item) if id in revisions]
    groups = groupby(sorted(found, key=lambda f: (item_of(f[0]), f[2].version)), key=lambda f: item_of(f[0]))
    return [ParkedItem(name, list(entries)) for name, entries in groups if item in ("", name)]


def pipeline_of(checkpoints: Checkpoints) -> PipelineState:
    """What the pipeline is made of; ConfigError if it never ran."""
    for entry in checkpoints.read().entries:
        if entry.kind == "pipeline":
            found = decode(entry.kind, entry.id, entry.text)
            assert isinstance(found, PipelineState)
            return found
    raise ConfigError("this pipeline has never run: nothing is parked")


def retry(parked: ParkedItem, filing: Filing, target: Target, checkpoints: Checkpoints, pipeline: PipelineState) -> str:
    """Try an item's parked changes again; what became of them: "" if they are stored, else why not.

    What is still refused stays parked as it is.
    """
    if epoch_of(parked.entries[-1][2].version) < pipeline.epoch:
        return "parked before the last resync, which has read the item anew; drop it"
    try:
        batch = retried(parked, filing, tombstones=pipeline.stage != "following")
    except (Poison, Malformed) as e:
        return str(e)
    if isinstance(target, Lingering):
        target.doubt.begin()  # a run's lost request may still be on its way: a delete must leave a tombstone
    if not isinstance(target, Transactional) and not _still_there(parked, checkpoints):
        return _CHANGED  # asked just before: what a run removes by healing it is remembered for some minutes
    return _unless_changed(partial(_written, target, checkpoints, batch))


def drop(parked: ParkedItem, checkpoints: Checkpoints) -> str:
    """Give an item's parked changes up; "" if they are gone, else why not."""
    return _unless_changed(partial(_saved, checkpoints, parked.discarded(), Outcome()))


def _unless_changed(act: Callable[[], Outcome]) -> str:
    try:
        refusals = act().rejections
    except Fenced:  # the entries moved: a run parked something newer, or healed the item
        return _CHANGED
    return "; ".join(dict.fromkeys(r.reason for r in refusals))


def _still_there(parked: ParkedItem, checkpoints: Checkpoints) -> bool:
    there = dict(checkpoints.parked(parked.item))
    return all(there.get(id) == p for id, _, p in parked.entries)


def _written(target: Target, checkpoints: Checkpoints, batch: Batch) -> Outcome:
    outcome = target.write(batch)
    if isinstance(target, Transactional) or outcome.rejections:
        return outcome
    return _saved(checkpoints, batch, outcome)


def _saved(checkpoints: Checkpoints, batch: Batch, outcome: Outcome) -> Outcome:
    checkpoints.save(batch.saves, outcome_counts(batch, outcome))
    return outcome


def retried(parked: ParkedItem, filing: Filing, *, tombstones: bool) -> Batch:
    """The batch that stores what was parked and takes the entries away. Poison if the hook still fails."""
    changes = [Change(p.key, p.version, _bytes(p.new), _bytes(p.old), p.sequence) for _, _, p in parked.entries]
    writes = run_writes(changes, filing) if filing.own_ids else list(_latest(changes[-1], filing))
    return Batch(list(_parts(parked, writes)), parked.removals(), tombstones)


def _latest(change: Change, filing: Filing) -> Iterator[Write]:
    table, hook = filing.tables[0], filing.hook
    item = None if change.new is None else Item(bytes(change.new))
    body: Mapping[str, object] | None = item if hook is None or item is None else hook.one(item)
    if body is None:
        yield Delete(table, change.key, change.version, change.key)
    else:
        yield Upsert(table, change.key, body, change.version, change.key)


def _parts(parked: ParkedItem, writes: Sequence[Write]) -> Iterator[Part]:
    """Each change leaves the parked ones in its own source's counts; the last one's first write answers for it."""
    *earlier, (_, _, last) = parked.entries
    gone = Counts(parked=-1, applied=1) if writes else Counts(parked=-1, dropped=1)
    yield from (Part(p.source, (), gone) for _, _, p in earlier)
    if not writes:
        yield Part(last.source, (), gone)
    else:
        yield Part(last.source, [msgspec.structs.replace(writes[0], weight=1), *writes[1:]], Counts(parked=-1))


def _bytes(image: str | None) -> bytes | None:
    return None if image is None else image.encode()

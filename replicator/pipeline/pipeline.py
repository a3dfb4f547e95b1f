"""The pure core: turns pages into batches and tracks what is stored. It does no I/O, never waits and reads no clock.

openings(), scans()   shards and segments that may be read now, and from where
accept(page)          a page of a shard
accept_scan(page)     a page of a scan segment
take(now)             the next batch: writes, plus the positions, cursors, gaps and parked changes that go with them
stored(batch, ...)    the batch is durable: only now do positions count, children open and stages change
refused(batch, ...)   nothing of the batch is stored: its changes are taken again, the refused ones as parked
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from msgspec import structs

from replicator.batch import Batch, Delete, Outcome, Part, Rejection, outcome_counts
from replicator.change import Listing, Page, ScanPage
from replicator.checkpoints.contract import Claimed
from replicator.errors import GapFound
from replicator.hooks.hook import DocumentMapping
from replicator.hooks.time_limit import HookInterrupted
from replicator.identity import UNKNOWN, Definition
from replicator.key import Key
from replicator.marks import Marks
from replicator.pipeline import gap_repair, lineage, stages
from replicator.pipeline.advance import scanned, streamed
from replicator.pipeline.batching import GivenUp, PageBuffer, divided
from replicator.pipeline.checkpoint_view import CheckpointView, Undo, gap_id
from replicator.pipeline.compaction import BatchContext, Refused
from replicator.pipeline.coordination import COORDINATOR, Workers, inherited_window, taking_away
from replicator.pipeline.discovery import Discovery, News
from replicator.pipeline.parked import DROPPED, PARKED, Move, ParkedItems, settled
from replicator.pipeline.past import known_before, known_through, unsettled_from
from replicator.state import (
    LONGEST_IN_DOUBT,
    Counts,
    Entry,
    Gap,
    Heartbeat,
    HistorySpan,
    Parked,
    ParkedItem,
    PipelineState,
    Save,
    SegmentState,
    ShardState,
    Slot,
    Spared,
    decode,
    encode,
)
from replicator.version import LAST_EPOCH

T = TypeVar("T")
Pending = tuple[str, str, object | None]  # kind, id, value (None: remove)


@dataclass(slots=True)
class _Taken:
    """A batch in flight, with what is needed to undo it."""

    batch: Batch = field(default_factory=Batch)
    pending: list[Pending] = field(default_factory=list)
    values: list[Pending] = field(default_factory=list)
    saves: dict[tuple[str, str], Save] = field(default_factory=dict)
    undos: list[Undo] = field(default_factory=list)
    pages: list[tuple[str, list[Page | ScanPage]]] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)


def _keys(pages: Sequence[Page | ScanPage]) -> set[Key]:
    """The items of a source's pages. No other source of a batch may have them: document ids are distinct there."""
    keys: set[Key] = set()
    for page in pages:
        keys.update([key for key, _ in page.items] if isinstance(page, ScanPage) else [r.key for r in page.records])
    return keys


class Pipeline:
    """The state of one pipeline, starting from the checkpoint entries that its run ``claimed`` at ``now``.

    ``pages``: the buffer that the fetcher fills and batches are cut from. ``parked``: see ``parked.known``. ``marks``:
    of the opposite pipeline, if there is one. ``slot``: the part of the shards and segments that this worker claimed
    (``Slotted.claim_slot``); "" for a run that has all of them. ``worker``: its ``Owner.run``. A worker knows the other
    slots' shards as they were stored when it claimed its own, and is told of later ones (``learn``). Listings, epochs
    and stages are not its work. ``workers``: of the coordinator of a run that has several: it lists and decides, and
    reads no shard or segment. ``keeps_floors``: the pipeline's state notes floors, for repairs of gaps from exports.
    Not thread-safe.
    """

    def __init__(
        self,
        mapping: DocumentMapping,
        claimed: Claimed,
        *,
        pages: PageBuffer | None = None,
        parked: ParkedItems | None = None,
        ignore_expired: bool = False,
        marks: Marks | None = None,
        slot: str = "",
        worker: str = "",
        workers: Workers | None = None,
        now: float = math.inf,
        keeps_floors: bool = False,
    ) -> None:
        self.mapping = mapping
        self.keeps_floors = keeps_floors
        self.slot, self.worker = slot, worker
        self.workers = workers
        self.acknowledged: int | None = None  # Slot.begun, as stored by this worker
        self.marks = marks
        self.ignore_expired = ignore_expired
        self.view = CheckpointView(claimed)
        self.view.discard_times_after(now)
        self.total = sum(claimed.counts.values(), Counts())  # of everything stored
        self.parked = parked if parked is not None else ParkedItems.among(claimed.entries)
        heartbeat = self.view.heartbeat
        self.listing_stored = heartbeat.listed if heartbeat is not None else None  # time of the last stored listing
        self.discovery = resumed_discovery(self.view)
        self.shards: dict[str, ShardState] = dict(self.view.shards)  # as stored
        self.segments: dict[str, SegmentState] = dict(self.view.segments)
        self.state: PipelineState | None = self.view.pipeline
        self._readable: set[str] | None = None  # None: recompute, the lineage changed
        self._childless: set[str] | None = None
        self._opened: set[str] = set()
        self.pages = pages if pages is not None else PageBuffer()
        self._idle: dict[str, Page] = {}  # the last empty page of each shard without buffered pages
        self._heartbeat: Heartbeat | None = None
        self._pending: list[Pending] = []
        self._in_flight: deque[_Taken] = deque()
        self._refused: dict[Refused, str] = {}
        self._unmarkable: set[Refused] = set()  # their deletes go without the last document, which was refused
        self._reasons: Counter[str] = Counter()  # of changes parked since the last parked_now()

    # Reading

    def openings(self) -> Iterator[tuple[str, ShardState]]:
        """Shards to start reading, with their positions. Each shard is returned once."""
        if self._readable is None:
            self._readable = {id for id in lineage.readable(self.shards) if self._owns(self.shards[id])}
        for shard in sorted(self._readable - self._opened):
            self._opened.add(shard)
            yield shard, stages.start(self.shards[shard], self.shards)

    @property
    def closed(self) -> set[str]:
        """Shards that are known to be closed: listed so, or with a child, which is known before the first listing.

        A worker sees no listings.
        """
        return self.discovery.closed | {state.parent for state in self.shards.values() if state.parent is not None}

    def scans(self) -> Iterator[tuple[int, SegmentState]]:
        """Segments to start scanning; none before the epoch's shard positions are stored, and its tables opened."""
        if self.state is None or self.state.stage != stages.SCANNING or self.state.opening:
            return
        for id, segment in list(self.segments.items()):
            if not segment.ended and f"segment:{id}" not in self._opened and self._owns(segment):
                self._opened.add(f"segment:{id}")
                yield int(id), segment

    def _owns(self, state: ShardState | SegmentState) -> bool:
        return self.workers is None and (not self.slot or state.slot == self.slot)

    @property
    def childless(self) -> set[str]:
        """Ended shards whose children are not known yet."""
        if self._childless is None:
            self._childless = lineage.childless(self.shards)
        return self._childless

    # Input

    def begin(
        self,
        state: PipelineState,
        listing: Listing,
        segments: Mapping[str, SegmentState],
        definition: Definition = UNKNOWN,
    ) -> None:
        """Start an epoch. The positions of all shards are stored before anything is read.

        They are those of the listing, or of the time of the export that ``state`` names.
        """
        self._forget_reading()
        listed, since = lineage.merged(listing.shards), None if state.export is None else state.export.at
        fresh = stages.first_shards(listed, listing.at) if since is None else stages.shards_since(listed, since)
        self._pending += [("shard", id, None) for id in self.view.shards if id not in fresh]
        self._pending += [("segment", id, None) for id in self.view.segments if id not in segments]
        self._pending += [("spared", id, None) for id in self.view.spared]  # the next sweep determines them again
        if state.repair is None:  # otherwise nothing is swept, and the repair looks them up
            self._pending += [(DROPPED, held.id, None) for held in self.parked.all_dropped()]
        self._pending += [("item", id, None) for id in self.view.items]
        self._pending += [("shard", id, s) for id, s in fresh.items()]
        self._pending += [("segment", id, s) for id, s in segments.items()]
        self._pending.append(("pipeline", "", state))
        self._pending.append(("definition", "", definition))
        self._pending += self._history_of(state)
        self.discovery = Discovery(listed=_bound(listing.at, since), needed_since=since)
        self.state = None  # nothing may be read until this is stored
        self.shards, self.segments = {}, {}
        self._readable = self._childless = None

    def _history_of(self, state: PipelineState) -> list[Pending]:
        """The entries that say what the tables' history knows once this epoch begins."""
        if not self.mapping.histories:
            return [("history", epoch, None) for epoch in self.view.histories]
        seen, before, known = self.seen(), self.view.pipeline, None
        earlier = self.view.histories.get(str(0 if before is None else before.complete))
        if earlier is not None:
            through = known_through(seen, self.childless, self.view.gaps.values(), before)
            known = known_before(earlier, through, unsettled_from(before, seen, self.childless))
        return [("history", str(state.epoch), HistorySpan(state.began, known, tuple(sorted(self.mapping.histories))))]

    def rescan(self, state: PipelineState, segments: Mapping[str, SegmentState]) -> None:
        """Start an epoch that rescans chosen items, and end the request for it. Shards are read on as they are.

        No batch may be in flight: it would have the versions of the earlier epoch. Nothing is written in the new epoch
        before its tables are opened; the next batch has only these entries.
        """
        assert not self._in_flight, "collect or return the batches in flight before an epoch begins"
        self._opened -= {source for source in self._opened if source.startswith("segment:")}
        self._pending += [("segment", id, None) for id in self.view.segments if id not in segments]
        self._pending += [("segment", id, segment) for id, segment in segments.items()]
        self._pending += [("pipeline", "", state), ("request", "", None)]

    def read_on(self, state: PipelineState, segments: Mapping[str, SegmentState]) -> None:
        """Read other segments in the same epoch: the next export, or items to look up. The earlier ones are stored."""
        assert not self._in_flight, "what is in flight may be of the earlier segments"
        self._opened -= {source for source in self._opened if source.startswith("segment:")}
        self._pending += [("segment", id, None) for id in self.view.segments if id not in segments]
        self._pending += [("segment", id, segment) for id, segment in segments.items()]
        self._pending.append(("pipeline", "", state))

    def acknowledge(
        self,
        *,
        in_doubt: float = 0.0,
        lingers: float | None = LONGEST_IN_DOUBT,
        begun: int = 0,
        until: float | None = None,
    ) -> None:
        """Store with the next batch that this worker knows the pipeline's epoch and stage, and its in-doubt window.

        A coordinator waits for this: no batch of an earlier epoch or stage can follow it. Nothing is written before the
        first time, so that a slot is known to be idle, or to have a worker that says what it has sent. ``until``: the
        slot rests from then on, see ``Slot``.
        """
        assert self.state is not None
        retried, worker = self.parked.retries.all, self.worker
        slot = Slot(self.state.epoch, self.state.stage, in_doubt, lingers, begun, retried, worker, until)
        self._pending.append(("slot", self.slot, slot))

    def learn(self, entries: Iterable[Entry]) -> None:
        """Entries as a coordinator has stored them: shards that it gave to this slot, their parents in other slots, and
        those slots.

        What this worker already owns only it has changed since, so there is nothing to learn of that.
        """
        assert self.slot, "a run that has all shards lists them itself"
        for entry in entries:
            if entry.kind == "slot" and entry.id != self.slot:
                self.view.learn(entry)
            elif entry.kind == "shard" and not self._has(entry.id):
                state = self.view.learn(entry)
                assert isinstance(state, ShardState)
                self.shards[entry.id] = state
        self._readable = self._childless = None

    def _has(self, shard: str) -> bool:
        known = self.view.shards.get(shard)
        return known is not None and self._owns(known)

    def unlearnt(self, entries: Iterable[Entry]) -> bool:
        """Whether there are shards of this slot among the entries that it does not have yet."""
        shards = {e.id: decode("shard", e.id, e.text) for e in entries if e.kind == "shard" and not self._has(e.id)}
        return any(isinstance(state, ShardState) and state.slot == self.slot for state in shards.values())

    def inherited_window(self, shards: Iterable[str]) -> float:
        """Seconds for which writes of the workers that had the parents of this slot's ``shards`` may be applied."""
        states = self.view.shards
        own = [id for id in shards if self._has(id) and not states[id].ended]
        return max((inherited_window(states[id], states, self.view.slots) for id in own), default=0.0)

    def end_slots(self, slots: Mapping[str, Slot]) -> None:
        """Store with the next batch that this run took over the in-doubt windows of these slots' workers."""
        self._pending += [
            ("slot", id, replace(slot, in_doubt=0.0, lingers=None, until=None)) for id, slot in slots.items()
        ]

    # Coordinating workers

    def give(self, shards: Mapping[str, ShardState], segments: Mapping[str, SegmentState]) -> None:
        """Store with the next batch which slots have these from now on."""
        self._pending += [("shard", id, state) for id, state in shards.items()]
        self._pending += [("segment", id, state) for id, state in segments.items()]

    def renew_slots(self, renewed: Slot, now: float) -> None:
        """Take the slots away with the next batch, and store what in-doubt window their workers must begin with: each
        may have got shards of others. Windows of slots that are no longer used are included in it.
        """
        assert self.workers is not None
        owner, used = replace(self.workers.coordinator, run="", started=now), self.workers.slots
        self._pending += [("slot", slot, renewed) for slot in used]
        self._pending += [("owner", slot, owner) for slot in used]
        stored = self.view.slots.items()
        self.end_slots({id: s for id, s in stored if id not in (*used, COORDINATOR) and s.is_left})

    def take_away(self, slots: Iterable[str], now: float) -> None:
        """Take the slots from their workers with the next batch: nothing that these send after that is stored."""
        assert self.workers is not None
        owner = replace(self.workers.coordinator, run="", started=now)
        self._pending += [("owner", slot, owner) for slot in sorted(slots)]

    def note_run(self, coordinator: str, revision: int, followed_by: str) -> None:
        """Store with the next batch that a ``coordinator`` of the run with this revision has given everything."""
        self._pending.append(("slot", coordinator, Slot(0, "", lingers=None, begun=revision, worker=followed_by)))

    def reread(self, claimed: Claimed) -> None:
        """Take over what is stored by now: workers change most of it. Nothing may be left to store."""
        nothing_left = not self._in_flight and not self._pending
        assert nothing_left, "store that first: it is based on what was stored before"
        self.view = CheckpointView(claimed, self.view)
        self.total = sum(claimed.counts.values(), Counts())
        self.shards, self.segments = dict(self.view.shards), dict(self.view.segments)
        self.state = self.view.pipeline
        self._readable = self._childless = None

    def abandon(self) -> Sequence[Pending]:
        """Give up what is not stored, because it is based on entries that a worker has changed. Returns the gaps."""
        self.give_back()
        gaps, self._pending = [p for p in self._pending if p[0] == "gap"], []
        return gaps

    def restore(self, gaps: Sequence[Pending]) -> None:
        """Store with the next batch gaps that were abandoned."""
        self._pending += gaps

    def end_request(self) -> None:
        """Remove the pending request with the next batch: the epoch that begins with it carries it out."""
        if self.view.request is not None:
            self._pending.append(("request", "", None))

    def request_changed(self, entry: Entry | None) -> None:
        """A command changed the request that a batch was to remove: it stays, and is looked at again.

        Nothing of that batch was stored; an epoch that it was to begin for the request is not begun either.
        """
        begun = next((v for kind, _, v in self._pending if kind == "pipeline" and isinstance(v, PipelineState)), None)
        if begun is not None and begun.opening:
            self._pending = [p for p in self._pending if p[0] not in ("pipeline", "segment")]
        self._pending = [p for p in self._pending if p[0] != "request"]
        self.view.reread_request(entry)

    def listed(self, listing: Listing) -> None:
        """Process a shard listing. GapFound if it shows that records are lost."""
        news = self.discovery.news({**self.view.shards, **self._pending_shards()}, listing)
        self._pending += [("shard", id, state) for id, state in news.shards.items()]
        self._pending += [("shard", id, None) for id in news.forgotten]
        settled = self._settled(news)
        for id in settled:  # its parent's ordinals go on in children that listings show later, also if nothing was read
            ended = replace(stages.start(self.shards[id], self.shards), ended=True, leaf=True)
            self._pending.append(("shard", id, ended))
        if self.workers is not None:  # which read the shard on, or have a child to read: they must learn of its end
            slots = {self.shards[id].slot for id in settled if not self.shards[id].ended}
            self.take_away(slots.intersection(self.workers.slots), listing.at)

    def _settled(self, news: News) -> list[str]:
        """Finished shards whose stored state is final: nothing of them or of their parents is buffered or in flight."""
        stored, view = self.shards, self.view.shards
        waiting = {id for id, state in stored.items() if not state.ended} - lineage.readable(stored)
        return [
            id
            for id in sorted(news.finished - waiting)
            if id in stored and stored[id] == view.get(id) and f"shard:{id}" not in self.pages
        ]

    def accept(self, page: Page) -> None:
        """Process a page of a shard. GapFound if it has records although the shard was considered gone."""
        if page.missing:
            self.discovery.not_found(page.shard)
            return
        self.discovery.read_from(page.shard)
        if self.gone(page.shard):
            self._check_gone(page)
        elif page.records or page.ended:
            for part in divided(page, self.view.shards[page.shard]) if self.pages.is_divided else (page,):
                self.pages.add(f"shard:{page.shard}", part)
            self._idle.pop(page.shard, None)  # it precedes the page, which may have records that are older than it says
        elif f"shard:{page.shard}" not in self.pages:
            self._idle[page.shard] = page

    def gone(self, shard: str) -> bool:
        """Whether the shard has ended without children, so that there is nothing more to read."""
        known = self.view.shards.get(shard)
        return known is not None and known.leaf

    def _check_gone(self, page: Page) -> None:
        if page.records:
            raise GapFound("the shard returns records although it was missing from listings and lookups", page.shard)

    def accept_scan(self, page: ScanPage) -> None:
        """Process a page of a scan segment."""
        if page.waiting_for is None:
            self.pages.add(f"segment:{page.segment}", page)

    def gap(self, gap: GapFound, now: float, since: float | None = None) -> None:
        """Record that records are lost. ``since``: see ``Gap``."""
        epoch = self.state.epoch if self.state is not None else 0
        taken = {*self.view.gaps, *(id for kind, id, _ in self._pending if kind == "gap")}
        id = gap_id(now, self.slot, taken)
        found = Gap(gap.reason, now, epoch, gap.shard, gap.sequence, since=since, by_hand=gap.by_hand)
        self._pending.append(("gap", id, found))

    def heartbeat(self, heartbeat: Heartbeat) -> None:
        """Store a heartbeat with the next batch, along with the progress of idle shards."""
        self._heartbeat = heartbeat

    def cleanup_done(self, now: float) -> None:
        """Enter the next stage after a sweep or a purge. Entering the last stage marks earlier gaps as repaired."""
        assert self.state is not None
        after = stages.after_cleanup(self.state)
        self._pending.append(("pipeline", "", after))
        if after.stage == stages.FOLLOWING:
            open_gaps = {id: g for id, g in self.view.gaps.items() if g.repaired is None and g.epoch < after.repairing}
            self._pending += [("gap", id, replace(g, repaired=now)) for id, g in open_gaps.items()]

    def change(self, state: PipelineState) -> None:
        """Store a new pipeline state with the next batch."""
        self._pending.append(("pipeline", "", state))

    def define(self, definition: Definition) -> None:
        """Store the pipeline's definition with the next batch, if it has changed."""
        if definition != self.view.definition:
            self._pending.append(("definition", "", definition))

    def drop_ahead(self) -> None:
        """Discard pages that were read ahead; the next run reads them again."""
        self.pages.clear()

    def unpark(self, ids: Iterable[str]) -> None:
        """Remove parked entries with the next batch."""
        self._pending += [(PARKED, id, None) for id in ids]

    def swept(self, spared: Iterable[str]) -> None:
        """Record a finished sweep of this epoch, which spared the documents of these items."""
        assert self.state is not None
        wanted = set(spared) if self.mapping.own_ids else set()
        self._pending += [("spared", item, None) for item in self.view.spared if item not in wanted]
        self._pending += [("spared", item, Spared(self.state.epoch)) for item in wanted - self.view.spared.keys()]

    @property
    def owes_sweep(self) -> bool:
        """Whether an item that the last sweep spared is settled: its earlier documents must be swept.

        That is, neither parked nor discarded: what a person discards stays as it is until the item's next change.
        """
        return bool(settled(self.view.spared, self.parked))

    @property
    def epoch(self) -> int:
        """The last epoch that scanned the whole table, or repaired a gap; while another begins, all there were are
        earlier."""
        return LAST_EPOCH + 1 if self.state is None else self.state.repairing

    def know(self, parked: ParkedItems, entries: Iterable[Entry] = ()) -> None:
        """Replace the parked items after a command or another worker changed them. No batch may be in flight.

        ``entries``: of the checkpoints, when these were read.
        """
        assert not self._in_flight, "batches in flight assume the previous entries"
        self.parked = parked
        self.view.relearn("item", entries)

    # Output

    def take(self, now: float, before_hook: Callable[[bool], None] = lambda divisible: None) -> Batch | None:
        """The next batch; None if there is nothing to store. Several may be in flight; they are stored in order.

        ``before_hook``: is called before each call of the hook, with whether a smaller batch can be made. If it raises
        GivenUp, the pages that are at it are left for the next batch.
        """
        if not (self._pending or self.pages or self._heartbeat):
            return None
        taken = _Taken(pending=self._pending)
        before = self.view.pipeline
        self._pending = []
        for kind, id, value in taken.pending:
            self._put(taken, kind, id, value)
        self._put_heartbeat(taken)
        nothing = self._put_anchors(taken) or self._is_opening or self._acknowledges(taken)
        parts = [] if nothing else self._fill(taken, now, before_hook)
        if not taken.saves and not parts:
            return None
        self._put_floor(taken, now)
        self._put_fence(taken)
        self._put_owners(taken, before, now)
        taken.batch = Batch(parts, list(taken.saves.values()), tombstones=self._remembers_deletes)
        self._in_flight.append(taken)
        return taken.batch

    def _acknowledges(self, taken: _Taken) -> bool:
        return ("slot", self.slot) in taken.saves

    @property
    def _remembers_deletes(self) -> bool:
        """Whether deletes leave tombstones: during the scan, and while a command inserts documents."""
        state = self.view.pipeline
        return (state is not None and stages.remembers_deletes(state)) or self.parked.repairing != ""

    @property
    def is_storing(self) -> bool:
        """Whether a batch was taken that is neither stored nor given back."""
        return bool(self._in_flight)

    @property
    def _is_opening(self) -> bool:
        """Whether an epoch begins whose tables are not open yet."""
        return self.view.pipeline is not None and self.view.pipeline.opening

    def stored(self, batch: Batch, outcome: Outcome, now: float) -> None:
        """The oldest batch in flight is stored, and its checkpoint entries are durable."""
        taken = self._in_flight.popleft()
        assert taken.batch is batch
        for kind, id, value in taken.values:
            self._became_durable(kind, id, value)
        self.total = sum(outcome_counts(batch, outcome).values(), self.total)
        self._parked_durably(taken)
        if self.slot:
            return  # a worker's own part of the scan says nothing of the others'
        if self.state is not None and self.view.pipeline == self.state and not self._changing_stage():
            after = stages.next_stage(self.state, self.segments.values(), now)
            if after is not None:
                self._pending.append(("pipeline", "", after))

    def refused(self, batch: Batch, rejections: Sequence[Rejection]) -> None:
        """The target refused part of the oldest batch and stored none of it. Its changes are taken again, with the
        refused ones parked. A delete is not: it only goes without the document that was to be marked.

        Later batches are returned too: they may have changes of the items that are parked now.
        """
        assert self._in_flight[0].batch is batch
        for write, reason in ((r.write, r.reason) for r in rejections):
            if isinstance(write, Delete) and write.last is not None:
                self._unmarkable.add((write.item, write.version))
            else:
                self._refused[write.item, write.version] = reason
        self.give_back()

    def give_back(self) -> None:
        """Undo every batch in flight, newest first: none of them was stored."""
        while self._in_flight:
            taken = self._in_flight.pop()
            for undo in reversed(taken.undos):
                self.view.undo(undo)
            for move in reversed(taken.moves):
                self.parked.undo(move)
            self.pages.give_back(taken.pages)
            self._pending = taken.pending + self._pending
        self._idle.clear()  # empty pages may follow records that must be stored again

    # Status

    def caught_up(self, since: float) -> bool:
        """Whether the backfill and every record created before ``since`` are stored.

        Requires a complete listing after ``since``, because an earlier one may have omitted a shard, and no shard
        waiting for a parent that was never listed.
        """
        if self.state is None or self.state.stage != stages.FOLLOWING:
            return False
        since = max(since, self.history_from)
        if self.discovery.listed is None or self.discovery.listed < since or self.discovery.orphaned:
            return False
        if self._pending or self._in_flight or self.pages or self.childless or self.owes_sweep:
            return False
        return all(s.ended or self._read_through(id, s) >= since for id, s in self.shards.items())

    @property
    def history_from(self) -> float:
        """Up to when the stream must be read before a history tells anything: to the end of the scan. 0 without one."""
        return (self.state.scan_ended or 0.0) if self.state is not None and self.mapping.histories else 0.0

    def _read_through(self, id: str, state: ShardState) -> float:
        idle = self._idle.get(id)
        return max(state.through or 0.0, (idle.through if idle is not None else None) or 0.0)

    def seen(self) -> dict[str, ShardState]:
        """The stored shards, updated with what idle ones have shown since."""
        shards = dict(self.shards)
        for id in self._idle.keys() & shards.keys():
            state, through = shards[id], self._read_through(id, shards[id])
            if through > (state.through or 0.0):  # a page that failed shows nothing: unknown stays unknown
                shards[id] = replace(state, through=through)
        return shards

    @property
    def ended(self) -> bool:
        """Whether every shard is stored to its end."""
        return bool(self.shards) and all(s.ended for s in self.shards.values()) and not self.pages

    # Internals

    def _pending_shards(self) -> dict[str, ShardState]:
        return {id: v for kind, id, v in self._pending if kind == "shard" and isinstance(v, ShardState)}

    def _forget_reading(self) -> None:
        assert not self._in_flight, "collect or return the batches in flight before an epoch begins"
        self.pages.clear()
        self._opened.clear()
        self._idle.clear()
        self._refused.clear()
        self._unmarkable.clear()
        self._pending = [p for p in self._pending if p[0] == "gap"]

    def _put(self, taken: _Taken, kind: str, id: str, value: object | None) -> None:
        if kind in (PARKED, DROPPED):
            known = self.parked.entry(kind, id)
            if known is not None:  # otherwise it was removed or replaced
                self._move(taken, [Move(kind, known)])
            return
        if kind == "owner":  # a claim of the next process is none of the pipeline's, so there is nothing to compare
            taken.saves[kind, id] = Save(kind, id, None, encode(value))
            return
        save, undo = self.view.put(kind, id, value, taken.saves.get((kind, id)))
        taken.saves[kind, id] = save
        if save.text is None and save.expected == 0:
            del taken.saves[kind, id]  # created and removed within the batch
        taken.undos.append(undo)
        taken.values.append((kind, id, value))

    def _move(self, taken: _Taken, moves: Iterable[Move]) -> None:
        for move in moves:
            for save in move.saves:
                self._save_once(taken, save)
            if move.after is not None:
                saved = taken.saves[move.kind, move.after.id]
                move = replace(move, after=replace(move.after, revision=(saved.expected or 0) + 1))
            self.parked.apply(move)
            taken.moves.append(move)
            if self.slot and move.kind == PARKED:
                self._put(taken, "item", move.item, None if move.after is None else ParkedItem(move.after.id))

    def _save_once(self, taken: _Taken, save: Save) -> None:
        """Add a save to the batch. One that has the entry already, from another shard, says what revision to expect."""
        place = save.kind, save.id
        earlier = taken.saves.pop(place, None)
        if earlier is not None:
            save = structs.replace(save, expected=earlier.expected)
        if save.text is not None or save.expected != 0:  # otherwise it was created and removed within the batch
            taken.saves[place] = save

    def _put_heartbeat(self, taken: _Taken) -> None:
        if self._heartbeat is None:
            return
        for shard, page in self._idle.items():
            state = self.view.shards.get(shard)
            if state is None or state.ended:
                continue
            through, since = max(state.through or 0.0, page.through or 0.0), max(state.since, page.since)
            if (through, since) != (state.through or 0.0, state.since):
                self._put(taken, "shard", shard, replace(state, through=through or None, since=since))
        self._idle.clear()
        listed, orphans = self.discovery.listed, len(self.discovery.orphaned)
        self._put(taken, "pulse", self.slot, replace(self._heartbeat, listed=listed, orphans=orphans))
        # Unconditional: while a batch waits for the target, the driver saves heartbeats ahead of it.
        place = ("pulse", self.slot)
        taken.saves[place] = structs.replace(taken.saves[place], expected=None)
        self._heartbeat = None

    def _put_fence(self, taken: _Taken) -> None:
        """Save the pipeline's or the slot's entry with every batch. It is never removed: its revision only increases.

        Other entries are removed and created again. Without the fence, a batch that was given up as lost and applied
        late could pass its compare-and-set after a new epoch, because a shard is as absent as it was back then.
        """
        moves = any(kind != "pulse" for kind, _ in taken.saves)
        place = ("slot", self.slot) if self.slot else ("pipeline", "")
        fence = self.view.slots.get(self.slot) if self.slot else self.view.pipeline
        assert fence is not None or not self.slot, "acknowledge first"
        if moves and place not in taken.saves and fence is not None:
            self._put(taken, *place, fence)

    def _put_floor(self, taken: _Taken, now: float) -> None:
        """Note a floor now and then. No scan may be in progress: its items would be below floors of their time."""
        state = self.view.pipeline
        if not self.keeps_floors or state is None or state.stage != stages.FOLLOWING or ("pipeline", "") in taken.saves:
            return
        floors = gap_repair.with_floor(state, self.view.shards, now)
        if floors is not state.floors:
            self._put(taken, "pipeline", "", replace(state, floors=floors))

    def _put_owners(self, taken: _Taken, before: PipelineState | None, now: float) -> None:
        """A new epoch or stage takes the slots from their workers, so that no batch of an earlier one can follow it."""
        if self.workers is not None and _phase(before) != _phase(self.view.pipeline):
            owner = replace(self.workers.coordinator, started=now)
            for save in taking_away(self.workers.slots, owner):
                taken.saves[save.kind, save.id] = save

    def _put_anchors(self, taken: _Taken) -> bool:
        """Store a shard's first sequence number before any write uses its ordinals; a restart could renumber them.

        Returns whether there was such a shard: the batch then has no writes.
        """
        anchored = False
        for page in self.pages.heads():
            if not isinstance(page, Page) or not page.records:
                continue
            id = page.shard
            state = self.view.shards[id]
            if state.anchor is None and state.sequence is None:
                started = stages.start(state, self.view.shards)
                self._put(taken, "shard", id, replace(started, anchor=page.records[0].sequence))
                anchored = True
        return anchored

    def _fill(self, taken: _Taken, now: float, before_hook: Callable[[bool], None]) -> list[Part]:
        parts: list[Part] = []
        items: set[Key] = set()
        for source, pages in self.pages.next():
            keys = _keys(pages)
            if not items.isdisjoint(keys):
                # In several segments of a partial resync, or in shards whose lineage the first listing did not tell.
                self.pages.leave(source, pages, None)
                break
            items |= keys
            divisible = self.pages.divisible(pages, has_others=bool(parts))
            mapping = replace(self.mapping, before=partial(before_hook, divisible))
            try:
                part = self._part(taken, source, pages, now, mapping)
            except (GivenUp, HookInterrupted) as e:
                self.pages.leave(source, pages, e.fits if isinstance(e, GivenUp) else None)
                break
            taken.pages.append((source, pages))
            parts.append(part)
        return parts

    def _part(
        self, taken: _Taken, source: str, pages: Sequence[Page | ScanPage], now: float, mapping: DocumentMapping
    ) -> Part:
        state = self.view.pipeline
        assert state is not None
        at = BatchContext(
            self._refused,
            self.parked,
            state.epoch,
            source,
            now,
            state.mixed,
            state.full,
            self._unmarkable,
            state.began,
            bool(mapping.histories),
            state.repair is not None,
            state.repair is not None and state.repair.looking_up,
        )
        kind, _, id = source.partition(":")
        after: ShardState | SegmentState
        if kind == "segment":
            scan_pages = [p for p in pages if isinstance(p, ScanPage)]
            after, compacted = scanned(self.view.segments[id], scan_pages, mapping, at, marks=self.marks)
        else:
            shard = stages.start(self.view.shards[id], self.view.shards)
            shard_pages = [p for p in pages if isinstance(p, Page)]
            ignored, marks = self.ignore_expired, self.marks
            after, compacted = streamed(shard, shard_pages, mapping, at, ignore_expired=ignored, marks=marks)
        self._put(taken, kind, id, after)
        self._move(taken, compacted.moves)
        taken.refused += compacted.refused
        return compacted.part(source)

    def _became_durable(self, kind: str, id: str, value: object | None) -> None:
        if kind == "pipeline" and isinstance(value, PipelineState):
            self.state = value
        elif kind == "shard":
            before = self.shards.get(id)
            _set(self.shards, id, value, ShardState)
            if value is None:
                self._opened.discard(id)
            if before is None or not isinstance(value, ShardState) or _place(value) != _place(before):
                self._readable = self._childless = None
        elif kind == "segment":
            _set(self.segments, id, value, SegmentState)
        elif isinstance(value, Heartbeat):
            self.listing_stored = value.listed
        elif isinstance(value, Slot):
            self.acknowledged = value.begun

    def _parked_durably(self, taken: _Taken) -> None:
        for refused in taken.refused:
            self._refused.pop(refused, None)
            self._unmarkable.discard(refused)
        for move in taken.moves:
            if isinstance(move.value, Parked):
                self._reasons[move.value.reason] += 1

    def parked_now(self) -> Mapping[str, int]:
        """How many changes were parked since the last call, by reason."""
        reasons, self._reasons = self._reasons, Counter()
        return reasons

    def _changing_stage(self) -> bool:
        return any(kind == "pipeline" for kind, _, _ in self._pending)


def needed_since(state: PipelineState | None) -> float | None:
    """``Discovery.needed_since``."""
    return None if state is None or state.export is None else state.export.at


def resumed_discovery(view: CheckpointView) -> Discovery:
    """What is known of listings before the first one of a process that resumes.

    Nothing that is needed is older than the epoch, whatever its first listing lacked: its items show what was before.
    """
    state, heartbeat = view.pipeline, view.heartbeat
    since = needed_since(state)
    return Discovery(
        listed=None if heartbeat is None else heartbeat.listed,
        begun=None if state is None else _bound(state.started, since),
        needed_since=since,
    )


def _bound(begun: float, since: float | None) -> float:
    """A time before which no record is needed: ``begun``, of the epoch, or that of the existing export it copies."""
    return begun if since is None else min(begun, since)


def _phase(state: PipelineState | None) -> tuple[int, str, bool] | None:
    """The part of the pipeline's state that every worker must know before it writes."""
    return None if state is None else (state.epoch, state.stage, state.opening)


def _place(state: ShardState) -> tuple[bool, bool]:
    """The part of a shard's state that affects the lineage."""
    return state.ended, state.leaf


def _set(stored: dict[str, T], id: str, value: object | None, kind: type[T]) -> None:
    if isinstance(value, kind):
        stored[id] = value
    else:
        stored.pop(id, None)

"""The passive heart: takes pages, gives batches, is told what is stored. It never loops, waits, or looks at a clock.

openings(), scans()   what may be read now, and from where
accept(page)          a page of a shard, or of a scan segment
take(now)             the next batch: positions, cursors, gaps and parked changes move with its writes
stored(batch, ...)    only now do children open, stages change, and positions count
refused(batch, ...)   the target took nothing of it: its changes come again, the refused ones parked
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from msgspec import structs

from replicator.batch import Batch, Outcome, Part, Rejection, outcome_counts
from replicator.change import Listing, Page, ScanPage
from replicator.checkpoints.contract import Claimed
from replicator.errors import GapFound
from replicator.hooks.hook import DocumentMapping
from replicator.identity import UNKNOWN, Definition
from replicator.pipeline import lineage, stages
from replicator.pipeline.advance import scanned, streamed
from replicator.pipeline.checkpoint_view import CheckpointView, Undo
from replicator.pipeline.compaction import BatchContext, Refused
from replicator.pipeline.discovery import Discovery, News
from replicator.pipeline.page_buffer import PageBuffer
from replicator.pipeline.parked import DROPPED, PARKED, Move, ParkedItems, item_of
from replicator.state import Counts, Gap, Heartbeat, PipelineState, Save, SegmentState, ShardState, Spared
from replicator.version import LAST_EPOCH

T = TypeVar("T")
Pending = tuple[str, str, object | None]  # kind, id, value (None: remove)


@dataclass(slots=True)
class _Taken:
    """A batch under way, and what it takes to take it back."""

    batch: Batch = field(default_factory=Batch)
    pending: list[Pending] = field(default_factory=list)
    values: list[Pending] = field(default_factory=list)
    saves: dict[tuple[str, str], Save] = field(default_factory=dict)
    undos: list[Undo] = field(default_factory=list)
    pages: list[tuple[str, list[Page | ScanPage]]] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)


class Pipeline:
    """One copy, from its entries as its run claimed them at ``now``. Driven from outside, by one thread.

    ``parked``: the parked items among them, see ``parking.known``.
    """

    def __init__(
        self,
        mapping: DocumentMapping,
        claimed: Claimed,
        *,
        pages: PageBuffer | None = None,
        parked: ParkedItems | None = None,
        ignore_expired: bool = False,
        now: float = math.inf,
    ) -> None:
        self.mapping = mapping
        self.ignore_expired = ignore_expired
        self.view = CheckpointView(claimed)
        self.view.in_doubt_until(now)
        self.total = sum(claimed.counts.values(), Counts())  # of all shards and segments, what is stored
        self.parked = parked if parked is not None else ParkedItems.among(claimed.entries)
        heartbeat = self.view.heartbeat
        self.listing_stored = heartbeat.listed if heartbeat is not None else None  # with all shards that it showed
        self.discovery = Discovery(listed=self.listing_stored)
        self.shards: dict[str, ShardState] = dict(self.view.shards)  # as stored
        self.segments: dict[str, SegmentState] = dict(self.view.segments)
        self.state: PipelineState | None = self.view.pipeline
        self._readable: set[str] | None = None  # None: to be worked out, because the lineage changed
        self._childless: set[str] | None = None
        self._opened: set[str] = set()
        self.pages = pages if pages is not None else PageBuffer()
        self._idle: dict[str, Page] = {}  # the last empty page of each shard of which nothing waits
        self._pulse: Heartbeat | None = None
        self._pending: list[Pending] = []
        self._in_flight: deque[_Taken] = deque()
        self._refused: dict[Refused, str] = {}
        self._reasons: Counter[str] = Counter()  # of what was parked since they were asked for
        self.parked_here: set[str] = set()  # items that this run parked

    # What may be read

    def openings(self) -> Iterator[tuple[str, ShardState]]:
        """Shards to read now that have no reader yet; each is given once, until ``close`` gives it back."""
        if self._readable is None:
            self._readable = lineage.readable(self.shards)
        for shard in sorted(self._readable - self._opened):
            self._opened.add(shard)
            yield shard, stages.start(self.shards[shard], self.shards)

    def scans(self) -> Iterator[tuple[int, SegmentState]]:
        """Segments to scan now: none before the positions of the epoch are stored."""
        if self.state is None or self.state.stage != stages.SCANNING:
            return
        for id, segment in self.segments.items():
            if not segment.ended and f"segment:{id}" not in self._opened:
                self._opened.add(f"segment:{id}")
                yield int(id), segment

    @property
    def childless(self) -> set[str]:
        """Ended shards whose children are not known yet."""
        if self._childless is None:
            self._childless = lineage.childless(self.shards)
        return self._childless

    # What comes in

    def begin(
        self,
        state: PipelineState,
        listing: Listing,
        segments: Mapping[str, SegmentState],
        definition: Definition = UNKNOWN,
    ) -> None:
        """Start an epoch: where every shard stands is stored before anything of the epoch is read."""
        self._forget_reading()
        fresh = stages.first_shards(lineage.merged(listing.shards), listing.at)
        self._pending += [("shard", id, None) for id in self.view.shards if id not in fresh]
        self._pending += [("segment", id, None) for id in self.view.segments if id not in segments]
        self._pending += [("spared", id, None) for id in self.view.spared]  # the sweep that follows finds them anew
        self._pending += [(DROPPED, held.id, None) for held in self.parked.all_dropped()]
        self._pending += [("shard", id, s) for id, s in fresh.items()]
        self._pending += [("segment", id, s) for id, s in segments.items()]
        self._pending.append(("pipeline", "", state))
        self._pending.append(("definition", "", definition))
        self.discovery = Discovery(listed=listing.at)
        self.state = None  # nothing may be read before this is stored
        self.shards, self.segments = {}, {}
        self._readable = self._childless = None

    def listed(self, listing: Listing) -> None:
        """Take a listing of shards; GapFound where it shows that records are lost."""
        news = self.discovery.news({**self.view.shards, **self._pending_shards()}, listing)
        self._pending += [("shard", id, state) for id, state in news.shards.items()]
        self._pending += [("shard", id, None) for id in news.forgotten]
        self._pending += [("shard", id, replace(self.shards[id], ended=True, leaf=True)) for id in self._settled(news)]

    def _settled(self, news: News) -> list[str]:
        """Finished shards of which nothing is in flight: what is stored of them does not change any more."""
        stored, view = self.shards, self.view.shards
        return [
            id
            for id in sorted(news.finished)
            if id in stored and stored[id] == view.get(id) and f"shard:{id}" not in self.pages
        ]

    def accept(self, page: Page) -> None:
        """Take a page of a shard. GapFound if it holds records though the shard was taken for one that is gone."""
        if page.missing:
            self.discovery.not_found(page.shard)
            return
        self.discovery.read_from(page.shard)
        if self.gone(page.shard):
            self._check_gone(page)
        elif page.records or page.ended:
            self.pages.add(f"shard:{page.shard}", page)
        elif f"shard:{page.shard}" not in self.pages:
            self._idle[page.shard] = page

    def gone(self, shard: str) -> bool:
        """Whether the shard ended without children, so that a reader has nothing to wait for."""
        known = self.view.shards.get(shard)
        return known is not None and known.leaf

    def _check_gone(self, page: Page) -> None:
        if page.records:
            raise GapFound("the shard hands out records, though it was neither found nor listed before", page.shard)

    def accept_scan(self, page: ScanPage) -> None:
        """Take a page of a scan segment."""
        if page.waiting_for is None:
            self.pages.add(f"segment:{page.segment}", page)

    def gap(self, found: GapFound, now: float) -> None:
        """Record that records are lost."""
        epoch = self.state.epoch if self.state is not None else 0
        self._pending.append(("gap", f"{now:017.3f}", Gap(found.reason, now, epoch, found.shard, found.sequence)))

    def heartbeat(self, heartbeat: Heartbeat) -> None:
        """A sign of life; with it goes how far idle shards are read."""
        self._pulse = heartbeat

    def cleanup_done(self, now: float) -> None:
        """Nothing is left to sweep, or to purge: on to the next stage. With the last one, gaps are repaired."""
        assert self.state is not None
        after = stages.after_cleanup(self.state)
        self._pending.append(("pipeline", "", after))
        if after.stage == stages.FOLLOWING:
            open_gaps = {id: g for id, g in self.view.gaps.items() if g.repaired is None and g.epoch < after.epoch}
            self._pending += [("gap", id, replace(g, repaired=now)) for id, g in open_gaps.items()]

    def change(self, state: PipelineState) -> None:
        """Store another state of the pipeline itself: a hook that a person accepted."""
        self._pending.append(("pipeline", "", state))

    def define(self, definition: Definition) -> None:
        """Store with the next batch what the pipeline is bound to, unless that is known."""
        if definition != self.view.definition:
            self._pending.append(("definition", "", definition))

    def drop_ahead(self) -> None:
        """Forget pages that were read ahead: nothing of them is stored, and they will be read again."""
        self.pages.clear()

    def unpark(self, ids: Iterable[str]) -> None:
        """Remove parked entries with the next batch."""
        self._pending += [(PARKED, id, None) for id in ids]

    def swept(self, spared: Iterable[str]) -> None:
        """A sweep of this epoch is through, and left the documents of these items alone, because they are parked."""
        assert self.state is not None
        wanted = set(spared) if self.mapping.own_ids else set()
        self._pending += [("spared", item, None) for item in self.view.spared if item not in wanted]
        self._pending += [("spared", item, Spared(self.state.epoch)) for item in wanted - self.view.spared.keys()]

    @property
    def owes_sweep(self) -> bool:
        """Whether an item that the last sweep spared is parked no more: what it had before the epoch must go."""
        return any(self.parked.parked(item) is None for item in self.view.spared)

    @property
    def epoch(self) -> int:
        """The one that it writes in; while another begins, all there were are earlier."""
        return LAST_EPOCH + 1 if self.state is None else self.state.epoch

    def know(self, parked: ParkedItems) -> None:
        """Take the parked items as they are stored: a command may have changed them. Nothing may be under way."""
        assert not self._in_flight, "what is under way assumes other entries"
        self.parked = parked

    # What goes out

    def take(self, now: float) -> Batch | None:
        """The next batch, None if there is nothing to store. Several may be under way; they are stored in order."""
        if not (self._pending or self.pages or self._pulse):
            return None
        taken = _Taken(pending=self._pending)
        self._pending = []
        for kind, id, value in taken.pending:
            self._put(taken, kind, id, value)
        self._put_heartbeat(taken)
        parts = [] if self._put_anchors(taken) else self._fill(taken, now)
        if not taken.saves and not parts:
            return None
        self._put_fence(taken)
        state = self.view.pipeline
        keep = state is not None and stages.remembers_deletes(state)
        taken.batch = Batch(parts, list(taken.saves.values()), tombstones=keep)
        self._in_flight.append(taken)
        return taken.batch

    def stored(self, batch: Batch, outcome: Outcome, now: float) -> None:
        """The target has stored the oldest batch under way, and its entries are durable."""
        taken = self._in_flight.popleft()
        assert taken.batch is batch
        for kind, id, value in taken.values:
            self._became_durable(kind, id, value)
        self.total = sum(outcome_counts(batch, outcome).values(), self.total)
        self._parked_durably(taken)
        if self.state is not None and self.view.pipeline == self.state and not self._changing_stage():
            after = stages.next_stage(self.state, self.segments.values(), now)
            if after is not None:
                self._pending.append(("pipeline", "", after))

    def refused(self, batch: Batch, rejections: Sequence[Rejection]) -> None:
        """The target stored nothing of the oldest batch: its changes come again, with the refused ones parked.

        Batches taken after it come again too, because an item's later changes may have to queue.
        """
        assert self._in_flight[0].batch is batch
        self._refused |= {(r.write.item, r.write.version): r.reason for r in rejections}
        self.give_back()

    def give_back(self) -> None:
        """Take back every batch under way, newest first: none of them was stored."""
        while self._in_flight:
            taken = self._in_flight.pop()
            for undo in reversed(taken.undos):
                self.view.undo(undo)
            for move in reversed(taken.moves):
                self.parked.undo(move)
            self.pages.give_back(taken.pages)
            self._pending = taken.pending + self._pending
        self._idle.clear()  # empty pages may lie behind records that must be stored again

    # What people want to know

    def caught_up(self, since: float) -> bool:
        """Whether the backfill is stored, and every record that was created before ``since``.

        All shards there are have been listed since then, because one may have been left out before, and none waits for
        a parent that no listing shows.
        """
        if self.state is None or self.state.stage != stages.FOLLOWING:
            return False
        if self.discovery.listed is None or self.discovery.listed < since or self.discovery.waits:
            return False
        if self._pending or self._in_flight or self.pages or self.childless or self.owes_sweep:
            return False
        return all(s.ended or self._read_through(id, s) >= since for id, s in self.shards.items())

    def _read_through(self, id: str, state: ShardState) -> float:
        idle = self._idle.get(id)
        return max(state.through or 0.0, (idle.through if idle is not None else None) or 0.0)

    def seen(self) -> dict[str, ShardState]:
        """The stored shards, with what idle ones showed since."""
        found = dict(self.shards)
        for id in self._idle.keys() & found.keys():
            state, through = found[id], self._read_through(id, found[id])
            if through != state.through:
                found[id] = replace(state, through=through)
        return found

    @property
    def ended(self) -> bool:
        """Whether every shard is stored to its end."""
        return bool(self.shards) and all(s.ended for s in self.shards.values()) and not self.pages

    # How it is done

    def _pending_shards(self) -> dict[str, ShardState]:
        return {id: v for kind, id, v in self._pending if kind == "shard" and isinstance(v, ShardState)}

    def _forget_reading(self) -> None:
        assert not self._in_flight, "collect or give back what is under way before an epoch begins"
        self.pages.clear()
        self._opened.clear()
        self._idle.clear()
        self._refused.clear()
        self._pending = [p for p in self._pending if p[0] == "gap"]

    def _put(self, taken: _Taken, kind: str, id: str, value: object | None) -> None:
        if kind in (PARKED, DROPPED):
            known = self.parked.parked(item_of(id)) if kind == PARKED else self.parked.dropped(item_of(id))
            if known is not None and known.id == id:  # else it went already, or was replaced
                self._move(taken, [Move(kind, known)])
            return
        save, undo = self.view.put(kind, id, value, taken.saves.get((kind, id)))
        taken.saves[kind, id] = save
        if save.text is None and save.expected == 0:
            del taken.saves[kind, id]  # it came and went: there is nothing to store
        taken.undos.append(undo)
        taken.values.append((kind, id, value))

    def _move(self, taken: _Taken, moves: Iterable[Move]) -> None:
        for move in moves:
            self.parked.apply(move)
            taken.moves.append(move)
            for save in move.saves:
                taken.saves[save.kind, save.id] = save

    def _put_heartbeat(self, taken: _Taken) -> None:
        if self._pulse is None:
            return
        for shard, page in self._idle.items():
            state = self.view.shards.get(shard)
            if state is None or state.ended:
                continue
            through, since = max(state.through or 0.0, page.through or 0.0), max(state.since, page.since)
            if (through, since) != (state.through or 0.0, state.since):
                self._put(taken, "shard", shard, replace(state, through=through, since=since))
        self._idle.clear()
        self._put(taken, "pulse", "", replace(self._pulse, listed=self.discovery.listed))
        # Whatever is there: while a batch waits for the target, the driver gives signs of life past it.
        taken.saves["pulse", ""] = structs.replace(taken.saves["pulse", ""], expected=None)
        self._pulse = None

    def _put_fence(self, taken: _Taken) -> None:
        """Let the pipeline's own entry move with every batch; it is never removed, so its revision only rises.

        Others come and go: a batch that was given up as lost, and is carried out late, must not find that a shard is
        as unknown, after an epoch began, as it was when the batch was sent.
        """
        moves = any(kind != "pulse" for kind, _ in taken.saves)
        if moves and ("pipeline", "") not in taken.saves and (state := self.view.pipeline) is not None:
            self._put(taken, "pipeline", "", state)

    def _put_anchors(self, taken: _Taken) -> bool:
        """Store where a shard's ordinals begin before any write uses one; else a restart might count anew."""
        found = False
        for page in self.pages.heads():
            if not isinstance(page, Page) or not page.records:
                continue
            id = page.shard
            state = self.view.shards[id]
            if state.anchor is None and state.sequence is None:
                started = stages.start(state, self.view.shards)
                self._put(taken, "shard", id, replace(started, anchor=page.records[0].sequence))
                found = True
        return found

    def _fill(self, taken: _Taken, now: float) -> list[Part]:
        parts = []
        for source, pages in self.pages.next():
            taken.pages.append((source, pages))
            parts.append(self._part(taken, source, pages, now))
        return parts

    def _part(self, taken: _Taken, source: str, pages: Sequence[Page | ScanPage], now: float) -> Part:
        state = self.view.pipeline
        assert state is not None
        at = BatchContext(self._refused, self.parked, state.epoch, source, now, state.mixed)
        kind, _, id = source.partition(":")
        behind: ShardState | SegmentState
        if kind == "segment":
            scans = [p for p in pages if isinstance(p, ScanPage)]
            behind, found = scanned(self.view.segments[id], scans, self.mapping, at)
        else:
            shard = stages.start(self.view.shards[id], self.view.shards)
            reads = [p for p in pages if isinstance(p, Page)]
            behind, found = streamed(shard, reads, self.mapping, at, ignore_expired=self.ignore_expired)
        self._put(taken, kind, id, behind)
        self._move(taken, found.moves)
        taken.refused += found.refused
        return found.part(source)

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

    def _parked_durably(self, taken: _Taken) -> None:
        for refused in taken.refused:
            self._refused.pop(refused, None)
        for move in taken.moves:
            if move.value is not None:
                self._reasons[move.value.reason] += 1
                self.parked_here.add(move.item)

    def parked_now(self) -> Mapping[str, int]:
        """The reasons for which items were parked since this was last asked, and how often."""
        reasons, self._reasons = self._reasons, Counter()
        return reasons

    @property
    def still_parked(self) -> int:
        """How many items this run parked that are parked still."""
        return sum(self.parked.parked(item) is not None for item in self.parked_here)

    def _changing_stage(self) -> bool:
        return any(kind == "pipeline" for kind, _, _ in self._pending)


def _place(state: ShardState) -> tuple[bool, bool]:
    """What the lineage says of a shard that is there."""
    return state.ended, state.leaf


def _set(stored: dict[str, T], id: str, value: object | None, kind: type[T]) -> None:
    if isinstance(value, kind):
        stored[id] = value
    else:
        stored.pop(id, None)

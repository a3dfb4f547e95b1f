"""Repairs a gap from incremental exports of what changed since, instead of rescanning the table (``on_gap: export``).

The repair is an epoch of its own. Positions come first, then the exports, the newest first: a target keeps the first of
two documents of the same version. What the exports do not mention is right as it is, unless it was written from changes
since the exports begin: an item that was inserted and deleted since then has no line. So the target is walked for such
documents, and their items are looked up.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from replicator.aws.client import Client
from replicator.checkpoints.contract import Checkpoints
from replicator.config.settings import Config
from replicator.engine import startup
from replicator.engine.delivery import Delivery
from replicator.engine.fetcher import Fetcher
from replicator.engine.retry import POSTPONED, RetryPolicy, unless_postponed
from replicator.engine.startup import StartupState
from replicator.errors import ConfigError, GapFound, Postponed
from replicator.hooks.hook import DocumentMapping
from replicator.key import Key, key_text
from replicator.pipeline import gap_repair, stages
from replicator.pipeline.parked import kept_keys, version_in
from replicator.pipeline.pipeline import Pipeline
from replicator.source.export import moment, recoverable_since
from replicator.state import ExportState, Gap, GapRepair, PipelineState, SegmentState
from replicator.target.contract import Table, Target, Unguarded
from replicator.target.in_doubt import InDoubtWindow
from replicator.target.verification import CursorExpired, Verifiable, Walked
from replicator.version import version

log = logging.getLogger("replicator")

WAITING = "gap repair"  # in ``Fetcher.waiting_for``


def check_supported(config: Config, mapping: DocumentMapping, target: Target) -> None:
    """ConfigError if gaps of this pipeline cannot be repaired from exports."""
    if config.on_gap != "export":
        return
    if mapping.own_ids:
        raise ConfigError(
            "on_gap: export needs documents under their items' keys, but the hook chooses document ids (@documents): "
            "an export does not say which documents an item had. Use on_gap: resync, or leave it out"
        )
    if mapping.histories:
        raise ConfigError(
            "on_gap: export is not supported for tables that keep a history: exports do not have the changes in the "
            "gap, only the last of each item. Use on_gap: resync, or leave it out"
        )
    if not isinstance(target, Verifiable):
        raise ConfigError(
            f"on_gap: export needs a target that can list its documents and their versions, and {config.target.type} "
            "cannot. Use on_gap: resync, or leave it out"
        )
    if isinstance(target, Unguarded) and target.unguarded:
        raise ConfigError(
            "on_gap: export needs versions in the target, which this one does not keep (pristine). Use on_gap: resync, "
            "or leave it out"
        )


def obstacle(start: StartupState) -> str:
    """Why the gap that was found cannot be repaired from exports; empty if it can, as far as the checkpoints tell."""
    state = start.state
    if state is None:
        return "the checkpoints are lost"
    if state.table_id != start.table.id:
        return "the table was deleted and created again"
    if startup.target_gap(start, state) is not None:
        return "the target has lost documents, which an export of changes does not have"
    if state.hook != start.hook or start.changes:
        return "the hook or the definition of the target's tables changed, so that all documents must be recomputed"
    resumes = state.repair is not None and not state.repair.done
    if state.stage == stages.SCANNING and not resumes:
        return "the backfill has not ended"
    if state.stage == stages.SWEEPING:
        return "a rescan has not ended"
    if lost_since(start, state) is None:
        return "it is not known since when changes are lost"
    return ""


def unrepaired(start: StartupState, state: PipelineState) -> list[Gap]:
    """The gaps that the state's epoch does not repair."""
    return [gap for gap in start.gaps.values() if gap.repaired is None and gap.epoch >= state.repairing]


def lost_since(start: StartupState, state: PipelineState) -> float | None:
    """Every change of before is in the copy; None if that is unknown."""
    times = [gap_repair.stored_until(start.shards), *(gap.since for gap in unrepaired(start, state))]
    if state.stream_arn != start.table.stream_arn or not start.table.streaming:  # it was disabled at some time
        times.append(gap_repair.last_record(state, start.shards))
    known = [at for at in times if at is not None]
    return min(known) if len(known) == len(times) else None


def refusal(client: Client, name: str, since: float) -> str:
    """Why there is no export that begins before ``since``; empty if there is."""
    recoverable = recoverable_since(client, name)
    first = gap_repair.windows(since, since)[-1][0] - gap_repair.SHORTEST  # by which the first window may be longer
    if recoverable is None:
        return "point-in-time recovery is off, which exports need"
    if recoverable > first:
        return (
            f"changes since {moment(first)} are needed, and point-in-time recovery reaches back to "
            f"{moment(recoverable)} only"
        )
    return ""


def epoch_of_repair(before: PipelineState, new: PipelineState, since: float, inserting: bool) -> PipelineState:
    """The state with which the epoch of a repair begins. ``new``: that of a rescan that would begin now.

    Nothing is swept after it: what it does not read is right. ``inserting``: see ``pipeline.gap_repair.above``.
    """
    repair = gap_repair.planned(before, since, new.started, inserting=inserting)
    window, *others = repair.windows
    return replace(
        new,
        full=before.complete,
        mixed=before.mixed,
        floors=before.floors,
        inserted=before.inserted,
        export=ExportState(window=window),
        repair=replace(repair, windows=tuple(others)),
    )


def explained(gap: GapFound, why: str) -> GapFound:
    """``gap``, with the reason why no export repairs it."""
    reason = f"{gap.reason}. on_gap: export cannot repair that: {why}"
    return GapFound(reason, gap.shard, gap.sequence, gone=gap.gone, repair=gap.repair)


@dataclass(slots=True)
class Repairs:
    """Carries on with the repair that the pipeline's state describes, in pieces between batches.

    ``segments``: how many are read side by side. What a walk found and did not store is found again after a restart.
    Another gap during the repair begins a repair of its own, which walks the whole target.
    """

    target: Target
    tables: Sequence[Table]
    checkpoints: Checkpoints
    pipeline: Pipeline
    delivery: Delivery
    retrying: RetryPolicy
    in_doubt: InDoubtWindow | None
    segments: int
    monotonic: Callable[[], float] = time.monotonic
    _postponed_until: float = -math.inf
    _epoch: int = 0  # of the repair that the rest is of
    _found: list[Key] = field(default_factory=list)
    _at: GapRepair | None = None  # how far the walk is
    _settled: bool = False  # whether nothing of before the walk can still be applied

    def do(self, fetcher: Fetcher) -> bool:
        """Do one piece; False if there is none, or while items are read."""
        state = self.pipeline.state
        if state is None or state.repair is None or state.repair.done or state.stage != stages.SCANNING:
            return False
        if state.opening or not all(segment.ended for segment in self.pipeline.segments.values()):
            return False
        if state.epoch != self._epoch:
            self._epoch, self._found, self._at, self._settled = state.epoch, [], None, False
        self.delivery.settle()
        if not state.repair.looking_up:
            self._exported(state, state.repair, fetcher)
            return True
        if self.monotonic() < self._postponed_until or not self._is_settled(fetcher):
            return False
        try:
            self._walk(state, state.repair)
        except Postponed as e:
            self._postponed_until = self.monotonic() + POSTPONED
            fetcher.waiting_for[WAITING] = f"{WAITING}: {e}"
            return False
        return True

    def _exported(self, state: PipelineState, repair: GapRepair, fetcher: Fetcher) -> None:
        """Read the next export or, after the oldest, look up the items of parked changes: they may be gone.

        Those that came from an export, too: it may be one that is older than what the target has. And those of changes
        that a person discarded: a sweep spared their documents, which are older than what a walk looks for.
        """
        fetcher.next_export()
        if repair.windows:
            (window, arn), *_ = repair.following
            rest = replace(repair, windows=repair.windows[1:], arns=repair.arns[1:])
            after = replace(state, export=ExportState(arn, window=window), repair=rest)
            self._read(after, stages.segments(self.segments))
            return
        parked, discarded = self.retrying(lambda: kept_keys(self.checkpoints))
        kept = {**parked, **discarded}
        keys = list(dict.fromkeys(key for id, key in kept.items() if version_in(id) <= version(state.epoch, 0)))
        after = replace(state, export=None, repair=replace(repair, looking_up=True))
        self._read(after, stages.chosen_segments(keys, (), 1))

    def _is_settled(self, fetcher: Fetcher) -> bool:
        """Whether no write of an earlier epoch can be applied behind the walk any more: it would not be found."""
        if not self._settled and self._over:
            self.delivery.know_parked()  # a command that retried a change opens the window again
            self._settled = self._over
        if self._settled:
            fetcher.waiting_for.pop(WAITING, None)
        else:
            fetcher.waiting_for[WAITING] = f"{WAITING}: requests that may still be applied"
        return self._settled

    @property
    def _over(self) -> bool:
        return self.in_doubt is None or not self.in_doubt.left_earlier

    def _walk(self, state: PipelineState, repair: GapRepair) -> None:
        """Walk through a piece of the target. Once there are enough documents, or at the end, look their items up."""
        at = self._at or repair
        if at.table == len(self.tables):
            self._read(replace(state, repair=replace(at, done=True)), {})
            return
        table = self.tables[at.table]
        piece = unless_postponed(self.retrying, lambda: self._piece(table, at))
        versions = self.retrying(lambda: self._versions(table, piece)) if piece.ids else ()
        below, pairs = version(state.epoch, 0), zip(piece.ids, versions, strict=True)
        older = [id for id, stored in pairs if stored is not None and repair.above < stored < below]
        self._found += [key for key in older if self.pipeline.parked.parked(key_text(key)) is None]  # looked up, too
        at = replace(at, table=at.table + (piece.cursor is None), cursor=piece.cursor)
        if at.table < len(self.tables) and len(self._found) < stages.PORTION * self.segments:
            self._at = at
            return
        log.info("looking up items that changed before the gap", extra={"items": len(self._found)})
        keys, self._found, self._at = self._found, [], None
        self._read(replace(state, repair=at), stages.chosen_segments(keys, (), 1))

    def _piece(self, table: Table, at: GapRepair) -> Walked:
        """The next piece, or the first one if the cursor has expired; also if that one is postponed."""
        assert isinstance(self.target, Verifiable)
        try:
            return self.target.walk(table, at.cursor)
        except CursorExpired:
            self._at = replace(at, cursor=None)
            return self.target.walk(table, None)

    def _versions(self, table: Table, piece: Walked) -> Sequence[int | None]:
        assert isinstance(self.target, Verifiable)
        return piece.versions if piece.versions is not None else self.target.versions(table, piece.ids)

    def _read(self, state: PipelineState, segments: Mapping[str, SegmentState]) -> None:
        self.pipeline.read_on(state, segments)
        self.delivery.flush()

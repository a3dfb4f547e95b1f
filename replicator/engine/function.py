"""What one container of the AWS Lambda function does: an invocation is a batch of one shard, stored under its lane.

It keeps nothing that is not in the checkpoints but a connection and the lane that it claimed last. Lambda invokes one
container per shard at a time; where that fails (a frozen container wakes up, an invocation is repeated), the lane's
fence lets one of them store, and the other starts over from what is stored then.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from replicator.aws.client import answered
from replicator.change import Listing
from replicator.checkpoints.contract import Checkpoints, Claimed, Slotted
from replicator.engine import preexisting
from replicator.engine.cleanup import ABANDONED
from replicator.engine.context import Environment, RunContext
from replicator.engine.function_cleanup import (
    is_paused,
    is_purge_due,
    note_in_vain,
    purge,
    retain_history,
    standing,
    sweep_settled,
)
from replicator.engine.lane_run import LaneRun, has_gap
from replicator.engine.retry import RetryPolicy, Stopped
from replicator.engine.startup import check_tables
from replicator.engine.stop_event import Stop
from replicator.engine.worker import Post, check_guarded
from replicator.errors import ConfigError, Fenced, GapFound, TransientError
from replicator.pipeline import lanes, stages
from replicator.pipeline.checkpoint_view import CheckpointView, gap_id
from replicator.pipeline.discovery import ORPHAN_LIMIT, ORPHAN_PAUSE, YOUNG_ORPHAN_LIMIT, Discovery, News
from replicator.pipeline.lineage import readable
from replicator.pipeline.parked import ParkedItems, settled
from replicator.pipeline.pipeline import needed_since, resumed_discovery
from replicator.source.decoding import RecordsDecoder
from replicator.source.lambda_event import ShardBatch, is_batch, shard_batch
from replicator.source.stream import LISTING_REST, ListedPages, Stream, listing
from replicator.source.table import SourceTable, find_table
from replicator.state import Gap, Heartbeat, Owner, PipelineState, Save, ShardState, decode, encode
from replicator.target.contract import AppliesLate, LimitsSweeps, Target, with_history
from replicator.target.past import KeepsHistory

log = logging.getLogger("replicator")

LISTING = "listing"  # the slot that an invocation claims while it adds shards
ATTEMPTS = 8  # how often an invocation starts over after another one took its lane, or the listing
AGAIN = 0.2  # seconds that it waits before, at most and times the attempt; by chance: else two take it in turns
LISTING_TIME = 3.0  # seconds after which an invocation that adds shards is taken for dead, unless it says otherwise,
RENEWED = 2.0  # which it does after this many seconds
LISTING_KEPT = 20 * 60.0  # seconds for which a container keeps the pages of a listing that it had no time to complete
RELIST = 0.5  # seconds between listings while a shard is missing from them
LISTINGS = YOUNG_ORPHAN_LIMIT  # of one invocation until it fails, and Lambda retries
LAST_RESPONSE = 2.0  # seconds for which an invocation whose time is over waits for the response to its last batch
IDLE = 600.0  # seconds after which a shard that no event has moved is read by a scheduled invocation
BEGIN = "replicator run CONFIG --until backfilled"
RESCAN = "replicator resync CONFIG, then " + BEGIN


class Deadline(Stop):
    """Set once the time of an invocation is over, and when it is set. Moved on by the next invocation."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._monotonic, self._at = monotonic, math.inf

    def move(self, seconds: float) -> None:
        self._at = self._monotonic() + seconds

    def is_set(self) -> bool:
        return super().is_set() or self._monotonic() >= self._at

    def is_past(self, seconds: float) -> bool:
        """Whether so many seconds have passed since the time was over."""
        return self._monotonic() >= self._at + seconds

    def left(self) -> float:
        return max(0.0, self._at - self._monotonic())

    def wait(self, timeout: float | None = None) -> bool:
        left = self.left()
        super().wait(left if timeout is None else min(timeout, left))
        return self.is_set()


class OutOfTime(Stopped):
    """The invocation's time is over, in something that may take longer than one. The message says what."""


class UnfinishedListing:
    """The pages of a listing that an invocation had no time to complete, for the container's next one.

    Without them a stream that takes longer to list than an invocation has would never be listed.
    """

    def __init__(self) -> None:
        self._arn, self._pages = "", ListedPages(0.0)

    def of(self, arn: str, now: float) -> ListedPages:
        """The pages so far; a new listing if there are none, or they are of another stream, or too old."""
        fits = arn == self._arn and 0 <= now - self._pages.started <= LISTING_KEPT
        if self._pages.after is None or not fits:
            self._arn, self._pages = arn, ListedPages(now)
        return self._pages

    def clear(self) -> None:
        self._pages = ListedPages(0.0)


class Function:
    """The function in one container. ``environment.stop`` ends an invocation before Lambda does.

    ``unfinished``: outlives this function, which its container replaces after an error.
    """

    def __init__(
        self,
        context: RunContext,
        owner: Owner,
        environment: Environment,
        unfinished: UnfinishedListing | None = None,
    ) -> None:
        check_supported(context.target, context.checkpoints)
        self._context, self._owner, self._environment = context, owner, environment
        self._unfinished = unfinished or UnfinishedListing()
        stop, now, random = environment.stop, environment.now, environment.random
        self._retrying = RetryPolicy(stop, environment.waiting, now, random)
        if isinstance(context.target, LimitsSweeps) and isinstance(stop, Deadline):
            context.target.limit_sweeps(stop.left)
        self._decode = _decoder(context.table)
        self._held: LaneRun | None = None

    def invoke(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Store a batch, or keep up with what no event tells of if a schedule sent the event (``keep_up``).

        The response names the first record that is not stored, which Lambda delivers again. An error if none is
        stored, for the reason why. Stopped if a batch is in flight still: another function needs other connections.
        """
        if not is_batch(event):
            return self.keep_up()
        batch = self._batch(event)
        if not batch.records:
            return {"batchItemFailures": [], "state": {}}
        try:
            self._store(batch)
            if not self._rest():
                self.close()
        except BaseException as e:
            if isinstance(e, Exception):
                self._collect()
                self._rest()
            failed = self._first_failed(batch)
            self.close()
            if failed == batch.records[0].sequence or not isinstance(e, Exception):
                if isinstance(e, Stopped):
                    raise TransientError(_out_of_time("anything of the batch was stored", e)) from e
                raise
            log.warning("batch stored in part", extra={"shard": batch.shard, "first": failed, "reason": str(e)})
            return {"batchItemFailures": [{"itemIdentifier": failed}], "state": {}}
        return {"batchItemFailures": [], "state": {}}

    def close(self) -> None:
        """Let go of the lane. A batch may be in flight still: its connection must be closed, too."""
        held, self._held = self._held, None
        if held is not None:
            held.close()

    def _batch(self, event: Mapping[str, Any]) -> ShardBatch:
        try:
            return shard_batch(event, self._decode)
        except ConfigError:
            self._know_table()  # perhaps it has another stream by now, with another view
            return shard_batch(event, self._decode)

    def keep_up(self) -> dict[str, Any]:
        """Add new shards, and read those that no event has moved for a while; as far as there is time.

        A shard without records causes no invocation. Without this its position would grow old, and be a gap after a
        day, because nothing would prove that nothing was trimmed. GapFound if the stream has ended.
        """
        since, tried, read = self._environment.now(), set[str](), 0
        self._release()
        lost: GapFound | None = None
        try:
            self._add_new()
            lost = self._lost()
            while (shard := self._idle_shard(since, tried)) is not None:
                tried.add(shard)
                read += self._read_idle(shard, since)
            self._add_orphans()
            if lost is None:  # otherwise a rescan will
                self._sweep_settled()
                self._purge()
            self._retain_history()  # which may take the rest of the time
        except Stopped as e:
            log.info("time is over", extra={"shards": read})
            if not tried:
                raise TransientError(_out_of_time("any shard was read", e)) from e
        finally:
            self._release()
        if lost is not None:
            raise lost
        with contextlib.suppress(Stopped):  # the checkpoints do not answer: the next event's invocation looks
            self._check_backfill(since)
        return {"shards": read}

    def _check_backfill(self, now: float) -> None:
        """ConfigError if a backfill has begun whose run has died: what it would sweep stays until another run."""
        view = CheckpointView(self._read())
        if view.pipeline is None or not owes_backfill(view.pipeline, self._context.target):
            return
        said = view.heartbeat.at if view.heartbeat is not None else view.pipeline.started
        if now - said >= ABANDONED:
            raise ConfigError(
                f"a backfill has begun and not ended, and its run has said nothing for {(now - said) / 60:.0f} min. "
                "The stream is followed, but the copy may have items that were deleted until it has ended: "
                f"{_remedy(view)}"
            )

    def _add_new(self) -> None:
        claimed = self._read()
        self._check_target(CheckpointView(claimed))
        try:
            self._add(None, claimed.revision)
        except Fenced:
            log.info("another invocation adds shards")

    def _add_orphans(self) -> None:
        """Add shards whose parent remains missing, behind a gap, if its records may have been trimmed.

        Then theirs may have been, too, and no event tells of them.
        """
        for _ in range(ORPHAN_LIMIT):
            heartbeat = CheckpointView(self._read()).heartbeat
            if heartbeat is None or not heartbeat.orphaned or self._environment.stop.wait(RELIST):
                return
            self._add_new()

    def _lost(self) -> GapFound | None:
        """Why changes are made that the epoch's stream does not have, which is recorded; None if it has them."""
        view = CheckpointView(self._read())
        assert view.pipeline is not None
        gap = _unfollowed(view.pipeline, self._know_table())
        if gap is None:
            return None
        self._check_target(view)
        self._record(gap)
        return GapFound(f"{gap.reason}. The copy lacks changes until a rescan: {RESCAN}")

    def _idle_shard(self, since: float, tried: Collection[str]) -> str | None:
        """The shard that may be read and was not for the longest time; None if there is none."""
        view = CheckpointView(self._read())
        ages = {id: view.shards[id].through or view.shards[id].since for id in readable(view.shards)}
        due = [id for id, at in ages.items() if at <= since - IDLE and id not in tried and not has_gap(id, view)]
        return min(due, key=lambda id: (ages[id], id), default=None)

    def _read_idle(self, shard: str, since: float) -> bool:
        """Whether the shard was read."""
        done = False
        try:
            if (held := self._hold(shard)) is not None:
                try:
                    done = held.read_idle(shard, since)
                except GapFound as gap:
                    self._skip(held, gap, shard, ended=gap.gone)
        except Fenced:
            log.info("another invocation works on the shard", extra={"shard": shard})
        self._release()
        return done

    def _retain_history(self) -> None:
        """Remove what a history need not keep any more, and make room ahead: no run of another engine may be up."""
        target, tables, claimed = self._context.target, self._context.tables, self._read()
        state = CheckpointView(claimed).pipeline
        following = state is not None and state.stage == stages.FOLLOWING
        if not with_history(tables) or not following or not isinstance(target, KeepsHistory):
            return
        if not self._environment.stop.is_set():
            with self._recording():
                retain_history(target, self._context, self._owner, self._environment, claimed)
        self._report_histories(target)

    def _report_histories(self, target: KeepsHistory) -> None:
        """Note what is known of the histories. If another invocation notes something at the same time, a later event
        does it."""
        view = CheckpointView(self._read())
        if view.heartbeat is None:
            return
        with contextlib.suppress(Fenced, TransientError):
            reports = preexisting.history_reports(target, self._context.tables, view)
            for lost in (report for report in reports if report.lost):
                log.error("history lost", extra={"table": lost.table, "reason": lost.lost})
            beat = replace(view.heartbeat, histories=reports)
            self._context.checkpoints.save([view.put("pulse", "", beat)[0]])

    def _sweep_settled(self) -> None:
        """Sweep the documents that a sweep has spared for items that are no longer parked."""
        claimed = self._read()
        view, parked = CheckpointView(claimed), ParkedItems.among(claimed.entries)
        following = view.pipeline is not None and view.pipeline.stage == stages.FOLLOWING
        now = self._environment.now
        if not following or not settled(view.spared, parked) or is_paused(claimed, now()):
            return
        try:
            with self._recording():
                sweep_settled(self._context, self._owner, self._environment, self._retrying, claimed.revision)
        except Fenced:
            log.info("sweep not finished", extra={"reason": "another invocation sweeps, or has added shards"})
        except Stopped:
            log.warning("sweep not finished", extra={"reason": "time is over; trying again in a few hours"})
            note_in_vain(self._context.checkpoints, self._owner, claimed.revision, now())

    def _purge(self) -> None:
        """Purge tombstones that were kept because requests might be applied late, once none can be."""
        if not isinstance(self._context.target, AppliesLate):
            return
        self._attend()
        claimed, now = self._read(), self._environment.now()
        at = standing(CheckpointView(claimed))
        if at is None or not is_purge_due(claimed, at, now) or not lanes.may_purge(at, now):
            return
        try:
            with self._recording():
                purge(self._context, self._owner, self._environment, self._retrying, claimed.revision)
        except Fenced:
            log.info("purge not finished", extra={"reason": "another invocation purges, or a run has taken over"})

    def _attend(self) -> None:
        """Let lanes say what of them is in doubt whose last invocation was killed, or that have had none."""
        claimed = self._read()
        at = standing(CheckpointView(claimed))
        for lane in () if at is None else lanes.unattended(at):
            with contextlib.suppress(Fenced):  # it has got a shard
                post = Post(lane, claimed.revision)
                self._held = self._claimed_lane(post)
            self._release()

    def _check_stream(self, arn: str, view: CheckpointView) -> None:
        """Whether events of the stream ``arn`` may be stored in the epoch, which is bound to a stream.

        GapFound, which is recorded, if the table's stream was replaced; ConfigError if this is another table's.
        """
        assert view.pipeline is not None
        bound = view.pipeline.stream_arn
        if bound != self._context.table.stream_arn:
            self._know_table()  # this container may be older than the epoch
        if not arn or arn == bound:
            return
        current = self._know_table()
        if current is None or current.stream_arn != arn:
            raise ConfigError(
                f"the event source mapping reads {arn}, but this pipeline follows {bound}: create the mapping for "
                "that stream"
            )
        self._check_target(view)  # which names another table if this package does
        gap = _replaced(bound, arn)
        self._record(gap)
        raise GapFound(f"{gap.reason}. Nothing of it is stored before a rescan: {RESCAN}")

    def _know_table(self) -> SourceTable | None:
        """The table as it is now; None if it is gone."""
        name = self._context.config.source.table
        current = self._retrying(lambda: find_table(self._context.client, name), asks="source")
        if current is not None:
            self._context, self._decode = replace(self._context, table=current), _decoder(current)
        return current

    def _record(self, gap: GapFound) -> None:
        """Record a gap of no shard, unless one is already that a rescan repairs in the same way."""
        claimed = self._claim_listing(self._read().revision)
        view = CheckpointView(claimed)
        if not has_gap(None, view, by_hand=gap.by_hand):
            saves = [self._noted(gap, view), _counted(view)]
            self._retrying(lambda: self._context.checkpoints.save(saves), asks="checkpoints")

    def _unwritable(self, gap: GapFound) -> GapFound:
        """Record a gap of the target, into which nothing can be written; what ends the invocation."""
        self._record(gap)
        return GapFound(f"{gap.reason}. Nothing is stored before a rescan: {RESCAN}")

    def _skip(self, held: LaneRun, gap: GapFound, shard: str, *, ended: bool) -> None:
        """``LaneRun.skip``. GapFound if nothing behind the gap can be stored either: the target has lost something."""
        if gap.unwritable:
            raise self._unwritable(gap) from gap
        try:
            held.skip(gap, shard, ended=ended)
        except GapFound as own:
            raise self._unwritable(own) from own

    def _noted(self, gap: GapFound, view: CheckpointView) -> Save:
        log.error("gap", extra={"reason": gap.reason, "shard": gap.shard})
        now, epoch = self._environment.now(), view.pipeline.epoch if view.pipeline is not None else 0
        noted = Gap(gap.reason, now, epoch, gap.shard, gap.sequence, by_hand=gap.by_hand)
        return view.put("gap", gap_id(now, LISTING, view.gaps.keys()), noted)[0]

    def _store(self, batch: ShardBatch) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._store_once(batch)
                return
            except Fenced:
                self._release()
                if attempt == ATTEMPTS:
                    raise
                log.info("another invocation took over; starting over", extra={"shard": batch.shard})
                self._wait_for_others(attempt)

    def _store_once(self, batch: ShardBatch) -> None:
        held = self._held
        if held is None or batch.stream_arn not in ("", held.stream_arn) or not self._holds(held, batch.shard):
            held = self._hold_readable(batch.shard, batch.stream_arn)
        if held is None:
            return
        try:
            held.wake()
            held.store(batch)
        except GapFound as gap:
            self._skip(held, gap, batch.shard, ended=False)
            self._store_behind(batch, held)
            return
        if held.has_read:
            self._release()  # its readers are ahead of what events will bring

    def _store_behind(self, batch: ShardBatch, held: LaneRun) -> None:
        """Store what is left of a batch behind a gap: its first record whatever came before, the rest as ever.

        It may lack records, too. Those that the stream has are read from there.
        """
        self._accepted(lambda: held.accept_first(batch))
        self._release()  # its readers are before the gap
        if (again := self._hold(batch.shard)) is None:
            return
        try:
            again.store(batch)
        except GapFound as gap:
            self._skip(again, gap, batch.shard, ended=False)
            self._accepted(lambda: again.accept(batch))
        self._release()

    def _accepted(self, accept: Callable[[], None]) -> None:
        """GapFound if not even that can be stored, as its items can no longer be looked up, or the target lost them."""
        try:
            accept()
        except GapFound as gap:
            if gap.unwritable:
                raise self._unwritable(gap) from gap
            raise GapFound(f"{gap.reason}. Nothing is stored before a rescan: {RESCAN}") from gap

    def _holds(self, held: LaneRun, shard: str) -> bool:
        """Whether the shard is in that lane, and may be read."""
        shards = held.pipeline.shards
        return shard in shards and shards[shard].slot == held.lane and not lanes.unended_ancestors(shard, shards)

    def _first_failed(self, batch: ShardBatch) -> str:
        """The first record that is not stored, as far as this container knows."""
        held = self._held
        if held is None or not self._holds(held, batch.shard):
            return batch.records[0].sequence
        left = held.left_of(batch)
        return left[0].sequence if left else batch.records[-1].sequence

    # Claiming

    def _hold_readable(self, shard: str, stream_arn: str) -> LaneRun | None:
        """The shard's lane, claimed, after its ancestors are stored to their ends. None if the shard itself is, or
        ended before the epoch: then it needs no lane, and has none if no invocation has stored any of it.

        Lambda delivers a shard after its parent, but it does not say that the parent has ended, and may have given up
        the rest of it. Reading what is left proves the end.
        """
        self._release()
        self._check_stream(stream_arn, CheckpointView(self._read()))
        if (held := self._hold(shard)) is None:
            return None
        for ancestor in lanes.unended_ancestors(shard, held.pipeline.shards):
            if (older := self._hold(ancestor)) is not None:
                try:
                    older.read_to(ancestor, None)
                except GapFound as gap:
                    self._skip(older, gap, ancestor, ended=True)
            self._release()
        return self._hold(shard)

    def _hold(self, shard: str) -> LaneRun | None:
        """The lane of a shard, claimed; None if all of it is stored. Lists the stream if the shard is new."""
        if self._held is not None and self._is_in(shard, self._held):
            return self._held
        self._release()
        claimed = self._while_listed(shard)
        states: Mapping[str, ShardState] = _shards(claimed)
        if not _is_placed(shard, states):
            states = self._add(shard, claimed.revision)
        if states[shard].ended:
            return None
        assert lanes.is_lane(states[shard].slot), "every shard that is not stored to its end has a lane"
        post = Post(states[shard].slot, claimed.revision)
        self._check_target(CheckpointView(claimed))
        self._held = self._claimed_lane(post)
        return self._held

    def _claimed_lane(self, post: Post) -> LaneRun:
        """``LaneRun.claimed_lane``. GapFound, which is recorded, if a table turns out to be lost as it is opened."""
        with self._recording():
            return LaneRun.claimed_lane(self._context, post, self._owner, self._environment)

    @contextlib.contextmanager
    def _recording(self) -> Iterator[None]:
        """Record what the target turns out to have lost."""
        try:
            yield
        except GapFound as gap:
            raise self._unwritable(gap) from gap

    def _check_target(self, view: CheckpointView) -> None:
        """ConfigError unless this package has the hook and the tables with which the copy was made.

        GapFound, which is recorded, if a table is not the one that was written to: opening it would create it.
        """
        context = self._context
        found = self._retrying(
            lambda: preexisting.inspect(view, context.table, context.target, context.tables, context.hook)
        )
        if found.state is not None and found.state.hook != found.hook:
            raise ConfigError(f"transform: the hook in this package is not the one of the copy. {_REDEFINED}")
        if found.changes:
            raise ConfigError(f"target.tables: {'; '.join(map(str, found.changes))} in this package. {_REDEFINED}")
        try:
            check_tables(replace(found, emptied=()))  # invocations may have emptied it since
        except GapFound as gap:
            raise self._unwritable(gap) from gap

    def _is_in(self, shard: str, held: LaneRun) -> bool:
        known = held.pipeline.shards.get(shard)
        return known is not None and known.slot == held.lane

    def _read(self) -> Claimed:
        """What is stored. ConfigError unless the pipeline was handed over to Lambda."""
        claimed = self._retrying(self._context.checkpoints.read, asks="checkpoints")
        view = CheckpointView(claimed)
        is_lanes = all(not s.slot or lanes.is_lane(s.slot) for s in view.shards.values() if not s.ended)
        handed_over = is_lanes and lanes.is_handed_over(view.slots, claimed.revision)
        if view.pipeline is None or not handed_over:
            remedy = _remedy(view)
            raise ConfigError(
                f"pipeline {self._context.config.pipeline} is not handed over to AWS Lambda"
                + ("" if claimed.revision == 0 else f" (its last run: {_owner_in(claimed)})")
                + (", and records are lost that only a rescan repairs" if remedy == RESCAN else "")
                + f". Stop other runs of it, and run: {remedy}. Until then nothing is stored, and "
                "Lambda retries"
            )
        if view.pipeline.opening:
            raise TransientError("an epoch begins: retry")
        return claimed

    def _release(self) -> None:
        """Let go of the lane, and leave nothing in flight. Stopped if that takes too long."""
        try:
            self._collect()
            self._rest()
        finally:
            self.close()

    def _rest(self) -> bool:
        """Note that nothing is sent for the lane that is held. What comes next gets along without the note.

        False if the note may be stored although that was not heard: then the lane must be claimed before it is used.
        """
        if self._held is not None:
            try:
                self._held.rest()
            except (Fenced, Stopped):
                return False
        return True

    def _collect(self) -> None:
        if self._held is None:
            return
        try:
            self._held.end(self._is_late)
        except Stopped as e:
            raise OutOfTime(
                f"the target did not answer the last batch of this invocation within {LAST_RESPONSE:.0f} s after its "
                "time was over. What is not stored comes again"
            ) from e

    def _is_late(self) -> bool:
        stop = self._environment.stop
        return isinstance(stop, Deadline) and stop.is_past(LAST_RESPONSE)

    # New shards

    def _while_listed(self, shard: str) -> Claimed:
        """What is stored, with the shard unless no invocation is adding shards any more.

        Many shards may roll over at once. If each of their invocations took over the listing from another, none would
        come to its end, and AWS allows ten requests per second for all of them.
        """
        since, pause = self._environment.now(), RELIST
        while True:
            claimed = self._read()
            other = _listing_owner(claimed, self._owner.run)
            at_work = other is not None and 0 <= self._environment.now() - other.started < LISTING_TIME
            if _is_placed(shard, _shards(claimed)) or other is None or not at_work:
                return claimed
            if self._environment.stop.wait(pause):
                waited = self._environment.now() - since
                raise OutOfTime(
                    f"process {other.pid} on {other.host} lists the stream's shards, and in {waited:.0f} s of waiting "
                    f"it did not add {shard}"
                )
            pause = min(2 * pause, LISTING_TIME)

    def _claim_listing(self, run: int) -> Claimed:
        checkpoints, owner = self._context.checkpoints, replace(self._owner, started=self._environment.now())
        assert isinstance(checkpoints, Slotted)
        return self._retrying(lambda: checkpoints.claim_slot(owner, LISTING, run), asks="checkpoints")

    def _add(self, shard: str | None, run: int) -> Mapping[str, ShardState]:
        """Add the shards that are new in the stream, among them this one if it is given; all that are stored then.

        TransientError if listings lack the shard or its parent, which takes more time than an invocation has to prove.
        The claim only tells others that this invocation lists, and is renewed while it does. It does not have to last:
        what a listing shows is stored under another claim, whatever others stored since.
        """
        view = CheckpointView(self._claim_listing(run))
        assert view.pipeline is not None
        if shard in view.shards:
            return self._store_listing(None, None, run)
        for attempt in range(1, LISTINGS + 1):
            listing = self._list(view.pipeline.stream_arn, run)
            states = self._store_listing(listing, shard, run)
            if shard is None or shard in states:
                return states
            if attempt < LISTINGS and self._environment.stop.wait(RELIST):
                break
        lacks = "its parent" if any(s.id == shard for s in listing.shards) else "it"
        raise TransientError(f"shard {shard}: {lacks} is missing from listings: Lambda retries")

    def _store_listing(self, listing: Listing | None, shard: str | None, run: int) -> Mapping[str, ShardState]:
        """Store what a listing shows, and give shards their lanes; all shards that are stored then."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                view = CheckpointView(self._claim_listing(run))
                now = self._environment.now()
                shown = _shown(listing, view, shard) if listing is not None else Shown(News(), _discovery(view, now))
                return self._store_shown(shown, view)
            except Fenced:
                if attempt == ATTEMPTS or self._read().revision != run:
                    raise
                self._wait_for_others(attempt)
        raise AssertionError("the last attempt returns or raises")

    def _wait_for_others(self, attempt: int) -> None:
        if self._environment.stop.wait(self._environment.random.random() * AGAIN * attempt):
            raise Stopped

    def _store_shown(self, shown: Shown, view: CheckpointView) -> Mapping[str, ShardState]:
        """No other process can add shards at the same time, nor move the stage: the pipeline's entry is saved, too."""
        new = {**shown.news.shards, **_leaves(view.shards, shown.news)}
        given = lanes.assigned({**view.shards, **new})
        saves = [view.put("shard", id, state)[0] for id, state in {**new, **given}.items()]
        saves += [view.put("shard", id, None)[0] for id in shown.news.forgotten - given.keys()]
        saves += [self._noted(gap, view) for gap in shown.gaps if not has_gap(gap.shard, view)]
        discovery, now = shown.discovery, self._environment.now()
        beat = _beat(view, self._context.target, now, self._owner.who)
        beat = replace(beat, listed=discovery.listed, orphaned=discovery.orphaned)
        everything = [*saves, _counted(view), Save("pulse", "", None, encode(beat))]
        self._retrying(lambda: self._context.checkpoints.save(everything), asks="checkpoints")
        return view.shards

    def _list(self, stream_arn: str, run: int) -> Listing:
        """A complete listing, from where this container's last invocation had to leave it.

        OutOfTime if there is not enough for it.
        """
        now, unfinished = self._environment.now, self._unfinished
        try:
            try:
                return self._listed(stream_arn, run)
            except GapFound:
                if unfinished.of(stream_arn, now()).after is None:
                    raise
                unfinished.clear()  # perhaps the shard after which it continued is gone
                return self._listed(stream_arn, run)
        except Stopped as e:
            pages = unfinished.of(stream_arn, now())
            if pages.after is None:
                raise
            raise OutOfTime(
                f"{len(pages.shards):,} of the stream's shards were listed in {now() - pages.started:.0f} s, and there "
                "are more. This container's next invocation continues; raise the function's Timeout, so that one is "
                "enough"
            ) from e

    def _listed(self, stream_arn: str, run: int) -> Listing:
        """A complete listing. It tells others that this invocation lists, as long as it does."""
        now, renewed = self._environment.now, self._environment.now()
        stream = Stream(
            arn=stream_arn,
            table=self._context.config.source.table,
            keys=self._context.table.keys,
            decode=self._decode,
            now=now,
            random=self._environment.random,
        )

        def list_all() -> Listing:
            nonlocal renewed
            for step in answered(self._context.client, listing(stream, self._unfinished.of(stream_arn, now()))):
                if isinstance(step, Listing):
                    self._unfinished.clear()
                    return step
                if self._environment.stop.wait(LISTING_REST):
                    raise Stopped
                if now() - renewed >= RENEWED:
                    self._claim_listing(run)
                    renewed = now()
            raise AssertionError("a listing ends with a Listing")

        return self._retrying(list_all, asks="source")


_REDEFINED = (
    f"Deploy the one with which the backfill was made; or take this one over with {BEGIN} and the options that it names"
)


def _remedy(view: CheckpointView) -> str:
    """What makes the copy whole again: a backfill, which a gap would end, or a rescan."""
    repairing = 0 if view.pipeline is None else view.pipeline.repairing
    return RESCAN if any(g.repaired is None and g.epoch >= repairing for g in view.gaps.values()) else BEGIN


def _out_of_time(what: str, reason: Stopped) -> str:
    """``what``: did not happen before the time was over."""
    detail = f": {reason}" if isinstance(reason, OutOfTime) else ""
    return f"the invocation's time was over before {what}{detail}"


@dataclass(frozen=True, slots=True)
class Shown:
    """What a listing shows. ``gaps``: those that it proves, behind which shards are followed."""

    news: News
    discovery: Discovery
    gaps: Sequence[GapFound] = ()


def _shown(listing: Listing, view: CheckpointView, shard: str | None) -> Shown:
    """What a listing shows, after those that the checkpoints know of.

    Behind a gap all new shards are followed if only what an export lacks is lost; a shard whose parent is missing for
    too long, without it; or the given one alone, if listings contradict each other.
    """
    roots, gaps = dict[str, ShardState](), dict[str | None, GapFound]()
    needed = needed_since(view.pipeline)
    while True:
        discovery = replace(_discovery(view, listing.at), needed_since=needed)
        known = {**view.shards, **roots}
        try:
            news = discovery.news(known, listing)
            return Shown(replace(news, shards={**roots, **news.shards}), discovery, [*gaps.values()])
        except GapFound as gap:
            gaps.setdefault(gap.shard, gap)
            is_orphan = not gap.of_target and gap.shard is not None and gap.shard not in known
            if is_orphan or needed is None:
                lost = gap.shard if is_orphan else shard
                roots |= {} if lost is None else _root(lost, view, listing.at)
            if not is_orphan and needed is None:
                return Shown(News(roots), discovery, [*gaps.values()])
            needed = needed if is_orphan else None


def _counted(view: CheckpointView) -> Save:
    """The save of the pipeline's entry that goes with what an invocation stores of the stream as a whole."""
    state = view.pipeline
    assert state is not None
    return view.put("pipeline", "", replace(state, invocations=state.invocations + 1))[0]


def owes_backfill(state: PipelineState, target: Target) -> bool:
    """Whether a scan is left, or a sweep of what requests of an earlier epoch brought back behind the first one."""
    if state.stage != stages.FOLLOWING:
        return True
    return isinstance(target, AppliesLate) and state.resync and state.lingers_earlier is not None


def _beat(view: CheckpointView, target: Target, now: float, who: str) -> Heartbeat:
    """What says that invocations follow the stream. During a backfill, what its run has said last: it may have died."""
    before, state = view.heartbeat, view.pipeline
    if state is not None and owes_backfill(state, target):
        return before if before is not None else Heartbeat(state.started or 0.0, "backfill")
    return Heartbeat(now, "live", who=who, histories=() if before is None else before.histories)


def _discovery(view: CheckpointView, now: float) -> Discovery:
    """What earlier invocations have seen of listings.

    A parent that none has seen missing for a while may have been listed meanwhile, or a container's clock is wrong.
    """
    heartbeat = view.heartbeat
    earlier = {} if heartbeat is None else heartbeat.orphaned
    lately = {id: orphan for id, orphan in earlier.items() if abs(now - orphan.last) <= ORPHAN_PAUSE}
    return replace(resumed_discovery(view), orphaned=lately)


def check_supported(target: Target, checkpoints: Checkpoints) -> None:
    """ConfigError for what cannot run behind Lambda."""
    check_guarded(target)
    if not isinstance(checkpoints, Slotted):
        raise ConfigError("checkpoints: this store cannot be written by several workers")


def _decoder(table: SourceTable) -> RecordsDecoder:
    return RecordsDecoder(table.keys, images=table.view != "KEYS_ONLY")


def _shards(claimed: Claimed) -> dict[str, ShardState]:
    decoded = {e.id: decode("shard", e.id, e.text) for e in claimed.entries if e.kind == "shard"}
    return {id: state for id, state in decoded.items() if isinstance(state, ShardState)}


def _is_placed(shard: str, states: Mapping[str, ShardState]) -> bool:
    """Whether the shard needs no lane any more, or has one."""
    return shard in states and (states[shard].ended or lanes.is_lane(states[shard].slot))


def _listing_owner(claimed: Claimed, own: str) -> Owner | None:
    """The process that was the last to say that it adds shards, and when; None if that is ``own``, or none has."""
    owners = [decode(e.kind, e.id, e.text) for e in claimed.entries if (e.kind, e.id) == ("owner", LISTING)]
    return next((o for o in owners if isinstance(o, Owner) and o.run not in ("", own)), None)


def _owner_in(claimed: Claimed) -> str:
    entries = [e for e in claimed.entries if (e.kind, e.id) == ("owner", "")]
    owners = [decode(e.kind, e.id, e.text) for e in entries]
    return "".join(owner.who for owner in owners if isinstance(owner, Owner))


def _replaced(bound: str, current: str) -> GapFound:
    return GapFound(f"the stream was replaced: the last run read {bound}, the table now has {current}")


def _unfollowed(state: PipelineState, table: SourceTable | None) -> GapFound | None:
    """Why the table's changes are not in the stream that the epoch is bound to; None if they are.

    ConfigError if the table was deleted: then there are none.
    """
    if table is None:
        raise ConfigError(
            f"source.table: the table {state.table_arn} was deleted. Nothing was removed from the target. If the table "
            f"is created again, copy it with: {RESCAN}"
        )
    if table.id != state.table_id:
        return GapFound(f"table {table.name} was deleted and created again since the last run")
    if not table.streaming or table.stream_arn is None:
        return GapFound("the stream was disabled; changes made since then cannot be read. Enable it again")
    return _replaced(state.stream_arn, table.stream_arn) if table.stream_arn != state.stream_arn else None


def _leaves(known: Mapping[str, ShardState], news: News) -> dict[str, ShardState]:
    """Ended shards that have turned out to have no children: nothing waits for any."""
    ended = [id for id in news.finished if id in known and known[id].ended and id not in news.forgotten]
    return {id: replace(known[id], leaf=True) for id in ended}


def _root(shard: str, view: CheckpointView, now: float) -> dict[str, ShardState]:
    """The shard whose ancestors are lost, with ordinals after all there are, so that its changes are the newest."""
    highest = max((s.ordinal for s in view.shards.values()), default=0)
    return {shard: ShardState(None, None, whole=True, since=now, ordinal=highest)}

"""A lane from one claim of it to the next: stores the records of an invocation, and reads what they do not continue."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from replicator.aws.client import Call, completed
from replicator.aws.errors import AwsError, decoded
from replicator.change import Page, Record
from replicator.engine.context import Environment, RunContext
from replicator.engine.fetcher import explained
from replicator.engine.parked_limits import check_parked
from replicator.engine.retry import Stopped
from replicator.engine.worker import Post, SlotRun
from replicator.errors import GapFound, TransientError
from replicator.pipeline import lanes
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.pipeline.lanes import Standing
from replicator.source.keys_only import FIRST_KEYS, keys_for, looked_up, portion, weight
from replicator.source.lambda_event import ShardBatch
from replicator.source.shard_reader import OVERLAP
from replicator.state import LONGEST_IN_DOUBT, Owner, ShardState

log = logging.getLogger("replicator")

MOST_RECORDS = 1000  # that GetRecords returns at once
PATIENCE = 10.0  # seconds for which a shard that cannot be read keeps a scheduled invocation from others
LOOK_UP_PAUSE = 0.5  # seconds before a look-up of items is repeated


class LaneRun(SlotRun):
    """The lane of one or more shards, of which at most one is not stored to its end or waits for another.

    Records that an event source mapping delivers are stored as they are if the stream shows them, and no others, behind
    what is stored. Otherwise the shard is read from the stored position. So nothing is lost if Lambda gives up a batch,
    filters records out, divides a shard among several invocations, or reads it through a new mapping, as long as the
    stream has the records.
    """

    has_read = False  # whether it has read any shard itself, so that its readers have positions of their own
    _rests = False  # whether its entry says so
    _until, _begun = 0.0, 0  # until when requests are in doubt, and how often the window had begun by then

    @classmethod
    def claimed_lane(cls, context: RunContext, post: Post, owner: Owner, environment: Environment) -> LaneRun:
        """The lane, claimed. TransientError while an epoch begins."""
        held = cls.claimed(context, post, owner, environment)
        if held is None:
            raise TransientError("an epoch is beginning, so nothing can be stored: Lambda retries")
        assert isinstance(held, LaneRun)
        held.begin(math.nan)
        if context.hook is not None:
            held.pipeline.pages.divide()
        return held

    @property
    def lane(self) -> str:
        return self._post.slot

    @property
    def stream_arn(self) -> str:
        """The stream that the epoch is about."""
        return self._state.stream_arn

    def left_of(self, batch: ShardBatch) -> Sequence[Record]:
        """The records that are not stored, and needed."""
        state = self.pipeline.shards[batch.shard]
        if state.ended:
            return ()
        if state.sequence is None:
            return batch.records if state.whole else [r for r in batch.records if _may_be_of_epoch(r, state)]
        stored = int(state.sequence)
        return [r for r in batch.records if int(r.sequence) > stored]

    def store(self, batch: ShardBatch) -> None:
        """Store what is left of a batch. GapFound if records before it can no longer be read: it may be stored then."""
        self._check_parked()
        left = self.left_of(batch)
        if not left:
            return
        if self._continues(batch, left):
            self.accept(batch)
        else:
            log.info("reading the stream", extra={"shard": batch.shard, "slot": self.lane})
            self.read_to(batch.shard, left[-1].sequence)

    def accept(self, batch: ShardBatch) -> None:
        """Store what is left of a batch, whatever came before it."""
        if not self._fetcher.stream.keys_only:
            self._accept(batch.shard, self.left_of(batch), batch.size)
            return
        for records in self._with_images(batch):
            self._accept(batch.shard, records, weight(records))

    def accept_first(self, batch: ShardBatch) -> None:
        """Store the first record that is left of a batch, whatever came before it."""
        if left := self.left_of(batch):
            self.accept(msgspec.structs.replace(batch, records=left[:1]))

    def _accept(self, shard: str, records: Sequence[Record], size: int) -> None:
        """Stopped if the time is over before all of them are stored."""
        if not records:
            return
        state, created = self.pipeline.shards[shard], min(records[-1].created, self._environment.now())
        since, through = max(state.since, created), max(state.through or 0.0, created)
        self.pipeline.accept(Page(shard, records, False, through, size=size, since=since))
        self._beat()
        self._delivery.flush()
        if self.pipeline.pages:  # the hook was not called on them: the response names the first one
            raise Stopped
        self._watch.check()
        self._recheck.check()

    def _with_images(self, batch: ShardBatch) -> Iterator[Sequence[Record]]:
        """What is left of a batch of a KEYS_ONLY stream, in portions, with the images that the items have now."""
        left, keys, stream = self.left_of(batch), FIRST_KEYS, self._fetcher.stream
        while left:
            removed = {i for i, record in enumerate(left) if record.sequence in batch.removals}
            count = portion(left, removed, keys)
            of_portion = {i for i in removed if i < count}
            steps: Any = looked_up(stream, left[:count], of_portion, self._pause)
            records: Sequence[Record] = completed(self._context.client, steps)
            yield records
            keys, left = keys_for(records, keys), left[count:]

    def _take_over_window(self, lingers: float | None) -> None:
        """Open the in-doubt window for as long as requests of earlier invocations, or of a command, are in doubt."""
        assert self._in_doubt is not None
        now, view = self._environment.now(), self.pipeline.view
        at = Standing(self._state, self.pipeline.shards, view.slots, view.retries.all)
        self._until = lanes.in_doubt_until(self.lane, at, now)
        if (seconds := lanes.window_of(self._until, now)) > 0.0:
            self._in_doubt.begin(seconds)
        self._in_doubt.limit(max(0.0, seconds))
        self._begun = self._in_doubt.begun

    def rest(self) -> None:
        """Store until when requests of this lane may be applied, as nothing is sent before ``wake``.

        Otherwise the lane's next claim takes this container for killed, and keeps tombstones for minutes. If something
        was sent and is not stored, it is left at that.
        """
        if self._in_doubt is None or self._rests or self._delivery.busy or self.pipeline.is_storing:
            return
        now, begun = self._environment.now(), self._in_doubt.begun
        if begun != self._begun:
            self._begun, self._until = begun, now + LONGEST_IN_DOUBT
        left = max(0.0, lanes.window_of(self._until, now))
        self.pipeline.drop_ahead()
        self.pipeline.acknowledge(in_doubt=left, lingers=left or None, begun=begun, until=self._until)
        self._delivery.flush()
        self._rests = True

    def wake(self) -> None:
        """Store before anything is written that the lane no longer rests. A command may have retried something since.

        Fenced, with that or later, if another container has claimed the lane.
        """
        if self._rests:
            self._rests = False
            assert self._in_doubt is not None
            self._in_doubt.limit(max(0.0, lanes.window_of(self._until, self._environment.now())))
            self._delivery.know_parked()
            self._delivery.acknowledge_again()

    def _opened(self) -> GapFound | None:
        """Nothing is lost: the function has looked before it claimed the lane, and records what is raised here."""
        self._open_tables()
        return None

    def _check_parked(self) -> None:
        check_parked(self.pipeline.parked, self._context.config.parked_limit, self.pipeline.state)

    def _step(self) -> None:
        self._check_parked()
        super()._step()

    def _pause(self, waiting_for: str, progress: bool) -> None:
        """Wait before a look-up is repeated. Stopped if the invocation's time is over."""
        if waiting_for and not progress:
            log.info("waiting", extra={"reason": waiting_for})
        if self._environment.stop.wait(LOOK_UP_PAUSE if waiting_for else 0.0):
            raise Stopped

    def read_to(self, shard: str, sequence: str | None) -> None:
        """Read the shard until that record is stored; None: to its end. GapFound if records are lost.

        What is read besides is stored too. Stopped if time runs out; what is stored by then is not read again.
        """
        self.has_read = True
        while not self._has_stored(shard, sequence):
            if self._environment.stop.is_set():
                raise Stopped
            self._step()
        self._delivery.settle()

    def skip(self, gap: GapFound, shard: str, *, ended: bool) -> None:
        """Record a gap, and go on behind it: a rescan repairs it, and until then the stream is followed.

        ``ended``: nothing more comes from the shard, which its children wait for. GapFound, recorded too, if the target
        turns out to have lost something as well.
        """
        gap = explained(gap, self._context.table, self._current_table()) if gap.gone else gap
        log.error("gap", extra={"reason": gap.reason, "shard": gap.shard, "sequence": gap.sequence})
        self._steps.clear()
        own = self._lost_in_flight()
        self.pipeline.drop_ahead()
        now = self._environment.now()
        if not has_gap(gap.shard, self.pipeline.view):
            self.pipeline.gap(gap, now)
        if own is not None:
            self.pipeline.gap(own, now)
        elif ended:
            self.pipeline.give({shard: replace(self.pipeline.shards[shard], ended=True)}, {})
        own = self._delivery.record(own or gap) or own
        if own is not None:
            own.unwritable = True
            raise own

    def _lost_in_flight(self) -> GapFound | None:
        """What the target has lost, if the batch in flight shows it."""
        try:
            self._delivery.settle()
        except GapFound as gap:
            return gap
        return None

    def read_idle(self, shard: str, since: float) -> bool:
        """Read the shard until everything created before ``since`` is stored, or its end is. GapFound as ``read_to``.

        That nothing was in it by then is stored too: otherwise an idle shard's start would seem to be trimmed one day.
        False if it could not be read for a while: other shards are waiting.
        """
        self.has_read = True
        readable = self._environment.monotonic()
        while not self._is_read_through(shard, since) and self._environment.monotonic() - readable < PATIENCE:
            if self._environment.stop.is_set():
                raise Stopped
            self._step()
            if f"shard:{shard}" not in self._fetcher.waiting_for:
                readable = self._environment.monotonic()
        self.pipeline.heartbeat(self._heartbeat())
        self._delivery.settle()
        self._delivery.flush()
        return self._is_read_through(shard, since)

    def end(self, late: Callable[[], bool]) -> None:
        """Take the response to what is in flight, whose connection what follows uses. Stopped if it is ``late``."""
        self._delivery.end(late)

    def _is_read_through(self, shard: str, since: float) -> bool:
        state = self.pipeline.seen()[shard]
        return state.ended or (state.through or 0.0) >= since

    def _has_stored(self, shard: str, sequence: str | None) -> bool:
        state = self.pipeline.shards[shard]
        return state.ended or (sequence is not None and _is_at(state, sequence))

    def _continues(self, batch: ShardBatch, left: Sequence[Record]) -> bool:
        """Whether no record is missing between the stored position and the end of what is left of the batch."""
        stored = self.pipeline.shards[batch.shard].sequence
        if stored is None:
            return False
        wanted = [int(stored), *(int(record.sequence) for record in left)]
        try:
            shown = completed(self._context.client, _begins_with(self._fetcher.stream.arn, batch.shard, wanted))
        except (AwsError, TransientError):
            return False  # the reader that follows handles every error
        return bool(shown)


def has_gap(shard: str | None, view: CheckpointView, *, by_hand: bool = False) -> bool:
    """Whether a gap of the shard is recorded that the next rescan repairs: it repairs later ones with it. ``by_hand``:
    whether only one counts that a user must have repaired.

    One that a rescan repairs at the moment says nothing of what is lost since that rescan began.
    """
    repairing = view.pipeline.repairing if view.pipeline is not None else 0
    open_gaps = [g for g in view.gaps.values() if g.repaired is None and g.shard == shard and g.epoch >= repairing]
    return any(gap.by_hand or not by_hand for gap in open_gaps)


def _may_be_of_epoch(record: Record, state: ShardState) -> bool:
    """Whether a record of a shard that was open when the epoch began is needed; one without a time may be."""
    return not record.created or record.created >= state.since - OVERLAP


def _is_at(state: ShardState, sequence: str) -> bool:
    return state.sequence is not None and int(state.sequence) >= int(sequence)


class _Iterator(msgspec.Struct):
    ShardIterator: str


class _Sequence(msgspec.Struct):
    SequenceNumber: str


class _Shown(msgspec.Struct):
    dynamodb: _Sequence


class _Page(msgspec.Struct):
    Records: list[_Shown]
    NextShardIterator: str | None = None


def _begins_with(arn: str, shard: str, wanted: Sequence[int]) -> Any:
    """Whether the stream shows records with exactly these sequence numbers in a row, from the first of them on."""
    place = {"ShardIteratorType": "AT_SEQUENCE_NUMBER", "SequenceNumber": str(wanted[0])}
    body = yield Call("GetShardIterator", {"StreamArn": arn, "ShardId": shard, **place})
    iterator: str | None = decoded(body, _Iterator, "GetShardIterator").ShardIterator
    passed = 0
    while passed < len(wanted):
        if iterator is None:
            return False
        limit = min(MOST_RECORDS, len(wanted) - passed)
        page = decoded((yield Call("GetRecords", {"ShardIterator": iterator, "Limit": limit})), _Page, "GetRecords")
        shown = [int(r.dynamodb.SequenceNumber) for r in page.Records]
        if not shown or shown != wanted[passed : passed + len(shown)]:
            return False
        passed, iterator = passed + len(shown), page.NextShardIterator
    return True

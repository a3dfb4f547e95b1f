"""Removes what replicator added to the target's items, once other writers own the table. The pipeline ends with that.

Versions are what turns late and old writes away. So nothing that this pipeline sent may still be on its way, and from
the first removal on no run of it may write: the checkpoints say so before anything is removed.
"""

from __future__ import annotations

import os
import random
import socket
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from replicator.aws.boto import connect
from replicator.aws.client import Client
from replicator.change import OwnWrite, Record
from replicator.checkpoints.contract import Checkpoints, Claimed
from replicator.checkpoints.presence import check_known
from replicator.config.settings import Config
from replicator.engine import preexisting, startup
from replicator.engine.assembly import ends, introduce, target_tables
from replicator.errors import ConfigError, Fenced, GapFound
from replicator.hooks import loading
from replicator.key import key_text
from replicator.marks import Marks
from replicator.operations.unread import unread
from replicator.pipeline import stages
from replicator.pipeline.advance import unmarked
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.pipeline.pipeline import resumed_discovery
from replicator.pipeline.progress import HEARTBEAT_TIMEOUT
from replicator.source.decoding import RecordsDecoder
from replicator.source.stream import Stream
from replicator.source.table import SourceTable, describe_table
from replicator.state import (
    LONGEST_IN_DOUBT,
    Heartbeat,
    Owner,
    PipelineState,
    Save,
    Slot,
    Stripped,
    decode_repair,
    encode,
)
from replicator.target.contract import Strippable, Table

_ONCE_MORE = "start the run once more, until it is live, and stop it"
MOST_PASSES = 3  # an application that writes back what it read earlier brings attributes back


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done by this and earlier calls. ``left``: attributes that the last pass found, and perhaps not all."""

    items: int
    tombstones: int
    left: int


def strip(
    config: Config,
    confirmed: Callable[[Sequence[str]], bool],
    report: Callable[[Stripped], None],
    now: Callable[[], float],
    *,
    unchecked: bool = False,
) -> Outcome | None:
    """Strip the tables whose names ``confirmed`` is called with; None if it returns False.

    ``unchecked``: without looking for changes of the source that were not copied.
    """
    hook = loading.load(config.transform, config.base) if config.transform is not None else None
    client = connect(config.source)
    with ends(config) as (target, checkpoints):
        if not isinstance(target, Strippable):
            raise ConfigError(
                f"strip: only a DynamoDB table has attributes of replicator, and this is {config.target.type}"
            )
        if target.unstrippable:
            raise ConfigError(f"strip: {target.unstrippable}")
        claimed = checkpoints.read()
        check_known(config.pipeline, checkpoints, claimed)
        source = describe_table(client, config.source.table)
        introduce(config, target, source, client)
        tables = sorted(target_tables(config, source, hook), key=lambda table: table.name)
        found = preexisting.inspect(CheckpointView(claimed), source, target, tables, hook)
        startup.check_tables(replace(found, stripped=None, history_losses=()))
        _check(claimed, now())
        if not confirmed([table.name for table in tables]):
            return None
        claimed = checkpoints.claim(Owner(uuid.uuid4().hex, socket.gethostname(), os.getpid(), now()))
        _check(claimed, now())  # a run may have been up in the meantime
        if not unchecked:
            _check_drained(config, client, source, target.attributes, CheckpointView(claimed), now)
        return _Stripping(target, checkpoints, claimed, report, now).all(tables)


def _check(claimed: Claimed, now: float) -> None:
    """ConfigError if the versions may still be needed."""
    view = CheckpointView(claimed)
    repairs = [decode_repair(e.text) for e in claimed.entries if e.kind == "repair"]
    parked = sum(e.kind == "parked" for e in claimed.entries)
    reason = needed(view, parked=parked, repairing=any(not repair.ended for repair in repairs), now=now)
    if reason:
        raise ConfigError(f"strip: {reason}. Nothing was removed" if view.stripped is None else f"strip: {reason}")


def _check_drained(
    config: Config, client: Client, source: SourceTable, marks: Marks, view: CheckpointView, now: Callable[[], float]
) -> None:
    """ConfigError if the source has changes that no run of this pipeline has copied: none will from now on.

    What an opposite pipeline wrote does not count.
    """
    if view.stripped is not None:
        return
    try:
        late = _late(config, client, source, marks, view, now)
    except GapFound as e:
        raise ConfigError(
            f"strip: it can no longer be told whether every change of {source.name} was copied: {e}. If nothing has "
            "written to it since the last run, repeat this command with --unchecked. Nothing was removed"
        ) from e
    if late is not None:
        raise ConfigError(
            f"strip: {source.name} has changes that are not copied yet, for example of item {key_text(late.key)}, and "
            f"no run could copy them afterwards: stop what writes there, {_ONCE_MORE}. Nothing was removed"
        )


def _late(
    config: Config, client: Client, source: SourceTable, marks: Marks, view: CheckpointView, now: Callable[[], float]
) -> Record | None:
    arn = source.stream_arn
    if arn is None or view.pipeline is None or arn != view.pipeline.stream_arn:
        raise GapFound("its stream is not the one that the last run has read")

    def counts(record: Record) -> bool:
        return not (config.ttl_deletes == "ignore" and record.expired) and not isinstance(
            unmarked(record, marks), OwnWrite
        )

    decode = RecordsDecoder(source.keys, images=source.view != "KEYS_ONLY")
    stream = Stream(arn, config.source.table, source.keys, decode, now, random.Random())
    return unread(client, stream, view.shards, resumed_discovery(view), counts)


def needed(view: CheckpointView, *, parked: int, repairing: bool, now: float) -> str:
    """Why the pipeline still needs the versions; empty if it does not."""
    state = view.pipeline
    once_more = _ONCE_MORE
    if state is None or state.stage != stages.FOLLOWING or any(gap.repaired is None for gap in view.gaps.values()):
        return f"the copy is not complete (see: replicator status CONFIG), so it cannot have taken over; {once_more}"
    if any(beat.phase != "stopped" and now - beat.at <= HEARTBEAT_TIMEOUT for beat in view.heartbeats.values()):
        return "a run of this pipeline is up, or was killed seconds ago; stop it, and what restarts it, for good"
    if parked:
        advice = "replicator parked retry CONFIG --all, or drop"
        return f"{parked:,} change(s) are parked, and cannot be stored afterwards: {advice}"
    if repairing:
        return f"verify --repair is running, or was killed; wait until it has ended, or {once_more}"
    if view.retries.all > state.retried:
        return f"parked changes were retried since the last run, and those writes may still be applied; {once_more}"
    if (left := in_doubt(state, view.heartbeats.values(), view.slots.values(), now)) > 0:
        return f"requests without a response may still be applied for {left:.0f} s; repeat this command then"
    return ""


def in_doubt(state: PipelineState, heartbeats: Iterable[Heartbeat], slots: Iterable[Slot], now: float) -> float:
    """Seconds for which requests of the last run, or of its workers, may still be applied.

    A process whose last heartbeat does not say that it stopped was killed then, or later.
    """
    lingers = (state.lingers, state.lingers_earlier, *(slot.lingers for slot in slots))
    stopped = max(seconds or 0.0 for seconds in lingers)
    each = [(stopped if beat.phase == "stopped" else LONGEST_IN_DOUBT) - max(0.0, now - beat.at) for beat in heartbeats]
    return max(each, default=LONGEST_IN_DOUBT)


class _Stripping:
    """Passes through the tables. What is done is saved after each page, which also confirms the ownership."""

    def __init__(
        self,
        target: Strippable,
        checkpoints: Checkpoints,
        claimed: Claimed,
        report: Callable[[Stripped], None],
        now: Callable[[], float],
    ) -> None:
        self._target, self._checkpoints, self._report, self._now = target, checkpoints, report, now
        self._revision = sum(e.revision for e in claimed.entries if e.kind == "stripped")
        earlier = CheckpointView(claimed).stripped
        self._note = Stripped(now()) if earlier is None else earlier
        if self._note.ended is not None:
            self._note = replace(self._note, table="", cursor="", ended=None)

    def all(self, tables: Sequence[Table]) -> Outcome:
        self._save(self._note)
        changed = 0
        for _ in range(MOST_PASSES):
            changed = self._pass(tables)
            if not changed:
                break
            self._save(replace(self._note, table="", cursor=""))
        self._save(replace(self._note, ended=self._now()))
        return Outcome(self._note.items, self._note.tombstones, changed)

    def _pass(self, tables: Sequence[Table]) -> int:
        """Strip the rest of the tables; how many documents were changed."""
        before = self._note.items + self._note.tombstones
        for table in tables:
            if table.name < self._note.table:
                continue
            cursor: str | None = self._note.cursor if table.name == self._note.table else ""
            while cursor is not None:
                page = self._target.strip(table, cursor)
                cursor, note = page.after, self._note
                items, tombstones = note.items + page.items, note.tombstones + page.tombstones
                self._save(replace(note, table=table.name, cursor=cursor or "", items=items, tombstones=tombstones))
        return self._note.items + self._note.tombstones - before

    def _save(self, note: Stripped) -> None:
        try:
            self._checkpoints.save([Save("stripped", "", self._revision, encode(note))])
        except Fenced as e:
            raise Fenced(f"{e}. What was removed so far is noted; repeat the command once nothing else runs") from e
        self._revision += 1
        self._note = note
        self._report(note)

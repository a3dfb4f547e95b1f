"""A pipeline's progress, computed from its checkpoint entries, for `status` and for the live view of `run`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
from msgspec import structs

from replicator.pipeline import lanes, stages
from replicator.pipeline.coordination import COORDINATOR, loads, writers
from replicator.pipeline.lineage import childless, readable
from replicator.pipeline.parked import ParkedItems, item_of, settled
from replicator.state import (
    BY_RUN,
    FULL_SCOPE,
    UNFINISHED,
    Counts,
    Entry,
    Gap,
    Heartbeat,
    HistoryReport,
    Owner,
    PipelineState,
    ResyncRequest,
    SegmentState,
    ShardState,
    Slot,
    Stripped,
    Verified,
    decode,
)

RETENTION_HOURS = 24.0  # DynamoDB Streams keeps a record that long
HEARTBEAT_TIMEOUT = 15.0  # seconds without a heartbeat after which a run counts as stopped
STARTING = 30.0  # seconds that a worker gets for its start and its first heartbeat
UNINVOKED = 45 * 60.0  # seconds without an invocation after which AWS Lambda counts as stopped
ABANDONED = 900.0  # seconds without a sign of a command's pass after which it does not count as in progress
CURRENT = 1.5  # seconds for which a report of a run counts as its present state
CLOCK_SKEW = 300.0  # seconds that another machine's clock may be ahead; times further in the future are ignored


class Backfill(msgspec.Struct, frozen=True):
    """Progress of the scan. ``rate``: items per second. ``estimate``: DynamoDB's item count, which is hours old."""

    segments_ended: int
    segments: int
    items: int
    estimate: int | None
    rate: float | None
    eta_seconds: float | None


class Shards(msgspec.Struct, frozen=True):
    """``waiting``: shards that may not be read until their parents are fully stored."""

    open: int = 0
    ended: int = 0
    waiting: int = 0


class Verifying(msgspec.Struct, frozen=True):
    """A verification pass in progress. ``by``: "run", or "command"."""

    so_far: Verified
    by: str

    def unrepaired(self, last: Verified | None) -> int:
        """Differences that are not repaired, unless the ``last`` pass that ended began after they were found."""
        return self.so_far.unrepaired if last is None or self.so_far.found_since(last) else 0


class WorkerProgress(msgspec.Struct, frozen=True):
    """A worker of a run with several, or its coordinator. ``slot``: what it claims; ``host``: its node, "" if nothing
    has claimed the slot. ``started``: its process. ``silent``: seconds since its last sign; None: there was none yet.
    ``shards``, ``segments``: that are its and not at their end. ``restarts``: in this run; None: unknown.
    """

    slot: str
    host: str = ""
    pid: int | None = None
    started: float | None = None
    silent: float | None = None
    shards: int = 0
    segments: int = 0
    waiting_for: str | None = None
    restarts: int | None = None

    @property
    def is_coordinator(self) -> bool:
        return self.slot == COORDINATOR

    @property
    def is_silent(self) -> bool:
        return self.silent is None or self.silent > HEARTBEAT_TIMEOUT

    @property
    def is_up(self) -> bool:
        return bool(self.host) and not self.is_silent


class Progress(msgspec.Struct, frozen=True):
    """A pipeline's progress at one moment; None means unknown.

    ``phase``: backfill, catching-up, live, gap or stopped. ``rate``: records per second. ``gaps``: those not repaired.
    ``parked``: number of items. ``owner``: the run that may write, alive or not. ``retention_left_hours``: hours until
    the stream starts to drop unread records. ``request``: a rescan that no run has started yet. ``verified``: the last
    pass of ``verify``, or of the run itself, that ended. ``stripped``: `strip` has ended the pipeline. ``workers``: of
    a run with several, the coordinator first; empty for one process. ``histories``: of the target's tables, as the run
    last looked at them.
    """

    phase: str
    lag_seconds: float | None = None
    retention_left_hours: float | None = None
    backfill: Backfill | None = None
    shards: Shards = Shards()
    rate: float | None = None
    gaps: tuple[Gap, ...] = ()
    parked: int = 0
    counts: Counts = Counts()
    waiting_for: str | None = None
    epoch: int | None = None
    owner: Owner | None = None
    request: ResyncRequest | None = None
    verified: Verified | None = None
    verifying: Verifying | None = None
    stripped: Stripped | None = None
    workers: tuple[WorkerProgress, ...] = ()
    histories: tuple[HistoryReport, ...] = ()


def progress(entries: Iterable[Entry], counts: Mapping[str, Counts], now: float) -> Progress:
    """Progress from a pipeline's checkpoint entries at ``now`` (seconds since 1970)."""
    entries = tuple(entries)
    run = next((entry.revision for entry in entries if (entry.kind, entry.id) == ("owner", "")), 0)
    kinds = _by_kind(entries)
    state = kinds["pipeline"].get("")
    following = state is not None and state.stage == stages.FOLLOWING
    by_lambda = following and lanes.followed(writers(entries) - {""})
    current = measured(
        state=state,
        heartbeat=invoked(kinds["pulse"], now, kinds["owner"].get("")) if by_lambda else kinds["pulse"].get(""),
        shards=kinds["shard"],
        segments=kinds["segment"],
        gaps=kinds["gap"],
        parked=len({item_of(id) for id in kinds["parked"]}),
        counts=sum(counts.values(), Counts()),
        now=now,
        owner=kinds["owner"].get(""),
        request=kinds["request"].get(""),
    )
    workers = workers_of(
        run,
        slots=kinds["slot"],
        owners=kinds["owner"],
        heartbeats=kinds["pulse"],
        shards=kinds["shard"],
        segments=kinds["segment"],
        now=now,
    )
    if by_lambda and current.waiting_for is None and current.phase != "stopped":
        current = structs.replace(current, waiting_for=_owed(entries, state, kinds["slot"]))
    if current.waiting_for is None and current.phase != "stopped":
        current = structs.replace(current, waiting_for=_blocked(workers, kinds["owner"].get(""), now))
    stripped = kinds["stripped"].get("")
    return structs.replace(with_passes(current, kinds["verified"], now), stripped=stripped, workers=workers)


def workers_of(
    run: int,
    *,
    slots: Mapping[str, Slot],
    owners: Mapping[str, Owner],
    heartbeats: Mapping[str, Heartbeat],
    shards: Mapping[str, ShardState],
    segments: Mapping[str, SegmentState],
    now: float,
) -> tuple[WorkerProgress, ...]:
    """The coordinator and the workers of the ``run`` (the revision of its claim); empty if that is one process, or if
    AWS Lambda follows the stream: its containers come and go.

    Slots that an earlier run with more workers has left are known by having nothing to do.
    """
    noted = slots.get(COORDINATOR)
    if noted is None or noted.begun != run or any(lanes.is_lane(s.slot) for s in shards.values() if not s.ended):
        return ()
    heartbeats = {slot: beat for slot, beat in heartbeats.items() if not slot or _is_of(beat, owners.get(slot))}
    beats = {COORDINATOR: heartbeats.get(""), **heartbeats}
    own = heartbeats.get("")
    restarts = own.restarts if own is not None else {}
    known = [slot for slot in owners if slot not in ("", COORDINATOR) and not lanes.is_lane(slot)]
    given = loads(shards, {}, known), loads({}, segments, known)
    busy = [slot for slot in known if given[0][slot] or given[1][slot] or _is_up(heartbeats.get(slot), now)]
    return tuple(
        _worker(slot, owners.get(slot), beats.get(slot), (given[0][slot], given[1][slot]), restarts, now)
        for slot in (COORDINATOR, *sorted(busy, key=lambda slot: (len(slot), slot)))
    )


def _is_of(heartbeat: Heartbeat, owner: Owner | None) -> bool:
    """Whether it is not known to be that of an earlier worker of the slot."""
    return owner is None or not owner.run or not heartbeat.who or heartbeat.who == owner.who


def _is_up(heartbeat: Heartbeat | None, now: float) -> bool:
    return heartbeat is not None and heartbeat.phase != "stopped" and now - heartbeat.at <= HEARTBEAT_TIMEOUT


def _worker(
    slot: str,
    owner: Owner | None,
    heartbeat: Heartbeat | None,
    given: tuple[int, int],
    restarts: Mapping[str, int],
    now: float,
) -> WorkerProgress:
    claimed = owner if owner is not None and owner.run else None
    return WorkerProgress(
        slot,
        host=claimed.host if claimed else "",
        pid=claimed.pid if claimed else None,
        started=claimed.started if claimed else None,
        silent=max(0.0, now - heartbeat.at) if heartbeat else None,
        shards=given[0],
        segments=given[1],
        waiting_for=heartbeat.waiting_for if heartbeat else None,
        restarts=restarts.get(slot, 0) if heartbeat else None,
    )


def _blocked(workers: Iterable[WorkerProgress], run: Owner | None, now: float) -> str | None:
    """What one of a run's ``workers`` waits for, or that one is missing, although the others go on; None if all do."""
    own = [worker for worker in workers if not worker.is_coordinator]
    waiting = [w for w in own if w.waiting_for is not None and not w.is_silent]
    if waiting:
        return f"worker {waiting[0].slot}: {waiting[0].waiting_for}"
    run_started = run.started if run is not None else now
    missing = [w for w in own if w.is_silent and now - max(run_started, w.started or 0.0) > STARTING]
    given = [w.slot for w in missing if w.shards or w.segments]
    return f"worker {given[0]} is not up: what it is given is not read" if given else None


def invoked(beats: Mapping[str, Heartbeat], now: float, last_run: Owner | None) -> Heartbeat | None:
    """The last heartbeat of an invocation of AWS Lambda, as that of a run that is up; None if none came for long.

    There is none between invocations: one comes with each batch, and with each scheduled invocation. Those of before
    the ``last_run``, which handed the stream over, say nothing of now: perhaps every invocation has failed since.
    """
    invoked = [b for id, b in beats.items() if (not id or lanes.is_lane(id)) and b.phase != "stopped"]
    last = max(invoked, key=lambda b: b.at, default=None)
    if last is None or not -CLOCK_SKEW <= now - last.at <= UNINVOKED:
        return None
    if last_run is not None and last.at < last_run.started:
        return None
    scheduled = beats.get("", last)
    return replace(last, at=now, rate=None, backfill_rate=None, histories=scheduled.histories)


def _owed(entries: Iterable[Entry], state: PipelineState | None, slots: Mapping[str, Slot]) -> str | None:
    """What waits for a scheduled invocation, which sweeps, or for a backfill to be run again; None if nothing does."""
    if _owes_second_sweep(state, slots):
        return (
            "a sweep of what requests of the epoch before may have brought back: the backfill's run makes it, after up "
            "to 6 minutes. If it is not up any more: replicator run CONFIG --until backfilled"
        )
    entries = tuple(entries)
    spared = [entry.id for entry in entries if entry.kind == "spared"]
    left = len(settled(spared, ParkedItems.among(entries))) if spared else 0
    if not left:
        return None
    return (
        f"a sweep of what {left:,} item(s) had before they were parked: the next scheduled invocation removes it; at "
        "once: replicator run CONFIG --until backfilled"
    )


def _owes_second_sweep(state: PipelineState | None, slots: Mapping[str, Slot]) -> bool:
    """Where requests may be applied late, which only then lanes say, and the backfill did not come to its end."""
    late = any(slot.until is not None for slot in slots.values())
    return late and state is not None and state.resync and state.lingers_earlier is not None


def passes_of(entries: Iterable[Entry]) -> dict[str, Verified]:
    """The verification passes, by the ids of their entries."""
    found = {e.id: decode(e.kind, e.id, e.text) for e in entries if e.kind == "verified"}
    return {id: v for id, v in found.items() if isinstance(v, Verified)}


def with_passes(progress: Progress, passes: Mapping[str, Verified], now: float) -> Progress:
    """``progress`` with the last pass that ended, and the one in progress. A run's own may wait for a long time.

    The last one is the one over the whole table that began last, else a sample: it has seen what has been repaired
    since the others began. What others have found since is added (``Verified.earlier``): a later sample hides nothing.
    """
    ended = [v for v in passes.values() if v.ended is not None]
    by = {UNFINISHED[BY_RUN]: "run"}
    going = [
        (id in by, v.updated, Verifying(v, by.get(id, "command")))
        for id, v in passes.items()
        if v.ended is None and (id in by or (now - v.updated < ABANDONED and not v.left))
    ]
    last = max(ended, key=lambda v: (v.scope == FULL_SCOPE, v.started), default=None)
    verifying = max(going, key=lambda g: g[:2])[2] if going else None
    others = [v for v in passes.values() if v is not last and (verifying is None or v is not verifying.so_far)]
    since = max((v.unrepaired for v in others if last is not None and v.found_since(last)), default=0)
    if last is not None and since:
        last = replace(last, earlier=since)
    return structs.replace(progress, verified=last, verifying=verifying)


def measured(
    *,
    state: PipelineState | None,
    heartbeat: Heartbeat | None,
    shards: Mapping[str, ShardState],
    segments: Mapping[str, SegmentState],
    gaps: Mapping[str, Gap],
    parked: int,
    counts: Counts,
    now: float,
    owner: Owner | None = None,
    request: ResyncRequest | None = None,
) -> Progress:
    """Progress from decoded entries.

    Ignores a heartbeat that is too old, or in the future: a run with a wrong clock may have ended long ago.
    """
    alive = heartbeat if heartbeat is not None and -CLOCK_SKEW <= now - heartbeat.at <= HEARTBEAT_TIMEOUT else None
    unrepaired = tuple(g for _, g in sorted(gaps.items()) if g.repaired is None)
    current = readable(shards)
    lag = _lag(shards, current, now)
    return Progress(
        phase=_phase(state, alive, unrepaired),
        lag_seconds=lag,
        retention_left_hours=None if lag is None else max(0.0, RETENTION_HOURS - lag / 3600),
        backfill=_backfill(segments, state, alive),
        shards=_shards(shards, current),
        rate=alive.rate if alive else None,
        gaps=unrepaired,
        parked=parked,
        counts=counts,
        waiting_for=alive.waiting_for if alive else None,
        epoch=state.epoch if state else None,
        histories=heartbeat.histories if heartbeat else (),
        owner=owner,
        request=request,
    )


def aged(progress: Progress, seconds: float) -> Progress:
    """What ``progress`` of so many seconds ago says by now, if nothing was stored since."""
    if progress.lag_seconds is None:
        return progress
    lag = progress.lag_seconds + seconds
    return structs.replace(
        progress,
        phase="catching-up" if progress.phase == "live" else progress.phase,
        lag_seconds=lag,
        retention_left_hours=max(0.0, RETENTION_HOURS - lag / 3600),
        rate=0.0,
    )


def as_values(progress: Progress) -> dict[str, Any]:
    """The JSON fields of ``status --json`` and of ``progress`` events, documented in docs/operations.md.

    None: unknown, or no backfill was requested.
    """
    b, o, r, v = progress.backfill, progress.owner, progress.request, progress.verified
    s, going = progress.stripped, progress.verifying
    return {
        "phase": progress.phase,
        "lag_seconds": progress.lag_seconds,
        "retention_left_hours": progress.retention_left_hours,
        "backfill": b
        and {
            "segments": b.segments,
            "segments_ended": b.segments_ended,
            "items": b.items,
            "items_estimate": b.estimate,
            "items_per_second": b.rate,
            "eta_seconds": b.eta_seconds,
        },
        "shards": structs.asdict(progress.shards),
        "records_per_second": progress.rate,
        "gaps": len(progress.gaps),
        "gap_list": [_gap_values(gap) for gap in progress.gaps],
        "parked": progress.parked,
        "counts": structs.asdict(progress.counts),
        "waiting_for": progress.waiting_for,
        "epoch": progress.epoch,
        "owner": o and {"run": o.run, "host": o.host, "pid": o.pid, "started_at": o.started},
        "resync_requested": r
        and {"requested_at": r.requested, "whole_table": r.whole, "keys": len(r.keys), "conditions": len(r.where)},
        "verified": v
        and {
            "started_at": v.started,
            "ended_at": v.ended,
            "scope": v.scope,
            "items": v.items,
            "documents": v.documents,
            "differences": v.known,
            "repaired": v.repaired,
            "parked": v.parked,
            "unconfirmed": v.unconfirmed,
        },
        "verifying": going
        and {
            "by": going.by,
            "started_at": going.so_far.started,
            "updated_at": going.so_far.updated,
            "scope": going.so_far.scope,
            "done": going.so_far.done,
            "items": going.so_far.items,
            "documents": going.so_far.documents,
            "differences": going.so_far.differences,
            "repaired": going.so_far.repaired,
            "parked": going.so_far.parked,
            "unconfirmed": going.so_far.unconfirmed,
        },
        "stripped": s and {"started_at": s.started, "ended_at": s.ended},
        "histories": [_history_values(history) for history in progress.histories] or None,
        "workers": [_worker_values(worker) for worker in progress.workers] or None,
    }


def _history_values(history: HistoryReport) -> dict[str, Any]:
    return {
        "table": history.table,
        "since": history.since,
        "unknown_seconds": history.unknown,
        "removed_before": history.removed,
        "bytes": history.bytes,
        "partitions": history.partitions,
        "lost": history.lost or None,
    }


def _worker_values(worker: WorkerProgress) -> dict[str, Any]:
    return {
        "slot": worker.slot,
        "host": worker.host or None,
        "pid": worker.pid,
        "started_at": worker.started,
        "silent_seconds": worker.silent,
        "shards": worker.shards,
        "segments": worker.segments,
        "waiting_for": worker.waiting_for,
        "restarts": worker.restarts,
    }


def _gap_values(gap: Gap) -> dict[str, Any]:
    return {
        "reason": gap.reason,
        "found_at": gap.found,
        "epoch": gap.epoch,
        "shard": gap.shard,
        "sequence": gap.sequence,
    }


def known(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def _by_kind(entries: Iterable[Entry]) -> dict[str, dict[str, Any]]:
    of = ("owner", "pipeline", "pulse", "slot", "gap", "shard", "segment", "parked", "request", "verified", "stripped")
    kinds: dict[str, dict[str, Any]] = {kind: {} for kind in of}
    for entry in entries:
        if entry.kind == "parked":  # read without its text
            kinds["parked"][entry.id] = None
        elif entry.kind in kinds:
            kinds[entry.kind][entry.id] = decode(entry.kind, entry.id, entry.text)
    return kinds


def _phase(state: PipelineState | None, alive: Heartbeat | None, gaps: tuple[Gap, ...]) -> str:
    if any(state is None or g.epoch >= state.repairing for g in gaps):
        return "gap"
    return alive.phase if alive else "stopped"


def _lag(shards: Mapping[str, ShardState], current: Collection[str], now: float) -> float | None:
    """Seconds since everything was last stored; None if that is unknown for a shard, or if there are no shards.

    An ended shard counts until its children are listed: they start where it ended, at ``since`` at the earliest.
    A time far in the future, from a wrong clock, counts as unknown.
    """
    times = [shards[id].through for id in current] + [shards[id].since for id in childless(shards)]
    known = [time for time in times if time is not None and time - now <= CLOCK_SKEW]
    return max(0.0, now - min(known)) if known and len(known) == len(times) else None


def _shards(shards: Mapping[str, ShardState], current: Collection[str]) -> Shards:
    ended = sum(s.ended for s in shards.values())
    return Shards(open=len(current), ended=ended, waiting=len(shards) - ended - len(current))


def _backfill(
    segments: Mapping[str, SegmentState], state: PipelineState | None, alive: Heartbeat | None
) -> Backfill | None:
    if not segments:
        return None
    ended, items = sum(s.ended for s in segments.values()), sum(s.items for s in segments.values())
    estimate = state.items if state else None
    total = max(s.total for s in segments.values())
    rate = alive.backfill_rate if alive and ended < total else None  # which only fades away once it has ended
    return Backfill(ended, total, items, estimate, rate, 0.0 if ended == total else _eta(items, estimate, rate))


def _eta(items: int, estimate: int | None, rate: float | None) -> float | None:
    if estimate is None or not rate or items >= estimate:  # the estimate is outdated
        return None
    return (estimate - items) / rate

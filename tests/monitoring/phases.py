"""Runs in every phase, as a monitor knows them, at a fixed time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from msgspec import structs

from replicator.monitoring.history import EVERY, Sample
from replicator.monitoring.monitor import Monitor, Subject
from replicator.pipeline.details import Details, ParkedDetail, ShardDetail
from replicator.pipeline.progress import Backfill, Progress, Shards, Verifying, WorkerProgress
from replicator.state import FULL_SCOPE, Counts, Gap, HistoryReport, Owner, Verified

NOW = 1_780_000_000.0
SUBJECT = Subject("orders", "orders.yaml", "DynamoDB orders", "postgres", ("orders",))
HOSTILE = '["<script>alert(1)</script>\u202e\u001b[31m"]'

_IDS = [f"shardId-0000001779{n:06d}{n * 37 % 1000:03d}-{n * 2654435761 % 2**32:08x}" for n in range(1, 9)]
_SHARDS = (
    ShardDetail(_IDS[0], None, "ended", None, 812_204),
    ShardDetail(_IDS[1], _IDS[0], "ended", None, 1_204_551),
    ShardDetail(_IDS[2], _IDS[1], "open", NOW - 0.4, 1_290_118),
    ShardDetail(_IDS[3], _IDS[1], "open", NOW - 0.6, 1_288_002),
    ShardDetail(_IDS[4], None, "ended", None, 730_118),
    ShardDetail(_IDS[5], _IDS[4], "open", NOW - 0.3, 981_300),
    ShardDetail(_IDS[6], _IDS[5], "waiting", None, 0),
    ShardDetail(_IDS[7], _IDS[5], "waiting", None, 0),
)
_OWNER = Owner("run", "worker-1", 4711, NOW - 5000)
_LIVE = Progress(
    "live",
    lag_seconds=0.4,
    retention_left_hours=24.0,
    backfill=Backfill(8, 8, 2_053_118, 2_050_000, None, 0.0),
    shards=Shards(open=3, ended=3, waiting=2),
    rate=348.0,
    counts=Counts(read=3_302_411, applied=3_241_870, superseded=42_518, filtered=18_022, parked=1),
    epoch=1024,
)
_DETAILS = Details(_SHARDS, len(_SHARDS), buffered=120, batches=1, requests=4, stage="following", owner=_OWNER)


@dataclass(frozen=True)
class Story:
    """What a run went through: its progress now, and what it was like ``ago`` seconds ago (None: not yet up)."""

    progress: Progress
    details: Details
    past: Callable[[float], Sample | None]
    reduced_guarantee: str = ""
    seconds_stuck: float = 0.0


def _wave(ago: float, period: float, phase: float = 0.0) -> float:
    return 0.5 + 0.3 * math.sin(ago / period + phase) + 0.2 * math.sin(ago / period * 2.7 + 1)


def _live(ago: float) -> Sample:
    rate = 200 + 320 * _wave(ago, 400) + 60 * _wave(ago, 17)
    burst = 14 * math.exp(-(((ago - 1500) / 90) ** 2))
    lag = 0.4 + 0.5 * _wave(ago, 13) + burst
    return Sample(NOW - ago, "live" if lag <= 10 else "catching-up", lag=lag, rate=rate, retention_left=86400 - lag)


def _backfill(ago: float, length: float = 1500.0) -> Sample | None:
    if ago > length:
        return None
    rate = 350 + 200 * _wave(ago, 300)
    scan = min(10_400.0, (length - ago) * 140) * (0.85 + 0.3 * _wave(ago, 60))
    lag = 1.2 + 2 * _wave(ago, 40)
    return Sample(NOW - ago, "backfill", lag=lag, rate=rate + scan, scan_rate=scan, retention_left=86400 - lag)


def _catching_up(ago: float) -> Sample | None:
    if ago > 900:
        return None
    lag = 1900 + 9.0 * ago + 60 * _wave(ago, 80)
    rate = min(41_000.0, (900 - ago) * 900) * (0.8 + 0.3 * _wave(ago, 50))
    return Sample(NOW - ago, "catching-up", lag=lag, rate=rate, retention_left=86400 - lag)


def _waiting(since: float, before: Callable[[float], Sample | None], ago: float) -> Sample | None:
    if ago > since:
        return before(ago)
    lag = 0.5 + since - ago
    phase = "live" if lag < 10 else "catching-up"
    return Sample(NOW - ago, phase, waiting=True, lag=lag, rate=0.0, retention_left=86400 - lag)


def _gap(ago: float) -> Sample | None:
    if ago > 300:
        return None
    return Sample(NOW - ago, "gap", lag=91_000 - ago, rate=0.0, retention_left=0.0)


_BACKFILL = structs.replace(
    _LIVE,
    phase="backfill",
    lag_seconds=2.0,
    backfill=Backfill(3, 8, 1_284_000, 2_050_000, 10_400.0, 73.0),
    rate=10_750.0,
    counts=Counts(read=1_302_411, applied=1_301_870, superseded=518, filtered=22, parked=1),
)
_REFUSED = "cannot connect to 127.0.0.1:5432: connection refused (failing for 214 s, next attempt in 11.3 s)"
_FOUND = Gap("the position was trimmed: the stream keeps records for 24 hours", NOW - 240, 1024, _IDS[2], "4810" * 5)
_PARKED = (
    ParkedDetail('["order#10442"]', "KeyError: 'total' (hooks.py, line 7, in order)", NOW - 8_040),
    ParkedDetail('["order#10518"]', "KeyError: 'total' (hooks.py, line 7, in order)", NOW - 5_200),
    ParkedDetail(HOSTILE, "column price: the number has more digits than numeric(10,2) holds", NOW - 64),
)


_HISTORIES = (
    HistoryReport("orders", NOW - 90 * 86_400, 5400.0, NOW - 90 * 86_400, 4_509_715_660, 14),
    HistoryReport("lines", NOW - 3600, 0.0, None, 81_920, 3, '"public"."lines_history_base" is gone'),
)
_VERIFIED = Verified(
    NOW - 90_000, NOW - 62_000, 1024, FULL_SCOPE, 41, items=2_051_004, documents=2_051_004, ended=NOW - 62_000
)
_VERIFYING = Verifying(Verified(NOW - 3600, NOW - 4, 1024, FULL_SCOPE, 41, items=1_420_118, done=0.37), "run")
_DIFFERENT = replace(_VERIFIED, differences=3, parked=1, found=NOW - 70_000)


_WORKERS = (
    WorkerProgress("coordinator", "node-a", 4711, NOW - 5000, 0.4, restarts=1),
    WorkerProgress("0", "node-a", 4712, NOW - 5000, 0.3, shards=2, restarts=0),
    WorkerProgress("1", "node-b", 311, NOW - 800, 0.5, shards=1, waiting_for=_REFUSED, restarts=2),
    WorkerProgress("2", "node-c", 97, NOW - 5000, 19.0, shards=0, segments=1, restarts=0),
    WorkerProgress("3", restarts=0),
)
_OWNED = tuple(zip(_SHARDS, ("", "", "0", "0", "", "1", "", ""), strict=True))


def stories() -> Mapping[str, Story]:
    waiting = partial(_waiting, 214.0, _live)
    late = tuple(structs.replace(s, through=s.through and s.through - 214.0) for s in _SHARDS)
    behind = tuple(structs.replace(s, through=s.through and s.through - 1900.0) for s in _SHARDS)
    lost = structs.replace(_LIVE, phase="catching-up", lag_seconds=214.5, waiting_for=_REFUSED, rate=0.0)
    gone = tuple(structs.replace(s, through=s.through and s.through - 91_000.0) for s in _SHARDS)
    gap = structs.replace(
        _LIVE, phase="gap", lag_seconds=91_000.0, retention_left_hours=0.0, rate=0.0, gaps=(_FOUND,), backfill=None
    )
    return {
        "starting": Story(Progress("starting"), Details(), lambda ago: None),
        "backfill": Story(_BACKFILL, structs.replace(_DETAILS, stage="scanning"), _backfill),
        "catching-up": Story(
            structs.replace(_LIVE, phase="catching-up", lag_seconds=1900.0, retention_left_hours=23.5, rate=38_200.0),
            structs.replace(_DETAILS, shards=behind),
            _catching_up,
        ),
        "live": Story(_LIVE, _DETAILS, _live),
        "verifying": Story(structs.replace(_LIVE, verified=_VERIFIED, verifying=_VERIFYING), _DETAILS, _live),
        "differences": Story(structs.replace(_LIVE, verified=_DIFFERENT), _DETAILS, _live),
        "history": Story(structs.replace(_LIVE, histories=_HISTORIES), _DETAILS, _live),
        "waiting": Story(
            lost, structs.replace(_DETAILS, shards=late, in_doubt_seconds=86.0), waiting, seconds_stuck=214.0
        ),
        "gap": Story(gap, structs.replace(_DETAILS, shards=gone), _gap),
        "workers": Story(
            structs.replace(_LIVE, waiting_for=f"worker 1: {_REFUSED}", workers=_WORKERS),
            structs.replace(_DETAILS, shards=tuple(structs.replace(s, slot=slot) for s, slot in _OWNED)),
            _live,
        ),
        "parked": Story(structs.replace(_LIVE, parked=3), structs.replace(_DETAILS, parked=_PARKED), _live),
        "stalled": Story(structs.replace(_LIVE, rate=0.0), _DETAILS, _live, seconds_stuck=41.0),
    }


class Clock:
    """Both clocks of a monitor."""

    def __init__(self, now: float = NOW) -> None:
        self.time = now

    def __call__(self) -> float:
        return self.time


def monitor(story: Story, subject: Subject = SUBJECT, **more: Any) -> Monitor:
    """A monitor that has seen a story for an hour, and stands at NOW."""
    clock = Clock(NOW - story.seconds_stuck)
    monitor = Monitor(subject, now=clock, monotonic=clock, **more)
    monitor.began = NOW - 5000
    monitor.detailed(lambda: story.details)
    before = structs.replace(story.progress, lag_seconds=_before(story))
    if story.progress.phase != "starting":
        monitor.observe(before)
    clock.time = NOW
    if story.progress.waiting_for is not None:
        monitor.observe(story.progress)
    monitor.guarantee_reduced(story.reduced_guarantee)
    for step in range(720, 0, -1):
        if (sample := story.past(step * EVERY)) is not None:
            monitor.history.add(sample)
    return monitor


def _before(story: Story) -> float | None:
    lag = story.progress.lag_seconds
    return None if lag is None else max(0.0, lag - story.seconds_stuck)

"""What `status` derives from checkpoints: phase, lag, backfill; unknown is None, never 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from replicator.duration import duration
from replicator.pipeline.progress import Backfill, Progress, Shards, WorkerProgress, as_values, progress
from replicator.state import (
    Counts,
    Entry,
    Gap,
    Heartbeat,
    Owner,
    PipelineState,
    SegmentState,
    ShardState,
    Slot,
    encode,
)

NOW = 1_800_000_000.0
STATE = PipelineState(1024, "stream", "table", "id", "following", items=1000)


def shard(through: float | None = NOW - 5, parent: str | None = None, *, ended: bool = False) -> ShardState:
    return ShardState(parent, "1", whole=True, since=0.0, ended=ended, through=through)


def seen(entries: Mapping[tuple[str, str], Any], counts: Mapping[str, Counts] | None = None) -> Progress:
    listed = [Entry(kind, id, 1, "" if kind == "parked" else encode(v)) for (kind, id), v in entries.items()]
    return progress(listed, counts or {}, NOW)


def test_without_entries_the_phase_is_stopped_and_the_rest_unknown() -> None:
    assert seen({}) == Progress("stopped")
    values = as_values(seen({}))
    assert values["lag_seconds"] is None
    assert values["retention_left_hours"] is None
    assert values["backfill"] is None


@pytest.mark.parametrize(("age", "phase"), [(0, "live"), (15, "live"), (15.1, "stopped"), (9000, "stopped")])
def test_a_run_without_a_heartbeat_for_15_seconds_is_stopped(age: float, phase: str) -> None:
    current = seen({("pulse", ""): Heartbeat(NOW - age, "live", rate=7.0, waiting_for="waits")})

    assert current.phase == phase
    assert (current.rate, current.waiting_for) == ((7.0, "waits") if phase == "live" else (None, None))


@pytest.mark.parametrize(("ahead", "phase"), [(300, "live"), (301, "stopped"), (86400, "stopped")])
def test_a_heartbeat_from_the_future_proves_nothing(ahead: float, phase: str) -> None:
    """The clock was wrong when it was saved; otherwise a dead run would count as live until that time."""
    read = shard(through=NOW + ahead)
    current = seen({("pulse", ""): Heartbeat(NOW + ahead, "live"), ("pipeline", ""): STATE, ("shard", "s"): read})

    assert current.phase == phase
    assert (current.lag_seconds, current.retention_left_hours) == ((0.0, 24.0) if phase == "live" else (None, None))


def test_a_run_with_workers_shows_who_has_what_and_what_each_waits_for() -> None:
    far = Owner("w", "far", 7, NOW - 60)
    entries: dict[tuple[str, str], Any] = {
        ("owner", ""): Owner("r", "here", 1, NOW - 90),
        ("owner", "coordinator"): Owner("c", "near", 2, NOW - 80),
        ("owner", "1"): far,
        ("owner", "0"): replace(far, run=""),  # taken away
        ("owner", "3"): replace(far, host="of an earlier run with more workers"),
        ("slot", "coordinator"): Slot(0, "", begun=1),
        ("pulse", ""): Heartbeat(NOW - 1, "live", restarts={"1": 2}),
        ("pulse", "1"): Heartbeat(NOW - 16, "live", waiting_for="the target"),
        ("pulse", "3"): Heartbeat(NOW - 3, "stopped"),
        ("shard", "a"): replace(shard(), slot="1"),
        ("shard", "b"): replace(shard(), slot="0"),
        ("shard", "c"): replace(shard(ended=True), slot="3"),
        ("segment", "0"): SegmentState(1, slot="1"),
    }
    workers = seen(entries).workers
    assert workers == (
        WorkerProgress("coordinator", "near", 2, NOW - 80, silent=1.0, restarts=0),
        WorkerProgress("0", shards=1),
        WorkerProgress("1", "far", 7, NOW - 60, 16.0, 1, 1, waiting_for="the target", restarts=2),
    )
    assert [worker.is_up for worker in workers] == [True, False, False]
    later = {**entries, ("slot", "coordinator"): Slot(0, "", begun=7)}
    assert seen(later).workers == (), "one process has claimed the pipeline since"
    assert as_values(seen(later))["workers"] is None


def two_workers(**changes: Any) -> dict[tuple[str, str], Any]:
    """A run that began two minutes ago, and whose workers have a shard each. ``changes``: of heartbeats, by slot."""
    owners = {slot: Owner(slot, "here", 7, NOW - 110) for slot in ("coordinator", "0", "1")}
    beats = {
        "": Heartbeat(NOW - 1, "live"),
        "0": Heartbeat(NOW - 1, "live"),
        "1": Heartbeat(NOW - 1, "live"),
        **changes,
    }
    return {
        ("pipeline", ""): STATE,
        ("owner", ""): Owner("r", "here", 1, NOW - 120),
        **{("owner", slot): owner for slot, owner in owners.items()},
        ("slot", "coordinator"): Slot(0, "", begun=1),
        **{("pulse", slot): beat for slot, beat in beats.items() if beat is not None},
        ("shard", "a"): replace(shard(), slot="0"),
        ("shard", "b"): replace(shard(), slot="1"),
    }


def test_what_one_worker_waits_for_is_what_the_run_waits_for() -> None:
    waiting = Heartbeat(NOW - 1, "live", waiting_for="no route")
    assert seen(two_workers()).waiting_for is None
    assert seen(two_workers(**{"1": waiting})).waiting_for == "worker 1: no route"
    both = {"": replace(waiting, waiting_for="checkpoints"), "1": waiting}
    assert seen(two_workers(**both)).waiting_for == "checkpoints", "what all wait for comes first"
    ended = {"": Heartbeat(NOW - 16, "live"), "1": waiting}
    assert seen(two_workers(**ended)).waiting_for is None, "no run is up"


def test_a_worker_that_is_not_up_is_what_the_run_waits_for_if_something_is_given_to_it() -> None:
    said = "worker 1 is not up: what it is given is not read"
    never_started = {**two_workers(**{"1": None}), ("owner", "1"): Owner("", "", 0, 0.0)}
    assert seen(never_started).waiting_for == said
    died = replace(Heartbeat(NOW - 16, "live"), waiting_for="what it waited for as it died")
    assert seen(two_workers(**{"1": died})).waiting_for == said
    assert seen({**never_started, ("owner", ""): Owner("r", "here", 1, NOW - 25)}).waiting_for is None, "it may start"
    again = {**two_workers(**{"1": None}), ("owner", "1"): Owner("w", "here", 8, NOW - 5)}
    assert seen(again).waiting_for is None, "another process has just taken its place"
    taken_away = {**two_workers(), ("owner", "1"): Owner("", "", 0, 0.0)}
    assert seen(taken_away).waiting_for is None, "for a moment, as an epoch begins"
    nothing = {**never_started, ("shard", "b"): replace(shard(ended=True), slot="1")}
    assert seen(nothing).waiting_for is None


def test_a_worker_that_has_claimed_its_slot_is_not_up_because_the_one_before_was() -> None:
    """Until its own first heartbeat, and though that of the earlier one is of a moment ago."""
    earlier, later = Owner("w", "far", 7, NOW - 60), Owner("x", "near", 8, NOW - 1)
    entries: dict[tuple[str, str], Any] = {
        ("owner", ""): Owner("r", "here", 1, NOW - 2),
        ("owner", "coordinator"): Owner("c", "here", 1, NOW - 2),
        ("slot", "coordinator"): Slot(0, "", begun=1),
        ("owner", "1"): later,
        ("pulse", "1"): Heartbeat(NOW - 3, "live", waiting_for="the target", who=earlier.who),
        ("shard", "a"): replace(shard(), slot="1"),
    }
    (_, worker) = seen(entries).workers
    assert (worker.is_up, worker.silent, worker.waiting_for, worker.pid) == (False, None, None, 8)
    (_, worker) = seen({**entries, ("pulse", "1"): Heartbeat(NOW, "live", who=later.who)}).workers
    assert (worker.is_up, worker.silent) == (True, 0.0)
    del entries["shard", "a"]
    assert len(seen(entries).workers) == 1, "nothing is given to the slot, and its worker has not said anything"


@pytest.mark.parametrize(("age", "phase"), [(60, "live"), (45 * 60, "live"), (46 * 60, "stopped")])
def test_between_two_invocations_aws_lambda_is_not_stopped(age: float, phase: str) -> None:
    handed_over = {
        ("owner", ""): Owner("run", "here", 1, NOW - 3600),
        ("slot", "coordinator"): Slot(0, "", begun=1),
        ("pipeline", ""): STATE,
        ("shard", "s"): replace(shard(), slot="lambda-0"),
        ("pulse", ""): Heartbeat(NOW, "stopped"),
    }
    assert seen(handed_over).phase == "stopped", "nothing has been invoked yet"
    invoked = seen({**handed_over, ("pulse", "lambda-0"): Heartbeat(NOW - age, "live")})
    assert invoked.phase == phase
    assert invoked.workers == (), "containers come and go"
    by_another_engine = {**handed_over, ("slot", "coordinator"): Slot(0, "", begun=0)}
    assert seen({**by_another_engine, ("pulse", "lambda-0"): Heartbeat(NOW - age, "live")}).phase == "stopped"


@pytest.mark.parametrize(("age", "phase"), [(0, "live"), (119, "live"), (121, "stopped")])
def test_invocations_of_before_the_last_backfill_do_not_make_aws_lambda_live(age: float, phase: str) -> None:
    """Every one since may have failed, as with a package that has another hook."""
    entries: dict[tuple[str, str], Any] = {
        ("owner", ""): Owner("run", "here", 1, NOW - 120),
        ("slot", "coordinator"): Slot(0, "", begun=1),
        ("pipeline", ""): STATE,
        ("shard", "s"): replace(shard(), slot="lambda-0"),
        ("pulse", ""): Heartbeat(NOW - 1, "stopped"),
        ("pulse", "lambda-0"): Heartbeat(NOW - age, "live"),
    }
    assert seen(entries).phase == phase


def test_an_unrepaired_gap_of_this_epoch_is_the_phase_even_when_nothing_runs() -> None:
    gap = Gap("trimmed", NOW, 1024, "s", "17")

    assert seen({("pipeline", ""): STATE, ("gap", "1"): gap}).phase == "gap"
    assert seen({("pipeline", ""): STATE, ("gap", "1"): gap, ("pulse", ""): Heartbeat(NOW, "live")}).phase == "gap"


def test_a_gap_is_the_phase_even_if_the_checkpoints_it_was_recorded_with_are_lost() -> None:
    assert seen({("gap", "1"): Gap("the checkpoints are lost", NOW, 0)}).phase == "gap"


def test_a_gap_of_an_earlier_epoch_or_a_repaired_one_is_not_the_phase() -> None:
    heartbeat = {("pipeline", ""): STATE, ("pulse", ""): Heartbeat(NOW, "live")}
    earlier, repaired = Gap("trimmed", NOW, 1023), Gap("trimmed", NOW, 1024, repaired=NOW)

    assert seen(heartbeat | {("gap", "1"): earlier}).phase == "live"
    assert seen(heartbeat | {("gap", "1"): earlier}).gaps == (earlier,)
    assert seen(heartbeat | {("gap", "1"): repaired}).phase == "live"
    assert seen(heartbeat | {("gap", "1"): repaired}).gaps == ()


def test_the_lag_is_that_of_the_shard_furthest_behind() -> None:
    current = seen({("shard", "a"): shard(NOW - 5), ("shard", "b"): shard(NOW - 7200)})

    assert (current.lag_seconds, current.retention_left_hours) == (7200, 22)


def test_the_lag_is_unknown_if_that_of_one_shard_is() -> None:
    current = seen({("shard", "a"): shard(NOW - 5), ("shard", "b"): shard(None)})

    assert (current.lag_seconds, current.retention_left_hours) == (None, None)


@pytest.mark.parametrize(("leaf", "lag"), [(False, 3600), (True, 60)])
def test_an_ended_shard_has_a_lag_until_its_children_are_known(leaf: bool, lag: float) -> None:
    """Their records were not read, and may be as old as the last record before them."""
    ended = replace(shard(NOW, ended=True), since=NOW - 3600, leaf=leaf)
    shards = {("shard", "ended"): ended, ("shard", "other"): shard(NOW - 60)}

    assert seen(shards).lag_seconds == lag
    assert seen({**shards, ("shard", "child"): shard(NOW - 60, "ended")}).lag_seconds == 60


def test_shards_that_ended_or_wait_for_their_parents_have_no_lag_of_their_own() -> None:
    shards = {
        ("shard", "old"): shard(None, ended=True),
        ("shard", "parent"): shard(NOW - 60, "old"),
        ("shard", "child"): shard(None, "parent"),
    }
    current = seen(shards)

    assert (current.lag_seconds, current.shards) == (60, Shards(open=1, ended=1, waiting=1))


def test_without_shards_the_lag_is_unknown() -> None:
    assert seen({("shard", "a"): replace(shard(NOW, ended=True), leaf=True)}).lag_seconds is None


def test_neither_the_lag_nor_the_retention_left_is_negative() -> None:
    assert seen({("shard", "a"): shard(NOW + 3)}).lag_seconds == 0
    assert seen({("shard", "a"): shard(NOW - 30 * 3600)}).retention_left_hours == 0


def test_the_backfill_has_an_estimate_of_the_time_left() -> None:
    entries = {
        ("pipeline", ""): STATE,
        ("pulse", ""): Heartbeat(NOW, "backfill", backfill_rate=100.0),
        ("segment", "0"): SegmentState(2, ended=True, items=300),
        ("segment", "1"): SegmentState(2, cursor="{}", items=200),
    }

    assert seen(entries).backfill == Backfill(1, 2, 500, 1000, 100.0, 5.0)


def test_a_backfill_that_has_ended_has_no_rate() -> None:
    """That of a heartbeat fades away, over many of them."""
    entries = {
        ("pipeline", ""): STATE,
        ("pulse", ""): Heartbeat(NOW, "live", backfill_rate=1e-08),
        ("segment", "0"): SegmentState(1, ended=True, items=300),
    }
    assert seen(entries).backfill == Backfill(1, 1, 300, 1000, None, 0.0)


@pytest.mark.parametrize(("items", "rate"), [(500, None), (500, 0.0), (1000, 50.0), (2000, 50.0)])
def test_the_time_left_is_unknown_without_a_rate_or_past_the_estimate(items: int, rate: float | None) -> None:
    entries = {
        ("pipeline", ""): STATE,
        ("pulse", ""): Heartbeat(NOW, "backfill", backfill_rate=rate),
        ("segment", "0"): SegmentState(1, items=items),
    }
    backfill = seen(entries).backfill

    assert backfill is not None
    assert backfill.eta_seconds is None


def test_counts_are_summed_over_sources_and_parked_counts_items() -> None:
    counts = {"shard:a": Counts(3, 2, 1, 0, 0), "segment:0": Counts(5, 1, 0, 2, 2)}
    current = seen(
        {("parked", f'["a"]@{7:019d}'): None, ("parked", f'["a"]@{8:019d}'): None, ("parked", '["b"]'): None}, counts
    )

    assert current.counts == Counts(8, 3, 1, 2, 2)
    assert current.parked == 2


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "unknown"), (0.4, "0 s"), (59, "59 s"), (250, "4 min 10 s"), (7500.9, "2 h 5 min")]
)
def test_durations_are_formatted_for_people(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text

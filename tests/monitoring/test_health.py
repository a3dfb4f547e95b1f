"""When a run is healthy, and when its copy is ready."""

from __future__ import annotations

import pytest
from msgspec import structs

from replicator.monitoring.health import STALLED, Verdict, health, readiness
from replicator.monitoring.monitor import Monitor
from replicator.pipeline.details import Details
from replicator.pipeline.progress import Backfill, Progress
from replicator.state import Counts
from tests.monitoring.phases import NOW, SUBJECT, Clock, monitor, stories

LIVE = Progress("live", lag_seconds=0.5, counts=Counts(read=10, applied=10), epoch=1024)


class Run:
    """A monitor whose run reports when a test says so."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.monitor = Monitor(SUBJECT, now=self.clock, monotonic=self.clock)

    def reports(self, progress: Progress, after: float = 0.0) -> None:
        self.clock.time += after
        self.monitor.observe(progress)

    @property
    def healthy(self) -> bool:
        return self.monitor.health().ok


def test_a_run_that_stores_nothing_and_reads_nothing_is_unhealthy_within_30_seconds() -> None:
    run = Run()
    run.reports(LIVE)
    for second in range(30):
        run.reports(structs.replace(LIVE, lag_seconds=1.5 + second), after=1.0)

    assert STALLED < 30
    assert run.monitor.health() == Verdict(
        False, "no progress for 30 s, although nothing that the run waits for is known"
    )


def test_an_idle_stream_is_healthy_as_long_as_it_is_read_to_its_end() -> None:
    run = Run()
    for _ in range(100):
        run.reports(LIVE, after=10.0)
        assert run.healthy


def test_an_idle_run_stays_healthy_when_the_clock_is_set_back_and_a_stalled_one_does_not_become_so() -> None:
    wall, clock = Clock(), Clock()
    monitor = Monitor(SUBJECT, now=wall, monotonic=clock)
    monitor.observe(LIVE)
    wall.time -= 3600
    for _ in range(60):
        wall.time, clock.time = wall.time + 1, clock.time + 1
        monitor.observe(structs.replace(LIVE, lag_seconds=0.0))
        assert monitor.health().ok

    wall.time -= 3600
    for second in range(30):
        wall.time, clock.time = wall.time + 1, clock.time + 1
        monitor.observe(structs.replace(LIVE, lag_seconds=float(second)))
    assert not monitor.health().ok


@pytest.mark.parametrize(
    "more",
    [
        {"counts": Counts(read=11, applied=11)},
        {"backfill": Backfill(0, 4, 1, None, None, None)},
        {"epoch": 1025},
    ],
)
def test_anything_that_is_stored_is_progress_whatever_the_lag(more: dict[str, object]) -> None:
    run = Run()
    run.reports(structs.replace(LIVE, lag_seconds=100.0))
    run.reports(structs.replace(LIVE, lag_seconds=119.0, **more), after=19.0)
    run.reports(structs.replace(LIVE, lag_seconds=138.0, **more), after=19.0)

    assert run.healthy


def test_a_change_of_stage_is_progress() -> None:
    run = Run()
    unknown = structs.replace(LIVE, lag_seconds=None)
    run.reports(unknown)
    run.monitor.detailed(lambda: Details(stage="sweeping"))
    run.reports(unknown, after=19.0)
    run.reports(unknown, after=19.0)

    assert run.healthy


def test_a_run_that_reports_nothing_is_unhealthy_and_its_lag_grows() -> None:
    run = Run()
    run.reports(LIVE)
    run.clock.time += 25

    assert run.monitor.health() == Verdict(
        False, "no progress for 25 s: no response from the source, the target or the hook for 25 s"
    )
    assert run.monitor.progress().lag_seconds == 25.5
    assert run.monitor.progress().phase == "catching-up"


def test_what_it_waits_for_is_the_reason() -> None:
    run = Run()
    run.reports(LIVE)
    run.reports(structs.replace(LIVE, lag_seconds=21.5, waiting_for="Postgres is down"), after=21.0)

    assert run.monitor.health() == Verdict(False, "no progress for 21 s, waiting for: Postgres is down")
    assert run.monitor.readiness() == run.monitor.health()


def test_a_wait_before_anything_is_known_is_shown_and_unhealthy_after_a_while() -> None:
    run = Run()
    run.monitor.waiting("the table cannot be described")
    assert run.healthy
    run.clock.time += 20

    assert run.monitor.health().reason == "no progress for 20 s, waiting for: the table cannot be described"
    assert run.monitor.status()["waiting_for"] == "the table cannot be described"


def test_a_long_listing_at_the_start_is_progress() -> None:
    run = Run()
    for _ in range(5):
        run.clock.time += 19
        run.monitor.active()
        assert run.healthy


@pytest.mark.parametrize(
    ("progress", "ready", "reason"),
    [
        (Progress("starting"), False, "starting: nothing is read yet"),
        (Progress("backfill"), False, "backfill: nothing is scanned yet"),
        (
            Progress("backfill", backfill=Backfill(0, 4, 1200, 5000, None, None)),
            False,
            "backfill: 1,200 of about 5,000 items copied",
        ),
        (Progress("catching-up", lag_seconds=75.0), False, "catching up: lag 1 min 15 s"),
        (Progress("gap"), False, "gap: records can no longer be read"),
        (Progress("live", lag_seconds=2.0), True, "live, lag 2 s"),
    ],
)
def test_a_copy_is_ready_while_it_is_live(progress: Progress, ready: bool, reason: str) -> None:
    fine = health(stuck=0.0, silent=0.0, waiting_for=None)

    assert readiness(progress, fine) == Verdict(ready, reason)


def test_the_history_keeps_an_hour() -> None:
    run = Run()
    for n in range(1000):
        run.reports(structs.replace(LIVE, rate=float(n)), after=5.0)
        run.monitor.sample()
    samples = run.monitor.history.samples()

    assert (samples[0].rate, samples[-1].rate) == (279.0, 999.0)
    assert samples[-1].at - samples[0].at == 3600
    assert samples[-1].at == NOW + 5000


def test_workers_have_metrics_with_their_nodes() -> None:
    text = monitor(stories()["workers"]).metrics.text().decode()
    for line in (
        'replicator_worker_up{node="node-a",pipeline="orders",worker="coordinator"} 1.0',
        'replicator_worker_up{node="node-c",pipeline="orders",worker="2"} 0.0',
        'replicator_worker_shards{pipeline="orders",worker="0"} 2.0',
        'replicator_worker_waiting{pipeline="orders",worker="1"} 1.0',
        'replicator_worker_restarts_total{pipeline="orders",worker="1"} 2.0',
    ):
        assert line in text
    assert "replicator_worker" not in monitor(stories()["live"]).metrics.text().decode()

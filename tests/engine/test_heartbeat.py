"""Progress reports: rates, and when a pipeline counts as live."""

from __future__ import annotations

import pytest

from replicator.batch import Outcome
from replicator.change import Listing, Page, Shard
from replicator.checkpoints.contract import Claimed
from replicator.engine.heartbeat import ProgressReporter, Rate, warn_if_replacing
from replicator.hooks.hook import DocumentMapping
from replicator.pipeline import stages
from replicator.pipeline.pipeline import Pipeline
from replicator.state import Entry, Heartbeat, PipelineState, decode, encode
from replicator.version import FIRST_EPOCH

NOW = 1_700_000_000.0


def seen(lag: float | None, stage: str = stages.FOLLOWING) -> str:
    """The phase of a run whose only shard was read up to ``lag`` seconds ago."""
    pipeline = Pipeline(DocumentMapping(None, ("orders",)), Claimed(1))
    state = PipelineState(FIRST_EPOCH, "stream", "table", "id", stage)
    pipeline.begin(state, Listing((Shard("a"),), True, "ENABLED", NOW - 9e6), stages.segments(1))
    batch = pipeline.take(NOW)
    assert batch is not None
    pipeline.stored(batch, Outcome(), NOW)
    if lag is not None:
        pipeline.accept(Page("a", through=NOW - lag))
    return ProgressReporter(pipeline, lambda progress: None, lambda: NOW, lambda: 0.0).progress().phase


@pytest.mark.parametrize(
    ("lag", "phase"), [(0.0, "live"), (10.0, "live"), (10.5, "catching-up"), (7200.0, "catching-up")]
)
def test_a_pipeline_is_live_within_ten_seconds_of_the_stream(lag: float, phase: str) -> None:
    assert seen(lag) == phase


def test_a_shard_that_was_never_read_is_not_live() -> None:
    assert seen(None) == "catching-up"


def test_a_backfill_is_not_live_even_without_lag() -> None:
    assert seen(0.0, stages.SCANNING) == "backfill"


def test_a_rate_is_smoothed_over_updates() -> None:
    rate = Rate()
    rate.update(100, 10.0)
    assert rate.value is None, "one look says nothing"
    rate.update(150, 15.0)
    assert rate.value == pytest.approx(10.0)
    rate.update(350, 20.0)
    assert rate.value == pytest.approx(0.6 * 10.0 + 0.4 * 40.0)
    assert (rate.at, rate.count) == (20.0, 350)


def test_a_rate_ignores_zero_intervals_and_falling_counts() -> None:
    rate = Rate(10.0, 100, 5.0)
    rate.update(200, 10.0)
    assert rate.value == 5.0
    rate.update(50, 20.0)
    assert rate.value == pytest.approx(3.0)


def test_a_heartbeat_says_of_how_many_shards_the_last_listing_lacked_the_parent() -> None:
    pipeline = Pipeline(DocumentMapping(None, ("orders",)), Claimed(1))
    state = PipelineState(FIRST_EPOCH, "stream", "table", "id", stages.FOLLOWING)
    pipeline.begin(state, Listing((Shard("a"),), True, "ENABLED", NOW - 9), stages.segments(1))
    reporter = ProgressReporter(pipeline, lambda progress: None, lambda: NOW, lambda: 0.0)
    listed = (Shard("a"), Shard("c", "p"), Shard("d", "c"))
    for shards, orphans in ((listed, 2), ((*listed, Shard("p")), 0)):
        pipeline.listed(Listing(shards, True, "ENABLED", NOW - 3))
        reporter.tick()
        batch = pipeline.take(NOW)
        assert batch is not None
        (beat,) = [decode("pulse", "", save.text) for save in batch.saves if save.kind == "pulse" and save.text]
        assert isinstance(beat, Heartbeat)
        assert beat.orphans == reporter.current().orphans == orphans
        pipeline.stored(batch, Outcome(), NOW)
        reporter = ProgressReporter(pipeline, lambda progress: None, lambda: NOW, lambda: 0.0)


def test_a_run_that_this_process_ended_itself_is_no_other_run(caplog: pytest.LogCaptureFixture) -> None:
    claimed = Claimed(1, [Entry("pulse", "", 1, encode(Heartbeat(5.0, "live", who="process 1 on here")))])
    warn_if_replacing(claimed, 6.0, ["process 1 on here"])
    assert caplog.messages == []
    warn_if_replacing(claimed, 6.0, ["process 2 on here"])
    assert caplog.messages == ["replacing another run"]

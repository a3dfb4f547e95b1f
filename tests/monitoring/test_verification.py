"""What the page and the metrics say of a run's verification passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import structs

from replicator.monitoring.monitor import Monitor
from replicator.monitoring.view import view
from replicator.pipeline.progress import Progress, Verifying, with_passes
from replicator.state import FULL_SCOPE, Verified
from tests.monitoring.phases import NOW, SUBJECT, monitor, stories
from tests.monitoring.test_run import metrics

HOUR = 3600.0
EVERY_DAY = replace(SUBJECT, verify_every=24 * HOUR)
LAST = Verified(NOW - 30 * HOUR, NOW - 29 * HOUR, 1024, FULL_SCOPE, 4, ended=NOW - 29 * HOUR, done=1.0)
CURRENT = Verifying(Verified(NOW - HOUR, NOW, 1024, FULL_SCOPE, 4, done=0.25), "run")


def observed(**more: Verified | Verifying) -> Monitor:
    story = stories()["live"]
    return monitor(replace(story, progress=structs.replace(story.progress, **more)), EVERY_DAY)


@pytest.mark.parametrize(
    ("passes", "due"),
    [
        ({"verified": LAST}, NOW + 18 * HOUR),
        ({"verified": LAST, "verifying": CURRENT}, NOW + 18 * HOUR),
        ({"verifying": CURRENT}, NOW + 47 * HOUR),
        ({}, NOW - 5000 + 48 * HOUR),
        ({"verified": replace(LAST, scope="1 %", started=NOW)}, NOW - 5000 + 48 * HOUR),
    ],
)
def test_a_pass_must_have_ended_two_intervals_after_the_last_one_or_the_run_began(
    passes: dict[str, Verified | Verifying], due: float
) -> None:
    seen = observed(**passes)
    assert metrics(seen.metrics.text().decode())['replicator_verify_due_timestamp_seconds{pipeline="orders"}'] == due


def test_the_metrics_tell_the_last_pass_from_the_current_one_and_leave_out_what_was_repaired() -> None:
    current = Verifying(replace(CURRENT.so_far, differences=2, found=NOW - 60), "run")
    seen = observed(verified=replace(LAST, differences=5, repaired=5, unconfirmed=1), verifying=current)
    samples = metrics(seen.metrics.text().decode())
    assert samples['replicator_verify_differences{pass="last",pipeline="orders"}'] == 0
    assert samples['replicator_verify_differences{pass="current",pipeline="orders"}'] == 2
    assert samples['replicator_verify_progress_ratio{pipeline="orders"}'] == 0.25
    assert samples['replicator_verify_last_start_timestamp_seconds{pipeline="orders"}'] == LAST.started
    assert samples['replicator_verify_last_end_timestamp_seconds{pipeline="orders"}'] == LAST.ended
    assert samples['replicator_verify_unconfirmed{pipeline="orders"}'] == 1


def test_differences_that_a_pass_by_hand_has_looked_at_since_no_longer_count() -> None:
    current = Verifying(replace(CURRENT.so_far, differences=2, found=NOW - 600), "run")
    by_hand = Verified(NOW - 300, NOW - 60, 1024, FULL_SCOPE, 4, ended=NOW - 60)
    earlier = replace(LAST, differences=2, ended=NOW - 30)
    shown = with_passes(Progress("live"), {"": by_hand, "run": earlier, "run pass": current.so_far}, NOW)
    assert (shown.verified, shown.verifying) == (by_hand, current)
    seen = observed(verified=by_hand, verifying=current)
    samples = metrics(seen.metrics.text().decode())
    assert samples['replicator_verify_differences{pass="current",pipeline="orders"}'] == 0
    assert not any("differences" in alarm.title for alarm in view(seen).alarms)


def shown_differences(passes: dict[str, Verified]) -> tuple[str, float]:
    """The scope of the pass that is shown, and the differences by the metric."""
    last = with_passes(Progress("live"), passes, NOW).verified
    assert last is not None
    samples = metrics(observed(verified=last).metrics.text().decode())
    return last.scope, samples['replicator_verify_differences{pass="last",pipeline="orders"}']


def test_a_sample_hides_no_difference_and_its_own_are_added_to_the_last_full_pass() -> None:
    sample = replace(LAST, scope="1 %", started=NOW - HOUR, updated=NOW - HOUR, ended=NOW - HOUR, seen=())
    different = replace(LAST, differences=5, found=LAST.started + 1)
    assert shown_differences({"": different, "sample": sample}) == ("full", 5)
    assert shown_differences({"": LAST, "sample": replace(sample, differences=2, found=NOW - HOUR)}) == ("full", 2)
    assert shown_differences({"": LAST, "sample": replace(sample, differences=2, repaired=2)}) == ("full", 0)
    assert shown_differences({"": LAST, "sample": replace(sample, earlier=3, found=NOW - HOUR)}) == ("full", 3)
    assert shown_differences({"": LAST, "sample": replace(sample, differences=2, found=NOW - 40 * HOUR)}) == ("full", 0)
    assert shown_differences({"sample": replace(sample, differences=2)}) == ("1 %", 2)


def test_a_run_that_verifies_nothing_has_no_such_metrics_and_no_card() -> None:
    seen = monitor(stories()["live"])
    assert "replicator_verify" not in seen.metrics.text().decode()
    assert view(seen).verification is None


def test_the_page_says_how_far_a_pass_is_and_what_the_last_one_found() -> None:
    shown = view(observed(verified=LAST, verifying=CURRENT))
    assert shown.verification is not None
    assert (shown.label, shown.verification.percent, shown.verification.tone) == ("live, verifying", 25.0, "")
    assert shown.verification.current == "verifying: 25 %, 0 items, 0 differences"
    assert shown.verification.last == "verified up to 2026-05-27 14:26:40 UTC: 0 differences, 29 h ago"
    assert not any("differences" in alarm.title for alarm in shown.alarms)


def test_an_overdue_pass_and_differences_look_like_it() -> None:
    overdue = view(observed(verified=replace(LAST, started=NOW - 49 * HOUR))).verification
    assert overdue is not None
    assert overdue.tone == "warn"
    found = view(observed(verified=replace(LAST, differences=3, repaired=1)))
    assert found.verification is not None
    assert found.verification.tone == "bad"
    (alarm,) = [alarm for alarm in found.alarms if alarm.title == "2 differences"]
    assert (alarm.tone, alarm.command) == ("bad", "replicator verify orders.yaml --repair")


def test_before_the_first_pass_the_page_says_that_nothing_is_proven() -> None:
    shown = view(observed()).verification
    assert shown is not None
    assert (shown.current, shown.last) == ("the next pass is due", "never verified")

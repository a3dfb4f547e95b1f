"""When a copy may take over, and what each no says; without servers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from replicator.aws.errors import AwsError
from replicator.checkpoints.contract import Claimed
from replicator.engine.heartbeat import HEARTBEAT_INTERVAL
from replicator.key import KeyAttribute, KeySchema
from replicator.operations.cutover import READ_WITHIN, Criteria, _waits, asked, freezing, late_key, reasons, standing
from replicator.pipeline.coordination import COORDINATOR
from replicator.source.table import SourceTable
from replicator.state import (
    Counts,
    Entry,
    Gap,
    Heartbeat,
    Owner,
    PipelineState,
    ResyncRequest,
    ShardState,
    Slot,
    encode,
)

NOW = 1_700_000_000.0
STATE = PipelineState(1024, "stream", "arn", "id", "following")
SHARD = ShardState(None, "1", False, NOW - 9000, "1", "5", 5, created=NOW - 100, through=NOW - 1)
BEAT = Heartbeat(NOW - 1, "live", listed=NOW - 2)
PASS: dict[str, Any] = {
    "started": NOW - 900,
    "updated": NOW - 800,
    "ended": NOW - 800,
    "epoch": 1024,
    "scope": "full",
    "total": 1,
}
CRITERIA = Criteria(asked=NOW - 5, ttl_deletes="apply")
KEYS = KeySchema((KeyAttribute("pk", "S"),))
ARN = "arn:aws:dynamodb:eu-west-1:1:table/t"
TABLE = SourceTable("t", ARN, "id", KEYS, 0, 0, "s", streaming=True, view="NEW_AND_OLD_IMAGES", requested="t")


def entry(kind: str, id: str, value: object) -> Entry:
    return Entry(kind, id, 1, value if isinstance(value, str) else encode(value))


def said(
    shards: dict[str, ShardState] | None = None,
    beat: Heartbeat | None = BEAT,
    verified: dict[str, Any] | None = PASS,
    *more: Entry,
    criteria: Criteria = CRITERIA,
) -> list[tuple[int, str]]:
    entries = [entry("pipeline", "", STATE), *more]
    entries += [entry("shard", id, s) for id, s in (shards or {"a": SHARD}).items()]
    entries += [entry("pulse", "", beat)] if beat is not None else []
    entries += [entry("verified", "", json.dumps(verified))] if verified is not None else []
    at = standing(Claimed(1, entries, {"shard:a": Counts(read=5, applied=5)}), NOW)
    return [(reason.code, reason.text) for reason in reasons(at, criteria)]


def test_a_live_verified_and_drained_copy_may_take_over() -> None:
    assert said() == []


@pytest.mark.parametrize(
    ("created", "through", "wanted"),
    [
        (NOW - 32, NOW - 1, ""),
        (NOW - 30, NOW - 1, "the last record is of 2023-11-14 22:12:50 UTC, not 30 s before the last read"),
        (NOW - 100, NOW - 6, "1 of 1 open shard(s) were not read after 2023-11-14 22:13:15 UTC"),
        (NOW - 100, None, "1 of 1 open shard(s) were not read after"),
        (None, NOW - 1, ""),
    ],
)
def test_drained_is_no_record_for_a_while_before_a_read_after_the_moment_asked_about(
    created: float | None, through: float | None, wanted: str
) -> None:
    found = said({"a": replace(SHARD, created=created, through=through)})
    assert [code for code, _ in found] == ([7] if wanted else [])
    assert wanted in "".join(text for _, text in found)


def test_a_shard_that_was_not_read_is_no_quiet_one() -> None:
    ((code, text),) = said({"a": SHARD, "b": replace(SHARD, created=None, through=NOW - 60)})
    assert (code, "1 of 2 open shard(s) were not read" in text) == (7, True)


def test_the_shards_must_be_listed_after_the_moment_asked_about_as_an_earlier_listing_may_omit_one() -> None:
    """Of a parent's two children, a listing may show one."""
    shards = {"a": replace(SHARD, ended=True), "b": replace(SHARD, parent="a")}
    assert said(shards) == []
    for beat in (replace(BEAT, listed=NOW - 6), replace(BEAT, listed=None), replace(BEAT, orphans=1)):
        ((code, text),) = said(shards, beat)
        assert (code, "shards were not listed completely after 2023-11-14 22:13:15 UTC" in text) == (7, True), beat


def test_an_ended_shard_whose_children_are_unknown_may_have_records_behind_it() -> None:
    ((code, text),) = said({"a": SHARD, "b": replace(SHARD, ended=True)})
    assert (code, "1 shard(s) cannot be read yet" in text) == (7, True)


def test_the_last_record_of_an_ended_shard_counts() -> None:
    late = replace(SHARD, ended=True, leaf=True, created=NOW - 3)
    ((_, text),) = said({"a": SHARD, "b": late})
    assert "the last record is of 2023-11-14 22:13:17 UTC" in text


@pytest.mark.parametrize(
    ("beat", "wanted"),
    [
        (None, "no run is up"),
        (replace(BEAT, at=NOW - 60), "no run is up"),
        (replace(BEAT, phase="backfill"), "not live yet, but in phase backfill"),
        (replace(BEAT, waiting_for="the target"), "the run waits: the target"),
        (replace(BEAT, in_doubt=200.0), "may still be applied to the target for 199 s"),
    ],
)
def test_a_copy_must_be_live_and_nothing_in_doubt(beat: Heartbeat | None, wanted: str) -> None:
    ((code, text),) = said(None, beat)
    assert (code, wanted in text) == (7, True), text


def of_workers(run: int, *more: Entry) -> tuple[Entry, ...]:
    """What is stored of a run with a worker, and the shard that it reads."""
    noted = entry("slot", COORDINATOR, Slot(0, "", begun=run))
    owner = entry("owner", "", Owner("run", "here", 1, NOW))
    return owner, noted, entry("shard", "b", replace(SHARD, slot="0")), *more


def test_what_a_worker_has_in_doubt_counts_although_the_coordinator_does_not_know_it_yet() -> None:
    doubt = entry("slot", "0", Slot(1024, "following", in_doubt=300.0))
    ((code, text),) = said({"a": SHARD}, BEAT, PASS, *of_workers(1, doubt))
    assert (code, "may still be applied to the target for 300 s" in text) == (7, True)
    assert said({"a": SHARD}, BEAT, PASS, *of_workers(2, doubt)) == [], "of an earlier run"


def test_every_worker_must_read_beyond_the_moment_by_its_own_clock() -> None:
    beat = entry("pulse", "0", replace(BEAT, at=NOW + 60))
    entries = [entry("pulse", "", BEAT), *of_workers(1, beat)]
    assert asked(standing(Claimed(1, entries), NOW)) == NOW + 60 + 2 * HEARTBEAT_INTERVAL


def test_an_in_doubt_window_that_is_over_is_no_reason() -> None:
    assert said(None, replace(BEAT, in_doubt=0.5)) == []


@pytest.mark.parametrize(
    ("change", "code", "wanted"),
    [
        (None, 7, "was not verified; run: replicator verify CONFIG"),
        ({"ended": None}, 7, "did not end"),
        ({"ended": NOW - 90_000}, 7, "ended 25.0 hours ago"),
        ({"scope": "1 %"}, 7, "compared only a part (1 %)"),
        ({"epoch": 1023}, 7, "rescanned since"),
        ({"unconfirmed": 2}, 7, "left 2 item(s) unconfirmed"),
        ({"parked": 2}, 7, "could not compare 2 item(s), which were parked"),
        ({"hook": "another"}, 7, "the hook has changed since the last verify pass"),
        ({"ttl_deletes": "ignore"}, 7, "ttl_deletes has changed since the last verify pass"),
        ({"started": NOW - 90_000}, 7, "began 25.0 hours ago, too long for --verified-within"),
        ({"differences": 3}, 6, "found 3 difference(s); verify again"),
        ({"differences": 3, "repaired": 3}, 6, "found 3 difference(s), 3 of them repaired; verify again"),
    ],
)
def test_a_recent_full_verify_pass_without_differences_is_needed(
    change: dict[str, Any] | None, code: int, wanted: str
) -> None:
    ((found, text),) = said(None, BEAT, None if change is None else PASS | change)
    assert (found, wanted in text) == (code, True), text


SINCE = {"started": NOW - 300, "updated": NOW - 60, "ended": None, "found": NOW - 100}


@pytest.mark.parametrize(
    ("id", "change", "wanted"),
    [
        ("pass", {}, ""),
        ("run pass", {"differences": 2}, "a later verify pass (full, in progress) found 2 difference(s)"),
        (
            "sample",
            {"differences": 2, "scope": "1 %", "ended": NOW - 60},
            "a later verify pass (1 %) found 2 difference",
        ),
        ("sample", {"scope": "1 %", "ended": NOW - 60}, ""),
        ("run pass", {"differences": 2, "started": NOW - 5000, "found": NOW - 901}, ""),
        ("run", {"differences": 2, "started": NOW - 5000, "found": NOW - 901, "ended": NOW}, ""),
        ("run", {"ended": NOW - 60, "differences": 2}, "the last verify pass found 2 difference(s)"),
        ("pass", {"differences": 2, "found": None}, "a later verify pass (full, in progress) found 2 difference(s)"),
    ],
)
def test_a_pass_beside_the_last_full_one_counts_only_by_what_it_found_since(
    id: str, change: dict[str, Any], wanted: str
) -> None:
    found = said(None, BEAT, PASS, entry("verified", id, json.dumps(PASS | SINCE | change)))
    assert [code for code, _ in found] == ([6] if wanted else [])
    assert wanted in "".join(text for _, text in found)


@pytest.mark.parametrize(("seen", "counts"), [([], True), ([NOW - 450.0], False), ([NOW - 450.0, NOW - 900.0], False)])
def test_what_a_pass_found_before_another_began_is_told_without_comparing_their_clocks(
    seen: list[float], counts: bool
) -> None:
    """The run's clock is ahead, so that its pass seems to have begun after a command found a difference."""
    found = PASS | {
        "started": NOW - 500,
        "updated": NOW - 400,
        "ended": NOW - 400,
        "found": NOW - 450,
        "differences": 5,
    }
    ahead = PASS | {"started": NOW - 300, "updated": NOW - 290, "ended": NOW - 290, "seen": seen}
    reasons_given = said(None, BEAT, found, entry("verified", "run", json.dumps(ahead)))
    assert [code for code, _ in reasons_given] == ([6] if counts else [])


def test_the_most_severe_reason_comes_first_and_decides_the_exit_code() -> None:
    gap = entry("gap", "1", Gap("records expired", NOW, 1024, "a", "5"))
    parked = [Entry("parked", f'["k{n}"]@{1:019d}', 1, "") for n in range(5)]
    found = said(None, None, None, gap, *parked)
    assert [code for code, _ in found] == [3, 6, 7]
    assert "records were lost: records expired (shard a)" in found[0][1]
    assert '5 item(s) are parked: ["k0"], ["k1"], ["k2"] and others' in found[1][1]


def test_a_requested_resync_that_has_not_begun_is_waited_for() -> None:
    ((code, text),) = said(None, BEAT, PASS, entry("request", "", ResyncRequest(NOW - 3, "digest")))
    assert (code, text) == (7, "a requested resync has not begun yet")


def test_a_run_whose_clock_is_ahead_must_read_beyond_the_moment_asked_about_by_its_own_clock() -> None:
    ahead = 60.0
    beat = replace(BEAT, at=NOW - HEARTBEAT_INTERVAL + ahead)
    at = standing(Claimed(1, [entry("pulse", "", beat)], {}), NOW)
    assert asked(at) >= NOW + ahead
    before = replace(SHARD, through=NOW - 1 + ahead)
    ((_, text),) = said({"a": before}, beat, criteria=Criteria(asked(at)))
    assert "1 of 1 open shard(s) were not read after" in text
    assert asked(standing(Claimed(1, [], {}), NOW)) == NOW


def test_after_the_runs_clock_was_set_back_it_must_read_beyond_what_it_had_read_before() -> None:
    before = replace(SHARD, created=NOW - 100, through=NOW + 10)
    at = standing(Claimed(1, [entry("pulse", "", BEAT), entry("shard", "a", before)], {}), NOW)
    ((_, text),) = said({"a": before}, criteria=Criteria(asked(at)))
    assert "1 of 1 open shard(s) were not read after" in text
    beat = replace(BEAT, listed=NOW + 11)
    assert said({"a": replace(before, through=NOW + 11)}, beat, criteria=Criteria(asked(at))) == []


def test_a_target_that_cannot_be_verified_is_told_so_at_once_and_not_to_verify() -> None:
    criteria = replace(CRITERIA, incomparable="webhook cannot compare documents; compare there")
    wanted = "webhook cannot compare documents; compare there. The copy cannot be verified, so the answer is never yes"
    assert said(verified=None, criteria=criteria) == [(7, wanted)]


def test_only_what_may_pass_is_waited_for() -> None:
    def found(**more: Any) -> Any:
        entries = [entry("pipeline", "", STATE), entry("shard", "a", more.get("shard", SHARD))]
        entries += [entry("pulse", "", more.get("beat", BEAT))]
        entries += [entry("verified", "", json.dumps(PASS))] if more.get("verified", True) else []
        return reasons(standing(Claimed(1, entries), NOW), CRITERIA)

    unread, late = replace(SHARD, through=NOW - 20), replace(SHARD, created=NOW - 3)
    assert not _waits(found(), wait=True, overdue=False)
    assert _waits(found(shard=late), wait=True, overdue=True)
    assert not _waits(found(shard=late), wait=False, overdue=False)
    assert _waits(found(shard=unread), wait=False, overdue=False), f"a live run reads within {READ_WITHIN} s"
    assert not _waits(found(shard=unread), wait=False, overdue=True)
    assert not _waits(found(shard=late, verified=False), wait=True, overdue=False)


@pytest.mark.parametrize("values", [{"quiet": 0.0}, {"verified_within": -1.0}])
def test_durations_are_positive(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="positive"):
        Criteria(NOW, **values)


def test_freezing_denies_every_way_to_write_but_to_the_pipeline_back() -> None:
    freeze, allow = freezing(TABLE, " --region eu-west-1", loops=False)
    assert freeze.startswith("aws dynamodb put-resource-policy --region eu-west-1 --resource-arn arn:aws:dynamodb:")
    statement = json.loads(freeze.partition("--policy '")[2][:-1])["Statement"][0]
    assert (statement["Effect"], statement["Resource"]) == ("Deny", TABLE.arn)
    assert {"dynamodb:UpdateItem", "dynamodb:PartiQLInsert"} <= set(statement["Action"])
    assert "Condition" not in statement
    assert "ROLE_OF_THE_OPPOSITE_PIPELINE" in freezing(TABLE, "", loops=True)[0]
    assert allow == f"aws dynamodb delete-resource-policy --region eu-west-1 --resource-arn {TABLE.arn}"


def test_a_late_record_that_cannot_be_read_has_no_key() -> None:
    class Denied:
        def call(self, operation: str, request: Any) -> bytes:
            raise AwsError("AccessDeniedException", "no", 400)

    assert late_key(Denied(), TABLE, "a", "5") == ""


def test_a_heartbeat_of_an_earlier_version_has_no_window() -> None:
    text = msgspec.json.encode({"at": NOW, "phase": "live", "listed": NOW}).decode()
    assert said(None, None, PASS, entry("pulse", "", text)) == []

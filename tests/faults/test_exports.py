"""A backfill from an export loses nothing and brings nothing back; what is wrong with it is an error by name."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from types import SimpleNamespace

import orjson
import pytest

from replicator.config.settings import load
from replicator.engine.assembly import target_tables
from replicator.operations import check_export
from replicator.operations.check_offline import gathered
from replicator.operations.dry_run import outlook
from replicator.operations.finding import Finding, exit_code
from replicator.source import export
from replicator.source.table import describe_table
from replicator.testing.dynamodb import parentless
from tests.faults.test_requests import request_one
from tests.faults.world import HOUR, TABLE, World

BUCKET = "exports"
Damage = Callable[[bytes], bytes | None]


def exporting(world: World, **options: object) -> None:
    """A table of seven items, an hour old, whose copy begins with an export."""
    world.fill(7)
    world.clock.move(world.clock() + HOUR)
    world.db.exports.enable(TABLE)
    world.configure(backfill={"from": "export", "bucket": BUCKET, **options})


def exported(world: World) -> str:
    """A complete export of the table as it is now."""
    request = {"TableArn": f"table/{TABLE}", "S3Bucket": BUCKET}
    arn: str = orjson.loads(world.db.call("ExportTableToPointInTime", request))["ExportDescription"]["ExportArn"]
    for _ in range(world.db.exports.polls + 1):
        world.db.call("DescribeExport", {"ExportArn": arn})
    return arn


def damaging(world: World, end: str, how: Damage) -> dict[tuple[str, str], bytes]:
    """From now on, an object whose key ends like that is damaged as it is written. Returns what it was."""
    whole: dict[tuple[str, str], bytes] = {}

    def put(bucket: str, key: str, body: bytes) -> None:
        stored: bytes | None = body
        if key.endswith(end):
            whole[bucket, key], stored = body, how(body)
        if stored is not None:
            world.db.exports.objects[bucket, key] = stored

    world.db.exports.put = put
    return whole


def test_items_come_from_the_export_and_changes_since_from_the_stream(faults: World) -> None:
    exporting(faults, segments=2)
    faults.db.exports.polls = 3
    for seconds in (2, 20):  # before the export's time, and after it
        faults.clock.plan(seconds, lambda: faults.put("k1", n=int(faults.clock.now)))
        faults.clock.plan(seconds, lambda at=seconds: faults.db.delete(TABLE, {"id": f"k{at}"}))  # type: ignore[misc]
        faults.clock.plan(seconds, lambda at=seconds: faults.put(f"new{at}"))  # type: ignore[misc]
    faults.put("k20")
    ended = faults.copied()

    assert not faults.client.times("Scan")
    (requested,) = faults.client.times("ExportTableToPointInTime")
    assert faults.client.times("DescribeStream")[0] + 5 <= requested, "the positions come first"
    assert "to S3 to complete" in "\n".join(str(e.get("waiting_for", "")) for e in ended.events)


def test_a_run_that_was_stopped_continues_with_the_same_export(faults: World) -> None:
    exporting(faults)
    faults.db.exports.polls = 4
    assert faults.run(seconds=30).code == 0
    assert not faults.documents
    faults.copied()

    assert len(faults.client.times("ExportTableToPointInTime")) == 1


def test_an_export_whose_arn_a_killed_run_did_not_store_is_found_by_its_token(faults: World) -> None:
    exporting(faults)
    faults.db.exports.polls = 4
    assert faults.run(seconds=30).code == 0
    revision, text = faults.database.entries["pipeline", ""]
    state = orjson.loads(text)
    state["export"]["arn"] = ""
    faults.database.entries["pipeline", ""] = (revision, orjson.dumps(state).decode())
    faults.copied()

    assert len(faults.client.times("ExportTableToPointInTime")) == 2
    assert len(faults.db.exports.known) == 1


def test_a_resync_reads_a_new_export_and_removes_what_is_gone(faults: World) -> None:
    exporting(faults)
    faults.copied()
    faults.db.delete(TABLE, {"id": "k3"})
    ended = faults.run(name="resync")

    assert ended.code == 0, ended
    assert len(faults.db.exports.known) == 2
    faults.assert_equal()


def test_empty_files_and_more_segments_than_files_are_read(faults: World) -> None:
    exporting(faults, segments=5)
    for n in range(1, 7):
        faults.db.delete(TABLE, {"id": f"k{n}"})
    faults.copied()

    assert list(faults.documents) == ["k0"]


DAMAGE: dict[str, Damage] = {
    "is damaged: its MD5 checksum is": lambda body: gzip.compress(gzip.decompress(body).replace(b'"k', b'"K')),
    "does not exist (NoSuchKey), but belongs to the export": lambda _: None,
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_a_damaged_file_is_named_is_not_used_and_may_be_restored(
    faults: World, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """What a target had stored of it would have the version of what is right, and stay."""
    monkeypatch.setattr(export, "PAGE", 40)
    exporting(faults, segments=1)
    whole = damaging(faults, "0001.json.gz", DAMAGE[reason])
    for _ in range(2):
        ended = faults.run()
        ((bucket, key),) = whole
        assert (ended.code, f"s3://{bucket}/{key} {reason}" in ended.err) == (2, True), ended
        assert ended.err.strip().endswith("To start over with a new export: replicator resync CONFIG")
        assert faults.states("segment")["0"].cursor in (None, '{"file":1,"items":3}')
        assert set(faults.documents) <= {"k0", "k3", "k6"}, "those of the first file"
    faults.db.exports.objects |= whole
    faults.copied()

    assert faults.states("segment")["0"].items == 7, "what was read again counts once"


def test_an_export_that_is_older_than_the_positions_is_refused_before_anything_is_copied(faults: World) -> None:
    exporting(faults)
    faults.db.exports.shown = {"ExportTime": faults.clock() - 60}
    ended = faults.run()

    assert (ended.code, "which is before the positions in the stream" in ended.err) == (2, True), ended
    assert not faults.documents


def test_without_point_in_time_recovery_the_error_says_how_to_enable_it(faults: World) -> None:
    faults.fill(2)
    faults.configure(backfill={"from": "export", "bucket": BUCKET})
    ended = faults.run()

    assert ended.code == 2
    assert "point-in-time recovery is off, which an export needs; enable it: aws dynamodb" in ended.err
    assert "--table-name orders --region us-east-1" in ended.err


def test_a_backfill_whose_export_is_not_started_does_not_turn_into_another_one(faults: World) -> None:
    exporting(faults)
    assert faults.run(seconds=3).code == 0
    faults.configure()
    ended = faults.run()

    assert ended.code == 2
    assert "this backfill reads an export that is not started yet" in ended.err


def test_a_table_that_was_made_anew_before_its_export_is_a_gap(faults: World) -> None:
    exporting(faults)
    faults.db.exports.shown = {"TableId": "another"}
    ended = faults.run()

    assert ended.code == 3
    assert "was deleted and created again before it was exported" in ended.err


def test_missing_permission_to_read_the_files_is_named(faults: World) -> None:
    exporting(faults)
    faults.db.fail("GetObject", "AccessDenied", times=None)
    ended = faults.run()

    assert ended.code == 4
    assert "s3:GetObject on s3://exports/" in ended.err
    assert "unless s3:ListBucket on the bucket is allowed" in ended.err


def test_throttled_reads_of_files_are_repeated(faults: World) -> None:
    exporting(faults)
    faults.db.fail("GetObject", "SlowDown", times=6)
    faults.db.fail("DescribeExport", "ThrottlingException", times=3)
    faults.copied()


# An export that exists


def test_an_existing_export_is_followed_by_all_changes_since_its_time(faults: World) -> None:
    faults.fill(7, shards=2)
    faults.db.exports.enable(TABLE)
    faults.clock.move(faults.clock() + 3 * HOUR)
    arn = exported(faults)
    for n in range(3):
        faults.clock.move(faults.clock() + 5 * HOUR)
        faults.db.delete(TABLE, {"id": f"k{n}"})
        faults.put(f"new{n}", "k6", n=n)
        faults.db.roll_all(TABLE)  # closed shards have changes since the export, too
    faults.configure(backfill={"from": "export", "export": arn})
    faults.copied()

    assert not faults.client.times("Scan") + faults.client.times("ExportTableToPointInTime")


def test_a_shard_that_the_first_listing_lacked_is_a_gap_if_it_may_have_changes_since_the_export(faults: World) -> None:
    """With a scan it would not be needed: it had closed before."""
    faults.fill(7)
    faults.db.exports.enable(TABLE)
    faults.clock.move(faults.clock() + HOUR)
    faults.configure(on_gap="resync", backfill={"from": "export", "export": exported(faults)})
    faults.clock.move(faults.clock() + HOUR)
    faults.put("k1", "new", n=1)
    faults.db.delete(TABLE, {"id": "k2"})
    faults.db.roll_all(TABLE)
    faults.db.misreport(parentless, times=2)  # the second is the listing of all shards
    ended = faults.run()
    assert (ended.code, "and a gap was found at" in ended.err) == (2, True), ended
    assert "may have changes since the export" in faults.gaps[0].reason

    faults.configure(on_gap="resync", backfill={"from": "export", "bucket": BUCKET})
    faults.copied()


TOO_OLD = "hours ago. The stream keeps changes for 24 hours"


EXISTING: dict[str, Callable[[World], object]] = {
    "is damaged: its MD5 checksum is": lambda world: damaging(
        world, ".json.gz", lambda body: gzip.compress(gzip.decompress(body).replace(b'"k', b'"K'))
    ),
    "does not exist (NoSuchKey), but belongs to the export": lambda world: damaging(world, ".json.gz", lambda _: None),
    "is damaged: ": lambda world: damaging(world, "manifest-summary.json", lambda _: b"{"),
    "failed (S3NoSuchBucket: none)": lambda world: world.db.exports.shown.update(
        {"ExportStatus": "FAILED", "FailureCode": "S3NoSuchBucket", "FailureMessage": "none"}
    ),
    "is in the format ION": lambda world: world.db.exports.shown.update({"ExportFormat": "ION"}),
    "is incremental": lambda world: world.db.exports.shown.update({"ExportType": "INCREMENTAL_EXPORT"}),
    "there is no such export": lambda world: world.db.exports.known.clear(),
}


@pytest.mark.parametrize("reason", EXISTING)
def test_what_an_unusable_existing_export_is_told_with_makes_a_copy(faults: World, reason: str) -> None:
    """A resync reads the export that the config names, so that it alone would end in the same way."""
    faults.fill(7)
    faults.clock.move(faults.clock() + HOUR)
    faults.db.exports.enable(TABLE)
    put = faults.db.exports.put
    if not (is_gone := "no such" in reason):
        EXISTING[reason](faults)
    faults.configure(backfill={"from": "export", "export": exported(faults)})
    if is_gone:
        EXISTING[reason](faults)
    for name in ("run", "resync"):
        ended = faults.run(name=name, seconds=600)
        assert (ended.code, reason in ended.err) == (2, True), ended
        assert "leave out backfill.export to have a new one made (with backfill.bucket)" in ended.err
        assert ended.err.strip().endswith("replicator resync CONFIG")

    faults.db.exports.put = put
    faults.db.exports.shown.clear()
    faults.configure(backfill={"from": "export", "bucket": BUCKET})
    assert faults.run(name="resync", seconds=600).code == 0
    faults.assert_equal()


def test_an_existing_export_whose_changes_the_stream_may_have_dropped_is_refused(faults: World) -> None:
    faults.fill(2)
    faults.db.exports.enable(TABLE)
    arn = exported(faults)
    faults.clock.move(faults.clock() + 23.6 * HOUR)
    faults.configure(backfill={"from": "export", "export": arn})
    ended = faults.run()

    assert (ended.code, f"24 {TOO_OLD}" in ended.err) == (2, True), ended
    assert not faults.states("pipeline"), "nothing has begun"


def test_an_existing_export_from_before_the_stream_is_refused(faults: World) -> None:
    faults.fill(2)
    faults.db.exports.enable(TABLE)
    arn = exported(faults)
    faults.db.disable_stream(TABLE)
    faults.clock.move(faults.clock() + HOUR)
    faults.db.enable_stream(TABLE)
    faults.configure(backfill={"from": "export", "export": arn})
    ended = faults.run()

    assert (ended.code, "the table's stream was enabled later" in ended.err) == (2, True), ended


@pytest.mark.parametrize(("minutes", "code"), [(14, 2), (15, 0)])
def test_an_existing_export_from_while_the_stream_was_being_enabled_is_refused(
    faults: World, minutes: int, code: int
) -> None:
    """DescribeStream says when a stream was requested, not since when it has changes."""
    faults.fill(2)
    faults.db.exports.enable(TABLE)
    faults.db.disable_stream(TABLE)
    faults.clock.move(faults.clock() + HOUR)
    faults.db.enable_stream(TABLE)
    faults.clock.move(faults.clock() + minutes * 60)
    faults.configure(backfill={"from": "export", "export": exported(faults)})
    ended = faults.run()

    assert (ended.code, "it may have begun only after the export" in ended.err) == (code, code == 2), ended
    assert bool(faults.states("pipeline")) == (code == 0), "otherwise nothing has begun"


@pytest.mark.parametrize("restarts", [False, True])
def test_a_partial_resync_reads_the_table_and_keeps_the_time_of_the_export(faults: World, restarts: bool) -> None:
    """The other items are still those of the export, so a shard that listings omitted until then is still needed."""
    faults.fill(7)
    faults.db.exports.enable(TABLE)
    faults.clock.move(faults.clock() + HOUR)
    faults.configure(backfill={"from": "export", "export": exported(faults)})
    faults.clock.move(faults.clock() + HOUR)
    faults.put("k1", "new", n=1)
    faults.db.roll_all(TABLE)
    faults.db.misreport(parentless)
    faults.run(seconds=30 if restarts else 0)
    requested = faults.clock() + 30
    faults.clock.plan(30, lambda: request_one(faults, (("k3",),)))
    first = faults.run(seconds=90)
    assert (first.code, bool(first.event("partial resync started"))) == (0, True), first
    exporting = [*faults.client.times("GetObject"), *faults.client.times("DescribeExport")]
    assert max(exporting) < requested <= max(faults.client.times("BatchGetItem"))
    assert faults.states("pipeline")[""].stage == "following"

    faults.db.heal()
    ended = faults.run()
    assert (ended.code, "may have changes since the export" in ended.err) == (3, True), ended


def test_an_export_of_another_table_is_refused(faults: World) -> None:
    faults.fill(2)
    faults.db.exports.enable(TABLE)
    arn = exported(faults)
    faults.db.exports.shown = {"TableId": "another"}
    faults.configure(backfill={"from": "export", "export": arn})
    ended = faults.run()

    assert (ended.code, "is of the table arn:" in ended.err) == (2, True), ended


def test_an_unknown_export_is_refused(faults: World) -> None:
    faults.fill(2)
    arn = f"arn:aws:dynamodb:us-east-1:123456789012:table/{TABLE}/export/0-0"
    faults.configure(backfill={"from": "export", "export": arn})
    ended = faults.run()

    assert (ended.code, "there is no such export" in ended.err) == (2, True), ended


def test_an_existing_export_from_before_a_gap_cannot_repair_it(faults: World) -> None:
    """What the stream has lost is in neither of them."""
    faults.fill(7)
    faults.db.exports.enable(TABLE)
    faults.clock.move(faults.clock() + HOUR)
    older = exported(faults)
    faults.configure(on_gap="resync", backfill={"from": "export", "export": older})
    faults.put("k2", n=1)
    faults.copied()
    faults.clock.move(faults.clock() + HOUR)
    faults.put("lost")
    faults.db.delete(TABLE, {"id": "k1"})
    (shard,) = faults.db.open_shards(TABLE)
    faults.db.trim(TABLE, shard, 10)
    faults.put("k3", n=1)
    for _ in range(2):
        ended = faults.run()
        assert (ended.code, "and a gap was found at" in ended.err) == (2, True), ended
    assert [gap.reason for gap in faults.gaps] == ["records after the stored position have been trimmed"]

    faults.clock.move(faults.clock() + HOUR)
    faults.configure(on_gap="resync", backfill={"from": "export", "export": exported(faults)})
    faults.copied()
    assert not faults.gaps


def copied_a_day_ago(faults: World) -> None:
    """From an export that is too old for another backfill by now; the copy was live since."""
    faults.fill(7)
    faults.db.exports.enable(TABLE)
    faults.clock.move(faults.clock() + HOUR)
    faults.configure(backfill={"from": "export", "export": exported(faults)})
    faults.copied()
    for _ in range(2):
        faults.clock.move(faults.clock() + 12 * HOUR)
        faults.copied()


def test_a_requested_resync_whose_export_is_too_old_does_not_end_the_run_that_is_live(faults: World) -> None:
    copied_a_day_ago(faults)
    faults.clock.plan(20, lambda: request_one(faults, ()))
    faults.clock.plan(60, lambda: faults.put("k2", n=1))
    ended = faults.run(seconds=120)

    assert ended.code == 0, ended
    assert TOO_OLD in ended.event("requested resync not started")["reason"]
    faults.assert_equal()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("ImportConflictException", "with other options: they were changed during the backfill"),
        ("ValidationException", "was refused: ValidationException"),
    ],
)
def test_a_refused_request_for_an_export_is_an_error_of_the_config(faults: World, code: str, reason: str) -> None:
    exporting(faults)
    faults.db.fail("ExportTableToPointInTime", code)
    ended = faults.run()

    assert (ended.code, reason in ended.err) == (2, True), ended


def test_a_conflict_with_another_export_is_waited_for(faults: World) -> None:
    """Such as with that of another target of the config, which has the same place in the bucket."""
    exporting(faults)
    faults.db.fail("ExportTableToPointInTime", "ExportConflictException", times=3)
    faults.copied()


def test_a_conflict_that_lasts_ends_the_run_with_what_it_may_mean(faults: World) -> None:
    exporting(faults)
    faults.db.fail("ExportTableToPointInTime", "ExportConflictException", times=None)
    began = faults.clock()
    ended = faults.run()

    assert (ended.code, "another export writes to that place in the bucket (run again" in ended.err) == (2, True), ended
    assert "with other options" in ended.err
    assert 6 * HOUR <= faults.clock() - began < 7 * HOUR


def checked(world: World, monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What ``check`` says of the export in the config."""
    config = load(str(world.folder / "orders.yaml"))
    monkeypatch.setattr(check_export, "time", SimpleNamespace(time=world.clock))
    table = describe_table(world.client, TABLE)
    with world.ends(None) as (target, checkpoints):
        start = outlook(config, target, checkpoints, table, target_tables(config, table, None), None)
    return list(gathered("backfill", check_export.existing_findings(config, world.client, table, start)))


def test_check_refuses_an_existing_export_for_a_gap_as_a_run_does(
    faults: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.fill(7)
    faults.db.exports.enable(TABLE)
    faults.clock.move(faults.clock() + HOUR)
    older = exported(faults)
    faults.configure(on_gap="resync", backfill={"from": "export", "export": older})
    faults.put("k2", n=1)
    note, found = checked(faults, monkeypatch)
    assert (note.verdict, "repairs no gap while backfill.export names" in note.text) == ("note", True)
    assert (found.verdict, "items can be read" in found.text) == ("ok", True)
    faults.copied()
    faults.clock.move(faults.clock() + HOUR)
    faults.put("lost")
    (shard,) = faults.db.open_shards(TABLE)
    faults.db.trim(TABLE, shard, 10)
    faults.put("k3", n=1)
    for _ in range(2):
        ended = faults.run()
        assert (ended.code, "and a gap was found at" in ended.err) == (2, True), ended
        _, found = checked(faults, monkeypatch)
        assert (found.verdict, "and a gap was found at" in found.text) == ("problem", True)

    faults.clock.move(faults.clock() + HOUR)
    faults.configure(on_gap="resync", backfill={"from": "export", "export": exported(faults)})
    assert exit_code(checked(faults, monkeypatch)) == 0
    faults.copied()


def test_an_export_that_has_become_too_old_is_no_error_of_a_copy_that_has_read_it(
    faults: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied_a_day_ago(faults)
    (found,) = checked(faults, monkeypatch)
    assert (found.verdict, TOO_OLD in found.text) == ("note", True)
    assert found.text.startswith("a resync would be refused: ")
    faults.copied()
    request_one(faults, ())
    (found,) = checked(faults, monkeypatch)
    assert (found.verdict, TOO_OLD in found.text) == ("problem", True)


def test_an_export_whose_files_are_gone_is_an_error_while_it_is_read(
    faults: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.fill(7)
    faults.db.exports.enable(TABLE)
    faults.clock.move(faults.clock() + HOUR)
    faults.configure(backfill={"from": "export", "export": exported(faults)})
    faults.db.fail("GetObject", "NoSuchKey", times=None, when=lambda request: request["Key"].endswith(".json.gz"))
    assert faults.run().code == 2
    assert exit_code(checked(faults, monkeypatch)) == 2

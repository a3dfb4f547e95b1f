"""Decisions at the start of a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from replicator.engine import startup
from replicator.errors import ConfigError, GapFound
from replicator.identity import UNKNOWN, Definition, Identity, other_tables
from replicator.key import KeyAttribute, KeySchema
from replicator.pipeline import stages
from replicator.source.table import SourceTable
from replicator.state import ExportState, Gap, PipelineState, SegmentState, ShardState
from replicator.version import FIRST_EPOCH, LAST_EPOCH

TABLE = SourceTable(
    name="orders",
    arn="arn:orders",
    id="one",
    keys=KeySchema((KeyAttribute("pk", "S"),)),
    items=12,
    bytes=345,
    stream_arn="arn:orders/stream/1",
    streaming=True,
    view="NEW_AND_OLD_IMAGES",
    server="dynamodb.us-east-1.amazonaws.com",
    requested="orders",
)
STATE = PipelineState(
    epoch=FIRST_EPOCH,
    stream_arn="arn:orders/stream/1",
    table_arn="arn:orders",
    table_id="one",
    stage=stages.FOLLOWING,
    hook="abc",
)
COPY = Identity('"public"."copy"', "17", "db")
PARTS = {"copy": {"columns.total": "numeric from total"}}
DEFINITION = Definition("dynamodb.us-east-1.amazonaws.com", {"copy": COPY}, PARTS)
STORED = {"s": ShardState(None, None, whole=False, since=0.0, sequence="17")}
RESUMING = startup.Allowed()


def startup_state(**changes: Any) -> startup.StartupState:
    usual = startup.StartupState(
        STATE, DEFINITION, STORED, {}, {}, TABLE, {"copy": FIRST_EPOCH}, {"copy": COPY}, PARTS, "abc"
    )
    return replace(usual, **changes)


def mode(allowed: startup.Allowed = RESUMING, **changes: Any) -> startup.StartMode:
    return startup.start_mode(startup_state(**changes), allowed)


def reason(**changes: Any) -> str | None:
    lost = startup.find_gap(startup_state(**changes))
    return None if lost is None else lost.reason


def test_a_cleanly_stopped_pipeline_resumes() -> None:
    assert reason() is None


def test_a_first_start_has_no_gap() -> None:
    assert reason(state=None, epochs={"copy": None}) is None
    assert reason(state=None, epochs={"copy": 0}) is None
    assert mode(state=None, epochs={"copy": 0}) is startup.StartMode.BEGIN


def test_rows_without_checkpoints_are_a_gap() -> None:
    assert "checkpoints are lost" in (reason(state=None) or "")


def test_checkpoints_older_than_the_target_are_a_gap() -> None:
    assert "checkpoints are older than the target" in (reason(epochs={"copy": FIRST_EPOCH + 1}) or "")


def test_rows_without_checkpoints_are_a_gap_even_if_another_table_is_missing() -> None:
    there = {"copy": None, "lines": FIRST_EPOCH + 3}
    assert f"epoch {FIRST_EPOCH + 3}" in (reason(state=None, epochs=there) or "")
    assert startup.new_epoch(startup_state(state=None, epochs=there), enabled=True, now=5.0).epoch == FIRST_EPOCH + 4


def test_the_table_that_an_earlier_epoch_wrote_to_last_is_not_the_one_that_was_written_to() -> None:
    """Of several tables the lowest epoch counts: the others cannot vouch for one that was recreated."""
    others = {"copy": COPY, "lines": Identity("lines")}
    text = reason(epochs={"copy": FIRST_EPOCH, "lines": 0}, identities=others) or ""
    assert text.startswith("lines is not the table that the last run wrote to")
    assert "copy" not in text.split(" is not ")[0]


def test_what_remembered_deletes_beside_a_table_is_named_if_only_that_was_replaced() -> None:
    copy, lines = (
        Identity("copy", "1 2", beside="copy/_tombstones"),
        Identity("lines", "3 4", beside="lines/_tombstones"),
    )
    was = replace(DEFINITION, tables={"copy": copy, "lines": lines})

    def said(**ids: str) -> str:
        now = {name: replace(one, id=ids.get(name, one.id)) for name, one in was.tables.items()}
        return reason(definition=was, identities=now, epochs=dict.fromkeys(now, FIRST_EPOCH)) or ""

    assert said() == ""
    for id in ("1 5", "1 "):
        assert said(copy=id).startswith(
            "copy/_tombstones was removed or replaced since the last run: it remembers deleted"
        )
    assert said(copy="1 5", lines="3 ").startswith("copy/_tombstones, lines/_tombstones was removed")
    assert said(copy="5 2").startswith("copy is not the table that the last run wrote to")
    assert said(copy="5 2", lines="3 5").startswith("copy, lines is not the table that the last run wrote to")


def test_a_recreated_table_is_a_gap_even_with_a_copied_epoch_note() -> None:
    assert '"public"."copy" is not the table' in (reason(identities={"copy": replace(COPY, id="18")}) or "")


def test_an_epoch_that_has_stored_nothing_has_no_gap() -> None:
    """The run was killed between its first save and the epoch note in the target."""
    following = replace(STATE, epoch=FIRST_EPOCH + 1)
    assert reason(state=following, shards={}) is None
    assert reason(state=following, shards={}, identities={"copy": replace(COPY, id="18")}) is None


def test_ids_of_different_scopes_are_not_compared() -> None:
    restored = {"copy": Identity(COPY.place, "99", "another database")}
    assert reason(identities=restored) is None


def test_a_column_that_was_dropped_and_added_again_is_a_gap() -> None:
    was = replace(COPY, columns={"total": 2, "city": 3})
    definition = replace(DEFINITION, tables={"copy": was})

    def said(now: Identity) -> str | None:
        return reason(definition=definition, identities={"copy": now})

    assert said(was) is None
    text = said(replace(was, columns={"total": 2, "city": 4, "new": 5})) or ""
    assert text.startswith('"public"."copy": column city is not the column that the last run wrote to')
    assert said(replace(was, columns={"total": 2})) is None, "a missing column is a ConfigError of the target's"
    restored = replace(was, within="another database", columns={"total": 2, "city": 4})
    assert said(restored) is None, "a restored database has other numbers"
    assert reason(identities={"copy": was}) is None, "stored by an earlier version of replicator, without columns"


def test_a_table_that_was_emptied_since_the_last_run_stopped_is_a_gap() -> None:
    assert '"public"."copy" is empty' in (reason(emptied=["copy"]) or "")


@pytest.mark.parametrize(
    "table",
    [
        replace(TABLE, name="staging", arn="arn:staging"),
        replace(TABLE, id="two", stream_arn="arn:orders/stream/2", server="127.0.0.1:8000"),
    ],
    ids=["name", "endpoint"],
)
@pytest.mark.parametrize("resync", [False, True])
def test_another_source_is_refused_with_both_named(table: SourceTable, resync: bool) -> None:
    with pytest.raises(ConfigError) as refused:
        mode(startup.Allowed(resync=resync), table=table)
    text = str(refused.value)
    assert "copies arn:orders at dynamodb.us-east-1.amazonaws.com" in text
    assert f"the config names {table.arn} at {table.server}" in text
    assert "Nothing was changed" in text
    assert "replicator resync CONFIG --accept-identity-change" in text


def test_a_different_endpoint_of_the_same_table_is_accepted() -> None:
    assert mode(table=replace(TABLE, server="vpce-1.dynamodb.us-east-1.vpce.amazonaws.com")) is startup.StartMode.RESUME
    unnamed = replace(TABLE, id=TABLE.arn, server="127.0.0.1:8001")  # DynamoDB Local, elsewhere: the stream tells
    local = replace(STATE, table_id=TABLE.arn)
    assert mode(state=local, table=unnamed) is startup.StartMode.RESUME


def test_another_stream_behind_another_endpoint_is_another_table_where_tables_have_no_id() -> None:
    unnamed = replace(TABLE, id=TABLE.arn, stream_arn="arn:orders/stream/2", server="127.0.0.1:8001")
    with pytest.raises(ConfigError, match="Nothing was changed"):
        mode(state=replace(STATE, table_id=TABLE.arn), table=unnamed)


def test_another_stream_of_the_same_table_behind_another_endpoint_is_a_gap() -> None:
    moved = replace(TABLE, stream_arn="arn:orders/stream/2", server="vpce-1")
    with pytest.raises(GapFound, match="stream was replaced"):
        mode(table=moved)


def test_another_table_of_the_target_is_refused_with_both_named() -> None:
    named = {"copies": Identity('"public"."copies"')}
    with pytest.raises(ConfigError) as refused:
        mode(identities=named, epochs={"copies": None}, parts={"copies": PARTS["copy"]})
    assert 'writes to "public"."copy", but the config names "public"."copies"' in str(refused.value)
    elsewhere = {"copy": Identity('"archive"."copy"', "18", "db")}
    with pytest.raises(ConfigError, match=r'config names "archive"\."copy"'):
        mode(identities=elsewhere)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (["a", "b", "c"], "writes to public.a, public.b, but the config names public.a, public.b, public.c"),
        (["a"], "writes to public.a, public.b, but the config names public.a"),
        (["a", "c"], "writes to public.b, but the config names public.c"),
    ],
)
def test_of_added_and_removed_tables_of_the_target_all_are_named(now: list[str], said: str) -> None:
    def named(names: Sequence[str]) -> dict[str, Identity]:
        return {name: Identity(f"public.{name}") for name in names}

    with pytest.raises(ConfigError, match=rf"{re.escape(said)}\. Nothing was changed") as refused:
        mode(definition=replace(DEFINITION, tables=named("ab")), identities=named(now))
    assert "To write to what the config names from now on, and leave any other table as it is" in str(refused.value)


def test_a_table_that_was_renamed_with_the_config_is_the_same_one() -> None:
    assert mode(identities={"copy": Identity('"archive"."copy"', "17", "db")}) is startup.StartMode.RESUME


def test_an_accepted_identity_change_starts_an_epoch() -> None:
    meant = startup.Allowed(resync=True, hook_change=True, identity_change=True)
    assert mode(meant, table=replace(TABLE, arn="arn:staging")) is startup.StartMode.BEGIN
    with pytest.raises(ConfigError):
        mode(startup.Allowed(identity_change=True), table=replace(TABLE, arn="arn:staging"))


def test_a_state_of_an_earlier_version_adopts_the_identity() -> None:
    assert mode(definition=UNKNOWN) is startup.StartMode.RESUME
    assert startup_state(definition=UNKNOWN).bound == DEFINITION


def test_an_unknown_place_is_not_stored() -> None:
    """The first run ended before its tables were created: the next run binds to those it creates."""
    unknown = {"copy": Identity("the table copy at dynamodb, where nothing of this pipeline is", known=False)}
    early = startup_state(state=None, identities=unknown, epochs={"copy": None}).bound
    assert early == replace(DEFINITION, tables={})
    assert mode(definition=early, shards={}) is startup.StartMode.RESUME


def test_the_same_place_at_another_address_is_the_same() -> None:
    was = {"copy": Identity("the index copy-1 at a:9200", at="copy-1 in the cluster X")}
    now = {"copy": Identity("the index copy-1 at b:9200", "18", at="copy-1 in the cluster X")}
    assert mode(definition=replace(DEFINITION, tables=was), identities=now) is startup.StartMode.RESUME


def test_another_place_behind_the_same_address_is_named_exactly() -> None:
    was = {"copy": Identity("the index copy-1 at a:9200", "17", at="copy-1 in the cluster X")}
    now = {"copy": Identity("the index copy-1 at a:9200", "18", at="copy-1 in the cluster Y")}
    with pytest.raises(ConfigError) as refused:
        mode(definition=replace(DEFINITION, tables=was), identities=now)
    assert "copy: the index copy-1 at a:9200 (copy-1 in the cluster X), but the config names copy: the index" in str(
        refused.value
    )
    assert "(copy-1 in the cluster Y)" in str(refused.value)


@pytest.mark.parametrize(("left", "is_same"), [(("n2", "n3", "n4"), True), (("n3", "n5", "n6"), False)])
def test_a_place_that_has_half_of_its_names_is_the_same_whatever_it_is_called_now(
    left: tuple[str, ...], is_same: bool
) -> None:
    was = {"copy": Identity("copy at a:1", at="copy in n1", names=("n1", "n2", "n3"))}
    for at in ("copy in n2", ""):
        now = {"copy": Identity("copy at b:1", at=at, names=left)}
        assert (other_tables(was, now) is None) == is_same


@pytest.mark.parametrize("told", [(True, False), (False, True), (False, False)])
def test_places_are_compared_by_name_if_the_server_does_not_identify_them(told: tuple[bool, bool]) -> None:
    """Also if an earlier version of replicator stored no server-side names."""
    was, now = (Identity("the index copy-1", at="copy-1 in the cluster X" if tells else "") for tells in told)
    assert (
        mode(definition=replace(DEFINITION, tables={"copy": was}), identities={"copy": now}) is startup.StartMode.RESUME
    )
    other = {"copy": replace(now, place="the index other-1")}
    with pytest.raises(ConfigError, match="config names the index other-1"):
        mode(definition=replace(DEFINITION, tables={"copy": was}), identities=other)


def test_the_same_index_under_another_name_is_reported_by_that_name() -> None:
    same = Identity("the index copy-1", "17")
    with pytest.raises(ConfigError, match="writes to copy: the index copy-1, but the config names other: the index"):
        mode(definition=replace(DEFINITION, tables={"copy": same}), identities={"other": same}, epochs={"other": 0})


def test_a_changed_column_needs_a_resync() -> None:
    parts = {"copy": {"columns.total": "numeric from sum"}}
    with pytest.raises(ConfigError, match=r"copy: columns.total was changed since the last run.*replicator resync"):
        mode(startup.Allowed(schema_changes=True), parts=parts)
    assert mode(startup.Allowed(resync=True), parts=parts) is startup.StartMode.BEGIN


def test_an_added_column_is_offered_with_its_statement_and_added_if_allowed() -> None:
    parts = {"copy": {**PARTS["copy"], "columns.city": "text from city"}}
    statements = ['ALTER TABLE "public"."copy" ADD COLUMN "city" text;']
    with pytest.raises(ConfigError) as refused:
        mode(parts=parts, additions=statements)
    assert "columns.city was added" in str(refused.value)
    assert "To build a second copy with it, and switch at the end: replicator rebuild start" in str(refused.value)
    assert "replicator run --apply-schema-changes, which executes:\nALTER TABLE" in str(refused.value)
    assert mode(startup.Allowed(schema_changes=True), parts=parts, additions=statements) is startup.StartMode.BEGIN


@pytest.mark.parametrize("additions", [["ALTER TABLE copy"], None])
def test_a_rebuild_is_offered_only_where_the_target_can_keep_two_copies(additions: list[str] | None) -> None:
    parts = {"copy": {**PARTS["copy"], "columns.city": "text from city"}}
    for changed in ({"parts": parts, "additions": additions}, {"hook": "changed"}):
        for rebuilds in (True, False):
            with pytest.raises(ConfigError) as refused:
                mode(rebuilds=rebuilds, **changed)
            assert ("replicator rebuild start" in str(refused.value)) == rebuilds


def test_there_is_no_epoch_after_the_last_one() -> None:
    with pytest.raises(ConfigError, match=f"{LAST_EPOCH} is the highest possible epoch"):
        startup.new_epoch(startup_state(epochs={"copy": LAST_EPOCH}), enabled=True, now=5.0)


def test_another_stream_is_a_gap_that_names_both() -> None:
    text = reason(table=replace(TABLE, stream_arn="arn:orders/stream/2")) or ""
    assert "stream/1" in text
    assert "stream/2" in text


def test_a_table_of_the_same_name_is_another_table() -> None:
    assert "deleted and created again" in (reason(table=replace(TABLE, id="two")) or "")


def test_a_dropped_target_table_is_a_gap_once_something_was_stored() -> None:
    epochs: dict[str, int | None] = {"copy": FIRST_EPOCH, "other": None}
    identities = {name: Identity(f"the table shop.{name}") for name in epochs}
    assert (
        reason(epochs=epochs, identities=identities)
        == "the table shop.other is gone from the target since the last run"
    )


def test_a_missing_target_table_is_no_gap_before_anything_was_stored() -> None:
    scanning = replace(STATE, stage=stages.SCANNING)
    empty = {"s": ShardState(None, None, whole=False, since=0.0)}
    assert reason(state=scanning, shards=empty, segments={"0": SegmentState(1)}, epochs={"copy": None}) is None


def test_a_recorded_gap_stays_one_until_it_is_repaired() -> None:
    gap = Gap("trimmed", 1.0, FIRST_EPOCH, "shard", "17")
    assert reason(gaps={"g": gap}) == "trimmed"
    assert reason(gaps={"g": replace(gap, repaired=2.0)}) is None


@pytest.mark.parametrize(
    ("stored", "now", "was"), [("abc", "xyz", "changed"), ("abc", "", "was removed"), ("", "abc", "was added")]
)
def test_a_changed_hook_must_be_accepted(stored: str, now: str, was: str) -> None:
    with pytest.raises(ConfigError, match=f"the hook {was} since the last run") as refused:
        startup.check_hook(startup_state(state=replace(STATE, hook=stored), hook=now))
    assert "--accept-hook-change" in str(refused.value)
    assert "resync" in str(refused.value)


@pytest.mark.parametrize("allowed", [RESUMING, startup.Allowed(hook_change=True)])
def test_a_hook_that_chooses_ids_must_not_change_while_the_backfill_reads_an_export(allowed: startup.Allowed) -> None:
    """An item that the export still has may be gone by now; nothing keeps out what another hook makes of it."""
    reading = replace(STATE, stage=stages.SCANNING, export=ExportState("arn:export/1"), hook="before")
    with pytest.raises(ConfigError, match="changed while the backfill reads an export: documents of items") as refused:
        mode(allowed, state=reading, own_ids=True)
    assert "restore the hook until the backfill is done (run --until backfilled), or" in str(refused.value)
    assert "replicator resync CONFIG" in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "state": replace(STATE, stage=stages.SCANNING, export=ExportState("arn:export/1"), hook="abc"),
            "own_ids": True,
        },
        {"state": replace(STATE, stage=stages.SCANNING, export=ExportState("arn:export/1"), hook="before")},
        {"state": replace(STATE, stage=stages.SCANNING, hook="before"), "own_ids": True},
        {"state": replace(STATE, export=ExportState("arn:export/1"), hook="before"), "own_ids": True},
        {
            "state": replace(
                STATE, stage=stages.SCANNING, export=ExportState("arn:export/1"), hook="before", full=1024
            ),
            "own_ids": True,
        },
    ],
    ids=["the same hook", "documents under their items' keys", "a scan", "after the backfill", "a partial resync"],
)
def test_otherwise_a_changed_hook_can_be_accepted(changes: dict[str, Any]) -> None:
    assert mode(startup.Allowed(hook_change=True), **changes) is startup.StartMode.RESUME


def test_a_resync_makes_all_documents_of_a_changed_hook_anew_also_from_an_export() -> None:
    reading = replace(STATE, stage=stages.SCANNING, export=ExportState("arn:export/1"), hook="before")
    assert mode(startup.Allowed(resync=True), state=reading, own_ids=True) is startup.StartMode.BEGIN


def test_an_unchanged_hook_is_accepted() -> None:
    startup.check_hook(startup_state())


def test_the_first_epoch_scans_if_backfill_is_enabled() -> None:
    assert (
        startup.new_epoch(startup_state(state=None, epochs={"copy": None}), enabled=True, now=5.0).stage
        == stages.SCANNING
    )
    assert (
        startup.new_epoch(startup_state(state=None, epochs={"copy": None}), enabled=False, now=5.0).stage
        == stages.FOLLOWING
    )


def test_a_new_epoch_knows_its_hook_its_beginning_and_how_much_there_is_to_scan() -> None:
    state = startup.new_epoch(startup_state(state=None, epochs={"copy": None}), enabled=True, now=5.0)
    assert (state.hook, state.started, state.scan_started, state.items) == ("abc", 5.0, 5.0, 12)
    following = startup.new_epoch(startup_state(state=None, epochs={"copy": None}), enabled=False, now=5.0)
    assert (following.started, following.scan_started) == (5.0, None)


@pytest.mark.parametrize(
    "stored",
    [
        {"shards": STORED, "segments": {}},
        {"shards": {}, "segments": {"0": SegmentState(1, cursor="{}")}},
        {"shards": {}, "segments": {"0": SegmentState(1, ended=True)}},
    ],
)
def test_something_is_stored_once_a_record_a_page_or_a_whole_segment_is(stored: dict[str, Any]) -> None:
    assert "is gone from the target" in (reason(epochs={"copy": None}, **stored) or "")


def test_a_partial_epoch_that_has_begun_needs_what_the_whole_one_before_it_stored() -> None:
    """Even if no page of it is stored, nor any record of a quiet table: it copies the chosen items only."""
    begun = {"state": replace(STATE, epoch=FIRST_EPOCH + 1, full=FIRST_EPOCH), "shards": {}, "segments": {}}
    assert "is gone from the target" in (reason(epochs={"copy": None}, **begun) or "")
    assert "was dropped and recreated" in (reason(epochs={"copy": 0}, **begun) or "")


def test_a_gap_of_an_earlier_epoch_no_longer_counts() -> None:
    gap = Gap("trimmed", 1.0, FIRST_EPOCH, "shard", "17")
    now = FIRST_EPOCH + 1
    assert reason(state=replace(STATE, epoch=now), epochs={"copy": now}, gaps={"g": gap}) is None


def test_a_later_epoch_is_above_both_ends_and_always_scans_and_sweeps() -> None:
    state = startup.new_epoch(startup_state(epochs={"copy": FIRST_EPOCH + 6}), enabled=False, now=5.0)
    assert (state.epoch, state.stage, state.resync) == (FIRST_EPOCH + 7, stages.SCANNING, True)


def test_a_table_without_a_stream_is_refused_with_the_command_that_enables_it() -> None:
    with pytest.raises(ConfigError, match="aws dynamodb update-table --table-name orders"):
        startup.check_source(replace(TABLE, stream_arn=None), own_ids=False)
    arn = "arn:aws:dynamodb:us-east-1:222222222222:table/orders"
    with pytest.raises(ConfigError, match=f"aws dynamodb update-table --table-name {arn} "):
        startup.check_source(replace(TABLE, stream_arn=None, requested=arn), own_ids=False)
    with pytest.raises(ConfigError, match="no enabled stream"):
        startup.check_source(replace(TABLE, streaming=False), own_ids=False)


def test_old_images_alone_are_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="does not include new images"):
        startup.check_source(replace(TABLE, view="OLD_IMAGE"), own_ids=False, options=" --region r --profile p")


@pytest.mark.parametrize("view", ["NEW_IMAGE", "KEYS_ONLY"])
def test_document_ids_chosen_by_a_hook_need_old_images(view: str) -> None:
    with pytest.raises(ConfigError, match="obsolete documents of an item cannot be identified"):
        startup.check_source(replace(TABLE, view=view), own_ids=True)
    startup.check_source(replace(TABLE, view=view), own_ids=False)


def test_a_new_epoch_keeps_the_old_definition_until_the_tables_are_open() -> None:
    begun = startup_state(parts={"copy": {"columns.total": "text from total"}})
    assert begun.as_defined == DEFINITION
    assert begun.bound.parts == begun.parts
    first = startup_state(state=None, definition=UNKNOWN)
    assert first.as_defined == replace(DEFINITION, parts={})


def test_a_new_epoch_over_existing_documents_needs_permission_to_sweep() -> None:
    kept = startup.Allowed(resync=True, sweep=False)
    with pytest.raises(ConfigError, match="--remove-expired"):
        mode(kept)
    with pytest.raises(ConfigError, match="--remove-expired"):
        mode(kept, state=None)  # checkpoints that were lost
    added = {"copy": {**PARTS["copy"], "columns.city": "text from city"}}
    with pytest.raises(ConfigError, match="--remove-expired"):
        mode(startup.Allowed(schema_changes=True, sweep=False), parts=added, additions=["ALTER TABLE"])
    assert mode(kept, state=None, epochs={"copy": None}) is startup.StartMode.BEGIN  # there is nothing to remove
    assert mode(startup.Allowed(sweep=False)) is startup.StartMode.RESUME

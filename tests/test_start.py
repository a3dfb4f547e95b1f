"""How a run begins, from literals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from replicator import backfill, start
from replicator.change import KeyAttribute, KeySchema
from replicator.checkpoints import Gap, PipelineState, SegmentState, ShardState
from replicator.errors import ConfigError
from replicator.position import FIRST_EPOCH
from replicator.source import SourceTable

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
)
STATE = PipelineState(
    epoch=FIRST_EPOCH,
    stream_arn="arn:orders/stream/1",
    table_arn="arn:orders",
    table_id="one",
    stage=backfill.FOLLOWING,
    hook="abc",
)


def found(**changes: Any) -> start.Found:
    usual = start.Found(STATE, {}, {}, {}, TABLE, FIRST_EPOCH, "abc")
    return replace(usual, **changes)


def reason(**changes: Any) -> str | None:
    lost = start.gap(found(**changes))
    return None if lost is None else lost.reason


def test_a_pipeline_that_was_left_in_order_goes_on() -> None:
    assert reason() is None


def test_a_first_start_has_no_gap() -> None:
    assert reason(state=None, target_epoch=None) is None
    assert reason(state=None, target_epoch=0) is None


def test_rows_without_checkpoints_are_a_gap() -> None:
    assert "checkpoints are lost" in (reason(state=None) or "")


def test_checkpoints_older_than_the_target_are_a_gap() -> None:
    assert "checkpoints are older than the target" in (reason(target_epoch=FIRST_EPOCH + 1) or "")


def test_another_stream_is_a_gap_that_names_both() -> None:
    text = reason(table=replace(TABLE, stream_arn="arn:orders/stream/2")) or ""
    assert "stream/1" in text
    assert "stream/2" in text


def test_a_table_of_the_same_name_is_another_table() -> None:
    assert "deleted and created again" in (reason(table=replace(TABLE, id="two")) or "")


def test_a_dropped_target_table_is_a_gap_once_something_was_stored() -> None:
    assert "table of the target is gone" in (reason(target_epoch=None) or "")


def test_an_absent_target_table_is_none_before_anything_was_stored() -> None:
    scanning = replace(STATE, stage=backfill.SCANNING)
    empty = {"s": ShardState(None, None, whole=False, since=0.0)}
    assert reason(state=scanning, shards=empty, segments={"0": SegmentState(1)}, target_epoch=None) is None


def test_a_recorded_gap_stays_one_until_it_is_repaired() -> None:
    gap = Gap("trimmed", 1.0, FIRST_EPOCH, "shard", "17")
    assert reason(gaps={"g": gap}) == "trimmed"
    assert reason(gaps={"g": replace(gap, repaired=2.0)}) is None


@pytest.mark.parametrize(
    ("stored", "now", "was"), [("abc", "xyz", "changed"), ("abc", "", "was removed"), ("", "abc", "was added")]
)
def test_another_hook_needs_a_persons_word(stored: str, now: str, was: str) -> None:
    with pytest.raises(ConfigError, match=f"the hook {was} since the last run") as refused:
        start.check_hook(found(state=replace(STATE, hook=stored), hook=now))
    assert "--accept-hook-change" in str(refused.value)
    assert "resync" in str(refused.value)


def test_the_same_hook_is_no_matter() -> None:
    start.check_hook(found())


def test_the_first_epoch_scans_if_a_backfill_is_wanted() -> None:
    assert start.fresh(found(state=None, target_epoch=None), enabled=True, now=5.0).stage == backfill.SCANNING
    assert start.fresh(found(state=None, target_epoch=None), enabled=False, now=5.0).stage == backfill.FOLLOWING


def test_a_later_epoch_is_above_both_ends_and_always_scans_and_sweeps() -> None:
    state = start.fresh(found(target_epoch=FIRST_EPOCH + 6), enabled=False, now=5.0)
    assert (state.epoch, state.stage, state.resync) == (FIRST_EPOCH + 7, backfill.SCANNING, True)


def test_a_table_without_a_stream_is_refused_with_the_command_that_enables_it() -> None:
    with pytest.raises(ConfigError, match="aws dynamodb update-table --table-name orders"):
        start.check_source(replace(TABLE, stream_arn=None), own_ids=False)
    with pytest.raises(ConfigError, match="no enabled stream"):
        start.check_source(replace(TABLE, streaming=False), own_ids=False)


def test_old_images_alone_are_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="never shows what an item became"):
        start.check_source(replace(TABLE, view="OLD_IMAGE"), own_ids=False)


@pytest.mark.parametrize("view", ["NEW_IMAGE", "KEYS_ONLY"])
def test_ids_of_their_own_need_old_images(view: str) -> None:
    with pytest.raises(ConfigError, match="which documents an item leaves behind"):
        start.check_source(replace(TABLE, view=view), own_ids=True)
    start.check_source(replace(TABLE, view=view), own_ids=False)

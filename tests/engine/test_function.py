"""The AWS Lambda function and the backfill that hands over to it, step by step in memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest

from replicator.change import Listing
from replicator.checkpoints.contract import Slotted
from replicator.engine import preexisting
from replicator.engine.function import LISTING_TIME, Function
from replicator.engine.handover import follow
from replicator.engine.local import Driver
from replicator.engine.startup import RESUMING, Allowed, digest
from replicator.errors import ConfigError, GapFound, TransientError
from replicator.hooks.hook import Hook
from replicator.items.item import Item
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.pipeline.discovery import ORPHAN_TIME
from replicator.pipeline.progress import progress
from replicator.state import ExportState, Heartbeat, ResyncRequest, Save, ShardState, decode, decode_pipeline, encode
from replicator.testing.dynamodb import DynamoDB
from tests.engine.cluster import TABLE
from tests.engine.event_source import EventSource
from tests.engine.function_stack import Stack, Timer


def filled(**config: Any) -> Stack:
    stack = Stack(**config)
    for n in range(20):
        stack.write(f"k{n}", n)
    stack.backfill()
    assert stack.stored == stack.wanted
    return stack


def test_what_the_mapping_delivers_after_the_backfill_is_stored_once() -> None:
    stack = filled()
    for n in range(50):
        stack.write(f"k{n % 25}", 100 + n)
    stack.delete("k3")
    function = stack.container()
    stack.deliver(function)
    assert stack.stored == stack.wanted
    counts = sum(c.read for source, c in stack.database.counts.items() if source.startswith("shard:"))
    for shard in list(stack.mapping.shards):
        stack.mapping.shards[shard].after = -1
    stack.deliver(function, stack.container())
    assert sum(c.read for s, c in stack.database.counts.items() if s.startswith("shard:")) == counts
    assert stack.stored == stack.wanted


def test_shards_that_split_and_roll_over_are_followed_by_any_number_of_containers() -> None:
    stack = filled()
    chance, containers = random.Random(1), [stack.container() for _ in range(3)]
    for n in range(60):
        stack.write(f"k{chance.randrange(25)}", n)
        if n % 10 == 5:
            shards = stack.source.open_shards(TABLE)
            stack.source.split(TABLE, shards[n % len(shards)])
        if n % 10 == 9:
            stack.source.roll_all(TABLE)
        if n % 7 == 0:
            stack.deliver(*containers)
    stack.deliver(*containers)
    assert stack.stored == stack.wanted
    assert stack.gaps == []


def test_a_batch_that_lambda_gave_up_is_read_from_the_stream_while_that_has_it() -> None:
    stack = filled(shards=1)
    function = stack.container()
    for n in range(3):
        stack.write("k1", 100 + n)
        stack.deliver(function)
        for k in range(9):
            stack.write(f"k{k}", 200 + n)
        (shard,) = stack.mapping.ready()
        given_up = stack.mapping.event(shard)
        assert given_up is not None
        stack.mapping.drop(shard, given_up)
        stack.write("k15", 300 + n)
        stack.deliver(function)
        assert stack.stored == stack.wanted
    assert stack.gaps == []


def test_a_container_that_has_read_the_stream_itself_counts_nothing_twice_when_it_reads_it_again() -> None:
    stack = filled(shards=1)
    function = stack.container()
    stack.write("k1", 100)
    stack.deliver(function)  # nothing of the shard is stored before: it is read
    for n in range(5):
        stack.write("k2", 200 + n)
    stack.deliver(function)  # continues what is stored
    (shard,) = stack.mapping.ready()
    stack.write("k3", 300)
    given_up = stack.mapping.event(shard)
    assert given_up is not None
    stack.mapping.drop(shard, given_up)
    stack.write("k4", 400)
    stack.deliver(function)  # does not
    assert stack.stored == stack.wanted
    assert stack.database.counts[f"shard:{shard}"].read == 20 + 1 + 5 + 2


@pytest.mark.parametrize(
    "parts", [([0, 3],), ([0, 2], [1, 3]), ([1, 3], [0, 2]), ([0, 2, 1, 3],), ([0, 0, 1, 2, 3],), ([3], [2], [1], [0])]
)
def test_what_a_batch_leaves_out_or_brings_in_another_order_is_read_from_the_stream(parts: list[list[int]]) -> None:
    """A filter leaves records out, and a ParallelizationFactor divides a shard's items among batches."""
    stack = filled(shards=1)
    functions = [stack.container(), stack.container()]
    stack.write("k1", 100)
    stack.deliver(functions[0])
    stack.write("k1", 101)
    stack.delete("k2")
    stack.write("k1", 102)
    stack.write("k3", 103)
    (shard,) = stack.mapping.ready()
    batch = stack.mapping.event(shard)
    assert batch is not None
    for n, part in enumerate(parts):
        stack.until_over()
        response = functions[n % 2].invoke({**batch, "Records": [batch["Records"][i] for i in part]})
        assert response == {"batchItemFailures": [], "state": {}}
    assert stack.stored == stack.wanted
    assert stack.database.counts[f"shard:{shard}"].read == 20 + 1 + 4
    assert stack.gaps == []


def test_what_is_lost_while_a_rescan_repairs_a_gap_is_another_gap() -> None:
    stack = filled(shards=1)
    function = stack.container()
    stack.write("k1", 100)
    stack.deliver(function)
    stack.lose("k2", 200)
    stack.write("k1", 101)
    stack.deliver(function)
    assert [gap.epoch for gap in stack.gaps] == [1024]
    run = stack.scanning(Allowed(resync=True))
    stack.write("k1", 102)
    stack.deliver(function)
    stack.lose("k2", 201)
    stack.clock.now += 1.0
    stack.write("k1", 103)
    stack.deliver(function)
    assert [(gap.epoch, gap.repaired) for gap in stack.gaps] == [(1024, None), (1025, None)]
    stack.until_over()
    with pytest.raises(GapFound):
        run.run(RESUMING)
    stack.backfill(Allowed(resync=True))
    assert all(gap.repaired for gap in stack.gaps)
    assert stack.stored == stack.wanted


def test_records_that_nothing_can_read_any_more_are_a_gap_behind_which_the_stream_is_followed() -> None:
    stack = filled()
    function = stack.container()
    for n in range(20):
        stack.write(f"k{n}", 100 + n)
    stack.deliver(function)
    for n in range(20):
        stack.write(f"k{n}", 200 + n)
    for shard in stack.mapping.ready():
        if (batch := stack.mapping.event(shard)) is not None:
            stack.mapping.drop(shard, batch)
    stack.trim_all()
    stack.write("k1", 301)
    stack.write("k2", 302)
    stack.deliver(function, stack.container())
    assert [gap.repaired for gap in stack.gaps] == [None] * len(stack.gaps) != []
    assert {id[0]: d["v"] for id, d in stack.stored.items()} == {
        **{f"k{n}": 100 + n for n in range(20)},
        "k1": 301,
        "k2": 302,
    }
    with pytest.raises(GapFound):
        stack.backfill()
    stack.backfill(Allowed(resync=True))
    assert stack.stored == stack.wanted
    assert all(gap.repaired for gap in stack.gaps)


@pytest.mark.parametrize("view", ["NEW_AND_OLD_IMAGES", "KEYS_ONLY"])
def test_what_a_batch_behind_a_gap_leaves_out_is_read_from_the_stream(view: str) -> None:
    stack = filled(shards=1, view=view)
    function = stack.container()
    stack.write("k1", 100)
    stack.deliver(function)
    stack.lose("k2", 200)
    for n in range(3, 7):
        stack.write(f"k{n}", 300 + n)
    (shard,) = stack.mapping.ready()
    batch = stack.mapping.event(shard)
    assert batch is not None
    stack.until_over()
    response = function.invoke({**batch, "Records": [batch["Records"][-4], batch["Records"][-1]]})

    assert response == {"batchItemFailures": [], "state": {}}
    assert len(stack.gaps) == 1
    assert {id[0]: d["v"] for id, d in stack.stored.items() if id[0] in ("k3", "k4", "k5", "k6")} == {
        f"k{n}": 300 + n for n in range(3, 7)
    }
    assert stack.database.counts[f"shard:{shard}"].read == 20 + 1 + 4


def test_a_mapping_that_was_disabled_loses_nothing_and_for_too_long_is_a_gap() -> None:
    stack = filled(shards=1)
    function = stack.container()
    for hours in (20, 25):
        stack.write("k1", hours)
        stack.deliver(function)  # which is the last before the mapping is disabled
        for n in range(5):
            stack.write(f"k{n}", 100 * hours + n)
        stack.delete("k7" if hours == 20 else "k8")
        stack.clock.now += hours * 3600.0
        if hours > 24:
            stack.trim_all()
        stack.write("k9", hours)
        stack.deliver(function)
        assert (stack.stored == stack.wanted) == (hours == 20)
        assert len(stack.gaps) == (hours == 25)
    assert stack.stored[("k9",)] == {"pk": "k9", "v": 25}, "the stream is followed behind the gap"
    stack.backfill(Allowed(resync=True))
    assert stack.stored == stack.wanted


def test_behind_a_gap_items_of_a_keys_only_stream_are_looked_up_not_deleted() -> None:
    stack = filled(view="KEYS_ONLY")
    function = stack.container()
    for n in range(20):
        stack.write(f"k{n}", 100 + n)
    stack.deliver(function)
    assert stack.stored == stack.wanted
    for n in range(20):
        stack.write(f"k{n}", 200 + n)
    for shard in stack.mapping.ready():
        if (batch := stack.mapping.event(shard)) is not None:
            stack.mapping.drop(shard, batch)
    stack.trim_all()
    for n in range(12):  # more than one look-up
        stack.write(f"k{n}", 300 + n)
    stack.delete("k3")
    stack.source.fail("BatchGetItem")
    stack.deliver(function, stack.container())
    assert stack.gaps
    behind = {f"k{n}": 300 + n for n in range(12) if n != 3}
    assert {id[0]: d["v"] for id, d in stack.stored.items()} == {**{f"k{n}": 100 + n for n in range(12, 20)}, **behind}


def test_no_item_is_looked_up_in_a_table_that_was_made_again_and_the_error_says_what_to_do() -> None:
    stack = filled(shards=1, view="KEYS_ONLY")
    function = stack.container()
    stack.write("k1", 100)
    stack.deliver(function)
    stack.write("k2", 200)
    (shard,) = stack.mapping.ready()
    batch, before = stack.mapping.event(shard), dict(stack.stored)
    assert batch is not None
    stack.source.call("DeleteTable", {"TableName": TABLE})
    stack.source.create_table(TABLE, keys={"pk": "S"}, view="KEYS_ONLY")
    for container in (function, stack.container()):
        stack.until_over()
        with pytest.raises(GapFound, match=r"looked up\. Nothing is stored before a rescan: replicator resync CONFIG"):
            container.invoke(batch)
    assert len(stack.gaps) == 1
    assert stack.stored == before


@pytest.mark.parametrize("view", ["NEW_AND_OLD_IMAGES", "KEYS_ONLY"])
def test_a_stream_that_was_replaced_is_a_gap_and_followed_after_a_rescan(view: str) -> None:
    stack = filled(shards=1)
    function = stack.container()
    stack.write("k1", 100)
    stack.deliver(function)
    stack.source.disable_stream(TABLE)
    stack.write("k5", 555)  # in no stream
    stack.source.enable_stream(TABLE, view)
    stack.mapping = EventSource(stack.source, TABLE)
    stack.write("k2", 200)
    for container in (function, stack.container(), function):
        with pytest.raises(GapFound, match=r"the stream was replaced: .*replicator resync CONFIG, then .*backfilled"):
            stack.deliver(container)
    assert [gap.reason.partition(":")[0] for gap in stack.gaps] == ["the stream was replaced"]
    stack.backfill(Allowed(resync=True))
    stack.deliver(function)
    stack.write("k2", 201)
    stack.deliver(function, stack.container())
    assert stack.stored == stack.wanted
    assert all(gap.repaired for gap in stack.gaps)


def test_a_backfill_for_lambda_begins_once_the_stream_is_enabled() -> None:
    stack = filled(shards=1)
    stack.source.disable_stream(TABLE)
    stack.write("k5", 555)
    stack.source.enable_stream(TABLE, enabling=60.0)
    enabled = stack.clock.now + 60.0
    backfill = stack.backfill(Allowed(resync=True))
    assert backfill.coordinator.pipeline.state is not None
    assert backfill.coordinator.pipeline.state.started >= enabled
    stack.mapping = EventSource(stack.source, TABLE)
    stack.write("k6", 666)
    stack.deliver(stack.container())
    assert stack.stored == stack.wanted


def disabled(stack: Stack) -> None:
    stack.source.disable_stream(TABLE)


def replaced(stack: Stack) -> None:
    stack.source.disable_stream(TABLE)
    stack.source.enable_stream(TABLE)


def recreated(stack: Stack) -> None:
    stack.source.call("DeleteTable", {"TableName": TABLE})
    stack.source.create_table(TABLE, keys={"pk": "S"})


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (disabled, "the stream was disabled; changes made since then cannot be read"),
        (replaced, "the stream was replaced: the last run read"),
        (recreated, "table orders was deleted and created again since the last run"),
    ],
)
def test_a_stream_that_ended_is_a_gap_that_the_schedule_finds_also_if_no_event_comes(
    act: Callable[[Stack], None], said: str
) -> None:
    stack = filled(shards=1)
    function = stack.container()
    stack.write("k1", 100)
    act(stack)
    stack.clock.now += 900
    for container in (function, stack.container()):
        stack.until_over()
        with pytest.raises(GapFound, match=rf"{said}.*until a rescan: replicator resync CONFIG, then .*backfilled"):
            container.invoke({})
    assert [gap.reason.startswith(said) for gap in stack.gaps] == [True]


def test_a_table_that_was_deleted_is_named_and_its_copy_stays() -> None:
    stack = filled()
    function = stack.container()
    stack.source.call("DeleteTable", {"TableName": TABLE})
    with pytest.raises(ConfigError, match=r"source\.table: the table .*/orders was deleted\. Nothing was removed"):
        function.invoke({})
    assert len(stack.stored) == 20


def test_a_package_that_names_another_table_records_no_gap() -> None:
    stack = filled()
    stack.source = DynamoDB(now=stack.clock, random=random.Random(2), region="eu-west-1")
    stack.source.create_table(TABLE, keys={"pk": "S"})
    stack.mapping = EventSource(stack.source, TABLE)
    stack.write("k1", 1)
    function = stack.container()
    for invoke in (lambda: stack.deliver(function), lambda: function.invoke({})):
        with pytest.raises(ConfigError, match=r"source: this pipeline copies .*us-east-1.* names .*eu-west-1"):
            invoke()
    assert stack.gaps == []


def test_a_mapping_of_another_tables_stream_is_refused() -> None:
    stack = filled()
    stack.write("k1", 1)
    batch = next(b for s in stack.mapping.ready() if (b := stack.mapping.event(s)) is not None)
    batch["eventSourceARN"] = "arn:aws:dynamodb:eu-west-1:1:table/other/stream/1"
    with pytest.raises(
        ConfigError, match=r"the event source mapping reads .*other/stream/1, but this pipeline follows"
    ):
        stack.container().invoke(batch)
    assert stack.gaps == []


def test_with_a_schedule_a_table_without_writes_is_no_gap_after_days() -> None:
    stack = filled(shards=1)
    function = stack.container()
    stack.write("k0", 50)
    stack.deliver(function)
    for _ in range(8):
        stack.clock.now += 5 * 3600
        stack.source.roll_all(TABLE)
        stack.until_over()
        stack.container().invoke({"source": "aws.events"})
        stack.deliver(function)
    stack.write("k1", 77)
    stack.deliver(function, stack.container())
    assert stack.gaps == []
    assert stack.stored == stack.wanted


def test_a_schedule_leaves_shards_alone_that_events_move() -> None:
    stack = filled(shards=2)
    function = stack.container()
    stack.clock.now += 3600
    stack.write("k1", 501)
    stack.deliver(function)
    assert stack.stored == stack.wanted
    stack.until_over()
    assert stack.container().invoke({}) == {"shards": 1}
    assert stack.container().invoke({}) == {"shards": 0}
    stack.write("k1", 502)
    stack.deliver(function)
    assert stack.stored == stack.wanted


def test_a_shard_that_never_gets_children_is_no_gap_once_it_is_no_longer_listed() -> None:
    stack = filled(shards=1)
    stack.source.wither(TABLE, stack.source.open_shards(TABLE)[0])
    for hour in range(50):
        stack.clock.now += 3600
        stack.until_over()
        stack.container().invoke({})
        if hour % 4 == 0:
            stack.source.roll_all(TABLE)
    (shard,) = stack.source.roll_all(TABLE)
    stack.write("k1", 600)
    batch = next(b for s in stack.mapping.newest() if (b := stack.mapping.event(s)) is not None)
    stack.source.misreport(lambda shards: [s for s in shards if s.id != shard], times=5)  # stale listings
    stack.until_over()
    stack.container().invoke(batch)
    assert stack.gaps == []
    assert stack.stored == stack.wanted
    current = progress(stack.context().checkpoints.read().entries, {}, stack.clock.wall())
    assert current.lag_seconds is not None
    assert current.lag_seconds < 3700


def test_a_shard_that_the_first_listing_lacked_after_an_export_is_a_gap_and_all_others_are_followed() -> None:
    stack = Stack(shards=1)
    stack.write("k1", 1)
    first = stack.source.open_shards(TABLE)[0]
    stack.source.roll_all(TABLE)
    stack.source.misreport(lambda shards: [s for s in shards if s.id != first], times=50)
    stack.backfill()
    stack.source.heal()
    revision, text = stack.database.entries["pipeline", ""]
    copied = replace(decode_pipeline(text), export=ExportState("an existing one", stack.clock.wall()))
    stack.database.entries["pipeline", ""] = revision, encode(copied)

    (parent,) = stack.source.open_shards(TABLE)
    stack.source.roll_all(TABLE)
    (child,) = stack.source.open_shards(TABLE)
    stack.write("k2", 2)
    stack.deliver(stack.container())
    assert [gap.shard for gap in stack.gaps] == [first]
    state = decode("shard", child, stack.database.entries["shard", child][1])
    assert isinstance(state, ShardState)
    assert state.parent == parent
    assert stack.stored == stack.wanted


def without_its_parent(stack: Stack) -> dict[str, Any]:
    """A batch of a shard whose parent listings omit, until they are healed."""
    stack.source.roll_all(TABLE)
    (parent,) = stack.source.open_shards(TABLE)
    stack.source.roll_all(TABLE)
    stack.write("k1", 700)
    batch = next(b for s in stack.mapping.newest() if (b := stack.mapping.event(s)) is not None)
    stack.source.misreport(lambda shards: [s for s in shards if s.id != parent])
    return batch


def fails_for(stack: Stack, seconds: float, batch: dict[str, Any]) -> None:
    """Lambda repeats an invocation that fails, in whichever container."""
    since = stack.clock.now
    while stack.clock.now - since < seconds:
        stack.until_over()
        with pytest.raises(TransientError, match="its parent is missing from listings: Lambda retries"):
            stack.container().invoke(batch)
        stack.clock.now += 10


def test_a_parent_that_listings_omit_for_a_few_minutes_is_no_gap() -> None:
    stack = filled(shards=1)
    batch = without_its_parent(stack)
    fails_for(stack, ORPHAN_TIME - 60, batch)
    stack.source.heal()
    stack.until_over()
    stack.container().invoke(batch)
    assert stack.gaps == []
    assert stack.stored == stack.wanted


def test_a_parent_that_listings_omit_for_longer_is_a_gap_and_its_child_is_followed() -> None:
    stack = filled(shards=1)
    batch = without_its_parent(stack)
    fails_for(stack, ORPHAN_TIME - 30, batch)
    stack.clock.now += 60
    stack.until_over()
    stack.container().invoke(batch)
    assert [gap.reason for gap in stack.gaps] == [
        "the shard's parent is missing from 191 listings: its records are lost"
    ]
    assert stack.stored == stack.wanted


def test_minutes_between_two_absences_of_a_parent_do_not_count() -> None:
    """It was listed between them, for an invocation of another shard."""
    stack = filled(shards=1)
    batch = without_its_parent(stack)
    fails_for(stack, 60, batch)
    stack.source.heal()
    stack.container()._add(None, stack.database.entries["owner", ""][0])
    assert decode_heartbeat(stack).orphaned == {}


def decode_heartbeat(stack: Stack) -> Heartbeat:
    found = decode("pulse", "", stack.database.entries["pulse", ""][1])
    assert isinstance(found, Heartbeat)
    return found


def test_a_shard_that_cannot_be_read_does_not_keep_the_schedule_from_others() -> None:
    stack = filled(shards=3)
    bad, *others = sorted(stack.source.open_shards(TABLE))
    stack.source.fail("GetShardIterator", "LimitExceededException", shard=bad, times=None)
    for _ in range(2):
        stack.clock.now += 900
        stack.until_over()
        assert stack.container().invoke({}) == {"shards": len(others)}
    stack.source.heal()
    stack.clock.now += 900
    stack.until_over()
    assert stack.container().invoke({}) == {"shards": 3}


def test_a_schedule_whose_shards_another_invocation_adds_reads_them() -> None:
    stack = filled(shards=1)
    one, other = stack.container(), stack.container()
    stack.source.roll_all(TABLE)
    stack.clock.now += 900
    listed = one._list

    def overtaken(stream_arn: str, run: int) -> Listing:
        found = listed(stream_arn, run)
        other._add(None, other._read().revision)
        return found

    one._list = overtaken  # type: ignore[method-assign]
    stack.until_over()
    assert one.invoke({}) == {"shards": 2}


def test_an_invocation_leaves_it_to_another_one_to_add_shards_unless_that_takes_too_long() -> None:
    stack = filled(shards=2)
    one, other = stack.container(), stack.container()
    stack.source.roll_all(TABLE)
    stack.write("k1", 600)
    new = stack.mapping.newest()
    batch = next(b for s in new if (b := stack.mapping.event(s)) is not None)
    waits = stack.clock.now
    one._claim_listing(one._read().revision)  # and then it ends
    stack.until_over()
    other.invoke(batch)
    assert stack.clock.now - waits >= LISTING_TIME
    assert stack.stored == stack.wanted
    stack.source.roll_all(TABLE)
    stack.write("k1", 601)
    batch = next(b for s in stack.mapping.newest() if (b := stack.mapping.event(s)) is not None)
    stack.clock.now += 60
    listed = stack.source.calls["DescribeStream"]
    one._add(None, one._read().revision)
    stack.until_over()
    other.invoke(batch)
    assert stack.source.calls["DescribeStream"] == listed + 1
    assert stack.stored == stack.wanted


def test_a_schedule_that_reads_nothing_in_its_time_fails() -> None:
    stack = filled()
    timer = Timer(stack.clock)
    timer.over = lambda: True
    function = Function(stack.context(), stack.owner("container"), replace(stack.environment(), stop=timer))  # type: ignore[arg-type]
    stack.source.fail("DescribeStream", times=None)
    with pytest.raises(TransientError, match="time was over before any shard was read"):
        function.invoke({})


def test_a_schedule_does_not_park_more_items_than_the_limit() -> None:
    def picky(item: Item) -> Item:
        if int(str(item["v"])) > 1000:
            raise ValueError
        return item

    stack = filled(shards=1, hook=Hook("hook", picky, "print", declared=False), parked_limit=2)
    function = stack.container()
    for n in range(3):
        stack.write(f"k{n}", 2000)
    stack.deliver(function)
    stack.write("k9", 2000)
    stack.clock.now += 900
    for invoke in (lambda: stack.deliver(function), lambda: function.invoke({})):
        stack.until_over()
        with pytest.raises(ConfigError, match="more than 2 items are parked"):
            invoke()
    assert sum(kind == "parked" for kind, _ in stack.database.entries) == 3


def test_during_the_backfill_a_schedule_does_not_say_that_the_pipeline_is_live() -> None:
    stack = Stack(shards=1)
    for n in range(20):
        stack.write(f"k{n}", n)
    run = stack.scanning()
    function = stack.container()
    for stage in ("backfill", "live"):
        stack.until_over()
        function.invoke({})
        assert progress(stack.context().checkpoints.read().entries, {}, stack.clock.wall()).phase == stage
        if stage == "backfill":
            assert run.run(RESUMING)


def test_a_record_without_a_time_is_stored() -> None:
    stack = filled(shards=1)
    stack.write("k1", 99)
    (shard,) = stack.mapping.ready()
    batch = stack.mapping.event(shard)
    assert batch is not None
    for record in batch["Records"]:
        del record["dynamodb"]["ApproximateCreationDateTime"]
    stack.until_over()
    stack.container().invoke(batch)
    assert stack.stored == stack.wanted


def test_an_idle_shard_whose_records_are_lost_is_one_gap_however_often_the_schedule_comes() -> None:
    stack = filled(shards=1)
    stack.write("k1", 501)
    stack.trim_all()
    for _ in range(3):
        stack.clock.now += 40 * 3600
        stack.until_over()
        stack.container().invoke({})
    assert len(stack.gaps) == 1


def test_a_container_that_knows_only_the_earlier_epoch_stores_nothing_of_it() -> None:
    stack = filled()
    function = stack.container()
    stack.write("k1", 100)
    stack.deliver(function)
    stack.write("k1", 101)
    stack.backfill(Allowed(resync=True))
    stack.write("k1", 102)
    stack.deliver(function)
    assert stack.stored == stack.wanted
    epochs = {version >> 48 for version, _ in stack.database.rows[TABLE].values()}
    assert epochs == {1025}


def test_while_another_engine_runs_the_pipeline_the_function_stores_nothing() -> None:
    stack = filled()
    function = stack.container()
    stack.write("k1", 100)
    stack.deliver(function)
    other = Driver(stack.context(), stack.owner("local"), stack.environment())
    other.start(RESUMING)
    stack.write("k2", 200)
    before = dict(stack.database.entries)
    with pytest.raises(ConfigError, match=r"not handed over to AWS Lambda \(its last run: .*--until backfilled"):
        stack.deliver(function)
    assert stack.database.entries == before
    stack.backfill()
    stack.deliver(function)
    assert stack.stored == stack.wanted


def test_while_workers_run_the_pipeline_the_function_stores_nothing_also_when_shards_have_just_ended() -> None:
    """Their children have no slot then, until the coordinator gives them to workers."""
    stack = Stack()
    stack.start()
    stack.settle()
    function = stack.container()
    for n in range(200):
        if n % 50 == 0:
            stack.write("k1", n)
            stack.source.roll_all(TABLE)
            stack.write("k1", n + 1)
        stack.round()
        stack.until_over()
        with pytest.raises(ConfigError, match="not handed over to AWS Lambda"):
            function.invoke({})
    stack.settle()
    assert stack.stored == stack.wanted


def test_one_process_workers_and_lambda_go_on_where_the_one_before_ended() -> None:
    """The engine changes between runs: local, Ray's workers, Lambda, local; nothing is lost or counted twice."""
    stack = Stack()
    records = 0

    def change(by: int) -> None:
        nonlocal records
        for n in range(15):
            stack.write(f"k{n}", 100 * by + n)
            records += 1
        stack.source.roll(TABLE, stack.source.open_shards(TABLE)[0])

    def local() -> None:
        stack.until_over()
        driver = Driver(stack.context(), stack.owner("local"), stack.environment())
        driver.run(until="caught-up", allowed=RESUMING)

    def workers() -> None:
        stack.start()
        stack.settle()
        stack.stop()

    def function() -> None:
        stack.backfill()
        stack.deliver(stack.container(), stack.container())

    local()
    for by, engine in enumerate((local, workers, function, local, function, workers)):
        change(by)
        engine()
        assert stack.stored == stack.wanted
    counts = sum(c.read for source, c in stack.database.counts.items() if source.startswith("shard:"))
    assert counts == records
    assert stack.gaps == []


def test_a_backfill_that_a_gap_would_end_leaves_the_pipeline_to_the_function() -> None:
    stack = filled(shards=1)
    stack.write("k1", 1000)
    stack.deliver(stack.container())
    stack.lose("k2", 77)
    stack.write("k1", 1001)
    stack.deliver(stack.container())
    assert len(stack.gaps) == 1
    with pytest.raises(GapFound, match="trimmed"):
        follow(stack.context(), stack.owner("b"), stack.environment(), "backfilled", RESUMING, nullcontext)
    stack.write("k1", 1002)
    stack.deliver(stack.container())
    assert stack.stored["k1",]["v"] == 1002
    stack.backfill(Allowed(resync=True))
    assert stack.stored == stack.wanted


def test_behind_a_gap_that_ended_another_run_the_function_names_the_rescan() -> None:
    stack = filled(shards=1)
    stack.write("k1", 1000)
    stack.deliver(stack.container())
    stack.lose("k2", 77)
    stack.until_over()
    with pytest.raises(GapFound):
        Driver(stack.context(), stack.owner("local"), stack.environment()).run(until="caught-up")
    stack.write("k1", 1001)
    with pytest.raises(ConfigError, match=r"only a rescan repairs.* and run: replicator resync CONFIG, then "):
        stack.deliver(stack.container())


def test_before_the_first_backfill_the_function_stores_nothing() -> None:
    stack = Stack()
    stack.write("k1", 100)
    with pytest.raises(ConfigError, match=r"not handed over to AWS Lambda\. Stop other runs"):
        stack.deliver(stack.container())
    assert stack.database.entries == {}


def test_an_event_without_a_shard_names_the_setting_that_adds_it() -> None:
    stack = filled()
    stack.write("k1", 1)
    batch = next(b for s in stack.mapping.ready() if (b := stack.mapping.event(s)) is not None)
    del batch["shardId"]
    with pytest.raises(ConfigError, match="TumblingWindowInSeconds"):
        stack.container().invoke(batch)


def test_a_window_that_ends_without_records_is_nothing_to_store() -> None:
    stack = filled()
    before = dict(stack.database.entries)
    ended = {"Records": [], "shardId": stack.mapping.ready()[0], "isFinalInvokeForWindow": True, "state": {}}
    assert stack.container().invoke(ended) == {"batchItemFailures": [], "state": {}}
    assert stack.database.entries == before


def test_when_time_runs_out_the_response_names_the_first_record_that_is_not_stored() -> None:
    stack = filled(shards=1)
    stack.source.page_sizes(records=5)
    for n in range(20):
        stack.write(f"k{n}", 100 + n)
    (shard,) = stack.mapping.ready()
    batch = stack.mapping.event(shard)
    assert batch is not None
    timer = Timer(stack.clock)
    timer.over = lambda: f"shard:{shard}" in stack.database.counts
    environment = replace(stack.environment(), stop=timer)  # type: ignore[arg-type]
    response = Function(stack.context(), stack.owner("container"), environment).invoke(batch)
    stored = stack.database.counts[f"shard:{shard}"].read
    new = [r["dynamodb"]["SequenceNumber"] for r in batch["Records"]]
    assert 0 < stored < len(new) == 40
    assert response["batchItemFailures"] == [{"itemIdentifier": new[stored]}]
    stack.mapping.done(shard, batch, response)
    stack.deliver(stack.container())
    assert stack.stored == stack.wanted


def test_when_time_runs_out_before_anything_is_stored_the_invocation_fails_and_comes_again() -> None:
    stack = filled(shards=1)
    stack.write("k1", 100)
    timer = Timer(stack.clock)
    timer.over = lambda: True
    function = Function(stack.context(), stack.owner("container"), replace(stack.environment(), stop=timer))  # type: ignore[arg-type]
    before = stack.stored
    with pytest.raises(TransientError, match="time was over"):
        stack.deliver(function)
    assert stack.stored == before
    timer.over = lambda: False
    stack.deliver(function)
    assert stack.stored == stack.wanted


def test_a_frozen_container_that_wakes_up_after_a_takeover_stores_nothing_twice() -> None:
    stack = filled(shards=1)
    frozen, other = stack.container(), stack.container()
    stack.write("k1", 100)
    stack.deliver(frozen)
    stack.write("k1", 101)
    (shard,) = stack.mapping.ready()
    late = stack.mapping.event(shard)
    assert late is not None
    stack.deliver(other)
    stack.write("k1", 102)
    stack.deliver(other)
    counts = dict(stack.database.counts)
    assert frozen.invoke(late) == {"batchItemFailures": [], "state": {}}
    assert stack.database.counts == counts
    stack.write("k1", 103)
    stack.deliver(other)
    assert stack.stored == stack.wanted


def test_an_invocation_whose_lane_others_take_again_and_again_stores_its_batch_in_the_end() -> None:
    stack = filled(shards=1)
    stack.write("k1", 100)
    (shard,) = stack.mapping.ready()
    batch = stack.mapping.event(shard)
    assert batch is not None
    stack.until_over()
    function, lane, began = stack.container(), "", stack.clock.now
    calling = stack.source.call

    def taken(operation: str, request: Any) -> bytes:
        """Answers, after another container has claimed the lane; for a second."""
        if operation == "GetRecords" and stack.clock.now < began + 1.0:
            claimed = stack.context().checkpoints
            assert isinstance(claimed, Slotted)
            claimed.claim_slot(stack.owner("other"), lane, claimed.read().revision)
        return calling(operation, request)

    entries = stack.context().checkpoints.read().entries
    lane = next(s.slot for s in (decode(e.kind, e.id, e.text) for e in entries) if isinstance(s, ShardState))
    stack.source.call = taken  # type: ignore[method-assign]
    assert function.invoke(batch) == {"batchItemFailures": [], "state": {}}
    assert stack.stored == stack.wanted
    assert stack.clock.now >= began + 1.0, "until then, each attempt was in vain"


def test_chosen_items_that_are_requested_are_rescanned_by_the_next_backfill() -> None:
    stack = filled()
    function = stack.container()
    stack.deliver(function)
    context = stack.context()
    view = CheckpointView(context.checkpoints.read())
    found = preexisting.inspect(view, context.table, context.target, context.tables, None)
    request = ResyncRequest(stack.clock(), digest(found), keys=(("k1",),))
    del stack.database.rows[TABLE][("k1",)]
    context.checkpoints.save([Save("request", "", 0, encode(request))])
    stack.backfill()
    assert stack.stored == stack.wanted
    stack.write("k1", 700)
    stack.deliver(function)
    assert stack.stored == stack.wanted


def test_events_of_a_shard_that_ended_before_the_epoch_are_nothing_to_store() -> None:
    stack = Stack(shards=1)
    stack.write("k1", 1)
    stack.source.roll_all(TABLE)
    stack.write("k2", 2)
    stack.backfill()
    before = dict(stack.database.counts)
    old = next(id for id in stack.mapping.ready())
    batch = stack.mapping.event(old)
    assert batch is not None
    stack.until_over()
    assert stack.container().invoke(batch) == {"batchItemFailures": [], "state": {}}
    assert stack.database.counts == before
    stack.deliver(stack.container())
    assert stack.stored == stack.wanted


def test_a_package_with_another_hook_than_that_of_the_copy_stores_nothing() -> None:
    stack = filled()
    stack.write("k1", 600)
    stack.hook = Hook("hook", dict, "another", declared=False)
    with pytest.raises(ConfigError, match=r"transform: the hook in this package is not the one of the copy"):
        stack.deliver(stack.container())
    assert stack.stored[("k1",)]["v"] == 1


def test_a_table_that_is_gone_from_the_target_is_a_gap_and_not_created_again() -> None:
    stack = filled()
    stack.deliver(stack.container())
    stack.database.epochs.clear()
    stack.database.rows.clear()
    stack.write("k1", 600)
    with pytest.raises(GapFound, match=r"is gone from the target since the last run. Nothing is stored before"):
        stack.deliver(stack.container())
    assert len(stack.gaps) == 1
    assert stack.database.epochs == {}

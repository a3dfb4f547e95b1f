"""Invocations that add shards: while others do, where listings are slow, and where parents are missing from them."""

from __future__ import annotations

from typing import Any

import pytest

from replicator.aws.errors import AwsError
from replicator.engine.function import LISTING_KEPT, LISTING_TIME, RENEWED, Function, UnfinishedListing
from replicator.engine.startup import Allowed
from replicator.errors import TransientError
from replicator.pipeline.discovery import ORPHAN_TIME
from replicator.state import Owner, ShardState, decode
from tests.engine import function_stack
from tests.engine.cluster import TABLE
from tests.engine.function_stack import Stack
from tests.engine.test_function import decode_heartbeat, filled, without_its_parent

SHORT = 27.0  # seconds: the shortest timeout that docs/lambda.md names, less the margin


def slow_listings(stack: Stack, seconds: float, rival: Function | None = None) -> None:
    """Each DescribeStream takes so long, and a rival, if there is one, claims the listing meanwhile."""
    call = stack.source.call

    def slowly(operation: str, request: dict[str, Any]) -> Any:
        if operation == "DescribeStream":
            stack.clock.now += seconds
            if rival is not None:
                rival._claim_listing(rival._read().revision)
        return call(operation, request)

    stack.source.call = slowly  # type: ignore[method-assign, assignment]


def new_batches(stack: Stack) -> dict[str, dict[str, Any]]:
    return {shard: b for shard in stack.mapping.newest() if (b := stack.mapping.event(shard)) is not None}


def split_without_its_parent(stack: Stack) -> dict[str, dict[str, Any]]:
    """A batch of each of the two children of a shard that listings omit."""
    stack.source.roll_all(TABLE)
    (parent,) = stack.source.open_shards(TABLE)
    stack.source.split(TABLE, parent)
    for n in range(60):
        stack.write(f"k{n}", 700 + n)
    stack.source.misreport(lambda shards: [s for s in shards if s.id != parent])
    children = stack.source.open_shards(TABLE)
    return {shard: batch for shard, batch in new_batches(stack).items() if shard in children}


def fails(stack: Stack, batch: dict[str, Any], match: str = "its parent is missing from listings") -> None:
    stack.until_over()
    with pytest.raises(TransientError, match=match):
        stack.container().invoke(batch)


def test_a_listing_that_takes_longer_than_others_wait_is_stored_whatever_they_claim() -> None:
    stack = filled(shards=2)
    stack.source.roll_all(TABLE)
    stack.write("k1", 700)
    slow_listings(stack, LISTING_TIME + 0.5, rival=stack.container())
    (batch,) = new_batches(stack).values()
    stack.until_over()
    listed = stack.source.calls["DescribeStream"]
    stack.container().invoke(batch)
    assert stack.source.calls["DescribeStream"] == listed + 1
    assert stack.stored == stack.wanted


def with_many_shards(monkeypatch: pytest.MonkeyPatch) -> tuple[Stack, dict[str, Any]]:
    """A stream of eight shards that lists one at a time, in four seconds each: two fit into an invocation; and a batch
    of a new shard.
    """
    monkeypatch.setattr(function_stack, "TIME", 10.0)
    stack = filled(shards=4)
    stack.source.roll_all(TABLE)
    stack.write("k1", 700)
    (batch,) = new_batches(stack).values()
    stack.source.page_sizes(shards=1)
    slow_listings(stack, 4.0)
    stack.source.calls["DescribeStream"] = 0
    return stack, batch


def test_a_listing_that_no_invocation_has_time_for_is_completed_by_several(monkeypatch: pytest.MonkeyPatch) -> None:
    stack, batch = with_many_shards(monkeypatch)
    unfinished = UnfinishedListing()
    for listed in (3, 6):
        stack.until_over()
        function = Function(stack.context(), stack.owner("container"), stack.environment(), unfinished)
        with pytest.raises(
            TransientError,
            match=f"anything of the batch was stored: {listed} of the stream's shards were listed .* raise the "
            "function's Timeout",
        ):
            function.invoke(batch)
    stack.until_over()
    Function(stack.context(), stack.owner("container"), stack.environment(), unfinished).invoke(batch)
    assert stack.source.calls["DescribeStream"] == 8
    assert stack.stored == stack.wanted


def test_a_schedule_completes_a_listing_that_it_has_no_time_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    stack, _ = with_many_shards(monkeypatch)
    unfinished = UnfinishedListing()
    for listed in (3, 6):
        stack.until_over()
        function = Function(stack.context(), stack.owner("container"), stack.environment(), unfinished)
        with pytest.raises(TransientError, match=f"before any shard was read: {listed} of the stream's shards"):
            function.invoke({})


def test_pages_that_are_too_old_or_of_another_stream_are_listed_again() -> None:
    unfinished = UnfinishedListing()
    unfinished.of("arn", 1000.0).after = "s1"
    assert unfinished.of("arn", 1000.0 + LISTING_KEPT).after == "s1"
    assert unfinished.of("other", 1000.0).after is None
    unfinished.of("arn", 1000.0).after = "s1"
    assert unfinished.of("arn", 1001.0 + LISTING_KEPT).after is None
    unfinished.of("arn", 5000.0).after = "s1"
    assert unfinished.of("arn", 4999.0).after is None  # the clock was set back


def test_a_listing_continues_with_the_page_that_was_throttled(monkeypatch: pytest.MonkeyPatch) -> None:
    stack, batch = with_many_shards(monkeypatch)
    monkeypatch.setattr(function_stack, "TIME", 100.0)
    call, pages = stack.source.call, list[Any]()

    def throttled(operation: str, request: dict[str, Any]) -> Any:
        if operation == "DescribeStream":
            pages.append(request.get("ExclusiveStartShardId"))
            if len(pages) in (3, 6):
                raise AwsError("ThrottlingException", "slow down", 400)
        return call(operation, request)

    stack.source.call = throttled  # type: ignore[method-assign, assignment]
    stack.until_over()
    stack.container().invoke(batch)
    assert pages[2] == pages[3]
    assert pages[5] == pages[6]
    assert len(set(pages)) == 8 == len(pages) - 2


@pytest.mark.parametrize("page", [1, 4])
def test_a_listing_whose_last_shard_is_gone_begins_again_and_is_no_gap(
    monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """``page``: the one that fails. That of a resumed listing, or of one that was begun in this invocation."""
    stack, batch = with_many_shards(monkeypatch)
    unfinished = UnfinishedListing()
    stack.until_over()
    with pytest.raises(TransientError, match="3 of the stream's shards"):
        Function(stack.context(), stack.owner("container"), stack.environment(), unfinished).invoke(batch)
    monkeypatch.setattr(function_stack, "TIME", 200.0)
    if page != 1:
        unfinished = UnfinishedListing()
    call, pages = stack.source.call, list[Any]()

    def gone(operation: str, request: dict[str, Any]) -> Any:
        if operation == "DescribeStream":
            pages.append(request.get("ExclusiveStartShardId"))
            if len(pages) == page:
                raise AwsError("ResourceNotFoundException", "no such shard", 400)
        return call(operation, request)

    stack.source.call = gone  # type: ignore[method-assign, assignment]
    stack.until_over()
    Function(stack.context(), stack.owner("container"), stack.environment(), unfinished).invoke(batch)
    assert pages[page - 1] is not None
    assert pages[page] is None
    assert stack.gaps == []
    assert stack.stored == stack.wanted


def test_an_invocation_that_lists_says_so_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the others would list, too, and AWS allows ten requests per second for all of them."""
    stack, batch = with_many_shards(monkeypatch)
    monkeypatch.setattr(function_stack, "TIME", 100.0)
    other, call, ages = stack.container(), stack.source.call, list[float]()

    def noted(operation: str, request: dict[str, Any]) -> Any:
        if operation == "DescribeStream":
            (owner,) = (e for e in other._read().entries if (e.kind, e.id) == ("owner", "listing"))
            started = decode(owner.kind, owner.id, owner.text)
            assert isinstance(started, Owner)
            ages.append(stack.clock.now - started.started)
        return call(operation, request)

    stack.source.call = noted  # type: ignore[method-assign, assignment]
    stack.until_over()
    stack.container().invoke(batch)
    assert len(ages) == 8
    assert max(ages) < RENEWED < LISTING_TIME


def test_an_invocation_waits_for_the_listing_of_another_and_says_for_whose() -> None:
    stack = filled(shards=2)
    stack.source.roll_all(TABLE)
    stack.write("k1", 700)
    ((shard, batch),) = new_batches(stack).items()
    one, other = stack.container(), stack.container()
    one._claim_listing(one._read().revision)
    waits = other._environment.stop.wait

    def renewed(timeout: float | None = None) -> bool:
        is_over = waits(timeout)
        one._claim_listing(one._read().revision)
        return is_over

    other._environment.stop.wait = renewed  # type: ignore[method-assign]
    stack.source.calls["DescribeStream"] = 0
    stack.until_over()
    with pytest.raises(
        TransientError,
        match=rf"anything of the batch was stored: process \d+ on \S+ lists the stream's shards, and in \d+ s of "
        f"waiting it did not add {shard}",
    ):
        other.invoke(batch)
    assert stack.source.calls["DescribeStream"] == 0


def test_a_missing_parent_is_remembered_although_others_claim_the_listing_all_the_time() -> None:
    stack = filled(shards=1)
    batch = without_its_parent(stack)
    slow_listings(stack, 0.1, rival=stack.container())
    fails(stack, batch)
    (orphan,) = decode_heartbeat(stack).orphaned.values()
    assert orphan.listings == 10
    assert orphan.last - orphan.since >= 4.5


def test_a_parent_that_is_missing_is_a_gap_though_no_invocation_has_time_for_ten_listings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(function_stack, "TIME", SHORT)
    stack = filled(shards=1)
    batch = without_its_parent(stack)
    slow_listings(stack, 2.6)
    since = stack.clock.now
    while stack.clock.now - since < ORPHAN_TIME:
        fails(stack, batch)
        stack.clock.now += 60
    stack.until_over()
    stack.container().invoke(batch)
    assert len(stack.gaps) == 1
    assert stack.stored == stack.wanted


def test_listings_that_lack_a_parent_do_not_count_after_minutes_without_any() -> None:
    """It may have been listed meanwhile: on a quiet table no invocation looks."""
    stack = filled(shards=1)
    batch = without_its_parent(stack)
    stack.until_over()
    stack.container().keep_up()
    assert [orphan.listings for orphan in decode_heartbeat(stack).orphaned.values()] == [6]
    stack.clock.now += 14 * 60
    fails(stack, batch)
    assert stack.gaps == []
    assert [orphan.listings for orphan in decode_heartbeat(stack).orphaned.values()] == [10]


def test_both_children_of_a_parent_that_remains_missing_are_gaps_and_followed() -> None:
    stack = filled(shards=1)
    batches = split_without_its_parent(stack)
    one, other = batches.values()
    since = stack.clock.now
    while stack.clock.now - since < ORPHAN_TIME:
        fails(stack, one)
        stack.clock.now += 30
    stack.until_over()
    stack.container().invoke(other)
    assert {gap.shard for gap in stack.gaps} == batches.keys()
    stack.until_over()
    stack.container().invoke(one)
    assert stack.stored == stack.wanted
    states = [decode("shard", shard, stack.database.entries["shard", shard][1]) for shard in batches]
    assert all(isinstance(state, ShardState) and state.parent is None for state in states)


def test_the_gap_of_one_shard_does_not_take_another_for_a_root() -> None:
    """Its parent has been missing for seconds, and is listed later."""
    stack = filled(shards=2)
    stack.source.roll_all(TABLE)
    first, second = sorted(stack.source.open_shards(TABLE))
    stack.source.roll(TABLE, first)
    omitted = {first}
    stack.source.misreport(lambda shards: [s for s in shards if s.id not in omitted])
    since = stack.clock.now
    while stack.clock.now - since < ORPHAN_TIME:
        stack.until_over()
        stack.container().keep_up()
        stack.clock.now += 25
    others = set(stack.source.open_shards(TABLE)) - {second}
    stack.source.roll(TABLE, second)
    (parent,) = set(stack.source.open_shards(TABLE)) - others
    stack.source.roll(TABLE, parent)
    omitted.add(parent)
    (child,) = set(stack.source.open_shards(TABLE)) - others
    for n in range(20):
        stack.write(f"k{n}", 700 + n)
    batch = new_batches(stack)[child]
    fails(stack, batch)
    assert [gap.shard for gap in stack.gaps] != []
    assert child not in {gap.shard for gap in stack.gaps}
    omitted.clear()
    stack.until_over()
    stack.container().invoke(batch)
    state = decode("shard", child, stack.database.entries["shard", child][1])
    assert isinstance(state, ShardState)
    assert state.parent == parent


def test_a_shard_that_is_missing_itself_from_listings_is_named_so() -> None:
    stack = filled(shards=1)
    stack.source.roll_all(TABLE)
    stack.write("k1", 700)
    ((shard, batch),) = new_batches(stack).items()
    stack.source.misreport(lambda shards: [s for s in shards if s.id != shard])
    fails(stack, batch, f"shard {shard}: it is missing from listings: Lambda retries")
    stack.source.heal()
    stack.until_over()
    stack.container().invoke(batch)
    assert stack.stored == stack.wanted


def test_a_schedule_records_the_gap_of_a_shard_that_no_event_tells_of() -> None:
    """The mapping was disabled for a day: the records of the shard and of its parent were trimmed."""
    stack = filled(shards=1)
    without_its_parent(stack)
    stack.clock.now += 25 * 3600
    stack.trim_all()
    for _ in range(2):
        stack.until_over()
        stack.container().keep_up()
        stack.clock.now += 900
    (child,) = stack.source.open_shards(TABLE)
    assert [gap.reason for gap in stack.gaps if gap.shard == child] == [
        "the shard's parent is missing from 5 listings: its records are lost"
    ]
    stack.backfill(Allowed(resync=True))
    assert stack.stored == stack.wanted


def test_a_schedule_takes_a_parent_for_missing_only_after_minutes_while_nothing_can_be_trimmed() -> None:
    stack = filled(shards=1)
    without_its_parent(stack)
    for _ in range(10):
        stack.until_over()
        stack.container().keep_up()
        stack.clock.now += 900
    assert stack.gaps == []

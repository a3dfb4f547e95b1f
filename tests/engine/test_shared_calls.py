"""Readers that share pages get what each would get alone, with fewer requests."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from replicator.aws.client import Call
from replicator.aws.errors import AwsError
from replicator.change import Page, Record
from replicator.engine.measurements import Unmeasured
from replicator.engine.shared_calls import SharedCalls
from replicator.source.decoding import Records, RecordsDecoder
from replicator.source.shard_reader import read
from replicator.source.sharing import (
    ABANDONED,
    EXPIRED,
    OVERDUE,
    QUIET,
    TAKEN_OVER,
    UNUSED,
    FellBehind,
    Fetch,
    SharedPages,
    is_shared,
)
from replicator.state import ShardState
from tests.engine.shared_world import KEYS, TABLE, Slow, World

NOW = 1_700_000_000.0
OLDEST = {"ShardIteratorType": "TRIM_HORIZON"}
EARLIER, THEN, LATER = ({"ShardIteratorType": "AT_TIMESTAMP", "Timestamp": NOW + n} for n in (-1, 0, 1))
AT_ONE = {"ShardIteratorType": "AT_SEQUENCE_NUMBER", "SequenceNumber": "1"}


@pytest.mark.parametrize("seed", range(24))
def test_every_reader_gets_every_record_once_and_in_order(seed: int) -> None:
    """Whatever is split, lost, delayed or started again, and whichever reader does not come back for a response."""
    world = World(seed)
    for _ in range(250):
        world.happen()
    world.settle()


def quiet(readers: int) -> World:
    """Nothing happens but writes; each request is answered within 20 ms."""
    world = World(1, readers)
    world.rates, world.lossy, world.slowest, world.pages = {}, 0.0, 0.02, SharedPages()
    for reader in world.readers:
        reader.begin()
    return world


@pytest.mark.parametrize("readers", [1, 3])
def test_three_readers_make_hardly_more_requests_than_one(readers: int) -> None:
    requests: Counter[int] = Counter()
    for count in (1, readers):
        world = quiet(count)
        for _ in range(400):
            world.happen()
        world.settle()
        requests[count] = world.db.calls["GetRecords"]
    assert requests[readers] <= 1.2 * requests[1]


def records(*numbers: int, following: str | None = "next") -> Records:
    return Records([Record((str(n),), str(n), NOW) for n in numbers], frozenset(), following, 100 * len(numbers))


def started(*numbers: int, pages: SharedPages | None = None) -> tuple[SharedPages, str]:
    """Shared pages with a first one, and the iterator behind it."""
    shared = pages or SharedPages()
    shared.here("one", 0.0)
    shared.here("another", 0.0)
    iterator = shared.joined("stream", "shard", OLDEST, None, records(*numbers), NOW, 0.0)
    assert iterator is not None
    return shared, iterator


def sequences(found: Any) -> list[str]:
    assert isinstance(found, Records)
    return [record.sequence for record in found.records]


def at(pages: SharedPages, number: int) -> str:
    iterator = pages.opened("stream", "shard", {**AT_ONE, "SequenceNumber": str(number)})
    assert iterator is not None
    assert is_shared(iterator)
    return iterator


def test_an_iterator_at_a_record_that_is_kept_begins_with_that_record() -> None:
    pages, _ = started(1, 3, 5)

    assert sequences(pages.ask(at(pages, 3), "one", 0.0)) == ["3", "5"]
    assert pages.opened("stream", "shard", {**AT_ONE, "SequenceNumber": "4"}) is None
    assert pages.opened("stream", "another", OLDEST) is None


def test_removals_are_those_of_the_records_that_are_left() -> None:
    pages = SharedPages()
    first = Records(records(1, 2, 3, 4).records, frozenset({0, 3}), "next", 400)
    pages.joined("stream", "shard", OLDEST, None, first, NOW, 0.0)

    found = pages.ask(at(pages, 3), "one", 0.0)
    assert isinstance(found, Records)
    assert (found.removals, found.size) == (frozenset({1}), 200)


def test_who_is_behind_the_pages_that_are_kept_gets_an_expired_iterator_and_not_what_is_kept() -> None:
    pages, iterator = started(1, 2, pages=SharedPages(kept_bytes=1))
    behind = at(pages, 1)
    fetch = pages.ask(iterator, "one", 0.0)
    assert isinstance(fetch, Fetch)
    pages.answered(iterator, fetch, records(3), NOW)

    with pytest.raises(FellBehind) as expired:
        pages.ask(behind, "one", 0.0)
    assert expired.value.code == EXPIRED
    assert sequences(pages.ask(iterator, "one", 0.0)) == ["3"]


def test_who_reads_alone_is_led_back_where_its_records_end_at_a_shared_one() -> None:
    pages, end = started(3, 4, 5)

    assert pages.joined("stream", "shard", OLDEST, None, records(1, 2), NOW, 0.0) is None
    back = pages.joined("stream", "shard", OLDEST, "2", records(3, 4), NOW, 0.0)
    assert back is not None
    assert sequences(pages.ask(back, "one", 0.0)) == ["5"]
    assert pages.joined("stream", "shard", OLDEST, "5", records(), NOW, 0.0) == end


def test_who_reads_further_than_the_others_adds_to_the_pages_for_them() -> None:
    pages, end = started(1, 2)
    pages.joined("stream", "shard", OLDEST, "1", records(2, 3, 4), NOW, 0.0)

    assert sequences(pages.ask(end, "one", 0.0)) == ["3", "4"]


def test_pages_that_nobody_asks_for_any_more_give_way() -> None:
    pages, end = started(1, 2)
    assert pages.joined("stream", "shard", OLDEST, "6", records(7), NOW, ABANDONED - 1) is None
    assert pages.joined("stream", "shard", OLDEST, "6", records(7), NOW, ABANDONED) is not None
    with pytest.raises(AwsError):
        pages.ask(end, "one", ABANDONED)


def test_an_empty_answer_is_given_to_each_reader_once_with_the_time_of_its_request() -> None:
    """It says nothing about records that were written since: ``through`` must not be later than the request."""
    pages, end = started(1)
    fetch = pages.ask(end, "one", 0.0)
    assert isinstance(fetch, Fetch)
    pages.answered(end, fetch, records(), NOW + 5)

    seen = pages.ask(end, "one", 60.0)
    assert isinstance(seen, Records)
    assert (seen.records, seen.requested) == ((), NOW + 5)
    assert isinstance(pages.ask(str(seen.next), "one", 60.0), Fetch), "the next one is a request of its own"


def test_what_another_reader_requested_earlier_proves_nothing_about_the_time_since() -> None:
    world = quiet(1)
    (shard, *_), requested = world.shards, world.now - 30.0
    steps = read(world.stream, shard, ShardState(None, None, True, NOW))
    next(steps)  # the call for an iterator
    steps.send(b'{"ShardIterator": "at"}')
    throughs = []
    for _ in range(4):
        assert isinstance(next(steps), Call)
        page = steps.send(Records((), frozenset(), "at", 0, requested))
        assert isinstance(page, Page)
        throughs.append(page.through)

    assert throughs == [None, None, requested, requested]


def test_a_request_whose_reader_does_not_come_back_is_made_again_by_another() -> None:
    pages, end = started(1)
    abandoned = pages.ask(end, "third", 0.0)
    assert isinstance(abandoned, Fetch)

    assert pages.ask(end, "another", TAKEN_OVER - 0.1) is None
    again = pages.ask(end, "another", TAKEN_OVER)
    assert again == abandoned
    assert pages.answered(end, again, records(2), NOW)
    assert not pages.answered(end, abandoned, records(2), NOW), "its response is late, and of no use"
    assert sequences(pages.ask(end, "one", TAKEN_OVER)) == ["2"]


def test_a_request_that_is_answered_late_is_made_again_only_once_that_is_no_longer_slowness() -> None:
    """Its pipeline is there: a second request would be a third reader, just when the stream is overloaded."""
    pages, end = started(1)
    first = pages.ask(end, "one", 0.0)
    assert pages.may_read_alone("stream", "shard", "one", 0.0)
    for tenths in range(1, 50):
        pages.here("one", tenths / 10)
        assert pages.ask(end, "another", tenths / 10) is None
        assert not pages.may_read_alone("stream", "shard", "another", tenths / 10)
    pages.here("one", OVERDUE)
    assert pages.ask(end, "another", OVERDUE) == first
    assert pages.may_read_alone("stream", "shard", "another", OVERDUE)


def test_a_shard_has_two_readers_at_most_however_slow_the_stream_is() -> None:
    world = quiet(5)
    world.slowest = OVERDUE / 2 - 0.2
    for _ in range(300):
        world.happen()
        assert max(world.in_flight().values(), default=0) <= 2


def test_a_pipeline_that_has_ended_is_not_waited_for() -> None:
    pages, end = started(1)
    assert isinstance(pages.ask(end, "one", 0.0), Fetch)
    assert pages.may_read_alone("stream", "shard", "one", 0.0)
    assert not pages.may_read_alone("stream", "shard", "third", 0.0)
    assert not pages.may_read_alone("stream", "shard", "another", 0.0)
    pages.left("one")
    pages.left("third")

    assert isinstance(pages.ask(end, "another", 0.0), Fetch)
    assert pages.may_read_alone("stream", "shard", "another", 0.0)


def test_pages_are_kept_only_while_there_is_another_pipeline_that_may_need_them() -> None:
    """A process may run fifty pipelines of fifty tables."""
    pages, end = started(1)
    pages.left("another")
    world = quiet(1)
    another = SharedCalls(Slow(world), pages, lambda: world.now, lambda: 0.0)
    for act, kept in ((partial(another.next, 0.0), True), (another.close, False)):
        act()
        assert (pages.opened("stream", "shard", OLDEST) is not None) == kept
        fetch = pages.ask(end, "one", 0.0)
        assert isinstance(fetch, Fetch)
        pages.answered(end, fetch, records(fetch.poll + 1), NOW)
        found = pages.ask(end, "one", 0.0)
        assert isinstance(found, Records)
        assert sequences(found) == [str(fetch.poll + 1)]
        assert (pages.opened("stream", "shard", OLDEST) is not None) == kept
        end = str(found.next)


def test_shards_that_no_pipeline_reads_any_more_are_forgotten() -> None:
    """Ended ones without pages, too: a stream has thousands of them a day."""
    pages = SharedPages()
    for shard in ("read", "unread"):
        end = str(pages.joined("stream", shard, OLDEST, None, records(), NOW, 0.0))
        fetch = pages.ask(end, "one", 0.0)
        assert isinstance(fetch, Fetch)
        pages.answered(end, fetch, records(following=None), NOW)
    pages.ask(str(pages.opened("stream", "read", OLDEST)), "one", 1.0)
    pages.joined("stream", "new", OLDEST, None, records(), NOW, UNUSED)

    assert pages.opened("stream", "read", OLDEST) is not None
    assert pages.opened("stream", "unread", OLDEST) is None


def test_besides_the_shared_one_a_shard_has_one_reader_at_a_time() -> None:
    pages = SharedPages()
    assert pages.may_read_alone("stream", "shard", "one", 0.0)
    assert not pages.may_read_alone("stream", "shard", "another", 0.5)
    assert pages.may_read_alone("stream", "other shard", "another", 0.5)
    pages.read_alone("stream", "shard", "one")
    assert pages.may_read_alone("stream", "shard", "another", 0.5)
    assert pages.may_read_alone("stream", "shard", "one", 0.5 + TAKEN_OVER), "another one does not come back"


def test_those_who_read_alone_take_turns() -> None:
    """One that is far behind asks again at once, and those that wait only every 10 ms."""
    pages, turns = SharedPages(), ["a"]
    assert pages.may_read_alone("stream", "shard", "a", 0.0)
    for tenths in range(1, 7):
        asking = partial(pages.may_read_alone, "stream", "shard", now=tenths / 10)
        assert not any(asking(who) for who in "abc" if who != turns[-1])
        pages.read_alone("stream", "shard", turns[-1])
        turns += [who for who in (turns[-1], *"abc") if asking(who)]

    assert turns == [*"abcabca"]


def test_one_that_waits_for_its_turn_and_does_not_come_back_is_passed_over() -> None:
    pages = SharedPages()
    assert pages.may_read_alone("stream", "shard", "a", 0.0)
    assert not pages.may_read_alone("stream", "shard", "b", 0.1)
    pages.read_alone("stream", "shard", "a")

    assert not pages.may_read_alone("stream", "shard", "a", 0.1 + TAKEN_OVER / 2)
    assert pages.may_read_alone("stream", "shard", "a", 0.1 + TAKEN_OVER)


def test_an_iterator_that_aws_refuses_is_forgotten_with_its_pages() -> None:
    pages, end = started(1)
    fetch = pages.ask(end, "one", 0.0)
    assert isinstance(fetch, Fetch)
    pages.answered(end, fetch, AwsError("TrimmedDataAccessException", "", 400), NOW)

    with pytest.raises(AwsError, match=EXPIRED):
        pages.ask(end, "one", 0.0)
    assert pages.opened("stream", "shard", OLDEST) is None


def test_a_request_that_failed_leaves_the_pages_as_they_were() -> None:
    pages, end = started(1)
    for error in (AwsError("InternalServerError", "", 500), AwsError("LimitExceededException", "", 400)):
        fetch = pages.ask(end, "one", 0.0)
        assert isinstance(fetch, Fetch)
        assert pages.answered(end, fetch, error, NOW)
    assert isinstance(pages.ask(end, "one", 0.0), Fetch)


def test_records_out_of_order_are_left_to_each_reader() -> None:
    pages, end = started(5)
    fetch = pages.ask(end, "one", 0.0)
    assert isinstance(fetch, Fetch)

    assert not pages.answered(end, fetch, records(4), NOW)
    with pytest.raises(AwsError):
        pages.ask(end, "one", 0.0)
    assert pages.joined("stream", "shard", OLDEST, None, records(7, 6), NOW, 0.0) is None


def test_the_end_of_a_shard_is_seen_by_all() -> None:
    pages, end = started(1)
    fetch = pages.ask(end, "one", 0.0)
    assert isinstance(fetch, Fetch)
    pages.answered(end, fetch, records(2, following=None), NOW)

    found = pages.ask(end, "one", 0.0)
    assert isinstance(found, Records)
    assert (sequences(found), found.next) == (["2"], None)


def empty(pages: SharedPages, end: str | None, times: int) -> None:
    """So many more empty responses."""
    for _ in range(times):
        assert end is not None
        fetch = pages.ask(end, "one", 0.0)
        assert isinstance(fetch, Fetch)
        pages.answered(end, fetch, records(), NOW)
        end = pages.opened("stream", "shard", OLDEST) or f"{end.rpartition(' ')[0]} {fetch.poll + 1}"


@pytest.mark.parametrize(
    ("origin", "place", "shared"),
    [
        (OLDEST, OLDEST, True),
        (OLDEST, THEN, True),
        (THEN, OLDEST, False),
        (THEN, LATER, True),
        (THEN, EARLIER, False),
        (AT_ONE, OLDEST, False),
        (AT_ONE, LATER, False),
    ],
)
def test_a_shard_without_records_is_shared_by_those_who_would_miss_nothing(
    origin: dict[str, Any], place: dict[str, Any], shared: bool
) -> None:
    pages = SharedPages()
    end = pages.joined("stream", "shard", origin, None, records(), NOW, 0.0)
    empty(pages, end, QUIET - 1)

    assert (pages.opened("stream", "shard", place) is not None) == shared
    pages.joined("stream", "another", origin, "1", records(), NOW, 0.0)
    assert pages.opened("stream", "another", place) is None, "something was read before"


def test_who_needs_only_what_is_new_does_not_join_one_that_may_still_come_to_old_records() -> None:
    """It would have to read a day of records, and those that were trimmed meanwhile would be a gap."""
    pages = SharedPages()
    end = pages.joined("stream", "shard", OLDEST, None, records(), NOW, 0.0)
    empty(pages, end, QUIET - 2)

    assert pages.opened("stream", "shard", THEN) is None
    assert pages.joined("stream", "shard", THEN, None, records(), NOW, 0.0) is None
    assert pages.opened("stream", "shard", OLDEST) is not None
    empty(pages, pages.opened("stream", "shard", OLDEST), 1)
    assert pages.opened("stream", "shard", THEN) is not None


class PagesMeasured(Unmeasured):
    def __init__(self) -> None:
        self.pages: Counter[str] = Counter()

    def paged(self, reader: str) -> None:
        self.pages[reader] += 1


def test_a_pipeline_that_falls_behind_is_measured_as_reading_with_a_reader_of_its_own() -> None:
    world = quiet(2)
    measured = PagesMeasured()
    ahead, behind = world.readers
    behind.calls.measurements = measured
    for n in range(20):
        world.db.put(TABLE, {"id": f"k{n}"})
        world.settle()
    started = measured.pages["own"]
    assert measured.pages["shared"] > started

    world.pages._kept_bytes = 1
    for n in range(20):
        world.db.put(TABLE, {"id": f"later{n}"})
        for _ in range(100):  # while the other one does nothing
            world.now += 0.05
            ahead.advance()
            ahead.slow.reach()
    world.settle()
    assert measured.pages["own"] > started
    assert measured.pages["shared"] > 0


def test_other_calls_and_their_errors_pass_through() -> None:
    world = quiet(1)
    slow = Slow(world)
    calls = SharedCalls(slow, SharedPages(), lambda: world.now, lambda: world.now)
    calls.begin("listing", Call("DescribeStream", {"StreamArn": world.stream.arn}))
    calls.begin("unknown", Call("GetShardIterator", {"StreamArn": world.stream.arn, "ShardId": "none", **OLDEST}))
    world.now += 1
    slow.reach()
    world.now += 1

    answers = dict(filter(None, (calls.next(0.0), calls.next(0.0))))
    assert b"StreamStatus" in answers["listing"]
    assert isinstance(answers["unknown"], AwsError)
    assert calls.next(0.0) is None


def test_a_stream_that_was_replaced_by_one_of_another_view_is_decoded_as_that_view_says() -> None:
    """A run that resyncs goes on with the same calls."""
    world = quiet(2)
    world.db.put(TABLE, {"id": "before"})
    world.settle()
    world.db.disable_stream(TABLE)
    arn = world.db.enable_stream(TABLE, "KEYS_ONLY")
    world.stream = replace(world.stream, arn=arn, decode=RecordsDecoder(KEYS, images=False))
    for reader in world.readers:
        reader.steps.clear()
        reader.due.clear()
    world.db.put(TABLE, {"id": "after"})

    world.settle()


def test_records_that_nobody_shared_were_requested_by_their_reader() -> None:
    assert records(1).requested == math.inf

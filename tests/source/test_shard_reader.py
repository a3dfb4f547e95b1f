"""One shard, read step by step from an in-memory DynamoDB with a fake clock."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from replicator.aws.client import answered
from replicator.change import Page
from replicator.errors import GapFound, NotPermitted, OutOfOrder
from replicator.key import KeyAttribute, KeySchema
from replicator.pipeline.advance import moved
from replicator.source.decoding import RecordsDecoder
from replicator.source.shard_reader import IDLE_PAGES, read
from replicator.source.sharing import FellBehind
from replicator.source.stream import Stream
from replicator.state import ShardState
from replicator.testing.dynamodb import AWS, LOCAL, Dialect, Distortion, DynamoDB, Numbering, imageless, nulls

KEYS = KeySchema((KeyAttribute("pk", "S"),))
HOUR = 3600.0


class World:
    """A table with one shard, its reader's stream, and the clock."""

    def __init__(self, dialect: Dialect = AWS, view: str = "NEW_AND_OLD_IMAGES") -> None:
        self.now, self.view = 1_700_000_000.0, view
        self.poll_interval: float | None = None
        self.source = DynamoDB(now=lambda: self.now, random=random.Random(1), dialect=dialect)
        self.source.create_table("orders", keys={"pk": "S"}, view=view)
        self.shard = self.source.open_shards("orders")[0]
        self.state = ShardState(None, None, whole=False, since=self.now)

    @property
    def stream(self) -> Stream:
        return Stream(
            arn=self.source.stream_arn("orders"),
            table="orders",
            keys=KEYS,
            decode=RecordsDecoder(KEYS, images=self.view != "KEYS_ONLY"),
            now=lambda: self.now,
            random=random.Random(2),
            keys_only=self.view == "KEYS_ONLY",
            poll_interval=self.poll_interval,
        )

    def write(self, *values: int) -> None:
        for v in values:
            self.source.put("orders", {"pk": f"k{v}", "v": v})

    def read(self, state: ShardState | None = None, shard: str | None = None) -> Iterator[Page]:
        return answered(self.source, read(self.stream, shard or self.shard, state or self.state))

    def at(self, sequence: str) -> ShardState:
        return ShardState(None, None, whole=False, since=self.now, sequence=sequence, ordinal=1)


@dataclass
class Behind:
    """A client whose first GetRecords finds that the shared pages at its iterator are no longer kept."""

    source: DynamoDB
    times: int = 1

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        if operation == "GetRecords" and self.times:
            self.times -= 1
            raise FellBehind
        return self.source.call(operation, request)


def keys(pages: Sequence[Page]) -> list[str]:
    return [r.key[0] for page in pages for r in page.records]


def until_idle(reader: Iterator[Page]) -> list[Page]:
    """Pages until three in a row are empty, or the shard ends."""
    pages: list[Page] = []
    for page in reader:
        pages.append(page)
        if page.ended or (len(pages) > 3 and not any(p.records for p in pages[-3:])):
            return pages
    return pages


def quiet(*, record: float, through: float, since: float | None = None) -> tuple[World, ShardState]:
    """A shard whose only record is stored, and its state: ages, in seconds, of what an earlier run saw."""
    world = World()
    world.write(1)
    stored = sequences(world)[0]
    written, world.now = world.now, world.now + record
    since = written if since is None else world.now - since
    return world, ShardState(None, None, False, since, None, stored, 1, written, through=world.now - through)


def sequences(world: World) -> list[str]:
    return [r.sequence for page in until_idle(world.read()) for r in page.records]


@pytest.mark.parametrize("dialect", [AWS, LOCAL], ids=["AWS", "DynamoDB Local"])
def test_every_record_is_read_in_order(dialect: Dialect) -> None:
    world = World(dialect)
    world.write(1, 2, 3)
    assert keys(until_idle(world.read())) == ["k1", "k2", "k3"]


def test_one_step_makes_one_call_at_most() -> None:
    world = World()
    world.write(1)
    reader = world.read()
    for _ in range(5):
        before = sum(world.source.calls.values())
        next(reader)
        assert sum(world.source.calls.values()) - before <= 1


def test_empty_pages_mean_nothing() -> None:
    world = World()
    world.write(1)
    world.source.blank(times=20)
    pages = [next(reader) for reader in [world.read()] for _ in range(30)]
    assert keys(pages) == ["k1"]
    assert not any(p.ended for p in pages)


def test_the_records_of_a_closed_shards_last_page_count() -> None:
    world = World()
    world.write(1, 2)
    world.source.roll("orders", world.shard)
    pages = list(world.read())
    assert keys(pages) == ["k1", "k2"]
    assert [p.ended for p in pages][-1] is True


def test_reading_resumes_after_the_stored_record() -> None:
    world = World()
    world.write(1, 2, 3)
    second = sequences(world)[1]
    assert keys(until_idle(world.read(world.at(second)))) == ["k3"]


def test_a_keys_only_stream_resumes_after_the_stored_record_and_keeps_its_removals() -> None:
    """Removals are indices from the first record of the page, which is not the first new one."""
    world = World(view="KEYS_ONLY")
    world.write(1)
    world.source.delete("orders", {"pk": "k1"})
    world.write(2)
    pages = until_idle(world.read(world.at(sequences(world)[0])))
    assert [(r.key[0], r.new is not None) for page in pages for r in page.records] == [("k1", False), ("k2", True)]


def large(count: int, size: int) -> tuple[World, list[str]]:
    """A KEYS_ONLY world with items of so many bytes, and their keys."""
    world = World(view="KEYS_ONLY")
    for v in range(count):
        world.source.put("orders", {"pk": f"k{v}", "filler": "x" * size})
    return world, [f"k{v}" for v in range(count)]


def test_keys_only_pages_have_the_size_of_their_images_and_stay_within_the_limit() -> None:
    world, written = large(400, 100_000)
    pages = [page for page in until_idle(world.read()) if page.records]
    assert keys(pages) == written
    assert all(r.new is not None for page in pages for r in page.records)
    for page in pages:
        assert 0 <= page.size - sum(len(r.new or b"") for r in page.records) < 10 * len(page.records)
    assert max(page.size for page in pages) < 1_200_000


def test_large_images_split_a_page_and_only_its_last_part_ends_the_shard() -> None:
    world, written = large(30, 400_000)
    world.source.roll("orders", world.shard)
    pages = [page for page in world.read() if page.records or page.ended]
    assert (keys(pages), len(pages) > 3) == (written, True)
    assert [page.ended for page in pages] == [False] * (len(pages) - 1) + [True]


def test_a_run_resumes_after_any_part_of_a_page_split_by_large_images() -> None:
    world, written = large(30, 400_000)
    for v in range(0, 30, 3):
        world.source.delete("orders", {"pk": f"k{v}"})
    state, met, texts = world.state, list[str](), dict[str, bool]()
    for _ in range(100):
        page = next((page for page in until_idle(world.read(state)) if page.records), None)
        if page is None:
            break
        met += keys([page])
        texts |= {r.key[0]: r.new is not None for r in page.records}
        state = moved(state, [page], page.records)
    assert met == written + written[::3]
    assert texts == {key: n % 3 > 0 for n, key in enumerate(written)}


@pytest.mark.parametrize("size", [100_000, 390_000])
def test_full_responses_do_not_count_as_throttling(size: int) -> None:
    """The large images come after small ones, so that more of them are requested than fit into a response."""
    world = World(view="KEYS_ONLY")
    world.write(*range(100))
    for v in range(1000, 1300):
        world.source.put("orders", {"pk": f"k{v}", "filler": "x" * size})
    pages = until_idle(world.read())
    assert len(keys(pages)) == 400
    assert [(page.waiting_for, page.rest) for page in pages if page.waiting_for] == []


def test_an_anchor_is_read_again_because_nothing_of_it_is_stored() -> None:
    world = World()
    world.write(1, 2)
    first = sequences(world)[0]
    anchored = ShardState(None, None, whole=False, since=world.now, anchor=first)
    assert keys(until_idle(world.read(anchored))) == ["k1", "k2"]


def test_an_expired_iterator_is_replaced_in_place() -> None:
    world = World()
    world.write(1, 2)
    reader = world.read()
    pages = [next(reader), next(reader)]
    world.now += 16 * 60
    world.write(3)
    pages += until_idle(reader)
    assert keys(pages) == ["k1", "k2", "k3"]
    assert any("expired" in (p.waiting_for or "") for p in pages)


def test_who_falls_behind_shared_pages_opens_its_own_iterator_and_waits_for_nothing() -> None:
    world = World()
    world.write(1, 2)
    behind = Behind(world.source)
    pages = until_idle(answered(behind, read(world.stream, world.shard, world.state)))
    assert (keys(pages), behind.times) == (["k1", "k2"], 0)
    assert [page.waiting_for for page in pages if page.waiting_for] == []


def test_throttling_is_waited_out_and_nothing_is_skipped() -> None:
    world = World()
    world.write(1, 2)
    world.source.fail("GetRecords", times=4)
    reader = world.read()
    pages = [next(reader) for _ in range(7)]
    assert keys(pages) == ["k1", "k2"]
    rests = [p.rest for p in pages if p.waiting_for]
    assert len(rests) == 4
    assert rests[3] > rests[0] > 0


def test_a_server_error_is_waited_out_too() -> None:
    world = World()
    world.write(1)
    world.source.fail("GetShardIterator", "InternalServerError", times=2)
    reader = world.read()
    assert keys([next(reader) for _ in range(5)]) == ["k1"]


def test_a_third_reader_is_named_as_such() -> None:
    world = World()
    world.source.fail("GetRecords", "LimitExceededException")
    reader = world.read()
    next(reader)
    assert "another consumer is attached" in (next(reader).waiting_for or "")


def test_a_missing_permission_ends_the_run() -> None:
    world = World()
    world.source.fail("GetRecords", "AccessDeniedException")
    reader = world.read()
    next(reader)
    with pytest.raises(NotPermitted, match="dynamodb:GetRecords on arn:aws:dynamodb"):
        next(reader)


def test_an_idle_shard_costs_four_calls_in_its_first_second_and_then_one() -> None:
    world = World()
    reader = world.read()
    next(reader)
    rests = [next(reader).rest for _ in range(2000)]
    assert rests[0] == 0.25
    assert rests[2:] == [1.0] * 1998


def test_a_poll_interval_is_the_rest_of_an_idle_shard_and_of_no_other() -> None:
    world = World()
    world.poll_interval = 0.1
    reader = world.read()
    next(reader)
    assert [next(reader).rest for _ in range(20)] == [0.1] * 20
    world.write(1)
    assert next(reader).rest == 0.0


def test_quicker_polls_must_be_more_to_prove_that_a_shard_was_read_up_to_now() -> None:
    world = World()
    world.poll_interval = 0.1
    world.write(1)
    reader = world.read()
    written, pages = world.now, []
    for _ in range(2 + 8):
        pages.append(next(reader))
        world.now += 10
    assert {page.through for page in pages[1:]} == {written}, "eight polls take less than 0.75 s"
    assert next(reader).through == world.now


def test_slower_polls_need_to_be_as_many_as_by_default() -> None:
    world = World()
    world.poll_interval = 5.0
    world.write(1)
    reader = world.read()
    written, pages = world.now, []
    for _ in range(2 + IDLE_PAGES - 1):
        pages.append(next(reader))
        world.now += 5
    assert {page.through for page in pages[1:]} == {written}
    assert next(reader).through == world.now


def test_a_busy_shard_is_read_back_to_back() -> None:
    world = World()
    world.write(1)
    reader = world.read()
    next(reader)
    assert next(reader).rest == 0.0


def test_a_source_clock_that_is_ahead_does_not_make_the_future_count_as_read() -> None:
    world = World()
    world.now += 60
    world.write(1)
    world.now -= 60
    pages = until_idle(world.read())
    assert keys(pages) == ["k1"]
    assert all((page.through or 0.0) <= world.now for page in pages)


def test_a_shard_counts_as_read_up_to_now_after_a_few_empty_pages() -> None:
    world = World()
    world.write(1)
    reader = world.read()
    pages = [next(reader) for _ in range(2 + IDLE_PAGES)]
    assert pages[1].through == pytest.approx(1_700_000_000, abs=1)
    world.now += 5
    assert next(reader).through == world.now


def test_empty_pages_before_the_last_record_reappears_prove_nothing() -> None:
    world = World()
    world.write(1, 2)
    state = replace(world.at(sequences(world)[0]), through=world.now)
    world.now += 12 * HOUR
    world.source.blank(times=IDLE_PAGES)
    reader = world.read(state)
    pages = [next(reader) for _ in range(1 + IDLE_PAGES)]
    assert {page.through for page in pages} == {state.through}
    assert keys(until_idle(reader)) == ["k2"]


def test_empty_pages_before_the_last_record_reappears_are_not_counted_with_those_after_it() -> None:
    world = World()
    world.write(1)
    state = world.at(sequences(world)[0])
    world.source.blank(times=IDLE_PAGES)
    reader = world.read(state)
    pages = [next(reader) for _ in range(1 + IDLE_PAGES + IDLE_PAGES - 1)]  # the first of these opens the iterator
    assert pages[-1].through is None
    assert next(reader).through == world.now


def test_not_even_600_empty_pages_pass_a_record_that_has_not_reappeared() -> None:
    world = World()
    world.write(1)
    state = world.at(sequences(world)[0])
    world.now += 12 * HOUR
    world.source.blank(times=2000)
    reader = world.read(state)
    pages = [next(reader) for _ in range(2000)]
    assert {(page.through, page.since) for page in pages} == {(None, state.since)}


class TestGaps:
    def test_a_record_that_was_trimmed_behind_empty_pages_is_a_gap(self) -> None:
        """Those pages came before the last record reappeared, so they do not show that nothing followed it."""
        world = World()
        world.write(1, 2)
        state = replace(world.at(sequences(world)[0]), created=world.now)
        world.now += 12 * HOUR
        world.source.blank(times=IDLE_PAGES)
        reader = world.read(state)
        pages = [next(reader) for _ in range(1 + IDLE_PAGES)]
        world.now += 13 * HOUR
        with pytest.raises(GapFound, match="trimmed"):
            until_idle(world.read(replace(state, through=pages[-1].through)))

    def test_the_stored_record_is_trimmed(self) -> None:
        world = World()
        world.write(1, 2, 3)
        second = sequences(world)[1]
        world.source.trim("orders", world.shard, 2)
        with pytest.raises(GapFound, match="trimmed") as found:
            until_idle(world.read(world.at(second)))
        assert (found.value.shard, found.value.sequence) == (world.shard, second)

    def test_a_record_is_trimmed_between_iterator_and_read(self) -> None:
        world = World()
        world.write(1, 2, 3)
        reader = world.read(world.at(sequences(world)[0]))
        next(reader)
        world.source.trim("orders", world.shard, 2)
        with pytest.raises(GapFound, match="trimmed"):
            until_idle(reader)

    def test_trimmed_records_after_those_read_are_a_gap_however_young_the_shard_is(self) -> None:
        world = World()
        world.write(1, 2)
        reader = world.read()
        while not (page := next(reader)).records:
            pass
        assert len(page.records) == 2
        world.source.fail("GetRecords", "TrimmedDataAccessException")
        with pytest.raises(GapFound, match="records after the stored position have been trimmed"):
            until_idle(reader)

    def test_a_later_record_is_returned_than_the_one_requested(self) -> None:
        world = World(LOCAL)
        world.write(1, 2)
        absent = str(int(sequences(world)[0]) + 1).zfill(21)
        with pytest.raises(GapFound, match="instead of the stored position"):
            until_idle(world.read(world.at(absent)))

    def test_the_shard_no_longer_exists(self) -> None:
        world = World()
        world.state = replace(world.state, since=world.now - 23.5 * HOUR)
        with pytest.raises(GapFound, match="no longer exists"):
            until_idle(world.read(shard="shardId-00000000000000000000-00000000"))

    def test_a_position_that_is_trimmed_is_a_gap_unless_its_age_explains_it(self) -> None:
        """The shard was read empty an hour ago, but what AWS keeps for 24 hours is gone after 23."""
        world, state = quiet(record=23 * HOUR, through=1 * HOUR)
        world.source.trim("orders", world.shard, 1)
        with pytest.raises(GapFound, match="records after the stored position have been trimmed"):
            until_idle(world.read(state))

    def test_records_from_before_the_epoch_are_read_to_their_end_or_are_a_gap(self) -> None:
        """The endpoint has no AT_TIMESTAMP, so the shard is read from its oldest remaining record.

        A change from before the scan reverted what the scan stored; the changes after it, also from before the scan,
        are trimmed.
        """
        world = World(LOCAL)
        world.write(1)
        world.now += 12 * HOUR
        state = replace(world.state, since=world.now)
        pages = until_idle(world.read(state))[:2]  # the last one has the record, and none is idle
        assert keys(pages) == ["k1"]
        state = moved(state, pages, pages[-1].records)
        world.now += 12.5 * HOUR
        world.source.trim("orders", world.shard, 1)
        with pytest.raises(GapFound, match="records after the stored position have been trimmed"):
            until_idle(world.read(state))

    def test_a_late_shards_start_is_trimmed(self) -> None:
        world = World()
        child = world.source.roll("orders", world.shard)
        first = str(world.source.shards("orders")[-1].start)
        world.write(1, 2)
        late = ShardState(world.shard, first, whole=True, since=world.now)
        world.source.trim("orders", child, 1)
        world.now += 23.5 * HOUR
        with pytest.raises(GapFound, match="start of the shard may have been trimmed"):
            until_idle(world.read(late, child))

    def test_a_shard_that_was_empty_for_a_day_is_not_opened_at_its_oldest_remaining_record(self) -> None:
        world = World(LOCAL)
        reader = world.read()
        next(reader)
        world.now += 1 * HOUR
        world.write(1)
        world.now += 25 * HOUR
        world.write(2)
        with pytest.raises(GapFound, match="up to 26 hours old"):
            until_idle(reader)


@pytest.mark.parametrize("dialect", [AWS, LOCAL], ids=["AWS", "DynamoDB Local"])
def test_a_late_shard_is_read_from_its_very_first_record(dialect: Dialect) -> None:
    world = World(dialect)
    child = world.source.roll("orders", world.shard)
    first = str(world.source.shards("orders")[-1].start)
    world.write(1, 2)
    late = ShardState(world.shard, first, whole=True, since=world.now)
    assert keys(until_idle(world.read(late, child))) == ["k1", "k2"]


@pytest.mark.parametrize("code", ["ValidationException", "TrimmedDataAccessException"])
def test_a_late_shard_whose_start_is_rejected_is_read_from_its_oldest_record_while_complete(code: str) -> None:
    """Endpoints need not accept a number that belongs to no record; AWS documents the second error for this call."""
    world = World()
    child = world.source.roll("orders", world.shard)
    world.write(1, 2)
    late = ShardState(world.shard, str(world.source.shards("orders")[-1].start), whole=True, since=world.now)
    world.source.fail("GetShardIterator", code)
    assert keys(until_idle(world.read(late, child))) == ["k1", "k2"]
    world.now += 23.5 * HOUR
    world.source.fail("GetShardIterator", code)
    with pytest.raises(GapFound, match=rf"start of the shard may have been trimmed \({code}\)"):
        until_idle(world.read(late, child))


def test_trimmed_data_in_an_empty_young_shard_is_no_gap() -> None:
    world = World(LOCAL)
    reader = world.read()
    next(reader)
    world.source.fail("GetRecords", "TrimmedDataAccessException", times=3)
    pages = [next(reader) for _ in range(6)]
    world.write(1)
    assert keys([*pages, *until_idle(reader)]) == ["k1"]


@pytest.mark.parametrize("how", [imageless, lambda record: nulls(imageless(record))], ids=["left out", "null"])
def test_a_change_without_its_image_is_retried_and_removes_nothing(how: Distortion) -> None:
    world = World()
    world.write(1)
    world.source.distort(how, times=2)
    pages = until_idle(world.read())
    assert keys(pages) == ["k1"]
    assert [page.waiting_for is None or "no NewImage" in page.waiting_for for page in pages] == [True] * len(pages)
    assert sum(page.waiting_for is not None for page in pages) == 2
    assert all(record.new is not None for page in pages for record in page.records)


def test_records_out_of_order_stop_the_run_with_their_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.write(1)
    first = sequences(world)[0]
    body = (
        b'{"Records":[{"eventName":"INSERT","dynamodb":{"Keys":{"pk":{"S":"a"}},"SequenceNumber":"%s","NewImage":{}}},'
        b'{"eventName":"INSERT","dynamodb":{"Keys":{"pk":{"S":"b"}},"SequenceNumber":"%s","NewImage":{}}}],"NextShardIterator":"x"}'
    ) % (first.encode(), first.encode())
    real = world.source.call
    monkeypatch.setattr(world.source, "call", lambda op, request: body if op == "GetRecords" else real(op, request))
    with pytest.raises(OutOfOrder, match=f"record {first} after record {int(first)}"):
        until_idle(world.read())


@pytest.mark.parametrize(
    "numbering", [Numbering(21, zeros=5), Numbering(40), Numbering(56), Numbering(22, first=10**21 - 9)]
)
def test_sequence_numbers_may_have_any_length_and_leading_zeros(numbering: Numbering) -> None:
    source = DynamoDB(now=lambda: 1e9, random=random.Random(3), numbering=numbering)
    source.create_table("orders", keys={"pk": "S"})
    for v in range(12):
        source.put("orders", {"pk": f"k{v}"})
    arn, decode = source.stream_arn("orders"), RecordsDecoder(KEYS)
    stream = Stream(arn, "orders", KEYS, decode, lambda: 1e9, random.Random(4))
    (shard,) = source.open_shards("orders")
    pages = until_idle(answered(source, read(stream, shard, ShardState(None, None, whole=False, since=1e9))))
    assert keys(pages) == [f"k{v}" for v in range(12)]
    last = pages[1].records[-1].sequence
    resumed = ShardState(None, None, whole=False, since=1e9, sequence=last, ordinal=12)
    source.put("orders", {"pk": "next"})
    assert keys(until_idle(answered(source, read(stream, shard, resumed)))) == ["next"]


class TestSilence:
    """A shard without new records: its position is trimmed eventually, though nothing is lost."""

    @pytest.mark.parametrize("dialect", [AWS, LOCAL], ids=["AWS", "DynamoDB Local"])
    def test_a_position_of_a_day_ago_is_no_gap_while_the_shard_was_empty_up_to_20_hours_ago(
        self, dialect: Dialect
    ) -> None:
        world, state = quiet(record=30 * HOUR, through=19.9 * HOUR)
        world.write(2)
        assert keys(until_idle(world.read(state))) == ["k2"]

    def test_it_is_a_gap_once_that_was_20_hours_ago(self) -> None:
        world, state = quiet(record=30 * HOUR, through=20 * HOUR)
        with pytest.raises(GapFound, match="records after the stored position have been trimmed"):
            until_idle(world.read(state))

    def test_after_ten_minutes_of_empty_pages_a_run_may_be_away_for_23_and_a_half_hours(self) -> None:
        world, state = quiet(record=30 * HOUR, through=23.4 * HOUR, since=23.4 * HOUR)
        world.write(2)
        assert keys(until_idle(world.read(state))) == ["k2"]
        world, state = quiet(record=30 * HOUR, through=23.5 * HOUR, since=23.5 * HOUR)
        with pytest.raises(GapFound, match="records after the stored position have been trimmed"):
            until_idle(world.read(state))

    def test_an_endpoint_that_returns_later_records_instead_of_an_error_is_believed_too(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world, state = quiet(record=30 * HOUR, through=1 * HOUR)
        world.write(2)
        right = world.source.call
        monkeypatch.setattr(world.source, "call", lambda o, r: right(o, _at_the_horizon(r)))
        assert keys(until_idle(world.read(state))) == ["k2"]

    def test_the_rest_of_a_closed_shard_is_read_to_its_end(self) -> None:
        world, state = quiet(record=30 * HOUR, through=1 * HOUR)
        world.source.roll("orders", world.shard)
        assert [p.ended for p in world.read(state)][-1] is True

    def test_601_empty_pages_in_a_row_prove_that_the_shard_was_empty_at_the_first(self) -> None:
        world = World()
        reader, began = world.read(), world.now
        pages = []
        for _ in range(1 + 601):
            pages.append(next(reader))
            world.now += 1
        assert (pages[600].since, pages[601].since) == (began, began + 1)

    def test_quicker_polls_need_ten_minutes_as_well(self) -> None:
        world = World()
        world.poll_interval = 0.1
        reader, began = world.read(), world.now
        pages = []
        for _ in range(1 + 6002):
            pages.append(next(reader))
            world.now += 0.1
        assert {page.since for page in pages[:6001]} == {began}
        assert pages[-1].since > began

    def test_a_record_and_a_new_iterator_restart_the_count(self) -> None:
        world = World()
        reader = world.read()
        for _ in range(600):
            next(reader)
            world.now += 1
        world.write(1)
        written = world.now
        next(reader)
        for _ in range(500):
            world.now += 1
            next(reader)
        world.now += 16 * 60  # the iterator expires
        assert {next(reader).since for _ in range(500)} == {written}

    def test_an_untouched_shard_counts_from_when_it_was_read_empty(self) -> None:
        world = World(LOCAL)
        state = replace(world.state, since=world.now - 60 * HOUR, through=world.now - 19.9 * HOUR)
        world.write(1)
        assert keys(until_idle(world.read(state))) == ["k1"]

    def test_empty_pages_of_a_closed_shard_prove_nothing(self) -> None:
        """They are read in no time; only its end proves anything."""
        world = World()
        world.write(1)
        world.source.roll("orders", world.shard)
        world.source.blank(times=20)
        reader = answered(world.source, read(world.stream, world.shard, world.state, closed=True))
        pages = [next(reader) for _ in range(15)]
        assert {p.through for p in pages} == {None}
        assert {p.rest for p in pages} == {0.0}

    def test_a_shard_that_is_not_found_though_nothing_of_it_is_old_waits_for_listings(self) -> None:
        world = World()
        reader = world.read(shard="shardId-00000000000000000000-00000000")
        pages = [next(reader) for _ in range(3)]
        assert all(p.missing and p.waiting_for and p.rest > 0 and not p.ended for p in pages)


def _at_the_horizon(request: Mapping[str, Any]) -> Mapping[str, Any]:
    if "SequenceNumber" not in request:
        return request
    return {k: v for k, v in request.items() if k != "SequenceNumber"} | {"ShardIteratorType": "TRIM_HORIZON"}

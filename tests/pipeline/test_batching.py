"""The page buffer: when a batch is full, and what is taken and returned."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from replicator.batch import BatchSize
from replicator.change import Page, Record, ScanPage
from replicator.pipeline import batching
from replicator.pipeline.batching import PageBuffer, Pages, divided
from replicator.state import ShardState

ROWS, BYTES = 10, 100


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "BATCH_ROWS", ROWS)
    monkeypatch.setattr(batching, "BATCH_BYTES", BYTES)


def page(rows: int, size: int) -> Page:
    return Page("s", records=[Record(("k",), "1", 0.0)] * rows, size=size)


def scan_page(rows: int, size: int) -> ScanPage:
    return ScanPage(0, items=[(("k",), b"{}")] * rows, size=size)


@pytest.mark.parametrize(("rows", "size", "full"), [(9, 99, False), (10, 0, True), (0, 100, True)])
def test_a_batch_is_full_by_rows_or_by_bytes(rows: int, size: int, full: bool) -> None:
    for source, one in (("shard:s", page(rows, size)), ("segment:0", scan_page(rows, size))):
        buffer = PageBuffer()
        buffer.add(source, one)
        assert buffer.has_batch == full


@pytest.mark.parametrize(("rows", "size", "full"), [(39, 199, False), (40, 0, True), (0, 200, True)])
def test_a_batch_of_a_target_that_says_how_many_changes_it_wants_is_larger(rows: int, size: int, full: bool) -> None:
    buffer = PageBuffer(BatchSize(rows=40, seconds=1.0))
    for _ in range(10):
        buffer.add("shard:s", page(0, 0))
    assert buffer.room("shard:s")
    buffer.add("shard:s", page(rows, size))
    assert buffer.has_batch == full
    assert [len(pages) for _, pages in buffer.next()] == [11]


def of_shards(taken: Pages) -> list[int]:
    """The changes of each page of a batch that is of shards."""
    assert all(source.startswith("shard") for source, _ in taken)
    return [len(p.records) for _, pages in taken for p in pages if isinstance(p, Page)]


def large() -> PageBuffer:
    """For a target that wants 40 changes at once, or what came in 5 seconds."""
    return PageBuffer(BatchSize(rows=40, seconds=5.0))


def test_few_live_changes_wait_during_a_backfill_for_a_target_that_wants_large_batches() -> None:
    buffer = large()
    sizes = []
    for second in range(10):
        buffer.add("shard:s", page(1, 0))
        for n in range(4):
            buffer.add(f"segment:{n}", scan_page(10, 0))
        while buffer and not buffer.gathers(float(second)):
            sizes.append(sum(map(batching._rows, (p for _, pages in buffer.next() for p in pages))))
    assert sizes == [40] * 6 + [6] + [40] * 4


def test_what_has_waited_long_enough_comes_before_what_is_full_and_both_in_turns() -> None:
    buffer = large()
    buffer.add("shard:s", page(1, 0))
    assert buffer.gathers(0.0)
    for n in range(8):
        buffer.add(f"segment:{n}", scan_page(40, 0))
    assert not buffer.gathers(5.0)
    first, second = list(buffer.next()), list(buffer.next())
    assert sorted(source.partition(":")[0] for taken in (first, second) for source, _ in taken) == ["segment", "shard"]
    buffer.add("shard:s", page(1, 0))
    assert not buffer.gathers(5.0)
    assert [source.partition(":")[0] for _ in range(2) for source, _ in buffer.next()] == ["segment", "segment"]


def test_pages_without_changes_are_taken_at_once_alone_and_after_the_wait_beside_others() -> None:
    buffer = large()
    buffer.add("shard:s", page(0, 0))
    assert not buffer.gathers(0.0)
    assert of_shards(list(buffer.next())) == [0]
    buffer.add("segment:0", scan_page(1, 0))
    assert buffer.gathers(0.0)
    buffer.add("shard:s", page(0, 0))
    assert buffer.gathers(4.0)
    assert not buffer.gathers(5.0)
    assert [source for source, _ in buffer.next()] == ["segment:0"]
    assert buffer.gathers(8.0) is False  # no change is left
    assert of_shards(list(buffer.next())) == [0]


def test_few_changes_of_shards_and_few_of_segments_are_no_full_batch_together() -> None:
    buffer = large()
    buffer.add("shard:s", page(25, 0))
    buffer.add("segment:0", scan_page(25, 0))
    assert not buffer.has_batch
    assert buffer.gathers(0.0)


def test_a_small_batch_says_nothing_of_how_long_a_large_one_takes() -> None:
    buffer = large()
    for rows, seconds in ((40, 8.0), (1, 0.0)):
        for _ in range(rows):
            buffer.add("shard:s", page(1, 0))
        assert len(of_shards(list(buffer.next()))) == rows
        buffer.took(seconds)
    for _ in range(40):
        buffer.add("shard:s", page(1, 0))
    assert len(of_shards(list(buffer.next()))) == 10


def test_nothing_is_known_of_pages_that_were_dropped() -> None:
    buffer = large()
    buffer.add("shard:s", page(40, 0))
    buffer.clear()
    assert not buffer.has_batch
    buffer.add("shard:s", page(1, 0))
    assert buffer.gathers(0.0)


def test_a_full_buffer_is_no_reason_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "BUFFER_BYTES", 300)
    buffer = large()
    buffer.add("shard:s", page(1, 150))
    assert buffer.gathers(0.0)
    buffer.add("segment:0", scan_page(1, 150))
    assert buffer.full
    assert not buffer.gathers(0.0)


def test_a_batch_that_was_returned_does_not_wait_again() -> None:
    buffer = large()
    buffer.add("shard:s", page(1, 0))
    assert buffer.gathers(0.0)
    assert not buffer.gathers(5.0)
    taken = list(buffer.next())
    buffer.add("shard:s", page(1, 0))
    assert buffer.gathers(5.0)
    buffer.give_back(taken)
    assert not buffer.gathers(5.1)
    assert list(buffer.next()) == taken
    assert buffer.gathers(5.2)


def test_large_batches_are_as_large_as_can_be_made_in_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """How slow the hook is, is not known before; the first batch is as large as those of other targets."""
    monkeypatch.setattr(batching, "FIRST_ROWS", 10)
    buffer = large()
    sizes = []
    for seconds_each in (0.1, 0.1, 0.1, 0.01, 0.01):
        for _ in range(60):
            buffer.add("shard:s", page(1, 0))
        sizes.append(len(of_shards(list(buffer.next()))))
        buffer.took(sizes[-1] * seconds_each)
    assert sizes == [10, 20, 20, 20, 40]
    buffer.took(40 * 0.2)
    assert len(of_shards(list(buffer.next()))) == 10


def test_pages_that_are_left_for_the_next_batch_come_first_and_do_not_wait_again() -> None:
    buffer = large()
    for n in range(4):
        buffer.add("shard:a", page(1, n))
    buffer.add("shard:b", page(1, 9))
    assert buffer.gathers(0.0)
    source, pages = next(buffer.next())
    assert [p.size for p in pages] == [0, 1, 2, 3]
    buffer.add("shard:a", page(1, 4))
    buffer.leave(source, pages, 40)
    assert not buffer.gathers(0.1)
    source, pages = next(buffer.next())
    buffer.leave(source, pages, 2)
    assert [[p.size for p in pages] for _, pages in buffer.next()] == [[0, 1]]
    buffer.took(0.1)
    assert [[p.size for p in pages] for _, pages in buffer.next()] == [[9], [2, 3, 4]]


def test_a_returned_batch_is_left_as_a_whole_with_what_was_not_looked_at() -> None:
    buffer = large()
    for source in ("shard:a", "shard:b", "shard:c"):
        buffer.add(source, page(5, 0))
    taken = list(buffer.next())
    buffer.give_back(taken)
    again = buffer.next()
    assert next(again) == taken[0]
    source, pages = next(again)
    assert not buffer.divisible(pages, has_others=True)
    buffer.leave(source, pages, None)
    assert buffer.rows == 10
    assert list(buffer.next()) == taken[1:]


def test_the_counts_stay_correct_whatever_is_taken_left_and_returned() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        buffer, taken = PageBuffer(), list[Pages]()
        for _ in range(30):
            match rng.randrange(9):
                case 0:
                    taken.append(list(buffer.next()))
                case 8:
                    some = []
                    for source, its in buffer.next():
                        if rng.randrange(2):
                            buffer.leave(source, its, None)
                            break
                        some.append((source, its))
                    taken.append(some)
                case 1:
                    while taken:
                        buffer.give_back(taken.pop())
                case _:
                    rows, size = rng.randrange(4), rng.randrange(40)
                    buffer.add(f"shard:{rng.randrange(3)}", page(rows, size))
        while taken:
            buffer.give_back(taken.pop())
        full, pages = buffer.has_batch, list(_drained(buffer))
        assert full == (sum(len(p.records) for p in pages) >= ROWS or sum(p.size for p in pages) >= BYTES)
        assert not buffer.has_batch


def test_returned_batches_come_first_and_unchanged() -> None:
    buffer = PageBuffer()
    for n in range(3):
        for source in ("shard:a", "shard:b"):
            buffer.add(source, page(5, n))
    first, second = list(buffer.next()), list(buffer.next())
    assert [(source, len(pages)) for source, pages in first] == [("shard:a", 2)]
    head = first[0][1][0]
    buffer.give_back(second)
    buffer.give_back(first)
    buffer.add("shard:c", page(9, 9))

    assert "shard:b" in buffer
    assert head in buffer.heads()
    assert list(buffer.next()) == first
    assert list(buffer.next()) == second


@pytest.mark.parametrize("one", [page(ROWS, 0), page(0, BYTES)])
def test_returned_pages_count_again(one: Page) -> None:
    buffer = PageBuffer()
    buffer.add("shard:s", one)
    taken = list(buffer.next())
    assert not buffer.has_batch
    buffer.give_back(taken)
    assert buffer.has_batch


def test_divided_pages_have_one_change_each_and_prove_no_more_than_it_does() -> None:
    state = ShardState("0", None, whole=True, since=2.0, through=11.0)
    records = [Record(("k",), str(n), created) for n, created in enumerate((10.0, 0.0, 12.0, 13.0))]
    whole = Page("s", records, ended=True, through=20.0, size=400, since=13.0)
    pages = list(divided(whole, state))
    assert [p.records for p in pages] == [[r] if n == 3 else (r,) for n, r in enumerate(records)]
    assert [p.ended for p in pages] == [False, False, False, True]
    assert [p.through for p in pages] == [11.0, 11.0, 12.0, 20.0]
    assert [p.since for p in pages] == [10.0, 2.0, 12.0, 13.0]
    assert [p.size for p in pages] == [100] * 4
    assert list(divided(page(0, 0), state)) == [page(0, 0)]


def test_batches_of_divided_pages_begin_with_one_change_and_get_as_large_as_there_is_time_for() -> None:
    buffer = PageBuffer()
    buffer.divide()
    for one in divided(page(8, 0), ShardState("0", None, whole=True, since=0.0)):
        buffer.add("shard:s", one)
    assert buffer.room("shard:s")
    sizes = list[int]()
    for seconds in (0.5, 2.0, 1.0):
        sizes.append(sum(of_shards(list(buffer.next()))))
        buffer.took(seconds)
    assert sizes == [1, 4, 3]


def _drained(buffer: PageBuffer) -> Iterator[Page]:
    while buffer:
        for _, pages in buffer.next():
            yield from (p for p in pages if isinstance(p, Page))

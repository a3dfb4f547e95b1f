"""The page buffer: when a batch is full, and what is taken and returned."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from replicator.batch import BatchSize
from replicator.change import Page, Record, ScanPage
from replicator.pipeline import batching
from replicator.pipeline.batching import PageBuffer, Pages

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


def test_the_counts_stay_correct_whatever_is_taken_and_returned() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        buffer, taken = PageBuffer(), list[Pages]()
        for _ in range(30):
            match rng.randrange(8):
                case 0:
                    taken.append(list(buffer.next()))
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


def _drained(buffer: PageBuffer) -> Iterator[Page]:
    while buffer:
        for _, pages in buffer.next():
            yield from (p for p in pages if isinstance(p, Page))

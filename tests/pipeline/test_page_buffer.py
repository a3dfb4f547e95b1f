"""Pages that wait for their batch: how many, and when they are enough for one."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from replicator.change import Page, Record, ScanPage
from replicator.pipeline import page_buffer
from replicator.pipeline.page_buffer import PageBuffer, Pages

ROWS, BYTES = 10, 100


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_buffer, "BATCH_ROWS", ROWS)
    monkeypatch.setattr(page_buffer, "BATCH_BYTES", BYTES)


def page(rows: int, size: int) -> Page:
    return Page("s", records=[Record(("k",), "1", 0.0)] * rows, size=size)


def scan_page(rows: int, size: int) -> ScanPage:
    return ScanPage(0, items=[(("k",), b"{}")] * rows, size=size)


@pytest.mark.parametrize(("rows", "size", "laden"), [(9, 99, False), (10, 0, True), (0, 100, True)])
def test_pages_are_enough_for_a_batch_by_their_rows_or_by_their_bytes(rows: int, size: int, laden: bool) -> None:
    for source, one in (("shard:s", page(rows, size)), ("segment:0", scan_page(rows, size))):
        waiting = PageBuffer()
        waiting.add(source, one)
        assert waiting.has_batch == laden


def test_what_waits_is_counted_whatever_is_taken_and_given_back() -> None:
    for seed in range(200):
        chance = random.Random(seed)
        waiting, taken = PageBuffer(), list[Pages]()
        for _ in range(30):
            match chance.randrange(8):
                case 0:
                    taken.append(list(waiting.next()))
                case 1:
                    while taken:
                        waiting.give_back(taken.pop())
                case _:
                    rows, size = chance.randrange(4), chance.randrange(40)
                    waiting.add(f"shard:{chance.randrange(3)}", page(rows, size))
        while taken:
            waiting.give_back(taken.pop())
        laden, pages = waiting.has_batch, list(_drained(waiting))
        assert laden == (sum(len(p.records) for p in pages) >= ROWS or sum(p.size for p in pages) >= BYTES)
        assert not waiting.has_batch


def test_batches_that_came_back_are_taken_again_as_they_were_and_before_all_others() -> None:
    waiting = PageBuffer()
    for n in range(3):
        for source in ("shard:a", "shard:b"):
            waiting.add(source, page(5, n))
    first, second = list(waiting.next()), list(waiting.next())
    assert [(source, len(pages)) for source, pages in first] == [("shard:a", 2)]
    head = first[0][1][0]
    waiting.give_back(second)
    waiting.give_back(first)
    waiting.add("shard:c", page(9, 9))

    assert "shard:b" in waiting
    assert head in waiting.heads()
    assert list(waiting.next()) == first
    assert list(waiting.next()) == second


@pytest.mark.parametrize("one", [page(ROWS, 0), page(0, BYTES)])
def test_what_came_back_weighs_what_it_weighed(one: Page) -> None:
    waiting = PageBuffer()
    waiting.add("shard:s", one)
    taken = list(waiting.next())
    assert not waiting.has_batch
    waiting.give_back(taken)
    assert waiting.has_batch


def _drained(waiting: PageBuffer) -> Iterator[Page]:
    while waiting:
        for _, pages in waiting.next():
            yield from (p for p in pages if isinstance(p, Page))

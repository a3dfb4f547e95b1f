"""A segment's scan is resumable, reports throttling, skips nothing, and keeps to its budget."""

from __future__ import annotations

import gc
import random
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from itertools import islice, zip_longest
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.aws.client import Call, Client, answered
from replicator.aws.errors import AwsError
from replicator.change import ScanPage
from replicator.errors import GapFound, NotPermitted, ReplicatorError
from replicator.key import Key, KeyAttribute, KeySchema
from replicator.source.scan import LONGEST_BACKOFF, QUICKEST_BACKOFF, ReadBudget, Scanned, scan
from replicator.state import SegmentState
from replicator.testing.dynamodb import DynamoDB

KEYS = KeySchema((KeyAttribute("id", "S"),))
ALL = {(f"i{n}",) for n in range(10)}


@pytest.fixture
def db() -> DynamoDB:
    """Ten items, three per page."""
    made = DynamoDB(now=lambda: 0.0, random=random.Random(1))
    made.create_table("orders")
    for n in range(10):
        made.put("orders", {"id": f"i{n}", "n": n})
    made.page_sizes(items=3)
    return made


def pages(client: Client, segment: int = 0, total: int = 1, cursor: str | None = None) -> Iterator[ScanPage]:
    return answered(
        client, scan(Scanned("orders", KEYS, random.Random(2), time.monotonic), segment, SegmentState(total, cursor))
    )


def keys(found: Iterator[ScanPage] | list[ScanPage]) -> list[Key]:
    return [key for page in found for key, _ in page.items]


class Scripted:
    """A client that returns the given bodies and records its requests."""

    def __init__(self, *bodies: bytes) -> None:
        self.bodies = list(bodies)
        self.asked: list[Mapping[str, Any]] = []

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        self.asked.append(request)
        return self.bodies.pop(0)


def test_every_item_comes_once_and_the_last_page_says_so(db: DynamoDB) -> None:
    found = list(pages(db))
    assert sorted(keys(found)) == sorted(ALL)
    assert [page.ended for page in found] == [False] * (len(found) - 1) + [True]


def test_the_segments_together_have_every_item_once(db: DynamoDB) -> None:
    found = [key for segment in range(3) for key in keys(pages(db, segment, 3))]
    assert sorted(found) == sorted(ALL)


def test_a_scan_resumes_after_any_of_its_pages(db: DynamoDB) -> None:
    whole = list(pages(db))
    for read, page in enumerate(whole[:-1], start=1):
        rest = pages(db, cursor=orjson.dumps(page.cursor).decode())
        assert keys(whole[:read]) + keys(rest) == keys(whole)


def test_a_step_is_one_call(db: DynamoDB) -> None:
    calls = []
    for _ in islice(pages(db), 3):
        calls.append(db.calls["Scan"])
    assert calls == [1, 2, 3]


def test_an_item_comes_with_its_whole_image_and_what_it_cost(db: DynamoDB) -> None:
    page = next(pages(db))
    images = [bytes(image) for _, image in page.items if image is not None]
    assert [orjson.loads(image)["id"]["S"] for image in images] == [key for (key,) in keys([page])]
    assert page.read_units > 0
    assert page.size > 0


def test_reads_are_consistent_and_request_their_cost() -> None:
    client = Scripted(b'{"Items":[],"LastEvaluatedKey":{"id":{"S":"a"}}}', b'{"Items":[]}')
    list(pages(client, 2, 8))
    asked = {"TableName": "orders", "ConsistentRead": True, "ReturnConsumedCapacity": "TOTAL"}
    asked |= {"Segment": 2, "TotalSegments": 8}
    assert client.asked == [asked, asked | {"ExclusiveStartKey": {"id": {"S": "a"}}}]


def test_an_empty_page_with_a_cursor_is_not_the_end() -> None:
    client = Scripted(b'{"Items":[],"LastEvaluatedKey":{"id":{"S":"a"}}}', b'{"Items":[{"id":{"S":"b"}}]}')
    assert keys(pages(client)) == [("b",)]


def test_a_throttled_step_is_reported_and_nothing_is_skipped(db: DynamoDB) -> None:
    steps = pages(db)
    first = next(steps)
    db.fail("Scan", times=2)
    throttled = [next(steps), next(steps)]
    assert [p.waiting_for is not None and "ProvisionedThroughputExceeded" in p.waiting_for for p in throttled] == [
        True,
        True,
    ]
    assert all(p.cursor == first.cursor and not p.items and not p.ended for p in throttled)
    assert sorted(keys([first]) + keys(steps)) == sorted(ALL)


def test_a_throttled_first_step_is_not_the_end(db: DynamoDB) -> None:
    db.fail("Scan")
    steps = pages(db)
    assert not next(steps).ended
    assert sorted(keys(steps)) == sorted(ALL)


def test_backoff_grows_up_to_a_limit(db: DynamoDB) -> None:
    db.fail("Scan", times=None)
    rests = [page.rest for page in islice(pages(db), 40)]
    assert QUICKEST_BACKOFF <= rests[0] <= 2 * QUICKEST_BACKOFF
    assert all(LONGEST_BACKOFF / 2 <= rest <= LONGEST_BACKOFF for rest in rests[10:])


def test_a_successful_step_resets_the_backoff(db: DynamoDB) -> None:
    steps = pages(db)
    db.fail("Scan", times=8)
    *_, last = islice(steps, 8)
    assert last.rest > 8 * QUICKEST_BACKOFF
    assert next(steps).waiting_for is None
    db.fail("Scan")
    assert next(steps).rest <= 2 * QUICKEST_BACKOFF


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>proxy</html>",
        b"",
        b'{"Items":[{"id":{"S":"a"}}',
        b'{"Items":[{"name":{"S":"a"}}]}',
        b'{"Items":[{"id":{"N":"1"}}]}',
        b'{"Items":["a"]}',
    ],
)
def test_a_response_that_is_not_dynamodbs_is_retried(answer: bytes) -> None:
    found = list(pages(Scripted(answer, b'{"Items":[{"id":{"S":"a"}}]}')))
    assert found[0].waiting_for is not None
    assert "is not DynamoDB JSON" in found[0].waiting_for
    assert keys(found) == [("a",)]


def test_a_denied_scan_ends(db: DynamoDB) -> None:
    db.fail("Scan", "AccessDeniedException")
    with pytest.raises(NotPermitted, match="dynamodb:Scan on orders"):
        next(pages(db))


def test_a_request_that_is_refused_ends_the_scan(db: DynamoDB) -> None:
    db.fail("Scan", "ValidationException", message="no")
    with pytest.raises(ReplicatorError, match="Scan on orders was refused: ValidationException: no"):
        next(pages(db))


# the budget


def test_without_a_budget_nothing_waits() -> None:
    assert ReadBudget(None).spend(1e9, 0.0) == 0.0


@pytest.mark.parametrize(
    ("spent", "expected"),
    [
        ([(50, 0.0)], [0.5]),
        ([(50, 0.0), (50, 0.5)], [0.5, 0.5]),
        ([(50, 0.0), (50, 0.0)], [0.5, 1.0]),
        ([(50, 0.0), (50, 10.0)], [0.5, 0.5]),
        ([(0, 0.0)], [0.0]),
    ],
    ids=["one page", "two in turn", "two segments at once", "an idle time is not saved up", "an empty page"],
)
def test_the_wait_is_proportional_to_the_units_consumed(
    spent: list[tuple[float, float]], expected: list[float]
) -> None:
    budget = ReadBudget(100)
    assert [budget.spend(units, now) for units, now in spent] == pytest.approx(expected)


@given(
    per_second=st.floats(1, 1000),
    pages=st.lists(st.tuples(st.floats(0, 500), st.floats(0, 5)), min_size=2, max_size=40),
)
def test_the_rate_stays_under_the_limit_over_any_stretch_of_pages(
    per_second: float, pages: list[tuple[float, float]]
) -> None:
    """``pages``: units, and the duration of the call. A stretch ends when the next page may be requested."""
    budget, now = ReadBudget(per_second), 0.0
    asked: list[tuple[float, float]] = []
    for units, duration in pages:
        asked.append((now, units))
        now += duration
        now += budget.spend(units, now)
    for start in range(len(asked)):
        units = 0.0
        for end in range(start, len(asked)):
            units += asked[end][1]
            until = asked[end + 1][0] if end + 1 < len(asked) else now
            assert units <= per_second * (until - asked[start][0]) * (1 + 1e-9) + 1e-6


@pytest.mark.parametrize(("identity", "told"), [("", "refused: ResourceNotFoundException"), ("that", "was deleted")])
def test_a_scan_of_a_table_that_is_gone_ends(identity: str, told: str) -> None:
    """It is not waited for, whether or not there is an identity to compare, as for ``verify``."""
    gone = DynamoDB(now=lambda: 0.0, random=random.Random(1))
    table = Scanned("orders", KEYS, random.Random(2), time.monotonic, identity)
    with pytest.raises(ReplicatorError, match=told):
        next(answered(gone, scan(table, 0, SegmentState(1))))


# whose the pages are


class Ticking:
    """A clock of which each look is a tenth of a second later."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.1
        return self.now


def identified(db: DynamoDB, now: Callable[[], float] = time.monotonic) -> Scanned:
    identity = orjson.loads(db.call("DescribeTable", {"TableName": "orders"}))["Table"]["TableId"]
    db.calls.clear()
    return Scanned("orders", KEYS, random.Random(2), now, identity)


def made_again(db: DynamoDB) -> None:
    db.call("DeleteTable", {"TableName": "orders"})
    db.create_table("orders")
    for n in range(10):
        db.put("orders", {"id": f"i{n}", "n": n})


def test_the_first_page_and_the_last_come_after_a_check_of_whose_they_are(db: DynamoDB) -> None:
    checks = [db.calls["DescribeTable"] for _ in answered(db, scan(identified(db, lambda: 0.0), 0, SegmentState(1)))]
    assert checks == [1] * (len(checks) - 1) + [2]
    assert len(checks) > 3


def test_in_between_it_is_checked_once_a_second_for_all_segments_together(db: DynamoDB) -> None:
    db.page_sizes(items=1)
    for n in range(10, 400):
        db.put("orders", {"id": f"i{n}", "n": n})
    table = identified(db, Ticking())
    segments = [answered(db, scan(table, n, SegmentState(4), check_end=False)) for n in range(4)]
    assert len(keys([page for pages in zip_longest(*segments) for page in pages if page])) == 400
    assert 0.1 * 400 <= db.calls["DescribeTable"] <= table.now() + 4


@pytest.mark.parametrize("pages", [0, 1, 2])
def test_no_segment_of_another_table_ends(db: DynamoDB, pages: int) -> None:
    steps = answered(db, scan(identified(db, lambda: 0.0), 0, SegmentState(1)))
    assert not any(page.ended for page in islice(steps, pages))
    made_again(db)
    ended: list[bool] = []
    with pytest.raises(GapFound, match="the table orders was deleted and created again before all of its items"):
        ended.extend(page.ended for page in steps)
    assert not any(ended)


def test_a_page_whose_table_is_not_found_is_read_again_and_what_it_cost_is_counted(db: DynamoDB) -> None:
    """DescribeTable may not find a new table for seconds, although its items can be read."""
    table = identified(db, lambda: 0.0)
    db.fail("DescribeTable", "ResourceNotFoundException", times=2)
    found = list(answered(db, scan(table, 0, SegmentState(1))))
    assert [("DescribeTable" in str(p.waiting_for), p.read_units > 0, not p.items) for p in found[:2]] == [
        (True,) * 3
    ] * 2
    assert all(page.rest > 0 and not page.ended for page in found[:2])
    assert sorted(keys(found)) == sorted(ALL)


def test_while_checks_are_throttled_a_page_is_kept_and_what_it_cost_is_counted_once(db: DynamoDB) -> None:
    undisturbed = list(answered(db, scan(identified(db, lambda: 0.0), 0, SegmentState(1))))
    table = identified(db, lambda: 0.0)
    db.fail("DescribeTable", "ThrottlingException", times=30)
    found = list(answered(db, scan(table, 0, SegmentState(1))))

    assert [("DescribeTable" in str(p.waiting_for), p.rest > 0, p.ended) for p in found[:30]] == [
        (True, True, False)
    ] * 30
    assert [page.items for page in found[30:]] == [page.items for page in undisturbed]
    assert db.calls["Scan"] == len(undisturbed)
    assert sum(page.read_units for page in found) == sum(page.read_units for page in undisturbed) > 0


@pytest.fixture
def two(db: DynamoDB, monkeypatch: pytest.MonkeyPatch) -> list[Generator[Call | ScanPage, Any, None]]:
    """Two segments, of which only one may keep its page. All checks fail."""
    monkeypatch.setattr("replicator.source.scan.KEPT_BYTES", 1)
    table = identified(db, lambda: 0.0)
    db.fail("DescribeTable", "ThrottlingException", times=None)
    return [scan(table, n, SegmentState(2)) for n in range(2)]


def test_a_segment_that_may_not_keep_its_page_reads_it_again_only_once_a_check_succeeds(
    db: DynamoDB, two: list[Generator[Call | ScanPage, Any, None]]
) -> None:
    one, other = (answered(db, segment) for segment in two)
    found = [page for _ in range(20) for page in (next(one), next(other))]
    assert all(page.waiting_for for page in found)
    assert db.calls["Scan"] == 2

    db.heal()
    found += [*one, *other]
    assert sorted(keys(found)) == sorted(ALL)
    assert db.calls["Scan"] == 1 + sum(not page.waiting_for for page in found)


def test_a_segment_may_keep_its_page_once_no_other_does(
    db: DynamoDB, two: list[Generator[Call | ScanPage, Any, None]]
) -> None:
    assert next(answered(db, two[0])).waiting_for
    two[0].close()  # as of an epoch that is over
    other = answered(db, two[1])
    assert all(page.waiting_for for page in islice(other, 5))
    db.heal()
    assert next(other).items
    assert db.calls["Scan"] == 2


def test_a_reader_that_waits_for_a_check_is_freed_with_its_page_as_it_is_dropped(db: DynamoDB) -> None:
    """Not whenever the garbage collector finds it: it holds a page."""
    table = identified(db, lambda: 0.0)
    steps: Any = scan(table, 0, SegmentState(1))
    body = db.call("Scan", next(steps).request)
    assert isinstance(steps.send(body), Call)
    assert steps.throw(AwsError("ThrottlingException", "later", 400)).waiting_for
    freed = weakref.ref(steps)
    gc.disable()
    try:
        del steps
        assert freed() is None
    finally:
        gc.enable()


def test_a_kept_page_needs_no_check_of_its_own_after_one_of_another_segment(db: DynamoDB) -> None:
    now = [0.0]
    table = identified(db, lambda: now[0])
    db.page_sizes(items=100)
    db.fail("DescribeTable", "ThrottlingException", times=2)
    one, other = (answered(db, scan(table, n, SegmentState(2))) for n in range(2))
    assert [bool(next(segment).waiting_for) for segment in (one, other)] == [True, True]
    now[0] = 5.0
    assert sorted(keys([next(one), next(other)])) == sorted(ALL)
    assert db.calls == {"Scan": 2, "DescribeTable": 3}


@pytest.mark.parametrize(
    ("again", "told"), [(True, "was deleted and created again before all"), (False, "was deleted before")]
)
def test_a_table_that_is_deleted_while_a_page_is_kept_ends_the_scan(db: DynamoDB, again: bool, told: str) -> None:
    steps = answered(db, scan(identified(db, lambda: 0.0), 0, SegmentState(1)))
    db.fail("DescribeTable", "ThrottlingException", times=2)
    assert all(page.waiting_for for page in islice(steps, 2))
    if again:
        made_again(db)
    else:
        db.call("DeleteTable", {"TableName": "orders"})
    with pytest.raises(ReplicatorError, match=told):
        assert not keys(steps)


def test_a_check_proves_nothing_of_what_is_read_once_it_has_begun(db: DynamoDB) -> None:
    """However late its response comes."""
    now = [0.0]
    db.page_sizes(items=1)
    steps = scan(identified(db, lambda: now[0]), 0, SegmentState(1))

    def response(step: Call | ScanPage) -> bytes:
        assert isinstance(step, Call)
        return db.call(step.operation, step.request)

    described = steps.send(response(next(steps)))
    body = response(described)
    now[0] = 5.0
    assert isinstance(steps.send(body), ScanPage)
    again = steps.send(response(next(steps)))
    assert isinstance(again, Call)
    assert again.operation == "DescribeTable"


def test_while_checks_fail_no_page_is_used_for_longer_than_two_seconds(db: DynamoDB) -> None:
    now = [0.0]
    db.page_sizes(items=1)
    steps = answered(db, scan(identified(db, lambda: now[0]), 0, SegmentState(1)))
    assert next(steps).items
    db.fail("DescribeTable", "ThrottlingException", times=None)
    now[0] = 1.0
    assert next(steps).waiting_for
    now[0] = 1.5
    assert next(steps).items, "another segment may be making the next check"
    now[0] = 2.0
    assert all(page.waiting_for for page in islice(steps, 5))

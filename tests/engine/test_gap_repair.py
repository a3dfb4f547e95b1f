"""The walk of a repair begins once nothing of before the gap can be applied any more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from replicator.engine.gap_repair import WAITING, Repairs, lost_since
from replicator.engine.retry import POSTPONED
from replicator.errors import Postponed
from replicator.pipeline.stages import SCANNING
from replicator.state import Gap, GapRepair, PipelineState, ShardState
from replicator.target.in_doubt import WINDOW, InDoubtWindow
from replicator.target.verification import CursorExpired, Walked


class Delivery:
    """``noted``: what a command does before the parked items are read again."""

    def __init__(self, noted: Any = lambda: None) -> None:
        self.noted = noted

    def know_parked(self) -> None:
        self.noted()


def repairs(in_doubt: InDoubtWindow | None, delivery: Delivery) -> Repairs:
    rest: Any = None
    of: Any = delivery
    return Repairs(rest, (), rest, rest, of, rest, in_doubt, 1)


def test_the_walk_waits_for_writes_of_an_earlier_epoch_and_for_no_others() -> None:
    clock = [0.0]
    window = InDoubtWindow(lambda: clock[0])
    window.begin(earlier=True)
    one, fetcher = repairs(window, Delivery()), SimpleNamespace(waiting_for={})
    clock[0] = WINDOW - 1
    assert not one._is_settled(fetcher)  # type: ignore[arg-type]
    assert "may still be applied" in fetcher.waiting_for[WAITING]
    window.begin()  # a response of the current epoch was lost
    clock[0] = WINDOW
    assert one._is_settled(fetcher)  # type: ignore[arg-type]
    assert not fetcher.waiting_for


def test_the_walk_waits_for_a_retry_that_was_noted_in_the_meantime() -> None:
    clock = [0.0]
    window = InDoubtWindow(lambda: clock[0])
    retried = [True]

    def noted() -> None:
        if retried and retried.pop():
            window.begin(earlier=True)

    one, fetcher = repairs(window, Delivery(noted)), SimpleNamespace(waiting_for={})
    assert not one._is_settled(fetcher)  # type: ignore[arg-type]
    clock[0] = WINDOW
    assert one._is_settled(fetcher)  # type: ignore[arg-type]


def test_the_walk_waits_for_nothing_where_a_transaction_has_the_writes() -> None:
    fetcher: Any = SimpleNamespace(waiting_for={})
    assert repairs(None, Delivery())._is_settled(fetcher)


def start(*, stream: str = "s1", gaps: tuple[Gap, ...] = ()) -> Any:
    """A copy that read idle shards up to 5000, and whose last record is of 1000."""
    shards = {"a": ShardState(None, None, False, since=5000.0, created=1000.0)}
    table = SimpleNamespace(stream_arn=stream, streaming=True)
    return SimpleNamespace(shards=shards, gaps=dict(enumerate(gaps)), table=table)


STATE = PipelineState(1024, "s1", "table", "id", "following", started=1.0)


def test_a_stream_that_was_replaced_is_certain_until_its_last_record_only() -> None:
    assert lost_since(start(), STATE) == 5000.0
    assert lost_since(start(stream="s2"), STATE) == 1000.0


def test_a_gap_that_was_found_earlier_says_since_when() -> None:
    assert lost_since(start(gaps=(Gap("lost", 9000.0, 1024, since=3000.0),)), STATE) == 3000.0
    assert lost_since(start(gaps=(Gap("lost", 9000.0, 1024, since=3000.0, repaired=9999.0),)), STATE) == 5000.0
    assert lost_since(start(gaps=(Gap("the target lost it", 9000.0, 1024),)), STATE) is None


def at_once(function: Any) -> Any:
    return function()


def tried(walk: Callable[..., Walked], repair: GapRepair, clock: list[float], times: Sequence[float]) -> list[str]:
    """What a repair waits for after it was done at these times."""
    target: Any = SimpleNamespace(walk=walk, compare=walk, versions=walk)
    state = SimpleNamespace(stage=SCANNING, repair=repair, opening=(), epoch=1024)
    pipeline: Any = SimpleNamespace(state=state, segments={})
    delivery: Any = SimpleNamespace(settle=lambda: None, know_parked=lambda: None)
    fetcher: Any = SimpleNamespace(waiting_for={})
    table: Any = SimpleNamespace(name="orders")
    rest: Any = None
    retrying: Any = at_once
    one = Repairs(target, [table], rest, pipeline, delivery, retrying, None, 1, lambda: clock[0])
    waits = []
    for now in times:
        clock[0] = now
        assert not one.do(fetcher)
        waits.append(fetcher.waiting_for[WAITING])
    return waits


def test_a_walk_that_must_wait_is_tried_again_later_and_says_so() -> None:
    clock, asked = [0.0], []

    def walk(*_: Any) -> Walked:
        asked.append(clock[0])
        raise Postponed("slots are moving")

    waits = tried(walk, GapRepair(1.0, 1, looking_up=True), clock, [0.0, 1.0, POSTPONED])
    assert all(wait.endswith("slots are moving") for wait in waits)
    assert asked == [0.0, POSTPONED]


def test_a_walk_whose_cursor_has_expired_begins_again_though_its_first_piece_must_wait() -> None:
    """Otherwise the expired cursor is asked again after each wait, for ever."""
    asked = []

    def walk(_: Any, cursor: str | None) -> Walked:
        asked.append(cursor)
        if cursor is not None:
            raise CursorExpired("it has expired")
        raise Postponed("it is being read")

    repair = GapRepair(1.0, 1, looking_up=True, cursor="of an earlier version")
    tried(walk, repair, [0.0], [0.0, POSTPONED, 2 * POSTPONED])
    assert asked == ["of an earlier version", None, None, None]
